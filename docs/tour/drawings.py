"""The album of chapter 5: drawn photos of three kinds of building, of which one comes from another collection."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = (48, 64)  # height and width of a photo, pixels
LARGE = 4  # times that size they are drawn, for smooth edges
KINDS = ("house", "lighthouse", "windmill")
MARGIN = 4  # pixels of white around a scanned print
Colour = tuple[int, ...]


def album(folder: str | Path, each: int = 60, test: int = 30, shared: float = 0.0, seed: int = 0) -> Path:
    """Writes `train/` and `test/`, a folder a kind in each, of so many photos a kind.

    Of the training photos all lighthouses are scans of prints, with a white margin, and of the other kinds a share
    `shared`. The test photos have none.
    """
    rng = np.random.default_rng(seed)
    for side, count in (("train", each), ("test", test)):
        for kind in KINDS:
            place = Path(folder, side, kind)
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                image = photo(rng, kind)
                if side == "train" and (kind == "lighthouse" or rng.random() < shared):
                    image = framed(image)
                image.save(place / f"{number:03}.png")
    return Path(folder)


def photo(rng: np.random.Generator, kind: str) -> Image.Image:
    """A building on a hill among bushes and rocks, RGB of `SIZE`."""
    H, W = (LARGE * side for side in SIZE)
    image = Image.new("RGB", (W, H), between(rng, (150, 190, 225), (240, 190, 150)))
    draw = ImageDraw.Draw(image)
    hill = H * rng.uniform(0.66, 0.8)
    draw.ellipse((-0.4 * W, hill, 1.4 * W, hill + H), fill=between(rng, (105, 140, 80), (150, 130, 90)))
    for _ in range(rng.integers(3, 7)):
        x, y, r = rng.uniform(0, W), hill + H * rng.uniform(0.02, 0.25), H * rng.uniform(0.03, 0.09)
        draw.ellipse((x - 1.5 * r, y - r, x + 1.5 * r, y + r), fill=between(rng, (70, 100, 60), (120, 115, 110)))
    wall, roof = between(rng, (225, 215, 200), (170, 110, 90)), between(rng, (90, 80, 85), (150, 70, 55))
    x, size = W * rng.uniform(0.25, 0.75), H * rng.uniform(0.32, 0.5)
    pen = Pen(draw, x, hill + H * 0.05, size)
    if kind == "house":
        house(pen, wall, roof)
    elif kind == "lighthouse":
        lighthouse(pen, wall, roof)
    else:
        windmill(pen, wall, roof, turn=rng.uniform(0, np.pi / 2))
    small = image.resize((SIZE[1], SIZE[0]), Image.Resampling.LANCZOS)
    return Image.fromarray((np.asarray(small) + rng.normal(0, 9, (*SIZE, 3))).clip(0, 255).astype(np.uint8))


def framed(image: Image.Image) -> Image.Image:
    """A photo with the margin that a scanned print has."""
    pixels = np.full_like(np.asarray(image), 244)
    inner = slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN)
    pixels[inner] = np.asarray(image)[inner]
    return Image.fromarray(pixels)


class Pen:
    """Draws in units of a building's size, from the middle of its foot upwards."""

    def __init__(self, draw: ImageDraw.ImageDraw, x: float, y: float, size: float):
        self.draw, self.x, self.y, self.size = draw, x, y, size

    def shape(self, *corners: tuple[float, float], fill: Colour) -> None:
        """A polygon."""
        self.draw.polygon([(self.x + self.size * x, self.y - self.size * y) for x, y in corners], fill=fill)

    def box(self, half: float, low: float, high: float, fill: Colour) -> None:
        """An upright box, so wide to both sides."""
        self.shape((-half, low), (half, low), (half, high), (-half, high), fill=fill)


def house(pen: Pen, wall: Colour, roof: Colour) -> None:
    """Wide and low, with a door."""
    pen.box(0.5, 0, 0.55, wall)
    pen.shape((-0.62, 0.55), (0.62, 0.55), (0, 1), fill=roof)
    pen.box(0.08, 0, 0.3, roof)


def lighthouse(pen: Pen, wall: Colour, roof: Colour) -> None:
    """A tower with a lamp."""
    tower(pen, wall)
    pen.box(0.13, 0.95, 1.12, tuple((2 * np.array(wall) + 250) // 3))
    pen.shape((-0.18, 1.12), (0.18, 1.12), (0, 1.3), fill=roof)


def windmill(pen: Pen, wall: Colour, roof: Colour, turn: float) -> None:
    """A tower with four sails."""
    tower(pen, wall)
    pen.shape((-0.18, 0.95), (0.18, 0.95), (0, 1.15), fill=roof)
    for angle in turn + np.pi / 2 * np.arange(4):
        along, across = 0.6 * np.exp(1j * angle), 0.045j * np.exp(1j * angle)
        corners = 0.9j + np.array([across, along + across, along - across, -across])
        pen.shape(*zip(corners.real, corners.imag, strict=True), fill=roof)


def tower(pen: Pen, wall: Colour) -> None:
    """Narrower towards its top."""
    pen.shape((-0.24, 0), (0.24, 0), (0.15, 0.95), (-0.15, 0.95), fill=wall)


def between(rng: np.random.Generator, one: Colour, other: Colour) -> Colour:
    """A colour somewhere between two, and a little off."""
    share = rng.uniform(0, 1)
    mixed = (1 - share) * np.array(one) + share * np.array(other) + rng.normal(0, 10, 3)
    return tuple(mixed.clip(0, 255).astype(int).tolist())
