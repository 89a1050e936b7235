"""Whether a run is the same run, bit for bit: repeated, with 0, 1 and 2 workers, and killed and resumed.

    python benchmarks/reproducible.py DATA --kills 3

What it does not know itself, such as --threads 1, goes to `vitreous train`.

The weights that are compared are those of the finished runs, as SHA-256 of model.safetensors. A run with --epochs that
is killed is held against one that was not. A run with --minutes is planned by its clock: it is held
against a copy of itself, taken before a step was made, that follows the plan it ended with.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

FIRST = "step-000000000.safetensors"  # the checkpoint that is written before the first step
LIMIT = 1800.0  # seconds that any one run may take
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1"}


def begin(*words: str) -> subprocess.Popen:
    """Starts `vitreous train`."""
    command = [sys.executable, "-m", "vitreous", "train", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT)


def finish(process: subprocess.Popen) -> None:
    """Waits for a run; stops with what it said where it failed."""
    _, errors = process.communicate(timeout=LIMIT)
    if process.returncode:
        sys.exit(f"{' '.join(map(str, process.args))}\n{errors.decode()}")  # pyright: ignore


def wait_until(process: subprocess.Popen, begun: Callable[[], bool]) -> None:
    """Waits for something that a run does; stops with what it said where it ended before."""
    limit = time.monotonic() + LIMIT
    while not begun():
        if process.poll() is not None or time.monotonic() > limit:
            process.kill()
            finish(process)
            sys.exit("the run ended before it was to be killed: more --epochs or --minutes are needed")
        time.sleep(0.005)


def wait_for_plan(process: subprocess.Popen, run: Path) -> None:
    """Waits until a run has its plan and its first checkpoint."""
    wait_until(process, (run / "last" / FIRST).exists)


def killed_and_resumed(process: subprocess.Popen, run: Path, kills: int, training: float) -> list[str]:
    """Kills a training run so many times, at random instants, and resumes it each time; the steps it resumed from."""
    steps = []
    for _ in range(kills):
        try:
            process.wait(random.uniform(0, 0.9 * training / kills))
            break  # it was done before
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        newest = max(path.stem for path in (run / "last").glob("step-*.safetensors"))
        steps.append(str(int(newest.removeprefix("step-"))))
        said = (run / "log.txt").stat().st_size
        process = begin("--resume", str(run))
        wait_until(process, lambda said=said: (run / "log.txt").stat().st_size > said)  # it trains again
    finish(process)
    return steps


def weights(run: Path) -> str:
    """SHA-256 of the final weights."""
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def tell(words: str, run: Path, reference: Path) -> bool:
    """Prints a line of the result; whether the weights are equal."""
    equal = weights(run) == weights(reference)
    print(f"{weights(run)[:16]}  {'equal' if equal else 'DIFFERENT'}  {words}", flush=True)
    return equal


def compare(options: argparse.Namespace, others: list[str], folder: Path) -> bool:
    """Runs everything; whether all weights are equal."""
    length, equal = ["--epochs", str(options.epochs)], True
    settings = ["--save-every", str(options.save_every), "--seed", str(options.seed), *others]

    first = folder / "first"
    process = begin(options.data, *length, *settings, "--workers", "0", "--out", str(first))
    wait_for_plan(process, first)
    start = time.monotonic()
    finish(process)
    training = time.monotonic() - start
    tell(f"{' '.join(length)}, --workers 0", first, first)
    for workers in (0, 1, 2):
        run = folder / f"workers-{workers}"
        finish(begin(options.data, *length, *settings, "--workers", str(workers), "--out", str(run)))
        equal &= tell(f"once more, --workers {workers}", run, first)

    run = folder / "killed"
    process = begin(options.data, *length, *settings, "--out", str(run))
    wait_for_plan(process, run)
    at = killed_and_resumed(process, run, options.kills, training)
    equal &= tell(f"{' '.join(length)}, killed {len(at)} times, resumed from steps {', '.join(at)}", run, first)

    length = ["--minutes", str(options.minutes)]
    run, undisturbed = folder / "killed-minutes", folder / "undisturbed-minutes"
    process = begin(options.data, *length, *settings, "--out", str(run))
    wait_for_plan(process, run)
    shutil.copytree(run, undisturbed, ignore=shutil.ignore_patterns(".*.tmp", "metrics.csv"))
    for checkpoint in (undisturbed / "last").glob("step-*.safetensors"):
        if checkpoint.name != FIRST:
            checkpoint.unlink()
    at = killed_and_resumed(process, run, options.kills, 60 * options.minutes)
    plan = json.loads((run / "plan.json").read_text("utf-8"))  # with what its own clock made of it
    (undisturbed / "plan.json").write_text(json.dumps({**plan, "budget": 0.0}), "utf-8")
    finish(begin("--resume", str(undisturbed)))
    return equal & tell(
        f"{' '.join(length)}, killed {len(at)} times, resumed from steps {', '.join(at)}", run, undisturbed
    )


def main() -> int:
    """Prints a line a run; 1 where any weights differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=0.4)
    parser.add_argument("--kills", type=int, default=3, help="random instants at which a run is killed")
    parser.add_argument("--save-every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the runs, and of the instants")
    options, others = parser.parse_known_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory(prefix="vitreous-") as folder:
        equal = compare(options, others, Path(folder))
    print("all equal, bit for bit" if equal else "NOT equal")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
