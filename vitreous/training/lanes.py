"""Lanes: threads that each compute a part of a batch on their own share of a CPU's cores."""

import copy
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier
from typing import TypeVar

import torch
from torch import nn

MOST = 4
PATIENCE = 0.5  # seconds of one wait
T = TypeVar("T")


class Lanes:
    """Computes parts of a batch beside each other, and gives what came of each, in their order.

    On two cores a step is a quarter to a third faster so than with every operation divided over both: nothing waits
    for the other core between operations, and what one has written is still in its cache when it is read.
    """

    def __init__(self, threads: int, device: torch.device, count: int | None = None, aside: bool = False):
        """`count`: of the lanes, on a CPU; default: as many as suit the threads. `aside`: even one of them is a thread
        of its own, so that the one that waits for it can be interrupted.
        """
        self.device = device
        self.count = (count or lanes_of(threads)) if device.type == "cpu" else 1
        self._pool = None
        if self.count > 1 or (aside and device.type == "cpu"):
            self._pool = ThreadPoolExecutor(self.count, "lane", _set_threads, (threads // self.count,))
            started = Barrier(self.count)
            list(self._pool.map(lambda _: started.wait(), range(self.count)))
            torch.set_num_threads(threads)

    def map(self, function: Callable[..., T], *columns: Iterable) -> list[T]:
        """`function` of each row of the columns, the shortest of which says how many there are."""
        if self._pool is None:
            return [function(*row) for row in zip(*columns, strict=False)]
        waiting = [self._pool.submit(function, *row) for row in zip(*columns, strict=False)]
        while wait(waiting, timeout=PATIENCE).not_done:  # on Windows signals are heard between two waits alone
            pass
        return [future.result() for future in waiting]


def lanes_of(threads: int) -> int:
    """How many lanes so many threads make, each with as many."""
    return max(n for n in range(1, MOST + 1) if threads % n == 0)


def _set_threads(count: int):
    """Sets the number of a thread's own threads. Where a thread first asks for it, it takes over what was set last by
    any: so it asks at once.
    """
    torch.set_num_threads(count)
    torch.get_num_threads()


def replicas(model: nn.Module, count: int) -> list[nn.Module]:
    """The model, and copies that share its weights and have gradients of their own."""
    made = [model]
    for _ in range(count - 1):
        made.append(copy.deepcopy(model))
        for own, shared in zip(made[-1].parameters(), model.parameters(), strict=True):
            own.data = shared.data
    return made


def join_gradients(models: list[nn.Module]) -> None:
    """Adds the gradients of the replicas to the first model's, in their order, and drops them."""
    for model in models[1:]:
        for own, other in zip(models[0].parameters(), model.parameters(), strict=True):
            if other.grad is not None:
                own.grad = other.grad if own.grad is None else own.grad.add_(other.grad)
                other.grad = None
