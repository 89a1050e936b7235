"""vitreous.insight.figures: numbers of planted models against what they must be, and what is drawn of them."""

import dataclasses
import io
import math
import re
import sys
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_models import pictures, tiny_config, tiny_model

from vitreous import metrics
from vitreous.data.targets import Task
from vitreous.errors import InputError
from vitreous.insight import figures, measures, softsplit
from vitreous.insight.ledger import lens
from vitreous.insight.trace import trace
from vitreous.model.position import axis_angles

GRID = (3, 5)  # of the tiny patch model
VECTORS = ("learned", "learned2d", "sinusoid", "sincos2d", "rope2d")


def tiny(kind="patch", **fields) -> Any:
    return tiny_model(tiny_config(kind, **fields))


def read(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def near(pixels, colour, tolerance=12):
    """Where pixels (H, W, 3) have a colour, given as #rrggbb or as three numbers."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)] if isinstance(colour, str) else colour
    return (np.abs(pixels - np.array(wanted)) <= tolerance).all(axis=2)


def blind(model):
    """Queries and keys of 0 in every block: attention is alike to all, or what a bias makes of it."""
    for block in model.blocks:
        block.attention.qkv.weight.data[: 2 * model.config.width] = 0
        if block.attention.qkv.bias is not None:
            block.attention.qkv.bias.data[: 2 * model.config.width] = 0
    return model


def pointing(offset, strength=1e4, **fields):
    """A model whose every token attends to the one so many rows and columns on, where there is one, else to all."""
    model = blind(tiny(position="relative", position_at="shared", **fields))
    bias = model.position.tables[0]
    table = bias.table.data.zero_().unflatten(0, bias.offsets)  # its offsets are the query's from the key
    table[GRID[0] - 1 - offset[0], GRID[1] - 1 - offset[1]] = strength
    return model


def distances(model):
    """(N, N) in pixels, by brute force."""
    (gh, gw), (ph, pw) = GRID, model.config.stride
    places = [(row * ph, column * pw) for row in range(gh) for column in range(gw)]
    return np.array([[math.dist(a, b) for b in places] for a in places])


# Position embeddings


@pytest.mark.parametrize("position", VECTORS)
def test_a_place_is_most_like_itself(position):
    maps = measures.position_similarity(tiny(position=position))
    assert maps.shape == (15, *GRID)
    own = maps.reshape(15, 15)
    assert np.diag(own) == pytest.approx(np.ones(15))
    assert (own - 2 * np.eye(15)).max() < 1 - 1e-4
    assert own == pytest.approx(own.T)


def test_sincos2d_grows_less_alike_with_the_distance():
    config = tiny_config(patch_size=(4, 4), image_size=(16, 32), width=64)
    maps = measures.position_similarity(tiny_model(config), places=[0, 7])
    for line in (maps[0, 0, :4], maps[0, :4, 0], maps[1, 0, :3:-1]):
        assert (np.diff(line) < -0.01).all()


def test_rope2d_is_the_mean_cosine_of_the_angles_between_rotations():
    model = tiny(position="rope2d", width=32)
    angles = [axis_angles(side, side, 4, model.config.position_temperature).numpy() for side in GRID]
    row, column = 1, 3
    wanted = [
        [
            np.cos(np.concatenate((angles[0][y] - angles[0][row], angles[1][x] - angles[1][column]))).mean()
            for x in range(5)
        ]
        for y in range(3)
    ]
    assert measures.position_similarity(model)[row * 5 + column] == pytest.approx(np.array(wanted), abs=1e-6)


def test_learned_tables_of_other_grids_and_blocks_are_told_apart():
    config = tiny_config(position="learned", position_at="every", pool="class", class_position=True, registers=1)
    model = tiny_model(config)
    table: Any = model.position.tables[1].table.data
    table[1:] = torch.eye(16)[:15]  # the class token's comes first
    assert measures.position_similarity(model, layer=1).reshape(15, 15) == pytest.approx(np.eye(15))
    assert np.abs(measures.position_similarity(model, layer=0).reshape(15, 15) - np.eye(15)).max() > 0.1
    assert measures.position_similarity(model, (6, 4), layer=1).shape == (24, 6, 4)


def test_places_are_those_of_all_maps():
    model = tiny()
    assert measures.position_similarity(model, places=[14, 2]) == pytest.approx(
        measures.position_similarity(model)[[14, 2]]
    )


@pytest.mark.parametrize("grid", [GRID, (4, 3)])
def test_the_bias_of_an_offset_is_what_attention_adds(grid):
    model = tiny(position="relative", position_at="shared", pool="class")
    bias = measures.position_bias(model, grid)
    added = model.position.tables[0](grid)[:, 1:, 1:].detach().numpy()
    (gh, gw), N = grid, math.prod(grid)
    assert bias.shape == (2, 2 * gh - 1, 2 * gw - 1)
    for query in range(N):
        for key in range(N):
            down, right = key // gw - query // gw, key % gw - query % gw
            assert bias[:, gh - 1 + down, gw - 1 + right] == pytest.approx(added[:, query, key], abs=1e-6)


@pytest.mark.parametrize("ask", [measures.position_similarity, measures.position_bias])
def test_a_model_without_positions_has_no_picture_of_them(ask):
    with pytest.raises(InputError, match="position none"):
        ask(tiny(position="none"))


# Convolutions between blocks


def convolved(**fields):
    model = tiny(position="none", conditional=True, depth=1, patch_size=(4, 4), image_size=(24, 24), **fields)
    return model, model.position.convolutions[0].convolution


def test_a_bias_alone_is_the_same_everywhere_and_as_large_as_it_is():
    model, convolution = convolved(registers=1)
    convolution.weight.data.zero_()
    everywhere, place, picture, size = measures.convolution_parts(model, pictures(model.config))[0]
    assert (everywhere, place, picture) == pytest.approx((1, 0, 0), abs=1e-6)
    tokens = model.tokenizer(pictures(model.config))[0]
    wanted = convolution.bias.square().mean().sqrt() / tokens.square().mean().sqrt()
    assert size == pytest.approx(wanted.item(), rel=1e-4)


def test_equal_pictures_differ_by_place_alone_and_noise_by_picture_alone():
    model, convolution = convolved()
    convolution.bias.data.zero_()
    alike = pictures(model.config, count=1).expand(3, -1, -1, -1)
    parts = measures.convolution_parts(model, alike)[0]
    assert parts[:3].sum() == pytest.approx(1)
    assert parts[2] == pytest.approx(0, abs=1e-6)
    assert parts[1] > 0.5
    model.tokenizer.projection.bias.data.zero_()
    shares = np.array([measures.convolution_parts(model, pictures(model.config, seed=n))[0] for n in range(12)])
    assert shares[:, 2].mean() == pytest.approx(1, abs=0.05)  # though the means of two pictures differ by chance
    assert shares[:, 1].max() < 0.15


def test_parts_do_not_depend_on_how_many_pictures_go_through_at_once(monkeypatch):
    model, _ = convolved()
    pixels = pictures(model.config, count=5) + pictures(model.config, count=1, seed=3)
    whole = measures.convolution_parts(model, pixels)
    monkeypatch.setattr(measures, "AT_ONCE", 2)
    assert measures.convolution_parts(model, pixels) == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert whole[0, 1] > 0.1
    assert whole[0, 2] > 0.1


# Filters


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("patch", (16, 3, 4, 8)),
        ("stem", (6, 3, 3, 3)),
        ("t2t", (8, 3, 3, 3)),
        ("performer", (8, 3, 3, 3)),
        ("convolution", (8, 3, 3, 3)),
    ],
)
def test_filters_have_the_shape_of_the_first_layer(kind, shape):
    model = tiny(kind)
    filters = measures.first_filters(model)
    assert filters.shape == shape


def test_filters_of_a_soft_split_are_what_its_values_see_of_a_window():
    model = tiny("t2t")
    first = model.tokenizer.transformers[0]
    windows = torch.randn(5, 27, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        _, _, values = first.attention.qkv(torch.stack((first.attention_norm(windows), 0 * windows))).chunk(3, -1)
        offset = first.attention.qkv(first.attention_norm.bias).chunk(3)[2]
    seen = F.layer_norm(windows, (27,), eps=model.config.norm_eps).numpy()
    filters = measures.first_filters(model).reshape(8, 27)
    assert filters.sum(1) == pytest.approx(0, abs=1e-6)  # what is the same in all of a window is not seen
    assert seen @ filters.T == pytest.approx((values[0] - offset).numpy(), abs=1e-4)


def test_filters_of_a_lone_soft_split_are_those_of_the_projection():
    model = tiny("t2t", kernels=(7,), image_size=(20, 24))
    filters = measures.first_filters(model)
    assert filters.shape == (16, 3, 7, 7)
    assert filters.reshape(16, -1) == pytest.approx(model.tokenizer.projection.weight.detach().numpy())


@pytest.mark.parametrize("shape", [(20, 3, 2, 2), (6, 3, 4, 8), (9, 1, 3, 3)])
def test_filters_are_sums_of_their_principal_components(shape):
    filters = np.random.default_rng(0).normal(size=shape)
    components, shares = measures.principal_filters(filters)
    flat, basis = filters.reshape(len(filters), -1), components.reshape(len(components), -1)
    assert basis @ basis.T == pytest.approx(np.eye(len(basis)), abs=1e-9)
    assert flat @ basis.T @ basis == pytest.approx(flat)
    assert shares.sum() == pytest.approx(1)
    assert (np.diff(shares) <= 0).all()
    assert (np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], 1) > 0).all()


def test_filters_that_are_all_one_pattern_have_one_component():
    pattern = np.array([[[[3.0, 0], [0, 4]]]]) / 5
    components, shares = measures.principal_filters(np.array([1, -2, 0.5, 3, 1]).reshape(5, 1, 1, 1) * pattern)
    assert components[:1] == pytest.approx(pattern)
    assert shares == pytest.approx([1, 0, 0, 0])
    assert not components[1:].any()


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_filters_largest_weight_is_an_end_of_the_scale_and_none_the_middle(channels):
    filters = np.random.default_rng(0).normal(size=(6, channels, 3, 4))
    filters[:, :, 0] = filters[5] = 0
    colours = figures.filter_colours(filters)
    assert colours.shape == (6, 3, 4, 3)
    assert colours[:, 0] == pytest.approx(0.5)
    assert colours[5] == pytest.approx(0.5)
    assert np.abs(colours[:5] - 0.5).max((1, 2, 3)) == pytest.approx(0.5)
    if channels == 3:
        assert colours[0, 1, 2] == pytest.approx(0.5 + 0.5 * filters[0, :, 1, 2] / np.abs(filters[0]).max())
    assert (colours[..., :1] == colours).all() == (channels == 1)
    assert (colours[..., 2] == 0.5).all() == (channels == 2)


# Attention distance


@pytest.mark.parametrize("fields", [{}, {"pool": "class", "registers": 2}], ids=["no prefix", "prefix"])
def test_heads_that_attend_to_all_alike_look_as_far_as_tokens_lie_apart(fields):
    model = blind(tiny(**fields))
    found = measures.attention_distance(model, pictures(model.config))
    wanted = distances(model).mean()
    assert found.everywhere == pytest.approx(wanted)
    assert found.pixels == pytest.approx(np.full((2, 2), wanted), rel=1e-5)
    assert found.diagonal == pytest.approx(math.hypot(12, 40))


def test_heads_that_attend_to_their_own_place_look_no_further():
    model = pointing((0, 0), pool="class")
    assert measures.attention_distance(model, pictures(model.config)).pixels == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("offset", [(0, 1), (-1, 0), (1, 2)])
def test_heads_that_attend_to_an_offset_look_as_far_as_that(offset):
    model = pointing(offset)
    between = distances(model)
    wanted = [
        math.hypot(4 * offset[0], 8 * offset[1])
        if 0 <= n // 5 + offset[0] < 3 and 0 <= n % 5 + offset[1] < 5
        else between[n].mean()
        for n in range(15)
    ]
    found = measures.attention_distance(model, pictures(model.config))
    assert found.pixels == pytest.approx(np.full((2, 2), np.mean(wanted)), rel=1e-5)


def test_little_memory_changes_nothing_until_attention_is_pooled():
    model = tiny(patch_size=(4, 4), image_size=(24, 40), pool="class", depth=3)
    pixels = pictures(model.config, count=3)
    whole = measures.attention_distance(model, pixels).pixels
    one = 4 * 2 * 61**2  # bytes of a layer's attention
    for memory in (3 * one, one):
        assert measures.attention_distance(model, pixels, memory).pixels == pytest.approx(whole, rel=1e-5)
    pooled = measures.attention_distance(model, pixels, one // 8).pixels
    assert pooled == pytest.approx(whole, rel=0.15)
    assert np.abs(pooled - whole).max() > 1e-3


def test_a_query_counts_as_often_as_the_tokens_that_it_stands_for_and_not_where_it_sees_none():
    attention = torch.tensor([[[[0.5, 0.0, 0.0], [0.1, 0.0, 0.3], [0.0, 0.0, 0.0]]]])
    places = torch.tensor([[0.0, 0], [4, 0], [4, 3]])
    found = measures.mean_distance(attention, places, torch.tensor([3, 1, 5]))
    assert found.item() == pytest.approx((3 * 0 + 1 * (4 / 4 + 3 * 3 / 4)) / 4)


def test_tokens_of_soft_splits_lie_as_far_apart_as_their_windows():
    model = tiny("t2t")
    assert measures.attention_distance(model, pictures(model.config)).everywhere == pytest.approx(
        np.mean(
            [
                math.hypot(4 * (a - c), 4 * (b - d))
                for a in range(3)
                for b in range(5)
                for c in range(3)
                for d in range(5)
            ]
        )
    )


# Lengths of tokens


def test_lengths_are_those_of_the_tokens_that_enter_and_leave():
    model = tiny(pool="class", registers=1)
    pixels = pictures(model.config, count=9)
    norms = measures.token_norms(model, pixels)
    with torch.no_grad():
        last = model.encode(pixels).norm(dim=-1).numpy()
        first = model.position(torch.cat((model.prefix.expand(9, 2, 16), model.tokenizer(pixels)[0]), 1), GRID, 0)
    assert norms.tokens.shape == (3, 9, *GRID)
    assert norms.prefix.shape == (3, 9, 2)
    for stage, wanted in ((0, first.norm(dim=-1).numpy()), (-1, last)):
        assert norms.prefix[stage] == pytest.approx(wanted[:, :2], rel=1e-5)
        assert norms.tokens[stage].reshape(9, 15) == pytest.approx(wanted[:, 2:], rel=1e-5)


def test_outliers_are_found_and_a_long_tail_is_none():
    rng = np.random.default_rng(0)
    usual, tail, alike = rng.normal(50, 5, 1000), rng.lognormal(0, 0.3, 1000), np.full(1000, 3.0)
    planted = usual.copy()
    planted[:20] *= 10
    norms = measures.TokenNorms(np.stack([usual, planted, tail, alike]).reshape(4, 10, 10, 10), np.zeros((4, 10, 0)))
    assert norms.outliers == pytest.approx([0, 0.02, 0, 0], abs=0.002)
    assert norms.outliers[1] == 0.02
    low, high = np.percentile(tail, [25, 75])
    assert norms.thresholds[2] == pytest.approx(max(high + 3 * (high - low), 2 * np.median(tail)))
    assert norms.thresholds[3] == 6


# Principal components as colours


def test_components_are_the_axes_along_which_vectors_differ_most_and_have_fixed_signs():
    rng = np.random.default_rng(0)
    vectors = np.zeros((2, 30, 40, 6))
    for axis, deviation in ((4, 5.0), (1, 3.0), (2, 1.0)):
        vectors[..., axis] = rng.normal(7, deviation, vectors.shape[:3])
    for some in (vectors, -vectors, vectors[::-1, ::-1]):
        components = measures.Components.fit(some)
        assert components.directions == pytest.approx(np.eye(6)[[4, 1, 2]], abs=0.05)
        assert components.shares == pytest.approx(np.array([25, 9, 1]) / 35, abs=0.02)
    assert measures.Components.fit(vectors).mean[4] == pytest.approx(7, abs=0.3)


def test_colours_of_a_batch_are_those_of_its_parts():
    model = tiny()
    features = measures.token_features(model, pictures(model.config, count=6))
    components = measures.Components.fit(features)
    colours = components.colours(features)
    assert colours.shape == (6, *GRID, 3)
    assert np.concatenate([components.colours(features[:1]), components.colours(features[1:])]) == pytest.approx(
        colours
    )
    again = measures.token_features(model, pictures(model.config, count=6)[2:4])
    assert components.colours(again) == pytest.approx(colours[2:4], abs=1e-4)
    assert measures.Components.fit(features[::-1]).colours(features) == pytest.approx(colours)


def test_an_outlier_does_not_take_the_colours_from_the_rest():
    vectors = np.random.default_rng(0).normal(size=(1000, 3)) * [5, 3, 1]
    vectors[0, 0] = 80
    colours = measures.Components.fit(vectors).colours(vectors)
    assert colours.min() == 0
    assert colours.max() == 1
    assert colours.std(0).min() > 0.15


@pytest.mark.parametrize(("shape", "known"), [((5, 2), 2), ((2, 9), 1), ((1, 4), 0), ((50, 1), 1)])
def test_colours_without_variance_are_grey(shape, known):
    vectors = np.random.default_rng(0).normal(size=shape)
    components = measures.Components.fit(vectors)
    colours = components.colours(vectors)
    assert (components.shares > 0).tolist() == [n < known for n in range(3)]
    assert components.shares.sum() == pytest.approx(float(known > 0))
    assert (colours[:, known:] == 0.5).all()


@pytest.mark.parametrize("after", [False, True])
def test_features_are_what_the_head_pools(after):
    model = tiny(norm_after_pool=after)
    pixels = pictures(model.config, count=9)
    pooled = torch.from_numpy(measures.token_features(model, pixels)).mean((1, 2))
    with torch.no_grad():
        wanted = model(pixels)
        assert model.head(model.norm(pooled) if after else pooled).numpy() == pytest.approx(wanted.numpy(), abs=1e-4)


# Answers by depth


def batches(model, targets, size=4):
    pixels = pictures(model.config, count=len(targets))
    return [(pixels[n : n + size], targets[n : n + size]) for n in range(0, len(targets), size)]


def test_the_last_depth_is_the_models_own_accuracy_and_the_first_what_the_head_reads_of_the_embedding():
    model = tiny()
    pixels = pictures(model.config, count=10)
    with torch.no_grad():
        said = model(pixels).argmax(1).numpy()
        early = lens(model, pixels)[:, 0].argmax(1).numpy()
    targets = np.where(np.arange(10) < 7, said, (said + 1) % 5)
    scores = measures.scores_by_depth(model, batches(model, targets), Task("classification", tuple("abcde")))
    assert scores.values.shape == (3, 1)
    assert scores.values[-1] == pytest.approx(0.7)
    assert scores.values[0] == pytest.approx((early == targets).mean())
    assert scores.baseline == pytest.approx(np.bincount(targets).max() / 10)


def test_depth_scores_of_numbers_are_in_their_units():
    model = tiny(outputs=2)
    task = Task("regression", ("a", "b"), ("mm", "°"), (10.0, -3.0), (2.0, 5.0))
    with torch.no_grad():
        answers = task.restore(model(pictures(model.config, count=10)).numpy())
    scores = measures.scores_by_depth(model, batches(model, answers + np.array([3.0, -4])), task)
    assert scores.values[-1] == pytest.approx([3, 4], rel=1e-4)
    assert scores.baseline == pytest.approx(answers.std(0))
    assert scores.values.shape == (3, 2)


def test_depth_scores_of_labels_are_mean_average_precisions():
    model = tiny()
    targets = np.eye(5)[np.arange(10) % 4]  # of the fifth label there is none
    scores = measures.scores_by_depth(model, batches(model, targets), Task("multilabel", tuple("abcde")))
    with torch.no_grad():
        wanted = np.nanmean(metrics.average_precision(model(pictures(model.config, count=10)).numpy(), targets))
    assert scores.values[-1] == pytest.approx(wanted)
    assert scores.baseline == pytest.approx([0.25])


# Soft splits as frames


@pytest.mark.parametrize("fields", [{}, {"kernels": (7, 3, 3), "image_size": (36, 52)}, {"image_size": (4, 40)}])
def test_windows_lie_where_the_soft_split_takes_them(fields):
    model = tiny("t2t", **fields)
    pixels = pictures(model.config, count=1)
    image = pixels[0]
    for kernel, stage in zip(model.config.kernels, trace(model, pixels, what=["after"]).stages, strict=True):
        _, height, width = image.shape
        corners, padding = softsplit.soft_split_corners(height, width, kernel), (kernel + 1) // 4
        assert corners.shape == (*stage.grid, 2)
        assert corners[0, 0].tolist() == [-padding, -padding]
        assert (np.diff(corners, axis=0)[..., 0] == (kernel + 1) // 2).all()
        padded = F.pad(image, (padding,) * 4)
        for token, (y, x) in enumerate(corners.reshape(-1, 2) + padding):
            assert torch.equal(padded[:, y : y + kernel, x : x + kernel].flatten(), stage.windows[0, token])
        image = stage.layer.after[0].T.unflatten(1, stage.grid) if stage.layer else image


def orange_box(frame):
    """(left, top, right, bottom) of the window's outline on the picture."""
    rows, columns = np.nonzero(near(frame[:, :345].astype(int), figures.ORANGE, 0))
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_frames_show_the_window_on_its_way_and_the_tokens_so_far():
    model = tiny("t2t", image_size=(18, 18))  # 18 + 2 of padding at 16 times its size
    frames = softsplit.soft_split_frames(model, pictures(model.config, count=1), most=60)
    assert len({frame.shape for frame in frames}) == 1
    assert {frame.dtype for frame in frames} == {np.dtype(np.uint8)}
    first = frames[:30]
    assert len(frames) == 30 + 25  # of the second split all 5·5 tokens
    boxes = np.array([orange_box(frame) for frame in first])
    assert boxes[0].tolist() == [18, 42, 20 + 3 * 16 + 1, 44 + 3 * 16 + 1]
    assert (boxes[1:9] - boxes[:8] == [32, 0, 32, 0]).all()  # 9 tokens a row, a stride of 2
    assert (boxes[9] - boxes[0] == [0, 32, 0, 32]).all()
    assert boxes[-1].tolist() == [18 + 16 * 16, 42 + 16 * 16, 20 + 19 * 16 + 1, 44 + 19 * 16 + 1]
    blank = [near(frame[44:364, 490:740].astype(int), "#f6f6f6", 0).all(1).sum() for frame in first]
    assert (np.diff(blank) < 0).all()
    assert blank[-1] == 0


def test_windows_and_padding_are_shown_as_they_are():
    model = tiny("t2t", image_size=(18, 18))
    pixels = torch.zeros(1, 3, 18, 18)
    pixels[:, 0, :, :9] = 1
    frames = softsplit.soft_split_frames(model, pixels)
    assert frames[0][134, 366].tolist() == [208, 208, 208]  # the corner of the first window
    assert frames[0][230, 460].tolist() == [255, 0, 0]
    assert frames[24][100, 100].tolist() == [255, 0, 0]  # seen by then, and at first pale
    assert frames[0][100, 100].tolist() == [255, 170, 170]
    ends = [44 + 19 * 16 + 8, 20 + 19 * 16 + 8]
    assert frames[35][*ends].tolist() == [240, 240, 240]  # padding that no window takes stays pale
    assert frames[35][ends[0] - 16, ends[1] - 16].tolist() == [0, 0, 0]


def test_an_animation_holds_its_frames_and_is_small(tmp_path):
    model = tiny("t2t", kernels=(7, 3, 3), image_size=(224, 224))
    noise = pictures(model.config, count=1)
    frames = softsplit.soft_split_frames(model, noise, most=48)
    assert len(frames) == 48
    path = tmp_path / "split.gif"
    softsplit.write_frames(frames, path, milliseconds=100)
    assert path.stat().st_size < 1_000_000  # though noise is the worst there is
    with Image.open(path) as animation:
        assert getattr(animation, "n_frames", 1) == 48
        assert animation.info["loop"] == 0
        assert animation.info["duration"] == 100
        animation.seek(47)
        assert animation.info["duration"] == 2000
        shown = np.asarray(animation.convert("RGB")).astype(int)
    assert np.abs(shown - frames[-1]).mean() < 8


@pytest.mark.parametrize("kind", ["patch", "convolution"])
def test_a_model_without_soft_splits_has_no_frames_of_them(kind):
    model = tiny(kind)
    with pytest.raises(InputError, match="no soft splits"):
        softsplit.soft_split_frames(model, pictures(model.config, count=1))


# All pictures of a model

ALWAYS = ["What the first layer looks for", "How far heads look", "Tokens that stand out", "What tokens have become"]
PLACES, BIAS = "How alike places are", "What the position embedding adds"
CONVOLUTIONS = "What the convolutions between blocks add"
MODELS = {
    "patch": (tiny_config(pool="class", registers=1), {PLACES}),
    "stem": (tiny_config("stem", conditional=True, channels=1), {PLACES, CONVOLUTIONS}),
    "t2t": (tiny_config("t2t", position="relative", position_at="every", channels=5), {BIAS}),
    "performer on a line": (tiny_config("performer", image_size=(4, 40), channels=2), {PLACES}),
    "a column": (tiny_config("patch", image_size=(60, 8), position="learned"), {PLACES}),
    "a lone token": (tiny_config("patch", image_size=(4, 8), position="none"), set()),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_pictures_that_suit_it_and_they_are_drawn_without_a_word(name):
    config, some = MODELS[name]
    found = figures.model_pictures(tiny_model(config), pictures(config, count=3))
    assert {title for title, _, _ in found} == {*ALWAYS, *some}
    for title, caption, figure in found:
        assert caption.endswith(".")
        assert not re.search(r"[.!?] [A-Z]", caption)
        width, height = figure.get_size_inches()
        assert 1 < width < 14, title
        assert 0.5 < height < 8, title


def test_one_picture_is_enough_but_for_what_compares_them():
    config = tiny_config("stem", conditional=True)
    found = figures.model_pictures(tiny_model(config), pictures(config, count=1))
    assert [title for title, _, _ in found] == [ALWAYS[0], PLACES, *ALWAYS[1:]]


def test_given_pictures_are_shown_in_place_of_the_pixels():
    model = tiny(image_size=(40, 40), patch_size=(8, 8))
    red = np.zeros((2, 40, 40, 3), np.uint8)
    red[..., 0] = 255
    found = {title: figure for title, _, figure in figures.model_pictures(model, pictures(model.config), red)}
    for title in ("What tokens have become", "Tokens that stand out"):
        assert near(read(figures.to_png(found[title])), (255, 0, 0), 0).sum() > 20_000


def test_pixels_are_shown_from_their_first_to_their_last_percentile():
    pixels = torch.linspace(-2, 2, 3 * 20 * 20).reshape(1, 3, 20, 20)
    shown = measures.displayable(pixels)
    assert shown.shape == (1, 20, 20, 3)
    assert shown.dtype == np.uint8
    assert (shown.min(), shown.max()) == (0, 255)
    assert shown[0, 0, 0, 1] == pytest.approx(255 / 3, abs=2)
    assert (measures.displayable(pixels[:, :2]) == measures.displayable(pixels[:, :1])).all()


def test_colours_stand_at_their_places_beside_their_picture():
    colours = np.zeros((1, 2, 2, 3))
    colours[0, 0, 1] = 1, 0, 1
    for H, W in ((60, 40), (40, 60)):
        drawn = read(figures.to_png(figures.draw_colours({"": colours}, np.full((1, H, W, 3), 128, np.uint8))))
        rows, columns = (np.flatnonzero(near(drawn, (255, 0, 255), 3).any(axis)) for axis in (1, 0))
        black_rows, black_columns = (np.flatnonzero(near(drawn, (0, 0, 0), 3).any(axis)) for axis in (1, 0))
        assert np.ptp(rows) / np.ptp(columns) == pytest.approx(H / W, rel=0.05)
        assert rows[0] == black_rows[0]
        assert columns[-1] == black_columns[-1]
        grey = np.flatnonzero(near(drawn, (128, 128, 128), 3).any(0 if H > W else 1))
        assert grey[-1] < (black_columns if H > W else black_rows)[0]


def test_scores_of_one_target_and_of_many_are_drawn():
    task = Task("regression", ("$a_b$", "猫", *map(str, range(6))), ("mm",) * 8, (0.0,) * 8, (1.0,) * 8)
    scores = measures.DepthScores("RMSE", np.linspace(2, 1, 32).reshape(4, 8), np.full(8, 2.0))
    drawn = read(figures.to_png(figures.draw_scores_by_depth(scores, task)))
    assert near(drawn, figures.ORANGE).sum() > 100
    one = dataclasses.replace(scores, values=scores.values[:, :1], baseline=scores.baseline[:1])
    axes = figures.draw_scores_by_depth(one, task).axes[0]
    assert axes.get_ylabel() == "RMSE (mm)"
    assert np.asarray(axes.lines[0].get_ydata()) == pytest.approx(one.values[:, 0])


def test_a_figure_as_svg_has_text_as_text_the_pages_colours_and_ids_of_its_own():
    task = Task("regression", ('<i style="a: b">', "猫"), ("mm",) * 2, (0.0,) * 2, (1.0,) * 2)
    scores = measures.DepthScores("RMSE", np.linspace(2, 1, 8).reshape(4, 2), np.full(2, 2.0))
    first, second = (figures.to_svg(figures.draw_scores_by_depth(scores, task), words) for words in ("one", 'two "<'))
    tree = ElementTree.fromstring(second)
    assert (tree.tag, tree.attrib["role"], tree.attrib["aria-label"]) == ("svg", "img", 'two "<')
    assert {'<i style="a: b">', "猫"} <= {text.text for text in tree.iter("text")}
    names = {name for element in tree.iter() for name in element.attrib}
    assert not names & {"style", "font-family", "xlink:href"}
    lines = [path.attrib["stroke"] for path in tree.iter("path") if "stroke" in path.attrib]
    assert {"var(--blue)", "var(--orange)", "var(--line)"} <= set(lines)
    assert not [colour for colour in lines if colour.startswith("#")]
    ids = [set(re.findall(r' id="(\w+)"', text)) for text in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r"#(\w+)\)", second)) <= ids[1]
    assert figures.to_svg(figures.draw_scores_by_depth(scores, task), "one") == first


@pytest.mark.parametrize("cmap", [figures.RAMP, figures.BOTH_WAYS], ids=["ramp", "both ways"])
def test_maps_are_clear_where_there_is_nothing_and_stand_out_from_light_and_dark_where_there_is_much(cmap):
    nothing, much = (0.5, 1.0) if cmap is figures.BOTH_WAYS else (0.0, 1.0)
    assert cmap(nothing)[3] < 0.01
    assert cmap(much)[3] == 1
    lightness = 0.2126 * cmap(much)[0] ** 2.2 + 0.7152 * cmap(much)[1] ** 2.2 + 0.0722 * cmap(much)[2] ** 2.2
    assert 1.05 / (lightness + 0.05) > 3
    assert (lightness + 0.05) / 0.058 > 3


def test_a_users_matplotlib_settings_change_nothing_and_pyplot_is_not_imported():
    scores = measures.DepthScores("accuracy", np.linspace(0.2, 0.9, 5)[:, None], np.array([0.1]))
    task = Task("classification", ("a", "b"))
    sys.modules.pop("matplotlib.pyplot", None)
    plain = figures.to_png(figures.draw_scores_by_depth(scores, task))
    with matplotlib.rc_context({"text.usetex": True, "figure.facecolor": "black", "font.size": 30}):
        assert figures.to_png(figures.draw_scores_by_depth(scores, task)) == plain
        assert matplotlib.rcParams["font.size"] == 30
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize(("length", "most", "places"), [(3, 8, [0, 1, 2]), (9, 3, [0, 4, 8]), (1, 8, [0])])
def test_places_spread_over_all_with_both_ends(length, most, places):
    assert measures.evenly_apart(length, most).tolist() == places


def test_a_mosaic_is_filled_row_by_row_with_gaps():
    sheet = figures.mosaic(np.arange(3.0).reshape(3, 1, 1, 1), (2, 2), gap=1, enlarge=2)[..., 0]
    assert sheet.shape == (6, 6)
    assert [sheet[0, 0], sheet[1, 5], sheet[4, 1]] == [0, 1, 2]
    assert np.isnan(sheet[2:4]).all()
    assert np.isnan(sheet[4:, 4:]).all()
