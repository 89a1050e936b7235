"""What the page is put together of: numbers and names as text, sections, tables, facts and figures, all as HTML."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from vitreous.insight.page import escape

Text = Callable[[float], str]
Bounds = tuple[float, float]
Cell = str | float | Bounds | None  # HTML, a number, the bounds of one; None for a number that is not known

SPACE = "\u00a0"  # between a number and its unit
TALL = 24  # rows, from which on a table scrolls


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
        low, high = map(text, value)
        return escape(f"{low.removesuffix(''.join(high.partition(SPACE)[1:]) or SPACE)} to {high}")
    if value is None or not math.isfinite(value):
        return "–"
    return f'<data value="{value!r}">{escape(text(value))}</data>'


def named(name: str) -> str:
    """A user's name: cut where it is long, whole when pointed at."""
    return f'<bdi class="name" title="{escape(name)}">{escape(name if len(name) <= 60 else name[:59] + "…")}</bdi>'


def section(name: str, title: str, words: Sequence[str], *shown: str) -> str:
    """Words at the left, what is shown at the right."""
    rail = "".join(f"<p>{text}</p>" for text in words if text)
    return (
        f'<section class="part" id="{name}" aria-labelledby="{name}-title"><div class="rail">'
        f'<h2 id="{name}-title">{title}</h2>{rail}</div><div class="body">{"".join(shown)}</div></section>\n'
    )


def contents(sections: str) -> str:
    """Links to the sections, from their own ids and titles."""
    found = re.findall(r'<h2 id="(\w+)-title">(.*?)</h2>', sections)
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in found)
    return f'<nav class="contents" aria-label="Sections"><ul>{links}</ul></nav>'


def table(title: str, columns: Mapping[str, Text | None], rows: Iterable[Sequence[Cell]], kind: str = "") -> str:
    """A column has a heading and, where it is of numbers, what writes them; the first cell of a row is its heading.

    Kinds are "sortable", and "stacked": on a narrow screen a row's numbers lie below its heading.
    """
    sides = [' class="number"' if text else "" for text in columns.values()]
    head = "".join(f'<th scope="col"{side}>{escape(name)}</th>' for name, side in zip(columns, sides, strict=True))
    body = []
    for row in rows:
        cells = [cell(value, text or str) for value, text in zip(row, columns.values(), strict=True)]
        rest = "".join(f"<td{side}>{value}</td>" for value, side in zip(cells[1:], sides[1:], strict=True))
        body.append(f'<tr><th scope="row">{cells[0]}</th>{rest}</tr>')
    return scrolling(title, kind, head, body)


def scrolling(title: str, kind: str, head: str, body: Sequence[str]) -> str:
    """A table of rows of HTML, that scrolls where it is long or wider than the screen."""
    return wide(
        title,
        f'<table class="{kind}"><caption class="visually-hidden">{escape(title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>",
        " tall" if len(body) > TALL else "",
    )


def wide(title: str, shown: str, kind: str = "") -> str:
    """What may be wider than the screen, and can be scrolled by keys."""
    return f'<div class="wide{kind}" role="region" aria-label="{escape(title)}" tabindex="0">{shown}</div>'


def facts(rows: Mapping[str, str]) -> str:
    """Titles, and HTML about each."""
    return f'<dl class="facts">{"".join(f"<dt>{title}</dt><dd>{text}</dd>" for title, text in rows.items())}</dl>'


def figure(title: str, shown: str, caption: str, tones: Mapping[str, str] | None = None) -> str:
    """A picture under its title, below it what each tone stands for, and a sentence that says what it shows."""
    items = "".join(f'<li><i class="{tone}"></i>{escape(name)}</li>' for name, tone in (tones or {}).items())
    legend = f'<ul class="legend">{items}</ul>' if items else ""
    return f"<figure><h3>{escape(title)}</h3>{shown}{legend}<figcaption>{escape(caption)}</figcaption></figure>"


def panels(figures: Iterable[str]) -> str:
    """Figures side by side."""
    return f'<div class="panels">{"".join(figures)}</div>'


def plain(lines: Iterable[str]) -> str:
    """A list of lines of HTML."""
    return f'<ul class="plain">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def details(title: str, shown: str) -> str:
    """What a click on the title opens."""
    return f"<details><summary>{title}</summary>{shown}</details>"
