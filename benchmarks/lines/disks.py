"""A full disk, an I/O error, a disk that can no longer be written: a clear exit, nothing lost, nothing left behind.

At --count points of a run (a point: the so-manieth file that it writes) the disk fails from there on. The run must end
with exit code 2 and a message without a traceback; its newest checkpoint must load, no temporary may be there; and
resumed without the fault it must end with the bits of a run that nothing disturbed. Where it fails before the first
checkpoint no run directory may be left.

full: no file may grow beyond 4 KB (RLIMIT_FSIZE). broken: fsync fails with EIO. read-only: files cannot be opened to be
written, nor renamed (EROFS).
"""

import argparse
import builtins
import errno
import functools
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from vitreous.rundir import RunDir

from ._runs import LENGTHS, MODELS, SAVES, Kind, Runs, finish, newest_step, start

COUNT = 30
FAULTS = ("full", "broken", "read-only")
FILES = 19  # that the run writes, up to its pictures of mistakes, without which it would end well
FIRST_FILES = 6  # that it writes before its first checkpoint


def fail(fault: str, point: int) -> None:
    """Lets the disk fail as a file is written for the so-manieth time, and from there on."""
    fsync, replace, plain_open, written = os.fsync, os.replace, open, 0

    def failing() -> bool:
        return written >= point

    def counted(source: Any, target: Any):
        nonlocal written
        if fault == "read-only" and failing():
            raise OSError(errno.EROFS, "Read-only file system", str(target))
        replace(source, target)
        written += 1
        if fault == "full" and failing():
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    def synced(handle: int):
        if fault == "broken" and failing():
            raise OSError(errno.EIO, "Input/output error")
        fsync(handle)

    def opened(file: Any, mode: str = "r", *words: Any, **named: Any) -> Any:
        if fault == "read-only" and failing() and set(mode) & set("wax+"):
            raise OSError(errno.EROFS, "Read-only file system", str(file))
        return plain_open(file, mode, *words, **named)

    sys.dont_write_bytecode = True  # half a module would be taken for whole
    if fault == "full" and point == 0:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    os.replace, os.fsync, builtins.open = counted, synced, opened


def run(options: argparse.Namespace) -> bool:
    """Prints a row a point."""
    runs, held = Runs(options.folder), True
    kind = Kind("ViT", "epochs", 0)
    runs.begin(kind)
    for number in range(options.count):
        fault, point = FAULTS[number % len(FAULTS)], number % FILES
        fresh = number % 5 == 4  # begins anew, where the others go on from the first checkpoint
        path = options.folder / f"fresh-{number}" if fresh else runs.begin(kind)
        words = ("train", "--resume", path)
        if fresh:
            words = ("train", runs.data, "--out", path, *MODELS["ViT"], *LENGTHS["epochs"], *SAVES)
            point = number // 5 % FIRST_FILES
        process = start(runs.log, *words, before=functools.partial(fail, fault, point))
        process.join(600)
        said = runs.log.read_text("utf-8", errors="replace")
        faults = _wrong(path, process.exitcode, said)
        if path.exists() and not faults:
            step = newest_step(path)
            finish(start(runs.log, "train", "--resume", path), runs.log)
            if not runs.same(kind, path):
                faults.append("resumed, it differs")
        else:
            step = -1
        last = next((line for line in reversed(said.splitlines()) if "vitreous train:" in line), "")
        held = held and not faults
        what = "; ".join(faults) or f"exit 2, step {step if step >= 0 else 'none, no folder'}; {last[-110:]}"
        print(f"{'held' if not faults else 'NOT HELD':<10}{fault:<10} at file {point:<3} {what}", flush=True)
        shutil.rmtree(path, ignore_errors=True)
    return held


def _wrong(path: Path, code: int | None, said: str) -> list[str]:
    faults = [] if code == 2 else [f"exit code {code}"]
    if "Traceback" in said or "vitreous train:" not in said:
        faults.append(f"no clear message: {said[-300:]}")
    if list(path.rglob("*.tmp")):
        faults.append("a temporary is left")
    if path.exists() and RunDir(path).newest(lambda fault: None) is None:
        faults.append("no checkpoint loads")
    return faults
