import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vitreous.data.augment import (
    CELL,
    GEOMETRIC,
    POLICIES,
    AugmentConfig,
    Draws,
    _affine,
    apply,
    draw,
    resolve,
)
from vitreous.errors import InputError

NONE, STRONG = POLICIES["none"], POLICIES["strong"]
SCALES = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.float32: 1.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(size: int = 19, height: int = 12, width: int = 20, channels: int = 3, dtype=torch.uint8) -> Tensor:
    values = torch.rand(size, height, width, channels, generator=seeded(99))
    return (values * SCALES[dtype]).to(dtype)


def planes(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float()


def drawn(config: AugmentConfig, pixels: Tensor, seed: int = 0) -> Draws:
    B, H, W, C = pixels.shape
    return draw(config, (B, H, W, C), seeded(seed))


def of(pixels: Tensor, draws: Draws, mean: float = 0.5) -> Tensor:
    scale = SCALES[pixels.dtype]
    fill = torch.full((pixels.shape[3],), mean * scale)
    return apply(pixels, torch.arange(len(pixels)), draws, fill, scale, len(pixels))[0]


def varied(pixels: Tensor, config: AugmentConfig, seed: int = 0, mean: float = 0.5) -> Tensor:
    return of(pixels, drawn(config, pixels, seed), mean)


@pytest.mark.parametrize("dtype", SCALES)
@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_without_augmentation_the_pixels_and_targets_come_back_exactly_in_memory_of_their_own(dtype, channels):
    pixels = pictures(channels=channels, dtype=dtype)
    before = pixels.clone()
    targets = torch.arange(len(pixels))
    images, same = apply(pixels, targets, drawn(NONE, pixels), torch.zeros(channels), SCALES[dtype])
    assert torch.equal(images, planes(pixels))
    assert same is targets
    images.zero_()
    assert torch.equal(pixels, before)


@pytest.mark.parametrize(
    "config", [STRONG, replace(NONE, flip=0.5), replace(NONE, erase=1.0), replace(NONE, mixup=1.0)]
)
def test_the_callers_pixels_are_never_written_to(config):
    for channels in (1, 3):
        pixels = pictures(channels=channels, dtype=torch.float32)
        before = pixels.clone()
        varied(pixels, config)
        assert torch.equal(pixels, before)


@pytest.mark.parametrize(("field", "axes"), [("flip", [3]), ("vertical_flip", [2])])
def test_a_flip_is_an_exact_mirror(field, axes):
    pixels = pictures()
    assert torch.equal(varied(pixels, replace(NONE, **{field: 1.0})), planes(pixels).flip(axes))


def test_flips_happen_as_often_as_asked_and_by_picture():
    flips = draw(replace(NONE, flip=0.3, vertical_flip=0.6), (20000, 4, 4, 1), seeded()).flips.double()
    torch.testing.assert_close(flips.mean(0), torch.tensor([0.3, 0.6]).double(), atol=0.015, rtol=0)
    assert abs(torch.corrcoef(flips.T)[0, 1]) < 0.03


def test_a_flip_joined_with_a_warp_mirrors_the_picture_too():
    pixels = pictures()
    plain = drawn(NONE, pixels)
    nudge = torch.tensor([[1.0, 0.0, 2 / 20], [0.0, 1.0, 0.0]]).expand(19, 2, 3)  # one pixel to the left
    moved = of(pixels, replace(plain, affine=nudge))
    torch.testing.assert_close(moved[..., :-1], planes(pixels)[..., 1:], atol=1e-3, rtol=0)
    both = drawn(replace(NONE, flip=1.0, crop=0.5), pixels)
    assert (both.affine[:, 0, 0] < 0).all()
    assert (both.affine[:, 1, 1] > 0).all()
    assert torch.equal(of(pixels, both), of(pixels, replace(both, flips=torch.zeros_like(both.flips))))  # not twice


def turned(angle: float, height: int, width: int) -> Tensor:
    """The affine of one picture that `_affine` makes of a rotation alone."""
    amount = {name: torch.zeros(1, dtype=torch.float64) for name in GEOMETRIC}
    amount["rotate"] = torch.tensor([angle], dtype=torch.float64)
    one, zero = torch.ones(1), torch.zeros(1)
    return _affine(amount, (height, width), zoom=(one, one), shift=(zero, zero), centre=(zero, zero)).float()


@pytest.mark.parametrize("degrees", [30, 90, -90, 180])
def test_a_rotation_of_a_tall_picture_is_a_rotation_in_pixels(degrees):
    height, width = 41, 21
    pixels = torch.zeros(1, height, width, 1)
    pixels[0, 20 + 2, 10 + 8] = 1.0  # a dot 8 right of and 2 below the centre
    image = of(pixels, replace(drawn(NONE, pixels), affine=turned(math.radians(degrees), height, width)))[0, 0]
    image[:10], image[31:] = 0, 0  # turned by 90 degrees, the rows beyond show the reflection
    total = image.sum()
    y = (image.sum(1) * torch.arange(height)).sum() / total - 20
    x = (image.sum(0) * torch.arange(width)).sum() / total - 10
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    assert float(total) == pytest.approx(1, abs=0.1)
    assert (float(x), float(y)) == pytest.approx((cos * 8 + sin * 2, -sin * 8 + cos * 2), abs=0.2)


def test_a_warp_reflects_the_picture_at_its_edges_instead_of_showing_black():
    pixels = torch.full((64, 16, 24, 3), 200, dtype=torch.uint8)
    config = replace(NONE, shift=0.4, crop=0.5, operations=3, magnitude=10.0)  # jitter 0: geometry only
    torch.testing.assert_close(varied(pixels, config), planes(pixels), atol=1e-3, rtol=0)


def test_a_crop_stays_inside_the_picture_and_keeps_the_area_and_aspect_promised():
    affine = draw(replace(NONE, crop=0.2), (5000, 30, 20, 3), seeded()).affine.double()
    wide, high, centre = affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2]
    assert (affine[:, 0, 1] == 0).all()
    assert (affine[:, 1, 0] == 0).all()
    assert (centre.abs() + torch.stack([wide, high], dim=1) <= 1 + 1e-6).all()
    area, aspect = wide * high, wide / high
    assert 0.2 - 1e-6 <= area.min() < 0.21
    assert 0.99 < area.max() <= 1 + 1e-6
    assert area.mean() == pytest.approx(0.6, abs=0.01)
    assert aspect.min() >= 3 / 4 - 1e-6
    assert aspect.max() <= 4 / 3 + 1e-6


def test_a_shift_moves_no_further_than_asked():
    affine = draw(replace(NONE, shift=0.1), (5000, 30, 20, 3), seeded()).affine
    assert torch.equal(affine[:, :, :2], torch.eye(2).expand(5000, 2, 2))
    assert affine[:, :, 2].abs().amax() == pytest.approx(0.2, abs=0.005)  # grid_sample's picture is 2 wide
    assert affine[:, :, 2].mean(0).abs().max() < 0.01


def test_jitter_leaves_grey_grey_and_the_datas_mean_moves_by_brightness_alone():
    grey = torch.full((64, 4, 4, 3), 0.4)
    images = varied(grey, replace(NONE, jitter=0.5), mean=0.4)
    torch.testing.assert_close(images, images[:, :1].expand_as(images), atol=1e-5, rtol=0)
    gain = images[:, 0, 0, 0] / 0.4
    assert 1 / 1.5 - 1e-4 <= gain.min() < 0.75
    assert 1.35 < gain.max() <= 1.5 + 1e-4


def test_hue_and_saturation_keep_the_luma_of_a_colour():
    colour = torch.tensor([0.8, 0.3, 0.1]).expand(64, 4, 4, 3)
    draws = drawn(replace(NONE, jitter=0.5), colour)
    gain = draws.colour.sum(2)[:, :1, None]  # a row of the matrix sums to brightness times contrast
    tint = replace(draws, colour=draws.colour / gain, pivot=torch.zeros(64))
    luma = (of(colour, tint) * torch.tensor([0.213, 0.715, 0.072])[:, None, None]).sum(1)
    torch.testing.assert_close(luma, torch.full_like(luma, 0.8 * 0.213 + 0.3 * 0.715 + 0.1 * 0.072), atol=1e-3, rtol=0)
    assert of(colour, tint).std(0).amax() > 0.05


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_solarize_inverts_above_its_threshold_and_posterize_drops_bits(dtype):
    pixels = pictures(dtype=dtype)
    plain, top = drawn(NONE, pixels), SCALES[dtype]
    solarized = of(pixels, replace(plain, solarize=torch.full((19,), 0.5)))
    want = planes(pixels)
    assert torch.equal(solarized, torch.where(want >= 0.5 * top, top - want, want))
    step = 2**3 * (1 if dtype == torch.uint8 else 256)
    posterized = of(pixels, replace(plain, posterize=torch.full((19,), 8.0)))
    assert torch.equal(posterized, want - want % step)


def test_every_operation_is_drawn_and_only_geometric_ones_without_jitter():
    shape, config = (6000, 16, 16, 3), replace(NONE, operations=1, magnitude=10.0, jitter=1e-9)
    draws = draw(config, shape, seeded())
    twelfth = pytest.approx(1 / 12, abs=0.012)
    assert (draws.solarize < 1).double().mean() == twelfth
    assert (draws.posterize > 1).double().mean() == twelfth
    warped = (draws.affine - torch.eye(2, 3)).abs().amax((1, 2)) > 1e-6
    assert warped.double().mean() == pytest.approx(6 / 12, abs=0.02)
    still = draw(replace(config, jitter=0.0), shape, seeded())
    assert torch.equal(still.colour, torch.eye(3).expand(6000, 3, 3))
    assert (still.solarize == 1).all()
    assert (still.posterize == 1).all()


def test_operations_of_no_magnitude_change_nothing():
    pixels = pictures()
    images = varied(pixels, replace(NONE, operations=3, magnitude=0.0, jitter=1e-12))
    torch.testing.assert_close(images, planes(pixels), atol=1e-4, rtol=0)


def test_erasing_fills_one_rectangle_with_the_mean_as_often_as_asked():
    pixels = torch.zeros(2000, 20, 30, 1, dtype=torch.uint8)
    hidden = varied(pixels, replace(NONE, erase=0.25), mean=0.5)[:, 0] == 127.5
    erased = hidden.flatten(1).any(1)
    assert erased.double().mean() == pytest.approx(0.25, abs=0.03)
    for mask in hidden[erased][:50]:
        assert mask.sum() == mask.any(0).sum() * mask.any(1).sum()  # a full rectangle
    assert hidden[erased].double().mean() == pytest.approx((0.02 + 0.33) / 2, abs=0.02)


def cells(size: int) -> list[int]:
    """The partner of each row: the next one of its cell of 8."""
    starts = range(0, size, CELL)
    return [
        start + (k + 1) % min(CELL, size - start)
        for start in starts
        for k in range(CELL)
        if k < min(CELL, size - start)
    ]


def test_mixup_makes_the_same_convex_pair_of_pixels_and_targets_within_a_cell():
    pixels, partner = pictures(), cells(19)
    classes = torch.arange(19)
    images, targets = apply(pixels, classes, drawn(replace(NONE, mixup=0.8), pixels), torch.zeros(3), 255.0, 19)
    own = targets.diagonal()
    assert own.std() > 0.1
    torch.testing.assert_close(targets.sum(1), torch.ones(19))
    torch.testing.assert_close(targets[range(19), partner], 1 - own)
    share = own[:, None, None, None]
    torch.testing.assert_close(images, share * planes(pixels) + (1 - share) * planes(pixels)[partner])


@pytest.mark.parametrize("shape", [(19,), (19, 4)])
def test_mixup_of_numbers_and_of_several_labels_is_convex_too(shape):
    values = torch.rand(shape, generator=seeded(5))
    draws = drawn(replace(NONE, mixup=1.0), pictures())
    _, targets = apply(pictures(), values, draws, torch.zeros(3), 255.0)
    share = draws.share.view(-1, *[1] * (len(shape) - 1))
    torch.testing.assert_close(targets, share * values + (1 - share) * values[cells(19)])


def test_cutmix_shares_the_target_by_exactly_the_pasted_area():
    rows = torch.arange(19, dtype=torch.uint8)
    pixels = rows[:, None, None, None].expand(19, 12, 20, 1)  # each picture is filled with its own number
    images, targets = apply(pixels, rows.long(), drawn(replace(NONE, cutmix=1.0), pixels), torch.zeros(1), 255.0, 19)
    kept = (images[:, 0] == rows[:, None, None]).double().mean((1, 2))
    assert torch.equal(targets.diagonal(), kept.float())
    assert 0.3 < kept.mean() < 0.7
    for row, partner in enumerate(cells(19)):
        assert set(images[row].unique().tolist()) <= {float(row), float(partner)}
        assert targets[row, partner] == 1 - targets[row, row]


def test_the_last_row_alone_in_its_cell_stays_itself():
    for config in (replace(NONE, mixup=1.0), replace(NONE, cutmix=1.0)):
        pixels = pictures(size=17)
        images, targets = apply(pixels, torch.arange(17), drawn(config, pixels), torch.zeros(3), 255.0, 17)
        assert torch.equal(images[16], planes(pixels)[16])
        assert targets[16].tolist() == [0.0] * 16 + [1.0]


def test_the_share_of_mixup_follows_its_beta_distribution():
    for alpha in (0.2, 1.0, 4.0):
        share = draw(replace(NONE, mixup=alpha), (40000, 2, 2, 1), seeded()).share.double()
        assert share.mean() == pytest.approx(0.5, abs=0.01)
        assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_with_both_mixes_each_picture_gets_one_of_them():
    pasted = draw(replace(NONE, mixup=0.8, cutmix=1.0), (4000, 32, 32, 3), seeded()).pasted
    assert (pasted[:, 1] > pasted[:, 0]).double().mean() == pytest.approx(0.5, abs=0.03)


def test_mixing_class_numbers_without_their_count_is_refused():
    draws = drawn(replace(NONE, mixup=1.0), pictures())
    with pytest.raises(ValueError, match="classes"):
        apply(pictures(), torch.arange(19), draws, torch.zeros(3), 255.0)


@pytest.mark.parametrize("dtype", SCALES)
@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_a_slice_of_a_batch_gets_the_bits_that_the_whole_batch_gets(dtype, channels):
    pixels, targets = pictures(channels=channels, dtype=dtype), torch.arange(19)
    draws, mean = drawn(STRONG, pixels), torch.full((channels,), SCALES[dtype] / 3)
    whole, soft = apply(pixels, targets, draws, mean, SCALES[dtype], 19)
    for start, stop in ((0, 8), (8, 19), (0, 16), (16, 19)):
        rows = slice(start, stop)
        part, part_soft = apply(pixels[rows], targets[rows], draws.slice(start, stop), mean, SCALES[dtype], 19)
        assert torch.equal(part, whole[rows])
        assert torch.equal(part_soft, soft[rows])


@pytest.mark.parametrize(("start", "stop"), [(4, 8), (0, 12), (8, 24), (-8, 8)])
def test_a_slice_that_splits_a_cell_or_leaves_the_batch_is_refused(start, stop):
    with pytest.raises(ValueError, match="whole cells of 8"):
        drawn(STRONG, pictures()).slice(start, stop)


def test_threads_and_worker_threads_do_not_change_a_bit():
    pixels = pictures(size=32, height=67, width=93)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = varied(pixels, STRONG)
        torch.set_num_threads(2)
        two = varied(pixels, STRONG)
        with ThreadPoolExecutor(1) as pool:
            worker = pool.submit(varied, pixels, STRONG).result()
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)
    assert torch.equal(one, worker)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    pixels = pictures()
    assert torch.equal(varied(pixels, STRONG, seed=3), varied(pixels, STRONG, seed=3))
    assert not torch.equal(varied(pixels, STRONG, seed=3), varied(pixels, STRONG, seed=4))


def test_what_the_config_leaves_out_does_not_change_the_other_choices():
    shape = (64, 16, 16, 3)
    strong, plain = draw(STRONG, shape, seeded()), draw(replace(NONE, flip=0.5, erase=0.25), shape, seeded())
    assert torch.equal(strong.flips, plain.flips)
    assert torch.equal(strong.erased, plain.erased)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_integer_pictures_stay_in_their_range(policy, dtype, channels):
    images = varied(pictures(channels=channels, dtype=dtype), POLICIES[policy])
    assert images.dtype == torch.float32
    assert images.shape == (19, channels, 12, 20)
    assert images.min() >= 0
    assert images.max() <= SCALES[dtype]


def test_float_pictures_are_not_clamped():
    images = varied(pictures(dtype=torch.float32) * 100 - 50, replace(NONE, jitter=0.5))
    assert images.min() < -50
    assert images.max() > 50


def resolved(
    policy="auto", kind="classification", channels=3, depth="uint8", mirror_sensitive=False, small=False, often=False,
    **asked,
):  # fmt: skip
    return resolve(AugmentConfig(**asked), policy, kind, channels, depth, mirror_sensitive, small, often)


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_auto_is_light_for_labels(kind):
    assert resolved(kind=kind) == POLICIES["light"]


@pytest.mark.parametrize(
    ("small", "often", "expected"),
    [(False, False, "light"), (False, True, "medium"), (True, False, "slight"), (True, True, "varied")],
)
def test_auto_goes_by_the_size_of_the_pictures_and_by_how_often_each_is_seen(small, often, expected):
    assert resolved(small=small, often=often) == POLICIES[expected]
    assert resolved("strong", small=small, often=often) == STRONG
    assert resolved(kind="regression", small=small, often=often) == NONE


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_by_name_is_taken_whole_and_what_is_asked_for_wins(policy):
    assert resolved(policy) == POLICIES[policy]
    assert resolved(policy, flip=0.9, operations=4) == replace(POLICIES[policy], flip=0.9, operations=4)


def test_mirror_sensitive_classes_are_flipped_only_when_asked_and_auto_is_gentle():
    gentle = resolved(mirror_sensitive=True)
    assert resolved(mirror_sensitive=True, small=True, often=True) == gentle
    assert resolved(mirror_sensitive=True, often=True) == gentle
    assert (gentle.flip, gentle.vertical_flip, gentle.crop, gentle.erase) == (0, 0, 1, 0)
    assert gentle.shift
    assert gentle.operations
    assert resolved("strong", mirror_sensitive=True) == replace(STRONG, flip=0.0)
    assert resolved(mirror_sensitive=True, flip=0.5).flip == 0.5


def test_regression_is_left_alone_unless_asked():
    assert resolved(kind="regression") == NONE
    assert resolved(kind="regression", mirror_sensitive=True) == NONE
    assert resolved("strong", kind="regression") == replace(STRONG, mixup=0.0, cutmix=0.0)
    assert resolved(kind="regression", mixup=0.2, flip=0.5) == replace(NONE, mixup=0.2, flip=0.5)


def test_cutmix_of_regression_targets_is_refused():
    with pytest.raises(InputError, match="cutmix"):
        resolved(kind="regression", cutmix=1.0)
    assert resolved(kind="regression", cutmix=0.0) == NONE


@pytest.mark.parametrize(("channels", "depth"), [(3, "float32"), (2, "uint8"), (8, "uint16")])
def test_colours_of_measurements_are_changed_only_when_asked(channels, depth):
    assert resolved(channels=channels, depth=depth).jitter == 0
    assert resolved(channels=channels, depth=depth, jitter=0.3).jitter == 0.3


def test_all_values_out_of_range_are_reported_together():
    with pytest.raises(InputError) as error:
        resolved("mild", flip=1.5, crop=0.0, shift=-0.1, jitter=math.nan, operations=1.5, magnitude=11.0, mixup=-1.0)
    message = str(error.value)
    assert "expected one of auto, none, slight, varied, light, medium, strong; got 'mild'" in message
    for fault in ("flip 1.5", "crop 0.0", "shift -0.1", "jitter nan", "operations 1.5", "magnitude 11.0", "mixup -1.0"):
        name, value = fault.split()
        assert re.search(rf"{name}: expected .*; got {value}\n", message + "\n")
    with pytest.raises(InputError, match="kind: expected one of classification"):
        resolved(kind="ranking")
