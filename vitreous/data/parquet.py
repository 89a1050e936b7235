"""Parquet files, opened in processes of their own: what a file says of its sizes, page for page, may be a lie.

Sizes could be checked before, but what they lead to only shows in decoding, as a few bytes stand for as many values as
they like; and at some contradictions the library ends its process. So a child with little memory to spare decodes them.
It opens a file here itself; of one that is far away it asks for ranges. What it sends is Arrow's stream, which is
checked as anyone's would be.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from vitreous.data.processes import Child, GoneError, Line, Processes, allow, paused, run_child, within
from vitreous.data.remote import RangeFile, is_url, read_range, shown, stat
from vitreous.errors import InputError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

CLAIM = 64  # times its bytes that what is read of a file at once may take
SPARE = 64 << 20  # bytes that it may take besides
WORK = 4  # times those, that a child may take to read it
RATE = 10 << 20  # bytes of a file for each of which seconds a child has one more
RANGE = 32 << 20  # bytes that a child asks for at once
PART = 4 << 20  # bytes of pictures that are read at once, if not less is in a row group
AGAIN = "Copy it again; if it is yours, write it as several smaller ones."
MAIN = "from vitreous.data.parquet import main"
Read = Callable[[int, int], bytes]  # start, count


@dataclass(frozen=True)
class ParquetFile:
    """A file to be opened by child processes."""

    name: str  # for messages
    size: int  # bytes
    read: Read | None  # of its ranges; None where a child opens it itself, by its name

    @property
    def most(self) -> int:
        """Bytes that what is read of it at once may take."""
        return CLAIM * self.size + SPARE

    def ask(self, job: str, *how: Any) -> tuple[Any, "pa.Table"]:
        """What a child process does with it, one of `JOBS`, `how` being what that takes: words, and a table.

        Raises `InputError`, with the file's name, for a file that cannot be read, or takes more than is believed.
        """
        path = os.path.abspath(self.name) if self.read is None else None
        seconds = READERS.seconds + self.size / RATE

        def talk(child: Child) -> "tuple[Any, pa.Table] | InputError":
            child.seconds = seconds
            child.say([job, self.name, path, self.size, self.most, seconds, how])
            while True:
                match child.hear():
                    case [int(start), int(count)], 0 if self.read and start >= 0 and 0 <= count <= RANGE:
                        self._send_range(child, self.read, start, count)
                    case str(fault), 0:
                        return InputError(fault)
                    case {"told": words}, size if size <= self.most:
                        return words, _checked(child.take(size))
                    case _:
                        raise GoneError

        with TURNS:
            heard = READERS.ask(self.name, talk)
        if isinstance(heard, InputError):
            raise heard
        return heard

    def _send_range(self, child: Child, read: Read, start: int, count: int) -> None:
        with child.waiting():
            try:
                words, content = None, read(start, count)
            except (InputError, OSError) as fault:
                words, content = str(fault), b""
        child.say(words, content)


def parquet_file(place: str) -> ParquetFile:
    """The file at a path or a URL. Raises `InputError` where it cannot be had."""
    if is_url(place):
        return ParquetFile(shown(place), stat(place).size, functools.partial(read_range, place))
    try:
        return ParquetFile(place, os.path.getsize(place), None)
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror}.") from error


def _checked(content: bytes) -> "pa.Table":
    """The table of a stream that a child sent."""
    import pyarrow as pa

    try:
        with pa.ipc.open_stream(content) as stream:
            table = stream.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:  # its own word for what is no stream
        raise GoneError from error
    return table


READERS = Processes(MAIN)
TURNS = threading.Semaphore(os.cpu_count() or 1)  # many threads wait for many shards at once


# In a child


def main(seconds: float, memory: int) -> NoReturn:
    """Reads the files that it is told of."""
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)

    def answer(line: Line, words: Any) -> None:
        job, name, path, size, most, seconds, how = words
        allow(WORK * most, memory)
        with within(seconds):
            try:
                file = functools.partial(opened, path or functools.partial(asked, line), size)
                told, table = JOBS[job](file, most, *how)
                content = written(table, most)
            except Exception as fault:
                told, content = f"{name}: {_words(fault)}", None
        if content is None:
            line.say(told)
        else:
            line.say({"told": told}, memoryview(content))

    run_child(answer, memory)


def _words(fault: Exception) -> str:
    if isinstance(fault, InputError):
        return str(fault)
    return (
        "a whole Parquet file was expected, but this one is damaged, cut short or of another kind "
        f"[{first_line(fault)}]. Copy it again, or write it anew."
    )


def asked(line: Line, start: int, count: int) -> bytes:
    """A range of a file that the parent reads."""
    with paused():
        line.say([start, min(count, RANGE)])
        line.flush()
        fault, length = line.hear()
        content = line.take(length)
    if fault:
        raise InputError(fault)
    return content


def opened(source: str | Read, size: int) -> Any:
    """pyarrow's view of a file, which is not `read_table`, as that takes folders called a=1 for columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(source if isinstance(source, str) else pa.PythonFile(RangeFile(size, source), mode="r"))


def schema(file: Callable[[], Any], most: int) -> "tuple[None, pa.Table]":
    """No rows."""
    with file() as parquet:
        return None, parquet.schema_arrow.empty_table()


def light(file: Callable[[], Any], most: int) -> "tuple[dict[str, Any], pa.Table]":
    """All columns, with null in place of bytes; and, for each column of bytes, its path in the file and the parts it is
    read in: group, first row and rows of each, and whether some are null.
    """
    import pyarrow as pa

    with file() as parquet:
        schema, facts = parquet.schema_arrow, parquet.metadata
        groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
        if facts.num_rows * facts.num_columns * 8 > most:
            raise InputError(f"it claims {facts.num_rows:,} rows, more than is believed of its size. {AGAIN}")
        if sum(group.num_rows for group in groups) != facts.num_rows or any(group.num_rows < 0 for group in groups):
            raise InputError(f"its row groups have other rows than it has: it is damaged. {AGAIN}")
        leaves = {field.name: leaf for field in schema if (leaf := _leaf(field))}
        wanted = [name for name in schema.names if name not in leaves]
        wanted += [f"{f.name}.path" for f in schema if f.name in leaves and _has(f.type, "path")]
        table = parquet.read(columns=wanted, use_threads=False)
        for at, field in enumerate(table.schema):
            if pa.types.is_dictionary(field.type):  # here, where there is a cap, and not where it is read
                table = table.set_column(at, field.name, table[at].cast(field.type.value_type))
        for name in schema.names:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(facts.num_rows, pa.binary()))
        table = table.select(schema.names).replace_schema_metadata(schema.metadata)
        return {name: {"leaf": leaf, "parts": _parts(groups, leaf)} for name, leaf in leaves.items()}, table


def row_group(file: Callable[[], Any], most: int, number: int) -> "tuple[None, pa.Table]":
    """A row group."""
    with file() as parquet:
        return None, parquet.read_row_group(number, use_threads=False)


def part(
    file: Callable[[], Any], most: int, key: str, number: int, column: str, start: int, count: int
) -> "tuple[None, pa.Table]":
    """Rows of a column of a row group. Of two row groups the columns are kept, as the next rows are asked for next."""
    table = CACHE.pop((key, number), None)
    if table is None:
        with file() as parquet:
            table = parquet.read_row_group(number, columns=[column], use_threads=False)
    CACHE[key, number] = table
    if len(CACHE) > 2:
        del CACHE[next(iter(CACHE))]
    return None, table.slice(start, count)


CACHE: "dict[tuple[str, int], pa.Table]" = {}  # by what the parent calls a column, and the row group
JOBS = {"schema": schema, "light": light, "row group": row_group, "part": part}


def written(table: "pa.Table", most: int) -> "pa.Buffer":
    """A table as a stream, once it is sound."""
    import pyarrow as pa

    table.validate(full=True)
    if table.nbytes > most:
        raise InputError(f"it unpacks to {table.nbytes:,} bytes, more than is believed of its size. {AGAIN}")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def _parts(groups: Sequence[Any], leaf: str) -> list[tuple[int, int, int, bool]]:
    """The parts of a column of bytes: group, first row and rows of each, and whether some are null, as the file says.

    A part has some `PART` bytes, if pictures are alike.
    """
    parts = []
    for number, group in enumerate(groups):
        columns = [group.column(at) for at in range(group.num_columns)]
        column = next(column for column in columns if column.path_in_schema == leaf)
        holes = bool(column.statistics and column.statistics.null_count)
        step = max(1, PART * group.num_rows // max(column.total_uncompressed_size, 1))
        starts = range(0, group.num_rows, step)
        parts += [(number, start, min(step, group.num_rows - start), holes) for start in starts]
    return parts


def _leaf(field: "pa.Field") -> str | None:
    """The column of bytes that a field is, or has as a struct {bytes, …}."""
    import pyarrow as pa

    if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
        return field.name
    return f"{field.name}.bytes" if _has(field.type, "bytes") else None


def _has(t: "pa.DataType", name: str) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(t) and any(field.name == name for field in t)  # pyright: ignore
