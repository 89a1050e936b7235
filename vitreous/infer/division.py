"""Pictures divided over the processes of torchrun: each is answered once, and all get all answers, in order."""

import hashlib
import json
from collections.abc import Callable, Generator
from contextlib import closing

import numpy as np

from vitreous.data.sources import Source
from vitreous.errors import InputError
from vitreous.infer.pipeline import Answered
from vitreous.training.world import World


def divided(
    answer: Callable[[Source], Generator[Answered, None, None]], source: Source, outputs: int, block: int, world: World
) -> Generator[Answered, None, None]:
    """What `answer` gives of a source, blocks of so many pictures in turn from each process: numbers, answers (n, K)
    and faults. K is `outputs`. Raises `InputError` where the processes do not see the same pictures.
    """
    seen = hashlib.blake2b("\n".join(source.names).encode(errors="surrogateescape")).hexdigest()
    if world.any(world.agree(lambda: seen) != seen):
        raise InputError(f"{source.location}: the processes do not find the same pictures there")
    blocks = [range(start, min(start + block, len(source))) for start in range(0, len(source), block)]
    mine = [number for numbers in blocks[world.rank :: world.size] for number in numbers]
    with closing(answer(source.only(mine))) as found:
        own = _Rows(found)
        for turn, numbers in enumerate(blocks):
            owner = turn % world.size
            answers, faults = own.take(len(numbers)) if owner == world.rank else (np.empty(0), {})
            answers = np.frombuffer(world.from_rank(owner, answers.astype(np.float64).tobytes())).reshape(-1, outputs)
            faults = json.loads(world.from_rank(owner, json.dumps(faults).encode()))
            yield list(numbers), answers, {numbers[int(row)]: fault for row, fault in faults.items()}


class _Rows:
    """Answers as they come, taken in other portions."""

    def __init__(self, found: Generator[Answered, None, None]):
        self.found, self.rows, self.faults, self.taken = found, [], {}, 0

    def take(self, count: int) -> tuple[np.ndarray, dict[int, str]]:
        """The next so many answers (count, K), and the faults by row."""
        while len(self.rows) < count:
            _, answers, faults = next(self.found)
            self.rows.extend(answers)
            self.faults |= faults
        rows, self.rows = self.rows[:count], self.rows[count:]
        faults = {row: self.faults.pop(self.taken + row) for row in range(count) if self.taken + row in self.faults}
        self.taken += count
        return np.stack(rows), faults
