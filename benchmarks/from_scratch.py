"""What `vitreous train` reaches from nothing in a wall-clock budget, and what a peer does in the same sitting.

    python benchmarks/from_scratch.py cifar10 --data FOLDER --seeds 0 1 2 --peers ../peers/bin/python --test
    python benchmarks/from_scratch.py digits

FOLDER holds cifar10/train.tar and cifar10/test.tar, tars of class folders, the same in fashion/ (idx_to_tar.py makes
them), or clothing/ with train/, validation/ and test/. For each seed it runs what a newcomer types,
`vitreous train DATA --minutes M --seed S --out RUN`, with an empty cache; answers are of PyTorch in fp32. Options of
`vitreous train` may follow after `--`, to try them. What is scored is the validation split, to choose by; --test scores
the test pictures instead, for the figure that is published.

With --peers, the Python of an environment with timm (peers/README.md), each run is followed by a ResNet-18 of the same
seed that trains for as long on the same device, once varied its usual way and once as that run varied pictures: three
times the minutes for each seed. With --test it learns from all of train.tar, or of train/, otherwise from what the run
learned from; it is asked about what the run is scored by, and the two are held against each other picture by picture.

The runs and all answers stay in --out. Exits with 1 where the mean accuracy is below what this budget is held to, where
too little of the work lies in the encoder's blocks, or where the 95 % interval of the difference to a peer, drawn over
pictures, is not above 0.
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
from typing import NamedTuple

import numpy as np

from vitreous.errors import InputError
from vitreous.infer.evaluation import evaluate
from vitreous.infer.predictor import load
from vitreous.metrics import confusion, per_class
from vitreous.model.config import ModelConfig
from vitreous.model.vit import count_macs
from vitreous.rundir import RunDir
from vitreous.training.journal import read_rows
from vitreous.training.plan import Plan
from vitreous.training.recipe import parse_minutes

ROOT = Path(__file__).resolve().parent.parent
PEER = "resnet18"
WAYS = ("theirs", "ours")  # that the peer's pictures are varied in
HELD_TO = 0.5  # share of the multiply-accumulates that lies in the encoder's blocks
RESAMPLES = 10_000
Answers = dict[str, tuple[str, str]]  # picture -> its class, and the one that was answered


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

    answers: Answers
    epochs: float
    rate: float  # pictures a second of training, its rows of metrics included
    before: float  # scan and decoding
    planning: float  # timing of the first steps, within the budget
    training: float
    total: float  # the whole command

    def line(self) -> str:
        """All figures."""
        return (
            f"{means([self.answers])}   {len(self.answers):,} pictures   "
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
    names = found.task.names
    triples = zip(found.names, found.targets, found.answers.argmax(1), strict=True)
    answers = {picture: (names[target], names[answer]) for picture, target, answer in triples}
    write_answers(answers, run / "answers.csv")
    return Result(
        answers=answers,
        epochs=last["epoch"],
        rate=plan.steps * plan.batch / last["seconds"],
        before=decoded,
        planning=planned - decoded,
        training=last["seconds"],
        total=total,
    )


def train_peer(python: str, words: Sequence[str | Path], run: Path, seed: int, minutes: float, out: Path) -> Answers:
    """Trains the peer as long and where a run of ours was trained, and prints what it reached."""
    plan = RunDir(run).read_json("plan.json")
    command = [python, ROOT / "benchmarks" / "peers" / "from_scratch.py", PEER, *words, "--minutes", minutes]
    command += ["--seed", seed, "--threads", plan["threads"], "--device", plan["device"], "--out", out]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    subprocess.run(list(map(str, command)), check=True, env={**os.environ, "PYTHONPATH": path})
    return read_answers(out)


def write_answers(answers: Answers, path: Path) -> None:
    """The answers in the form that the peers write."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("picture", "class", "answer"))
        writer.writerows((picture, *pair) for picture, pair in answers.items())


def read_answers(path: Path) -> Answers:
    """The answers that a peer, or `write_answers`, wrote."""
    with open(path, encoding="utf-8", newline="") as file:
        return {row["picture"]: (row["class"], row["answer"]) for row in csv.DictReader(file)}


def accuracies(answers: Answers) -> tuple[float, float]:
    """Top-1 and balanced accuracy."""
    names = sorted({name for pair in answers.values() for name in pair})
    targets, predicted = np.array([[names.index(name) for name in pair] for pair in answers.values()]).T
    matrix = confusion(predicted, targets, len(names))
    return float(np.trace(matrix) / matrix.sum()), per_class(matrix).balanced_accuracy()


def means(seeds: Sequence[Answers]) -> str:
    """Both accuracies, over seeds."""
    top1, balanced = zip(*map(accuracies, seeds), strict=True)
    return f"top-1 {spread(top1)}   balanced {spread(balanced)}"


def spread(values: Sequence[float]) -> str:
    """Mean, standard deviation and range, of shares."""
    text = f"{statistics.mean(values):.2%}"
    if len(values) == 1:
        return text
    return f"{text} (deviation {100 * statistics.stdev(values):.2f}, {min(values):.2%} to {max(values):.2%})"


class Difference(NamedTuple):
    """How many points ours is above the peer, its 95 % interval, and on how many pictures."""

    mean: float
    low: float
    high: float
    pictures: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} points (95 %: {self.low:+.2f} to {self.high:+.2f}) on {self.pictures:,} pictures"


def difference(ours: Sequence[Answers], theirs: Sequence[Answers]) -> Difference:
    """The difference over all answers of the seeds to pictures that both sides answered, with a paired bootstrap.

    What is drawn are pictures, each with all the seeds that were asked about it; the seeds are taken as they fell.
    """
    won: dict[str, list[int]] = {}
    for our, their in zip(ours, theirs, strict=True):
        for picture in our.keys() & their.keys():
            our_right, their_right = (target == answer for target, answer in (our[picture], their[picture]))
            won.setdefault(picture, []).append(our_right - their_right)
    if not won:
        raise ValueError("no picture was answered by both sides: their names differ")
    # To draw pictures with replacement is to draw how many there are of each kind: points won, times asked.
    kinds, counts = np.unique([(sum(seeds), len(seeds)) for seeds in won.values()], axis=0, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(won), counts / len(won), RESAMPLES)
    gains = [100 * (numbers @ kinds[:, 0]) / (numbers @ kinds[:, 1]) for numbers in (counts, drawn)]
    low, high = np.quantile(gains[1], (0.025, 0.975))
    return Difference(float(gains[0]), float(low), float(high), len(won))


def block_share(run: Path) -> tuple[float, int]:
    """The share of a picture's multiply-accumulates that lies in the encoder's blocks, and how many there are."""
    config = ModelConfig.from_json(RunDir(run).config()["model"])
    one, two = (count_macs(replace(config, depth=depth), *config.image_size) for depth in (1, 2))
    whole = count_macs(config, *config.image_size)
    return config.depth * (two - one) / whole, whole


def judge(task: Task, minutes: float, top1: float, share: float, leads: Mapping[str, Difference]) -> int:
    """Prints what is held and what is missed, of the mean accuracy, the share of the encoder's blocks and the mean
    difference to each peer; 1 where something is missed.
    """
    least = task.held_to.get(minutes)
    found = [] if least is None else [(top1 >= least, f"top-1 of at least {least:.1%}")]
    found.append((share >= HELD_TO, f"at least {HELD_TO:.0%} of the multiply-accumulates in the encoder's blocks"))
    found += [(lead.low > 0, f"above {PEER}, augmentation {way}: {lead}") for way, lead in leads.items()]
    for held, what in found:
        print(f"{'held' if held else 'missed'}: {what}")
    return 0 if all(held for held, _ in found) else 1


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
    parser.add_argument("--minutes", help="as `vitreous train` takes them; default: 10; digits: 1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment with timm")
    parser.add_argument("--test", action="store_true", help="score the test pictures")
    parser.add_argument("--out", type=Path, help="default: runs/from_scratch-<task>-<time>")
    options = parser.parse_args(words[:end])
    task = TASKS[options.task]
    if options.test and not task.test:
        parser.error(f"{options.task} has no test split; without --test the validation pictures are scored")
    if task.test and options.data is None:
        parser.error("expected --data FOLDER")
    if task.test and not (options.data / task.data).exists():
        parser.error(f"{options.data / task.data} is not there: --data names the folder that holds it")
    if options.peers and not shutil.which(options.peers):
        parser.error(f"--peers {options.peers}: no such program; benchmarks/peers/README.md tells how to make it")
    try:
        options.minutes = task.minutes if options.minutes is None else parse_minutes(options.minutes)
    except InputError as fault:
        parser.error(str(fault))
    if options.out and options.out.exists():
        parser.error(f"--out {options.out} is there already: name a new folder")
    options.out = options.out or Path("runs") / f"from_scratch-{options.task}-{time.strftime('%Y%m%d-%H%M%S')}"
    options.out.mkdir(parents=True)
    return options, words[end + 1 :]


def main() -> int:
    """Prints a line a seed and how far its peers are, the means, and what is held; 1 where something is not."""
    options, more = parse()
    task = TASKS[options.task]
    data = place(task.data, options)
    scored, split, side = (
        (place(task.test, options), "auto", "test") if options.test else (data, "validation", "validation")
    )
    print(f"{options.task}, {options.minutes:g} minutes; scored: the {side} pictures", flush=True)

    ours: list[Answers] = []
    peers: dict[str, list[Answers]] = {way: [] for way in WAYS if options.peers}
    runs = {seed: options.out / f"seed-{seed}" for seed in options.seeds}
    for seed, run in runs.items():
        result = train_and_score(run, data, scored, split, options.minutes, seed, more)
        print(f"seed {seed}   {result.line()}", flush=True)
        ours.append(result.answers)
        learned = (place(task.train, options), scored) if options.test else (data, "--split", run / "split.csv")
        for way, theirs in peers.items():
            words = (*learned, "--augmentation-of", run) if way == "ours" else learned
            out = options.out / f"{PEER}-{way}-{seed}.csv"
            theirs.append(train_peer(options.peers, words, run, seed, options.minutes, out))
            print(f"  {means(theirs[-1:])}; ours is above by {difference(ours[-1:], theirs[-1:])}", flush=True)

    print(f"mean     {means(ours)}")
    for way, theirs in peers.items():
        print(f"{PEER}, augmentation {way}: mean {means(theirs)}")
    first = runs[options.seeds[0]]
    share, whole = block_share(first)
    plan = RunDir(first).read_json("plan.json")
    print(f"{share:.1%} of {whole / 1e6:,.1f}M multiply-accumulates in the encoder's blocks")
    print(f"{plan['threads']} threads, {plan['device']}, {plan['precision']}, torch {plan['torch']}")
    leads = {way: difference(ours, theirs) for way, theirs in peers.items()}
    return judge(task, options.minutes, statistics.mean(accuracies(some)[0] for some in ours), share, leads)


if __name__ == "__main__":
    sys.exit(main())
