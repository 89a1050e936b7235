"""The order of samples, and batches."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from vitreous.data.augment import AugmentConfig
from vitreous.data.batches import Order, TrainingBatches, coarser, plain_batches
from vitreous.data.preprocess import InputSpec
from vitreous.data.sources import Source
from vitreous.data.store import PixelStore

LAYOUTS = {
    "one group": ([40], 8),
    "one group that does not divide": ([37], 8),
    "two groups": ([40, 24], 8),
    "a group smaller than the batch": ([37, 3], 8),
    "several small groups": ([9, 3, 2, 1], 8),
    "fewer pictures than a batch": ([5], 8),
    "a batch of one": ([5, 4], 1),
    "an empty group": ([12, 0, 7], 4),
    "eight sizes": ([31, 17, 13, 11, 7, 5, 3, 2], 16),
}
layouts = pytest.mark.parametrize(("lengths", "batch"), LAYOUTS.values(), ids=LAYOUTS)


def groups(lengths: list[int]) -> list[np.ndarray]:
    """Numbers that are not simply counted, so that a mix-up of places and numbers shows."""
    numbers = np.random.default_rng(7).permutation(sum(lengths)) + 100
    return np.split(numbers, np.cumsum(lengths)[:-1])


class TestOrder:
    @layouts
    def test_each_batch_is_full_and_of_one_group(self, lengths, batch):
        parts = groups(lengths)
        order = Order(parts, batch, seed=0)
        assert order.batch_size == min(batch, max(lengths))
        homes = {int(n): g for g, part in enumerate(parts) for n in part}
        for step in range(3 * sum(lengths)):
            numbers = order.batch(step)
            assert len(numbers) == order.batch_size
            assert len({homes[int(n)] for n in numbers}) == 1

    @layouts
    def test_every_picture_comes_as_often_as_the_others_of_its_group(self, lengths, batch):
        parts = groups(lengths)
        order = Order(parts, batch, seed=0)
        seen: Counter[int] = Counter()
        step = 0
        for epoch in range(1, 25):
            while step < order.steps_before(epoch):
                seen.update(order.batch(step).tolist())
                step += 1
            for part in parts:
                counts = [seen[int(n)] for n in part]
                if counts:
                    assert max(counts) - min(counts) <= 1
                    behind = -(-order.batch_size // len(part))  # passes that the batch under way may still lack
                    assert epoch - behind <= min(counts) <= max(counts) <= epoch

    @layouts
    def test_a_batch_follows_from_seed_and_step_alone(self, lengths, batch):
        forwards, backwards = Order(groups(lengths), batch, seed=3), Order(groups(lengths), batch, seed=3)
        steps = list(range(60))
        ahead = {step: forwards.batch(step) for step in steps}
        back = {step: backwards.batch(step) for step in reversed(steps)}
        for step in steps:
            np.testing.assert_array_equal(ahead[step], back[step])
            np.testing.assert_array_equal(ahead[step], Order(groups(lengths), batch, seed=3).batch(step))

    @layouts
    def test_epochs_and_steps_agree(self, lengths, batch):
        order = Order(groups(lengths), batch, seed=0)
        assert order.steps_before(0) == 0
        ends = [order.steps_before(epoch) for epoch in range(200)]
        for step in range(ends[-1]):
            epoch = order.epoch_of(step)
            assert ends[epoch] <= step < ends[epoch + 1]

    def test_epochs_and_steps_agree_far_out(self):
        order = Order(groups([31, 3, 1]), 16, seed=0)
        for step in (10**6, 10**7 + 3):
            epoch = order.epoch_of(step)
            assert order.steps_before(epoch) <= step < order.steps_before(epoch + 1)

    def test_another_seed_or_epoch_is_another_order(self):
        order, other = Order(groups([40]), 8, seed=0), Order(groups([40]), 8, seed=1)
        first, second = (np.concatenate([order.batch(5 * epoch + i) for i in range(5)]) for epoch in (0, 1))
        assert not np.array_equal(first, second)
        assert not np.array_equal(first, np.concatenate([other.batch(i) for i in range(5)]))
        np.testing.assert_array_equal(np.sort(first), np.sort(second))

    def test_groups_are_interleaved_not_one_after_the_other(self):
        parts = groups([80, 80])
        order = Order(parts, 8, seed=0)
        kinds = [int(order.batch(step)[0] in parts[0]) for step in range(order.steps_before(1))]
        assert sum(kinds) == 10
        assert np.abs(np.diff(kinds)).sum() >= 4

    def test_each_epoch_interleaves_the_groups_anew(self):
        parts = groups([80, 80])
        order = Order(parts, 8, seed=0)
        kinds = [[bool(order.batch(20 * epoch + i)[0] in parts[0]) for i in range(20)] for epoch in range(3)]
        assert kinds[0] != kinds[1] != kinds[2]

    def test_weights_are_the_chances_of_being_drawn(self):
        weights = np.zeros(200)
        [part] = groups([40])
        weights[part] = np.where(np.arange(40) < 4, 9.0, 1.0)  # 4 pictures have half of the weight
        order = Order([part], 8, seed=0, weights=weights)
        drawn = np.concatenate([order.batch(step) for step in range(500)])
        assert np.isin(drawn, part[:4]).mean() == pytest.approx(0.5, abs=0.03)
        np.testing.assert_array_equal(order.batch(17), Order([part], 8, 0, weights).batch(17))

    def test_a_picture_of_weight_0_is_never_drawn(self):
        weights = np.ones(200)
        [part] = groups([40])
        weights[part[:10]] = 0
        order = Order([part], 8, seed=0, weights=weights)
        assert not np.isin(np.concatenate([order.batch(step) for step in range(100)]), part[:10]).any()


SIZES = ((8, 16), (16, 8))


def store(count: int = 30) -> PixelStore:
    """Lying and upright pictures; each has its number as its first pixel."""
    rng = np.random.default_rng(0)
    shapes = [SIZES[int(i % 3 == 0)] for i in range(count)]
    pictures = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    for i, picture in enumerate(pictures):
        picture[0, 0] = i
    names = tuple(map(str, range(count)))
    source = Source("arrays", "/here", names, {}, np.full(count, ""), None, pictures.__getitem__)
    spec = InputSpec(channels=3, depth="uint8", sizes=SIZES, mean=(0.5, 0.4, 0.6), std=(0.3, 0.2, 0.25))
    return PixelStore(source, spec, shapes, None)


def training(policy: AugmentConfig, seed: int = 0, **options: Any) -> TrainingBatches:
    pixels = store()
    order = Order([np.flatnonzero(pixels.which == size) for size in (0, 1)], 8, seed)
    targets = np.arange(30) % 4
    return TrainingBatches(pixels, targets, order, policy, **{"classes": 4, **options})


STRONG = AugmentConfig(0.5, 0.0, 0.4, 0.1, 0.3, 2, 5.0, 0.3, 0.2, 1.0)
NOTHING = AugmentConfig(0.0, 0.0, 1.0, 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0)


class TestTrainingBatches:
    @pytest.mark.parametrize("workers", [0, 1, 2])
    def test_the_number_of_workers_changes_no_bit(self, workers):
        expected = [training(STRONG).make(step) for step in range(3, 11)]
        got = list(training(STRONG).steps(3, 11, workers))
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one.pixels, other.pixels)
            assert torch.equal(one.targets, other.targets)
            np.testing.assert_array_equal(one.numbers, other.numbers)

    def test_a_step_is_the_same_whichever_was_made_before(self):
        batches = training(STRONG)
        late = batches.make(9)
        batches.make(2)
        assert torch.equal(batches.make(9).pixels, late.pixels)

    def test_steps_and_seeds_are_augmented_each_in_its_own_way(self):
        mirrored = AugmentConfig(0.5, 0.0, 1.0, 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0)
        patterns = set()
        for seed in range(3):
            batches = training(mirrored, seed)
            for step in range(4):
                batch = batches.make(step)
                plain = batches.store.spec.normalise(batches.store.gather(batch.numbers).permute(0, 3, 1, 2))
                patterns.add(tuple((batch.pixels - plain).abs().amax((1, 2, 3)).gt(0.1).tolist()))
        assert len(patterns) > 8

    def test_without_augmentation_it_is_the_normalised_picture_and_its_target(self):
        batches = training(NOTHING)
        for step in range(6):
            batch = batches.make(step)
            pixels = batches.store.gather(batch.numbers).permute(0, 3, 1, 2)
            torch.testing.assert_close(batch.pixels, batches.store.spec.normalise(pixels), rtol=0, atol=1e-5)
            np.testing.assert_array_equal(pixels[:, 0, 0, 0].numpy(), batch.numbers)
            assert batch.targets.tolist() == (batch.numbers % 4).tolist()

    def test_the_first_steps_are_coarser_pictures_of_the_same_things(self):
        whole, coarse = training(NOTHING), training(NOTHING, coarse_steps=3, stride=(2, 4))
        for step in range(5):
            a, b = whole.make(step), coarse.make(step)
            np.testing.assert_array_equal(a.numbers, b.numbers)
            if step >= 3:
                assert torch.equal(a.pixels, b.pixels)
                continue
            height, width = a.pixels.shape[2:]
            assert b.pixels.shape[2:] == coarser((height, width), (2, 4)) != (height, width)
            torch.testing.assert_close(a.pixels.mean((2, 3)), b.pixels.mean((2, 3)), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [((32, 32), (4, 4), (24, 24)), ((192, 144), (16, 16), (144, 112)), ((16, 400), (16, 16), (16, 304))],
)
def test_coarser_is_about_three_quarters_in_multiples_of_the_stride(size, stride, expected):
    assert coarser(size, stride) == expected


class TestPlainBatches:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("batch", [1, 7, 100])
    def test_every_picture_that_is_asked_for_comes_once_with_its_pixels_and_target(self, batch, workers):
        pixels, targets = store(), np.arange(30) * 10
        numbers = np.random.default_rng(1).permutation(30)[:22]
        batches = list(plain_batches(pixels, targets, numbers, batch, workers))
        seen = np.concatenate([one.numbers for one in batches])
        assert sorted(seen.tolist()) == sorted(numbers.tolist())
        for one in batches:
            assert 1 <= len(one.numbers) <= batch
            assert len(set(pixels.which[one.numbers])) == 1
            assert one.targets.tolist() == (one.numbers * 10).tolist()
            expected = pixels.spec.normalise(pixels.gather(one.numbers).permute(0, 3, 1, 2))
            assert torch.equal(one.pixels, expected)

    def test_no_picture_gives_no_batch(self):
        assert list(plain_batches(store(), np.zeros(30), np.array([], dtype=int), 4, 0)) == []


def test_epochs_are_counted_with_the_share_of_the_one_under_way():
    order = Order([np.arange(40)], 10, seed=0)
    assert [order.epochs_at(step) for step in (0, 1, 4, 6)] == [0, 0.25, 1, 1.5]
