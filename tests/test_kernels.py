"""Every kernel gives the same answer and the same gradients."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import pictures, tiny_config, tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitreous.model import kernels
from vitreous.model.kernels import BlockAttention, Linear, attend, attention_kernel


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plainly(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return (q @ k.mT * scale).softmax(-1) @ v


class LargestTensor(TorchDispatchMode):
    """Watches the tensors that operations return, forward and backward."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        found = (leaf.untyped_storage().nbytes() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        self.bytes = max(self.bytes, *found, 0)
        return out


class TestAttention:
    def test_short_sequences_are_plain_where_that_is_faster(self):
        q = drawn(1, 1, 4, 2)
        assert attention_kernel(q) == "fused"
        assert attention_kernel(q.bfloat16()) == "plain"
        assert attention_kernel(q.requires_grad_()) == "plain"
        with torch.no_grad():
            assert attention_kernel(q) == "fused"

    def test_long_ones_go_by_blocks_in_bf16_alone(self):
        q = drawn(1, 1, 513, 2)
        assert attention_kernel(q.requires_grad_()) == "fused"
        assert attention_kernel(q.bfloat16()) == "blocks"
        assert attention_kernel(q.bfloat16(), bias=drawn(1, 513, 513)) == "fused"

    @pytest.mark.parametrize("tokens", [1, 511, 512, 1100])
    def test_blocks_of_rows_are_plain_attention(self, tokens):
        found = []
        for run in (BlockAttention.apply, plainly):
            inputs = [drawn(2, 3, tokens, 8, seed=seed).requires_grad_() for seed in range(3)]
            q, k, v = inputs
            out = run(q, k, v, 0.4)
            out.backward(drawn(*out.shape, seed=9))
            found.append((out.detach(), *(one.grad for one in inputs)))
        for blocks, plain in zip(*found, strict=True):
            torch.testing.assert_close(blocks, plain, rtol=1e-5, atol=1e-5)

    def test_blocks_have_the_gradients_of_finite_differences(self, monkeypatch):
        monkeypatch.setattr(kernels, "ROWS", 2)
        inputs = tuple(drawn(1, 2, 5, 3, seed=s, dtype=torch.float64).requires_grad_() for s in range(3))
        assert torch.autograd.gradcheck(lambda q, k, v: BlockAttention.apply(q, k, v, 0.7), inputs)

    def test_blocks_in_bf16_are_near_the_exact_answer(self):
        q, k, v = (drawn(1, 1, 600, 16, seed=s) for s in range(3))
        exact = (q @ k.mT * 0.25).softmax(-1) @ v
        out = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), 0.25)
        assert out.dtype == torch.bfloat16
        assert (out.float() - exact).abs().max() < 0.02


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["patch", "t2t", "performer"])
def test_memory_of_a_training_step_grows_linearly_with_the_tokens(kind, precision):
    def largest(height: int, width: int) -> int:
        config = tiny_config(kind, patch_size=(2, 4), image_size=(height, width))
        model, pixels = tiny_model(config).train(), pictures(config, count=1)
        with LargestTensor() as watch:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                outputs = model(pixels)
            outputs.float().square().sum().backward()
        return watch.bytes

    assert largest(128, 256) <= 4.5 * largest(64, 128)  # at least 1,024 tokens, and four times as many


class TestLinear:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("shape", [(2, 5, 7), (3, 7), (1, 1, 7)])
    def test_is_torchs_in_outputs_and_gradients(self, bias, shape):
        layer, tokens = Linear(7, 4, bias=bias), drawn(*shape).requires_grad_()
        wanted = [tokens, *layer.parameters()]
        ours, theirs = layer(tokens), F.linear(tokens, layer.weight, layer.bias)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        weight = drawn(*ours.shape, seed=3)
        pairs = zip(torch.autograd.grad(ours, wanted, weight), torch.autograd.grad(theirs, wanted, weight), strict=True)
        for mine, torchs in pairs:
            torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-6)

    def test_frozen_weights_get_no_gradient_and_let_it_pass(self):
        layer, tokens = Linear(7, 4).requires_grad_(False), drawn(2, 5, 7).requires_grad_()
        layer(tokens).sum().backward()
        assert layer.weight.grad is None
        torch.testing.assert_close(tokens.grad, layer.weight.sum(0).expand(2, 5, 7))

    def test_other_types_go_the_usual_way(self):
        layer = Linear(7, 4, dtype=torch.float64)
        assert layer(drawn(2, 5, 7, dtype=torch.float64)).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert Linear(7, 4)(drawn(2, 5, 7)).dtype == torch.bfloat16
