"""How good the answers are, and how far they can be believed: numpy, pure functions, no randomness but a seed.

n samples, K classes, labels or regression targets. Everything is computed in float64. Impossible numbers are NaN in
the functions (an R² of constant targets) and None in the three summaries, which are ready for JSON.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np

TEMPERATURE_RANGE = (0.05, 20.0)
CHUNK = 1 << 22  # numbers held at once where the logits are scaled, so that 50,000 × 1,000 need no second copy


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (…, K) that sum to 1 over the last axis."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Each number on its own to a probability, without overflow at either end."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64)))


# Classification: probabilities (n, K), targets (n,) in 0 … K-1


def top_k(scores: np.ndarray, targets: np.ndarray, k: int) -> float:
    """Share of samples whose true class is among the k highest of its scores (n, K): probabilities or logits.

    A tie is won by the lower index, as in argmax; a NaN is never right.
    """
    return float(_hits(*_scored(scores, targets), k).mean())


def accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
    """Share of samples whose highest score, probability or logit, is that of the true class."""
    return top_k(scores, targets, 1)


def confusion(predicted: np.ndarray, targets: np.ndarray, K: int) -> np.ndarray:
    """Counts (K, K) from classes (n,) and (n,): rows are the true class, columns the predicted one."""
    predicted, targets = _indices(predicted, K, "predicted"), _indices(targets, K, "targets")
    if len(predicted) != len(targets):
        raise ValueError(f"expected as many predicted classes as targets, got {len(predicted)} and {len(targets)}")
    return np.bincount(targets * K + predicted, minlength=K * K).reshape(K, K)


class PerClass(NamedTuple):
    """Arrays (K,). `support` counts the true samples; `seen` is False for a class neither true nor predicted."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    seen: np.ndarray

    def macro_f1(self) -> float:
        """Mean F1 of the classes that were seen, as in scikit-learn; NaN where there are none."""
        return _mean(self.f1[self.seen])

    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have true samples (Brodersen et al. 2010)."""
        return _mean(self.recall[self.support > 0])


def per_class(matrix: np.ndarray) -> PerClass:
    """Precision, recall and F1 = 2·TP / (2·TP + FP + FN) of each class of a confusion matrix (K, K).

    0/0 is 0.0, as in scikit-learn: the recall of a class without samples, the precision of one never predicted.
    """
    hit = np.diagonal(matrix)
    return _per_class(hit, predicted=matrix.sum(axis=0), support=matrix.sum(axis=1))


def negative_log_likelihood(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Mean of -ln p(true class), in nats. A p of 0 counts as the smallest normal number of the array's type."""
    floor = np.finfo(np.asarray(probabilities).dtype).tiny
    probabilities, targets = _classified(probabilities, targets)
    return float(-np.log(np.maximum(_of_true(probabilities, targets), floor)).mean())


def brier(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Mean over samples of Σ_k (p_k - [k is true])², from 0 to 2 (Brier 1950)."""
    probabilities, targets = _classified(probabilities, targets)
    return float(((probabilities**2).sum(axis=1) - 2 * _of_true(probabilities, targets) + 1).mean())


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray, bins: int = 15) -> float:
    """Σ_b |B_b|/n · |accuracy(B_b) - confidence(B_b)| over equal bins (lo, hi] of the top class's probability.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3.
    """
    probabilities, targets = _classified(probabilities, targets)
    confidence = probabilities.max(axis=1)
    if np.isnan(confidence).any():
        return math.nan
    chosen = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(chosen, weights=_hits(probabilities, targets, 1) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(targets))


def classification_summary(probabilities: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """All that is reported of a classifier, from probabilities (n, K), targets (n,) and K distinct names.

    `top5` is there only where K > 5; `top1_interval` is the 95 % Wilson interval.
    """
    nll = negative_log_likelihood(probabilities, targets)
    probabilities, targets = _classified(probabilities, targets)
    n, K = probabilities.shape
    matrix = confusion(probabilities.argmax(axis=1), targets, K)
    each = per_class(matrix)
    hits = _hits(probabilities, targets, 1)
    summary = {
        "n": n,
        "top1": hits.mean(),
        "top1_interval": wilson_interval(int(hits.sum()), n),
        "balanced_accuracy": each.balanced_accuracy(),
        "macro_f1": each.macro_f1(),
        "nll": nll,
        "ece": expected_calibration_error(probabilities, targets),
        "classes": _by_name(names, precision=each.precision, recall=each.recall, f1=each.f1, support=each.support),
        "confusion": matrix,
    }
    if K > 5:
        summary["top5"] = top_k(probabilities, targets, 5)
    return _plain(summary)


# Multi-label: probabilities (n, K) of K independent labels, targets (n, K) of 0 and 1


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Per label (K,): Σ_i (recall_i - recall_{i-1}) · precision_i over the distinct scores, highest first.

    Scores are probabilities or logits (n, K). As scikit-learn's average_precision_score, ties included; NaN for a
    label without a positive sample.
    """
    scores, targets = _label_scores(scores, targets)
    return np.array([_average_precision(*pair) for pair in zip(scores.T, targets.T, strict=True)])


def exact_match(probabilities: np.ndarray, targets: np.ndarray, threshold: float = 0.5) -> float:
    """Share of samples with every label right; a label is predicted where p ≥ threshold."""
    probabilities, targets = _labelled(probabilities, targets)
    return float(((probabilities >= threshold) == targets).all(axis=1).mean())


def per_label(probabilities: np.ndarray, targets: np.ndarray, threshold: float = 0.5) -> PerClass:
    """Precision, recall and F1 of each label, with per_class's conventions; predicted where p ≥ threshold."""
    probabilities, targets = _labelled(probabilities, targets)
    predicted = probabilities >= threshold
    return _per_class((predicted & targets).sum(axis=0), predicted.sum(axis=0), targets.sum(axis=0))


def micro_f1(probabilities: np.ndarray, targets: np.ndarray, threshold: float = 0.5) -> float:
    """F1 of all n·K decisions together; 0.0 where nothing is true and nothing predicted."""
    probabilities, targets = _labelled(probabilities, targets)
    predicted = probabilities >= threshold
    return float(_ratio(2 * (predicted & targets).sum(), predicted.sum() + targets.sum()))


def multilabel_summary(
    probabilities: np.ndarray, targets: np.ndarray, names: Sequence[str], threshold: float = 0.5
) -> dict[str, Any]:
    """All that is reported of a multi-label model, from probabilities (n, K), targets (n, K) and K distinct names.

    `macro_f1` leaves out labels neither true nor predicted; `map` those without a positive sample.
    """
    each = per_label(probabilities, targets, threshold)
    precisions = average_precision(probabilities, targets)
    summary = {
        "n": len(targets),
        "exact_match": exact_match(probabilities, targets, threshold),
        "micro_f1": micro_f1(probabilities, targets, threshold),
        "macro_f1": each.macro_f1(),
        "map": _mean(precisions),
        "labels": _by_name(
            names,
            precision=each.precision,
            recall=each.recall,
            f1=each.f1,
            average_precision=precisions,
            support=each.support,
        ),
    }
    return _plain(summary)


# Regression: predicted and true (n, K), in the units of the targets


class Errors(NamedTuple):
    """Arrays (K,): mean absolute and root mean squared error in units, and the coefficient of determination."""

    mae: np.ndarray
    rmse: np.ndarray
    r2: np.ndarray


def regression_errors(predicted: np.ndarray, true: np.ndarray) -> Errors:
    """MAE, RMSE and R² = 1 - Σ(t - p)² / Σ(t - t̄)² of each target; R² is NaN where the true value is constant."""
    predicted, true = _measured(predicted, true)
    residual = predicted - true
    spread = ((true - true.mean(axis=0)) ** 2).sum(axis=0)
    spread[np.ptp(true, axis=0) == 0] = np.nan
    return Errors(
        mae=np.abs(residual).mean(axis=0),
        rmse=np.sqrt((residual**2).mean(axis=0)),
        r2=1 - (residual**2).sum(axis=0) / spread,
    )


def regression_summary(
    predicted: np.ndarray, true: np.ndarray, names: Sequence[str], units: Sequence[str]
) -> dict[str, Any]:
    """All that is reported of a regression, from (n, K), (n, K), K distinct names and K units ("" where none).

    `mae`, `rmse` and `r2` at the top are means over the targets (over those that have one, for R²).
    """
    errors = regression_errors(predicted, true)
    summary = {
        "n": len(true),
        "mae": _mean(errors.mae),
        "rmse": _mean(errors.rmse),
        "r2": _mean(errors.r2),
        "targets": _by_name(names, **errors._asdict(), unit=units),
    }
    return _plain(summary)


# Intervals


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion, (p̂ + z²/2n ± z·√(p̂(1-p̂)/n + z²/4n²)) / (1 + z²/n); (0, 1) where n is 0.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = successes / n, z * z / n
    middle, half = share + weight / 2, z * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    low = 0.0 if successes == 0 else (middle - half) / (1 + weight)
    high = 1.0 if successes == n else (middle + half) / (1 + weight)
    return low, high


def bootstrap_interval(
    statistic: Callable[..., Any], *arrays: np.ndarray, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Percentile interval (2, …): low and high of `statistic(*arrays)` when the rows are drawn again with return.

    The rows of all arrays (n, …) are drawn together. A statistic may return a number or an array; a draw where it is
    NaN is left out. Efron 1979. The same seed gives the same interval.
    """
    n = len(arrays[0])
    random = np.random.default_rng(seed)
    chosen = (random.integers(0, n, n) for _ in range(resamples))
    draws = np.array([statistic(*(array[rows] for array in arrays)) for rows in chosen], np.float64)
    tails = [(1 - level) / 2, (1 + level) / 2]
    columns = draws.reshape(resamples, -1).T
    bounds = [np.quantile(kept, tails) if len(kept := c[~np.isnan(c)]) else [np.nan] * 2 for c in columns]
    return np.array(bounds).T.reshape(2, *draws.shape[1:])


# Calibration


def fit_temperature(
    logits: np.ndarray, targets: np.ndarray, kind: Literal["classification", "multilabel"] = "classification"
) -> float:
    """The T in [0.05, 20] for which softmax(logits / T), or sigmoid for "multilabel", is likeliest.

    Logits (n, K), targets (n,) or, for "multilabel", (n, K) of 0 and 1. The loss is convex in 1/T, whose slope is
    followed to 0 by Newton's steps within a bracket. A set without mistakes has no finite optimum and ends at 0.05;
    one that no T changes gives 1. Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or not logits.size or not np.isfinite(logits).all():
        raise ValueError(f"expected finite logits (n, K), got {_described(logits)}")
    check = _label_scores if kind == "multilabel" else _scored
    targets = check(logits, targets)[1]
    low, high = 1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0]
    sharpness = 1.0
    slope, curvature = _likelihood_slope(logits, targets, sharpness)
    if slope == 0:
        return 1.0
    end = high if slope < 0 else low
    if _likelihood_slope(logits, targets, end)[0] * slope >= 0:
        return 1 / end
    for _ in range(100):
        low, high = (sharpness, high) if slope < 0 else (low, sharpness)
        newton = sharpness - slope / curvature if curvature > 0 else math.inf
        if abs(newton - sharpness) <= 1e-9 * sharpness:
            break
        sharpness = newton if low < newton < high else math.sqrt(low * high)
        slope, curvature = _likelihood_slope(logits, targets, sharpness)
    return 1 / sharpness


# Split conformal prediction: sets and bands that hold the truth as often as they promise


def conformal_threshold(probabilities: np.ndarray, targets: np.ndarray, coverage: float = 0.9) -> float:
    """Threshold on the score 1 - p(true class), from n samples kept out of training, for `plausible`.

    It is the ⌈(n + 1)·coverage⌉-th smallest score, so the true class of a new, exchangeable sample belongs to its set
    with probability ≥ coverage; 1.0, which admits every class, where n is too small for that. Vovk et al. 2005;
    Sadinle, Lei & Wasserman 2019. Classes only: the labels of one picture depend on each other, so the pairs of a
    multi-label model are not exchangeable and get no such promise.
    """
    probabilities, targets = _classified(probabilities, targets)
    threshold = float(_conformal_quantile((1 - _of_true(probabilities, targets))[:, None], coverage)[0])
    return min(threshold, 1.0)


def plausible(probabilities: np.ndarray, threshold: float, coverage: float = 0.9) -> np.ndarray:
    """Boolean (n, K): the classes with 1 - p ≤ threshold; where there is none, the most probable that hold `coverage`.

    A picture without a class of its own is a doubtful one, not one without answer; the promise only gains by it.
    """
    probabilities = np.asarray(probabilities, np.float64)
    members = 1 - probabilities <= threshold
    order = np.argsort(-probabilities, axis=1, kind="stable")
    before = np.cumsum(np.take_along_axis(probabilities, order, 1), axis=1)
    before -= np.take_along_axis(probabilities, order, 1)  # what the more probable classes hold
    doubtful = ~members.any(axis=1)
    likely = np.empty_like(members)
    np.put_along_axis(likely, order, before < coverage, 1)
    members[doubtful] = likely[doubtful]
    return members


def conformal_halfwidth(predicted: np.ndarray, true: np.ndarray, coverage: float = 0.9) -> np.ndarray:
    """Half-width (K,), in units: predicted ± it holds a new true value with probability ≥ coverage, per target.

    The ⌈(n + 1)·coverage⌉-th smallest |true - predicted| (Vovk et al. 2005); inf where n is too small for that.
    """
    predicted, true = _measured(predicted, true)
    return _conformal_quantile(np.abs(true - predicted), coverage)


def _conformal_quantile(scores: np.ndarray, coverage: float) -> np.ndarray:
    """The quantile (K,) of scores (n, K) that a new score stays under with probability ≥ coverage."""
    if not 0 < coverage < 1:
        raise ValueError(f"expected a coverage between 0 and 1, got {coverage}")
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)  # 0.55 · 20 is 11.000000000000002
    if rank > len(scores):
        return np.full(scores.shape[1], np.inf)
    return np.sort(scores, axis=0)[rank - 1]


def _likelihood_slope(logits: np.ndarray, targets: np.ndarray, sharpness: float) -> tuple[float, float]:
    """First and second derivative of the summed loss of logits·sharpness with respect to sharpness."""
    slope = curvature = 0.0
    rows = max(1, CHUNK // logits.shape[1])
    for start in range(0, len(logits), rows):
        z, t = logits[start : start + rows].astype(np.float64), targets[start : start + rows]
        if t.ndim == 2:
            p = sigmoid(z * sharpness)
            slope += ((p - t) * z).sum()
            curvature += (p * (1 - p) * z**2).sum()
        else:
            z -= z.max(axis=1, keepdims=True)
            p = softmax(z * sharpness)
            mean = (p * z).sum(axis=1)
            slope += (mean - _of_true(z, t)).sum()
            curvature += (p * (z - mean[:, None]) ** 2).sum()
    return float(slope), float(curvature)


def _average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    if not targets.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    scores, targets = scores[order], targets[order]
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # the last sample of each tie
    found = np.cumsum(targets)[ends]
    return float((np.diff(found, prepend=0) / found[-1] * (found / (ends + 1))).sum())


def _per_class(hit: np.ndarray, predicted: np.ndarray, support: np.ndarray) -> PerClass:
    total = predicted + support
    return PerClass(_ratio(hit, predicted), _ratio(hit, support), _ratio(2 * hit, total), support, total > 0)


def _hits(probabilities: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    own = _of_true(probabilities, targets)[:, None]
    before = np.arange(probabilities.shape[1]) < targets[:, None]
    rank = ((probabilities > own) | ((probabilities == own) & before)).sum(axis=1)
    return (rank < k) & ~np.isnan(probabilities).any(axis=1)


def _of_true(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return values[np.arange(len(targets)), targets]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, with 0/0 = 0."""
    return part / np.maximum(whole, 1)


def _mean(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN where nothing is left."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else math.nan


def _scored(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both checked: scores (n, K) in float64, targets (n,) as indices. NaN passes, to be seen in the result."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"expected scores (n, K) of at least one sample, got shape {scores.shape}")
    targets = _indices(targets, scores.shape[1], "targets")
    if len(targets) != len(scores):
        raise ValueError(f"expected a target for each of {len(scores)} samples, got {len(targets)}")
    return scores, targets


def _classified(probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As _scored, of probabilities alone."""
    probabilities, targets = _scored(probabilities, targets)
    if (probabilities < 0).any() or (np.abs(probabilities.sum(axis=1) - 1) > 0.01).any():
        got = _described(probabilities)
        raise ValueError(f"expected rows of probabilities that sum to 1 (softmax(logits)?), got {got}")
    return probabilities, targets


def _label_scores(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both checked: scores (n, K) in float64, targets (n, K) as booleans."""
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets)
    if scores.ndim != 2 or not scores.size or scores.shape != targets.shape:
        raise ValueError(
            f"expected scores and targets (n, K) of one shape and at least one sample, "
            f"got {scores.shape} and {targets.shape}"
        )
    if not ((targets == 0) | (targets == 1)).all():
        raise ValueError(f"expected targets of 0 and 1, got {_described(targets)}")
    return scores, targets.astype(bool)


def _labelled(probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As _label_scores, of probabilities alone."""
    probabilities, targets = _label_scores(probabilities, targets)
    if (probabilities < 0).any() or (probabilities > 1.001).any():
        raise ValueError(f"expected probabilities from 0 to 1 (sigmoid(logits)?), got {_described(probabilities)}")
    return probabilities, targets


def _measured(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if predicted.ndim != 2 or not predicted.size or predicted.shape != true.shape:
        raise ValueError(
            f"expected predicted and true values (n, K) of one shape and at least one sample, "
            f"got {predicted.shape} and {true.shape}"
        )
    return predicted, true


def _indices(classes: np.ndarray, K: int, what: str) -> np.ndarray:
    classes = np.asarray(classes)
    if classes.ndim != 1 or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(f"expected {what} (n,) of whole numbers, got shape {classes.shape} of {classes.dtype}")
    if classes.size and not (classes.min() >= 0 and classes.max() < K):
        raise ValueError(f"expected {what} from 0 to {K - 1}, got {classes.min()} to {classes.max()}")
    return classes.astype(np.int64)


def _described(values: np.ndarray) -> str:
    extent = f", {values.min():.4g} to {values.max():.4g}" if values.size else ""
    return f"shape {values.shape}{extent}"


def _by_name(names: Sequence[str], **columns: Sequence[Any] | np.ndarray) -> dict[str, dict[str, Any]]:
    if len(set(names)) != len(names):
        raise ValueError(f"expected distinct names, got {len(names)} of which {len(set(names))} differ")
    rows = zip(*columns.values(), strict=True)
    return {name: dict(zip(columns, row, strict=True)) for name, row in zip(names, rows, strict=True)}


def _plain(value: Any) -> Any:
    """Python's own numbers, lists and dicts; None for what JSON cannot say (NaN and infinities)."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
