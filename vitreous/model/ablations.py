"""The side experiments of *Tokens-to-Token ViT* (2101.11986, section 3.2): what CNNs do, tried in the encoder.

Squeeze-and-excitation after attention, ghost features in attention and MLP, and dense connections. They take the
place of the encoder's blocks; the rest of the model is the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.model.config import ModelConfig
from vitreous.model.encoder import MLP, Attention, Relation
from vitreous.model.kernels import Linear, attend

DENSE_STAGES = (3, 6, 6, 4)  # blocks between two transitions
DENSE_GROWTH = 64  # columns that a block adds
NONE = Relation()


class SqueezeExcitation(nn.Module):
    """Each column times a gate that its mean over the tokens opens (Squeeze-and-Excitation, 1709.01507)."""

    def __init__(self, width: int):
        super().__init__()
        self.squeeze = Linear(width, width // 16, bias=False)
        self.excite = Linear(width // 16, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return tokens * self.gates(tokens)

    def gates(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, 1, D), each within 0 and 1."""
        return F.sigmoid(self.excite(F.relu(self.squeeze(tokens.mean(1, keepdim=True)))))


class GhostAttention(nn.Module):
    """Attention whose q, k and v are half computed, half each a column of that times a learned factor (1911.11907)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        D = config.width
        self.heads, self.scale = config.heads, (D // config.heads) ** -0.5
        self.qkv = Linear(D, 3 * (D // 2), bias=config.qkv_bias)
        self.cheap = nn.Parameter(torch.empty(3, D // 2))
        nn.init.uniform_(self.cheap, -1, 1)
        self.projection = Linear(D, D)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        q, k, v = self.split(tokens)
        return self.projection(attend(q, k, v, self.scale).transpose(1, 2).flatten(2))

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> queries, keys and values of each head, (B, heads, N, D/heads)."""
        half = self.qkv(tokens).unflatten(-1, (3, -1))  # (B, N, 3, D/2)
        whole = torch.cat((half, half * self.cheap), -1)
        q, k, v = whole.unflatten(-1, (self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v


class GhostMLP(nn.Module):
    """An MLP whose hidden layer is one computed third and two cheap ones of it, through a GELU each."""

    def __init__(self, width: int):
        super().__init__()
        self.expand = Linear(width, width)
        self.cheap = nn.Parameter(torch.empty(2, width))
        nn.init.uniform_(self.cheap, -1, 1)
        self.contract = Linear(3 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        first = F.gelu(self.expand(tokens))
        cheap = F.gelu(first[..., None, :] * self.cheap).flatten(-2)  # (B, N, 2·D)
        return self.contract(torch.cat((first, cheap), -1))


class AblationBlock(nn.Module):
    """An encoder block with squeeze-and-excitation after its attention, or with ghost features."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        D, eps = config.width, config.norm_eps
        self.attention_norm, self.mlp_norm = nn.LayerNorm(D, eps=eps), nn.LayerNorm(D, eps=eps)
        if config.ablation == "ghost":
            self.attention, self.mlp = GhostAttention(config), GhostMLP(D)
            self.excitation = nn.Identity()
        else:
            self.attention = Attention(D, D, config.heads, config.qkv_bias, (D // config.heads) ** -0.5)
            self.excitation = SqueezeExcitation(D)
            self.mlp = MLP(D, int(D * config.mlp_ratio))

    def forward(self, tokens: Tensor, relation: Relation = NONE) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        tokens = tokens + self.excitation(self.attention(self.attention_norm(tokens)))
        return tokens + self.mlp(self.mlp_norm(tokens))


class DenseBlock(nn.Module):
    """An encoder block whose result, narrowed to the growth, joins its input as new columns (DenseNet, 1608.06993)."""

    def __init__(self, width: int, config: ModelConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.attention = Attention(width, width, config.heads, config.qkv_bias, (width // config.heads) ** -0.5)
        self.mlp_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, int(width * config.mlp_ratio))
        self.narrow = Linear(width, DENSE_GROWTH)

    def forward(self, tokens: Tensor, relation: Relation = NONE) -> Tensor:
        """(B, N, width) -> (B, N, width + growth)."""
        new = tokens + self.attention(self.attention_norm(tokens))
        new = new + self.mlp(self.mlp_norm(new))
        return torch.cat((tokens, self.narrow(new)), -1)


class Transition(nn.Module):
    """Halves the width between two stages of dense blocks."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = Linear(width, width // 2)

    def forward(self, tokens: Tensor, relation: Relation = NONE) -> Tensor:
        """(B, N, width) -> (B, N, width / 2)."""
        return F.gelu(self.linear(tokens))


def make_blocks(config: ModelConfig) -> tuple[nn.ModuleList, int]:
    """The blocks of an ablation, and the width of the tokens that leave them."""
    if config.ablation != "dense":
        return nn.ModuleList(AblationBlock(config) for _ in range(config.depth)), config.width
    blocks, width = nn.ModuleList(), config.width
    for stage, count in enumerate(DENSE_STAGES):
        if stage:
            blocks.append(Transition(width))
            width //= 2
        for _ in range(count):
            blocks.append(DenseBlock(width, config))
            width += DENSE_GROWTH
    return blocks, width
