"""vitreous.metrics against scikit-learn and torchmetrics, and what its promises mean on synthetic data."""

import json
import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import sklearn.metrics
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from vitreous import metrics

oracle: Any = sklearn.metrics  # its signatures are guessed, wrongly, by type checkers


def classified(n=400, K=7, seed=0, sharpness=1.5):
    """Logits that know something, and targets drawn from them: calibrated at temperature 1."""
    random = np.random.default_rng(seed)
    logits = sharpness * random.normal(size=(n, K))
    targets = (metrics.softmax(logits).cumsum(axis=1) < random.random((n, 1))).sum(axis=1).clip(0, K - 1)
    return logits, targets


def labelled(n=300, K=5, seed=0):
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(n, K))
    return logits, (random.random((n, K)) < metrics.sigmoid(logits)).astype(int)


# Probabilities


def test_softmax_and_sigmoid_agree_with_scipy_and_do_not_overflow():
    logits = np.array([[1e4, -1e4, 0.0], [1.0, 2.0, 3.0], [-800.0, -801.0, 0.5]])
    np.testing.assert_allclose(metrics.softmax(logits), scipy.special.softmax(logits, axis=1), rtol=1e-12)
    np.testing.assert_allclose(metrics.sigmoid(logits), scipy.special.expit(logits), rtol=1e-12, atol=1e-16)


# Classification


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_agrees_with_scikit_learn(k):
    logits, targets = classified()
    expected = oracle.top_k_accuracy_score(targets, logits, k=k, labels=np.arange(7))
    assert metrics.top_k(metrics.softmax(logits), targets, k) == pytest.approx(expected)


def test_a_tie_is_won_by_the_lower_index_as_in_argmax():
    even = np.full((3, 3), 1 / 3)
    targets = np.array([0, 1, 2])
    assert metrics.accuracy(even, targets) == pytest.approx(1 / 3)
    assert metrics.top_k(even, targets, 2) == pytest.approx(2 / 3)
    assert metrics.top_k(even, targets, 3) == 1


def test_a_diverged_model_is_never_right_and_its_summary_is_json():
    probabilities = np.full((4, 2), np.nan)
    summary = metrics.classification_summary(probabilities, np.zeros(4, int), ["a", "b"])
    assert summary["top1"] == 0
    assert summary["nll"] is None
    assert summary["ece"] is None
    json.dumps(summary, allow_nan=False)


def test_confusion_has_true_rows_and_predicted_columns():
    matrix = metrics.confusion(np.array([1, 1, 0]), np.array([0, 1, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_per_class_scores_agree_with_scikit_learn():
    logits, targets = classified()
    predicted = logits.argmax(axis=1)
    each = metrics.per_class(metrics.confusion(predicted, targets, 7))
    expected = oracle.precision_recall_fscore_support(targets, predicted)
    for ours, theirs in zip(each[:4], expected, strict=True):
        np.testing.assert_allclose(ours, theirs)
    assert each.macro_f1() == pytest.approx(oracle.f1_score(targets, predicted, average="macro"))
    assert each.balanced_accuracy() == pytest.approx(oracle.balanced_accuracy_score(targets, predicted))


def test_zero_over_zero_is_zero_and_an_unseen_class_stays_out_of_the_means():
    targets, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    each = metrics.per_class(metrics.confusion(predicted, targets, 3))
    assert (each.precision[2], each.recall[2], each.f1[2]) == (0, 0, 0)
    assert each.seen.tolist() == [True, True, False]
    assert each.macro_f1() == pytest.approx(oracle.f1_score(targets, predicted, average="macro"))
    assert each.balanced_accuracy() == pytest.approx(0.75)


def test_a_class_without_samples_that_was_predicted_counts_in_macro_f1_but_not_in_balanced_accuracy():
    targets, predicted = np.array([0, 0, 1]), np.array([0, 2, 1])
    each = metrics.per_class(metrics.confusion(predicted, targets, 3))
    assert each.macro_f1() == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert each.balanced_accuracy() == pytest.approx(0.75)


def test_nll_agrees_with_scikit_learn_and_brier_with_its_definition():
    logits, targets = classified()
    probabilities = metrics.softmax(logits)
    assert metrics.negative_log_likelihood(probabilities, targets) == pytest.approx(
        oracle.log_loss(targets, probabilities)
    )
    expected = ((probabilities - np.eye(7)[targets]) ** 2).sum(axis=1).mean()
    assert metrics.brier(probabilities, targets) == pytest.approx(expected)


def test_a_probability_of_zero_costs_much_but_not_infinity():
    certain = np.array([[1, 0]], np.float32)
    assert metrics.negative_log_likelihood(certain, np.array([1])) == pytest.approx(87.3, abs=0.1)
    assert metrics.negative_log_likelihood(certain, np.array([0])) == 0


@pytest.mark.parametrize("bins", [10, 15])
def test_calibration_error_agrees_with_torchmetrics(bins):
    logits, targets = classified()
    probabilities = metrics.softmax(3 * logits)
    expected = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(targets), num_classes=7, n_bins=bins, norm="l1"
    )
    assert metrics.expected_calibration_error(probabilities, targets, bins) == pytest.approx(expected.item(), abs=1e-6)


def test_calibration_error_is_zero_where_confidence_is_the_share_that_is_right():
    probabilities = np.tile([0.75, 0.25], (400, 1))
    assert metrics.expected_calibration_error(probabilities, np.arange(400) % 4 // 3) == pytest.approx(0, abs=1e-12)


def test_calibration_error_is_all_of_the_confidence_where_everything_is_wrong():
    assert metrics.expected_calibration_error(np.array([[1.0, 0.0]] * 5), np.ones(5, int)) == 1


def test_calibration_error_is_small_for_targets_drawn_from_the_probabilities():
    logits, targets = classified(n=50_000)
    assert metrics.expected_calibration_error(metrics.softmax(logits), targets) < 0.01
    assert metrics.expected_calibration_error(metrics.softmax(4 * logits), targets) > 0.1


@pytest.mark.parametrize(
    ("probabilities", "targets", "message"),
    [
        ([[2.0, -1.0]], [0], r"softmax\(logits\)\?.* -1 to 2"),
        ([[0.5, 0.5]], [2], "from 0 to 1, got 2 to 2"),
        ([[0.5, 0.5]], [-1], "from 0 to 1, got -1"),
        ([[0.5, 0.5]], [0.0], "whole numbers.*float64"),
        ([[0.5, 0.5]], [0, 1], "each of 1 samples, got 2"),
        (np.zeros((0, 2)), np.zeros(0, int), "at least one sample"),
    ],
)
def test_wrong_input_is_named(probabilities, targets, message):
    with pytest.raises(ValueError, match=message):
        metrics.brier(np.array(probabilities), np.array(targets))


def test_logits_rank_as_their_probabilities_do():
    logits, targets = classified()
    assert metrics.top_k(logits, targets, 2) == metrics.top_k(metrics.softmax(logits), targets, 2)
    assert metrics.accuracy(logits, targets) == metrics.accuracy(metrics.softmax(logits), targets)
    logits, targets = labelled()
    ranked = metrics.average_precision(metrics.sigmoid(logits), targets)
    assert metrics.average_precision(logits, targets).tolist() == ranked.tolist()


# Multi-label


def test_multilabel_scores_agree_with_scikit_learn():
    logits, targets = labelled()
    probabilities = metrics.sigmoid(logits)
    predicted = probabilities >= 0.5
    assert metrics.exact_match(probabilities, targets) == oracle.accuracy_score(targets, predicted)
    expected = oracle.precision_recall_fscore_support(targets, predicted)
    each = metrics.per_label(probabilities, targets)
    for ours, theirs in zip(each[:4], expected, strict=True):
        np.testing.assert_allclose(ours, theirs)
    assert each.macro_f1() == pytest.approx(oracle.f1_score(targets, predicted, average="macro"))
    assert metrics.micro_f1(probabilities, targets) == pytest.approx(
        oracle.f1_score(targets, predicted, average="micro")
    )


@pytest.mark.parametrize("decimals", [1, 8])
def test_average_precision_agrees_with_scikit_learn_with_and_without_ties(decimals):
    logits, targets = labelled()
    probabilities = metrics.sigmoid(logits).round(decimals)
    np.testing.assert_allclose(
        metrics.average_precision(probabilities, targets),
        oracle.average_precision_score(targets, probabilities, average=None),
    )


def test_a_label_without_positives_has_no_average_precision_and_stays_out_of_the_mean():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.3]])
    summary = metrics.multilabel_summary(probabilities, np.array([[1, 0], [0, 0]]), ["cat", "dog"])
    assert summary["labels"]["dog"] == {
        "precision": 0.0, "recall": 0.0, "f1": 0.0, "average_precision": None, "support": 0,
    }  # fmt: skip
    assert summary["map"] == 1
    assert summary["macro_f1"] == 1
    assert summary["exact_match"] == 1


def test_nothing_true_and_nothing_predicted_is_an_exact_match_without_f1():
    summary = metrics.multilabel_summary(np.zeros((3, 2)), np.zeros((3, 2)), ["a", "b"])
    assert (summary["exact_match"], summary["micro_f1"]) == (1.0, 0.0)
    assert (summary["macro_f1"], summary["map"]) == (None, None)


def test_multilabel_logits_are_refused():
    with pytest.raises(ValueError, match=r"sigmoid\(logits\)\?"):
        metrics.exact_match(np.array([[3.0]]), np.array([[1]]))


# Regression


def test_regression_errors_agree_with_scikit_learn():
    random = np.random.default_rng(0)
    true = random.normal(size=(50, 3)) * [1, 10, 100]
    predicted = true + random.normal(size=(50, 3)) * [1, 2, 3]
    errors = metrics.regression_errors(predicted, true)
    raw = {"multioutput": "raw_values"}
    np.testing.assert_allclose(errors.mae, oracle.mean_absolute_error(true, predicted, **raw))
    np.testing.assert_allclose(errors.rmse, oracle.root_mean_squared_error(true, predicted, **raw))
    np.testing.assert_allclose(errors.r2, oracle.r2_score(true, predicted, **raw))


def test_a_constant_target_has_no_r2_even_where_its_mean_is_rounded():
    true = np.column_stack([np.full(7, 0.1), np.arange(7.0)])
    summary = metrics.regression_summary(true + 0.5, true, ["depth", "age"], ["mm", "years"])
    assert summary["targets"]["depth"]["r2"] is None
    assert summary["targets"]["age"]["unit"] == "years"
    assert summary["r2"] == summary["targets"]["age"]["r2"]
    assert summary["mae"] == pytest.approx(0.5)


def test_one_sample_of_one_target_has_errors_and_no_r2():
    summary = metrics.regression_summary(np.array([[2.0]]), np.array([[5.0]]), ["age"], ["years"])
    target = {"mae": 3.0, "rmse": 3.0, "r2": None, "unit": "years"}
    assert summary == {"n": 1, "mae": 3.0, "rmse": 3.0, "r2": None, "targets": {"age": target}}


def test_arrays_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 1\) and \(3,\)"):
        metrics.regression_errors(np.zeros((3, 1)), np.zeros(3))


# Intervals


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 20), (13, 20), (20, 20), (9_700, 10_000)])
def test_wilson_interval_agrees_with_scipy(successes, n):
    expected = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert metrics.wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_interval_of_nothing_is_everything():
    assert metrics.wilson_interval(0, 0) == (0, 1)


def test_bootstrap_interval_of_a_mean_is_the_normal_one_and_repeats_with_its_seed():
    values = np.random.default_rng(0).normal(3, 2, 10_000)
    low, high = metrics.bootstrap_interval(np.mean, values, seed=1)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * 0.02, values.mean() + 1.96 * 0.02), abs=0.004)
    assert metrics.bootstrap_interval(np.mean, values, seed=1).tolist() == [low, high]
    assert metrics.bootstrap_interval(np.mean, values, seed=2).tolist() != [low, high]


def test_bootstrap_interval_draws_the_rows_of_all_arrays_together_and_keeps_the_statistics_shape():
    x = np.random.default_rng(0).normal(size=(200, 3))
    bounds = metrics.bootstrap_interval(lambda a, b: metrics.regression_errors(a, b).r2, x, x, resamples=50)
    assert bounds.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_bootstrap_interval_leaves_out_the_draws_that_have_no_value():
    def share_of_sevens(values):
        return np.nan if 7 not in values else (values == 7).mean()

    low, high = metrics.bootstrap_interval(share_of_sevens, np.array([7, 1, 2, 3]), resamples=200)
    assert 0.25 <= low < high <= 1


# Temperature


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_temperature_recovers_the_scale_the_logits_were_multiplied_by(scale):
    logits, targets = classified(n=20_000)
    assert metrics.fit_temperature(scale * logits, targets) == pytest.approx(scale, rel=0.05)
    logits, targets = labelled(n=10_000)
    assert metrics.fit_temperature(scale * logits, targets, "multilabel") == pytest.approx(scale, rel=0.05)


def test_temperature_is_the_minimum_that_scipy_finds():
    logits, targets = classified(n=300)
    logits = 2.5 * logits + 100  # a constant added to a row changes nothing

    def loss(temperature):
        return metrics.negative_log_likelihood(metrics.softmax(logits / temperature), targets)

    expected = scipy.optimize.minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x
    assert metrics.fit_temperature(logits, targets) == pytest.approx(expected, rel=1e-5)


def test_temperature_does_not_change_when_the_work_is_cut_in_pieces(monkeypatch):
    logits, targets = classified(n=300)
    whole = metrics.fit_temperature(logits, targets)
    monkeypatch.setattr(metrics, "CHUNK", 70)
    assert metrics.fit_temperature(logits, targets) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_temperature_stays_in_its_range(scale):
    logits, targets = classified(n=300)
    assert 0.05 <= metrics.fit_temperature(scale * logits, targets) <= 20
    right = scale * np.eye(3)
    assert metrics.fit_temperature(right, np.arange(3)) in (0.05, 1.0)
    assert metrics.fit_temperature(right, np.array([1, 2, 0])) == pytest.approx(20)


def test_temperature_is_one_where_none_is_better():
    assert metrics.fit_temperature(np.zeros((4, 3)), np.array([0, 1, 2, 0])) == 1


def test_temperature_of_infinite_logits_is_refused():
    with pytest.raises(ValueError, match="finite logits"):
        metrics.fit_temperature(np.array([[np.inf, 0.0]]), np.array([0]))


# Conformal


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_conformal_sets_hold_the_truth_as_often_as_they_promise(coverage):
    covered = []
    for seed in range(60):
        logits, targets = classified(n=400, seed=seed)
        probabilities = metrics.softmax(2 * logits)  # over-confident: the promise does not need calibration
        threshold = metrics.conformal_threshold(probabilities[:200], targets[:200], coverage)
        members = metrics.plausible(probabilities[200:], threshold)
        covered.append(members[np.arange(200), targets[200:]].mean())
    assert np.mean(covered) == pytest.approx(coverage, abs=0.02)


def test_conformal_bands_hold_the_truth_as_often_as_they_promise():
    random = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        true = random.normal(size=(300, 2)) * [1, 50]
        predicted = true + random.standard_t(3, size=(300, 2)) * [1, 50]
        half = metrics.conformal_halfwidth(predicted[:150], true[:150])
        covered.append((np.abs(predicted[150:] - true[150:]) <= half).mean(axis=0))
    np.testing.assert_allclose(np.mean(covered, axis=0), 0.9, atol=0.012)


def test_conformal_rank_is_exact_where_the_product_is_rounded_up():
    true = np.arange(1.0, 20)[:, None]  # 0.55 · 20 = 11.000000000000002
    assert metrics.conformal_halfwidth(np.zeros((19, 1)), true, 0.55).tolist() == [11]


def test_too_few_samples_admit_every_class_and_every_value():
    probabilities = np.tile([0.9, 0.1, 0.0], (8, 1))
    threshold = metrics.conformal_threshold(probabilities, np.zeros(8, int), 0.9)
    assert threshold == 1
    assert metrics.plausible(probabilities, threshold).all()
    assert metrics.conformal_halfwidth(np.zeros((8, 1)), np.zeros((8, 1)), 0.9).tolist() == [math.inf]
    assert metrics.conformal_threshold(np.tile([0.9, 0.1, 0.0], (9, 1)), np.zeros(9, int), 0.9) == pytest.approx(0.1)


def test_where_no_class_passes_the_most_probable_that_hold_nine_tenths_are_plausible():
    members = metrics.plausible(np.array([[0.4, 0.35, 0.2, 0.05], [0.9, 0.1, 0.0, 0.0], [0.02, 0.03, 0.75, 0.2]]), 0.2)
    assert members.tolist() == [[True, True, True, False], [True, False, False, False], [False, False, True, True]]


@pytest.mark.parametrize("coverage", [0, 1, 90])
def test_a_coverage_that_is_no_share_is_refused(coverage):
    with pytest.raises(ValueError, match="between 0 and 1"):
        metrics.conformal_threshold(np.array([[0.5, 0.5]]), np.array([0]), coverage)


# Summaries


def test_classification_summary_has_these_keys_and_survives_json():
    logits, targets = classified()
    names = list("abcdefg")
    summary = metrics.classification_summary(metrics.softmax(logits).astype(np.float32), targets, names)
    assert set(summary) == {
        "top1", "top5", "balanced_accuracy", "macro_f1", "nll", "ece", "n", "top1_interval", "classes", "confusion",
    }  # fmt: skip
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert set(summary["classes"]["a"]) == {"precision", "recall", "f1", "support"}
    assert sum(entry["support"] for entry in summary["classes"].values()) == summary["n"] == 400
    low, high = summary["top1_interval"]
    assert low < summary["top1"] < high
    assert np.trace(summary["confusion"]) == round(summary["top1"] * 400)


def test_classification_summary_has_no_top5_of_five_classes():
    logits, targets = classified(K=5)
    assert "top5" not in metrics.classification_summary(metrics.softmax(logits), targets, list("abcde"))


def test_one_right_sample_has_a_wide_interval():
    summary = metrics.classification_summary(np.array([[0.2, 0.8]]), np.array([1]), ["no", "yes"])
    assert summary["top1"] == summary["macro_f1"] == summary["balanced_accuracy"] == 1
    assert summary["top1_interval"] == pytest.approx([0.2065, 1.0], abs=1e-4)
    assert summary["classes"]["no"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_multilabel_and_regression_summaries_survive_json():
    logits, targets = labelled()
    summary = metrics.multilabel_summary(metrics.sigmoid(logits), targets, list("abcde"))
    assert set(summary) == {"exact_match", "micro_f1", "macro_f1", "map", "n", "labels"}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    summary = metrics.regression_summary(logits, logits + 1, list("abcde"), [""] * 5)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_names_that_would_hide_each_other_are_refused():
    with pytest.raises(ValueError, match="distinct names"):
        metrics.classification_summary(np.array([[0.5, 0.5]]), np.array([0]), ["a", "a"])
