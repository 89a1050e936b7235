"""What columns of targets are taken to mean."""

import json

import numpy as np
import pytest

from vitreous.data.targets import Task, class_labels, describe, infer_task
from vitreous.errors import InputError

COLOURS = np.array(["red", "blue", "red", "green"])
AGES = np.array([3.5, 60.0, 22.25, 97.0])


@pytest.mark.parametrize(
    ("columns", "kind", "names"),
    [
        ({"colour": COLOURS}, "classification", ("blue", "green", "red")),
        ({"ill": np.array([True, False, True])}, "classification", ("False", "True")),
        ({"digit": np.array([10, 2, 2, 10, 2])}, "classification", ("2", "10")),
        ({"digit": np.array([10.0, 2.0, 2.0, 10.0, 2.0])}, "classification", ("2", "10")),
        ({"digit": np.array(["10", "2", "9"])}, "classification", ("2", "9", "10")),
        ({"id": np.array([1, 2, 3, 4])}, "regression", ("id",)),
        ({"age": AGES}, "regression", ("age",)),
        ({"count": np.repeat(np.arange(51), 3)}, "regression", ("count",)),
        ({"count": np.repeat(np.arange(50), 3)}, "classification", tuple(map(str, range(50)))),
        ({"age (years)": np.array([4, 5, 4, 5, 4, 5])}, "regression", ("age (years)",)),
        ({"cat": np.array([0, 1, 1]), "dog": np.array([1, 0, 1])}, "multilabel", ("cat", "dog")),
        ({"cat": np.array([True, False]), "dog": np.array([1.0, 0.0])}, "multilabel", ("cat", "dog")),
        ({"w": np.array([0, 1, 2]), "h": np.array([0.5, 0.1, 0.2])}, "regression", ("w", "h")),
    ],
)
def test_the_kind_of_task_is_inferred_from_the_values(columns, kind, names):
    task = infer_task(columns)
    assert (task.kind, task.names, task.outputs) == (kind, names, len(names))


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"digit": np.array([1, 2, 1, 2, 1])}, "regression"),
        ({"id": np.array([1, 2, 3, 4])}, "classification"),
        ({"ill": np.array([0, 1, 1, 0, 1])}, "multilabel"),
        ({"a": np.array([0, 1]), "b": np.array([1, 0])}, "regression"),
    ],
)
def test_the_kind_can_be_chosen(columns, kind):
    assert infer_task(columns, kind).kind == kind


@pytest.mark.parametrize(
    ("columns", "kind", "words"),
    [
        ({"colour": COLOURS, "age": AGES}, "auto", "Choose what to learn with --target, among: 'colour', 'age'"),
        ({"colour": COLOURS, "shape": COLOURS}, "auto", "these do not: 'colour', 'shape'"),
        ({"colour": COLOURS, "age": AGES}, "classification", "Classes stand in one column"),
        ({"age": AGES}, "classification", r"fractions, such as \[3.5\]"),
        ({"age": AGES}, "multilabel", "columns of 0 and 1, but these hold other values: 'age'"),
        ({"colour": COLOURS}, "regression", "do not hold numbers: 'colour'"),
        ({"colour": COLOURS}, "ranking", "must be one of auto, classification"),
        ({"colour": COLOURS[:1]}, "auto", "only one class, 'red', in 'colour'"),
        ({"colour": COLOURS[:0]}, "auto", "no pictures"),
        ({}, "auto", "no targets"),
    ],
)
def test_what_cannot_be_learned_is_refused(columns, kind, words):
    with pytest.raises(InputError, match=words):
        infer_task(columns, kind)


def test_missing_and_infinite_targets_are_all_named():
    columns = {"age": np.array([1.5, np.nan, np.inf, 1e300]), "place": np.array(["here", "there", "", "here"])}
    with pytest.raises(InputError) as caught:
        infer_task(columns, names=["a.png", "b.png", "c.png", "d.png"])
    message = str(caught.value)
    for fault in ("row 2 (b.png): 'age' is missing", "row 3 (c.png): 'age' is inf", "row 4 (d.png): 'age' is 1e+300",
                  "row 3 (c.png): 'place' is missing"):  # fmt: skip
        assert fault in message
    assert "row 1" not in message


def test_text_is_not_taken_apart():
    assert infer_task({"what": np.array(["cat|dog", "cat"])}).names == ("cat", "cat|dog")


def test_classes_are_encoded_by_name():
    targets = infer_task({"colour": COLOURS}).encode({"colour": COLOURS})
    assert targets.dtype == np.int64
    assert targets.tolist() == [2, 0, 2, 1]


def test_numbers_text_and_other_column_names_encode_to_the_same_classes():
    task = infer_task({"digit": np.array([10, 2, 2, 10, 2])})
    for column in (np.array([10, 2]), np.array([10.0, 2.0]), np.array(["10", "2"])):
        assert task.encode({"class": column}).tolist() == [1, 0]


def test_unknown_classes_are_named_with_the_known_ones():
    task = infer_task({"colour": COLOURS})
    with pytest.raises(InputError) as caught:
        task.encode({"colour": np.array(["red", "pink", "mauve", "pink"])}, ["a", "b", "c", "d"])
    message = str(caught.value)
    assert "'mauve', first at row 3 (c)" in message
    assert "'pink', first at row 2 (b)" in message
    assert "The known classes are: 'blue', 'green', 'red'" in message


def test_a_fraction_is_no_known_class():
    with pytest.raises(InputError, match=r"'2\.5', first at row 2"):
        infer_task({"digit": np.array([1, 2, 2, 1, 2])}).encode({"digit": np.array([2.0, 2.5])})


def test_columns_are_found_by_name_whatever_their_order():
    task = infer_task({"w": np.array([1.5, 2.5]), "h": np.array([3, 4])})
    targets = task.encode({"h": np.array([30, 40]), "other": np.array(["", ""]), "w": np.array([1, 2])})
    assert targets.dtype == np.float32
    assert targets.tolist() == [[1, 30], [2, 40]]


@pytest.mark.parametrize(
    ("task", "columns", "words"),
    [
        (Task("regression", ("age",)), {"agee": AGES}, "No target column 'age'. The target columns are: 'agee'"),
        (Task("regression", ("age",)), {"age": COLOURS}, "must hold numbers, but it holds text such as 'red'"),
        (Task("multilabel", ("cat",)), {"cat": AGES}, "must hold 0 or 1 only"),
        (Task("classification", ("a", "b"), column="c"), {"d": COLOURS, "e": COLOURS}, "No target column 'c'"),
        (Task("regression", ("age",)), {"age": np.array([1, np.nan])}, "row 2: 'age' is missing"),
    ],
)
def test_columns_that_do_not_fit_the_task_are_refused(task, columns, words):
    with pytest.raises(InputError, match=words):
        task.encode(columns)


def test_standardised_numbers_have_mean_0_and_deviation_1_and_come_back():
    columns = {"age": AGES, "size": np.array([1e6, 3e6, 2e6, 9e6])}
    task = infer_task(columns)
    targets = task.encode(columns)
    task = task.fitted(targets)
    scaled = task.standardise(targets)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(task.restore(scaled), targets, rtol=1e-6)
    assert scaled.dtype == task.restore(scaled).dtype == np.float32


def test_a_constant_target_is_refused_by_name():
    targets = np.array([[0.1, 1], [0.1, 2], [0.1, 3]], dtype=np.float32)
    with pytest.raises(InputError, match=r"constant target cannot be learned[^$]*\n  flat\n"):
        Task("regression", ("flat", "steep")).fitted(targets)


def test_a_task_that_was_not_fitted_has_no_scale():
    with pytest.raises(ValueError, match="fitted"):
        Task("regression", ("age",)).standardise(np.ones((2, 1)))


def test_fitting_leaves_classes_as_they_are():
    task = infer_task({"colour": COLOURS})
    assert task.fitted(task.encode({"colour": COLOURS})) is task


@pytest.mark.parametrize(
    "task",
    [
        Task("classification", ("a", "b"), column="letter"),
        Task("multilabel", ("cat", "dog")),
        Task("regression", ("length (mm)",), ("mm",), (0.1,), (3.0,)),
    ],
)
def test_a_task_survives_json(task):
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


@pytest.mark.parametrize("data", [{"kind": "magic", "names": ["a"]}, {"kind": "regression", "names": []}, {"a": 1}, {}])
def test_what_is_no_task_is_refused(data):
    with pytest.raises(InputError, match="Not the description of a task"):
        Task.from_json(data)


@pytest.mark.parametrize(
    ("column", "unit"),
    [("length (mm)", "mm"), ("length [mm]", "mm"), ("age(years)", "years"), ("age", ""), ("(mm)", ""), ("a (b) c", "")],
)
def test_units_are_read_from_column_names(column, unit):
    assert infer_task({column: AGES}).units == (unit,)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"colour": COLOURS}, "classification, 3 classes: blue (1), green (1), red (2)"),
        ({"age (years)": AGES}, "regression of age, 3.5 to 97 (years)"),
        ({"w [mm]": AGES, "h": AGES * 2}, "regression of w, 3.5 to 97 (mm); h, 7 to 194"),
        ({"cat": np.array([0, 1, 1]), "dog": np.array([1, 0, 0])}, "multi-label, 2 labels: cat (2), dog (1)"),
    ],
)
def test_a_task_is_described_in_one_line(columns, line):
    task = infer_task(columns)
    assert describe(task, task.encode(columns)) == line


def test_the_description_of_many_classes_is_cut():
    columns = {"class": np.array([f"c{i:02}" for i in range(30)])}
    task = infer_task(columns)
    assert describe(task, task.encode(columns)).endswith("c11 (1) …")


@pytest.mark.parametrize(
    ("task", "sensitive"),
    [
        (Task("classification", ("0", "1", "b")), True),
        (Task("classification", ("turn_left", "turn right")), True),
        (Task("classification", ("cat", "dog")), False),
        (Task("classification", ("1", "10")), False),
        (Task("regression", ("x",)), False),
    ],
)
def test_classes_that_a_mirror_would_change_are_told(task, sensitive):
    assert task.mirror_sensitive is sensitive


def test_labels_are_named_without_a_decimal_point():
    assert class_labels(np.array([2.0, -0.0, 10.0])).tolist() == ["2", "0", "10"]


def test_numbers_with_a_typo_are_not_taken_for_classes():
    column = np.array([f"{value / 7:.3f}" for value in range(40)])
    column[3] = "abc"
    with pytest.raises(InputError, match=r"not in 1 of 40 rows:\n  row 4: 'abc'"):
        infer_task({"age": column})
    assert infer_task({"age": column}, "classification").outputs == 40


def test_classes_that_are_numbers_and_a_word_are_classes():
    assert infer_task({"grade": np.array(["1", "2", "3", "none"] * 5)}).kind == "classification"
