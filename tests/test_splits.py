"""Which pictures are held out, and that nothing stands on both sides."""

import numpy as np
import pytest

from vitreous.data.splits import assign_splits, find_leaks, split_of
from vitreous.errors import InputError

UNSAID = ""


def given(*words: str) -> np.ndarray:
    return np.array(words, dtype="U10")


def unsaid(n: int) -> np.ndarray:
    return np.full(n, UNSAID, dtype="U10")


def distinct(n: int) -> list[str]:
    return [f"digest{i}" for i in range(n)]


@pytest.mark.parametrize(
    ("word", "split"),
    [("train", "train"), ("Training", "train"), ("VAL", "validation"), ("valid", "validation"), ("dev", "validation"),
     (" test ", "test"), ("cat", None), ("", None)],
)  # fmt: skip
def test_words_for_splits_are_understood(word, split):
    assert split_of(word) == split


def test_each_class_gives_its_share():
    strata = np.repeat([0, 1, 2], [100, 20, 2])
    splits = assign_splits(unsaid(122), strata, None, distinct(122), seed=0)
    held = [int((splits[strata == c] == "validation").sum()) for c in range(3)]
    assert held == [15, 3, 1]
    assert set(splits) == {"train", "validation"}


def test_without_classes_the_share_is_of_all():
    splits = assign_splits(unsaid(40), None, None, distinct(40), seed=0, fraction=0.25)
    assert (splits == "validation").sum() == 10


def test_given_splits_stand_and_nothing_is_drawn():
    words = given("train", "", "validation", "test", "train")
    splits = assign_splits(words, np.array([0, 1, 0, 1, 1]), None, distinct(5), seed=0)
    assert splits.tolist() == ["train", "train", "validation", "test", "train"]


def test_test_pictures_are_never_touched_when_validation_is_drawn():
    words = given(*["train"] * 20, *["test"] * 20)
    splits = assign_splits(words, np.tile([0, 1], 20), None, distinct(40), seed=0)
    assert (splits[20:] == "test").all()
    assert (splits[:20] == "validation").sum() == 4


def test_the_draw_depends_on_the_pictures_and_the_seed_not_on_their_order():
    strata, digests = np.tile([0, 1], 50), np.array(distinct(100))
    order = np.random.default_rng(0).permutation(100)
    splits = assign_splits(unsaid(100), strata, None, digests.tolist(), seed=3)
    shuffled = assign_splits(unsaid(100), strata[order], None, digests[order].tolist(), seed=3)
    assert (splits[order] == shuffled).all()
    assert (splits != assign_splits(unsaid(100), strata, None, digests.tolist(), seed=4)).any()


def test_the_draw_is_pinned():
    splits = assign_splits(unsaid(12), None, None, distinct(12), seed=0, fraction=0.25)
    assert np.flatnonzero(splits == "validation").tolist() == [0, 9, 11]


def test_identical_pictures_stand_on_one_side():
    digests = [f"d{i // 3}" for i in range(90)]
    for seed in range(5):
        splits = assign_splits(unsaid(90), np.repeat([0, 1], 45), None, digests, seed=seed)
        assert not find_leaks(splits, digests, distinct(90))
        assert 12 <= (splits == "validation").sum() <= 15


def test_groups_stand_on_one_side_and_come_near_the_share():
    rng = np.random.default_rng(1)
    groups = np.array([f"patient{g}" for g in rng.integers(0, 40, 400)])
    strata = rng.integers(0, 3, 400)
    for seed in range(5):
        splits = assign_splits(unsaid(400), strata, groups, distinct(400), seed=seed)
        assert not find_leaks(splits, groups, distinct(400))
        for c in range(3):
            assert 0.08 < (splits[strata == c] == "validation").mean() < 0.25


def test_groups_that_share_a_picture_move_as_one():
    groups = np.repeat([f"g{i:02}" for i in range(20)], 3)
    digests = distinct(60)
    digests[3] = digests[0]  # ties g01 to g00
    digests[6] = digests[4]  # ties g02 to g01
    for seed in range(20):
        splits = assign_splits(unsaid(60), None, groups, digests, seed=seed, fraction=0.3)
        assert len(set(splits[:9])) == 1
        assert not find_leaks(splits, digests, distinct(60))


def test_a_group_larger_than_the_share_is_held_out_when_there_is_no_other():
    groups = np.array(["a"] * 50 + ["b"] * 40)
    splits = assign_splits(unsaid(90), None, groups, distinct(90), seed=0)
    assert (splits[:50] == "train").all()
    assert (splits[50:] == "validation").all()


def test_every_class_keeps_a_picture_in_train_even_if_rare_classes_share_groups():
    groups = np.array(["a", "a", "b", "b", "c", "c", "d", "d"])
    strata = np.array([0, 1, 0, 1, 0, 2, 1, 2])
    for seed in range(20):
        splits = assign_splits(unsaid(8), strata, groups, distinct(8), seed=seed)
        for c in range(3):
            assert set(splits[strata == c]) == {"train", "validation"}


def test_all_faults_are_reported_together():
    words = given("", "", "", "", "", "test")
    strata, digests = np.array([0, 0, 1, 2, 2, 3]), ["a", "b", "c", "d", "d", "e"]
    with pytest.raises(InputError) as caught:
        assign_splits(words, strata, None, digests, seed=0, class_names=("coat", "hat", "shoe", "sock"))
    message = str(caught.value)
    assert "class 'hat' has one picture; at least 2 are needed, one to train on and one to validate with" in message
    assert "all 2 pictures of class 'shoe' are copies of one" in message
    assert "class 'sock' has pictures in test, but none in train" in message
    assert "coat" not in message


@pytest.mark.parametrize(
    ("groups", "strata", "words"),
    [
        (["p"] * 4, None, "all 4 pictures belong to one group"),
        (["p", "p", "q", "r"], [0, 0, 1, 1], "all 2 pictures of class '0' belong to one group"),
    ],
)
def test_groups_that_leave_nothing_to_validate_with_are_refused(groups, strata, words):
    with pytest.raises(InputError, match=words):
        assign_splits(unsaid(4), None if strata is None else np.array(strata), np.array(groups), distinct(4), seed=0)


def test_classes_that_no_draw_can_part_are_refused():
    groups, strata = np.array(["a", "a", "a", "b", "b", "c", "c"]), np.array([0, 1, 2, 0, 1, 2, 3])
    with pytest.raises(InputError, match="class '3' belong"):
        assign_splits(unsaid(8), np.append(strata, 3), np.append(groups, "c"), distinct(8), seed=0)
    groups, strata = np.array(["a", "a", "b", "b", "c", "c"]), np.array([0, 1, 1, 2, 2, 0])  # a triangle
    with pytest.raises(InputError, match="cannot be held out without taking all of another class"):
        assign_splits(unsaid(6), strata, groups, distinct(6), seed=0)


def test_nothing_to_train_on_is_refused():
    with pytest.raises(InputError, match="no pictures to train on"):
        assign_splits(given("test", "validation"), None, None, distinct(2), seed=0)


def test_one_picture_in_all_is_refused():
    with pytest.raises(InputError, match="the data has one picture"):
        assign_splits(unsaid(1), None, None, ["a"], seed=0)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(InputError, match="between 0 and 1"):
        assign_splits(unsaid(4), None, None, distinct(4), seed=0, fraction=fraction)


def test_leaks_name_both_sides():
    splits = given("train", "train", "validation", "test", "test", "test")
    leaks = find_leaks(splits, ["a", "b", "a", "a", "c", "c"], ["t0", "t1", "v0", "e0", "e1", "e2"])
    assert sorted(leaks) == [
        ("train", "test", "t0", "e0"),
        ("train", "validation", "t0", "v0"),
        ("validation", "test", "v0", "e0"),
    ]
