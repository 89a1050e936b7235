"""Matrices in true proportion, boxes and arrows, on an axes whose units are equal both ways."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path
from numpy.typing import ArrayLike
from showing import colour

from vitreous.insight.figures import BOTH_WAYS, RAMP

DUSK = LinearSegmentedColormap.from_list("dusk", ["#17122b", "#4a2f68", "#a0517a", "#ec8f6e", "#ffe9b8"])
Point = tuple[float, float]


def ink() -> LinearSegmentedColormap:
    """Clear at the lower end, the colour of text at the upper: for pictures of one channel, such as writing."""
    return LinearSegmentedColormap.from_list("ink", [colour("ink") + "00", colour("ink")])


def bare(axes: Axes, **labels: Any) -> None:
    """No frame, grid or ticks."""
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set(xticks=[], yticks=[], **labels)


def canvas(figure: Figure, width: float, height: float) -> Axes:
    """An axes that fills the figure, so many units wide and high, y downward, without a frame."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    return axes


def matrix(
    axes: Axes,
    values: ArrayLike,
    corner: Point,
    cell: float = 1.0,
    title: str = "",
    rows: str = "",
    columns: str = "",
    edge: str = "grey",
    most: float | None = None,
) -> None:
    """A matrix (rows, columns) of cells of one size, from its upper left corner; its lengths are told beside it.

    Orange is above zero, blue below, full at ±`most`: what one entry of fifty exceeds, if nothing else is said. Where
    nothing is below zero, blue is above.
    """
    values = np.asarray(values)
    colours, least = (BOTH_WAYS, -1) if values.min() < 0 else (RAMP, 0)
    most = most or float(np.quantile(np.abs(values), 0.98)) or 1.0
    (height, width), (x, y) = np.array(values.shape) * cell, corner
    place = (x, x + width, y + height, y)
    axes.imshow(values, colours, vmin=least * most, vmax=most, extent=place, interpolation="none", zorder=1)
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour(edge), linewidth=1, zorder=2))
    if title:
        axes.text(x + width / 2, y - 0.6, title, ha="center", va="bottom", weight="bold")
    if rows:
        axes.text(x - 0.5, y + height / 2, rows, ha="right", va="center", color=colour("muted"), fontsize=10)
    if columns:
        axes.text(x + width / 2, y + height + 0.5, columns, ha="center", va="top", color=colour("muted"), fontsize=10)


def box(axes: Axes, middle: Point, text: str, size: Point = (8, 3), edge: str = "blue", fontsize: float = 9.5) -> None:
    """A rounded box with text in its middle."""
    (x, y), (width, height) = middle, size
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle=f"round,pad=0,rounding_size={min(size) / 5}",
            facecolor=colour("raised"),
            edgecolor=colour(edge),
            linewidth=1.2,
            zorder=3,
        )
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=fontsize, zorder=4)


def arrow(axes: Axes, *points: Point, hue: str = "muted") -> None:
    """A line through the points, with a head at its end."""
    axes.add_patch(
        FancyArrowPatch(
            path=Path(points),
            arrowstyle="-|>",
            mutation_scale=9,
            color=colour(hue),
            linewidth=1.2,
            fill=False,
            joinstyle="round",
            zorder=2,
        )
    )


def plus(axes: Axes, middle: Point, hue: str = "muted", radius: float = 0.8) -> None:
    """Where two paths are added."""
    axes.add_patch(Circle(middle, radius, facecolor=colour("raised"), edgecolor=colour(hue), linewidth=1.2, zorder=3))
    axes.text(*middle, "+", ha="center", va="center_baseline", zorder=4)
