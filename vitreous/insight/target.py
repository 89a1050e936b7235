"""What is asked about an answer: one output, the difference of two, or the largest."""

import numbers

import torch
from torch import Tensor

from vitreous.errors import InputError

Target = int | tuple[int, int] | None  # an output; the first less the second; each picture's largest


def fault_of(target: Target, count: int) -> str:
    """What is wrong with a target of so many outputs, "" where nothing is."""
    wanted = target if isinstance(target, tuple) else (target,)
    known = all(isinstance(number, numbers.Integral) and 0 <= number < count for number in wanted)
    if target is None or (known and len(wanted) == 1 + isinstance(target, tuple)):
        return ""
    return f"target is {target}: expected an output, 0 to {count - 1}, two for their difference, or None"


def direction(outputs: Tensor, target: Target) -> Tensor:
    """(B, outputs) -> what each counts, 1, -1 or 0. Raises `InputError` for an output that is not there."""
    B, count = outputs.shape
    if fault := fault_of(target, count):
        raise InputError(fault)
    if target is None:
        return torch.nn.functional.one_hot(outputs.argmax(1), count).to(outputs)
    one = outputs.new_zeros(B, count)
    for number, sign in zip(target if isinstance(target, tuple) else (target,), (1, -1), strict=False):
        one[:, number] += sign
    return one


def score(outputs: Tensor, target: Target) -> Tensor:
    """(B, outputs) -> (B,) the output, or difference of two, that is asked about."""
    return (outputs * direction(outputs.detach(), target)).sum(1)
