"""Plan: what a run follows, written down before it is used."""

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from vitreous.data.augment import AugmentConfig, check_augmentation
from vitreous.errors import InputError
from vitreous.fields import broken_rules, read_fields

MOST_BATCH, MOST_THREADS = 1 << 20, 4_096  # that a plan on the disk may ask for
LAST_ROWS = 2.0  # the last evaluation, in fp32, takes as long as so many rows of metrics


@dataclass(frozen=True)
class Pace:
    """Seconds that a step on coarse pictures takes, one on whole pictures, and a row of metrics."""

    coarse: float
    whole: float
    row: float


@dataclass(frozen=True)
class Plan:
    """What a run follows: with the same plan, machine and library versions it gives the same bits.

    A run of minutes is timed now and then. Where its end has moved, the plan gets another point, and is
    written before it is used: all that was done before stays as it was.
    """

    # (step, share of the run that is done there, step at which all is done): what holds from that step on
    points: tuple[tuple[int, float, int], ...]
    epochs: float  # by the first timing
    batch: int
    accumulate: int
    optimizer: str
    lr: float
    schedule: str
    warmup: float
    coarse: float
    weight_decay: float
    layer_decay: float
    freeze: str
    clip: float
    smoothing: float
    ema: float
    balance: str
    augmentation: AugmentConfig
    precision: str
    device: str
    threads: int
    workers: int
    seed: int
    row_every: int  # epochs between rows of metrics, each with a validation
    save_every: int  # steps between checkpoints; 0: with every row
    budget: float  # seconds that the training may take; 0: no matter
    pace: Pace  # of the first steps
    seconds: float  # estimate of the training time, by the first timing
    torch: str
    save_seconds: float = 0.0  # between further checkpoints, by the clock; 0: none
    ranks: int = 1  # processes that it began with
    shard: bool = False  # whether they divide the model
    stem_rate: float = 1.0  # with Muon: of the stem's later convolutions, as a share of the other matrices'
    rest_rate: float = 0.2  # and of what AdamW learns beside it
    processor: str = ""  # what it calls itself
    compile: bool = False  # whether tokenizer and blocks are compiled

    @property
    def steps(self) -> int:
        """Updates in all."""
        return self.points[-1][2]

    @property
    def coarse_steps(self) -> int:
        """The first updates, which see coarser pictures."""
        ends = (round(start + (self.coarse - done) / (1 - done) * (end - start)) for start, done, end in self.points)
        starts = (*(start for start, _, _ in self.points[1:]), self.steps)
        return next(end for end, later in zip(ends, starts, strict=True) if end <= later)

    def done(self, step: int) -> float:
        """The share of the run that is done before a step."""
        start, done, end = next(point for point in reversed(self.points) if point[0] <= step)
        return done + (1 - done) * (step - start) / (end - start)

    def rate(self, step: int) -> float:
        """The learning rate of a step: a line up, then a line or half a cosine down (SGDR, 1608.03983)."""
        if (done := self.done(step + 1)) < self.warmup:
            return self.lr * done / self.warmup
        fallen = max(0.0, self.done(step) - self.warmup) / (1 - self.warmup)
        return self.lr * (1 - fallen if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * fallen)))

    def predicted(self, start: int, stop: int, rows: float) -> float:
        """Seconds that the steps from `start` up to `stop` take at the pace of the first ones, with their rows."""
        coarse = max(0, min(stop, self.coarse_steps) - start)
        return coarse * self.pace.coarse + (stop - start - coarse) * self.pace.whole + rows * self.pace.row

    def retimed(self, step: int, taken: float, slower: float, steps_a_row: float) -> Self:
        """The plan whose rest fits in what is left of the budget, as seen at a step.

        `taken`: seconds until now; `slower`: how many times longer the last steps took than at the first ones' pace.
        """
        done = self.done(step)
        coarse = max(0.0, self.coarse - done) / (1 - done)
        a_step = coarse * self.pace.coarse + (1 - coarse) * self.pace.whole + self.pace.row / steps_a_row
        left = (self.budget - taken) / slower - LAST_ROWS * self.pace.row
        end = step + max(1, int(left / a_step))
        before = (point for point in self.points if point[0] < step)
        return dataclasses.replace(self, points=(*before, (step, done, end)))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for plan.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The plan that `to_json` wrote. Raises `InputError` for anything else, and for more than a machine can do."""
        plan = read_fields(cls, values, "a plan that cannot be read")
        check_augmentation(plan.augmentation)
        ordered = [(-1, -1.0, 0), *plan.points]
        rules = (
            ("points", plan.points, "one or more"),
            ("points", all(a[0] < b[0] < b[2] and 0 <= b[1] < 1 for a, b in pairwise(ordered)), "steps that rise"),
            ("batch", 1 <= plan.batch <= MOST_BATCH, f"1 to {MOST_BATCH:,}"),
            ("accumulate", 1 <= plan.accumulate <= plan.batch, "1 to the batch"),
            ("threads", 1 <= plan.threads <= MOST_THREADS, f"1 to {MOST_THREADS:,}"),
            ("workers", 0 <= plan.workers <= MOST_THREADS, f"0 to {MOST_THREADS:,}"),
            ("optimizer", plan.optimizer in ("muon", "adamw"), "muon or adamw"),
            ("schedule", plan.schedule in ("linear", "cosine"), "linear or cosine"),
            ("precision", plan.precision in ("fp32", "bf16"), "fp32 or bf16"),
            ("warmup", 0 <= plan.warmup < 1, "a share from 0 to below 1"),
            ("coarse", 0 <= plan.coarse < 1, "a share from 0 to below 1"),
            ("ema", 0 <= plan.ema < 1, "0 to below 1"),
            ("seed", plan.seed >= 0, "0 or more"),
            ("row_every", plan.row_every >= 1, "1 or more"),
            ("stem_rate", plan.stem_rate > 0, "more than 0"),
            ("rest_rate", plan.rest_rate > 0, "more than 0"),
        )
        if faults := broken_rules(plan, rules):
            raise InputError.listing("a plan that cannot be followed:", faults)
        return plan
