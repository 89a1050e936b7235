"""VisionTransformer: the whole model."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import KINDS, POOLS, POSITIONS, PREFIXES, pictures, tiny_config, tiny_model

import vitreous
from vitreous.errors import InputError
from vitreous.model import kernels
from vitreous.model.config import ModelConfig
from vitreous.model.head import DistilledHead
from vitreous.model.vit import build, count_macs, count_parameters, create, describe_presets

CHECKED: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in KINDS},
    "rope2d": {"position": "rope2d", "heads": 1, "registers": 1},
    "relative": {"position": "relative", "position_at": "shared"},
    "learned": {"position": "learned", "position_at": "every", "depth": 2},
    "learned2d": {"position": "learned2d"},
    "attention pool": {"pool": "attention", "registers": 1},
    "swiglu, rms norm, layer scale": {"mlp": "swiglu", "norm": "rms", "layer_scale": 0.1},
    "query and key norm": {"qk_norm": True, "value_skip": True},
    "distillation": {"distillation": True, "head_hidden": 3},
    "norm after the mean": {"pool": "mean", "norm_after_pool": True},
}
EXPORTED: dict[str, dict[str, Any]] = {
    "class token": {"pool": "class", "class_position": True, "position": "learned"},
    "mean": {"pool": "mean"},
    "norm after the mean": {"pool": "mean", "norm_after_pool": True, "position": "learned2d"},
    "attention pool": {"pool": "attention"},
    "registers, layer scale": {"pool": "class", "registers": 4, "layer_scale": 0.1, "mlp": "swiglu"},
    "distillation": {"pool": "class", "distillation": True},
    "query and key norm, rms norm, stochastic depth": {"qk_norm": True, "norm": "rms", "drop_path": 0.2},
    **{kind: {"kind": kind, "pool": "class"} for kind in KINDS},
    "rope2d": {"position": "rope2d", "pool": "class"},
    "relative": {"position": "relative", "position_at": "every", "pool": "class"},
    "conditional": {"conditional": True, "registers": 1},
    "sinusoid at every block": {"position": "sinusoid", "position_at": "every"},
}
OTHERS = [kind for kind in KINDS if kind != "patch"]
# Every two of a tokenizer, a position and a pool: a tokenizer hands on tokens and their grid, and nothing else.
COMBINATIONS = dict.fromkeys(
    [
        *itertools.product(["patch"], POSITIONS, PREFIXES),
        *itertools.product(OTHERS, POSITIONS, ["class"]),
        *itertools.product(OTHERS, ["sincos2d at input"], PREFIXES),
    ]
)


class TestForward:
    @pytest.mark.parametrize(("kind", "position", "pool"), COMBINATIONS)
    def test_every_combination_answers_on_its_grid_and_on_others_and_learns(self, kind, position, pool):
        self.check(tiny_config(kind, channels=1, **POSITIONS[position], **PREFIXES[pool]))

    @pytest.mark.parametrize("channels", [3, 8])
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_tokenizer_takes_any_number_of_channels(self, kind, channels):
        self.check(tiny_config(kind, channels=channels, pool="class"))

    def check(self, config: ModelConfig):
        model = tiny_model(config)
        for size in (config.image_size, (24, 16), (8, 40)):
            pixels = pictures(config, size).requires_grad_()
            model.zero_grad()
            out = model(pixels)
            assert out.shape == (2, 5)
            assert not torch.allclose(out[0], out[1])
            out.square().sum().backward()
            assert pixels.grad is not None
            assert (pixels.grad.abs().amax((0, 2, 3)) > 0).all()
            still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
            # the last block of a class token's model is asked for that token alone, which has no relative place
            last = config.position == "relative" and config.position_at == "every" and config.class_token
            assert still == (["position.tables.1.table"] if last else [])

    @pytest.mark.parametrize("pool", ["mean", "class", "placed class"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_tokens_position_blocks_norm_read_out_head(self, kind, pool):
        config = tiny_config(kind, position="learned", **POOLS[pool])
        model, pixels = tiny_model(config), pictures(config)
        tokens, _ = model.tokenizer(pixels)
        rows = model.get_parameter("position.tables.0.table")
        if pool == "mean":
            tokens = tokens + rows
        else:
            first = model.get_parameter("prefix").repeat(2, 1, 1)
            tokens = torch.cat((first, tokens + rows), 1) if pool == "class" else torch.cat((first, tokens), 1) + rows
        for block in model.blocks:
            tokens = block(tokens)
        weight, bias = model.get_parameter("norm.weight"), model.get_parameter("norm.bias")
        tokens = F.layer_norm(tokens, (16,), weight, bias, config.norm_eps)
        read = tokens.mean(1) if pool == "mean" else tokens[:, 0]
        torch.testing.assert_close(model.features(pixels), read, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(pixels), model.head(read), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_picture_answers_the_same_alone_and_in_a_batch(self, kind):
        config = tiny_config(kind, pool="class")
        model, pixels = tiny_model(config), pictures(config, count=4)
        torch.testing.assert_close(model(pixels)[2], model(pixels[2:3])[0], rtol=0, atol=1e-5)

    @pytest.mark.parametrize(("kind", "position", "pool"), [names for names in COMBINATIONS if names[2] in POOLS])
    def test_training_and_predicting_agree_whichever_kernel_they_use(self, kind, position, pool, monkeypatch):
        config = tiny_config(kind, **POSITIONS[position], **POOLS[pool])
        model, pixels = tiny_model(config), pictures(config)
        with torch.inference_mode():
            predicted = model(pixels)
        gradients = []
        for length in (512, 0):
            monkeypatch.setattr(kernels, "PLAIN_LENGTH", length)
            out = model(pixels)
            torch.testing.assert_close(out.detach(), predicted, rtol=1e-5, atol=1e-5)
            gradients.append(torch.autograd.grad(out.mean(), list(model.parameters())))
        for plain, fused in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kernel", ["plain", "fused"])
    @pytest.mark.parametrize("features", CHECKED)
    def test_gradients_are_those_of_finite_differences(self, features, kernel, monkeypatch):
        monkeypatch.setattr(kernels, "PLAIN_LENGTH", 512 if kernel == "plain" else 0)
        small = {"patch_size": (2, 2), "kernels": (3, 3), "stem": (2, 2), "token_width": 2, "image_size": (4, 6)}
        sizes = {"channels": 1, "width": 4, "heads": 2, "depth": 1, "outputs": 2, "pool": "class"}
        config = tiny_config(**{**small, **sizes, **CHECKED[features]})
        model = tiny_model(config).double()
        names, weights = zip(*model.named_parameters(), strict=True)

        def answer(pixels: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(model, dict(zip(names, values, strict=True)), pixels)

        pixels = pictures(config, count=1).double().requires_grad_()
        assert torch.autograd.gradcheck(answer, (pixels, *weights), fast_mode=True)

    def test_value_skip_changes_the_encoder_only(self):
        config = tiny_config("t2t")
        plain, skipping = tiny_model(config), tiny_model(dataclasses.replace(config, value_skip=True))
        pixels = pictures(config)
        assert torch.equal(plain.tokenizer(pixels)[0], skipping.tokenizer(pixels)[0])
        assert not torch.allclose(plain(pixels), skipping(pixels))

    @pytest.mark.parametrize("outputs", [1, 2, 17])
    @pytest.mark.parametrize("hidden", [0, 6])
    def test_the_head_gives_any_number_of_outputs(self, outputs, hidden):
        config = tiny_config(outputs=outputs, head_hidden=hidden)
        assert tiny_model(config)(pictures(config)).shape == (2, outputs)

    def test_a_hidden_layer_of_the_head_is_a_tanh(self):
        config = tiny_config(head_hidden=6)
        model, pixels = tiny_model(config), pictures(config)
        first, last = (module for module in model.head.modules() if isinstance(module, torch.nn.Linear))
        hidden = torch.tanh(model.features(pixels) @ first.weight.T + first.bias)
        torch.testing.assert_close(model(pixels), hidden @ last.weight.T + last.bias, rtol=0, atol=1e-6)

    def test_the_order_is_class_token_distillation_token_registers_picture(self):
        config = tiny_config(pool="class", distillation=True, registers=3, position="none", depth=1)
        model, pixels = tiny_model(config), pictures(config)
        assert model.get_parameter("prefix").shape == (5, 16)
        picture, _ = model.tokenizer(pixels)
        expected = torch.cat((model.get_parameter("prefix").expand(2, -1, -1), picture), 1)
        torch.testing.assert_close(model.encode(pixels), model.blocks[0](expected), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("pool", POOLS)
    def test_registers_are_attended_to_but_not_read(self, pool):
        """With an encoder that hands its tokens on they change nothing; otherwise they do."""
        config = tiny_config(registers=2, **POOLS[pool])
        model, pixels = tiny_model(config), pictures(config)
        registers = slice(config.prefix - 2, config.prefix)
        before = model(pixels)
        with torch.no_grad():
            model.get_parameter("prefix")[registers].neg_()
        assert (model(pixels) - before).abs().max() > 1e-4
        model.blocks = torch.nn.ModuleList()
        before = model(pixels)
        with torch.no_grad():
            model.get_parameter("prefix")[registers].neg_()
        assert torch.equal(model(pixels), before)

    def test_a_distilled_model_answers_the_mean_of_two_heads_on_two_tokens(self):
        config = tiny_config(pool="class", distillation=True)
        model, pixels = tiny_model(config), pictures(config)
        assert isinstance(model.head, DistilledHead)
        tokens = model.norm(model.encode(pixels))
        expected = (model.head.of_class(tokens[:, 0]) + model.head.of_teacher(tokens[:, 1])) / 2
        torch.testing.assert_close(model(pixels), expected, rtol=0, atol=1e-6)
        assert model.features(pixels).shape == (2, 2, 16)

    @pytest.mark.parametrize("registers", [0, 2])
    def test_the_last_norm_can_come_after_the_mean(self, registers):
        config = tiny_config(norm_after_pool=True, registers=registers)
        model, pixels = tiny_model(config), pictures(config)
        mean = model.encode(pixels)[:, registers:].mean(1)
        torch.testing.assert_close(model.features(pixels), model.norm(mean), rtol=0, atol=1e-6)
        before = tiny_model(dataclasses.replace(config, norm_after_pool=False))
        assert (before.features(pixels) - model.features(pixels)).abs().max() > 1e-2

    @pytest.mark.parametrize("registers", [0, 2])
    def test_attention_pooling_is_a_query_over_the_tokens_of_the_picture_and_an_mlp(self, registers):
        config = tiny_config(pool="attention", registers=registers)
        model, pixels = tiny_model(config), pictures(config)
        pool = model.pool.attention
        assert pool is not None
        tokens = model.norm(model.encode(pixels))[:, registers:]
        q = (pool.query @ pool.q.weight.T + pool.q.bias).view(2, 8)  # a row a head
        k, v = (tokens @ pool.kv.weight.T + pool.kv.bias).split(16, -1)
        parts = []
        for head in range(2):
            own = slice(head * 8, head * 8 + 8)
            weights = (k[..., own] @ q[head] * 8**-0.5).softmax(1)
            parts.append((weights[..., None] * v[..., own]).sum(1))
        pooled = pool.projection(torch.cat(parts, 1))
        hidden = F.gelu(pool.mlp.expand(F.layer_norm(pooled, (16,), pool.mlp_norm.weight, pool.mlp_norm.bias, 1e-6)))
        torch.testing.assert_close(model.features(pixels), pooled + pool.mlp.contract(hidden), rtol=1e-5, atol=1e-4)


class TestWrongPixels:
    def test_a_size_that_does_not_divide_says_which_would(self):
        model = tiny_model(tiny_config("patch"))
        with pytest.raises(InputError, match=r"13×40 .*height 12 or 16 would"):
            model(torch.zeros(1, 3, 13, 40))

    def test_a_size_too_small_for_soft_splits_says_so(self):
        model = tiny_model(tiny_config("t2t", kernels=(7, 3)))
        with pytest.raises(InputError, match=r"2×20 is too small .* at least 3×3"):
            model(torch.zeros(1, 3, 2, 20))

    @pytest.mark.parametrize("shape", [(2, 1, 12, 40), (3, 12, 40), (2, 12, 40, 3)])
    def test_other_channels_or_dimensions_are_named(self, shape):
        with pytest.raises(InputError, match=r"expected \(batch, 3, height, width\)"):
            tiny_model(tiny_config())(torch.zeros(shape))


class TestCreate:
    def test_equal_seeds_give_equal_weights_and_others_do_not(self):
        one, same, other = (create("vit_xs_8", seed=seed, outputs=4).state_dict() for seed in (3, 3, 4))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not torch.equal(one["blocks.0.mlp.expand.weight"], other["blocks.0.mlp.expand.weight"])

    def test_the_global_random_state_is_left_alone(self):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        create("vit_xs_8", seed=3)
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_global_random_state_does_not_matter(self):
        torch.manual_seed(1)
        config = tiny_config("performer", pool="attention", position="learned", registers=2)
        one = build(config, seed=2).state_dict()
        torch.manual_seed(2)
        other = build(config, seed=2).state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("hidden", [0, 6])
    @pytest.mark.parametrize("distillation", [False, True])
    def test_a_fresh_model_answers_zero(self, kind, hidden, distillation):
        config = tiny_config(kind, head_hidden=hidden, pool="class", distillation=distillation)
        assert torch.equal(build(config)(pictures(config)), torch.zeros(2, 5))

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "stem"])
    def test_fresh_tokens_have_a_deviation_of_a_half(self, kind):
        config = tiny_config(kind, kernels=(3,), width=256, image_size=(40, 64))
        tokens, _ = build(config).tokenizer(pictures(config))
        assert tokens.std().item() == pytest.approx(0.5, rel=0.1)

    def test_the_public_name_takes_overrides(self):
        model = vitreous.create("t2t_vit_xs_4", outputs=10, channels=1, image_size=(34, 50))
        assert model(torch.zeros(1, 1, 34, 50)).shape == (1, 10)

    def test_faults_are_input_errors(self):
        with pytest.raises(InputError, match="did you mean"):
            create("vit_xs8")
        with pytest.raises(InputError, match="height 224 or 240 would"):
            create("vit_b_16", image_size=(225, 224))


class TestCounts:
    def test_parameters_are_counted_once(self):
        config = tiny_config("patch", depth=1, pool="class", position="learned", class_position=True)
        block = 2 * 2 * 16 + (16 * 48 + 48) + (16 * 16 + 16) + (16 * 64 + 64) + (64 * 16 + 16)
        patches, head = 3 * 32 * 16 + 16, 16 * 5 + 5
        assert count_parameters(tiny_model(config)) == patches + 16 + 16 * 16 + block + 2 * 16 + head

    @pytest.mark.parametrize("size", [(12, 40), (24, 8)])
    def test_multiply_accumulates_include_those_of_attention(self, size):
        config = tiny_config("patch", depth=1)
        n = config.grid(*size)[0] * config.grid(*size)[1]
        block = n * 16 * 48 + 2 * n * n * 16 + n * 16 * 16 + 2 * n * 16 * 64
        assert count_macs(config, *size) == n * 3 * 32 * 16 + block + 16 * 5

    def test_the_list_of_presets_shows_the_size_that_was_asked_for_where_it_fits(self):
        rows = {row["model"]: row for row in describe_presets("160x384", channels=1, outputs=10)}
        assert set(rows) == set(vitreous.PRESETS)
        assert rows["vit_s_16"]["size"] == (160, 384)
        assert rows["vit_s_16"]["grid"] == (10, 24)
        assert rows["vit_h_14"]["size"] == (224, 224)
        assert rows["vit_xs_4"]["size"] == (32, 32)
        wanted = dataclasses.replace(vitreous.PRESETS["vit_ti_16"], image_size=(160, 384), channels=1, outputs=10)
        assert rows["vit_ti_16"]["macs"] == count_macs(wanted, 160, 384)

    @pytest.mark.parametrize("size", ["large", "160x", ""])
    def test_a_size_that_is_none_is_refused(self, size):
        with pytest.raises(InputError, match="expected 224 or 160x384"):
            describe_presets(size, channels=3, outputs=10)


class TestTracing:
    @pytest.mark.parametrize("family", EXPORTED)
    def test_export_takes_any_batch_and_leaves_the_model_usable(self, family):
        every = EXPORTED[family].get("position_at") == "every"
        # A temperature whose table no other test has asked for.
        config = tiny_config(position_temperature=9.5, depth=1 + every, **EXPORTED[family])
        model = tiny_model(config)
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(model, (pictures(config),), dynamic_shapes={"pixels": {0: batch}}).module()
        for count in (1, 2, 7):
            pixels = pictures(config, count=count)
            torch.testing.assert_close(exported(pixels), model(pixels), rtol=0, atol=1e-5)

    def test_a_compiled_model_answers_the_same(self):
        config = tiny_config("patch", pool="class")
        model, pixels = tiny_model(config), pictures(config)
        torch.testing.assert_close(torch.compile(model, backend="eager")(pixels), model(pixels), rtol=0, atol=1e-6)
