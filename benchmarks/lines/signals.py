"""SIGTERM and Ctrl-C: saved, left within 10 s with 143 or 130, and resumed to the same bits.

A signal at a random instant of a run, in turn SIGTERM and SIGINT; every third time a second Ctrl-C follows at once.
"""

import argparse
import os
import random
import shutil
import signal
import time

from ._runs import Runs, finish, kinds, newest_step, start, wait_until

COUNT = 24
MOST = 10.0  # seconds


def run(options: argparse.Namespace) -> bool:
    """Prints a row a signal."""
    random.seed(options.seed)
    runs, held, slowest = Runs(options.folder), True, 0.0
    for number, kind in zip(range(options.count), kinds(), strict=False):
        path, process = runs.going(kind)
        wait_until(process, lambda path=path: newest_step(path) > 0)
        process.join(random.uniform(0, 0.8 * runs.left(kind, path)))
        which = (signal.SIGTERM, signal.SIGINT)[number % 2]
        twice = which == signal.SIGINT and number % 3 == 1
        if not process.is_alive():
            print(f"done        {kind}: before the signal came", flush=True)
            continue
        began = time.monotonic()
        for _ in range(2 if twice else 1):
            os.kill(process.pid or 0, which)
        process.join(60)
        taken, code = time.monotonic() - began, process.exitcode
        said = runs.log.read_text("utf-8")
        step = newest_step(path)
        well = code in (128 + which, 0) and taken <= MOST and (twice or code == 0 or "--resume" in said)
        finish(start(runs.log, "train", "--resume", path), runs.log)
        well = well and runs.same(kind, path) and not list(path.rglob("*.tmp"))
        held, slowest = held and well, max(slowest, taken)
        name = f"{which.name}{' twice' if twice else ''}"
        print(f"{'equal' if well else 'NOT HELD':<11}{kind!s:<30}{name:<13} exit {code} in {taken:.1f} s, step {step}")
        shutil.rmtree(path)
    print(f"{options.count} signals; the slowest left in {slowest:.1f} s")
    return held
