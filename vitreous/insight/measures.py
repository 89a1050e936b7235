"""What a whole model is like, or a model on a set of pictures, in numbers.

What they measure goes back to figure 7 and appendix D.7 of *An Image Is Worth 16×16 Words* (2010.11929) and to
*Vision Transformers Need Registers* (2309.16588). `figures` draws them.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from vitreous import metrics
from vitreous.data.targets import Task
from vitreous.errors import InputError
from vitreous.insight.ledger import lens
from vitreous.insight.pixels import grid_of
from vitreous.insight.trace import cells_of, trace, watch
from vitreous.model.patch import PatchEmbedding
from vitreous.model.position import LEARNED, RelativeBias, fixed_table, resample
from vitreous.model.stem import ConvolutionStem
from vitreous.model.t2t import ConvolutionTokens, TokenPerformer
from vitreous.model.vit import VisionTransformer

Grid = tuple[int, int]
AT_ONCE = 8  # pictures that go through a model together


def position_similarity(
    model: VisionTransformer, grid: Grid | None = None, places: Sequence[int] | None = None, layer: int = 0
) -> np.ndarray:
    """Cosine similarity of the position embeddings of `places`, or of all, with all tokens' of the grid: (n, gh, gw).

    Of rope2d the mean cosine of the angles between two tokens' rotations. `layer` is for tables of a block's own.
    Raises `InputError` for a model whose positions are no vectors: relative ones, or none.
    """
    config = model.config
    gh, gw = grid = grid or config.grid(*config.image_size)
    if config.position in ("none", "relative"):
        raise InputError(f"position {config.position}: expected an embedding with a vector a token")
    with torch.no_grad():
        if config.position in LEARNED:
            table = model.position.tables[layer % len(model.position.tables)](grid)
        else:
            table = fixed_table(config, grid)
        if config.position == "rope2d":
            table = torch.cat(table.unbind(), -1)  # (T, head width), whose products are sums of such cosines
        vectors = table[config.prefix :].cpu().double()
        vectors = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        chosen = vectors if places is None else vectors[list(places)]
        return (chosen @ vectors.T).unflatten(1, (gh, gw)).numpy()


def position_bias(model: VisionTransformer, grid: Grid | None = None, layer: int = 0) -> np.ndarray:
    """What relative positions add to the score of a key, by its offset from the query: (heads, 2·gh-1, 2·gw-1).

    The middle is the query's own place, above it are the keys above. Raises `InputError` for other embeddings.
    """
    config = model.config
    gh, gw = grid or config.grid(*config.image_size)
    if config.position != "relative":
        raise InputError(f"position {config.position}: expected relative")
    bias = model.position.tables[layer % len(model.position.tables)]
    assert isinstance(bias, RelativeBias)
    shape = (2 * gh - 1, 2 * gw - 1)
    with torch.no_grad():
        table = resample(bias.table, bias.offsets, shape)
    return table.detach().cpu().double().T.unflatten(1, shape).flip(1, 2).numpy()  # the table's offsets are the query's


def convolution_parts(model: VisionTransformer, pixels: Tensor) -> np.ndarray:
    """What the convolutions between blocks add to the tokens of the picture, (depth, 4): three shares, and its size.

    The shares of its mean square that are the same everywhere, that depend on the place alone, and that depend on the
    picture; estimated without bias from B ≥ 2 pictures of pixels (B, C, H, W), so that they sum to 1. The size is its
    root mean square over that of the tokens it is added to. Raises `InputError` where there is nothing to measure.
    """
    if not model.position.convolutions or len(pixels) < 2:
        raise InputError("expected a model with conditional positions, and two pictures or more")
    B, depth, prefix = len(pixels), len(model.position.convolutions), model.config.prefix
    by_place: list[Any] = [0.0] * depth  # sums over pictures of what is added, (N, D)
    by_picture: list[list[Tensor]] = [[] for _ in range(depth)]  # means over places, (b, D)
    squares = np.zeros((depth, 2))  # of what is added, and of the tokens
    for some in pixels.split(AT_ONCE):
        for layer, (tokens, added) in enumerate(_convolved(model, some)):
            tokens, added = (x[:, prefix:].cpu().double() for x in (tokens, added))
            by_place[layer] += added.sum(0)
            by_picture[layer].append(added.mean(1))
            squares[layer] += [x.square().sum(-1).mean(-1).sum().item() / B for x in (added, tokens)]
    parts = []
    for total, some, (square, _) in zip(by_place, by_picture, squares, strict=True):
        means, pictures = total / B, torch.cat(some)  # (N, D), (B, D)
        mean = means.mean(0)
        of_place, of_picture = ((x - mean).square().sum(-1).mean().item() for x in (means, pictures))
        mixed = square - mean.square().sum().item() - of_place - of_picture
        place = max(0.0, of_place - mixed / (B - 1))  # the means of a few pictures differ by chance too
        picture = (of_picture + mixed) * B / (B - 1)
        parts.append(np.array([square - place - picture, place, picture]) / (square or 1.0))
    return np.column_stack((parts, np.sqrt(squares[:, 0] / np.where(squares[:, 1], squares[:, 1], 1))))


def _convolved(model: VisionTransformer, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each convolution between blocks the tokens that it takes, and what it gives, both (B, T, D)."""
    seen: list[tuple[Tensor, Tensor]] = []
    with ExitStack() as stack, torch.no_grad():
        for convolution in model.position.convolutions:
            watch(stack, convolution, lambda args, out: seen.append((args[0], out)))
        model(pixels)
    return seen


def first_filters(model: VisionTransformer) -> np.ndarray:
    """What the first layer sees the picture through, (filters, C, kernel height, kernel width).

    The patch embedding, the first convolution, or of soft splits the values of the first token transformer, or
    performer, with the weights and the centring of the norm before them.
    """
    tokenizer: Any = model.tokenizer
    if isinstance(tokenizer, PatchEmbedding):
        weight: Any = tokenizer.projection.weight
    elif isinstance(tokenizer, ConvolutionStem):
        weight = tokenizer.first.weight.unflatten(1, tokenizer.first.window)
    elif isinstance(tokenizer, ConvolutionTokens):
        weight = (*tokenizer.convolutions, tokenizer.projection)[0].weight
    else:
        weight, k = tokenizer.projection.weight, model.config.kernels[0]
        if len(tokenizer.transformers):
            first: Any = tokenizer.transformers[0]
            layer = first.kqv if isinstance(first, TokenPerformer) else first.attention.qkv
            weight = layer.weight.chunk(3)[2] * first.attention_norm.weight
            weight = weight - weight.mean(1, keepdim=True)
        weight = weight.unflatten(1, (model.config.channels, k, k))
    return weight.detach().cpu().double().numpy()


def principal_filters(filters: np.ndarray, count: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of filters (n, C, kh, kw): (count, C, kh, kw), and their shares of the filters' square.

    As in figure 7 of the ViT paper: what the filters are sums of. Fewer where there are no more.
    """
    n, *shape = filters.shape
    count = min(count, n, math.prod(shape))
    directions, shares = principal_directions(filters.reshape(n, -1), count)
    return directions.reshape(count, *shape), shares


@dataclass(frozen=True)
class AttentionDistance:
    """How far heads look, in pixels of the picture."""

    pixels: np.ndarray  # (depth, heads); NaN for a block without attention
    everywhere: float  # of a head that attends to all tokens alike
    diagonal: float  # of the picture


def attention_distance(model: VisionTransformer, pixels: Tensor, memory: int = 2**30) -> AttentionDistance:
    """Distance between the centres of a query and of what it attends to, weighted by attention (2010.11929, D.7).

    The mean over queries and pictures of pixels (B, C, H, W). Prefix tokens are left out and the rest of the weights
    renormalised. `memory` in bytes bounds the attention that is held.
    """
    H, W = pixels.shape[-2:]
    config, depth = model.config, len(model.blocks)
    grid = config.grid(H, W)
    one = 4 * config.heads * (config.prefix + math.prod(grid)) ** 2  # bytes of a layer and picture
    layers_at_once = max(1, min(depth, memory // one))
    sums: dict[int, Tensor] = {}
    for some in pixels.split(max(1, min(AT_ONCE, memory // (one * depth)))):
        for first in range(0, depth, layers_at_once):
            numbers = range(first, min(first + layers_at_once, depth))
            for number, layer in trace(model, some, numbers, ["attention"], memory=memory).layers.items():
                if "attention" in layer.recorded:  # not between stages of dense blocks
                    places, sizes = _centres(grid, config.stride, layer.cell)
                    found = mean_distance(layer.attention[..., config.prefix :, config.prefix :], places, sizes)
                    sums[number] = sums.get(number, 0) + found.sum(0)
    distances = np.full((depth, max((len(total) for total in sums.values()), default=1)), math.nan)
    for number, total in sums.items():
        distances[number, : len(total)] = total.cpu().numpy() / len(pixels)
    return AttentionDistance(distances, distance_everywhere(grid, config.stride), math.hypot(H, W))


def distance_everywhere(grid: Grid, stride: Grid) -> float:
    """The mean distance in pixels between the centres of any two tokens, one and the same among them."""
    offsets = [np.arange(-side + 1, side) for side in grid]
    counts = [side - np.abs(offset) for side, offset in zip(grid, offsets, strict=True)]
    lengths = np.hypot(offsets[0][:, None] * stride[0], offsets[1] * stride[1])
    return float((counts[0][:, None] * counts[1] * lengths).sum() / math.prod(grid) ** 2)


def mean_distance(attention: Tensor, places: Tensor, sizes: Tensor) -> Tensor:
    """Weights (B, heads, N, N) at places (N, 2) that stand for so many tokens (N,) each -> distance (B, heads)."""
    distances = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").to(attention)
    total = attention.sum(-1)
    by_query = torch.einsum("bhqk,qk->bhq", attention, distances) / total.clamp_min(torch.finfo(total.dtype).tiny)
    counted = sizes.to(total) * (total > 0)  # a query may see nothing but prefix tokens
    return (by_query * counted).sum(-1) / counted.sum(-1).clamp_min(1e-12)


def _centres(grid: Grid, stride: Grid, cell: int) -> tuple[Tensor, Tensor]:
    """Places in pixels (n, 2) of the tokens of a grid, or of squares of them, and how many tokens each stands for."""
    gh, gw = grid
    rows, columns = torch.arange(gh).repeat_interleave(gw), torch.arange(gw).repeat(gh)
    places = torch.stack((rows * stride[0], columns * stride[1]), 1).double()
    numbers = cells_of(grid, 0, cell)
    if numbers is None:
        return places, torch.ones(gh * gw).double()
    sizes = torch.bincount(numbers).double()
    return torch.zeros(len(sizes), 2).double().index_add_(0, numbers, places) / sizes[:, None], sizes


@dataclass(frozen=True)
class TokenNorms:
    """Lengths of tokens as they enter the first block and leave each. S = depth + 1."""

    tokens: np.ndarray  # (S, B, gh, gw) of the picture
    prefix: np.ndarray  # (S, B, prefix)

    @property
    def thresholds(self) -> np.ndarray:
        """(S,) of outliers: Q3 + 3·(Q3 - Q1) over all tokens of a stage (Tukey's far out), and at least 2·median."""
        low, median, high = np.quantile(self.tokens.reshape(len(self.tokens), -1), [0.25, 0.5, 0.75], axis=1)
        return np.maximum(high + 3 * (high - low), 2 * median)

    @property
    def outliers(self) -> np.ndarray:
        """(S,) share of tokens above the threshold."""
        return (self.tokens > self.thresholds[:, None, None, None]).mean((1, 2, 3))


def token_norms(model: VisionTransformer, pixels: Tensor) -> TokenNorms:
    """Of normalised pixels (B, C, H, W)."""
    parts = []
    for some in pixels.split(AT_ONCE):
        seen = trace(model, some, what=["norms"])
        norms = [seen.tokens.norm(dim=-1), *(layer.norms for _, layer in sorted(seen.layers.items()))]
        parts.append(torch.stack(norms).cpu().double())  # (S, b, T)
    norms, prefix = torch.cat(parts, 1).numpy(), model.config.prefix
    grid = model.config.grid(*pixels.shape[-2:])
    return TokenNorms(norms[..., prefix:].reshape(*norms.shape[:2], *grid), norms[..., :prefix])


def token_features(model: VisionTransformer, pixels: Tensor) -> np.ndarray:
    """Pixels (B, C, H, W) -> the picture's tokens as the head pools them, (B, gh, gw, D)."""
    grid, config = grid_of(model, pixels), model.config
    with torch.no_grad():
        parts = [model.encode(some)[:, config.prefix :] for some in pixels.split(AT_ONCE)]
        tokens = torch.cat([part if config.norm_after_pool else model.norm(part) for part in parts])
    return tokens.unflatten(1, grid).float().cpu().numpy()


@dataclass(frozen=True)
class Components:
    """The first principal components of vectors of D columns, and the range of each that becomes a colour."""

    mean: np.ndarray  # (D,)
    directions: np.ndarray  # (3, D) of length 1, or 0 where there is no more variance
    shares: np.ndarray  # (3,) of the variance
    low: np.ndarray  # (3,) 1st and 99th percentile over the vectors that it was made from
    high: np.ndarray

    @classmethod
    def fit(cls, vectors: np.ndarray) -> Self:
        """From (…, D). Of each direction the entry that is largest without its sign is positive."""
        flat = np.asarray(vectors, np.float64).reshape(-1, vectors.shape[-1])
        mean = flat.mean(0)
        directions, shares = principal_directions(flat - mean, 3)
        low, high = np.percentile((flat - mean) @ directions.T, [1, 99], axis=0)
        return cls(mean, directions, shares, low, high)

    def colours(self, vectors: np.ndarray) -> np.ndarray:
        """(…, D) -> red, green and blue in 0 … 1, (…, 3)."""
        values = (np.asarray(vectors, np.float64) - self.mean) @ self.directions.T
        spread = self.high - self.low
        flat = spread <= 1e-9 * (np.abs(self.low) + np.abs(self.high)) + 1e-30
        return np.where(flat, 0.5, (values - self.low) / np.where(flat, 1, spread)).clip(0, 1)


def principal_directions(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) -> its right singular vectors of the largest singular values, (count, D), and their shares of the square.

    Of each the entry that is largest without its sign is positive. Rows of zeros where the rank is less.
    """
    n, D = rows.shape
    squares, vectors = np.linalg.eigh(rows.T @ rows if n >= D else rows @ rows.T)
    squares, vectors = squares[::-1].clip(0)[:count], vectors.T[::-1][:count]
    if n < D:
        vectors = vectors @ rows / np.sqrt(np.where(squares, squares, 1))[:, None]
    total = float((rows**2).sum())
    kept = squares > 1e-12 * total
    signs = np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)])
    directions, shares = np.zeros((count, D)), np.zeros(count)
    directions[: len(vectors)] = vectors * (signs * kept)[:, None]
    shares[: len(squares)] = squares * kept / (total or 1.0)
    return directions, shares


@dataclass(frozen=True)
class DepthScores:
    """How good the answers are that the head gives before the first block and after each. S = depth + 1."""

    measure: str  # "accuracy", "mean average precision" or "RMSE"
    values: np.ndarray  # (S, 1), or (S, targets) of a regression, in units
    baseline: np.ndarray  # (1,) or (targets,): of the commonest class, of chance, or of the mean


def scores_by_depth(model: VisionTransformer, batches: Iterable[tuple[Tensor, np.ndarray]], task: Task) -> DepthScores:
    """From batches of normalised pixels (B, C, H, W) and targets: (B,) classes, (B, K) labels or numbers in units.

    The head was trained on what the last block gives alone, so that early scores are a lower bound of what is known.
    """
    pairs = [(lens(model, pixels).float().cpu().numpy(), targets) for pixels, targets in batches]
    outputs = np.concatenate([some for some, _ in pairs])  # (n, S, outputs)
    targets = np.concatenate([some for _, some in pairs])
    stages = [outputs[:, stage] for stage in range(outputs.shape[1])]
    if task.kind == "classification":
        values = np.array([[metrics.accuracy(stage, targets)] for stage in stages])
        return DepthScores("accuracy", values, np.bincount(targets).max(keepdims=True) / len(targets))
    if task.kind == "multilabel":
        values = np.array([[np.nanmean(metrics.average_precision(stage, targets))] for stage in stages])
        present = targets.mean(0)
        return DepthScores("mean average precision", values, present[present > 0].mean(keepdims=True))
    values = np.stack([metrics.regression_errors(task.restore(stage), targets).rmse for stage in stages])
    return DepthScores("RMSE", values, targets.std(0))


def displayable(pixels: Tensor) -> np.ndarray:
    """Normalised pixels (B, C, H, W) -> (B, H, W, 3) uint8 between the 1st and 99th percentile of all.

    Of two channels the first is shown, of four or more the first three.
    """
    kept = pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1].expand(-1, 3, -1, -1)
    return levels(kept.detach().float().cpu().permute(0, 2, 3, 1).numpy())


def levels(values: np.ndarray) -> np.ndarray:
    """Numbers to uint8, from the 1st percentile of all to the 99th."""
    low, high = np.percentile(values, [1, 99])
    return (255 * ((values - low) / ((high - low) or 1.0)).clip(0, 1)).round().astype(np.uint8)


def prefix_names(model: VisionTransformer) -> list[str]:
    """Names of the prefix tokens, in their order."""
    config = model.config
    names = ["class token"] * config.class_token + ["distillation token"] * config.distillation
    return names + [f"register {n + 1}" for n in range(config.registers)]


def evenly_apart(length: int, most: int) -> np.ndarray:
    """At most so many places from 0 to length - 1, evenly apart, both ends among them."""
    return np.linspace(0, length - 1, min(length, most)).round().astype(int)
