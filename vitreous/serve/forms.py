"""The pictures of a multipart form, within limits that are checked as each piece comes."""

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vitreous.serve.replies import Refused
from vitreous.serve.settings import Settings

LONGEST_NAME = 200  # characters
HEAD_BYTES = 8 << 10  # of the headers of one part of a form


@dataclass(frozen=True)
class Upload:
    """A picture as it came. The name is text to be shown, and nothing else."""

    name: str
    content: bytes


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
