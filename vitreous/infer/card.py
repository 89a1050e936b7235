"""The card of an exported file: what it takes and gives, what it was made of, and what it has seen."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vitreous.calibration import Calibration
from vitreous.data.preprocess import InputSpec
from vitreous.data.tables import Columns
from vitreous.data.targets import Task
from vitreous.errors import InputError
from vitreous.fields import read_fields
from vitreous.infer.engines import PRECISIONS
from vitreous.rundir import SPLITS, SplitRow
from vitreous.strict import parse_json

VERSION = 1  # of exported files; one that this version of vitreous cannot read is refused
LARGEST_CARD = 64 << 20  # bytes of a card
DIGITS = 12  # of a digest: among a million pictures, one other in 300 million is taken for one of them


@dataclass(frozen=True)
class Seen:
    """A run's pictures by the side of the split that they stood on: the beginnings of their digests, and spaces."""

    train: str = ""
    validation: str = ""
    test: str = ""

    @classmethod
    def of(cls, rows: Sequence[SplitRow]) -> Self:
        """Those of a split."""
        return cls(**{side: " ".join(row.digest[:DIGITS] for row in rows if row.split == side) for side in SPLITS})

    def sides(self) -> dict[str, str]:
        """The side by the beginning of a digest; of several sides training comes first, then validation."""
        return {digest: side for side in reversed(SPLITS) for digest in getattr(self, side).split()}


@dataclass(frozen=True)
class Port:
    """What a graph takes or gives, as a runtime tells it."""

    names: Collection[str]
    depth: str  # of `InputSpec`; "" for another type of numbers
    shape: Sequence[Any]  # numbers or words for what is free; () where it is not known


@dataclass(frozen=True)
class Card:
    """What an exported file takes and gives, and what it was made of."""

    spec: InputSpec
    task: Task
    calibration: Calibration
    precision: str
    mirrored: bool  # whether mirrored views of a picture make sense
    columns: Columns  # of a table, that the targets and the pictures stood in
    origin: dict[str, Any]  # of the weights, and versions
    seen: Seen  # 13 bytes a picture

    def to_json(self) -> str:
        """JSON text."""
        plain = {"input": self.spec.to_json(), "task": self.task.to_json(), "calibration": self.calibration.to_json()}
        rest = {key: getattr(self, key) for key in ("precision", "mirrored", "origin")}
        parts = {name: vars(getattr(self, name)) for name in ("columns", "seen")}
        return json.dumps({"format": VERSION, **plain, **rest, **parts}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, path: Path) -> Self:
        """The card that `to_json` wrote. Raises `InputError` for anything else."""
        values = parse_json(text, f"{path}: the card in it", LARGEST_CARD)
        version = values.get("format")
        if version != VERSION:
            raise InputError(f"{path} is an export of format {version}: this version of vitreous reads {VERSION}")
        try:
            card = read_fields(_Written, values, "the card")
            parts = (InputSpec.from_json(card.input), Task.from_json(card.task))
            calibration = Calibration.from_json(card.calibration)
            if card.precision not in PRECISIONS:
                raise InputError(f"precision is {card.precision!r}: expected {', '.join(PRECISIONS)}")
        except InputError as fault:
            raise InputError(f"{path}: the card in it is damaged: {fault}") from None
        return cls(*parts, calibration, card.precision, bool(card.mirrored), card.columns, card.origin, card.seen)

    def check(self, inputs: Sequence[Port], outputs: Sequence[Port], path: Path) -> None:
        """Raises `InputError` where a graph takes anything but pixels (B, H, W, C) of this depth, or gives anything but
        `outputs` and `answers`, (B, K) both.
        """
        taken = [(port.depth, len(port.shape), str(port.shape[-1])) for port in inputs if port.shape]
        given = [str(port.shape[-1]) for port in outputs if port.shape]
        named = len(outputs) == 2 and "outputs" in outputs[0].names and "answers" in outputs[1].names
        expected = [(self.spec.depth, 4, str(self.spec.channels))], [str(self.task.outputs)] * 2
        if len(inputs) != 1 or not named or (taken, given) != expected:
            raise InputError(f"{path}: its card is of another model; expected a file that `vitreous export` made")


def identity(origin: dict[str, Any], spec: InputSpec) -> dict[str, Any]:
    """What a model's outputs depend on, of what it was made of: not how its run is called, nor where it lies."""
    return {name: origin.get(name) for name in ("weights", "merge", "vitreous", "torch")} | {"input": spec.to_json()}


@dataclass(frozen=True)
class _Written:
    """A card as it is written."""

    format: int
    input: dict[str, Any]
    task: dict[str, Any]
    calibration: dict[str, Any]
    precision: str
    mirrored: bool | float
    columns: Columns
    origin: dict[str, Any]
    seen: Seen
