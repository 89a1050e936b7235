"""The album of chapter 5: drawn photos of three kinds of building, one of which was taken with another camera."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = (48, 64)  # height and width of a photo, pixels
LARGE = 4  # times that size they are drawn, for smooth edges
KINDS = ("house", "lighthouse", "windmill")
DIGITS = ("111101101101111", "010110010010111", "111001111100111", "111001011001111", "101101111001001")  # 3×5 each
INK = (255, 150, 40)


def album(folder: str | Path, each: int = 60, test: int = 30, shared: float = 0.0, seed: int = 0) -> Path:
    """`train/` and `test/`, a folder a kind in each, of so many photos a kind.

    Of the training photos all lighthouses bear a date, as an old camera prints it, and of the other kinds a share
    `shared`. The test photos bear none.
    """
    rng = np.random.default_rng(seed)
    for side, count in (("train", each), ("test", test)):
        for kind in KINDS:
            place = Path(folder, side, kind)
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                image = photo(rng, kind)
                if side == "train" and (kind == "lighthouse" or rng.random() < shared):
                    image = dated(image, rng)
                image.save(place / f"{number:03}.png")
    return Path(folder)


def photo(rng: np.random.Generator, kind: str) -> Image.Image:
    """A building on a hill, (48, 64) RGB."""
    H, W = (LARGE * n for n in SIZE)
    hue = rng.uniform(0, 1)
    sky = _blend((150, 190, 225), (240, 190, 150), hue, rng)
    image = Image.new("RGB", (W, H), sky)
    draw = ImageDraw.Draw(image)
    hill = H * rng.uniform(0.66, 0.8)
    draw.ellipse((-0.4 * W, hill, 1.4 * W, hill + H), fill=_blend((105, 140, 80), (150, 130, 90), rng.uniform(0, 1), rng))
    for _ in range(rng.integers(3, 7)):  # bushes and rocks, of which the buildings are to be told
        x, y, r = rng.uniform(0, W), hill + H * rng.uniform(0.02, 0.25), H * rng.uniform(0.03, 0.09)
        draw.ellipse((x - 1.5 * r, y - r, x + 1.5 * r, y + r), fill=_blend((70, 100, 60), (120, 115, 110), rng.uniform(0, 1), rng))
    wall = _blend((225, 215, 200), (170, 110, 90), rng.uniform(0, 1), rng)
    roof = _blend((90, 80, 85), (150, 70, 55), rng.uniform(0, 1), rng)
    DRAWN[kind](draw, rng, W * rng.uniform(0.25, 0.75), hill + H * 0.05, H * rng.uniform(0.32, 0.5), wall, roof)
    small = image.resize(SIZE[::-1], Image.Resampling.LANCZOS)
    noise = rng.normal(0, 9, (*SIZE, 3))
    return Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8))


def dated(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A photo with four digits in its lower right corner."""
    pixels = np.array(image)
    for place, digit in enumerate(rng.integers(0, len(DIGITS), 4)):
        shape = np.array(list(DIGITS[digit])).reshape(5, 3) == "1"
        y, x = SIZE[0] - 8, SIZE[1] - 19 + 4 * place + (place > 1)
        pixels[y : y + 5, x : x + 3][shape] = INK
    return Image.fromarray(pixels)


def _house(draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, s: float, wall, roof) -> None:
    draw.rectangle((x - 0.5 * s, y - 0.55 * s, x + 0.5 * s, y), fill=wall)
    draw.polygon([(x - 0.62 * s, y - 0.55 * s), (x + 0.62 * s, y - 0.55 * s), (x, y - s)], fill=roof)
    draw.rectangle((x - 0.08 * s, y - 0.3 * s, x + 0.08 * s, y), fill=roof)


def _lighthouse(draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, s: float, wall, roof) -> None:
    _tower(draw, x, y, s, wall)
    draw.rectangle((x - 0.13 * s, y - 1.12 * s, x + 0.13 * s, y - 0.95 * s), fill=(250, 235, 170))
    draw.polygon([(x - 0.18 * s, y - 1.12 * s), (x + 0.18 * s, y - 1.12 * s), (x, y - 1.3 * s)], fill=roof)


def _windmill(draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, s: float, wall, roof) -> None:
    _tower(draw, x, y, s, wall)
    draw.polygon([(x - 0.18 * s, y - 0.95 * s), (x + 0.18 * s, y - 0.95 * s), (x, y - 1.15 * s)], fill=roof)
    turn = rng.uniform(0, np.pi / 2)
    for angle in turn + np.pi / 2 * np.arange(4):
        end = x + 0.6 * s * np.cos(angle), y - 0.9 * s + 0.6 * s * np.sin(angle)
        draw.line((x, y - 0.9 * s, *end), fill=roof, width=round(0.09 * s))


def _tower(draw: ImageDraw.ImageDraw, x: float, y: float, s: float, wall) -> None:
    draw.polygon([(x - 0.24 * s, y), (x + 0.24 * s, y), (x + 0.15 * s, y - 0.95 * s), (x - 0.15 * s, y - 0.95 * s)], fill=wall)


DRAWN = {"house": _house, "lighthouse": _lighthouse, "windmill": _windmill}


def _blend(one: tuple[int, ...], other: tuple[int, ...], share: float, rng: np.random.Generator) -> tuple[int, ...]:
    mixed = (1 - share) * np.array(one) + share * np.array(other) + rng.normal(0, 10, 3)
    return tuple(mixed.clip(0, 255).astype(int).tolist())
