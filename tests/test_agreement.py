"""How far answers agree: what is lost, what moved, and whether it is within the bar."""

import numpy as np
import pytest

from vitreous.data.targets import Task
from vitreous.infer.agreement import Bar, compare

CLASSES = Task("classification", ("cat", "dog", "owl"), column="class")
LABELS = Task("multilabel", ("fur", "wings"))
NUMBERS = Task("regression", ("length", "weight"), ("mm", "g"), (0.0, 0.0), (2.0, 100.0))


def sure_of(classes: list[int], probability: float = 0.8) -> np.ndarray:
    """Probabilities (n, 3) with so much on one class each."""
    answers = np.full((len(classes), 3), (1 - probability) / 2)
    answers[np.arange(len(classes)), classes] = probability
    return answers


class TestClasses:
    def test_equal_answers_lose_nothing_and_hold_at_any_bar(self):
        answers = sure_of([0, 1, 2, 0])
        for targets in (np.array([0, 1, 1, 2]), None):
            found = compare(CLASSES, answers, answers.copy(), targets)
            assert (found.pictures, found.shift, found.largest, found.same) == (4, 0, 0, 1)
            assert found.holds(Bar(max_loss=0, max_shift=0))

    def test_loss_is_points_of_accuracy_and_a_gain_is_negative(self):
        reference, targets = sure_of([0] * 10), np.zeros(10, int)
        worse = sure_of([0] * 8 + [1, 2])
        found = compare(CLASSES, reference, worse, targets)
        assert found.loss == pytest.approx(20)
        assert found.same == pytest.approx(0.8)
        assert found.interval is not None
        assert found.interval[0] <= 20 <= found.interval[1]
        assert found.interval[0] >= 0
        assert found.interval[1] <= 60
        back = compare(CLASSES, worse, reference, targets)
        assert back.loss == pytest.approx(-20)
        assert back.holds(Bar(max_loss=0, max_shift=1))

    def test_shift_is_of_the_reference_s_answer_and_largest_of_any_probability(self):
        reference, answers = sure_of([0, 1], 0.8), sure_of([0, 1], 0.8)
        answers[0] = (0.7, 0.3, 0.0)
        found = compare(CLASSES, reference, answers, None)
        assert found.shift == pytest.approx(0.05)
        assert found.largest == pytest.approx(0.2)
        assert (found.loss, found.interval) == (None, None)

    def test_one_picture_may_always_be_lost_and_beyond_that_what_the_bar_says(self):
        def lost(pictures: int, of: int) -> bool:
            reference, answers = sure_of([0] * of, 0.51), sure_of([0] * of, 0.51)
            answers[:pictures] = sure_of([1] * pictures, 0.51)
            bar = Bar(max_loss=0.3, max_shift=1)
            return compare(CLASSES, reference, answers, np.zeros(of, int)).holds(bar)

        assert [lost(1, 10), lost(2, 10)] == [True, False]
        assert [lost(3, 1000), lost(4, 1000)] == [True, False]

    def test_a_shift_beyond_the_bar_is_refused_though_no_answer_changed(self):
        reference, targets = sure_of([0, 1, 2], 0.9), np.array([0, 1, 2])
        assert compare(CLASSES, reference, sure_of([0, 1, 2], 0.891), targets).holds(Bar())
        assert not compare(CLASSES, reference, sure_of([0, 1, 2], 0.88), targets).holds(Bar())

    def test_without_targets_as_many_answers_may_change_as_could_be_lost(self):
        reference, bar = sure_of([0] * 10), Bar(max_shift=1)
        assert compare(CLASSES, reference, sure_of([0] * 9 + [1]), None).holds(bar)
        assert not compare(CLASSES, reference, sure_of([0] * 8 + [1, 1]), None).holds(bar)

    def test_answers_that_are_no_numbers_hold_at_no_bar(self):
        found = compare(CLASSES, sure_of([0, 1]), np.full((2, 3), np.nan), np.array([0, 1]))
        assert not found.holds(Bar(max_loss=100, max_shift=1))


class TestLabels:
    def test_loss_is_of_single_labels_and_same_is_that_all_are(self):
        reference = np.array([[0.9, 0.1]] * 10)
        answers = reference.copy()
        answers[0] = (0.9, 0.6)
        found = compare(LABELS, reference, answers, np.array([[1, 0]] * 10))
        assert found.loss == pytest.approx(5)  # one label of twenty
        assert found.same == pytest.approx(0.9)
        assert found.shift == pytest.approx(0.025)
        assert found.largest == pytest.approx(0.5)


class TestNumbers:
    targets = np.array([[2.0, 100.0], [4.0, 300.0], [8.0, 50.0], [1.0, 10.0]])

    def test_loss_is_the_growth_of_the_rmse_in_deviations_in_per_cent(self):
        reference = self.targets + np.array([2.0, 100.0])  # a deviation off, everywhere
        found = compare(NUMBERS, reference, self.targets + 1.02 * np.array([2.0, 100.0]), self.targets)
        assert found.loss == pytest.approx(2)
        assert found.shift == pytest.approx(0.02)
        assert found.largest == pytest.approx(0.02)
        assert found.same is None
        assert [found.holds(Bar(max_rmse=bound)) for bound in (1.9, 2.1)] == [False, True]

    def test_without_targets_only_equal_numbers_hold(self):
        assert compare(NUMBERS, self.targets, self.targets.copy(), None).holds(Bar())
        assert not compare(NUMBERS, self.targets, self.targets + 1e-6, None).holds(Bar(max_rmse=100))

    def test_numbers_that_are_none_hold_at_no_bar(self):
        assert not compare(NUMBERS, self.targets, self.targets * np.nan, self.targets).holds(Bar(max_rmse=1e9))
        assert not compare(NUMBERS, self.targets, self.targets * np.nan, None).holds(Bar(max_rmse=1e9))


class TestWords:
    def test_a_loss_is_said_as_what_the_accuracy_gains_with_its_interval(self):
        found = compare(CLASSES, sure_of([0] * 10), sure_of([0] * 9 + [1]), np.zeros(10, int))
        line = found.line()
        assert line.startswith("accuracy -10.00 points (95 %: -30.00 to +0.00), 90.00% of the answers the same, ")
        assert "probability of the answer 7.0e-02 off in the mean, 7.0e-01 at most, on 10 validation pictures" in line

    def test_nothing_lost_is_no_negative_zero_and_without_targets_there_is_no_accuracy(self):
        same = sure_of([0] * 10)
        assert compare(CLASSES, same, same, np.zeros(10, int)).line().startswith("accuracy +0.00 points (95 %: +0.00 ")
        assert compare(CLASSES, same, same, None).line().startswith("100.00% of the answers the same")

    def test_numbers_tell_the_rmse(self):
        targets = TestNumbers.targets
        found = compare(NUMBERS, targets + 1.0, targets + 1.02, targets)
        assert found.line().startswith("RMSE +2.00 % (95 %: +2.00 to +2.00 %), mean change ")
        assert compare(NUMBERS, targets, targets, None).line().startswith("mean change 0.0e+00 deviations")

    def test_what_the_pictures_are_is_said(self):
        same = sure_of([0] * 10)
        assert compare(CLASSES, same, same, None, "pictures of noise").line().endswith("on 10 pictures of noise")
