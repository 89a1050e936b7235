"""Token merging: which tokens merge, what becomes of them, and where it cannot be."""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny_models import PREFIXES, pictures, tiny_config, tiny_model
from torch import Tensor

from vitreous.errors import InputError
from vitreous.insight.measures import token_features
from vitreous.insight.trace import trace
from vitreous.model import kernels
from vitreous.model.config import ModelConfig
from vitreous.model.encoder import Relation
from vitreous.model.kernels import attend
from vitreous.model.merging import Merging, Pairs, log_sizes, match, tokens_left
from vitreous.model.vit import VisionTransformer, count_macs

FAMILIES: dict[str, dict[str, Any]] = {
    **PREFIXES,
    "norm after the mean": {"norm_after_pool": True},
    "value skip, query and key norm": {"value_skip": True, "qk_norm": True},
    "layer scale, swiglu, rms norm": {"layer_scale": 0.5, "mlp": "swiglu", "norm": "rms", "registers": 1},
    "learned": {"position": "learned"},
    "learned at every block": {"position": "learned", "position_at": "every", "pool": "class"},
    "sincos2d shared": {"position_at": "shared", "registers": 1},
    "conditional": {"conditional": True, "pool": "attention"},
    "t2t": {"kind": "t2t", "pool": "class"},
    "stem": {"kind": "stem"},
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def merging_model(merge: int = 3, **fields: Any) -> VisionTransformer:
    return tiny_model(tiny_config(merge=merge, **fields))


def merged(tokens: Tensor, sizes: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    merging = Merging(tiny_config(merge=1))
    merging.sizes, merging.pairs = sizes, pairs
    tokens = merging.merge(tokens)
    assert merging.sizes is not None
    return tokens, merging.sizes


def sizes_at_the_end(model: VisionTransformer, pixels: Tensor) -> Tensor:
    """(B, T, 1), as pooling is told of them."""
    seen: list[Tensor] = []
    hook = model.pool.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    model(pixels)
    hook.remove()
    return seen[0]


def merged_by_hand(
    tokens: list[Tensor], sizes: list[float], keys: list[list[float]], most: int, prefix: int
) -> tuple[list[Tensor], list[float], list[list[int]]]:
    """One picture's tokens, their sizes and which of the tokens each is made of, one pair at a time."""

    def cosine(a: int, b: int) -> float:
        product = sum(x * y for x, y in zip(keys[a], keys[b], strict=True))
        return product / math.hypot(*keys[a]) / math.hypot(*keys[b])

    first, second = list(range(prefix, len(tokens), 2)), list(range(prefix + 1, len(tokens), 2))
    made = {i: [i] for i in [*range(prefix), *(second or first)]}
    if second:
        partners = {a: max(second, key=lambda b, a=a: cosine(a, b)) for a in first}
        order = sorted(partners, key=lambda a: -cosine(a, partners[a]))
        for rank, a in enumerate(order):
            if rank < min(most, len(second)):
                made[partners[a]].append(a)
            else:
                made[a] = [a]
    counts = [sum(sizes[i] for i in some) for some in made.values()]
    means = [sum((tokens[i] * sizes[i] for i in some), torch.zeros(())) for some in made.values()]
    return [mean / count for mean, count in zip(means, counts, strict=True)], counts, list(made.values())


def encoded_by_hand(model: VisionTransformer, pixels: Tensor) -> list[tuple[list[Tensor], list[float]]]:
    """Each picture's tokens as they leave the last block, and their sizes; one query and one pair at a time."""
    config, found = model.config, []
    whole, grid = model.tokenizer(pixels)
    if model.prefix is not None:
        whole = torch.cat((model.prefix.expand(len(pixels), -1, -1), whole), 1)
    block: Any
    for picture in whole:
        tokens, sizes, members = list(picture), [1.0] * len(picture), [[i] for i in range(len(picture))]
        for layer, block in enumerate(model.blocks):
            place = {i: token for token, some in zip(tokens, members, strict=True) for i in some}
            placed = model.position(torch.stack([place[i] for i in range(len(picture))])[None], grid, layer)[0]
            tokens = [placed[some].mean(0) for some in members]
            attention = block.attention
            q, k, v = (part[0] for part in attention.split(block.attention_norm(torch.stack(tokens))[None], Relation()))
            joined = []
            for n in range(len(tokens)):
                heads = []
                for h in range(config.heads):
                    shares = [
                        size * math.exp(float(q[h, n] @ key) * attention.scale)
                        for size, key in zip(sizes, k[h], strict=True)
                    ]
                    heads.append(sum(s / sum(shares) * value for s, value in zip(shares, v[h], strict=True)))
                joined.append(torch.cat(heads))
            tokens = [t + attention.projection(j) for t, j in zip(tokens, joined, strict=True)]
            keys = k.mean(0).tolist()
            tokens, sizes, made = merged_by_hand(tokens, sizes, keys, config.merge, config.prefix)
            members = [[i for old in some for i in members[old]] for some in made]
            tokens = [t + block.mlp(block.mlp_norm(t[None]))[0] for t in tokens]
        found.append((tokens, sizes))
    return found


class TestPairs:
    @pytest.mark.parametrize("prefix", [0, 1, 3])
    @pytest.mark.parametrize(("tokens", "most"), [(1, 4), (2, 1), (5, 1), (8, 3), (9, 4), (9, 100), (10, 5)])
    def test_are_those_of_a_loop(self, tokens, most, prefix):
        keys, x = drawn(3, 2, prefix + tokens, 4), drawn(3, prefix + tokens, 6, seed=1)
        sizes = torch.randint(1, 5, (3, prefix + tokens, 1), generator=torch.Generator().manual_seed(2)).float()
        pairs = match(keys, most, prefix)
        assert (pairs is None) == (tokens == 1)
        got, total = (x, sizes) if pairs is None else merged(x, sizes, pairs)
        for b in range(3):
            means = keys[b].mean(0).tolist()
            expected, counts, _ = merged_by_hand(list(x[b]), sizes[b, :, 0].tolist(), means, most, prefix)
            torch.testing.assert_close(got[b], torch.stack(expected), rtol=0, atol=1e-5)
            assert total[b, :, 0].tolist() == counts

    def test_of_a_worked_example(self):
        """Place 2 is as place 3 by the heads' means, and 0 nearly as 1; by either head alone 2 would go to 1."""
        means = torch.tensor([[1, 0.6], [1, 0.5], [0, 1], [0, 1]])
        apart = torch.tensor([[0.0, 8], [8, 0], [8, 0], [0, 8]])
        pairs = match(torch.stack((means + apart, means - apart))[None], 1, 0)
        assert pairs is not None
        tokens, sizes = torch.tensor([[[10.0], [20], [30], [60]]]), torch.tensor([[[1.0], [1], [2], [1]]])
        got, total = merged(tokens, sizes, pairs)
        assert got.flatten().tolist() == [20, 40, 10]
        assert total.flatten().tolist() == [1, 3, 1]

    def test_of_equal_ones_the_earliest_is_found(self):
        pairs = match(torch.ones(2, 2, 41, 4), 6, 1)
        assert pairs is not None
        assert pairs.stay.gather(1, pairs.into).tolist() == [[2] * 6] * 2

    def test_prefix_tokens_stay_even_where_they_are_the_most_similar(self):
        keys, x = drawn(2, 2, 3 + 8, 4), drawn(2, 3 + 8, 6)
        keys[:, :, :3] = keys[:, :, 3:6]
        pairs = match(keys, 4, 3)
        assert pairs is not None
        assert pairs.stay[:, :3].tolist() == [[0, 1, 2]] * 2
        assert pairs.go.min() >= 3
        assert pairs.into.min() >= 3
        got, total = merged(x, torch.ones(2, 11, 1), pairs)
        assert torch.equal(got[:, :3], x[:, :3])
        assert torch.equal(total[:, :3], torch.ones(2, 3, 1))

    def test_are_chosen_in_full_precision_under_autocast(self):
        """The cosines of 0 to 1 and of 2 to 3 differ by less than bf16 can tell."""
        keys = torch.tensor([[1.0, 0], [1, 0.012], [0, 1], [0.01, 1]])[None, None]
        for swapped in (False, True):
            with torch.autocast("cpu", torch.bfloat16):
                pairs = match(keys.roll(2, 2) if swapped else keys, 1, 0)
            assert pairs is not None
            assert pairs.go.tolist() == [[0 if swapped else 2]]


class TestProportionalAttention:
    @pytest.mark.parametrize("kernel", ["plain", "fused"])
    @pytest.mark.parametrize("bf16", [False, True])
    def test_a_token_of_size_n_counts_as_n_equal_ones(self, kernel, bf16, monkeypatch):
        monkeypatch.setattr(kernels, "attention_kernel", lambda q, bias: kernel)
        q, k, v = (drawn(2, 3, 5, 8, seed=seed).to(torch.bfloat16 if bf16 else torch.float32) for seed in range(3))
        counts = torch.tensor([1, 4, 1, 2, 7])
        bias = log_sizes(counts[None, :, None].float().expand(2, -1, -1))
        many = [x.repeat_interleave(counts, 2).float() for x in (k, v)]
        expected = (q.float() @ many[0].mT * 0.3).softmax(-1) @ many[1]
        for answering in (False, True):
            with torch.inference_mode(answering):
                got = attend(q, k, v, 0.3, bias)
            torch.testing.assert_close(got.float(), expected, rtol=0, atol=0.03 if bf16 else 1e-5)

    @pytest.mark.parametrize(("scale", "size"), [(30.0, 1.0), (0.3, 1e38)])
    def test_large_scores_and_sizes_are_taken_in_bf16(self, scale, size):
        q, k, v = (drawn(2, 3, 9, 8, seed=seed).bfloat16() for seed in range(3))
        with torch.inference_mode():
            got = attend(q, k, v, scale, log_sizes(torch.full((2, 9, 1), size)))
        expected = (q.float() * scale @ k.float().mT).softmax(-1) @ v.float()
        assert (got - expected).abs().median() < 0.03
        assert (got.abs() <= 1.01 * v.abs().amax(2, keepdim=True)).all()

    @pytest.mark.parametrize("pool", ["mean", "attention"])
    def test_pooling_counts_a_token_of_size_n_as_n_equal_ones(self, pool):
        model = merging_model(pool=pool, registers=2)
        tokens, counts = drawn(3, 2 + 5, 16), torch.tensor([1, 1, 1, 4, 1, 2, 7])
        sizes = counts[None, :, None].float().expand(3, -1, -1)
        many = tokens.repeat_interleave(counts, 1)
        torch.testing.assert_close(model.pool(tokens, sizes), model.pool(many), rtol=0, atol=1e-5)
        assert (model.pool(tokens) - model.pool(many)).abs().max() > 1e-2


class TestModel:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"pool": "class", "registers": 1},
            {"pool": "attention"},
            {"merge": 7},
            {"conditional": True, "registers": 1, "depth": 3},
            {"position": "learned", "position_at": "every", "merge": 7, "depth": 3},
        ],
    )
    def test_equals_a_loop_over_pictures_queries_and_pairs(self, fields):
        model = merging_model(**fields)
        pixels = pictures(model.config)
        with torch.no_grad():
            features, prefix = model.features(pixels), model.config.prefix
            for b, (tokens, sizes) in enumerate(encoded_by_hand(model, pixels)):
                normed = model.norm(torch.stack(tokens))
                own = torch.tensor(sizes[prefix:])
                if model.config.class_token:
                    expected = normed[0]
                elif model.pool.attention is None:
                    expected = (normed[prefix:] * own[:, None]).sum(0) / own.sum()
                else:
                    expected = model.pool(normed.repeat_interleave(torch.tensor(sizes).long(), 0)[None])[0]
                torch.testing.assert_close(features[b], expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("most", [1, 3, 1000])
    def test_sizes_sum_to_the_picture_s_tokens_on_every_grid(self, family, most):
        model = merging_model(most, depth=3, **FAMILIES[family])
        for size in (model.config.image_size, (24, 16), (8, 40)):
            pixels = pictures(model.config, size)
            tokens, left = math.prod(model.config.grid(*size)), math.prod(model.config.grid(*size))
            for _ in range(3):
                left -= min(most, left // 2)
            sizes, prefix = sizes_at_the_end(model, pixels), model.config.prefix
            assert model.encode(pixels).shape == (2, prefix + left, 16)
            assert sizes.shape == (2, prefix + left, 1)
            assert sizes[:, prefix:].sum(1).tolist() == [[tokens]] * 2
            assert torch.equal(sizes[:, :prefix], torch.ones(2, prefix, 1))
            assert sizes.dtype == torch.float32

    def test_at_most_half_of_the_tokens_merge_in_a_block_and_one_is_left(self):
        for depth, left in enumerate((8, 4, 2, 1, 1), 1):
            model = merging_model(1000, depth=depth)
            assert model.encode(pictures(model.config)).shape[1] == left

    def test_a_picture_of_one_token_answers_as_without(self):
        model = merging_model()
        plain = tiny_model(dataclasses.replace(model.config, merge=0))
        pixels = pictures(model.config, (4, 8))
        assert torch.equal(model(pixels), plain(pixels))

    def test_without_merging_none_of_it_is_run(self, monkeypatch):
        def refuse(self, config):
            raise AssertionError("nothing merges")

        monkeypatch.setattr(Merging, "__init__", refuse)
        config = tiny_config()
        assert tiny_model(config)(pictures(config)).shape == (2, 5)
        with pytest.raises(AssertionError, match="nothing merges"):
            merging_model()(pictures(config))

    @pytest.mark.parametrize("fields", [{}, {"pool": "class", "registers": 2}, {"pool": "attention"}])
    @pytest.mark.parametrize("bf16", [False, True])
    def test_a_picture_of_few_different_patches_answers_as_without(self, fields, bf16):
        """Merged tokens are equal then, and attention and pooling count them as often as they were there."""
        config = tiny_config(position="none", image_size=(16, 32), merge=3, **fields)  # 4 × 4 tokens
        model, plain = tiny_model(config), tiny_model(dataclasses.replace(config, merge=0))
        kinds = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3])
        patches = drawn(2, 4, 3, 4, 8)[:, kinds].unflatten(1, (4, 4))  # (B, gh, gw, C, 4, 8)
        pixels = patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        assert pixels.shape == (2, 3, 16, 32)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            difference = (model(pixels) - plain(pixels)).abs().max()
            assert difference <= (0.05 if bf16 else 1e-5) * plain(pixels).abs().max()
            assert len(sizes_at_the_end(model, pixels).unique()) > 1

    def test_a_picture_answers_the_same_alone_and_in_a_batch(self):
        model = merging_model(pool="class")
        pixels = pictures(model.config, count=4)
        torch.testing.assert_close(model(pixels)[2], model(pixels[2:3])[0], rtol=0, atol=1e-5)

    def test_threads_do_not_see_each_other_s_tokens(self):
        model = merging_model(depth=4)
        batches = [pictures(model.config, count=1 + i % 3, seed=i) for i in range(60)]
        with torch.inference_mode():
            alone = [model(pixels) for pixels in batches]

        def answer(pixels: Tensor) -> Tensor:
            with torch.inference_mode():
                return model(pixels)

        with ThreadPoolExecutor(4) as pool:
            for one, other in zip(alone, pool.map(answer, batches), strict=True):
                torch.testing.assert_close(other, one, rtol=0, atol=1e-5)

    def test_fields_of_older_configs_mean_that_nothing_merges(self):
        config = tiny_config(merge=5)
        values = config.to_json()
        assert ModelConfig.from_json(values) == config
        del values["merge"]
        assert ModelConfig.from_json(values).merge == 0

    def test_multiply_accumulates_fall_block_by_block(self):
        config = tiny_config(merge=3, depth=3)
        work = 15 * 3 * 32 * 16 + 16 * 5
        for n, first in ((15, 8), (12, 6), (9, 5)):
            work += n * 16 * 48 + 2 * n * n * 16 + n * 16 * 16  # attention
            work += first * (n - first) * 8  # similarities
            work += 2 * (n - 3) * 16 * 64  # the MLP, of those that are left
        assert count_macs(config, *config.image_size) == work


class TestPrecision:
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("pool", ["mean", "class", "attention"])
    def test_bf16_autocast_answers_nearly_the_same(self, pool, training):
        model = merging_model(pool=pool)
        pixels = pictures(model.config, count=8)
        with torch.inference_mode(not training):
            exact = model(pixels)
            with torch.autocast("cpu", torch.bfloat16):
                reduced, sizes = model(pixels), sizes_at_the_end(model, pixels)
        assert sizes.dtype == torch.float32
        assert sizes[:, model.config.prefix :].sum(1).tolist() == [[15]] * 8
        apart = (reduced - exact).abs().amax(1) / exact.abs().max()
        assert apart.median() < 0.05  # a picture in which another pair was chosen may differ by more

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("pool", ["mean", "attention"])
    def test_a_model_of_another_type_answers_in_it(self, pool, dtype):
        model = merging_model(pool=pool)
        pixels = pictures(model.config)
        with torch.inference_mode():
            exact = model(pixels)
            found = model.to(dtype)(pixels.to(dtype))
        assert found.dtype == dtype
        assert (found - exact).abs().median() <= (0.1 if dtype == torch.bfloat16 else 1e-5) * exact.abs().max()


class TestTraining:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_weight_learns(self, family):
        model = merging_model(**FAMILIES[family]).train()
        pixels = pictures(model.config).requires_grad_()
        model(pixels).square().sum().backward()
        still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert not still
        assert pixels.grad is not None
        assert (pixels.grad.abs().amax((0, 2, 3)) > 0).all()

    def test_gradients_are_those_of_finite_differences(self):
        model = merging_model().double()
        pixels = pictures(model.config, (8, 24), count=1).double()
        step = drawn(*pixels.shape, seed=5).double() * 1e-6
        (gradient,) = torch.autograd.grad(model(pixels.requires_grad_()).sum(), pixels)
        with torch.no_grad():
            change = (model(pixels + step) - model(pixels - step)).sum() / 2
        torch.testing.assert_close((gradient * step).sum(), change, rtol=1e-5, atol=0)


class TestExport:
    @pytest.mark.parametrize(
        ("family", "most"),
        [
            ("mean", 3),
            ("class", 3),
            ("attention, registers", 3),
            ("value skip, query and key norm", 3),
            ("t2t", 1000),
        ],
    )
    def test_takes_any_batch(self, family, most):
        model = merging_model(most, **FAMILIES[family])
        batch = torch.export.Dim("batch", min=1, max=64)
        asked = {"pixels": {0: batch}}
        exported = torch.export.export(model, (pictures(model.config),), dynamic_shapes=asked).module()
        for count in (1, 2, 7):
            pixels = pictures(model.config, count=count)
            torch.testing.assert_close(exported(pixels), model(pixels), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("bf16", [False, True])
    def test_a_compiled_model_is_one_graph_and_answers_the_same(self, bf16):
        model = merging_model(pool="class", conditional=True)
        pixels = pictures(model.config)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = torch.compile(model, backend="eager", fullgraph=True)(pixels)
            torch.testing.assert_close(found, model(pixels), rtol=0, atol=0.1 if bf16 else 1e-6)


@pytest.mark.parametrize(("pool", "merge"), [("mean", 1), ("mean", 3), ("class", 5), ("class", 1_000)])
def test_how_many_tokens_are_left_is_known_beforehand(pool, merge):
    model = merging_model(merge, pool=pool)
    pixels = pictures(model.config)
    left = model.encode(pixels).shape[1] - model.config.prefix
    assert tokens_left(model.config, *pixels.shape[2:]) == left < math.prod(model.config.grid(*pixels.shape[2:]))


class TestRefused:
    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"position": "rope2d"}, "merge is 3: rope2d positions work inside attention"),
            ({"position": "relative", "position_at": "shared"}, "merge is 3: relative positions work inside attention"),
            ({"ablation": "se"}, "the se blocks know no merge"),
            ({"ablation": "ghost"}, "the ghost blocks know no merge"),
            ({"ablation": "dense"}, "the dense blocks know no merge"),
        ],
    )
    def test_models_whose_attention_or_blocks_know_no_merging_are(self, fields, words):
        tiny_config(**fields)
        with pytest.raises(InputError) as fault:
            tiny_config(merge=3, **fields)
        assert words in str(fault.value)

    @pytest.mark.parametrize("most", [-1, 0.5, "8"])
    def test_what_is_no_number_of_tokens_is(self, most):
        with pytest.raises(InputError, match=rf"merge is {most!r}: expected 0 or more"):
            tiny_config(merge=most)

    @pytest.mark.parametrize("look", [trace, token_features])
    def test_looking_inside_is(self, look):
        model = merging_model()
        with pytest.raises(InputError, match=r"merge is 3.* with merge 0"):
            look(model, pictures(model.config))
