"""What the user typed, to a list of pictures with their targets."""

import difflib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from vitreous.data.decode import check_bytes
from vitreous.data.folders import EXPECTED_FOLDER, class_folders, is_picture, walk
from vitreous.data.index import index_shards
from vitreous.data.notes import Known
from vitreous.data.places import Shards, find_shards, splits_of_files
from vitreous.data.remote import shown
from vitreous.data.shards import open_members, open_shards
from vitreous.data.tables import TABLE_SUFFIXES, Columns, Table, read_table, read_tables
from vitreous.errors import InputError
from vitreous.strict import open_npz

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip", ".7z", ".rar")
UNPACKED = 64.0  # how many times its size an .npz of pictures may unpack to
_ARRAY_PICTURES = ("x", "images", "image", "pictures", "data")
_ARRAY_SPLITS = {"train": ("train",), "validation": ("val", "valid", "validation", "dev"), "test": ("test",)}
_ARRAY_LABELS = ("y", "labels", "label", "targets", "target")
_EXPECTED = """Expected the path of a folder of class folders, a table (.csv, .tsv, .parquet), arrays (.npz), a .tar, or
shards ("train-{000..099}.tar"); or the word digits, a URL, or hf://owner/name. Mend it, or the folder you are in."""
_EXPECTED_ARRAYS = """Expected x_train and y_train (and x_val, y_val, x_test, y_test), or images and labels:
pictures as (n, H, W) or, channels last, (n, H, W, C); labels as (n,) or (n, k)."""


@dataclass(frozen=True, eq=False)
class Source:
    """Pictures, not yet decoded, with their targets. n is its length."""

    kind: str  # "folder", "table", "arrays", "tar", "shards", "hub", "digits" or "pictures"
    location: str  # absolute path or pattern, URL, or "digits"
    names: tuple[str, ...]  # of each picture: path relative to the root with posix slashes, member, or "x_train[12]"
    columns: dict[str, np.ndarray]  # (n,) each, of str, bool, int64 or float64; class folders give "class"; {}: none
    splits: np.ndarray  # (n,) of str: "train", "validation", "test", or "" where the data does not say
    groups: np.ndarray | None  # (n,) of str
    read: Callable[[int], "bytes | np.ndarray"]  # for threads and processes alike; InputError for what cannot be read
    ignored: tuple[str, ...] = ()  # files that were left out: not pictures, or not in a class folder
    known: tuple[Known, ...] = ()  # digest and facts of each picture, where it was packed with them

    def __len__(self) -> int:
        return len(self.names)

    def renamed(self, titles: Sequence[str]) -> Self:
        """The source with other names of its target columns. Raises `InputError` where they are not as many."""
        if len(titles) != len(self.columns):
            raise InputError(f"Expected {len(titles)} target columns ({', '.join(titles)}), got {len(self.columns)}.")
        return replace(self, columns=dict(zip(titles, self.columns.values(), strict=True)))

    def only(self, numbers: Sequence[int] | np.ndarray) -> Self:
        """The source of some of the pictures, in the order of their numbers."""
        chosen = np.asarray(numbers, dtype=np.int64)
        return replace(
            self,
            names=tuple(self.names[i] for i in chosen),
            columns={title: column[chosen] for title, column in self.columns.items()},
            splits=self.splits[chosen],
            groups=None if self.groups is None else self.groups[chosen],
            read=_Chosen(self.read, chosen),
            known=tuple(self.known[i] for i in chosen) if self.known else (),
        )


def open_source(data: str | os.PathLike, columns: Columns = Columns()) -> Source:
    """Find the pictures and targets in a folder, a table, an array file, shards, or the built-in digits.

    Args:
        data: one of
            a folder of class folders, with or without `train/`, `validation/` and `test/` above them;
            a `.csv`, `.tsv` or `.parquet` table with a row a picture;
            an `.npz` with `x_train`, `y_train`, … or `images`, `labels` (pictures are channels-last);
            an uncompressed `.tar` of class folders, or of WebDataset's samples (key.jpg with key.json or key.cls);
            many `.tar` or `.parquet`: a folder of them, or a pattern such as "train-{000..099}.tar" or "*.parquet";
            a URL of any of these two: http(s)://, or what fsspec knows, such as s3://;
            "hf://owner/name" or "hf://owner/name:config", a data set of Hugging Face;
            "digits", scikit-learn's 8×8 digits.
        columns: which are meant. By default the target is the column called label, class, target, y or category;
            without one, all columns are but the path, the group, the split and the id.

    Raises:
        InputError: what was expected, what is there, and what to do.
    """
    if str(data).startswith("hf://"):
        from vitreous.data.hub import open_hub

        return _of_table("hub", str(data), open_hub(str(data), columns))
    if (found := find_shards(data)) is not None:
        return _open_shards(found, columns)
    path = Path(os.path.abspath(Path(data).expanduser()))
    suffix = path.suffix.lower()
    if path.is_file() and suffix in TABLE_SUFFIXES:
        return _of_table("table", str(path), read_table(path, columns), path.parent)
    if columns.path is not None:
        raise InputError(f"A path column is for tables (.csv, .tsv, .parquet), but the data is {data}.")
    if path.is_file() and suffix == ".npz":
        return _open_arrays(path, columns)
    if columns.group is not None:
        raise InputError(f"Groups are for tables (.csv, .tsv, .parquet), shards and .npz, but the data is {data}.")
    if path.is_dir():
        source = _open_folder(path)
    elif path.is_file() and path.name.lower().endswith(_PACKED):
        raise InputError(f"{path} is packed: unpack it, and give the folder or an uncompressed .tar.")
    elif path.exists():
        raise InputError(
            f"{path} is not a folder, a table (.csv, .tsv, .parquet), an .npz or a .tar.\n{EXPECTED_FOLDER}"
        )
    elif str(data) == "digits":
        source = _open_digits()
    else:
        raise InputError(f"{_not_there(path)}\n{_EXPECTED}")
    _refuse_unknown(source, data, columns)
    return source


def open_pictures(paths: Sequence[str | os.PathLike | np.ndarray]) -> Source:
    """Pictures without targets, to predict: files, folders (all pictures in them, sorted), arrays, and shards.

    An array is one picture, (H, W) or (H, W, C), and is named by its place in the list: "array 0". Shards are what
    `open_source` takes as such: a .tar, a .parquet of pictures, patterns, folders and URLs of them. Their pictures have
    the names that they have there.

    Raises:
        InputError: paths that are not there, and folders without pictures, all together.
    """
    names: list[str] = []
    arrays: dict[int, np.ndarray] = {}
    shards: list[tuple[int, int, Callable[[int], bytes | np.ndarray]]] = []
    ignored: list[str] = []
    faults: list[str] = []
    for i, given in enumerate(paths):
        if isinstance(given, np.ndarray):
            arrays[len(names)] = given
            names.append(f"array {i}")
            continue
        if (found := _inside_shards(given)) is not None:
            inside, read = found
            shards.append((len(names), len(inside), read))
            names += inside
            continue
        path = Path(given).expanduser()
        if path.is_dir():
            files = [(path / name).as_posix() for name in sorted(walk(path))]
            pictures = [file for file in files if is_picture(file)]
            ignored += [file for file in files if not is_picture(file)]
            if not pictures:
                faults.append(f"{path} holds no pictures.")
        elif path.exists():
            pictures = [path.as_posix()]
        else:
            pictures = []
            faults.append(_not_there(path))
        names += pictures
    if faults:
        raise InputError(faults[0]) if len(faults) == 1 else InputError.listing("No such pictures:", faults)
    read = _Mixed(Path.cwd(), tuple(names), arrays, tuple(shards))
    return Source("pictures", str(read.root), read.names, {}, _unsaid(len(names)), None, read, tuple(ignored))


@dataclass(frozen=True)
class _Chosen:
    """Reads some of the pictures of another reader."""

    read: Callable[[int], "bytes | np.ndarray"]
    numbers: np.ndarray

    def __call__(self, i: int) -> "bytes | np.ndarray":
        return self.read(int(self.numbers[i]))


@dataclass(frozen=True)
class _Files:
    """Reads files of a folder."""

    root: Path
    names: tuple[str, ...]

    def __call__(self, i: int) -> bytes:
        return _read_file(self.root / self.names[i], self.names[i])


@dataclass(frozen=True)
class _Arrays:
    """Reads pictures from arrays that follow each other."""

    arrays: tuple[np.ndarray, ...]  # (n_k, H, W) or (n_k, H, W, C) each

    def __call__(self, i: int) -> np.ndarray:
        for array in self.arrays:
            if i < len(array):
                return array[i]
            i -= len(array)
        raise IndexError(i)


@dataclass(frozen=True)
class _Mixed:
    """Reads files, arrays as they are, and shards. Of a file it keeps no more than its name: there may be a million."""

    root: Path  # that names of files are relative to, those that are
    names: tuple[str, ...]
    arrays: dict[int, np.ndarray]  # by number
    shards: tuple[tuple[int, int, Callable[[int], "bytes | np.ndarray"]], ...] = ()  # first number, count, reader

    def __call__(self, i: int) -> "bytes | np.ndarray":
        for first, count, read in self.shards:
            if first <= i < first + count:
                return read(i - first)
        return self.arrays[i] if i in self.arrays else _read_file(self.root / self.names[i], self.names[i])


def _read_file(path: Path, name: str) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device may have no end
            raise InputError(f"{name}: a file was expected, not a pipe, a device or a folder. Leave it out.")
        check_bytes(found.st_size, name)
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}.") from error


def _open_shards(found: Shards, columns: Columns) -> Source:
    where = shown(found.given)
    if found.suffix == ".parquet":
        splits = splits_of_files(found.names)
        table = read_tables(found.places, where, columns, splits)
        return _of_table("table", found.given, table, Path(found.places[0]).parent)
    if columns.path is not None:
        raise InputError(f"A path column is for tables (.csv, .tsv, .parquet), but the data is {where}.")
    kind, table = open_shards(index_shards(found.places, found.index), found.names, where, columns)
    source = _of_table(kind, found.given, table)
    _refuse_unknown(source, where, columns)
    return source


def _inside_shards(
    given: str | os.PathLike,
) -> tuple[tuple[str, ...], Callable[[int], bytes | np.ndarray]] | None:
    """The names of the pictures of shards, whatever else is in them, and how to read them; None of other data."""
    if str(given).startswith("hf://") or (str(given).lower().endswith(".parquet") and os.path.isfile(given)):
        source = open_source(given)
        return source.names, source.read
    found = find_shards(given)
    if found is None:
        return None
    if found.suffix == ".parquet":
        source = _open_shards(found, Columns())
        return source.names, source.read
    read = open_members(index_shards(found.places, found.index), found.names, shown(found.given))
    return read.names, read


def _of_table(kind: str, location: str, table: Table, folder: Path = Path()) -> Source:
    read = table.read or _Files(folder, table.names)
    source = Source(
        kind, location, table.names, table.columns, table.splits, table.groups, read, table.ignored, table.known
    )
    return source if table.order is None else source.only(table.order)


def _refuse_unknown(source: Source, data: str | os.PathLike, columns: Columns) -> None:
    unknown = [name for name in columns.target if name not in source.columns]
    if unknown:
        raise InputError(f"{data} has no target {', '.join(unknown)}: what it has is {', '.join(source.columns)}.")


def _open_folder(root: Path) -> Source:
    names = list(walk(root))
    tables = sorted(name for name in names if "/" not in name and name.lower().endswith(TABLE_SUFFIXES))
    hint = f"\nThere is a table in it: perhaps you meant {root / tables[0]}." if tables else ""
    classes = class_folders(names, str(root), hint)
    columns = {"class": np.array(classes.classes, dtype=str)}
    splits, ignored = np.array(classes.splits, dtype="U10"), tuple(sorted(classes.ignored))
    return Source("folder", str(root), classes.pictures, columns, splits, None, _Files(root, classes.pictures), ignored)


def _open_digits() -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("The digits come with scikit-learn: pip install 'vitreous[demo]'") from error
    bunch = load_digits()
    pictures = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # pyright: ignore
    columns = {"class": bunch.target.astype(str)}  # pyright: ignore
    names = tuple(f"digits[{i}]" for i in range(len(pictures)))
    return Source("digits", "digits", names, columns, _unsaid(len(names)), None, _Arrays((pictures,)))


def _open_arrays(path: Path, columns: Columns) -> Source:
    try:
        with open_npz(path, UNPACKED) as file:
            return _source_of_arrays(path, file, columns)
    except InputError:
        raise
    except Exception as error:  # NumPy raises whatever it likes on a damaged header, MemoryError included
        raise InputError(
            f"{path} cannot be read as an .npz of plain arrays, of numbers or text: {str(error).split('. ')[0][:200]}"
        ) from error


def _source_of_arrays(path: Path, file: np.lib.npyio.NpzFile, columns: Columns) -> Source:
    keys = {key.lower(): key for key in file.files} | {key: key for key in file.files}

    def find(stem: str, words: Sequence[str]) -> str | None:
        """The key that is a stem with a split's word, such as x_train or train_images; "" is the stem alone."""
        wanted = [key for word in words for key in ((f"{stem}_{word}", f"{word}_{stem}") if word else (stem,))]
        return next((keys[key] for key in wanted if key in keys), None)

    def first(stems: Sequence[str], words: Sequence[str]) -> str | None:
        return next((stem for stem in stems if find(stem, words)), None)

    names: list[str] = []
    splits: list[np.ndarray] = []
    groups: list[np.ndarray] = []
    pictures: list[np.ndarray] = []
    targets: dict[str, list[np.ndarray]] = {}
    parts = [(split, words) for split, words in _ARRAY_SPLITS.items() if first(_ARRAY_PICTURES, words)]
    for split, words in parts or [("", ("",))]:
        stem = first(_ARRAY_PICTURES, words)
        key = find(stem, words) if stem else None
        if key is None:
            raise InputError(f"{path} holds {', '.join(file.files)}. {_EXPECTED_ARRAYS}")
        array = file[key]
        if array.ndim not in (3, 4) or array.dtype.kind not in "uifb":
            raise InputError(f"{path}: {key} has shape {array.shape} and type {array.dtype}. {_EXPECTED_ARRAYS}")
        names += [f"{key}[{i}]" for i in range(len(array))]
        splits.append(np.full(len(array), split, dtype="U10"))
        pictures.append(array)

        label = first(_ARRAY_LABELS, words)
        wanted = [("target", t) for t in columns.target or ([label] if label else [])]
        for role, title in wanted + ([("group", columns.group)] if columns.group else []):
            found = find(title, words)
            if found is None:
                raise InputError(f"{path} has no {role} '{title}' beside {key}: it holds {', '.join(file.files)}.")
            values = _label_columns(title, file[found], len(array), f"{path}: {found}")
            if role == "target":
                for name, column in values.items():
                    targets.setdefault(name, []).append(column)
            elif len(values) == 1:
                groups.append(values[title].astype(str))
            else:
                raise InputError(f"{path}: a group is one value a picture, but {found} has {len(values)}.")
    partial = [title for title, found in targets.items() if len(found) < max(len(parts), 1)]
    if partial:
        raise InputError(f"{path}: only some splits have {', '.join(partial)}. It holds {', '.join(file.files)}.")
    return Source(
        "arrays",
        str(path),
        tuple(names),
        {title: np.concatenate(found) for title, found in targets.items()},
        np.concatenate(splits),
        np.concatenate(groups) if groups else None,
        _Arrays(tuple(pictures)),
    )


def _label_columns(stem: str, labels: np.ndarray, n: int, where: str) -> dict[str, np.ndarray]:
    """(n,) or (n, k) to columns of n."""
    if labels.ndim not in (1, 2) or len(labels) != n or labels.dtype.kind not in "biufSU":
        raise InputError(
            f"{where} has shape {labels.shape} and type {labels.dtype}, beside {n:,} pictures. {_EXPECTED_ARRAYS}"
        )
    wide = {"i": np.int64, "u": np.int64, "f": np.float64, "S": str}.get(labels.dtype.kind)
    labels = labels.astype(wide) if wide else labels
    if labels.ndim == 1 or labels.shape[1] == 1:
        return {stem: labels.reshape(-1)}
    return {f"{stem}_{k}": labels[:, k] for k in range(labels.shape[1])}


def _unsaid(n: int) -> np.ndarray:
    return np.full(n, "", dtype="U10")


def _not_there(path: Path) -> str:
    """That a path does not exist, and what stands nearest to it."""
    parent = Path(os.path.abspath(path)).parent
    if not parent.is_dir():
        return f"{path} does not exist, and neither does the folder {parent}."
    names = {entry.lower(): entry for entry in os.listdir(parent)}
    near = [names[name] for name in difflib.get_close_matches(path.name.lower(), names, n=3)]
    return f"{path} does not exist." + (f" Near it: {', '.join(near)}." if near else "")
