"""The command line: what it prints, where, and with which exit code; every bad input, and what it leaves behind."""

import csv
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from forks import Forked
from making import PATIENCE, TINY_WORDS, TOY_WORDS, command, kill_when, make_blobs, start, tree, vitreous
from PIL import Image

from vitreous.cli import VERBS, main
from vitreous.model.presets import PRESETS
from vitreous.rundir import RunDir, newest_step

NAMES = [verb.name for verb in VERBS]
posix = pytest.mark.skipif(os.name == "nt", reason="limits of files and mounts are POSIX")


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """`vitreous …` in this process, in an empty folder, with an empty cache -> (exit code, stdout, stderr)."""
    for name in ("here", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "cache"))

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:  # how tyro ends
            code = end.code
        out, err = capsys.readouterr()
        assert isinstance(code, int)
        return code, out, err

    return run


@pytest.fixture
def few(monkeypatch):
    """Three presets are all that there are."""
    names = ("vit_s_16", "vit_b_16", "t2t_vit_t_14")
    monkeypatch.setattr("vitreous.model.vit.PRESETS", {name: PRESETS[name] for name in names})


@pytest.fixture
def refused(call, tmp_path):
    """What `vitreous …` says on stderr where it refuses: exit code 2, no traceback, and nothing left behind."""

    def run(*words: object) -> str:
        before = tree(tmp_path)
        code, _, err = call(*words)
        assert code == 2
        assert "Traceback" not in err
        assert err.strip()
        assert tree(tmp_path) == before
        return err

    return run


def read_or_end(terminal: int) -> bytes:
    """What comes from a pseudo-terminal, nothing once the other side is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def with_errors_on(terminal: str, words: list[str]) -> None:
    """`vitreous …`, whose stderr is a terminal."""
    with open(terminal, "w", encoding="utf-8") as sys.stderr:
        command(words, -1)


class TestHelp:
    def test_lists_every_verb_and_imports_nothing_heavy(self):
        probe = (
            "import sys; from vitreous.cli import main; assert main(['--help']) == 0; "
            "print(sorted({'torch', 'numpy', 'tyro', 'rich', 'PIL', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
        assert done.stderr == "[]\n"
        assert [f"  vitreous {name}" in done.stdout for name in NAMES] == [True] * len(NAMES)

    def test_importing_the_package_imports_no_torch_until_a_name_is_used(self):
        probe = (
            "import sys, vitreous; assert not {'torch', 'numpy'} & set(sys.modules); "
            "vitreous.create; assert 'torch' in sys.modules; print(*vitreous.__all__)"
        )
        done = subprocess.run([sys.executable, "-W", "error", "-c", probe], capture_output=True, text=True, check=True)
        assert "train" in done.stdout.split()

    def test_every_public_name_is_there(self):
        import vitreous as package

        assert all(getattr(package, name) is not None for name in package.__all__)
        with pytest.raises(AttributeError, match="no attribute 'trian'"):
            package.trian  # noqa: B018

    @pytest.mark.parametrize("name", NAMES)
    def test_every_verb_has_one_without_empty_defaults_that_tells_how_it_ends(self, call, name):
        code, out, err = call(name, "--help")
        assert (code, err) == (0, "")
        assert f"usage: vitreous {name}" in out
        assert "--json" in out
        assert not re.search(r"\(default:[\s│]*(None|False|)\)", out)
        ends = " ".join(out.split("Exit codes:")[1].split())
        assert ("143 after SIGTERM" in ends) == (name != "serve")  # which ends with 0
        assert re.search("a second (one|Ctrl-C)", ends, re.IGNORECASE)

    def test_of_train_explains_every_option(self, call):
        out = call("train", "--help")[1]
        for option in ("--out", "--resume", "--model", "--size", "--epochs", "--minutes", "--seed", "--save-every"):
            assert option in out
        assert "Wall-clock budget" in out
        assert "--epochs INT" in out

    def test_without_words_it_is_shown_and_the_exit_code_is_2(self, call):
        code, out, _ = call()
        assert (code, out) == (2, call("--help")[1])

    def test_version(self, call):
        assert re.fullmatch(r"vitreous \d+\.\d+\.\d+\S*\n", call("--version")[1])


@pytest.mark.usefixtures("unpainted")
class TestJson:
    """Alone on stdout, whatever else is said."""

    def test_models(self, call, few):
        code, out, err = call("models", "--json", "--size", "160x384")
        assert (code, err) == (0, "")
        rows = {row["model"]: row for row in json.loads(out)}
        assert rows.keys() == {"vit_s_16", "vit_b_16", "t2t_vit_t_14"}
        assert rows["vit_s_16"]["size"] == [160, 384]
        assert rows["vit_s_16"]["grid"] == [10, 24]
        assert rows["vit_s_16"]["parameters"] > 2e7

    def test_check(self, call, shapes):
        code, out, _ = call("check", shapes, "--json")
        found = json.loads(out)
        assert (code, found["ok"], found["pictures"]) == (0, True, 48)
        assert [finding["code"] for finding in found["findings"]] == ["classes", "sizes"]

    def test_train_and_its_resume(self, call, shapes):
        code, out, err = call("train", shapes, "--epochs", "1", *TOY_WORDS, "--json")
        result = json.loads(out)
        assert code == 0
        assert "48 pictures; classification, 3 classes" in err
        assert Path(result["run"]).parent == Path("runs")
        assert 0 <= result["validation"]["top1"] <= 1
        for words in (("--resume", result["run"]), ("--resume", result["run"], shapes)):
            code, out, _ = call("train", *words, "--json")
            assert (code, json.loads(out)) == (0, result)

    def test_eval(self, call, shapes, shapes_run):
        code, out, err = call("eval", shapes_run, shapes, "--json")
        assert code == 0
        assert json.loads(out)["top1"] == 1
        assert "not scored" in err

    def test_predict(self, call, shapes, shapes_run):
        code, out, err = call("predict", shapes_run, shapes / "red", "--json", "--top", "2")
        rows = json.loads(out)
        assert (code, len(rows)) == (0, 16)
        assert err == "engine: torch, fp32; where there is more to do, a faster one is looked for\n"
        assert {row["label"] for row in rows} == {"red"}
        assert rows[0]["label_2"] in ("blue", "green")
        [row] = json.loads(call("predict", shapes_run, shapes / "red" / "00.jpg", "--json", "--top", 10**20)[1])
        assert "label_3" in row
        assert "label_4" not in row

    def test_predict_of_bad_pictures(self, call, shapes, shapes_run, tmp_path):
        (tmp_path / "bad.png").touch()
        code, out, err = call("predict", shapes_run, shapes / "red" / "00.jpg", tmp_path / "bad.png", "--json")
        good, bad = json.loads(out)
        assert code == 2
        assert (good["error"], bad["label"]) == (None, None)
        assert "the file is empty" in bad["error"]
        assert "\nvitreous predict: 1 of 2 pictures could not be used:\n" in err


class TestAnswers:
    def test_predict_says_class_and_probability_a_line(self, call, shapes, shapes_run):
        code, out, _ = call("predict", shapes_run, shapes / "green" / "02.png")
        assert code == 0
        assert re.match(rf"{shapes}/green/02\.png   green \d+\.\d%", out)

    def test_predict_says_numbers_with_interval_and_unit(self, call, blobs, blobs_run):
        out = call("predict", blobs_run, blobs.parent / "001.npy")[1]
        assert re.match(rf"{blobs.parent}/001\.npy   place \(mm\) [\d.]+ \(-?[\d.]+ to [\d.]+\)\n", out)

    @pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
    def test_predict_out_writes_a_row_a_picture_errors_too(self, call, shapes, shapes_run, tmp_path, ending):
        (tmp_path / "bad.png").touch()
        out = tmp_path / f"x.{ending}"
        code, said, err = call("predict", shapes_run, shapes / "red", tmp_path / "bad.png", "--out", out)
        assert code == 2
        assert f"17 rows in {out}" in said
        assert "bad.png: the file is empty" in err
        if ending == "parquet":
            import pyarrow.parquet as pq

            assert pq.read_table(out).num_rows == 17
        else:
            assert len(out.read_text("utf-8").splitlines()) == 17 + (ending == "csv")

    def test_eval_says_the_measures_and_draws_the_figure(self, call, shapes, shapes_run, tmp_path):
        code, out, _ = call("eval", shapes_run, shapes, "--figure", tmp_path / "confusion.png")
        assert code == 0
        assert "top-1 100.0%" in out
        assert re.search(r"^green +1\.000 +1\.000 +1\.000 +4$", out, re.MULTILINE)
        with Image.open(tmp_path / "confusion.png") as image:
            assert image.format == "PNG"

    def test_models_is_a_table(self, call, few):
        out = call("models")[1]
        assert re.search(r"vit_b_16 +86\.\dM +[\d.]+ +224×224 +14×14 = 196", out)

    def test_check_exits_with_0_for_sound_data_1_for_errors_2_for_none(self, call, shapes, tmp_path):
        code, out, _ = call("check", shapes)
        assert (code, "24 × 32: 48 (100%)" in out) == (0, True)
        bad = tmp_path / "bad"
        shutil.copytree(shapes, bad)
        (bad / "red" / "00.jpg").write_bytes(b"")
        shutil.copy(bad / "red" / "02.png", bad / "blue" / "copy.png")
        code, out, _ = call("check", bad)
        assert code == 1
        assert "error: cannot be read\n  red/00.jpg: the file is empty" in out
        assert "error: the same picture under different labels\n  blue/copy.png = red/02.png" in out
        assert call("check", tmp_path / "nothing")[0] == 2

    @pytest.mark.usefixtures("unpainted")
    def test_train_says_what_it_found_the_model_its_estimate_the_result_and_what_to_type_next(self, call, shapes):
        out = call("train", shapes, "--epochs", "2", *TOY_WORDS, "--out", "run")[1]
        for part in (
            r"48 pictures; classification, 3 classes: blue \(16\), green \(16\), red \(16\)",
            r"\d+ to train on; \d+ to validate with",
            r"pictures of 24×32 .* RGB, uint8 -> 24×32",
            r"cached once: .* \(delete it at any time\)",
            r"model: toy, [\d.]+M parameters, 3×4 tokens .*, [\d.]+ GMACs a picture of 24×32",
            r"plan: 2 epochs, \d+ steps .*; about \d+:\d\d",
            r"epoch 1 .*top1",
            r"epoch 2 .*top1",
            r"validation: top-1",
            r"next: vitreous predict run ",
        ):
            assert re.search(part, out), part

    def test_train_takes_minutes_with_a_unit_and_keeps_them_as_a_number(self, call, shapes):
        assert call("train", shapes, "--minutes", "3s", *TOY_WORDS, "--out", "run")[0] == 0
        assert RunDir.open("run").config()["train"]["minutes"] == 0.05


class TestRefusedWords:
    def test_an_unknown_verb(self, refused):
        assert refused("learn") == (
            "vitreous: there is no verb 'learn': expected one of check, train, eval, predict, explain, report, export, "
            "serve, import, pack, models\n"
        )
        assert refused("trian") == "vitreous: there is no verb 'trian': did you mean train?\n"

    def test_an_unknown_option_with_the_nearest(self, refused, shapes):
        err = refused("train", shapes, "--epoch", "3")
        assert "--epoch" in err
        assert "--epochs" in err

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (("--model", "vit_xs4"), r"no model is called 'vit_xs4': did you mean vit_xs_4"),
            (("--epochs", "0"), r"epochs is 0: expected 1 or more"),
            (("--epochs", "three"), r"--epochs.*three"),
            (("--minutes", "8 days"), r"--minutes: minutes is 8 days: expected minutes, .* as in 90s, 10min or 8h"),
            (("--epochs", "3", "--minutes", "1"), r"epochs and minutes: expected one of the two"),
            (("--validation", "1.5"), r"validation is 1\.5: expected a share between 0 and 1"),
            (("--size", "30x30", "--model", "vit_xs_4"), r"--size 30x30 does not divide by .* 4×4: 32x32 would"),
            (("--size", "big"), r"--size big: expected one number .* or HEIGHTxWIDTH"),
            (("--augment", "wild"), r"expected one of auto, none, slight, varied, light, medium, strong; got 'wild'"),
            (("--device", "cuda:99"), r"--device cuda:99: not to be had here"),
            (("--task", "guess"), r"--task.*'regression'"),
            (("--task", "regression"), r"do not hold numbers: 'class'"),
            (("--target", "weight"), r"has no target weight: what it has is class"),
            (("--group", "patient"), r"Groups are for tables"),
            (("--init", "nowhere"), r"nowhere is no run directory: it does not exist"),
            (("--resume", "nowhere"), r"expected --resume RUN, and DATA where it was moved"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_an_option_that_does_not_fit(self, refused, shapes, words, expected):
        err = refused("train", shapes, "--cache", "off", *words)
        assert re.search(expected, re.sub(r"[\s│]+", " ", err))

    def test_train_without_data(self, refused):
        assert "expected DATA to train on, or --resume RUN" in refused("train")

    def test_resume_with_other_options(self, refused, shapes_run):
        for more in (("--epochs", "3"), ("--out", "else"), ("--seed", "1")):
            assert "expected --resume RUN, and DATA where it was moved" in refused(
                "train", "--resume", shapes_run, *more
            )

    def test_an_out_that_is_taken(self, refused, shapes, shapes_run):
        assert f"{shapes_run} exists: expected a new or empty folder" in refused("train", shapes, "--out", shapes_run)

    def test_predict_without_pictures_or_with_words_that_do_not_fit(self, refused, shapes_run, shapes, tmp_path):
        assert "expected pictures, or folders" in refused("predict", shapes_run)
        assert "--top 0: expected 1 or more" in refused("predict", shapes_run, shapes, "--top", "0")
        assert "a name that ends in .csv, .jsonl, .parquet" in refused("predict", shapes_run, shapes, "--out", "x.txt")
        assert "nowhere.png does not exist" in refused("predict", shapes_run, tmp_path / "nowhere.png")
        err = refused("predict", shapes_run, shapes, "--out", tmp_path / "no" / "x.csv")
        assert f"{tmp_path}/no/x.csv cannot be written: No such file or directory" in err

    def test_eval_with_a_split_that_is_none(self, refused, shapes_run, shapes):
        assert "--split some: expected auto" in refused("eval", shapes_run, shapes, "--split", "some")


def bomb(path: Path) -> None:
    """A grey PNG of 20,000×20,000: 400 megapixels in half a megabyte."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(bytes(20_001 * 100)) for _ in range(200)) + packer.flush()
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


class TestRefusedData:
    @pytest.fixture
    def data(self, shapes, tmp_path) -> Path:
        shutil.copytree(shapes, tmp_path / "data")
        return tmp_path / "data"

    def test_an_empty_folder(self, refused, tmp_path):
        (tmp_path / "empty").mkdir()
        err = refused("train", tmp_path / "empty")
        assert f"{tmp_path}/empty holds no pictures." in err
        assert "photos/cat/001.jpg" in err

    def test_no_folder(self, refused, shapes):
        err = refused("train", shapes.with_name("shape"))
        assert err.startswith(f"vitreous train: {shapes.with_name('shape')} does not exist. Near it: shapes.\nExpected")
        assert all(word in err for word in ("class folders", "a table", ".npz", "shards", "digits", "URL", "hf://"))

    @pytest.mark.parametrize(
        "words", [("check",), ("train", "--epochs", "1"), ("eval", "run"), ("report", "run"), ("pack",)]
    )
    def test_a_pattern_that_the_shell_spelt_out(self, refused, tmp_path, words):
        shards = [tmp_path / f"train-{number}.tar" for number in range(4)]
        err = refused(*words, *shards)
        more = 2 if words == ("pack",) else 3
        assert f"vitreous {words[0]}: {more} words too many: {shards[-more]}" in err
        assert "in quotes" in err
        assert '"train-{000..099}.tar"' in err

    def test_one_class(self, refused, data):
        shutil.rmtree(data / "red")
        shutil.rmtree(data / "blue")
        assert "only one class, 'green'" in refused("train", data)

    def test_a_class_with_one_picture(self, refused, data):
        for path in sorted((data / "red").iterdir())[1:]:
            path.unlink()
        err = refused("train", data)
        assert "class 'red' has one picture; at least 2 are needed" in err

    def test_pictures_that_cannot_be_read_all_named_at_once(self, refused, data):
        (data / "red" / "text.png").write_text("no picture")
        (data / "red" / "empty.jpg").touch()
        Image.new("RGB", (1, 1)).save(data / "blue" / "dot.png")
        bomb(data / "green" / "bomb.png")
        (data / "green" / "link.png").symlink_to("nowhere.png")
        err = refused("train", data)
        assert "5 of 53 pictures cannot be read:" in err
        assert "red/text.png: JPEG, PNG" in err
        assert "red/empty.jpg: the file is empty (0 bytes)" in err
        assert "blue/dot.png: 1×1 pixels: nothing to see" in err
        assert re.search(r"green/bomb\.png: at most 179\.0 megapixels .* has 400\.0", err)
        assert "green/link.png cannot be read: No such file" in err
        assert "--skip-bad" in err

    @pytest.mark.parametrize("name", ["00.jpg", "02.png"])
    def test_a_truncated_picture_is_named_before_the_first_epoch(self, refused, data, name):
        path = data / "red" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
        err = refused("train", data)
        assert "1 of 48 pictures cannot be decoded:" in err
        assert f"red/{name}: " in err

    @pytest.mark.usefixtures("unpainted")
    def test_skip_bad_leaves_them_out_by_name(self, call, data):
        (data / "red" / "empty.jpg").touch()
        cut = data / "blue" / "02.png"
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 4])
        code, out, _ = call("train", data, "--skip-bad", "--epochs", "1", *TOY_WORDS, "--out", "run")
        assert code == 0
        assert "red/empty.jpg" in out
        assert "blue/02.png" in out
        names = {row.path for row in RunDir(Path("run")).read_split()}
        assert len(names) == 47
        assert not {"red/empty.jpg", "blue/02.png"} & names

    def test_pictures_of_other_channels_or_depth(self, refused, data):
        np.save(data / "red" / "deep.npy", np.zeros((24, 32, 3), np.uint16))
        np.save(data / "red" / "five.npy", np.zeros((24, 32, 5), np.uint8))
        err = refused("train", data)
        assert "red/deep.npy: uint16 pixels, where the model expects uint8" in err
        assert "red/five.npy: 5 channels, where the model expects three channels (RGB)" in err

    def table(self, tmp_path: Path, *rows: str, head: str = "path,place") -> Path:
        path = tmp_path / "blobs" / "table.csv"
        if not path.exists():
            make_blobs(path.parent, 6)
        path.write_text("\n".join([head, *rows]) + "\n", "utf-8")
        return path

    def test_a_table_whose_pictures_are_not_there(self, refused, tmp_path):
        path = self.table(tmp_path, "000.npy,1.5", "no.npy,2.5", "002.npy,3.5", "nor.npy,1", "long text " * 99 + ",2")
        err = refused("train", path)
        assert f"{path}: 3 of 5 pictures are not there" in err
        assert "row 2: no.npy\n  row 4: nor.npy\n  row 5: long text long" in err

    @pytest.mark.parametrize(
        ("option", "role"), [("--target", "target"), ("--path-column", "path"), ("--group", "group")]
    )
    def test_a_column_that_is_not_there(self, refused, tmp_path, option, role):
        path = self.table(tmp_path, "000.npy,1.5", "001.npy,2.5")
        assert f"{path} has no {role} column 'size'. Its columns are: path, place." in refused(
            "train", path, option, "size"
        )

    def test_targets_that_are_nan_or_missing(self, refused, tmp_path):
        path = self.table(tmp_path, "000.npy,1.5", "001.npy,nan", "002.npy,", "003.npy,2.5", "004.npy,inf")
        err = refused("train", path)
        assert "row 2 (001.npy): 'place' is missing" in err
        assert "row 3 (002.npy): 'place' is missing" in err
        assert "row 5 (004.npy): 'place' is inf" in err

    def test_a_target_that_never_changes(self, refused, tmp_path):
        path = self.table(tmp_path, *(f"{i:03}.npy,1.5" for i in range(6)))
        assert "A constant target cannot be learned" in refused("train", path, "--task", "regression")

    def test_pixels_that_are_nan(self, refused, tmp_path):
        path = self.table(tmp_path, *(f"{i:03}.npy,{i + 0.5}" for i in range(6)))
        np.save(path.with_name("003.npy"), np.full((20, 36), np.nan, np.float32))
        assert "003.npy: finite pixels were expected" in refused("train", path)

    def test_a_run_directory_of_another_version(self, refused, shapes_run, shapes, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(shapes_run, run)
        RunDir(run).write_json("config.json", {**RunDir(run).config(), "format": 99})
        for words in (("predict", run, shapes), ("eval", run, shapes), ("train", "--resume", run)):
            assert "is a run directory of format 99: this version of vitreous reads format 1" in refused(*words)

    def test_what_is_no_run_directory(self, refused, shapes):
        for words in (("predict", shapes, shapes), ("eval", shapes, shapes), ("train", "--resume", shapes)):
            assert f"{shapes} is no run directory: it holds no config.json" in refused(*words)

    def test_pictures_that_the_model_was_not_made_for(self, refused, shapes_run, tmp_path):
        np.save(tmp_path / "deep.npy", np.zeros((24, 32, 3), np.uint16))
        np.save(tmp_path / "five.npy", np.zeros((24, 32, 5), np.uint8))
        err = refused("predict", shapes_run, tmp_path / "deep.npy", tmp_path / "five.npy")
        assert "no picture could be used:" in err
        assert "deep.npy: uint16 pixels, where the model expects uint8" in err
        assert "five.npy: 5 channels, where the model expects three channels (RGB)" in err


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@posix
class TestFullDisk:
    def test_the_cache(self, shapes, tmp_path):
        cache, run = tmp_path / "cache", tmp_path / "run"
        err = refusal(vitreous("train", shapes, "--out", run, "--cache", cache, *TINY_WORDS, limit=20_000))
        assert f"{cache}: the pixels cannot be cached there (File too large); make room" in err
        assert "--cache off" in err
        assert not run.exists()
        assert list(cache.iterdir()) == []

    def test_the_first_checkpoint(self, shapes, tmp_path):
        run = tmp_path / "run"
        err = refusal(vitreous("train", shapes, "--out", run, "--epochs", "1", *TINY_WORDS, limit=1_000_000))
        assert re.search(r"run/last/step-0+\.safetensors cannot be written: .*File too large", err)
        assert not run.exists()

    @pytest.mark.parametrize("ending", ["csv", "parquet"])
    def test_the_table_of_predictions(self, shapes, shapes_run, tmp_path, ending):
        out = tmp_path / f"x.{ending}"
        err = refusal(vitreous("predict", shapes_run, shapes, "--out", out, limit=500))
        assert re.match(rf"vitreous predict: {out} cannot be written: .*File too large", err)
        assert [path.name for path in tmp_path.iterdir()] == ([] if ending == "parquet" else [f"x.{ending}.part"])

    @pytest.mark.usefixtures("unpainted")
    def test_a_later_checkpoint_leaves_the_ones_before_it_and_the_run_goes_on_once_there_is_room(
        self, shapes, tmp_path
    ):
        disk = tmp_path / "disk"
        disk.mkdir()
        size = "size=20m"  # room for one or two checkpoints of 8 MB, not for three
        if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", disk], capture_output=True).returncode:
            pytest.skip("only root may mount a small disk")
        try:
            run = disk / "run"
            done = vitreous("train", shapes, "--out", run, "--epochs", "2", "--save-every", "1", *TINY_WORDS)
            err = refusal(done)
            assert re.search(r"run/last/step-\d+\.safetensors cannot be written: .*No space left", err)
            assert newest_step(run) >= 0
            assert not [path for path in tree(run) if path.endswith(".tmp")]
            shutil.copytree(run, tmp_path / "run")
        finally:
            subprocess.run(["umount", disk], check=True)
        assert main(["train", "--resume", str(tmp_path / "run")]) == 0
        assert (tmp_path / "run" / "model.safetensors").exists()


@posix
class TestInterrupted:
    def test_ctrl_c_before_anything_is_imported_is_one_line(self, call, monkeypatch):
        class Interrupt:
            def find_spec(self, name, path=None, target=None):
                if name == "vitreous.verbs":
                    raise KeyboardInterrupt

        monkeypatch.delitem(sys.modules, "vitreous.verbs", raising=False)
        monkeypatch.delattr("vitreous.verbs", raising=False)
        monkeypatch.setattr(sys, "meta_path", [Interrupt(), *sys.meta_path])
        assert call("check", "digits") == (130, "", "\nvitreous check: interrupted\n")

    def test_predict_into_a_pipe_that_closes_says_nothing(self, shapes, shapes_run):
        piped = f"{sys.executable} -m vitreous predict {shapes_run} {shapes} --json | head -1"
        done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, timeout=PATIENCE)
        assert json.loads(done.stdout.removeprefix("["))["error"] is None
        assert done.stderr.startswith("engine: ")
        assert done.stderr.count("\n") == 1

    @pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is Unix's")
    @pytest.mark.parametrize("words", [(), ("--json",)])
    def test_predict_into_a_file_leaves_the_bar_on_the_terminal_and_no_answer(
        self, shapes, shapes_run, words, monkeypatch
    ):
        monkeypatch.setenv("TERM", "xterm")
        ours, theirs = os.openpty()
        asked = ["predict", str(shapes_run), str(shapes / "red"), *words]
        process = Forked(with_errors_on, os.ttyname(theirs), asked)
        with ThreadPoolExecutor(1) as reading:
            shown = reading.submit(lambda: b"".join(iter(lambda: read_or_end(ours), b"")).decode())
            answers, _ = process.communicate()
            os.close(theirs)
        os.close(ours)
        assert process.returncode == 0
        assert answers.count("00.jpg") == 1
        assert "predicting" in shown.result()
        assert "00.jpg" not in shown.result()

    def test_an_unfinished_run_says_how_to_finish_it(self, call, shapes, tmp_path):
        run = tmp_path / "run"
        words = ("train", shapes, "--out", run, "--epochs", "100", "--save-every", "2", *TINY_WORDS)
        kill_when(words, lambda: newest_step(run) >= 2)
        code, _, err = call("predict", run, shapes)
        assert code == 2
        assert f"`vitreous train --resume {run}` finishes it" in err


class TestImport:
    def test_another_projects_weights_become_a_run_that_answers(self, call, shapes, tmp_path):
        golden = Path(__file__).parent / "golden" / "timm_vit.safetensors"
        (tmp_path / "names.txt").write_text("\n".join("abcdefg"))
        words = ("import", golden, "--out", "run", "--heads", 3, "--names", tmp_path / "names.txt")
        code, out, err = call(*words)
        assert (code, err) == (0, "")
        assert "pixels: assumed mean" in out
        code, out, _ = call("predict", "run", next(shapes.rglob("*.png")), "--json")
        assert (code, json.loads(out)[0]["label"] in set("abcdefg")) == (0, True)

    def test_names_that_are_too_few_are_refused(self, refused, tmp_path):
        golden = Path(__file__).parent / "golden" / "timm_vit.safetensors"
        (tmp_path / "names.txt").write_text("cat\ndog\n")
        assert "expected 7 different ones" in refused("import", golden, "--out", "r", "--names", tmp_path / "names.txt")


class TestHints:
    CHECKPOINT = Path(__file__).parent / "golden" / "article_t2t_vit.safetensors"

    def test_fields_that_shapes_do_not_tell_are_taken_by_name(self, tmp_path, capsys):
        hints = ("--hint", "kernels=7,3,3", "norm_eps=1e-5", "value_skip=true")
        words = ("import", self.CHECKPOINT, "--heads", "1", "--image-size", "64", "96", "--out", tmp_path / "run")
        assert main([*map(str, words), *hints]) == 0
        model = RunDir.open(tmp_path / "run").config()["model"]
        assert (model["kernels"], model["norm_eps"], model["value_skip"]) == ([7, 3, 3], 1e-5, True)
        assert "assumed (7, 3, 3)" not in capsys.readouterr().out

    def test_one_without_a_value_is_refused(self, tmp_path, capsys):
        assert main(["import", str(self.CHECKPOINT), "--hint", "kernels", "--out", str(tmp_path / "run")]) == 2
        assert "--hint kernels: expected NAME=VALUE" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


class TestSkipDone:
    """Pictures that have their answers are not asked again, whatever stopped it."""

    @pytest.fixture
    def many(self, shapes, tmp_path) -> Path:
        """A folder of 4,800 pictures."""
        (tmp_path / "many").mkdir()
        for number, path in enumerate(sorted(shapes.rglob("*.jpg")) * 200):
            os.link(path, tmp_path / "many" / f"{number:04}.jpg")
        return tmp_path / "many"

    def pictures(self, out: Path) -> list[str]:
        with open(out, encoding="utf-8", newline="") as file:
            return [Path(row["picture"]).name for row in csv.DictReader(file)]

    @posix
    def test_after_ctrl_c_it_says_how_to_go_on_and_does(self, call, many, shapes_run, tmp_path):
        out, part = tmp_path / "x.csv", tmp_path / "x.csv.part"
        exact = ("--engine", "torch", "--precision", "fp32")
        process = start("predict", shapes_run, many, "--out", out, *exact)
        while not part.exists():
            assert process.poll() is None, "it ended before it could be interrupted"
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        said, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (130, "")
        assert f"interrupted; the rows so far are in {part}; --skip-done goes on with them" in said
        assert not out.exists()
        done = len(self.pictures(part))
        assert done < 4800
        code, said, _ = call("predict", shapes_run, many, "--out", out, "--skip-done", *exact)
        assert (code, part.exists()) == (0, False)
        assert f"{done:,} of 4,800 pictures have their answers: skipped\n{4800 - done:,} rows written to {out}" in said
        assert self.pictures(out) == [f"{number:04}.jpg" for number in range(4800)]

    @posix
    def test_after_a_full_disk_or_a_bad_picture_only_what_is_missing_is_asked(self, call, shapes, shapes_run, tmp_path):
        pictures, out = tmp_path / "pictures", tmp_path / "x.jsonl"
        shutil.copytree(shapes, pictures)
        (pictures / "red" / "00.jpg").write_bytes(b"")
        assert "--skip-done goes on" in refusal(vitreous("predict", shapes_run, pictures, "--out", out, limit=2000))
        kept = (tmp_path / "x.jsonl.part").read_bytes()
        assert len(kept) == 2000
        code, said, _ = call("predict", shapes_run, pictures, "--out", out, "--skip-done")
        assert (code, f"{kept.count(b'}')} of 48 pictures have" in said) == (2, True)
        assert out.read_bytes().startswith(kept[: kept.rindex(b"\n")])
        shutil.copy(shapes / "red" / "00.jpg", pictures / "red" / "00.jpg")
        code, said, _ = call("predict", shapes_run, pictures, "--out", out, "--skip-done", "--json")
        [row] = json.loads(said)
        assert (code, row["label"], Path(row["picture"]).name) == (0, "red", "00.jpg")
        rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
        assert len({row["picture"] for row in rows}) == len(rows) == 48
        assert {row["error"] for row in rows} == {None}
        code, said, _ = call("predict", shapes_run, pictures, "--out", out, "--skip-done", "--json")
        assert (code, json.loads(said)) == (0, [])

    def test_without_it_an_interrupted_table_is_begun_anew_and_said_so(self, call, shapes, shapes_run, tmp_path):
        (tmp_path / "x.csv.part").write_text("what was there")
        code, said, _ = call("predict", shapes_run, shapes / "red", "--out", tmp_path / "x.csv")
        assert (code, len(self.pictures(tmp_path / "x.csv"))) == (0, 16)
        assert "x.csv.part, of an interrupted predict, is begun anew; --skip-done would go on with it" in said

    def test_it_is_refused_without_a_table_for_parquet_and_where_columns_differ(
        self, call, refused, shapes, shapes_run, tmp_path
    ):
        assert "--skip-done goes on with a table: expected --out" in refused(
            "predict", shapes_run, shapes, "--skip-done"
        )
        words = ("predict", shapes_run, shapes / "red", "--skip-done", "--out")
        assert "grows row by row" in refused(*words, tmp_path / "x.parquet")
        call(*words, tmp_path / "x.csv")
        assert "has the columns" in refused(*words, tmp_path / "x.csv", "--top", "2")

    def test_rows_are_written_where_no_picture_could_be_used_and_only_the_first_faults_are_said(
        self, call, shapes_run, tmp_path
    ):
        (tmp_path / "bad").mkdir()
        for number in range(50):
            (tmp_path / "bad" / f"{number:02}.png").touch()
        code, _, err = call("predict", shapes_run, tmp_path / "bad", "--out", tmp_path / "x.csv")
        assert (code, len(self.pictures(tmp_path / "x.csv"))) == (2, 50)
        assert err.startswith("vitreous predict: no picture could be used:\n")
        assert err.endswith("  … and 30 more\n")
        assert "19.png: the file is empty" in err
        assert "20.png" not in err

    @posix
    def test_a_name_that_is_no_utf8_stops_nothing(self, call, shapes, shapes_run, tmp_path):
        name = os.fsdecode(b"latin \xe9.jpg")
        shutil.copy(shapes / "red" / "00.jpg", tmp_path / name)
        code, said, _ = call("predict", shapes_run, tmp_path / name, "--json", "--out", tmp_path / "x.csv")
        assert (code, Path(json.loads(said)[0]["picture"]).name) == (0, name)
        assert b"latin \\udce9.jpg,red," in (tmp_path / "x.csv").read_bytes()
        code, said, _ = call("predict", shapes_run, tmp_path / name)
        assert (code, "latin \\udce9.jpg   red" in said) == (0, True)
