"""The pictures of a request, read within limits that are checked as each piece comes."""

import asyncio
from collections.abc import Callable

from python_multipart.multipart import parse_options_header
from starlette.requests import Request
from starlette.types import Receive

from vitreous.serve.forms import Form, Upload, clean, too_large
from vitreous.serve.replies import Refused
from vitreous.serve.room import Reader
from vitreous.serve.settings import Settings

# What says nothing of a body; the last is what `curl --data-binary` says of any.
RAW = (b"", b"application/octet-stream", b"application/x-www-form-urlencoded")
TAKEN = "multipart/form-data with files, image/* or application/octet-stream"


async def read_uploads(request: Request, settings: Settings, reader: Reader, name: str = "") -> list[Upload]:
    """The pictures of a request: the files of a form, or its body, which has no name but the one that is told.

    Raises `Refused`: 400 for a form that is cut or holds none, and for an empty body, 408 for one that comes too
    slowly, 413 as soon as it is too large, 415 for other kinds, 429 where there is no room.
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
        if not content:
            raise Refused(400, "the request is empty: expected a picture as its body, or a form with files")
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
