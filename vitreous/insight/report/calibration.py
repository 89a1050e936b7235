"""The part of the page that says how far answers can be believed."""

import math
from dataclasses import dataclass

import numpy as np

from vitreous import metrics
from vitreous.calibration import COVERAGE
from vitreous.insight.page import escape
from vitreous.insight.report import pieces as html
from vitreous.insight.report.charts import Axis, histogram, reliability
from vitreous.insight.report.material import Material
from vitreous.insight.report.pieces import decimal, percent, short, whole
from vitreous.insight.report.results import GONE, wilson

BINS = 15  # as in `metrics.expected_calibration_error`
TITLE = "How far it can be believed"
PROMISE = short(100 * COVERAGE, "%")
WORDS = {  # what is counted; what a bin is of, and what is shared by it; what should be so of 80 %
    "classification": ("pictures", "certainty", "share right", "answers", "right"),
    "multilabel": ("labels of pictures", "probability", "share that has the label", "labels", "there"),
}


def calibration(m: Material) -> str:
    """Certainty against truth, before and after the temperature; of a regression how often intervals hold."""
    if m.found is None:
        return html.section("calibration", TITLE, (GONE,))
    if m.task.kind == "regression":
        return _coverage(m, m.found.answers, m.found.targets)
    kind, temperature = m.task.kind, m.predictor.calibration.temperature
    before = Reliability.of(kind, uncalibrated(kind, m.found.answers, temperature), m.found.targets)
    after = Reliability.of(kind, m.found.answers, m.found.targets)
    claims, certainty, right, these, be = WORDS[kind]
    change = f"from {before.error:.3f} to {after.error:.3f}"
    sure = (
        f"{percent(after.counts[-1] / after.counts.sum())} have a {certainty} of more than {percent((BINS - 1) / BINS)}"
    )
    x, share = Axis(0, 1, certainty, percent=True), f"share of the {claims}"
    points = (
        f"A point is a bin of {claims}, the larger the more it holds, with its 95\u00a0% interval: on the dashed line "
        f"the {certainty} is the {right}."
    )
    bars = f"A bar is the {share} whose {certainty} lies between its edges: {sure}."
    bins, tones = {"grey hollow": before.bins, "blue": after.bins}, {"after the temperature": "blue"}
    against = reliability(bins, certainty, right, f"Calibration error {change} by the temperature")
    often = histogram(np.linspace(0, 1, BINS + 1), after.counts, x, share, sure)
    charts = [
        html.figure(f"{right.capitalize()}, by {certainty}", against, points, tones | {"before it": "grey"}),
        html.figure(f"How often which {certainty}", often, bars),
    ]
    columns = {"": None, "ECE": decimal, "negative log-likelihood": decimal}
    rows = [("before the temperature", before.error, before.likelihood), ("after it", after.error, after.likelihood)]
    shown = [html.panels(charts), html.table("Calibration before and after the temperature", columns, rows)]
    if kind == "classification":
        sets = metrics.plausible(m.found.answers, m.predictor.calibration.threshold, COVERAGE)
        held, sizes = float(sets[np.arange(len(sets)), m.found.targets].mean()), sets.sum(1)
        shown.append(
            f"<p>The set of plausible classes should hold the true one {PROMISE} of the time. It does in "
            f"{html.cell(held, percent)} ({html.cell(wilson(held, len(sets)), percent)}), with {sizes.mean():.2f} "
            f"classes on average. {int((sizes > 1).sum()):,} of {len(sets):,} pictures are unsure: their set holds "
            "several.</p>"
        )
    columns = {f"mean {certainty}": percent, right: percent, claims: whole}
    shown.append(html.details("The numbers", html.table("Certainty and truth, bin by bin", columns, after.bins)))
    words = (
        f"Of the {these} with a {certainty} of 80\u00a0%, 80\u00a0% should be {be}.",
        f"The outputs are divided by a temperature of {temperature:.3g}, fitted on the validation pictures. It takes "
        f"the calibration error (ECE, {BINS} bins) {change}.",
    )
    return html.section("calibration", TITLE, words, *shown)


def _coverage(m: Material, answers: np.ndarray, targets: np.ndarray) -> str:
    rows, errors = [], np.abs(answers - targets)
    for k, (name, unit) in enumerate(zip(m.task.names, m.task.units, strict=True)):
        half = m.predictor.calibration.halfwidth[k]
        held = float((errors[:, k] <= half).mean())
        known = (f"± {escape(short(half, unit))}", held, wilson(held, len(errors)))
        unknown = ("unknown: too few validation pictures", None, None)
        rows.append((html.named(name), *(known if math.isfinite(half) else unknown)))
    words = (
        f"A number comes with an interval that should hold the truth {PROMISE} of the time. Its width was "
        "found on the validation pictures (split conformal prediction).",
    )
    columns = {"target": None, "half-width": None, "held the truth": percent, "95\u00a0%": percent}
    return html.section("calibration", TITLE, words, html.table("Coverage of the intervals", columns, rows))


def uncalibrated(kind: str, probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities (n, K) as they were before the outputs were divided by the temperature."""
    tiny = np.finfo(np.float64).tiny
    p = np.clip(probabilities.astype(np.float64), tiny, 1.0)
    if kind == "classification":
        return metrics.softmax(np.log(p) * temperature)
    return metrics.sigmoid(np.log(p / np.maximum(1 - p, tiny)) * temperature)


@dataclass(frozen=True)
class Reliability:
    """Answers by how certain they are; the calibration error and the likelihood of all."""

    counts: np.ndarray  # (BINS,)
    bins: list[tuple[float, float, int]]  # mean certainty, share that is true and count, where there are some
    error: float  # Σ count/n · |share - certainty|; of classes as `metrics.expected_calibration_error`
    likelihood: float  # mean of -ln p(what is true)

    @classmethod
    def of(cls, kind: str, probabilities: np.ndarray, targets: np.ndarray) -> "Reliability":
        """Of the class that is said, or of every label of every picture."""
        if kind == "classification":
            certain, true = probabilities.max(1), probabilities.argmax(1) == targets
        else:
            certain, true = probabilities.reshape(-1), targets.reshape(-1) > 0.5
            probabilities, targets = np.stack((1 - certain, certain), 1), true.astype(np.int64)
        chosen = np.clip(np.ceil(certain * BINS).astype(np.int64) - 1, 0, BINS - 1)
        sums = [np.bincount(chosen, weights=values, minlength=BINS).tolist() for values in (certain, true)]
        counts = np.bincount(chosen, minlength=BINS)
        bins = [(c / n, r / n, n) for c, r, n in zip(*sums, counts.tolist(), strict=True) if n]
        error = sum(n * abs(r - c) for c, r, n in bins) / len(certain)
        return cls(counts, bins, error, metrics.negative_log_likelihood(probabilities, targets))
