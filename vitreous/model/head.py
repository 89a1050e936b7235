"""From tokens to outputs: pooling and the head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.model.config import ModelConfig
from vitreous.model.encoder import MLP
from vitreous.model.kernels import attend
from vitreous.model.merging import log_sizes


class AttentionPool(nn.Module):
    """A learned query that attends to the tokens of the picture, and an MLP on what it finds (2106.04560)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        D = config.width
        self.heads, self.scale = config.heads, (D // config.heads) ** -0.5
        self.query = nn.Parameter(torch.empty(1, D))
        nn.init.trunc_normal_(self.query, std=D**-0.5)
        self.q = nn.Linear(D, D)
        self.kv = nn.Linear(D, 2 * D)
        self.projection = nn.Linear(D, D)
        self.mlp_norm = nn.LayerNorm(D, eps=config.norm_eps)
        self.mlp = MLP(D, round(D * config.mlp_ratio))

    def forward(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """(B, N, D), and the patches that each stands for, (B, N, 1), where they have merged -> (B, D)."""
        q, k, v = self.split(tokens)
        bias = None if sizes is None else log_sizes(sizes)
        joined = attend(q, k, v, self.scale, bias).transpose(1, 2).flatten(2)  # (B, 1, D)
        pooled = self.projection(joined).squeeze(1)
        return pooled + self.mlp(self.mlp_norm(pooled))

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> the query, (B, heads, 1, D/heads), and keys and values of each head, (B, heads, N, D/heads)."""
        q = self.q(self.query).expand(tokens.shape[0], -1, -1)
        k, v = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q.unflatten(-1, (self.heads, -1)).transpose(1, 2), k, v


class Pool(nn.Module):
    """What the head reads: the class token, the mean of the picture's tokens, or what attention pools of them."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.attention = AttentionPool(config) if config.pool == "attention" else None

    def forward(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """(B, prefix + N, D) -> (B, D); with a distillation token (B, 2, D), the class token's first.

        `sizes` (B, prefix + N, 1) are the patches that each token stands for, where they have merged.
        """
        if self.config.distillation:
            return tokens[:, :2]
        if self.config.class_token:
            return tokens[:, 0]
        tokens = tokens[:, self.config.prefix :]  # (B, N, D)
        if sizes is not None:
            sizes = sizes[:, self.config.prefix :]
        if self.attention is not None:
            return self.attention(tokens, sizes)
        return tokens.mean(1) if sizes is None else ((tokens * sizes).sum(1) / sizes.sum(1)).to(tokens.dtype)


class Head(nn.Module):
    """One linear layer, or with a hidden layer and tanh before it, as the ViT paper pre-trains."""

    def __init__(self, config: ModelConfig, width: int = 0):
        super().__init__()
        width = width or config.width
        self.hidden = nn.Linear(width, config.head_hidden) if config.head_hidden else None
        self.outputs = nn.Linear(config.head_hidden or width, config.outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, outputs)."""
        if self.hidden is not None:
            features = F.tanh(self.hidden(features))
        return self.outputs(features)


class DistilledHead(nn.Module):
    """A head on the class token and one on the distillation token (DeiT, 2012.12877); in the end their mean."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.of_class, self.of_teacher = Head(config), Head(config)

    def forward(self, features: Tensor) -> Tensor:
        """(B, 2, D) -> (B, outputs)."""
        return (self.of_class(features[:, 0]) + self.of_teacher(features[:, 1])) / 2
