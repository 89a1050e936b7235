"""Optimizer, moving average, and the loss of each task."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vitreous.data.targets import Task

Criterion = Callable[[Tensor, Tensor], Tensor]


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (1711.05101), decay on matrices alone: biases, norms, tokens and position tables go without."""
    matrices = [p for name, p in model.named_parameters() if p.ndim >= 2 and not name.endswith(("token", "table"))]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def make_average(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a model's weights; its first update copies them."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


def make_criterion(task: Task, smoothing: float, class_weights: Tensor | None = None) -> Criterion:
    """The loss a picture, averaged over the batch: (B, outputs) and targets -> a number.

    Classes, whole or mixed (B, K): cross-entropy with label smoothing. Labels: binary cross-entropy. Numbers, in
    standard deviations: squared error.
    """
    if task.kind == "regression":
        return lambda outputs, targets: F.mse_loss(outputs.float(), targets)
    if task.kind == "multilabel":
        return lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs.float(), targets)

    def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
        # A plain mean: torch's own divides by the weights of a batch, so that pieces of it would count otherwise.
        losses = F.cross_entropy(outputs.float(), targets, class_weights, reduction="none", label_smoothing=smoothing)
        return losses.mean()

    return cross_entropy


def state_of(model: nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of the training state, by name, not copied."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.module.state_dict().items()}
    tensors["averaged"] = average.n_averaged  # pyright: ignore[reportArgumentType]
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    return tensors


def restore_state(
    tensors: dict[str, Tensor], model: nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer
) -> None:
    """Puts back what `state_of` gave."""
    part = lambda prefix: {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}  # noqa: E731
    model.load_state_dict(part("model."))
    average.module.load_state_dict(part("average."))
    average.n_averaged.copy_(tensors["averaged"])  # pyright: ignore[reportCallIssue]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in part("optimizer.").items():
        index, key = name.split(".")
        moments.setdefault(int(index), {})[key] = tensor.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
