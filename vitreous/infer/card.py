"""The card of an exported file: what it takes and gives, what it was made of, and what it has seen."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vitreous.calibration import Calibration
from vitreous.data.preprocess import InputSpec
from vitreous.data.tables import Columns
from vitreous.data.targets import Task
from vitreous.errors import InputError
from vitreous.fields import read_fields
from vitreous.rundir import SPLITS, SplitRow
from vitreous.strict import parse_json

VERSION = 1  # of exported files; one that this version of vitreous cannot read is refused
LARGEST = 64 << 20  # bytes of a card
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
        values = parse_json(text, f"{path}: the card in it", LARGEST)
        version = values.get("format")
        if version != VERSION:
            raise InputError(f"{path} is an export of format {version}: this version of vitreous reads {VERSION}")
        try:
            card = read_fields(_Written, values, "the card")
            parts = (InputSpec.from_json(card.input), Task.from_json(card.task))
            calibration = Calibration.from_json(card.calibration)
        except InputError as fault:
            raise InputError(f"{path}: the card in it is damaged: {fault}") from None
        return cls(*parts, calibration, card.precision, bool(card.mirrored), card.columns, card.origin, card.seen)

    def check(self, last: Sequence[Any], path: Path) -> None:
        """Raises `InputError` where a graph's inputs and outputs have other last dimensions than channels, outputs and
        answers.
        """
        expected = [self.spec.channels, self.task.outputs, self.task.outputs]
        if list(map(str, last)) != list(map(str, expected)):
            raise InputError(f"{path}: its card is of another model; expected a file that `vitreous export` made")


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
