"""The one error that a user can cause and mend, and words of others in what is shown."""

import re
from collections.abc import Sequence
from typing import Self

SHOWN = 20  # faults listed before "and N more"


class InputError(ValueError):
    """What was expected, what came, and what to do. The command line prints it and exits with 2."""

    @classmethod
    def listing(cls, title: str, faults: Sequence[str], advice: str = "") -> Self:
        """All faults of one input in one message: the title, a line a fault, the advice."""
        lines = [title, *(f"  {fault}" for fault in faults[:SHOWN])]
        if len(faults) > SHOWN:
            lines.append(f"  … and {len(faults) - SHOWN:,} more")
        return cls("\n".join([*lines, advice] if advice else lines))


class StartError(Exception):
    """A process that the work needs cannot be started: no file's fault, and no other file can do without it."""


class ElsewhereError(Exception):
    """Another process of the same run has failed, and said why."""


def first_line(fault: Exception) -> str:
    """What a library says of a fault, as far as it fits into a sentence of ours."""
    return (str(fault).strip() or type(fault).__name__).splitlines()[0][:200].rstrip(".")


def said_of(fault: OSError) -> str:
    """What the system says of a file or folder, in a line."""
    where = f"{fault.filename}: " if fault.filename else ""
    return f"{where}{fault.strerror or fault}"


class ToldInterrupt(KeyboardInterrupt):
    """Ctrl-C, of which the user has been told, and what to do then."""


def counted(count: float, noun: str) -> str:
    """ "1 epoch", "2.5 epochs", "1,024 pictures", "2 classes"."""
    number = f"{int(count):,}" if count == int(count) else f"{count:g}"
    return f"{number} {noun}" + ("" if count == 1 else "es" if noun.endswith(("s", "x", "sh", "tch")) else "s")


# Control characters but for the end of a line and the tabulator, and those that turn the direction of writing.
HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Text for a terminal or a log: what would move the cursor, colour or turn what is written shows as its code.

    The names of files and classes are others' words: "\\x1b[2J" in one must not clear a screen.
    """
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
