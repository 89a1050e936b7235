"""The exact account of an output, part by part; and what the head reads at each depth."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.errors import InputError
from vitreous.insight.pixels import grid_of
from vitreous.insight.target import Target, direction
from vitreous.insight.trace import trace
from vitreous.model.head import DistilledHead, Head, Pool
from vitreous.model.vit import VisionTransformer

Affine = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ledger:
    """What each part of a model adds to a score; the entries sum to it."""

    # "embedding", then of each layer "position 0" where it adds one, "head 0.0" …, "mlp 0", and "bias" last
    names: tuple[str, ...]
    values: Tensor  # (B, entries)
    tokens: Tensor  # (B, entries, T) how much of each lies in each token, class token and registers first
    score: Tensor  # (B,)


def ledger(model: VisionTransformer, pixels: Tensor, target: Target = None) -> Ledger:
    """What the embedding, every head and every MLP add to a score of normalised pixels (B, C, H, W).

    The tokens that the head reads are the sum of what these wrote into the residual stream. The score is affine in it
    once what is not linear behind it is held as it is: the deviations of the final norm, the gates of squeeze and
    excitation, the weights of attention pooling and what its MLP adds, the slope of a head's hidden layer. "bias" is
    the rest: the biases of projections, norm and head. Raises `InputError` for dense blocks, which have no stream.
    """
    grid_of(model, pixels)
    if model.config.ablation == "dense":
        raise InputError("dense blocks have no residual stream to keep a ledger of")
    with torch.no_grad():
        found = trace(model, pixels, what=("after", "position", "projected", "attended", "mlp"))
        wanted = direction(found.outputs, target)
        slope, bias = readout(model, found.layers[len(model.blocks) - 1].after, wanted)
        entries = {"embedding": (found.tokens - found.layers[0].position) * slope}
        for number, layer in found.layers.items():
            block: Any = model.blocks[number]
            if layer.position.any():
                entries[f"position {number}"] = layer.position * slope
            factors = branch_factors(block, layer.projected)
            for head, part in enumerate(layer.projected.unbind(1)):
                entries[f"head {number}.{head}"] = part * factors * slope
            bias = bias + (block.attention.projection.bias * factors * slope).sum((1, 2))
            entries[f"mlp {number}"] = layer.mlp * slope
        tokens = torch.stack([entry.sum(-1) for entry in entries.values()], 1)
    return Ledger(
        names=(*entries, "bias"),
        values=torch.cat((tokens.sum(2), bias[:, None]), 1),
        tokens=F.pad(tokens, (0, 0, 0, 1)),
        score=(found.outputs * wanted).sum(1),
    )


def branch_factors(block: Any, projected: Tensor) -> Tensor:
    """What a block multiplies attention's output by, column by column, before it joins the residual stream."""
    factors = projected.new_ones(projected.shape[-1])
    if hasattr(block, "excitation"):
        whole = projected.sum(1) + block.attention.projection.bias
        return factors if isinstance(block.excitation, nn.Identity) else block.excitation.gates(whole)
    for scale in block.attention_branch:
        factors = scale(factors) if hasattr(scale, "factor") else factors
    return factors


def readout(model: VisionTransformer, tokens: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """What a score is of the last block's tokens, with what is not linear held: slope (B, T, D) and constant (B,).

    tokens (B, T, D); `wanted` (B, outputs) is what each output counts. slope · tokens + constant is the score.
    """
    read = held_readout(model, tokens)
    with torch.enable_grad():
        zero = torch.zeros_like(tokens, requires_grad=True)
        constant = (read(zero) * wanted).sum(1)
        (slope,) = torch.autograd.grad(constant.sum(), zero)
    return slope, constant.detach()


def held_readout(model: VisionTransformer, at: Tensor) -> Affine:
    """Norm, pool and head as an affine function from tokens (B, T, D) to outputs that agrees with them `at` tokens."""
    if model.config.norm_after_pool:
        first = hold_pool(model.pool, at)
        second = hold_norm(model.norm, first(at))
    else:
        first = hold_norm(model.norm, at)
        second = hold_pool(model.pool, first(at))
    head = hold_head(model.head, second(first(at)))
    return lambda tokens: head(second(first(tokens)))


def hold_norm(norm: Any, at: Tensor) -> Affine:
    """LayerNorm or RMSNorm that divides by the deviations it has `at` (…, D)."""
    if isinstance(norm, nn.RMSNorm):
        rate = (at.square().mean(-1, keepdim=True) + (norm.eps or 0)).rsqrt()
        return lambda x: x * rate * norm.weight
    rate = (at.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt()
    return lambda x: (x - x.mean(-1, keepdim=True)) * rate * norm.weight + norm.bias


def hold_pool(pool: Pool, at: Tensor) -> Affine:
    """Pooling whose attention weights, and what its MLP adds, are those `at` tokens (B, T, D)."""
    attention, prefix = pool.attention, pool.config.prefix
    if attention is None:
        return pool
    q, k, _ = attention.split(at[:, prefix:])
    weights = (q @ k.mT * attention.scale).softmax(-1)

    def pooled(tokens: Tensor) -> Tensor:
        v = attention.split(tokens[:, prefix:])[2]
        return attention.projection((weights @ v).transpose(1, 2).flatten(2)).squeeze(1)

    added = attention.mlp(attention.mlp_norm(pooled(at)))
    return lambda tokens: pooled(tokens) + added


def hold_head(head: Head | DistilledHead, at: Tensor) -> Affine:
    """A head whose tanh keeps the ratio of its value to its argument that it has `at` features."""
    if isinstance(head, DistilledHead):
        both = hold_head(head.of_class, at[:, 0]), hold_head(head.of_teacher, at[:, 1])
        return lambda features: (both[0](features[:, 0]) + both[1](features[:, 1])) / 2
    hidden = head.hidden
    if hidden is None:
        return head
    argument = hidden(at)
    ratio = torch.where(argument == 0, 1, argument.tanh() / argument)
    return lambda features: head.outputs(hidden(features) * ratio)


def lens(model: VisionTransformer, pixels: Tensor) -> Tensor:
    """(B, depth + 1, outputs): the head read before the first block and after each, the last being the answer.

    The logit lens (nostalgebraist, 2020), through the final norm and the model's own pooling. Raises `InputError` for
    dense blocks, whose tokens change their width.
    """
    grid_of(model, pixels)
    if model.config.ablation == "dense":
        raise InputError("dense blocks change the width of the tokens: the head can read the last ones alone")
    with torch.no_grad():
        found = trace(model, pixels, what=("after",))
        stream = [found.tokens, *(layer.after for layer in found.layers.values())]
        return torch.stack([model.head(model.read(tokens)) for tokens in stream], 1)
