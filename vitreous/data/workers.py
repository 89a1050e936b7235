"""Decoders: the processes in which picture files are opened, so that none can take this one down.

What opens pictures is mostly C, and what C does with a damaged or hostile file cannot be caught: it may crash, hang, or
take all memory. So a file's bytes go to a child process, and its pixels come back; a child that dies is replaced, and
the picture that it died of is named. A child knows NumPy and the picture libraries, not PyTorch. What it says is taken
for data alone: words of JSON, and pixels of a shape that was to be expected.
"""

import atexit
import faulthandler
import functools
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from vitreous.data.decode import DEPTHS, THUMB, Facts, decode, inspect, is_read_by_python, thumbnail
from vitreous.errors import InputError
from vitreous.fields import read_fields

if TYPE_CHECKING:
    from vitreous.data.preprocess import InputSpec

MAX_SECONDS = 60.0  # that a picture may take: generous, as the machine may be busy
IDLE = 60.0  # seconds without a picture after which a child ends itself
SMALL = 1 << 20  # bytes of a file that is not large
MOST_WORDS, MOST_FAULT = 1 << 20, 10_000  # bytes of JSON in an answer, and characters of a fault
REQUEST = struct.Struct("=IQ")  # bytes of words, and of the picture, which follow
ANSWER = struct.Struct("=iI")  # the kind of the pixels that follow, or -1 and bytes of words
MAIN = "from vitreous.data.workers import main"  # what a child runs
OUT_OF_REACH: Any = {"creationflags": 0x08000200} if os.name == "nt" else {"process_group": 0}  # of Ctrl-C
Kind = tuple[tuple[int, ...], str]  # of pixels: shape and depth


class Decoders:
    """Child processes that open pictures for threads: as many as ask at a time, and none before."""

    def __init__(self, seconds: float = MAX_SECONDS, memory: int = 0, program: str = MAIN):
        """`seconds` and `memory` (bytes; 0 is half of the machine's) are what a picture may take."""
        self.seconds, self.memory, self.program = seconds, memory, program
        self._free: deque[_Child] = deque()
        self._owner = 0  # the process that the children belong to, not a fork of it

    def read(self, spec: "InputSpec", picture: bytes, name: str) -> tuple[int, np.ndarray]:
        """What `spec.read_here` makes of a file's bytes. Raises `InputError`, also where the picture ends a child."""
        kinds = [((*size, spec.channels), spec.depth) for size in spec.sizes]
        number, pixels = self._ask("read", picture, name, spec.text, kinds)
        return number, pixels

    def inspect(self, picture: bytes, name: str, max_pixels: int) -> Facts:
        """What `decode.inspect` tells of a file's bytes. Raises `InputError`.

        A header that Python reads, of a file that is not large, can do no harm, and stays in this process.
        """
        if len(picture) <= SMALL and is_read_by_python(picture):
            return inspect(picture, name, max_pixels)
        return self._ask("inspect", picture, name, max_pixels)[0]

    def thumbnail(self, picture: bytes, name: str, max_pixels: int) -> np.ndarray:
        """The `decode.thumbnail` (16, 16) of a file's bytes. Raises `InputError`."""
        return self._ask("thumbnail", picture, name, max_pixels, [((THUMB, THUMB), "float32")])[1]

    @property
    def pids(self) -> list[int]:
        """Of the children that are free."""
        return [child.process.pid for child in self._free]

    def warm(self, count: int = 1) -> None:
        """Starts so many children without waiting for them: they are there when the first picture comes."""
        self._own()
        while len(self._free) < count:
            self._free.append(_Child(self))

    def close(self) -> None:
        """Ends the children that are free."""
        self._own()
        with suppress(IndexError):  # another thread took the last
            while self._free:
                self._free.pop().end()

    def _ask(self, job: str, picture: bytes, name: str, how: str | int, kinds: Sequence[Kind] = ()) -> tuple[Any, Any]:
        request, deaths = json.dumps([job, name, how]).encode(), 0
        while True:
            child = _Child(self) if deaths else self._lease()  # others that are free may have died with the first
            try:
                answer = child.ask(request, picture, kinds)
            except InputError:
                self._free.append(child)
                raise
            except _GoneError:
                code, late = child.end(), time.monotonic() - child.asked >= self.seconds
                deaths += code != 0  # with 0 it ended itself at this very moment, as nobody had asked for long
                if late or deaths == 2:  # one death may be another's fault: too little memory for all, a kill
                    raise InputError(f"{name}: {self._why(code, late)}") from None
            except BaseException:  # an interrupt: what this child says next answers nothing
                child.end()
                raise
            else:
                self._free.append(child)
                return answer

    def _lease(self) -> "_Child":
        self._own()
        while True:
            try:
                child = self._free.pop()
            except IndexError:
                return _Child(self)
            if child.process.poll() is None:
                return child
            child.end()

    def _own(self) -> None:
        if self._owner != os.getpid():
            for child in self._free:
                child.process.returncode = 0  # the parent's: nothing to wait for here
            self._free, self._owner = deque(), os.getpid()
            atexit.register(self.close)

    def _why(self, code: int, late: bool) -> str:
        if late:
            return f"it took longer than {self.seconds:g} seconds to decode. Make it smaller, or leave it out."
        told = signal.Signals(-code).name if -code in signal.valid_signals() else f"exit code {code:#x}"
        memory = ", as when memory runs out" if told == "SIGKILL" else ""
        return f"it took the decoder down, twice ({told}{memory}). It is damaged or hostile: leave it out."


class _GoneError(Exception):
    """A child that says nothing more, or nonsense."""


class _Child:
    """One child process: asked one thing at a time, by one thread."""

    def __init__(self, of: Decoders):
        if not sys.executable or getattr(sys, "frozen", False):
            raise ChildProcessError("pictures are decoded by Python processes: expected a Python that can be started")
        path = [*sys.path, str(Path(__file__).parents[2])]
        code = f"import sys\nsys.path[:] = {path!r}\n{of.program}\nmain({of.seconds}, {of.memory})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            **OUT_OF_REACH,
        )
        self.ready, self.asked = False, 0.0  # and when, on the monotonic clock

    def ask(self, request: bytes, picture: bytes, kinds: Sequence[Kind]) -> tuple[Any, Any]:
        """What it answers: facts, or which of the kinds its pixels are of, and these. Raises its `InputError`."""
        if not self.ready:
            self._wait()
        self.asked = time.monotonic()
        try:
            self._say(REQUEST.pack(len(request), len(picture)) + request)
            self._say(picture)
            kind, length = ANSWER.unpack(self._hear(bytearray(ANSWER.size)))
            if kind in range(len(kinds)):
                pixels = np.empty(*kinds[kind])
                self._hear(pixels.data.cast("B"))
                return kind, pixels
            match json.loads(self._hear(bytearray(length))) if length <= MOST_WORDS else None:
                case str(fault):
                    raise InputError(fault)
                case [int(height), int(width), int(channels), str(depth)] if depth in DEPTHS:
                    return Facts(height, width, channels, depth), None
        except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError):
            pass
        raise _GoneError

    def end(self) -> int:
        """Ends it, if it did not end itself; its exit code."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return self.process.wait()

    def _wait(self) -> None:
        with suppress(EOFError):
            self._hear(bytearray(1))
            self.ready = True
            return
        raise ChildProcessError("a process to decode pictures in could not be started; what it printed says why")

    def _say(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self.process.stdin.write(rest) :]  # pyright: ignore

    def _hear(self, into: Any) -> Any:
        rest = memoryview(into)
        while rest:
            count = self.process.stdout.readinto(rest)  # pyright: ignore
            if not count:
                raise EOFError
            rest = rest[count:]
        return into


DECODERS = Decoders()


# In a child


def main(seconds: float, memory: int) -> NoReturn:
    """Answers what is asked on the standard input, until that ends."""
    from vitreous.data.preprocess import InputSpec  # which imports this

    # Not `from_json`, which asks for what is not known while pixels are read for the first time: their mean.
    specs = functools.cache(lambda text: read_fields(InputSpec, json.loads(text), "an input spec"))

    def answer(job: str, name: str, how: Any, picture: bytes) -> tuple[Any, np.ndarray | None]:
        try:
            if job == "inspect":
                return astuple(inspect(picture, name, how)), None
            if job == "thumbnail":
                return 0, thumbnail(decode(picture, name, max_pixels=how, at_least=(64, 64)))
            return specs(how).read_here(picture, name)
        except InputError as fault:
            return str(fault)[:MOST_FAULT], None
        except Exception as fault:  # too little memory, what a library raises at odd contents
            return f"{name}: it cannot be decoded [{type(fault).__name__}: {fault}]"[:MOST_FAULT], None

    limit(memory)
    questions, answers = open(0, "rb"), open(os.dup(1), "wb")  # noqa: SIM115
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # for what the libraries print
    os.dup2(nowhere, 2)
    answers.write(b"!")
    answers.flush()
    while asked_in_time() and len(head := questions.read(REQUEST.size)) == REQUEST.size:
        sizes = REQUEST.unpack(head)
        request, picture = (questions.read(size) for size in sizes)
        with within(seconds):
            found, pixels = answer(*json.loads(request), picture=picture)
        if pixels is None:
            text = json.dumps(found).encode()
            answers.write(ANSWER.pack(-1, len(text)) + text)
        else:
            answers.write(ANSWER.pack(found, 0))
            answers.write(np.ascontiguousarray(pixels).data.cast("B"))
        answers.flush()
    os._exit(0)


def limit(memory: int) -> None:
    """Bounds this process's memory (0: to half of the machine's) where it can; lets the system end it before others."""
    if os.name == "nt":
        return
    import resource

    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    with suppress(OSError, ValueError):  # macOS has none
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Ends this process when the block takes longer, whatever it does: no Python has to run for that."""
    if os.name == "nt":
        with open(os.devnull, "w") as nowhere:
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            yield
            faulthandler.cancel_dump_traceback_later()
    else:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)


def asked_in_time() -> bool:
    """Waits until something is asked, or it ends, or nobody asked for long; False then."""
    return os.name == "nt" or bool(select.select([0], [], [], IDLE)[0])
