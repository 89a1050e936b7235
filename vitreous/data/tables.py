"""Tables of pictures, CSV and Parquet: a row a picture."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self

import numpy as np

from vitreous.data.folders import is_picture
from vitreous.data.notes import NOTE, Known, Note, Verified
from vitreous.data.remote import is_url, shown
from vitreous.data.rowgroups import RowGroups, light_columns
from vitreous.data.splits import split_of
from vitreous.errors import InputError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "picture", "img")
TARGET_COLUMNS = ("label", "class", "target", "y", "category")
SPLIT_COLUMNS = ("split", "fold", "set", "subset")
_NO_TARGETS = re.compile(r"(id|index|unnamed.*|__index_level_\d+__)?", re.IGNORECASE)
_SNIFFED = 1 << 16  # bytes in which a CSV shows its delimiter
_MOST_TEXT = 4 << 30  # bytes of a column, in which every text takes as many as the longest
_COUNTED = "(rows counted from 1, without the header)"


@dataclass(frozen=True)
class Columns:
    """The columns of a table, fields of shards or keys of an .npz that are meant; others are found by their titles."""

    target: tuple[str, ...] = ()  # what is learned
    path: str | None = None  # pictures: paths relative to the table's folder, or in Parquet their bytes
    group: str | None = None  # equal values stand on one side of a split

    @classmethod
    def of(cls, target: str | Sequence[str] = (), path: str | None = None, group: str | None = None) -> Self:
        """Columns of one target or several."""
        return cls((target,) if isinstance(target, str) else tuple(target), path, group)


@dataclass(frozen=True)
class Table:
    """The rows of a table, a picture each."""

    names: tuple[str, ...]  # paths relative to the table's folder, posix slashes; absolute where they lie elsewhere
    columns: dict[str, np.ndarray]  # the targets
    splits: np.ndarray  # of str, "" where the table does not say
    groups: np.ndarray | None  # of str
    read: Callable[[int], bytes | np.ndarray] | None  # of what is in the table itself; None: the names are of files
    known: tuple[Known, ...] = ()  # of each picture, where it was packed with it
    order: np.ndarray | None = None  # in which the rows stood where they were packed
    ignored: tuple[str, ...] = ()


def read_table(path: Path, columns: Columns) -> Table:
    """Read a CSV, TSV or Parquet file; `open_source` tells how its columns are understood.

    Raises:
        InputError: the file cannot be read, has no such columns, or has rows without a picture, whose picture is not
            there, or that contradict each other. Faults of one sort are reported together.
    """
    return read_tables([str(path)], str(path), columns)


def read_tables(places: Sequence[str], where: str, columns: Columns, splits: Sequence[str] = ()) -> Table:
    """Read Parquet files, or one CSV or TSV, as one table; `splits` are those that each file's name says.

    Raises `InputError` as `read_table` does.
    """
    import pyarrow as pa

    try:
        return _read(places, where, columns, splits)
    except InputError:
        raise
    except UnicodeError:
        raise InputError(f"{where} holds text that is not UTF-8. Save it with UTF-8 encoding.") from None
    except (pa.ArrowException, ValueError, OverflowError, MemoryError) as error:
        raise InputError(
            f"{where} cannot be read as a table [{first_line(error)}]. Mend it, or write it anew."
        ) from error


def _read(places: Sequence[str], where: str, columns: Columns, splits: Sequence[str]) -> Table:
    contents: dict[str, RowGroups] = {}
    if shown(places[0]).lower().endswith(".parquet"):
        table, contents, rows = light_columns(places)
        splits = [split for split, count in zip(splits, rows, strict=False) for _ in range(count)]
    else:
        table = _load_csv(Path(places[0]))
    names = [name.strip() for name in table.column_names]
    doubled = sorted({name for name in names if name and names.count(name) > 1})
    if doubled:
        raise InputError(f"{where}: several columns have the same name: {', '.join(doubled)}.")
    stored = dict(zip(names, table.column_names, strict=True))
    table = table.rename_columns(names).replace_schema_metadata(table.schema.metadata)
    if names.count("") > 1:  # several without a name, of which none can be meant
        names = [name for name in names if name]
        table = table.select(names)
    if columns.path is not None and columns.path not in names:
        raise InputError(f"{where} has no path column '{columns.path}'. Its columns are: {', '.join(names)}.")

    pictures = columns.path or _picture_column(table, where)
    read, paths = _pictures(table[pictures], pictures, where, contents.get(stored[pictures]))
    if read is None:
        if len(places) > 1 or is_url(places[0]):
            raise InputError(f"{where}: '{pictures}' holds paths; expected pictures themselves, in a column of bytes.")
        paths = _existing(paths, Path(places[0]))
    notes = _notes(table, where) if read is not None else ()
    found = of_rows(table, paths, notes, where, columns, {pictures, NOTE} if notes else {pictures}, read, splits)
    if read is None:
        _refuse_contradictions(paths, found.columns, where)
    return found


def of_rows(
    table: "pa.Table",
    names: Sequence[str],
    notes: Sequence[Note],
    where: str,
    columns: Columns,
    taken: set[str],
    read: Callable[[int], bytes | np.ndarray] | None,
    splits: Sequence[str] = (),
) -> Table:
    """What the columns of a table say of its pictures. `taken` are columns that are no targets; `splits` is what else
    is known of the rows' splits, where no column tells them; notes are of each row, or of none.

    Raises `InputError` for columns that are not there, and rows that cannot be understood.
    """
    if notes:
        columns = replace(columns, target=columns.target or notes[0].targets, group=columns.group or notes[0].group)
    for role, name in [("target", t) for t in columns.target] + [("group", columns.group)]:
        if name is not None and name not in table.column_names:
            listed = ", ".join(name for name in table.column_names if name != NOTE)
            raise InputError(f"{where} has no {role} column '{name}'. Its columns are: {listed}.")
    split, sides = _splits(table, where, taken={*columns.target, *taken, columns.group})
    targets = _targets(table, where, columns.target, left_out={*taken, columns.group, split})
    groups = _groups(table, columns.group, where)
    if split is None and len(splits):
        sides = np.array(splits, dtype="U10")
    if not notes:
        return Table(tuple(names), targets, sides, groups, read)
    named = [note.name for note in notes]
    names = named if len(set(named)) == len(named) else names  # of two sets that were packed apart
    numbers = np.array([note.number for note in notes])
    order = np.argsort(numbers) if len(np.unique(numbers)) == len(numbers) else None
    sides = np.array([note.split for note in notes], dtype="U10")
    known = tuple(note.known for note in notes)
    return Table(tuple(names), targets, sides, groups, read and Verified(read, names, known), known, order)


def _notes(table: "pa.Table", where: str) -> list[Note]:
    if NOTE not in table.column_names or not _is_text(table[NOTE]):
        return []
    words = table[NOTE].to_pylist()
    if not all(word and word.startswith("{") for word in words):
        return []
    return [Note.parse(word, f"{where}, row {row}") for row, word in enumerate(words, 1)]


def _load_csv(path: Path) -> "pa.Table":
    import pyarrow as pa

    try:
        return _parse_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} cannot be read as a table [{first_line(error)}]. Expected a line of titles, and as many cells in "
            "every row: mend it, or save it anew as CSV."
        ) from error


def _parse_csv(path: Path) -> "pa.Table":
    import pyarrow as pa
    from pyarrow import csv

    with path.open("rb") as file:
        head = file.read(_SNIFFED)
    first = re.sub(rb'"[^"]*"', b"", head.splitlines()[0] if head.strip() else b"")
    delimiter = b"\t" if path.suffix.lower() == ".tsv" else max((b",", b";", b"\t"), key=first.count)
    decimal_comma = delimiter == b";" and re.search(rb'(?m)(?:^|;)"?-?\d+,\d+"?(?=;|\r?$)', head)
    table = csv.read_csv(
        path,
        # One block: the type of a column is seen from all its rows, not from the first megabyte.
        read_options=csv.ReadOptions(block_size=min(path.stat().st_size + 1, 1 << 30)),
        parse_options=csv.ParseOptions(delimiter=delimiter.decode(), newlines_in_values=True),
        convert_options=csv.ConvertOptions(decimal_point="," if decimal_comma else "."),
    )
    if any(pa.types.is_binary(column.type) for column in table.columns):
        raise InputError(f"{path} is not UTF-8 text. Save it as CSV with UTF-8 encoding.")
    if any(is_picture(name) for name in table.column_names):
        raise InputError(f"{path} has no header: its first line must name the columns, such as path,label.")
    return table


def _picture_column(table: "pa.Table", where: str) -> str:
    """The column that holds the pictures or their paths: by its name, or else by its values."""
    import pyarrow as pa

    def can_be(column: "pa.ChunkedArray") -> bool:
        t = column.type
        held = pa.types.is_struct(t) and any(field.name == "path" for field in t)  # of {bytes, path}: see light_columns
        return _is_text(column) or _is_bytes(t) or held

    usable = [name for name in table.column_names if can_be(table[name])]
    named = [name for wanted in PATH_COLUMNS for name in usable if name.lower() == wanted]
    if named:
        return named[0]
    for name in filter(lambda name: _is_text(table[name]), usable):
        values = [value for value in _to_text(table[name].slice(0, 1000)).tolist() if value]
        if values and sum(map(is_picture, values)) > len(values) / 2:
            return name
    raise InputError(
        f"{where} has no column of picture files: none is called {', '.join(PATH_COLUMNS)}, and none holds names such "
        f"as a.jpg. Its columns are: {', '.join(table.column_names)}. Name it with --path-column."
    )


def _pictures(
    column: "pa.ChunkedArray", title: str, where: str, reader: RowGroups | None
) -> tuple[RowGroups | None, list[str]]:
    """The reader of the pictures themselves or None, and their names or paths; a struct {bytes, path} is Hugging Face's
    way.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    paths = column if reader is None else None
    if pa.types.is_struct(column.type):
        paths = pc.struct_field(column, "path")  # pyright: ignore
    empty: list[int] = []
    if reader is not None:
        for which in reader.holes:
            lengths = pc.fill_null(pc.binary_length(reader.part(which)), 0).to_numpy()  # pyright: ignore
            empty += (np.flatnonzero(lengths == 0) + reader.starts[which]).tolist()
        if len(empty) == len(column) and paths is not None:
            reader, empty = None, []
    names = [] if paths is None else [name.replace("\\", "/") for name in _to_text(paths).tolist()]
    if reader is None:
        empty = np.flatnonzero(np.array(names, dtype=str) == "").tolist()
    elif len(set(names) - {""}) < len(column):
        names = [f"{title}[{i}]" for i in range(len(column))]
    if empty:
        raise InputError.listing(
            f"{where}: rows without a picture in column '{title}' {_COUNTED}:",
            [f"row {row + 1}" for row in empty],
            "Fill them in, or remove these rows.",
        )
    return reader, names


def _existing(paths: list[str], where: Path) -> list[str]:
    """The paths relative to the table's folder, all of them files."""
    folder = where.parent
    faults, names = [], []
    for row, name in enumerate(paths, start=1):
        file = folder / name
        if not os.path.isfile(file):  # the path's own method raises at what is too long for a name
            faults.append(f"row {row}: {name[:200]}")
        inside = Path(name).is_absolute() and file.is_relative_to(folder)
        names.append(file.relative_to(folder).as_posix() if inside else PurePosixPath(name).as_posix())
    if faults:
        raise InputError.listing(
            f"{where}: {len(faults):,} of {len(paths):,} pictures are not there {_COUNTED}:",
            faults,
            f"Paths are relative to the folder of the table, {folder}.",
        )
    return names


def _refuse_contradictions(names: list[str], columns: dict[str, np.ndarray], where: str) -> None:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        rows[name].append(row)
    faults = [
        f"{name}: rows {', '.join(str(row + 1) for row in same)} ('{title}' is "
        + " and ".join(dict.fromkeys(map(str, values[same].tolist())))
        + ")"
        for name, same in rows.items()
        if len(same) > 1
        for title, values in columns.items()
        if len(set(map(str, values[same].tolist()))) > 1
    ]
    if faults:
        raise InputError.listing(
            f"{where}: pictures that are named twice with different targets {_COUNTED}:",
            faults,
            "Keep one row of each. Several labels of a picture are several columns of 0 and 1.",
        )


def _splits(table: "pa.Table", where: str, taken: set[str | None]) -> tuple[str | None, np.ndarray]:
    """The column that says which split a row belongs to, if there is one, and what it says."""
    lower: dict[str, str] = {name.lower(): name for name in table.column_names}
    for name in [lower[wanted] for wanted in SPLIT_COLUMNS if wanted in lower]:
        words = None if name in taken else _to_numpy(table[name])
        if words is None:
            continue
        found = {word: split_of(str(word)) for word in np.unique(words).tolist() if str(word) not in ("", "nan")}
        strange = [str(word) for word, split in found.items() if split is None]
        if strange and (name.lower() == "split" or len(strange) < len(found)):
            raise InputError(
                f"{where}: column '{name}' must say train, validation or test, but it holds {', '.join(strange[:20])}."
            )
        if found and not strange:
            return name, np.array([found.get(word) or "" for word in words.tolist()], dtype="U10")
    return None, np.full(len(table), "", dtype="U10")


def _targets(table: "pa.Table", where: str, target: Sequence[str], left_out: set[str | None]) -> dict[str, np.ndarray]:
    """The columns asked for; or else the one with the name of a target; or else all that can be targets."""
    class_names = _hugging_face_classes(table)
    columns = {name: _to_numpy(table[name]) for name in target or table.column_names if name not in left_out}
    if target:
        wrong = [name for name in target if columns.get(name) is None]
        if wrong:
            raise InputError(f"{where}: these columns cannot be targets: {', '.join(wrong)}.")
    else:
        named = [name for name in columns if name.lower() in TARGET_COLUMNS]
        if len(named) > 1:
            raise InputError(f"{where}: several columns may be the target. Choose with --target: {', '.join(named)}.")
        columns = {
            name: column
            for name, column in columns.items()
            if name in named or (not named and not _NO_TARGETS.fullmatch(name) and name.lower() not in SPLIT_COLUMNS)
            if table[name].null_count < len(table)
        }
    chosen = {name: column for name, column in columns.items() if column is not None}
    for name in chosen.keys() & class_names.keys():
        known = np.array(class_names[name], dtype=str)
        numbers = chosen[name]
        if numbers.dtype.kind == "i" and len(numbers) and numbers.min() >= 0 and numbers.max() < len(known):
            chosen[name] = known[numbers]
    return chosen


def _hugging_face_classes(table: "pa.Table") -> dict[str, list[str]]:
    """Column -> class names, where the `datasets` library left them in the schema."""
    try:
        features = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: f["names"] for name, f in features.items() if f.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def _groups(table: "pa.Table", group: str | None, where: str) -> np.ndarray | None:
    if group is None:
        return None
    values = _to_numpy(table[group])
    if values is None:
        raise InputError(f"{where}: column '{group}' holds neither text nor numbers to group by.")
    words = values.astype(str)
    empty = [f"row {row + 1}" for row in np.flatnonzero(np.isin(words, ("", "nan"))).tolist()]
    if empty:
        raise InputError.listing(f"{where}: rows without a group in column '{group}' {_COUNTED}:", empty)
    return words


def _is_bytes(t: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_binary(t) or pa.types.is_large_binary(t)


def _is_text(column: "pa.ChunkedArray") -> bool:
    import pyarrow as pa

    t = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return pa.types.is_string(t) or pa.types.is_large_string(t)


def _to_text(column: "pa.ChunkedArray") -> np.ndarray:
    """(n,) of str, stripped; "" where it is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    words = [(word or "").strip() for word in pc.cast(column, pa.string()).to_pylist()]
    longest = max(map(len, words), default=0)
    if 4 * longest * len(words) > _MOST_TEXT:
        raise ValueError(f"a text of {longest:,} characters is too long for a column of {len(words):,} rows")
    return np.array(words, dtype=str)


def _to_numpy(column: "pa.ChunkedArray") -> np.ndarray | None:
    """int64, float64 (missing numbers are NaN), bool, or str (missing text is ""); None of what cannot be a target."""
    import pyarrow as pa
    import pyarrow.compute as pc

    types, t = pa.types, column.type
    if types.is_boolean(t) and not column.null_count:
        return column.to_numpy()
    if types.is_integer(t) and not column.null_count:
        return column.to_numpy().astype(np.int64)
    if types.is_integer(t) or types.is_floating(t) or types.is_decimal(t) or types.is_null(t):
        return pc.cast(column, pa.float64(), safe=False).to_numpy()
    if _is_text(column) or types.is_temporal(t) or types.is_boolean(t):
        return _to_text(column)
    return None
