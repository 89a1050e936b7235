"""Outputs of a model to answers: calibrated probabilities, or numbers in their units, and how sure they are."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from vitreous import metrics
from vitreous.data.targets import Task
from vitreous.errors import InputError, counted
from vitreous.fields import read_fields

COVERAGE = 0.9  # of the set of plausible classes, and of the interval of a number


@dataclass(frozen=True)
class Calibration:
    """What the validation split tells of a model's outputs (Guo et al. 2017; Sadinle, Lei & Wasserman 2019)."""

    temperature: float = 1.0  # that the outputs are divided by before the softmax or sigmoid
    threshold: float = 1.0  # classes with 1 - p up to it are plausible
    halfwidth: tuple[float, ...] = ()  # in units: a number plus or minus it holds the truth

    @classmethod
    def fit(cls, task: Task, outputs: np.ndarray, targets: np.ndarray) -> Self:
        """From outputs (n, K) on the validation pictures and their targets; numbers standardised, as in training."""
        if task.kind == "regression":
            halfwidth = metrics.conformal_halfwidth(task.restore(outputs), task.restore(targets), COVERAGE)
            return cls(halfwidth=tuple(halfwidth.tolist()))
        imagined, mistake = _one_mistake(task, outputs)
        temperature = metrics.fit_temperature(
            np.concatenate((outputs, imagined)),
            np.concatenate((targets, mistake)),
            "multilabel" if task.kind == "multilabel" else "classification",
        )
        if task.kind == "multilabel":
            return cls(temperature)
        threshold = metrics.conformal_threshold(metrics.softmax(outputs / temperature), targets, COVERAGE)
        return cls(temperature, threshold)

    def answers(self, task: Task, outputs: np.ndarray) -> np.ndarray:
        """Outputs (n, K) -> calibrated probabilities (n, K), or numbers (n, K) in their units."""
        if task.kind == "regression":
            return task.restore(outputs)
        function = metrics.softmax if task.kind == "classification" else metrics.sigmoid
        return function(outputs / self.temperature)

    def to_json(self) -> dict[str, Any]:
        """Plain values; a half-width that is not known (too few pictures) is null."""
        halfwidth = [w if math.isfinite(w) else None for w in self.halfwidth]
        return {"temperature": self.temperature, "threshold": self.threshold, "halfwidth": halfwidth}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The calibration that `to_json` wrote. Raises `InputError` for anything else."""
        known = read_fields(_Written, values, "a calibration that cannot be read")
        if known.temperature <= 0:
            raise InputError(f"a calibration of temperature {known.temperature}: expected a number above 0")
        return cls(known.temperature, known.threshold, tuple(math.inf if w is None else w for w in known.halfwidth))


@dataclass(frozen=True)
class _Written:
    """A calibration as it is written."""

    temperature: float
    threshold: float
    halfwidth: tuple[float | None, ...]


def summarise(task: Task, answers: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """The metrics of a task, ready for JSON: from `Calibration.answers` and targets, numbers in their units."""
    if task.kind == "classification":
        return metrics.classification_summary(answers, targets, task.names)
    if task.kind == "multilabel":
        return metrics.multilabel_summary(answers, targets, task.names)
    return metrics.regression_summary(answers, targets, task.names, task.units)


def headline(task: Task, summary: dict[str, Any]) -> str:
    """The summary's chief numbers in a line."""
    if task.kind == "classification":
        low, high = summary["top1_interval"]
        top5 = f", top-5 {summary['top5']:.1%}" if "top5" in summary else ""
        return (
            f"top-1 {summary['top1']:.1%} (95 %: {low:.1%} to {high:.1%}){top5}, "
            f"balanced {summary['balanced_accuracy']:.1%}, macro F1 {_number(summary['macro_f1'])}, "
            f"calibration error {summary['ece']:.3f}, on {counted(summary['n'], 'picture')}"
        )
    if task.kind == "multilabel":
        return (
            f"mean average precision {_number(summary['map'])}, macro F1 {_number(summary['macro_f1'])}, "
            f"all labels right {summary['exact_match']:.1%}, on {counted(summary['n'], 'picture')}"
        )
    parts = [
        f"{name}: R² {_number(one['r2'])}, MAE {one['mae']:.4g}{_unit(one)}, RMSE {one['rmse']:.4g}{_unit(one)}"
        for name, one in summary["targets"].items()
    ]
    return f"{'; '.join(parts)}, on {counted(summary['n'], 'picture')}"


def _one_mistake(task: Task, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One imagined picture on which the model is wrong: without any mistake the likeliest temperature would be 0.

    The rule of succession (Laplace): after n right answers of n, the next is expected right with about n/(n + 1).
    """
    usual = outputs[np.argsort(outputs.max(1))[len(outputs) // 2]]
    if task.kind == "multilabel":
        return usual[None], (usual < 0)[None].astype(np.float32)
    return usual[None], np.argsort(usual)[-2:-1]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _unit(values: dict[str, Any]) -> str:
    return f" {values['unit']}" if values["unit"] else ""
