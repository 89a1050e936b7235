"""The run directory and the journal of a run of several processes: only the first one reads, writes and speaks."""

import os
from collections.abc import Callable, Collection, Iterator
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
    """Keeps the rows of metrics, and says and writes nothing."""

    def __init__(self):
        super().__init__(quiet=True)

    def settle(self, folder: Path, rows: list[dict[str, float]]) -> None:
        """Takes over the rows."""
        self.rows = rows

    def say(self, text: str) -> None:
        """Nothing: the first process says it."""

    def row(self, values: dict[str, float]) -> None:
        """Adds a row."""
        self.rows.append(values)


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

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Writes a JSON file of the run, in the first process."""
        if self.world.first:
            super().write_json(name, values)

    def write_split(self, rows: Any) -> None:
        """Writes split.csv, in the first process."""
        if self.world.first:
            super().write_split(rows)

    def write_weights(self, tensors: dict[str, Tensor], name: str = "model.safetensors") -> None:
        """Writes weights, in the first process."""
        if self.world.first:
            super().write_weights(tensors, name)

    def save(self, checkpoint: Checkpoint, keep: Collection[int] = ()) -> None:
        """Adds a checkpoint, in the first process."""
        if self.world.first:
            super().save(checkpoint, keep)

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, in the first process."""
        if self.world.first:
            super().forget_after(step)

    def clean(self) -> None:
        """Removes temporaries that were left, in the first process."""
        if self.world.first:
            super().clean()

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
