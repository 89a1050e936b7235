"""Bytes -> pixels: every format, every conversion and every refusal, on files made here."""

import io
import logging
import struct
import sys
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageOps

from vitreous.data import decode as module
from vitreous.data.decode import DEPTHS, Facts, decode, decoder_name, inspect
from vitreous.errors import InputError

H, W = 24, 37
ORIENTATIONS = range(1, 9)


def noise(channels: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return generator.normal(size=(H, W, channels)).astype(dtype)
    info, native = np.iinfo(dtype), np.dtype(dtype).newbyteorder("=")
    return generator.integers(info.min, info.max, (H, W, channels), dtype=native, endpoint=True).astype(dtype)


def smooth(channels: int) -> np.ndarray:
    rows, columns = np.mgrid[0:H, 0:W]
    return np.stack([rows * 5 + columns * (c + 1) for c in range(channels)], axis=2).astype(np.uint8)


def pillow(pixels: np.ndarray, mode: str | None = None) -> Image.Image:
    pixels = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if mode is None:
        return Image.fromarray(pixels)
    return Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **{"photometric": "minisblack", **options})
    return stream.getvalue()


def npy(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, pixels)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: np.ndarray, width: int, bits: int, colour: int, *extra: bytes) -> bytes:
    """A PNG from its rows as they lie in the file, each put behind filter 0."""
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png16(pixels: np.ndarray, *extra: bytes) -> bytes:
    return png(pixels.astype(">u2"), pixels.shape[1], 16, {1: 0, 3: 2, 2: 4, 4: 6}[pixels.shape[2]], *extra)


def on_white(pixels: np.ndarray) -> np.ndarray:
    """The definition, in exact floats."""
    top = np.iinfo(pixels.dtype).max
    colours, alpha = pixels[..., :-1].astype(np.float64), pixels[..., -1:] / top
    return np.floor(colours * alpha + top * (1 - alpha) + 0.5).astype(pixels.dtype)


def by_pillow(picture: bytes, mode: str) -> np.ndarray:
    pixels = np.array(Image.open(io.BytesIO(picture)).convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[274] = orientation
    return block


def facts_of(pixels: np.ndarray) -> Facts:
    height, width, channels = pixels.shape
    return Facts(height, width, channels, pixels.dtype.name)


def exact(picture: bytes | np.ndarray, expected: np.ndarray, tolerance: float = 0) -> None:
    """decode gives the expected pixels, and inspect says so beforehand."""
    pixels = decode(picture, "x")
    assert inspect(picture, "x") == facts_of(pixels)
    assert (pixels.shape, pixels.dtype) == (expected.shape, expected.dtype)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_allclose(pixels.astype(np.float64), expected.astype(np.float64), atol=tolerance, rtol=0)


def refusal(picture: bytes | np.ndarray, **options) -> str:
    with pytest.raises(InputError, match=r"^photo\.x: ") as raised:
        decode(picture, "photo.x", **options)
    return str(raised.value)


# What a person sees


greys = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
LOSSLESS = {
    "png grey": (saved(pillow(noise(1)), "PNG"), noise(1)),
    "png rgb": (saved(pillow(noise(3)), "PNG"), noise(3)),
    "png rgba": (saved(pillow(noise(4)), "PNG"), on_white(noise(4))),
    "png grey alpha": (saved(pillow(noise(2), "LA"), "PNG"), on_white(noise(2))),
    "png 16 grey": (png16(noise(1, "uint16")), noise(1, "uint16")),
    "png 16 rgb": (png16(noise(3, "uint16")), noise(3, "uint16")),
    "png 16 rgba": (png16(noise(4, "uint16")), on_white(noise(4, "uint16"))),
    "png 16 grey alpha": (png16(noise(2, "uint16")), on_white(noise(2, "uint16"))),
    "png 4 bit": (
        png(noise(1)[..., 0], 2 * W, 4, 0),
        np.stack([noise(1) >> 4, noise(1) & 15], 2).reshape(H, -1, 1) * 17,
    ),
    "webp rgb": (saved(pillow(noise(3)), "WEBP", lossless=True), noise(3)),
    "webp rgba": (saved(pillow(noise(4)), "WEBP", lossless=True, exact=True), on_white(noise(4))),
    "bmp grey": (saved(pillow(noise(1)), "BMP"), noise(1)),
    "bmp rgb": (saved(pillow(noise(3)), "BMP"), noise(3)),
    "gif": (saved(pillow(noise(1)), "GIF"), noise(1).repeat(3, axis=2)),
    "gif whose palette is all greys": (saved(pillow(greys), "GIF"), greys.repeat(3, axis=2)),
    "npy 2-D": (npy(noise(1)[..., 0]), noise(1)),
    "npy 3-D": (npy(noise(5, "uint16")), noise(5, "uint16")),
    "npy fortran": (npy(np.asfortranarray(noise(3))), noise(3)),
    "npy big-endian": (npy(noise(3, "uint16").astype(">u2")), noise(3, "uint16")),
    "tiff grey": (tiff(noise(1)), noise(1)),
    "tiff 16 little": (tiff(noise(1, "uint16"), byteorder="<"), noise(1, "uint16")),
    "tiff 16 big": (tiff(noise(1, "uint16"), byteorder=">"), noise(1, "uint16")),
    "tiff 16 rgb": (tiff(noise(3, "uint16"), photometric="rgb"), noise(3, "uint16")),
    "tiff float": (tiff(noise(1, "float32")), noise(1, "float32")),
    "tiff bigtiff": (tiff(noise(3), photometric="rgb", bigtiff=True), noise(3)),
    "tiff tiled": (tiff(noise(3), photometric="rgb", tile=(16, 16)), noise(3)),
    "tiff rgba": (tiff(noise(4), photometric="rgb", extrasamples=["unassalpha"]), on_white(noise(4))),
    "tiff 16 rgba": (tiff(noise(4, "uint16"), photometric="rgb"), on_white(noise(4, "uint16"))),
    "tiff grey alpha": (tiff(noise(2), planarconfig="contig", extrasamples=["unassalpha"]), on_white(noise(2))),
    "tiff by pillow": (saved(pillow(noise(3)), "TIFF", compression="tiff_lzw"), noise(3)),
    "tiff min is white": (tiff(255 - noise(1), photometric="miniswhite"), noise(1)),
    "tiff 16 min is white": (tiff(65535 - noise(1, "uint16"), photometric="miniswhite"), noise(1, "uint16")),
}
for codec in ("lzw", "zlib", "zstd", "packbits"):
    LOSSLESS[f"tiff {codec}"] = (tiff(noise(3), photometric="rgb", compression=codec), noise(3))
for codec in ("lzw", "zlib"):
    LOSSLESS[f"tiff {codec} predictor"] = (
        tiff(noise(1, "uint16"), compression=codec, predictor=True),
        noise(1, "uint16"),
    )
for depth in DEPTHS:
    LOSSLESS[f"tiff 7 bands contig {depth}"] = (tiff(noise(7, depth), planarconfig="contig"), noise(7, depth))
    planes = np.ascontiguousarray(np.moveaxis(noise(7, depth), 2, 0))
    LOSSLESS[f"tiff 7 bands separate {depth}"] = (tiff(planes, planarconfig="separate"), noise(7, depth))
    LOSSLESS[f"tiff 7 bands separate tiled {depth}"] = (
        tiff(planes, planarconfig="separate", tile=(16, 16), compression="zlib"),
        noise(7, depth),
    )


@pytest.mark.parametrize("case", LOSSLESS)
def test_lossless_pictures_come_bit_for_bit(case):
    exact(*LOSSLESS[case])


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_what_pillow_reads(mode, progressive):
    picture = saved(pillow(smooth(3)).convert(mode), "JPEG", progressive=progressive)
    exact(picture, by_pillow(picture, "L" if mode == "L" else "RGB"))


@pytest.mark.parametrize("kind", ["AVIF", "WEBP", "HEIF"])
@pytest.mark.parametrize("channels", [3, 4])
def test_lossy_formats_come_close(kind, channels):
    pillow_pixels = smooth(channels)
    if kind == "HEIF":
        stream = io.BytesIO()
        pillow_heif.from_pillow(pillow(pillow_pixels)).save(stream, quality=100)
        picture = stream.getvalue()
    else:
        picture = saved(pillow(pillow_pixels), kind, quality=100)
    exact(picture, on_white(pillow_pixels) if channels == 4 else pillow_pixels, tolerance=12)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF"])
def test_a_palette_becomes_its_colours(kind):
    image = pillow(noise(3)).quantize(16)
    exact(saved(image, kind), np.array(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_one_bit_becomes_black_and_white(kind):
    bits = noise(1) & 1 == 1
    exact(saved(Image.fromarray(bits[..., 0]), kind), bits * np.uint8(255))


def test_one_bit_where_zero_is_white_is_inverted():
    bits = noise(1) & 1 == 1
    exact(tiff(bits[..., 0], photometric="miniswhite"), ~bits * np.uint8(255))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind):
    image = pillow(noise(3)).quantize(16)
    expected = np.array(image.convert("RGB"))
    expected[np.array(image) == 3] = 255
    exact(saved(image, kind, transparency=3), expected)


def test_a_half_transparent_palette_entry_is_half_white():
    image = pillow(noise(3)).quantize(4)
    alpha = np.array([0, 51, 128, 255], np.uint8)[np.array(image)]
    expected = on_white(np.dstack([np.array(image.convert("RGB")), alpha]))
    exact(saved(image, "PNG", transparency=bytes([0, 51, 128, 255])), expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_colour_of_a_png_is_white(channels, dtype):
    pixels = noise(channels, dtype)
    clear = pixels[2, 3].copy()
    key = chunk(b"tRNS", clear.astype(">u2").tobytes())
    colour = 0 if channels == 1 else 2
    picture = png16(pixels, key) if dtype == "uint16" else png(pixels, W, 8, colour, key)
    pixels[(pixels == clear).all(axis=2)] = np.iinfo(dtype).max
    exact(picture, pixels)


def test_premultiplied_alpha_is_composited_as_such():
    straight = noise(4, "uint16")
    alpha = straight[..., 3:].astype(np.uint64)
    premultiplied = np.concatenate([straight[..., :3] * alpha // 65535, alpha], axis=2).astype(np.uint16)
    expected = premultiplied[..., :3] + (65535 - premultiplied[..., 3:])
    exact(tiff(premultiplied, photometric="rgb", extrasamples=["assocalpha"]), expected)


def test_unnamed_extra_bands_are_kept():
    exact(tiff(noise(4), photometric="rgb", extrasamples=["unspecified"]), noise(4))


def test_cmyk_tiff_becomes_what_pillow_makes_of_it():
    expected = np.array(pillow(noise(4), "CMYK").convert("RGB"))
    exact(tiff(noise(4), photometric="separated"), expected)
    exact(saved(pillow(noise(4), "CMYK"), "TIFF"), expected)
    deep = decode(tiff(noise(4).astype(np.uint16) * 257, photometric="separated"), "x")
    assert deep.dtype == np.uint16
    np.testing.assert_allclose(deep / 257, expected, atol=0.51)


def test_ycbcr_and_lab_tiff_become_rgb():
    ycbcr = pillow(smooth(3)).convert("YCbCr")
    exact(saved(ycbcr, "TIFF"), np.array(ycbcr.convert("RGB")))
    offset = np.stack([smooth(1)[..., 0], smooth(2)[..., 1], np.full((H, W), 140)], axis=2).astype(np.uint8)
    signed = offset ^ np.array([0, 128, 128], np.uint8)
    lab = Image.frombytes("LAB", (W, H), signed.tobytes(), "raw", "LAB")
    expected = np.array(lab.convert("RGB"))
    exact(saved(lab, "TIFF"), expected)
    exact(tiff(offset, photometric="icclab", planarconfig="contig"), expected)


@pytest.mark.parametrize("writer", ["tifffile", "pillow"])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_in_tiff_comes_close(writer, channels):
    pixels = np.tile(smooth(channels), (3, 3, 1)) // 2
    options = {"photometric": "rgb" if channels == 3 else "minisblack", "compression": "jpeg", "tile": (64, 64)}
    picture = tiff(pixels, **options) if writer == "tifffile" else saved(pillow(pixels), "TIFF", compression="jpeg")
    got = decode(picture, "x")
    assert inspect(picture, "x") == Facts(3 * H, 3 * W, channels, "uint8")
    assert np.abs(got.astype(int) - pixels).mean() < 6


def test_the_first_page_and_the_first_frame_are_read():
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(noise(1)[..., 0], photometric="minisblack")
        writer.write(noise(3, "uint16", seed=1), photometric="rgb")
    exact(stream.getvalue(), noise(1))
    frames = [pillow(noise(1, seed=seed)) for seed in range(3)]
    exact(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), noise(1).repeat(3, axis=2))
    exact(saved(frames[0], "PNG", save_all=True, append_images=frames[1:]), noise(1))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation):
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = saved(pillow(smooth(3)), kind, exif=exif(orientation), **options)
    exact(picture, np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(picture)))))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_of_a_deep_tiff_is_applied(orientation):
    picture = tiff(noise(5, "uint16"), planarconfig="contig", extratags=[(274, 3, 1, orientation, True)])
    high_bytes = (noise(5, "uint16")[..., :1] >> 8).astype(np.uint8)
    expected = by_orientation(pillow(high_bytes), orientation)
    np.testing.assert_array_equal(decode(picture, "x")[..., 0] >> 8, expected)


def by_orientation(image: Image.Image, orientation: int) -> np.ndarray:
    return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(saved(image, "PNG", exif=exif(orientation))))))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_heic_is_turned_once(orientation):
    stream = io.BytesIO()
    pillow_heif.from_pillow(pillow(smooth(3))).save(stream, quality=100, exif=exif(orientation).tobytes())
    exact(stream.getvalue(), by_orientation(pillow(smooth(3)), orientation), tolerance=12)


@pytest.mark.parametrize("big", [False, True])
def test_exif_of_either_byte_order_is_understood(big):
    order = ">" if big else "<"
    block = (b"MM" if big else b"II") + struct.pack(order + "HIHHHIHHI", 42, 8, 1, 274, 3, 1, 6, 0, 0)
    picture = saved(pillow(smooth(3)), "JPEG", exif=b"Exif\0\0" + block)
    assert inspect(picture, "x") == Facts(W, H, 3, "uint8")


@pytest.mark.parametrize("block", [b"", b"II", b"II*\0\xff\xff\xff\xff", b"junk" * 9, exif(6).tobytes()[6:20]])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_corrupt_exif_means_upright_and_makes_no_noise(kind, block, capfd):
    plain = saved(pillow(smooth(3)), kind)
    picture = saved(pillow(smooth(3)), kind, exif=b"Exif\0\0" + block)
    exact(picture, by_pillow(plain, "RGB"))
    assert capfd.readouterr() == ("", "")


# Numbers


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint32", "uint64", "float16", "float32", "float64", ">f4", ">i2"]
)
@pytest.mark.parametrize("form", ["array", "npy", "tiff"])
def test_other_numbers_become_float32(form, dtype):
    pixels = noise(2, dtype)
    if form == "tiff":
        picture = tiff(pixels.astype(np.dtype(dtype).newbyteorder("=")), planarconfig="contig")
    else:
        picture = pixels if form == "array" else npy(pixels)
    exact(picture, pixels.astype(np.float32))


@pytest.mark.parametrize("form", [np.asarray, npy])
def test_booleans_become_black_and_white(form):
    exact(form(noise(1) & 1 == 1), (noise(1) & 1) * np.uint8(255))


def test_an_array_that_is_right_is_not_copied_and_others_are_made_right():
    right, read_only = noise(3), noise(3)
    read_only.flags.writeable = False
    assert np.shares_memory(decode(right, "x"), right)
    exact(read_only, noise(3))
    exact(noise(3)[:, ::-1], np.ascontiguousarray(noise(3)[:, ::-1]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("form", [np.asarray, npy, tiff])
def test_values_that_are_not_finite_are_counted(form, value):
    pixels = noise(1, "float64")[..., 0]
    pixels[3, 4:6] = value
    assert f"2 of {H * W} values are NaN or infinite" in refusal(form(pixels))


@pytest.mark.parametrize("dtype", ["complex64", "U3", "S3", "datetime64[s]", "object", [("a", "u1")]])
def test_values_that_are_not_real_numbers_are_refused(dtype):
    pixels = np.zeros((4, 4), dtype)
    assert "real numbers were expected" in refusal(pixels)
    assert "real numbers were expected" in refusal(npy(pixels))
    if dtype == "complex64":
        assert "real numbers were expected" in refusal(tiff(pixels))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4, 5)])
@pytest.mark.parametrize("form", [np.asarray, npy])
def test_arrays_that_are_no_picture_are_refused(form, shape):
    assert "(H, W, C) was expected" in refusal(form(np.zeros(shape)))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (5, 5, 0)])
@pytest.mark.parametrize("form", [np.asarray, npy])
def test_empty_arrays_are_refused(form, shape):
    assert "empty" in refusal(form(np.zeros(shape, np.uint8)))


# Draft


@pytest.mark.parametrize(
    ("at_least", "size"),
    [
        ((0, 0), (60, 80)),
        ((60, 80), (60, 80)),
        ((61, 80), (120, 160)),
        ((121, 1), (240, 320)),
        ((240, 321), (480, 640)),
        ((480, 640), (480, 640)),
        ((900, 900), (480, 640)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_shrinks_by_powers_of_two_and_never_below_what_is_asked(at_least, size, orientation):
    picture = saved(pillow(np.zeros((480, 640, 3), np.uint8)), "JPEG", exif=exif(orientation))
    whole = (480, 640)
    if orientation == 6:
        at_least, size, whole = at_least[::-1], size[::-1], whole[::-1]
    assert decode(picture, "x", at_least=at_least).shape[:2] == size
    assert inspect(picture, "x") == Facts(whole[0], whole[1], 3, "uint8")


@pytest.mark.parametrize("case", ["png rgb", "webp rgb", "gif", "tiff grey", "npy 3-D"])
def test_other_formats_keep_their_size(case):
    picture, expected = LOSSLESS[case]
    np.testing.assert_array_equal(decode(picture, "x", at_least=(3, 3)), expected)


# Refusals


PICTURES = {
    "jpeg": saved(pillow(noise(3)), "JPEG"),
    "png": saved(pillow(noise(3)), "PNG"),
    "png palette": saved(pillow(noise(3)).quantize(16), "PNG", transparency=3),
    "png 16": png16(noise(4, "uint16")),
    "webp": saved(pillow(noise(3)), "WEBP"),
    "bmp": saved(pillow(noise(3)), "BMP"),
    "gif": saved(pillow(noise(3)), "GIF"),
    "tiff": tiff(noise(3), photometric="rgb"),
    "tiff zlib": tiff(noise(5, "uint16"), planarconfig="contig", compression="zlib"),
    "avif": saved(pillow(noise(3)), "AVIF"),
    "npy": npy(noise(3, "float32")),
    "exif jpeg": saved(pillow(noise(3)), "JPEG", exif=exif(6)),
}


def heic() -> bytes:
    stream = io.BytesIO()
    pillow_heif.from_pillow(pillow(noise(3))).save(stream)
    return stream.getvalue()


def test_nothing_and_no_picture_are_refused_with_the_formats():
    assert "empty (0 bytes)" in refusal(b"")
    message = refusal(b"<!DOCTYPE html> not found")
    assert all(kind in message for kind in ("JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF", "HEIC", "AVIF", ".npy"))
    assert "<!DOCTYPE" in message


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PDF", "JPEG2000", "SGI"])
def test_what_pillow_reads_but_the_list_lacks_is_refused(kind):
    assert "was expected, but it starts with" in refusal(saved(pillow(noise(3)), kind))


@pytest.mark.parametrize("case", PICTURES)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_a_truncated_file_is_refused(case, share):
    picture = PICTURES[case]
    message = refusal(picture[: int(len(picture) * share)])
    assert "cut short" in message or "truncated" in message


def test_a_truncated_heic_is_refused():
    assert "cut short" in refusal(heic()[:-200])


def test_the_words_of_the_library_are_kept():
    assert "[OSError: image file is truncated" in refusal(PICTURES["jpeg"][:-300])


def huge(kind: str) -> bytes:
    """A small file that claims 30,000 × 30,000 pixels."""
    side = 30_000
    if kind == "png":
        return png(np.zeros((1, 1), np.uint8), side, 8, 0).replace(
            struct.pack(">II", side, 1), struct.pack(">II", side, side)
        )
    if kind == "tiff":
        return tiff(np.zeros((1, 30_000), np.uint8)).replace(
            struct.pack("<HHII", 257, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, side)
        )
    if kind == "bmp":
        return saved(pillow(noise(3)), "BMP").replace(struct.pack("<ii", W, H), struct.pack("<ii", side, side))
    if kind == "jpeg":
        return saved(pillow(noise(3)), "JPEG").replace(struct.pack(">HH", H, W), struct.pack(">HH", side, side), 1)
    return npy(np.zeros((30, 30), np.uint8)).replace(b"(30, 30), }      ", b"(30000, 30000), }")


@pytest.mark.parametrize("kind", ["png", "tiff", "bmp", "jpeg", "npy"])
@pytest.mark.parametrize("way", [decode, inspect])
def test_a_pixel_bomb_is_refused_from_its_header(kind, way):
    picture = huge(kind)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"^bomb: .*179\.0 megapixels.*900\.0"):
        way(picture, "bomb")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize("case", PICTURES)
def test_the_cap_is_the_callers(case):
    picture = PICTURES[case]
    assert "megapixels" in refusal(picture, max_pixels=H * W - 1)
    assert decode(picture, "x", max_pixels=2 * H * W).size


def test_pillows_own_cap_neither_warns_nor_decides(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for case in ("jpeg", "png", "bmp"):
        assert decode(PICTURES[case], "x").shape == (H, W, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_many_bands_count_as_many_pixels():
    assert "of 100" in refusal(np.zeros((4, 4, 100), np.uint8), max_pixels=100)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1)])
def test_fewer_than_four_pixels_are_nothing_to_see(shape):
    for picture in (np.zeros(shape), saved(Image.new("L", shape[::-1]), "PNG")):
        assert f"{shape[0]}×{shape[1]} pixels: nothing to see" in refusal(picture)
    assert decode(np.zeros((2, 2), np.uint8), "x").shape == (2, 2, 1)


def test_heic_without_its_package_says_how_to_get_it(monkeypatch):
    picture = heic()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "pip install 'vitreous[heif]'" in refusal(picture)


def test_running_out_of_memory_is_an_input_error(monkeypatch):
    def exhausted(_):
        raise MemoryError("no room")

    monkeypatch.setattr(module, "READERS", ((lambda _: True, exhausted),))
    assert "[MemoryError: no room]" in refusal(b"anything")


def test_a_damaged_but_readable_tiff_is_read_without_noise(capfd, caplog):
    picture = tiff(noise(1), extratags=[(65000, 4, 4, (1, 2, 3, 4), True)])
    at = picture.index(struct.pack("<HHI", 65000, 4, 4)) + 8
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        exact(picture[:at] + struct.pack("<I", 2**31) + picture[at + 4 :], noise(1))
    assert not caught
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_damaged_animation_chunk_of_a_png_makes_no_noise(capfd):
    exact(png16(noise(3, "uint16"), chunk(b"acTL", bytes(8)), chunk(b"gAMA", bytes(4))), noise(3, "uint16"))
    assert capfd.readouterr() == ("", "")


def test_damaged_files_give_an_array_or_an_input_error(capfd):
    generator = np.random.default_rng(7)
    files = [*PICTURES.values(), heic(), *(LOSSLESS[case][0] for case in ("tiff tiled", "tiff lzw", "tiff bigtiff"))]
    refusals = []
    for trial in range(300):
        picture = bytearray(files[trial % len(files)])
        if generator.random() < 0.3:
            del picture[generator.integers(len(picture)) :]
        else:
            span = len(picture) if generator.random() < 0.5 else min(len(picture), 300)
            for at in generator.integers(span, size=generator.integers(1, 6)):
                picture[at] = generator.integers(256)
        try:
            facts = inspect(bytes(picture), "fuzz", max_pixels=1_000_000)
            pixels = decode(bytes(picture), "fuzz", max_pixels=1_000_000)
            assert facts == facts_of(pixels)
        except InputError as error:
            refusals.append(str(error))
    assert 50 < len(refusals) < 300
    assert all(message.startswith("fuzz: ") for message in refusals)
    assert capfd.readouterr() == ("", "")


# Everyday


def test_many_threads_get_the_same_pixels():
    cases = [LOSSLESS[case] for case in LOSSLESS] * 4
    with ThreadPoolExecutor(8) as pool:
        for (_, expected), pixels in zip(cases, pool.map(lambda case: decode(case[0], "x"), cases), strict=True):
            np.testing.assert_array_equal(pixels, expected)


def test_inspect_reads_no_pixels_of_a_large_photo():
    picture = saved(Image.effect_noise((3000, 2000), 80), "JPEG")
    assert inspect(picture, "x") == Facts(2000, 3000, 1, "uint8")
    assert inspect(picture[:5000], "x") == Facts(2000, 3000, 1, "uint8")  # all but the head of it is gone


def test_the_decoder_names_its_libraries_and_versions():
    assert f"pillow {Image.__version__}" in decoder_name()
    assert f"tifffile {version('tifffile')}" in decoder_name()
