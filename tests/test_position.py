"""Position embeddings and their resampling."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import POSITIONS, PREFIXES, pictures, tiny_config, tiny_model
from torch._subclasses import FakeTensorMode

from vitreous.errors import InputError
from vitreous.model.position import PositionEmbedding, fixed_table, kept_table, resample, sincos2d, sinusoid
from vitreous.model.vit import build


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
    @pytest.mark.parametrize("position", ["sincos2d", "sinusoid", "learned", "learned2d"])
    def test_a_class_token_without_a_position_is_left_as_it_is(self, position):
        config = tiny_config(position=position, pool="class")
        embedding = tiny_model(config).position
        tokens = drawn(2, 1 + 15, 16)
        added = embedding(tokens, (3, 5), 0) - tokens
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
        out = embedding(tokens, (4, 7), 0)
        table = embedding.get_parameter("tables.0.table")
        torch.testing.assert_close(out[0], resample(table, (3, 5), (4, 7), 1))
        [gradient] = torch.autograd.grad(out.square().sum(), table)
        assert (gradient.abs().amax(1) > 0).all()

    def test_none_adds_nothing_and_has_no_weights(self):
        embedding = PositionEmbedding(tiny_config(position="none"))
        tokens = drawn(1, 15, 16)
        assert torch.equal(embedding(tokens, (3, 5), 0), tokens)
        assert not embedding.state_dict()

    def test_a_table_made_while_predicting_serves_while_training(self):
        config = tiny_config(position_temperature=7.25)  # that no other test has asked for
        embedding = PositionEmbedding(config)
        with torch.inference_mode():
            embedding(drawn(1, 15, 16), (3, 5), 0)
        assert not kept_table(config, (3, 5)).is_inference()
        tokens = drawn(1, 15, 16).requires_grad_()
        (embedding(tokens, (3, 5), 0) ** 2).sum().backward()
        assert tokens.grad is not None

    def test_a_table_first_asked_for_on_a_meta_device_holds_values(self):
        config = tiny_config(position_temperature=7.75)  # that no other test has asked for
        with torch.device("meta"):
            table = kept_table(config, (3, 5))
        assert torch.equal(table, fixed_table(config, (3, 5)))

    @pytest.mark.parametrize("position", POSITIONS)
    @pytest.mark.parametrize("pool", PREFIXES)
    def test_scrambled_patches_change_the_read_out_only_where_there_are_positions(self, position, pool):
        config = tiny_config(**POSITIONS[position], **PREFIXES[pool])
        model, pixels = tiny_model(config), pictures(config)
        order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
        patches = F.unfold(pixels, (4, 8), stride=(4, 8))[..., order]
        scrambled = F.fold(patches, config.image_size, (4, 8), stride=(4, 8))
        assert not torch.equal(scrambled, pixels)
        dtypes = (torch.double,) if pool not in ("mean", "class") else (torch.double, torch.float)
        for dtype in dtypes:  # float rounds the sums of tokens, in another order, to a little more than 1e-6 for some
            model, pixels, scrambled = model.to(dtype), pixels.to(dtype), scrambled.to(dtype)
            with torch.no_grad():
                difference = (model.features(scrambled) - model.features(pixels)).abs().max().item()
            assert difference <= 1e-6 if position == "none" else difference > 1e-2

    def test_the_base_grid_is_that_of_the_image_size(self):
        config = tiny_config()
        wide = dataclasses.replace(config, image_size=(12, 80))
        for position, rows in (("learned", 30), ("learned2d", 3), ("relative", 5 * 19)):
            own = dataclasses.replace(wide, position=position, position_at="shared")
            assert next(PositionEmbedding(own).parameters()).shape[0] == rows
        assert not torch.allclose(fixed_table(wide, (3, 5)), fixed_table(config, (3, 5)))


class TestWhere:
    """At the input, at every block, or shared by all blocks."""

    @pytest.mark.parametrize("position", ["sincos2d", "sinusoid", "learned", "learned2d"])
    @pytest.mark.parametrize("place", ["input", "every", "shared"])
    def test_it_is_added_before_the_first_block_or_before_each(self, position, place):
        embedding = tiny_model(tiny_config(position=position, position_at=place, depth=3)).position
        tokens = drawn(1, 15, 16)
        added = [embedding(tokens, (3, 5), layer) - tokens for layer in range(3)]
        assert added[0].abs().max() > 0.1
        if place == "input":
            assert torch.equal(added[1], torch.zeros_like(tokens))
            assert torch.equal(added[2], torch.zeros_like(tokens))
        elif place == "shared" or not embedding.tables:
            assert torch.equal(added[0], added[1])
            assert torch.equal(added[0], added[2])
        else:
            assert (added[0] - added[1]).abs().max() > 0.1
            assert (added[1] - added[2]).abs().max() > 0.1

    @pytest.mark.parametrize("position", ["learned", "learned2d", "relative"])
    @pytest.mark.parametrize(("place", "tables"), [("input", 1), ("every", 3), ("shared", 1)])
    def test_learned_ones_have_tables_of_their_own_only_at_every_block(self, position, place, tables):
        if (position, place) == ("relative", "input"):
            with pytest.raises(InputError, match="expected position_at shared or every"):
                tiny_config(position=position, position_at=place)
            return
        embedding = PositionEmbedding(tiny_config(position=position, position_at=place, depth=3))
        assert len(embedding.tables) == tables
        if position == "relative":
            given = [embedding.relation((3, 5), layer, drawn(1, 15, 16)).bias for layer in range(3)]
            assert all(bias is not None for bias in given)
            same = torch.equal(torch.stack([given[0]] * 3), torch.stack(given))  # pyright: ignore[reportArgumentType]
            assert same == (place == "shared")

    def test_a_rotation_is_told_to_every_block(self):
        embedding = PositionEmbedding(tiny_config(position="rope2d"))
        tokens = drawn(1, 15, 16)
        for layer in range(2):
            relation = embedding.relation((3, 5), layer, tokens)
            assert relation.bias is None
            assert torch.equal(relation.rotation, fixed_table(embedding.config, (3, 5)))  # pyright: ignore
            assert torch.equal(embedding(tokens, (3, 5), layer), tokens)


class TestLearnedAxes:
    def test_each_token_is_its_row_beside_its_column(self):
        axes = tiny_model(tiny_config(position="learned2d", registers=2)).position.tables[0]
        table = axes((3, 5))
        assert torch.equal(table[:2], torch.zeros(2, 16))
        for r in range(3):
            for c in range(5):
                expected = torch.cat((axes.get_parameter("rows")[r], axes.get_parameter("columns")[c]))
                assert torch.equal(table[2 + r * 5 + c], expected)

    def test_each_axis_is_resampled_on_its_own(self):
        axes = tiny_model(tiny_config(position="learned2d")).position.tables[0]
        wide, table = axes((3, 11)).unflatten(0, (3, 11)), axes((3, 5)).unflatten(0, (3, 5))
        assert torch.equal(wide[:, 0, :8], table[:, 0, :8])  # the rows are as they were
        columns = axes.get_parameter("columns").T[None]
        image = F.interpolate(columns[..., None], (11, 1), mode="bicubic", antialias=True)
        torch.testing.assert_close(wide[0, :, 8:], image[0, ..., 0].T, rtol=0, atol=1e-6)


class TestRelativeBias:
    def bias(self, grid: tuple[int, int]) -> torch.Tensor:
        config = tiny_config(position="relative", position_at="shared")
        return tiny_model(config).position.tables[0](grid)

    def test_is_the_entry_of_the_offset_in_rows_and_columns(self):
        config = tiny_config(position="relative", position_at="shared")
        relative = tiny_model(config).position.tables[0]
        table, bias = relative.get_parameter("table").unflatten(0, (5, 9)), relative((3, 5))
        assert bias.shape == (2, 15, 15)
        for a in range(15):
            for b in range(15):
                (ya, xa), (yb, xb) = divmod(a, 5), divmod(b, 5)
                assert torch.equal(bias[:, a, b], table[ya - yb + 2, xa - xb + 4])

    @pytest.mark.parametrize("grid", [(3, 5), (4, 6), (2, 9)])
    def test_stays_when_both_tokens_are_shifted(self, grid):
        bias = self.bias(grid).unflatten(2, grid).unflatten(1, grid)  # (heads, rows, columns, rows, columns)
        assert torch.equal(bias[:, 1:, 1:, 1:, 1:], bias[:, :-1, :-1, :-1, :-1])
        assert (bias[:, 0, 0] - bias[:, 1, 0]).abs().max() > 1e-2
        assert (bias[:, 0, 0] - bias[:, 0, 1]).abs().max() > 1e-2

    def test_prefix_tokens_have_none(self):
        config = tiny_config(position="relative", position_at="shared", registers=2)
        relative = tiny_model(config).position.tables[0]
        bias = relative((3, 5))
        assert bias.shape == (2, 17, 17)
        assert torch.equal(bias[:, :2], torch.zeros(2, 2, 17))
        assert torch.equal(bias[:, :, :2], torch.zeros(2, 17, 2))
        plain = PositionEmbedding(dataclasses.replace(config, registers=0)).tables[0]
        plain.load_state_dict(relative.state_dict())
        assert torch.equal(bias[:, 2:, 2:], plain((3, 5)))

    def test_another_grid_resamples_the_table_of_offsets_around_none(self):
        """The middle of the table, no offset, stays in the middle, and symmetry stays symmetry."""
        config = tiny_config(position="relative", position_at="shared")
        relative = tiny_model(config).position.tables[0]
        with torch.no_grad():
            table = relative.get_parameter("table")
            table.add_(table.flip(0).clone())
        bias = relative((6, 4))
        assert bias.shape == (2, 24, 24)
        torch.testing.assert_close(bias, bias.transpose(1, 2), rtol=0, atol=1e-5)
        expected = resample(table, (5, 9), (11, 7))
        assert torch.equal(bias[:, 0, 0], expected[5 * 7 + 3])


class TestRope2d:
    def test_half_of_the_pairs_turn_with_the_row_and_half_with_the_column(self):
        config = tiny_config(position="rope2d", registers=1)
        cos, sin = fixed_table(config, (3, 5))
        assert cos.shape == (1 + 15, 4)
        for r in range(3):
            for c in range(5):
                angles = torch.tensor([r, r * 10**-0.5, c, c * 10**-0.5])
                torch.testing.assert_close(cos[1 + r * 5 + c], angles.cos(), rtol=0, atol=1e-6)
                torch.testing.assert_close(sin[1 + r * 5 + c], angles.sin(), rtol=0, atol=1e-6)
        assert torch.equal(cos[0], torch.ones(4))
        assert torch.equal(sin[0], torch.zeros(4))


class TestPrefix:
    @pytest.mark.parametrize("position", ["sincos2d", "sinusoid", "learned", "learned2d"])
    def test_registers_have_no_position_though_the_class_token_has_one(self, position):
        config = tiny_config(position=position, pool="class", class_position=True, distillation=True, registers=3)
        tokens = drawn(2, 5 + 15, 16)
        added = tiny_model(config).position(tokens, (3, 5), 0) - tokens
        assert torch.equal(added[:, 2:5], torch.zeros(2, 3, 16))
        assert (added[:, 5:].abs().amax(-1) > 0.01).all()
        if position in ("learned", "sinusoid"):
            assert (added[:, :2].abs().amax(-1) > 0.01).all()


def test_a_pass_with_stand_ins_for_tensors_leaves_no_trace():
    config = tiny_config("patch", position="sincos2d", image_size=(12, 56))
    for _ in range(2):
        with FakeTensorMode():
            build(config)(torch.empty(1, 3, 12, 56))
        build(config)(torch.zeros(1, 3, 12, 56))
