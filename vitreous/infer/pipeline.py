"""Decoding beside the engine: pictures to outputs, in the order of the pictures, in bounded memory."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import count, takewhile

import numpy as np

from vitreous.data.store import Decoded, read_in_order

AHEAD = 4  # pictures a decoding thread that may wait, at least; in all threads together a batch
GIVEN = 2  # batches that the engine has: the one that it computes, and the next
PATIENCE = 8  # batches of later pictures, after which one of a rare size is computed in a batch that is not full
Answered = tuple[list[int], np.ndarray, dict[int, str]]  # numbers, outputs (n, K), faults by number


def outputs_in_order(
    pictures: int,
    read: Callable[[Sequence[int]], list[Decoded]],
    run: Callable[[np.ndarray], np.ndarray],
    *,
    outputs: int,
    batch: int,
    threads: int,
) -> Generator[Answered, None, None]:
    """Reads the pictures 0, 1, … in `threads` threads, while `run` computes batches of one size in a thread of its own.

    Yields what is known as soon as no earlier picture is missing: the numbers of some pictures, their outputs (n, K) in
    float32, and the faults among them, whose outputs are NaN. K is `outputs`. What a batch holds depends on the
    pictures alone, never on who was faster. No more pixels are held than those of a batch that is decoded ahead, of one
    batch of each size, and of those that the engine has. What `read` or `run` raises stops everything.
    """
    ahead = max(AHEAD, -(-batch // threads))
    found: dict[int, np.ndarray | str] = {}
    first = 0  # the first picture that was not yielded yet
    with closing(read_in_order(read, pictures, threads, ahead)) as decoded, closing(_Batches(run, batch)) as batches:
        for number, picture in enumerate(decoded):
            if isinstance(picture, str):
                found[number] = picture
            else:
                batches.add(number, *picture)
            batches.give(before=number - PATIENCE * batch)
            found |= batches.take(GIVEN)
            if first in found:
                answered = _known(found, first, outputs)
                yield answered
                first += len(answered[0])
        batches.give(before=pictures)
        while batches.given:
            found |= batches.take(len(batches.given) - 1)
            answered = _known(found, first, outputs)
            if answered[0]:
                yield answered
            first += len(answered[0])


class _Batches:
    """Pictures in batches of one size each, and their outputs, which come from another thread."""

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], batch: int):
        self.run, self.batch = run, batch
        self.waiting: dict[int, list[tuple[int, np.ndarray]]] = {}  # by size, until there is a batch of them
        self.given: deque[tuple[list[int], Future[np.ndarray]]] = deque()
        self.engine = ThreadPoolExecutor(1, "engine")

    def add(self, number: int, size: int, pixels: np.ndarray) -> None:
        """Takes a picture, and gives a batch away where it fills one."""
        some = self.waiting.setdefault(size, [])
        some.append((number, pixels))
        if len(some) == self.batch:
            self._give(size)

    def give(self, before: int) -> None:
        """Gives away, full or not, each batch that holds a picture of a number below `before`."""
        for size in [size for size, some in self.waiting.items() if some[0][0] < before]:
            self._give(size)

    def take(self, most: int) -> dict[int, np.ndarray]:
        """The outputs (K,) by number of what is done; waits until at most `most` batches are not taken."""
        found: dict[int, np.ndarray] = {}
        while self.given and (len(self.given) > most or self.given[0][1].done()):
            numbers, outputs = self.given.popleft()
            found.update(zip(numbers, outputs.result(), strict=True))
        return found

    def close(self) -> None:
        """Waits for the batch that is being computed, and lets the others go."""
        self.engine.shutdown(cancel_futures=True)

    def _give(self, size: int):
        numbers, pixels = zip(*self.waiting.pop(size), strict=True)
        self.given.append((list(numbers), self.engine.submit(self.run, np.stack(pixels))))


def _known(found: dict[int, np.ndarray | str], first: int, outputs: int) -> Answered:
    """Takes out what is known from the picture `first` on, up to the next that is not."""
    numbers = list(takewhile(found.__contains__, count(first)))
    rows = np.full((len(numbers), outputs), np.nan, np.float32)
    faults: dict[int, str] = {}
    for row, number in enumerate(numbers):
        known = found.pop(number)
        if isinstance(known, str):
            faults[number] = known
        else:
            rows[row] = known
    return numbers, rows, faults
