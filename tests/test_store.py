"""PixelStore: decoded once, kept whole or not at all."""

import dataclasses
import io
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import finished, script
from PIL import Image

from vitreous.data import store as store_module
from vitreous.data.cache import FORSAKEN
from vitreous.data.decode import inspect
from vitreous.data.doctor import digest
from vitreous.data.preprocess import InputSpec
from vitreous.data.sources import Source
from vitreous.data.store import UndecodableError, in_order, open_store
from vitreous.errors import InputError

SIZES = ((8, 16), (16, 8))
SPEC = InputSpec(channels=3, depth="uint8", sizes=SIZES)


def picture(seed: int, depth: str = "uint8") -> np.ndarray:
    """Upright or lying, of noise."""
    rng = np.random.default_rng(seed)
    shape = ((20, 40, 3), (40, 20, 3), (8, 16, 3))[seed % 3]
    if depth == "float32":
        return rng.normal(size=shape).astype(np.float32)
    return rng.integers(0, np.iinfo(depth).max, shape, endpoint=True).astype(depth)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(seed)).save(file, "PNG")
    return file.getvalue()


def source(pictures: list) -> Source:
    names = tuple(f"{i}.png" for i in range(len(pictures)))
    return Source("pictures", "/here", names, {}, np.full(len(names), ""), None, pictures.__getitem__)


def opened(pictures: list, spec: InputSpec, cache: Path | str, read=None, threads: int = 2, said: list | None = None):
    """A store over PNGs or arrays; `read` is called instead of looking them up."""
    one = source(pictures)
    if read:
        one = dataclasses.replace(one, read=read)
    facts = [inspect(one, "") for one in pictures]
    shapes = [(fact.height, fact.width) for fact in facts]
    say = (said if said is not None else []).append
    return open_store(one, spec, shapes, [digest(p) for p in pictures], str(cache), threads, say, lambda done: None)


def refuse(i: int) -> bytes:
    raise AssertionError(f"picture {i} was read")


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


PNGS = [png(seed) for seed in range(11)]


class TestPixels:
    @pytest.mark.parametrize("threads", [0, 1, 3])
    @pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
    def test_cached_equals_uncached_and_plain_reading_bit_for_bit(self, tmp_path, depth, threads):
        spec = dataclasses.replace(SPEC, depth=depth)
        pictures = [picture(seed, depth) for seed in range(11)]
        cached = opened(pictures, spec, tmp_path, threads=threads)
        uncached = opened(pictures, spec, "off", threads=threads)
        assert cached.arrays is not None
        assert uncached.arrays is None
        assert len(cached) == len(uncached) == 11
        np.testing.assert_array_equal(cached.which, uncached.which)
        for number in (0, 1):
            members = np.flatnonzero(cached.which == number)[::-1]
            expected = torch.from_numpy(np.stack([spec.read(pictures[i], "")[1] for i in members]))
            assert cached.gather(members).dtype == getattr(torch, depth)
            assert torch.equal(cached.gather(members), expected)
            assert torch.equal(uncached.gather(members), expected)

    def test_what_is_gathered_may_be_changed_without_harm(self, tmp_path):
        store = opened(PNGS, SPEC, tmp_path)
        before = store.gather(np.array([0])).clone()
        store.gather(np.array([0])).zero_()
        assert torch.equal(store.gather(np.array([0])), before)

    def test_a_size_that_no_picture_takes_is_no_trouble(self, tmp_path):
        lying = [png(0), png(3)]
        first = opened(lying, SPEC, tmp_path)
        second = opened(lying, SPEC, tmp_path, read=refuse)
        assert torch.equal(first.gather(np.array([0, 1])), second.gather(np.array([0, 1])))


class TestCache:
    def test_the_second_opening_decodes_nothing_and_gives_the_same(self, tmp_path):
        first = opened(PNGS, SPEC, tmp_path)
        said = []
        second = opened(PNGS, SPEC, tmp_path, read=refuse, said=said)
        assert torch.equal(first.gather(np.array([0, 2])), second.gather(np.array([0, 2])))
        assert str(tmp_path) in said[0]

    def test_where_it_is_and_how_large_is_said(self, tmp_path):
        said = []
        opened(PNGS, SPEC, tmp_path, said=said)
        [line] = said
        [folder] = tmp_path.iterdir()
        assert str(folder) in line
        assert "4.22 kB" in line  # 11 × 8 × 16 × 3 bytes
        assert "delete" in line

    @pytest.mark.parametrize(
        "change",
        [{"sizes": ((8, 8),)}, {"channels": 1, "convert": True}, {"depth": "uint16", "convert": True}],
        ids=["sizes", "channels", "depth"],
    )
    def test_another_spec_is_another_cache(self, tmp_path, change):
        opened(PNGS, SPEC, tmp_path)
        opened(PNGS, dataclasses.replace(SPEC, **change), tmp_path)
        assert len(leftovers(tmp_path)) == 2

    def test_other_content_or_another_order_is_another_cache(self, tmp_path):
        opened(PNGS, SPEC, tmp_path)
        opened([*PNGS[:-1], png(99)], SPEC, tmp_path)
        opened(PNGS[::-1], SPEC, tmp_path)
        opened(PNGS[:-1], SPEC, tmp_path)
        assert len(leftovers(tmp_path)) == 4

    def test_mean_and_deviation_do_not_make_another_cache(self, tmp_path):
        opened(PNGS, SPEC, tmp_path)
        opened(PNGS, dataclasses.replace(SPEC, mean=(0.5,) * 3, std=(0.2,) * 3), tmp_path, read=refuse)
        assert len(leftovers(tmp_path)) == 1

    @pytest.mark.parametrize("harm", ["truncated", "lengthened", "missing", "no marker"])
    def test_a_damaged_cache_is_built_anew(self, tmp_path, harm):
        expected = opened(PNGS, SPEC, tmp_path).gather(np.array([0, 2]))
        [folder] = tmp_path.iterdir()
        file = folder / "1.raw"
        if harm == "truncated":
            file.write_bytes(file.read_bytes()[:-1])
        elif harm == "lengthened":
            file.write_bytes(file.read_bytes() + b"x")
        elif harm == "missing":
            file.unlink()
        else:
            (folder / "cache.json").unlink()
        again = opened(PNGS, SPEC, tmp_path)
        assert again.arrays is not None
        assert torch.equal(again.gather(np.array([0, 2])), expected)
        opened(PNGS, SPEC, tmp_path, read=refuse)

    def test_two_at_once_both_get_their_pixels(self, tmp_path):
        stores = {}
        workers = [
            threading.Thread(target=lambda n=n: stores.update({n: opened(PNGS, SPEC, tmp_path)})) for n in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(leftovers(tmp_path)) == 1
        for store in stores.values():
            assert torch.equal(store.gather(np.array([0, 2])), stores[0].gather(np.array([0, 2])))

    def test_a_disk_without_room_means_no_cache_and_says_so(self, tmp_path, monkeypatch):
        monkeypatch.setattr(store_module, "SPARE", 1 << 60)
        said = []
        store = opened(PNGS, SPEC, tmp_path / "cache", said=said)
        assert store.arrays is None
        assert said[0].startswith("no cache")
        assert leftovers(tmp_path) == []
        assert torch.equal(store.gather(np.array([0])), opened(PNGS, SPEC, "off").gather(np.array([0])))


class TestPruning:
    """A cache of PNGS takes 4.22 kB of pixels."""

    @pytest.fixture
    def limit(self, monkeypatch):
        return lambda kilobytes: monkeypatch.setenv("VITREOUS_CACHE_GB", str(kilobytes * 1e-6))

    @staticmethod
    def aged(cache: Path, pictures: list, age: float) -> Path:
        """The cache of these pictures, used so many seconds ago."""
        before = set(cache.iterdir())
        opened(pictures, SPEC, cache)
        [folder] = set(cache.iterdir()) - before
        then = time.time() - age
        os.utime(folder / "cache.json", (then, then))
        return folder

    def test_what_was_not_used_for_longest_goes_when_a_new_one_is_written(self, tmp_path, limit):
        limit(14)  # of three
        older, oldest = self.aged(tmp_path, PNGS, 200), self.aged(tmp_path, PNGS[::-1], 300)
        said = []
        opened(PNGS[1:], SPEC, tmp_path, said=said)
        assert (older.exists(), oldest.exists(), len(said)) == (True, True, 1)
        opened(PNGS[2:], SPEC, tmp_path, said=said)
        assert (older.exists(), oldest.exists()) == (True, False)
        assert str(oldest) in said[1]
        assert len(leftovers(tmp_path)) == 3

    def test_using_one_keeps_it(self, tmp_path, limit):
        limit(10)  # of two
        used, unused = self.aged(tmp_path, PNGS, 300), self.aged(tmp_path, PNGS[::-1], 200)
        opened(PNGS, SPEC, tmp_path, read=refuse)
        opened(PNGS[1:], SPEC, tmp_path)
        assert (used.exists(), unused.exists()) == (True, False)

    def test_one_that_is_larger_than_the_limit_is_kept_while_it_is_used(self, tmp_path, limit):
        limit(1)
        opened(PNGS, SPEC, tmp_path)
        opened(PNGS, SPEC, tmp_path, read=refuse)
        opened(PNGS[1:], SPEC, tmp_path)
        assert len(leftovers(tmp_path)) == 1

    @pytest.mark.skipif(sys.platform == "win32", reason="there, a file in use stays")
    def test_a_store_whose_cache_is_removed_goes_on(self, tmp_path, limit):
        limit(1)
        store = opened(PNGS, SPEC, tmp_path)
        opened(PNGS[1:], SPEC, tmp_path)
        assert torch.equal(store.gather(np.array([0, 2])), opened(PNGS, SPEC, "off").gather(np.array([0, 2])))

    def test_what_is_no_cache_stays(self, tmp_path, limit):
        limit(1)
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "1.raw").write_bytes(bytes(9999))
        opened(PNGS, SPEC, tmp_path)
        assert (tmp_path / "photos" / "1.raw").exists()

    def test_what_a_killed_process_left_goes_a_day_later(self, tmp_path):
        for name in ("fresh", "old"):
            (tmp_path / f".partial-{name}").mkdir()
            (tmp_path / f".partial-{name}" / "0.raw").touch()
        then = time.time() - 2 * FORSAKEN
        for path in (tmp_path / ".partial-old" / "0.raw", tmp_path / ".partial-old"):
            os.utime(path, (then, then))
        opened(PNGS, SPEC, tmp_path)
        assert [name for name in leftovers(tmp_path) if name.startswith(".")] == [".partial-fresh"]

    def test_a_limit_that_is_no_number_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setenv("VITREOUS_CACHE_GB", "much")
        with pytest.raises(InputError, match="VITREOUS_CACHE_GB is 'much': expected a number of gigabytes"):
            opened(PNGS, SPEC, tmp_path)


class TestFaults:
    @pytest.mark.parametrize("cached", [True, False])
    def test_all_undecodable_pictures_are_named_at_once_and_nothing_is_left(self, tmp_path, cached):
        def read(i: int) -> bytes:
            return PNGS[i][:90] if i in (2, 7, 10) else PNGS[i]

        with pytest.raises(UndecodableError) as fault:
            opened(PNGS, SPEC, tmp_path if cached else "off", read=read)
        assert fault.value.numbers == (2, 7, 10)
        assert "3 of 11 pictures cannot be decoded" in str(fault.value)
        assert all(f"  {i}.png: " in str(fault.value) for i in (2, 7, 10))
        assert leftovers(tmp_path) == []

    def test_a_fault_of_another_kind_leaves_nothing(self, tmp_path):
        with pytest.raises(RuntimeError, match="cable"):
            opened(
                PNGS, SPEC, tmp_path, read=lambda i: PNGS[i] if i < 5 else (_ for _ in ()).throw(RuntimeError("cable"))
            )
        assert leftovers(tmp_path) == []

    def test_an_interrupt_leaves_nothing(self, tmp_path):
        def stop(done: int):
            if done == 4:
                raise KeyboardInterrupt

        shapes = [picture(seed).shape[:2] for seed in range(11)]
        with pytest.raises(KeyboardInterrupt):
            open_store(source(PNGS), SPEC, shapes, ["x"] * 11, str(tmp_path), 2, lambda text: None, stop)
        assert leftovers(tmp_path) == []

    @pytest.mark.skipif(sys.platform == "win32", reason="the limit on file sizes is POSIX")
    def test_a_full_disk_is_an_input_error_and_leaves_nothing(self, tmp_path):
        text = """
import resource, signal, sys
sys.dont_write_bytecode = True  # a module of which a half is kept would be taken for whole
import numpy as np
from vitreous.data.preprocess import InputSpec
from vitreous.data.sources import Source
from vitreous.data.store import open_store
from vitreous.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
pictures = np.zeros((40, 64, 64, 3), np.uint8)
names = tuple(map(str, range(40)))
source = Source("arrays", "/here", names, {}, np.full(40, ""), None, pictures.__getitem__)
spec = InputSpec(channels=3, depth="uint8", sizes=((64, 64),))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    open_store(source, spec, [(64, 64)] * 40, names, sys.argv[1], 1, print, lambda done: None)
except InputError as fault:
    print(type(fault.__cause__).__name__, fault)
"""
        ran = finished(script, text, str(tmp_path))
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.startswith(f"OSError {tmp_path}: the pixels cannot be cached there")
        assert leftovers(tmp_path) == []


class TestStatistics:
    @pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
    def test_equal_numpys_over_all_pixels_of_the_pictures(self, tmp_path, depth):
        spec = dataclasses.replace(SPEC, depth=depth)
        pictures = [picture(seed, depth) for seed in range(11)]
        numbers = np.array([0, 1, 4, 8])
        mean, std = opened(pictures, spec, tmp_path).statistics(numbers)
        pixels = np.concatenate([spec.read(pictures[i], "")[1].reshape(-1, 3) for i in numbers]) / spec.scale
        np.testing.assert_allclose(mean, pixels.mean(0, dtype=np.float64), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(std, pixels.std(0, dtype=np.float64), rtol=1e-6)

    def test_reads_no_more_pictures_than_asked(self):
        reads = []

        def read(i: int) -> bytes:
            reads.append(i)
            return PNGS[i]

        store = opened(PNGS, SPEC, "off", read=read)
        reads.clear()
        store.statistics(np.arange(11), most=6)
        assert 3 <= len(reads) <= 6

    @pytest.mark.parametrize(("depth", "value"), [("uint8", 77), ("uint8", 0), ("float32", 300.0), ("float32", -1e-9)])
    def test_a_constant_channel_has_deviation_1(self, depth, value):
        spec = dataclasses.replace(SPEC, depth=depth)
        pictures = [np.full((8, 16, 3), value, depth) for _ in range(3)]
        mean, std = opened(pictures, spec, "off").statistics(np.arange(3))
        np.testing.assert_allclose(mean, value / spec.scale, rtol=1e-6)
        assert std == (1.0, 1.0, 1.0)

    def test_tiny_units_are_not_taken_for_a_constant(self):
        spec = dataclasses.replace(SPEC, depth="float32")
        pictures = [picture(seed, "float32") * np.float32(1e-9) for seed in range(3)]
        _, std = opened(pictures, spec, "off").statistics(np.arange(3))
        assert all(1e-10 < one < 1e-8 for one in std)


class TestInOrder:
    @pytest.mark.parametrize("threads", [0, 1, 4])
    def test_keeps_the_order_whoever_is_first(self, threads):
        def slow_first(n: int) -> int:
            time.sleep(0.02 if n % 4 == 0 else 0)
            return n * n

        assert list(in_order(slow_first, range(20), threads)) == [n * n for n in range(20)]

    def test_is_never_further_ahead_than_allowed(self):
        started = []
        results = in_order(lambda n: started.append(n) or n, range(1000), threads=2, ahead=3)
        for taken in range(1, 11):
            next(results)
            time.sleep(0.01)
            assert len(started) <= taken + 2 * 3
        results.close()
        time.sleep(0.05)
        assert len(started) <= 10 + 2 * 3

    @pytest.mark.parametrize("threads", [0, 1, 4])
    def test_raises_the_first_error_after_what_came_before_it(self, threads):
        def faulty(n: int) -> int:
            if n in (5, 6):
                time.sleep(0.02 if n == 5 else 0)
                raise InputError(f"number {n}")
            return n

        results = in_order(faulty, range(20), threads)
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(InputError, match="number 5"):
            next(results)

    def test_leaves_no_threads_behind(self):
        before = threading.active_count()
        results = in_order(lambda n: n, range(100), threads=3)
        next(results)
        results.close()
        assert threading.active_count() == before
