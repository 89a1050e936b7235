"""How far other ways to compute answers agree with the model as it was trained."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitreous import metrics
from vitreous.data.targets import Task
from vitreous.errors import InputError


@dataclass(frozen=True)
class Bar:
    """What a faster way to compute answers may cost, on the run's own validation pictures."""

    # Points of accuracy that a faster engine may lose on the run's validation pictures; one picture is always allowed
    max_loss: float = 0.3
    # How far the probability of the answer may move, in the mean
    max_shift: float = 0.01
    # Per cent that a regression's root mean square error may grow
    max_rmse: float = 1.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value >= 0:
                raise InputError(f"--{name.replace('_', '-')} {value:g}: expected 0 or more")


@dataclass(frozen=True)
class Agreement:
    """What became of the answers, beside those of the reference."""

    pictures: int
    kind: str  # the task's
    shift: float  # mean change of the probability of the reference's answer; of a regression, in deviations
    largest: float  # change of any probability, or number in deviations
    same: float | None = None  # share of the pictures with the same answer; of labels, that all are the same
    loss: float | None = None  # points of accuracy, or per cent of the RMSE; None without targets
    interval: tuple[float, float] | None = None  # of the loss, 95 %, the pictures drawn anew in pairs
    of: str = "validation pictures"

    def holds(self, bar: Bar) -> bool:
        """Whether it is within the bar; a loss that is not known is not within it, but where no answer changed."""
        if self.kind == "regression":
            return self.loss <= bar.max_rmse if self.loss is not None else self.largest == 0
        allowed = max(bar.max_loss, 100 / self.pictures)
        lost = 100 * (1 - (self.same or 0)) if self.loss is None else self.loss
        return self.shift <= bar.max_shift and lost <= allowed + 1e-9

    def line(self) -> str:
        """In words."""
        about = f"on {self.pictures:,} {self.of}"
        if self.kind == "regression":
            known = "" if self.loss is None else f"RMSE {self.loss:+.2f} %{self._bounds(' %')}, "
            return f"{known}mean change {self.shift:.1e} deviations, largest {self.largest:.1e}, {about}"
        known = "" if self.loss is None else f"accuracy {0 - self.loss:+.2f} points{self._bounds('', -1)}, "
        return (
            f"{known}{self.same:.2%} of the answers the same, probability of the answer {self.shift:.1e} off "
            f"in the mean, {self.largest:.1e} at most, {about}"
        )

    def _bounds(self, unit: str, sign: int = 1) -> str:
        if self.interval is None:
            return ""
        low, high = sorted(0 + sign * bound for bound in self.interval)
        return f" (95 %: {low:+.2f} to {high:+.2f}{unit})"


def compare(
    task: Task,
    reference: np.ndarray,
    answers: np.ndarray,
    targets: np.ndarray | None,
    of: str = "validation pictures",
) -> Agreement:
    """Answers (n, K) of `Calibration.answers` beside the reference's, and targets as `Task.encode` makes them."""
    n = len(reference)
    if task.kind == "regression":
        moved = np.abs(answers - reference) / np.array(task.std)
        loss, interval = None, None
        if targets is not None:
            errors = [((some - targets) / np.array(task.std)) ** 2 for some in (reference, answers)]

            def growth(before: np.ndarray, after: np.ndarray) -> float:
                return float(100 * (np.sqrt(after.mean() / max(before.mean(), 1e-30)) - 1))

            loss, interval = growth(*errors), _interval(growth, *errors)
        return Agreement(n, task.kind, float(moved.mean()), float(moved.max()), None, loss, interval, of)
    if task.kind == "classification":
        chosen = reference.argmax(1)
        moved = np.abs(answers - reference)[np.arange(n), chosen]
        same = answers.argmax(1) == chosen
        right = None if targets is None else [some.argmax(1) == targets for some in (reference, answers)]
    else:
        moved = np.abs(answers - reference).mean(1)
        same = ((answers >= 0.5) == (reference >= 0.5)).all(1)
        right = (
            None if targets is None else [((some >= 0.5) == (targets > 0.5)).mean(1) for some in (reference, answers)]
        )
    loss, interval = None, None
    if right is not None:
        lost = 100 * (np.asarray(right[0], float) - np.asarray(right[1], float))
        loss, interval = float(lost.mean()), _interval(np.mean, lost)
    largest = float(np.abs(answers - reference).max())
    return Agreement(n, task.kind, float(moved.mean()), largest, float(same.mean()), loss, interval, of)


def _interval(statistic: Any, *columns: np.ndarray) -> tuple[float, float]:
    low, high = metrics.bootstrap_interval(statistic, *columns)
    return float(low), float(high)
