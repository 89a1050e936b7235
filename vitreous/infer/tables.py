"""Predictions as rows of a table: .csv, .jsonl or .parquet. What stands under a table's name is always whole.

The rows of .csv and .jsonl grow in a file beside it, TABLE.part, which takes the name once all are there. Where the
work was interrupted it stays, and can be gone on with. A picture's name is read back equal, also one that is no UTF-8;
a .csv, which is opened in spreadsheets and shown in terminals, has text as `guarded` writes it.
"""

import csv
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from vitreous.cells import csv_rows, guarded, unguarded
from vitreous.data.targets import Task
from vitreous.errors import HIDDEN, InputError
from vitreous.files import write_whole
from vitreous.infer.predictor import Prediction

CHUNK = 4096  # rows that Parquet groups
PAUSE = 1.0  # seconds that a row may wait for its way to the disk
Row = dict[str, Any]
Schema = Mapping[str, type]  # in order, and what they hold: str, float or bool; any of them may be None


def columns(task: Task, top: int) -> dict[str, type]:
    """The columns of every row of a task, with the `top` most probable classes.

    Raises `InputError` where a target's name would make two of them one.
    """
    if task.kind == "classification":
        own: dict[str, type] = {}
        for place in range(min(top, task.outputs)):
            own |= {f"label{_suffix(place)}": str, f"probability{_suffix(place)}": float}
        own |= {"unsure": bool, "plausible": str}
    elif task.kind == "multilabel":
        own = {"labels": str, **{f"p({name})": float for name in task.names}}
    else:
        titles = [title for name in task.names for title in (name, f"{name} low", f"{name} high")]
        if twice := [title for title, count in Counter(["picture", "error", *titles]).items() if count > 1]:
            raise InputError(
                f"a table of these predictions would have two columns {twice[0]!r}: beside a target X there stand "
                "X low and X high, picture and error. Expected a run whose targets have other names, or no table"
            )
        own = dict.fromkeys(titles, float)
    return {"picture": str, **own, "error": str}


def as_row(task: Task, prediction: Prediction, top: int) -> Row:
    """A prediction as a row of the `columns` of its task; where it has an error, there is nothing else."""
    row: Row = dict.fromkeys(columns(task, top))
    if prediction.error:
        pass
    elif task.kind == "classification":
        for place, (name, probability) in enumerate(islice(prediction.probabilities.items(), top)):
            row |= {f"label{_suffix(place)}": name, f"probability{_suffix(place)}": probability}
        row |= {"unsure": prediction.unsure, "plausible": "|".join(prediction.plausible) or None}
    elif task.kind == "multilabel":
        row["labels"] = "|".join(prediction.labels)
        row |= {f"p({name})": probability for name, probability in prediction.probabilities.items()}
    else:
        for name in task.names:
            low, high = prediction.intervals.get(name, (None, None))
            row |= {name: prediction.values[name], f"{name} low": low, f"{name} high": high}
    return row | {"picture": prediction.picture, "error": prediction.error or None}


def check_name(path: Path, append: bool = False) -> None:
    """Raises `InputError` for a name whose ending is none that can be written, or with `append` none to go on with."""
    ending = path.suffix.lower()
    if ending not in (*FORMS, PARQUET):
        raise InputError(f"--out {path}: expected a name that ends in {', '.join((*FORMS, PARQUET))}")
    if append and ending not in FORMS:
        raise InputError(
            f"--skip-done goes on with a table that grows row by row: expected an --out that ends in "
            f"{' or '.join(FORMS)}, not {path}"
        )


def part_of(path: Path) -> Path:
    """The file that the rows of a .csv or .jsonl grow in, until all are there."""
    return path.with_name(f"{path.name}.part")


def write_rows(rows: Iterable[Row], path: Path, columns: Schema, *, append: bool = False) -> None:
    """Writes rows as they come to .csv, .jsonl or .parquet, by the name.

    What stood there stays until all are written. Whatever stops it leaves the rows so far in `part_of` the path, but
    nothing of a Parquet file. `append` puts them behind those that `keep_done` left.
    """
    check_name(path, append)
    if path.suffix.lower() == PARQUET:
        write_whole(path, lambda temporary: _write_parquet(iter(rows), temporary, columns))
        return
    form, part = FORMS[path.suffix.lower()](columns), part_of(path)
    waiting = [] if append else [form.head]

    def push() -> None:
        content = memoryview(b"".join(waiting))
        waiting.clear()
        with _explained(path):
            while content:
                content = content[file.write(content) :]

    with _explained(path):
        file = open(part, "ab" if append else "wb", buffering=0)  # noqa: SIM115
    with file:
        pushed = time.monotonic()
        try:
            for row in rows:
                waiting.append(form.line(row))
                if time.monotonic() - pushed >= PAUSE:
                    push()
                    pushed = time.monotonic()
        finally:
            push()
        with _explained(path):
            os.fsync(file.fileno())
    with _explained(path):
        os.replace(part, path)


def keep_done(path: Path, task: Task, top: int) -> set[str]:
    """The names of pictures that have their answers in `part_of` the path, or else in the path itself.

    The part then holds their rows alone, as they were, and `write_rows` with `append` goes on there: rows with an error
    are to be tried again, and one that was cut short is none. Raises `InputError` where the rows are others than this
    task and `top` give, for a damaged table and for Parquet.
    """
    check_name(path, append=True)
    form, part = FORMS[path.suffix.lower()](columns(task, top)), part_of(path)
    old = part if part.exists() else path
    classes = set(task.names) if task.kind == "classification" else None
    names: set[str] = set()

    file = open(old, "rb") if old.exists() else io.BytesIO()  # noqa: SIM115

    def write(temporary: Path) -> None:
        with file, open(temporary, "wb") as kept:
            kept.write(form.head)
            for row, line in form.read(file, old):
                if row["error"]:
                    continue
                if classes is not None and row["label"] not in classes:
                    raise InputError(
                        f"--skip-done: {old} has the class {row['label']!r}, which this run does not know. "
                        "Expected the table of the same run, or another --out"
                    )
                kept.write(line)
                names.add(row["picture"])

    write_whole(part, write)
    return names


def as_json(values: Any) -> str:
    """A line of JSON that can be shown anywhere; where it holds control characters, all but ASCII becomes codes."""
    text = json.dumps(values, ensure_ascii=False)
    return json.dumps(values) if HIDDEN.search(text) else plain(text)


def plain(text: str) -> str:
    """Text that can be printed anywhere: of a name that is no UTF-8, the bytes that are not as \\udc80 to \\udcff.

    JSON has the same escapes, so that a name in it is read back equal.
    """
    return text.encode("utf-8", "backslashreplace").decode()


class CSV:
    """A line of titles, then one a row. Empty is None."""

    def __init__(self, columns: Schema):
        self.columns = list(columns)
        self._text = io.StringIO()
        self._writer = csv.writer(self._text, lineterminator="\n")
        self.head = self._encoded([guarded(title) for title in self.columns])

    def line(self, row: Row) -> bytes:
        """A row as it is written."""
        return self._encoded([guarded(cell) if isinstance(cell, str) else cell for cell in row.values()])

    def read(self, file: BinaryIO, path: Path) -> Iterator[tuple[Row, bytes]]:
        """The rows that are whole, with their bytes. Raises `InputError` for other columns, and a damaged table."""
        titles: list[str] = []
        for line in file:
            if not line.endswith(b"\n"):
                return  # cut short
            try:
                cells = [unguarded(cell) for row in csv_rows([line.decode()]) for cell in row]
            except (csv.Error, UnicodeError):
                raise _damaged(path, line) from None
            if not titles:
                titles = cells
                _check_columns(titles, self.columns, path)
            elif len(cells) == len(titles):
                yield dict(zip(titles, cells, strict=True)), line
            else:
                raise _damaged(path, line)

    def _encoded(self, cells: list[Any]) -> bytes:
        self._text.seek(0)
        self._text.truncate()
        self._writer.writerow(cells)
        return self._text.getvalue().encode()


class JSONLines:
    """A JSON object a line."""

    head = b""

    def __init__(self, columns: Schema):
        self.columns = list(columns)

    def line(self, row: Row) -> bytes:
        """A row as it is written."""
        return as_json(row).encode() + b"\n"

    def read(self, file: BinaryIO, path: Path) -> Iterator[tuple[Row, bytes]]:
        """The rows that are whole, with their bytes. Raises `InputError` for other columns, and a damaged table."""
        for line in file:
            if not line.endswith(b"\n"):
                return  # cut short
            try:
                row = json.loads(line)
            except ValueError:
                raise _damaged(path, line) from None
            _check_columns(list(row) if isinstance(row, dict) else [], self.columns, path)
            yield row, line


FORMS: dict[str, Callable[[Schema], CSV | JSONLines]] = {".csv": CSV, ".jsonl": JSONLines}
PARQUET = ".parquet"


def _write_parquet(rows: Iterator[Row], path: Path, columns: Schema) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    texts = [name for name, kind in columns.items() if kind is str]
    with parquet.ParquetWriter(path, schema) as writer:
        while chunk := list(islice(rows, CHUNK)):
            for row in chunk:
                row |= {name: plain(row[name]) for name in texts if row[name] is not None}
            writer.write_table(pa.Table.from_pylist(chunk, schema))


def _suffix(place: int) -> str:
    return f"_{place + 1}" if place else ""


def _check_columns(found: list[str], expected: list[str], path: Path) -> None:
    if found != expected:
        raise InputError(
            f"--skip-done: {path} has the columns {', '.join(found) or 'of no table'}; now they would be "
            f"{', '.join(expected)}. Expected the RUN and --top that it was made with, or another --out"
        )


def _damaged(path: Path, line: bytes) -> InputError:
    return InputError(
        f"--skip-done: {path} is damaged, or was not written by vitreous predict, at the line {line[:200]!r}; "
        "expected another --out"
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """An `OSError` inside names the table, and says where its rows are."""
    try:
        yield
    except OSError as fault:
        part = part_of(path)
        kept = f"; the rows so far are in {part}, and --skip-done goes on with them" if part.exists() else ""
        raise OSError(f"{path} cannot be written: {fault.strerror or fault}{kept}") from fault
