"""How far a map can be believed: what the model answers as cells are removed in the map's order, and whether the map
depends on the model's weights at all.

A faithful map names the cells that the answer needs. Without the most important ones the answer is soon lost (positive
perturbation); without the least important ones it stands for long (negative perturbation). The area under the second
curve minus that under the first is a map's score.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous import metrics
from vitreous.errors import InputError
from vitreous.insight.attribution import Attribution
from vitreous.insight.pixels import cell_numbers, filled, grid_of, to_cells
from vitreous.insight.target import Target, fault_of
from vitreous.model.head import Head
from vitreous.model.vit import VisionTransformer, build

FILLS = ("mean", "blur")  # what takes the place of a removed cell, as `filled` makes it
KINDS = ("classification", "multilabel", "regression")  # of tasks
CONTROLS = ("random", "edges")  # orders that know nothing of the model, scored beside every method


class Interval(NamedTuple):
    """A mean over pictures, and where it lies in 95 % of samples of as many pictures (bootstrap)."""

    mean: float
    low: float
    high: float

    @property
    def tie(self) -> bool:
        """Of a difference: whether it may as well be none."""
        return not (self.low > 0 or self.high < 0)


class Summary(NamedTuple):
    """The numbers of `Faithfulness`, over pictures."""

    pictures: int
    positive: Interval
    negative: Interval
    score: Interval


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How the maps of one method fare, picture by picture. F fills; P points on a curve, from nothing removed to all.

    A curve holds the probability of the target, or of a regression or a difference of outputs the score itself. Areas
    are means over the share of cells removed, so they are in the same unit.
    """

    fills: tuple[str, ...]
    removed: Tensor  # (P,) share of the cells that is removed, 0 to 1
    positive_curves: Tensor  # (F, B, P), the most important cells removed first
    negative_curves: Tensor  # (F, B, P), the least important cells removed first

    @property
    def positive(self) -> Tensor:
        """(B,) area under the positive curve, the mean of all fills: less is better."""
        return self._areas(self.positive_curves).mean(0)

    @property
    def negative(self) -> Tensor:
        """(B,) area under the negative curve, the mean of all fills: more is better."""
        return self._areas(self.negative_curves).mean(0)

    @property
    def score(self) -> Tensor:
        """(B,) negative area minus positive area, the symmetric relevance gain of 2401.06654: more is better.

        Any order and its reverse have opposite scores, so a random order's is 0 on average, whatever model, picture
        and fill.
        """
        return self.negative - self.positive

    @property
    def deletion(self) -> Tensor:
        """(B,) area as the most important cells are deleted, with the fill of RISE (1806.07421): the mean."""
        return self._areas(self._of("mean", self.positive_curves)).mean(0)

    @property
    def insertion(self) -> Tensor:
        """(B,) area as the most important cells are inserted, with the canvas of RISE (1806.07421): the blur."""
        return self._areas(self._of("blur", self.negative_curves)).mean(0)

    @property
    def insertion_curves(self) -> Tensor:
        """(F, B, P) from all removed to nothing, the most important cells inserted first.

        These are the pictures of the negative curve in the other order, at shares `1 - removed.flip(0)` inserted.
        """
        return self.negative_curves.flip(-1)

    def summary(self, seed: int = 0) -> Summary:
        """Means over pictures, with intervals."""
        positive, negative, score = (interval(v, seed) for v in (self.positive, self.negative, self.score))
        return Summary(len(self.score), positive, negative, score)

    def minus(self, other: "Faithfulness", seed: int = 0) -> Interval:
        """This score minus another method's on the same pictures, paired."""
        return interval(self.score - other.score, seed)

    def _areas(self, curves: Tensor) -> Tensor:
        return torch.trapezoid(curves.double(), self.removed.double())  # (F, B)

    def _of(self, fill: str, curves: Tensor) -> Tensor:
        """The curves of a fill, or of all where it was not used."""
        return curves[[self.fills.index(fill)]] if fill in self.fills else curves


def interval(values: Tensor, seed: int = 0) -> Interval:
    """Mean of one number a picture (B,), with its bootstrap interval: not a number where there is one picture only."""
    numbers = values.double().cpu().numpy()
    if len(numbers) < 2:
        return Interval(float(numbers.mean()), math.nan, math.nan)
    low, high = metrics.bootstrap_interval(np.mean, numbers, seed=seed)
    return Interval(float(numbers.mean()), float(low), float(high))


@torch.no_grad()
def faithfulness(
    model: VisionTransformer,
    pixels: Tensor,
    attributions: Mapping[str, Tensor],
    target: Target = None,
    fills: Sequence[str] = FILLS,
    steps: int = 16,
    *,
    kind: str = "classification",
    temperature: float = 1.0,
    orders: int = 3,
    batch: int = 64,
    seed: int = 0,
) -> dict[str, Faithfulness]:
    """What the model answers as token cells are removed in the order of each method's maps.

    Equal values in a map are ordered at random. Results lie on the CPU, and do not depend on `batch`.

    Args:
        model: in eval mode.
        pixels: normalised, (B, C, H, W).
        attributions: maps (B, gh, gw) by method, larger where a cell speaks more for the target. "random", the mean of
            several orders, and "edges", a Sobel detector, join them as controls, in the place of maps so called.
        target: an output; a difference of two, first minus second; or None, each picture's largest output as it is on
            the whole picture.
        fills: what takes the place of removed cells: "mean", the training pictures' mean colour; "blur", the picture
            itself under a broad Gaussian.
        steps: at most so many, and no more than there are tokens.
        kind: the task's. What is read: of classes the softmax, of labels the sigmoid, of a number the number.
        temperature: the outputs are divided by it, as the calibration has it.
        orders: random ones a picture.
        batch: pictures in a forward pass.
        seed: of the random orders.

    Raises:
        InputError: maps of another shape than the token grid or not finite, and all other arguments that do not fit.
    """
    grid = grid_of(model, pixels)
    _check(model, pixels, attributions, target, fills, kind, {"steps": steps, "orders": orders, "batch": batch}, grid)
    B, N = len(pixels), grid[0] * grid[1]
    whole = torch.cat([model(some).float() for some in pixels.split(batch)])  # (B, outputs)
    read = _reader(whole, target, kind, temperature)

    maps = {name: values for name, values in attributions.items() if name not in CONTROLS}
    maps["edges"] = edges(model, pixels)
    draws = torch.rand(orders + 1, B, N, generator=torch.Generator().manual_seed(seed)).argsort(-1).to(pixels.device)
    *random, shuffle = draws
    ranks = torch.stack([*(_ranks(values.to(pixels.device).flatten(1), shuffle) for values in maps.values()), *random])

    counts = torch.arange(min(steps, N) + 1, device=pixels.device) * N // min(steps, N)  # (P,) cells removed
    curves = torch.stack([_curves(model, pixels, fill, ranks, counts, read, whole, batch) for fill in fills], 1)
    curves = curves.cpu()  # (ranks, F, 2, B, P)
    by_name = {name: curves[number] for number, name in enumerate(maps)} | {"random": curves[len(maps) :].mean(0)}
    removed = counts.cpu() / N
    return {name: Faithfulness(tuple(fills), removed, some[:, 0], some[:, 1]) for name, some in by_name.items()}


def edges(model: VisionTransformer, pixels: Tensor) -> Tensor:
    """Pixels (B, C, H, W) -> how strong edges are in each cell (B, gh, gw), by Sobel's operator. Knows no weights."""
    grid = grid_of(model, pixels)
    across = pixels.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    slopes = F.conv2d(padded, torch.stack((across, across.T))[:, None])  # (B·C, 2, H, W)
    strength = slopes.norm(dim=1).unflatten(0, pixels.shape[:2]).sum(1)  # (B, H, W)
    return to_cells(strength, grid, model.config.stride)


@dataclass(frozen=True, eq=False)
class Randomisation:
    """How much of a method's maps is left once weights are drawn afresh. Near 0 is as it should be, near 1 says that
    the map shows the picture and not what the model makes of it.
    """

    stages: tuple[str, ...]  # what was replaced, those before included: "head", "block 3" … "tokens", or "all"
    correlations: Tensor  # (stages, B) Spearman's, of the map before and after

    @property
    def means(self) -> Tensor:
        """(stages,) mean over pictures of the correlation's size."""
        return self.correlations.abs().mean(1)


def randomisation(
    model: VisionTransformer,
    pixels: Tensor,
    method: Callable[[VisionTransformer, Tensor, int | tuple[int, int]], Attribution],
    target: Target = None,
    *,
    cascade: bool = False,
    batch: int = 32,
    seed: int = 0,
) -> Randomisation:
    """The sanity check of Adebayo et al. 2018 (1810.03292): maps before and after weights are drawn afresh.

    All weights at once, or with `cascade` the head's, then also the last block's, and so on down to the tokens. With
    None as target, each picture's map stays that of the output that is largest before.

    Args:
        model: in eval mode; it is not changed.
        pixels: normalised, (B, C, H, W).
        method: of `attribution`, called as `method(model, pixels, target)`.
        target: as of `faithfulness`.
        cascade: replace one stage after the other.
        batch: pictures that `method` is given at once.
        seed: of the fresh weights.
    """
    grid_of(model, pixels)
    with torch.no_grad():
        chosen = torch.cat([model(some) for some in pixels.split(batch)]).argmax(1).cpu() if target is None else None

    def maps(of: VisionTransformer) -> Tensor:
        if target is not None:
            parts = [(torch.arange(len(pixels)), target)]
        else:
            assert chosen is not None
            parts = [((chosen == output).nonzero()[:, 0], output) for output in chosen.unique().tolist()]
        found = [
            (rows, method(of, pixels[rows], output).tokens.detach().cpu())
            for part, output in parts
            for rows in part.split(batch)
        ]
        order = torch.cat([rows for rows, _ in found]).argsort()
        return torch.cat([tokens for _, tokens in found]).flatten(1)[order]  # (B, N)

    before, mixed = maps(model), copy.deepcopy(model)
    fresh = _fresh(model, seed).state_dict()
    stages = list(_stages(model)) if cascade else [("all", tuple(fresh))]
    correlations = []
    for _, names in stages:
        mixed.load_state_dict(mixed.state_dict() | {name: fresh[name] for name in names})
        correlations.append(spearman(before, maps(mixed)))
    return Randomisation(tuple(stage for stage, _ in stages), torch.stack(correlations))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation over the last axis, (…, n) and (…, n) -> (…); ties share their mean rank.

    0 where all of a or of b is equal: it then says nothing of the other.
    """
    if a.shape != b.shape:
        raise InputError(f"ranks of shapes {tuple(a.shape)} and {tuple(b.shape)}: expected two alike")
    a, b = _mean_ranks(a), _mean_ranks(b)
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    spread = a.norm(dim=-1) * b.norm(dim=-1)
    return (a * b).sum(-1) / spread.clamp(min=torch.finfo(spread.dtype).tiny)


def _check(
    model: VisionTransformer,
    pixels: Tensor,
    attributions: Mapping[str, Tensor],
    target: Target,
    fills: Sequence[str],
    kind: str,
    counts: Mapping[str, int],
    grid: tuple[int, int],
) -> None:
    """Raises `InputError` that lists every argument that does not fit."""
    outputs, shape = model.config.outputs, (len(pixels), *grid)
    faults = []
    if not isinstance(attributions, Mapping):
        faults.append(f"attributions are a {type(attributions).__name__}: expected maps by name, {{'mine': maps}}")
        attributions = {}
    for name, values in attributions.items():
        if not isinstance(values, Tensor):
            faults.append(f"the maps of {name} are a {type(values).__name__}: expected a tensor of shape {shape}")
        elif tuple(values.shape) != shape:
            faults.append(f"the maps of {name} have the shape {tuple(values.shape)}: expected {shape}")
        elif not values.isfinite().all():
            faults.append(f"the maps of {name} hold numbers that are not finite")
    faults += [f"{name} is {value}: expected 1 or more" for name, value in counts.items() if value < 1]
    if not fills or set(fills) - set(FILLS):
        faults.append(f"fills are {tuple(fills)}: expected some of {', '.join(FILLS)}")
    if kind not in KINDS:
        faults.append(f"kind is {kind!r}: expected one of {', '.join(KINDS)}")
    faults += [fault] if (fault := fault_of(target, outputs)) else []
    if kind == "classification" and outputs == 1 and not isinstance(target, tuple):
        faults.append("a model of one output has no classes: expected kind regression or multilabel")
    if kind == "regression" and target is None and outputs > 1:
        faults.append(f"no target: expected which of the {outputs} numbers is meant")
    if faults:
        raise InputError.listing("these maps cannot be tested:", faults)


def _reader(whole: Tensor, target: Target, kind: str, temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """What is read of outputs (n, outputs) and the numbers (n,) of their pictures -> (n,). `whole` has all pictures."""
    if isinstance(target, tuple):
        first, second = target
        return lambda outputs, pictures: outputs[:, first] - outputs[:, second]
    chosen = whole.argmax(1) if target is None else whole.new_full((len(whole),), target, dtype=torch.int64)

    def read(outputs: Tensor, pictures: Tensor) -> Tensor:
        if kind == "classification":
            outputs = (outputs / temperature).softmax(1)
        elif kind == "multilabel":
            outputs = (outputs / temperature).sigmoid()
        return outputs.gather(1, chosen[pictures, None]).squeeze(1)

    return read


def _curves(
    model: VisionTransformer,
    pixels: Tensor,
    fill: str,
    ranks: Tensor,
    counts: Tensor,
    read: Callable[[Tensor, Tensor], Tensor],
    whole: Tensor,
    batch: int,
) -> Tensor:
    """Ranks (R, B, N), 0 the most important, and counts (P,) -> (R, 2, B, P): most, and least important cells first.

    The ends of all curves are alike, and computed once.
    """
    B, N = ranks.shape[1:]
    height, width = pixels.shape[-2:]
    grid = model.config.grid(height, width)
    nothing = filled(pixels, fill, grid)
    cells = cell_numbers(grid, (height, width), model.config.stride).to(pixels.device)  # (H, W)
    everyone = torch.arange(B, device=pixels.device)
    empty = torch.cat([model(some).float() for some in nothing.split(batch)])
    shape = (len(ranks), 2, B, len(counts))
    curves = torch.empty(shape, device=pixels.device)
    curves[..., 0], curves[..., -1] = read(whole, everyone), read(empty, everyone)

    between = torch.arange(shape[0] * 2 * B * (shape[3] - 2), device=pixels.device)
    for some in between.split(batch) if len(between) else ():
        r, least_first, picture, point = torch.unravel_index(some, (*shape[:3], shape[3] - 2))
        rank = ranks[r, picture]  # (n, N)
        rank = torch.where(least_first[:, None] == 1, N - 1 - rank, rank)
        gone = (rank < counts[point + 1, None])[:, None, cells]  # (n, 1, H, W)
        masked = torch.where(gone, nothing[picture], pixels[picture])
        curves[r, least_first, picture, point + 1] = read(model(masked).float(), picture)
    return curves


def _ranks(values: Tensor, shuffle: Tensor) -> Tensor:
    """Maps (B, N) -> the place of each cell, 0 the largest; equal ones as a permutation (B, N) has them."""
    order = values.gather(1, shuffle).argsort(dim=1, descending=True, stable=True)
    return shuffle.gather(1, order).argsort(1)


def _mean_ranks(values: Tensor) -> Tensor:
    """(…, n) -> ranks from 1 to n, float64; equal values share the mean of theirs."""
    values = values.contiguous()
    ordered = values.sort(-1).values
    below, up_to = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (below + up_to + 1).double() / 2


def _fresh(model: VisionTransformer, seed: int) -> VisionTransformer:
    """A fresh model of the same config, whose last layer is drawn too: zeros would answer nothing."""
    fresh = build(model.config, seed)
    generator = torch.Generator().manual_seed(seed)
    for module in fresh.modules():
        if isinstance(module, Head):
            nn.init.xavier_uniform_(module.outputs.weight, generator=generator)
    return fresh


def _stages(model: VisionTransformer) -> Iterator[tuple[str, tuple[str, ...]]]:
    """From the head down: what a stage is called, and the names of its weights."""
    names, depth = tuple(model.state_dict()), len(model.blocks)
    behind = ("norm.", "pool.", "head.")
    within = [(f"blocks.{layer}.", f"position.convolutions.{layer}.") for layer in range(depth)]
    yield "head", tuple(name for name in names if name.startswith(behind))
    for layer in reversed(range(depth)):
        yield f"block {layer}", tuple(name for name in names if name.startswith(within[layer]))
    later = (*behind, *(prefix for prefixes in within for prefix in prefixes))
    yield "tokens", tuple(name for name in names if not name.startswith(later))
