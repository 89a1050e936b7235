"""What a tar holds and where, told by its headers alone: nothing is unpacked, and no content is read.

Plain tar (V7), ustar, and the long names of GNU and PAX (POSIX.1-2001). Every header's checksum must be right and every
member lie whole within the file, or the tar is refused. Names are only names: nothing here turns one into a path.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vitreous.errors import InputError

BLOCK = 512
LONGEST = 1 << 20  # bytes of a long name, or of one PAX header
_PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_FILES, _NO_DATA = b"0\x007", b"123456"  # of types: files, and those whose header nothing follows
_TYPES = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"5": "folder", b"6": "pipe", b"S": "sparse"}


@dataclass(frozen=True)
class Member:
    """A member: its name, and where its content lies in the tar, in bytes. `kind` is "file" for what can be read."""

    name: str
    offset: int
    size: int
    kind: str


class Window:
    """Reads small pieces of a file that lie near each other, with few reads: each brings `ahead` bytes at least."""

    def __init__(self, read: Callable[[int, int], bytes], size: int, ahead: int):
        self.read, self.size, self.ahead = read, size, ahead
        self.start, self.content = 0, b""

    def __call__(self, start: int, count: int) -> bytes:
        """`count` bytes from `start`; fewer at the end of the file."""
        count = min(count, self.size - start)
        if count <= 0:
            return b""
        if start < self.start or start + count > self.start + len(self.content):
            self.start, self.content = start, self.read(start, min(max(count, self.ahead), self.size - start))
        return self.content[start - self.start : start - self.start + count]


def members(read: Callable[[int, int], bytes], size: int) -> Iterator[Member]:
    """The members of a tar of `size` bytes, in their order. `read(start, count)` gives its bytes.

    Raises:
        InputError: it is no tar, a header is damaged, or it is cut off. The message does not name the file.
    """
    offset, extra = 0, {}  # extra: what a long name or a PAX header says of the next member
    if size == 0:
        raise InputError("the file is empty")
    while True:
        header = read(offset, BLOCK)
        if len(header) < BLOCK:
            raise InputError(f"it is cut off: it ends at byte {size:,} without the mark of its end")
        if not any(header):
            return
        _check(header, offset)
        kind, length, offset = header[156:157], _number(header[124:136], offset), offset + BLOCK
        if kind in b"LKxg":
            _within(offset, length, size, "a header")
            if length > LONGEST:
                raise InputError(f"the header at byte {offset - BLOCK:,} has {length:,} bytes, more than any real one")
            body = read(offset, length)
            extra |= _long_name(kind, body) if kind in b"LK" else _pax(body, offset) if kind == b"x" else {}
            offset += _padded(length)
            continue
        name = extra.get("path") or _name(header)
        length = _decimal(extra["size"], offset) if "size" in extra else length
        sparse = kind == b"S" or any(key.startswith("GNU.sparse") for key in extra)
        extra = {}
        if kind == b"S":
            more = header[482]
            while more:
                block = read(offset, BLOCK)
                if len(block) < BLOCK:
                    raise InputError(f"it is cut off within the headers of {name}")
                more, offset = block[504], offset + BLOCK
        is_folder = kind == b"5" or (kind in _FILES and name.endswith("/"))
        length = 0 if kind in _NO_DATA else length
        _within(offset, length, size, name)
        what = "folder" if is_folder else "sparse" if sparse else "file" if kind in _FILES else _TYPES.get(kind, "odd")
        yield Member(name.rstrip("/") if is_folder else name, offset, length, what)
        offset += _padded(length)


def _check(header: bytes, offset: int) -> None:
    stored = _octal(header[148:156])
    rest = header[:148] + b" " * 8 + header[156:]
    unsigned = sum(rest)
    if stored == unsigned or stored == unsigned - 256 * sum(byte > 127 for byte in rest):  # signed, of old writers
        return
    packer = next((packer for magic, packer in _PACKERS.items() if header.startswith(magic)), None)
    if offset == 0:
        raise InputError(f"it is packed with {packer}" if packer else "it does not begin like one")
    raise InputError(f"the header at byte {offset:,} is damaged")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _long_name(kind: bytes, body: bytes) -> dict[str, str]:
    return {"path": _text(body)} if kind == b"L" else {}  # K: where a link points to, which is not followed


def _pax(body: bytes, offset: int) -> dict[str, str]:
    """Records of "length key=value\\n"."""
    values, start = {}, 0
    while start < len(body) and body[start]:
        space = body.find(b" ", start, start + 20)
        length = int(body[start:space]) if space > start and body[start:space].isdigit() else 0
        record = body[space + 1 : start + length] if space < start + length <= len(body) else b""
        key, equals, value = record[:-1].partition(b"=")
        if length == 0 or not record.endswith(b"\n") or not equals:
            raise InputError(f"the PAX header at byte {offset:,} is damaged")
        values[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        start += length
    return values


def _number(field: bytes, offset: int) -> int:
    """A size: octal text, or, with the first bit set, binary."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    value = _octal(field)
    if value is None:
        raise InputError(f"the header at byte {offset:,} has no size")
    return value


def _octal(field: bytes) -> int | None:
    digits = field.split(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    return int(digits, 8) if all(0x30 <= byte <= 0x37 for byte in digits) else None


def _decimal(text: str, offset: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InputError(f"the header at byte {offset:,} has no size")
    return int(text)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _within(offset: int, length: int, size: int, name: str) -> None:
    if offset + length > size:
        raise InputError(f"it is cut off: {name} reaches to byte {offset + length:,} of {size:,}")


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK
