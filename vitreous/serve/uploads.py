"""The pictures of a request, read within limits that are checked as each piece comes."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request
from starlette.types import Receive

from vitreous.serve.replies import Refused
from vitreous.serve.settings import Settings

LONGEST_NAME = 200  # characters
HEAD_BYTES = 8 << 10  # of the headers of one part of a form
# What says nothing of a body; the last is what `curl --data-binary` says of any.
RAW = (b"", b"application/octet-stream", b"application/x-www-form-urlencoded")
TAKEN = "multipart/form-data with files, image/* or application/octet-stream"


@dataclass(frozen=True)
class Upload:
    """A picture as it came. The name is text to be shown, and nothing else."""

    name: str
    content: bytes


class Room:
    """The bytes that all requests may hold at once. Where they are too many, the upload that began first goes."""

    def __init__(self, most: int):
        self.free = most
        self.reading: list[Reader] = []

    @contextmanager
    def reader(self) -> Iterator["Reader"]:
        """A request's place, until it is answered."""
        reader = Reader(self)
        self.reading.append(reader)
        try:
            yield reader
        finally:
            reader.leave()


class Reader:
    """A request that holds bytes."""

    def __init__(self, room: Room):
        self.room, self.held, self.evicted = room, 0, False
        self.patience: asyncio.Timeout | None = None

    def take(self, count: int) -> None:
        """Holds so many bytes more. Raises `Refused` where there is no room."""
        if not self.evicted:
            self.held += count
            self.room.free -= count
        while self.room.free < 0 and not self.evicted:
            self.room.reading[0].evict()
        if self.evicted:
            raise Refused(429, "more is being sent than the server can hold: try again later", 1)

    def evict(self) -> None:
        """Gives up the place for others; whoever reads is woken."""
        self.evicted = True
        self.leave()
        if self.patience is not None:
            self.patience.reschedule(asyncio.get_running_loop().time())

    def accepted(self) -> None:
        """Keeps the place: all has come."""
        self.room.reading.remove(self)

    def leave(self) -> None:
        """Gives the bytes back."""
        self.room.free += self.held
        self.held = 0
        if self in self.room.reading:
            self.room.reading.remove(self)


async def read_uploads(request: Request, settings: Settings, reader: Reader, name: str = "") -> list[Upload]:
    """The pictures of a request: the files of a form, or its body, which has no name but the one that is told.

    Raises `Refused`: 400 for a form that is cut or holds none, 408 for one that comes too slowly, 413 as soon as it is
    too large, 415 for other kinds, 429 where there is no room.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    kind = kind.lower()
    form = kind == b"multipart/form-data"
    if not form and kind not in RAW and not kind.startswith(b"image/"):
        raise Refused(415, f"the content type is {clean(kind, 'odd')}: expected {TAKEN}")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "the body is compressed: expected it as it is")
    most = settings.request_bytes if form else settings.picture_bytes
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large("the request" if form else "the picture", most)
    if form:
        files = Form(options.get(b"boundary", b""), settings)
        await read_body(request.receive, settings, reader, files.write, most)
        uploads = files.done()
    else:
        content = bytearray()
        await read_body(request.receive, settings, reader, content.extend, most)
        uploads = [Upload(clean(name.encode(errors="replace"), "picture 1"), bytes(content))]
    reader.accepted()
    return uploads


async def read_body(
    receive: Receive, settings: Settings, reader: Reader, sink: Callable[[bytes], object], most: int
) -> None:
    """Hands a body on, piece by piece. Raises `Refused` as soon as it is too large or comes too slowly."""
    now = asyncio.get_running_loop().time
    start, total, more = now(), 0, True
    try:
        async with asyncio.timeout(settings.patience) as reader.patience:
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise Refused(499, "the client is gone")
                data, more = message.get("body", b""), message.get("more_body", False)
                total += len(data)
                if total > most:
                    raise too_large("the request", most)
                reader.take(len(data))
                sink(data)
                allowed = start + settings.patience + total / settings.slowest
                reader.patience.reschedule(min(allowed, now() + settings.patience))
    except TimeoutError:
        reader.take(0)
        raise Refused(408, "the request came too slowly", close=True) from None


class Form:
    """The files of a multipart form, taken from its bytes as they come. Fields that are no files are left out."""

    def __init__(self, boundary: bytes, settings: Settings):
        self.settings = settings
        self.uploads: list[Upload] = []
        self.ended = False
        self._head = 0  # bytes of the part's headers
        self._header, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._content: bytearray | None = None  # of the part, where it is a file
        self._fields = 0
        events = {
            "on_part_begin": self._begin,
            "on_header_field": self._in_header,
            "on_header_value": self._in_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._head_ends,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._all,
        }
        if not boundary:
            raise Refused(400, "the form names no boundary")
        try:
            self._parser = MultipartParser(boundary, events)  # pyright: ignore[reportArgumentType]
        except FormParserError as fault:
            raise Refused(400, f"the form cannot be read ({fault})") from None

    def write(self, data: bytes) -> None:
        """Takes the next bytes. Raises `Refused` for what is no form, and for too many or too large files."""
        try:
            self._parser.write(data)
        except FormParserError as fault:
            raise Refused(400, f"the form cannot be read ({fault})") from None

    def done(self) -> list[Upload]:
        """The files. Raises `Refused` where the form is cut, or holds none."""
        if not self.ended:
            raise Refused(400, "the form is cut: its last boundary is missing")
        if not self.uploads:
            raise Refused(400, "the form holds no file")
        return self.uploads

    def _begin(self) -> None:
        self._headers, self._head, self._content = {}, 0, None
        self._fields += 1
        if self._fields > 2 * self.settings.pictures:
            raise Refused(413, f"the form has more than {2 * self.settings.pictures} parts")

    def _in_header(self, data: bytes, start: int, end: int) -> None:
        self._header += self._of_head(data[start:end])

    def _in_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._of_head(data[start:end])

    def _of_head(self, piece: bytes) -> bytes:
        self._head += len(piece)
        if self._head > HEAD_BYTES:
            raise Refused(400, "the form has a part whose headers are too long")
        return piece

    def _header_ends(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _head_ends(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"filename")
        if name is None and not self._headers.get(b"content-type", b"").startswith(b"image/"):
            return
        if len(self.uploads) == self.settings.pictures:
            raise Refused(413, f"the form has more than {self.settings.pictures} pictures")
        self._name = clean(name or b"", f"picture {len(self.uploads) + 1}")
        self._content = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._content is None:
            return
        if len(self._content) + end - start > self.settings.picture_bytes:
            raise too_large(self._name, self.settings.picture_bytes)
        self._content += memoryview(data)[start:end]

    def _end(self) -> None:
        if self._content is not None:
            self.uploads.append(Upload(self._name, bytes(self._content)))
            self._content = None

    def _all(self) -> None:
        self.ended = True


def clean(name: bytes, otherwise: str) -> str:
    """The text of a name that a client sent: one line, not too long."""
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in name.decode("utf-8", "replace"))
    return text[:LONGEST_NAME].strip() or otherwise


def too_large(what: str, most: int) -> Refused:
    """The refusal of more bytes than are taken."""
    size = f"{most / 2**20:.4g} MB" if most >= 2**20 else f"{most:,} bytes"
    return Refused(413, f"{what} is larger than {size}, the most that is taken")
