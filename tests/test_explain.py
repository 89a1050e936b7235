import json
import re

import numpy as np
import pytest
import torch
from making import vitreous as run_verb

import vitreous
from vitreous.errors import InputError
from vitreous.insight.explain import SHOWN, explain


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
    assert set(first.attributions) == set(SHOWN)
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


def test_a_number_is_explained_in_its_unit(blobs_run, blobs):
    predictor = vitreous.load(blobs_run)
    found = explain(predictor, blobs.parent / "000.npy", methods=["rollout", "occlusion"])
    picture = found.pictures[0]
    assert picture.label in predictor.task.names
    assert picture.lens is not None
    assert np.allclose(picture.lens[-1, 0], picture.prediction.values[picture.label], rtol=1e-4)
    assert '"unit": "mm"' in found.html() or '"unit":"mm"' in found.html()


def test_the_page_is_one_file_without_a_reference_to_another(explanation, tmp_path):
    path = explanation.save(tmp_path / "why.html")
    text = path.read_text("utf-8")
    assert path.stat().st_size < 8_000_000 * 2
    assert "default-src 'none'" in text
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:|#)", text)


def test_the_command_line_writes_the_page_and_says_how_far_to_believe_it(shapes_run, shapes, tmp_path):
    page = tmp_path / "why.html"
    done = run_verb("explain", shapes_run, shapes / "red" / "00.jpg", "--out", page, "--methods", "rollout", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["page"] == str(page)
    assert set(told["pictures"][0]["faithfulness"]) == {"rollout", "random", "edges"}
    assert page.exists()
    assert "a random map" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "mauve"}, "the model knows no 'mauve': expected one of blue, green, red"),
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
