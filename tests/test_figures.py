"""vitreous.training.figures: real files, read back and measured."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from vitreous.data.targets import Task
from vitreous.training import figures

HOSTILE = ["$a_b$", "$\\frac{", "under_score", "two\nlines\x00\t", "🐱 cat", "שלום", "猫と犬", "", "\udcff", "x" * 300]
RED = np.array([[[255, 0, 0]]], np.uint8)


def read(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(np.int16)


def near(pixels, colour, tolerance=12):
    """Where a picture has a colour, given as #rrggbb or as three numbers."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)] if isinstance(colour, str) else colour
    return (np.abs(pixels - np.array(wanted, np.int16)) <= tolerance).all(axis=2)


def extent(mask):
    """Height and width of the box around what is True."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def run(epochs=20, **columns):
    rows = [
        {"epoch": e, "train_loss": 2 / e, "val_loss": 2.2 / e, "lr": 1e-3 / e, "top1": 1 - 0.9 / e}
        for e in range(1, epochs + 1)
    ]
    return [row | columns for row in rows]


# Curves


def test_curves_draw_both_losses_and_the_headline_on_white(tmp_path):
    figures.curves(run(), tmp_path / "curves.png", "top1")
    pixels = read(tmp_path / "curves.png")
    assert 1400 < pixels.shape[1] < 1700
    assert (pixels[[0, -1]] == 255).all()
    assert (pixels[:, [0, -1]] == 255).all()
    left, middle = pixels[:, : pixels.shape[1] * 2 // 5], pixels[:, pixels.shape[1] * 2 // 5 :]
    for half, colour in [(left, figures.MUTED), (left, figures.BLUE), (middle, figures.ORANGE)]:
        assert extent(near(half, colour))[0] > 150


def test_a_column_without_numbers_leaves_its_panel_empty(tmp_path):
    empty = ["", None, "nan", float("nan"), float("inf")] * 4  # what any of them gave would be joined to a line
    rows = [row | {"top1": none, "val_loss": none} for row, none in zip(run(), empty, strict=True)]
    figures.curves(rows, tmp_path / "curves.png", "top1")
    pixels = read(tmp_path / "curves.png")
    assert not near(pixels, figures.ORANGE).any()
    assert not near(pixels, figures.BLUE).any()
    assert extent(near(pixels, figures.MUTED))[0] > 150


def test_gaps_between_validations_are_joined_and_rows_may_be_text(tmp_path):
    rows = [row if row["epoch"] % 5 == 0 else row | {"top1": ""} for row in run()]
    figures.curves([{k: str(v) for k, v in row.items()} for row in rows], tmp_path / "text.png", "top1")
    orange = near(read(tmp_path / "text.png"), figures.ORANGE)
    assert extent(orange)[1] > 250
    columns = np.flatnonzero(orange.any(axis=0))
    assert np.diff(columns[: len(columns) // 2]).max() == 1


@pytest.mark.parametrize("rows", [[], run(1), [{"epoch": 1}]], ids=["none", "one", "bare"])
def test_a_run_that_has_just_begun_can_be_drawn(tmp_path, rows):
    figures.curves(rows, tmp_path / "curves.png", "r2")
    assert read(tmp_path / "curves.png").min() < 100


# Confusion


def test_confusion_has_true_classes_down_and_predicted_ones_across(tmp_path):
    figures.confusion(np.array([[0, 5, 0], [5, 0, 0], [5, 0, 0]]), ["a", "b", "c"], tmp_path / "confusion.png")
    pixels = read(tmp_path / "confusion.png")
    dark = near(pixels, (0x08, 0x40, 0x6E), 4)
    dark[:, pixels.shape[1] * 3 // 4 :] = False  # the colour bar's end
    height, width = extent(dark)
    cells = dark[np.flatnonzero(dark.any(axis=1))[0] :, np.flatnonzero(dark.any(axis=0))[0] :][:height, :width]
    assert height / 3 == pytest.approx(width / 2, abs=2)  # columns a and b alone are dark
    corners = cells[[8, height // 2, height - 8]][:, [8, width - 8]]
    assert corners.tolist() == [[False, True], [True, False], [True, False]]


@pytest.mark.parametrize(("K", "written"), [(30, True), (31, False)])
def test_counts_are_written_up_to_30_classes_and_not_above(tmp_path, monkeypatch, K, written):
    monkeypatch.setattr(figures, "DPI", 50)
    bodies = []
    for count in (100, 200):  # of the same colour, since each is all of its row
        figures.confusion(count * np.eye(K, dtype=int), ["name"] * K, tmp_path / "confusion.png")
        bodies.append(read(tmp_path / "confusion.png")[20:])  # without the title, which has the total
    assert (bodies[0] != bodies[1]).any() == written


def test_confusion_grows_with_its_classes_up_to_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "DPI", 50)
    widths = []
    for K in (2, 10, 60, 1000):
        figures.confusion(np.eye(K, dtype=int), [f"class {k}" for k in range(K)], tmp_path / "confusion.png")
        pixels = read(tmp_path / "confusion.png")
        widths.append(pixels.shape[1])
        assert near(pixels, (0x08, 0x40, 0x6E), 60).any()
    assert widths == sorted(widths)
    assert widths[2] < widths[3]
    assert max(widths) < 830


def test_a_class_without_samples_leaves_a_white_row(tmp_path):
    figures.confusion(np.array([[0, 0], [3, 0]]), ["a", "b"], tmp_path / "confusion.png")
    assert read(tmp_path / "confusion.png").std() > 10


# Scatter


def test_scatter_draws_a_square_panel_a_target(tmp_path):
    true = np.random.default_rng(0).normal(size=(80, 5))
    sizes = []
    for K in (1, 2, 5):
        figures.scatter(true[:, :K] + 0.1, true[:, :K], list("abcde")[:K], ["mm"] * K, tmp_path / "scatter.png")
        sizes.append(read(tmp_path / "scatter.png").shape[:2])
    assert sizes[1][1] == pytest.approx(2 * sizes[0][1], rel=0.1)
    assert sizes[2][0] == pytest.approx(2 * sizes[1][0], rel=0.1)


def test_the_band_is_drawn_where_its_half_width_is_finite(tmp_path):
    true = np.linspace(0, 10, 30)[:, None]
    band = (229, 241, 247)  # a tenth of the blue on white
    areas = []
    for half in (None, [np.inf], [1.0], [3.0]):
        figures.scatter(true, true, ["age"], ["years"], tmp_path / "scatter.png", half)
        areas.append(near(read(tmp_path / "scatter.png"), band, 3).sum())
    assert areas[0] == areas[1]
    assert areas[0] + 10_000 < areas[2] < areas[3]


@pytest.mark.parametrize(
    ("predicted", "true"),
    [([[1.0]], [[2.0]]), ([[np.nan], [1.0]], [[1.0], [1.0]]), ([[np.nan]], [[np.nan]]), ([[3.0]] * 4, [[3.0]] * 4)],
    ids=["one", "a NaN", "only NaN", "constant"],
)
def test_scatter_of_poor_data_is_drawn(tmp_path, predicted, true):
    figures.scatter(np.array(predicted), np.array(true), ["age"], [""], tmp_path / "scatter.png")
    assert read(tmp_path / "scatter.png").min() < 100


# Bars of labels


def test_bars_are_as_long_as_their_f1_with_the_best_on_top(tmp_path):
    figures.label_bars(["low", "high", "none"], [0.25, 1.0, 0.0], tmp_path / "bars.png")
    lengths = near(read(tmp_path / "bars.png"), figures.BLUE).sum(axis=1)
    long, short = lengths[lengths > 0][[0, -1]]  # the uppermost and the lowest row of pixels that is blue
    assert short / long == pytest.approx(0.25, abs=0.01)


def test_of_many_labels_the_lowest_are_drawn(tmp_path):
    figures.label_bars([f"label {k}" for k in range(1000)], np.linspace(0, 1, 1000), tmp_path / "bars.png")
    pixels = read(tmp_path / "bars.png")
    assert pixels.shape[0] < 1600
    assert extent(near(pixels, figures.BLUE))[1] < 40


# The figure of a task


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_the_result_of_a_task_is_the_figure_that_suits_it(tmp_path, kind):
    task = Task(kind, ("a", "b"), ("mm", ""))
    numbers = np.random.default_rng(0).normal(size=(20, 2))
    summary = {"confusion": [[3, 1], [0, 4]], "labels": {"a": {"f1": 0.2}, "b": {"f1": 0.7}}}
    figures.result(task, numbers, numbers, summary, (1.0, 2.0), tmp_path / "result.png")
    if kind == "classification":
        figures.confusion(np.array([[3, 1], [0, 4]]), ["a", "b"], tmp_path / "direct.png")
    elif kind == "multilabel":
        figures.label_bars(["a", "b"], [0.2, 0.7], tmp_path / "direct.png")
    else:
        figures.scatter(numbers, numbers, ["a", "b"], ["mm", ""], tmp_path / "direct.png", [1.0, 2.0])
    assert (tmp_path / "result.png").read_bytes() == (tmp_path / "direct.png").read_bytes()


# Contact sheets


@pytest.mark.parametrize(("height", "width"), [(60, 60), (80, 40), (30, 90)])
def test_a_picture_keeps_its_aspect(tmp_path, height, width):
    figures.pictures([np.tile(RED, (height, width, 1))] * 2, ["", ""], tmp_path / "sheet.png", "", columns=1)
    red = near(read(tmp_path / "sheet.png"), (255, 0, 0), 0)
    first = red[: np.flatnonzero(np.diff(red.any(axis=1).astype(int)) == -1)[0] + 1]
    h, w = extent(first)
    assert h / w == pytest.approx(height / width, rel=0.03)


def test_a_lone_tall_picture_does_not_stretch_the_sheet(tmp_path):
    square, tall = np.tile(RED, (50, 50, 1)), np.tile(RED, (1700, 100, 1))
    figures.pictures([square] * 7 + [tall], [""] * 8, tmp_path / "sheet.png", "")
    assert extent(near(read(tmp_path / "sheet.png"), (255, 0, 0), 0))[0] < 1.6 * 1.4 * figures.DPI


def test_small_pictures_are_enlarged_without_smoothing(tmp_path):
    board = (np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8)
    figures.pictures([np.dstack([board, 0 * board, 0 * board])], [""], tmp_path / "board.png", "")
    inside = read(tmp_path / "board.png")[-120:-40, 60:180]
    assert set(np.unique(inside[..., 0])) == {0, 255}


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int32, np.float16])
def test_other_numbers_are_scaled_by_percentiles_and_an_outlier_does_not_hide_the_rest(tmp_path, dtype):
    image = np.linspace(1000, 2000, 64 * 64).reshape(64, 64, 1).astype(dtype)
    image[0, 0] = 60_000
    figures.pictures([image], [""], tmp_path / "sheet.png", "")
    inside = read(tmp_path / "sheet.png")[-200:-25, 40:200]
    assert inside.min() < 45
    assert inside.max() > 230
    assert 90 < inside.mean() < 165


@pytest.mark.parametrize(("C", "colour"), [(1, (9, 9, 9)), (2, (9, 9, 9)), (3, (9, 99, 199)), (5, (9, 99, 199))])
def test_the_first_three_bands_are_shown_or_the_first_one(tmp_path, C, colour):
    image = np.full((40, 40, C), [9, 99, 199, 50, 60][:C], np.uint8)
    figures.pictures([image], [""], tmp_path / "sheet.png", "")
    assert near(read(tmp_path / "sheet.png"), colour, 0).sum() > 30_000


@pytest.mark.parametrize("value", [0.0, 7.5, np.nan, np.inf])
def test_pictures_of_one_number_or_none_are_drawn(tmp_path, value):
    figures.pictures([np.full((9, 9), value, np.float32)], ["flat"], tmp_path / "sheet.png", "")
    assert near(read(tmp_path / "sheet.png"), (128, 128, 128), 2).sum() > 30_000


def test_captions_have_their_colours_and_up_to_three_lines(tmp_path):
    heights = []
    for caption in ("one", "one\ntwo", "one\ntwo\nthree", "1\n2\n3\n4\n5"):
        figures.pictures([np.tile(RED, (9, 9, 1))], [caption], tmp_path / "s.png", "", colours=["#0000ff"])
        heights.append(extent(near(read(tmp_path / "s.png"), (0, 0, 255), 90))[0])
    assert heights[0] < heights[1] < heights[2]
    assert heights[3] == pytest.approx(heights[2], abs=4)


def test_a_long_caption_does_not_reach_its_neighbour(tmp_path):
    for text in ("W" * 99, "said T-shirt and top 98 %", "猫" * 99):
        figures.pictures([np.tile(RED, (9, 9, 1))] * 2, [text, ""], tmp_path / "s.png", "", colours=["#0000ff"] * 2)
        pixels = read(tmp_path / "s.png")
        red, blue = near(pixels, (255, 0, 0), 0), near(pixels, (0, 0, 255), 120)
        second = np.flatnonzero(red.any(axis=0))[-1] - 1.4 * figures.DPI
        assert np.flatnonzero(blue.any(axis=0))[-1] < second


def test_a_sheet_without_pictures_is_its_title(tmp_path):
    figures.pictures([], [], tmp_path / "sheet.png", "No mistakes")
    assert read(tmp_path / "sheet.png").min() < 100


# Names, style and files


def test_hostile_names_are_drawn_as_they_are_without_a_word(tmp_path, capfd):
    K = len(HOSTILE)
    true = np.arange(3.0 * K).reshape(3, K)
    figures.curves([{"epoch": 1, "$lo_ss$": 1.0}], tmp_path / "a.png", "$lo_ss$")
    figures.confusion(np.eye(K, dtype=int), HOSTILE, tmp_path / "b.png")
    figures.scatter(true, true, HOSTILE, HOSTILE[::-1], tmp_path / "c.png", np.ones(K))
    figures.label_bars(HOSTILE, np.linspace(0, 1, K), tmp_path / "d.png")
    figures.pictures([np.tile(RED, (9, 9, 1))] * K, HOSTILE, tmp_path / "e.png", "".join(HOSTILE))
    assert capfd.readouterr() == ("", "")
    for name in "abcde":
        height, width = read(tmp_path / f"{name}.png").shape[:2]
        assert height < 2000
        assert width < 2600


def test_a_users_matplotlib_settings_neither_change_a_figure_nor_are_changed(tmp_path):
    figures.curves(run(), tmp_path / "plain.png", "top1")
    with matplotlib.rc_context({"text.usetex": True, "figure.facecolor": "black", "font.size": 30}):
        figures.curves(run(), tmp_path / "styled.png", "top1")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()


def test_figures_are_png_whatever_the_path_is_called_and_pyplot_is_never_imported(tmp_path):
    code = (
        "import sys; from vitreous.training import figures\n"
        f"figures.label_bars(['a'], [0.5], {str(tmp_path / 'bars.part')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert (tmp_path / "bars.part").read_bytes().startswith(b"\x89PNG")
