"""Every kernel gives the same answer and the same gradients."""

import gc

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

    def test_long_ones_go_by_blocks_where_products_are_onednns(self):
        q = drawn(1, 1, 513, 2)
        assert attention_kernel(q.requires_grad_()) == ("blocks" if kernels.ONEDNN else "fused")
        assert attention_kernel(q.double()) == "fused"
        assert attention_kernel(q, bias=drawn(1, 513, 513)) == "fused"
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

    def test_blocks_take_heads_that_lie_apart(self):
        qkv, weight = drawn(2, 600, 3, 3, 8).requires_grad_(), drawn(2, 600, 3, 8, seed=9).transpose(1, 2)
        found = []
        for run in (BlockAttention.apply, plainly):
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            out = run(q, k, v, 0.4)
            found.append((out.detach(), *torch.autograd.grad(out, qkv, weight)))
        for blocks, plain in zip(*found, strict=True):
            torch.testing.assert_close(blocks, plain, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("scale", [0.25, 8.0])  # 8: exponentials of the scores, whole numbers, are infinite
    @pytest.mark.parametrize("tokens", [65, 600])
    def test_in_bf16_is_near_the_exact_answer(self, tokens, scale):
        q, k, v = (drawn(2, 3, tokens, 16, seed=s).round().bfloat16() for s in range(3))
        exact = plainly(q.double(), k.double(), v.double(), scale)
        with torch.inference_mode():
            out = attend(q, k, v, scale)
        assert out.dtype == torch.bfloat16
        assert (out.double() - exact).norm() < 0.02 * exact.norm()

    @pytest.mark.parametrize("tokens", [65, 600])
    def test_gradients_in_bf16_are_near_the_exact_ones(self, tokens):
        weight, found = drawn(2, 3, tokens, 16, seed=9).bfloat16(), []
        for run, dtype in ((attend, torch.bfloat16), (plainly, torch.float64)):
            q, k, v = (drawn(2, 3, tokens, 16, seed=s).bfloat16().to(dtype).requires_grad_() for s in range(3))
            found.append(torch.autograd.grad(run(q, k, v, 0.25), (q, k, v), weight.to(dtype)))
        for mine, wanted in zip(*found, strict=True):
            assert (mine.double() - wanted).norm() < 0.02 * wanted.norm()

    def test_no_score_exceeds_the_largest(self):
        q, k = drawn(2, 3, 7, 4), drawn(2, 3, 7, 4, seed=1)
        assert (q @ k.mT).abs().max() <= kernels.largest_score(q, k) * (1 + 1e-6)
        assert kernels.largest_score(q, q) == pytest.approx(q.square().sum(-1).max().item())


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
    @pytest.mark.parametrize("intel", [True, False])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("shape", [(2, 5, 7), (3, 7), (1, 1, 7)])
    def test_is_torchs_in_outputs_and_gradients(self, bias, shape, intel, monkeypatch):
        monkeypatch.setattr(kernels, "on_intel", lambda: intel)
        layer, tokens = Linear(7, 4, bias=bias), drawn(*shape).requires_grad_()
        wanted = [tokens, *layer.parameters()]
        ours, theirs = layer(tokens), F.linear(tokens, layer.weight, layer.bias)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        weight = drawn(*ours.shape, seed=3)
        pairs = zip(torch.autograd.grad(ours, wanted, weight), torch.autograd.grad(theirs, wanted, weight), strict=True)
        for mine, torchs in pairs:
            torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-6)

    @pytest.mark.skipif(not kernels.ONEDNN, reason="no oneDNN here")
    @pytest.mark.parametrize(("maker", "onednn"), [("AuthenticAMD", True), ("GenuineIntel", False), ("", True)])
    def test_in_training_it_is_onednns_but_on_intels_processors(self, maker, onednn, monkeypatch):
        monkeypatch.setattr(
            kernels, "_of_processor", lambda field: maker if field == "vendor_id" else "QEMU Virtual CPU"
        )
        monkeypatch.setattr(kernels.platform, "processor", lambda: "")
        made_by = Linear(7, 4)(drawn(2, 7)).grad_fn
        assert ("OneDNNLinear" in type(made_by).__name__) is onednn

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

    @pytest.mark.parametrize("activation", ["none", "gelu"])
    @pytest.mark.parametrize("bf16", [False, True])
    def test_at_inference_is_what_it_is_in_training(self, activation, bf16):
        layer, tokens = Linear(37, 70), drawn(37, 5, 2).permute(2, 1, 0)  # not in one piece
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            training = layer(tokens, activation)
            with torch.inference_mode():
                answers = [layer(tokens, activation) for _ in range(2)]
        exact = F.linear(tokens.double(), layer.weight.double(), layer.get_parameter("bias").double())
        exact = F.gelu(exact) if activation == "gelu" else exact
        for out in (training, *answers):
            assert out.dtype == (torch.bfloat16 if bf16 else torch.float32)
            torch.testing.assert_close(out.double(), exact, rtol=0.01 if bf16 else 1e-5, atol=0.02 if bf16 else 1e-6)

    @pytest.mark.parametrize("bf16", [False, True])
    @pytest.mark.parametrize("change", ["fused optimizer", "load", "data", "other memory", "in inference mode"])
    def test_a_changed_weight_is_noticed_at_inference(self, change, bf16):
        layer, tokens = Linear(7, 4), drawn(5, 7)

        def answer() -> Tensor:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return layer(tokens).clone()

        before = answer()
        other = drawn(4, 7, seed=5)
        if change == "fused optimizer":
            layer.weight.grad = other
            torch.optim.AdamW([layer.weight], 0.1, fused=True).step()
        elif change == "load":
            layer.load_state_dict({"weight": other, "bias": layer.bias})
        elif change == "data":
            layer.weight.data.copy_(other)
        elif change == "other memory":
            layer.weight.data = other
        else:
            with torch.inference_mode():
                layer.weight.mul_(2)
        assert (answer() - before).abs().max() > 0.05
        fresh = Linear(7, 4)
        fresh.load_state_dict(layer.state_dict())
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            assert torch.equal(answer(), fresh(tokens))

    def test_packed_weights_go_with_their_layer(self):
        layer = Linear(7, 4)
        gc.collect()
        held = len(kernels.PACKED)
        with torch.inference_mode():
            layer(drawn(5, 7))
        assert len(kernels.PACKED) == held + (1 if kernels.ONEDNN else 0)
        del layer
        gc.collect()
        assert len(kernels.PACKED) == held


class TestOddUses:
    """Of layers that go through oneDNN, which by itself knows none of this."""

    @pytest.fixture(autouse=True)
    def not_on_intels(self, monkeypatch):
        monkeypatch.setattr(kernels, "on_intel", lambda: False)

    def test_gradients_of_gradients_are_those_of_a_plain_layer(self):
        ours, plain = Linear(6, 4), torch.nn.Linear(6, 4)
        plain.load_state_dict(ours.state_dict())

        def penalised(layer: torch.nn.Linear) -> list[torch.Tensor]:
            tokens = drawn(5, 6).requires_grad_()
            (slope,) = torch.autograd.grad(layer(tokens).square().sum(), tokens, create_graph=True)
            return list(torch.autograd.grad(slope.square().sum(), list(layer.parameters())))

        for a, b in zip(penalised(ours), penalised(plain), strict=True):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("rows", range(8))
    @pytest.mark.parametrize(("outputs", "inputs"), [(8, 8), (8, 24), (24, 8), (7, 5)])
    def test_a_change_of_any_row_or_column_is_noticed_that_counts_as_no_version(self, outputs, inputs, rows):
        layer, tokens = Linear(inputs, outputs), drawn(5, inputs)
        with torch.inference_mode():
            layer(tokens)
        layer.weight.detach().numpy()[:, rows % inputs] += 1
        with torch.inference_mode():
            torch.testing.assert_close(layer(tokens), torch.nn.functional.linear(tokens, layer.weight, layer.bias))
        layer.weight.detach().numpy()[rows % outputs] += 1
        with torch.inference_mode():
            torch.testing.assert_close(layer(tokens), torch.nn.functional.linear(tokens, layer.weight, layer.bias))

    @pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6), (6,)])
    @pytest.mark.parametrize("training", [True, False])
    def test_empty_batches_and_single_rows_are_taken(self, shape, training):
        with torch.inference_mode(not training):
            assert Linear(6, 4)(torch.zeros(shape)).shape == (*shape[:-1], 4)

    def test_a_width_that_does_not_fit_is_explained_by_its_shapes(self):
        with pytest.raises(RuntimeError, match="shapes"):
            Linear(6, 4)(torch.zeros(3, 5))
