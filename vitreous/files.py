"""Files on disk, written whole or not at all."""

import errno
import os
import re
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


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
        number = fault.errno if isinstance(fault, OSError) else _number(fault)
        error = OSError(f"{target} cannot be written: {os.strerror(number) if number else fault}")
        error.errno = number
        raise error from fault
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _number(fault: SafetensorError) -> int | None:
    """The system's number of a fault, which safetensors has in its text."""
    found = re.search(r"\(os error (\d+)\)", str(fault))
    return int(found[1]) if found else None


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
