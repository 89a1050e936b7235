"""Tars of pictures, one or many, here or far: WebDataset's samples (key.jpg, key.json, key.cls), or class folders.

They are read through an index of where each member lies, made once from the headers alone. So picture i is one read of
a range, whatever the order; threads, processes and a resumed run need no state. See `index.py` for what an index is.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from vitreous.data.decode import check_bytes
from vitreous.data.folders import class_folders, is_hidden, is_picture, wrapper
from vitreous.data.index import FIELDS, Shard
from vitreous.data.notes import NOTE, Note
from vitreous.data.places import splits_of_files
from vitreous.data.remote import read_range, shown
from vitreous.data.tables import Columns, Table, of_rows
from vitreous.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Ranges:
    """Reads pictures by where they lie. A file is opened anew for each, so that nobody shares a position in it."""

    places: tuple[str, ...]  # of the shards
    shards: np.ndarray  # (n,) int32: which one
    offsets: np.ndarray  # (n,) int64, bytes
    sizes: np.ndarray  # (n,) int64, bytes
    names: tuple[str, ...]

    def __call__(self, i: int) -> bytes:
        """The bytes of a picture. Raises `InputError` that names it and its shard."""
        place, size = self.places[int(self.shards[i])], int(self.sizes[i])
        check_bytes(size, self.names[i])
        try:
            content = read_range(place, int(self.offsets[i]), size)
        except InputError as error:
            raise InputError(f"{self.names[i]}: {error}") from error
        except OSError as error:
            raise InputError(f"{self.names[i]} in {shown(place)} cannot be read: {error.strerror}.") from error
        if len(content) < size:
            raise InputError(f"{self.names[i]} in {shown(place)} is cut off: {len(content):,} of {size:,} bytes.")
        return content


@dataclass(slots=True)
class _Sample:
    """What is stored under one key of one shard."""

    shard: int
    parts: dict[str, int]  # extension -> number of the member
    fields: dict[str, Any]  # of its JSON; "class" of its .cls, "txt" of its .txt
    note: Note | None = None
    picture: int = -1


def open_shards(shards: Sequence[Shard], names: Sequence[str], where: str, columns: Columns) -> tuple[str, Table]:
    """The pictures of indexed shards and their targets, as "tar" (class folders) or "shards" (samples with fields).

    Args:
        shards: the indexes.
        names: of the shards, relative to their folder; they tell the splits where they name several.
        where: what the user named, for messages.
        columns: the fields that are meant; targets are by default `.cls`, or those fields of the JSON that
            `open_source` would take of a table, or `.txt`.

    Raises:
        InputError: no pictures, or nothing that says what is to be learned from them.
    """
    _refuse_unsafe(shards, where)
    samples, ignored = _samples(shards, names, where)
    splits = splits_of_files(names)
    if not any(sample.fields or sample.note for sample in samples):
        if columns.group is not None:
            raise InputError(f"Groups are for tables, .npz files and shards with fields, but {where} holds none.")
        return "tar", _of_folders(shards, names, where, splits)
    table = _columns(samples)
    notes = [sample.note for sample in samples if sample.note]
    read = _ranges(shards, names, [(sample.shard, sample.picture) for sample in samples])
    sides = [splits[sample.shard] for sample in samples]
    taken = set() if columns.target else _left_out(table)
    notes = notes if len(notes) == len(samples) else []
    found = of_rows(table, read.names, notes, where, columns, taken, read, sides)
    return "shards", replace(found, ignored=tuple(ignored))


def open_members(shards: Sequence[Shard], names: Sequence[str], where: str) -> Ranges:
    """All pictures of indexed shards in their order, to ask about. Raises `InputError` where there are none."""
    _refuse_unsafe(shards, where)
    chosen = [
        (number, member)
        for number, shard in enumerate(shards)
        for member, name in enumerate(shard.names)
        if shard.readable(member) and is_picture(name) and not any(map(is_hidden, name.split("/")))
    ]
    if not chosen:
        raise InputError(f"{where} holds no pictures.")
    return _ranges(shards, names, chosen)


def _samples(shards: Sequence[Shard], names: Sequence[str], where: str) -> tuple[list[_Sample], list[str]]:
    """All samples that have a picture, in the order of the shards, and the names of what was left out."""
    samples, ignored, faults = [], [], []
    for number, shard in enumerate(shards):
        ignored += shard.odd
        for sample in _grouped(number, shard):
            try:
                sample.picture = _picture_of(sample, shard)
                if sample.picture >= 0:
                    _read_fields(sample, shard)
                    sample.parts = {}  # there may be millions
                    samples.append(sample)
                else:
                    ignored += [shard.names[member] for member in sample.parts.values()]
            except InputError as fault:
                faults.append(f"{names[number]}: {fault}")
    if faults:
        raise InputError.listing(f"{where} has samples that cannot be understood:", faults)
    return samples, ignored


def _grouped(number: int, shard: Shard) -> Iterator[_Sample]:
    """Members by key: the name up to the first dot of its last part. Of members with one name, the last counts."""
    samples: dict[str, _Sample] = {}
    for member, name in enumerate(shard.names):
        if not shard.readable(member) or any(map(is_hidden, name.split("/"))):
            continue
        folder, _, last = name.rpartition("/")
        stem, _, extension = last.partition(".")
        key = f"{folder}/{stem}"
        sample = samples.get(key)
        if sample is None:
            sample = samples[key] = _Sample(number, {}, {})
        sample.parts[extension] = member
    yield from samples.values()


def _picture_of(sample: _Sample, shard: Shard) -> int:
    """The number of the member that is the picture, -1 for none: the one with a plain suffix before the others, and
    before an array.
    """
    found = {extension: member for extension, member in sample.parts.items() if is_picture(f"a.{extension}")}
    fields = any(extension in FIELDS for extension in sample.parts)
    for better in (lambda e: "." not in e, lambda e: not e.lower().endswith("npy")):
        if len(found) > 1:
            found = {e: member for e, member in found.items() if better(e)} or found
    if len(found) > 1 and fields:
        several = ", ".join(shard.names[member] for member in found.values())
        raise InputError(f"{several}: expected one picture for each key")
    return next(iter(found.values()), -1)


def _read_fields(sample: _Sample, shard: Shard) -> None:
    for extension, member in sample.parts.items():
        content = shard.contents[member]
        if extension not in FIELDS or content is None:
            continue
        name, text = shard.names[member], content.decode("utf-8", "replace").strip()
        if extension != "json":
            sample.fields["class" if extension == "cls" else extension] = text
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise InputError(f"{name}: expected a JSON object")
        if NOTE in values and isinstance(values[NOTE], dict):
            sample.note = Note.from_json(values.pop(NOTE), name)
        sample.fields = {_title(title): value for title, value in values.items()} | sample.fields


def _title(text: str) -> str:
    """A title that can be one of a column: JSON may hold what is no Unicode."""
    return text.encode("utf-8", "replace").decode().replace("\0", " ")


def _columns(samples: Sequence[_Sample]) -> "pa.Table":
    """A column a field, None where a sample lacks it. Lists and objects are no columns."""
    import pyarrow as pa

    titles = dict.fromkeys(title for sample in samples for title in sample.fields)
    columns = {title: column([sample.fields.get(title) for sample in samples]) for title in titles}
    rows = pa.table({"\0": pa.nulls(len(samples))})  # a table without columns has no length
    for title, values in columns.items():
        if values is not None:
            rows = rows.append_column(title, values)
    return rows.drop_columns(["\0"]) if rows.num_columns > 1 else rows


def column(values: Sequence[Any]) -> "pa.Array | None":
    """Values of JSON as a column of one type: true or false, whole numbers, numbers, or text; None of no such type."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if not kinds or kinds & {list, dict}:
        return None
    small = all(-(2**63) <= value < 2**63 for value in values if type(value) is int)
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and small:
        return pa.array(values, pa.int64())
    if kinds <= {int, float} and small:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    words = [None if value is None else value if isinstance(value, str) else json.dumps(value) for value in values]
    words = [None if word is None else word.encode("utf-8", "replace").decode() for word in words]
    return pa.array(words, pa.string())


def _left_out(table: "pa.Table") -> set[str]:
    """Columns that are no targets unless asked for: a .cls comes before all else, a .txt after it."""
    titles = set(table.column_names)
    if "class" in titles:
        return titles - {"class", "split"}
    return {"txt"} if len(titles) > 1 else set()


def _of_folders(shards: Sequence[Shard], names: Sequence[str], where: str, splits: Sequence[str]) -> Table:
    """Class folders, as if all the shards were unpacked to one folder."""
    members = [
        {
            name: member
            for member, name in enumerate(shard.names)
            if shard.readable(member) and not any(map(is_hidden, name.split("/")))
        }
        for shard in shards
    ]
    together = list(dict.fromkeys(name for found in members for name in found))
    stem = PurePosixPath(names[0]).stem if len(names) == 1 else ""
    folders = class_folders(together, where, within=wrapper(together, stem))
    of = dict(zip(folders.pictures, zip(folders.classes, folders.splits, strict=True), strict=True))
    chosen = [(k, found[name]) for k, found in enumerate(members) for name in sorted(found) if name in of]
    labels = [of[shards[k].names[member]] for k, member in chosen]
    read = _ranges(shards, names, chosen)
    both = [split or splits[k] for (k, _), (_, split) in zip(chosen, labels, strict=True)]
    ignored = sorted([*folders.ignored, *(name for shard in shards for name in shard.odd)])
    columns = {"class": np.array([name for name, _ in labels], dtype=str)}
    return Table(read.names, columns, np.array(both, dtype="U10"), None, read, ignored=tuple(ignored))


def _ranges(shards: Sequence[Shard], names: Sequence[str], chosen: Sequence[tuple[int, int]]) -> Ranges:
    """Reads members by (shard, member). Where there are several shards, their names come before those of members."""
    before = [""] if len(shards) == 1 else [f"{name}/" for name in names]
    return Ranges(
        tuple(shard.place for shard in shards),
        np.array([k for k, _ in chosen], dtype=np.int32),
        np.array([shards[k].offsets[member] for k, member in chosen], dtype=np.int64),
        np.array([shards[k].sizes[member] for k, member in chosen], dtype=np.int64),
        tuple(before[k] + shards[k].names[member] for k, member in chosen),
    )


def _refuse_unsafe(shards: Sequence[Shard], where: str) -> None:
    unsafe = [
        name
        for shard in shards
        for name in shard.names
        if name.startswith("/") or ".." in name.split("/") or (":" in name and PureWindowsPath(name).drive)
    ]
    if unsafe:
        raise InputError.listing(
            f"{where} has members that would lie outside of the folder it is unpacked to:",
            unsafe,
            "Pack it anew from inside the folder: tar cf photos.tar -C photos .",
        )
