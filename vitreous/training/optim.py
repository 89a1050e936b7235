"""Optimizer, moving average, and the loss of each task."""

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vitreous.data.targets import Task
from vitreous.model.stem import Convolution, StemStep
from vitreous.model.vit import VisionTransformer
from vitreous.training.muon import Muon
from vitreous.training.parallel import divided_like
from vitreous.training.plan import Plan
from vitreous.training.world import ALONE, World

Criterion = Callable[[Tensor, Tensor], Tensor]


# What learns nothing with --freeze: names of parameters begin with one of these.
FROZEN = {
    "none": (),
    "tokenizer": ("tokenizer.", "position.tables.", "prefix"),
    "encoder": ("tokenizer.", "position.", "prefix", "blocks.", "norm.", "pool."),
}


def make_optimizers(model: VisionTransformer, plan: Plan, world: World = ALONE) -> list[torch.optim.Optimizer]:
    """AdamW (1711.05101) for all, or with "muon" Muon (Keller Jordan, 2024) for the matrices of the encoder, of the
    stem and of T2T's steps, and AdamW for the rest, at the plan's `rest_rate` times Muon's: head, plain patches,
    depthwise convolutions, and all that is no matrix. The stem's later convolutions learn at `stem_rate` times Muon's.
    Biases, norms, tokens and position tables do not decay.

    With the plan's `layer_decay` each block learns so many times slower than the one behind it, and the tokenizer
    slowest (BEiT, 2106.08254): a group's rate is the step's times its "scale". What `freeze` names learns nothing. In
    the run's `precision`, fp32 or bf16, Muon makes its matrices orthogonal; the processes of `world` share that.
    """
    muon = plan.optimizer == "muon"
    weights = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | Convolution)}
    stem = {id(m.convolution.weight) for m in model.modules() if isinstance(m, StemStep)}
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN[plan.freeze]))
        if not parameter.requires_grad:
            continue
        inner = muon and id(parameter) in weights and parameter.ndim == 2 and not name.startswith("head.")
        scale = plan.layer_decay ** _layers_behind(name, model)
        if muon:
            scale *= plan.rest_rate if not inner else plan.stem_rate if id(parameter) in stem else 1.0
        groups.setdefault((inner, scale, plan.weight_decay if id(parameter) in weights else 0.0), []).append(parameter)

    def parts(wanted: bool) -> list[dict[str, Any]]:
        found = ((scale, decay, some) for (inner, scale, decay), some in groups.items() if inner == wanted)
        return [{"params": some, "scale": scale, "weight_decay": decay} for scale, decay, some in found]

    made: list[torch.optim.Optimizer] = []
    if parts(False):
        made.append(torch.optim.AdamW(parts(False), lr=plan.lr, betas=(0.9, 0.95), fused=True))
    if parts(True):
        made.append(Muon(parts(True), plan.lr, torch.bfloat16 if plan.precision == "bf16" else torch.float32, world))
    return made


def _layers_behind(name: str, model: VisionTransformer) -> int:
    """How many layers lie between a parameter and the head: 0 for the head's own, most for the tokenizer's."""
    if found := re.match(r"(?:blocks|position\.convolutions)\.(\d+)\.", name):
        return len(model.blocks) - int(found[1])
    return len(model.blocks) + 1 if name.startswith(FROZEN["tokenizer"]) else 0


def make_average(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a model's weights; its first update copies them."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.module.eval()
    return average


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


def state_of(model: nn.Module, average: AveragedModel, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All tensors of the training state, by name, not copied."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.module.state_dict().items()}
    tensors["averaged"] = average.n_averaged  # pyright: ignore[reportArgumentType]
    for number, optimizer in enumerate(optimizers):
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{name}": tensor for name, tensor in moments.items()}
    return tensors


def restore_state(
    tensors: dict[str, Tensor], model: nn.Module, average: AveragedModel, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Puts back what `state_of` gave, whole tensors also where the model is divided over processes."""
    part = lambda prefix: {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}  # noqa: E731
    for module, prefix in ((model, "model."), (average.module, "average.")):
        own = module.state_dict()
        module.load_state_dict({name: divided_like(tensor, own[name]) for name, tensor in part(prefix).items()})
    average.n_averaged.copy_(tensors["averaged"])  # pyright: ignore[reportCallIssue]
    for number, optimizer in enumerate(optimizers):
        moments: dict[int, dict[str, Tensor]] = {}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for name, tensor in part(f"optimizer.{number}.").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = divided_like(tensor, parameters[int(index)]).clone()
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
