"""The order of samples, and batches of one token grid each. Both are functions of the seed and the step alone."""

import functools
import hashlib
from bisect import bisect_right
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitreous.data.augment import CELL, AugmentConfig, apply, draw
from vitreous.data.preprocess import Size
from vitreous.data.store import PixelStore, in_order
from vitreous.errors import InputError, counted


@dataclass(frozen=True)
class Batch:
    """Normalised pixels (B, C, H, W), targets (B,) or (B, K), and which pictures they are."""

    pixels: Tensor
    targets: Tensor
    numbers: np.ndarray
    rows: tuple[tuple[int, int], ...] = ()  # of the whole batch, from the first up to the last: each process's
    rank: int = 0  # which process's these are

    @property
    def own(self) -> slice:
        """The rows of the whole batch that these are."""
        return slice(*self.rows[self.rank]) if self.rows else slice(0, len(self.pixels))

    @property
    def size(self) -> int:
        """Pictures in the whole batch."""
        return self.rows[-1][1] if self.rows else len(self.pixels)

    def pieces(self, count: int) -> int:
        """In how many pieces, at most `count`, each process can cut its rows."""
        return min(count, *(stop - start for start, stop in self.rows or ((0, len(self.pixels)),)))

    def pinned(self) -> Self:
        """The batch in memory that a GPU copies from by itself, while others go on."""
        return replace(self, pixels=self.pixels.pin_memory(), targets=self.targets.pin_memory())


class Order:
    """Which pictures make up a step. Every batch is full and holds pictures of one group (one size).

    Each group is an endless stream of shuffled passes over its pictures, cut into batches; an epoch holds those
    batches of every group that end in it, shuffled. So batch and epoch follow from the step in closed form.
    """

    def __init__(self, groups: list[np.ndarray], batch: int, seed: int, weights: np.ndarray | None = None):
        """`groups`: numbers of pictures; `weights`: a picture's chance to be drawn (else each once an epoch)."""
        self.groups = [group for group in groups if len(group)]
        self.batch_size = min(batch, max(len(group) for group in self.groups))
        self.seed, self.weights = seed, weights
        self._pass = functools.lru_cache(maxsize=4 * len(self.groups))(self._pass)
        self._schedule = functools.lru_cache(maxsize=4)(self._schedule)

    def steps_before(self, epoch: int) -> int:
        """Steps of the epochs 0 to `epoch` - 1."""
        return sum(epoch * len(group) // self.batch_size for group in self.groups)

    def epoch_of(self, step: int) -> int:
        """The epoch that a step belongs to."""
        guess = step * self.batch_size // sum(map(len, self.groups))
        return bisect_right(range(guess + len(self.groups) + 3), step, key=self.steps_before) - 1

    def epochs_at(self, step: int) -> float:
        """How many epochs so many steps are, with the share of the one that is under way."""
        epoch = self.epoch_of(step)
        within, length = step - self.steps_before(epoch), self.steps_before(epoch + 1) - self.steps_before(epoch)
        return epoch + round(within / max(1, length), 3)

    def batch(self, step: int) -> np.ndarray:
        """(B,) numbers of the pictures of a step."""
        epoch = self.epoch_of(step)
        group, number = self._schedule(epoch)[step - self.steps_before(epoch)]
        length = len(self.groups[group])
        positions = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        passes = [self._pass(group, int(p)) for p in range(positions[0] // length, positions[-1] // length + 1)]
        return np.concatenate(passes)[positions - positions[0] // length * length]

    def _schedule(self, epoch: int) -> list[tuple[int, int]]:
        batches = [
            (group, number)
            for group, members in enumerate(self.groups)
            for number in range(epoch * len(members) // self.batch_size, (epoch + 1) * len(members) // self.batch_size)
        ]
        order = _rng(self.seed, "schedule", epoch).permutation(len(batches))
        return [batches[i] for i in order]

    def _pass(self, group: int, number: int) -> np.ndarray:
        members, rng = self.groups[group], _rng(self.seed, f"pass of group {group}", number)
        if self.weights is None:
            return rng.permutation(members)
        chances = self.weights[members] / self.weights[members].sum()
        return rng.choice(members, len(members), p=chances)


def coarser(size: Size, stride: Size) -> Size:
    """The size (height, width) that is nearest to three quarters of this one, in multiples of the stride."""
    height, width = (max(1, round(0.75 * n / s)) * s for n, s in zip(size, stride, strict=True))
    return height, width


def divide_rows(size: int, ranks: int, cell: int = 1) -> tuple[tuple[int, int], ...]:
    """The rows, from the first up to the last, of a batch of `size` that each of several processes makes.

    They are whole cells, and of no two processes' more than one cell apart. Raises `InputError` where there is not a
    cell for each.
    """
    cells = -(-size // cell)
    if cells < ranks:
        mixed = f" (in cells of {cell}, within which mixup and cutmix pair pictures)" if cell > 1 else ""
        raise InputError(
            f"a batch of {counted(size, 'picture')} is too small for {ranks} processes{mixed}: "
            f"expected --batch {ranks * cell} or more, or fewer processes"
        )
    ends = [min(size, cells * rank // ranks * cell) for rank in range(ranks + 1)]
    return tuple(pairwise(ends))


class TrainingBatches:
    """Augmented batches of the training pictures by step: of the first `coarse_steps` at a `coarser` size.

    Of several processes (`ranks`) each makes its own rows of the one batch of a step: its pictures, their order and how
    they are varied are the same for any number of them.
    """

    def __init__(
        self,
        store: PixelStore,
        targets: np.ndarray,
        order: Order,
        config: AugmentConfig,
        classes: int | None,
        coarse_steps: int = 0,
        stride: Size = (1, 1),
        rank: int = 0,
        ranks: int = 1,
        pin: bool = False,
    ):
        """`pin`: whether they go to a GPU."""
        self.rank, self.ranks, self.cell = rank, ranks, CELL if config.mixup or config.cutmix else 1
        self.store, self.targets, self.order, self.config = store, torch.from_numpy(targets), order, config
        self.classes, self.coarse_steps, self.stride, self.pin = classes, coarse_steps, stride, pin
        self.mean = torch.tensor(store.spec.mean) * store.spec.scale

    def check(self) -> None:
        """Raises `InputError` where a batch has too few rows for so many processes."""
        divide_rows(self.order.batch_size, self.ranks, self.cell)

    def make(self, step: int) -> Batch:
        """The batch of a step, the same whoever makes it and whenever."""
        whole = self.order.batch(step)
        rows = divide_rows(len(whole), self.ranks, self.cell)
        first, stop = rows[self.rank]
        numbers = whole[first:stop]
        pixels = self.store.gather(numbers)
        B, H, W, C = len(whole), *pixels.shape[1:]
        generator = torch.Generator().manual_seed(seed_of(self.order.seed, "augment", step))
        draws = draw(self.config, (B, H, W, C), generator).slice(first, stop)
        targets = self.targets[numbers]
        pixels, targets = apply(pixels, targets, draws, self.mean, self.store.spec.scale, self.classes)
        pixels = self.store.spec.normalise(pixels)
        if step < self.coarse_steps:
            size = coarser((pixels.shape[2], pixels.shape[3]), self.stride)
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        batch = Batch(pixels, targets, numbers, rows, self.rank)
        return batch.pinned() if self.pin else batch

    def steps(self, start: int, stop: int, workers: int) -> Generator[Batch, None, None]:
        """Batches of the steps from `start` up to `stop`; `workers` threads make them ahead, 0 makes them in place."""
        return in_order(self.make, range(start, stop), workers)


def plain_batches(
    store: PixelStore,
    targets: np.ndarray,
    numbers: np.ndarray,
    batch: int,
    workers: int,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Batch]:
    """Batches for evaluation: every picture once, without augmentation, one size a batch.

    Several processes (`ranks`) take turns, and all make as many batches, since a model that is divided over them
    answers in all at once: a batch that only fills up has pixels and no numbers.
    """
    chunks = [
        members[start : start + batch]
        for which in range(len(store.spec.sizes))
        for members in [numbers[store.which[numbers] == which]]
        for start in range(0, len(members), batch)
    ]

    def make(chunk: int) -> Batch:
        rows = chunks[chunk % len(chunks)]
        pixels = store.spec.normalise(store.gather(rows).permute(0, 3, 1, 2))
        return Batch(pixels, torch.from_numpy(targets[rows]), rows if chunk < len(chunks) else rows[:0])

    return in_order(make, range(rank, -(-len(chunks) // ranks) * ranks, ranks), workers)


def seed_of(seed: int, purpose: str, number: int) -> int:
    """The seed of one random choice: a hash of the run's seed, what it is for, and its number."""
    digest = hashlib.blake2b(f"{seed} {purpose} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _rng(seed: int, purpose: str, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_of(seed, purpose, number)))
