"""Small runs in processes of their own, for the lines that disturb them.

A process is forked from a server that has imported torch already, where the system can fork: what is killed is a whole
`vitreous train`, but for the seconds that it takes to start.
"""

import dataclasses
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from vitreous.rundir import RunDir, newest_step
from vitreous.training.verify import parts_of

LIMIT = 1800.0  # seconds that any one run may take
FIRST = "step-000000000.safetensors"
MODELS = {
    "ViT": ("--model", "vit_xs_8", "--size", "24x32", "--optimizer", "adamw"),
    "T2T": ("--model", "t2t_vit_xs_16", "--size", "32x48", "--optimizer", "muon"),
}
LENGTHS = {"epochs": ("--epochs", "4"), "minutes": ("--minutes", "0.3")}
SAVES = ("--batch", "8", "--save-every", "2", "--threads", "1")  # about 20 steps with --epochs

_context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
if os.name == "posix":
    _context.set_forkserver_preload(["vitreous.training.train", "vitreous.verbs"])


@dataclasses.dataclass(frozen=True)
class Kind:
    """What kind of run it is."""

    model: str
    length: str
    workers: int

    def __str__(self):
        return f"{self.model}, --{self.length}, {self.workers} workers"


def kinds() -> Iterator[Kind]:
    """ViT and T2T, --epochs and --minutes, 0, 1 and 2 workers: each value early, all combinations in the end."""
    all_kinds = [Kind(*parts) for parts in product(MODELS, LENGTHS, range(3))]
    while True:
        for start in range(len(all_kinds)):
            yield all_kinds[start * 5 % len(all_kinds)]


def make_pictures(folder: Path) -> Path:
    """An .npz of 48 small pictures in three classes."""
    rng, labels = np.random.default_rng(4), np.arange(48) % 3
    images = rng.integers(0, 60, (48, 24, 32, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        y, x = rng.integers(0, 14), rng.integers(0, 20)
        image[y : y + 10, x : x + 12, label] = 200
    np.savez(folder / "pictures.npz", images=images, labels=labels)
    return folder / "pictures.npz"


def start(log: Path, *words: object, before: Callable[[], None] | None = None) -> BaseProcess:
    """Starts `vitreous …`, whose output goes to a file; `before` is called in the process first."""
    process = _context.Process(target=_main, args=(list(map(str, words)), str(log), before))
    process.start()
    return process


def _main(words: list[str], log: str, before: Callable[[], None] | None):
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from vitreous.cli import entry

    sys.argv = ["vitreous", *words]
    if before is not None:
        before()
    entry()


def finish(process: BaseProcess, log: Path) -> None:
    """Waits for a run; stops with what it said where it failed."""
    process.join(LIMIT)
    if process.exitcode != 0:
        process.kill()
        sys.exit(f"a run that nothing disturbed ended with {process.exitcode}:\n{log.read_text('utf-8')}")


def wait_until(process: BaseProcess, due: Callable[[], bool]) -> bool:
    """Waits for something that a run does; whether it came before the run ended."""
    limit = time.monotonic() + LIMIT
    while not due():
        if not process.is_alive() or time.monotonic() > limit:
            return due()
        time.sleep(0.0005)
    return True


def kill(process: BaseProcess) -> None:
    """SIGKILL, or what Windows has for it."""
    process.kill()
    process.join()


class Runs:
    """Runs of each kind, from one beginning a kind, and what they end with where nothing disturbs them."""

    def __init__(self, folder: Path):
        self.folder, self.data = folder, make_pictures(folder)
        self.log = folder / "log.txt"
        self._beginnings: dict[Kind, Path] = {}
        self._ends: dict[Kind, tuple[dict[str, str], float]] = {}
        self._number = 0

    def begin(self, kind: Kind) -> Path:
        """A new run of a kind, with its plan and its first checkpoint, which nobody trains yet."""
        self._number += 1
        run = self.folder / f"run-{self._number}"
        if kind.length == "minutes" or kind not in self._beginnings:  # a plan of minutes begins with its clock
            words = (*MODELS[kind.model], *LENGTHS[kind.length], *SAVES, "--workers", kind.workers)
            words = ("train", self.data, "--out", run, *words)
            process = start(self.log, *words)
            if not wait_until(process, (run / "last" / FIRST).exists):
                finish(process, self.log)
            kill(process)
            for path in [*(run / "last").iterdir(), run / "metrics.csv"]:
                if path.name != FIRST:
                    path.unlink(missing_ok=True)
            self._beginnings[kind] = self.folder / f"beginning-{self._number}"
            shutil.copytree(run, self._beginnings[kind])
        else:
            shutil.copytree(self._beginnings[kind], run)
        return run

    def undisturbed(self, kind: Kind, plan: dict | None = None) -> tuple[dict[str, str], float]:
        """SHA-256 of all that a run of the kind ends with, and the seconds that it takes. With a plan, of that plan."""
        if plan is None and kind in self._ends:
            return self._ends[kind]
        run = self.folder / "undisturbed"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self._beginnings[kind], run)
        if plan is not None:
            RunDir(run).write_json("plan.json", {**plan, "budget": 0.0})  # no clock has a say any more
        began = time.monotonic()
        finish(start(self.log, "train", "--resume", run), self.log)
        end = parts_of(run), time.monotonic() - began
        if plan is None:
            self._ends[kind] = end
        return end

    def same(self, kind: Kind, run: Path) -> bool:
        """Whether a finished run has the bits of one that nothing disturbed."""
        plan = RunDir(run).read_json("plan.json") if kind.length == "minutes" else None
        return parts_of(run) == self.undisturbed(kind, plan)[0]

    def going(self, kind: Kind) -> tuple[Path, BaseProcess]:
        """A new run of a kind, and the process that trains it."""
        if kind not in self._ends:  # the seconds that it takes
            shutil.rmtree(self.begin(kind))
            self.undisturbed(kind)
        run = self.begin(kind)
        return run, start(self.log, "train", "--resume", run)

    def left(self, kind: Kind, run: Path) -> float:
        """About how many seconds a run that has just been started takes to its end."""
        plan = RunDir(run).read_json("plan.json")
        return self.undisturbed(kind)[1] * (1 - newest_step(run) / plan["points"][-1][-1])
