"""The tokens-to-token module of T2T-ViT (2101.11986): soft splits that overlap, and a token transformer after each."""

import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.model.config import ModelConfig, split_length, split_padding, split_stride
from vitreous.model.encoder import MLP, Attention


class SoftSplit(nn.Module):
    """Overlapping windows of k×k, each flattened to a token, channel-major."""

    def __init__(self, kernel: int):
        super().__init__()
        self.kernel = kernel

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C, H, W) -> tokens (B, N, C·k·k) row by row, and their grid (gh, gw)."""
        height, width = image.shape[-2:]
        k = self.kernel
        windows = F.unfold(image, k, stride=split_stride(k), padding=split_padding(k))
        return windows.mT, (split_length(height, k), split_length(width, k))


class TokenTransformer(nn.Module):
    """One narrow encoder block that takes wide tokens in: norm, attention with value skip; norm, MLP, residual."""

    def __init__(self, inputs: int, config: ModelConfig):
        super().__init__()
        width, heads = config.token_width, config.token_heads
        scale = (inputs if config.token_scale == "input" else width // heads) ** -0.5
        self.attention_norm = nn.LayerNorm(inputs, eps=config.norm_eps)
        self.attention = Attention(inputs, width, heads, qkv_bias=False, scale=scale, value_skip=True)
        self.mlp_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, int(width * config.token_mlp_ratio))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, inputs) -> (B, N, token width)."""
        tokens = self.attention(self.attention_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))


class TokensToToken(nn.Module):
    """Soft split, token transformer, reconstruction to an image, again; a last soft split, and a projection to D."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.splits = nn.ModuleList(SoftSplit(kernel) for kernel in config.kernels)
        self.transformers = nn.ModuleList()
        channels = config.channels
        for kernel in config.kernels[:-1]:
            self.transformers.append(TokenTransformer(channels * kernel**2, config))
            channels = config.token_width
        self.projection = nn.Linear(channels * config.kernels[-1] ** 2, config.width)

    def forward(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C, H, W) -> tokens (B, N, D) row by row, and their grid (gh, gw).

        Raises `InputError` for a picture that is too small for its soft splits.
        """
        self.config.grid(*pixels.shape[-2:])
        tokens, grid = self.splits[0](pixels)
        for transformer, split in zip(self.transformers, self.splits[1:], strict=True):
            image = transformer(tokens).mT.unflatten(2, grid)  # (B, token width, gh, gw)
            tokens, grid = split(image)
        return self.projection(tokens), grid
