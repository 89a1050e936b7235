"""Target columns to what the model learns: classes, labels or numbers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from vitreous.errors import InputError
from vitreous.fields import read_fields

KINDS = ("classification", "multilabel", "regression")
MOST_CLASSES_OF_NUMBERS = 50  # more distinct whole numbers than this are measured, not named
SHOWN_CLASSES = 12
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_UNIT = re.compile(r"\s*(?:\(([^()]+)\)|\[([^\[\]]+)\])\s*$")


@dataclass(frozen=True)
class Task:
    """What is learned from a picture."""

    kind: str  # "classification", "multilabel" or "regression"
    names: tuple[str, ...]  # class names, label names, or target columns
    units: tuple[str, ...] = ()  # regression: "mm" of a column "length (mm)" or "length [mm]", else ""
    mean: tuple[float, ...] = ()  # regression: of the training pictures, once fitted
    std: tuple[float, ...] = ()
    column: str = ""  # classification: where the classes stood

    @property
    def outputs(self) -> int:
        """How many numbers the model's head gives."""
        return len(self.names)

    @property
    def columns(self) -> tuple[str, ...]:
        """The target columns that it reads."""
        return (self.column,) if self.kind == "classification" else self.names

    @property
    def mirror_sensitive(self) -> bool:
        """Whether a mirrored picture would mean another class: letters and digits, or left and right."""
        if self.kind != "classification":
            return False
        sided = any({"left", "right"} & set(re.split(r"[^a-z]+", name.lower())) for name in self.names)
        return sided or all(len(name) == 1 and name.isalnum() for name in self.names)

    def encode(self, columns: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> np.ndarray:
        """Columns of n rows to targets: (n,) int64 of classes, or (n, K) float32 of labels or unscaled numbers.

        Raises:
            InputError: a column is not there, a value is missing or infinite, text where a number belongs, or a class
                that is not known. `names` (of the n pictures) are then given beside the row numbers.
        """
        columns = self._own(columns)
        _refuse_missing(columns, names)
        if self.kind == "classification":
            [(title, column)] = columns.items()
            return self._class_numbers(title, class_labels(column), names)
        for title, column in columns.items():
            if self.kind == "multilabel" and not _is_binary(column):
                raise InputError(f"Column '{title}' must hold 0 or 1 only, as a label is there or not.")
            if column.dtype.kind not in "biuf":
                raise InputError(f"Column '{title}' must hold numbers, but it holds text such as '{column[0]}'.")
        return np.stack([column.astype(np.float32) for column in columns.values()], axis=1)

    def fitted(self, targets: np.ndarray) -> Self:
        """The task with the mean and standard deviation of the training pictures' targets, (n, K); others unchanged.

        Raises:
            InputError: a target is the same on every picture.
        """
        if self.kind != "regression":
            return self
        constant = [name for name, column in zip(self.names, targets.T, strict=True) if column.min() == column.max()]
        if constant:
            raise InputError.listing(
                "A constant target cannot be learned, but the training pictures all have the same value of:",
                constant,
                "Choose others with --target.",
            )
        values = targets.astype(np.float64)
        return replace(self, mean=tuple(values.mean(axis=0).tolist()), std=tuple(values.std(axis=0).tolist()))

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """Numbers in their units, (n, K), to float32 of mean 0 and deviation 1 over the training pictures."""
        self._check_fitted()
        return ((values.astype(np.float64) - np.array(self.mean)) / np.array(self.std)).astype(np.float32)

    def restore(self, values: np.ndarray) -> np.ndarray:
        """Standardised numbers, (n, K), back to their units, as float32."""
        self._check_fitted()
        return (values.astype(np.float64) * np.array(self.std) + np.array(self.mean)).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Lists, strings and numbers only; `from_json` reads it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The task that `to_json` wrote.

        Raises:
            InputError: it is not one.
        """
        task = read_fields(cls, data, "Not the description of a task")
        if task.kind not in KINDS or not task.names:
            raise InputError(f"Not the description of a task: kind '{task.kind}' of {len(task.names)} names.")
        numbers = {"units": task.units, "mean": task.mean, "std": task.std}
        wanted = len(task.names) if task.kind == "regression" else 0
        if wrong := [name for name, values in numbers.items() if values and len(values) != wanted]:
            raise InputError(f"Not the description of a task: {wanted} numbers were expected as {', '.join(wrong)}.")
        return task

    def _own(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The columns that this task reads. A single column of classes is taken whatever its name."""
        if self.kind == "classification" and self.column not in columns and len(columns) == 1:
            return dict(columns)
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise InputError(f"No target column {_listed(missing)}. The target columns are: {_listed(columns)}.")
        return {name: columns[name] for name in self.columns}

    def _class_numbers(self, title: str, labels: np.ndarray, names: Sequence[str] | None) -> np.ndarray:
        numbers = {name: i for i, name in enumerate(self.names)}
        found, inverse = np.unique(labels, return_inverse=True)
        unknown = [label for label in found.tolist() if label not in numbers]
        if unknown:
            first = {label: int(np.flatnonzero(labels == label)[0]) for label in unknown}
            raise InputError.listing(
                f"Column '{title}' holds classes that are not known:",
                [f"'{label}', first at {_row(row, names)}" for label, row in first.items()],
                f"The known classes are: {_listed(self.names)}.",
            )
        return np.array([numbers[label] for label in found.tolist()], dtype=np.int64)[inverse]

    def _check_fitted(self) -> None:
        if not self.mean:
            raise ValueError("Only a regression task that was fitted to its training targets has a scale.")


def infer_task(columns: Mapping[str, np.ndarray], kind: str = "auto", names: Sequence[str] | None = None) -> Task:
    """What columns of n rows mean.

    One column of text, of true/false, or of few whole numbers that repeat (at most 50 different ones, each twice on
    average or more) holds classes; other numbers are a regression, as are whole numbers with a unit in the column's
    name. Several columns of only 0 and 1 are labels; several of other numbers a regression with several targets.

    Args:
        columns: name -> (n,) of str, bool or numbers.
        kind: "auto", or "classification", "multilabel" or "regression" to say so.
        names: of the n pictures, for messages.

    Raises:
        InputError: no columns or rows, missing or infinite values, columns that do not fit the kind or each other,
            or fewer than two classes.
    """
    if kind not in ("auto", *KINDS):
        raise InputError(f"The kind of task must be one of auto, {', '.join(KINDS)}, but it is '{kind}'.")
    if not columns:
        raise InputError("The pictures have no targets: nothing says what is to be learned from them.")
    if not len(next(iter(columns.values()))):
        raise InputError("There are no pictures to learn from.")
    _refuse_missing(columns, names)
    numeric = all(column.dtype.kind in "iuf" for column in columns.values())
    binary = all(_is_binary(column) for column in columns.values())
    if kind == "auto":
        kind = _infer_kind(columns, numeric=numeric, binary=binary)
    if kind == "classification":
        return _classes(columns)
    if kind == "multilabel":
        if not binary:
            wrong = [name for name, column in columns.items() if not _is_binary(column)]
            raise InputError(f"Labels are columns of 0 and 1, but these hold other values: {_listed(wrong)}.")
        return Task("multilabel", tuple(columns))
    if not numeric:
        wrong = [name for name, column in columns.items() if column.dtype.kind not in "iuf"]
        raise InputError(f"A regression learns numbers, but these columns do not hold numbers: {_listed(wrong)}.")
    return Task("regression", tuple(columns), units=tuple(_name_and_unit(name)[1] for name in columns))


def describe(task: Task, targets: np.ndarray) -> str:
    """One line for the user; the targets are as `Task.encode` gives them."""
    if task.kind == "regression":
        parts = []
        for title, column in zip(task.names, targets.T, strict=True):
            name, unit = _name_and_unit(title)
            parts.append(f"{name}, {column.min():.6g} to {column.max():.6g}{f' ({unit})' if unit else ''}")
        return f"regression of {'; '.join(parts)}"
    if task.kind == "classification":
        head, counts = f"classification, {task.outputs} classes", np.bincount(targets, minlength=task.outputs)
    else:
        noun = "label" if task.outputs == 1 else "labels"
        head, counts = f"multi-label, {task.outputs} {noun}", targets.sum(axis=0).astype(np.int64)
    shown = [f"{name} ({count:,})" for name, count in zip(task.names, counts.tolist(), strict=True)][:SHOWN_CLASSES]
    return f"{head}: {', '.join(shown)}{' …' if task.outputs > SHOWN_CLASSES else ''}"


def class_labels(column: np.ndarray) -> np.ndarray:
    """(n,) of str, bool or whole numbers, as class names: 2 and 2.0 are both "2"."""
    if column.dtype.kind == "f" and _is_whole(column):
        column = column.astype(np.int64)
    return column.astype(str)


def _infer_kind(columns: Mapping[str, np.ndarray], *, numeric: bool, binary: bool) -> str:
    if len(columns) > 1:
        if binary:
            return "multilabel"
        if numeric:
            return "regression"
        text = [name for name, column in columns.items() if column.dtype.kind not in "iuf"]
        raise InputError(
            f"Several target columns must all hold numbers, or all 0 and 1, but these do not: {_listed(text)}. "
            f"Choose what to learn with --target, among: {_listed(columns)}."
        )
    [(title, column)] = columns.items()
    if not numeric:
        _refuse_spoilt_numbers(title, column)
        return "classification"
    distinct = len(np.unique(column))
    named = _is_whole(column) and distinct <= MOST_CLASSES_OF_NUMBERS and len(column) > 2 * distinct
    return "classification" if named and not _name_and_unit(title)[1] else "regression"


def _refuse_spoilt_numbers(title: str, column: np.ndarray) -> None:
    """Text of which nearly all are measured numbers is a column of numbers with mistakes, not of classes."""
    if column.dtype.kind != "U":
        return
    words = np.char.strip(column)
    wrong = [i for i, word in enumerate(words.tolist()) if not _NUMBER.fullmatch(word)]
    if 0 < len(wrong) <= len(words) / 10 and len(np.unique(words)) > max(MOST_CLASSES_OF_NUMBERS / 5, len(words) / 2):
        raise InputError.listing(
            f"Column '{title}' holds numbers, but not in {len(wrong):,} of {len(words):,} rows:",
            [f"row {i + 1}: '{column[i]}'" for i in wrong],
            "Mend these rows, or say --task classification if they are classes.",
        )


def _classes(columns: Mapping[str, np.ndarray]) -> Task:
    if len(columns) > 1:
        raise InputError(f"Classes stand in one column. Choose it with --target, among: {_listed(columns)}.")
    [(title, column)] = columns.items()
    if column.dtype.kind == "f" and not _is_whole(column):
        example = column[column % 1 != 0][:1].tolist()
        raise InputError(f"Column '{title}' holds fractions, such as {example}, which name no class.")
    found = np.unique(class_labels(column)).tolist()
    if len(found) < 2:
        raise InputError(f"There is only one class, '{found[0]}', in '{title}'; at least 2 are needed to tell apart.")
    if all(re.fullmatch(r"-?[0-9]+", name) for name in found):
        found.sort(key=lambda name: (int(name), name))
    return Task("classification", tuple(found), column=title)


def _refuse_missing(columns: Mapping[str, np.ndarray], names: Sequence[str] | None) -> None:
    faults = []
    for title, column in columns.items():
        if column.dtype.kind == "f":
            faulty = ~(np.abs(column) <= np.finfo(np.float32).max)
        elif column.dtype.kind == "U":
            faulty = column == ""
        else:
            continue
        for row in np.flatnonzero(faulty).tolist():
            what = "is missing" if str(column[row]) in ("", "nan") else f"is {column[row]}"
            faults.append(f"{_row(row, names)}: '{title}' {what}")
    if faults:
        raise InputError.listing(
            "Every picture needs its targets, but (rows counted from 1, without the header):",
            faults,
            "Fill them in, or remove these rows.",
        )


def _is_binary(column: np.ndarray) -> bool:
    return column.dtype.kind == "b" or (column.dtype.kind in "iuf" and bool(np.isin(column, (0, 1)).all()))


def _is_whole(column: np.ndarray) -> bool:
    return column.dtype.kind in "iu" or bool((column % 1 == 0).all() and (np.abs(column) < 2**53).all())


def _name_and_unit(column: str) -> tuple[str, str]:
    """ "length (mm)" -> ("length", "mm"); "length" -> ("length", "")."""
    found = _UNIT.search(column)
    if not found or not found.start():
        return column, ""
    return column[: found.start()], (found[1] or found[2]).strip()


def _row(row: int, names: Sequence[str] | None) -> str:
    return f"row {row + 1}" if names is None else f"row {row + 1} ({names[row]})"


def _listed(names: Sequence[str] | Mapping[str, Any], shown: int = 20) -> str:
    words = [f"'{name}'" for name in list(names)[:shown]]
    return ", ".join(words) + (f" … and {len(names) - shown:,} more" if len(names) > shown else "")
