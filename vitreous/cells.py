"""Cells of CSV files that no spreadsheet or terminal obeys."""

import csv
import re
from collections.abc import Iterable, Iterator

from vitreous.errors import HIDDEN

# What a spreadsheet takes for the start of a formula, at once or after the marks that keep it from that.
FORMULA = re.compile(r"'*[=+\-@＝＋－＠]")
# What a terminal may obey, what ends a line, bytes that are no UTF-8, and the mark that stands before their codes.
ODD = re.compile(rf"[\\\t\n\ud800-\udfff]|{HIDDEN.pattern}")
CODE = re.compile(r"\\([\\tnr]|x[0-9a-f]{2}|u[0-9a-f]{4})")
LONGEST = 1 << 30  # characters of a cell, where csv by itself reads 131,072: one may name a whole batch


def guarded(cell: str) -> str:
    """Text for a cell of a CSV, in one line of UTF-8. `unguarded` undoes it.

    Names of files and classes are others' words: =HYPERLINK(…) in one must not run where the table is opened, nor an
    escape sequence where it is shown. So an apostrophe comes before what would begin a formula, control characters and
    bytes that are no UTF-8 become their codes in Python (\\n, \\x1b, \\udce9), and a backslash becomes two.
    """
    cell = ODD.sub(lambda found: found[0].encode("unicode_escape").decode(), cell)
    return f"'{cell}" if FORMULA.match(cell) else cell


def unguarded(cell: str) -> str:
    """The text that `guarded` made this of."""
    cell = cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
    return CODE.sub(lambda found: found[0].encode().decode("unicode_escape"), cell)


def csv_rows(lines: Iterable[str], strict: bool = True) -> Iterator[list[str]]:
    """The rows of a CSV, of cells of any length. Raises `csv.Error`; not `strict`, it takes what it can get."""
    csv.field_size_limit(LONGEST)
    return csv.reader(lines, strict=strict)
