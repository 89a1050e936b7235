"""Folders of pictures: which files there are, and what the folders they lie in say of them."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitreous.data.splits import split_of
from vitreous.errors import InputError

PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif")
) | {".npy"}
_HIDDEN = frozenset(("__macosx", "thumbs.db", "desktop.ini"))
EXPECTED_FOLDER = """A training folder holds a folder for each class, and the pictures in them:
    photos/cat/001.jpg   photos/dog/001.jpg   …
or, where you split them yourself, photos/train/cat/001.jpg, photos/validation/…, photos/test/….
Where the answer is not a class, give a table (.csv, .tsv, .parquet) with a column of paths and columns to learn."""


def is_picture(name: str) -> bool:
    """Whether a file's suffix is that of a picture."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


@dataclass(frozen=True)
class ClassFolders:
    """Pictures by the folders they lie in."""

    pictures: tuple[str, ...]  # names, sorted
    classes: list[str]  # of each picture
    splits: list[str]  # of each picture, "" where the folders do not say
    ignored: list[str]  # not pictures, or in no class folder


def class_folders(names: Sequence[str], where: str, hint: str = "", within: str = "") -> ClassFolders:
    """Relative names to classes and splits: [split/]class/…/picture. `within` is a folder around all of them."""
    parts = {name: name.removeprefix(within).split("/") for name in sorted(names) if is_picture(name)}
    ignored = [name for name in names if not is_picture(name)]
    if not parts:
        left_out = f" ({len(ignored):,} other files, such as {ignored[0]})" if ignored else ""
        raise InputError(f"{where} holds no pictures{left_out}.{hint}\n{EXPECTED_FOLDER}")
    depth = _depth_of_classes(parts, where, hint)

    # Class names are normalised, as macOS writes accents in another way than the others do.
    labelled = {name: unicodedata.normalize("NFC", p[depth]) for name, p in parts.items() if len(p) > depth + 1}
    splits = {name: (split_of(parts[name][0]) or "") if depth else "" for name in labelled}
    if depth:  # folders beside train/ that name no split
        labelled = {name: c for name, c in labelled.items() if splits[name]}
        trained = {c for name, c in labelled.items() if splits[name] == "train"}
        strange = sorted({(c, splits[name]) for name, c in labelled.items() if trained and c not in trained})
        if strange:
            raise InputError.listing(
                f"{where}: classes that are held out, but have no pictures in train:",
                [f"{c} (in {split})" for c, split in strange],
                f"The classes in train are: {', '.join(sorted(trained))}. Rename, move or remove these folders.",
            )
    ignored += [name for name in parts if name not in labelled]
    return ClassFolders(tuple(labelled), list(labelled.values()), [splits[name] for name in labelled], ignored)


def _depth_of_classes(parts: dict[str, list[str]], where: str, hint: str) -> int:
    """1 where the folders at the top are splits, 0 where they are classes."""
    tops = sorted({p[0] for p in parts.values() if len(p) > 1})
    if not tops:
        raise InputError(f"{where} holds {len(parts):,} pictures, but no class folders.{hint}\n{EXPECTED_FOLDER}")
    holding = {p[0] for p in parts.values() if len(p) > 2}
    named = {top: split for top in tops if (split := split_of(top))}
    others = [top for top in tops if top not in named]
    if not others:
        if not holding:
            raise InputError(
                f"{where}: {', '.join(tops)} hold pictures, but no class folders.{hint}\n{EXPECTED_FOLDER}"
            )
        return 1
    found = {split for top, split in named.items() if top in holding}
    if "train" not in found:
        return 0  # a class may be called train, and hold pictures
    if len(found) == 1:
        raise InputError(
            f"{where}: {', '.join(named)} holds folders of pictures, and beside it stand {', '.join(others[:20])}. "
            f"If it is a split, move the others away; if it is a class, give it another name.\n{EXPECTED_FOLDER}"
        )
    return 1


def wrapper(names: Sequence[str], stem: str) -> str:
    """ "photos/" where a tar was packed as one folder: one of its own name, or one of split folders."""
    tops = {name.split("/")[0] for name in names if "/" in name}
    if len(tops) != 1 or not all("/" in name for name in names):
        return ""
    [top] = tops
    nested = {parts[1] for name in names if len(parts := name.split("/")) > 2}
    splits = any(split_of(folder) for folder in nested) and not split_of(top)
    return f"{top}/" if nested and (top == stem or splits) else ""


def walk(root: Path) -> Iterator[str]:
    """Names of all files below, posix, hidden ones passed over. Links are followed, but never into a folder above."""

    def visit(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        try:
            status = folder.stat()
            here = (status.st_dev, status.st_ino)
            if here in above:
                return
            with os.scandir(folder) as entries:
                found = sorted((e for e in entries if not is_hidden(e.name)), key=lambda e: e.name)
        except OSError as error:
            raise InputError(f"{folder} cannot be read: {error.strerror}.") from error
        for entry in found:
            if entry.is_dir():
                yield from visit(folder / entry.name, f"{prefix}{entry.name}/", above | {here})
            elif entry.is_file() or entry.is_symlink():  # a broken link is a picture that cannot be read
                yield prefix + entry.name

    return visit(root, "", frozenset())


def is_hidden(part: str) -> bool:
    """Whether a file or folder is the system's own and no business of ours."""
    return part.startswith(".") or part.lower() in _HIDDEN
