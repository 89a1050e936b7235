"""How the score flows back through attention: a row of weights over tokens, taken backward block by block."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitreous.insight.ledger import hold_norm
from vitreous.insight.pixels import unsplit
from vitreous.insight.trace import Layer, Trace, attention_weights, trace, watch
from vitreous.model.vit import VisionTransformer

SCORES_AT_ONCE = 2**20  # of attention, which stay in the cache


@dataclass(frozen=True)
class Mixing:
    """The attention of a block: what its weights, and what they change of a score, are worked out from."""

    number: int  # of the block, or of the stage between soft splits
    block: Any
    q: Tensor  # (B, heads, T, width of a head or of a performer's features), k alike
    k: Tensor
    bias: Tensor | None
    skips: int  # ways on which a token comes through as it is
    v: Tensor | None = None  # (B, heads, T, D/heads)
    gradient: Tensor | None = None  # of a score, with respect to weights times values: (B, heads, T, D/heads)

    def change(self, weights: Tensor, rows: list[int]) -> Tensor:
        """A ⊙ ∇A of some rows of weights A (B, heads, rows, T): A·V has the gradient, so ∇A is that times Vᵀ."""
        assert self.gradient is not None
        assert self.v is not None
        return weights * (self.gradient[:, :, rows] @ self.v.mT)


@dataclass(frozen=True)
class Flow:
    """A forward pass as a chain of attentions, and how the head reads its last tokens."""

    found: Trace
    blocks: list[Mixing]  # of the encoder that attend, first to last
    stages: dict[int, Mixing]  # of the tokens-to-token module, by number
    read: Tensor  # (B, T) the weights with which the last tokens are read
    reading: Tensor | None = None  # (B, heads, N) weights of pooling times their gradient, where it was asked for


def flow(model: VisionTransformer, pixels: Tensor, layers: Sequence[int] | None = None) -> Flow:
    """The chain of attentions of a forward pass, or those of some `layers`."""
    found = trace(model, pixels, layers, ("q", "k"))
    blocks, stages = _mixings(model, found, {})
    return Flow(found, blocks, stages, read(model, found))


def flow_with_gradients(model: VisionTransformer, pixels: Tensor, chosen: Tensor) -> Flow:
    """The same with gradients of Σ outputs ⊙ chosen, both (B, outputs), which keep no graph."""
    with _watched_pool(model) as seen:
        found = trace(model, leaf(pixels), what=("q", "k", "v", "heads"), gradients=True)
    traced = (*found.layers.values(), *(stage.layer for stage in found.stages))
    layers = [layer for layer in traced if layer is not None and attends(layer)]
    wanted = [*(layer.heads for layer in layers), seen.get("joined", found.features)]
    *of_heads, of_read = torch.autograd.grad(found.outputs, wanted, chosen)
    gradients = {id(layer): gradient for layer, gradient in zip(layers, of_heads, strict=True)}
    blocks, stages = _mixings(model, found, gradients)
    return Flow(found, blocks, stages, read(model, found), _reading(model, found, seen, of_read))


@contextmanager
def entered(model: VisionTransformer, tokens: Tensor, grid: tuple[int, int]) -> Iterator[None]:
    """Whatever pixels the model is given, these tokens (B, N, D) of the picture are what its tokenizer gives."""
    model.tokenizer.__dict__["forward"] = lambda pixels: (tokens, grid)
    try:
        yield
    finally:
        del model.tokenizer.__dict__["forward"]


def leaf(pixels: Tensor) -> Tensor:
    """Pixels that a graph begins with, so that there is one where no weight asks for a gradient."""
    return pixels.detach().requires_grad_()


def attends(layer: Layer) -> bool:
    """Whether a traced layer has attention: not so a transition between dense blocks."""
    return "q" in layer.recorded


def read(model: VisionTransformer, found: Trace) -> Tensor:
    """(B, T) weights with which the head reads the last tokens."""
    row = found.tokens.detach().new_zeros(found.tokens.shape[:2])
    if model.config.class_token:
        row[:, : 1 + model.config.distillation] = 1 / (1 + model.config.distillation)
    elif found.pool is not None:
        row[:, found.prefix :] = found.pool.detach().mean(1)
    else:
        row[:, found.prefix :] = 1 / (row.shape[1] - found.prefix)
    return row


@torch.no_grad()
def back(row: Tensor, mixing: Mixing, weigh: Callable[[Tensor, list[int]], Tensor]) -> Tensor:
    """A row (B, T) times the matrix (B, T, T) that `weigh` makes of the heads' weights, and that is never whole.

    `weigh` takes weights (B, heads, rows, T) and which rows they are, and gives (B, rows, T). Rows that are 0 for every
    picture are left out, the others come a block at a time: memory grows linearly with the tokens.
    """
    rows = row.ne(0).any(0).nonzero().flatten().tolist()
    step = max(1, SCORES_AT_ONCE // (mixing.q.shape[1] * row.numel()))
    found = torch.zeros_like(row)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        weights = attention_weights(mixing.block, mixing.q, mixing.k, mixing.bias, part, None)
        found += (row[:, None, part] @ weigh(weights, part).to(row)).squeeze(1)
    return found


def to_picture(
    chain: Flow, row: Tensor, step: Callable[[Tensor, Mixing], Tensor], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """A row (B, T) over the last tokens, taken by `step` through each attention to the tokens that enter the encoder,
    (B, gh, gw), or on through the tokens-to-token module to pixels (B, H, W); and what fell on padding, (B,).
    """
    for mixing in reversed(chain.blocks):
        row = step(row, mixing)
    image, lost = row[:, chain.found.prefix :].unflatten(1, chain.found.grid), row.new_zeros(len(row))
    sizes = [size, *(stage.grid for stage in chain.found.stages)]
    for number, stage in reversed(list(enumerate(chain.found.stages))):
        row = image.flatten(1)
        if number in chain.stages:
            row = step(row, chain.stages[number])
        image, padding = unsplit(row, stage.kernel, sizes[number])
        lost = lost + padding
    return image, lost


def _mixings(
    model: VisionTransformer, found: Trace, gradients: dict[int, Tensor]
) -> tuple[list[Mixing], dict[int, Mixing]]:
    def mixing(number: int, block: Any, layer: Layer, bias: Tensor | None, skips: int) -> Mixing:
        parts = {name: part.detach() for name, part in layer.recorded.items() if name in ("q", "k", "v")}
        parts = {name: part if part.ndim == 4 else part[:, None] for name, part in parts.items()}  # a performer's
        return Mixing(number, block, **parts, bias=bias, skips=skips, gradient=gradients.get(id(layer)))

    blocks = [
        mixing(
            number,
            model.blocks[number],
            layer,
            model.position.relation(found.grid, number, found.tokens).bias,
            1 + model.config.value_skip,
        )
        for number, layer in found.layers.items()
        if attends(layer)
    ]
    between: Any = getattr(model.tokenizer, "transformers", ())
    stages = {
        number: mixing(number, block, stage.layer, None, 1)  # attention gives V + proj(A·V), and no other skip
        for number, (block, stage) in enumerate(zip(between, found.stages, strict=False))
        if stage.layer is not None
    }
    return blocks, stages


@contextmanager
def _watched_pool(model: VisionTransformer) -> Iterator[dict[str, Tensor]]:
    """What pooling reads; of attention pooling its keys with its values, and what it joins of these."""
    seen: dict[str, Tensor] = {}
    of = model.pool.attention
    with ExitStack() as stack:
        watch(stack, model.pool, lambda args, out: seen.update(tokens=args[0].detach()))
        if of is not None:
            watch(stack, of.kv, lambda args, out: seen.update(kv=out.detach()))
            watch(stack, of.projection, lambda args, out: seen.update(joined=args[0]))
        yield seen


def _reading(model: VisionTransformer, found: Trace, seen: dict[str, Tensor], gradient: Tensor) -> Tensor | None:
    """w ⊙ ∇w of the weights w of pooling, (B, heads, N): learned ones, or 1/N each. None for class tokens."""
    if model.config.class_token:
        return None
    if found.pool is not None:
        heads = found.pool.shape[1]
        gradient = gradient.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, 1, D/heads)
        v = seen["kv"].unflatten(-1, (2, heads, -1))[:, :, 1].transpose(1, 2)  # (B, heads, N, D/heads)
        return found.pool.detach() * (gradient @ v.mT).squeeze(2)
    tokens = seen["tokens"][:, found.prefix :]
    if model.config.norm_after_pool:
        with torch.no_grad():
            norm = hold_norm(model.norm, tokens.mean(1, keepdim=True))
            tokens = norm(tokens) - norm(torch.zeros_like(tokens))  # but for its bias, which is no token's
    return (tokens @ gradient[..., None]).mT / tokens.shape[1]
