"""SIGTERM and Ctrl-C: saved, left within 10 s with 143 or 130, and resumed to the same bits.

A signal at a random instant of a run, in turn SIGTERM and SIGINT; every third time a second Ctrl-C follows at once.
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import time

from ._runs import Runs, finish, kinds, newest_step, start, wait_until

COUNT = 24
MOST = 10.0  # seconds
TRIES = 3  # runs for a signal: some are done before it comes


def run(options: argparse.Namespace) -> bool:
    """Prints a row a signal."""
    random.seed(options.seed)
    runs, held, slowest, sent = Runs(options.folder), True, 0.0, 0
    for kind in itertools.islice(kinds(), TRIES * options.count):
        if sent == options.count:
            break
        path, process = runs.going(kind)
        wait_until(process, lambda path=path: newest_step(path) > 0)
        process.join(random.uniform(0, 0.8 * runs.left(kind, path)))
        which = (signal.SIGTERM, signal.SIGINT)[sent % 2]
        twice = which == signal.SIGINT and sent % 3 == 1
        began = time.monotonic()
        for _ in range(2 if twice else 1):
            if process.is_alive():
                os.kill(process.pid or 0, which)
        process.join(60)
        taken, code = time.monotonic() - began, process.exitcode
        if code == 0:
            print(f"{'done':<11}{kind!s:<30}before {which.name}", flush=True)
        else:
            said, step = runs.log.read_text("utf-8"), newest_step(path)
            well = code == 128 + which and taken <= MOST and (twice or "--resume" in said)
            finish(start(runs.log, "train", "--resume", path), runs.log)
            well = well and runs.same(kind, path) and not list(path.rglob("*.tmp"))
            held, slowest, sent = held and well, max(slowest, taken), sent + 1
            name, outcome = f"{which.name}{' twice' if twice else ''}", "equal" if well else "NOT HELD"
            print(f"{outcome:<11}{kind!s:<30}{name:<13} exit {code} in {taken:.1f} s, step {step}", flush=True)
        shutil.rmtree(path)
    print(f"{sent} signals of {options.count}; the slowest left in {slowest:.1f} s")
    return held and sent == options.count
