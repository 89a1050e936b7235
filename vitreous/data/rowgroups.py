"""Parquet files as one table: the light columns at once, pictures a row group at a time, when they are asked for."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from vitreous.data.remote import RangeFile, is_url, shown
from vitreous.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

CLAIM = 64  # times its bytes that a file's values may have, at 8 bytes each
HELD = 256 << 20  # bytes of row groups that are kept; two are kept always, as readers stand on both sides of a border


class RowGroups:
    """Reads the pictures of one column of several Parquet files, for threads and processes alike.

    Row groups that were read last are kept: reading in order is fast, reading at random decodes one for each picture.
    """

    def __init__(self, places: Sequence[str], column: str, rows: Sequence[Sequence[int]]):
        self.places, self.column = tuple(places), column
        self.groups = [(file, group) for file, counts in enumerate(rows) for group in range(len(counts))]
        self.starts = np.concatenate([[0], np.cumsum([n for counts in rows for n in counts], dtype=np.int64)])
        self._lock: Any = threading.Lock()
        self._held: OrderedDict[int, pa.Array] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_held": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _held=OrderedDict())

    def __call__(self, i: int) -> bytes:
        """The bytes of a picture. Raises `InputError` where there are none."""
        which = int(np.searchsorted(self.starts, i, side="right")) - 1
        row = i - int(self.starts[which])
        with self._lock:
            column = self._held[which] = self._held.pop(which, None) or self.group(which)
            while len(self._held) > 2 and sum(one.nbytes for one in self._held.values()) > HELD:
                self._held.popitem(last=False)
        picture = column[row].as_py() if row < len(column) else None
        if picture is None:
            place = shown(self.places[self.groups[which][0]])
            raise InputError(f"{place}: row {row + 1} of row group {self.groups[which][1] + 1} holds no picture.")
        return picture

    def group(self, which: int) -> "pa.ChunkedArray":
        """The pictures of a row group."""
        import pyarrow as pa
        import pyarrow.compute as pc

        file, group = self.groups[which]
        with opened(self.places[file]) as parquet:
            column = parquet.read_row_group(group, columns=[self.column])[self.column.split(".")[0]]
        is_struct = pa.types.is_struct(column.type)
        return pc.struct_field(column, "bytes") if is_struct else column  # pyright: ignore


def light_columns(
    places: Sequence[str],
) -> "tuple[pa.Table, Callable[[str], RowGroups | None], dict[str, list[int]], list[int]]":
    """All columns but what pictures there are in bytes, which are read when they are asked for.

    A column of bytes comes as nulls of its length, a struct {bytes, path} as its paths. With the table come a function
    that gives the reader of such a column, the row groups in which some of its bytes are null, as the files say, and
    the rows of each file.
    """
    import pyarrow as pa

    tables, rows, leaves, holes = [], [], {}, {}
    first = 0
    for place in places:
        with opened(place) as parquet:
            schema, facts = parquet.schema_arrow, parquet.metadata
            if facts.num_rows * facts.num_columns * 8 > CLAIM * size_of(place) + (16 << 20):
                raise InputError(f"{shown(place)} claims {facts.num_rows:,} rows, more than is believed of its size.")
            leaves = {field.name: leaf for field in schema if (leaf := _leaf(field))}
            wanted = [name for name in schema.names if name not in leaves]
            wanted += [f"{f.name}.path" for f in schema if f.name in leaves and _has(f.type, "path")]
            light = parquet.read(columns=wanted)
            for field in schema:
                if field.name not in light.column_names:
                    light = light.append_column(field.name, pa.nulls(parquet.metadata.num_rows, pa.binary()))
            tables.append(light.select(schema.names).replace_schema_metadata(schema.metadata))
            groups = [parquet.metadata.row_group(group) for group in range(parquet.metadata.num_row_groups)]
            for at, group in enumerate(groups):
                for name, leaf in leaves.items():
                    if _nulls(group, leaf):
                        holes.setdefault(name, []).append(first + at)
            rows.append([group.num_rows for group in groups])
            first += len(groups)
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"{shown(places[0])} and the files beside it differ in their columns: {error}") from error
    table = table.replace_schema_metadata(tables[0].schema.metadata)
    reader = lambda name: RowGroups(places, leaves[name], rows) if name in leaves else None  # noqa: E731
    return table, reader, holes, list(map(sum, rows))


@contextmanager
def opened(place: str) -> Iterator[Any]:
    """A Parquet file, at a path or a URL. Raises `InputError` for one that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = pa.PythonFile(RangeFile(place), mode="r") if is_url(place) else place
        with pq.ParquetFile(source) as file:  # not read_table, which takes folders called a=1 for columns
            yield file
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{shown(place)} cannot be read as a table: {error}") from error


def size_of(place: str) -> int:
    """Bytes of a file, at a path or a URL."""
    return RangeFile(place).length if is_url(place) else os.path.getsize(place)


def _leaf(field: "pa.Field") -> str | None:
    """The column of bytes that a field is, or has as a struct {bytes, …}."""
    import pyarrow as pa

    if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
        return field.name
    return f"{field.name}.bytes" if _has(field.type, "bytes") else None


def _has(t: "pa.DataType", name: str) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(t) and any(field.name == name for field in t)  # pyright: ignore


def _nulls(group: Any, leaf: str) -> int:
    """How many values of a column a row group's statistics say are missing; 0 where they say nothing."""
    for at in range(group.num_columns):
        column = group.column(at)
        if column.path_in_schema == leaf:
            return column.statistics.null_count or 0 if column.statistics else 0
    return 0
