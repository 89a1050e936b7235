"""Odd and broken pictures of many kinds, made here, each with the pixels that it stands for by its own construction.

A kind is a function of a random generator: called again it makes another picture of its kind, of another size and other
parameters. Used by the tests and by `benchmarks/lines/pictures.py`.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pillow_heif
import tifffile
from PIL import Image

from vitreous.data.preprocess import InputSpec
from vitreous.errors import InputError

Random = np.random.Generator


@dataclass(frozen=True)
class Odd:
    """A file, what its pixels are (H, W, C), how near they must come, and whether a refusal is right as well."""

    file: bytes
    pixels: np.ndarray | None = None  # None: it must be refused
    tolerance: int = 0
    or_refused: bool = False
    name: str = "odd.jpg"


KINDS: dict[str, Callable[[Random], Odd]] = {}


def kind(make: Callable[[Random], Odd]) -> Callable[[Random], Odd]:
    KINDS[make.__name__] = make
    return make


# What pictures are made of


def side(rng: Random) -> int:
    return int(rng.integers(2, 41))


def noise(rng: Random, channels: int, dtype: str = "uint8", top: int | None = None) -> np.ndarray:
    shape = (side(rng), side(rng), channels)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max if top is None else top, shape, dtype=dtype, endpoint=True)


def smooth(rng: Random, channels: int) -> np.ndarray:
    """Slopes that a lossy format keeps; no two orientations of them are alike."""
    height, width = 8 * int(rng.integers(2, 6)), 8 * int(rng.integers(2, 6))
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [60 + 3 * rows * rng.uniform(0.3, 1) + columns * rng.uniform(0.3, 1) for _ in range(channels)]
    return np.stack(planes, axis=2).clip(0, 255).astype(np.uint8)


def pillow(pixels: np.ndarray, mode: str | None = None) -> Image.Image:
    pixels = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()) if mode else Image.fromarray(pixels)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    colours = "rgb" if pixels.ndim == 3 and pixels.shape[2] == 3 else "minisblack"
    tifffile.imwrite(stream, pixels, **{"photometric": colours, **options})
    return stream.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def packed(pixels: np.ndarray, bits: int) -> bytes:
    """(h, w, samples) as rows of a PNG, each behind filter 0."""
    if bits == 16:
        rows = pixels.astype(">u2").view(np.uint8).reshape(len(pixels), -1)
    elif bits == 8:
        rows = pixels.reshape(len(pixels), -1)
    else:
        spread = np.unpackbits(pixels.reshape(len(pixels), -1, 1), axis=2)[..., 8 - bits :]
        rows = np.packbits(spread.reshape(len(pixels), -1), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in rows)


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(pixels: np.ndarray, colour: int, *extra: bytes, bits: int = 8, interlaced: bool = False, cut: int = 1) -> bytes:
    """A PNG of its samples (h, w, n), with chunks before its pixels, which come in so many parts."""
    height, width = pixels.shape[:2]
    if interlaced:
        passes = [pixels[y::down, x::across] for y, x, down, across in ADAM7]
        rows = b"".join(packed(part, bits) for part in passes if part.size)
    else:
        rows = packed(pixels, bits)
    data = zlib.compress(rows)
    parts = [data[len(data) * i // cut : len(data) * (i + 1) // cut] for i in range(cut)]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    chunks = [chunk(b"IHDR", header), *extra, *(chunk(b"IDAT", part) for part in parts), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def exif(orientation: int, big: bool = False) -> bytes:
    order = ">" if big else "<"
    fields = struct.pack(order + "HIHHHIHHI", 42, 8, 1, 274, 3, 1, orientation, 0, 0)
    return (b"MM" if big else b"II") + fields


def segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG."""
    return struct.pack(">BBH", 255, marker, len(data) + 2) + data


def over_white(pixels: np.ndarray) -> np.ndarray:
    """The definition, in exact floats."""
    top = np.iinfo(pixels.dtype).max
    colours, alpha = pixels[..., :-1].astype(np.float64), pixels[..., -1:] / top
    return np.floor(colours * alpha + top * (1 - alpha) + 0.5).astype(pixels.dtype)


def seen(stored: np.ndarray, orientation: int) -> np.ndarray:
    """How a picture that is stored like this is held, by the table of the EXIF standard."""
    turn = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation]  # quarters, counterclockwise
    stored = np.rot90(stored, turn)
    mirrored = {2: 1, 4: 1, 5: 0, 7: 0}  # the axis along which it is mirrored then
    return np.flip(stored, mirrored[orientation]) if orientation in mirrored else stored


def of_colours(rng: Random, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (h, w, 1) and a palette (count, 3)."""
    return noise(rng, 1, top=count - 1), rng.integers(0, 256, (count, 3), dtype=np.uint8)


def every_format(rng: Random) -> list[Odd]:
    """A sound file of each format."""
    grey, colour, soft = noise(rng, 1), noise(rng, 3), smooth(rng, 3)
    heif = io.BytesIO()
    pillow_heif.from_pillow(pillow(soft)).save(heif, quality=95)
    return [
        Odd(saved(pillow(soft), "JPEG", quality=95, subsampling=0), soft, 12),
        Odd(saved(pillow(soft), "JPEG", quality=95, subsampling=0, progressive=True), soft, 12),
        Odd(png(colour, 2), colour),
        Odd(png(noise16 := noise(rng, 4, "uint16"), 6, bits=16), over_white(noise16), 1),
        Odd(saved(pillow(colour), "WEBP", lossless=True), colour),
        Odd(saved(pillow(soft), "WEBP", quality=98), soft, 24),
        Odd(saved(pillow(colour), "BMP"), colour),
        Odd(saved(pillow(grey), "GIF"), grey.repeat(3, 2)),
        Odd(tiff(colour, compression="zlib"), colour),
        Odd(tiff(grey[..., 0], tile=(16, 16), compression="lzw"), grey),
        Odd(saved(pillow(soft), "AVIF", quality=95), soft, 16),
        Odd(heif.getvalue(), soft, 16),
        Odd(npy(colour), colour),
    ]


def one_format(rng: Random) -> Odd:
    sound = [odd for odd in every_format(rng) if odd.pixels is not None]
    return sound[rng.integers(len(sound))]


# Pictures that are right, however odd


@kind
def jpeg_of_inks(rng: Random) -> Odd:
    inks = smooth(rng, 4) // 2
    light = 255 - inks[..., 3:].astype(float)
    expected = np.rint(light - inks[..., :3] * light / 255).astype(np.uint8)
    return Odd(saved(pillow(inks, "CMYK"), "JPEG", quality=97, subsampling=0), expected, 14)


@kind
def jpeg_progressive(rng: Random) -> Odd:
    soft = smooth(rng, int(rng.choice([1, 3])))
    return Odd(saved(pillow(soft), "JPEG", quality=96, subsampling=0, progressive=True, optimize=True), soft, 12)


@kind
def jpeg_turned(rng: Random) -> Odd:
    soft, orientation = smooth(rng, 3), int(rng.integers(1, 9))
    block = b"Exif\0\0" + exif(orientation, big=bool(rng.integers(2)))
    file = saved(pillow(soft), "JPEG", quality=96, subsampling=0, exif=block)
    return Odd(file, seen(soft, orientation), 12)


@kind
def jpeg_with_restarts(rng: Random) -> Odd:
    soft = smooth(rng, 3)
    return Odd(saved(pillow(soft), "JPEG", quality=96, subsampling=0, restart_marker_blocks=2), soft, 12)


@kind
def jpeg_with_broken_segments(rng: Random) -> Odd:
    soft = smooth(rng, 3)
    plain = saved(pillow(soft), "JPEG", quality=96, subsampling=0)
    junk = rng.bytes(int(rng.integers(1, 200)))
    broken = [
        b"ICC_PROFILE\0\x01\x02" + junk,
        b"Exif\0\0" + junk,
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"MPF\0" + junk,
        junk,
    ]
    marker, data = [(0xE2, broken[0]), (0xE1, broken[1]), (0xE1, broken[2]), (0xE2, broken[3]), (0xFE, broken[4])][
        rng.integers(5)
    ]
    return Odd(plain[:2] + segment(marker, data) + plain[2:], soft, 12)


@kind
def mpo(rng: Random) -> Odd:
    """What cameras with two lenses write."""
    soft, other = smooth(rng, 3), smooth(rng, 3)
    file = saved(pillow(soft), "MPO", save_all=True, append_images=[pillow(other)], quality=96, subsampling=0)
    return Odd(file, soft, 12)


@kind
def png_of_few_bits(rng: Random) -> Odd:
    bits = int(rng.choice([1, 2, 4]))
    levels = noise(rng, 1, top=2**bits - 1)
    file = png(levels, 0, bits=bits, interlaced=bool(rng.integers(2)))
    return Odd(file, (levels * (255 // (2**bits - 1))).astype(np.uint8))


@kind
def png_deep(rng: Random) -> Odd:
    channels, colour = [(1, 0), (3, 2)][rng.integers(2)]
    pixels = noise(rng, channels, "uint16")
    return Odd(png(pixels, colour, bits=16, interlaced=bool(rng.integers(2))), pixels)


@kind
def png_interlaced(rng: Random) -> Odd:
    channels, colour = [(1, 0), (3, 2)][rng.integers(2)]
    pixels = noise(rng, channels)
    return Odd(png(pixels, colour, interlaced=True), pixels)


@kind
def png_with_alpha(rng: Random) -> Odd:
    channels, colour = [(2, 4), (4, 6)][rng.integers(2)]
    dtype = str(rng.choice(["uint8", "uint16"]))
    pixels = noise(rng, channels, dtype)
    file = png(pixels, colour, bits=8 * pixels.itemsize, interlaced=bool(rng.integers(2)))
    return Odd(file, over_white(pixels))


@kind
def png_palette_half_clear(rng: Random) -> Odd:
    bits = int(rng.choice([1, 2, 4, 8]))
    indices, palette = of_colours(rng, 2**bits)
    alpha = rng.integers(0, 256, int(rng.integers(1, 2**bits + 1)), dtype=np.uint8)
    chunks = (chunk(b"PLTE", palette.tobytes()), chunk(b"tRNS", alpha.tobytes()))
    whole = np.concatenate([alpha, np.full(2**bits - len(alpha), 255, np.uint8)])
    table = np.concatenate([palette, whole[:, None]], axis=1)
    return Odd(png(indices, 3, *chunks, bits=bits), over_white(table[indices[..., 0]]))


@kind
def png_with_a_clear_colour(rng: Random) -> Odd:
    pixels = noise(rng, 3)
    clear = pixels[0, 0].copy()
    expected = np.where((pixels == clear).all(2, keepdims=True), 255, pixels).astype(np.uint8)
    return Odd(png(pixels, 2, chunk(b"tRNS", clear.astype(">u2").tobytes())), expected)


@kind
def png_turned(rng: Random) -> Odd:
    pixels, orientation = noise(rng, 3), int(rng.integers(1, 9))
    return Odd(png(pixels, 2, chunk(b"eXIf", exif(orientation))), seen(pixels, orientation))


@kind
def png_in_many_parts(rng: Random) -> Odd:
    pixels = noise(rng, 3)
    return Odd(png(pixels, 2, cut=int(rng.integers(2, 400))), pixels)


@kind
def png_with_broken_chunks(rng: Random) -> Odd:
    """A profile that is none, animation that is none, text that is none, a chunk whose sum is wrong."""
    pixels, junk = noise(rng, 3), rng.bytes(int(rng.integers(0, 99)))
    name = [b"iCCP", b"acTL", b"zTXt", b"gAMA", b"sRGB", b"cHRM", b"iTXt", b"eXIf", b"prVt"][rng.integers(9)]
    extra = chunk(name, junk)
    if rng.integers(2):
        extra = extra[:-4] + rng.bytes(4)
    return Odd(png(pixels, 2, extra), pixels)


@kind
def png_whose_text_inflates(rng: Random) -> Odd:
    pixels = noise(rng, 3)
    name, head = [(b"zTXt", b"x\0\0"), (b"iCCP", b"x\0\0"), (b"iTXt", b"x\0\1\0\0\0")][rng.integers(3)]
    return Odd(png(pixels, 2, chunk(name, head + INFLATES)), pixels)


INFLATES = zlib.compress(bytes(100_000_000))


@kind
def png_whose_pixels_go_on(rng: Random) -> Odd:
    """Far more of them than its size tells."""
    pixels = noise(rng, 3)
    sound = png(pixels, 2)
    data = zlib.compress(packed(pixels, 8) + bytes(20_000_000))
    at = sound.index(b"IDAT") - 4
    return Odd(sound[:at] + chunk(b"IDAT", data) + chunk(b"IEND", b""), pixels, or_refused=True)


@kind
def gif_moving(rng: Random) -> Odd:
    frames = [noise(rng, 1) for _ in range(3)]
    frames = [np.resize(frame, frames[0].shape) for frame in frames]
    options = {"save_all": True, "append_images": [pillow(frame) for frame in frames[1:]]}
    return Odd(saved(pillow(frames[0]), "GIF", duration=int(rng.integers(0, 900)), **options), frames[0].repeat(3, 2))


@kind
def gif_interlaced_with_a_clear_colour(rng: Random) -> Odd:
    indices, palette = of_colours(rng, 16)
    image = pillow(indices)
    image.putpalette(palette.tobytes())
    expected = palette[indices[..., 0]]
    expected[indices[..., 0] == 3] = 255
    return Odd(saved(image, "GIF", interlace=int(rng.integers(2)), transparency=3), expected)


@kind
def webp_moving(rng: Random) -> Odd:
    frames = [noise(rng, 3) for _ in range(3)]
    frames = [np.resize(frame, frames[0].shape) for frame in frames]
    options = {"save_all": True, "append_images": [pillow(frame) for frame in frames[1:]]}
    return Odd(saved(pillow(frames[0]), "WEBP", lossless=True, **options), frames[0])


@kind
def webp_turned(rng: Random) -> Odd:
    pixels, orientation = noise(rng, 3), int(rng.integers(1, 9))
    block = b"Exif\0\0" + exif(orientation)
    return Odd(saved(pillow(pixels), "WEBP", lossless=True, exif=block), seen(pixels, orientation))


@kind
def webp_with_alpha(rng: Random) -> Odd:
    pixels = noise(rng, 4)
    return Odd(saved(pillow(pixels), "WEBP", lossless=True, exact=True), over_white(pixels))


@kind
def bmp_from_the_top(rng: Random) -> Odd:
    """A negative height, or OS/2's short header."""
    pixels = noise(rng, 3)
    height, width = pixels.shape[:2]
    down, padding = bool(rng.integers(2)), bytes(-3 * width % 4)
    rows = [row[:, ::-1].tobytes() + padding for row in (pixels if down else pixels[::-1])]
    if down:
        head = struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 24, 0, 0, 0, 0, 0, 0)
    else:
        head = struct.pack("<IHHHH", 12, width, height, 1, 24)
    start = 14 + len(head)
    file = b"BM" + struct.pack("<IHHI", start + sum(map(len, rows)), 0, 0, start) + head + b"".join(rows)
    return Odd(file, pixels)


@kind
def bmp_of_few_bits(rng: Random) -> Odd:
    indices, palette = of_colours(rng, 2 ** int(rng.choice([1, 4, 8])))
    image = pillow(indices)
    image.putpalette(palette.tobytes())
    return Odd(saved(image, "BMP"), palette[indices[..., 0]])


@kind
def tiff_compressed(rng: Random) -> Odd:
    codec = str(rng.choice(["lzw", "zlib", "zstd", "packbits", "lzma"]))
    dtype, channels = str(rng.choice(["uint8", "uint16"])), int(rng.choice([1, 3]))
    pixels = noise(rng, channels, dtype)
    options = {"predictor": bool(rng.integers(2)) and codec != "packbits", "rowsperstrip": int(rng.integers(1, 9))}
    return Odd(tiff(pixels if channels == 3 else pixels[..., 0], compression=codec, **options), pixels)


@kind
def tiff_tiled(rng: Random) -> Odd:
    pixels = noise(rng, 3, str(rng.choice(["uint8", "uint16"])))
    tile = tuple(16 * int(n) for n in rng.integers(1, 5, 2))
    return Odd(tiff(pixels, tile=tile, byteorder=str(rng.choice([*"<>"])), bigtiff=bool(rng.integers(2))), pixels)


@kind
def tiff_of_planes(rng: Random) -> Odd:
    pixels = noise(rng, int(rng.integers(3, 8)), str(rng.choice(["uint8", "uint16", "float32"])))
    planes = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    return Odd(tiff(planes, photometric="minisblack", planarconfig="separate"), pixels)


@kind
def tiff_of_floats(rng: Random) -> Odd:
    pixels = noise(rng, 1, str(rng.choice(["float16", "float32", "float64"])))
    return Odd(tiff(pixels[..., 0], byteorder=str(rng.choice([*"<>"]))), pixels.astype(np.float32))


@kind
def tiff_turned(rng: Random) -> Odd:
    pixels, orientation = noise(rng, 3, "uint16"), int(rng.integers(1, 9))
    return Odd(tiff(pixels, extratags=[(274, 3, 1, orientation, True)]), seen(pixels, orientation))


@kind
def tiff_where_black_is_white(rng: Random) -> Odd:
    pixels = noise(rng, 1, str(rng.choice(["uint8", "uint16"])))
    stored = np.iinfo(pixels.dtype).max - pixels[..., 0]
    return Odd(tiff(stored, photometric="miniswhite"), pixels)


@kind
def tiff_of_inks(rng: Random) -> Odd:
    inks = noise(rng, 4)
    light = 255 - inks[..., 3:].astype(float)
    return Odd(tiff(inks, photometric="separated"), np.rint(light - inks[..., :3] * light / 255).astype(np.uint8), 1)


@kind
def tiff_of_a_palette(rng: Random) -> Odd:
    indices, palette = of_colours(rng, 256)
    colours = palette.T.astype(np.uint16) * 257
    return Odd(tiff(indices[..., 0], photometric="palette", colormap=colours), palette[indices[..., 0]])


@kind
def tiff_of_pages(rng: Random) -> Odd:
    first, stream = noise(rng, 3), io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(first, photometric="rgb")
        for _ in range(int(rng.integers(1, 4))):
            writer.write(noise(rng, 1, "uint16")[..., 0], photometric="minisblack")
    return Odd(stream.getvalue(), first)


@kind
def tiff_whose_pages_go_in_circles(rng: Random) -> Odd:
    pixels = noise(rng, 3)
    file = bytearray(tiff(pixels))
    start = struct.unpack_from("<I", file, 4)[0]
    entries = struct.unpack_from("<H", file, start)[0]
    struct.pack_into("<I", file, start + 2 + 12 * entries, start)
    return Odd(bytes(file), pixels)


@kind
def heic(rng: Random) -> Odd:
    soft, stream = smooth(rng, int(rng.choice([1, 3]))), io.BytesIO()
    pillow_heif.from_pillow(pillow(soft)).save(stream, quality=97)
    return Odd(stream.getvalue(), soft, 14)


@kind
def avif(rng: Random) -> Odd:
    soft = smooth(rng, 3)
    return Odd(saved(pillow(soft), "AVIF", quality=97, speed=9), soft, 14)


@kind
def npy_of_any_order(rng: Random) -> Odd:
    dtype = str(rng.choice(["|u1", "<u2", ">u2", "<i4", ">i8", "<f2", ">f4", "<f8", "|b1"]))
    pixels = rng.integers(0, 200, (side(rng), side(rng), int(rng.integers(1, 6)))).astype(dtype)
    stored = np.asfortranarray(pixels) if rng.integers(2) else pixels
    expected = pixels.astype("uint8") * 255 if dtype == "|b1" else pixels.astype(pixels.dtype.newbyteorder("="))
    keep = expected.dtype.name in ("uint8", "uint16")
    return Odd(npy(stored, version=(int(rng.integers(1, 3)), 0)), expected if keep else expected.astype(np.float32))


@kind
def thin(rng: Random) -> Odd:
    """One pixel high, or wide."""
    count = int(rng.integers(4, 3000))
    pixels = rng.integers(0, 256, (1, count, 3) if rng.integers(2) else (count, 1, 3), dtype=np.uint8)
    return Odd(png(pixels, 2) if rng.integers(2) else tiff(pixels), pixels)


@kind
def wrong_name(rng: Random) -> Odd:
    return replace(one_format(rng), name=f"odd.{rng.choice(['png', 'jpg', 'tif', 'gif', 'npy', 'heic', 'txt', ''])}")


@kind
def junk_behind(rng: Random) -> Odd:
    sound = one_format(rng)
    junk = [rng.bytes(int(rng.integers(1, 5000))), bytes(77), sound.file][rng.integers(3)]
    return replace(sound, file=sound.file + junk)


@kind
def a_zip_behind(rng: Random) -> Odd:
    """A polyglot: unpackers take it for an archive."""
    sound, stream = one_format(rng), io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../../evil.py", "raise SystemExit")
    return replace(sound, file=sound.file + stream.getvalue())


@kind
def another_picture_inside(rng: Random) -> Odd:
    """In a chunk or segment of its own; the outer one is the picture."""
    inner = one_format(rng).file[:60_000]
    if rng.integers(2):
        pixels = noise(rng, 3)
        return Odd(png(pixels, 2, chunk(b"prVt", inner)), pixels)
    soft = smooth(rng, 3)
    plain = saved(pillow(soft), "JPEG", quality=96, subsampling=0)
    return Odd(plain[:2] + segment(0xFE, inner) + plain[2:], soft, 12)


# Pictures that are broken: refused, or read as if they were not


@kind
def cut_short(rng: Random) -> Odd:
    sound = one_format(rng)
    return replace(sound, file=sound.file[: int(rng.integers(len(sound.file)))], or_refused=True)


@kind
def cut_by_a_little(rng: Random) -> Odd:
    sound = one_format(rng)
    return replace(sound, file=sound.file[: -int(rng.integers(1, 16))], or_refused=True)


@kind
def png_whose_pixels_have_a_wrong_sum(rng: Random) -> Odd:
    pixels = noise(rng, 3)
    file = bytearray(png(pixels, 2))
    file[file.index(b"IDAT") + 4 + int(rng.integers(2, 10))] ^= 1 << int(rng.integers(8))
    return Odd(bytes(file), pixels, or_refused=True)


@kind
def jpeg_of_rare_coding(rng: Random) -> Odd:
    """Lossless, differential, 12 bits: a marker that says so."""
    plain = bytearray(saved(pillow(smooth(rng, 3)), "JPEG"))
    at = plain.index(b"\xff\xc0")
    if rng.integers(2):
        plain[at + 1] = int(rng.choice([0xC3, 0xC5, 0xC6, 0xC7, 0xCB]))
    else:
        plain[at + 4] = int(rng.choice([2, 12, 16]))
    return Odd(bytes(plain))


@kind
def too_large_by_its_header(rng: Random) -> Odd:
    """A few bytes that claim at least 900 megapixels."""
    big, small = int(rng.integers(30_000, 65_000)), np.zeros((8, 9, 3), np.uint8)
    made = [
        lambda: png(small, 2).replace(struct.pack(">II", 9, 8), struct.pack(">II", big, big)),
        lambda: saved(pillow(small), "BMP").replace(struct.pack("<ii", 9, 8), struct.pack("<ii", big, big)),
        lambda: saved(pillow(small), "JPEG").replace(struct.pack(">HH", 8, 9), struct.pack(">HH", big, big), 1),
        lambda: saved(pillow(small), "GIF").replace(struct.pack("<HH", 9, 8), struct.pack("<HH", big, big)),
        lambda: npy(small).replace(b"(8, 9, 3), }        ", f"({big}, {big}, 3), }}"[:20].encode().ljust(20)),
        lambda: (
            tiff(np.zeros((1, 9), np.uint8))
            .replace(struct.pack("<HHII", 257, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, big))
            .replace(struct.pack("<HHII", 256, 4, 1, 9), struct.pack("<HHII", 256, 4, 1, big))
        ),
    ]
    return Odd(made[rng.integers(len(made))]())


@kind
def too_small(rng: Random) -> Odd:
    pixels = np.zeros([(1, 1, 3), (1, 3, 3), (3, 1, 3), (1, 2, 3)][rng.integers(4)], np.uint8)
    return Odd([png(pixels, 2), tiff(pixels), npy(pixels), saved(pillow(pixels), "BMP")][rng.integers(4)])


@kind
def no_picture(rng: Random) -> Odd:
    some = [b"", bytes(int(rng.integers(1, 3000))), b"hello, I am no picture\n", b"<svg xmlns='x'/>", b"%PDF-1.7\n"]
    some += [b"<!DOCTYPE html>", b"PK\3\4" + rng.bytes(99), b"\x1f\x8b" + rng.bytes(99), b"%!PS-Adobe-3.0 EPSF"]
    return Odd([*some, rng.bytes(int(rng.integers(1, 3000)))][rng.integers(len(some) + 1)])


@kind
def no_more_than_its_first_bytes(rng: Random) -> Odd:
    return Odd(one_format(rng).file[: int(rng.integers(3, 14))])


@kind
def first_bytes_and_then_noise(rng: Random) -> Odd:
    return Odd(one_format(rng).file[:12] + rng.bytes(int(rng.integers(1, 5000))))


@kind
def of_a_format_that_is_not_read(rng: Random) -> Odd:
    form = str(rng.choice(["PPM", "ICO", "TGA", "PDF", "JPEG2000", "SGI", "PCX", "EPS", "DDS"]))
    return Odd(saved(pillow(np.resize(noise(rng, 3), (16, 16, 3))), form))


@kind
def npy_with_a_pickle(rng: Random) -> Odd:
    stream = io.BytesIO()
    np.save(stream, np.array([[print, "evil"], [1, 2]], dtype=object), allow_pickle=True)
    return Odd(stream.getvalue())


@kind
def npy_with_an_odd_header(rng: Random) -> Odd:
    texts = ["{'descr': '|u1', 'fortran_order': False, 'shape': (-4, 4), }", "{'descr': '|u1', 'shape': (4, 4)}"]
    texts += ["{'descr': '|O', 'fortran_order': False, 'shape': (4, 4), }", "[" * 5000, "__import__('os').getpid()"]
    texts += ["{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (4, 4), }", "{'descr': '|V4000000000', "]
    text = texts[rng.integers(len(texts))].encode() + b"\n"
    return Odd(b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + bytes(64))


@kind
def floats_that_are_not_finite(rng: Random) -> Odd:
    pixels = noise(rng, 1, "float32")[..., 0]
    pixels[0, 0] = rng.choice([np.nan, np.inf, -np.inf])
    return Odd(tiff(pixels) if rng.integers(2) else npy(pixels))


@kind
def tiff_with_an_odd_tag(rng: Random) -> Odd:
    """A tag whose count, type or place is out of all bounds."""
    pixels = noise(rng, 3)
    file = bytearray(tiff(pixels))
    start = struct.unpack_from("<I", file, 4)[0]
    entries = struct.unpack_from("<H", file, start)[0]
    at = start + 2 + 12 * int(rng.integers(entries))
    where, value = [(at + 4, 2**32 - 1), (at + 8, 2**32 - 2), (at + 4, 0)][rng.integers(3)]
    struct.pack_into("<I", file, where, value)
    return Odd(bytes(file), pixels, or_refused=True)


def make(name: str, number: int) -> Odd:
    """The picture of a kind with this number: the same one each time."""
    return KINDS[name](np.random.default_rng([number, *name.encode()]))


def verdict(odd: Odd, read: Callable[[InputSpec, bytes, str], tuple[int, np.ndarray]]) -> str:
    """ "read" or "refused" where that is right; else what is wrong."""
    shape, depth = ((8, 8, 3), "uint8") if odd.pixels is None else (odd.pixels.shape, odd.pixels.dtype.name)
    spec = InputSpec(shape[2], depth, (shape[:2],), convert=odd.pixels is None)
    try:
        pixels = read(spec, odd.file, odd.name)[1]
    except InputError as fault:
        named = str(fault).startswith(f"{odd.name}: ")
        return "refused" if named and (odd.pixels is None or odd.or_refused) else f"refused: {fault}"
    if odd.pixels is None:
        return "read, though it is broken"
    apart = np.abs(pixels.astype(np.float64) - odd.pixels.astype(np.float64)).max()
    same = pixels.dtype == odd.pixels.dtype and apart <= odd.tolerance
    return "read" if same else f"read, with pixels that differ by up to {apart:g}"
