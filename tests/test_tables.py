"""Rows of predictions: read back equal, whole under their name, and gone on with after whatever stopped them."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from vitreous.cells import unguarded
from vitreous.data.targets import Task
from vitreous.errors import InputError, ToldInterrupt, visible
from vitreous.infer import tables
from vitreous.infer.predictor import Prediction
from vitreous.infer.tables import Row, as_row, check_name, columns, keep_done, part_of, plain, write_rows
from vitreous.training.journal import Journal
from vitreous.verbs import answers

CLASSES = Task("classification", ("cat", "dog", "owl"), column="class")
LABELS = Task("multilabel", ("sun", "sea"))
NUMBERS = Task("regression", ("length (mm)", "label of weight"), ("mm", ""), (1.0, 2.0), (1.0, 1.0))
ODD_NAMES = (
    'bad, with "quotes".png',
    "two\nlines.png",
    "\x1b[2J\x9bm\x7f.png",
    r"back\slash\n.png",
    "old mac\rlines.png",
    "=1+1.png",
    "-tab\t.png",
    "ünï ☃.png",
    os.fsdecode(b"latin \xe9.png"),
    " spaced ",
    "'",
)
posix = pytest.mark.skipif(os.name == "nt", reason="names that are no UTF-8 are POSIX")


def cat(name: str, error: str = "") -> Prediction:
    return Prediction(name, "classification", {"cat": 0.7, "owl": 0.2, "dog": 0.1}, ("cat", "owl"), error=error)


def rows_of(names: Iterator[str] | tuple[str, ...] | list[str], top: int = 1) -> list[Row]:
    return [as_row(CLASSES, cat(name), top) for name in names]


def save(rows: list[Row], path: Path, top: int = 1, append: bool = False) -> None:
    write_rows(rows, path, columns(CLASSES, top), append=append)


def names_in(path: Path) -> list[str]:
    if path.suffix == ".jsonl":
        return [json.loads(line)["picture"] for line in path.read_bytes().splitlines()]
    with open(path, encoding="utf-8", newline="") as file:
        return [unguarded(row["picture"]) for row in csv.DictReader(file)]


class TestRows:
    def test_the_top_classes_and_the_doubt(self):
        row = as_row(CLASSES, cat("a.jpg"), 2)
        assert row == {
            "picture": "a.jpg",
            "label": "cat",
            "probability": 0.7,
            "label_2": "owl",
            "probability_2": 0.2,
            "unsure": True,
            "plausible": "cat|owl",
            "error": None,
        }
        assert list(as_row(CLASSES, cat("a.jpg"), 9)) == list(columns(CLASSES, 3))

    def test_labels_and_the_probability_of_each_in_the_order_of_the_task(self):
        row = as_row(LABELS, Prediction("a", "multilabel", {"sea": 0.8, "sun": 0.1}), 1)
        assert row == {"picture": "a", "labels": "sea", "p(sun)": 0.1, "p(sea)": 0.8, "error": None}
        assert list(row) == list(columns(LABELS, 1))

    @pytest.mark.parametrize("names", [("error",), ("x", "picture"), ("x low", "x"), ("x", "x high")])
    def test_targets_whose_columns_would_be_one_are_refused(self, names):
        task = Task("regression", names, ("",) * len(names), (0.0,) * len(names), (1.0,) * len(names))
        twice = {"x low", "x high", "picture", "error"} & set(names)
        with pytest.raises(InputError, match=f"would have two columns '{twice.pop()}'"):
            columns(task, 1)

    def test_numbers_and_their_intervals_where_these_are_known(self):
        values = {"length (mm)": 3.5, "label of weight": 4.0}
        row = as_row(NUMBERS, Prediction("a", "regression", values=values, intervals={"length (mm)": (3.0, 4.0)}), 1)
        assert list(row.values()) == ["a", 3.5, 3.0, 4.0, 4.0, None, None, None]
        assert list(row) == list(columns(NUMBERS, 1))

    @pytest.mark.parametrize("task", [CLASSES, LABELS, NUMBERS], ids=lambda task: task.kind)
    def test_an_error_stands_alone_in_a_row_of_the_same_columns(self, task):
        row = as_row(task, Prediction("a", task.kind, error="a: the file is empty"), 2)
        assert {key: value for key, value in row.items() if value is not None} == {
            "picture": "a",
            "error": "a: the file is empty",
        }
        assert list(row) == list(columns(task, 2))


class TestFormats:
    @pytest.fixture
    def rows(self) -> list[Row]:
        bad = Prediction("bad", "classification", error="bad: 'x\ny' was \"expected\", but…")
        return [*rows_of(ODD_NAMES, 2), as_row(CLASSES, bad, 2)]

    @posix
    def test_csv_is_a_line_of_utf8_a_row_and_is_read_back_equal(self, rows, tmp_path):
        save(rows, tmp_path / "out.csv", 2)
        text = (tmp_path / "out.csv").read_text("utf-8")
        assert len(text.splitlines()) == 1 + len(rows)
        assert visible(text) == text
        with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
            read = [{key: unguarded(cell) for key, cell in row.items()} for row in csv.DictReader(file)]
        assert read == [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]

    @posix
    def test_jsonl_is_read_back_equal_by_anyone_who_reads_utf8(self, rows, tmp_path):
        save(rows, tmp_path / "out.jsonl", 2)
        lines = (tmp_path / "out.jsonl").read_text("utf-8").split("\n")
        assert [json.loads(line) for line in lines[:-1]] == rows
        assert lines[-1] == ""
        assert visible("".join(lines)) == "".join(lines)

    def test_parquet_is_read_back_equal(self, rows, tmp_path):
        save(rows, tmp_path / "out.parquet", 2)
        expected = [row | {"picture": plain(row["picture"])} for row in rows]
        assert pq.read_table(tmp_path / "out.parquet").to_pylist() == expected

    def test_parquet_holds_numbers_whatever_their_columns_are_called(self, tmp_path):
        values = {"length (mm)": 3.5, "label of weight": 4.0}
        row = as_row(NUMBERS, Prediction("a", "regression", values=values), 1)
        write_rows([row], tmp_path / "out.parquet", columns(NUMBERS, 1))
        assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [row]

    @pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
    def test_no_rows_are_a_table_too(self, tmp_path, ending):
        path = tmp_path / f"out.{ending}"
        save([], path)
        if ending == "parquet":
            assert pq.read_table(path).to_pylist() == []
        else:
            assert path.read_text() == ("picture,label,probability,unsure,plausible,error\n" if ending == "csv" else "")

    @posix
    def test_plain_text_can_be_printed_and_is_the_same_where_it_was_utf8(self):
        assert plain("ünï ☃ \\ \n") == "ünï ☃ \\ \n"
        assert plain(os.fsdecode(b"latin \xe9")) == "latin \\udce9"
        assert json.loads(plain(json.dumps(os.fsdecode(b"\xe9"), ensure_ascii=False))) == os.fsdecode(b"\xe9")

    def test_names_that_cannot_be_written_are_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"x\.txt: expected a name that ends in \.csv, \.jsonl, \.parquet"):
            check_name(Path("x.txt"))
        with pytest.raises(InputError, match=r"grows row by row: expected an --out that ends in \.csv or \.jsonl, not"):
            keep_done(tmp_path / "x.parquet", CLASSES, 1)


class TestParts:
    @pytest.mark.parametrize("ending", ["csv", "jsonl"])
    def test_rows_are_on_the_disk_as_they_come_and_take_the_name_at_the_end(self, tmp_path, monkeypatch, ending):
        monkeypatch.setattr(tables, "PAUSE", 0.0)
        path = tmp_path / f"out.{ending}"
        path.write_text("as it was")

        def watched() -> Iterator[Row]:
            for number, row in enumerate(rows_of(["a", "b", "c"])):
                assert number == 0 or names_in_part() == ["a", "b", "c"][:number]
                yield row

        def names_in_part() -> list[str]:
            part_of(path).rename(tmp_path / f"look.{ending}")
            found = names_in(tmp_path / f"look.{ending}")
            (tmp_path / f"look.{ending}").rename(part_of(path))
            assert path.read_text() == "as it was"
            return found

        write_rows(watched(), path, columns(CLASSES, 1))
        assert names_in(path) == ["a", "b", "c"]
        assert os.listdir(tmp_path) == [path.name]

    def test_rows_wait_for_a_moment_together(self, tmp_path):
        def watched() -> Iterator[Row]:
            yield from rows_of(["a", "b"])
            assert part_of(tmp_path / "out.csv").stat().st_size == 0

        write_rows(watched(), tmp_path / "out.csv", columns(CLASSES, 1))
        assert names_in(tmp_path / "out.csv") == ["a", "b"]

    @pytest.mark.parametrize("stop", [InputError("on fire"), KeyboardInterrupt(), BrokenPipeError()])
    @pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
    def test_what_stops_it_leaves_the_table_that_was_there_and_the_rows_so_far_beside_it(self, tmp_path, ending, stop):
        def stopped() -> Iterator[Row]:
            yield from rows_of(["a", "b"])
            raise stop

        path = tmp_path / f"out.{ending}"
        path.write_text("as it was")
        with pytest.raises(type(stop)):
            write_rows(stopped(), path, columns(CLASSES, 1))
        assert path.read_text() == "as it was"
        if ending == "parquet":
            assert os.listdir(tmp_path) == [path.name]
        else:
            assert keep_done(path, CLASSES, 1) == {"a", "b"}

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is always full")
    def test_a_full_disk_is_named_and_so_is_the_way_on(self, tmp_path):
        path = tmp_path / "out.csv"
        part_of(path).symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"out\.csv cannot be written: No space left .*out\.csv\.part, and --skip"):
            save(rows_of(["a"]), path)
        assert not path.exists()

    @pytest.mark.parametrize(("end", "raised"), [(SystemExit(143), SystemExit), (KeyboardInterrupt, ToldInterrupt)])
    def test_told_to_end_it_says_once_where_the_rows_are(self, tmp_path, capsys, end, raised):
        def rows() -> Iterator[Row]:
            yield from rows_of(["a"])
            raise end

        path, predictor = tmp_path / "out.csv", SimpleNamespace(task=CLASSES)
        with pytest.raises(raised):
            answers._write(rows(), path, predictor, 1, False, Journal())  # pyright: ignore[reportArgumentType]
        assert capsys.readouterr().out.startswith(f"interrupted; the rows so far are in {part_of(path)}; --skip-done")

    def test_a_folder_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(OSError, match=r"no/out\.csv cannot be written: No such file or directory$"):
            save(rows_of(["a"]), tmp_path / "no" / "out.csv")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
class TestSkipDone:
    def test_nothing_is_done_where_nothing_was_written(self, tmp_path, ending):
        path = tmp_path / f"out.{ending}"
        assert keep_done(path, CLASSES, 1) == set()
        save(rows_of(["a"]), path, append=True)
        assert names_in(path) == ["a"]

    @posix
    def test_cut_anywhere_the_whole_rows_are_kept_and_the_others_come_behind(self, tmp_path, ending):
        path, names = tmp_path / f"out.{ending}", ["two\nlines", 'a "b", \r', os.fsdecode(b"\xe9"), "last"]
        save(rows_of(names), path)
        content = path.read_bytes()
        ends = [len(content) - len(content.split(line, 1)[1]) for line in self.lines(names, ending)]
        path.unlink()
        near_ends = {min(end + step, len(content) - 1) for end in ends for step in (-1, 0, 1)}
        for cut in sorted({*range(0, len(content), 11), *near_ends}):
            part_of(path).write_bytes(content[:cut])
            done = keep_done(path, CLASSES, 1)
            assert done == {name for name, end in zip(names, ends, strict=True) if end <= cut}
            if cut % 5 == 0:
                save(rows_of([name for name in names if name not in done]), path, append=True)
                assert path.read_bytes() == content

    def lines(self, names: list[str], ending: str) -> list[bytes]:
        form = tables.FORMS[f".{ending}"](columns(CLASSES, 1))
        return [form.line(row) for row in rows_of(names)]

    def test_errors_are_tried_again(self, tmp_path, ending):
        path = tmp_path / f"out.{ending}"
        answers = [cat("a"), cat("b", error="b: the file is empty"), cat("c")]
        save([as_row(CLASSES, answer, 1) for answer in answers], path)
        assert keep_done(path, CLASSES, 1) == {"a", "c"}
        save(rows_of(["b"]), path, append=True)
        assert names_in(path) == ["a", "c", "b"]
        assert os.listdir(tmp_path) == [path.name]

    def test_it_goes_on_from_a_whole_table_which_stays_until_the_new_one_is(self, tmp_path, ending):
        path = tmp_path / f"out.{ending}"
        save(rows_of(["a", "b"]), path)
        before = path.read_bytes()
        assert keep_done(path, CLASSES, 1) == {"a", "b"}
        assert path.read_bytes() == before
        save([], path, append=True)
        assert path.read_bytes() == before

    def test_what_was_interrupted_last_counts_before_what_was_whole(self, tmp_path, ending):
        path = tmp_path / f"out.{ending}"
        save(rows_of(["b"]), path)
        path.rename(part_of(path))
        save_elsewhere = tmp_path / f"old.{ending}"
        save(rows_of(["a"]), save_elsewhere)
        save_elsewhere.rename(path)
        assert keep_done(path, CLASSES, 1) == {"b"}

    def test_another_top_or_task_is_refused_with_both_and_nothing_is_touched(self, tmp_path, ending):
        path = tmp_path / f"out.{ending}"
        save(rows_of(["a"], top=2), path, top=2)
        before = path.read_bytes()
        with pytest.raises(InputError, match=r"has the columns picture, label, probability, label_2.*they would be "):
            keep_done(path, CLASSES, 1)
        with pytest.raises(InputError, match=r"now they would be picture, length \(mm\), .*Expected the RUN and --top"):
            keep_done(path, NUMBERS, 2)
        assert os.listdir(tmp_path) == [path.name]
        assert path.read_bytes() == before

    def test_another_run_is_told_by_classes_that_this_one_does_not_know(self, tmp_path, ending):
        path = tmp_path / f"out.{ending}"
        save(rows_of(["a"]), path)
        others = Task("classification", ("ant", "dog", "owl"), column="class")
        with pytest.raises(InputError, match="has the class 'cat', which this run does not know"):
            keep_done(path, others, 1)

    @pytest.mark.parametrize("place", ["first", "last"])
    def test_a_table_damaged_elsewhere_than_at_its_end_is_refused(self, tmp_path, ending, place):
        path = tmp_path / f"out.{ending}"
        save(rows_of(["a", "b", "c"]), path)
        lines = path.read_bytes().splitlines(keepends=True)
        lines.insert(len(lines) - 2 if place == "first" else len(lines), b'{"picture": "x, "y\n')
        path.write_bytes(b"".join(lines))
        with pytest.raises(InputError, match=r"is damaged, or was not written by vitreous predict, at the line b'\{"):
            keep_done(path, CLASSES, 1)

    def test_another_file_is_no_table(self, tmp_path, ending):
        path = tmp_path / f"out.{ending}"
        path.write_text("[1, 2]\n[3]\n")
        with pytest.raises(InputError, match="has the columns"):
            keep_done(path, CLASSES, 1)
        assert path.read_text() == "[1, 2]\n[3]\n"
