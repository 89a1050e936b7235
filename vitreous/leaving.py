"""Leaving in time: after Ctrl-C or SIGTERM the process ends soon, whatever it does just then.

Python hears a signal between two instructions of the main thread, and one that comes twice meanwhile once: not while
that thread computes in a library, nor while the interpreter takes itself apart, which can take seconds once PyTorch is
imported. So another thread listens too, and a process that was told to end is not taken apart.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

# SIGBREAK is what Windows has for a console that asks a process to end; nothing there ever sends SIGTERM.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
MOST = 8.0  # seconds from the first signal on, but for what is `unhurried`
AFTER = 1.0  # seconds after that, to tidy up
AGAIN = 0.5  # the same after a second Ctrl-C
_unhurried: list[None] = []  # one for each `with` that is open
_told = threading.Event()


def watch() -> None:
    """From here on, a signal that Python handles ends the process, with the usual exit code (130 for SIGINT)."""
    hears, tells = os.pipe()
    if os.name != "nt":
        os.set_blocking(tells, False)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(hears,), name="leaving", daemon=True).start()


def told() -> bool:
    """Whether a signal came, since `watch`, that asks this process to end."""
    return _told.is_set()


@contextmanager
def unhurried() -> Iterator[None]:
    """What may take its time once the process was told to end, such as to save; only a second Ctrl-C cuts it short."""
    _unhurried.append(None)
    try:
        yield
    finally:
        _unhurried.pop()


def leave(code: int) -> NoReturn:
    """Ends the process at once, with what it has said."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # who reads what it says may not read on
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # who listened may be gone
            stream.flush()
    os._exit(code)


def _listen(hears: int) -> None:
    while number := os.read(hears, 1)[0]:
        if told() and number == signal.SIGINT:
            time.sleep(AGAIN)
            os._exit(128 + number)
        if not told() and number in SIGNALS:
            _told.set()
            threading.Thread(target=_leave_in_time, args=(128 + number,), name="leaving", daemon=True).start()


def _leave_in_time(code: int) -> None:
    until = time.monotonic() + MOST
    while (now := time.monotonic()) < until:
        time.sleep(0.05)
        if _unhurried:
            until = max(until, now + AFTER)
    os._exit(code)
