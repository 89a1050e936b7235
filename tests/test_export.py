"""export: a run to one file that answers as the run does, in a process that has nothing else."""

import dataclasses
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from forks import finished
from making import make_shapes, tree

import vitreous
from vitreous.cli import main
from vitreous.data.processes import python_command
from vitreous.errors import InputError
from vitreous.infer import build as building
from vitreous.infer.build import write_export
from vitreous.infer.card import Card
from vitreous.infer.export import MAIN, Export, replay
from vitreous.infer.files import open_export
from vitreous.infer.predictor import Predictor
from vitreous.rundir import RunDir


def copy_of(run: Path, place: Path) -> Path:
    shutil.copytree(run, place, ignore=shutil.ignore_patterns("last", "engines", "model-*"))
    return place


@pytest.fixture(scope="module")
def run(shapes_run, tmp_path_factory) -> Path:
    """A run on coloured boxes, to export into."""
    return copy_of(shapes_run, tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def made(run) -> tuple[Export, list[str]]:
    """What `export` gives with nothing but a run, and what it says."""
    said: list[str] = []
    return vitreous.export(run, say=said.append), said


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    """Pictures that the run has not seen, three a class."""
    return make_shapes(tmp_path_factory.mktemp("fresh") / "fresh", each=3, seed=50)


@pytest.fixture
def call(capsys):
    """`vitreous …` in this process -> (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def forked(monkeypatch):
    """The process that answers with a file is forked off one that has imported PyTorch; that of `made` begins anew."""

    def run(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert words == python_command(MAIN, *words[3:])
        return finished(replay, *words[3:])

    monkeypatch.setattr("vitreous.infer.export.subprocess", SimpleNamespace(run=run))


class TestExport:
    def test_with_nothing_but_a_run_it_is_onnx_in_fp32_in_its_folder(self, run, made):
        found, said = made
        assert said == ["making it …", "answering 12 pictures with it, in another process …"]
        assert found.path == run / "model-fp32.onnx"
        assert (found.precision, found.size) == ("fp32", found.path.stat().st_size)
        assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []

    def test_it_agrees_on_the_validation_pictures_and_nothing_is_lost(self, made, run):
        agreement = made[0].agreement
        held_out = [row for row in RunDir(run).read_split() if row.split == "validation"]
        assert (agreement.pictures, agreement.loss, agreement.same) == (len(held_out), 0, 1)
        assert 0 < agreement.largest < 1e-5
        lines = made[0].lines()
        assert lines[0].startswith("agreement with the checkpoint: accuracy +0.00 points")
        assert lines[0].endswith("on 12 validation pictures")
        assert lines[1].startswith("speed: ")
        assert lines[2].endswith(" MB, fp32")
        assert min(made[0].rate, made[0].checkpoint_rate) > 1

    def test_the_file_answers_as_the_run(self, made, run, fresh):
        predictor, checkpoint = vitreous.load(made[0].path), vitreous.load(run)
        assert (predictor.exported, predictor.engine.name) == (True, "onnxruntime")
        assert predictor.columns == checkpoint.columns
        answers, expected = predictor.predict(fresh), checkpoint.predict(fresh)
        for answer, one in zip(answers, expected, strict=True):
            assert (answer.picture, answer.label, answer.plausible) == (one.picture, one.label, one.plausible)
            assert answer.probabilities == pytest.approx(one.probabilities, abs=1e-5)

    def test_predict_and_eval_take_it_for_a_run(self, call, made, run, fresh):
        code, out, _ = call("predict", made[0].path, fresh, "--json")
        assert code == 0
        assert [row["label"] for row in json.loads(out)] == ["blue"] * 3 + ["green"] * 3 + ["red"] * 3
        code, out, err = call("eval", made[0].path, fresh, "--json")
        expected = json.loads(call("eval", run, fresh, "--json", "--engine", "torch", "--precision", "fp32")[1])
        found = json.loads(out)
        assert (code, found["top1"], found["confusion"]) == (0, expected["top1"], expected["confusion"])
        assert "trained on" not in err  # as these pictures are new

    def test_eval_knows_by_the_file_alone_what_the_run_was_trained_on(self, made, run, shapes):
        told = []
        for place in (run, made[0].path):
            said: list[str] = []
            found = vitreous.evaluate(vitreous.load(place), shapes, say=said.append)
            words = [line for line in said if not line.startswith("engine: ")]
            told.append((found.names, found.summary["top1"], words))
            assert vitreous.evaluate(vitreous.load(place), shapes, split="train").summary["n"] == 36
        assert told[0] == told[1]
        assert told[0][2][0].startswith("36 of these pictures were trained on and are not scored; scored: 12 held out")

    def test_a_file_that_cannot_hold_so_many_digests_knows_none_and_eval_says_so(
        self, run, shapes, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(building, "MOST_SEEN", 13 * 47)
        write_export(vitreous.load(run), tmp_path / "x.zip", "fp32", pytest.fail)
        predictor, said = vitreous.load(tmp_path / "x.zip"), []
        assert vitreous.evaluate(predictor, shapes, say=said.append).summary["n"] == 48
        assert said[0] == "note: it is not known what this model was trained on; all pictures are scored"
        with pytest.raises(InputError, match=r"none is held out \(48 new\); --split all scores all"):
            vitreous.evaluate(predictor, shapes, split="test")

    def test_its_card_says_what_it_was_made_of(self, made, run):
        card, _ = open_export(made[0].path, 1)
        predictor = vitreous.load(run)
        assert (card.spec, card.task, card.calibration) == (predictor.spec, predictor.task, predictor.calibration)
        assert card.origin == predictor.origin
        assert {"run", "data", "weights", "vitreous", "torch"} <= card.origin.keys()
        assert str(run.parent) not in card.to_json()  # no places of this machine

    @pytest.mark.usefixtures("forked")
    def test_of_numbers_as_openvino_in_their_units(self, blobs_run, blobs, tmp_path):
        found = vitreous.export(blobs_run, tmp_path / "model.zip")
        assert (found.path, found.agreement.kind) == (tmp_path / "model.zip", "regression")
        assert found.agreement.largest < 1e-5
        picture = blobs.parent / "007.npy"
        [answer], [expected] = (vitreous.load(place).predict(picture) for place in (found.path, blobs_run))
        assert answer.values == pytest.approx(expected.values, abs=1e-4)
        assert answer.intervals["place (mm)"] == pytest.approx(expected.intervals["place (mm)"], abs=1e-4)
        assert answer.units == {"place (mm)": "mm"}

    @pytest.mark.usefixtures("forked")
    def test_int8_is_smaller_and_json_tells_how_far_it_agrees(self, call, run, shapes, tmp_path):
        """The pictures were moved since: --data says where they are."""
        moved = tmp_path / "moved"
        shutil.copytree(shapes, moved)
        out = tmp_path / "small.zip"
        words = ("export", run, "--out", out, "--precision", "int8", "--data", moved, "--max-shift", "0.2", "--json")
        code, text, err = call(*words)
        assert code == 0, err
        found = json.loads(text)
        assert (found["path"], found["precision"], found["size"]) == (str(out), "int8", out.stat().st_size)
        with zipfile.ZipFile(out) as file:
            assert file.getinfo("weights.bin").file_size < 0.4 * (run / "model.safetensors").stat().st_size
        assert found["agreement"]["pictures"] == 12
        assert 0 < found["agreement"]["shift"] < 0.2
        assert "agreement with the checkpoint: accuracy" in err
        assert tree(tmp_path) == tree(moved) | {str(moved), str(out)}
        assert vitreous.load(out).engine.precision == "int8"


class TestBelowTheBar:
    @pytest.mark.usefixtures("forked")
    def test_nothing_is_written_and_it_says_by_how_much(self, call, run, tmp_path):
        """What was there before stays."""
        out = tmp_path / "x.onnx"
        out.write_bytes(b"as it was")
        code, _, err = call("export", run, "--out", out, "--precision", "bf16", "--max-shift", "0")
        assert code == 2
        assert "in bf16 it does not agree with the checkpoint, so nothing was written: accuracy" in err
        assert "Allowed are 0.3 points of accuracy and a mean change of 0 (--max-loss, --max-shift;" in err
        assert list(tmp_path.iterdir()) == [out]
        assert out.read_bytes() == b"as it was"

    def test_a_file_whose_answers_do_not_follow_from_its_outputs_is_refused_by_the_fresh_process(self, made, tmp_path):
        model = onnx.load(made[0].path)
        [text] = [entry for entry in model.metadata_props if entry.key == "vitreous"]
        card = Card.from_json(text.value, made[0].path)
        wrong = dataclasses.replace(card.calibration, temperature=2 * card.calibration.temperature)
        text.value = dataclasses.replace(card, calibration=wrong).to_json()
        onnx.save(model, tmp_path / "x.onnx")
        pixels = np.random.default_rng(0).integers(0, 256, (3, *card.spec.sizes[0], 3)).astype(np.uint8)
        np.savez(tmp_path / "asked.npz", pixels)
        (tmp_path / "torch.py").write_text("raise SystemExit('the folder of the data is looked into')")
        words = (str(tmp_path / name) for name in ("x.onnx", "asked.npz", "found.npz"))
        done = subprocess.run(python_command(MAIN, *words), capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 1
        assert "the answers in the file are off by" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "found.npz").exists()


class TestWithoutPictures:
    """An imported run has no pictures of its own."""

    @pytest.fixture
    def imported(self, run, tmp_path) -> Path:
        path = copy_of(run, tmp_path / "imported")
        (path / "plan.json").unlink()
        RunDir(path).write_split([])
        RunDir(path).write_json("config.json", {**RunDir(path).config(), "data": None, "imported": "x.pth"})
        return path

    @pytest.fixture
    def made_before(self, made, monkeypatch):
        """The file is that of the run."""

        def write(predictor: Predictor, path: Path, *rest: Any) -> None:
            shutil.copy(made[0].path, path)

        monkeypatch.setattr("vitreous.infer.export.write_export", write)

    @pytest.mark.usefixtures("forked", "made_before")
    def test_fp32_is_held_against_noise_and_says_so(self, imported, tmp_path):
        said = []
        found = vitreous.export(imported, tmp_path / "model.onnx", say=said.append)
        note, *_ = said
        assert "was not trained here, so it has no pictures of its own: --data names some" in note
        assert "pictures of noise are taken" in note
        assert found.agreement.largest < 1e-5
        assert found.lines()[0].endswith("on 64 pictures of noise")

    @pytest.mark.usefixtures("forked", "made_before")
    @pytest.mark.parametrize(("precision", "most"), [("fp32", "0.001"), ("bf16", "0.01")])
    def test_what_computes_something_else_is_refused(self, imported, tmp_path, precision, most):
        weights = RunDir.open(imported).read_weights()
        spoilt = {name: 1.5 * weight if name.startswith("head.") else weight for name, weight in weights.items()}
        RunDir(imported).write_weights(spoilt)
        with pytest.raises(InputError, match=rf"does not compute what the checkpoint does.*mean change of {most}: "):
            vitreous.export(imported, tmp_path / "model.onnx", precision=precision)
        assert list(tmp_path.iterdir()) == [imported]

    def test_int8_is_refused_with_advice(self, imported, tmp_path):
        with pytest.raises(InputError, match=r"int8 is calibrated on pictures of the run, .*--data names some"):
            vitreous.export(imported, tmp_path / "model.onnx", precision="int8")
        assert list(tmp_path.iterdir()) == [imported]


class TestRefused:
    def test_names_formats_and_precisions_that_do_not_fit(self, run, tmp_path):
        before = tree(run, tmp_path)
        cases = [
            ({"out": tmp_path / "model.pt"}, r"model\.pt: expected a name that ends in \.onnx or \.zip"),
            ({"out": tmp_path / "model.onnx", "format": "openvino"}, r"expected a name that ends in \.zip"),
            ({"out": tmp_path / "none" / "model.onnx"}, "there is no folder"),
            ({"format": "tflite"}, "--format tflite: expected onnx, openvino"),
            ({"precision": "fp8"}, "--precision fp8: expected fp32, bf16, int8"),
        ]
        for options, fault in cases:
            with pytest.raises(InputError, match=fault):
                vitreous.export(run, **options)
        assert tree(run, tmp_path) == before

    def test_an_exported_file_is_not_exported_again(self, made):
        for place in (made[0].path, vitreous.load(made[0].path)):
            with pytest.raises(InputError, match=r"exported file.*expected the run directory"):
                vitreous.export(place)

    def test_an_exported_file_has_one_engine_and_precision_and_no_model_to_look_into(self, made):
        path = made[0].path
        others = {"engine": "torch", "precision": "int8", "merge": 2, "device": "meta", "data": "x"}
        for name, value in others.items():
            options: dict[str, Any] = {name: value}
            words = rf"by onnxruntime in fp32, on the CPU; of the options it refuses:\n  {name} {value}: expected"
            with pytest.raises(InputError, match=words):
                vitreous.load(path, **options)
        predictor = vitreous.load(path, engine="onnxruntime", precision="fp32", device="cpu")
        with pytest.raises(InputError, match="an exported file holds no more than its answers take"):
            _ = predictor.model

    def test_views_are_those_that_the_run_allows(self, made, run, tmp_path, fresh):
        flipped, expected = (vitreous.load(place, views="flip").predict(fresh) for place in (made[0].path, run))
        assert flipped[0].probabilities == pytest.approx(expected[0].probabilities, abs=1e-5)
        other = copy_of(run, tmp_path / "run")
        plan = RunDir(other).read_json("plan.json")
        RunDir(other).write_json("plan.json", {**plan, "augmentation": {**plan["augmentation"], "flip": 0.0}})
        assert not vitreous.load(other).mirrored
        write_export(vitreous.load(other), other / "model.zip", "fp32", pytest.fail)
        with pytest.raises(InputError, match=r"model\.zip was not trained on mirrored pictures; expected one"):
            vitreous.load(other / "model.zip", views="flip")

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_may_not_be_written_to(self, call, run, tmp_path):
        tmp_path.chmod(0o500)
        code, _, err = call("export", run, "--out", tmp_path / "x.onnx")
        assert (code, "Traceback" in err) == (2, False)
