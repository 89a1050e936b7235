"""Pictures a second of a training step of ViT-S/16 at 224²: from memory, from files, and beside timm's.

    python benchmarks/train_speed.py --peers ../peers/bin/python
    python benchmarks/train_speed.py --device cuda --batch 256

The step is the one that `vitreous train` makes: its optimizer, clipping and moving average, and bf16 where the
hardware has it. "From memory" repeats it with one batch; "from files" feeds it pictures that were drawn for it, decoded
once to a cache and varied as `vitreous train` varies them. All take turns for some rounds; the medians are compared.
Exits with 1 where training from files, or the rate beside timm's plain loop in fp32, is not held.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitreous.data.batches import Batch, TrainingBatches
from vitreous.model.vit import build
from vitreous.training.journal import Journal
from vitreous.training.learner import Learner, update
from vitreous.training.planner import make_plan
from vitreous.training.prepare import prepare
from vitreous.training.recipe import TrainConfig, choose_device
from vitreous.training.steps import training_batches

ROOT = Path(__file__).resolve().parent.parent
SIDE, CLASSES, PICTURES = 224, 10, 400  # pixels, and how many pictures are drawn
HELD_TO = 0.92  # of the rate from memory that is kept from files
TIMES_TIMM = 4.0  # the rate of timm's plain loop in fp32 that is reached from memory
WARM_UP = 3  # steps that are not timed


def draw_pictures(folder: Path) -> None:
    """JPEG files of coloured noise, coarse and fine, in class folders."""
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        pixels = np.asarray(coarse, dtype=np.int16) + rng.integers(-20, 21, (SIDE, SIDE, 3), dtype=np.int16)
        path = folder / f"class-{number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


@dataclass
class Trainee:
    """A learner, one batch in memory on its device, and its real batches from the given step on."""

    learner: Learner
    fixed: Batch
    batches: TrainingBatches
    step: int = 0

    def rate(self, batches: Iterable[Batch]) -> float:
        """Pictures a second of updates with these batches."""
        count = 0
        synchronise(self.learner.device)
        start = time.perf_counter()
        for batch in batches:
            update(self.learner, batch)
            count += len(batch.targets)
        synchronise(self.learner.device)
        return count / (time.perf_counter() - start)

    def from_memory(self, steps: int) -> float:
        """Pictures a second with one batch."""
        return self.rate([self.fixed] * steps)

    def from_files(self, steps: int) -> float:
        """Pictures a second with batches as training has them."""
        self.step += steps
        return self.rate(self.batches.steps(self.step - steps, self.step, self.learner.plan.workers))


def make_trainee(folder: Path, options: argparse.Namespace) -> Trainee:
    """All that `vitreous train` makes before its first step, of pictures that are drawn into the folder."""
    draw_pictures(folder / "pictures")
    config = TrainConfig(
        coarse=0.0,  # whole pictures alone
        model="vit_s_16",
        size=f"{SIDE}x{SIDE}",
        epochs=1,
        batch=options.batch,
        optimizer=options.optimizer,
        threads=options.threads,
        device=options.device,
        compile=options.compile,
        cache=str(folder / "cache"),
    )
    job = prepare(str(folder / "pictures"), config, Journal(stderr=True))
    model = build(job.model, config.seed)
    plan = make_plan(job, config, model, choose_device(config.device))
    learner, (batches, _) = Learner(model, job, plan), training_batches(job, plan)
    batch = batches.make(0)
    fixed = Batch(batch.pixels.to(plan.device), batch.targets.to(plan.device), batch.numbers)
    return Trainee(learner, fixed, batches)


def peer_rates(python: str, steps: int, options: argparse.Namespace) -> dict[str, float]:
    """Pictures a second of timm's model, by variant, from a fresh process."""
    command = [python, ROOT / "benchmarks" / "peers" / "train_speed.py", "--batch", options.batch, "--steps", steps]
    command += ["--threads", options.threads, "--device", options.device]
    command += ["--compile"] if options.compile else []
    said = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
    return {f"timm, {name}": float(rate) for name, rate in (line.split("\t") for line in said.splitlines())}


def tell(number: int, rates: dict[str, float]) -> None:
    """Says how a round goes, beside the results."""
    for name, rate in rates.items():
        print(f"round {number}: {name} {rate:.1f} pictures/s", file=sys.stderr, flush=True)


def synchronise(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    """Prints the rates and their ratios; 1 where a figure is not held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--optimizer", choices=("auto", "muon", "adamw"), default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="a round; default: 8, on a GPU 100")
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment with timm")
    parser.add_argument("--compile", action="store_true", help="ours under torch.compile, and one more of timm's")
    options = parser.parse_args()
    if options.rounds < 1 or (options.steps is not None and options.steps < 1):
        parser.error("--rounds and --steps: expected 1 or more")
    if options.peers and not shutil.which(options.peers):
        parser.error(f"--peers {options.peers}: no such program; benchmarks/peers/README.md tells how to make it")
    steps = options.steps or (8 if options.device == "cpu" else 100)
    torch.set_num_threads(options.threads)

    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="vitreous-") as folder:
        trainee = make_trainee(Path(folder), options)
        plan = trainee.learner.plan
        trainee.from_memory(WARM_UP)
        trainee.from_files(WARM_UP)
        for number in range(1, options.rounds + 1):
            ours = {"from memory": trainee.from_memory(steps), "from files": trainee.from_files(steps)}
            tell(number, ours)
            theirs = peer_rates(options.peers, steps, options) if options.peers else {}
            tell(number, theirs)
            rounds.append(ours | theirs)
    rates = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}

    print(
        f"training step of ViT-S/16, {plan.batch} pictures of {SIDE}×{SIDE}, {plan.precision}, {plan.optimizer}, "
        f"{plan.threads} threads, {plan.device}; medians of {options.rounds} rounds of {steps} steps"
    )
    memory, files = rates.pop("from memory"), rates.pop("from files")
    print(f"{'from memory':<42} {memory:8.1f} pictures/s")
    print(f"{'from files':<42} {files:8.1f} pictures/s   {files / memory:.1%} of that")
    for name, rate in rates.items():
        print(f"{name:<42} {rate:8.1f} pictures/s   ours is {memory / rate:.2f}×")
    found = [(files >= HELD_TO * memory, f"from files at least {HELD_TO:.0%} of the rate from memory")]
    if options.peers:
        found.append((memory >= TIMES_TIMM * rates["timm, fp32"], f"at least {TIMES_TIMM:g}× timm's loop in fp32"))
    for held, what in found:
        print(f"{'held' if held else 'missed'}: {what}")
    return 0 if all(held for held, _ in found) else 1


if __name__ == "__main__":
    sys.exit(main())
