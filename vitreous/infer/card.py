"""The card of an exported file: what it takes and gives, and what it was made of."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vitreous.calibration import Calibration
from vitreous.data.preprocess import InputSpec
from vitreous.data.targets import Task
from vitreous.errors import InputError
from vitreous.fields import read_fields
from vitreous.strict import parse_json

VERSION = 1  # of exported files; one that this version of vitreous cannot read is refused
LARGEST = 16 << 20  # bytes of a card


@dataclass(frozen=True)
class Card:
    """What an exported file takes and gives, and what it was made of."""

    spec: InputSpec
    task: Task
    calibration: Calibration
    precision: str
    mirrored: bool  # whether mirrored views of a picture make sense
    columns: dict[str, Any]  # `target` and `path_column`, for tables
    origin: dict[str, Any]  # of the weights, and versions

    def to_json(self) -> str:
        """JSON text."""
        plain = {"input": self.spec.to_json(), "task": self.task.to_json(), "calibration": self.calibration.to_json()}
        rest = {key: getattr(self, key) for key in ("precision", "mirrored", "columns", "origin")}
        return json.dumps({"format": VERSION, **plain, **rest}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, path: Path) -> Self:
        """The card that `to_json` wrote. Raises `InputError` for anything else."""
        values = parse_json(text, f"{path}: the card in it", LARGEST)
        version = values.get("format")
        if version != VERSION:
            raise InputError(f"{path} is an export of format {version}: this version of vitreous reads {VERSION}")
        try:
            card = read_fields(_Written, values, "expected what an export says")
            parts = (InputSpec.from_json(card.input), Task.from_json(card.task))
            calibration = Calibration.from_json(card.calibration)
        except InputError as fault:
            raise InputError(f"{path}: the card in it is damaged: {fault}") from None
        return cls(*parts, calibration, card.precision, bool(card.mirrored), card.columns, card.origin)

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
    columns: dict[str, Any]
    origin: dict[str, Any]
