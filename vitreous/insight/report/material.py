"""What a report is made of: all that is gathered of a run, its data and its answers."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitreous import metrics
from vitreous.data.doctor import Finding, fast_findings, scan, size_histogram
from vitreous.data.places import is_there
from vitreous.data.sources import Source, open_source
from vitreous.data.splits import SPLITS
from vitreous.data.tables import Columns
from vitreous.data.targets import Task
from vitreous.errors import InputError
from vitreous.infer.evaluation import Evaluation, evaluate
from vitreous.infer.predictor import Predictor, load
from vitreous.insight.report.pieces import Bounds
from vitreous.rundir import RunDir, SplitRow
from vitreous.training.journal import read_rows
from vitreous.training.plan import Plan
from vitreous.training.recipe import TrainConfig

RESAMPLES, DRAWN = 1000, 30_000_000  # of a bootstrap, and the numbers drawn in all
MEASURED = {  # what `bootstrap` gives bounds of; of a regression by targets
    "classification": ("balanced_accuracy", "macro_f1"),
    "multilabel": ("map", "macro_f1", "micro_f1"),
    "regression": ("mae", "rmse", "r2"),
}


@dataclass(frozen=True)
class Census:
    """What is known of the run's own pictures: in the order of split.csv where they are still there."""

    rows: list[SplitRow]
    targets: np.ndarray | None = None  # (n,) int64 or (n, K) float32, in units
    sizes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    note: str = ""  # why there is no more

    @cached_property
    def split(self) -> np.ndarray:
        """The split of each picture."""
        return np.array([row.split for row in self.rows])

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many pictures each split has, of those that have some."""
        return {name: count for name in SPLITS if (count := int((self.split == name).sum()))}

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {name}" for name, count in self.counts.items())


@dataclass(frozen=True)
class Material:
    """All that a report is made of."""

    predictor: Predictor
    config: TrainConfig
    plan: Plan
    rows: list[dict[str, float]]  # of metrics.csv
    summary: dict[str, Any]
    found: Evaluation | None  # None where the pictures are gone
    pictures: Source | None  # among them those that were scored
    census: Census
    notes: tuple[str, ...]
    subject: str  # what was scored, in words
    drawn: np.ndarray | None  # (2, numbers, …) of `bootstrap`

    @property
    def task(self) -> Task:
        """What is learned."""
        return self.predictor.task

    @property
    def run(self) -> RunDir:
        """The run directory."""
        return self.predictor.run

    def bounds(self, name: str, *at: int) -> Bounds | None:
        """The 95 % interval of a number of the summary, of one target; None where it is not known."""
        if self.drawn is None:
            return None
        low, high = map(float, self.drawn[(slice(None), MEASURED[self.task.kind].index(name), *at)])
        return (low, high) if math.isfinite(low) else None

    def pixels(self, names: Sequence[str]) -> Iterator[np.ndarray]:
        """Scored pictures (H, W, C) as the model sees them, one after the other."""
        assert self.pictures is not None
        places = {name: i for i, name in reversed([*enumerate(self.pictures.names)])}
        return (self.predictor.spec.read(self.pictures.read(places[name]), name)[1] for name in names)

    def normalised(self, *pixels: np.ndarray) -> Tensor:
        """Pictures of one size (H, W, C) as the model takes them, (B, C, H, W)."""
        return self.predictor.normalised(torch.from_numpy(np.stack(pixels)))


def gather(
    run: RunDir, data: str | os.PathLike | None, device: str, say: Callable[[str], None], **options: Any
) -> Material:
    """Reads the run, scores the pictures with the `options` of `evaluate`, and examines them, as `report` says."""
    rows, notes = read_metrics(run), []
    plan = run.parsed("plan.json", "", Plan.from_json)
    config = run.parsed("config.json", "train", TrainConfig.from_json)
    predictor = load(run.path, device=device, engine="torch", precision="fp32")

    def hear(text: str) -> None:
        notes.append(text)
        say(text)

    own, found, pictures = known_place(run), None, None
    place = own if data is None else os.fspath(data)
    if data is not None or (own and is_there(own)):
        options["skip_bad"] = options.get("skip_bad") or config.skip_bad
        found = evaluate(predictor, place, say=hear, **options)
        named = (options.get(name) or getattr(config, name) for name in ("target", "path_column"))
        pictures = open_source(place, Columns.of(*named))
    else:
        hear(
            f"the pictures are gone from {own}: these are the numbers that the training wrote, of the validation "
            "pictures; where they lie elsewhere now, `vitreous report RUN DATA` shows them"
        )
    summary = found.summary if found else run.read_json("validation.json").get("summary")
    if not isinstance(summary, dict):
        raise InputError(f"{run.path / 'validation.json'} is damaged: it has no summary")
    census = take_census(predictor, config, list(filter(None, (own, place))))
    subject = f"{summary['n']:,} {_subject(found, census, None if place == own else place)}"
    drawn = bootstrap(found) if found else None
    return Material(predictor, config, plan, rows, summary, found, pictures, census, tuple(notes), subject, drawn)


def known_place(run: RunDir) -> str:
    """Where the run's pictures were; "" where that is on a network, or not known."""
    try:
        return run.place() or ""
    except InputError:
        return ""


def read_metrics(run: RunDir) -> list[dict[str, float]]:
    """The rows of metrics.csv. Raises `InputError` where it is missing, or no such table."""
    path, columns = run.path / "metrics.csv", ("epoch", "step", "seconds", "lr", "train_loss", "val_loss")
    try:
        rows = read_rows(run.path, until_step=1 << 62)
        if not all(isinstance(row[name], int | float) for row in rows for name in columns):
            raise ValueError("text")
    except (ValueError, KeyError, AttributeError, TypeError, OSError):
        raise InputError(f"{path} is damaged: expected rows of numbers under {', '.join(columns)}") from None
    if not rows:
        raise InputError(f"{path} is missing or holds no rows: expected the run directory of a training")
    return rows


def take_census(predictor: Predictor, config: TrainConfig, places: Sequence[str]) -> Census:
    """Counts and examines the run's own pictures in the first of the places where they all are."""
    rows, note = predictor.run.read_split(), ""
    for place in dict.fromkeys(places):
        try:
            source = open_source(place, config.columns)
            numbers = {name: i for i, name in enumerate(source.names)}
            if any(row.path not in numbers for row in rows):
                raise InputError(f"{place} does not hold all pictures of the run any more")
            source = source.only([numbers[row.path] for row in rows])
            source = dataclasses.replace(source, splits=np.array([row.split for row in rows]))
            targets = predictor.task.encode(source.columns, source.names)
        except InputError as fault:
            note = note or str(fault)
            continue
        found = scan(source, predictor.threads, config.max_pixels)
        kept = tuple(f for f in fast_findings(source, found) if f.code != "classes")  # they have a table of their own
        return Census(rows, targets, tuple(size_histogram(fact for fact in found.facts if fact)), kept)
    return Census(rows, note=note)


def bootstrap(found: Evaluation) -> np.ndarray:
    """Bounds (2, numbers) of 95 % intervals of what is `MEASURED`, the pictures drawn anew; of a regression by
    targets, (2, 3, K).
    """

    def scores(answers: np.ndarray, targets: np.ndarray) -> tuple[float, ...] | metrics.Errors:
        if found.task.kind == "regression":
            return metrics.regression_errors(answers, targets)
        if found.task.kind == "classification":
            each = metrics.per_class(metrics.confusion(answers, targets, found.task.outputs))
            return each.balanced_accuracy(), each.macro_f1()
        known = metrics.average_precision(answers, targets)
        known = known[np.isfinite(known)]
        macro, micro = metrics.per_label(answers, targets).macro_f1(), metrics.micro_f1(answers, targets)
        return float(known.mean()) if len(known) else math.nan, macro, micro

    answers = found.answers.argmax(1) if found.task.kind == "classification" else found.answers
    resamples = int(min(RESAMPLES, max(100, DRAWN / found.answers.size)))
    return metrics.bootstrap_interval(scores, answers, found.targets, resamples=resamples)


def _subject(found: Evaluation | None, census: Census, elsewhere: str | None) -> str:
    """What was scored, such as "validation pictures"."""
    if elsewhere is not None:
        return f"pictures of {Path(elsewhere).name}"
    known = {row.path: row.split for row in census.rows}
    sides = {known.get(name, "new") for name in found.names} if found else {"validation"}
    return f"{sides.pop()} pictures" if len(sides) == 1 else "pictures"
