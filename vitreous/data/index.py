"""The index of a shard: where each member of a tar lies, and what its small fields say.

It is made from the headers, which for a shard far away are read in windows, and kept: beside the shards where
`vitreous pack` made them (one file, `vitreous.index`, for all), else in the user's cache, by a shard's size and stamp.
Either is a Parquet file of the columns name, offset, size and content, a row group a shard.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitreous.data import tar
from vitreous.data.cache import cache_root
from vitreous.data.parquet import ParquetFile, parquet_file
from vitreous.data.remote import Stat, UnreachableError, is_url, joined, parted, read_range, shown, stat
from vitreous.errors import InputError
from vitreous.files import write_whole

if TYPE_CHECKING:
    import pyarrow as pa

INDEX = "vitreous.index"  # beside the shards
FORMAT = 1
FIELDS = ("cls", "json", "txt")
LARGEST_FIELD = 1 << 20  # bytes of one such member; larger ones are passed over
LARGEST_INDEX = 16 << 30  # bytes
WHOLE = 512 << 20  # bytes of an index far away that is read at once; of a larger one, ranges are
LOCAL_READ, REMOTE_READ = 1 << 13, 1 << 16  # bytes that one of headers brings at least, of a file here and far away
FOLDER = "shards"  # of the cache
CACHED = 1_000  # members from which on the index of a file here is worth keeping
KEPT = 10_000  # indexes in the cache; those that were not used for longest go
THREADS = 16  # shards far away that are indexed at once


@dataclass(frozen=True)
class Shard:
    """A tar's members. What is no plain file, such as a link, has the size -1 and is never read."""

    place: str
    names: list[str]
    offsets: np.ndarray  # (n,) int64
    sizes: np.ndarray  # (n,) int64
    contents: list[bytes | None]  # of fields

    def readable(self, member: int) -> bool:
        """Whether a member is a file."""
        return bool(self.sizes[member] >= 0)

    @property
    def odd(self) -> list[str]:
        """The names of what is no file."""
        return [self.names[member] for member in np.flatnonzero(self.sizes < 0)]


@dataclass(frozen=True)
class Index:
    """What lies beside some shards: their names, the least size that each has, and a reader of their rows."""

    names: list[str]
    ends: list[int]
    shard: Callable[[int, str], Shard]  # number, place


def index_shards(places: Sequence[str], index: Index | None = None) -> list[Shard]:
    """The indexes of shards: from beside them (`index`, where it is read already), from the cache, or made now.

    Raises `InputError` for shards that are no tars, or cut off; all of them together.
    """
    unreachable: list[UnreachableError] = []

    def look(place: str) -> Shard | str:
        if unreachable:  # another thread knows
            raise unreachable[0]
        try:
            return index_shard(place)
        except UnreachableError as fault:
            unreachable.append(fault)
            raise
        except InputError as fault:
            return str(fault)

    try:
        beside = _beside(places) if index is None else _told(index, places)
        missing = [place for place in places if place not in beside]
        if any(map(is_url, missing)):
            with ThreadPoolExecutor(THREADS) as pool:
                found = list(pool.map(look, missing))
        else:
            found = list(map(look, missing))
    except UnreachableError as fault:
        raise fault.of(len(places)) from None
    if missing:
        _prune()
    faults = [fault for fault in found if isinstance(fault, str)]
    if faults:
        raise InputError(faults[0]) if len(faults) == 1 else InputError.listing("Shards cannot be read:", faults)
    made = dict(zip(missing, found, strict=True))
    return [beside.get(place) or made[place] for place in places]  # pyright: ignore


def index_shard(place: str, keep: bool = True) -> Shard:
    """The index of one shard, from the cache or its headers; `keep`: whether to store it in the cache.

    Raises `InputError`.
    """
    try:
        status = stat(place)
        kept = _cache_file(place, status)
        if (known := _from_cache(kept, place, status)) is not None:
            return known
        if is_url(place):
            shard = _indexed(place, lambda start, count: read_range(place, start, count), status.size, REMOTE_READ)
        else:
            with open(place, "rb") as file:

                def read(start: int, count: int) -> bytes:
                    file.seek(start)
                    return file.read(count)

                shard = _indexed(place, read, status.size, LOCAL_READ)
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror}.") from error
    if keep and status.stamp and (is_url(place) or len(shard.names) >= CACHED):
        with suppress(OSError):  # a cache that cannot be written is no reason to stop
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_index(kept, [shard], [os.path.basename(place)])
    return shard


def write_index(path: Path, shards: Sequence[Shard], names: Sequence[str], facts: dict[str, Any] | None = None) -> None:
    """Writes the index of some shards, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ends = [_end(shard) for shard in shards]
    about = {"format": FORMAT, "shards": [list(pair) for pair in zip(names, ends, strict=True)], **(facts or {})}
    columns = [("name", pa.binary()), ("offset", pa.int64()), ("size", pa.int64()), ("content", pa.binary())]
    schema = pa.schema(columns, metadata={"vitreous": json.dumps(about)})  # pyright: ignore

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for shard in shards:
                rows = max(1, len(shard.names))
                writer.write_table(_table(shard, schema), row_group_size=rows)

    write_whole(path, write)


def read_index(place: str) -> Index:
    """The index that lies beside shards. Raises `InputError` where there is none, or it is damaged."""
    file = parquet_file(place)
    if file.size > LARGEST_INDEX:
        raise InputError(f"{file.name} has {file.size:,} bytes, more than any index")
    if file.read is not None and file.size <= WHOLE:  # once, not for each shard
        content = file.read(0, file.size)
        file = replace(file, read=lambda start, count: content[start : start + count])
    try:
        about = json.loads(file.ask("schema")[1].schema.metadata[b"vitreous"])
        names, ends = [name for name, _ in about["shards"]], [end for _, end in about["shards"]]
        right = about["format"] == FORMAT and all(type(end) is int for end in ends)
        right = right and all(type(name) is str and _is_inside(name) for name in names)
    except (InputError, KeyError, TypeError, ValueError, RecursionError) as fault:
        raise _damaged(place) from fault
    if not right:
        raise _damaged(place)
    return Index(names, ends, lambda number, at: _shard(file, number, at, place))


def _beside(places: Sequence[str]) -> dict[str, Shard]:
    """The shards that an index beside them tells of."""
    folders: dict[str, list[str]] = {}
    for place in places:
        folders.setdefault(parted(place)[0], []).append(place)
    found = {}
    for folder, inside in folders.items():
        place = joined(folder, INDEX)
        if not is_url(folder) and not os.path.exists(place):
            continue
        try:
            found |= _told(read_index(place), inside)
        except InputError as fault:
            if not is_url(folder) or isinstance(fault, UnreachableError):  # far away there mostly is none
                raise
    return found


def _told(index: Index, places: Sequence[str]) -> dict[str, Shard]:
    """Those of the shards that the index tells of."""
    numbers = {name: number for number, name in enumerate(index.names)}
    found = {}
    for place in places:
        number = numbers.get(parted(place)[1])
        if number is not None:
            _refuse_shorter(place, index.ends[number])
            found[place] = index.shard(number, place)
    return found


def _refuse_shorter(place: str, end: int) -> None:
    if is_url(place):  # where it shows when it is read
        return
    size = os.path.getsize(place)
    if size < end:
        raise InputError(
            f"{place} is cut off: it has {size:,} bytes, and {INDEX} beside it says that its pictures reach to byte "
            f"{end:,}. Get it anew; or, if it was made anew, delete the index."
        )


def _indexed(place: str, read: Any, size: int, ahead: int) -> Shard:
    """The index of a tar, from its headers."""
    window = tar.Window(read, size, ahead)
    names, offsets, sizes, contents = [], [], [], []
    try:
        for member in tar.members(window, size):
            if member.kind == "folder":
                continue
            names.append(member.name.removeprefix("./"))
            offsets.append(member.offset)
            sizes.append(member.size if member.kind == "file" else -1)
            field = member.name.rpartition("/")[2].partition(".")[2] in FIELDS
            wanted = field and member.kind == "file" and member.size <= LARGEST_FIELD
            contents.append(window(member.offset, member.size) if wanted else None)
    except InputError as fault:
        advice = " Get it anew." if "cut off" in str(fault) else ""
        raise InputError(f"{shown(place)} cannot be read as an uncompressed tar: {fault}.{advice}") from None
    return Shard(place, names, np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64), contents)


def _table(shard: Shard, schema: "pa.Schema") -> "pa.Table":
    import pyarrow as pa

    names = [name.encode("utf-8", "surrogateescape") for name in shard.names]
    return pa.table([names, shard.offsets, shard.sizes, pa.array(shard.contents, pa.binary())], schema=schema)


def _shard(file: ParquetFile, which: int, place: str, index: str) -> Shard:
    """The rows of one shard. Raises `InputError` for what no index says."""
    try:
        table = file.ask("row group", which)[1]
        names = [name.decode("utf-8", "surrogateescape") for name in table["name"].to_pylist()]
        offsets, sizes = table["offset"].to_numpy(), table["size"].to_numpy()
        contents = table["content"].to_pylist()
        right = all(array.dtype == np.int64 for array in (offsets, sizes)) and (offsets >= 0).all()
        right = right and bool((sizes >= -1).all() and (offsets + sizes >= 0).all())
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as fault:
        raise _damaged(index) from fault
    if not right:
        raise _damaged(index)
    return Shard(place, names, offsets, sizes, contents)


def _damaged(place: str) -> InputError:
    return InputError(f"{shown(place)} is damaged, or of another version. Delete it: the shards are read without it.")


def _is_inside(name: str) -> bool:
    """Whether a name of a shard names a file in the folder of the index."""
    return bool(name) and not any(mark in name for mark in "/\\:\0") and name not in (".", "..")


def _end(shard: Shard) -> int:
    return int((shard.offsets + np.maximum(shard.sizes, 0)).max()) if len(shard.names) else 0


def _cache_file(place: str, status: Stat) -> Path:
    where = place if is_url(place) else os.path.abspath(place)
    key = f"{FORMAT} {where} {status.size} {status.stamp}".encode("utf-8", "surrogateescape")
    return cache_root() / FOLDER / f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.index"


def _from_cache(kept: Path, place: str, status: Stat) -> Shard | None:
    if not kept.exists():
        return None
    with suppress(InputError, OSError, IndexError):  # damaged: it is made anew
        index = read_index(str(kept))
        with suppress(OSError):
            os.utime(kept)  # the last to go
        return index.shard(0, place) if index.ends[0] <= status.size else None
    return None


def _prune() -> None:
    with suppress(OSError):  # another process prunes too
        kept = sorted((cache_root() / FOLDER).glob("*.index"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in kept[KEPT:]:
            path.unlink(missing_ok=True)
