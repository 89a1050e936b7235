"""Attention, MLP, EncoderBlock."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import pictures, tiny_config, tiny_model

from vitreous.model import kernels
from vitreous.model.encoder import (
    MLP,
    Attention,
    DropPath,
    EncoderBlock,
    LayerScale,
    Relation,
    rotate,
)
from vitreous.model.kernels import attend
from vitreous.model.position import rope2d

SMALL: dict[str, Any] = {"width": 12, "heads": 3, "position": "none"}


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
    def test_kernels_agree_in_outputs_and_gradients(self, tokens, monkeypatch):
        found = {}
        for kernel in ("plain", "blocks", "fused"):
            monkeypatch.setattr(kernels, "attention_kernel", lambda q, bias, kernel=kernel: kernel)
            inputs = [drawn(2, 3, tokens, 8, seed=seed).requires_grad_() for seed in range(3)]
            out = attend(*inputs, scale=8**-0.5)
            out.backward(drawn(*out.shape, seed=9))
            found[kernel] = (out.detach(), *(one.grad for one in inputs))
        for plain, blocks, fused in zip(found["plain"], found["blocks"], found["fused"], strict=True):
            torch.testing.assert_close(plain, blocks, rtol=0, atol=1e-5)
            torch.testing.assert_close(plain, fused, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("prefix", [0, 2])
    def test_plain_and_fused_agree_with_bias_and_rotation(self, prefix, monkeypatch):
        attention = Attention(10, 12, 3, qkv_bias=True, scale=0.4)
        tokens, weight = drawn(2, prefix + 15, 10), drawn(2, prefix + 15, 12, seed=9)
        bias = drawn(3, prefix + 15, prefix + 15, seed=4).requires_grad_()
        relation = Relation(bias, rope2d((3, 5), 4, (3, 5), 10.0, prefix))
        found = {}
        for kernel, length in (("plain", 512), ("fused", 0)):
            monkeypatch.setattr(kernels, "PLAIN_LENGTH", length)
            out = attention(tokens, relation)
            found[kernel] = (out.detach(), *torch.autograd.grad(out, [bias, *attention.parameters()], weight))
        with torch.inference_mode():
            torch.testing.assert_close(attention(tokens, relation), found["plain"][0], rtol=0, atol=1e-5)
            assert (attention(tokens) - found["plain"][0]).abs().max() > 1e-2
            assert (attention(tokens, Relation(bias)) - found["plain"][0]).abs().max() > 1e-3
        for plain, fused in zip(found["plain"], found["fused"], strict=True):
            torch.testing.assert_close(plain, fused, rtol=0, atol=1e-5)

    def test_the_bias_is_added_before_the_softmax(self):
        q, k, v = (drawn(1, 2, 5, 4, seed=seed) for seed in range(3))
        bias = drawn(2, 5, 5, seed=7)
        expected = (torch.einsum("bhnd,bhmd->bhnm", q, k) * 0.3 + bias).softmax(-1) @ v
        torch.testing.assert_close(attend(q, k, v, 0.3, bias), expected, rtol=0, atol=1e-5)

    def test_queries_and_keys_are_normalised_each_head_on_its_own(self):
        attention = Attention(10, 12, 3, qkv_bias=True, scale=0.4, norm_eps=1e-6)
        with torch.no_grad():
            weight = attention.get_parameter("q_norm.weight").copy_(drawn(4, seed=1))
            bias = attention.get_parameter("k_norm.bias").copy_(drawn(4, seed=2))
        tokens = drawn(2, 5, 10)
        q, k, v = attention.qkv(tokens).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        q, k = F.layer_norm(q, (4,), eps=1e-6) * weight, F.layer_norm(k, (4,), eps=1e-6) + bias
        expected = attention.projection(((q @ k.mT * 0.4).softmax(-1) @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(attention(tokens), expected, rtol=0, atol=1e-4)
        twice = Attention(10, 12, 3, qkv_bias=False, scale=0.4, norm_eps=1e-12)
        before = twice(tokens)
        with torch.no_grad():
            twice.qkv.weight[:24] *= 2  # of queries and keys only
        torch.testing.assert_close(twice(tokens), before, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("length", [512, 0])
    def test_gradients_are_those_of_finite_differences(self, length, monkeypatch):
        monkeypatch.setattr(kernels, "PLAIN_LENGTH", length)
        inputs = tuple(drawn(1, 2, 3, 2, seed=s, dtype=torch.float64).requires_grad_() for s in range(3))
        assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, 0.7), inputs)


class TestEncoderBlock:
    @pytest.mark.parametrize("value_skip", [False, True])
    def test_is_two_residual_lines(self, value_skip):
        config = tiny_config(**SMALL, mlp_ratio=2.0, qkv_bias=False, value_skip=value_skip, norm_eps=1e-5)
        block = EncoderBlock(config, 0)
        tokens = drawn(2, 5, 12)
        normed = F.layer_norm(tokens, (12,))
        skipped = block.attention.qkv(normed)[..., 24:] if value_skip else 0
        x = tokens + skipped + by_hand(block.attention, normed)
        hidden = F.gelu(block.mlp.expand(F.layer_norm(x, (12,))))
        assert hidden.shape[-1] == 24
        torch.testing.assert_close(block(tokens), x + block.mlp.contract(hidden), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(("scale", "expected"), [("head", 0.5), ("width", 12**-0.5)])
    def test_the_softmax_scale_is_that_of_the_head_width_or_of_the_width(self, scale, expected):
        assert EncoderBlock(tiny_config(**SMALL), 0).attention.scale == 0.5
        assert EncoderBlock(tiny_config(**SMALL, attention_scale=scale), 0).attention.scale == expected

    def test_the_epsilon_of_the_norms_is_the_given_one(self):
        block = EncoderBlock(tiny_config(**SMALL, norm_eps=1e-3, qk_norm=True), 0)
        parts = block.attention_norm, block.mlp_norm, block.attention.q_norm, block.attention.k_norm
        assert [norm.eps for norm in parts] == [1e-3] * 4

    def test_layer_scale_multiplies_each_branch(self):
        block = EncoderBlock(tiny_config(**SMALL, layer_scale=0.1), 0)
        assert [tuple(p.shape) for n, p in block.named_parameters() if n.endswith("factor")] == [(12,), (12,)]
        plain = EncoderBlock(tiny_config(**SMALL), 0)
        plain.load_state_dict({n: p for n, p in block.state_dict().items() if not n.endswith("factor")})
        tokens = drawn(2, 5, 12)
        x = tokens + 0.1 * plain.attention(plain.attention_norm(tokens))
        torch.testing.assert_close(block(tokens), x + 0.1 * plain.mlp(plain.mlp_norm(x)), rtol=0, atol=1e-6)

    def test_rms_norms_divide_by_the_root_mean_square(self):
        block = EncoderBlock(tiny_config(**SMALL, norm="rms", norm_eps=1e-6), 0)
        tokens = drawn(2, 5, 12) + 3
        expected = tokens / tokens.square().mean(-1, keepdim=True).add(1e-6).sqrt()
        torch.testing.assert_close(block.attention_norm(tokens), expected, rtol=0, atol=1e-6)
        assert [name for name, _ in block.mlp_norm.named_parameters()] == ["weight"]


class TestMLP:
    def test_the_gated_one_is_silu_of_one_half_times_the_other(self):
        mlp, tokens = MLP(6, 10, gated=True), drawn(2, 3, 6)
        assert mlp.expand.out_features == 20
        weight, bias = mlp.expand.weight, mlp.expand.bias
        gate, value = tokens @ weight[:10].T + bias[:10], tokens @ weight[10:].T + bias[10:]
        expected = mlp.contract(gate * torch.sigmoid(gate) * value)
        torch.testing.assert_close(mlp(tokens), expected, rtol=0, atol=1e-6)

    def test_a_width_that_a_ratio_only_nears_is_met(self):
        ratio = 488 / 56  # times 56 it is a little less than 488
        block = EncoderBlock(tiny_config(width=56, heads=2, position="none", mlp_ratio=ratio), 0)
        assert block.mlp.expand.out_features == 488


class TestLayerScale:
    def test_starts_as_asked_and_learns(self):
        scale = LayerScale(4, 0.25)
        tokens = drawn(2, 3, 4)
        torch.testing.assert_close(scale(tokens), tokens / 4)
        [gradient] = torch.autograd.grad(scale(tokens).sum(), scale.factor)
        torch.testing.assert_close(gradient, tokens.sum((0, 1)))


class TestDropPath:
    def test_leaves_out_whole_pictures_in_training_and_keeps_the_expectation(self):
        torch.manual_seed(0)
        tokens = torch.ones(20_000, 2, 3)
        out = DropPath(0.3).train()(tokens)
        kept = out[:, 0, 0] > 0
        assert torch.equal(out, kept[:, None, None] * torch.full_like(tokens, 1 / 0.7))
        assert kept.float().mean().item() == pytest.approx(0.7, abs=0.02)
        assert out.mean().item() == pytest.approx(1, abs=0.03)

    def test_leaves_all_alone_when_not_in_training(self):
        tokens = drawn(8, 2, 3)
        assert torch.equal(DropPath(0.9).eval()(tokens), tokens)

    def test_rates_rise_to_that_of_the_last_block_and_none_is_free(self):
        def rates(**fields) -> list[list[float]]:
            blocks = [EncoderBlock(tiny_config(**SMALL, depth=3, **fields), layer) for layer in range(3)]
            return [[m.rate for m in block.modules() if isinstance(m, DropPath)] for block in blocks]

        assert rates() == [[], [], []]
        assert rates(drop_path=0.2) == [[], [0.1, 0.1], [0.2, 0.2]]

    def test_a_model_without_it_draws_nothing_while_training(self):
        config = tiny_config()
        model = tiny_model(config).train()
        before = torch.get_rng_state()
        model(pictures(config))
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_skipped_block_passes_the_picture_on(self):
        torch.manual_seed(1)
        block = EncoderBlock(tiny_config(**SMALL, depth=2, drop_path=0.6), 1).train()
        tokens = drawn(64, 5, 12)
        same = (block(tokens) == tokens).flatten(1).all(1)
        assert 0.15 < same.float().mean().item() < 0.6  # 0.36 of the pictures skip both branches
        assert not (block.eval()(tokens) == tokens).flatten(1).all(1).any()


class TestRotation:
    def test_is_a_turn_of_each_pair_by_its_angle(self):
        x, angles = drawn(1, 1, 3, 4), drawn(3, 2, seed=5)
        out = rotate(x, torch.stack((angles.cos(), angles.sin())))
        pairs = torch.view_as_complex(x.unflatten(-1, (2, 2)).contiguous()) * torch.exp(1j * angles)
        torch.testing.assert_close(out, torch.view_as_real(pairs).flatten(-2), rtol=0, atol=1e-6)

    def test_products_depend_on_relative_places_alone(self):
        """Both tokens shifted by rows and columns: the same product; one of them: another."""
        gh, gw, width = 6, 7, 8
        q, k = drawn(1, 1, 1, width, seed=1), drawn(1, 1, 1, width, seed=2)
        table = rope2d((gh, gw), width, (gh, gw), 10.0, 0)
        turned_q, turned_k = (rotate(x.expand(1, 1, gh * gw, width), table)[0, 0] for x in (q, k))
        scores = (turned_q @ turned_k.T).unflatten(1, (gh, gw)).unflatten(0, (gh, gw))
        torch.testing.assert_close(scores[1:, 2:, 1:, 2:], scores[:-1, :-2, :-1, :-2], rtol=0, atol=1e-5)
        assert (scores[0, 0] - scores[1, 0]).abs().max() > 1e-2
        assert (scores[0, 0] - scores[0, 1]).abs().max() > 1e-2

    def test_prefix_tokens_do_not_turn(self):
        x = drawn(1, 2, 3 + 6, 8)
        out = rotate(x, rope2d((2, 3), 8, (2, 3), 10.0, 3))
        assert torch.equal(out[:, :, :3], x[:, :, :3])
        assert (out[:, :, 4:] - x[:, :, 4:]).abs().amax((0, 1, 3)).min() > 1e-2

    def test_places_on_a_finer_grid_lie_between_those_of_the_base(self):
        coarse = rope2d((3, 5), 8, (3, 5), 10.0, 0)
        fine = rope2d((9, 15), 8, (3, 5), 10.0, 0).unflatten(1, (9, 15))[:, 1::3, 1::3].flatten(1, 2)
        torch.testing.assert_close(fine, coarse, rtol=0, atol=1e-6)
