"""vitreous.insight.report: one file with the numbers of `evaluate`, nothing from elsewhere, and names as text."""

import csv
import io
import json
import re
import shlex
import shutil
import sys
from base64 import b64decode
from collections import Counter
from collections.abc import Sequence
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import making
import numpy as np
import pytest
import torch
from browsing import needs_browser
from matplotlib.figure import Figure
from PIL import Image

import vitreous
from vitreous import metrics, verbs
from vitreous.cli import main
from vitreous.data.targets import Task
from vitreous.errors import InputError
from vitreous.infer.evaluation import Evaluation
from vitreous.insight.attribution import Attribution
from vitreous.insight.figures import model_pictures, to_svg
from vitreous.insight.page import escape
from vitreous.insight.report import MOST_BYTES, report, write_report
from vitreous.insight.report.calibration import Reliability, uncalibrated
from vitreous.insight.report.card import GAPS, command
from vitreous.insight.report.charts import Axis, curves, heat_table, scatter
from vitreous.insight.report.material import bootstrap
from vitreous.insight.report.mistakes import SHOWN_MISTAKES, find_mistakes
from vitreous.insight.report.pieces import decimal, short
from vitreous.insight.report.results import confused_pairs
from vitreous.rundir import RunDir
from vitreous.training.recipe import TrainConfig

HOSTILE = ['<img src=x onerror="alert(1)">', "</script><script>alert(2)</script>", "'; & “quoted” \\ $a_b$ שלום 猫"]
SHORT = {**making.TOY, "epochs": 2, "batch": 8, "seed": 1}
VOID = {"meta", "link", "img", "input", "br", "hr", "path", "circle", "rect", "polygon"}
SECTIONS = {
    "classification": ["learning", "classes", "confusion", "calibration", "mistakes", "pictures", "repeat", "card"],
    "multilabel": ["learning", "classes", "calibration", "mistakes", "pictures", "repeat", "card"],
    "regression": ["learning", "classes", "answers", "calibration", "mistakes", "pictures", "repeat", "card"],
}


class Page(HTMLParser):
    """What stands in a page: elements with their attributes and texts, all of them closed."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data):
        for i in self.open:
            self.elements[i][2].append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str], str]]:
        """Attributes and text of the elements of a tag that have some attributes, in their order."""
        return [
            (found, "".join(text))
            for name, found, text in self.elements
            if name == tag and attributes.items() <= found.items()
        ]

    def text(self, name: str) -> str:
        """The text of the element with an id."""
        [text] = ["".join(text) for _, found, text in self.elements if found.get("id") == name]
        return text

    def numbers(self) -> set[float]:
        return {float(found["value"]) for found, _ in self.all("data")}


def make_table(root: Path, titles: list[str], rows: list[tuple], seed: int = 0) -> Path:
    """table.csv with a picture a row: a box of each colour that its labels tell, or of one after the other."""
    root.mkdir(parents=True)
    rng, colours = np.random.default_rng(seed), list(making.COLOURS.values())
    with open(root / "table.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *titles])
        for i, row in enumerate(rows):
            pixels = rng.integers(0, 60, (24, 32, 3)).astype(np.uint8)
            shown = [i % 3] if len(row) == 1 else np.flatnonzero(row)
            for k in shown:
                y, x = rng.integers(0, 15), rng.integers(0, 21)
                pixels[y : y + 9, x : x + 11] = colours[k]
            Image.fromarray(pixels).save(root / f"{i:02} & 'x'.png")
            writer.writerow([f"{i:02} & 'x'.png", *row])
    return root / "table.csv"


def classes(count: int) -> list[tuple]:
    """The class of each picture, every seventh one wrong, so that there are mistakes."""
    return [(HOSTILE[(i + (i % 7 == 0)) % 3],) for i in range(count)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Data and a run of each kind of task."""
    root, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    data = {
        "classification": make_table(root / "classes", ["label"], classes(48)),
        "multilabel": make_table(root / "labels", ["a", "b", "c"], rng.integers(0, 2, (40, 3)).tolist()),
        "regression": making.make_blobs(root / "blobs", 40),
    }
    with making.unpainted():
        return {
            kind: (place, vitreous.train(place, out=root / kind, **{**SHORT, "validation": 0.5}))
            for kind, place in data.items()
        }


@pytest.fixture(scope="module")
def pages(runs) -> dict[str, str]:
    return {kind: report(run) for kind, (_, run) in runs.items()}


@pytest.fixture(scope="module")
def drawn(runs, tmp_path_factory) -> Path:
    """A page with pictures of the model."""
    return write_report(runs["multilabel"][1], out=tmp_path_factory.mktemp("drawn") / "r.html", figures=model_pictures)


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """The command line has no pictures of the model, where no test looks at them: they take longer than the rest."""
    monkeypatch.setattr("vitreous.insight.figures.model_pictures", lambda *_: [])


@cache
def read(text: str) -> Page:
    return Page(text)


def evaluated(runs, kind: str) -> Evaluation:
    data, run = runs[kind]
    return vitreous.evaluate(vitreous.load(run), data, say=lambda text: None)


def contrast(a: Sequence[float], b: Sequence[float]) -> float:
    """Of two colours of 0 to 255, as WCAG 2 has it."""
    light, dark = sorted((0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(linear, (a, b))), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def linear(colour: Sequence[float]) -> list[float]:
    """sRGB of 0 to 255 as light."""
    return [c / 12.92 if (c := level / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for level in colour[:3]]


every_task = pytest.mark.parametrize("kind", list(SECTIONS))


class TestThePage:
    @every_task
    def test_has_every_section_and_links_to_each(self, pages, kind):
        page = read(pages[kind])
        assert [found["id"] for found, _ in page.all("section")] == SECTIONS[kind]
        assert [found["href"] for found, _ in page.all("a")][1:] == [f"#{name}" for name in SECTIONS[kind]]
        assert all(len(page.text(name)) > 60 for name in SECTIONS[kind])

    @every_task
    def test_asks_for_nothing_from_elsewhere_and_has_no_code_beside_the_hashed(self, pages, kind):
        page = read(pages[kind])
        for _, found, _ in page.elements:
            assert not [name for name in found if name.startswith("on") or name in ("style", "srcset", "action")]
            for name in {"src", "href", "xlink:href"} & found.keys():
                assert found[name].startswith(("#", "data:image/"))
        assert len(page.all("script")) == 2
        [(_, style)] = page.all("style")
        assert not re.search(r"url\(|@import|https?:", style)

    @every_task
    def test_reads_well_without_sight(self, pages, kind):
        page = read(pages[kind])
        levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b <= a + 1 for a, b in pairwise(levels))
        assert all(found.get("scope") in ("row", "col") for found, _ in page.all("th"))
        assert all("alt" in found for found, _ in page.all("img"))
        charts = page.all("svg", **{"class": "chart"})
        assert len(charts) >= 3
        assert all(found["role"] == "img" and len(found["aria-label"]) > 20 for found, _ in charts)
        ids = [found["id"] for _, found, _ in page.elements if "id" in found]
        assert len(ids) == len(set(ids))
        assert all(found["aria-labelledby"] in ids for found, _ in page.all("section"))

    @every_task
    def test_says_below_each_chart_in_one_sentence_what_it_shows(self, pages, kind):
        page = read(pages[kind])
        charts = [text for _, text in page.all("figure") if " said " not in text and not text.startswith("said")]
        captions = [text for _, text in page.all("figcaption") if text.endswith(".")]
        assert len(captions) == len(charts) >= len(page.all("svg", **{"class": "chart"})) >= 3
        assert all(found.endswith(text) for found, text in zip(charts, captions, strict=True))
        assert not [text for text in captions if re.search(r"[.!?] [A-Z]", text)]

    @every_task
    def test_is_small(self, pages, kind):
        assert len(pages[kind].encode()) < 1_000_000


class TestTheNumbers:
    @every_task
    def test_are_those_of_evaluate(self, pages, runs, kind):
        page, summary = read(pages[kind]), evaluated(runs, kind).summary
        assert json.loads(page.text("page-data"))["summary"] == summary
        assert json.loads((runs[kind][1] / "validation.json").read_text("utf-8"))["summary"]["n"] == summary["n"]
        names = {
            "classification": ("top1", "balanced_accuracy", "macro_f1"),
            "multilabel": ("map", "macro_f1", "micro_f1", "exact_match"),
            "regression": ("r2", "rmse", "mae"),
        }[kind]
        each = {"classification": "classes", "multilabel": "labels", "regression": "targets"}[kind]
        wanted = {float(summary[name]) for name in names}
        wanted |= {v for one in summary[each].values() for key, v in one.items() if isinstance(v, float)}
        assert wanted <= page.numbers()
        assert f"{summary['n']} validation pictures" in pages[kind]

    def test_of_the_confusion_matrix_stand_in_its_table(self, pages, runs):
        summary = evaluated(runs, "classification").summary
        cells = [
            (found["class"], text)
            for found, text in read(pages["classification"]).all("td")
            if "h" in found.get("class", "")
        ]
        cells = [(name, text) for name, text in cells if name.startswith(("hit", "miss"))]
        assert [int(text) for _, text in cells] == np.array(summary["confusion"]).ravel().tolist()
        assert [name.startswith("hit") for name, _ in cells] == np.eye(3, dtype=bool).ravel().tolist()

    @every_task
    def test_lie_within_their_intervals_which_differ_between_numbers(self, runs, kind):
        found = evaluated(runs, kind)
        low, high = bootstrap(found)
        values = {
            "classification": lambda s: [s["balanced_accuracy"], s["macro_f1"]],
            "multilabel": lambda s: [s["map"], s["macro_f1"], s["micro_f1"]],
            "regression": lambda s: [[s[key]] for key in ("mae", "rmse", "r2")],
        }[kind](found.summary)
        assert (low <= values).all()
        assert (values <= high).all()
        assert (low < high).all()

    def test_of_other_data_are_of_that_data(self, runs, tmp_path):
        _, run = runs["classification"]
        other = make_table(tmp_path / "other", ["label"], classes(9), seed=7)
        page = Page(report(run, other))
        [(_, opening)] = page.all("div", **{"class": "opening"})
        assert "Measured on 9 pictures of table.csv" in opening
        assert vitreous.evaluate(vitreous.load(run), other).summary["nll"] in page.numbers()
        assert "48 pictures" in page.text("pictures")  # the run's own

    def test_where_the_pictures_are_gone_are_those_of_the_training(self, runs, tmp_path):
        data, run = runs["classification"]
        moved, there = tmp_path / "run", tmp_path / "there"
        shutil.copytree(run, moved)
        shutil.copytree(data.parent, there)
        folder = RunDir.open(moved)
        folder.write_json("config.json", {**folder.config(), "data": str(tmp_path / "nowhere")})
        page = Page(report(moved))
        summary = folder.read_json("validation.json")["summary"]
        assert {summary["top1"], summary["macro_f1"]} <= page.numbers()
        assert "gone" in page.text("mistakes")
        assert not page.all("img")
        again = Page(report(moved, there / "table.csv"))
        assert again.numbers() >= {summary["top1"], summary["macro_f1"]}
        assert again.all("img")

    @pytest.mark.usefixtures("unpainted")
    def test_of_several_targets_are_each_in_its_unit(self, tmp_path):
        rng = np.random.default_rng(0)
        rows = [tuple(row) for row in rng.uniform(0, 2, (24, 2)).round(3).tolist()]
        data = make_table(tmp_path / "two", ["length (mm)", "mass"], rows)
        run = vitreous.train(data, out=tmp_path / "run", **{**SHORT, "epochs": 1, "validation": 0.5})
        page, found = Page(report(run)), vitreous.evaluate(vitreous.load(run), data, say=lambda text: None)
        titles = [text for _, text in page.all("dt")[:4]]
        assert titles == ["R² of length (mm)", "RMSE of length (mm)", "R² of mass", "RMSE of mass"]
        one = found.summary["targets"]["length (mm)"]
        assert ({"value": repr(one["rmse"])}, f"{one['rmse']:.4g}\u00a0mm") in page.all("data")
        assert len(page.all("svg", **{"class": "chart"})) == 3 + 2 * 2


class TestNames:
    def test_are_text_wherever_they_stand(self, pages):
        page = read(pages["classification"])
        seen = [text for _, text in page.all("bdi")]
        assert set(HOSTILE) <= set(seen)
        assert not [found for found, _ in page.all("img") if found["src"] == "x"]
        assert "alert" not in page.all("script")[1][1]
        assert json.loads(page.text("page-data"))["summary"]["classes"].keys() == set(HOSTILE)
        files = [text for _, text in page.all("span", **{"class": "file"})]
        assert files
        assert all(re.fullmatch(r"\d\d & 'x'\.png", name) for name in files)

    def test_that_are_no_unicode_can_be_written(self, runs, tmp_path):
        _, run = runs["multilabel"]
        path = write_report(run, out=tmp_path / "r.html", card={"contact": "\udcff\0 <b>"})
        assert "\ufffd\ufffd &lt;b&gt;" in path.read_text("utf-8")

    def test_lose_what_html_does_not_allow(self):
        assert escape("a\x01\x1b\x7f\x9fb\tc\nd é") == "ab\tc\nd é"


class TestTheData:
    def test_is_counted_by_split_and_class(self, pages, runs):
        _, run = runs["classification"]
        counts = Counter(row.split for row in RunDir.open(run).read_split())
        text = read(pages["classification"]).text("pictures")
        assert f"48 pictures: {counts['train']} train, {counts['validation']} validation" in text
        assert "24 × 32: 48 (100%)" in text

    def test_shows_what_the_doctor_found(self, runs, tmp_path):
        data, run = runs["multilabel"]
        moved, there = tmp_path / "run", tmp_path / "there"
        shutil.copytree(run, moved)
        shutil.copytree(data.parent, there)
        rows = RunDir.open(run).read_split()
        train, held = (next(row.path for row in rows if row.split == split) for split in ("train", "validation"))
        shutil.copy(there / train, there / held)
        RunDir.open(moved).write_json("config.json", {**RunDir.open(run).config(), "data": str(there / "table.csv")})
        text = Page(report(moved)).text("pictures")
        assert "the same picture on both sides of a split" in text
        assert f"{train} (train) = {held} (validation)" in text

    def test_of_a_regression_tells_what_the_targets_span(self, pages, runs):
        data, run = runs["regression"]
        with open(data, encoding="utf-8", newline="") as file:
            places = {row["path"]: np.float32(row["place (mm)"]) for row in csv.DictReader(file)}
        train = [places[row.path] for row in RunDir.open(run).read_split() if row.split == "train"]
        page = read(pages["regression"])
        assert f"{min(train):.4g}" in page.text("pictures")
        assert f"from {min(train):.4g} to {max(train):.4g}\u00a0mm" in page.text("card")


class TestMistakes:
    def test_of_classes_are_the_wrong_ones_the_most_certain_first(self):
        answers = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
        found = Evaluation(Task("classification", ("a", "b")), {}, answers, np.array([0, 0, 1, 0]), tuple("wxyz"))
        assert find_mistakes(found) == [(1, 1), (3, 1)]
        assert find_mistakes(found, most=1) == [(1, 1)]

    def test_of_labels_are_those_on_the_wrong_side_of_one_half(self):
        answers, targets = np.array([[0.9, 0.4], [0.2, 0.3], [0.6, 0.1]]), np.array([[1, 0], [1, 0], [0, 0]])
        found = Evaluation(Task("multilabel", ("a", "b")), {}, answers, targets.astype(np.float32), tuple("xyz"))
        assert find_mistakes(found) == [(1, 0), (2, 0)]

    def test_of_numbers_are_counted_in_deviations_of_the_training(self):
        task = Task("regression", ("a", "b"), ("", ""), (0.0, 0.0), (1.0, 100.0))
        answers, targets = np.array([[3.0, 0.0], [0.0, 99.0]]), np.zeros((2, 2))
        assert find_mistakes(Evaluation(task, {}, answers, targets, ("x", "y"))) == [(0, 0), (1, 1)]

    def test_have_maps_of_the_output_that_was_said(self, runs):
        _, run = runs["classification"]
        found, asked = evaluated(runs, "classification"), []

        def maps(model: torch.nn.Module, pixels: torch.Tensor, output: int) -> Attribution:
            asked.append(output)
            assert pixels.shape == (1, 3, 24, 32)
            assert model(pixels).argmax(1).item() == output
            return Attribution("", torch.linspace(-1, 1, 12).reshape(1, 3, 4), pixels[:, 0], torch.zeros(1))

        page = Page(report(run, maps=maps))
        wrong = np.flatnonzero(found.answers.argmax(1) != found.targets)
        assert 0 < len(wrong) <= SHOWN_MISTAKES
        assert Counter(asked) == Counter(found.answers.argmax(1)[wrong].tolist())
        shown = page.all("img", **{"class": "map coarse"})
        assert len(shown) == len(wrong)
        image = Image.open(io.BytesIO(b64decode(shown[0][0]["src"].split(",")[1])))
        assert (image.mode, image.size) == ("RGBA", (4, 3))
        first, last = (np.array(image.getpixel(at)) for at in ((0, 0), (3, 2)))
        assert first[0] > first[2]  # orange is against
        assert last[2] > last[0]  # blue is for
        assert first[3] == last[3] > 100
        assert len(page.all("input")) == 1

    def test_are_shown_as_the_model_sees_them(self, pages, runs):
        data, run = runs["classification"]
        shown = [found for found, _ in read(pages["classification"]).all("img")]
        assert shown
        name = shown[0]["alt"].removeprefix("picture ")
        image = np.asarray(Image.open(io.BytesIO(b64decode(shown[0]["src"].split(",")[1]))))
        spec = vitreous.load(run).spec
        assert (image == spec.read((data.parent / name).read_bytes(), name)[1]).all()


class TestCalibration:
    @pytest.mark.parametrize("kind", ["classification", "multilabel"])
    def test_before_the_temperature_is_found_again_from_the_answers(self, kind):
        outputs = np.random.default_rng(0).normal(size=(50, 4)) * 4
        function = metrics.softmax if kind == "classification" else metrics.sigmoid
        found = uncalibrated(kind, function(outputs / 1.7), 1.7)
        assert found == pytest.approx(function(outputs))

    def test_of_answers_that_are_certain_stays_finite(self):
        certain = np.array([[1.0, 0.0], [0.0, 1.0]])
        for kind in ("classification", "multilabel"):
            assert uncalibrated(kind, certain, 1.7) == pytest.approx(certain)
        assert np.isfinite(Reliability.of("multilabel", certain, 1 - certain).likelihood)

    def test_error_and_likelihood_of_classes_are_those_of_metrics(self):
        rng = np.random.default_rng(0)
        p, targets = metrics.softmax(rng.normal(size=(200, 3)) * 2), rng.integers(0, 3, 200)
        found = Reliability.of("classification", p, targets)
        assert found.error == pytest.approx(metrics.expected_calibration_error(p, targets))
        assert found.likelihood == pytest.approx(metrics.negative_log_likelihood(p, targets))
        assert found.counts.sum() == sum(count for *_, count in found.bins) == 200

    def test_of_labels_counts_every_label(self):
        p, targets = np.array([[0.8, 0.8], [0.8, 0.8]]), np.array([[1.0, 1.0], [1.0, 0.0]])
        found = Reliability.of("multilabel", p, targets)
        assert found.bins == [pytest.approx((0.8, 0.75, 4))]
        assert found.error == pytest.approx(0.05)


class TestConfusion:
    def test_pairs_are_the_most_frequent_first_without_the_right_answers(self):
        matrix = np.array([[9, 1, 0], [5, 9, 2], [0, 0, 9]])
        assert confused_pairs(matrix) == [(1, 0), (1, 2), (0, 1)]

    def test_table_of_some_classes_keeps_the_sums_of_its_rows(self):
        matrix = np.random.default_rng(0).integers(0, 9, (30, 30))
        page = Page(heat_table(matrix, [f"class {k}" for k in range(30)], [3, 7, 20]))
        cells = np.array([int(text) for _, text in page.all("td")[1:]]).reshape(3, 4)
        assert (cells[:, :3] == matrix[[3, 7, 20]][:, [3, 7, 20]]).all()
        assert (cells.sum(1) == matrix[[3, 7, 20]].sum(1)).all()


class TestCharts:
    @pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 8.9), (0.00012, 0.00019), (1e5, 3e6), (-7, -6.99)])
    def test_ticks_are_few_round_and_within(self, low, high):
        ticks = Axis(low, high).ticks()
        assert 2 <= len(ticks) <= 6
        slack = (high - low) * 1e-6
        assert all(low - slack <= tick <= high + slack for tick in ticks)
        steps = np.diff(ticks)
        assert steps == pytest.approx(np.full(len(steps), steps[0]))
        assert f"{steps[0]:e}"[:3] in ("1.0", "2.0", "2.5", "5.0")

    def test_a_curve_is_interrupted_where_a_number_is_missing(self):
        values = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
        page = Page(curves(np.arange(1.0, 6.0), {"loss": ("blue", values)}, short))
        [(found, _)] = page.all("path", **{"class": "line blue"})
        assert (found["d"].count("M"), found["d"].count("L")) == (2, 2)

    @pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [np.nan, np.nan]], ids=["one", "constant", "none"])
    def test_of_poor_numbers_are_drawn(self, values):
        svg = curves(np.arange(1.0, len(values) + 1), {"r2": ("blue", np.array(values))}, decimal)
        assert "nan" not in svg

    def test_points_lie_where_their_numbers_say(self):
        page = Page(scatter(np.array([0.0, 10.0, 5.0]), np.array([0.0, 10.0, 0.0]), "mm", half=1.0))
        a, b, c = (np.array([float(found["cx"]), float(found["cy"])]) for found, _ in page.all("circle"))
        assert (b - a > 0).tolist() == [True, False]  # pixels count from the top
        assert c[1] == a[1]
        assert c[0] == pytest.approx((a[0] + b[0]) / 2, abs=0.1)
        assert len(page.all("polygon")) == 1
        assert not Page(scatter(np.zeros(3), np.zeros(3), "", half=np.inf)).all("polygon")


class TestRepeat:
    @pytest.mark.parametrize(
        "options",
        [
            {"epochs": 3, "size": "24x32", "seed": 5, "skip_bad": True, "lr": 1e-3},
            {"minutes": 0.5, "target": ("a b", "c"), "flip": 0.25, "operations": 2, "balance": "weights"},
        ],
    )
    def test_the_command_line_gives_the_same_options(self, options, monkeypatch, tmp_path):
        config, got = TrainConfig.of(**options), []

        def start_run(data, config, out, journal):
            (tmp_path / "validation.json").write_text('{"summary": {}}', "utf-8")
            got.append((data, config))
            return tmp_path

        monkeypatch.setattr("vitreous.training.train.start_run", start_run)
        words = [word for part in command(config, "/my data/x.csv") for word in shlex.split(part)]
        assert words[:2] == ["vitreous", "train"]
        assert verbs.run("train", words[2:]) == 0
        assert got == [("/my data/x.csv", config)]

    @every_task
    def test_stands_on_the_page_with_versions_and_times(self, pages, runs, kind):
        text = read(pages[kind]).text("repeat")
        assert f"vitreous train {runs[kind][0]}" in text
        assert "--epochs 2" in text
        assert f"torch {torch.__version__}" in text


class TestTheCard:
    def test_marks_what_only_the_user_knows_and_takes_it(self, runs, pages):
        gaps = read(pages["multilabel"]).all("span", **{"class": "fill"})
        assert len(gaps) == len(GAPS)
        _, run = runs["multilabel"]
        page = Page(report(run, card={"ethics": "Harms <nobody>.", "contact": "me"}))
        assert len(page.all("span", **{"class": "fill"})) == len(GAPS) - 2
        assert "Harms <nobody>." in page.text("card")

    def test_refuses_a_field_that_it_has_not(self, runs):
        with pytest.raises(InputError, match="no field ethic: expected intended_use"):
            report(runs["multilabel"][1], card={"ethic": "x"})


class TestFigures:
    def test_stand_on_the_page_as_they_are_after_the_answers_by_depth(self, runs):
        figure, asked = Figure(figsize=(1, 1)), []

        def figures(model: torch.nn.Module, pixels: torch.Tensor):
            asked.append(pixels.shape)
            return [("Filters <1>", "What & why", figure)]

        found = evaluated(runs, "multilabel")
        text = report(runs["multilabel"][1], figures=figures)
        page = Page(text)
        assert asked == [(len(found.names[::2]), 3, 24, 32)]
        assert "Filters <1>" in page.text("inside")
        assert "What & why" in page.text("inside")
        assert [drawn["aria-label"] for drawn, _ in page.all("svg", **{"class": "drawn"})][1:] == ["Filters <1>"]
        assert to_svg(figure, "Filters <1>") in text

    @pytest.mark.parametrize(("kind", "key"), [("classification", "top1"), ("multilabel", "map")])
    def test_by_depth_end_with_what_evaluate_gives(self, runs, kind, key):
        found = evaluated(runs, kind)
        page = Page(report(runs[kind][1], figures=lambda *_: []))
        [(_, text)] = page.all("svg", **{"class": "drawn"})
        assert f"{100 * found.summary[key]:.1f} %" in text
        assert "after block (0: embedded)" in text
        assert f"after each block, on {len(found.names)} of" in page.text("inside")

    def test_by_depth_are_of_no_more_pictures_than_a_few(self, runs, monkeypatch):
        monkeypatch.setattr(sys.modules["vitreous.insight.report.mistakes"], "READ_BY_DEPTH", 5)
        _, run = runs["regression"]
        count = len(evaluated(runs, "regression").names)
        assert f"RMSE of what the head reads after each block, on 5 of {count}" in report(run, figures=lambda *_: [])

    def test_have_no_style_no_font_and_no_colour_of_their_own_and_no_id_twice(self, drawn):
        page = Page(drawn.read_text("utf-8"))
        assert len(page.all("svg", **{"class": "drawn"})) >= 5
        assert not [found for _, found, _ in page.elements if "style" in found or "font-family" in found]
        ids = [found["id"] for _, found, _ in page.elements if "id" in found]
        assert len(ids) == len(set(ids))
        colours = {found[name] for _, found, _ in page.elements for name in ("fill", "stroke") if name in found}
        assert "var(--muted)" in colours
        assert {found.get("fill") for found, text in page.all("text") if text and "transform" in found} <= {
            *("var(--ink)", "var(--muted)", "var(--blue)")
        }

    def test_that_do_not_fit_in_the_file_are_left_out_with_a_word(self, runs, monkeypatch):
        large, small = Figure(figsize=(6, 6)), Figure(figsize=(1, 1))
        large.add_subplot().imshow(np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8))
        assert len(to_svg(large, "large")) > MOST_BYTES // 8
        monkeypatch.setattr(sys.modules["vitreous.insight.report"], "MOST_BYTES", MOST_BYTES // 8)
        text = report(runs["multilabel"][1], figures=lambda *_: [("large", "", large), ("small", "", small)])
        assert len(text.encode()) < MOST_BYTES // 8
        page = Page(text)
        assert "1 more would make this file too large" in page.text("inside")
        assert len(page.all("svg", **{"class": "drawn"})) == 2  # and the answers by depth


class TestInABrowser:
    @needs_browser
    @pytest.mark.parametrize("look", ["light", "dark"])
    def test_fits_a_phone_and_can_be_read_in_both_looks_without_a_word_or_a_request(self, drawn, browser, look):
        faults: list[str] = []
        asked_for: list[str] = []
        context = browser.new_context(offline=True, viewport={"width": 420, "height": 900}, color_scheme=look)
        shown = context.new_page()
        shown.on("console", lambda message: faults.append(message.text))
        shown.on("pageerror", lambda error: faults.append(str(error)))
        shown.on("request", lambda asked: asked_for.append(asked.url[:5]))
        shown.goto(drawn.as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") == 420
        assert shown.evaluate("document.querySelector('#classes .wide').scrollWidth") <= 380
        cells = "[...document.querySelectorAll('#classes tbody tr:first-child > *')]"
        assert shown.evaluate(f"{cells}.every(cell => cell.scrollWidth <= cell.clientWidth + 1)")
        assert shown.evaluate(f"{cells}.length") == 7
        texts = "[...document.querySelectorAll('svg.drawn text')].filter(text => text.textContent.trim())"
        tones = shown.evaluate(f"{texts}.map(text => getComputedStyle(text).fill.match(/\\d+/g).map(Number))")
        ground = shown.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert min(contrast(tone, ground) for tone in tones) > 4.5
        fonts = shown.evaluate(f"new Set({texts}.map(text => getComputedStyle(text).fontFamily)).size")
        assert fonts == 1
        button = shown.locator("#classes thead button").nth(1)
        button.focus()
        shown.keyboard.press("Enter")
        assert shown.locator("#classes thead th").nth(1).get_attribute("aria-sort") == "descending"
        context.close()
        assert faults == []
        assert set(asked_for) <= {"file:", "data:"}


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (None, "is missing or holds no rows"),
            ("", "is damaged"),
            ("epoch,step\n1,2\n", "is damaged"),
            ("epoch,step,seconds,lr,train_loss,val_loss,map\n1,2,3,x,5,6,7\n", "is damaged"),
            ("epoch,step,seconds,lr,train_loss,val_loss,map\n1,2,3\n", "is damaged"),
            ("\x00\x01 no table", "is missing or holds no rows"),
        ],
        ids=["missing", "empty", "columns", "text", "short", "binary"],
    )
    def test_metrics_that_cannot_be_read_are_named(self, runs, tmp_path, content, what):
        run = tmp_path / "run"
        shutil.copytree(runs["multilabel"][1], run)
        (run / "metrics.csv").unlink()
        if content is not None:
            (run / "metrics.csv").write_text(content, "utf-8")
        with pytest.raises(InputError, match=rf"metrics\.csv {what}"):
            write_report(run, out=tmp_path / "report.html")
        assert not (tmp_path / "report.html").exists()

    @pytest.mark.parametrize("name", ["model.safetensors", "plan.json", "validation.json"])
    def test_a_run_that_is_not_finished_is_named(self, runs, tmp_path, name):
        run = tmp_path / "run"
        shutil.copytree(runs["multilabel"][1], run)
        (run / name).unlink()
        with pytest.raises(InputError, match=name):
            report(run)

    def test_a_plan_that_is_damaged_is_named(self, runs, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(runs["multilabel"][1], run)
        (run / "plan.json").write_text("{}", "utf-8")
        with pytest.raises(InputError, match=r"plan\.json is damaged"):
            report(run)

    def test_a_folder_that_is_not_there_is_named(self, runs, tmp_path):
        with pytest.raises(InputError, match="there is no folder"):
            write_report(runs["multilabel"][1], out=tmp_path / "no" / "report.html")


class TestTheCommandLine:
    def test_writes_the_page_into_the_run_directory_with_maps_and_figures(self, runs, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(runs["classification"][1], run)
        before = making.tree(run)
        assert main(["report", str(run), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"page": str(run / "report.html")}
        assert making.tree(run) == before | {str(run / "report.html")}
        page = Page((run / "report.html").read_text("utf-8"))
        assert evaluated(runs, "classification").summary["nll"] in page.numbers()
        shots = page.all("span", **{"class": "shot"})
        assert len(page.all("img", **{"class": "map coarse"})) == len(shots) > 0
        assert len(page.all("svg", **{"class": "drawn"})) >= 5

    @pytest.mark.usefixtures("undrawn")
    def test_shows_other_data_where_it_is_told_to(self, runs, tmp_path, capsys):
        _, run = runs["classification"]
        other, before = make_table(tmp_path / "other", ["label"], classes(9), seed=7), making.tree(run)
        words = ["report", run, other, "--split", "all", "--out", tmp_path / "other.html"]
        assert main([str(word) for word in words]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"page: {tmp_path / 'other.html'}"
        assert "Measured on 9 pictures of table.csv" in (tmp_path / "other.html").read_text("utf-8")
        assert making.tree(run) == before

    @pytest.mark.usefixtures("undrawn", "unpainted")
    def test_of_a_training_writes_it_when_that_is_done_and_asked_for(self, tmp_path, capsys):
        data, out = make_table(tmp_path / "data", ["label"], classes(12)), tmp_path / "run"
        words = [*making.TOY_WORDS, "--epochs", "1", "--batch", "4", "--validation", "0.5", "--json"]
        assert main(["train", str(data), "--out", str(out), "--report", *words]) == 0
        told = capsys.readouterr()
        assert json.loads(told.out)["page"] == str(out / "report.html")
        assert told.err.splitlines()[-1] == f"page: {out / 'report.html'}"
        page = Page((out / "report.html").read_text("utf-8"))
        assert page.all("svg", **{"class": "drawn"})
        assert "--report" not in page.text("repeat")
        assert "report" not in (out / "config.json").read_text("utf-8") + (out / "plan.json").read_text("utf-8")

    @pytest.mark.parametrize("name", ["page.pdf", "no/page.html"])
    def test_refuses_a_page_that_could_not_be_written_before_the_work(self, runs, tmp_path, name, capsys):
        assert main(["report", str(runs["regression"][1]), "--out", str(tmp_path / name)]) == 2
        assert "vitreous report: --out" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def test_the_file_is_the_page_and_lies_in_the_run_directory(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs["regression"][1], run)
    before = making.tree(run)
    path = write_report(run)
    assert path == run / "report.html"
    assert making.tree(run) == before | {str(path)}
    assert Page(path.read_text("utf-8")).text("learning")
