"""What is found before training goes wrong by it."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from vitreous.data.decode import Facts
from vitreous.data.doctor import (
    NEAR_BITS,
    NEAR_LEVELS,
    NEAR_MOST,
    Checkup,
    Finding,
    check_data,
    digest,
    fast_findings,
    near_duplicates,
    scan,
    size_histogram,
    thumbnail,
)
from vitreous.data.sources import Source, open_source
from vitreous.errors import InputError

PHOTOS = [
    np.ascontiguousarray(load_sample_image(name)[top : top + 200, left : left + 200])
    for name in ("china.jpg", "flower.jpg")
    for top in (0, 210)
    for left in (0, 210, 430)
]


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def brighter(pixels: np.ndarray, levels: int = 4) -> np.ndarray:
    return (pixels.astype(int) + levels).clip(0, 255).astype(np.uint8)


def noise(seed: int, *shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (12, 12, 3)).astype(dtype)


def source(pictures: Sequence, classes: Sequence[str] = (), splits: Sequence[str] = ()) -> Source:
    names = tuple(f"p{i}" for i in range(len(pictures)))
    columns = {"class": np.array(list(classes))} if len(classes) else {}
    sides = np.array(splits or [""] * len(names), dtype="U10")
    return Source("pictures", "/here", names, columns, sides, None, list(pictures).__getitem__)


def findings(one: Source) -> dict[str, Finding]:
    return {finding.title: finding for finding in fast_findings(one, scan(one, 1))}


def grow(root: Path, pictures: dict[str, bytes]) -> Path:
    for name, content in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def titles(checkup: Checkup, severity: str) -> list[str]:
    return [finding.title for finding in checkup.findings if finding.severity == severity]


class TestScan:
    @pytest.mark.parametrize("threads", [0, 3])
    def test_facts_digests_and_faults_are_by_number(self, threads):
        done = []
        pictures = [encoded(noise(0, 9, 7, 3)), b"", noise(1, 5, 6), b"GIF but not", encoded(noise(2, 8, 8))]
        found = scan(source(pictures), threads, progress=done.append)
        assert found.facts == [Facts(9, 7, 3, "uint8"), None, Facts(5, 6, 1, "uint8"), None, Facts(8, 8, 1, "uint8")]
        assert sorted(found.faults) == [1, 3]
        assert found.faults[1].startswith("p1: ")
        assert [bool(text) for text in found.digests] == [True, False, True, False, True]
        assert done == [1, 2, 3, 4, 5]

    def test_a_part_of_it_is_numbered_anew(self):
        found = scan(source([encoded(noise(0)), b"", encoded(noise(1)), b"x"]), 1)
        part = found.only([3, 0, 2])
        assert part.faults == {0: found.faults[3]}
        assert part.digests == [found.digests[i] for i in (3, 0, 2)]
        assert part.facts == [found.facts[i] for i in (3, 0, 2)]

    def test_a_bomb_is_found_in_the_header(self):
        found = scan(source([noise(0, 20, 20)]), 1, max_pixels=399)
        assert "megapixels" in found.faults[0]


class TestDigest:
    def test_arrays_differ_by_values_shape_and_type(self):
        zeros = np.zeros((4, 6), np.uint8)
        arrays = [zeros, zeros + 1, zeros.reshape(6, 4), zeros.astype(np.uint16), zeros.astype(np.int8)]
        assert len({digest(array) for array in arrays}) == len(arrays)

    def test_the_layout_in_memory_does_not_matter(self):
        array = noise(0, 6, 8)
        assert digest(np.asfortranarray(array)) == digest(array) == digest(noise(0, 6, 16)[:, :8] * 0 + array)

    def test_one_other_byte_is_another_digest(self):
        assert digest(b"abc") == digest(b"abc") != digest(b"abd")


class TestFastFindings:
    def test_sound_pictures_have_no_errors_and_no_warnings(self):
        found = findings(source([encoded(noise(i)) for i in range(6)], "aabbab"))
        assert list(found) == ["pictures a class to train on"]
        assert found["pictures a class to train on"].details == ["a: 3", "b: 3"]

    def test_unreadable_files_are_all_named(self):
        found = findings(source([encoded(noise(i)) for i in range(4)] + [b"", b"junk"], "aabbab"))
        finding = found["cannot be read"]
        assert finding.severity == "error"
        assert [line[:3] for line in finding.details] == ["p4:", "p5:"]

    def test_unreadable_files_are_not_copies_of_each_other(self):
        assert "exact copies" not in findings(source([encoded(noise(i)) for i in range(4)] + [b"", b""], "aabbab"))

    def test_copies_are_named_together(self):
        one = encoded(noise(9))
        found = findings(source([one, encoded(noise(1)), one, encoded(noise(2)), one], "aaaba"))
        assert found["exact copies"].severity == "warning"
        assert found["exact copies"].details == ["p0 = p2 = p4"]
        assert "the same picture under different labels" not in found

    def test_copies_under_different_labels_are_an_error(self):
        one = encoded(noise(9))
        found = findings(source([one, encoded(noise(1)), one, encoded(noise(2))], "aabb"))
        assert found["the same picture under different labels"].severity == "error"
        assert found["the same picture under different labels"].details == ["p0 = p2"]

    def test_copies_across_splits_are_an_error_that_tells_the_sides(self):
        one, other = encoded(noise(9)), encoded(noise(8))
        pictures = [one, encoded(noise(1)), other, encoded(noise(2)), one, other]
        found = findings(source(pictures, "aabbab", ["train"] * 4 + ["test", "train"]))
        finding = found["the same picture on both sides of a split"]
        assert (finding.severity, finding.details) == ("error", ["p0 (train) = p4 (test)"])
        assert found["exact copies"].details == ["p0 (train) = p4 (test)", "p2 (train) = p5 (train)"]

    @pytest.mark.parametrize(
        ("odd", "words"),
        [
            (noise(9, 12, 12, 4), "p4: 4 channels of uint8"),
            (noise(9, 12, 12, 3, dtype="uint16"), "p4: 3 channels of uint16"),
            (noise(9, 12, 12, dtype="uint16"), "p4: 1 channel of uint16"),
            (noise(9, 12, 12, 3, dtype="float32"), "p4: 3 channels of float32"),
        ],
    )
    def test_channels_or_depths_that_differ_are_an_error_that_names_the_odd_ones(self, odd, words):
        found = findings(source([*(noise(i) for i in range(4)), odd], "aabba"))
        finding = found["channels or depths differ"]
        assert finding.severity == "error"
        assert finding.details[0] == "4 pictures with 3 channels of uint8"
        assert finding.details[-1] == words
        assert len(finding.details) == 3

    @pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
    def test_grey_among_rgb_of_one_depth_is_no_trouble(self, depth):
        pictures = [noise(i, 12, 12, *([3] if i % 2 else []), dtype=depth) for i in range(4)]
        assert "channels or depths differ" not in findings(source(pictures, "aabb"))

    def test_imbalance_is_a_warning_from_ten_to_one_on(self):
        pictures = [noise(i) for i in range(22)]
        title = "classes are unbalanced (see --balance)"
        found = findings(source(pictures, ["a"] * 20 + ["b"] * 2))
        assert found[title].severity == "warning"
        assert found[title].details == ["a has 10 times the pictures of b"]
        assert title not in findings(source(pictures, ["a"] * 19 + ["b"] * 3))

    def test_held_out_pictures_do_not_count_for_balance(self):
        pictures = [noise(i) for i in range(26)]
        one = source(pictures, ["a"] * 22 + ["b"] * 4, ["train"] * 2 + ["test"] * 20 + ["train"] * 4)
        found = findings(one)
        assert "classes are unbalanced (see --balance)" not in found
        assert found["pictures a class to train on"].details == ["b: 4", "a: 2"]

    def test_a_class_of_one_picture_is_an_error(self):
        found = findings(source([noise(i) for i in range(5)], "aaaab"))
        assert found["classes with fewer than two pictures to train on"].details == ["b"]
        assert found["classes with fewer than two pictures to train on"].severity == "error"

    def test_one_class_or_no_labels_are_errors(self):
        assert any(
            "only one class" in t and f.severity == "error" for t, f in findings(source([noise(0)] * 2, "aa")).items()
        )
        assert findings(source([noise(0), noise(1)]))["no labels"].severity == "error"

    def test_a_regression_has_no_classes_to_count(self):
        one = source([noise(i) for i in range(4)])
        one.columns["mm"] = np.array([0.5, 1.5, 2.25, 9.0])
        assert findings(one) == {}


class TestThumbnail:
    def test_is_the_mean_of_each_sixteenth(self):
        pixels = noise(0, 64, 32, 3)
        expected = pixels.mean(2).reshape(16, 4, 16, 2).mean((1, 3))
        np.testing.assert_allclose(thumbnail(pixels), expected, atol=1e-3)

    @pytest.mark.parametrize("depth", ["uint16", "float32"])
    def test_other_depths_are_stretched_to_the_whole_range(self, depth):
        pixels = (np.arange(256).reshape(16, 16, 1) + 300).astype(depth)
        np.testing.assert_allclose(thumbnail(pixels)[..., None], pixels - 300.0, atol=1e-2)

    def test_a_flat_picture_of_floats_is_black(self):
        np.testing.assert_array_equal(thumbnail(np.full((20, 20, 1), 5, np.float32)), 0)


def pairs(pictures: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    return near_duplicates({i: thumbnail(one) for i, one in enumerate(pictures)}, [digest(one) for one in pictures])


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded(pixels, "JPEG", quality=quality))))


class TestNearDuplicates:
    @pytest.mark.parametrize("number", range(len(PHOTOS)))
    @pytest.mark.parametrize(
        "change",
        [
            lambda pixels: jpeg(pixels, 90),
            lambda pixels: jpeg(pixels, 50),
            brighter,
            lambda pixels: np.asarray(Image.fromarray(pixels).resize((160, 160), Image.Resampling.LANCZOS)),
        ],
        ids=["re-encoded", "re-encoded badly", "brightened", "smaller"],
    )
    def test_a_changed_photo_is_found_among_others(self, number, change):
        assert pairs([*PHOTOS, change(PHOTOS[number])]) == [(number, len(PHOTOS))]

    def test_different_photos_are_not_alike(self):
        assert pairs(PHOTOS) == []

    def test_exact_copies_are_none(self):
        assert pairs([PHOTOS[0], PHOTOS[0].copy(), PHOTOS[1]]) == []

    def test_flat_pictures_are_not_compared(self):
        assert pairs([np.full((32, 32, 3), 200 + i, np.uint8) for i in range(5)]) == []
        assert pairs([(200 + noise(i, 32, 32, 3) % 5).astype(np.uint8) for i in range(5)]) == []

    def test_one_as_bright_elsewhere_is_not_alike(self):
        assert pairs([PHOTOS[0], PHOTOS[0][:, ::-1].copy(), PHOTOS[0][::-1].copy()]) == []

    @pytest.mark.parametrize("seed", range(3))
    def test_equal_a_double_loop(self, seed):
        """Over random thumbnails of which many are near others, at all distances about the limits."""
        rng = np.random.default_rng(seed)
        firsts = rng.uniform(0, 255, (30, 16, 16))
        near = [
            (first + rng.normal(0, rng.uniform(0, 12), (16, 16))).clip(0, 255) for first in firsts for _ in range(6)
        ]
        flat = rng.uniform(100, 106, (10, 16, 16))
        thumbs = {int(3 * i): t.astype(np.float32) for i, t in enumerate(rng.permutation([*firsts, *near, *flat]))}
        digests = [str(i % 50) for i in range(3 * len(thumbs))]

        def bits(thumb: np.ndarray) -> np.ndarray:
            blocks = np.array(
                [[thumb[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() for x in range(8)] for y in range(8)]
            )
            return np.array([[blocks[y, x] > blocks[y, (x + 1) % 8] for x in range(8)] for y in range(8)])

        hashes = {i: bits(thumb) for i, thumb in thumbs.items()}
        varied = [i for i, thumb in thumbs.items() if thumb.std() > 4]
        expected = [
            (a, b)
            for a in varied
            for b in varied
            if a < b
            and digests[a] != digests[b]
            and (hashes[a] != hashes[b]).sum() <= NEAR_BITS
            and np.abs(thumbs[a] - thumbs[b]).mean() <= NEAR_LEVELS
        ]
        assert near_duplicates(thumbs, digests) == sorted(expected)
        assert 50 < len(expected) < 1000

    def test_of_very_many_alike_each_is_found_in_pairs_that_grow_linearly(self):
        rng = np.random.default_rng(0)
        thumbs = {i: thumbnail(PHOTOS[0]) + rng.normal(0, 0.1, (16, 16)) for i in range(1000)}
        found = near_duplicates(thumbs, [str(i) for i in thumbs])
        assert len(found) <= 4 * NEAR_MOST * len(thumbs) < len(thumbs) * (len(thumbs) - 1) / 2
        assert {i for pair in found for i in pair} == set(thumbs)

    def test_no_pictures_have_no_duplicates(self):
        assert near_duplicates({}, []) == []


class TestSizeHistogram:
    def test_the_commonest_come_first_and_the_rest_are_summed_up(self):
        facts = [Facts(20 + i, 30, 3, "uint8") for i in range(12)] + [Facts(5, 9, 1, "uint8")] * 8
        lines = size_histogram(facts)
        assert lines[0] == "5 × 9: 8 (40%)"
        assert lines[1] == "20 × 30: 1 (5%)"
        assert lines[-1] == "3 other sizes: 3 (15%)"
        assert len(lines) == 11

    def test_of_nothing_is_nothing(self):
        assert size_histogram([]) == []


class TestCheckData:
    def test_a_sound_folder_is_ok_and_shows_sizes_and_classes(self, tmp_path):
        grow(tmp_path, {f"{'ab'[i % 2]}/{i}.png": encoded(PHOTOS[i]) for i in range(8)})
        done = []
        checkup = check_data(tmp_path, progress=lambda *now: done.append(now))
        assert checkup.ok
        assert checkup.pictures == 8
        assert titles(checkup, "error") == titles(checkup, "warning") == []
        assert titles(checkup, "note") == ["pictures a class to train on", "sizes (height × width)"]
        assert checkup.findings[-1].details == ["200 × 200: 8 (100%)"]
        assert done == [(n, 16) for n in range(1, 17)]

    def test_damage_behind_a_sound_header_is_found(self, tmp_path):
        pictures = {f"{'ab'[i % 2]}/{i}.png": encoded(PHOTOS[i]) for i in range(8)}
        pictures["a/2.png"] = pictures["a/2.png"][:5000]
        pictures["b/3.png"] = b""
        checkup = check_data(grow(tmp_path, pictures))
        assert not checkup.ok
        found = {finding.title: finding.details for finding in checkup.findings}
        assert [line.split(":")[0] for line in found["cannot be decoded"]] == ["a/2.png"]
        assert [line.split(":")[0] for line in found["cannot be read"]] == ["b/3.png"]

    def test_near_duplicates_are_warnings_and_those_across_splits_stand_apart(self, tmp_path):
        pictures = {f"train/{'ab'[i % 2]}/{i}.png": encoded(PHOTOS[i]) for i in range(6)}
        pictures |= {f"test/{'ab'[i % 2]}/{i}.png": encoded(PHOTOS[i]) for i in range(6, 10)}
        pictures["train/a/again.jpg"] = encoded(PHOTOS[0], "JPEG", quality=85)
        pictures["test/b/again.jpg"] = encoded(brighter(PHOTOS[1]), "JPEG", quality=85)
        checkup = check_data(grow(tmp_path, pictures))
        assert checkup.ok
        found = {finding.title: finding.details for finding in checkup.findings if finding.severity == "warning"}
        assert {title: [set(line.split(" ≈ ")) for line in lines] for title, lines in found.items()} == {
            "look almost alike, on both sides of a split": [{"train/b/1.png (train)", "test/b/again.jpg (test)"}],
            "look almost alike": [{"train/a/0.png (train)", "train/a/again.jpg (train)"}],
        }

    def test_a_leak_is_not_ok(self, tmp_path):
        pictures = {f"train/{'ab'[i % 2]}/{i}.png": encoded(PHOTOS[i]) for i in range(6)}
        pictures["test/a/x.png"] = pictures["train/a/0.png"]
        pictures["test/b/y.png"] = encoded(PHOTOS[7])
        checkup = check_data(grow(tmp_path, pictures))
        assert not checkup.ok
        assert titles(checkup, "error") == ["the same picture on both sides of a split"]

    def test_a_blank_split_of_a_table_counts_as_train(self, tmp_path):
        grow(tmp_path, {f"{i}.png": encoded(PHOTOS[i]) for i in range(8)})
        grow(tmp_path, {"copy.png": encoded(PHOTOS[0]), "like.jpg": encoded(PHOTOS[1], "JPEG", quality=85)})
        rows = [f"{i}.png,{'ab'[i % 2]},{'train' if i > 5 else ''}" for i in range(8)]
        rows += ["copy.png,a,test", "like.jpg,b,train"]
        (tmp_path / "table.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
        found = {finding.title: finding.details for finding in check_data(tmp_path / "table.csv").findings}
        assert found["the same picture on both sides of a split"] == ["0.png (train) = copy.png (test)"]
        assert found["look almost alike"] == ["1.png (train) ≈ like.jpg (train)"]

    def test_where_there_is_nothing_it_is_an_input_error(self, tmp_path):
        with pytest.raises(InputError):
            check_data(tmp_path / "nowhere")

    def test_the_digits_are_ok(self):
        checkup = check_data("digits")
        assert checkup.pictures == len(open_source("digits"))
        assert checkup.ok
