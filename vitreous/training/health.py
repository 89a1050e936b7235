"""What an update is held to before it is made: finite numbers, none of them far outside what is usual."""

import math
import statistics
from typing import NamedTuple

import torch
from torch import Tensor

from vitreous.data.targets import Task

WINDOW = 32  # of the last updates that were made: what is usual
ENOUGH = 8  # of them, to say how large gradients usually are
OUTLIER = 100.0  # times what is usual: further out than any batch of sound data, nearer than a slip of a unit
DIVERGED = 30.0  # times the loss of guessing, that half of the window must reach: no run comes back from there


class Vital(NamedTuple):
    """What a step tells of itself: its loss, the norm of its gradient before it is clipped, and the size of its pixels
    (the root of their mean square, 1 on average, as they are normalised).
    """

    loss: float
    norm: float
    pixels: float


def loss_of_guessing(task: Task) -> float:
    """The loss of a model that knows nothing but the targets' frequency or mean: what a loss is measured by."""
    if task.kind == "classification":
        return math.log(max(2, task.outputs))
    return math.log(2) if task.kind == "multilabel" else 1.0


def size_of(pixels: Tensor) -> float:
    """The root of the mean square."""
    return float(torch.linalg.vector_norm(pixels)) / math.sqrt(max(1, pixels.numel()))


def fault_of(vital: Vital, recent: list[Vital], guessing: float, clip: float) -> str:
    """Why the update of a step should not be made; "" where nothing is wrong.

    Loss and pixels are measured by the median of the recent updates, but never by less than what guessing loses and
    normalised pixels have: late in a run losses are near 0, and one odd picture far above. A gradient is measured by
    the largest of the recent ones, but never by less than what it is clipped to.
    """
    if not all(map(math.isfinite, vital)):
        return "loss or gradient is not finite"
    loss = max(guessing, _median([seen.loss for seen in recent]))
    if vital.loss > OUTLIER * loss:
        return f"loss {vital.loss:.3g} is far outside what is usual ({loss:.3g})"
    pixels = max(1.0, _median([seen.pixels for seen in recent]))
    if vital.pixels > OUTLIER * pixels:
        return f"pixels are {vital.pixels / pixels:.3g} times as large as usual"
    norm = max([clip, *(seen.norm for seen in recent)])
    if len(recent) >= ENOUGH and vital.norm > OUTLIER * norm:
        return f"gradient of norm {vital.norm:.3g} is far outside what is usual ({norm:.3g})"
    return ""


def diverged(recent: list[Vital], guessing: float) -> bool:
    """Whether most of the recent updates had losses far above guessing."""
    return len(recent) == WINDOW and _median([seen.loss for seen in recent]) > DIVERGED * guessing


def all_finite(tensors: dict[str, Tensor]) -> bool:
    """Whether every number of a state is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point())


def suspects(pixels: Tensor, targets: Tensor) -> list[int]:
    """The rows of a batch (B, …) whose pixels or targets are not finite or far outside."""
    sizes = torch.linalg.vector_norm(pixels.flatten(1).double(), dim=1) / math.sqrt(pixels[0].numel())
    farthest = targets.double().flatten(1).abs().amax(1) if targets.is_floating_point() else torch.zeros(len(pixels))
    odd = ~torch.isfinite(sizes) | (sizes > OUTLIER) | ~torch.isfinite(farthest) | (farthest > OUTLIER)
    return odd.nonzero().flatten().tolist()


def _median(numbers: list[float]) -> float:
    return statistics.median(numbers) if numbers else 0.0
