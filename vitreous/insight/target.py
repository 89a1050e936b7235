"""What is asked about an answer: one output, the difference of two, or the largest."""

import torch
from torch import Tensor

from vitreous.errors import InputError

Target = int | tuple[int, int] | None  # an output; the first less the second; each picture's largest


def direction(outputs: Tensor, target: Target) -> Tensor:
    """(B, outputs) -> what each counts, 1, -1 or 0. Raises `InputError` for an output that is not there."""
    B, count = outputs.shape
    if target is None:
        return torch.nn.functional.one_hot(outputs.argmax(1), count).to(outputs)
    wanted = target if isinstance(target, tuple) else (target,)
    if len(wanted) > 2 or any(not isinstance(number, int) or not 0 <= number < count for number in wanted):
        raise InputError(f"target is {target}: expected an output, 0 to {count - 1}, two for their difference, or None")
    one = outputs.new_zeros(B, count)
    for number, sign in zip(wanted, (1, -1), strict=False):
        one[:, number] += sign
    return one


def score(outputs: Tensor, target: Target) -> Tensor:
    """(B, outputs) -> (B,) the output, or difference of two, that is asked about."""
    return (outputs * direction(outputs.detach(), target)).sum(1)
