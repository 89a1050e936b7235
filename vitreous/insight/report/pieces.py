"""What the page is put together of: names as text, sections, tables, facts and figures, all as HTML."""

import re
from collections.abc import Iterable, Mapping, Sequence

from vitreous.insight.page import escape
from vitreous.insight.report.numbers import Cell, Text, cell

TALL = 24  # rows, from which on a table scrolls


def named(name: str) -> str:
    """A user's name: cut where it is long, whole when pointed at."""
    return f'<bdi class="name" title="{escape(name)}">{escape(name if len(name) <= 60 else name[:59] + "…")}</bdi>'


def sentence(text: str) -> str:
    """Text with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


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


def table(
    title: str, columns: Mapping[str, Text | None], rows: Iterable[Sequence[Cell]], sortable: bool = False
) -> str:
    """A column has a heading and, where it is of numbers, what writes them; the first cell of a row is its heading."""
    sides = [' class="number"' if text else "" for text in columns.values()]
    head = "".join(f'<th scope="col"{side}>{escape(name)}</th>' for name, side in zip(columns, sides, strict=True))
    body = []
    for row in rows:
        cells = [cell(value, text or str) for value, text in zip(row, columns.values(), strict=True)]
        rest = "".join(f"<td{side}>{value}</td>" for value, side in zip(cells[1:], sides[1:], strict=True))
        body.append(f'<tr><th scope="row">{cells[0]}</th>{rest}</tr>')
    kind = "sortable" if sortable and len(body) > 1 else ""
    return scrolling(title, kind, head, body)


def scrolling(title: str, kind: str, head: str, body: Sequence[str]) -> str:
    """A table of rows of HTML that may be wider than the screen, and scrolls where it is long."""
    return (
        f'<div class="wide{" tall" if len(body) > TALL else ""}" role="region" aria-label="{escape(title)}" '
        f'tabindex="0"><table class="{kind}"><caption class="visually-hidden">{escape(title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def facts(rows: Mapping[str, str]) -> str:
    """Titles, and HTML about each."""
    return f'<dl class="facts">{"".join(f"<dt>{title}</dt><dd>{text}</dd>" for title, text in rows.items())}</dl>'


def figure(title: str, shown: str, below: str = "") -> str:
    """A picture under its title."""
    return f"<figure><h3>{escape(title)}</h3>{shown}{below}</figure>"


def panels(figures: Sequence[str]) -> str:
    """Figures side by side."""
    return f'<div class="panels">{"".join(figures)}</div>'


def legend(tones: Mapping[str, str]) -> str:
    """What each tone of a chart stands for."""
    items = "".join(f'<li><i class="{tone}"></i>{escape(name)}</li>' for name, tone in tones.items())
    return f'<ul class="legend">{items}</ul>'


def plain(lines: Iterable[str]) -> str:
    """A list of lines of HTML."""
    return f'<ul class="plain">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def details(title: str, shown: str) -> str:
    """What a click on the title opens."""
    return f"<details><summary>{title}</summary>{shown}</details>"
