"""The pictures of a run, as PNG: curves, confusion, scatter, bars of labels, contact sheets.

matplotlib is driven through its Figure alone, with a style of our own, so that neither a backend, a notebook nor a
user's matplotlibrc changes what is drawn. Names come from users: they are never read as TeX and never break a layout.
"""

import math
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vitreous.data.targets import Task
from vitreous.metrics import regression_errors

DPI = 150
INK, MUTED, FAINT = "#24292f", "#6e7781", "#e4e7eb"
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#9aa3ad"  # of Okabe & Ito 2008: distinct to every kind of colour vision
BLUES = LinearSegmentedColormap.from_list("blues", ["#ffffff", "#cfe3f3", "#7fb5dc", "#2a7fba", "#08406e"])

# What DejaVu lacks, where the system has it; monochrome outlines only, for colour fonts cannot be drawn.
FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Malgun Gothic",
    "WenQuanYi Micro Hei",
    "Noto Sans Devanagari",
    "Noto Emoji",
    "Arial Unicode MS",
)

STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a name with two dollars is a name
    "font.size": 8.5,
    "text.color": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",  # the figure's own ground shows through
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}

TITLES = {
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "exact_match": "Exact match",
    "map": "Mean average precision",
    "r2": "R²",
    "mae": "Mean absolute error",
    "rmse": "Root mean squared error",
}
PERCENT = {"top1", "top5", "balanced_accuracy", "exact_match"}


def curves(rows: Sequence[Mapping[str, Any]], path: str | Path, headline: str) -> None:
    """Losses, the headline metric and the learning rate over the epochs of a run.

    The rows are those of metrics.csv (epoch, train_loss, val_loss, lr and the column that `headline` names), numbers or
    text; what is empty, missing or not finite is a gap.
    """
    epochs = _column(rows, "epoch")
    last = max(epochs[np.isfinite(epochs)], default=0.0)
    with _figure(path, 10.4, 2.9) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 0.6])
        figure.get_layout_engine().set(w_pad=0.12)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
        left.set(title="Loss")
        train, validation = _column(rows, "train_loss"), _column(rows, "val_loss")
        ends = [_line(left, epochs, train, MUTED, "training"), _line(left, epochs, validation, BLUE, "validation")]
        _label_ends(left, [end for end in ends if end])

        middle.set(title=f"{TITLES.get(headline, short(headline, 24))} on validation")
        end = _line(middle, epochs, _column(rows, headline), ORANGE, "")
        if headline in PERCENT:
            middle.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))
        if end:
            x, y, colour, label = end
            _label_ends(middle, [(x, y, colour, f"{100 * y:.1f} %" if headline in PERCENT else label)])

        right.set(title="Learning rate")
        rates = _column(rows, "lr")
        _line(right, epochs, rates, MUTED, "", width=1.2)
        right.set_ylim(bottom=0)
        right.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.3g}"))
        for axes in (left, middle, right):
            axes.set(xlabel="epoch", xlim=(0, max(last * 1.03, 1.5)))
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
            axes.grid(visible=False, axis="x")
            if not axes.lines:
                axes.set_yticks([])
                axes.text(0.5, 0.5, "no values", transform=axes.transAxes, color=MUTED, ha="center", va="center")
        if rates.size and not rates.any():  # the last step's alone, which is 0
            right.set_yticks([0])


def confusion(matrix: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """A confusion matrix (K, K), true classes down, predicted across; a colour is a share of its row.

    Up to 30 classes the cells hold their counts. Of more than 100 classes, evenly spaced ones are named.
    """
    matrix = np.asarray(matrix)
    K, total = len(matrix), int(matrix.sum())
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    counted = K <= 30
    digits = len(f"{matrix.max(initial=0):,}")
    cell = max(0.34, 0.11 + 0.062 * digits) if counted else 0.13
    side = min(max(cell * K, 1.8), 13.0)
    named = range(0, K, math.ceil(K / 100))
    with _figure(path, side + 2.0, side + 1.3) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap=BLUES, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        labels = [short(names[k], 24) for k in named]
        size = 8 if counted else 6
        axes.set_xticks(
            named,
            labels,
            rotation=90 if not counted else 45,
            ha="center" if not counted else "right",
            rotation_mode="anchor" if counted else "default",
            fontsize=size,
        )
        axes.set_yticks(named, labels, fontsize=size)
        axes.set(xlabel="predicted", ylabel="true")
        right = np.trace(matrix) / max(total, 1)
        axes.set_title(f"{100 * right:.1f} % of {total:,} right · {K:,} classes")
        axes.spines[:].set_visible(True)
        axes.grid(visible=False)
        if counted:
            for (row, column), count in np.ndenumerate(matrix):
                if count:
                    colour = "white" if shares[row, column] > 0.3 else INK
                    axes.text(column, row, f"{count:,}", color=colour, ha="center", va="center", fontsize=7)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=30, ticks=[0, 0.1, 0.25, 0.5, 1])
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
        bar.set_label("share of the true class")


def scatter(
    predicted: np.ndarray,
    true: np.ndarray,
    names: Sequence[str],
    units: Sequence[str],
    path: str | Path,
    halfwidth: Sequence[float] | np.ndarray | None = None,
) -> None:
    """Predicted against true values (n, K), a panel a target, with the 90 % band where its half-width (K,) is given."""
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    n, K = true.shape
    columns = min(K, 4)
    rows = math.ceil(K / columns)
    size, alpha = (5.0, 0.7) if n <= 200 else (3.5, 0.4) if n <= 5_000 else (2.0, 0.15)
    with _figure(path, 3.5 * columns, 3.65 * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for spare in panels[K:]:
            spare.set_axis_off()
        for k, axes in enumerate(panels[:K]):
            known = np.isfinite(predicted[:, k]) & np.isfinite(true[:, k])
            p, t = predicted[known, k], true[known, k]
            unit = short(units[k], 16)
            low, high = _extent(np.concatenate([p, t]))
            ends = np.array([low, high])
            half = math.nan if halfwidth is None else float(halfwidth[k])
            if math.isfinite(half):
                band = axes.fill_between(ends, ends - half, ends + half, color=BLUE, alpha=0.1, linewidth=0)
                axes.legend([band], [f"90 % within ± {_with_unit(half, unit)}"], loc="upper left", fontsize=7.5)
            axes.plot(ends, ends, color=GREY, linewidth=1)
            axes.plot(t, p, "o", color=BLUE, alpha=alpha, markersize=size, markeredgewidth=0)
            axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
            axes.set(xlabel=f"true ({unit})" if unit else "true", ylabel=f"predicted ({unit})" if unit else "predicted")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(nbins=5))
            axes.set_title(f"{short(names[k], 30)}\n")  # its second line is the text below
            axes.text(0, 1.025, _errors(p, t, unit), transform=axes.transAxes, color=MUTED, va="bottom")


def result(
    task: Task,
    answers: np.ndarray,
    true: np.ndarray,
    summary: Mapping[str, Any],
    halfwidth: Sequence[float],
    path: str | Path,
) -> None:
    """The figure that suits the task: confusion matrix, F1 a label, or predicted against true, in units."""
    if task.kind == "classification":
        confusion(np.array(summary["confusion"]), task.names, path)
    elif task.kind == "multilabel":
        label_bars(task.names, [one["f1"] for one in summary["labels"].values()], path)
    else:
        scatter(answers, true, task.names, task.units, path, halfwidth)


def label_bars(names: Sequence[str], f1: Sequence[float] | np.ndarray, path: str | Path) -> None:
    """F1 (K,) of each label of a multi-label model, the best on top; of more than 40 labels the 40 lowest."""
    scores = np.asarray(f1, np.float64)
    order = np.argsort(-scores, kind="stable")[-40:]
    scores, labels = scores[order], [short(names[int(k)], 32) for k in order]
    K = len(scores)
    with _figure(path, 5.2, 0.75 + 0.21 * K) as figure:
        axes = figure.add_subplot()
        axes.barh(range(K), scores, color=BLUE, height=0.66)
        for place, score in enumerate(scores):
            axes.annotate(f"{score:.2f}", (score, place), (4, 0), textcoords="offset points", va="center", color=MUTED)
        axes.set_yticks(range(K), labels, color=INK)
        axes.set(xlim=(0, 1.08), ylim=(K - 0.4, -0.6), xlabel="F1 at 0.5", xticks=[0, 0.25, 0.5, 0.75, 1])
        which = f"{K} labels" if len(names) == K else f"the {K} lowest of {len(names):,} labels"
        axes.set_title(f"F1 of {which}" if len(names) > 1 else "F1")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)


def pictures(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    path: str | Path,
    title: str,
    columns: int = 8,
    colours: Sequence[str] | None = None,
) -> None:
    """A contact sheet of pictures (H, W, C) or (H, W), each in its own aspect, its caption of up to 3 lines under it.

    uint8 is shown as it is, other numbers between the 1st and 99th percentile of all; of two bands the first is shown,
    of four or more the first three. `colours` are the captions'.
    """
    columns = max(1, min(columns, len(images)))
    extent = visible_range(images)
    width, gap, line, size = 1.4, 0.14, 0.15, 8.0  # inches, and points
    fits = int(width * 72 / (0.56 * size))
    texts = ["\n".join(short(part, fits) for part in caption.split("\n")[:3]) for caption in captions]
    shares = [image.shape[0] / image.shape[1] for image in images]
    starts = range(0, len(images), columns)
    tallest = min(1.5 * float(np.median(shares)), 2.5) if shares else 1.0  # one tall picture must not stretch its row
    heights = [width * max(min(max(shares[start : start + columns]), tallest), 0.3) for start in starts]
    below = 0.06 + line * max((text.count("\n") + 1 for text in texts if text), default=0)
    page_width = columns * (width + gap) - gap
    page_height = 0.34 + sum(heights) + len(heights) * (below + gap) - gap
    with _figure(path, page_width, page_height, layout=None) as figure:
        heading = short(title, max(60, int(page_width * 72 / 6.2)))  # a little beyond the pictures, where they are few
        figure.text(0, 1, heading, va="top", fontsize=9.5, fontweight="bold")
        axes = figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[])  # in inches
        floor = page_height - 0.34
        for start, height in zip(starts, heights, strict=True):
            floor -= height
            for place in range(start, min(start + columns, len(images))):
                pixels = as_shown(images[place], round(4 * width * DPI), extent)
                scale = min(height / pixels.shape[0], width / pixels.shape[1])
                tall, wide = scale * pixels.shape[0], scale * pixels.shape[1]
                middle = (place - start) * (width + gap) + width / 2
                axes.imshow(
                    pixels,
                    cmap="gray",
                    vmin=0,
                    vmax=255,
                    interpolation="nearest" if scale * DPI > 1 else "hanning",
                    extent=(middle - wide / 2, middle + wide / 2, floor, floor + tall),
                )
                colour = colours[place] if colours else INK
                axes.text(middle, floor - 3 / 72, texts[place], ha="center", va="top", fontsize=size, color=colour)
            floor -= below + gap
        axes.set(xlim=(0, page_width), ylim=(0, page_height))


@contextmanager
def house_style() -> Iterator[None]:
    """Our style, whatever a user's matplotlib settings are."""
    fonts = ["DejaVu Sans", *(font for font in FALLBACK_FONTS if font in get_font_names())]
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that no font has become boxes
        matplotlib.rcdefaults()
        style: Any = STYLE | {"font.family": fonts}
        matplotlib.rcParams.update(style)
        yield


@contextmanager
def _figure(path: str | Path, width: float, height: float, layout: Any = "constrained") -> Iterator[Figure]:
    """A figure in our style, of a size in inches, written to the path as PNG when the block ends."""
    with house_style():
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout=layout)
        yield figure
        figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})


End = tuple[float, float, str, str]  # x, y, colour and label of a line's last point


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str, width: float = 1.8) -> End | None:
    """Draw y over x, gaps joined; the end that remains to be labelled, or None where there is no number."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if not len(x):
        return None
    axes.plot(x, y, color=colour, linewidth=width, marker="o" if len(x) == 1 else "", markersize=4)
    return float(x[-1]), float(y[-1]), colour, f"{label} {y[-1]:#.3g}".strip(" .")


def _label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Mark each line's end and write its label beside it, the labels pushed apart where they would meet."""
    low, high = axes.get_ylim()
    apart, below = 0.085 * (high - low), -math.inf
    for x, y, colour, label in sorted(ends, key=lambda end: end[1]):
        below = max(y, below + apart)
        axes.plot([x], [y], "o", color=colour, markersize=4.5, clip_on=False)
        axes.annotate(
            label,
            (x, below),
            (7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    values = (row.get(key) for row in rows)
    return np.array([math.nan if value is None or value == "" else float(value) for value in values], np.float64)


def _extent(values: np.ndarray) -> tuple[float, float]:
    """Limits of an axis that holds all values with a margin of 4 %."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or max(abs(low), 1.0) * 0.5
    return low - margin, high + margin


def _errors(predicted: np.ndarray, true: np.ndarray, unit: str) -> str:
    if not len(true):
        return "no values"
    errors = regression_errors(predicted[:, None], true[:, None])
    r2 = "" if math.isnan(errors.r2[0]) else f"R² {errors.r2[0]:.3f} · "
    return f"{r2}RMSE {_with_unit(float(errors.rmse[0]), unit)}"


def _with_unit(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}".rstrip()


def visible_range(images: Sequence[np.ndarray]) -> tuple[float, float]:
    """The 1st and 99th percentile of the finite numbers of all pictures."""
    values = np.concatenate([np.asarray(image).ravel()[:: max(1, image.size // 10_000)] for image in images] or [[0.0]])
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, [1, 99]) if known.size else (0.0, 0.0)
    return float(low), float(high)


def as_shown(image: np.ndarray, most: int, extent: tuple[float, float]) -> np.ndarray:
    """The picture as uint8, (h, w) or (h, w, 3), thinned to at most about `most` pixels a side."""
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    step = max(1, max(image.shape[:2]) // most)
    image = image[::step, ::step, :3] if image.shape[2] >= 3 else image[::step, ::step, 0]
    if image.dtype == np.uint8:
        return image
    values = image.astype(np.float64)
    low, high = extent
    if low == high:
        return np.full(image.shape, 128, np.uint8)
    shares = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / (high - low)
    return (255 * shares.clip(0, 1)).round().astype(np.uint8)


def _clean(text: str) -> str:
    """One line that can be drawn: line breaks, control characters and lone surrogates become spaces."""
    return "".join(c if c.isprintable() else " " for c in str(text)).strip()


def short(text: str, most: int) -> str:
    """The clean text, cut with … to the width of `most` common letters."""
    text = _clean(text)
    widths = np.cumsum([_letter_width(c) for c in text])
    if not text or widths[-1] <= most:
        return text
    return text[: int(np.searchsorted(widths, most - 1, side="right"))].rstrip() + "…"


def _letter_width(letter: str) -> float:
    if unicodedata.east_asian_width(letter) in "WF":
        return 2.0
    return 1.7 if letter in "MWmw@%" else 1.25 if letter.isupper() else 1.0
