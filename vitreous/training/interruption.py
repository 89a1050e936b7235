"""Ctrl-C and SIGTERM while a run trains: nothing is cut in two, and no step that was made is lost."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

from vitreous.leaving import SIGNALS, unhurried


class Interruption:
    """Signals, inside a `with`: raised at once, as `KeyboardInterrupt` or `SystemExit` with the usual exit code (143
    for SIGTERM), but for what is `held`, at the end of which they are.

    A second Ctrl-C is raised at once wherever it comes. A SIGTERM after the first signal changes nothing: who stops a
    group of processes often sends both. What is ignored stays ignored, and outside the main thread, where Python lets
    nobody handle signals, nothing is done.
    """

    def __init__(self):
        self.raised = False
        self._came = 0
        self._held = 0
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is not None and before is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, where: TracebackType | None):
        for number, before in self._before.items():
            with suppress(ValueError):  # no longer in the main thread
                signal.signal(number, before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What must not be cut in two."""
        self._held += 1
        try:
            with unhurried():
                yield
        finally:
            self._held -= 1
        if self._came and not self._held and not self.raised:
            self._raise()

    def check(self) -> None:
        """Raises again what came and was lost: Python drops what is raised in the callback of a weak reference."""
        if self._came and not self._held:
            self._raise()

    def _handle(self, number: int, frame: FrameType | None):
        if self._came and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._came = self._came or number
        if not self._held and not self.raised:
            self._raise()

    def _raise(self):
        self.raised = True
        raise KeyboardInterrupt if self._came == signal.SIGINT else SystemExit(128 + self._came)
