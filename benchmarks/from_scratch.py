"""What `vitreous train` reaches from nothing in a wall-clock budget, and what a peer does in the same sitting.

    python benchmarks/from_scratch.py cifar10 --data FOLDER --seeds 0 1 2 --peers ../peers/bin/python --test
    python benchmarks/from_scratch.py digits

FOLDER holds cifar10/train.tar and cifar10/test.tar, tars of class folders, the same in fashion/ (idx_to_tar.py makes
them), or clothing/ with train/, validation/ and test/. For each seed it runs what a newcomer types,
`vitreous train DATA --minutes M --seed S --out RUN`, with an empty cache; answers are of PyTorch in fp32. Options of
`vitreous train` may follow after `--`, to try them. What is scored is the validation split, to choose by; --test scores
the test pictures instead, for the figure that is published.

With --peers, the Python of an environment with timm (peers/README.md), a ResNet-18 trains for as long, varied once its
usual way and once as the first seed's run varied pictures, and each seed is held against it, picture by picture. With
--test it learns from all of train.tar, or of train/. Otherwise it learns from what the first seed learns from; other
seeds that drew another split are held against it on the pictures that neither learned.

The runs and all answers stay in --out. Exits with 1 where the mean accuracy is below what this budget is held to, or
too little of the work lies in the encoder's blocks.
"""

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitreous.infer.evaluation import Evaluation, evaluate
from vitreous.infer.predictor import load
from vitreous.model.config import ModelConfig
from vitreous.model.vit import count_macs
from vitreous.rundir import RunDir
from vitreous.training.journal import read_rows
from vitreous.training.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
PEER = "resnet18"
HELD_TO = 0.5  # share of the multiply-accumulates that lies in the encoder's blocks
RESAMPLES = 10_000


@dataclass(frozen=True)
class Task:
    """Places below --data, the usual budget in minutes, and what accuracies are held to, by minutes. "" is what the
    task does not have.
    """

    data: str
    train: str
    test: str
    minutes: float
    held_to: Mapping[float, float]


TASKS = {
    "cifar10": Task("cifar10/train.tar", "cifar10/train.tar", "cifar10/test.tar", 10.0, {10: 0.87, 60: 0.925}),
    "clothing": Task("clothing", "clothing/train", "clothing/test", 10.0, {10: 0.58}),
    "fashion": Task("fashion/train.tar", "fashion/train.tar", "fashion/test.tar", 10.0, {}),
    "digits": Task("digits", "", "", 1.0, {1: 0.985}),
}


@dataclass(frozen=True)
class Result:
    """What came of one seed. Times in seconds."""

    top1: float
    balanced: float
    pictures: int
    epochs: float
    rate: float  # pictures a second of training, its rows of metrics included
    before: float  # scan and decoding
    planning: float  # timing of the first steps, within the budget
    training: float
    total: float  # the whole command

    def line(self) -> str:
        """All figures."""
        return (
            f"top-1 {self.top1:6.2%}   balanced {self.balanced:6.2%}   {self.pictures:,} pictures   "
            f"{self.epochs:.1f} epochs, {self.rate:,.0f} pictures/s   "
            f"scan and decoding {self.before:.1f} s, plan {self.planning:.1f} s, training {self.training:.1f} s, "
            f"in all {self.total:.1f} s"
        )


def train_and_score(
    run: Path, data: str, scored: str, split: str, minutes: float, seed: int, more: Sequence[str]
) -> Result:
    """One seed, from nothing to its figures; the answer to each picture goes to answers.csv in the run."""
    with tempfile.TemporaryDirectory(prefix="pixels-", dir=run.parent) as cache:
        began = time.time()
        command = [sys.executable, "-m", "vitreous", "train", data, "--minutes", f"{minutes:g}", "--seed", str(seed)]
        environment = {**os.environ, "VITREOUS_CACHE": cache}
        subprocess.run([*command, "--out", str(run), *more], check=True, stdout=sys.stderr, env=environment)
        total, planned = time.time() - began, (run / "config.json").stat().st_mtime - began
        decoded = max((path.stat().st_mtime - began for path in Path(cache).glob("*/cache.json")), default=planned)
    plan = Plan.from_json(RunDir(run).read_json("plan.json"))
    last = read_rows(run, plan.steps)[-1]
    found = evaluate(load(run, engine="torch", precision="fp32"), scored, split=split, say=lambda text: None)
    write_answers(found, run / "answers.csv")
    return Result(
        top1=found.summary["top1"],
        balanced=found.summary["balanced_accuracy"],
        pictures=found.summary["n"],
        epochs=last["epoch"],
        rate=plan.steps * plan.batch / last["seconds"],
        before=decoded,
        planning=planned - decoded,
        training=last["seconds"],
        total=total,
    )


def write_answers(found: Evaluation, path: Path) -> None:
    """The answers in the form that the peers write."""
    names = found.task.names
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("picture", "class", "answer"))
        for picture, target, answer in zip(found.names, found.targets, found.answers.argmax(1), strict=True):
            writer.writerow((picture, names[target], names[answer]))


def train_peer(
    python: str, words: Sequence[str | Path], answers: Path, options: argparse.Namespace, threads: int
) -> None:
    """Trains the peer as long as ours, prints what it reached and writes its answers."""
    command = [python, ROOT / "benchmarks" / "peers" / "from_scratch.py", PEER, *words]
    command += ["--minutes", options.minutes, "--seed", options.seeds[0], "--threads", threads, "--out", answers]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    subprocess.run(list(map(str, command)), check=True, env={**os.environ, "PYTHONPATH": path})


def read_answers(path: Path) -> dict[str, bool]:
    """Picture -> whether the answer was right."""
    with open(path, encoding="utf-8", newline="") as file:
        return {row["picture"]: row["class"] == row["answer"] for row in csv.DictReader(file)}


def difference(ours: dict[str, bool], theirs: dict[str, bool]) -> str:
    """How many points ours is above theirs on the pictures that both answered, with a paired bootstrap interval."""
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return "no picture that both answered"
    gain = np.array([int(ours[name]) - int(theirs[name]) for name in shared])
    shares = [float(np.mean(gain == value)) for value in (-1, 0, 1)]
    # To draw pictures with replacement is to draw how many of them are lost, equal and won.
    drawn = np.random.default_rng(0).multinomial(len(shared), shares, RESAMPLES)
    low, high = np.quantile(100 * (drawn[:, 2] - drawn[:, 0]) / len(shared), (0.025, 0.975))
    return f"{100 * gain.mean():+.2f} points (95 %: {low:+.2f} to {high:+.2f}) on {len(shared):,} pictures"


def block_share(run: Path) -> tuple[float, int]:
    """The share of a picture's multiply-accumulates that lies in the encoder's blocks, and how many there are."""
    config = ModelConfig.from_json(RunDir(run).config()["model"])
    one, two = (count_macs(replace(config, depth=depth), *config.image_size) for depth in (1, 2))
    whole = count_macs(config, *config.image_size)
    return config.depth * (two - one) / whole, whole


def spread(values: Sequence[float]) -> str:
    """Mean, standard deviation and range, of shares."""
    text = f"{statistics.mean(values):.2%}"
    if len(values) == 1:
        return text
    return f"{text} (deviation {100 * statistics.stdev(values):.2f}, {min(values):.2%} to {max(values):.2%})"


def place(name: str, options: argparse.Namespace) -> str:
    """Where the data lies; "digits" is built in."""
    return str(options.data / name) if options.data else name


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The options, and those that go to `vitreous train`."""
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, help="default: 10; digits: 1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment with timm")
    parser.add_argument("--test", action="store_true", help="score the test pictures")
    parser.add_argument("--out", type=Path, help="default: runs/from_scratch-<task>-<time>")
    options = parser.parse_args(words[:end])
    task = TASKS[options.task]
    if not task.test and (options.test or options.peers):
        parser.error(f"{options.task} has no test split, and no peer: leave out --test and --peers")
    if task.test and options.data is None:
        parser.error("expected --data FOLDER")
    if task.test and not (options.data / task.data).exists():
        parser.error(f"{options.data / task.data} is not there: --data names the folder that holds it")
    if options.peers and not shutil.which(options.peers):
        parser.error(f"--peers {options.peers}: no such program; peers/README.md says how to make that environment")
    options.minutes = options.minutes or task.minutes
    options.out = options.out or Path("runs") / f"from_scratch-{options.task}-{time.strftime('%Y%m%d-%H%M%S')}"
    options.out.mkdir(parents=True)
    return options, words[end + 1 :]


def main() -> int:
    """Prints a line a seed, their mean, and how far the peer is; 1 where a figure is not held."""
    options, more = parse()
    task = TASKS[options.task]
    data = place(task.data, options)
    scored, split, side = (
        (place(task.test, options), "auto", "test") if options.test else (data, "validation", "validation")
    )
    print(f"{options.task}, {options.minutes:g} minutes; scored: the {side} pictures", flush=True)

    results, runs = [], {seed: options.out / f"seed-{seed}" for seed in options.seeds}
    for seed, run in runs.items():
        results.append(train_and_score(run, data, scored, split, options.minutes, seed, more))
        print(f"seed {seed}   {results[-1].line()}", flush=True)
    print(f"mean     top-1 {spread([r.top1 for r in results])}   balanced {spread([r.balanced for r in results])}")
    least = task.held_to.get(options.minutes, 0.0)
    held = statistics.mean(r.top1 for r in results) >= least
    if least:
        print(f"{'held' if held else 'missed'}: top-1 of at least {least:.1%}")
    first = next(iter(runs.values()))
    plan = RunDir(first).read_json("plan.json")
    share, whole = block_share(first)
    print(f"{share:.1%} of {whole / 1e6:,.1f}M multiply-accumulates in the encoder's blocks (held to {HELD_TO:.0%})")
    print(f"{plan['threads']} threads, {plan['device']}, {plan['precision']}, torch {plan['torch']}", flush=True)

    words = (place(task.train, options), scored) if options.test else (data, "--split", first / "split.csv")
    ways = {"theirs": (), "ours": ("--augmentation-of", first)}
    for augmentation, way in ways.items() if options.peers else ():
        answers = options.out / f"{PEER}-{augmentation}.csv"
        train_peer(options.peers, (*words, *way), answers, options, plan["threads"])
        theirs = read_answers(answers)
        for seed, run in runs.items():
            above = difference(read_answers(run / "answers.csv"), theirs)
            print(f"  seed {seed} against {PEER}, augmentation {augmentation}: {above}", flush=True)
    return 0 if held and share >= HELD_TO else 1


if __name__ == "__main__":
    sys.exit(main())
