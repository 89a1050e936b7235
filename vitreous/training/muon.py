"""Muon: momentum whose matrices are made orthogonal, a share of them by each process."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vitreous.training.world import ALONE, World


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix with the singular vectors of this one, and singular values of about 1 (0.7 to 1.2): five steps of the
    Newton–Schulz iteration with the quintic of Muon (Keller Jordan, 2024), computed in `dtype`.
    """
    found = matrix.to(dtype)
    tall = found.shape[0] > found.shape[1]
    found = found.T if tall else found
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), found, beta=3.4445)
    return found.T if tall else found


def dealt(matrices: Iterable[Tensor], count: int) -> list[int]:
    """Which of so many processes makes each matrix orthogonal, so that all have about as much to do: the dearest are
    given away first, each to the one that has least.
    """
    costs = [short**2 * (2 * long + short) for short, long in (sorted(matrix.shape) for matrix in matrices)]
    owners, loads = [0] * len(costs), [0] * count
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        owners[number] = loads.index(min(loads))
        loads[owners[number]] += costs[number]
    return owners


class Muon(torch.optim.Muon):
    """PyTorch's Muon with the iteration in `dtype`. PyTorch's own is in bf16, which takes three times as long as fp32
    on a CPU without hardware for it.

    The processes of `world`, which all have the same matrices and gradients, each make a share of the directions, and
    bring them to all; the momentum is whole in each.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, dtype: torch.dtype, world: World = ALONE):
        super().__init__(groups, lr=lr)
        self.dtype, self.world = dtype, world

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """An update of all matrices that have a gradient."""
        pairs = [(matrix, group) for group in self.param_groups for matrix in group["params"]]
        pairs = [(matrix, group) for matrix, group in pairs if matrix.grad is not None]
        owners = dealt([matrix for matrix, _ in pairs], self.world.size)
        directions: Iterable[Tensor] = (
            self._direction(matrix, group["momentum"], owner == self.world.rank)
            for (matrix, group), owner in zip(pairs, owners, strict=True)
        )
        if self.world.size > 1:  # alone there is never more than one of them in memory
            directions = self.world.exchange(list(directions), owners)
        for (matrix, group), direction in zip(pairs, directions, strict=True):
            rate, (height, width) = group["lr"], matrix.shape
            matrix.mul_(1 - rate * group["weight_decay"])
            matrix.add_(direction, alpha=-rate * math.sqrt(max(1, height / width)))

    def _direction(self, matrix: Tensor, momentum: float, own: bool) -> Tensor:
        """Which way a matrix goes, its momentum brought up to date; of another process's only the room for it."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)
        mean = state["momentum_buffer"]
        mean.lerp_(matrix.grad, 1 - momentum)
        if not own:
            return torch.empty_like(mean, dtype=self.dtype)
        return orthogonal(matrix.grad.lerp(mean, momentum), self.dtype)
