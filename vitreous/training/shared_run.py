"""The run directory and the journal of a run of several processes: only the first one reads, writes and speaks."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.rundir import Checkpoint, RunDir
from vitreous.training.journal import Journal
from vitreous.training.world import World


def journal_in(world: World, journal: Journal) -> Journal:
    """The journal that this process keeps: only the first one's says and writes anything."""
    return journal if world.first else MuteJournal()


def run_in(world: World, path: str | os.PathLike) -> RunDir:
    """A run directory that is there, as this process has it."""
    return RunDir(Path(path)) if world.size == 1 else SharedRunDir(Path(path), world)


class MuteJournal(Journal):
    """Says and keeps nothing: the first process does."""

    def __init__(self):
        super().__init__(quiet=True)

    def settle(self, folder: Path, until_step: int) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def row(self, values: dict[str, float]) -> None:
        """Nothing."""


class SharedRunDir(RunDir):
    """A run directory as one of several processes has it: only the first reads and writes it.

    All call the same methods in the same order.
    """

    def __init__(self, path: Path, world: World):
        super().__init__(path)
        self.world, self.writes = world, world.first

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps others from training the run, in the first process."""
        with ExitStack() as stack:
            self.world.agree(lambda: stack.enter_context(super(SharedRunDir, self).held()))
            yield

    def newest(self, say: Callable[[str], None], until: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole, which the first process reads for all."""
        found = None

        def read() -> dict[str, Any] | None:
            nonlocal found
            if (found := super(SharedRunDir, self).newest(say, until)) is None:
                return None
            kinds = {name: (str(t.dtype).removeprefix("torch."), t.shape) for name, t in found.tensors.items()}
            return {"step": found.step, "values": found.values, "kinds": kinds}

        if (facts := self.world.agree(read)) is None:
            return None
        if found is None:  # another process has it
            empty = {
                name: torch.empty(shape, dtype=getattr(torch, kind)) for name, (kind, shape) in facts["kinds"].items()
            }
            found = Checkpoint(facts["step"], empty, facts["values"])
        self.world.spread({name: _as_bytes(tensor) for name, tensor in found.tensors.items() if tensor.numel()})
        return found


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
