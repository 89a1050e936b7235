"""Pictures of any kind, packed to shards: tars of samples as WebDataset has them, or Parquet as Hugging Face has it.

Files go in as they are, byte for byte. Beside each goes a note (see `notes.py`) with its name, place, split, digest and
facts, so that what is trained on the shards is trained on the same pictures, in the same order, split the same way.
"""

import errno
import glob
import io
import itertools
import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitreous.data.cache import remove_forsaken
from vitreous.data.folders import PICTURE_SUFFIXES
from vitreous.data.index import INDEX, index_shard, write_index
from vitreous.data.notes import NO_LIMIT, NOTE, Known, Note, digest
from vitreous.data.sources import Source
from vitreous.data.splits import SPLITS
from vitreous.data.store import in_order
from vitreous.data.workers import DECODERS
from vitreous.errors import InputError
from vitreous.files import write_whole

SIZE = "1GB"  # of a shard
ROW_GROUP = 16 << 20  # bytes of pictures that a Parquet row group holds: what is read to read one of them
MOST_CLASSES = 10_000  # text with more different values stays text in Parquet
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SUFFIXES = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II", "tif"),
    (b"MM", "tif"),
    (b"\x93NUMPY", "npy"),
    (b"RIFF", "webp"),
)


@dataclass(frozen=True)
class Packed:
    """What was packed: `pictures` in `shards`, of `bytes` together, and the pictures of each split."""

    path: str
    pictures: int
    shards: int
    bytes: int
    splits: dict[str, int]


@dataclass(frozen=True)
class _Sample:
    """A picture to be written: its bytes, the suffix that tells their format, its targets, and its note."""

    content: bytes
    suffix: str
    fields: dict[str, Any]
    note: Note


def pack(
    source: Source,
    out: Path,
    *,
    form: str = "tar",
    size: int,
    pictures: int | None = None,
    skip_bad: bool = False,
    group: str | None = None,
    threads: int = 1,
    say: Callable[[str], None] = print,
    progress: Callable[[int], None] = lambda done: None,
) -> Packed:
    """Writes a source's pictures to shards in a new folder: `train-000000.tar` …, and an index beside them.

    The folder appears whole or not at all, and the same source gives the same bytes. Of arrays, 8-bit grey and RGB
    become PNG and all others .npy; both keep every value.

    Args:
        source: what to pack.
        out: the folder to make; one that is there must be empty.
        form: "tar", or "parquet".
        size: bytes of pictures that a shard has at most; one larger picture has its own.
        pictures: that a shard has at most.
        skip_bad: leave out pictures that cannot be read, by name, rather than stop.
        group: what the groups are called.
        threads: that read.
        say: takes a line for the user.
        progress: is called with how many are done.

    Raises:
        InputError: something is in the way, or pictures cannot be read; all of them are named, and nothing stays.
        OSError: `out` cannot be written: the disk is full, say. Nothing stays.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists: expected a new or empty folder to pack into.")
    titles = [*source.columns, *([group or "group"] if source.groups is not None else [])]
    if len(set(titles)) < len(titles) or NOTE in titles:
        raise InputError(f"{out}: expected different names of targets and group, and none called {NOTE}: {titles}.")
    write = _Parquet(source, titles).write if form == "parquet" else _write_tar
    faults: list[str] = []
    done = taken = 0  # pictures, and bytes of them

    def read(numbers: np.ndarray) -> Generator[_Sample, None, None]:
        nonlocal done, taken
        with closing(in_order(lambda i: _sample(source, i, titles), numbers.tolist(), threads)) as results:
            for found in results:
                done += 1
                progress(done)
                if isinstance(found, str):
                    faults.append(found)
                elif not faults or skip_bad:  # otherwise no more than a list of the others is wanted
                    taken += len(found.content)
                    yield found

    with _appearing(out, lambda: taken * len(source) // max(done, 1)) as folder:
        written: dict[str, dict[Path, int]] = {}
        for split in SPLITS:
            numbers = np.flatnonzero(np.isin(source.splits, (split, "") if split == "train" else (split,)))
            with closing(read(numbers)) as samples:
                paths = (folder / f"{split}-{number:06}.{form}" for number in itertools.count())
                written[split] = _write_shards(paths, write, samples, size, pictures)
        shards = [path for some in written.values() for path in some]
        if faults:
            mend = "they are left out" if skip_bad else "mend or remove them, or leave them out with --skip-bad"
            error = InputError.listing(f"{len(faults):,} of {len(source):,} pictures cannot be read:", faults, mend)
            if not skip_bad or not shards:
                raise error
            say(str(error))
        if form == "tar":
            indexed = [index_shard(str(path), keep=False) for path in shards]
            write_index(folder / INDEX, indexed, [path.name for path in shards])
        total = sum(path.stat().st_size for path in shards)
    splits = {split: sum(some.values()) for split, some in written.items() if some}
    return Packed(str(out), sum(splits.values()), len(shards), total, splits)


@contextmanager
def _appearing(out: Path, needed: Callable[[], int]) -> Iterator[Path]:
    """A folder to fill. It takes the name `out` once all is in it; on a fault nothing stays, and where the disk is full
    it is said how many bytes were `needed`.
    """
    remove_forsaken(out.parent, f".{glob.escape(out.name)}-*.partial")
    partial = out.with_name(f".{out.name}-{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    except BaseException as fault:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(fault, OSError) or isinstance(fault, BrokenPipeError):
            raise
        cause = fault.__cause__  # write_whole names what is nowhere now
        raise _unwritten(out, cause if isinstance(cause, OSError) else fault, needed()) from fault


def _unwritten(out: Path, fault: OSError, needed: int) -> OSError:
    """Says of a folder that could not be written what it would have taken, in bytes, where it was too much."""
    fact = f"{out} cannot be written: {fault.strerror or fault}; nothing of it was left behind"
    if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
        return OSError(fact)
    free = shutil.disk_usage(next(parent for parent in out.parents if parent.exists())).free
    room = f"It takes at least {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} are free"
    return OSError(f"{fact}. {room}: make room there, or choose another OUT")


def parse_bytes(text: str) -> int:
    """ "1GB", "500 MB" or "64MiB" in bytes. Raises `InputError`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGTmgt]?i?[bB]?)\s*", text)
    unit = found[2].upper() + ("" if found[2].upper().endswith("B") or not found[2] else "B") if found else "?"
    if found is None or unit not in _UNITS or float(found[1]) <= 0:
        raise InputError(f"--size {text}: expected the size of a shard, such as 1GB or 200MB")
    return max(1, int(float(found[1]) * _UNITS[unit]))


def _write_shards(
    paths: Iterator[Path],
    write: Callable[[Path, Iterator[_Sample]], None],
    samples: Iterator[_Sample],
    size: int,
    pictures: int | None,
) -> dict[Path, int]:
    """Writes shards, each whole or not at all, of at most `size` bytes and so many pictures; how many each has got."""
    counts: dict[Path, int] = {}
    following = next(samples, None)  # it may belong to the shard that comes

    def one_shard(path: Path) -> Iterator[_Sample]:
        """The next sample, and more while they fit."""
        nonlocal following
        taken = counts[path] = 0
        while following is not None:
            taken += len(following.content)
            if counts[path] and (taken > size or counts[path] == pictures):
                return
            counts[path] += 1
            yield following
            following = next(samples, None)

    while following is not None:
        path = next(paths)
        write_whole(path, lambda temporary, path=path: write(temporary, one_shard(path)))
    return counts


def _sample(source: Source, i: int, titles: Sequence[str]) -> _Sample | str:
    name = source.names[i]
    try:
        content, suffix = _encoded(source.read(i), name)
        known = Known(digest(content), DECODERS.inspect(content, name, NO_LIMIT))
    except InputError as fault:
        return str(fault)
    fields = {title: _plain(column[i]) for title, column in source.columns.items()}
    group = None
    if source.groups is not None:
        group = titles[-1]
        fields[group] = str(source.groups[i])
    note = Note(name, i, str(source.splits[i]), tuple(source.columns), group, known)
    return _Sample(content, suffix, fields, note)


def _encoded(picture: bytes | np.ndarray, name: str) -> tuple[bytes, str]:
    """A picture's bytes, and the suffix of their format."""
    file = io.BytesIO()
    if not isinstance(picture, np.ndarray):
        suffix = Path(name).suffix.lower()
        return picture, suffix[1:] if suffix in PICTURE_SUFFIXES else _suffix_of(picture)
    colours = picture.shape[2] if picture.ndim == 3 else 1
    if picture.dtype == np.uint8 and picture.ndim in (2, 3) and colours in (1, 3):
        Image.fromarray(picture[..., 0] if picture.ndim == 3 and colours == 1 else picture).save(file, "PNG")
        return file.getvalue(), "png"
    np.save(file, picture, allow_pickle=False)
    return file.getvalue(), "npy"


def _suffix_of(content: bytes) -> str:
    """The suffix of a file's format, by how it begins."""
    if content[4:8] == b"ftyp":
        return "avif" if content[8:12] in (b"avif", b"avis") else "heic"
    return next((suffix for magic, suffix in _SUFFIXES if content.startswith(magic)), "png")


def _plain(value: np.generic) -> Any:
    """A value of a column for JSON, whose numbers are finite."""
    plain = value.item()
    return None if isinstance(plain, float) and not np.isfinite(plain) else plain


def _write_tar(path: Path, samples: Iterator[_Sample]) -> None:
    """A tar of `000000012.jpg` with `000000012.json`, which all have the same owner and time: none."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            fields = {**sample.fields, NOTE: sample.note.to_json()}
            for suffix, content in ((sample.suffix, sample.content), ("json", json.dumps(fields).encode())):
                member = tarfile.TarInfo(f"{sample.note.number:09}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


class _Parquet:
    """Writes Parquet files: an image struct {bytes, path}, a column a target, and the note as text."""

    def __init__(self, source: Source, titles: Sequence[str]):
        import pyarrow as pa

        if "image" in titles:
            raise InputError("expected no target called image: in Parquet that is the column of pictures")
        self.classes = {}
        columns = {**source.columns, **({titles[-1]: source.groups} if source.groups is not None else {})}
        fields: list[Any] = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
        features: dict[str, Any] = {"image": {"_type": "Image"}}
        for title, column in columns.items():
            classes = np.unique(column).tolist() if column.dtype.kind == "U" and title in source.columns else []
            if classes and len(classes) <= MOST_CLASSES and "" not in classes:
                self.classes[title] = {name: number for number, name in enumerate(classes)}
                fields.append((title, pa.int64()))
                features[title] = {"names": classes, "_type": "ClassLabel"}
                continue
            kind = {"U": pa.string(), "b": pa.bool_(), "i": pa.int64()}.get(column.dtype.kind, pa.float64())
            fields.append((title, kind))
            features[title] = {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}
        fields.append((NOTE, pa.string()))
        features[NOTE] = {"dtype": "string", "_type": "Value"}
        self.schema = pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})

    def write(self, path: Path, samples: Iterator[_Sample]) -> None:
        """One file; pictures are packed already, so that only the rest is compressed."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        others = [name for name in self.schema.names if name != "image"]
        options: dict[str, Any] = {"compression": dict.fromkeys(others, "zstd"), "use_dictionary": others}
        with pq.ParquetWriter(path, self.schema, **options) as file:
            rows, held = [], 0
            for sample in samples:
                rows.append(self._row(sample))
                held += len(sample.content)
                if held >= ROW_GROUP:
                    file.write_table(pa.Table.from_pylist(rows, self.schema), row_group_size=len(rows))
                    rows, held = [], 0
            if rows:
                file.write_table(pa.Table.from_pylist(rows, self.schema), row_group_size=len(rows))

    def _row(self, sample: _Sample) -> dict[str, Any]:
        path = sample.note.name.encode("utf-8", "replace").decode()
        fields = {title: self.classes.get(title, {}).get(value, value) for title, value in sample.fields.items()}
        return {"image": {"bytes": sample.content, "path": path}, **fields, NOTE: json.dumps(sample.note.to_json())}
