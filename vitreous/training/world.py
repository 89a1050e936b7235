"""The processes of one run: who they are, and what they agree on. Alone there is `World()`, and nothing is sent.

No pickle is sent either.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor

from vitreous.errors import ElsewhereError, InputError, counted

PATIENCE = timedelta(days=1)  # for what one process does for all, such as decoding the pictures
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this one is. `joined` gives that of torchrun."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine
    node: int = 0  # which machine
    store: Any = field(default=None, compare=False)  # torch.distributed's, for what takes long
    _turns: Iterator[int] = field(default_factory=count, compare=False, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def agree(self, make: Callable[[], T]) -> T:
        """Plain values (as JSON has them) that the first process makes, in all. The others wait for as long as it
        takes; where it fails, they end with `ElsewhereError`, and with `InputError` where it takes more than a day.
        """
        if self.size == 1:
            return make()
        key, text = f"agree/{next(self._turns)}", b""
        if self.first:
            try:
                text = json.dumps(make()).encode()
            except BaseException:
                self.store.set(key, "failed")
                raise
            self.store.set(key, "made")
        elif self._wait(key) != b"made":
            raise ElsewhereError
        return json.loads(self.from_rank(0, text))

    def in_turn(self, make: Callable[[], T]) -> T:
        """What each process makes for itself, after the first process of its machine has: it finds that one's cache.
        Where that one fails, they end with `ElsewhereError`, and with `InputError` where it takes more than a day.
        """
        if self.size == 1:
            return make()
        key = f"turn/{next(self._turns)}/{self.node}"
        if self.local_rank:
            if self._wait(key) != b"made":
                raise ElsewhereError
            return make()
        try:
            made = make()
        except BaseException:
            self.store.set(key, "failed")
            raise
        self.store.set(key, "made")
        return made

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place; the same bits in all."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return bool(self.sum(torch.tensor(float(flag))) > 0) if self.size > 1 else flag

    def of_first(self, value: float) -> float:
        """The first process's value, such as the time of its clock."""
        if self.size == 1:
            return value
        return float(self.sum(torch.tensor(value if self.first else 0.0, dtype=torch.float64)))

    def from_rank(self, rank: int, content: bytes) -> bytes:
        """Bytes of one process, in all."""
        if self.size == 1:
            return content
        mine = rank == self.rank
        length = torch.tensor([len(content) if mine else 0])
        torch.distributed.broadcast(length, rank)
        held = torch.frombuffer(bytearray(content), dtype=torch.uint8) if mine and content else None
        tensor = held if held is not None else torch.empty(int(length), dtype=torch.uint8)
        if len(tensor):
            torch.distributed.broadcast(tensor, rank)
        return tensor.numpy().tobytes()

    def together(self, some: list[T]) -> list[T]:
        """Lists of plain values, one of each process, one behind the other."""
        own = json.dumps(some).encode()
        return [value for rank in range(self.size) for value in json.loads(self.from_rank(rank, own))]

    def spread(self, tensors: dict[str, Tensor]) -> None:
        """Brings the first process's tensors to all, in place; names, shapes and types are the same."""
        if self.size > 1:
            for tensor in tensors.values():
                torch.distributed.broadcast(tensor.detach(), 0)

    def exchange(self, tensors: list[Tensor], owners: list[int]) -> list[Tensor]:
        """Tensors, each from the process that owns it, in all; shapes and types are the same. What a process gives for
        another's only has these.
        """
        found = list(tensors)
        for rank in range(self.size):
            if lot := [number for number, owner in enumerate(owners) if owner == rank]:
                flat = torch.cat([tensors[number].flatten() for number in lot])
                torch.distributed.broadcast(flat, rank)
                parts = flat.split([tensors[number].numel() for number in lot])
                for number, part in zip(lot, parts, strict=True):
                    found[number] = part.view(tensors[number].shape)
        return found

    def use(self, device: torch.device) -> torch.device:
        """The device, which of several GPUs is this process's own. Raises `InputError` where there are too few."""
        if self.size == 1 or device.type == "cpu":
            return device
        if device.type != "cuda":
            raise InputError(f"--device {device.type}: several processes compute on the CPU or on CUDA's GPUs")
        if self.local_rank >= (found := torch.cuda.device_count()):
            raise InputError(
                f"{counted(found, 'GPU')} on {socket.gethostname()}: expected torchrun --nproc-per-node {found} or less"
            )
        torch.cuda.set_device(self.local_rank)  # which "cuda" means from here on
        return torch.device("cuda")

    def _wait(self, key: str) -> bytes:
        """A value of the store, as soon as it is there. Looks often rather than wait inside, where signals wait too."""
        pause, until = 0.001, time.monotonic() + PATIENCE.total_seconds()
        while not self.store.check([key]):
            if time.monotonic() > until:
                raise InputError(f"process {self.rank} has waited a day for another one of this run")
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        return self.store.get(key)


ALONE = World()
