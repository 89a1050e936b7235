"""Bytes -> one array of pixels: the only place where a picture file is opened.

The format is told by content, never by name. Every reader first gives a Header, which costs no pixel; `inspect` stops
there, `decode` goes on. Each reader uses the part of a library that keeps every bit and does not warn: imagecodecs for
PNG (Pillow cuts 16-bit colour to 8), tifffile for TIFF, pillow_heif for HEIC, Pillow's own classes for the rest.
"""

import functools
import importlib
import io
import logging
import math
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, features

from vitreous.errors import InputError

DEPTHS = ("uint8", "uint16", "float32")
MAX_PIXELS = 178_956_970  # a quarter of a GiB at 24 bits a pixel, as Pillow has it
MAX_BYTES = 2 << 30  # of a picture's file: more than its pixels take in any format that is not absurd
THUMB = 16  # side of thumbnails
FORMATS = "JPEG, PNG, WebP, BMP, GIF, TIFF, HEIC, AVIF or NumPy .npy"


@dataclass(frozen=True)
class Facts:
    """What `decode` gives for a picture, upright: its (height, width), channels and depth (one of DEPTHS)."""

    height: int
    width: int
    channels: int
    depth: str


@dataclass(frozen=True)
class Header:
    """A picture whose pixels are not read yet: as it is stored, how it must be turned, and how to read it."""

    stored: Facts
    read: Callable[[tuple[int, int] | None], np.ndarray]  # at_least, as stored -> (H, W, C) as stored
    orientation: int = 1  # EXIF's 1 to 8
    largest: int = 0  # pixels of the largest block that must be held to read it, if that may exceed the picture

    @property
    def facts(self) -> Facts:
        """Those of the upright picture."""
        height, width = turned((self.stored.height, self.stored.width), self.orientation)
        return Facts(height, width, self.stored.channels, self.stored.depth)


# Orientation


def turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) after, or before, an EXIF orientation: 5 to 8 swap the sides."""
    return size if orientation < 5 else (size[1], size[0])


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) as stored -> a view of it as the photographer saw it."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]


def exif_orientation(exif: bytes) -> int:
    """Tag 274 of an EXIF block; 1 (upright) where it is absent or the block is damaged. Pillow's reader would warn."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = "<" if exif.startswith(b"II") else ">"
    with suppress(struct.error):
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, at)
            if tag == 274:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, at + 8)
                return value if 1 <= value <= 8 else 1
    return 1


# Colour and depth


def wider(pixels: np.ndarray) -> np.ndarray:
    """Unsigned integers in twice their bits, where a product of two of them fits; floats as they are."""
    return pixels if pixels.dtype.kind == "f" else pixels.astype(f"u{2 * pixels.dtype.itemsize}")


def divided(products: np.ndarray, top: int) -> np.ndarray:
    """Products of two values up to top, brought back to that range and rounded."""
    return products if products.dtype.kind == "f" else (products + products.dtype.type(top // 2)) // top


def top_of(dtype: np.dtype) -> int:
    """The value that means white, or opaque."""
    return 1 if dtype.kind == "f" else int(np.iinfo(dtype).max)


def over_white(pixels: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """(H, W, C + alpha) -> (H, W, C) seen on white paper."""
    colours, alpha, top = pixels[..., :-1], pixels[..., -1:], top_of(pixels.dtype)
    if (alpha == top).all():
        return colours
    if premultiplied:
        return np.minimum(colours, alpha) + (top - alpha)
    return (top - divided(wider(top - colours) * alpha, top)).astype(pixels.dtype)


def cmyk_to_rgb(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 4) of ink -> (H, W, 3) of light, by the plain formula that Pillow uses too."""
    top = top_of(pixels.dtype)
    light = top - pixels[..., 3:]
    return (light - divided(wider(pixels[..., :3]) * light, top)).astype(pixels.dtype)


def depth_of(dtype: np.dtype) -> str:
    """The one of DEPTHS that holds values of this NumPy type."""
    if dtype.kind == "b":
        return "uint8"
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return f"uint{8 * dtype.itemsize}"
    if dtype.kind in "iuf":
        return "float32"
    raise InputError(f"real numbers were expected, not values of type {dtype}. Convert to uint8, uint16 or float32.")


def settled(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) of any type -> its depth, C-contiguous, writable; every value finite."""
    depth = depth_of(pixels.dtype)
    if pixels.dtype.kind == "b":
        pixels = pixels * np.uint8(255)
    pixels = np.require(pixels, depth, ["C_CONTIGUOUS", "WRITEABLE"])  # what overflows float32 is counted next
    if depth == "float32" and (bad := pixels.size - np.count_nonzero(np.isfinite(pixels))):
        raise InputError(
            f"finite pixels were expected, but {bad:,} of {pixels.size:,} values are NaN or infinite as float32. "
            "Fill them before (e.g. numpy.nan_to_num)."
        )
    return pixels


# Readers: one a format, each picture -> Header


def array_facts(shape: tuple[int, ...], dtype: np.dtype) -> Facts:
    """Facts of an array (H, W) or (H, W, C)."""
    if len(shape) not in (2, 3):
        raise InputError(f"an array (H, W) or (H, W, C) was expected, not one of shape {shape}. Give one picture.")
    height, width, channels = (*shape, 1)[:3]
    return Facts(height, width, channels, depth_of(dtype))


def open_array(pixels: np.ndarray) -> Header:
    """An array in memory."""
    stored = array_facts(pixels.shape, pixels.dtype)
    return Header(stored, lambda _: pixels.reshape(stored.height, stored.width, stored.channels))


def open_npy(picture: bytes) -> Header:
    """A NumPy file; its header is checked before its data are touched, and nothing is ever unpickled."""
    stream = io.BytesIO(picture)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = readers[version](stream)
    start, count = stream.tell(), math.prod(shape)
    stored = array_facts(shape, dtype)

    def read(_: object) -> np.ndarray:
        if len(picture) - start < count * dtype.itemsize:
            raise InputError(
                f"truncated: {count * dtype.itemsize:,} bytes of pixels were expected, {len(picture) - start:,} came. "
                "Copy the file again."
            )
        pixels = np.frombuffer(picture, dtype, count, start).reshape(shape, order="F" if fortran else "C")
        return pixels.reshape(stored.height, stored.width, stored.channels)

    return Header(stored, read)


def open_png(picture: bytes) -> Header:
    """PNG of any depth, through libpng; it is handed only the chunks that hold pixels, so that no other makes noise."""
    width, height, bits, colour = struct.unpack_from(">IIBB", picture, 16)
    view, offset, exif = memoryview(picture), 8, b""
    kept: list[memoryview | bytes] = [view[:8]]
    while offset + 12 <= len(picture):
        length, kind = struct.unpack_from(">I4s", picture, offset)
        chunk = view[offset : offset + 12 + length]
        sound = kind != b"tRNS" or chunk[-4:] == zlib.crc32(chunk[4:-4]).to_bytes(4)
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") and sound:
            kept.append(chunk)
        elif kind == b"eXIf":
            exif = bytes(chunk[8:-4])
        offset += len(chunk)
    channels = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}[colour]

    def read(_: object) -> np.ndarray:
        import imagecodecs

        pixels = imagecodecs.png_decode(b"".join(kept)).reshape(height, width, -1)
        return pixels if pixels.shape[2] == channels else over_white(pixels)

    return Header(Facts(height, width, channels, "uint16" if bits == 16 else "uint8"), read, exif_orientation(exif))


def open_pillow(image: ImageFile.ImageFile) -> Header:
    """Whatever Pillow opened, 8 bits a sample; a JPEG may be read at 1/2, 1/4 or 1/8 of its size."""
    grey = image.mode in ("1", "L", "LA") and image.format != "GIF"  # a GIF has a palette, even one of greys
    mode = "L" if grey else "RGB"
    clear = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info

    def read(at_least: tuple[int, int] | None) -> np.ndarray:
        if at_least:
            image.draft(None, (max(1, at_least[1]), max(1, at_least[0])))
        wanted = mode + "A" if clear else mode
        pixels = np.array(image if image.mode == wanted else image.convert(wanted))
        return over_white(pixels) if clear else pixels.reshape(*pixels.shape[:2], -1)

    stored = Facts(image.height, image.width, len(mode), "uint8")
    return Header(stored, read, exif_orientation(image.info.get("exif", b"")))


class Jpeg(JpegImagePlugin.JpegImageFile):
    """Pillow's reader, less its search for the dots per inch in the EXIF block, which warns where that is damaged."""

    def _read_dpi_from_exif(self) -> None:
        pass


def open_plugin(module: str, reader: str, picture: bytes) -> Header:
    """By one class of Pillow; `Image.open` would judge the size by its own cap, which is global, and warn."""
    plugin = importlib.import_module(f"PIL.{module}")
    return open_pillow(getattr(plugin, reader)(io.BytesIO(picture)))


def open_avif(picture: bytes) -> Header:
    """AVIF, for which Pillow may have been built or not."""
    if not features.check("avif"):
        raise InputError("AVIF needs a Pillow with AVIF support. Run: pip install -U pillow")
    return open_plugin("AvifImagePlugin", "AvifImageFile", picture)


def open_heic(picture: bytes) -> Header:
    """HEIC, at 8 bits; libheif turns it by the container's own boxes, so its EXIF orientation is not applied again."""
    try:
        import pillow_heif
    except ImportError as error:
        raise InputError("HEIC needs one more package. Run: pip install 'vitreous[heif]'") from error
    image = pillow_heif.open_heif(picture)
    (width, height), grey = image.size, image.mode.startswith("L")

    def read(_: object) -> np.ndarray:
        pixels = np.array(image).reshape(height, -1, image.mode.count("A") + (1 if grey else 3))[:, :width]
        return over_white(pixels) if "A" in image.mode else pixels

    return Header(Facts(height, width, 1 if grey else 3, "uint16" if ";16" in image.mode else "uint8"), read)


# TIFF, which can hold anything


@functools.cache
def quiet_tifffile() -> Any:
    """The module tifffile, whose log of oddities is dropped while we read (and only then, and only in our threads)."""
    import tifffile

    logging.getLogger("tifffile").addFilter(lambda record: not getattr(reading, "now", False))
    return tifffile


reading = threading.local()


def lab_to_rgb(pixels: np.ndarray, signed: bool) -> np.ndarray:
    """(H, W, 3) of 8-bit L*a*b* -> (H, W, 3) sRGB; ICC's variant stores a* and b* with an offset, CIE's signed."""
    if pixels.dtype != np.uint8:
        raise InputError("L*a*b* colours are read at 8 bits a sample only. Convert the picture to RGB.")
    stored = np.ascontiguousarray(pixels if signed else pixels ^ np.array([0, 128, 128], np.uint8))
    return np.array(Image.frombytes("LAB", stored.shape[1::-1], stored.tobytes(), "raw", "LAB").convert("RGB"))


def ycbcr_to_rgb(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) of 8-bit YCbCr -> (H, W, 3) RGB."""
    stored = np.ascontiguousarray(pixels, np.uint8)
    return np.array(Image.frombytes("YCbCr", stored.shape[1::-1], stored.tobytes()).convert("RGB"))


def palette_to_rgb(pixels: np.ndarray, colormap: np.ndarray) -> np.ndarray:
    """(H, W, 1) of indices -> (H, W, 3), from TIFF's 16-bit colours (a few writers leave 8-bit ones there)."""
    colours = colormap.T if colormap.max() < 256 else colormap.T >> 8
    return colours.astype(np.uint8)[pixels[..., 0]]


def grey_levels(pixels: np.ndarray, bits: int, inverted: bool) -> np.ndarray:
    """Fewer than 8 bits stretched to 8; where 0 is white, the greatest value of so many bits is made black."""
    if 1 < bits < 8:
        pixels, bits = (pixels.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8), 8
    if not inverted:
        return pixels
    if pixels.dtype.kind == "b":
        return ~pixels
    return pixels.dtype.type(2**bits - 1) - pixels if pixels.dtype.kind == "u" else -pixels


def tiff_colours(page: Any, pixels: np.ndarray) -> np.ndarray:
    """(H, W, samples less alpha) by the page's colour space -> (H, W, C)."""
    decoded = page.compression in (6, 7) and page.planarconfig == 1 and not page.extrasamples  # by the JPEG codec
    match page.photometric.name:
        case "PALETTE":
            return palette_to_rgb(pixels, page.colormap)
        case "SEPARATED":
            return cmyk_to_rgb(pixels[..., :4])
        case "CIELAB" | "ICCLAB" as name:
            return lab_to_rgb(pixels[..., :3], signed=name == "CIELAB")
        case "YCBCR" if not decoded:
            return ycbcr_to_rgb(pixels[..., :3])
        case name:
            return grey_levels(pixels, page.bitspersample, inverted=name == "MINISWHITE")


# What pixels depend on: sizes, bits, compression, colours, places, planes, predictor, palette, tiles, alpha, numbers
TAGS = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 530}


def check_tags(picture: bytes, page: Any) -> None:
    """Raises `InputError` where a tag that pixels depend on is there and cannot be read, which tifffile passes over."""
    form = page.parent.tiff
    (count,) = struct.unpack_from(form.tagnoformat, picture, page.offset)
    start = page.offset + form.tagnosize
    places = range(start, start + count * form.tagsize, form.tagsize)
    there = {struct.unpack_from(form.byteorder + "H", picture, place)[0] for place in places}
    lost = sorted(TAGS & there - {tag.code for tag in page.tags}) or [284] * (page.planarconfig not in (1, 2))
    if lost:
        raise InputError(f"its tags {lost} cannot be read: it is damaged. Copy it again.")


def open_tiff(picture: bytes) -> Header:
    """The first page of a TIFF or BigTIFF. One alpha band is composited; other extra bands are kept as channels."""
    page: Any = quiet_tifffile().TiffFile(io.BytesIO(picture)).pages.first
    check_tags(picture, page)
    planes, depth, height, width, samples = map(int, page.shaped)  # a damaged tag may hold a tuple or a string
    if depth != 1 or page.dtype is None:
        raise InputError("a flat picture of plain numbers was expected. Save its planes as pages or bands.")
    bands, dtype, space = planes * samples, np.dtype(page.dtype), page.photometric.name
    extra = [kind.name for kind in page.extrasamples]
    clear = extra in (["UNASSALPHA"], ["ASSOCALPHA"]) and bands > 1 and dtype.kind in "uf"
    colours = bands - clear

    def read(_: object) -> np.ndarray:
        if any(start + size > len(picture) for start, size in zip(page.dataoffsets, page.databytecounts, strict=False)):
            raise InputError("truncated: it ends before its last pixels. Copy the file again.")
        pixels = page.asarray(squeeze=False, maxworkers=1)  # (planes, 1, H, W, samples)
        pixels = pixels[:, 0].transpose(1, 2, 0, 3).reshape(height, width, bands)
        light = tiff_colours(page, pixels[..., :colours])
        if not clear or space == "PALETTE":
            return light
        return over_white(np.concatenate([light, pixels[..., colours:]], axis=2), premultiplied=extra == ["ASSOCALPHA"])

    channels = 3 if space in ("PALETTE", "SEPARATED", "CIELAB", "ICCLAB", "YCBCR") else colours
    stored = Facts(height, width, channels, "uint8" if space == "PALETTE" else depth_of(dtype))
    orientation = page.tags.valueof(274, default=1)
    upright_if_damaged = orientation if orientation in range(1, 9) else 1
    return Header(stored, read, upright_if_damaged, largest=int(page.tilewidth) * int(page.tilelength))


# The two entrances


def is_iso(*brands: bytes) -> Callable[[bytes], bool]:
    """Whether one of these brands is among those of an ISO media file."""

    def check(picture: bytes) -> bool:
        size = min(int.from_bytes(picture[:4]), 256)
        return picture[4:8] == b"ftyp" and any(picture[i : i + 4] in brands for i in (8, *range(16, size, 4)))

    return check


is_avif = is_iso(b"avif", b"avis")
is_heic = is_iso(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def is_webp(picture: bytes) -> bool:
    """Whether it is the RIFF file of a WebP."""
    return picture.startswith(b"RIFF") and picture[8:12] == b"WEBP"


def starts(*magic: bytes) -> Callable[[bytes], bool]:
    """Whether a file starts with one of these."""
    return lambda picture: picture.startswith(magic)


READERS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], Header]], ...] = (
    (starts(b"\xff\xd8\xff"), lambda picture: open_pillow(Jpeg(io.BytesIO(picture)))),
    (starts(b"\x89PNG\r\n\x1a\n"), open_png),
    (is_webp, functools.partial(open_plugin, "WebPImagePlugin", "WebPImageFile")),
    (starts(b"BM"), functools.partial(open_plugin, "BmpImagePlugin", "BmpImageFile")),
    (starts(b"GIF87a", b"GIF89a"), functools.partial(open_plugin, "GifImagePlugin", "GifImageFile")),
    (starts(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), open_tiff),
    (is_avif, open_avif),
    (is_heic, open_heic),
    (starts(b"\x93NUMPY"), open_npy),
)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Whatever goes wrong inside is an InputError that starts with the picture's name."""
    reading.now = True
    try:
        with np.errstate(all="ignore"):
            yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error.__cause__
    except Exception as error:  # the libraries raise whatever they like on a damaged file, MemoryError included
        raise InputError(
            f"{name}: a whole picture was expected, but this file is damaged, cut short or of a rare kind "
            f"[{type(error).__name__}: {error}]. Copy it again, or save it anew as PNG or TIFF."
        ) from error
    finally:
        reading.now = False


def check_bytes(count: int, name: str) -> None:
    """Raises `InputError` for a file that is too large to be read into memory as a picture."""
    if count > MAX_BYTES:
        raise InputError(
            f"{name}: at most {MAX_BYTES / 1e9:.1f} GB were expected, not {count / 1e9:.1f}. Leave it out."
        )


def check_size(header: Header, max_pixels: int) -> None:
    """Nothing so small that there is nothing to see, nothing so large that memory runs out."""
    size = header.stored
    pixels = size.height * size.width
    if pixels * size.channels == 0:
        raise InputError(f"pixels were expected, but it is empty ({size.height}×{size.width}×{size.channels}).")
    if pixels < 4:
        raise InputError(f"{size.height}×{size.width} pixels: nothing to see. Leave it out.")
    if max(pixels, header.largest, pixels * size.channels // 4) > max_pixels:
        raise InputError(
            f"at most {max_pixels / 1e6:,.1f} megapixels (of up to 4 channels) were expected, but it says it has "
            f"{max(pixels, header.largest) / 1e6:,.1f} of {size.channels}. Make it smaller. `check` and `train` take "
            "a larger --max-pixels, and what was trained so takes larger pictures."
        )


def opened(picture: bytes | np.ndarray, max_pixels: int) -> Header:
    """The header of a picture in one of the FORMATS, or of an array, of a size that can be read."""
    if isinstance(picture, np.ndarray):
        header = open_array(picture)
    elif not picture:
        raise InputError("the file is empty (0 bytes). Copy it again, or leave it out.")
    else:
        reader = next((reader for is_one, reader in READERS if is_one(picture)), None)
        if reader is None:
            raise InputError(
                f"{FORMATS} was expected, but it starts with {picture[:12]!r}. Convert it, or leave it out."
            )
        header = reader(picture)
    check_size(header, max_pixels)
    return header


# Whether Python alone reads a file's header, and in silence. C does of WebP, AVIF and HEIC; GIF's and .npy's may warn.
is_read_by_python = starts(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def inspect(picture: bytes | np.ndarray, name: str, max_pixels: int = MAX_PIXELS) -> Facts:
    """What `decode` would give, from the header alone.

    `name` is what errors call the picture. Raises InputError as `decode` does, but for damage that shows
    only further on.
    """
    return read_header(picture, name, max_pixels).facts


def read_header(picture: bytes | np.ndarray, name: str, max_pixels: int = MAX_PIXELS) -> Header:
    """What `inspect` tells, and from which `read_pixels` goes on."""
    with explained(name):
        return opened(picture, max_pixels)


def read_pixels(header: Header, name: str, at_least: tuple[int, int] | None = None) -> np.ndarray:
    """What `decode` gives, of a header that was read."""
    with explained(name):
        pixels = header.read(at_least and turned(at_least, header.orientation))
        pixels = settled(upright(pixels, header.orientation))
        height, width, channels = pixels.shape
        if at_least is None and (got := Facts(height, width, channels, pixels.dtype.name)) != header.facts:
            raise InputError(f"its header says {header.facts}, its pixels are {got}: it is damaged. Copy it again.")
        return pixels


def decode(
    picture: bytes | np.ndarray,
    name: str,
    *,
    max_pixels: int = MAX_PIXELS,
    at_least: tuple[int, int] | None = None,
) -> np.ndarray:
    """A file's bytes, or an array (H, W) or (H, W, C) -> pixels (H, W, C), C-contiguous, uint8, uint16 or float32.

    uint8 and uint16 stay as they are (so a 12-bit scan has values up to 4095), 1 bit becomes 0 and 255; every other
    integer and float type becomes float32. EXIF orientation is applied; palettes, CMYK, YCbCr and L*a*b* become RGB;
    transparency is seen over white. The first frame, page or series is read. An array that is right already is returned
    itself. With `at_least` = (height, width), upright, a JPEG may come at 1/2, 1/4 or 1/8 of its size, as long as
    neither side is shorter than that.

    Raises InputError, starting with `name`: no or unknown data, damage, NaN or infinite values, more than `max_pixels`
    (checked in the header), fewer than 4 pixels, a wrong number of dimensions, values that are not real numbers.
    """
    return read_pixels(read_header(picture, name, max_pixels), name, at_least)


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) of any depth -> (16, 16) grey levels 0 to 255; other depths are stretched to that range."""
    grey = pixels.mean(2, dtype=np.float32)
    if pixels.dtype != np.uint8:
        low, high = grey.min(), grey.max()
        grey = (grey - low) * (255 / max(high - low, 1e-12))
    return np.asarray(Image.fromarray(grey.astype(np.float32)).resize((THUMB, THUMB), Image.Resampling.BOX))


@functools.cache
def decoder_name() -> str:
    """What turns files into pixels, with versions: other versions may give other bits."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("pillow", "tifffile", "imagecodecs", "pillow-heif"):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join([*found, f"libjpeg-turbo {features.version('libjpeg_turbo')}"])
