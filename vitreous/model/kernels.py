"""How attention and linear layers are computed: which kernel, by shape, device and mode. All give the same answer."""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLAIN_LENGTH = 512  # tokens up to which the scores of all rows fit in the cache
ONEDNN = (
    torch.backends.mkldnn.is_available()
    and platform.machine().lower() in ("x86_64", "amd64")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # which the compiler uses; not a public name
)
ROWS = 512  # of a block: its scores stay in the cache


class Linear(nn.Linear):
    """A linear layer that on x86 goes through oneDNN in fp32 too.

    PyTorch's own fp32 product is MKL's there, which reaches half of oneDNN's speed on AMD's processors.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(…, inputs) -> (…, outputs)."""
        if not through_onednn(input):
            return F.linear(input, self.weight, self.bias)
        if torch.is_grad_enabled():
            return OneDNNLinear.apply(input, self.weight, self.bias)  # pyright: ignore[reportReturnType]
        return product(input, self.weight, self.bias)


class OneDNNLinear(torch.autograd.Function):
    """A linear layer whose three products, forward and backward, are oneDNN's."""

    @staticmethod
    def forward(ctx, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(…, inputs), (outputs, inputs), (outputs,) -> (…, outputs)."""
        ctx.save_for_backward(tokens, weight)
        return product(tokens, weight, bias)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of tokens, weight and bias, those that are asked for."""
        (out,), (tokens, weight) = gradients, ctx.saved_tensors
        of_tokens, of_weight, of_bias = ctx.needs_input_grad
        rows, inputs = out.flatten(0, -2), tokens.flatten(0, -2)
        return (
            product(out, weight.T.contiguous(), None) if of_tokens else None,
            product(rows.T.contiguous(), inputs.T.contiguous(), None) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def product(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, "none", [], "")


def through_onednn(tokens: Tensor) -> bool:
    """Whether a product with these tokens is fp32 on an x86 processor, and not traced by a compiler."""
    return (
        ONEDNN
        and tokens.device.type == "cpu"
        and tokens.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """softmax(Q·Kᵀ·scale + bias)·V for each head (Attention Is All You Need, eq. 1); all (B, heads, N, head width)."""
    kernel = attention_kernel(q, bias)
    if kernel == "blocks":
        return BlockAttention.apply(q, k, v, scale)  # pyright: ignore[reportReturnType]
    bias = None if bias is None else bias.to(q.dtype)
    if kernel == "plain":
        scores = (q * scale) @ k.mT
        return (scores if bias is None else scores + bias).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, bias, scale=scale)


def attention_kernel(q: Tensor, bias: Tensor | None = None) -> str:
    """Which kernel computes attention, by shape, device and mode: "plain", "blocks" or "fused".

    On a CPU the fused kernel trains slowly on few tokens, and in bf16 it is no faster than in fp32.
    """
    if q.device.type != "cpu" or torch.compiler.is_compiling():
        return "fused"
    bf16, training = q.dtype == torch.bfloat16, torch.is_grad_enabled() and q.requires_grad
    if q.shape[2] <= PLAIN_LENGTH:
        return "plain" if bf16 or training else "fused"
    return "blocks" if bf16 and bias is None else "fused"


class BlockAttention(torch.autograd.Function):
    """Attention whose scores exist for a block of rows at a time: memory grows linearly with the tokens.

    The backward pass computes a block's softmax again rather than keep it (FlashAttention, 2205.14135, without its
    tiling of columns: a row's scores fit in the cache).
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """All (B, heads, N, head width)."""
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        with torch.autocast("cpu", enabled=False):
            for Q, K, V, O in _pictures(q * scale, k, v, out):  # noqa: E741
                for rows in _blocks(len(Q)):
                    torch.mm((Q[rows] @ K.T).softmax(-1), V, out=O[rows])
        return out

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k and v."""
        q, k, v = ctx.saved_tensors
        q_grad, k_grad, v_grad = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
        out_grad = gradients[0].to(q.dtype)
        scaled = q * ctx.scale
        for Q, K, V, dO, dQ, dK, dV in _pictures(scaled, k, v, out_grad, q_grad, k_grad, v_grad):
            sum_k, sum_v = torch.zeros_like(K, dtype=torch.float32), torch.zeros_like(V, dtype=torch.float32)
            for rows in _blocks(len(Q)):
                P = (Q[rows] @ K.T).softmax(-1)
                sum_v += P.T @ dO[rows]
                dP = dO[rows] @ V.T
                dS = torch.ops.aten._softmax_backward_data(dP, P, -1, P.dtype)
                dQ[rows] = dS @ K
                sum_k += dS.T @ Q[rows]
            dK.copy_(sum_k)
            dV.copy_(sum_v)
        return q_grad * ctx.scale, k_grad, v_grad, None


def _pictures(*tensors: Tensor):
    """(B, heads, N, width) tensors, a head of a picture at a time."""
    return zip(*(tensor.flatten(0, 1).unbind() for tensor in tensors), strict=True)


def _blocks(length: int):
    return (slice(start, start + ROWS) for start in range(0, length, ROWS))
