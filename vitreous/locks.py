"""Files that one process at a time may lock."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCKED_BYTE = 1 << 30  # Windows locks bytes, and lets nobody write to them: one that no file here has


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Locks a file, which is made where it is missing; what is yielded is False where another has locked it.

    The lock is the system's, and ends with its process, however that ends. A file that cannot be written, or lies where
    there are no locks, is nobody's.
    """
    try:
        file = open(path, "ab")  # noqa: SIM115
    except OSError:
        file = None
    if file is None:
        yield True
        return
    with file:
        yield _lock(file.fileno())


def _lock(handle: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # of POSIX, and of Windows
        return False
    except OSError:
        return True
    return True
