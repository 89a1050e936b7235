"""Numbers of the page as text."""

import math
from collections.abc import Callable, Iterable

from vitreous.insight.page import escape

Text = Callable[[float], str]
Bounds = tuple[float, float]
Cell = str | float | Bounds | None  # HTML, a number, the bounds of one; None for a number that is not known


def short(value: float, unit: str = "") -> str:
    """Four digits that count at most, and the unit."""
    return f"{value:.4g}".replace("-", "−") + (f"\u00a0{unit}" if unit else "")


def decimal(value: float) -> str:
    """Three digits behind the point."""
    return f"{value:.3f}".replace("-", "−")


def percent(share: float) -> str:
    """0.9963 -> 99.6 %."""
    return f"{100 * share:.1f}\u00a0%"


def whole(value: float) -> str:
    """1234 -> 1,234."""
    return f"{value:,.0f}"


def lasting(seconds: float) -> str:
    """258 -> 4 min 18 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest if not hours else 0, "s"))
    return " ".join(f"{n}\u00a0{unit}" for n, unit in parts if n) or f"{seconds:.1f}\u00a0s"


def course(values: Iterable[float], text: Text) -> str:
    """From the first known value to the last."""
    known = [value for value in values if math.isfinite(value)]
    return f"{text(known[0])} to {text(known[-1])}" if known else "unknown"


def cell(value: Cell, text: Text) -> str:
    """A number as people read it, with all its digits for machines; bounds; a dash for what is not known."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return f"{escape(text(value[0]))} to {escape(text(value[1]))}"
    if value is None or not math.isfinite(value):
        return "–"
    return f'<data value="{value!r}">{escape(text(value))}</data>'
