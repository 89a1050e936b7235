"""The processes of one run, as torchrun starts them: who they are, and what they agree on.

    torchrun --nproc-per-node 2 -m vitreous train DATA --out RUN
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --max-restarts 3 \
        -m vitreous train DATA --out RUN

Without torchrun there is one process, which is `World()`, and nothing here does anything. A run on several machines
needs the same DATA, by the same name, and the same version of vitreous on each; each decodes the pictures to its own
cache once, or all to one where `--cache` names a folder that they share. The run directory is the first process's,
which alone reads and writes it; where a restart may bring that process up on another machine, RUN must lie in a folder
that all share. Processes talk over gloo on CPUs and NCCL on GPUs, without encryption or passwords, as PyTorch does: the
network between them must be closed to others. No pickle is sent.

Tested: gloo on CPUs, 1, 2 and 4 processes on one machine. Not tested: NCCL, several machines.
"""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vitreous.errors import ElsewhereError, InputError, counted
from vitreous.rundir import Checkpoint, RunDir
from vitreous.training.journal import Journal

COLLECTIVE = timedelta(minutes=30)  # after which a process is given up that does not take part in a sum or a broadcast
PATIENCE = timedelta(days=1)  # the same for what one does for all, such as decoding the pictures
# What PyTorch says of a process that is gone; a fault that is "restored" or "stored" is another.
LOST = re.compile(r"gloo|nccl|connection|\b(tcp)?store\b|timed out|socket", re.IGNORECASE)
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
        takes; where it fails, they end with `ElsewhereError`.
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
        Where that one fails, they end with `ElsewhereError`.
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

    def journal(self, journal: Journal) -> Journal:
        """The journal that this process keeps: only the first one's says and writes anything."""
        return journal if self.first else MuteJournal()

    def run(self, path: str | os.PathLike) -> RunDir:
        """A run directory that is there, as this process has it."""
        return RunDir(Path(path)) if self.size == 1 else SharedRunDir(Path(path), self)

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
_joined: list[World] = []  # that of this process, once it has joined


@contextmanager
def joined() -> Iterator[World]:
    """Joins the processes that torchrun started, and leaves them at the end; alone there is nothing to join.

    Where one fails it says why, and the others end with `ElsewhereError`: none waits for it.
    """
    if _joined:  # inside another
        yield _joined[0]
        return
    if (world := _read_environment()).size == 1:
        yield world
        return
    world = _meet(world)
    _joined.append(world)
    try:
        yield world
        torch.distributed.destroy_process_group()
    except (ElsewhereError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as fault:
        if not _first_to_fail(world):
            raise ElsewhereError from None
        if loss := _loss(fault):
            raise InputError(f"another process of this run is gone; torchrun says which ({loss})") from fault
        raise
    finally:
        _joined.clear()


def current() -> World:
    """The processes that this one has joined; alone where it has not."""
    return _joined[0] if _joined else ALONE


def restarted() -> bool:
    """Whether torchrun has started these processes again, after one of them had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def _read_environment() -> World:
    try:
        size = int(os.environ.get("WORLD_SIZE", 1))
        if size == 1:
            return World()
        rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", 0))
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return World(rank, size, local, int(os.environ.get("GROUP_RANK", rank // here)))
    except (KeyError, ValueError) as fault:
        raise InputError(f"WORLD_SIZE is set, but not all that torchrun sets beside it ({fault})") from None


def _meet(world: World) -> World:
    from torch.distributed import init_process_group, is_nccl_available
    from torch.distributed.distributed_c10d import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=COLLECTIVE))
    # torchrun's own store outlives a restart: what was said before it must not be taken for what is said now.
    store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    gpus = torch.cuda.is_available() and is_nccl_available()
    init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo",
        store=PrefixStore("group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=COLLECTIVE,
    )
    return World(world.rank, world.size, world.local_rank, world.node, PrefixStore("vitreous", store))


def _loss(fault: BaseException | None) -> str:
    """What PyTorch says of a process that is gone, where that is what lies behind a fault; else ""."""
    while fault is not None:
        if isinstance(fault, RuntimeError) and LOST.search(str(fault)):
            return str(fault).strip().splitlines()[0]
        fault = fault.__cause__
    return ""


def _first_to_fail(world: World) -> bool:
    try:
        return world.store.add("failed", 1) == 1
    except Exception:  # the store is gone with the process that kept it, which has no more to say
        return world.first


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
