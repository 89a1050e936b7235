"""Decoders: what a picture does to the process that opens it is that picture's fault, and nothing else's."""

import io
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitreous.data import decode, doctor, notes, packing, preprocess, workers
from vitreous.data.preprocess import InputSpec
from vitreous.data.processes import HEAD
from vitreous.data.sources import Source, open_pictures
from vitreous.data.store import UndecodableError, open_store, reader
from vitreous.data.workers import Decoders
from vitreous.errors import InputError, StartError

SPEC = InputSpec(3, "uint8", ((8, 12), (12, 8)))
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
# Children whose libraries have a fault for each of these files.
PROGRAM = """
import ctypes, os, pathlib, sys
from vitreous.data import decode
from vitreous.data.workers import main

def crash(picture):
    ctypes.string_at(0)
def crash_once(picture):
    marker = pathlib.Path(picture[5:].decode())
    if not marker.exists():
        marker.touch()
        os._exit(7)
    return decode.open_array(decode.np.zeros((8, 12, 3), "uint8"))
def hang(picture):
    ctypes.PyDLL(None).sleep(1000)  # which keeps the interpreter's lock
def eat(picture):
    return [decode.np.empty(1 << 27) for _ in range(1000)]
decode.READERS = tuple((decode.starts(word), fault) for word, fault in (
    (b"CRASH", crash), (b"ONCE:", crash_once), (b"HANG", hang), (b"EAT", eat))) + decode.READERS
"""


def message(words: str, data: int = 0) -> bytes:
    return HEAD.pack(len(words), data) + words.encode()


def picture(seed: int, form: str = "PNG", size: tuple[int, int] = (40, 60)) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


@pytest.fixture(scope="module")
def decoders():
    one = Decoders()
    yield one
    one.close()


@pytest.fixture(scope="module")
def frail():
    """Decoders that some files take down."""
    one = Decoders(memory=4 << 30, program=PROGRAM)
    yield one
    one.close()


def fault_of(decoders: Decoders, file: bytes, name: str = "photo.jpg") -> str:
    with pytest.raises(InputError, match=rf"^{name}: ") as raised:
        decoders.read(SPEC, file, name)
    return str(raised.value)


class TestAnswers:
    @pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
    def test_pixels_are_those_of_this_process_bit_for_bit(self, decoders, form):
        for size in ((40, 60), (60, 40), (8, 12)):
            file = picture(1, form, size)
            number, pixels = decoders.read(SPEC, file, "a")
            expected = SPEC.read_here(file, "a")
            assert number == expected[0]
            assert pixels.dtype == expected[1].dtype
            np.testing.assert_array_equal(pixels, expected[1])
            np.testing.assert_array_equal(SPEC.read(file, "a")[1], expected[1])

    @pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
    def test_a_conversion_gives_the_same_bits_for_a_file_and_an_array(self, decoders, depth):
        rng = np.random.default_rng(0)
        array = rng.normal(size=(20, 30, 5)) if depth == "float32" else rng.integers(0, 200, (20, 30, 5))
        array, stream = array.astype(depth), io.BytesIO()
        np.save(stream, array)
        spec = InputSpec(1, depth, ((8, 12),), convert=True)
        np.testing.assert_array_equal(decoders.read(spec, stream.getvalue(), "")[1], spec.read(array, "")[1])

    @pytest.mark.parametrize("file", [b"", b"no picture", picture(0)[:99], picture(0, "JPEG")[:300], b"\x93NUMPYxx"])
    def test_faults_are_those_of_this_process_word_for_word(self, decoders, file):
        with pytest.raises(InputError) as here:
            SPEC.read_here(file, "photo.jpg")
        assert fault_of(decoders, file) == str(here.value)

    @pytest.mark.parametrize("form", ["PNG", "WEBP", "AVIF"])
    def test_headers_and_thumbnails_are_those_of_this_process(self, decoders, form):
        file = picture(3, form)
        assert decoders.inspect(file, "a", 10**6) == decode.inspect(file, "a")
        thumbnail = decode.thumbnail(decode.decode(file, "a", at_least=(64, 64)))
        (number, found), fault = decoders.thumbnails([file, b"no picture"], ["a", "b"], 10**6)
        assert number == 0
        assert str(fault).startswith("b: ")
        np.testing.assert_array_equal(found, thumbnail)
        with pytest.raises(InputError, match=r"^a: .*megapixels"):
            decoders.inspect(file, "a", 100)

    def test_a_name_and_a_fault_may_be_of_any_letters(self, decoders):
        assert fault_of(decoders, b"\xff\xfe\0", "Бильд \udcff 🖼").startswith("Бильд \udcff 🖼: ")

    def test_many_threads_get_each_their_own(self, decoders):
        files = [picture(seed) for seed in range(60)]
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda file: decoders.read(SPEC, file, "a")[1], files))
        for file, pixels in zip(files, found, strict=True):
            np.testing.assert_array_equal(pixels, SPEC.read_here(file, "a")[1])
        assert 1 <= len(decoders.pids) <= 6

    def test_an_array_in_memory_is_read_here(self, monkeypatch):
        monkeypatch.setattr(preprocess, "DECODERS", None)
        assert SPEC.read(np.zeros((40, 60, 3), np.uint8), "a")[1].shape == (8, 12, 3)


class TestDeaths:
    def test_a_picture_that_crashes_its_process_is_named_and_the_next_is_read(self, frail):
        told = fault_of(frail, b"CRASH")
        assert "took the decoder down, twice" in told
        if os.name != "nt":
            assert "(SIGSEGV)" in told
        assert frail.read(SPEC, picture(0), "a")[0] == 0

    def test_one_death_may_be_anothers_fault(self, frail, tmp_path):
        assert frail.read(SPEC, b"ONCE:" + bytes(tmp_path / "marker"), "a")[0] == 0
        assert (tmp_path / "marker").exists()

    @pytest.mark.parametrize(
        "stuck", ["os.write(1, message[:5])", "0", "os.write(1, message + bytes(9))"], ids=["writing", "silent", "late"]
    )
    def test_a_process_that_is_stuck_and_does_not_end_itself_is_ended(self, stuck):
        said = f"""
import os, time
from vitreous.data.processes import HEAD
def main(*_):
    message = HEAD.pack(3, 288) + b"[1]"
    os.write(1, b"!")
    {stuck}
    time.sleep(1000)
"""
        impatient = Decoders(seconds=0.5, program=f"exec({said!r})")
        assert "took longer than 0.5 seconds to decode" in fault_of(
            impatient, b"x" * (1 << 20)
        )  # more than a pipe takes
        assert impatient.pids == []

    def test_of_pictures_that_are_read_together_the_one_that_crashes_is_named_and_the_others_are_read(self, frail):
        files = [picture(0), b"no picture", b"CRASH", picture(2, "JPEG"), b"CRASH"]
        names = [f"{number}.jpg" for number in range(5)]
        found = frail.read_all(SPEC, files, names)
        for number in (0, 3):
            np.testing.assert_array_equal(found[number][1], SPEC.read_here(files[number], "a")[1])
        assert str(found[1]).startswith("1.jpg: ")
        for number in (2, 4):
            assert str(found[number]).startswith(f"{number}.jpg: it took the decoder down, twice")

    def test_a_picture_that_hangs_even_with_pythons_lock_is_named(self):
        impatient = Decoders(seconds=1.0, program=PROGRAM)
        assert "took longer than 1 second to decode" in fault_of(impatient, b"HANG")
        assert impatient.pids == []

    @pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="no bound on memory there")
    def test_a_picture_that_eats_memory_is_named_and_its_process_goes_on(self, frail):
        frail.read(SPEC, picture(0), "a")
        before = frail.pids
        assert "MemoryError" in fault_of(frail, b"EAT")
        assert frail.pids == before

    def test_a_process_that_was_ended_while_nobody_asked_is_replaced(self, decoders):
        decoders.read(SPEC, picture(0), "a")
        for child in decoders._free:
            child.process.kill()
        assert decoders.read(SPEC, picture(0), "a")[0] == 0

    @pytest.mark.parametrize(
        "nonsense",
        [
            b"\x07\0\0\0" * 3,
            b"\xff" * 12,
            message("{}"),
            message("[]"),
            message("[9]"),
            message("[[1, 2, 3]]"),
            message("[1]", data=5),
            message("[1]", data=12 * 8 * 3),  # the pixels do not follow
            message("[" * 100_000),
        ],
    )
    def test_a_process_that_talks_nonsense_is_not_believed(self, nonsense):
        said = f"import os, sys\ndef main(*_): os.write(1, b'!' + {nonsense!r} + b'?' * 99); os._exit(5)\n"
        assert "took the decoder down" in fault_of(Decoders(program=f"exec({said!r})"), b"x")

    def test_one_that_goes_on_after_that_is_not_said_to_have_lacked_memory(self):
        said = "import os, time\ndef main(*_): os.write(1, b'!' + b'?' * 99); time.sleep(1000)\n"
        told = fault_of(Decoders(program=f"exec({said!r})"), b"x")
        assert "took the decoder down, twice (what it sent made no sense)" in told

    def test_a_process_that_ends_as_if_all_were_well_is_not_asked_for_ever(self):
        said = "import os\ndef main(*_): os.write(1, b'!'); os.read(0, 1); os._exit(0)\n"
        assert "took the decoder down" in fault_of(Decoders(program=f"exec({said!r})"), b"x")

    def test_where_none_can_be_started_it_is_said_and_no_picture_is_blamed(self, monkeypatch, capfd, tmp_path):
        monkeypatch.setattr(preprocess, "DECODERS", Decoders(program="raise SystemExit('no numpy here')"))
        source = Source("x", "here", ("a.jpg",), {}, np.full(1, ""), None, [b"x"].__getitem__)
        with pytest.raises(StartError, match="could not be started"):
            reader(source, SPEC, Exception)([0])
        monkeypatch.setattr(packing, "DECODERS", preprocess.DECODERS)
        with pytest.raises(StartError, match="could not be started"):
            packing.pack(source, tmp_path / "out", size=1)
        assert "no numpy here" in capfd.readouterr().err
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        with pytest.raises(StartError, match="could not be started: No such file"):
            Decoders().read(SPEC, b"x", "a")
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        with pytest.raises(StartError, match="expected a Python"):
            Decoders().read(SPEC, b"x", "a")

    def test_what_asks_goes_on_with_the_other_pictures(self, frail, monkeypatch, tmp_path):
        for module in (preprocess, doctor):
            monkeypatch.setattr(module, "DECODERS", frail)
        files = [picture(0), b"CRASH", picture(2)]
        source = Source("x", "here", ("a.jpg", "b.jpg", "c.jpg"), {}, np.full(3, ""), None, files.__getitem__)
        answers = reader(source, SPEC)([0, 1, 2])
        assert [isinstance(answer, str) for answer in answers] == [False, True, False]
        assert str(answers[1]).startswith("b.jpg: it took the decoder down")
        with pytest.raises(UndecodableError) as fault:
            open_store(source, SPEC, [(40, 60)] * 3, "abc", str(tmp_path), 2, print, lambda done: None)
        assert fault.value.numbers == (1,)
        assert "b.jpg: it took the decoder down" in str(fault.value)

    def test_a_header_that_crashes_its_process_is_named_where_it_is_packed_and_where_it_is_read_back(
        self, frail, monkeypatch, tmp_path
    ):
        for module in (packing, notes):
            monkeypatch.setattr(module, "DECODERS", frail)
        source = Source("x", "here", ("a.jpg",), {}, np.full(1, ""), None, [b"CRASH"].__getitem__)
        with pytest.raises(InputError, match="took the decoder down"):
            packing.pack(source, tmp_path / "out", size=1)
        known = notes.Known(notes.digest(b"CRASH"), decode.Facts(1, 1, 1, "uint8"))
        with pytest.raises(InputError, match="took the decoder down"):
            notes.Verified(source.read, source.names, [known])(0)


class TestLives:
    def test_they_are_started_when_asked_for_and_end_when_closed(self):
        some = Decoders()
        assert some.pids == []
        some.warm(2)
        assert len(children := some._free.copy()) == 2
        assert some.read(SPEC, picture(0), "a")[0] == 0
        some.close()
        assert some.pids == []
        assert all(child.process.returncode is not None for child in children)

    def test_they_know_nothing_of_pytorch(self):
        words = "import sys, vitreous.data.preprocess; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", words], timeout=120).returncode == 0

    @pytest.mark.skipif(os.name == "nt", reason="process groups")
    def test_ctrl_c_in_a_terminal_does_not_reach_them(self, decoders):
        decoders.read(SPEC, picture(0), "a")
        assert os.getpgid(decoders.pids[0]) == decoders.pids[0] != os.getpgid(0)

    def test_one_that_nobody_asks_ends_and_no_picture_is_blamed(self):
        bored = Decoders(program=f"from vitreous.data import processes; processes.IDLE = 0.2; {workers.MAIN}")
        for _ in range(3):
            assert bored.read(SPEC, picture(0), "a")[0] == 0
            for child in bored._free:
                assert child.process.wait(60) == 0

    @LINUX
    def test_they_end_with_a_parent_that_is_killed_and_a_fork_has_its_own(self):
        script = """
import io, os, sys, time
import numpy as np
from vitreous.data.preprocess import InputSpec
from vitreous.data.workers import DECODERS
file, spec = io.BytesIO(), InputSpec(1, "uint8", ((4, 4),))
np.save(file, np.zeros((4, 4), np.uint8))
spec.read(file.getvalue(), "a")
mine = DECODERS.pids
if os.fork():
    assert os.wait()[1] == 0
    spec.read(file.getvalue(), "a")
    assert DECODERS.pids == mine
    print(*mine, flush=True)
    time.sleep(600)
else:
    spec.read(file.getvalue(), "a")
    sys.exit(bool(set(DECODERS.pids) & set(mine)))
"""
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            child = Path("/proc") / parent.stdout.readline().strip() / "stat"
            assert child.exists()
            parent.kill()
        for _ in range(3000):
            if not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.02)
        else:
            pytest.fail("it outlived its parent")


class TestFiles:
    def test_a_file_of_too_many_bytes_is_refused_before_it_is_read(self, tmp_path):
        with open(tmp_path / "a.jpg", "wb") as file:
            file.truncate(decode.MAX_BYTES + 1)
        with pytest.raises(InputError, match=r"a\.jpg: at most 2\.1 GB were expected"):
            open_pictures([tmp_path / "a.jpg"]).read(0)

    @pytest.mark.skipif(os.name == "nt", reason="no named pipes in folders there")
    def test_a_pipe_is_refused_rather_than_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "a.jpg")
        with pytest.raises(InputError, match=r"a\.jpg: a file was expected, not a pipe"):
            open_pictures([tmp_path / "a.jpg"]).read(0)
