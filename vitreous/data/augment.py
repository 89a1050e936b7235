"""Augmentation of whole batches: every random choice is drawn first, then applied as a plain function of it.

`draw` makes the choices of a global batch from one generator, in a fixed order whatever the config; `Draws.slice` cuts
them for one rank; `apply` computes the pixels. All geometry of a picture is one affine matrix and one resampling, all
linear colour changes are one matrix, and what no picture drew is not computed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vitreous.errors import InputError

CELL = 8  # mixup and cutmix pair rows within fixed cells of so many; no rank's slice may split one

# The set that `operations` draws from, and each one's reach at magnitude 10. One drawn twice adds up.
GEOMETRIC = {
    "identity": 0.0,
    "rotate": math.pi / 6,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "shift_x": 0.3,  # share of the width
    "shift_y": 0.3,
    "scale": math.log(1.4),
}
PHOTOMETRIC = {
    "brightness": math.log(1.9),
    "contrast": math.log(1.9),
    "saturation": math.log(1.9),
    "solarize": 0.4,  # how far the threshold comes down from the top of the range
    "posterize": 4.0,  # bits dropped of 8, at most 5
}

# Hue and saturation as matrices, from the W3C's Filter Effects (feColorMatrix, hueRotate): grey stays grey.
LUMA = ((0.213, 0.715, 0.072),) * 3
HUE_SINE = ((-0.213, -0.715, 0.928), (0.143, 0.140, -0.283), (-0.787, 0.715, 0.072))


@dataclass(frozen=True)
class AugmentConfig:
    """How pictures are varied in training. `resolve` chooses what is None for data and task; to `draw` it is off."""

    # chance to mirror a picture left-right
    flip: float | None = None
    # chance to mirror a picture upside down
    vertical_flip: float | None = None
    # smallest share of the picture's area that a resized crop keeps; 1 = no crop
    crop: float | None = None
    # largest translation, as a share of each side
    shift: float | None = None
    # strength of brightness, contrast, saturation and slight hue changes; 0 = none, and operations only move pixels
    jitter: float | None = None
    # how many RandAugment-like operations a picture gets (rotate, shear, shift, scale, colour, solarize, posterize)
    operations: int | None = None
    # strength of the operations, 0 to 10
    magnitude: float | None = None
    # chance that a random rectangle is erased
    erase: float | None = None
    # alpha of mixup's Beta distribution; 0 = none
    mixup: float | None = None
    # alpha of cutmix's Beta distribution; 0 = none. With mixup too, each picture gets one of them
    cutmix: float | None = None


#                            flip vertical crop shift jitter operations magnitude erase mixup cutmix
POLICIES = {
    "none": AugmentConfig(0.0, 0.0, 1.00, 0.0, 0.0, 0, 5.0, 0.00, 0.0, 0.0),
    "slight": AugmentConfig(0.5, 0.0, 1.00, 0.1, 0.0, 0, 5.0, 0.00, 0.0, 0.0),
    "varied": AugmentConfig(0.5, 0.0, 1.00, 0.1, 0.2, 2, 5.0, 0.25, 0.0, 0.0),
    "light": AugmentConfig(0.5, 0.0, 0.50, 0.0, 0.1, 0, 5.0, 0.00, 0.0, 0.0),
    "medium": AugmentConfig(0.5, 0.0, 0.40, 0.0, 0.2, 2, 5.0, 0.10, 0.2, 1.0),
    "strong": AugmentConfig(0.5, 0.0, 0.20, 0.0, 0.4, 2, 9.0, 0.25, 0.8, 1.0),
}
AUTO = {  # by whether the pictures are small, and whether each is seen often
    (False, False): "light",
    (False, True): "medium",
    (True, False): "slight",
    (True, True): "varied",
}
# for digits and letters: small turns, shears and shifts, nothing that hollows out a stroke
GENTLE = AugmentConfig(0.0, 0.0, 1.0, 0.06, 0.0, 1, 2.0, 0.0, 0.0, 0.0)
KINDS = ("classification", "multilabel", "regression")
#         smallest, largest, in words
RANGES = {
    "flip": (0, 1, "a chance from 0 to 1"),
    "vertical_flip": (0, 1, "a chance from 0 to 1"),
    "crop": (0.01, 1, "a share of the area from 0.01 to 1"),
    "shift": (0, 0.5, "a share of each side from 0 to 0.5"),
    "jitter": (0, 1, "a strength from 0 to 1"),
    "operations": (0, 16, "a whole number from 0 to 16"),
    "magnitude": (0, 10, "a strength from 0 to 10"),
    "erase": (0, 1, "a chance from 0 to 1"),
    "mixup": (0, 100, "an alpha from 0 to 100"),
    "cutmix": (0, 100, "an alpha from 0 to 100"),
}


def resolve(
    config: AugmentConfig,
    policy: str,
    kind: str,
    channels: int,
    depth: str,
    mirror_sensitive: bool,
    small: bool = False,
    often: bool = False,
) -> AugmentConfig:
    """Fills every None of `config`, by `policy` ("auto" or a name in POLICIES) and what suits the data and the task.

    "auto" is light, and slight where the pictures are `small` and have nothing to crop; where each is seen `often`
    medium, and varied for small ones. It is gentle where the classes are `mirror_sensitive` (digits, letters), and
    nothing at all for regression, where a flip or a crop may change the target. Under every policy, only what `config`
    asks for by name flips mirror-sensitive classes, mixes regression targets, or recolours pictures of `depth` float32
    or of other than 1 or 3 channels. Cutmix of regression targets is refused.

    Raises InputError listing every value out of range.
    """
    _check(config, policy, kind)
    auto = policy == "auto"
    chosen = POLICIES[("none" if kind == "regression" else AUTO[small, often]) if auto else policy]
    if kind == "regression":
        chosen = replace(chosen, mixup=0.0, cutmix=0.0)
    if mirror_sensitive:
        gentle = GENTLE if auto and kind != "regression" else AugmentConfig(flip=0.0, vertical_flip=0.0)
        chosen = _filled(gentle, chosen)
    if depth == "float32" or channels not in (1, 3):
        chosen = replace(chosen, jitter=0.0)
    return _filled(config, chosen)


def _filled(config: AugmentConfig, default: AugmentConfig) -> AugmentConfig:
    return replace(default, **{name: value for name, value in vars(config).items() if value is not None})


def _check(config: AugmentConfig, policy: str, kind: str) -> None:
    faults = []
    if policy not in ("auto", *POLICIES):
        faults.append(f"augment: expected one of auto, {', '.join(POLICIES)}; got {policy!r}")
    if kind not in KINDS:
        faults.append(f"kind: expected one of {', '.join(KINDS)}; got {kind!r}")
    faults += _out_of_range(config)
    if kind == "regression" and config.cutmix:
        faults.append("cutmix: a number cannot be shared out by pasted area; leave it at 0 for regression (mixup can)")
    if faults:
        raise InputError.listing("Augmentation cannot be set up:", faults)


def check_augmentation(config: AugmentConfig) -> None:
    """Raises `InputError` that lists every value out of its range."""
    if faults := _out_of_range(config):
        raise InputError.listing("Augmentation cannot be set up:", faults)


def _out_of_range(config: AugmentConfig) -> list[str]:
    return [
        f"{name}: expected {words}; got {value}"
        for name, (low, high, words) in RANGES.items()
        if (value := getattr(config, name)) is not None
        and (not low <= value <= high or (name == "operations" and value != int(value)))
    ]


@dataclass(frozen=True)
class Draws:
    """The random choices of a batch, worked out as far as needs no pixels. Boxes are top, bottom, left, right."""

    affine: Tensor  # (B, 2, 3) from places in the result to places in the picture, both -1 to 1, as grid_sample has it
    flips: Tensor  # (B, 2) bool, left-right and upside down; part of `affine` too
    colour: Tensor  # (B, 3, 3) for three channels, otherwise (B, 1, 1): one gain for all
    pivot: Tensor  # (B,) times the data's mean is added after `colour`
    solarize: Tensor  # (B,) share of the range above which values are inverted; 1 = none
    posterize: Tensor  # (B,) 2 ** bits dropped of 8; 1 = none
    erased: Tensor  # (B, 4) boxes, empty = none
    pasted: Tensor  # (B, 4) boxes taken from the partner, empty = none
    partner: Tensor  # (B,) how many rows further the partner is
    share: Tensor  # (B,) of a row's own target (with an empty paste: of its own pixels) in the mix
    mixes: bool  # whether targets become soft

    def slice(self, start: int, stop: int) -> "Draws":
        """The draws of rows start to stop: where they mix, whole cells of CELL rows (or up to the end of the batch)."""
        size, cell = len(self.share), CELL if self.mixes else 1
        if start % cell or (stop % cell and stop != size) or not 0 <= start <= stop <= size:
            raise ValueError(f"expected rows in whole cells of {cell} within 0 to {size}; got {start} to {stop}")
        rows = {f.name: getattr(self, f.name)[start:stop] for f in fields(self) if f.name != "mixes"}
        return replace(self, **rows)


def draw(config: AugmentConfig, shape: tuple[int, int, int, int], generator: torch.Generator) -> Draws:
    """Draws all choices for a (global) batch of `shape` (B, H, W, C) from a CPU generator seeded by (seed, step).

    Geometry: flips; a resized crop inside the picture, its aspect within 3/4 to 4/3 of the picture's; shift; and the
    geometric operations of RandAugment (1909.13719), each at `magnitude` with a random sign. Random erasing
    (1708.04896) covers 2% to 33% of the area. Mixup (1710.09412) and CutMix (1905.04899) pair a row with the next of
    its cell; the pasted box lies whole inside the picture (CutMix clips it), so that the share follows the Beta.
    """
    B, H, W, C = shape
    uniform = torch.rand(22, B, dtype=torch.float64, generator=generator)
    (flip, vertical, area, erase, erase_area, erase_y, erase_x, coin, beta, beta_angle, paste_y, paste_x) = uniform[:12]
    aspect, crop_x, crop_y, shift_x, shift_y, bright, contrast, saturation, hue, erase_aspect = uniform[12:] * 2 - 1
    amount = _operations(config, B, generator)

    flips = torch.stack([flip < (config.flip or 0), vertical < (config.vertical_flip or 0)], dim=1)
    mirror_x, mirror_y = (1 - 2 * flips.double()).unbind(1)
    area = 1 - (1 - (config.crop or 1)) * area
    stretch = torch.exp(aspect * area.log().neg().clamp(max=math.log(4 / 3)))  # neither side longer than the picture's
    zoom_x, zoom_y = (area * stretch).sqrt(), (area / stretch).sqrt()
    shift = config.shift or 0
    affine = _affine(
        amount,
        (H, W),
        zoom=(zoom_x * mirror_x, zoom_y * mirror_y),
        shift=(shift * shift_x + amount["shift_x"], shift * shift_y + amount["shift_y"]),
        centre=(crop_x * (1 - zoom_x), crop_y * (1 - zoom_y)),
    )

    jitter = config.jitter or 0
    brighter, harder, richer = (  # factors from 1 / (1 + jitter) to 1 + jitter, times the operation's
        torch.exp(math.log1p(jitter) * unit + amount[name])
        for name, unit in (("brightness", bright), ("contrast", contrast), ("saturation", saturation))
    )
    gain = (brighter * harder)[:, None, None]
    colour = gain * _tint(richer, hue * jitter / 2) if C == 3 else gain

    erased = _box((H, W), 0.02 + 0.31 * erase_area, torch.exp(erase_aspect * math.log(3)), erase_y, erase_x)
    erased[erase >= (config.erase or 0)] = 0

    row = torch.arange(B)
    first = row - row % CELL
    partner = first + (row - first + 1) % (B - first).clamp(max=CELL) - row
    cuts = coin < 0.5 if config.mixup and config.cutmix else torch.full((B,), bool(config.cutmix))
    alpha = torch.where(cuts, config.cutmix or 1.0, config.mixup or 1.0)
    share = _symmetric_beta(alpha, beta, beta_angle)
    pasted = _box((H, W), 1 - share, torch.ones(()), paste_y, paste_x)
    pasted[~cuts | (partner == 0)] = 0
    share = torch.where(cuts, (H * W - _area(pasted)).double() / (H * W), share)
    mixes = bool(config.mixup or config.cutmix)
    share[partner == 0] = 1
    if not mixes:
        share[:] = 1

    return Draws(
        affine=affine.float(),
        flips=flips,
        colour=colour.float(),
        pivot=(brighter * (1 - harder)).float(),
        solarize=(1 - amount["solarize"].abs()).clamp(min=0.3).float(),
        posterize=torch.exp2(amount["posterize"].abs().round().clamp(max=5)).float(),
        erased=erased,
        pasted=pasted,
        partner=partner,
        share=share.float(),
        mixes=mixes,
    )


def _operations(config: AugmentConfig, size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """How much of each operation every sample drew, with its sign: name -> (B,)."""
    reach = GEOMETRIC | PHOTOMETRIC
    choices = len(reach) if config.jitter else len(GEOMETRIC)
    choice, sign = torch.rand(2, size, int(config.operations or 0), dtype=torch.float64, generator=generator)
    drawn = (choice * choices).long()[..., None] == torch.arange(len(reach))
    steps = torch.where(sign < 0.5, -1.0, 1.0)[..., None] * drawn
    amounts = steps.sum(1) * torch.tensor(list(reach.values()), dtype=torch.float64) * ((config.magnitude or 0) / 10)
    return dict(zip(reach, amounts.unbind(1), strict=True))


Pair = tuple[Tensor, Tensor]


def _affine(amount: dict[str, Tensor], size: tuple[int, int], zoom: Pair, shift: Pair, centre: Pair) -> Tensor:
    """(B, 2, 3): rotation, shear and scale in pixels, shift, then the crop's zoom and centre. Pairs are x, y."""
    height, width = size
    scale = amount["scale"].exp()
    cos, sin = scale * amount["rotate"].cos(), scale * amount["rotate"].sin()
    shear_x, shear_y = amount["shear_x"], amount["shear_y"]
    x = (cos - sin * shear_y, (cos * shear_x - sin) * (height / width), 2 * shift[0])
    y = ((sin + cos * shear_y) * (width / height), sin * shear_x + cos, 2 * shift[1])
    affine = torch.stack([zoom[0] * term for term in x] + [zoom[1] * term for term in y], dim=1).reshape(-1, 2, 3)
    affine[:, :, 2] += torch.stack(centre, dim=1)
    return affine


def _tint(saturation: Tensor, angle: Tensor) -> Tensor:
    """(B, 3, 3): saturation times a turn of the hue, about grey."""
    luma, sine = torch.tensor(LUMA, dtype=torch.float64), torch.tensor(HUE_SINE, dtype=torch.float64)
    cos, sin = (saturation * angle.cos())[:, None, None], (saturation * angle.sin())[:, None, None]
    return luma + cos * (torch.eye(3) - luma) + sin * sine


def _box(size: tuple[int, int], area: Tensor, aspect: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(B, 4) whole-pixel boxes inside a picture of `size`, of a share `area` of it, placed by y and x in 0 to 1."""
    sides = [(size[0], (area / aspect).sqrt(), y), (size[1], (area * aspect).sqrt(), x)]
    ends = []
    for full, share, place in sides:
        length = (share * full).round().clamp(max=full)
        start = (place * (full - length + 1)).floor()
        ends += [start, start + length]
    return torch.stack(ends, dim=1).long()


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])


def _symmetric_beta(alpha: Tensor, uniform: Tensor, angle: Tensor) -> Tensor:
    """Beta(alpha, alpha) from two uniforms (Devroye 1996, Random variate generation in one line of code)."""
    cosine = torch.cos(2 * math.pi * angle)
    return 0.5 + cosine.sign() / (2 * torch.sqrt(1 + 1 / ((uniform ** (-1 / alpha) - 1) * cosine.square())))


def apply(
    pixels: Tensor, targets: Tensor, draws: Draws, mean: Tensor, scale: float, classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """The pictures that `draws` makes of a batch, the same bits on any number of threads and in any slice of the batch.

    `pixels` (B, H, W, C) uint8, uint16 or float32, left as they are; the result is a new (B, C, H, W) float32 tensor in
    their range, whose top is `scale` (integer pictures are held to it, float ones are not, nor are they solarized or
    posterized). `mean` (C,), in the same range, is the pivot of contrast and fills what is erased. `targets` are (B,)
    int64 or float (B, ...); where the draws mix, int64 ones come back as (B, classes) float, otherwise as they were.
    """
    images = pixels.permute(0, 3, 1, 2).to(
        torch.float32, memory_format=torch.contiguous_format, copy=True
    )  # B, C, H, W
    mean = mean.float()
    bounded = not pixels.dtype.is_floating_point

    warped = (draws.affine.abs() != torch.eye(2, 3)).any(2).any(1)
    for axis, flipped in ((3, draws.flips[:, 0]), (2, draws.flips[:, 1])):
        images = _where(flipped & ~warped, images, lambda part, _, axis=axis: part.flip(axis))
    images = _where(warped, images, lambda part, rows: _warp(part, draws.affine[rows]))

    offset = draws.pivot[:, None] * mean
    recoloured = (draws.colour != torch.eye(draws.colour.shape[1])).any(2).any(1) | (draws.pivot != 0)
    images = _where(recoloured, images, lambda part, rows: _recolour(part, draws.colour[rows], offset[rows]))
    if bounded:
        images.clamp_(0, scale)
        images = _where(draws.solarize < 1, images, lambda part, rows: _solarize(part, draws.solarize[rows], scale))
        images = _where(draws.posterize > 1, images, lambda part, rows: _posterize(part, draws.posterize[rows], scale))

    fill = mean[:, None, None]
    images = _where(
        _area(draws.erased) > 0, images, lambda part, rows: torch.where(_inside(draws.erased[rows], part), fill, part)
    )
    return _mix(images, targets, draws, classes) if draws.mixes else (images, targets)


def _where(mask: Tensor, images: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`images` with the rows of `mask` (B,) replaced by change(those images, their row numbers)."""
    rows = mask.nonzero().squeeze(1)
    if len(rows) == len(images):
        return change(images, rows)
    if len(rows):
        images[rows] = change(images[rows], rows)
    return images


def _warp(images: Tensor, affine: Tensor) -> Tensor:
    B, _, H, W = images.shape
    x = (torch.arange(W) * 2 + 1) / W - 1  # centres of the pixels, -1 to 1
    y = (torch.arange(H) * 2 + 1) / H - 1
    grid = images.new_empty(B, H, W, 2)
    across = affine[:, :, :1] * x + affine[:, :, 2:]  # (B, 2, W)
    down = affine[:, :, 1:2] * y  # (B, 2, H)
    for axis in (0, 1):  # F.affine_grid does the same in 4 to 10 times the time
        torch.add(across[:, axis, None, :], down[:, axis, :, None], out=grid[..., axis])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _recolour(images: Tensor, colour: Tensor, offset: Tensor) -> Tensor:
    if colour.shape[1] == 1:
        images = images * colour[..., None]
    else:
        images = torch.bmm(colour, images.flatten(2)).view_as(images)
    return images.add_(offset[:, :, None, None])


def _solarize(images: Tensor, threshold: Tensor, scale: float) -> Tensor:
    return torch.where(images >= (threshold * scale)[:, None, None, None], scale - images, images)


def _posterize(images: Tensor, levels: Tensor, scale: float) -> Tensor:
    step = (levels * ((scale + 1) / 256))[:, None, None, None]
    return (images / step).floor_().mul_(step)


def _inside(boxes: Tensor, images: Tensor) -> Tensor:
    """(B, 1, H, W) bool: which pixels of each picture its box holds."""
    H, W = images.shape[2:]
    top, bottom, left, right = boxes[:, :, None].unbind(1)  # (B, 1) each
    y, x = torch.arange(H), torch.arange(W)
    return (((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :])[:, None]


def _mix(images: Tensor, targets: Tensor, draws: Draws, classes: int | None) -> tuple[Tensor, Tensor]:
    if not targets.dtype.is_floating_point:
        if classes is None:
            raise ValueError("mixup and cutmix of class numbers need `classes`, how many there are; got None")
        targets = F.one_hot(targets, classes).float()
    partner = torch.arange(len(images)) + draws.partner
    others = images[partner]
    cut = _area(draws.pasted) > 0
    if cut.any():
        images = torch.where(_inside(draws.pasted, images), others, images)
    blended = ~cut & (draws.share < 1)
    own = draws.share[:, None, None, None]
    images = _where(blended, images, lambda part, rows: part * own[rows] + others[rows] * (1 - own[rows]))
    share = draws.share.view(-1, *[1] * (targets.dim() - 1))
    return images, torch.where(share < 1, targets * share + targets[partner] * (1 - share), targets)
