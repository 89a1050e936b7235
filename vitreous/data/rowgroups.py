"""Parquet files as one table: the light columns at once, pictures a part at a time, when they are asked for."""

import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitreous.data.parquet import ParquetFile, parquet_file
from vitreous.data.remote import UnreachableError
from vitreous.errors import InputError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

CACHE_BYTES = 256 << 20  # bytes of parts that are kept; two are kept always, as readers stand on both sides of a border
Part = tuple[int, int, int, int, bool]  # file, row group, first row and rows in it, and whether pictures are missing


class RowGroups:
    """Reads the pictures of one column of several Parquet files, for threads and processes alike.

    Parts of row groups that were read last are kept: reading in order is fast, reading at random decodes a row group
    for each picture.
    """

    def __init__(self, files: Sequence[ParquetFile], column: str, parts: Sequence[Part]):
        self.files, self.column, self.parts = tuple(files), column, tuple(parts)
        self.starts = np.concatenate([[0], np.cumsum([rows for *_, rows, _ in parts], dtype=np.int64)])
        self.key = os.urandom(8).hex()  # of what processes keep for this
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()  # of the other two
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._reading: defaultdict[tuple[int, int], threading.Lock] = defaultdict(threading.Lock)  # file, row group

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_cache", "_reading")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __call__(self, i: int) -> bytes:
        """The bytes of a picture. Raises `InputError` where there are none."""
        which = int(np.searchsorted(self.starts, i, side="right")) - 1
        row = i - int(self.starts[which])
        file, group, start, _, _ = self.parts[which]
        column = self._kept(which)
        if column is None:
            with self._lock:
                reading = self._reading[file, group]
            with reading:  # who wants of the same row group waits, as then it is decoded, or read, already
                column = self._kept(which)
                if column is None:
                    column = self.part(which)
                    self._keep(which, column)
        picture = column[row].as_py() if row < len(column) else None
        if picture is None:
            where = f"{self.files[file].name}: row {start + row + 1} of row group {group + 1}"
            raise InputError(f"{where} holds no picture.")
        return picture

    def _kept(self, which: int) -> "pa.ChunkedArray | None":
        with self._lock:
            if which in self._cache:
                self._cache.move_to_end(which)
            return self._cache.get(which)

    def _keep(self, which: int, column: "pa.ChunkedArray") -> None:
        with self._lock:
            self._cache[which] = column
            while len(self._cache) > 2 and sum(one.nbytes for one in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)

    def part(self, which: int) -> "pa.ChunkedArray":
        """The pictures of a part."""
        import pyarrow as pa
        import pyarrow.compute as pc

        file, group, start, rows, _ = self.parts[which]
        key = f"{self.key} {file}"
        _, table = self.files[file].ask("part", key, group, self.column, start, rows)
        column = table[self.column.split(".")[0]]
        is_struct = pa.types.is_struct(column.type)
        return pc.struct_field(column, "bytes") if is_struct else column  # pyright: ignore

    @property
    def holes(self) -> list[int]:
        """The parts in which pictures are missing, as the files say."""
        return [which for which, (*_, holes) in enumerate(self.parts) if holes]


def light_columns(places: Sequence[str]) -> "tuple[pa.Table, dict[str, RowGroups], list[int]]":
    """All columns but what pictures there are in bytes, which are read when they are asked for.

    A column of bytes comes as nulls of its length, a struct {bytes, path} as its paths. With the table come the
    readers of such columns by name, and the rows of each file.
    """
    import pyarrow as pa

    try:
        files = [parquet_file(place) for place in places]
    except UnreachableError as fault:
        raise fault.of(len(places)) from None
    tables: list[pa.Table] = []
    leaves: dict[str, str] = {}
    parts: dict[str, list[Part]] = {}
    for number, file in enumerate(files):
        binary, table = file.ask("light")
        tables.append(table)
        for name, column in binary.items():
            leaves[name] = column["leaf"]
            parts.setdefault(name, []).extend((number, *part) for part in column["parts"])
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(
            f"{files[0].name} and the files beside it differ in their columns [{first_line(error)}]: expected "
            "the same types in all. Name those alone that belong together, or write them again."
        ) from error
    table = table.replace_schema_metadata(tables[0].schema.metadata)
    return table, {name: RowGroups(files, leaves[name], parts[name]) for name in leaves}, list(map(len, tables))
