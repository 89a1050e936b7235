"""Files on disk: written whole or not at all; and CSV cells that no spreadsheet or terminal obeys."""

import csv
import errno
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vitreous.errors import HIDDEN

# What a spreadsheet takes for the start of a formula, at once or after the marks that keep it from that.
FORMULA = re.compile(r"'*[=+\-@＝＋－＠]")
# What a terminal may obey, what ends a line, bytes that are no UTF-8, and the mark that stands before their codes.
ODD = re.compile(rf"[\\\t\n\ud800-\udfff]|{HIDDEN.pattern}")
CODE = re.compile(r"\\([\\tnr]|x[0-9a-f]{2}|u[0-9a-f]{4})")
LONGEST = 1 << 30  # characters of a cell, where csv by itself reads 131,072: one may name a whole batch


def guarded(cell: str) -> str:
    """Text for a cell of a CSV, in one line of UTF-8. `unguarded` undoes it.

    Names of files and classes are others' words: =HYPERLINK(…) in one must not run where the table is opened, nor an
    escape sequence where it is shown. So an apostrophe comes before what would begin a formula, control characters and
    bytes that are no UTF-8 become their codes in Python (\\n, \\x1b, \\udce9), and a backslash becomes two.
    """
    cell = ODD.sub(lambda found: found[0].encode("unicode_escape").decode(), cell)
    return f"'{cell}" if FORMULA.match(cell) else cell


def unguarded(cell: str) -> str:
    """The text that `guarded` made this of."""
    cell = cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
    return CODE.sub(lambda found: found[0].encode().decode("unicode_escape"), cell)


def csv_rows(lines: Iterable[str], strict: bool = True) -> Iterator[list[str]]:
    """The rows of a CSV, of cells of any length. Raises `csv.Error`; not `strict`, it takes what it can get."""
    csv.field_size_limit(LONGEST)
    return csv.reader(lines, strict=strict)


def write_atomically(target: Path, content: bytes) -> None:
    """Writes a file whole or not at all: to a temporary beside it, to the disk, then renamed."""
    write_whole(target, lambda temporary: temporary.write_bytes(content))


def write_whole(target: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a temporary file, brings it to the disk, renames it to `target`; on a fault nothing stays."""
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            _fsync(file.fileno())
        os.replace(temporary, target)
        _fsync_folder(target.parent)
    except BrokenPipeError:  # of the standard output, where `write` also prints
        raise
    except (SafetensorError, OSError) as fault:  # a full disk; few of these name the file
        raise OSError(f"{target} cannot be written: {getattr(fault, 'strerror', None) or fault}") from fault
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _fsync(handle: int):
    if sys.platform == "darwin":  # where fsync leaves what it writes in the drive's own memory
        import fcntl

        with suppress(OSError):  # a drive that cannot be told
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            return
    os.fsync(handle)


def _fsync_folder(folder: Path):
    if os.name == "nt":  # folders cannot be synced there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _fsync(handle)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP):  # nor on some drives over a network
            raise
    finally:
        os.close(handle)
