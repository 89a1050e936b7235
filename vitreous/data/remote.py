"""Ranges of files, wherever they lie: on this machine, behind HTTP, or at any URL that fsspec knows.

A place is a path or a URL. HTTP is spoken by the standard library; s3://, gs://, memory:// and the like by fsspec and
its packages. Threads and processes share no state: no position in a file, no connection.
"""

import glob
import io
import itertools
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from ssl import SSLError
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from vitreous.data.folders import is_hidden
from vitreous.data.http import StatusError, get_part
from vitreous.errors import InputError

PAUSES = (0.5, 2.0, 5.0)  # seconds before a read that failed is tried again; after the last it is given up
MOST_EXPANDED = 1_000_000  # places of one pattern of braces
SUPPORTED = (
    "Expected a path, http:// or https://, hf://owner/name (pip install 'vitreous[hub]'), or what fsspec knows (pip "
    "install 'vitreous[shards]'): s3:// (and s3fs), gs:// (gcsfs), az:// (adlfs), sftp:// (paramiko) and others."
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+(://|::)")  # two letters or more: C: is a drive
_BRACES = re.compile(r"\{([^{}]*)\}")
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
T = TypeVar("T")


class UnreachableError(InputError):
    """What answers for many files does not: asking for the others is in vain."""

    def of(self, count: int) -> InputError:
        """The error of all the shards that were to be read."""
        return InputError(f"{self} None of the {count:,} shards was read.") if count > 1 else self


@dataclass(frozen=True)
class Stat:
    """A file's size in bytes, and what changes when its content does: an etag, or a time."""

    size: int
    stamp: str


def is_url(place: str | os.PathLike) -> bool:
    """Whether a place is a URL and not a path."""
    return isinstance(place, str) and bool(_URL.match(place))


def shown(place: str) -> str:
    """A place for messages: a URL, or a chain of them, without the keys that may stand in it."""
    return "::".join(map(_keyless, place.split("::"))) if is_url(place) else place


def _keyless(url: str) -> str:
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def joined(place: str, name: str) -> str:
    """The place of a file in a folder."""
    if not is_url(place):
        return os.path.join(place, *name.split("/"))
    base, mark, query = place.partition("?") if _is_http(place) else (place, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def parted(place: str) -> tuple[str, str]:
    """The folder of a file and its name: what `joined` puts together."""
    base, mark, query = place.partition("?") if _is_http(place) else (place, "", "")
    folder, _, name = (base if is_url(place) else base.replace(os.sep, "/")).rpartition("/")
    return folder + mark + query, name


def expand(pattern: str) -> list[str]:
    """The places that a pattern names, sorted where they were looked for: {000..099} and {a,b} are spelt out, * and ?
    are looked for. What is there under the very name is itself. Raises `InputError` where there are none.
    """
    if not is_url(pattern) and os.path.exists(pattern):
        return [pattern]
    places = [place for spelt in _spelt(pattern) for place in (_found(spelt) if is_pattern(spelt) else [spelt])]
    if not places:
        raise InputError(f"{shown(pattern)}: there is no file of such a name.")
    return places


def is_pattern(place: str) -> bool:
    """Whether a place stands for several: it has braces or wildcards."""
    if _is_http(place):
        return "*" in place or bool(_BRACES.search(place))  # a ? begins the query
    return any(mark in place for mark in "*?[") or bool(_BRACES.search(place))


def listed(place: str, suffix: str) -> list[str]:
    """Files below a folder whose names end in `suffix`, as names relative to it, sorted; hidden ones passed over."""
    if not is_url(place):
        found = [
            os.path.relpath(os.path.join(folder, name), place).replace(os.sep, "/")
            for folder, _, names in os.walk(place)
            for name in names
        ]
    elif _is_http(place):
        raise InputError(
            f"{shown(place)}: HTTP does not list what a folder holds. Expected the names of the shards, such as "
            f"{shown(place).rstrip('/')}/train-{{000000..000099}}{suffix}, or a folder that `vitreous pack` made."
        )
    else:
        fs, root = _filesystem(place)
        paths = retried(shown(place), lambda: fs.find(root))
        prefix = root.rstrip("/") + "/"
        found = [path[path.index(prefix) + len(prefix) :] for path in map(str, paths) if prefix in path]
    names = [name for name in found if name.lower().endswith(suffix) and not any(map(is_hidden, name.split("/")))]
    return sorted(names)


def stat(place: str) -> Stat:
    """The size of a file, without reading it. Raises `InputError` where it cannot be had, or `OSError` of a path."""
    if _is_http(place):
        part = retried(shown(place), lambda: get_part(place, 0, 1))
        if not part.total:
            raise InputError(f"{shown(place)}: its size is not told, and without it shards cannot be read.")
        return Stat(part.total, part.stamp)
    if is_url(place):
        fs, path = _filesystem(place)
        info = retried(shown(place), lambda: fs.info(path))
        stamps = [
            str(info[key]) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created") if key in info
        ]
        if not isinstance(info.get("size"), int):
            raise InputError(f"{shown(place)}: its size is not told, and without it shards cannot be read.")
        return Stat(info["size"], " ".join(stamps))
    status = os.stat(place)
    return Stat(status.st_size, f"{status.st_mtime_ns} {status.st_ino}")


def read_range(place: str, start: int, count: int) -> bytes:
    """`count` bytes from `start`; fewer where the file ends before. Raises `InputError`, or `OSError` of a path."""
    if count <= 0:
        return b""
    if not is_url(place):
        with open(place, "rb") as file:
            file.seek(start)
            return file.read(count)
    if not _is_http(place):
        fs, path = _filesystem(place)
        return bytes(retried(shown(place), lambda: fs.cat_file(path, start, start + count)))[:count]
    return retried(shown(place), lambda: get_part(place, start, count)).content


class RangeFile(io.RawIOBase):
    """A file that is read by ranges, for libraries that ask for one."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]):
        """`size` is in bytes; `read` gives bytes from a start, as many as it is asked for or fewer, but some."""
        self.size, self.range, self.position = size, read, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a byte."""
        self.position = max(0, offset + (0, self.position, self.size)[whence])
        return self.position

    def tell(self) -> int:
        """The byte that is read next."""
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer as far as the file goes."""
        filled, count = 0, min(len(buffer), self.size - self.position)
        while filled < count and (content := self.range(self.position, count - filled)):
            buffer[filled : filled + len(content)] = content
            filled += len(content)
            self.position += len(content)
        return filled


def retried(what: str, act: Callable[[], T]) -> T:
    """What `act` gives, tried again after faults that may pass. Raises `InputError` that names what it was of;
    `UnreachableError` where the fault is not the file's but its server's.
    """
    for pause in (*PAUSES, None):
        try:
            return act()
        except Exception as error:  # the packages behind fsspec have errors of their own kinds
            fault = error
        if pause is None or not _may_pass(fault):
            raise _told(what, fault) from fault
        time.sleep(pause)
    raise AssertionError


def _told(what: str, fault: Exception) -> InputError:
    if not _is_http(what) or not (_may_pass(fault) or isinstance(fault, SSLError)):
        return InputError(f"{what} cannot be read: {_said(fault)}.")
    if isinstance(fault, StatusError | HTTPException):  # of a file
        return UnreachableError(f"{what} cannot be read: {_said(fault)}. Try again later.")
    server = urlunsplit((*urlsplit(what)[:2], "", "", ""))
    return UnreachableError(f"{server} cannot be read: {_said(fault)}. Check the address, the network and the server.")


def _may_pass(error: Exception) -> bool:
    if isinstance(error, StatusError):
        return error.status in _AGAIN
    return not isinstance(error, FileNotFoundError | PermissionError | ValueError)


def _said(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return str(reason).strip().rstrip(".") or type(error).__name__


def _is_http(place: str) -> bool:
    return place.lower().startswith(("http://", "https://"))


def _filesystem(place: str) -> tuple[Any, str]:
    kind = _URL.match(place)[0]  # pyright: ignore[reportOptionalSubscript]
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise UnreachableError(f"{kind} needs fsspec, which is not installed. {SUPPORTED}") from error
    try:
        return url_to_fs(place)
    except ImportError as error:
        raise UnreachableError(f"{kind} needs one more package: {_said(error)}.") from error
    except ValueError as error:
        raise UnreachableError(f"{kind} cannot be read: {_said(error)}. {SUPPORTED}") from error
    except OSError as error:
        raise InputError(f"{shown(place)} cannot be read: {_said(error)}.") from error


def _spelt(pattern: str) -> list[str]:
    """Every name that the braces of a pattern stand for."""
    pieces, start = [], 0
    for braces in _BRACES.finditer(pattern):
        pieces += [[pattern[start : braces.start()]], _choices(braces[1])]
        start = braces.end()
    pieces.append([pattern[start:]])
    count = 1
    for piece in pieces:
        count *= len(piece)
    if count > MOST_EXPANDED:
        raise InputError(f"{shown(pattern)} stands for {count:,} names: expected {MOST_EXPANDED:,} at most.")
    return ["".join(words) for words in itertools.product(*pieces)]


def _choices(text: str) -> list[str]:
    """ "000..099" or "a,b" to a list."""
    bounds = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", text)
    if not bounds:
        return text.split(",") if "," in text else [f"{{{text}}}"]
    first, last = int(bounds[1]), int(bounds[2])
    if first > last or last - first >= MOST_EXPANDED:
        raise InputError(f"{{{text}}}: expected a first number that is not above the last, and fewer than a million.")
    width = len(bounds[1]) if bounds[1].startswith("0") or len(bounds[1]) == len(bounds[2]) else 0
    return [f"{number:0{width}}" for number in range(first, last + 1)]


def _found(pattern: str) -> list[str]:
    if _is_http(pattern):
        raise InputError(
            f"{shown(pattern)}: HTTP does not list names. Expected them spelt out, such as train-{{000000..000099}}.tar"
        )
    if not is_url(pattern):
        return sorted(glob.glob(pattern))
    fs, path = _filesystem(pattern)
    found = retried(shown(pattern), lambda: fs.glob(path))
    return sorted(map(fs.unstrip_protocol, map(str, found)))
