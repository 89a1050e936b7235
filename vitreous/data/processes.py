"""Child processes that open files, so that no file can take this process down.

What opens files is mostly C, and what C does with a damaged or hostile one cannot be caught: it may crash, hang, or
take all memory. So a child process opens it, and says what is in it; a child that dies is replaced, and the file that
it died of is named. A child ends itself when it takes too long; where even that fails, it is ended from here.
"""

import atexit
import faulthandler
import functools
import json
import math
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from vitreous.errors import InputError, StartError, counted

MAX_SECONDS = 60.0  # that a file may take: generous, as the machine may be busy
PATIENCE = 2  # times those, after which a child that does not end itself is ended
START = 300.0  # seconds that a child may take to start
DYING = 1.0  # seconds that one whose pipes are closed may take to be gone
IDLE = 60.0  # seconds in which nothing is asked, after which a child ends itself
BUFFER = 1 << 16  # bytes that are written, and read, at once
MOST_WORDS = 16 << 20  # bytes of the words of a message
HEAD = struct.Struct("=IQ")  # of a message: bytes of its words in JSON, and of its data, which follow
OUT_OF_REACH: Any = {"creationflags": 0x08000200} if os.name == "nt" else {"process_group": 0}  # of Ctrl-C
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
T = TypeVar("T")


class GoneError(Exception):
    """The other end of a line says nothing more, or nonsense."""

    code: int | None = 0  # with which a child ended; None where it had to be ended, as what it sent made no sense
    late = 0.0  # after how many seconds it ended, where that was the reason


class Line:
    """One end of two pipes, for messages: words, which are JSON, and data."""

    def __init__(self, source: BinaryIO, sink: BinaryIO):
        self.source, self.sink = source, sink

    def say(self, words: Any, *data: bytes | memoryview) -> None:
        """Writes a message, or the beginning of it to a buffer."""
        text = json.dumps(words).encode()
        try:
            self.sink.write(HEAD.pack(len(text), sum(map(len, data))) + text)
            for part in data:
                self.sink.write(part)
        except OSError:
            raise GoneError from None

    def flush(self) -> None:
        """Writes what the buffer holds."""
        try:
            self.sink.flush()
        except OSError:
            raise GoneError from None

    def hear(self) -> tuple[Any, int]:
        """The words of a message, and how many bytes of data follow; they must be taken before the next."""
        length, following = HEAD.unpack(self.take(HEAD.size))
        if length > MOST_WORDS:
            raise GoneError
        try:
            return json.loads(self.take(length)), following
        except (ValueError, RecursionError):
            raise GoneError from None

    def take(self, size: int) -> bytes:
        """So many bytes of data."""
        data = self.source.read(size)
        if len(data) < size:
            raise GoneError
        return data

    def fill(self, buffer: memoryview) -> None:
        """As many bytes of data as a buffer takes."""
        if self.source.readinto(buffer) < len(buffer):  # pyright: ignore[reportAttributeAccessIssue]
            raise GoneError


class Processes:
    """Child processes for threads: as many as ask at a time, and none before."""

    title, verb = "reader", "read"  # what a child is, and does, in messages

    def __init__(self, program: str, seconds: float = MAX_SECONDS, memory: int = 0):
        """`program` are lines of Python that define `main(seconds, memory)`, for a child to run: it calls `run_child`.

        `seconds` and `memory` (bytes; 0 is half of the machine's) are what a file may take.
        """
        self.program, self.seconds, self.memory = program, seconds, memory
        self._free: deque[Child] = deque()
        self._asked: set[Child] = set()
        self._owner = 0  # the process that the children belong to, not a fork of it
        self._owning = threading.Lock()

    @property
    def pids(self) -> list[int]:
        """Of the children that are free."""
        return [child.process.pid for child in self._free]

    def warm(self, count: int = 1) -> None:
        """Starts so many children without waiting for them: they are there when the first file comes."""
        self._own()
        while len(self._free) < count:
            self._free.append(Child(self))

    def close(self) -> None:
        """Ends the children that are free."""
        self._own()
        with suppress(IndexError):  # another thread took the last
            while self._free:
                self._free.pop().end()

    def ask(self, name: str, talk: Callable[["Child"], T]) -> T:
        """What `talk` hears from a child. Raises `InputError` with the name of the file where that ends the child."""
        deaths, anew = 0, False
        while True:
            try:
                return self.ask_once(talk, anew)
            except GoneError as gone:
                deaths += anew or gone.code != 0  # one that was free may have ended itself with 0 at this very moment
                anew = True  # others that are free may have died with the first
                if gone.late or deaths == 2:  # one death may be another's fault: too little memory for all, a kill
                    raise InputError(f"{name}: {self._why(gone)}") from None

    def ask_once(self, talk: Callable[["Child"], T], anew: bool = False) -> T:
        """What `talk` hears from a child, maybe a new one. Raises `GoneError` where that ends the child."""
        child = self._lease(anew)
        self._asked.add(child)
        try:
            child.wait()
            heard = talk(child)
        except GoneError as gone:
            gone.late = child.seconds if time.monotonic() - child.asked >= child.seconds else 0.0
            gone.code = child.ended()
            child.end()
            raise
        except BaseException:  # an interrupt: what this child says next answers nothing
            child.end()
            raise
        finally:
            self._asked.discard(child)
        self._free.append(child)
        return heard

    def _lease(self, anew: bool) -> "Child":
        self._own()
        with suppress(IndexError):
            while not anew:
                child = self._free.pop()
                if child.process.poll() is None:
                    return child
                child.end()
        return Child(self)

    def _own(self) -> None:
        with self._owning:
            if self._owner == os.getpid():
                return
            for child in self._free:
                child.process.returncode = 0  # the parent's: nothing to wait for here
            self._free, self._asked, self._owner = deque(), set(), os.getpid()
            atexit.register(self.close)
            threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def _watch(self) -> NoReturn:
        """Kills children that do not answer in time, or do not read what is sent."""
        while True:
            time.sleep(self.seconds)
            for child in list(self._asked):
                if time.monotonic() > child.until:
                    child.process.kill()

    def _why(self, gone: GoneError) -> str:
        if gone.late:
            return (
                f"it took longer than {counted(gone.late, 'second')} to {self.verb}. Make it smaller, or leave it out."
            )
        if gone.code is None:
            cause = "what it sent made no sense"
        elif -gone.code in signal.valid_signals():
            cause = signal.Signals(-gone.code).name
        else:
            cause = f"exit code {gone.code:#x}"
        memory = ", as when memory runs out" if cause == "SIGKILL" else ""
        return f"it took the {self.title} down, twice ({cause}{memory}). It is damaged or hostile: leave it out."


def python_command(code: str, *words: str) -> list[str]:
    """What starts a Python process that runs code with words as its arguments, and finds the modules that this one
    does: none that lie in the folder where it happens to be started.
    """
    path = [*filter(None, sys.path), str(Path(__file__).parents[2])]  # "" is that folder
    return [sys.executable, "-c", f"import sys\nsys.path[:] = {path!r}\n{code}", *words]


class Child(Line):
    """One child process: asked one thing at a time, by one thread."""

    def __init__(self, of: Processes):
        if not sys.executable or getattr(sys, "frozen", False):
            raise StartError("files are opened by Python processes: expected a Python that can be started")
        try:
            self.process = subprocess.Popen(
                python_command(f"{of.program}\nmain({of.seconds}, {of.memory})"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=BUFFER,
                env=os.environ | ENVIRONMENT,
                **OUT_OF_REACH,
            )
        except OSError as fault:  # too many processes, or open files
            raise StartError(f"a process to open files in could not be started: {fault.strerror}") from fault
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        super().__init__(self.process.stdout, self.process.stdin)  # pyright: ignore[reportArgumentType]
        self.ready, self.seconds = False, of.seconds
        self.asked, self.until = 0.0, math.inf  # when it was, and until when it must answer, on the monotonic clock

    def wait(self) -> None:
        """Until it has started. Raises `StartError` where it does not."""
        self.asked = time.monotonic()
        if not self.ready:
            self.until = self.asked + START
            try:
                self.take(1)
            except GoneError:
                said = "a process to open files in could not be started; what it printed says why"
                self.end()
                raise StartError(said) from None
            self.ready, self.asked = True, time.monotonic()

    def say(self, words: Any, *data: bytes | memoryview) -> None:
        """Sends a question, or the answer to one of the child's."""
        self.until = time.monotonic() + PATIENCE * self.seconds
        super().say(words, *data)
        self.flush()

    def hear(self) -> tuple[Any, int]:
        """What it says. Its data must be taken in time too."""
        heard = super().hear()
        self.until = time.monotonic() + PATIENCE * self.seconds
        return heard

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """It waits for what is done inside: that takes none of its time."""
        began, self.until = time.monotonic(), math.inf
        yield
        self.asked += time.monotonic() - began

    def ended(self) -> int | None:
        """Its exit code, where it ends by itself; None where it goes on, though its line is of no use any more."""
        try:
            return self.process.wait(DYING)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Ends it, if it did not end itself."""
        self.process.kill()
        for pipe in (self.source, self.sink):
            with suppress(OSError):  # what is still to be written finds nobody
                pipe.close()
        self.process.wait()


# In a child


def run_child(answer: Callable[[Line, Any], None], memory: int) -> NoReturn:
    """Calls `answer` with the words of each message on the standard input, until that ends."""
    limit(memory)
    line = Line(open(0, "rb", BUFFER), open(os.dup(1), "wb", BUFFER))  # noqa: SIM115
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # for what the libraries print
    os.dup2(nowhere, 2)
    line.sink.write(b"!")
    with suppress(GoneError):
        line.flush()
        while asked_in_time():
            answer(line, line.hear()[0])
            line.flush()
        os._exit(0)
    os._exit(1)


def limit(memory: int) -> None:
    """Bounds this process's memory (0: to half of the machine's) where it can; lets the system end it before others."""
    if os.name == "nt":
        return
    import resource

    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # macOS has none
        resource.setrlimit(resource.RLIMIT_AS, (_bound(memory), resource.getrlimit(resource.RLIMIT_AS)[1]))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def allow(room: int, memory: int) -> None:
    """Bounds what this process may take besides what it has now, where the system tells; `memory` is as in `limit`."""
    with suppress(OSError, ValueError):
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (min(taken + room, _bound(memory)), most))


def _bound(memory: int) -> int:
    return memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@contextmanager
def within(seconds: float) -> Iterator[Callable[[], object]]:
    """Ends this process when the block takes longer, whatever it does: no Python has to run for that.

    Call what it yields to restart the clock.
    """
    if os.name == "nt":
        with open(os.devnull, "w") as nowhere:
            renew = functools.partial(faulthandler.dump_traceback_later, seconds, exit=True, file=nowhere)
            renew()
            yield renew
            faulthandler.cancel_dump_traceback_later()
    else:
        renew = functools.partial(signal.setitimer, signal.ITIMER_REAL, seconds)
        renew()
        yield renew
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def paused() -> Iterator[None]:
    """What is done inside, such as waiting for the parent, takes none of the seconds of `within`."""
    if os.name == "nt":
        faulthandler.cancel_dump_traceback_later()  # for good: from here on the parent's limit holds alone
        yield
    else:
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        yield
        signal.setitimer(signal.ITIMER_REAL, left)


def asked_in_time() -> bool:
    """Waits until something is asked, or it ends, or nobody asked for long; False then."""
    return os.name == "nt" or bool(select.select([0], [], [], IDLE)[0])
