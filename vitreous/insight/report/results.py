"""The parts of the page that say what a run reached, and how it got there."""

import math
from functools import partial

import numpy as np

from vitreous import metrics
from vitreous.calibration import COVERAGE
from vitreous.insight.page import escape
from vitreous.insight.report import pieces as html
from vitreous.insight.report.charts import SHOWN_POINTS, Axis, curves, heat_table, histogram, scatter, span
from vitreous.insight.report.material import MEASURED, Material
from vitreous.insight.report.pieces import Bounds, Text, course, decimal, lasting, percent, short, whole
from vitreous.model.presets import name_of
from vitreous.model.vit import count_parameters
from vitreous.training import figures
from vitreous.training.journal import clock
from vitreous.training.measuring import HEADLINES

LOSSES = {
    "classification": "cross-entropy, nats",
    "multilabel": "binary cross-entropy, nats",
    "regression": "mean squared error, in variances",
}
SHOWN_CONFUSED = 20  # classes of a confusion matrix; of more, those that are confused most
SHOWN_PAIRS = 10
SHOWN_CLASSES = 1000  # rows of a table
SHOWN_EPOCHS = 100  # rows of a table
SHOWN_TARGETS = 6  # of a regression, that get charts
GONE = "This needs the pictures, which are gone."
TITLES = figures.TITLES | {"rmse": "RMSE", "mae": "MAE"}
CHIEF = {
    "classification": ("top1", "balanced_accuracy", "top5", "macro_f1"),
    "multilabel": ("map", "macro_f1", "micro_f1", "exact_match"),
}

Tile = tuple[str, float | None, Text, Bounds | None]


def opening(m: Material) -> str:
    """The chief numbers, with their intervals."""
    tiles = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{html.cell(value, text)}</dd>"
        f'<dd class="muted small">{html.cell(bounds, text) if bounds else "no interval"}</dd></div>'
        for title, value, text, bounds in chief_numbers(m)
    )
    names = m.task.names
    aim = {
        "classification": f"to tell {len(names):,} classes apart",
        "multilabel": f"to say which of {len(names):,} labels a picture has",
        "regression": f"to measure {', '.join(names[:6])}{f' and {len(names) - 6:,} more' if len(names) > 6 else ''}",
    }[m.task.kind]
    lead = (
        f"{name_of(m.predictor.model.config) or 'A model of its own kind'}, "
        f"{count_parameters(m.predictor.model) / 1e6:.2f} M parameters, trained for {lasting(m.rows[-1]['seconds'])} "
        f"on {m.census.counts.get('train', 0):,} pictures {aim}. Measured on {m.subject}."
    )
    notes = "".join(f'<p class="note">{escape(note[:1].upper() + note[1:].removesuffix("."))}.</p>' for note in m.notes)
    how = "Wilson’s for shares, a bootstrap over the pictures for the rest" if m.found else "Wilson’s"
    return (
        f'<div class="opening"><p class="muted small">Training report</p><h1>{escape(m.run.path.name)}</h1>'
        f'<p class="lead">{escape(lead)}</p><dl class="tiles">{tiles}</dl>'
        f'<p class="muted small">Ranges: 95\u00a0% intervals, {how}.</p>{notes}</div>'
    )


def chief_numbers(m: Material) -> list[Tile]:
    """Titles, numbers and intervals; those that need the single answers are not known where these are not."""
    tiles: list[Tile] = []
    if m.task.kind == "regression":
        keys = ("r2", "rmse", "mae")[: 3 if m.task.outputs == 1 else 2 if m.task.outputs <= 3 else 1]
        for k, (name, one) in enumerate([*m.summary["targets"].items()][:SHOWN_TARGETS]):
            of = f" of {name}" if m.task.outputs > 1 else ""
            for key in keys:
                text = decimal if key == "r2" else partial(short, unit=one["unit"])
                tiles.append((TITLES[key] + of, one[key], text, m.bounds(key, k)))
        return tiles
    for key in CHIEF[m.task.kind]:
        if key in m.summary:
            value, text = m.summary[key], percent if key in figures.PERCENT else decimal
            bounds = m.bounds(key) if key in MEASURED[m.task.kind] else wilson(value, m.summary["n"])
            tiles.append((TITLES[key], value, text, bounds))
    return tiles


def wilson(share: float, n: int) -> Bounds:
    """The 95 % interval of a share of n."""
    return metrics.wilson_interval(round(share * n), n)


def learning(m: Material) -> str:
    """Losses, the headline metric and the learning rate over the epochs."""
    key, last = HEADLINES[m.task.kind], m.rows[-1]
    title, text = TITLES[key], percent if key in figures.PERCENT else decimal
    columns = {"epoch": short, "step": whole, "seconds": clock, "lr": short, "train_loss": decimal, "val_loss": decimal}
    columns |= {key: text}
    column = {name: np.array([row.get(name, math.nan) for row in m.rows], np.float64) for name in columns}
    losses = {"training": ("grey", column["train_loss"]), "validation": ("blue", column["val_loss"])}
    score, rate = {title: ("orange", column[key])}, {"learning rate": ("grey", column["lr"])}
    about = {
        "Updates": f"{last['step']:,} of {m.plan.batch:,} pictures",
        "Epochs": short(last["epoch"]),
        "Time": lasting(last["seconds"]),
        "Training loss": course(column["train_loss"], short),
        "Validation loss": course(column["val_loss"], short),
        title: course(column[key], text),
    }
    how_far = "How far the answers were off on the augmented training pictures, and on the validation pictures."
    how_good = "How good the answers were on the validation pictures, with the moving average of the weights."
    how_large = f"How large the steps of {m.plan.optimizer} were, as the schedule had it."
    tones, above = {name: tone for name, (tone, _) in losses.items()}, (0, math.inf)
    charts = [
        html.figure("Loss", curves(column["epoch"], losses, short, LOSSES[m.task.kind], above), how_far, tones),
        html.figure(f"{title} on validation", curves(column["epoch"], score, text, title, (-math.inf, 1)), how_good),
        html.figure("Learning rate", curves(column["epoch"], rate, short, "learning rate", above), how_large),
        f"<div>{html.facts(about)}</div>",
    ]
    step = -(-len(m.rows) // SHOWN_EPOCHS)
    rows = [[row.get(name) for name in columns] for row in m.rows[:-1][::step] + m.rows[-1:]]
    words = ("After each epoch. The last weights are what was saved; no best epoch was picked.",)
    numbers = html.details("The numbers", html.table("Rows of metrics.csv", columns, rows))
    return html.section("learning", "Learning curves", words, html.panels(charts), numbers)


def classes(m: Material) -> str:
    """Measures of each class or label."""
    noun, plural = ("label", "labels") if m.task.kind == "multilabel" else ("class", "classes")
    each = m.summary[plural]
    seen = [name for name in each if each[name]["support"]]
    order = list(each) if len(each) <= SHOWN_CLASSES else sorted(each, key=lambda name: each[name]["f1"])
    columns = {noun: None, "pictures": whole, "precision": percent, "recall": percent, "95\u00a0% of recall": None}
    columns |= {"F1": decimal} | ({"average precision": decimal} if noun == "label" else {})
    rows = []
    for name, one in ((name, each[name]) for name in order[:SHOWN_CLASSES]):
        recall, support = one["recall"], one["support"]
        known = (recall, span(recall, wilson(recall, support))) if support else (None, "–")
        last = (one["f1"], one["average_precision"]) if noun == "label" else (one["f1"],)
        rows.append((html.named(name), support, one["precision"], *known, *last))
    lowest = min(seen, key=lambda name: each[name]["f1"], default="")
    words = [
        f"{len(each):,} {plural}, on {escape(m.subject)}. A click on a heading sorts.",
        f"The lowest F1 is that of “{html.named(lowest)}”: {decimal(each[lowest]['f1'])}." if len(seen) > 1 else "",
        f"{len(each) - len(seen):,} of the {plural} are on none of these pictures." if len(seen) < len(each) else "",
        f"The {SHOWN_CLASSES:,} with the lowest F1 are shown." if len(each) > SHOWN_CLASSES else "",
    ]
    shown = html.table(f"Measures of each {noun}", columns, rows, "sortable stacked")
    return html.section("classes", f"{noun.capitalize()} by {noun}", words, shown)


def targets(m: Material) -> str:
    """Of a regression: errors of each target."""
    columns: dict[str, Text | None] = {"target": None, "unit": None}
    for key in MEASURED["regression"]:
        text = decimal if key == "r2" else short
        columns |= {TITLES[key]: text, f"95\u00a0% of {TITLES[key]}": text}
    rows = []
    for k, (name, one) in enumerate(m.summary["targets"].items()):
        measured = [(one[key], m.bounds(key, k)) for key in MEASURED["regression"]]
        rows.append([html.named(name), escape(one["unit"] or "–"), *(value for pair in measured for value in pair)])
    words = (
        f"Errors on {escape(m.subject)}, in units of the target.",
        "R² is 1 for perfect answers, and 0 for always answering the mean.",
    )
    shown = html.table("Errors of each target", columns, rows, "stacked")
    return html.section("classes", "Target by target", words, shown)


def answers(m: Material) -> str:
    """Of a regression: truth against answer, and what is between them."""
    if m.found is None:
        return html.section("answers", "Truth and answer", (GONE,))
    charts, widths = [], m.predictor.calibration.halfwidth
    for k, (name, unit) in enumerate(zip(m.task.names[:SHOWN_TARGETS], m.task.units, strict=False)):
        true, said = m.found.targets[:, k].astype(np.float64), m.found.answers[:, k].astype(np.float64)
        counts, edges = np.histogram(said - true, min(31, max(5, round(len(true) ** 0.5))))
        x = Axis.over(edges, f"answer minus truth{f' ({unit})' if unit else ''}")
        mean = short(float((said - true).mean()), unit)
        about = f"from {short(edges[0])} to {short(edges[-1], unit)}, {mean} on average"
        drawn = f"{min(len(true), SHOWN_POINTS):,} of {len(true):,} pictures"
        band = f", and in the band are to lie {short(100 * COVERAGE, '%')} of them" if math.isfinite(widths[k]) else ""
        points = f"A point is one of {drawn}: on the dashed line the answer is the truth{band}."
        bars = f"A bar is the share of the pictures whose error lies between its edges, {about}."
        off = histogram(edges, counts, x, "share of the pictures", about)
        charts.append(html.figure(f"{name}: answer against truth", scatter(true, said, unit, widths[k]), points))
        charts.append(html.figure(f"{name}: answer minus truth", off, bars))
    words = (
        f"What was said of {m.subject}, and what is true.",
        f"The first {SHOWN_TARGETS} of {m.task.outputs:,} targets." if m.task.outputs > SHOWN_TARGETS else "",
    )
    return html.section("answers", "Truth and answer", words, html.panels(charts))


def confusion(m: Material) -> str:
    """What classes are taken for others."""
    matrix, names = np.array(m.summary["confusion"]), m.task.names
    pairs, support = confused_pairs(matrix), matrix.sum(1)
    lines = [
        f'<b class="number">{matrix[i, j]:,}</b> × “{html.named(names[i])}” taken for “{html.named(names[j])}” '
        f'<span class="muted">({percent(matrix[i, j] / support[i])} of {support[i]:,})</span>'
        for i, j in pairs[:SHOWN_PAIRS]
    ]
    shown = list(range(len(names)))
    if len(names) > SHOWN_CONFUSED:
        shown = sorted(list(dict.fromkeys(k for pair in pairs for k in pair))[:SHOWN_CONFUSED])
    words = (
        f"{int(matrix.sum() - np.trace(matrix)):,} of {int(matrix.sum()):,} pictures are taken for another class.",
        f"Of {len(names):,} classes, the {len(shown)} that are confused most." if len(shown) < len(names) else "",
    )
    caption = (
        "A row is a true class, a column what it is taken for; the deeper a colour, the larger the share of the row."
    )
    listed = f"<div><h3>Most often confused</h3>{html.plain(lines)}</div>" if lines else ""
    heat = html.figure("Confusion matrix", heat_table(matrix, names, shown), caption) if shown else ""
    return html.section("confusion", "What is taken for what", words, f'<div class="beside">{heat}{listed}</div>')


def confused_pairs(matrix: np.ndarray) -> list[tuple[int, int]]:
    """(true, predicted) of a confusion matrix (K, K), those that are confused most often first."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[: int((wrong > 0).sum())]
    return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)]
