"""Attributions against what they say they are, worked out the long way on tiny models."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import KINDS, PREFIXES, pictures, tiny_config, tiny_model
from torch import Tensor, nn

from vitreous.errors import InputError
from vitreous.insight import attribution, flow
from vitreous.insight.attribution import METHODS, Attribution
from vitreous.insight.pixels import cell_numbers, filled, spread, to_cells, to_pixels
from vitreous.insight.trace import trace
from vitreous.model.config import ModelConfig, split_length, split_padding, split_stride
from vitreous.model.t2t import TokenPerformer

QUICK: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 4, "most": 4},
    "integrated_tokens": {"steps": 4, "most": 4},
    "shapley": {"orders": 2, "groups": 3},
    "guided_shapley": {"orders": 2, "groups": 3},
}
CURVED = ("attention", "rollout", "gradient_attention", "grad_cam", "guided_shapley", "random")
LINEAR = [name for name in METHODS if name not in CURVED]
SKIPS = {"plain": {}, "value skip": {"value_skip": True}, "relative": {"position": "relative", "position_at": "every"}}
# Every two of a tokenizer, of what goes past attention or into it, and of what is read.
MODELS = dict.fromkeys(
    [
        *itertools.product(["patch"], SKIPS, PREFIXES),
        *itertools.product(["t2t", "performer"], SKIPS, ["class"]),
        *itertools.product(["t2t", "performer"], ["plain"], PREFIXES),
    ]
)


def attribute(method: str, model: Any, pixels: Tensor, target: Any = None, **options: Any) -> Attribution:
    return METHODS[method](model, pixels, target, **{**QUICK.get(method, {}), **options})


def exact_model(kind: str = "patch", **fields: Any) -> Any:
    """In float64, so that what is equal is equal to the last digits."""
    return tiny_model(tiny_config(kind, **fields)).double()


def counted(model: nn.Module) -> list[int]:
    """How many pictures pass the model from now on, pass by pass."""
    counts: list[int] = []
    model.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    return counts


class OneCell(nn.Module):
    """Answers the sum of the pixels of one cell, its negative, and 0."""

    def __init__(self, row: int = 1, column: int = 2):
        super().__init__()
        self.config = ModelConfig(image_size=(12, 20), patch_size=(4, 4), width=8, depth=1, heads=1, outputs=3)
        self.rows, self.columns = slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)

    def forward(self, pixels: Tensor) -> Tensor:
        seen = pixels[:, :, self.rows, self.columns].sum((1, 2, 3))
        return torch.stack((seen, -seen, torch.zeros_like(seen)), 1)


# The long way: attention as whole matrices on one graph


def windows(size: tuple[int, int], kernel: int) -> Tensor:
    """(N, h·w + 1): how much of each token of a soft split comes from each place, last from the padding."""
    stride, padding = split_stride(kernel), split_padding(kernel)
    height, width = size
    gh, gw = split_length(height, kernel), split_length(width, kernel)
    shares = torch.zeros(gh * gw, height * width + 1, dtype=torch.float64)
    for y, x, dy, dx in itertools.product(range(gh), range(gw), range(kernel), range(kernel)):
        r, c = y * stride - padding + dy, x * stride - padding + dx
        inside = 0 <= r < height and 0 <= c < width
        shares[y * gw + x, r * width + c if inside else height * width] += 1 / kernel**2
    return shares


def to_picture(config: ModelConfig, row: Tensor, size: tuple[int, int], between: list[Tensor]) -> Tensor:
    """(B, N) over tokens -> (B, H·W + 1); `between` are (B, M, M) of the token transformers."""
    sizes = [size]
    for kernel in config.kernels[:-1]:
        sizes.append((split_length(sizes[-1][0], kernel), split_length(sizes[-1][1], kernel)))
    lost = torch.zeros(len(row), 1, dtype=torch.float64)
    for number in reversed(range(len(sizes))):
        if number < len(between):
            row = (row[:, None] @ between[number]).squeeze(1)
        row = row @ windows(sizes[number], config.kernels[number])
        lost, row = lost + row[:, -1:], row[:, :-1]
    return torch.cat((row, lost), 1)


def matrices(model: Any, pixels: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor | None]:
    """Outputs of a plain model; of each block and of each token transformer the weights (B, heads, T, T) they were
    computed with; and the weights (B, heads, N) of pooling.
    """
    kept: tuple[list[Tensor], list[Tensor]] = ([], [])

    def attend(attention: Any, tokens: Tensor, into: list[Tensor], bias: Tensor | None = None) -> Tensor:
        q, k, v = attention.qkv(tokens).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT * attention.scale
        into.append((scores if bias is None else scores + bias).softmax(-1))
        joined = (into[-1] @ v).transpose(1, 2).flatten(2)
        return attention.projection(joined) + attention.value_skip * v.transpose(1, 2).flatten(2)

    def perform(block: TokenPerformer, tokens: Tensor) -> Tensor:
        k, q, v = block.kqv(tokens).chunk(3, -1)
        scores = block.features(q) @ block.features(k).mT
        kept[1].append((scores / (scores.sum(-1, keepdim=True) + 1e-8))[:, None])
        return v + block.projection(kept[1][-1][:, 0] @ v)

    config = model.config
    if config.tokenizer == "t2t":
        tokens, grid = model.tokenizer.splits[0](pixels)
        for block, split in zip(model.tokenizer.transformers, model.tokenizer.splits[1:], strict=True):
            normed = block.attention_norm(tokens)
            tokens = (
                perform(block, normed) if config.token_kind == "performer" else attend(block.attention, normed, kept[1])
            )
            tokens = tokens + block.mlp(block.mlp_norm(tokens))
            tokens, grid = split(tokens.mT.unflatten(2, grid))
        tokens = model.tokenizer.projection(tokens)
    else:
        tokens, grid = model.tokenizer(pixels)
    if model.prefix is not None:
        tokens = torch.cat((model.prefix.expand(len(tokens), -1, -1), tokens), 1)
    for number, block in enumerate(model.blocks):
        tokens = model.position(tokens, grid, number)
        bias = model.position.relation(grid, number, tokens).bias
        tokens = tokens + attend(block.attention, block.attention_norm(tokens), kept[0], bias)
        tokens = tokens + block.mlp(block.mlp_norm(tokens))
    tokens = model.norm(tokens)
    if config.class_token:
        return model.head(model.pool(tokens)), *kept, None
    tokens, pool = tokens[:, config.prefix :], model.pool.attention
    if pool is None:
        weights = torch.full_like(tokens[:, None, :, 0], 1 / tokens.shape[1]).detach().requires_grad_()
        return model.head((weights @ tokens).squeeze(1)), *kept, weights
    q = pool.q(pool.query).unflatten(-1, (pool.heads, -1)).transpose(0, 1)  # (heads, 1, D/heads)
    k, v = pool.kv(tokens).unflatten(-1, (2, pool.heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (k @ q.mT * pool.scale).softmax(2).squeeze(-1)  # (B, heads, N)
    pooled = pool.projection((weights[:, :, None] @ v).squeeze(2).flatten(1))
    return model.head(pooled + pool.mlp(pool.mlp_norm(pooled))), *kept, weights


def start_row(config: ModelConfig, weights: Tensor | None, T: int) -> Tensor:
    """(B, T): what the head reads, of class tokens or with the weights of pooling."""
    if weights is None:
        row = torch.zeros(2, T, dtype=torch.float64)
        row[:, : 1 + config.distillation] = 1 / (1 + config.distillation)
        return row
    return F.pad(weights.mean(1), (config.prefix, 0))


def compare_with_picture(found: Attribution, config: ModelConfig, row: Tensor, between: list[Tensor]) -> None:
    """A map against the row (B, N) over the tokens that enter the encoder."""
    if config.tokenizer != "t2t":
        torch.testing.assert_close(found.tokens.flatten(1), row, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.pixels, spread(found.tokens, config.image_size, config.stride))
        assert found.padding.eq(0).all()
        return
    expected = to_picture(config, row, config.image_size, between)
    torch.testing.assert_close(found.pixels.flatten(1), expected[:, :-1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.padding, expected[:, -1] / expected.sum(1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.tokens, to_cells(found.pixels, config.grid(*config.image_size), config.stride))


class TestAttention:
    @pytest.mark.parametrize("fields", PREFIXES.values(), ids=PREFIXES)
    def test_it_is_what_is_read_of_the_last_block_or_the_weights_of_pooling(self, fields):
        model, pixels = exact_model(**fields), pictures(tiny_config()).double()
        found: Any = trace(model, pixels)
        prefix = model.config.prefix
        if found.pool is not None:
            expected = found.pool.mean(1)
        else:
            rows = (
                slice(0, 1 + model.config.distillation) if prefix and fields["pool"] == "class" else slice(prefix, None)
            )
            expected = found.layers[1].attention.mean(1)[:, rows].mean(1)[:, prefix:]
        torch.testing.assert_close(attribution.attention(model, pixels).tokens.flatten(1), expected)

    @pytest.mark.parametrize("pool", ["mean", "class", "attention"])
    def test_a_layer_and_a_head_can_be_chosen(self, pool):
        model, pixels = exact_model(pool=pool), pictures(tiny_config()).double()
        rows = trace(model, pixels).layers[0].attention[:, 1]
        row = rows[:, 0, 1:] if pool == "class" else rows.mean(1)
        pooled = trace(model, pixels).pool
        if pooled is not None:
            row = (pooled.mean(1)[:, None] @ rows).squeeze(1)
        found = attribution.attention(model, pixels, layer=-2, head=1)
        torch.testing.assert_close(found.tokens.flatten(1), row)

    def test_a_head_of_attention_pooling_can_be_chosen(self):
        model, pixels = exact_model(pool="attention"), pictures(tiny_config()).double()
        found, traced = attribution.attention(model, pixels, head=1), trace(model, pixels)
        assert traced.pool is not None
        torch.testing.assert_close(found.tokens.flatten(1), traced.pool[:, 1])


class TestRollout:
    @pytest.mark.parametrize(("kind", "skips", "prefix"), MODELS)
    def test_it_is_the_product_of_whole_matrices(self, kind, skips, prefix):
        model = exact_model(kind, **PREFIXES[prefix], **SKIPS[skips])
        config, pixels = model.config, pictures(model.config).double()
        outputs, encoder, between, weights = matrices(model, pixels)
        torch.testing.assert_close(outputs, model(pixels))
        row = start_row(config, weights, encoder[0].shape[-1])
        product = torch.eye(row.shape[1], dtype=torch.float64)
        for A in encoder:
            stays = 2 if skips == "value skip" else 1
            product = (A.mean(1) + stays * torch.eye(row.shape[1])) / (1 + stays) @ product
        row = (row[:, None] @ product).squeeze(1)[:, config.prefix :]
        steps = [(A.mean(1) + torch.eye(A.shape[-1])) / 2 for A in between]
        compare_with_picture(attribution.rollout(model, pixels), config, row, steps)

    def test_mass_is_kept_but_for_what_stays_in_registers_and_falls_on_padding(self):
        for kind, registers in itertools.product(("patch", "t2t"), (0, 2)):
            model = exact_model(kind, registers=registers)
            found = attribution.rollout(model, pictures(model.config).double())
            total = found.pixels.sum((1, 2)) / (1 - found.padding)
            assert (total < 1 - 1e-3).all() if registers else torch.allclose(total, torch.ones(2).double())


class TestGradientAttention:
    @pytest.mark.parametrize(("kind", "skips", "prefix"), MODELS)
    def test_it_is_that_of_gradients_of_whole_matrices(self, kind, skips, prefix):
        model = exact_model(kind, **PREFIXES[prefix], **SKIPS[skips])
        config, pixels = model.config, pictures(model.config).double()
        outputs, encoder, between, weights = matrices(model, pixels)
        wanted = [*encoder, *between]
        gradients = torch.autograd.grad(outputs[:, 3].sum() - outputs[:, 1].sum(), wanted)
        changes = [(A * dA).relu().mean(1) for A, dA in zip(wanted, gradients, strict=True)]
        row = start_row(config, weights, encoder[0].shape[-1])
        R = torch.eye(row.shape[1], dtype=torch.float64)
        for change in changes[: len(encoder)]:
            R = R + change @ R
        row = (row[:, None] @ R).squeeze(1)[:, config.prefix :]
        steps = [torch.eye(change.shape[-1]) + change for change in changes[len(encoder) :]]
        found = attribution.gradient_attention(model, pixels, (3, 1))
        compare_with_picture(found, config, row.detach(), [step.detach() for step in steps])


class TestBlocksOfRows:
    @pytest.mark.parametrize("method", ["attention", "rollout", "gradient_attention", "contributions"])
    @pytest.mark.parametrize("kind", ["t2t", "performer"])
    def test_no_square_of_tokens_is_ever_made_and_the_answer_stays(self, method, kind, monkeypatch):
        model = exact_model(kind, position="relative", position_at="shared")
        pixels = pictures(model.config).double()
        whole = attribute(method, model, pixels, 1)
        made, original = [], flow.attention_weights

        def watched(*arguments: Any) -> Tensor:
            made.append(original(*arguments))
            return made[-1]

        monkeypatch.setattr(flow, "attention_weights", watched)
        monkeypatch.setattr(flow, "SCORES_AT_ONCE", 150)
        blocks = attribute(method, model, pixels, 1)
        assert all(weights.numel() <= max(150, 2 * 2 * weights.shape[-1]) for weights in made)
        torch.testing.assert_close(blocks.pixels, whole.pixels)

    def test_of_a_class_token_the_last_block_needs_one_row(self, monkeypatch):
        model, pixels = exact_model(pool="class", registers=1), pictures(tiny_config()).double()
        rows, original = [], flow.attention_weights
        monkeypatch.setattr(flow, "attention_weights", lambda *a: rows.append(len(a[4])) or original(*a))
        attribution.rollout(model, pixels)
        assert rows == [1, 17]


class TestContributions:
    @pytest.mark.parametrize("registers", [0, 2])
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_a_mean_they_sum_to_the_score_but_for_the_bias(self, kind, registers):
        model = exact_model(kind, registers=registers)
        pixels = pictures(model.config).double()
        found = attribution.contributions(model, pixels, 2).tokens.sum((1, 2))
        torch.testing.assert_close(found, model(pixels)[:, 2] - model.head.outputs.bias[2])

    @pytest.mark.parametrize("norm", ["layer", "rms"])
    def test_with_the_norm_after_the_mean_they_sum_to_the_score_but_for_both_biases(self, norm):
        model = exact_model(norm_after_pool=True, norm=norm)
        pixels = pictures(model.config).double()
        found = attribution.contributions(model, pixels, 2).tokens.sum((1, 2))
        bias = model.head.outputs.bias[2]
        if norm == "layer":
            bias = bias + model.norm.bias @ model.head.outputs.weight[2]
        torch.testing.assert_close(found, model(pixels)[:, 2] - bias)

    @pytest.mark.parametrize("fields", PREFIXES.values(), ids=PREFIXES)
    def test_they_are_what_is_read_times_its_gradient(self, fields):
        model = exact_model(**fields)
        pixels, prefix = pictures(model.config).double(), model.config.prefix
        outputs, encoder, _, weights = matrices(model, pixels)
        wanted = encoder if weights is None else [weights]
        gradients = torch.autograd.grad(outputs[:, 3].sum(), wanted)
        parts = [(A * dA).sum(1) for A, dA in zip(wanted, gradients, strict=True)]
        if weights is None:
            parts = [part[:, : 1 + model.config.distillation].sum(1)[:, prefix:] for part in parts]
        found = attribution.contributions(model, pixels, 3)
        torch.testing.assert_close(found.tokens.flatten(1), torch.stack(parts).sum(0).detach())


class TestGradCam:
    @pytest.mark.parametrize(("pool", "place"), [("mean", "after"), ("class", "before"), ("attention", "after")])
    def test_columns_count_as_much_as_the_mean_of_their_gradients(self, pool, place):
        model, pixels = exact_model(pool=pool, registers=1), pictures(tiny_config()).double()
        found = trace(model, pixels, gradients=True)
        tokens, prefix = getattr(found.layers[1], place), model.config.prefix
        columns = torch.autograd.grad(found.outputs[:, 2].sum(), tokens)[0][:, prefix:].mean(1)
        expected = torch.einsum("bnd,bd->bn", tokens[:, prefix:], columns).clamp(min=0)
        assert (expected > 0).any()
        torch.testing.assert_close(attribution.grad_cam(model, pixels, 2).tokens.flatten(1), expected.detach())

    def test_what_leaves_a_block_enters_the_next(self):
        model, pixels = exact_model(position="none"), pictures(tiny_config()).double()
        left, entered = (
            attribution.grad_cam(model, pixels, 2, layer, place) for layer, place in ((0, "after"), (1, "before"))
        )
        assert torch.equal(left.pixels, entered.pixels)
        assert not torch.allclose(left.pixels, attribution.grad_cam(model, pixels, 2).pixels)


class TestIntegratedGradients:
    @pytest.mark.parametrize("method", ["integrated_gradients", "integrated_tokens"])
    @pytest.mark.parametrize("baseline", ["mean", "blur", "given"])
    @pytest.mark.parametrize("target", [None, 1, (0, 4)])
    def test_they_sum_to_the_difference_from_the_baseline(self, method, baseline, target):
        model, pixels = exact_model("stem"), pictures(tiny_config("stem")).double()
        given: Any = torch.full((3, 1, 1), 0.3) if baseline == "given" else baseline
        found = METHODS[method](model, pixels, target, given, most=1024)
        start = filled(pixels, given, (3, 5))
        chosen = attribution.direction(model(pixels), target)
        difference = ((model(pixels) - model(start)) * chosen).sum(1)
        assert found.note == ""
        torch.testing.assert_close(found.tokens.sum((1, 2)), difference.detach(), rtol=0.01, atol=0)
        torch.testing.assert_close(found.pixels.sum((1, 2)), difference.detach(), rtol=0.01, atol=0)

    @pytest.mark.parametrize("method", ["integrated_gradients", "integrated_tokens"])
    @pytest.mark.parametrize("kind", ["patch", "stem", "t2t", "performer"])
    def test_of_every_tokenizer_they_sum_to_the_difference_within_the_gradients_allowed(self, kind, method):
        model = tiny_model(tiny_config(kind))
        pixels = pictures(model.config)
        found = METHODS[method](model, pixels, 2)
        difference = (model(pixels) - model(torch.zeros_like(pixels)))[:, 2].detach()
        assert found.note == ""
        torch.testing.assert_close(found.tokens.sum((1, 2)), difference, rtol=0.0101, atol=0)

    def test_soft_splits_that_change_at_once_beside_the_baseline_take_few_gradients(self):
        model = tiny_model(tiny_config("t2t", norm_eps=1e-10))
        pixels = pictures(model.config, count=1)
        faint, whole = model(1e-3 * pixels), model(pixels)
        assert (whole - faint).abs().max() < 0.05 * (whole - model(torch.zeros_like(pixels))).abs().max()
        counts = counted(model)
        found = attribution.integrated_gradients(model, pixels, 2)
        assert found.note == ""
        assert sum(counts) < 100

    def test_a_way_without_turns_takes_the_first_steps_alone(self):
        model = tiny_model(tiny_config())
        counts = counted(model)
        attribution.integrated_gradients(model, 0.1 * pictures(model.config, count=1), 2, steps=9)
        assert sum(counts) == 1 + 9  # its score, and the steps

    def test_the_integral_is_that_of_maps_that_are_known(self):
        """A score of α⁴, a jump that a thousandth of the way holds, and none."""
        slopes = (lambda a: 4 * a**3, lambda a: 1e3 * torch.exp(-1e3 * a), lambda a: 0 * a)
        scores = (lambda a: a**4, lambda a: 1 - torch.exp(-1e3 * a), lambda a: 0 * a)
        for slope, score in zip(slopes, scores, strict=True):
            asked: list[Tensor] = []

            def at(alphas: Tensor, slope: Any = slope, score: Any = score, asked: Any = asked) -> tuple[Tensor, Tensor]:
                asked.append(alphas)
                return score(alphas), torch.stack((2 * slope(alphas), -slope(alphas)), 1)

            total, gap, count = attribution._along(at, steps=5, most=64)
            difference = score(torch.ones(1).double())
            torch.testing.assert_close(total, torch.cat((2 * difference, -difference)), rtol=0.01, atol=0)
            alphas = torch.cat(asked)
            assert gap <= 0.01
            assert count == len(alphas) == len(alphas.unique()) <= 64

    def test_a_gap_that_stays_is_told(self):
        model, pixels = exact_model(), pictures(tiny_config()).double()
        found = attribution.integrated_gradients(model, pixels, 2, steps=3, most=4)
        difference = (model(pixels) - model(torch.zeros_like(pixels)))[:, 2]
        gap = ((found.pixels.sum((1, 2)) - difference).abs() / difference.abs()).max()
        assert gap > 0.01
        assert found.note == f"completeness gap {100 * gap:.1f} % after 3 steps"

    def test_no_more_gradients_are_taken_than_are_allowed(self):
        model = tiny_model(tiny_config("t2t", norm_eps=1e-10))
        counts = counted(model)
        attribution.integrated_gradients(model, pictures(model.config, count=1), 2, steps=5, most=14)
        assert sum(counts) == 1 + 13  # two at a time

    def test_of_patches_those_of_tokens_are_the_same_and_of_soft_splits_they_are_not(self):
        for kind in ("patch", "t2t"):
            model = exact_model(kind)
            pixels = pictures(model.config).double()
            of_pixels, of_tokens = (
                attribute(method, model, pixels, 1, steps=8, most=8).tokens
                for method in ("integrated_gradients", "integrated_tokens")
            )
            assert torch.allclose(of_pixels, of_tokens) == (kind == "patch")

    def test_a_picture_takes_as_many_gradients_in_a_batch_as_alone(self):
        model, pixels = exact_model(), pictures(tiny_config()).double()
        counts = counted(model)
        attribution.integrated_gradients(model, pixels[:1], 1, steps=3)
        alone = sum(counts)
        assert alone > 1 + 3
        counts.clear()
        attribution.integrated_gradients(model, torch.cat((pixels[:1], torch.zeros_like(pixels[:1]))), 1, steps=3)
        assert sum(counts) == alone + 1 + 3  # its score, and the first steps

    @pytest.mark.parametrize("at_once", [1, 15 * 3, 10**6])
    def test_memory_bounds_what_passes_together_but_not_the_answer(self, at_once, monkeypatch):
        model, pixels = exact_model(), pictures(tiny_config()).double()
        whole = attribution.integrated_gradients(model, pixels, 1, steps=9, most=9)
        monkeypatch.setattr(attribution, "TOKENS_AT_ONCE", at_once)
        counts = counted(model)
        parts = attribution.integrated_gradients(model, pixels, 1, steps=9, most=9)
        assert max(counts[1:]) == {1: 1, 45: 3}.get(at_once, 9)
        torch.testing.assert_close(whole.pixels, parts.pixels)

    def test_a_picture_that_is_its_baseline_has_nothing_to_explain(self):
        model = exact_model()
        found = attribution.integrated_gradients(model, torch.zeros(1, 3, 12, 40).double(), 0)
        assert found.note == ""
        assert found.pixels.eq(0).all()


class TestOcclusion:
    @pytest.mark.parametrize("fill", ["mean", torch.full((3, 12, 20), 0.25)], ids=["mean", "given"])
    def test_a_cue_in_one_cell_is_found_and_nothing_else(self, fill):
        pixels = pictures(OneCell().config).abs() + 1
        found = attribute("occlusion", OneCell(), pixels, 0, fill=fill, window=1)
        expected = torch.zeros(2, 3, 5)
        expected[:, 1, 2] = (pixels[:, :, 4:8, 8:12] - (0 if fill == "mean" else 0.25)).sum((1, 2, 3))
        torch.testing.assert_close(found.tokens, expected)
        torch.testing.assert_close(found.pixels, spread(expected, (12, 20)))

    def test_a_window_shares_its_drop_with_all_windows_that_hold_a_cell(self):
        found = attribute("occlusion", OneCell(), torch.ones(1, 3, 12, 20), (1, 2)).tokens[0]
        # all windows of 2×2 hold the middle row; the share of a cell's that also holds the column that is read
        expected = torch.tensor([0, 0.5, 1, 0.5, 0]).expand(3, -1)
        torch.testing.assert_close(found, -48 * expected)

    def test_it_is_the_drop_of_the_score_of_a_real_model(self):
        model = exact_model("t2t")
        pixels = pictures(model.config).double()
        found = attribution.occlusion(model, pixels, 2, "blur", window=1)
        hidden = pixels.clone()
        hidden[:, :, 4:8, 8:12] = filled(pixels, "blur", (3, 5))[:, :, 4:8, 8:12]
        torch.testing.assert_close(found.tokens[:, 1, 2], (model(pixels) - model(hidden))[:, 2].detach())


class TestShapley:
    def test_a_cue_in_one_cell_is_found_and_nothing_else(self):
        found = attribute("shapley", OneCell(), torch.ones(1, 3, 12, 20), 0, groups=15, orders=4)
        expected = torch.zeros(1, 3, 5)
        expected[0, 1, 2] = 48
        torch.testing.assert_close(found.tokens, expected)

    @pytest.mark.parametrize(("orders", "groups"), [(1, 1), (3, 4), (2, 100)])
    def test_they_sum_to_the_difference_from_the_filled_picture(self, orders, groups):
        model = exact_model("stem", pool="class")
        pixels = pictures(model.config).double()
        found = attribution.shapley(model, pixels, 1, "blur", orders, groups)
        difference = (model(pixels) - model(filled(pixels, "blur", (3, 5))))[:, 1].detach()
        torch.testing.assert_close(found.tokens.sum((1, 2)), difference)

    @staticmethod
    @torch.no_grad()
    def of_all_orders(model: Any, pixels: Tensor) -> Tensor:
        """(B, 3) exact values of three cells of 8 columns, for output 2."""
        gains = torch.zeros(len(pixels), 3, dtype=torch.float64)
        for order in itertools.permutations(range(3)):
            shown = torch.zeros_like(pixels)
            for cell in order:
                before = model(shown)[:, 2]
                shown[..., cell * 8 : cell * 8 + 8] = pixels[..., cell * 8 : cell * 8 + 8]
                gains[:, cell] += (model(shown)[:, 2] - before) / 6
        return gains

    def test_of_many_orders_they_are_the_values_of_all(self):
        model = exact_model(image_size=(4, 24))
        pixels = pictures(model.config, count=1).double()
        gains = self.of_all_orders(model, pixels)
        found = attribution.shapley(model, pixels, 2, orders=400).tokens.flatten(1)
        torch.testing.assert_close(found, gains, rtol=0, atol=0.1 * gains.abs().max().item())

    def test_guided_they_are_nearer_to_the_values_than_either_alone_of_few_orders(self):
        model = exact_model(image_size=(4, 24))
        pixels = pictures(model.config, count=20).double()
        exact = self.of_all_orders(model, pixels)
        few = {"orders": 2, "groups": 2}
        off = [
            float((METHODS[name](model, pixels, 2, **options).tokens.flatten(1) - exact).norm())
            for name, options in (("guided_shapley", few), ("shapley", few), ("integrated_tokens", {}))
        ]
        assert off[0] < min(off[1:])

    def test_guided_they_sum_to_the_difference_from_the_filled_picture(self):
        model = exact_model("stem", pool="class")
        pixels = pictures(model.config).double()
        found = attribution.guided_shapley(model, pixels, 1, "blur", orders=4)
        difference = (model(pixels) - model(filled(pixels, "blur", (3, 5))))[:, 1].detach()
        torch.testing.assert_close(found.tokens.sum((1, 2)), difference)

    def test_the_whole_and_the_filled_picture_are_asked_about_once(self):
        model, pixels = exact_model(), pictures(tiny_config(), count=1).double()
        counts = counted(model)
        attribution.shapley(model, pixels, 1, orders=6, groups=5)
        assert sum(counts) == 1 + 2 + 6 * 4

    def test_they_are_seeded(self):
        model, pixels = exact_model(), pictures(tiny_config()).double()
        one, same, other = (attribution.shapley(model, pixels, orders=2, seed=seed).tokens for seed in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.allclose(one, other)


class TestRandom:
    def test_it_is_seeded_and_knows_nothing_of_the_picture(self):
        model, pixels = exact_model(), pictures(tiny_config()).double()
        one, same = attribution.random(model, pixels), attribution.random(model, -pixels[:1])
        assert torch.equal(one.tokens[:1], same.tokens)
        assert not torch.equal(one.tokens[0], one.tokens[1])
        assert not torch.equal(one.tokens, attribution.random(model, pixels, seed=1).tokens)


class TestEveryMethod:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "fields", [PREFIXES[name] for name in ("mean, registers", "attention", "placed class, distillation")], ids=str
    )
    def test_it_gives_finite_maps_of_tokens_and_pixels_for_every_model(self, method, kind, fields):
        model = tiny_model(tiny_config(kind, **fields))
        pixels = pictures(model.config, (20, 24))
        found = attribute(method, model, pixels)
        grid = model.config.grid(20, 24)
        assert (found.method, found.tokens.shape, found.pixels.shape) == (method, (2, *grid), (2, 20, 24))
        assert found.padding.shape == (2,)
        assert ((found.padding >= 0) & (found.padding < 1)).all()
        assert found.tokens.isfinite().all()
        assert found.tokens.std() > 0
        assert found.pixels.isfinite().all()
        assert not any(tensor.requires_grad for tensor in (found.tokens, found.pixels, found.padding))

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(
        "fields",
        [
            {"conditional": True},
            {"position": "rope2d", "pool": "class"},
            {"norm": "rms", "mlp": "swiglu", "layer_scale": 0.5, "head_hidden": 6},
            {"norm_after_pool": True, "pool": "attention", "qk_norm": True},
            {"ablation": "se"},
            {"ablation": "ghost", "pool": "class"},
        ],
        ids=str,
    )
    def test_it_knows_every_encoder(self, method, fields):
        model = tiny_model(tiny_config(**fields))
        found = attribute(method, model, pictures(model.config))
        assert found.tokens.isfinite().all()
        assert found.tokens.std() > 0

    @pytest.mark.parametrize("method", ["attention", "rollout", "gradient_attention", "grad_cam"])
    def test_it_knows_blocks_whose_width_grows(self, method):
        model = tiny_model(tiny_config(ablation="dense", heads=1))
        assert attribute(method, model, pictures(model.config)).tokens.std() > 0

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("kind", ["patch", "performer"])
    def test_the_model_is_left_as_it_was_and_need_not_ask_for_gradients(self, method, kind):
        model = tiny_model(tiny_config(kind, pool="attention"))
        pixels = pictures(model.config)
        before = attribute(method, model, pixels, 1)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert not pixels.requires_grad
        with torch.no_grad():
            frozen = attribute(method, model.requires_grad_(False), pixels, 1)
        torch.testing.assert_close(before.pixels, frozen.pixels)

    @pytest.mark.parametrize("method", [method for method in METHODS if method != "random"])
    def test_a_picture_is_explained_the_same_alone_and_in_a_batch(self, method):
        model = exact_model("t2t", pool="class")
        pixels = pictures(model.config, count=3).double()
        batch, alone = attribute(method, model, pixels, 1), attribute(method, model, pixels[1:2], 1)
        torch.testing.assert_close(batch.pixels[1:2], alone.pixels)

    @pytest.mark.parametrize("method", LINEAR)
    @pytest.mark.parametrize("pool", ["mean", "class", "attention"])
    def test_a_difference_is_explained_by_the_difference(self, method, pool):
        model, pixels = exact_model(pool=pool), pictures(tiny_config()).double()
        one, other, first, back = (attribute(method, model, pixels, target).tokens for target in (3, 1, (3, 1), (1, 3)))
        torch.testing.assert_close(first, -back)
        torch.testing.assert_close(first, one - other)

    @pytest.mark.parametrize("method", [*LINEAR, "gradient_attention", "grad_cam"])
    def test_no_target_is_each_pictures_largest_output(self, method):
        model = exact_model("t2t", pool="class")
        pixels = pictures(model.config, count=6).double()
        largest = model(pixels).argmax(1).tolist()
        assert len(set(largest)) > 1
        found = attribute(method, model, pixels).tokens
        for picture, output in enumerate(largest):
            alone = attribute(method, model, pixels[picture : picture + 1], output).tokens
            torch.testing.assert_close(found[picture : picture + 1], alone)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("target", [5, -1, (0, 7), (0,), (0, 1, 2)])
    def test_a_wrong_target_is_named_with_those_there_are(self, method, target):
        model = tiny_model(tiny_config())
        with pytest.raises(InputError, match=r"target is .*0 to 4"):
            attribute(method, model, pictures(model.config), target)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("attention", {"layer": 2}, "expected 0 to 1"),
        ("attention", {"head": 2}, "head is 2: expected 0 to 1"),
        ("attention", {"head": -1}, "head is -1: expected 0 to 1"),
        ("grad_cam", {"layer": -3}, "expected 0 to 1"),
        ("grad_cam", {"place": "between"}, "expected before or after"),
        ("integrated_gradients", {"steps": 2}, "steps is 2: expected 3 to 256"),
        ("integrated_gradients", {"steps": 9, "most": 8}, "steps is 9: expected 3 to 8"),
        ("integrated_gradients", {"baseline": "black"}, "fill is 'black': expected mean, blur or pixels"),
        ("integrated_gradients", {"baseline": torch.zeros(3, 12, 12)}, r"\(3, 12, 12\): expected \(2, 3, 12, 40\)"),
        ("occlusion", {"window": 4}, "window is 4: expected 1 to 3, for a grid of 3×5"),
        ("occlusion", {"fill": "black"}, "expected mean, blur or pixels"),
        ("shapley", {"orders": 0}, "orders is 0 .*expected 1 or more"),
    ],
)
def test_an_option_that_does_not_fit_is_named_with_what_does(method, options, message):
    model = tiny_model(tiny_config())
    with pytest.raises(InputError, match=message):
        METHODS[method](model, pictures(model.config), **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ("a.jpg", "pixels are a str: expected a tensor of normalised pixels"),
        (torch.zeros(3, 12, 40), r"\(3, 12, 40\): expected \(batch, 3, height, width\)"),
        (torch.zeros(2, 3, 12, 40, dtype=torch.uint8), "pixels are uint8: expected float32, normalised"),
        (torch.zeros(2, 3, 12, 40, device="meta"), "pixels are on meta: expected cpu, where the model is"),
    ],
    ids=["path", "one picture", "bytes", "device"],
)
def test_what_are_no_normalised_pixels_is_said(method, pixels, message):
    with pytest.raises(InputError, match=message):
        METHODS[method](tiny_model(tiny_config()), pixels)


def test_a_transition_between_dense_blocks_has_no_attention_to_show():
    model = tiny_model(tiny_config(ablation="dense", heads=1))
    with pytest.raises(InputError, match="layer is 3: that block has no attention"):
        attribution.attention(model, pictures(model.config), layer=3)


SPLITS = [((7, 3, 3), (40, 56)), ((31, 3, 3), (70, 150)), ((3, 3), (13, 18)), ((7, 3), (30, 29)), ((4, 2), (11, 20))]


class TestPixels:
    @pytest.mark.parametrize(("kernels", "size"), SPLITS)
    def test_mass_is_that_of_the_pixels_and_of_the_padding(self, kernels, size):
        config = tiny_config("t2t", kernels=kernels, image_size=size)
        tokens = torch.rand(3, *config.grid(*size), generator=torch.Generator().manual_seed(0)).double()
        pixels, padding = to_pixels(config, tokens, size)
        total = tokens.sum((1, 2))
        assert (padding > 0.01).all()
        torch.testing.assert_close(pixels.sum((1, 2)) + padding * total, total, rtol=1e-12, atol=0)

    @pytest.mark.parametrize(("kernels", "size"), [split for split in SPLITS if math.prod(split[1]) < 1000])
    def test_each_token_is_spread_over_the_places_of_its_windows_evenly(self, kernels, size):
        config = tiny_config("t2t", kernels=kernels)
        gh, gw = config.grid(*size)
        each = torch.eye(gh * gw, dtype=torch.float64).unflatten(1, (gh, gw))  # a map a token, with that alone
        pixels, padding = to_pixels(config, each, size)
        expected = to_picture(config, each.flatten(1), size, [])
        torch.testing.assert_close(pixels.flatten(1), expected[:, :-1])
        torch.testing.assert_close(padding, expected[:, -1])

    def test_a_token_is_spread_over_just_the_pixels_that_it_sees(self):
        model = exact_model("convolution", kernels=(7, 3), image_size=(31, 45))
        pixels = torch.zeros(1, 3, 31, 45).double().requires_grad_()
        tokens, (gh, gw) = model.tokenizer(pixels)
        for token in (0, 7, gh * gw - 1):
            seen = torch.autograd.grad(tokens[0, token].sum(), pixels, retain_graph=True)[0][0, 0] != 0
            one = torch.zeros(1, gh * gw)
            one[0, token] = 1
            assert torch.equal(to_pixels(model.config, one.unflatten(1, (gh, gw)), (31, 45))[0][0] > 0, seen)

    def test_the_corner_of_a_soft_split_lies_on_padding_by_five_ninths(self):
        config = tiny_config("t2t", kernels=(3,))
        tokens = torch.zeros(1, 6, 10)
        tokens[0, 0, 0] = -9
        pixels, padding = to_pixels(config, tokens, (12, 20))
        assert padding.item() == pytest.approx(5 / 9)
        torch.testing.assert_close(pixels[0, :3, :3], torch.tensor([[-1.0, -1, 0], [-1, -1, 0], [0, 0, 0]]))

    @pytest.mark.parametrize("kind", ["patch", "stem"])
    def test_patches_and_stems_spread_over_cells_that_gather_it_again(self, kind):
        config = tiny_config(kind)
        tokens = torch.randn(2, 3, 5).double()
        pixels, padding = to_pixels(config, tokens, config.image_size)
        assert padding.eq(0).all()
        height, width = config.stride
        corner = pixels[:, :height, :width]
        torch.testing.assert_close(corner, (tokens[:, :1, :1] / (height * width)).expand_as(corner))
        torch.testing.assert_close(to_cells(pixels, (3, 5)), tokens)

    def test_a_last_cell_takes_what_is_left_of_the_picture(self):
        config = tiny_config("t2t", kernels=(7,))
        grid = config.grid(18, 23)
        cells = cell_numbers(grid, (18, 23), config.stride)
        assert grid == (4, 6)
        assert cells[:, 0].div(6, rounding_mode="floor").bincount().tolist() == [4, 4, 4, 6]
        assert cells[0].bincount().tolist() == [4, 4, 4, 4, 4, 3]
        assert cell_numbers((2, 2), (4, 6)).tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[2, 2, 2, 3, 3, 3]] * 2

    def test_a_map_of_another_grid_is_refused(self):
        with pytest.raises(InputError, match=r"expected \(batch, 3, 5\), the tokens of a picture of 12×40"):
            to_pixels(tiny_config(), torch.zeros(2, 5, 3), (12, 40))


class TestFilled:
    def test_a_blur_keeps_an_even_picture_and_takes_the_detail_of_another(self):
        even, noise = torch.full((1, 3, 40, 56), 0.7), torch.randn(1, 3, 40, 56)
        torch.testing.assert_close(filled(even, "blur", (5, 7)), even)
        assert filled(noise, "blur", (5, 7)).std() < 0.2

    def test_the_mean_colour_is_zero(self):
        assert filled(torch.ones(1, 3, 4, 4), "mean", (1, 1)).eq(0).all()
