"""Parquet: whatever a file does to the process that opens it is that file's fault, and takes no more than a cap."""

import io
import os
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vitreous.data import parquet
from vitreous.data.parquet import MAIN, ParquetFile, parquet_file
from vitreous.data.processes import HEAD, Processes
from vitreous.data.sources import open_source
from vitreous.data.tables import Columns
from vitreous.errors import InputError

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded, and told, there")
# Children whose library has a fault for each of these jobs.
PROGRAM = """
import ctypes
from vitreous.data import parquet
def crash(file, most): ctypes.string_at(0)
def hang(file, most): ctypes.PyDLL(None).sleep(1000)  # which keeps the interpreter's lock
def much(file, most):
    import pyarrow as pa
    return None, pa.table({"a": pa.nulls(most // 8 + 1, pa.int64())})
parquet.JOBS |= {"crash": crash, "hang": hang, "much": much}
from vitreous.data.parquet import main
"""


@pytest.fixture
def frail(monkeypatch):
    """Processes that some jobs take down."""
    one = Processes(PROGRAM)
    monkeypatch.setattr(parquet, "READERS", one)
    yield one
    one.close()


def written(folder: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "t.parquet")
    return folder / "t.parquet"


def fault_of(path: Path, job: str = "light") -> str:
    with pytest.raises(InputError, match=rf"^{path}: ") as raised:
        parquet_file(str(path)).ask(job)
    return str(raised.value)


def largest(processes: Processes) -> int:
    """Bytes of memory that any of the processes had at a time."""
    lines = [line for pid in processes.pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return max(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


class TestSizes:
    @LINUX
    @pytest.mark.parametrize("store_schema", [False, True])  # which says that it is a dictionary
    @pytest.mark.parametrize("column", ["label", "image"])
    def test_a_few_bytes_that_stand_for_gigabytes_are_refused_in_bounded_memory(
        self, tmp_path, frail, column, store_schema
    ):
        rows = 8000
        columns = {"image": pa.array([b"x"] * rows), "label": ["a"] * rows}
        value = pa.array([b"x" * 900_000], pa.binary() if column == "image" else pa.string())
        columns[column] = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), value)
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table(columns), path, store_schema=store_schema)
        assert path.stat().st_size < 1 << 17
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(InputError, match=rf"^{path}"):
            open_source(path, Columns(path="image")).read(0)
        assert largest(frail) < 600 << 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10

    def test_one_long_text_does_not_make_all_as_long(self, tmp_path):
        path = written(tmp_path, image=[b"x"] * 20_000, label=["x" * 100_000, *["x"] * 19_999])
        with pytest.raises(InputError, match=rf"^{path} .*100,000 characters is too long for a column of 20,000 rows"):
            open_source(path)

    def test_more_rows_than_its_size_lets_believe_are_refused(self, tmp_path, frail):
        path = written(tmp_path, path=pa.nulls(20_000_000, pa.string()))
        assert "it claims 20,000,000 rows, more than is believed of its size" in fault_of(path)

    def test_what_is_sent_has_a_cap(self, tmp_path, frail):
        path = written(tmp_path, path=["a"])
        assert "it unpacks to" in fault_of(path, "much")

    def test_text_that_is_none_is_refused(self, tmp_path):
        text = pa.Array.from_buffers(
            pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")]
        )
        assert "UTF8" in fault_of(written(tmp_path, path=text))


class TestDeaths:
    def test_a_file_that_crashes_its_process_is_named_and_the_next_is_read(self, tmp_path, frail):
        path = written(tmp_path, path=["a"])
        assert "it took the reader down, twice" in fault_of(path, "crash")
        assert parquet_file(str(path)).ask("light")[1]["path"].to_pylist() == ["a"]

    def test_a_file_that_hangs_its_process_is_named(self, tmp_path, frail):
        path, frail.seconds = written(tmp_path, path=["a"]), 2.0
        assert "it took longer than 2.0" in fault_of(path, "hang")

    @pytest.mark.parametrize(
        ("words", "data"),
        [
            (b'{"told": null}', b""),
            (b'{"told": null}', b"no stream" * 20),
            (b'{"told": null}', None),  # more than is believed
            (b"[0, 5]", b""),  # a range of a file that it can open itself
            (b"7", b""),
        ],
    )
    def test_a_process_that_talks_nonsense_is_not_believed(self, tmp_path, monkeypatch, words, data):
        said = b"!" + HEAD.pack(len(words), 1 << 40 if data is None else len(data)) + words + (data or b"")
        program = f"import os\ndef main(*_): os.write(1, {said!r}); os._exit(5)"
        monkeypatch.setattr(parquet, "READERS", Processes(program))
        assert "it took the reader down, twice" in fault_of(written(tmp_path, path=["a"]))


class TestRanges:
    def file(self, read) -> ParquetFile:
        stream = io.BytesIO()
        pq.write_table(pa.table({"path": ["a"] * 1000, "image": [os.urandom(1000)] * 1000}), stream)
        self.content, self.asked = stream.getvalue(), []
        return ParquetFile("http://a/t.parquet", len(self.content), partial(read, self))

    def part(self, start: int, count: int) -> bytes:
        self.asked.append(count)
        return self.content[start : start + count]

    def test_no_more_is_asked_for_than_is_read(self):
        table = self.file(TestRanges.part).ask("light")[1]
        assert table["path"].to_pylist() == ["a"] * 1000
        assert table["image"].null_count == 1000
        assert sum(self.asked) < len(self.content) + (1 << 16)

    def test_more_than_a_child_asks_for_at_once_comes_in_parts(self, monkeypatch, frail):
        monkeypatch.setattr(frail, "program", f"from vitreous.data import parquet\nparquet.RANGE = 7\n{MAIN}")
        assert len(self.file(TestRanges.part).ask("light")[1]) == 1000
        assert max(self.asked) <= 7

    def test_a_range_that_cannot_be_had_is_the_fault_and_the_process_goes_on(self, frail):
        def broken(self, start: int, count: int) -> bytes:
            raise InputError("http://a/t.parquet cannot be read: the server says 500.")

        file = self.file(TestRanges.part)
        file.ask("light")
        before = frail.pids
        with pytest.raises(InputError, match="the server says 500"):
            self.file(broken).ask("light")
        assert frail.pids == before

    def test_a_file_that_ends_too_early_is_a_fault(self, frail):
        with pytest.raises(InputError, match=r"^http://a/t\.parquet: a whole Parquet file was expected"):
            self.file(lambda self, start, count: b"").ask("light")

    def test_a_slow_server_takes_none_of_a_files_seconds(self, frail):
        def slow(self, start: int, count: int) -> bytes:
            time.sleep(2.5)
            return self.part(start, count)

        frail.seconds = 2.0
        assert self.file(slow).ask("schema")[1].column_names == ["path", "image"]
