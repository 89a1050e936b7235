"""InputSpec: which pixels the model sees of any picture."""

import dataclasses
import io
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from vitreous.data.decode import Facts, decoder_name
from vitreous.data.preprocess import InputSpec, choose_sizes, infer_spec, parse_size, resize, shrink
from vitreous.errors import InputError

SQUARE = ((16, 16),)


def noise(*shape: int, depth: str = "uint8", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if depth == "float32":
        return rng.normal(size=shape).astype(np.float32)
    return rng.integers(0, np.iinfo(depth).max, shape, endpoint=True).astype(depth)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def spec(**fields) -> InputSpec:
    return InputSpec(**{"channels": 3, "depth": "uint8", "sizes": SQUARE, **fields})


def infer(*facts: Facts, **options) -> InputSpec:
    names = [f"{i}.png" for i in range(len(facts))]
    return infer_spec(facts, names, **{"size": "32", "stride": (4, 4), **options})


GREY, RGB = Facts(20, 20, 1, "uint8"), Facts(20, 20, 3, "uint8")


class TestChooseSizes:
    def test_one_shape_gives_one_size_of_its_aspect(self):
        assert choose_sizes([(480, 480)] * 20, "224", (16, 16)) == ((224, 224),)
        assert choose_sizes([(300, 600)] * 20, "160", (16, 16)) == ((112, 224),)

    def test_portraits_and_landscapes_each_get_their_own(self):
        sizes = choose_sizes([(400, 300)] * 50 + [(300, 400)] * 50, "160", (16, 16))
        assert len(sizes) == 2
        assert sizes == tuple((w, h) for h, w in reversed(sizes))
        assert all(abs(abs(np.log(h / w)) - np.log(4 / 3)) < 0.1 for h, w in sizes)

    def test_a_tall_scan_stays_tall(self):
        [(height, width)] = choose_sizes([(1700, 500)] * 9, "224", (16, 16))
        assert height / width == pytest.approx(1700 / 500, rel=0.09)
        [(height, width)] = choose_sizes([(1700, 500)] * 9, "224", (4, 4))
        assert height / width == pytest.approx(1700 / 500, rel=0.01)
        assert height * width == pytest.approx(224**2, rel=0.1)

    @pytest.mark.parametrize("stride", [(16, 16), (8, 8), (4, 8), (14, 14)])
    @pytest.mark.parametrize("seed", range(4))
    def test_at_most_eight_sizes_each_of_whole_strides_within_the_budget(self, seed, stride):
        rng = np.random.default_rng(seed)
        shapes = [(int(h), int(w)) for h, w in np.exp(rng.uniform(3.5, 7.5, (400, 2)))]
        sizes = choose_sizes(shapes, "160", stride)
        assert 2 <= len(sizes) <= 8
        assert len(set(sizes)) == len(sizes)
        tokens = 160**2 / (stride[0] * stride[1])
        for height, width in sizes:
            assert height % stride[0] == 0
            assert width % stride[1] == 0
            assert 0.6 * tokens <= height * width / (stride[0] * stride[1]) <= 1.1 * tokens

    def test_a_rare_shape_gets_no_size_of_its_own(self):
        shapes = [(300, 300)] * 500 + [(100, 900)]
        assert choose_sizes(shapes, "160", (16, 16)) == ((160, 160),)
        assert len(choose_sizes(shapes + [(100, 900)] * 20, "160", (16, 16))) == 2

    def test_the_order_of_the_pictures_does_not_matter(self):
        shapes = [(400, 300)] * 30 + [(300, 400)] * 20 + [(200, 600)] * 10
        assert choose_sizes(shapes[::-1], "160", (16, 16)) == choose_sizes(shapes, "160", (16, 16))

    def test_a_fixed_size_is_taken_as_it_is(self):
        assert choose_sizes([(480, 480), (100, 900)], "160x384", (16, 16)) == ((160, 384),)

    @pytest.mark.parametrize(("size", "near"), [("150x384", "144x384"), ("160x390", "160x384"), ("5x7", "16x16")])
    def test_a_fixed_size_that_does_not_divide_names_one_that_does(self, size, near):
        with pytest.raises(InputError, match=f"--size {size} .* 16×16: {near} would"):
            choose_sizes([(480, 480)], size, (16, 16))
        assert choose_sizes([(480, 480)], near, (16, 16))

    @pytest.mark.parametrize(
        ("shape", "stride", "size"),
        [
            ((32, 32), (4, 4), (32, 32)),
            ((8, 8), (1, 1), (8, 8)),
            ((28, 56), (4, 4), (28, 56)),
            ((480, 480), (16, 16), (160, 160)),
        ],
    )
    def test_auto_is_the_own_size_of_small_pictures_and_160_of_others(self, shape, stride, size):
        assert choose_sizes([shape] * 5, "auto", stride) == (size,)

    @pytest.mark.parametrize(
        ("text", "parsed"),
        [
            ("auto", (None, None)),
            ("224", (None, 224.0)),
            ("160x384", ((160, 384), None)),
            ("160×384", ((160, 384), None)),
        ],
    )
    def test_sizes_are_height_by_width(self, text, parsed):
        assert parse_size(text) == parsed

    @pytest.mark.parametrize("text", ["", "big", "0", "-5", "1x2x3", "160x", "x", "12.5"])
    def test_what_is_no_size_is_refused(self, text):
        with pytest.raises(InputError, match="expected one number"):
            parse_size(text)

    def test_shrinking_is_told_a_side(self):
        assert shrink([(640, 640)] * 3, spec(sizes=((160, 160),))) == pytest.approx(4)


class TestSizeOf:
    SIZES = ((96, 256), (160, 160), (256, 96))

    @pytest.mark.parametrize(
        ("shape", "number"),
        [((100, 300), 0), ((1000, 3000), 0), ((50, 55), 1), ((3, 3), 1), ((300, 100), 2), ((9999, 1), 2)],
    )
    def test_a_picture_takes_the_size_nearest_in_aspect(self, shape, number):
        assert spec(sizes=self.SIZES).size_of(*shape) == number

    def test_depends_on_the_shape_alone(self):
        one = spec(sizes=self.SIZES)
        for shape in ((100, 300), (50, 55), (300, 100)):
            array = noise(*shape, 3)
            number, pixels = one.read(array, "a")
            assert number == one.read(255 - array, "b")[0] == one.size_of(*shape)
            assert pixels.shape == (*self.SIZES[number], 3)


class TestInfer:
    def test_the_majority_tells_channels_and_depth(self):
        got = infer(*[Facts(20, 20, 4, "uint16")] * 3)
        assert (got.channels, got.depth, got.convert, got.decoder) == (4, "uint16", False, decoder_name())

    def test_grey_among_rgb_becomes_rgb_whichever_is_more(self):
        assert infer(GREY, GREY, RGB).channels == 3
        assert infer(GREY, RGB, RGB).channels == 3
        assert infer(GREY, GREY).channels == 1

    def test_odd_ones_are_all_named(self):
        four, deep = Facts(20, 20, 4, "uint8"), Facts(20, 20, 3, "uint16")
        with pytest.raises(InputError) as fault:
            infer(RGB, RGB, four, RGB, deep, RGB)
        message = str(fault.value)
        assert message.startswith("2 of 6 pictures are of another kind")
        assert "2.png: 4 channels, where the model expects three channels (RGB)" in message
        assert "4.png: uint16 pixels, where the model expects uint8" in message
        assert message.endswith("leave these out, or convert all, at a loss: --channels 1 --depth uint8")

    def test_only_the_conversions_that_help_are_advised(self):
        with pytest.raises(InputError, match=r"1 of 3 pictures is of another kind(?s:.*)at a loss: --depth uint8$"):
            infer(RGB, RGB, Facts(20, 20, 1, "uint16"))

    def test_a_conversion_that_is_asked_for_is_allowed(self):
        assert infer(RGB, GREY, Facts(20, 20, 4, "uint8"), channels=1).channels == 1
        assert infer(RGB, Facts(20, 20, 3, "uint16"), depth="uint8").depth == "uint8"

    def test_floats_are_never_turned_into_integers(self):
        with pytest.raises(InputError, match=r"1\.png: float32 pixels"):
            infer(RGB, Facts(20, 20, 3, "float32"), depth="uint8")

    def test_bands_are_never_made_up(self):
        with pytest.raises(InputError, match=r"0\.png: one channel \(grey\), where the model expects 8 channels"):
            infer(GREY, channels=8)


class TestRead:
    @pytest.mark.parametrize("shape", [(16, 16, 3), (16, 16), (40, 24, 3), (9, 31)])
    def test_bytes_and_array_give_the_same_pixels_each_time(self, shape):
        pixels = noise(*shape)
        one = spec(channels=3 if len(shape) == 3 else 1, sizes=((16, 16), (24, 12)))
        results = [one.read(png(pixels), "a"), one.read(png(pixels), "b"), one.read(pixels, "c")]
        assert len({number for number, _ in results}) == 1
        for _, got in results:
            assert got.dtype == np.uint8
            np.testing.assert_array_equal(got, results[0][1])

    @pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
    @pytest.mark.parametrize("channels", [1, 3, 5])
    def test_a_picture_of_the_right_size_is_untouched(self, depth, channels):
        pixels = noise(16, 16, channels, depth=depth)
        _, got = spec(channels=channels, depth=depth).read(pixels, "a")
        assert got.dtype == pixels.dtype
        np.testing.assert_array_equal(got, pixels)

    def test_a_large_jpeg_read_small_is_near_the_whole_one_resized(self):
        photo = load_sample_image("china.jpg")
        file = io.BytesIO()
        Image.fromarray(photo).save(file, "JPEG", quality=95)
        _, got = spec(sizes=((96, 144),)).read(file.getvalue(), "a.jpg")
        assert np.abs(got.astype(int) - resize(photo, (96, 144))).mean() <= 3

    def test_grey_becomes_rgb_of_three_equal_channels(self):
        grey = noise(16, 16)
        _, got = spec().read(png(grey), "a")
        np.testing.assert_array_equal(got, grey[..., None].repeat(3, 2))

    @pytest.mark.parametrize(
        ("picture", "model", "words"),
        [
            (noise(16, 16, 3), {"channels": 1}, "three channels (RGB), where the model expects one channel (grey)"),
            (noise(16, 16), {"channels": 4}, "one channel (grey), where the model expects 4 channels"),
            (noise(16, 16, 4), {}, "4 channels, where the model expects three channels (RGB)"),
            (noise(16, 16, 3, depth="uint16"), {}, "uint16 pixels, where the model expects uint8"),
            (noise(16, 16, 3), {"depth": "uint16"}, "uint8 pixels, where the model expects uint16"),
            (noise(16, 16, 3, depth="float32"), {"convert": True}, "float32 pixels, where the model expects uint8"),
            (noise(16, 16, 3), {"depth": "float32", "convert": True}, "uint8 pixels, where the model expects float32"),
            (noise(16, 16, 4), {"convert": True}, "4 channels"),
        ],
    )
    def test_what_would_lose_something_is_refused_by_name(self, picture, model, words):
        with pytest.raises(InputError) as fault:
            spec(**model).read(picture, "scans/a.png")
        assert str(fault.value).startswith("scans/a.png: ")
        assert words in str(fault.value)

    def test_rgb_becomes_grey_by_luma_where_that_is_asked_for(self):
        pixels = noise(16, 16, 3)
        _, got = spec(channels=1, convert=True).read(pixels, "a")
        expected = 0.299 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2]
        assert got.shape == (16, 16, 1)
        assert np.abs(got[..., 0] - expected).max() <= 0.501

    def test_many_bands_become_their_mean_where_that_is_asked_for(self):
        pixels = noise(16, 16, 5)
        _, got = spec(channels=1, convert=True).read(pixels, "a")
        assert np.abs(got[..., 0] - pixels.mean(2)).max() <= 0.501

    def test_sixteen_bits_and_eight_cover_the_same_range(self):
        deep = np.linspace(0, 65535, 768).astype(np.uint16).reshape(16, 16, 3)
        _, got = spec(convert=True).read(deep, "a")
        assert (got.min(), got.max()) == (0, 255)
        _, back = spec(depth="uint16", convert=True).read(got, "a")
        assert (back.min(), back.max()) == (0, 65535)
        assert np.abs(back.astype(int) - deep).max() <= 129

    def test_a_decompression_bomb_is_refused_by_the_specs_own_limit(self):
        with pytest.raises(InputError, match="megapixels"):
            spec(max_pixels=255).read(noise(16, 16, 3), "a")


class TestResize:
    @pytest.mark.parametrize(
        ("depth", "bands"), [("uint8", 1), ("uint8", 3), ("uint8", 4), ("uint16", 1), ("uint16", 3), ("float32", 2)]
    )
    def test_keeps_depth_bands_and_a_flat_value(self, depth, bands):
        flat = np.full((30, 50, bands), 7, depth)
        got = resize(flat, (12, 20))
        assert (got.shape, got.dtype) == ((12, 20, bands), flat.dtype)
        np.testing.assert_allclose(got, 7, atol=1e-5)

    def test_is_bicubic_with_antialias_in_every_depth(self):
        """8 bits in one or three bands go through Pillow's own integers; all else through its floats, band by band."""
        pixels = noise(40, 60, 3)
        small = resize(pixels, (10, 20)).astype(float)
        np.testing.assert_allclose(resize(pixels[..., [0, 1, 2, 0]], (10, 20))[..., :3], small, atol=1)
        np.testing.assert_allclose(resize(pixels.astype(np.uint16) * 257, (10, 20)) / 257, small, atol=1)
        floats = resize(pixels.astype(np.float32), (10, 20))
        np.testing.assert_allclose(floats.clip(0, 255), small, atol=1)
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        torch_has = torch.nn.functional.interpolate(image, (10, 20), mode="bicubic", antialias=True)
        np.testing.assert_allclose(floats, torch_has[0].permute(1, 2, 0).numpy(), atol=0.01)

    @pytest.mark.parametrize("top", [4095, 65535])
    def test_sixteen_bits_keep_their_range_and_do_not_wrap(self, top):
        edges = np.zeros((40, 40, 1), np.uint16)
        edges[:, 20:] = top
        got = resize(edges, (15, 15))
        assert got[:, 0].max() <= 0.1 * top
        assert got[:, -1].min() >= 0.9 * top
        assert ((got[:, :7] < top / 2).all(), (got[:, 8:] > top / 2).all()) == (True, True)

    def test_floats_are_not_clipped(self):
        pixels = 1000 * noise(40, 40, 1, depth="float32")
        got = resize(pixels, (20, 20))
        assert got.min() < -100
        assert got.max() > 100

    @pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
    def test_the_same_size_is_the_same_bits(self, depth):
        pixels = noise(13, 17, 3, depth=depth)
        np.testing.assert_array_equal(resize(pixels, (13, 17)), pixels)

    def test_height_and_width_are_not_swapped(self):
        pixels = np.zeros((40, 20, 3), np.uint8)
        pixels[:20] = 255
        got = resize(pixels, (10, 30))
        assert got[:4].min() > 250
        assert got[6:].max() < 5


class TestNormalise:
    @pytest.mark.parametrize(("depth", "channels"), [("uint8", 3), ("uint16", 1), ("float32", 2)])
    def test_gives_mean_0_and_deviation_1(self, depth, channels):
        pixels = noise(6, 16, 16, channels, depth=depth) // (1 if depth != "float32" else 0.01)
        shares = pixels.reshape(-1, channels).astype(float) / {"uint8": 255, "uint16": 65535, "float32": 1}[depth]
        mean, std = tuple(shares.mean(0).tolist()), tuple(shares.std(0).tolist())
        one = spec(channels=channels, depth=depth, mean=mean, std=std)
        got = one.normalise(torch.from_numpy(pixels.astype(depth)).permute(0, 3, 1, 2))
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.mean((0, 2, 3)), torch.zeros(channels), rtol=0, atol=1e-4)
        torch.testing.assert_close(got.std((0, 2, 3)), torch.ones(channels), rtol=0, atol=2e-3)

    def test_a_channel_that_never_changes_becomes_0(self):
        one = spec(channels=1, mean=(51 / 255,), std=(1.0,))
        got = one.normalise(torch.full((1, 1, 4, 4), 51, dtype=torch.uint8))
        torch.testing.assert_close(got, torch.zeros(1, 1, 4, 4), rtol=0, atol=1e-6)

    def test_leaves_its_input_as_it_is(self):
        pixels = torch.rand(1, 3, 4, 4)
        before = pixels.clone()
        spec(depth="float32", mean=(0.5,) * 3, std=(0.2,) * 3).normalise(pixels)
        assert torch.equal(pixels, before)


class TestJson:
    def test_a_spec_comes_back_from_its_json_text(self):
        one = spec(
            sizes=((16, 16), (8, 32)), mean=(0.1, 0.2, 1 / 3), std=(0.5, 0.25, 1e-3), convert=True, decoder="x 1"
        )
        assert InputSpec.from_json(json.loads(json.dumps(one.to_json()))) == one

    def test_all_that_changes_pixels_is_in_their_key_and_nothing_else(self):
        one = spec()
        changes = {"channels": 1, "depth": "uint16", "sizes": ((16, 8),), "convert": True, "max_pixels": 9}
        keys = Counter(dataclasses.replace(one, **{name: value}).pixel_key() for name, value in changes.items())
        assert max(keys.values()) == 1
        assert one.pixel_key() not in keys
        assert dataclasses.replace(one, mean=(0.5,) * 3, std=(0.5,) * 3).pixel_key() == one.pixel_key()
