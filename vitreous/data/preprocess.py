"""InputSpec: how any picture becomes the pixels that the model sees. The one decode-and-resize of the project."""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from vitreous.data.decode import MAX_PIXELS, Facts, decoder_name, read_header, read_pixels
from vitreous.data.workers import DECODERS
from vitreous.errors import InputError, counted
from vitreous.fields import broken_rules, read_fields

if TYPE_CHECKING:  # the processes that decode do without
    from torch import Tensor

RANGES = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}  # the top of each depth's range
MOST_SIZES = 8
MOST_PIXELS, MOST_CHANNELS = 1 << 26, 4_096  # of what a model takes: 8192×8192
RARE = 0.01  # a shape of fewer than this share of the pictures gets no size of its own
Size = tuple[int, int]


@dataclass(frozen=True)
class InputSpec:
    """What pixels a model takes. Inferred from the data, stored with the model, the same wherever it is used."""

    channels: int
    depth: str  # "uint8", "uint16" or "float32"
    sizes: tuple[Size, ...]  # (height, width) in pixels; a picture takes the one nearest in log(height / width)
    mean: tuple[float, ...] = ()  # a channel, in units of the depth's range
    std: tuple[float, ...] = ()
    convert: bool = False  # channels or depth were asked for: convert even where something is lost
    max_pixels: int = MAX_PIXELS
    decoder: str = ""  # name and version of what decoded the training pictures

    @property
    def scale(self) -> float:
        """The top of the pixels' range: 255, 65535, or 1."""
        return RANGES[self.depth]

    def size_of(self, height: int, width: int) -> int:
        """Which of `sizes` a picture of this shape takes; depends on nothing else."""
        aspect = np.log(height / width)
        return int(np.argmin([abs(np.log(h / w) - aspect) for h, w in self.sizes]))

    def read(self, picture: bytes | np.ndarray, name: str) -> tuple[int, np.ndarray]:
        """A file's bytes or an array to (which size, pixels (H, W, C) of that size in the model's depth).

        A file is opened by a process of its own, which is all that it can harm. Raises `InputError`, with the
        picture's name, for what cannot be read or would lose something.
        """
        if isinstance(picture, np.ndarray):
            return self.read_here(picture, name)
        return DECODERS.read(self, picture, name)

    def read_all(self, pictures: Sequence[bytes], names: Sequence[str]) -> list[tuple[int, np.ndarray] | InputError]:
        """What `read` gives of each of some files, or raises at it, at less cost than one by one."""
        return DECODERS.read_all(self, pictures, names)

    def read_here(self, picture: bytes | np.ndarray, name: str) -> tuple[int, np.ndarray]:
        """`read`, in this process."""
        header = read_header(picture, name, self.max_pixels)
        facts = header.facts
        if misfit := self.misfit(facts):
            raise InputError(f"{name}: {misfit}; convert the picture, or train with others like it")
        number = self.size_of(facts.height, facts.width)
        height, width = self.sizes[number]
        pixels = read_pixels(header, name, at_least=(2 * height, 2 * width))
        return number, resize(self._converted(pixels), (height, width))

    def misfit(self, facts: Facts) -> str:
        """What is other than the model was made for, channels or depth, in words; "" where all fits."""
        grey_to_rgb = facts.channels == 1 and self.channels == 3
        if facts.channels != self.channels and not grey_to_rgb and not (self.convert and self.channels == 1):
            return f"{_channels(facts.channels)}, where the model expects {_channels(self.channels)}"
        both_integer = "float32" not in (facts.depth, self.depth)
        if facts.depth != self.depth and not (self.convert and both_integer):
            return f"{facts.depth} pixels, where the model expects {self.depth}"
        return ""

    def normalise(self, pixels: "Tensor") -> "Tensor":
        """(B, C, H, W) in the depth's range -> float32 with mean 0 and deviation 1 over the training pictures."""
        import torch

        mean, std = (torch.tensor(v, device=pixels.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return pixels.float().mul(1 / (self.scale * std)).sub_(mean / std)

    def pixel_key(self) -> str:
        """All that the pixels of `read` depend on, as text."""
        return f"{self.channels} {self.depth} {self.sizes} {self.convert} {self.max_pixels} {decoder_name()}"

    @functools.cached_property
    def text(self) -> str:
        """`to_json`, as text."""
        return json.dumps(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The spec that `to_json` wrote. Raises `InputError` for anything else, and for sizes beyond all sense."""
        spec = read_fields(cls, values, "an input spec that cannot be read")
        rules = (
            ("channels", 1 <= spec.channels <= MOST_CHANNELS, f"1 to {MOST_CHANNELS:,}"),
            ("depth", spec.depth in RANGES, f"one of {', '.join(RANGES)}"),
            ("sizes", 1 <= len(spec.sizes) <= MOST_SIZES, f"1 to {MOST_SIZES} of them"),
            ("sizes", all(min(size) >= 1 for size in spec.sizes), "numbers above 0"),
            ("sizes", all(h * w <= MOST_PIXELS for h, w in spec.sizes), f"at most {MOST_PIXELS:,} pixels"),
            ("mean", len(spec.mean) == spec.channels, f"{counted(spec.channels, 'number')}, one a channel"),
            ("std", len(spec.std) == spec.channels, f"{counted(spec.channels, 'number')}, one a channel"),
            ("std", all(number > 0 for number in spec.std), "numbers above 0"),
            ("max_pixels", spec.max_pixels >= 1, "1 or more"),
        )
        if faults := broken_rules(spec, rules):
            raise InputError.listing("an input spec that cannot be used:", faults)
        return spec

    def _converted(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[2] == 1 and self.channels == 3:
            pixels = pixels.repeat(3, 2)
        elif pixels.shape[2] != self.channels:
            weights = (0.299, 0.587, 0.114) if pixels.shape[2] == 3 else np.full(pixels.shape[2], 1 / pixels.shape[2])
            grey = (pixels @ np.asarray(weights, np.float32))[..., None]
            pixels = grey if pixels.dtype == np.float32 else np.rint(grey).astype(pixels.dtype)
        if pixels.dtype == np.uint16 and self.depth == "uint8":
            pixels = np.rint(pixels / 257).astype(np.uint8)
        elif pixels.dtype == np.uint8 and self.depth == "uint16":
            pixels = pixels.astype(np.uint16) * 257
        return pixels


def infer_spec(
    facts: Sequence[Facts],
    names: Sequence[str],
    *,
    size: str,
    stride: Size,
    channels: int | None = None,
    depth: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> InputSpec:
    """The spec of a set of pictures: their channels and depth, and sizes that keep their shapes.

    Grey among RGB becomes RGB; anything else that differs is an `InputError` that names the odd ones, unless
    `channels` or `depth` asks for a conversion. `mean` and `std` are filled in once the pixels are decoded.
    """
    wanted_channels = channels or _majority([f.channels for f in facts], merge_grey=True)
    wanted_depth = depth or _majority([f.depth for f in facts])
    spec = InputSpec(
        channels=wanted_channels,
        depth=wanted_depth,
        sizes=choose_sizes([(f.height, f.width) for f in facts], size, stride),
        convert=channels is not None or depth is not None,
        max_pixels=max_pixels,
        decoder=decoder_name(),
    )
    misfits = [spec.misfit(fact) for fact in facts]
    if faults := [f"{name}: {misfit}" for name, misfit in zip(names, misfits, strict=True) if misfit]:
        count = f"{len(faults):,} of {counted(len(facts), 'picture')} {'is' if len(faults) == 1 else 'are'}"
        convert = "" if spec.convert else f", or convert all, at a loss: {_conversion(spec, facts)}"
        raise InputError.listing(f"{count} of another kind:", faults, f"leave these out{convert}")
    return spec


def _conversion(spec: InputSpec, facts: Sequence[Facts]) -> str:
    """The options of train that make all pictures alike."""
    deep = any(fact.depth != spec.depth for fact in facts)
    odd = any(fact.channels not in (1, spec.channels) for fact in facts) or spec.channels not in (1, 3)
    return " ".join(["--channels 1"] * odd + ["--depth uint8"] * deep)


def choose_sizes(shapes: Sequence[Size], size: str, stride: Size) -> tuple[Size, ...]:
    """At most eight sizes (height, width) in multiples of `stride`, that keep the aspect ratios of `shapes`.

    `size` is "224" for about the area of 224², "160x384" for just that, or "auto": the pictures' own size where
    they are at most 64 pixels a side, else 160.
    """
    fixed, side = parse_size(size)
    if fixed:
        if any(n % s for n, s in zip(fixed, stride, strict=True)):
            near = "x".join(str(max(s, round(n / s) * s)) for n, s in zip(fixed, stride, strict=True))
            raise InputError(
                f"--size {size} does not divide by the model's stride of {stride[0]}×{stride[1]}: {near} would"
            )
        return (fixed,)
    sides = np.asarray(shapes, dtype=float)
    if side is None:
        own = float(np.sqrt(np.median(sides.prod(1))))
        side = own if own <= 64 else 160
    aspects = np.sort(np.log(sides[:, 0] / sides[:, 1]))
    for spread in (0.12, 0.25, 0.5, 1.0, 2.0, np.inf):
        groups = _cover(aspects, spread)
        common = [group for group in groups if len(group) >= RARE * len(aspects)]
        if len(common) <= MOST_SIZES:
            break
    return tuple(sorted({_fit(float(np.median(group)), side, stride) for group in common or groups[:1]}))


def parse_size(size: str) -> tuple[Size | None, float | None]:
    """ "160x384" -> ((160, 384), None); "224" -> (None, 224.0); "auto" -> (None, None)."""
    if size == "auto":
        return None, None
    try:
        numbers = [int(part) for part in size.lower().replace("×", "x").split("x")]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 2 or min(numbers) < 1:
        raise InputError(f"--size {size}: expected one number (224: about the area of 224²) or HEIGHTxWIDTH (160x384)")
    return ((numbers[0], numbers[1]), None) if len(numbers) == 2 else (None, float(numbers[0]))


def resize(pixels: np.ndarray, size: Size) -> np.ndarray:
    """(h, w, C) -> (H, W, C) of the same depth, bicubic with antialias; unchanged where the size already fits."""
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    bands = pixels.shape[2]
    if pixels.dtype == np.uint8 and bands in (1, 3):
        image = Image.fromarray(pixels if bands == 3 else pixels[..., 0])
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, bands)
    out = np.empty((height, width, bands), np.float32)
    for band in range(bands):
        image = Image.fromarray(pixels[..., band].astype(np.float32))
        out[..., band] = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    if pixels.dtype == np.float32:
        return out
    return np.rint(out.clip(0, RANGES[str(pixels.dtype)])).astype(pixels.dtype)


def shrink(shapes: Sequence[Size], spec: InputSpec) -> float:
    """How many times smaller the median picture gets, on the side that loses most."""
    ratios = []
    for height, width in shapes:
        new_height, new_width = spec.sizes[spec.size_of(height, width)]
        ratios.append(max(height / new_height, width / new_width))
    return float(np.median(ratios))


def _cover(values: np.ndarray, spread: float) -> list[np.ndarray]:
    """Sorted values, cut into runs that each span at most `spread`."""
    groups, start = [], 0
    while start < len(values):
        end = int(np.searchsorted(values, values[start] + spread, side="right"))
        groups.append(values[start:end])
        start = end
    return groups


def _fit(aspect: float, side: float, stride: Size) -> Size:
    """The grid of about side² pixels whose log(height / width) is nearest to `aspect`, in pixels."""
    sh, sw = stride
    tokens = max(side * side / (sh * sw), 1.0)

    def distance(grid: Size) -> float:
        gh, gw = grid
        return abs(np.log(gh * sh / (gw * sw)) - aspect) + 0.5 * abs(np.log(gh * gw / tokens))

    most = int(tokens * 1.1)
    grids = [(gh, gw) for gh in range(1, most + 1) for gw in range(1, most // gh + 1)]
    gh, gw = min(grids, key=distance)
    return gh * sh, gw * sw


def _majority(values: Sequence[Any], merge_grey: bool = False) -> Any:
    kinds = Counter(values)
    return 3 if merge_grey and set(kinds) == {1, 3} else kinds.most_common(1)[0][0]


def _channels(count: int) -> str:
    return {1: "one channel (grey)", 3: "three channels (RGB)"}.get(count, f"{count} channels")
