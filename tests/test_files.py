"""Strict readers: what they take, what they refuse and how they say so; and what is written for people."""

import csv
import io
import json
import pickle
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vitreous.cells import guarded, unguarded
from vitreous.errors import InputError, counted, visible
from vitreous.fields import read_fields
from vitreous.infer.tables import CSV
from vitreous.model.config import ModelConfig
from vitreous.model.presets import PRESETS
from vitreous.rundir import RunDir, SplitRow
from vitreous.strict import check_archive, check_torch_file, open_npz, parse_json, read_json, read_safetensors
from vitreous.training import journal as journal_module
from vitreous.training.journal import Journal


class TestJson:
    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ('{"a": 1, "b": 2, "a": 3}', "names 'a' twice"),
            ('{"a": NaN}', "NaN is no number"),
            ('{"a": -Infinity}', "-Infinity is no number"),
            ('{"a": 1e999}', "beyond all numbers"),
            ("[1]", "expected an object"),
            ("{", "Expecting property name"),
            ('{"a": ' + "[" * 40 + "]" * 40 + "}", "nested deeper than 32"),
            ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
            ('{"a": "' + "x" * 200 + '"}', "larger than 100 bytes"),
            (b'{"a": "\xff"}', "utf-8"),
        ],
    )
    def test_what_is_not_ours_is_refused_by_name(self, text, fault):
        most = 100 if "larger" in fault else 1 << 20
        with pytest.raises(InputError, match=fault) as raised:
            parse_json(text, "run/config.json", most)
        assert str(raised.value).startswith("run/config.json is damaged")

    def test_a_sound_one_is_read_as_it_was_written(self, tmp_path: Path):
        values = {"a": [1, -2.5, None, True, "é\n"], "b": {"c": {}, "d": []}}
        (tmp_path / "a.json").write_text(json.dumps(values), "utf-8")
        assert read_json(tmp_path / "a.json") == values

    def test_numbers_that_are_none_are_written_as_null(self, tmp_path: Path):
        run = RunDir.create(tmp_path / "run")
        run.write_json("validation.json", {"a": [float("nan"), 1.5], "b": float("inf")})
        assert run.read_json("validation.json") == {"a": [None, 1.5], "b": None}


@dataclass(frozen=True)
class Inner:
    share: float


@dataclass(frozen=True)
class Outer:
    number: int
    kind: Literal["a", "b"] = "a"
    sizes: tuple[tuple[int, int], ...] = ()
    name: str | None = None
    inner: Inner = field(default_factory=lambda: Inner(0.5))


class TestFields:
    def test_each_value_is_of_its_fields_type(self):
        values = {"number": 3, "kind": "b", "sizes": [[1, 2], [3, 4]], "name": None, "inner": {"share": 1}}
        assert read_fields(Outer, values, "it") == Outer(3, "b", ((1, 2), (3, 4)), None, Inner(1.0))

    def test_all_faults_are_told_together(self):
        values = {"kind": "os.system", "sizes": [[1]], "name": 3, "inner": {"share": "x"}, "evil": 1}
        with pytest.raises(InputError) as fault:
            read_fields(Outer, values, "it")
        told = str(fault.value)
        for part in ("number is missing", "kind: expected one of a, b", "sizes: expected a list of 2", "evil", "share"):
            assert part in told

    @pytest.mark.parametrize("value", [True, 1.0, "1", None, [1], 1 << 70])
    def test_only_a_whole_number_is_one(self, value):
        with pytest.raises(InputError, match="number: expected a whole number"):
            read_fields(Outer, {"number": value}, "it")

    def test_every_preset_is_within_the_bounds_and_survives_json(self):
        for config in PRESETS.values():
            assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


class TestSafetensors:
    def test_what_the_library_writes_is_read_with_its_metadata(self, tmp_path: Path):
        tensors = {
            "a": torch.arange(6.0).reshape(2, 3),
            "b": torch.zeros(0, 4, dtype=torch.bfloat16),
            "c": torch.tensor(True),
            "d": torch.ones(3, dtype=torch.int64),
            "e": torch.zeros(2, 2, dtype=torch.float16),
        }
        save_file(tensors, tmp_path / "w.safetensors", {"k": "v"})
        found, metadata = read_safetensors(tmp_path / "w.safetensors")
        assert metadata == {"k": "v"}
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)

    @pytest.mark.parametrize("new", [True, False], ids=["archive", "as until 1.6"])
    def test_a_pickle_that_is_called_so_is_told_as_one(self, tmp_path: Path, new):
        torch.save({"a": torch.ones(2)}, tmp_path / "w.safetensors", _use_new_zipfile_serialization=new)
        with pytest.raises(InputError, match=r"w\.safetensors is a pickle.* Rename it to end in \.pth: `vitreous"):
            read_safetensors(tmp_path / "w.safetensors")


class TestTorchFiles:
    @pytest.mark.parametrize("new", [True, False], ids=["archive", "as until 1.6"])
    def test_a_state_dict_is_looked_at_and_passes(self, tmp_path: Path, new):
        wrapped = {"state_dict": {"a": torch.ones(2), "b": torch.nn.Parameter(torch.ones(3).half())}, "epoch": 3}
        torch.save(wrapped, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
        check_torch_file(tmp_path / "w.pth")

    def test_what_it_asks_for_is_named(self, tmp_path: Path):
        torch.save({"a": torch.ones(2), "b": Path("x")}, tmp_path / "w.pth")
        with pytest.raises(InputError, match=r"holds more than weights.*pathlib"):
            check_torch_file(tmp_path / "w.pth")


class TestArchives:
    def test_an_npz_that_unpacks_to_much_is_refused_before_it_is_unpacked(self, tmp_path: Path):
        np.savez_compressed(tmp_path / "a.npz", images=np.zeros((64, 256, 256), np.float32))
        with pytest.raises(InputError, match="unpack to 16,777"):
            open_npz(tmp_path / "a.npz", 4)

    def test_one_that_is_no_archive_or_ends_elsewhere_is_refused(self, tmp_path: Path):
        (tmp_path / "a.zip").write_bytes(pickle.dumps({}))
        with pytest.raises(InputError, match="does not begin as an archive"):
            check_archive(tmp_path / "a.zip", 1)
        with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
            file.writestr("a", b"a")
        check_archive(tmp_path / "b.zip", 1)
        (tmp_path / "b.zip").write_bytes((tmp_path / "b.zip").read_bytes() + b"x")
        with pytest.raises(InputError, match="does not end as an archive"):
            check_archive(tmp_path / "b.zip", 1)


FORMULAS = ["=1+1", "+1", "-a.png", "@SUM(A1)", "＝1", "'=1", "''+1"]
CODES = {
    "two\nlines": r"two\nlines",
    "\t=1": r"\t=1",
    "\r": r"\r",
    "a\x1b[2J\0": r"a\x1b[2J\x00",
    "\x9bm\u202e": r"\x9bm\u202e",
    r"C:\new\x1b": r"C:\\new\\x1b",
    "latin \udce9": r"latin \udce9",  # as POSIX has a name that is no UTF-8
    "=\n": r"'=\n",
}


class TestSpreadsheets:
    @pytest.mark.parametrize("text", FORMULAS)
    def test_what_would_begin_a_formula_gets_an_apostrophe_that_is_taken_off_again(self, text):
        assert guarded(text) == f"'{text}"
        assert unguarded(guarded(text)) == text

    @pytest.mark.parametrize("text", CODES)
    def test_what_a_terminal_would_obey_becomes_its_code_that_is_undone(self, text):
        assert guarded(text) == CODES[text]
        assert unguarded(CODES[text]) == text

    def test_any_text_is_read_back_equal_and_is_one_line_that_nothing_obeys(self):
        rng = np.random.default_rng(0)
        odd = map(chr, (0, 7, 9, 10, 13, 27, 0x7F, 0x9B, 0x2028, 0x202E, 0xDC80, 0xDCFF))
        letters = [*"aé猫 '\"=+-@\\ntrxu019,", *odd]
        for length in rng.integers(0, 9, 5000):
            text = "".join(rng.choice(letters, length))
            cell = guarded(text)
            assert unguarded(cell) == text
            assert visible(cell) == cell == "".join(cell.splitlines())
            assert not cell.startswith(("=", "+", "-", "@"))
            cell.encode()

    @pytest.mark.parametrize("text", ["", "a.png", "'a", "''", "1=2", "cat-dog", " =1"])
    def test_other_text_stays_as_it_is(self, text):
        assert guarded(text) == unguarded(text) == text

    def test_tables_of_predictions_are_guarded_in_their_text_and_not_in_their_numbers(self, tmp_path: Path):
        form = CSV({"picture": str, "=evil": float})
        content = form.head + form.line({"picture": "=HYPERLINK(1)", "=evil": -0.5})
        assert content == b"picture,'=evil\n'=HYPERLINK(1),-0.5\n"
        (tmp_path / "t.csv").write_bytes(content)
        with open(tmp_path / "t.csv", "rb") as file:
            assert [row for row, _ in form.read(file, tmp_path / "t.csv")] == [
                {"picture": "=HYPERLINK(1)", "=evil": "-0.5"}
            ]

    def test_split_csv_is_guarded_and_read_back_equal(self, tmp_path: Path):
        run, rows = (
            RunDir.create(tmp_path / "run"),
            [SplitRow(text, "00", "train") for text in (*FORMULAS, *CODES, "a.png")],
        )
        run.write_split(rows)
        assert run.read_split() == rows
        with open(run.path / "split.csv", encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝")) for cell in cells)


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


class TestTerminal:
    def test_what_a_terminal_would_obey_is_shown_as_its_code(self):
        assert visible("a\x1b[2J\x9bm\u202eb\r.png") == r"a\x1b[2J\x9bm\u202eb\r.png"

    def test_lines_tabs_and_other_letters_stay(self):
        assert visible("é\tשלום\n猫 ×") == "é\tשלום\n猫 ×"

    def test_a_journal_shows_it_so_too(self, capsys: pytest.CaptureFixture[str]):
        Journal().say("bad: \x1b]0;evil\x07.png")
        assert capsys.readouterr().out == "bad: \\x1b]0;evil\\x07.png\n"

    @pytest.mark.parametrize("stream", [None, SimpleNamespace(write=print), closed()], ids=["none", "odd", "closed"])
    def test_a_bar_needs_no_stream_of_the_usual_kind(self, monkeypatch: pytest.MonkeyPatch, stream: object):
        journal = Journal()
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        with journal.bar("pictures", 3) as advance:
            advance(3)

    def test_where_no_bar_is_drawn_lines_say_how_far_it_is(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        monkeypatch.setattr(journal_module, "FIRST_LINE", 0.0)
        for lines in (True, False):
            with Journal().bar("pictures", 3, lines=lines) as advance:
                advance(1_000, total=5_000)
                advance(3)
        assert capsys.readouterr().out == "pictures: 1,000 of 5,000, 0:00\n"


class TestCounted:
    @pytest.mark.parametrize(
        ("count", "noun", "expected"),
        [
            (1, "epoch", "1 epoch"),
            (1.0, "epoch", "1 epoch"),
            (0.5, "epoch", "0.5 epochs"),
            (0, "shard", "0 shards"),
            (1_024, "picture", "1,024 pictures"),
            (2, "class", "2 classes"),
            (3, "batch", "3 batches"),
        ],
    )
    def test_one_is_singular_and_all_else_plural(self, count, noun, expected):
        assert counted(count, noun) == expected
