"""Parts of files behind HTTP, over connections that are kept: a new one for each picture would cost more than it."""

import base64
import functools
import os
import re
import threading
import urllib.request
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from vitreous.errors import InputError

CONNECT = 10.0  # seconds that a server may take to answer at all
TIMEOUT = 60.0  # seconds without a byte after which a read has failed
KEPT = 8  # connections of a thread
MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_kept = threading.local()


class StatusError(OSError):
    """The server says no; `status` is its number."""

    def __init__(self, status: int, reason: str):
        super().__init__(f"the server says {status} ({reason})")
        self.status = status


@dataclass(frozen=True)
class Part:
    """A part of a file, the size of the whole (0 where it is not told), and what changes when the file does."""

    content: bytes
    total: int
    stamp: str


def get_part(url: str, start: int, count: int) -> Part:
    """`count` bytes from `start`; fewer where the file ends before.

    Raises:
        StatusError: the server says no.
        OSError, HTTPException: the connection failed.
        InputError: the server gives no parts of a file, or another than this, or the file ends before `start`.
    """
    headers = {"Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity", "User-Agent": "vitreous"}
    for _ in range(MOST_REDIRECTS + 1):
        if not url.lower().startswith(("http://", "https://")):
            raise InputError("the server sends on to what is no HTTP")
        where, headers["Authorization"] = _credentials(url)
        given = {name: value for name, value in headers.items() if value}
        proxied = urlsplit(where).scheme.lower() in urllib.request.getproxies()
        connection, reply = (None, _through_proxy(where, given)) if proxied else _asked(where, given)
        try:
            if reply.status in _REDIRECTS and (to := reply.headers.get("Location")):
                url = urljoin(where, to)
                if where.lower().startswith("https:") and not url.lower().startswith("https:"):
                    raise InputError("the server sends on from https to where anybody could listen or change it")
                continue
            part = _part(reply, start, count)
            if connection is not None and reply.isclosed() and not reply.will_close:  # it was read to its end
                _keep(connection, where)
                connection = None
            return part
        finally:
            reply.close()
            if connection is not None:
                connection.close()
    raise StatusError(reply.status, "too many redirections")  # pyright: ignore[reportPossiblyUnboundVariable]


def _part(reply: HTTPResponse, start: int, count: int) -> Part:
    if reply.status == 416:
        raise InputError(f"it ends before byte {start:,}")
    if reply.status >= 400 or reply.status < 200:
        raise StatusError(reply.status, reply.reason)
    if reply.status != 206:
        raise InputError(
            "this server does not give parts of a file (HTTP ranges), which shards are read by. Put them on another "
            "one (nginx, Apache and all object stores give ranges), or download them"
        )
    sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("Content-Range", ""), re.IGNORECASE)
    if sent is None or int(sent[1]) != start:
        raise InputError(
            f"the server gives another part of the file than bytes from {start:,}: its Content-Range is "
            f"{reply.headers.get('Content-Range')!r}"
        )
    content = reply.read(count)
    if len(content) < min(count, int(reply.headers.get("Content-Length") or 0)):
        raise HTTPException("the connection broke off")
    stamp = reply.headers.get("ETag") or reply.headers.get("Last-Modified") or ""
    return Part(content, 0 if sent[2] == "*" else int(sent[2]), stamp)


def _asked(url: str, headers: dict[str, str]) -> tuple[HTTPConnection, HTTPResponse]:
    """The reply to a request: over a connection that was kept, or, where that was closed since, over a new one."""
    parts = urlsplit(url)
    target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    connection = _pool().pop((parts.scheme, parts.netloc), None)
    if connection is not None:
        try:
            connection.request("GET", target, headers=headers)
            return connection, connection.getresponse()
        except (OSError, HTTPException):
            connection.close()
    kind = HTTPSConnection if parts.scheme.lower() == "https" else HTTPConnection
    connection = kind(parts.netloc, timeout=CONNECT)
    try:
        connection.connect()
        connection.sock.settimeout(TIMEOUT)
        connection.request("GET", target, headers=headers)
        return connection, connection.getresponse()
    except BaseException:
        connection.close()
        raise


class _Pool(dict[tuple[str, str], HTTPConnection]):
    """Connections by scheme and host, closed when their thread ends."""

    def __del__(self):
        for connection in self.values():
            connection.close()


def _keep(connection: HTTPConnection, url: str) -> None:
    parts, pool = urlsplit(url), _pool()
    if len(pool) >= KEPT:
        pool.pop(next(iter(pool))).close()
    pool[parts.scheme, parts.netloc] = connection


def _pool() -> _Pool:
    """The connections that this thread of this process has kept; those of the process that it was forked from are not
    its own.
    """
    if getattr(_kept, "process", None) != os.getpid():
        _kept.process, _kept.pool = os.getpid(), _Pool()
    return _kept.pool


def _credentials(url: str) -> tuple[str, str]:
    """The URL without name and password, and what shows them to the server."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    shown = base64.b64encode(unquote(user).encode()).decode()
    return urlunsplit((parts.scheme, host, parts.path, parts.query, "")), f"Basic {shown}" if at else ""


class _AsItIs(urllib.request.HTTPErrorProcessor):
    """Raises at no status and follows no redirection: `get_part` looks at both."""

    def http_response(self, request: urllib.request.Request, response: HTTPResponse) -> HTTPResponse:
        """The reply itself."""
        return response

    https_response = http_response


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_AsItIs)


def _through_proxy(url: str, headers: dict[str, str]) -> HTTPResponse:
    return _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
