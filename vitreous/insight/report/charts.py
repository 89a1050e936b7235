"""Charts, as SVG that takes its colours from the style sheet."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from vitreous.errors import counted
from vitreous.insight.page import escape
from vitreous.insight.report import pieces as html
from vitreous.insight.report.pieces import Bounds, Text, course, percent, short
from vitreous.metrics import wilson_interval

WIDTH = 360  # of a chart, in its own units; as many pixels on most screens
HOVERED = 300  # points of a curve, up to which hovering shows their numbers
SHOWN_POINTS = 2000  # of a scatter
ANY = (-math.inf, math.inf)


@dataclass(frozen=True)
class Axis:
    """What an axis spans, and how its numbers are written."""

    low: float
    high: float
    title: str = ""
    percent: bool = False

    @classmethod
    def over(cls, values: Any, title: str = "", percent: bool = False, within: Bounds = ANY) -> "Axis":
        """An axis that holds all finite values with a margin, but does not leave `within`."""
        known = np.asarray(values)[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        margin = 0.06 * (high - low) or max(abs(high), 1e-9) * 0.5
        low, high = max(low - margin, within[0]), min(high + margin, within[1])
        return cls(low, high if high > low else low + 1.0, title, percent)

    def ticks(self, most: int = 5) -> list[float]:
        """At most so many round numbers, or one more."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-6)
        return [float(f"{i * step:.9g}") for i in range(first, math.floor(self.high / step + 1e-6) + 1)]

    def text(self, tick: float) -> str:
        """A tick's number."""
        return short(100 * tick, "%") if self.percent else short(tick)

    def place(self, values: Any, start: float, end: float) -> np.ndarray:
        """Where values lie on an axis drawn from `start` to `end`."""
        return start + (np.asarray(values) - self.low) / (self.high - self.low) * (end - start)


class Plot:
    """Two axes, and marks where the data says."""

    def __init__(self, x: Axis, y: Axis, height: int = 300):
        self.x_axis, self.y_axis, self.height = x, y, height
        self.left = 14 + round(6.2 * max(len(y.text(tick)) for tick in y.ticks()))
        self.right, self.top, self.bottom = WIDTH - 12, 26 if y.title else 10, height - 42

    def x(self, values: Any) -> np.ndarray:
        """Data to pixels from the left."""
        return self.x_axis.place(values, self.left, self.right)

    def y(self, values: Any) -> np.ndarray:
        """Data to pixels from the top."""
        return self.y_axis.place(values, self.bottom, self.top)

    def line(self, kind: str, x: Any, y: Any) -> str:
        """A line through points; what is not finite is a gap."""
        commands, pen = [], "M"
        for a, b in zip(self.x(x), self.y(y), strict=True):
            known = math.isfinite(a) and math.isfinite(b)
            commands += [f"{pen}{a:.1f} {b:.1f}"] * known
            pen = "L" if known else "M"
        return f'<path class="{kind}" d="{"".join(commands)}"/>'

    def dot(self, kind: str, x: float, y: float, radius: float, words: str = "") -> str:
        """A point; `words` are shown where it is pointed at."""
        title = f"<title>{escape(words)}</title>" if words else ""
        return f'<circle class="{kind}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:.1f}">{title}</circle>'

    def bar(self, kind: str, start: float, end: float, height: float, words: str) -> str:
        """A bar from the floor."""
        a, b, top = self.x(start), self.x(end), self.y(height)
        place = f'x="{a:.1f}" y="{top:.1f}" width="{max(b - a, 0.5):.1f}" height="{self.bottom - top:.1f}"'
        return f'<rect class="{kind}" {place}><title>{escape(words)}</title></rect>'

    def draw(self, words: str, *marks: str) -> str:
        """The SVG: grid, numbers, titles and marks. `words` say what there is to see."""
        parts = []
        for tick in self.y_axis.ticks():
            y, text = f"{self.y(tick):.1f}", self.y_axis.text(tick)
            parts.append(f'<path class="rule" d="M{self.left} {y}H{self.right}"/>')
            parts.append(f'<text x="{self.left - 7}" y="{y}" dy="0.34em" text-anchor="end">{text}</text>')
        below = [(float(self.x(tick)), self.bottom + 17, self.x_axis.text(tick)) for tick in self.x_axis.ticks()]
        for x, y, text in (*below, ((self.left + self.right) / 2, self.height - 6, self.x_axis.title)):
            parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{escape(text)}</text>')
        parts.append(f'<path class="axis" d="M{self.left} {self.bottom}H{self.right}"/>')
        parts.append(f'<text x="0" y="12">{escape(self.y_axis.title)}</text>')
        head = f'<svg class="chart" viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(words)}">'
        return f"{head}{''.join(parts)}{''.join(marks)}</svg>"


def curves(
    epochs: np.ndarray, series: Mapping[str, tuple[str, np.ndarray]], text: Text, title: str = "", within: Bounds = ANY
) -> str:
    """Lines over the epochs, a tone and values each; what is not finite is a gap. Hovering shows the numbers."""
    every = np.concatenate([values for _, values in series.values()])
    y = Axis.over(every, title, text is percent, within)
    plot = Plot(Axis(0, max(float(epochs.max()), 1.0), "epoch"), y, height=246)
    marks = []
    for tone, values in series.values():
        marks.append(plot.line(f"line {tone}", epochs, values))
        known = np.flatnonzero(np.isfinite(values))[-1:].tolist()
        marks += [plot.dot(tone, float(epochs[i]), float(values[i]), 3.5) for i in known]
    edges = np.concatenate(([0.0], (epochs[1:] + epochs[:-1]) / 2, epochs[-1:]))
    for i, (start, end) in enumerate(pairwise(edges if len(epochs) <= HOVERED else ())):
        said = [f"{name} {text(values[i])}" for name, (_, values) in series.items() if math.isfinite(values[i])]
        words = f"epoch {short(epochs[i])}: {', '.join(said) or 'unknown'}"
        marks.append(plot.bar("hover", start, end, plot.y_axis.high, words))
    words = "; ".join(f"{name} from {course(values, text)}" for name, (_, values) in series.items())
    return plot.draw(f"{words}, over {counted(round(epochs[-1], 2), 'epoch')}", *marks)


def histogram(edges: np.ndarray, counts: np.ndarray, x: Axis, share: str, words: str) -> str:
    """What share of all lies between which edges; where 0 is among them it is marked."""
    shares = counts / max(counts.sum(), 1)
    plot = Plot(x, Axis.over([0.0, *shares], share, percent=True, within=(0, 1)))
    bars = zip(pairwise(edges.tolist()), shares.tolist(), counts.tolist(), strict=True)
    marks = [plot.bar("bar", start, end, height, f"{count:,}") for (start, end), height, count in bars]
    if x.low < 0 < x.high:
        marks.append(plot.line("zero", [0, 0], [plot.y_axis.low, plot.y_axis.high]))
    return plot.draw(words, *marks)


def reliability(tones: Mapping[str, Sequence[tuple[float, float, int]]], certainty: str, right: str, words: str) -> str:
    """Share that is right over certainty: for each tone bins of both and a count, which a point's size shows.

    Bars are 95 % intervals.
    """
    plot = Plot(Axis(0, 1, certainty, percent=True), Axis(0, 1, right, percent=True))
    marks = [plot.line("ideal", [0, 1], [0, 1])]
    for tone, bins in tones.items():
        most = max(count for *_, count in bins)
        for c, r, count in bins:
            said = f"{certainty} {percent(c)}, {right} {percent(r)} of {count:,}"
            if tone == "blue":
                marks.append(plot.line("whisker blue", [c, c], wilson_interval(round(r * count), count)))
            marks.append(plot.dot(tone, c, r, 3 + 6 * math.sqrt(count / most), said))
    return plot.draw(words, *marks)


def scatter(true: np.ndarray, said: np.ndarray, unit: str, half: float) -> str:
    """Answers over truths, with the line where they agree and the band of half-width `half` where that is finite."""
    both = np.concatenate((true, said))
    x_axis, y_axis = (Axis.over(both, f"{name} ({unit})" if unit else name) for name in ("truth", "answer"))
    plot = Plot(x_axis, y_axis)
    low, high = plot.x_axis.low, plot.x_axis.high
    marks = []
    if math.isfinite(half):
        x = np.linspace(low, high, 50)
        x, y = np.append(x, x[::-1]), np.append(x + half, x[::-1] - half).clip(low, high)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(plot.x(x), plot.y(y), strict=True))
        marks.append(f'<polygon class="band" points="{points}"/>')
    marks.append(plot.line("ideal", [low, high], [low, high]))
    step = max(1, -(-len(true) // SHOWN_POINTS))
    marks += [plot.dot("blue point", a, b, 2.6) for a, b in zip(true[::step], said[::step], strict=True)]
    spread = float(np.sqrt(((said - true) ** 2).mean()))
    return plot.draw(f"{len(true):,} pictures around the line; root mean squared error {short(spread, unit)}", *marks)


def span(value: float, bounds: Bounds) -> str:
    """A small line from 0 to 1 with an interval and a point, and the interval in numbers."""
    low, high, at = (4 + 92 * v for v in (*bounds, value))
    return (
        '<span class="span"><svg viewBox="0 0 100 12" aria-hidden="true"><path class="rule" d="M4 6H96"/><path '
        f'class="whisker blue" d="M{low:.1f} 6H{high:.1f}"/><circle class="blue" cx="{at:.1f}" cy="6" r="3.4"/></svg>'
        f"{html.cell(bounds, percent)}</span>"
    )


def heat_table(matrix: np.ndarray, names: Sequence[str], shown: Sequence[int]) -> str:
    """A confusion matrix (K, K) as a table, or a part of it with what is left of each row; a colour is a share."""
    part = len(shown) < len(names)
    head = [f'<th scope="col"><span>{html.named(names[j])}</span></th>' for j in shown]
    head += ['<th scope="col"><span>others</span></th>'] * part
    rows = []
    for i in shown:
        counts = {j: int(matrix[i, j]) for j in shown} | ({-1: int(np.delete(matrix[i], shown).sum())} if part else {})
        level = {j: math.ceil(10 * count / max(matrix[i].sum(), 1)) for j, count in counts.items()}
        cells = [f'<td class="{"hit" if i == j else "miss"} h{level[j]}">{n:,}</td>' for j, n in counts.items()]
        rows.append(f'<tr><th scope="row">{html.named(names[i])}</th>{"".join(cells)}</tr>')
    kind = "heat" + (" long" if max(len(names[j]) for j in shown) > 4 else "") + (" dense" if len(shown) > 12 else "")
    title = "Confusion matrix: true classes down, predicted classes across"
    return html.scrolling(title, kind, f"<td></td>{''.join(head)}", rows)
