"""A trained model's answers, and its measure."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from making import COLOURS, make_shapes, shape
from PIL import Image

import vitreous
from vitreous.errors import InputError
from vitreous.infer.pipeline import PATIENCE
from vitreous.infer.predictor import Prediction, Predictor, views_of
from vitreous.rundir import RunDir


@pytest.fixture(scope="module")
def predictor(shapes_run) -> Predictor:
    return vitreous.load(shapes_run)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    """Pictures that the run has not seen, three a class."""
    return make_shapes(tmp_path_factory.mktemp("fresh") / "fresh", each=3, seed=50)


def same_answer(a: Prediction, b: Prediction) -> bool:
    """Up to the picture's name, and to what other pictures in a batch do to the last bits."""
    return a.plausible == b.plausible and list(a.probabilities.values()) == pytest.approx(
        list(b.probabilities.values()), abs=0.01
    )


class TestPredict:
    def test_folders_files_and_arrays_are_answered_in_the_order_asked(self, predictor, fresh):
        array = np.asarray(Image.open(fresh / "green" / "02.png"))
        asked = [fresh / "red", array, str(fresh / "blue" / "01.jpg"), fresh / "green"]
        answers = predictor.predict(asked)
        names = [f"red/{n}" for n in ("00.jpg", "01.jpg", "02.png")] + ["array 1", "blue/01.jpg"]
        names += [f"green/{n}" for n in ("00.jpg", "01.jpg", "02.png")]
        assert [a.picture.removeprefix(f"{fresh.as_posix()}/") for a in answers] == names
        assert [a.label for a in answers] == ["red"] * 3 + ["green", "blue"] + ["green"] * 3

    def test_one_picture_alone_is_a_list_of_one(self, predictor, fresh):
        path = fresh / "blue" / "02.png"
        [by_path], [by_array] = predictor.predict(path), predictor.predict(np.asarray(Image.open(path)))
        assert (by_path.picture, by_array.picture) == (path.as_posix(), "array 0")
        assert by_path.probabilities == by_array.probabilities

    def test_a_picture_gets_the_same_answer_alone_and_among_hundreds(self, predictor, fresh):
        rng = np.random.default_rng(8)
        many = [
            shape(rng, list(COLOURS.values())[i % 3], *((24, 32) if i % 5 else (40, 25)))
            for i in range(PATIENCE * predictor.batch + 40)
        ]
        answers = predictor.predict(many)
        assert [a.picture for a in answers] == [f"array {i}" for i in range(len(many))]
        for i in (0, 5, 31, 32, 257, len(many) - 1):
            assert same_answer(answers[i], predictor.predict(many[i])[0])

    def test_probabilities_sum_to_one_from_most_to_least(self, predictor, fresh):
        for answer in predictor.predict(fresh):
            values = list(answer.probabilities.values())
            assert math.isclose(sum(values), 1, abs_tol=1e-6)
            assert values == sorted(values, reverse=True)
            assert set(answer.probabilities) == set(COLOURS)
            assert answer.label == next(iter(answer.probabilities))

    def test_probabilities_are_calibrated_by_the_validation_split_s_temperature(self, predictor, fresh):
        pixels = np.asarray(Image.open(fresh / "red" / "02.png"))
        outputs = predictor.outputs(vitreous_pixels(predictor, pixels))[0].astype(float)
        scaled = np.exp(outputs / predictor.calibration.temperature)
        expected = dict(zip(predictor.task.names, scaled / scaled.sum(), strict=True))
        assert predictor.predict(pixels)[0].probabilities == pytest.approx(expected, abs=1e-6)

    def test_unsure_is_more_than_one_plausible_class_and_these_are_the_most_probable(self, shapes_run, fresh):
        predictor = vitreous.load(shapes_run)
        for threshold in (predictor.calibration.threshold, 0.5, 0.99):
            predictor.calibration = dataclasses.replace(predictor.calibration, threshold=threshold)
            answers = predictor.predict(fresh)
            for answer in answers:
                members = [name for name, p in answer.probabilities.items() if 1 - p <= threshold]
                if members:
                    assert answer.plausible == tuple(members)
                else:
                    held = sum(answer.probabilities[name] for name in answer.plausible)
                    assert held >= 0.9 > held - answer.probabilities[answer.plausible[-1]]
                assert answer.unsure == (len(answer.plausible) > 1)
        assert any(answer.unsure for answer in answers)

    def test_numbers_come_with_units_and_an_interval_around_them(self, blobs_run, blobs):
        [answer] = vitreous.load(blobs_run).predict(blobs.parent / "007.npy")
        assert list(answer.values) == list(answer.intervals) == list(answer.units) == ["place (mm)"]
        assert answer.units["place (mm)"] == "mm"
        low, high = answer.intervals["place (mm)"]
        value = answer.values["place (mm)"]
        assert high - value == pytest.approx(value - low)
        assert 0 < high - low < 8

    def test_a_bad_picture_has_its_error_and_its_neighbours_their_answers(self, predictor, fresh, tmp_path):
        (tmp_path / "empty.png").touch()
        good, whole = fresh / "red" / "02.png", fresh / "blue" / "00.jpg"
        (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:300])
        answers = predictor.predict([good, tmp_path / "empty.png", whole, tmp_path / "cut.jpg", good])
        assert [bool(a.error) for a in answers] == [False, True, False, True, False]
        assert answers[1].error.startswith(f"{tmp_path}/empty.png: the file is empty (0 bytes)")
        assert answers[3].error.startswith(f"{tmp_path}/cut.jpg: ")
        assert (answers[1].probabilities, answers[1].plausible) == ({}, ())
        alone = predictor.predict([good, whole])
        assert [a.label for a in (answers[0], answers[2], answers[4])] == ["red", "blue", "red"]
        assert same_answer(answers[0], alone[0])
        assert same_answer(answers[2], alone[1])

    @pytest.mark.parametrize(
        ("picture", "fault"),
        [
            (np.zeros((24, 32, 5), np.uint8), "array 0: 5 channels, where the model expects three channels (RGB)"),
            (np.zeros((24, 32, 3), np.uint16), "array 0: uint16 pixels, where the model expects uint8"),
            (np.zeros((24, 32, 3), np.float32), "array 0: float32 pixels, where the model expects uint8"),
            (np.zeros((1, 1, 3), np.uint8), "array 0: 1×1 pixels: nothing to see"),
            (np.zeros((0, 32, 3), np.uint8), "array 0: pixels were expected, but it is empty"),
        ],
        ids=["5 channels", "uint16", "float32", "1x1", "empty"],
    )
    def test_what_the_model_was_not_made_for_is_named(self, predictor, picture, fault):
        assert predictor.predict(picture)[0].error.startswith(fault)

    def test_nan_pixels_and_colour_for_a_grey_model_are_named(self, blobs_run):
        predictor, nan = vitreous.load(blobs_run), np.full((20, 36), np.nan, np.float32)
        colour = np.zeros((20, 36, 3), np.float32)
        errors = [answer.error for answer in predictor.predict([nan, colour])]
        assert errors[0].startswith("array 0: finite pixels were expected, but 720 of 720 values")
        assert errors[1] == (
            "array 1: three channels (RGB), where the model expects one channel (grey); "
            "convert the picture, or train with others like it"
        )

    def test_grey_pictures_are_taken_by_an_rgb_model(self, predictor):
        assert not predictor.predict(np.full((24, 32), 80, np.uint8))[0].error

    def test_paths_that_are_not_there_are_all_named(self, predictor, tmp_path):
        with pytest.raises(InputError, match=r"a\.png does not exist[^$]*b\.png does not exist"):
            predictor.predict([tmp_path / "a.png", tmp_path / "b.png"])


class TestViews:
    @pytest.mark.parametrize(("kind", "count"), [("flip", 2), ("shift", 6)])
    def test_the_answer_is_the_mean_of_the_outputs_over_all_views(self, predictor, shapes_run, fresh, kind, count):
        pixels = vitreous_pixels(predictor, np.asarray(Image.open(fresh / "red" / "00.jpg")))
        views = list(views_of(pixels, kind))
        assert len({view.tobytes() for view in views}) == count
        assert np.array_equal(views[0], pixels)
        assert np.array_equal(views[1], pixels[:, :, ::-1])
        expected = np.mean([predictor.outputs(view) for view in views], 0)
        assert vitreous.load(shapes_run, views=kind).outputs(pixels) == pytest.approx(expected, abs=1e-5)

    def test_moved_pictures_keep_their_size_and_repeat_their_edge(self):
        pixels = np.arange(16 * 32).reshape(1, 16, 32, 1)
        moved = list(views_of(pixels, "shift"))[2]  # by 1 and 2
        assert np.array_equal(moved[:, :-1, :-2], pixels[:, 1:, 2:])
        assert np.array_equal(moved[:, -1], moved[:, -2])
        assert np.array_equal(moved[:, :, -1], moved[:, :, -2])

    def test_a_model_that_saw_no_mirrored_pictures_refuses_them(self, blobs_run, shapes_run):
        with pytest.raises(InputError, match="not trained on mirrored pictures"):
            vitreous.load(blobs_run, views="flip")
        with pytest.raises(InputError, match="expected one, flip, shift"):
            vitreous.load(shapes_run, views="ten")


def vitreous_pixels(predictor: Predictor, picture: np.ndarray) -> np.ndarray:
    return np.stack([predictor.spec.read(picture, "a picture")[1]])


class TestEvaluate:
    def evaluate(self, predictor, data, **options):
        said = []
        return vitreous.evaluate(predictor, data, say=said.append, **options), "\n".join(said)

    def test_on_the_training_folder_only_held_out_pictures_are_scored_and_it_says_so(self, predictor, shapes):
        held_out = {row.path for row in predictor.run.read_split() if row.split == "validation"}
        result, said = self.evaluate(predictor, shapes)
        assert set(result.names) == held_out
        assert result.summary["n"] == len(held_out) == 12
        assert "36 of these pictures were trained on and are not scored; scored: 12 held out for validation" in said
        assert "12 of them also served to calibrate" in said

    def test_on_new_pictures_all_are_scored_but_copies_of_trained_ones(self, predictor, shapes, tmp_path):
        data = make_shapes(tmp_path / "test", each=4, seed=60)
        trained = next(row.path for row in predictor.run.read_split() if row.split == "train")
        result, said = self.evaluate(predictor, data)
        assert result.summary["n"] == 12
        assert "not scored" not in said
        shutil.copy(shapes / trained, data / trained.split("/")[0] / f"copy-{Path(trained).name}")
        result, said = self.evaluate(predictor, data)
        assert result.summary["n"] == 12
        assert not [name for name in result.names if "copy" in name]
        assert "1 of these pictures were trained on and are not scored" in said
        assert "12 that the run has not seen" in said

    def test_the_summary_is_what_the_answers_say(self, predictor, fresh):
        result, _ = self.evaluate(predictor, fresh)
        names = predictor.task.names
        assert [names[t] for t in result.targets] == [name.split("/")[0] for name in result.names]
        assert result.summary["top1"] == np.mean(result.answers.argmax(1) == result.targets)
        assert np.asarray(result.summary["confusion"]).sum() == 9
        assert json.loads(json.dumps(result.summary)) == result.summary

    def test_split_asks_for_other_pictures(self, predictor, shapes):
        assert self.evaluate(predictor, shapes, split="train")[0].summary["n"] == 36
        assert self.evaluate(predictor, shapes, split="all")[0].summary["n"] == 48
        with pytest.raises(InputError, match="nothing to score: of 48 pictures none is held out"):
            self.evaluate(predictor, shapes, split="test")
        with pytest.raises(InputError, match="--split some: expected auto"):
            self.evaluate(predictor, shapes, split="some")

    def test_classes_that_the_run_does_not_know_are_named(self, predictor, tmp_path):
        data = make_shapes(tmp_path / "data", each=2, seed=61)
        (data / "red").rename(data / "crimson")
        with pytest.raises(InputError, match=r"'crimson', first at row 3 \(crimson/00\.jpg\)"):
            self.evaluate(predictor, data)

    def test_bad_pictures_stop_it_by_name_or_are_left_out_by_name(self, predictor, tmp_path):
        data = make_shapes(tmp_path / "data", each=2, seed=62)
        (data / "blue" / "00.jpg").write_bytes(b"")
        with pytest.raises(InputError, match=r"1 of 6 pictures cannot be used:\n  blue/00\.jpg: the file is empty"):
            self.evaluate(predictor, data)
        result, said = self.evaluate(predictor, data, skip_bad=True)
        assert result.summary["n"] == 5
        assert "blue/00.jpg" not in result.names
        assert "blue/00.jpg" in said

    def test_numbers_are_measured_in_their_units(self, blobs_run, blobs):
        result, _ = self.evaluate(vitreous.load(blobs_run), blobs)
        one = result.summary["targets"]["place (mm)"]
        assert (one["unit"], result.summary["n"]) == ("mm", 36)
        assert one["mae"] == pytest.approx(np.abs(result.answers - result.targets).mean())
        assert one["mae"] < 1


class TestLoad:
    @pytest.fixture
    def copy(self, shapes_run, tmp_path) -> Path:
        shutil.copytree(shapes_run, tmp_path / "run", ignore=shutil.ignore_patterns("last"))
        return tmp_path / "run"

    def test_a_moved_run_answers_as_before(self, predictor, copy, fresh):
        before, after = predictor.predict(fresh), vitreous.load(copy).predict(fresh)
        assert len(before) == len(after) == 9
        for old, new in zip(before, after, strict=True):
            # Not to the bit: the order in which MKL sums may depend on where in memory the numbers lie.
            assert new.probabilities == pytest.approx(old.probabilities, abs=1e-6)

    @pytest.mark.parametrize("name", ["model.safetensors", "validation.json"])
    def test_an_unfinished_run_says_how_to_finish_it(self, copy, name):
        (copy / name).unlink()
        with pytest.raises(InputError, match=rf"{copy} has no {name}: .*`vitreous train --resume {copy}`"):
            vitreous.load(copy)

    def test_a_run_of_another_version_says_which(self, copy):
        config = RunDir(copy).config()
        RunDir(copy).write_json("config.json", {**config, "format": 99, "vitreous": "7.2"})
        with pytest.raises(
            InputError, match=r"is a run directory of format 99: .*use the version that made it \(7\.2\)"
        ):
            vitreous.load(copy)

    def test_what_is_no_run_directory_says_so(self, shapes, tmp_path):
        with pytest.raises(InputError, match=r"is no run directory: it holds no config\.json"):
            vitreous.load(shapes)
        with pytest.raises(InputError, match="is no run directory: it does not exist"):
            vitreous.load(tmp_path / "nothing")

    @pytest.mark.parametrize("name", ["model.safetensors", "validation.json", "config.json"])
    def test_a_damaged_file_is_named(self, copy, name):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match=rf"{name} is damaged"):
            vitreous.load(copy)

    @pytest.mark.parametrize("part", ["model", "input", "task"])
    def test_a_config_without_a_part_is_damaged(self, copy, part):
        config = RunDir(copy).config()
        del config[part]
        RunDir(copy).write_json("config.json", config)
        with pytest.raises(InputError, match=r"config\.json is damaged"):
            vitreous.load(copy)

    def test_weights_of_another_model_are_refused(self, copy):
        config = RunDir(copy).config()
        config["model"]["depth"] = 5
        RunDir(copy).write_json("config.json", config)
        with pytest.raises(InputError, match=r"the weights are not those of its config\.json"):
            vitreous.load(copy)
