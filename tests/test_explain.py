import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from making import vitreous as run_verb

import vitreous
from vitreous.data.targets import Task
from vitreous.errors import InputError
from vitreous.insight.explain import MEAN, SHOWN, explain, find_target
from vitreous.insight.faithfulness import faithfulness


@pytest.fixture(scope="module")
def predictor(shapes_run):
    return vitreous.load(shapes_run)


@pytest.fixture(scope="module")
def explanation(predictor, shapes):
    return explain(predictor, [shapes / "red" / "00.jpg", np.zeros((24, 32, 3), np.uint8)])


def test_each_picture_has_its_answer_its_maps_and_how_faithful_they_are(predictor, explanation, shapes):
    first, second = explanation.pictures
    assert first.prediction == predictor.predict(shapes / "red" / "00.jpg")[0]
    assert first.label == first.prediction.label
    assert second.prediction.picture == "array 1"
    assert tuple(first.attributions) == SHOWN  # whatever they score
    assert set(first.faithfulness) == {*SHOWN, "random", "edges"}
    assert first.attributions["rollout"].tokens.shape == (1, 3, 4)


def test_the_ledger_and_the_lens_are_of_the_answer_that_is_explained(explanation, shapes, predictor):
    found = explanation.pictures[0]
    logit = found.trace.outputs[0, found.target]
    assert torch.allclose(found.ledger.values.sum(), logit, rtol=1e-4)
    assert np.allclose(found.lens[-1][found.target], found.prediction.probabilities[found.label], atol=1e-5)


def test_a_class_by_name_is_explained_instead_of_the_most_probable(predictor, shapes):
    found = explain(predictor, shapes / "red" / "00.jpg", target="blue", methods=["contributions"]).pictures[0]
    assert (found.label, found.target) == ("blue", 0)
    other = explain(predictor, shapes / "red" / "00.jpg", methods=["contributions"]).pictures[0]
    assert not torch.equal(found.attributions["contributions"].tokens, other.attributions["contributions"].tokens)


def test_chance_is_as_far_as_the_scores_of_random_maps_spread_on_the_picture(predictor, shapes):
    found = explain(predictor, shapes / "red" / "01.jpg", methods=["rollout"]).pictures[0]
    pixels = predictor.normalised(torch.from_numpy(found.pixels[None].copy()))
    noise = {str(i): torch.rand(1, 3, 4, generator=torch.Generator().manual_seed(i)) for i in range(100)}
    temperature = predictor.calibration.temperature
    scored = faithfulness(predictor.model, pixels, noise, found.target, temperature=temperature)
    within = np.mean([abs(float(scored[name].score)) <= found.chance for name in noise])
    assert 0.75 <= within < 1
    score = float(found.faithfulness["rollout"].score)
    assert replace(found, chance=abs(score)).verdict("rollout") == "within chance"
    assert (
        replace(found, chance=0.99 * abs(score)).verdict("rollout")
        == f"{'better' if score > 0 else 'worse'} than chance"
    )


def test_a_difference_of_two_classes_is_followed_by_all_that_is_shown(predictor, shapes):
    found = explain(predictor, shapes / "red" / "00.jpg", target="red - blue", methods=["contributions", "occlusion"])
    picture = found.pictures[0]
    assert (picture.target, picture.label) == ((2, 0), "red rather than blue")
    outputs = picture.trace.outputs[0]
    assert picture.ledger is not None
    assert torch.allclose(picture.ledger.values.sum(), outputs[2] - outputs[0], rtol=1e-3, atol=1e-4)
    curves = picture.faithfulness["occlusion"].positive_curves
    assert torch.allclose(curves[0, 0, 0], outputs[2] - outputs[0], rtol=1e-4)
    assert picture.summary()["answer"] == pytest.approx(float(outputs[2] - outputs[0]), rel=1e-4)
    html = found.html()
    assert '"target":"red","against":"blue"' in html
    assert '"lens":{"names":["red","blue","green"]' in html
    pair = explain(predictor, shapes / "red" / "00.jpg", target=("red", "blue"), methods=["contributions"]).pictures[0]
    assert torch.equal(pair.attributions["contributions"].tokens, picture.attributions["contributions"].tokens)


@pytest.mark.parametrize(
    ("names", "asked", "target"),
    [
        (("cat", "dog", "cat - dog"), "cat - dog", 2),  # an exact name wins
        (("cat", "dog", "cat - dog"), ("cat", "dog"), (0, 1)),
        (("cat", "dog"), "dog - cat", (1, 0)),
        (("a - b", "c"), "c - a - b", (1, 0)),
        ((" - ", "a"), " -  - a", (0, 1)),
        (("a", "b - c", "a - b", "c"), ("a - b", "c"), (2, 3)),
    ],
)
def test_names_are_read_as_one_output_or_as_two(names, asked, target):
    assert find_target(Task("classification", names), asked) == target


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        ("classification", "mauve", "or two as 'a - b - c': what speaks for the first rather than the second"),
        ("classification", "a - a", "the model knows no 'a - a'"),
        ("classification", "a - b - c", "can be read in 2 ways: expected target=(first, second), from Python"),
        ("classification", ("a", "mauve"), "the model knows no ('a', 'mauve')"),
        ("regression", "a - c", "numbers have a scale each"),
    ],
)
def test_names_that_mean_nothing_or_two_things_are_refused(kind, asked, message):
    with pytest.raises(InputError, match=re.escape(message)):
        find_target(Task(kind, ("a", "b - c", "a - b", "c")), asked)


def test_a_number_is_explained_in_its_unit(blobs_run, blobs):
    predictor = vitreous.load(blobs_run)
    found = explain(predictor, blobs.parent / "000.npy", methods=["rollout", "occlusion"])
    picture = found.pictures[0]
    value = picture.prediction.values["place (mm)"]
    assert picture.label == "place (mm)"
    assert picture.lens is not None
    assert picture.ledger is not None
    assert np.allclose(picture.lens[-1, 0], value, rtol=1e-4)
    assert picture.ledger.names[-1] == MEAN
    assert float(picture.ledger.values[0, -1]) == pytest.approx(predictor.task.mean[0])
    assert float(picture.ledger.values.sum()) == pytest.approx(value, rel=1e-4)
    html = found.html()
    assert '"unit":"mm"' in html
    assert f'"start":{predictor.task.mean[0]}' in html
    told = picture.summary()
    assert (told["values"], told["units"]) == ({"place (mm)": value}, {"place (mm)": "mm"})
    assert sum(told["ledger"].values()) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("given", ["run", "path"])
def test_a_run_directory_does_as_well_as_its_predictor(shapes_run, shapes, given):
    run = str(shapes_run) if given == "run" else shapes_run
    assert vitreous.explain(run, shapes / "red" / "00.jpg", methods=["attention"]).pictures[0].trace.grid == (3, 4)


def test_a_model_alone_is_refused_with_what_is_expected(predictor, shapes):
    with pytest.raises(InputError, match=r"a VisionTransformer alone .* expected vitreous.load\(RUN\)"):
        vitreous.explain(predictor.model, shapes / "red" / "00.jpg")


def test_bad_pictures_are_named_and_left_out_where_that_is_asked_for(predictor, shapes, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    said = []
    options = {"methods": ["attention"], "skip_bad": True, "say": said.append}
    found = explain(predictor, [tmp_path / "a.png", shapes / "red" / "00.jpg"], **options)
    assert [picture.prediction.picture for picture in found.pictures] == [str(shapes / "red" / "00.jpg")]
    assert "left out, 1 picture that" in said[0]
    assert "a.png" in said[0]
    with pytest.raises(InputError, match="1 of 1 pictures cannot be used"):
        explain(predictor, tmp_path / "a.png", **options)


def test_the_page_is_one_file_without_a_reference_to_another(explanation, tmp_path):
    path = explanation.save(tmp_path / "why.html")
    text = path.read_text("utf-8")
    assert path.stat().st_size < 8_000_000 * 2
    assert "default-src 'none'" in text
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:|#)", text)


def test_the_command_line_writes_the_page_and_says_how_far_to_believe_it(shapes_run, shapes, tmp_path):
    page, bad = tmp_path / "why.html", tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    picture = shapes / "red" / "00.jpg"
    done = run_verb("explain", shapes_run, picture, bad, "--skip-bad", "--out", page, "--methods", "rollout", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["page"] == str(page)
    [found] = told["pictures"]
    assert set(found["faithfulness"]) == {"rollout", "random", "edges"}
    assert page.exists()
    assert "bad.png" in done.stderr
    verdict = "within chance" if abs(found["faithfulness"]["rollout"]) <= found["chance"] else "than chance"
    assert f"{verdict} (random maps stay within ±{found['chance']:.3g})" in done.stderr


def test_all_that_the_page_shows_of_an_answer_is_in_the_json(explanation, predictor):
    picture = explanation.pictures[0]
    told = json.loads(json.dumps(picture.summary()))
    assert told["probabilities"] == picture.prediction.probabilities
    assert {name: depths[-1] for name, depths in told["lens"].items()} == pytest.approx(told["probabilities"], abs=1e-5)
    depth, heads = predictor.model.config.depth, predictor.model.config.heads
    assert {len(depths) for depths in told["lens"].values()} == {depth + 1}
    names = list(told["ledger"])
    assert len(names) == len(picture.ledger.names)
    assert {f"block {depth}, head {heads}", f"block {depth}, MLP", "block 1, head 1", "embedding", "bias"} <= {*names}
    assert not any(name.startswith("block 0") for name in names)
    assert sum(told["ledger"].values()) == pytest.approx(float(picture.ledger.score), rel=1e-3)
    assert told["chance"] == picture.chance


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "mauve"}, "the model knows no 'mauve': expected one of blue, green, red, or two as 'blue - green'"),
        ({"methods": ["magic"]}, "no attribution is called 'magic': expected some of attention, rollout"),
    ],
)
def test_names_that_are_not_there_are_refused(predictor, shapes, options, message):
    with pytest.raises(InputError, match=message):
        explain(predictor, shapes / "red" / "00.jpg", **options)


def test_pictures_that_cannot_be_used_are_named_together_before_the_work(shapes_run, shapes, tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"no picture")
    done = run_verb(
        "explain",
        shapes_run,
        shapes / "red" / "00.jpg",
        tmp_path / "a.png",
        tmp_path / "b.jpg",
        "--out",
        tmp_path / "w.html",
    )
    assert done.returncode == 2
    assert "2 of 3 pictures cannot be used" in done.stderr
    assert "a.png" in done.stderr
    assert "b.jpg" in done.stderr
    assert not (tmp_path / "w.html").exists()


@pytest.mark.parametrize("out", ["why.pdf", "nowhere/why.html"])
def test_a_page_that_could_not_be_written_is_refused_before_the_work(shapes_run, shapes, tmp_path, out):
    done = run_verb("explain", shapes_run, shapes / "red" / "00.jpg", "--out", tmp_path / out)
    assert done.returncode == 2
    assert "--out" in done.stderr
    assert "Traceback" not in done.stderr
