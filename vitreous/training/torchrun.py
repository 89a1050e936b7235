"""Joining the processes that torchrun starts, and leaving them; where one fails, whose fault it is.

    torchrun --nproc-per-node 2 -m vitreous train DATA --out RUN
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --max-restarts 3 \
        -m vitreous train DATA --out RUN

A run on several machines needs the same DATA, by the same name, and the same version of vitreous on each; each decodes
the pictures to its own cache once, or all to one where `--cache` names a folder that they share. The run directory is
the first process's; where a restart may bring that process up on another machine, RUN must lie in a folder that all
share. Processes talk over gloo on CPUs and NCCL on GPUs, without encryption or passwords, as PyTorch does: the network
between them must be closed to others.

Tested: gloo on CPUs, 1, 2 and 4 processes on one machine. Not tested: NCCL, several machines.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from vitreous.errors import ElsewhereError, InputError, first_line
from vitreous.training.world import ALONE, World

COLLECTIVE = timedelta(minutes=30)  # after which a process is given up that does not take part in a sum or a broadcast
# What PyTorch says of a process that is gone; a fault that is "restored" or "stored" is another.
GONE = re.compile(r"gloo|nccl|connection|\b(tcp)?store\b|timed out|socket", re.IGNORECASE)
_joined: list[World] = []  # that of this process, once it has joined


@contextmanager
def joined() -> Iterator[World]:
    """Joins the processes that torchrun started, and leaves them at the end; alone there is nothing to join.

    Where one fails it says why, and the others end with `ElsewhereError`: none waits for it. Raises `InputError` where
    they do not find each other.
    """
    if _joined:  # inside another
        yield _joined[0]
        return
    if (world := of_environment()).size == 1:
        yield world
        return
    try:
        world = _meet(world)
    except (RuntimeError, ValueError) as fault:
        raise InputError(
            f"the processes of this run do not find each other [{first_line(fault)}]: expected all that torchrun sets, "
            "and a network on which every process reaches MASTER_ADDR at MASTER_PORT"
        ) from fault
    _joined.append(world)
    try:
        yield world
        torch.distributed.destroy_process_group()
    except (ElsewhereError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as fault:
        if not _first_to_fail(world):
            raise ElsewhereError from None
        if is_loss(fault) and not isinstance(fault, LostError):
            raise LostError from fault
        raise
    finally:
        _joined.clear()


def current() -> World:
    """The processes that this one has joined; alone where it has not."""
    return _joined[0] if _joined else ALONE


def restarted() -> bool:
    """Whether torchrun has started these processes again, after one of them had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def restarts_left() -> int:
    """How many times torchrun will start these processes again where one of them dies."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) - int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


class LostError(InputError):
    """Another process of the run has ended. What PyTorch says of it is the cause; `then` is what follows from it."""

    def __init__(self, then: str = ""):
        said = "another process of this run has ended, and this one cannot go on without it"
        super().__init__(f"{said}; torchrun's lines around this one say which, and why\n{then}".rstrip())


def is_loss(fault: BaseException | None) -> bool:
    """Whether a process that is gone is what lies behind a fault."""
    while fault is not None and not (isinstance(fault, RuntimeError) and GONE.search(str(fault))):
        fault = fault.__cause__ if fault.__suppress_context__ else fault.__context__
    return fault is not None


def of_environment() -> World:
    """The processes that torchrun has started, which may not have met yet; alone where it has started none.

    Raises `InputError` for half of what it says.
    """
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


def _first_to_fail(world: World) -> bool:
    try:
        return world.store.add("failed", 1) == 1
    except Exception:  # the store is gone with the process that kept it, which has no more to say
        return world.first
