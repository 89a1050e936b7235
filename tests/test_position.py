"""Position embeddings and their resampling."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import pictures, tiny_config, tiny_model

from vitreous.model.position import PositionEmbedding, fixed_table, kept_table, resample, sincos2d, sinusoid


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


class TestSinusoid:
    @pytest.mark.parametrize(("length", "width"), [(1, 2), (7, 6), (50, 64)])
    def test_equals_the_formula(self, length, width):
        expected = [
            [(math.sin if j % 2 == 0 else math.cos)(i / 10_000 ** (2 * (j // 2) / width)) for j in range(width)]
            for i in range(length)
        ]
        torch.testing.assert_close(sinusoid(length, width), torch.tensor(expected), rtol=0, atol=1e-7)


class TestSinCos2d:
    def test_equals_the_formula(self):
        (gh, gw), width, temperature = (3, 5), 12, 10.0
        table = sincos2d((gh, gw), width, (gh, gw), temperature)
        rates = [temperature ** (-k / 3) for k in range(3)]
        for r in range(gh):
            for c in range(gw):
                expected = [f(p * rate) for p in (r, c) for f in (math.sin, math.cos) for rate in rates]
                torch.testing.assert_close(table[r * gw + c], torch.tensor(expected), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("times", [3, 5])
    def test_a_finer_grid_passes_through_the_same_places(self, times):
        """Where a token's centre is that of a coarse one, which is so for odd multiples."""
        base = (3, 5)
        fine = sincos2d((3 * times, 5 * times), 16, base, 10.0).unflatten(0, (3 * times, 5 * times))
        middle = times // 2
        same = fine[middle::times, middle::times].flatten(0, 1)
        torch.testing.assert_close(same, sincos2d(base, 16, base, 10.0), rtol=0, atol=1e-6)

    def test_between_two_tokens_lies_the_coordinate_between_them(self):
        """On twice the tokens, the first is a quarter of a base token before the base's first."""
        fine = sincos2d((2, 2), 4, (1, 1), 10.0)
        expected = [math.sin(-0.25), math.cos(-0.25), math.sin(0.25), math.cos(0.25)]
        torch.testing.assert_close(fine[1], torch.tensor(expected), rtol=0, atol=1e-6)

    def test_every_place_has_its_own_row(self):
        table = sincos2d((14, 14), 64, (14, 14), 10.0)
        distances = torch.cdist(table, table) + 10 * torch.eye(len(table))
        assert distances.min() > 0.5


class TestResample:
    @pytest.mark.parametrize("prefix", [0, 1])
    @pytest.mark.parametrize("grid", [(6, 4), (2, 9), (3, 5), (8, 3)])
    def test_equals_bicubic_interpolation_with_antialias_and_keeps_the_prefix(self, grid, prefix):
        base, width = (4, 6), 8
        table = drawn(prefix + 24, width)
        got = resample(table, base, grid, prefix)
        image = table[prefix:].reshape(1, *base, width).permute(0, 3, 1, 2)
        expected = F.interpolate(image, grid, mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(-1, width)
        assert torch.equal(got[:prefix], table[:prefix])
        torch.testing.assert_close(got[prefix:], expected, rtol=0, atol=1e-6)

    def test_is_the_identity_on_its_own_grid(self):
        table = drawn(1 + 24, 8)
        assert torch.equal(resample(table, (4, 6), (4, 6), 1), table)

    def test_keeps_the_dtype(self):
        assert resample(drawn(24, 8).bfloat16(), (4, 6), (2, 3)).dtype == torch.bfloat16


class TestPositionEmbedding:
    @pytest.mark.parametrize("position", ["sincos2d", "sinusoid", "learned"])
    def test_a_class_token_without_a_position_is_left_as_it_is(self, position):
        config = tiny_config(position=position, pool="class")
        embedding = tiny_model(config).position
        tokens = drawn(2, 1 + 15, 16)
        added = embedding(tokens, (3, 5)) - tokens
        assert torch.equal(added[:, 0], torch.zeros(2, 16))
        assert (added[:, 1:].abs().amax(-1) > 0.01).all()

    def test_the_sinusoid_counts_the_class_token_that_has_a_position(self):
        config = tiny_config(position="sinusoid", pool="class", class_position=True)
        torch.testing.assert_close(fixed_table(config, (3, 5)), sinusoid(16, 16))

    def test_the_sinusoid_is_built_for_another_grid_not_stretched(self):
        config = tiny_config(position="sinusoid")
        torch.testing.assert_close(fixed_table(config, (4, 7)), sinusoid(28, 16))

    def test_learned_positions_of_another_grid_are_resampled_and_learn(self):
        config = tiny_config(position="learned", pool="class", class_position=True)
        embedding = tiny_model(config).position
        tokens = torch.zeros(1, 1 + 28, 16)
        out = embedding(tokens, (4, 7))
        torch.testing.assert_close(out[0], resample(embedding.table, (3, 5), (4, 7), 1))
        [gradient] = torch.autograd.grad(out.square().sum(), embedding.table)
        assert (gradient.abs().amax(1) > 0).all()

    def test_none_adds_nothing_and_has_no_weights(self):
        embedding = PositionEmbedding(tiny_config(position="none"))
        tokens = drawn(1, 15, 16)
        assert torch.equal(embedding(tokens, (3, 5)), tokens)
        assert not embedding.state_dict()

    def test_a_table_made_while_predicting_serves_while_training(self):
        config = tiny_config(position_temperature=7.25)  # that no other test has asked for
        embedding = PositionEmbedding(config)
        with torch.inference_mode():
            embedding(drawn(1, 15, 16), (3, 5))
        assert not kept_table(config, (3, 5)).is_inference()
        tokens = drawn(1, 15, 16).requires_grad_()
        (embedding(tokens, (3, 5)) ** 2).sum().backward()
        assert tokens.grad is not None

    def test_a_table_first_asked_for_on_a_meta_device_holds_values(self):
        config = tiny_config(position_temperature=7.75)  # that no other test has asked for
        with torch.device("meta"):
            table = kept_table(config, (3, 5))
        assert torch.equal(table, fixed_table(config, (3, 5)))

    @pytest.mark.parametrize(("position", "changes"), [("none", False), ("sincos2d", True), ("learned", True)])
    @pytest.mark.parametrize("pool", ["mean", "class"])
    def test_scrambled_patches_change_the_read_out_only_where_there_are_positions(self, position, changes, pool):
        config = tiny_config(position=position, pool=pool)
        model, pixels = tiny_model(config), pictures(config)
        order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
        patches = F.unfold(pixels, (4, 8), stride=(4, 8))[..., order]
        scrambled = F.fold(patches, config.image_size, (4, 8), stride=(4, 8))
        assert not torch.equal(scrambled, pixels)
        with torch.no_grad():
            difference = (model.features(scrambled) - model.features(pixels)).abs().max().item()
        assert difference > 1e-2 if changes else difference <= 1e-6

    def test_the_base_grid_is_that_of_the_image_size(self):
        config = tiny_config()
        wide = dataclasses.replace(config, image_size=(12, 80))
        assert PositionEmbedding(wide).base == (3, 10)
        assert not torch.allclose(fixed_table(wide, (3, 5)), fixed_table(config, (3, 5)))
