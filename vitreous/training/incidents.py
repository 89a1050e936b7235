"""incidents.csv: every update that was not made, why, and which pictures it would have been made from; and what is said
where a step cannot be computed.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from vitreous.cells import csv_rows, guarded
from vitreous.errors import InputError
from vitreous.files import write_atomically
from vitreous.training.health import Vital

COLUMNS = ("step", "what", "loss", "norm", "pixels", "rate", "suspects", "pictures")
SHOWN = 3  # pictures named in a line for the terminal


class Incidents:
    """The rows of incidents.csv. The file appears with the first of them; `mute` writes none."""

    def __init__(self, folder: Path, mute: bool = False):
        self.path, self.mute = folder / "incidents.csv", mute

    def keep(self, count: int) -> None:
        """Drops the rows after the first `count`: a run that goes on from a checkpoint comes to them again.

        Raises `InputError` for a file that is no such table.
        """
        if self.mute or not self.path.exists():
            return
        try:
            with open(self.path, encoding="utf-8", newline="") as file:
                rows = list(islice(csv_rows(file, strict=False), 1, count + 1))
        except (csv.Error, UnicodeError) as fault:
            raise InputError(f"{self.path} is damaged ({fault}): move it away, and the run goes on") from None
        if rows:
            write_atomically(self.path, _text([COLUMNS, *rows]))
        else:
            self.path.unlink()

    def add(
        self,
        step: int,
        what: str,
        vital: Vital | None = None,
        rate: float | None = None,
        suspects: Sequence[str] = (),
        pictures: Sequence[str] = (),
    ) -> None:
        """Adds a row: the step, what happened, its numbers, the learning rate, the pictures that stand out in the batch
        and all of them, a name a line.
        """
        if self.mute:
            return
        numbers = [f"{number:.9g}" for number in vital] if vital else ["", "", ""]
        names = ["\n".join(map(guarded, some)) for some in (suspects, pictures)]
        row = [step, what, *numbers, "" if rate is None else f"{rate:.9g}", *names]
        with open(self.path, "ab") as file:
            file.write(_text([row] if file.tell() else [COLUMNS, row]))


class StepError(InputError):
    """A step of training could not be computed: which, why, and the pictures of its batch."""


@contextmanager
def blaming(step: int, numbers: np.ndarray, names: Sequence[str]) -> Iterator[None]:
    """Turns what is raised inside into a `StepError`; `numbers` are those of the batch's pictures."""
    try:
        yield
    except Exception as fault:
        what = str(fault) if isinstance(fault, InputError) else f"{type(fault).__name__}: {fault}".rstrip(": ")
        short = isinstance(fault, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(fault)
        advice = (
            "\nthis machine has too little memory for it: a new run with a smaller --batch, or --accumulate 4, fits"
        )
        pictures = some([names[int(i)] for i in numbers])
        raise StepError(f"step {step + 1} failed: {what}\nits pictures: {pictures}{advice if short else ''}") from fault


def some(names: Sequence[str]) -> str:
    """A few of the names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def _text(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
