"""Decoding beside the engine: everyone's own answer, in order, in bounded memory, and an end without threads left."""

import dataclasses
import random
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import Any

import numpy as np
import pytest

from vitreous.data.preprocess import InputSpec
from vitreous.data.sources import open_pictures
from vitreous.data.store import Decoded, reader
from vitreous.infer.pipeline import AHEAD, GIVEN, PATIENCE, Answered, outputs_in_order

SIZES = ((2, 3), (3, 2), (4, 4))


def picture(number: int, size: int = 0) -> tuple[int, np.ndarray]:
    """Pixels (H, W, 1) that say which picture they are."""
    return size, np.full((*SIZES[size], 1), number, np.float32)


class Engine:
    """Answers with the number that the pixels say, and its square; keeps the numbers of each batch."""

    def __init__(self, before: Callable[[list[int]], Any] = lambda numbers: None):
        self.before = before
        self.batches: list[list[int]] = []

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        numbers = pixels[:, 0, 0, 0]
        self.batches.append([int(number) for number in numbers])
        self.before(self.batches[-1])
        return np.stack((numbers, numbers**2), axis=1)


def answers(
    pictures: int, read: Callable[[int], Decoded], run: Callable[[np.ndarray], np.ndarray], batch: int = 4, threads=2
) -> Any:
    def read_all(numbers: Sequence[int]) -> list[Decoded]:
        return [read(number) for number in numbers]

    return outputs_in_order(pictures, read_all, run, outputs=2, batch=batch, threads=threads)


def joined(found: Iterator[Answered]) -> tuple[list[int], np.ndarray, dict[int, str]]:
    numbers, rows, faults = [], [np.zeros((0, 2), np.float32)], {}
    for some, outputs, more in found:
        assert len(some) == len(outputs)
        assert more.keys() <= set(some)
        numbers += some
        rows.append(outputs)
        faults |= more
    return numbers, np.concatenate(rows), faults


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.usefixtures("no_thread_is_left")
class TestAnswers:
    @pytest.mark.parametrize("threads", [1, 3])
    @pytest.mark.parametrize("pictures", [0, 1, 3, 4, 5, 8, 70, 301])
    def test_every_picture_gets_its_own_outputs_or_its_own_fault_in_order(self, pictures, threads):
        def read(number: int) -> Decoded:
            time.sleep(random.Random(number).choice((0, 0, 0, 0.001)))
            return f"fault of {number}" if number % 7 == 3 else picture(number, (number % 29 == 0) + (number % 5 == 0))

        numbers, outputs, faults = joined(answers(pictures, read, Engine(), threads=threads))
        assert numbers == list(range(pictures))
        assert faults == {n: f"fault of {n}" for n in range(3, pictures, 7)}
        expected = np.array([(n, n**2) if n not in faults else (np.nan, np.nan) for n in numbers]).reshape(-1, 2)
        assert outputs.dtype == np.float32
        np.testing.assert_array_equal(outputs, expected)

    def test_batches_hold_one_size_and_depend_on_the_pictures_alone(self):
        def batches(slow: Callable[[int], bool]) -> list[list[int]]:
            def read(number: int) -> Decoded:
                time.sleep(0.002 if slow(number) else 0)
                return picture(number, int(number in (9, 50, 51)))

            engine = Engine(lambda numbers: time.sleep(0.002 if slow(numbers[0]) else 0))
            joined(answers(80, read, engine))
            return engine.batches

        first = batches(lambda number: number % 3 == 0)
        assert batches(lambda number: number % 4 == 1) == first
        assert sorted(chain.from_iterable(first)) == list(range(80))
        assert [9] in first  # its like came too late
        assert [50, 51] in first
        assert all(len(some) == 4 for some in first if some not in ([9], [50, 51], first[-1], first[-2]))

    def test_faults_alone_are_handed_out_and_the_engine_is_never_asked(self):
        engine = Engine()
        numbers, outputs, faults = joined(answers(50, lambda number: f"no {number}", engine))
        assert (numbers, engine.batches) == (list(range(50)), [])
        assert np.isnan(outputs).all()
        assert len(faults) == 50

    def test_outputs_that_are_not_one_a_picture_stop_it(self):
        with pytest.raises(ValueError, match="shorter"):
            joined(answers(8, picture, lambda pixels: np.zeros((len(pixels) - 1, 2))))


@pytest.mark.usefixtures("no_thread_is_left")
class TestOverlap:
    def test_pictures_are_decoded_while_the_engine_computes(self):
        later = threading.Event()  # that a picture beyond the engine's own batches was decoded

        def read(number: int) -> Decoded:
            if number == 9:
                later.set()
            return picture(number)

        waited = []
        joined(answers(40, read, Engine(lambda numbers: waited.append(later.wait(10)))))
        assert waited[0] is True

    def test_the_engine_computes_while_pictures_are_decoded(self):
        computed = threading.Event()

        def read(number: int) -> Decoded:
            if number == 30:  # which cannot be had before the engine has done something
                assert computed.wait(10)
            return picture(number)

        numbers, _, faults = joined(answers(40, read, Engine(lambda numbers: computed.set())))
        assert (numbers, faults) == (list(range(40)), {})

    def test_the_engine_computes_while_answers_are_looked_at(self):
        ahead, handed_out, second, waited = threading.Event(), threading.Event(), threading.Event(), []

        def read(number: int) -> Decoded:
            if number == 17:  # by then the engine has its second batch
                ahead.set()
            return picture(number)

        def before(numbers: list[int]) -> None:
            if numbers[0] == 0:
                waited.append(ahead.wait(10))
            elif numbers[0] == 4:
                waited.append(handed_out.wait(10))
                second.set()

        with closing(answers(60, read, Engine(before))) as found:
            assert next(found)[0] == [0, 1, 2, 3]
            handed_out.set()
            assert second.wait(10)
        assert waited == [True, True]

    def test_answers_come_out_before_the_last_pictures_are_looked_at(self):
        started = []
        with closing(answers(10_000, lambda number: started.append(number) or picture(number), Engine())) as found:
            assert next(found)[0][0] == 0
            assert len(started) < 100


@pytest.mark.usefixtures("no_thread_is_left")
class TestMemory:
    def test_a_rare_size_delays_the_others_by_no_more_than_a_few_batches(self):
        batch, threads, yielded = 4, 2, 0
        started = []

        def read(number: int) -> Decoded:
            started.append(number)
            return picture(number, int(number in (0, 700)))

        for numbers, _, _ in answers(1500, read, Engine(), batch, threads):
            assert len(started) - yielded <= (PATIENCE + GIVEN + 2) * batch + AHEAD * threads
            yielded += len(numbers)
        assert yielded == 1500

    @pytest.mark.parametrize("slow", ["decoding", "the engine", "who asks"])
    def test_pixels_are_let_go_as_they_are_used(self, slow):
        batch, threads, most = 4, 2, 0
        alive: set[int] = set()

        def read(number: int) -> Decoded:
            size, pixels = picture(number, int(number % 16 == 0))
            alive.add(number)
            weakref.finalize(pixels, alive.discard, number)
            time.sleep(0.0005 * (slow == "decoding"))
            return size, pixels

        engine = Engine(lambda numbers: time.sleep(0.002 * (slow == "the engine")))
        for _ in answers(800, read, engine, batch, threads):
            time.sleep(0.002 * (slow == "who asks"))
            most = max(most, len(alive))
        sizes, decoding = 2, threads
        assert most <= sizes * batch + AHEAD * threads + decoding + 1
        assert not alive


@pytest.mark.usefixtures("no_thread_is_left")
class TestEnds:
    @pytest.mark.parametrize("fails", [1, 2, 20], ids=["first batch", "second batch", "last batch"])
    def test_a_fault_of_the_engine_is_raised_at_once(self, fails):
        class OutOfMemoryError(RuntimeError):
            pass

        def fail(numbers: list[int]) -> None:
            if len(engine.batches) == fails:
                raise OutOfMemoryError("the device is full")

        engine, seen = Engine(fail), []
        with pytest.raises(OutOfMemoryError, match="the device is full"):
            seen.extend(answers(80, picture, engine))
        numbers = joined(iter(seen))[0]
        assert numbers == list(range(len(numbers)))
        assert fails - 1 - GIVEN <= len(numbers) // 4 <= fails - 1

    def test_what_reading_raises_is_raised(self):
        def read(number: int) -> Decoded:
            if number == 33:
                raise SystemError("33")
            return picture(number)

        with pytest.raises(SystemError, match="33"):
            joined(answers(80, read, Engine()))

    def test_it_may_be_closed_at_any_time(self):
        engine, started = Engine(lambda numbers: time.sleep(0.01)), []
        found = answers(10_000, lambda number: started.append(number) or picture(number), engine)
        for _ in range(3):
            next(found)
        found.close()
        read, computed = len(started), len(engine.batches)
        time.sleep(0.05)
        assert (len(started), len(engine.batches)) == (read, computed)
        assert read < 200


class TestReader:
    SPEC = InputSpec(1, "uint8", ((8, 8),), (0.5,), (0.5,))

    @pytest.fixture
    def source(self, tmp_path):
        for name in "abc":
            np.save(tmp_path / f"{name}.npy", np.full((16, 16), ord(name), np.uint8))
        return open_pictures([tmp_path])

    def test_it_reads_pixels_as_the_spec_does(self, source):
        (found,) = reader(source, self.SPEC)([1])
        assert not isinstance(found, str)
        assert found[0] == 0
        assert (found[1] == ord("b")).all()
        assert found[1].shape == (8, 8, 1)

    def test_a_file_that_vanished_is_a_fault_of_its_own(self, source, tmp_path):
        (tmp_path / "b.npy").unlink()
        read = reader(source, self.SPEC)
        found = read([0, 1, 2])
        assert [isinstance(one, str) for one in found] == [False, True, False]
        assert found[1] == f"{tmp_path.as_posix()}/b.npy cannot be read: No such file or directory."

    @pytest.mark.parametrize(
        "fault", [MemoryError("8 GiB"), OSError(5, "Input/output error"), struct.error("4 bytes"), KeyError("page")]
    )
    def test_whatever_is_raised_is_a_fault_that_names_the_file_and_what_it_was(self, source, fault):
        def broken(number: int) -> bytes:
            if number == 2:
                raise fault
            return source.read(number)

        read = reader(dataclasses.replace(source, read=broken), self.SPEC, Exception)
        found = read([0, 2])
        assert not isinstance(found[0], str)
        assert found[1] == f"{source.names[2]}: it cannot be decoded [{type(fault).__name__}: {fault}]"
