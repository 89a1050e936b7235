"""2 and 4 processes take the steps of one, whole (DDP) and divided (FSDP2); a killed one is replaced, and all go on.

--count steps are taken, the first of a run of 30 epochs: with mixup, in fp32, by AdamW and by Muon. Their losses agree
within 1e-4, relative, and every step has the same pictures. Of a run of two processes each is killed once; torchrun
starts them again, and the weights end the same to the bit. Two processes of one thread reach 0.85 of the throughput of
one with two; they take turns, and the best of each counts.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vitreous.rundir import newest_step

COUNT = 50
CLOSE = 1e-4  # relative difference of losses
HELD_TO = 0.85  # of the throughput of one process with as many threads
ROUNDS = 3
LIMIT = 3600.0  # seconds that one of the runs may take
STEPS = Path(__file__).parent / "_steps.py"
OPTIONS: dict[str, Any] = {"epochs": 30, "batch": 64, "augment": "medium", "precision": "fp32"}
TRAIN = ("--batch", "64", "--precision", "fp32", "--save-every", "5")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this line takes besides."""
    parser.add_argument("--model", default="auto", help="a name that `vitreous models` lists")
    parser.add_argument("--size", default="auto", help="of the pictures")
    parser.add_argument("--only", choices=("steps", "kills", "throughput"), help="a part of it")


def launched(ranks: int, *words: str, restarts: int = 0) -> list[str]:
    """The command that starts so many processes."""
    if ranks == 1:
        return [sys.executable, *words]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*torchrun, "--max-restarts", str(restarts), *words]


def steps_of(ranks: int, options: argparse.Namespace, steps: int, threads: int, **more: Any) -> dict[str, Any]:
    """What `_steps.py` finds; `more` options of the training."""
    out = options.folder / "steps.json"
    own = {"model": options.model, "size": options.size, "threads": threads, "seed": options.seed}
    own = {**OPTIONS, **own, **more}
    asked = {"data": str(options.data or "digits"), "out": str(out), "steps": steps, "options": own}
    command = launched(ranks, str(STEPS), json.dumps(asked))
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(out.read_text("utf-8"))


def compare_steps(options: argparse.Namespace) -> bool:
    """A row for each number of processes, and each way to share the model."""
    held = True
    for optimizer in ("adamw", "muon"):
        one = steps_of(1, options, options.count, 1, optimizer=optimizer)
        for ranks in (2, 4):
            for shard in (False, True):
                found = steps_of(ranks, options, options.count, 1, optimizer=optimizer, shard=shard)
                apart = max(abs(a - b) / abs(b) for a, b in zip(found["losses"], one["losses"], strict=True))
                same = found["pictures"] == one["pictures"]
                print(
                    f"{ranks} processes, {'FSDP2' if shard else 'DDP  '}, {optimizer:<5}: losses of {options.count} "
                    f"steps within {apart:.1e}, {'the same' if same else 'OTHER'} pictures",
                    flush=True,
                )
                held &= same and apart < CLOSE
    return held


def pid_of(rank: int, run: Path) -> int | None:
    """The process of a rank that trains into a run directory; Linux alone tells."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # another's, or gone
            continue
        if str(run).encode() in words and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    return None


def train(options: argparse.Namespace, run: Path, victims: list[int]) -> tuple[str, list[int]]:
    """SHA-256 of the final weights of two processes, each of the victims killed at some time, and the steps then."""
    words = ["-m", "vitreous", "train", str(options.data or "digits"), *TRAIN, "--epochs", "2", "--out", str(run)]
    words += ["--model", options.model, "--size", options.size, "--seed", str(options.seed)]
    process = subprocess.Popen(launched(2, *words, restarts=len(victims)), stdout=subprocess.DEVNULL)
    at: list[int] = []
    for victim in victims:
        due, until = newest_step(run) + random.randint(1, 12), time.monotonic() + LIMIT
        while newest_step(run) < due and time.monotonic() < until:
            if process.poll() is not None:
                sys.exit(f"{run}: it ended before process {victim} could be killed")
            time.sleep(0.01)
        at.append(newest_step(run))
        if (pid := pid_of(victim, run)) is not None:
            os.kill(pid, signal.SIGKILL)
    if process.wait(LIMIT):
        sys.exit(f"{run}: torchrun failed")
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(), at


def kill_ranks(options: argparse.Namespace) -> bool:
    """A row for a run whose processes are killed, one after the other."""
    random.seed(options.seed)
    expected, _ = train(options, options.folder / "undisturbed", [])
    found, at = train(options, options.folder / "killed", [1, 0])
    print(
        f"process 1 killed after step {at[0]}, process 0 after step {at[1]}: restarted, and the final weights are "
        f"{'the same to the bit' if found == expected else 'OTHERS'}",
        flush=True,
    )
    return found == expected


def compare_throughput(options: argparse.Namespace) -> bool:
    """A row a round."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for ranks, found in rates.items():
            found.append(steps_of(ranks, options, 30, 2 // ranks)["rate"])
        print(f"pictures/s: one process of two threads {rates[1][-1]:.1f}, two of one {rates[2][-1]:.1f}", flush=True)
    ratio = max(rates[2]) / max(rates[1])
    print(f"two processes of one thread reach {ratio:.2f} of one of two")
    return ratio >= HELD_TO


def run(options: argparse.Namespace) -> bool:
    """All parts, or the one that was asked for."""
    parts = {"steps": compare_steps, "kills": kill_ranks, "throughput": compare_throughput}
    held = [part(options) for name, part in parts.items() if options.only in (None, name)]
    return all(held)
