"""The encoder of *Attention Is All You Need*, in the pre-norm form of the ViT paper: Attention, MLP, EncoderBlock."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.model.config import ModelConfig
from vitreous.model.kernels import Linear, attend
from vitreous.model.merging import Merging


class Relation(NamedTuple):
    """What a block is told of its tokens: of their places, where the position embedding works inside attention, and of
    their merging, where they merge.
    """

    bias: Tensor | None = None  # (heads, N, N), added to Q·Kᵀ·scale
    rotation: Tensor | None = None  # (2, N, head width / 2): cosines and sines of the angles that q and k turn by
    merging: Merging | None = None


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """(B, heads, N, head width), each pair of columns turned by its token's angle (RoFormer, 2104.09864)."""
    cos, sin = rotation.to(x.dtype)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Attention(nn.Module):
    """Multi-head self-attention from tokens of width `inputs` to tokens of `width`.

    With `value_skip` it returns V + proj(A·V) rather than proj(A·V): the token transformers of the T2T-ViT paper
    need it, since their input and output differ in width, and the article series has it everywhere. With `norm_eps`
    queries and keys are normalised, each head on its own (2302.05442).
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        heads: int,
        qkv_bias: bool,
        scale: float,
        value_skip: bool = False,
        norm_eps: float | None = None,
    ):
        super().__init__()
        self.heads, self.scale, self.value_skip = heads, scale, value_skip
        self.qkv = Linear(inputs, 3 * width, bias=qkv_bias)
        self.q_norm, self.k_norm = (
            nn.Identity() if norm_eps is None else nn.LayerNorm(width // heads, eps=norm_eps) for _ in range(2)
        )
        self.projection = Linear(width, width)

    def forward(self, tokens: Tensor, relation: Relation = Relation()) -> Tensor:  # noqa: B008
        """(B, N, inputs) -> (B, N, width)."""
        q, k, v = self.split(tokens, relation)
        bias = relation.bias
        if relation.merging is not None:
            relation.merging.match(k)
            bias = relation.merging.bias()
        joined = attend(q, k, v, self.scale, bias).transpose(1, 2).flatten(2)  # (B, N, D)
        out = self.projection(joined)
        return v.transpose(1, 2).flatten(2) + out if self.value_skip else out

    def split(self, tokens: Tensor, relation: Relation) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, inputs) -> queries, keys and values of each head, (B, heads, N, D/heads)."""
        q, k, v = self.products(tokens)
        q, k = self.q_norm(q), self.k_norm(k)
        if relation.rotation is not None:
            q, k = rotate(q, relation.rotation), rotate(k, relation.rotation)
        return q, k, v

    def products(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, inputs) -> what queries, keys and values are before norms and rotation, (B, heads, N, D/heads)."""
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v


class MLP(nn.Module):
    """Two linear layers with a GELU between them, or gated: SiLU of one half times the other (SwiGLU, 2002.05202)."""

    def __init__(self, width: int, hidden: int, gated: bool = False):
        super().__init__()
        self.gated = gated
        self.expand = Linear(width, 2 * hidden if gated else hidden)
        self.contract = Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if not self.gated:
            return self.contract(self.expand(tokens, "gelu"))
        gate, value = self.expand(tokens).chunk(2, -1)
        return self.contract(F.silu(gate) * value)


class LayerScale(nn.Module):
    """Each column times a learned factor that starts small (Going deeper with Image Transformers, 2103.17239)."""

    def __init__(self, width: int, initial: float):
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), initial))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return tokens * self.factor


class DropPath(nn.Module):
    """Stochastic depth (1603.09382): in training a branch is left out for a share of the pictures, others scaled up."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.draws: Tensor | None = None  # (B,) numbers from 0 to 1 for the next pass, of whoever has drawn them before

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if not self.training or not self.rate:
            return tokens
        draws, self.draws = self.draws, None
        if draws is None:
            draws = torch.rand(len(tokens), device=tokens.device)
        return tokens * (draws >= self.rate)[:, None, None] / (1 - self.rate)


def draw_paths(model: nn.Module, pictures: int, generator: torch.Generator) -> Tensor:
    """(pictures, paths) random numbers, one for every branch that may be left out, for `set_paths`."""
    paths = sum(isinstance(module, DropPath) for module in model.modules())
    return torch.rand(pictures, paths, generator=generator)


def set_paths(model: nn.Module, draws: Tensor) -> None:
    """Decides by these draws (B, paths) which branches the next pass of so many pictures leaves out."""
    drops = (module for module in model.modules() if isinstance(module, DropPath))
    for module, column in zip(drops, draws.unbind(1), strict=True):
        module.draws = column


class EncoderBlock(nn.Module):
    """Norm, attention, residual; norm, MLP, residual (An Image Is Worth 16×16 Words, eq. 2 and 3)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        D = config.width
        rate = config.drop_path * layer / max(1, config.depth - 1)
        scale = (D // config.heads if config.attention_scale == "head" else D) ** -0.5
        self.attention_norm = make_norm(config)
        self.attention = Attention(
            D,
            D,
            config.heads,
            config.qkv_bias,
            scale,
            config.value_skip,
            config.norm_eps if config.qk_norm else None,
        )
        self.attention_branch = make_branch(config, rate)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(D, round(D * config.mlp_ratio), gated=config.mlp == "swiglu")
        self.mlp_branch = make_branch(config, rate)

    def forward(self, tokens: Tensor, relation: Relation = Relation()) -> Tensor:  # noqa: B008
        """(B, N, D) -> (B, N, D), or fewer where tokens merge."""
        tokens = tokens + self.attention_branch(self.attention(self.attention_norm(tokens), relation))
        if relation.merging is not None:
            tokens = relation.merging.merge(tokens)
        return tokens + self.mlp_branch(self.mlp(self.mlp_norm(tokens)))


def make_norm(config: ModelConfig, width: int = 0) -> nn.Module:
    """The norm of a config, of D or another width: LayerNorm (1607.06450) or RMSNorm (1910.07467)."""
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(width or config.width, eps=config.norm_eps)


def make_branch(config: ModelConfig, rate: float) -> nn.Sequential:
    """What a branch passes before it joins the residual stream: layer scale and stochastic depth, where there are."""
    parts: list[nn.Module] = [LayerScale(config.width, config.layer_scale)] if config.layer_scale else []
    return nn.Sequential(*parts, *([DropPath(rate)] if rate else []))
