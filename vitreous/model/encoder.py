"""The encoder of *Attention Is All You Need*, in the pre-norm form of the ViT paper: Attention, MLP, EncoderBlock."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLAIN_LENGTH = 512  # tokens up to which two products and a softmax train faster on a CPU than the fused kernel


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(Q·Kᵀ·scale)·V for each head (Attention Is All You Need, eq. 1); all (B, heads, N, head width)."""
    if attention_kernel(q) == "plain":
        return (q @ k.mT * scale).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def attention_kernel(q: Tensor) -> str:
    """Which kernel computes attention, by shape, device and mode: "plain" or "fused". Both give the same answer."""
    training = torch.is_grad_enabled() and q.requires_grad
    return "plain" if q.device.type == "cpu" and training and q.shape[2] <= PLAIN_LENGTH else "fused"


class Attention(nn.Module):
    """Multi-head self-attention from tokens of width `inputs` to tokens of `width`.

    With `value_skip` it returns V + proj(A·V) rather than proj(A·V): the token transformers of the T2T-ViT paper
    need it, since their input and output differ in width, and the article series has it everywhere.
    """

    def __init__(self, inputs: int, width: int, heads: int, qkv_bias: bool, scale: float, value_skip: bool):
        super().__init__()
        self.heads, self.scale, self.value_skip = heads, scale, value_skip
        self.qkv = nn.Linear(inputs, 3 * width, bias=qkv_bias)
        self.projection = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, inputs) -> (B, N, width)."""
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, D/heads)
        joined = attend(q, k, v, self.scale).transpose(1, 2).flatten(2)  # (B, N, D)
        out = self.projection(joined)
        return v.transpose(1, 2).flatten(2) + out if self.value_skip else out


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.contract(F.gelu(self.expand(tokens)))


class EncoderBlock(nn.Module):
    """Norm, attention, residual; norm, MLP, residual (An Image Is Worth 16×16 Words, eq. 2 and 3)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, qkv_bias: bool, value_skip: bool, norm_eps: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=norm_eps)
        self.attention = Attention(width, width, heads, qkv_bias, (width // heads) ** -0.5, value_skip)
        self.mlp_norm = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))
