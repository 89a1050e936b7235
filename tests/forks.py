"""Processes that need not begin anew: each is forked off one that has imported PyTorch and what the commands take.

To import all that takes seconds of a core, of which few tests tell anything. Those few start `sys.executable`.
"""

import io
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

CONTEXT: Any = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
CONTEXT.set_forkserver_preload(
    [
        "vitreous.verbs",
        "vitreous.training.train",
        "vitreous.training.figures",
        "vitreous.insight.explain",
        "vitreous.serve.server",
        "torch._dynamo",  # which the first step of a training imports
    ]
)


class Forked:
    """A function in a process of its own, with this folder and environment: as a `Popen` with pipes has it."""

    def __init__(self, function: Callable[..., None], *given: Any):
        ends = [CONTEXT.Pipe(duplex=False) for _ in range(2)]
        words = (function, given, os.getcwd(), dict(os.environ), [end for _, end in ends])
        self.process = CONTEXT.Process(target=_run, args=words)
        self.process.start()
        for _, end in ends:
            end.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno()), encoding="utf-8") for end, _ in ends)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal's; None while it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Signals it."""
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.process.kill()

    def wait(self) -> None:
        """Waits until it ends, whatever it says."""
        self.communicate()

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """What it says on stdout and stderr until it ends, or is killed after so many seconds."""
        said = ["", ""]

        def read(number: int, file: io.TextIOWrapper) -> None:
            if not file.closed:
                with file:
                    said[number] = file.read()

        readers = [threading.Thread(target=read, args=one) for one in enumerate((self.stdout, self.stderr))]
        for reader in readers:
            reader.start()
        self.process.join(timeout)
        self.process.kill()
        for reader in readers:
            reader.join()
        self.process.join()
        return said[0], said[1]

    @property
    def returncode(self) -> int:
        """Its exit code, once it has ended."""
        code = self.poll()
        assert code is not None, "it still runs"
        return code


def _run(function: Callable[..., None], given: tuple[Any, ...], folder: str, environment: dict[str, str], ends: list):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, end in enumerate(ends, 1):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    function(*given)


def finished(function: Callable[..., None], *given: Any) -> subprocess.CompletedProcess[str]:
    """What became of a function in a process of its own."""
    process = Forked(function, *given)
    out, err = process.communicate()
    return subprocess.CompletedProcess(function.__name__, process.returncode, out, err)


def script(text: str, *words: str) -> None:
    """What `python -c` runs."""
    sys.argv = ["-c", *words]
    exec(text, {"__name__": "__main__"})
