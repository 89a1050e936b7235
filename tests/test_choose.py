"""Which engine answers: what is measured and when, what is remembered and when it is forgotten."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import finished
from making import make_shapes
from PIL import Image

import vitreous
from vitreous.data.doctor import digest
from vitreous.data.sources import open_pictures
from vitreous.errors import InputError
from vitreous.infer import build as building
from vitreous.infer import choose as choosing
from vitreous.infer import predictor as predicting
from vitreous.infer.agreement import Agreement, Bar
from vitreous.infer.engines import Engine
from vitreous.infer.files import open_export
from vitreous.infer.judge import Judge, rate, validation_judge
from vitreous.infer.predictor import ENOUGH, Prediction, Predictor
from vitreous.infer.sample import own_pictures
from vitreous.rundir import RunDir
from vitreous.training.recipe import choose_precision

bf16 = pytest.mark.skipif(
    choose_precision("auto", torch.device("cpu")) != "bf16", reason="this machine does not compute in bf16"
)
LOOSE = Bar(max_loss=100, max_shift=1)


@pytest.fixture
def run(shapes_run, tmp_path) -> Path:
    """A run of its own, which remembers nothing yet."""
    shutil.copytree(shapes_run, tmp_path / "run", ignore=shutil.ignore_patterns("last", "engines"))
    return tmp_path / "run"


@pytest.fixture
def moved(shapes, tmp_path) -> Path:
    """The run's pictures in another place, where they may be changed."""
    return Path(shutil.copytree(shapes, tmp_path / "moved"))


@pytest.fixture
def settle() -> Callable[..., tuple[Predictor, str]]:
    """A predictor that has chosen its engine, and what it said of it."""

    def settle(run: Path, **options) -> tuple[Predictor, str]:
        said: list[str] = []
        predictor = vitreous.load(run, **options)
        predictor.settle(said.append)
        return predictor, "\n".join(said)

    return settle


def memory(run: Path) -> dict:
    return json.loads((run / "engines" / "choices.json").read_text("utf-8"))


class TestMemory:
    """A run's engine is looked for once. bf16 of PyTorch needs no file, and is quick to judge."""

    asked = {"engine": "torch", "precision": "bf16", "bar": LOOSE}  # noqa: RUF012

    def test_the_second_time_nothing_is_measured_nor_are_pictures_needed(self, run, moved, settle):
        predictor, said = settle(run, data=str(moved), **self.asked)
        assert "looking for the fastest engine, once for this run, by 12 validation pictures" in said
        assert (predictor.engine.name, predictor.engine.precision) == ("torch", "bf16")
        kept = (run / "engines" / "choices.json").read_bytes()
        shutil.rmtree(moved)
        again, said = settle(run, data=str(moved), **self.asked)
        assert said.startswith("engine: torch, bf16: ")
        assert said.endswith("; as measured before")
        assert (again.engine.name, again.engine.precision) == ("torch", "bf16")
        assert (run / "engines" / "choices.json").read_bytes() == kept

    def test_it_is_forgotten_when_weights_bar_or_wish_change_and_not_for_the_others(self, run, settle):
        settle(run, **self.asked)
        assert "as measured before" in settle(run, **self.asked)[1]
        assert "as measured before" not in settle(run, **{**self.asked, "bar": Bar(max_shift=0.9)})[1]
        assert "as measured before" not in settle(run, **self.asked, merge=1)[1]
        assert len(memory(run)) == 3
        weights = RunDir(run).read_weights()
        RunDir(run).write_weights({name: 1.001 * tensor for name, tensor in weights.items()})
        assert "as measured before" not in settle(run, **self.asked)[1]
        assert len(memory(run)) == 4

    def test_it_is_that_of_the_run_however_its_path_is_written(self, run, settle, monkeypatch):
        settle(run, **self.asked)
        monkeypatch.chdir(run)
        predictor, said = settle(Path(), **self.asked)
        assert "as measured before" in said
        assert predictor.origin["run"] == run.name
        moved = run.rename(run.with_name("another"))
        assert "as measured before" in settle(moved, **self.asked)[1]

    def test_a_memory_that_is_damaged_is_made_anew(self, run, settle):
        settle(run, **self.asked)
        for content in (b"{", b"[]", b"\xff"):
            (run / "engines" / "choices.json").write_bytes(content)
            assert "as measured before" not in settle(run, **self.asked)[1]
            assert len(memory(run)) == 1

    def test_where_the_run_may_not_be_written_to_it_is_kept_among_the_caches(self, run, settle, tmp_path, monkeypatch):
        monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "cache"))
        (run / "engines").write_text("something is in the way")
        assert "as measured before" not in settle(run, **self.asked)[1]
        assert "as measured before" in settle(run, **self.asked)[1]
        assert (run / "engines").read_text() == "something is in the way"
        [kept] = (tmp_path / "cache").rglob("choices.json")
        assert kept.parent.parent.name == "engines"

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_may_not_be_written_to_still_answers(self, run, settle):
        run.chmod(0o500)
        assert settle(run, **self.asked)[0].engine.precision == "bf16"
        assert not (run / "engines").exists()


@dataclass(frozen=True)
class Settled:
    """A run whose engine was looked for among all, what was seen of it, and answers to its pictures."""

    run: Path
    predictor: Predictor
    pictures: list[Path]
    answers: list[Prediction]
    said: list[str]
    calibrated: list[np.ndarray]  # the pictures of each quantization
    judged: list[Agreement]


@pytest.fixture(scope="module")
def settled(shapes_run, shapes, tmp_path_factory) -> Settled:
    """The clock is said, so that the same engine wins on every machine; all else is as it comes."""
    folder = tmp_path_factory.mktemp("auto")
    run, moved = folder / "run", folder / "moved"
    shutil.copytree(shapes_run, run, ignore=shutil.ignore_patterns("last", "engines"))
    shutil.copytree(shapes, moved)
    speeds, said, calibrated, judged = {"int8": 3.0, "bf16": 2.0, "fp32": 1.0}, [], [], []
    real_quantized, real_agreement = building.quantized, Judge.agreement

    def quantized(graph, pixels: np.ndarray, smooth: bool):
        calibrated.append(pixels)
        return real_quantized(graph, pixels, smooth)

    def agreement(judge: Judge, engine: Engine):
        judged.append(real_agreement(judge, engine))
        return judged[-1]

    pictures = [path for path in sorted(shapes.rglob("*.*")) * 11 if path.suffix in (".jpg", ".png")]
    assert len(pictures) == 528 >= ENOUGH
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "quantized", quantized)
        patch.setattr(predicting, "WORK", 0)
        patch.setattr(Judge, "agreement", agreement)
        patch.setattr(Judge, "rate", lambda judge, engine: speeds[engine.precision] + (engine.name != "torch"))
        predictor = vitreous.load(run, bar=LOOSE, data=str(moved))
        answers = list(predictor.stream(open_pictures(pictures), said.append))
    shutil.rmtree(moved)
    return Settled(run, predictor, pictures, answers, said, calibrated, judged)


class TestAuto:
    def load(self, settled: Settled) -> Predictor:
        """As it was asked for then; the pictures are gone since."""
        return vitreous.load(settled.run, bar=LOOSE, data=str(settled.run.parent / "moved"))

    def test_the_fastest_that_agrees_answers(self, settled):
        engine = settled.predictor.engine
        assert (engine.name, engine.precision) == ("openvino", "int8")
        assert settled.said[-1].startswith("engine: openvino, int8: 4 pictures/s; accuracy ")
        expected = vitreous.load(settled.run, engine="torch", precision="fp32").predict(settled.pictures[:48])
        pairs = zip(settled.answers[:48], expected, strict=True)
        off = [abs(answer.probabilities[one.label] - one.probabilities[one.label]) for answer, one in pairs]
        assert 0 < np.mean(off) < 0.2

    def test_int8_is_calibrated_on_pictures_of_training_and_judged_by_others(self, settled):
        trained = own_pictures(vitreous.load(settled.run), "train").pixels[24, 32]
        assert [pixels.tobytes() == trained.tobytes() for pixels in settled.calibrated] == [True]
        assert [found.pictures for found in settled.judged] == [12, 12]  # when it was made, and when it was chosen

    def test_where_what_is_not_smoothed_is_not_good_enough_the_better_of_both_ways_is_kept(
        self, run, moved, monkeypatch, tmp_path
    ):
        judged: list[Agreement] = []
        real = Judge.agreement

        def agreement(judge: Judge, engine: Engine):
            judged.append(real(judge, engine))
            return judged[-1]

        monkeypatch.setattr(Judge, "agreement", agreement)
        predictor = vitreous.load(run, bar=Bar(max_shift=0), data=str(moved))
        judge = validation_judge(predictor, str(moved))
        building.write_export(predictor, tmp_path / "x.zip", "int8", lambda: judge, thorough=False)
        judge.agreement(open_export(tmp_path / "x.zip", 1)[1])
        plain, smooth, kept = [(found.loss, round(found.shift, 7)) for found in judged]
        assert plain != smooth
        assert kept == min(plain, smooth)

    def test_its_file_is_kept_and_needs_neither_pictures_nor_a_measurement(self, settled):
        kept = {path.name: path.stat().st_mtime_ns for path in (settled.run / "engines").iterdir()}
        assert {"choices.json", "openvino-int8.zip"} <= kept.keys()
        assert [name for name in kept if name.startswith(".")] == []
        again, said = self.load(settled), []
        again.settle(said.append)
        [line] = said
        assert line.endswith("; as measured before")
        [answer] = again.predict(settled.pictures[2])
        assert answer.probabilities == pytest.approx(settled.answers[2].probabilities, abs=1e-2)
        assert {path.name: path.stat().st_mtime_ns for path in (settled.run / "engines").iterdir()} == kept

    def test_where_it_is_damaged_and_cannot_be_made_anew_fp32_answers(self, settled):
        path = settled.run / "engines" / "openvino-int8.zip"
        whole = path.read_bytes()
        path.write_bytes(b"")
        last, said = self.load(settled), []
        last.settle(said.append)
        path.write_bytes(whole)
        assert "note: no pictures of the run to measure by" in said[0]
        assert said[-1] == "engine: openvino, fp32; not measured"
        [answer], [expected] = (one.predict(settled.pictures[0]) for one in (last, vitreous.load(settled.run)))
        assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


class TestWhen:
    def test_for_few_pictures_nothing_is_measured(self, run, shapes):
        predictor = vitreous.load(run)
        predictor.predict(shapes / "red")
        assert (predictor.settled, predictor.engine.name, predictor.engine.precision) == (False, "torch", "fp32")
        assert not (run / "engines").exists()

    def test_for_a_few_merging_is_taken_without_a_search(self, run, shapes):
        merging, plain = vitreous.load(run, merge=2), vitreous.load(run)
        answers, others = (one.predict(shapes / "red") for one in (merging, plain))
        assert (merging.settled, merging.engine.name, merging.engine.precision) == (False, "torch", "fp32")
        assert [one.probabilities for one in answers] != [one.probabilities for one in others]
        assert not (run / "engines").exists()

    @pytest.mark.parametrize("pays", ["a minute of work", "a choice that is remembered"])
    def test_for_many_it_is_and_for_few_where_more_was_asked_for(self, run, pays, monkeypatch):
        if pays == "a minute of work":
            monkeypatch.setattr(predicting, "WORK", 0)
        else:
            monkeypatch.setattr(choosing, "remembers", lambda predictor: True)
        options: dict[str, Any] = {"engine": "torch", "precision": "fp32"}
        pictures = [np.full((24, 32, 3), 80, np.uint8)] * ENOUGH
        for words, few in (({}, pictures[: ENOUGH - 1]), (options, pictures[:1])):
            asked = vitreous.load(run, **words)
            chosen: list[bool] = []
            asked.settle = lambda say=print, chosen=chosen: chosen.append(True)  # how long a choice takes is no matter
            asked.predict(few)
            assert chosen == ([True] if words else [])
            asked.predict(pictures)
            assert chosen

    def test_for_many_small_ones_that_are_soon_done_nothing_is_measured(self, run):
        predictor = vitreous.load(run)
        predictor.predict([np.full((24, 32, 3), 80, np.uint8)] * ENOUGH)
        assert not predictor.settled

    def test_one_exact_engine_that_is_asked_for_is_taken_without_a_word(self, run, settle):
        predictor, said = settle(run, engine="torch", precision="fp32")
        assert (predictor.engine.name, predictor.engine.precision, said) == ("torch", "fp32", "")
        assert not (run / "engines").exists()


class TestWhich:
    @bf16
    def test_what_does_not_agree_is_not_taken_however_fast(self, run, settle, monkeypatch):
        monkeypatch.setattr(Judge, "rate", lambda judge, engine: 9.0 if engine.precision == "bf16" else 1.0)
        predictor, said = settle(run, engine="torch", bar=Bar(max_shift=0))
        assert (predictor.engine.name, predictor.engine.precision) == ("torch", "fp32")
        assert "  not taken: torch, bf16: 9 pictures/s; accuracy" in said
        predictor, said = settle(run, engine="torch", bar=LOOSE)
        assert predictor.engine.precision == "bf16"

    def test_what_was_asked_for_by_name_and_precision_is_taken_and_said_to_disagree(self, run, settle):
        predictor, said = settle(run, engine="torch", precision="bf16", bar=Bar(max_shift=0))
        assert predictor.engine.precision == "bf16"
        assert "note: beyond what a faster engine may cost; it was asked for" in said

    @bf16
    def test_where_none_agrees_it_says_so(self, run, settle):
        with pytest.raises(InputError, match=r"none of torch in bf16, torch in fp32 agrees: try --engine torch"):
            settle(run, engine="torch", bar=Bar(max_shift=-1))

    @pytest.mark.parametrize("stage", ["made", "timed", "judged"])
    def test_one_of_several_that_fails_is_named_and_passed_over(self, run, settle, monkeypatch, stage):
        owner, name = (choosing, "build") if stage == "made" else (Judge, "rate" if stage == "timed" else "agreement")
        monkeypatch.setattr(Judge, "rate", lambda judge, engine: 9.0 if engine.precision == "bf16" else 1.0)
        real = getattr(owner, name)

        def work(*values):
            if "bf16" in values or getattr(values[1], "precision", "") == "bf16":
                raise RuntimeError("no kernel for this\nat line 7")  # as libraries raise
            return real(*values)

        tried = [("torch", "bf16"), ("torch", "fp32")]
        monkeypatch.setattr(choosing, "candidates", lambda *_: tried)
        monkeypatch.setattr(owner, name, work)
        predictor, said = settle(run, engine="torch")
        assert predictor.engine.precision == "fp32"
        assert said.count("  torch, bf16: no kernel for this\n") == 1
        tried.pop()
        with pytest.raises(InputError, match=r"^torch, bf16: no kernel for this$"):
            settle(run, engine="torch", precision="bf16")

    def test_where_none_can_be_made_it_says_so(self, run, settle, monkeypatch):
        def fail(*_):
            raise MemoryError

        monkeypatch.setattr(choosing, "candidates", lambda *_: [("torch", "bf16"), ("torch", "fp32")])
        monkeypatch.setattr(choosing, "build", fail)
        with pytest.raises(InputError, match="none of torch in bf16, torch in fp32 can be made: try --engine torch"):
            settle(run, engine="torch")

    def test_merging_tells_what_it_costs(self, run, settle):
        predictor, said = settle(run, engine="torch", precision="fp32", merge=2)
        assert predictor.model.config.merge == 2
        [engine] = [line for line in said.splitlines() if line.startswith("engine: ")]
        assert "0.0e+00 at most, on 12 validation pictures; merging 2 tokens a block, beside none: accuracy " in engine
        assert not engine.endswith(" 0.0e+00 at most, on 12 validation pictures")
        assert engine in settle(run, engine="torch", precision="fp32", merge=2)[1]


class TestPictures:
    """int8 is calibrated on pictures that were trained on, and held against those that were not."""

    def test_sides_share_no_picture_and_hold_the_run_s(self, run, shapes):
        predictor = vitreous.load(run)
        sides = {side: own_pictures(predictor, side) for side in ("train", "validation")}
        assert {side: (len(sample), sample.of) for side, sample in sides.items()} == {
            "train": (36, "train pictures"),
            "validation": (12, "validation pictures"),
        }
        seen = {side: {digest(one) for one in sample.pixels[24, 32]} for side, sample in sides.items()}
        assert len(seen["train"]) == 36
        assert not seen["train"] & seen["validation"]
        expected = {row.path: row.split for row in RunDir(run).read_split()}
        pixels = {path: predictor.spec.read((shapes / path).read_bytes(), path)[1] for path in expected}
        for side, digests in seen.items():
            assert {path for path, one in pixels.items() if digest(one) in digests} == {
                path for path, split in expected.items() if split == side
            }

    def test_targets_stand_in_the_order_of_the_pictures(self, run):
        sample = own_pictures(vitreous.load(run), "train")
        colours = sample.pixels[24, 32].max((1, 2)).argmax(1)  # the strongest of red, green, blue
        assert sample.targets is not None
        names = np.array(vitreous.load(run).task.names)[sample.targets]
        assert np.array(["red", "green", "blue"])[colours].tolist() == names.tolist()

    def test_fewer_are_the_same_each_time(self, run):
        first, second = (own_pictures(vitreous.load(run), "train", most=5) for _ in range(2))
        assert len(first) == 5
        assert first.pixels[24, 32].tobytes() == second.pixels[24, 32].tobytes()

    def test_those_that_changed_since_are_left_out(self, run, moved):
        rows = [row.path for row in RunDir(run).read_split() if row.split == "validation"]
        Image.new("RGB", (32, 24)).save(moved / rows[0])
        (moved / rows[1]).write_bytes(b"")
        (moved / rows[2]).unlink()
        assert len(own_pictures(vitreous.load(run), "validation", data=moved)) == 9
        for row in rows[3:]:
            Image.new("RGB", (32, 24)).save(moved / row)
        with pytest.raises(InputError, match=r"none of the validation pictures in .*moved is what it was"):
            own_pictures(vitreous.load(run), "validation", data=moved)

    def test_other_data_holds_none_of_them(self, run, tmp_path):
        other = make_shapes(tmp_path / "other", each=20, seed=9)
        for path in list(other.rglob("*.*")):
            path.rename(path.with_stem(f"other-{path.stem}"))
        with pytest.raises(InputError, match=r"holds none of the train pictures of .*--data says where they are now"):
            own_pictures(vitreous.load(run), "train", data=other)

    @pytest.mark.parametrize("side", ["train", "validation"])
    def test_int8_without_one_of_the_sides_is_refused(self, run, moved, settle, side):
        for row in RunDir(run).read_split():
            if row.split == side:
                (moved / row.path).unlink()
        with pytest.raises(InputError, match=rf"holds none of the {side} pictures"):
            settle(run, engine="openvino", precision="int8", data=str(moved))
        assert list((run / "engines").iterdir()) == []


class TestRate:
    def test_it_counts_pictures_a_second_of_work(self):
        class Slow:
            name, precision, batches = "slow", "fp32", ()

            def run(self, pixels: np.ndarray) -> np.ndarray:
                torch.zeros(1)
                __import__("time").sleep(0.002 * len(pixels))
                return pixels

        assert 200 < rate(Slow(), np.zeros((20, 1)), batch=8) <= 500


def answer_without_the_extras(run: Path) -> None:
    """Says what comes of it."""
    for name in ("openvino", "onnxruntime", "onnx", "onnxscript", "nncf"):
        assert name not in sys.modules
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    said: list[str] = []
    predictor = vitreous.load(run)
    predictor.settle(said.append)
    answers = predictor.predict([np.full((24, 32, 3), 80, np.uint8)] * 600)
    print(len(answers), predictor.engine.name, answers[0].label == answers[-1].label)
    cases: list[dict[str, Any]] = [{"engine": "openvino"}, {"engine": "onnxruntime"}, {"precision": "int8"}]
    for options in cases:
        try:
            vitreous.load(run, **options)
        except InputError as fault:
            print(fault)
    try:
        vitreous.export(run, say=said.append)
    except InputError as fault:
        print(fault)


def test_without_the_extras_pytorch_answers_and_what_is_missing_is_named(run):
    done = finished(answer_without_the_extras, run)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "600 torch True"
    assert lines[1:3] == [
        f"--engine {name}: {name} is not installed here: pip install 'vitreous[fast]'"
        for name in ("openvino", "onnxruntime")
    ]
    assert "int8 takes openvino or onnxruntime on a CPU: pip install 'vitreous[fast]'" in lines[3]
    assert lines[4].startswith("onnxscript is not installed here")
    assert lines[4].endswith("pip install 'vitreous[fast]'")
    kept = [path.name for path in (run / "engines").glob("*")]  # where there is no bf16, nothing is left to choose from
    assert kept == ["choices.json"] * (choose_precision("auto", torch.device("cpu")) == "bf16")
