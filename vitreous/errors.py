"""The one error that a user can cause and mend."""

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


class ElsewhereError(Exception):
    """Another process of the same run has failed, and said why."""
