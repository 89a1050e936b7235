"""How attention and linear layers are computed: which kernel, by shape, device and mode. All give the same answer."""

import functools
import math
import platform
from contextlib import AbstractContextManager, nullcontext, suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

PLAIN_LENGTH = 512  # tokens up to which the scores of all rows fit in the cache
ONEDNN = (
    torch.backends.mkldnn.is_available()
    and platform.machine().lower() in ("x86_64", "amd64")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # which the compiler uses; not a public name
)
ROWS = 512  # of a block: its scores stay in the cache
LARGEST_SCORE = 60.0  # whose exponential, summed over all tokens, is far below the largest number of bf16
PACKED = WeakTensorKeyDictionary()  # a weight -> what it was when it was packed, and the packed weight


def processor_name() -> str:
    """What the processor calls itself."""
    return _of_processor("model name") or platform.processor() or platform.machine()


def on_intel() -> bool:
    """Whether this is a processor of the maker of MKL."""
    return "intel" in (_of_processor("vendor_id") or platform.processor()).lower()


@functools.cache
def _of_processor(field: str) -> str:
    """What Linux says of the first processor; "" elsewhere."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")
    return ""


class Linear(nn.Linear):
    """A linear layer that on x86 goes through oneDNN: at inference, and in fp32 in training but on Intel's processors.

    PyTorch's own fp32 product is MKL's there, which reaches half of oneDNN's speed on AMD's processors, and on Intel's
    needs no copies for the gradients. At inference the weight is kept cast and in oneDNN's own order, which a product
    otherwise brings it in on each call.
    """

    def forward(self, input: Tensor, activation: str = "none") -> Tensor:
        """(…, inputs) -> (…, outputs); `activation` is "none" or "gelu", of the outputs."""
        odd = input.ndim < 2 or not input.numel() or input.shape[-1] != self.in_features  # PyTorch's takes or explains
        dtype = None if odd else onednn_type(input)
        if dtype and not torch.is_grad_enabled():
            bias = None if self.bias is None else self.bias.to(dtype)
            return product(input.to(dtype).contiguous(), packed(self.weight, dtype), bias, activation)
        if dtype == torch.float32 and not on_intel():
            out = OneDNNLinear.apply(input.contiguous(), self.weight, self.bias)
        else:
            out = F.linear(input, self.weight, self.bias)
        return F.gelu(out) if activation == "gelu" else out  # pyright: ignore[reportArgumentType, reportReturnType]


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
        out, (tokens, weight) = gradients[0].contiguous(), ctx.saved_tensors
        of_tokens, of_weight, of_bias = ctx.needs_input_grad
        rows, inputs = out.flatten(0, -2), tokens.flatten(0, -2)
        if torch.is_grad_enabled():  # gradients of the gradients are asked for, which oneDNN's product has not
            return out @ weight, rows.T @ inputs, rows.sum(0) if of_bias else None
        return (
            product(out, weight.T) if of_tokens else None,
            product(rows.T, inputs.T) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def product(tokens: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """`F.linear` by oneDNN, with the activation of its outputs: (…, inputs), (outputs, inputs) -> (…, outputs)."""
    return torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, activation, [], "none")


def computing_type(tokens: Tensor) -> torch.dtype:
    """The type in which products with these tokens are computed: autocast's, where it is on, or theirs."""
    device = tokens.device.type
    if tokens.dtype == torch.float64 or not torch.amp.is_autocast_available(device):  # as on the meta device
        return tokens.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype


def full_precision(tokens: Tensor) -> AbstractContextManager:
    """Computes with these tokens in their own type, whether or not autocast is on."""
    device = tokens.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def onednn_type(tokens: Tensor) -> torch.dtype | None:
    """fp32 or bf16 where oneDNN computes a product with these tokens in it: on x86, not traced by a compiler."""
    if not ONEDNN or tokens.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    dtype = computing_type(tokens)
    bf16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype if bf16 or dtype == tokens.dtype == torch.float32 else None


def packed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as oneDNN's products like it best, kept until the weight changes."""
    if weight.is_inference():
        return weight.to(dtype)
    sample = weight.detach().flatten()[:: _sampling(*weight.shape)]  # fused optimizers count no version
    state = weight._version, weight.data_ptr(), dtype
    known = PACKED.get(weight)
    if known is None or known[0] != state or not torch.equal(known[1], sample):
        packing = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype))
        known = PACKED[weight] = state, sample.clone(), packing
    return known[2]


@functools.cache
def _sampling(rows: int, columns: int) -> int:
    """The largest stride by which a matrix, read flat, is met in every row and in every column."""
    return next(stride for stride in range(min(rows, columns), 0, -1) if math.gcd(stride, columns) == 1)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """softmax(Q·Kᵀ·scale + bias)·V for each head (Attention Is All You Need, eq. 1); all (B, heads, N, head width).

    The bias is (heads, N, N), or (B, 1, 1, N) for one that is the same for all queries.
    """
    kernel = attention_kernel(q, bias)
    if kernel == "blocks":
        return BlockAttention.apply(q, k, v, scale)  # pyright: ignore[reportReturnType]
    added = None if bias is None else bias.to(q.dtype)
    if kernel == "fused":
        return F.scaled_dot_product_attention(q, k, v, added, scale=scale)
    q, k, v = q.contiguous() * scale, k.contiguous(), v.contiguous()
    scores = q @ k.mT
    if torch.is_grad_enabled() or (bias is not None and bias.shape[-2] > 1):
        return (scores if added is None else scores + added).softmax(-1) @ v
    weights, total = exponentials(scores, largest_score(q, k))
    if bias is None:
        return weights @ v / total
    shares = (bias - bias.amax(-1, keepdim=True)).exp().mT.to(q.dtype)  # of keys, alike for all queries: (B, 1, N, 1)
    return weights @ (v * shares) / (weights @ shares)


def attention_kernel(q: Tensor, bias: Tensor | None = None) -> str:
    """Which kernel computes attention, by shape, device and mode: "plain", "blocks" or "fused".

    On a CPU the fused kernel trains slowly, and in bf16 it is no faster than in fp32.
    """
    if q.device.type != "cpu" or not q.numel():
        return "fused"
    bf16, training = q.dtype == torch.bfloat16, torch.is_grad_enabled() and q.requires_grad
    if torch.compiler.is_compiling():
        return "plain" if training and q.shape[2] <= PLAIN_LENGTH else "fused"
    if q.shape[2] <= PLAIN_LENGTH:
        return "plain" if bf16 or training else "fused"
    return "blocks" if bias is None and (bf16 or onednn_type(q)) else "fused"


def largest_score(q: Tensor, k: Tensor) -> float:
    """What no |q·k| exceeds (Cauchy and Schwarz)."""
    return float(q.norm(dim=-1).max() * k.norm(dim=-1).max())


def exponentials(scores: Tensor, largest: float) -> tuple[Tensor, Tensor | float]:
    """(…, N, M) -> weights, in place, and what their weighted sum of values is to be divided by: a softmax in two.

    Scores that are surely small need no maximum subtracted: in bf16, whose exponential is cheap, that halves the time.
    """
    if not largest < LARGEST_SCORE:
        return torch.ops.aten._softmax.out(scores, -1, False, out=scores), 1.0
    return scores.exp_(), scores.sum(-1, keepdim=True)


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
        scores = q.new_empty(ROWS, k.shape[2])
        for Q, K, V, O in _heads(q * scale, k, v, out):  # noqa: E741
            largest = largest_score(Q, K) if Q.dtype == torch.bfloat16 else math.inf  # which bf16 alone gains by
            for rows in _blocks(len(Q)):
                weights, total = exponentials(_product(Q[rows], K, scores), largest)
                torch.div(_product(weights, V.T), total, out=O[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of q, k and v."""
        q, k, v = ctx.saved_tensors
        q_grad, k_grad, v_grad = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
        out_grad = gradients[0].to(q.dtype)
        for Q, K, V, dO, dQ, dK, dV in _heads(q * ctx.scale, k, v, out_grad, q_grad, k_grad, v_grad):
            sum_k, sum_v = (torch.zeros_like(t.T, dtype=torch.promote_types(t.dtype, torch.float32)) for t in (K, V))
            for rows in _blocks(len(Q)):
                scores = _product(Q[rows], K)
                P = torch.ops.aten._softmax.out(scores, -1, False, out=scores)
                sum_v += _product(dO[rows].T, P.T)  # transposed, so that P need not be
                dP = _product(dO[rows], V)
                dS = torch.ops.aten._softmax_backward_data.out(dP, P, -1, P.dtype, grad_input=dP)
                dQ[rows] = _product(dS, K.T)
                sum_k += _product(Q[rows].T, dS.T)
            dK.copy_(sum_k.T)
            dV.copy_(sum_v.T)
        return q_grad.mul_(ctx.scale), k_grad, v_grad, None


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """(N, K), (M, K) -> a·bᵀ, (N, M), in `out` where the product is not oneDNN's.

    Of strided bf16 oneDNN's linear layer makes very slow work.
    """
    if onednn_type(a) == torch.float32:
        return product(a, b)
    return torch.mm(a, b.T, out=None if out is None else out[: len(a)])


def _heads(*tensors: Tensor):
    """(B, heads, N, width) tensors, a head of a picture at a time, in one piece: oneDNN is slow on rows apart."""
    return zip(*(tensor.contiguous().flatten(0, 1).unbind() for tensor in tensors), strict=True)


def _blocks(length: int):
    return (slice(start, start + ROWS) for start in range(0, length, ROWS))
