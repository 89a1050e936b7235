"""Where the shards are that the user means: a .tar, a pattern, a URL, or a folder of them."""

import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vitreous.data.folders import is_hidden, is_picture, walk
from vitreous.data.index import INDEX, Index, read_index
from vitreous.data.remote import UnreachableError, expand, is_pattern, is_url, joined, listed, shown
from vitreous.data.splits import split_of
from vitreous.errors import InputError


@dataclass(frozen=True)
class Shards:
    """Tars or Parquet files: what the user named, their places, and their names relative to the folder of all."""

    given: str  # absolute, or a URL
    suffix: str  # ".tar" or ".parquet"
    places: list[str]
    names: list[str]
    index: Index | None = None  # that was found beside them

    def checked(self) -> Self:
        """The shards, all of which are there, as far as that can be told without asking for them."""
        if lost := [place for place in self.places if not is_url(place) and not os.path.isfile(place)]:
            raise InputError.listing(
                f"{self.given}: {len(lost):,} of {len(self.places):,} shards are not there:",
                lost,
                "expected all of them: bring those back, or name the others by a pattern",
            )
        return self


def find_shards(data: str | os.PathLike) -> Shards | None:
    """The shards that the user means, or None where it is other data: a .tar, a pattern, a URL, a folder of shards.

    A single table here is no shard: it may hold paths.
    """
    text = str(data)
    if not is_url(text):
        text = os.path.abspath(Path(text).expanduser())
    suffix = os.path.splitext(shown(text))[1].lower()
    if os.path.isdir(text):
        return _shards_in(text) if _has_shards(text) else None
    if suffix == ".tar" or (suffix == ".parquet" and (is_url(text) or not os.path.isfile(text))):
        if not is_url(text) and not is_pattern(text) and not os.path.exists(text):
            return None
        places = expand(text)
        return Shards(text, suffix, places, _relative(places)).checked()
    if is_url(text):
        return _shards_in(text)
    return None


def is_there(data: str | os.PathLike) -> bool:
    """Whether data is still where it was; a URL is taken to be."""
    text = str(data)
    if text == "digits" or is_url(text) or Path(text).exists():
        return True
    try:
        return is_pattern(text) and any(map(os.path.exists, expand(text)))
    except InputError:
        return False


def title_of(data: str | os.PathLike) -> str:
    """A short word for data, to name things after: "photos" of "/data/photos.tar", "train" of "train-{00..99}.tar"."""
    name = shown(str(data)).rstrip("/").rpartition("/")[2] if is_url(str(data)) else Path(data).resolve().name
    name = os.path.splitext(name)[0].partition("{")[0].partition("*")[0].partition("?")[0].partition(":")[0]
    return name.strip("-_. ") or "data"


def splits_of_files(names: Sequence[str]) -> list[str]:
    """The split that each file's name or folder says ("data/train-00001.tar" -> "train").

    All "" where they do not name several: the name of one file alone says nothing of how it is to be used.
    """
    splits = [_split_of_file(name) for name in names]
    return splits if len(set(splits) - {""}) > 1 else [""] * len(names)


def _has_shards(folder: str) -> bool:
    """Whether a folder is one of shards: they lie in it or one folder further down, and there are no pictures."""
    if os.path.exists(joined(folder, INDEX)):
        return True
    found = False
    try:
        for name in _near(folder):
            if is_picture(name):
                return False
            found = found or name.lower().endswith((".tar", ".parquet"))
    except OSError:  # told when it is walked
        return False
    return found and not any(map(is_picture, walk(Path(folder))))


def _near(folder: str, deep: bool = True) -> Iterator[str]:
    """Names of files in a folder and in those in it, hidden ones passed over; as they come, as there may be many."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if not entry.is_dir():
                yield entry.name
            elif deep:
                yield from _near(entry.path, deep=False)


def _shards_in(folder: str) -> Shards:
    told = ""
    if is_url(folder) or os.path.exists(joined(folder, INDEX)):
        try:
            index = read_index(joined(folder, INDEX))
        except UnreachableError:
            raise
        except InputError as fault:  # mostly, far away, there is none
            if not is_url(folder):
                raise
            told = f"\n{fault}"
        else:
            places = [joined(folder, name) for name in index.names]
            return Shards(folder, ".tar", places, index.names, index).checked()
    for suffix in (".tar", ".parquet"):
        try:
            names = listed(folder, suffix)
        except InputError as fault:
            raise InputError(f"{fault}{told}") from None
        if names:
            return Shards(folder, suffix, [joined(folder, name) for name in names], names)
    raise InputError(f"{shown(folder)} holds no .tar and no .parquet.")


def _relative(places: Sequence[str]) -> list[str]:
    """Names of places relative to the folder that holds them all, with posix slashes."""
    plain = [shown(place) if is_url(place) else place.replace("\\", "/") for place in places]
    folders = [posixpath.dirname(place).split("/") for place in plain]
    shared = 0
    while all(len(folder) > shared and folder[shared] == folders[0][shared] for folder in folders):
        shared += 1
    return ["/".join(place.split("/")[shared:]) for place in plain]


def _split_of_file(name: str) -> str:
    """The first word of a name, folders first, that names a split."""
    *folders, file = name.split("/")
    words = [*folders, *posixpath.splitext(file)[0].replace("_", "-").replace(".", "-").split("-")]
    return next((split for word in words if (split := split_of(word))), "")
