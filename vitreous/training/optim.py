"""Optimizer, moving average, and the loss of each task."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vitreous.data.targets import Task
from vitreous.model.stem import Convolution
from vitreous.model.vit import VisionTransformer
from vitreous.training.parallel import divided_like
from vitreous.training.world import ALONE, World

Criterion = Callable[[Tensor, Tensor], Tensor]


# What learns nothing with --freeze: names of parameters begin with one of these.
FROZEN = {
    "none": (),
    "tokenizer": ("tokenizer.", "position.tables.", "prefix"),
    "encoder": ("tokenizer.", "position.", "prefix", "blocks.", "norm.", "pool."),
}


REST_RATE = 0.2  # of AdamW beside Muon, as a share of Muon's


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


def make_optimizers(
    model: VisionTransformer,
    kind: str,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    freeze: str = "none",
    precision: str = "fp32",
    world: World = ALONE,
) -> list[torch.optim.Optimizer]:
    """AdamW (1711.05101) for all, or with "muon" Muon (Keller Jordan, 2024) for the matrices between pixels and head
    and AdamW for the rest, at a fifth of the rate. Biases, norms, tokens and position tables do not decay.

    With `layer_decay` each block learns so many times slower than the one behind it, and the tokenizer slowest (BEiT,
    2106.08254): a group's rate is the step's times its "scale". What `freeze` names learns nothing. `precision` is that
    of the run, fp32 or bf16, in which Muon makes its matrices orthogonal; the processes of `world` share that.
    """
    weights = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | Convolution)}
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN[freeze]))
        if not parameter.requires_grad:
            continue
        inner = kind == "muon" and id(parameter) in weights and parameter.ndim == 2 and not name.startswith("head.")
        scale = layer_decay ** _layers_behind(name, model) * (REST_RATE if kind == "muon" and not inner else 1.0)
        groups.setdefault((inner, scale, weight_decay if id(parameter) in weights else 0.0), []).append(parameter)

    def parts(wanted: bool) -> list[dict[str, Any]]:
        found = ((scale, decay, some) for (inner, scale, decay), some in groups.items() if inner == wanted)
        return [{"params": some, "scale": scale, "weight_decay": decay} for scale, decay, some in found]

    made: list[torch.optim.Optimizer] = []
    if parts(False):
        made.append(torch.optim.AdamW(parts(False), lr=lr, betas=(0.9, 0.95), fused=True))
    if parts(True):
        made.append(Muon(parts(True), lr, torch.bfloat16 if precision == "bf16" else torch.float32, world))
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
