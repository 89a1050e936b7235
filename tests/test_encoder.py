"""Attention, MLP, EncoderBlock."""

import pytest
import torch
import torch.nn.functional as F

from vitreous.model import encoder
from vitreous.model.encoder import Attention, EncoderBlock, attend, attention_kernel


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_hand(attention: Attention, tokens: torch.Tensor) -> torch.Tensor:
    """One picture, one head, one query at a time; proj(A·V)."""
    width = attention.projection.out_features
    q, k, v = attention.qkv(tokens).split(width, -1)
    size = width // attention.heads
    joined = torch.zeros_like(v)
    for b in range(len(tokens)):
        for h in range(attention.heads):
            own = slice(h * size, (h + 1) * size)
            for n in range(tokens.shape[1]):
                weights = torch.softmax(torch.stack([q[b, n, own] @ key for key in k[b, :, own]]) * attention.scale, 0)
                joined[b, n, own] = weights @ v[b, :, own]
    return attention.projection(joined)


class TestAttention:
    @pytest.mark.parametrize("heads", [1, 3])
    @pytest.mark.parametrize("kernel", ["plain", "fused"])
    def test_equals_a_loop_over_queries(self, heads, kernel):
        attention = Attention(10, 12, heads, qkv_bias=True, scale=0.4, value_skip=False)
        tokens = drawn(2, 5, 10)
        with torch.no_grad() if kernel == "fused" else torch.enable_grad():
            torch.testing.assert_close(attention(tokens), by_hand(attention, tokens), rtol=0, atol=1e-5)

    def test_value_skip_adds_the_values(self):
        plain = Attention(10, 12, 3, qkv_bias=True, scale=0.4, value_skip=False)
        skipping = Attention(10, 12, 3, qkv_bias=True, scale=0.4, value_skip=True)
        skipping.load_state_dict(plain.state_dict())
        tokens = drawn(2, 5, 10)
        values = plain.qkv(tokens)[..., 24:]
        torch.testing.assert_close(skipping(tokens), values + plain(tokens), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("tokens", [1, 7, 197])
    def test_plain_and_fused_agree_in_outputs_and_gradients(self, tokens, monkeypatch):
        found = {}
        for kernel, length in (("plain", 512), ("fused", 0)):
            monkeypatch.setattr(encoder, "PLAIN_LENGTH", length)
            inputs = [drawn(2, 3, tokens, 8, seed=seed).requires_grad_() for seed in range(3)]
            assert attention_kernel(inputs[0]) == kernel
            out = attend(*inputs, scale=8**-0.5)
            out.backward(drawn(*out.shape, seed=9))
            found[kernel] = (out.detach(), *(one.grad for one in inputs))
        for plain, fused in zip(found["plain"], found["fused"], strict=True):
            torch.testing.assert_close(plain, fused, rtol=0, atol=1e-5)

    def test_the_plain_kernel_is_for_training_on_short_sequences(self):
        q = drawn(1, 1, 4, 2)
        assert attention_kernel(q) == "fused"
        assert attention_kernel(q.requires_grad_()) == "plain"
        assert attention_kernel(drawn(1, 1, 513, 2).requires_grad_()) == "fused"
        with torch.no_grad():
            assert attention_kernel(q) == "fused"

    @pytest.mark.parametrize("length", [512, 0])
    def test_gradients_are_those_of_finite_differences(self, length, monkeypatch):
        monkeypatch.setattr(encoder, "PLAIN_LENGTH", length)
        inputs = tuple(drawn(1, 2, 3, 2, seed=s, dtype=torch.float64).requires_grad_() for s in range(3))
        assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, 0.7), inputs)


class TestEncoderBlock:
    @pytest.mark.parametrize("value_skip", [False, True])
    def test_is_two_residual_lines(self, value_skip):
        block = EncoderBlock(12, 3, mlp_ratio=2.0, qkv_bias=False, value_skip=value_skip, norm_eps=1e-5)
        tokens = drawn(2, 5, 12)
        normed = F.layer_norm(tokens, (12,))
        skipped = block.attention.qkv(normed)[..., 24:] if value_skip else 0
        x = tokens + skipped + by_hand(block.attention, normed)
        hidden = F.gelu(block.mlp.expand(F.layer_norm(x, (12,))))
        assert hidden.shape[-1] == 24
        torch.testing.assert_close(block(tokens), x + block.mlp.contract(hidden), rtol=0, atol=1e-5)

    def test_the_softmax_scale_is_that_of_the_head_width(self):
        assert EncoderBlock(12, 3, 2.0, True, False, 1e-6).attention.scale == 0.5

    def test_the_epsilon_of_the_norms_is_the_given_one(self):
        block = EncoderBlock(12, 3, 2.0, True, False, 1e-3)
        assert block.attention_norm.eps == block.mlp_norm.eps == 1e-3
