"""What the user typed, to a list of pictures with their targets."""

import difflib
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Self

import numpy as np

from vitreous.data.decode import check_bytes
from vitreous.data.folders import EXPECTED_FOLDER, ClassFolders, class_folders, is_hidden, is_picture, walk, wrapper
from vitreous.data.tables import TABLE_SUFFIXES, read_table
from vitreous.errors import InputError

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip", ".7z", ".rar")
_ARRAY_PICTURES = ("x", "images", "image", "pictures", "data")
_ARRAY_SPLITS = {"train": ("train",), "validation": ("val", "valid", "validation", "dev"), "test": ("test",)}
_ARRAY_LABELS = ("y", "labels", "label", "targets", "target")
_EXPECTED_ARRAYS = """Expected x_train and y_train (and x_val, y_val, x_test, y_test), or images and labels:
pictures as (n, H, W) or, channels last, (n, H, W, C); labels as (n,) or (n, k)."""


@dataclass(frozen=True, eq=False)
class Source:
    """Pictures, not yet decoded, with their targets. n is its length."""

    kind: str  # "folder", "table", "arrays", "tar", "digits" or "pictures"
    location: str  # absolute path, or "digits"
    names: tuple[str, ...]  # of each picture: path relative to the root with posix slashes, member, or "x_train[12]"
    columns: dict[str, np.ndarray]  # (n,) each, of str, bool, int64 or float64; class folders give "class"; {}: none
    splits: np.ndarray  # (n,) of str: "train", "validation", "test", or "" where the data does not say
    groups: np.ndarray | None  # (n,) of str
    read: Callable[[int], "bytes | np.ndarray"]  # for threads and processes alike; InputError for what cannot be read
    ignored: tuple[str, ...] = ()  # files that were left out: not pictures, or not in a class folder

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
        )


def open_source(
    data: str | os.PathLike,
    *,
    target: Sequence[str] = (),
    path_column: str | None = None,
    group: str | None = None,
) -> Source:
    """Find the pictures and targets in a folder, a table, an array file, a tar, or the built-in digits.

    Args:
        data: one of
            a folder of class folders, with or without `train/`, `validation/` and `test/` above them;
            a `.csv`, `.tsv` or `.parquet` table with a row a picture;
            an `.npz` with `x_train`, `y_train`, … or `images`, `labels` (pictures are channels-last);
            an uncompressed `.tar` of class folders;
            "digits", scikit-learn's 8×8 digits.
        target: columns of a table (or keys of an `.npz`) to learn. By default the column called label, class, target,
            y or category; without one, all columns but the path, the group, the split and the id.
        path_column: the table's column of pictures: paths relative to the table's folder, or in Parquet their bytes.
        group: the column (or key) whose pictures must stand on one side of a split.

    Raises:
        InputError: what was expected, what is there, and what to do.
    """
    if isinstance(target, str):
        target = (target,)
    path = Path(os.path.abspath(Path(data).expanduser()))
    suffix = path.suffix.lower()
    if path.is_file() and suffix in TABLE_SUFFIXES:
        table = read_table(path, target, path_column, group)
        read = _Files(path.parent, table.names) if table.contents is None else _Cells(table.contents, table.names)
        return Source("table", str(path), table.names, table.columns, table.splits, table.groups, read)
    if path_column is not None:
        raise InputError(f"A path column is for tables (.csv, .tsv, .parquet), but the data is {data}.")
    if path.is_file() and suffix == ".npz":
        return _open_arrays(path, target, group)
    if group is not None:
        raise InputError(f"Groups are for tables (.csv, .tsv, .parquet) and .npz files, but the data is {data}.")
    if path.is_dir():
        source = _open_folder(path)
    elif path.is_file() and path.name.lower().endswith(_PACKED):
        raise InputError(f"{path} is packed: unpack it, and give the folder or an uncompressed .tar.")
    elif path.is_file() and suffix == ".tar":
        source = _open_tar(path)
    elif path.exists():
        raise InputError(
            f"{path} is not a folder, a table (.csv, .tsv, .parquet), an .npz or a .tar.\n{EXPECTED_FOLDER}"
        )
    elif str(data) == "digits":
        source = _open_digits()
    else:
        raise InputError(_not_there(path))
    unknown = [name for name in target if name not in source.columns]
    if unknown:
        raise InputError(f"{data} has no target {', '.join(unknown)}: what it has is {', '.join(source.columns)}.")
    return source


def open_pictures(paths: Sequence[str | os.PathLike | np.ndarray]) -> Source:
    """Pictures without targets, to predict: files, folders (all pictures in them, sorted), and arrays.

    An array is one picture, (H, W) or (H, W, C), and is named by its place in the list: "array 0".

    Raises:
        InputError: paths that are not there, and folders without pictures, all together.
    """
    names: list[str] = []
    arrays: dict[int, np.ndarray] = {}
    ignored: list[str] = []
    faults: list[str] = []
    for i, given in enumerate(paths):
        if isinstance(given, np.ndarray):
            arrays[len(names)] = given
            names.append(f"array {i}")
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
    read = _Mixed(Path.cwd(), tuple(names), arrays)
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
class _Members:
    """Reads members of a tar. It is opened anew for each, so that threads and processes share no position in it."""

    path: Path
    names: tuple[str, ...]
    offsets: np.ndarray  # (n,) int64, bytes
    sizes: np.ndarray  # (n,) int64, bytes

    def __call__(self, i: int) -> bytes:
        size = int(self.sizes[i])
        try:
            with self.path.open("rb") as file:
                file.seek(int(self.offsets[i]))
                content = file.read(size)
        except OSError as error:
            raise InputError(f"{self.names[i]} in {self.path} cannot be read: {error.strerror}.") from error
        if len(content) < size:
            raise InputError(f"{self.names[i]} in {self.path} is cut off: {len(content):,} of {size:,} bytes.")
        return content


@dataclass(frozen=True)
class _Cells:
    """Reads encoded pictures from a column of bytes."""

    column: "object"  # pyarrow.ChunkedArray
    names: tuple[str, ...]

    def __call__(self, i: int) -> bytes:
        return self.column[i].as_py()  # pyright: ignore


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
    """Reads files, and arrays as they are. Of a file it keeps no more than its name: there may be a million."""

    root: Path  # that names of files are relative to, those that are
    names: tuple[str, ...]
    arrays: dict[int, np.ndarray]  # by number

    def __call__(self, i: int) -> "bytes | np.ndarray":
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


def _open_folder(root: Path) -> Source:
    names = list(walk(root))
    tables = sorted(name for name in names if "/" not in name and name.lower().endswith(TABLE_SUFFIXES))
    hint = f"\nThere is a table in it: perhaps you meant {root / tables[0]}." if tables else ""
    classes = class_folders(names, str(root), hint)
    return _of_class_folders("folder", root, classes, _Files(root, classes.pictures))


def _open_tar(path: Path) -> Source:
    members: dict[str, tarfile.TarInfo] = {}  # of members with one name, the last counts, as when unpacked
    ignored: list[str] = []
    unsafe: list[str] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                parts = name.split("/")
                if any(map(is_hidden, parts)) and ".." not in parts:
                    continue
                if not member.isreg() or member.issparse():
                    ignored += [] if member.isdir() else [name]
                elif name.startswith("/") or ".." in parts or PureWindowsPath(name).drive:
                    unsafe.append(name)
                else:
                    members[name] = member
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read as an uncompressed tar: {error}.") from error
    if unsafe:
        raise InputError.listing(
            f"{path} has members that would lie outside of the folder it is unpacked to:",
            unsafe,
            "Pack it anew from inside the folder: tar cf photos.tar -C photos .",
        )
    classes = class_folders(list(members), str(path), within=wrapper(list(members), path.stem))
    offsets = np.array([members[name].offset_data for name in classes.pictures], dtype=np.int64)
    sizes = np.array([members[name].size for name in classes.pictures], dtype=np.int64)
    return _of_class_folders("tar", path, classes, _Members(path, classes.pictures, offsets, sizes), ignored)


def _of_class_folders(
    kind: str, path: Path, folders: ClassFolders, read: Callable[[int], bytes], ignored: Sequence[str] = ()
) -> Source:
    columns = {"class": np.array(folders.classes, dtype=str)}
    splits = np.array(folders.splits, dtype="U10")
    left_out = tuple(sorted([*folders.ignored, *ignored]))
    return Source(kind, str(path), folders.pictures, columns, splits, None, read, left_out)


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


def _open_arrays(path: Path, target: Sequence[str], group: str | None) -> Source:
    try:
        with np.load(path, allow_pickle=False) as file:
            return _source_of_arrays(path, file, target, group)
    except InputError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(
            f"{path} cannot be read as an .npz of plain arrays, of numbers or text: {str(error).split('. ')[0]}"
        ) from error


def _source_of_arrays(path: Path, file: np.lib.npyio.NpzFile, target: Sequence[str], group: str | None) -> Source:
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
    columns: dict[str, list[np.ndarray]] = {}
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
        wanted = [("target", t) for t in target or ([label] if label else [])]
        for role, title in wanted + ([("group", group)] if group else []):
            found = find(title, words)
            if found is None:
                raise InputError(f"{path} has no {role} '{title}' beside {key}: it holds {', '.join(file.files)}.")
            values = _label_columns(title, file[found], len(array), f"{path}: {found}")
            if role == "target":
                for name, column in values.items():
                    columns.setdefault(name, []).append(column)
            elif len(values) == 1:
                groups.append(values[title].astype(str))
            else:
                raise InputError(f"{path}: a group is one value a picture, but {found} has {len(values)}.")
    partial = [title for title, found in columns.items() if len(found) < max(len(parts), 1)]
    if partial:
        raise InputError(f"{path}: only some splits have {', '.join(partial)}. It holds {', '.join(file.files)}.")
    return Source(
        "arrays",
        str(path),
        tuple(names),
        {title: np.concatenate(found) for title, found in columns.items()},
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
