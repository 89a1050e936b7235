"""Modules of a model as exported graphs compute them fastest: what they give is the same."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.model.config import split_padding, split_stride
from vitreous.model.encoder import Attention
from vitreous.model.t2t import TokenPerformer, TokensToToken, TokenTransformer
from vitreous.model.vit import VisionTransformer

Kind = TypeVar("Kind", bound=nn.Module)


def operate(model: VisionTransformer) -> None:
    """Puts the modules of here in the places of a model's own; its weights are left as they are."""
    replace(model, TokensToToken, ChannelsLast)
    replace(model, Attention, ThreeProducts)


def replace(model: nn.Module, kind: type[Kind], other: Callable[[Kind], nn.Module]) -> None:
    """Every module of a kind, by another made of it."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, kind):
                setattr(module, name, other(child))


class ThreeProducts(Attention):
    """Attention whose queries, keys and values come of a product each.

    An engine joins each one's turn to heads with the attention it is for; those of a common product it cannot.
    """

    def __init__(self, attention: Attention):
        nn.Module.__init__(self)
        self.heads, self.scale, self.value_skip = attention.heads, attention.scale, attention.value_skip
        self.qkv, self.projection = attention.qkv, attention.projection
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm

    def products(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, inputs) -> those of queries, keys and values, (B, heads, N, D/heads)."""
        biases = (None,) * 3 if self.qkv.bias is None else self.qkv.bias.chunk(3)
        products = (F.linear(tokens, *part) for part in zip(self.qkv.weight.chunk(3), biases, strict=True))
        q, k, v = (product.unflatten(-1, (self.heads, -1)).transpose(1, 2) for product in products)
        return q, k, v


class ChannelsLast(nn.Module):
    """The tokens-to-token module with channels last all the way, so that tokens are an image without being turned.

    The weights that read windows are turned instead, once.
    """

    def __init__(self, module: TokensToToken):
        super().__init__()
        module = copy.deepcopy(module)
        self.kernels = module.config.kernels
        self.transformers, self.projection = module.transformers, module.projection
        for transformer, kernel in zip(self.transformers, self.kernels[:-1], strict=True):
            assert isinstance(transformer, TokenTransformer | TokenPerformer)
            norm = transformer.attention_norm
            product = transformer.kqv if isinstance(transformer, TokenPerformer) else transformer.attention.qkv
            for weight in (norm.weight, norm.bias, product.weight):
                turn(weight, kernel)
        turn(self.projection.weight, self.kernels[-1])

    def forward(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C, H, W) -> tokens (B, N, D) row by row, and their grid (gh, gw)."""
        image = pixels.permute(0, 2, 3, 1)
        for transformer, kernel in zip(self.transformers, self.kernels[:-1], strict=True):
            found = windows(image, kernel)
            image = transformer(found.flatten(1, 2)).unflatten(1, found.shape[1:3])
        found = windows(image, self.kernels[-1])
        return self.projection(found.flatten(1, 2)), (found.shape[1], found.shape[2])


def turn(weight: Tensor, kernel: int) -> None:
    """The last dimension, of windows k×k as a soft split flattens them, from channel-major to channels last."""
    with torch.no_grad():
        weight.copy_(weight.unflatten(-1, (-1, kernel**2)).transpose(-1, -2).flatten(-2).clone())


def windows(image: Tensor, kernel: int) -> Tensor:
    """(B, H, W, C) -> the overlapping windows of a soft split, channels last, (B, gh, gw, k·k·C).

    A window is a few blocks of stride × stride side by side, cut to k: what is copied lies together, and engines have
    fast kernels for all of it, which they have not for indices that overlap.
    """
    k, stride, padding = kernel, split_stride(kernel), split_padding(kernel)
    gh, gw = ((length + 2 * padding - k) // stride + 1 for length in image.shape[1:3])
    reach = -(-k // stride)  # blocks that a window touches, along a side
    rows, columns = (gh + reach - 1) * stride, (gw + reach - 1) * stride
    below, right = rows - padding - image.shape[1], columns - padding - image.shape[2]
    channels = image.shape[3]
    image = F.pad(image, (0, 0, padding, right, padding, below))
    blocks = image.reshape(-1, rows, columns // stride, stride * channels)
    strips = torch.cat([blocks[:, :, n : n + gw] for n in range(reach)], -1)[..., : k * channels]
    strips = strips.reshape(-1, rows // stride, stride, gw, k * channels)
    return torch.cat([strips[:, n // stride : n // stride + gh, n % stride] for n in range(k)], -1)
