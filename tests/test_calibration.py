"""Outputs to answers, and how sure they are."""

import json
import math

import numpy as np
import pytest

from vitreous.calibration import Calibration, headline, summarise
from vitreous.data.targets import Task

CLASSES = Task("classification", ("a", "b", "c"), column="class")
LABELS = Task("multilabel", ("x", "y"))
NUMBERS = Task("regression", ("length (mm)", "angle"), ("mm", ""), mean=(50.0, 0.0), std=(10.0, 2.0))


def graded(n: int, seed: int = 0, confidence: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Outputs (n, 3) and targets drawn from their softmax; the outputs are then stretched by `confidence`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 3))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = (chances.cumsum(1) > rng.random((n, 1))).argmax(1)
    return (logits * confidence).astype(np.float32), targets


class TestFit:
    @pytest.mark.parametrize("confidence", [0.5, 1.0, 3.0])
    def test_the_temperature_undoes_too_much_and_too_little_confidence(self, confidence):
        outputs, targets = graded(4000, confidence=confidence)
        assert Calibration.fit(CLASSES, outputs, targets).temperature == pytest.approx(confidence, rel=0.1)

    @pytest.mark.parametrize("task", [CLASSES, LABELS])
    def test_outputs_without_a_mistake_keep_a_temperature_above_0(self, task):
        if task is CLASSES:
            targets = np.arange(60) % 3
            outputs = 8 * np.eye(3, dtype=np.float32)[targets]
        else:
            targets = (np.arange(120).reshape(60, 2) % 3 == 0).astype(np.float32)
            outputs = 8 * targets - 4
        one = Calibration.fit(task, outputs, targets)
        assert one.temperature > 0.1
        assert np.isfinite(one.answers(task, outputs)).all()
        assert one.answers(task, outputs).max() < 1 - 1e-4

    def test_plausible_classes_hold_the_truth_nine_times_in_ten(self):
        one = Calibration.fit(CLASSES, *graded(2000))
        outputs, targets = graded(4000, seed=1)
        truth = one.answers(CLASSES, outputs)[np.arange(4000), targets]
        assert (1 - truth <= one.threshold).mean() == pytest.approx(0.9, abs=0.02)

    def test_intervals_of_numbers_hold_the_truth_nine_times_in_ten_in_their_units(self):
        rng = np.random.default_rng(0)
        outputs = rng.normal(size=(2000, 2)).astype(np.float32)
        targets = outputs + rng.normal(size=(2000, 2)).astype(np.float32) * (0.1, 0.5)
        one = Calibration.fit(NUMBERS, outputs, targets.astype(np.float32))
        # 90 % of a normal distribution lie within 1.645 deviations: 0.1 × 10 mm, and 0.5 × 2
        np.testing.assert_allclose(one.halfwidth, (1.645, 1.645), rtol=0.08)

    def test_too_few_pictures_know_no_interval(self):
        one = Calibration.fit(NUMBERS, np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32))
        assert one.halfwidth == (math.inf, math.inf)


class TestAnswers:
    def test_classes_get_probabilities_that_sum_to_1_in_the_order_of_the_outputs(self):
        outputs, _ = graded(50)
        answers = Calibration(temperature=2.0).answers(CLASSES, outputs)
        expected = np.exp(outputs / 2) / np.exp(outputs / 2).sum(1, keepdims=True)
        np.testing.assert_allclose(answers, expected, rtol=1e-5)

    def test_labels_get_probabilities_of_their_own(self):
        answers = Calibration(temperature=2.0).answers(LABELS, np.array([[0.0, 2.0]], np.float32))
        np.testing.assert_allclose(answers, [[0.5, 1 / (1 + math.exp(-1))]], rtol=1e-6)

    def test_numbers_come_in_their_units(self):
        answers = Calibration(temperature=2.0).answers(NUMBERS, np.array([[1.0, -0.5]], np.float32))
        np.testing.assert_allclose(answers, [[60.0, -1.0]])


@pytest.mark.parametrize("halfwidth", [(), (1.5, math.inf)])
def test_a_calibration_comes_back_from_strict_json(halfwidth):
    one = Calibration(1.7, 0.4, halfwidth)
    assert Calibration.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False))) == one


class TestHeadline:
    def test_classes(self):
        answers = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
        line = headline(CLASSES, summarise(CLASSES, answers, np.array([0, 1, 2, 1])))
        assert line.startswith("top-1 75.0% (95 %: ")
        assert line.endswith("on 4 pictures")

    def test_labels(self):
        answers = np.array([[0.9, 0.2], [0.1, 0.8]])
        line = headline(LABELS, summarise(LABELS, answers, np.array([[1, 0], [0, 1]], np.float32)))
        assert line.startswith("mean average precision 1.000, macro F1 1.000, all labels right 100.0%")

    def test_numbers_have_their_units(self):
        answers, targets = np.array([[50.0, 1.0], [60.0, 2.0]]), np.array([[52.0, 1.0], [58.0, 2.0]])
        line = headline(NUMBERS, summarise(NUMBERS, answers, targets))
        assert "MAE 2 mm, RMSE 2 mm; angle: R² 1.000, MAE 0, RMSE 0, on 2 pictures" in line
