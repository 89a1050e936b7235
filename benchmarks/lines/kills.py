"""SIGKILL at random instants, and inside a save: the bits of the run that was left in peace.

--count instants, and a quarter as many more as the next checkpoint is written; up to three a run, each anywhere in what
is left of it, over ViT and T2T, 0, 1 and 2 workers, --epochs and --minutes. What is compared is the SHA-256 of the
final weights, and of weights, optimizer, moving average and progress in the last checkpoint. A run of minutes is held
against one that follows the plan it ended with.
"""

import argparse
import random
import shutil

from ._runs import Runs, finish, kill, kinds, newest_step, start, wait_until

COUNT = 100
A_RUN = 3  # kills


def run(options: argparse.Namespace) -> bool:
    """Prints a row a run."""
    random.seed(options.seed)
    runs, held, lost = Runs(options.folder), True, 0
    due = ["instant"] * options.count + ["save"] * round(options.count / 4)
    random.shuffle(due)
    for kind in kinds():
        if not due:
            break
        path, process = runs.going(kind)
        at = []
        while due and len(at) < A_RUN:
            process.join(random.uniform(0, runs.left(kind, path)))
            hit = due[-1] != "save" or wait_until(process, lambda path=path: any(path.glob("last/.*.tmp")))
            if not hit or not process.is_alive():
                break  # it was done before
            kill(process)
            half = "half a file" if any(path.glob("last/.*.tmp")) else ""
            at.append(f"{due.pop()} after step {newest_step(path)}{half and ' with ' + half}")
            process = start(runs.log, "train", "--resume", path)
        finish(process, runs.log)
        equal = runs.same(kind, path) and not list(path.rglob("*.tmp"))
        held, lost = held and equal, lost + (not equal)
        print(f"{'equal' if equal else 'DIFFERENT':<11}{kind!s:<30}{'; '.join(at) or 'not killed'}", flush=True)
        shutil.rmtree(path)
    print(f"{options.count} kills at random instants and {round(options.count / 4)} inside a save: {lost} runs differ")
    return held
