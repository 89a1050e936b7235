"""Small data that these pages draw for themselves: what a reader has in a folder of their own."""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import tifffile
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

SKY, SEA, GRASS = (168, 205, 232), (64, 110, 160), (120, 165, 90)
THINGS = ("boat", "house", "tree")


def drawings(folder: str | Path, each: int = 32, seed: int = 0, size: tuple[int, int] = (32, 48)) -> Path:
    """A class folder of `each` drawings, RGB, `size` (height, width) pixels, of boats, houses and trees."""
    rng = np.random.default_rng(seed)
    for name in THINGS:
        for number in range(each):
            file = Path(folder, name, f"{number:03}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            scene(rng, [name], size).save(file)
    return Path(folder)


def scenes(table: str | Path, count: int = 96, seed: int = 0) -> Path:
    """A table of drawings and of what is in each, as three columns of 0 and 1."""
    rng = np.random.default_rng(seed)

    def rows() -> Iterable[tuple]:
        for number in range(count):
            there = rng.integers(0, 2, len(THINGS))
            file = Path(table).with_suffix("") / f"{number:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            scene(rng, [name for name, has in zip(THINGS, there, strict=True) if has]).save(file)
            yield (file.relative_to(Path(table).parent).as_posix(), *there)

    return _table(table, ("path", *THINGS), rows())


def gauges(table: str | Path, count: int = 96, seed: int = 0) -> Path:
    """A table of pictures of gauges: path, the meter (of which there are four pictures each), the pressure in bar."""
    rng = np.random.default_rng(seed)
    faces = [tuple(face) for face in rng.integers(170, 250, (count, 3)).tolist()]

    def rows() -> Iterable[tuple]:
        for number in range(count):
            face = faces[number // 4]
            pressure = rng.uniform(0, 10)
            file = Path(table).with_suffix("") / f"{number:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            gauge(rng, pressure, face).save(file)
            yield file.relative_to(Path(table).parent).as_posix(), f"meter {number // 4}", f"{pressure:.2f}"

    return _table(table, ("path", "meter", "pressure (bar)"), rows())


def spectrograms(folder: str | Path, each: int = 32, seed: int = 0) -> Path:
    """A class folder of `each` arrays (48 frequencies, 64 times) float32, of calls that rise, fall or warble."""
    rng = np.random.default_rng(seed)
    for name, course in CALLS.items():
        for number in range(each):
            file = Path(folder, name, f"{number:03}.npy")
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, spectrogram(rng, course))
    return Path(folder)


def scans(table: str | Path, count: int = 96, seed: int = 0) -> Path:
    """A table of tall drill cores (128×32, one channel of 16 bits, TIFF) and of the depth of an ash layer, in cm."""
    rng = np.random.default_rng(seed)

    def rows() -> Iterable[tuple]:
        for number in range(count):
            depth = rng.uniform(2, 30)
            file = Path(table).with_suffix("") / f"core-{number:03}.tif"
            file.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(file, core(rng, depth))
            yield file.relative_to(Path(table).parent).as_posix(), f"{depth:.2f}"

    return _table(table, ("path", "ash (cm)"), rows())


def scene(rng: np.random.Generator, things: Iterable[str], size: tuple[int, int] = (32, 48)) -> Image.Image:
    """Land, sky, and the things; a boat brings its sea."""
    H, W = size
    things = list(things)
    image = Image.new("RGB", (W, H), _near(rng, SKY))
    draw = ImageDraw.Draw(image)
    horizon = H * rng.uniform(0.6, 0.7)
    draw.rectangle((0, horizon, W, H), fill=_near(rng, SEA if "boat" in things else GRASS))
    for name, place in zip(things, rng.permutation(3), strict=False):
        x = W * (place + 0.5 + rng.uniform(-0.15, 0.15)) / 3
        DRAWN[name](rng, draw, x, horizon + H * rng.uniform(0, 0.15), H * rng.uniform(0.28, 0.4))
    noise = rng.normal(0, 6, (H, W, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def _boat(rng: np.random.Generator, draw: ImageDraw.ImageDraw, x: float, y: float, s: float) -> None:
    draw.polygon([(x - s / 2, y), (x + s / 2, y), (x + s / 3, y + s / 4), (x - s / 3, y + s / 4)], fill=(96, 62, 40))
    draw.polygon([(x, y - s), (x, y - s / 10), (x + s / 2, y - s / 10)], fill=_near(rng, (245, 245, 240)))


def _house(rng: np.random.Generator, draw: ImageDraw.ImageDraw, x: float, y: float, s: float) -> None:
    draw.rectangle((x - s / 2, y - s * 0.6, x + s / 2, y), fill=_near(rng, (225, 205, 170)))
    draw.polygon([(x - s * 0.6, y - s * 0.6), (x + s * 0.6, y - s * 0.6), (x, y - s * 1.1)], fill=(165, 60, 50))
    draw.rectangle((x - s / 10, y - s * 0.35, x + s / 10, y), fill=(80, 60, 50))


def _tree(rng: np.random.Generator, draw: ImageDraw.ImageDraw, x: float, y: float, s: float) -> None:
    draw.rectangle((x - s / 12, y - s * 0.5, x + s / 12, y), fill=(90, 65, 45))
    draw.ellipse((x - s * 0.4, y - s * 1.15, x + s * 0.4, y - s * 0.35), fill=_near(rng, (60, 120, 60)))


DRAWN: dict[str, Callable[..., None]] = {"boat": _boat, "house": _house, "tree": _tree}


def gauge(rng: np.random.Generator, pressure: float, face: tuple[int, ...], size: int = 40) -> Image.Image:
    """A round face with a needle, which turns by 270° from 0 to 10 bar."""
    image = Image.new("RGB", (224, 224), _near(rng, (90, 95, 100)))  # drawn large, for smooth edges
    draw = ImageDraw.Draw(image)
    x, y = 112 + rng.uniform(-12, 12, 2)
    draw.ellipse((x - 95, y - 95, x + 95, y + 95), fill=face, outline=(40, 40, 45), width=8)
    for tick in range(11):
        inner, outer = _on_face(x, y, tick, 70), _on_face(x, y, tick, 84)
        draw.line((*inner, *outer), fill=(50, 50, 55), width=5)
    draw.line((x, y, *_on_face(x, y, pressure, 72)), fill=(190, 40, 30), width=9)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def _on_face(x: float, y: float, pressure: float, radius: float) -> tuple[float, float]:
    angle = np.deg2rad(135 + 27 * pressure)
    return x + radius * np.cos(angle), y + radius * np.sin(angle)


CALLS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "falling": lambda t: 1 - t,
    "rising": lambda t: t,
    "warbling": lambda t: 0.5 + 0.4 * np.sin(4 * np.pi * t),
}


def spectrogram(rng: np.random.Generator, course: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Decibels (48 frequencies, 64 times) float32: a call with a harmonic somewhere in noise."""
    levels = rng.normal(-60, 4, (48, 64))
    length = int(rng.integers(28, 48))
    start = int(rng.integers(0, 64 - length))
    pitch = rng.uniform(5, 9) + 14 * course(np.linspace(0, 1, length))
    for harmonic, loudness in ((1, 34), (2, 20)):
        distance = np.arange(48)[:, None] - harmonic * pitch
        levels[:, start : start + length] += loudness * np.exp(-np.square(distance) / 4)
    return levels.astype(np.float32)


def core(rng: np.random.Generator, depth: float) -> np.ndarray:
    """(128, 32) uint16: 32 cm of layered sediment, with a dark layer of ash so many cm below the top."""
    layers = np.interp(np.arange(128), np.arange(0, 129, 8), rng.uniform(28_000, 44_000, 17))
    rows = layers[:, None] + 1_500 * rng.standard_normal((128, 32))
    tilt = rng.uniform(-0.06, 0.06) * (np.arange(32) - 15.5)
    rows[np.abs(np.arange(128)[:, None] - 4 * depth - tilt) < 3] *= 0.35
    return rows.clip(0, 65_535).astype(np.uint16)


def _near(rng: np.random.Generator, colour: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple((np.asarray(colour) + rng.integers(-18, 19, 3)).clip(0, 255).tolist())


def sheet(figure: Figure, pictures: Sequence[Image.Image | np.ndarray], titles: Sequence[str] = ()) -> None:
    """Draws pictures in a row, for `showing.show`, of one channel in grey, with what each is."""
    for number, (axes, picture) in enumerate(zip(figure.subplots(1, len(pictures)), pictures, strict=True)):
        axes.imshow(picture, cmap="gray", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if titles:
            axes.set_title(titles[number], fontweight="normal", loc="center")


def _table(path: str | Path, header: tuple[str, ...], rows: Iterable[tuple]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return Path(path)
