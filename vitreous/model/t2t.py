"""The tokens-to-token module of T2T-ViT (2101.11986): soft splits that overlap, and a token transformer after each."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.model.config import ModelConfig, split_padding, split_stride
from vitreous.model.encoder import MLP, Attention
from vitreous.model.kernels import Linear, computing_type


class SoftSplit(nn.Module):
    """Overlapping windows of k×k, each flattened to a token, channel-major."""

    def __init__(self, kernel: int):
        super().__init__()
        self.kernel = kernel

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C, H, W) -> tokens (B, N, C·k·k) row by row, and their grid (gh, gw)."""
        k, stride, padding = self.kernel, split_stride(self.kernel), split_padding(self.kernel)
        padded = F.pad(image, (padding,) * 4)
        windows = padded.unfold(2, k, stride).unfold(3, k, stride)  # (B, C, gh, gw, k, k), nothing copied yet
        grid = windows.shape[2], windows.shape[3]
        if image.stride(1) == 1:  # channels lie together, as in tokens: copied so, and turned in the cache, 4× faster
            tokens = windows.permute(0, 2, 3, 4, 5, 1).flatten(3, 4).mT  # (B, gh, gw, C, k·k)
        else:
            tokens = windows.permute(0, 2, 3, 1, 4, 5)
        return tokens.flatten(3).flatten(1, 2), grid


class TokenTransformer(nn.Module):
    """One narrow encoder block that takes wide tokens in: norm, attention with value skip; norm, MLP, residual."""

    def __init__(self, inputs: int, config: ModelConfig):
        super().__init__()
        width, heads = config.token_width, config.token_heads
        scale = (inputs if config.token_scale == "input" else width // heads) ** -0.5
        self.attention_norm = nn.LayerNorm(inputs, eps=config.norm_eps)
        self.attention = Attention(inputs, width, heads, qkv_bias=False, scale=scale, value_skip=True)
        self.mlp_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, round(width * config.token_mlp_ratio))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, inputs) -> (B, N, token width)."""
        tokens = self.attention(self.attention_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))


class TokenPerformer(nn.Module):
    """The token transformer with attention by random features (Performer, 2009.14794), linear in the tokens.

    softmax(q·k) is estimated by φ(q)·φ(k) with φ(x) = exp(x·w - |x|²/2) / √m over m fixed orthogonal directions w.
    """

    directions: Tensor  # (m, width)

    def __init__(self, inputs: int, config: ModelConfig):
        super().__init__()
        width, features = config.token_width, config.token_width // 2
        self.attention_norm = nn.LayerNorm(inputs, eps=config.norm_eps)
        self.kqv = Linear(inputs, 3 * width)
        self.projection = Linear(width, width)
        self.register_buffer("directions", torch.empty(features, width))
        nn.init.orthogonal_(self.directions, gain=features**0.5)
        self.mlp_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, round(width * config.token_mlp_ratio))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, inputs) -> (B, N, token width)."""
        q, k, v = self.split(self.attention_norm(tokens))
        total = q @ k.sum(1)[..., None]  # (B, N, 1)
        joined = q @ (k.mT @ v) / (total + 1e-8)  # (B, N, width)
        tokens = v + self.projection(joined)
        return tokens + self.mlp(self.mlp_norm(tokens))

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, inputs) -> φ of the queries and of the keys, (B, N, m), and values (B, N, width)."""
        k, q, v = self.kqv(tokens).chunk(3, -1)
        return self.features(q), self.features(k), v

    def features(self, x: Tensor) -> Tensor:
        """(B, N, width) -> φ(x), (B, N, m)."""
        w = self.directions
        return torch.exp(x @ w.T - x.square().sum(-1, keepdim=True) / 2) / len(w) ** 0.5


class ConvolutionTokens(nn.Module):
    """The T2T-ViT paper's ablation: convolutions with the kernels of the soft splits, and nothing between them."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        widths = [config.channels, *[config.token_width] * (len(config.kernels) - 1), config.width]
        *self.convolutions, self.projection = (
            nn.Conv2d(inputs, outputs, kernel, split_stride(kernel), split_padding(kernel))
            for inputs, outputs, kernel in zip(widths[:-1], widths[1:], config.kernels, strict=True)
        )
        self.convolutions = nn.ModuleList(self.convolutions)

    def forward(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C, H, W) -> tokens (B, N, D) row by row, and their grid (gh, gw)."""
        grid = self.config.grid(*pixels.shape[-2:])
        for convolution in self.convolutions:
            pixels = convolution(pixels)
        return self.projection(pixels).flatten(2).mT, grid


class TokensToToken(nn.Module):
    """Soft split, token transformer, reconstruction to an image, again; a last soft split, and a projection to D."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        kind = TokenPerformer if config.token_kind == "performer" else TokenTransformer
        self.splits = nn.ModuleList(SoftSplit(kernel) for kernel in config.kernels)
        self.transformers = nn.ModuleList()
        channels = config.channels
        for kernel in config.kernels[:-1]:
            self.transformers.append(kind(channels * kernel**2, config))
            channels = config.token_width
        self.projection = Linear(channels * config.kernels[-1] ** 2, config.width)

    def forward(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C, H, W) -> tokens (B, N, D) row by row, and their grid (gh, gw).

        Raises `InputError` for a picture that is too small for its soft splits.
        """
        self.config.grid(*pixels.shape[-2:])
        tokens, grid = self.splits[0](pixels.to(computing_type(pixels)))  # windows overlap: cast once, not threefold
        for transformer, split in zip(self.transformers, self.splits[1:], strict=True):
            image = transformer(tokens).mT.unflatten(2, grid)  # (B, token width, gh, gw)
            tokens, grid = split(image)
        return self.projection(tokens), grid
