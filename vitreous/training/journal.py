"""What a run says: the terminal, log.txt, and metrics.csv."""

import csv
import io
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vitreous.cells import csv_rows
from vitreous.errors import InputError, visible
from vitreous.files import write_atomically

FIRST_LINE = 10.0  # seconds until a progress that nobody sees as a bar is told in a line


class Journal:
    """Says things to the terminal and, once it has a folder, to log.txt; keeps the rows of metrics.csv."""

    def __init__(self, *, quiet: bool = False, stderr: bool = False):
        self.console = Console(stderr=stderr, quiet=quiet, highlight=False, soft_wrap=True)
        self.folder: Path | None = None
        self.rows: list[dict[str, float]] = []
        self._early: list[str] = []
        self._mute = False

    def settle(self, folder: Path, until_step: int) -> None:
        """From here on log.txt and metrics.csv are kept in `folder`, with its rows up to a step; what was said before
        joins. Raises `InputError` for a metrics.csv that is no such table.
        """
        self.folder, self.rows = folder, read_rows(folder, until_step)
        self._log("".join(self._early))
        self._early.clear()
        if self.rows:
            self._write_rows()
        else:
            (folder / "metrics.csv").unlink(missing_ok=True)

    def say(self, text: str) -> None:
        """A line for the user; of others' words in it, nothing that a terminal would obey."""
        text = visible(text)
        self.console.print(text, markup=False)
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n"
        if self.folder is None:
            self._early.append(line)
        else:
            self._log(line)

    def row(self, values: dict[str, float]) -> None:
        """Adds a row to metrics.csv."""
        self.rows.append(values)
        self._write_rows()

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0, *, lines: bool = True) -> Iterator[Callable[..., None]]:
        """A progress bar; what it yields is called with how much is done, and of how much where that was not known.

        Where output is not a terminal it is silent, or with `lines` says a line now and then, each after twice as long
        as the one before.
        """
        if not self.console.is_terminal:
            yield self._lines(title, total, FIRST_LINE if lines else math.inf)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(
            *columns,
            console=self.console,
            transient=True,
            # What is printed meanwhile goes above the bar, but not out of a file.
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=_is_terminal(sys.stderr),
        ) as progress:
            task = progress.add_task(title, total=total, completed=done)
            yield lambda count, total=total: progress.update(task, completed=count, total=total)

    def _lines(self, title: str, total: int, due: float) -> Callable[..., None]:
        """What a bar yields where there is no terminal to draw it in; `due`: seconds until the first line."""
        began = time.monotonic()

        def tell(count: int, total: int = total) -> None:
            nonlocal due
            if (passed := time.monotonic() - began) >= due and count < total:
                due = 2 * passed
                self.console.print(f"{title}: {count:,} of {total:,}, {clock(passed)}", markup=False)

        return tell

    def _log(self, text: str):
        if self.folder is None or not text or self._mute:
            return
        try:
            with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as fault:  # a full disk: what must not be lost is elsewhere, and says so itself
            self._mute = True
            self.console.print(f"log.txt cannot be written: {fault.strerror}", markup=False)

    def _write_rows(self):
        if self.folder is None or not self.rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.folder / "metrics.csv", text.getvalue().encode())


def _is_terminal(stream: Any) -> bool:
    """Whether a person sees what is written there; a stream may be closed, or None, or what only has `write`."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def read_rows(folder: Path, until_step: int) -> list[dict[str, float]]:
    """The rows of metrics.csv up to a step: what came after a checkpoint is computed again.

    Raises `InputError` for a file that is no such table.
    """
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            titles, *rows = csv_rows(file)
        numbers = [dict(zip(titles, map(_number, row), strict=True)) for row in rows]
        return [row for row in numbers if row["step"] <= until_step]
    except (csv.Error, ValueError, KeyError) as fault:
        raise InputError(f"{path} is damaged ({fault}): move it away, and the run goes on") from None


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def row_line(row: dict[str, float], headline: str) -> str:
    """A row of metrics as a line in the terminal."""
    epoch = f"epoch {row['epoch']:g}" if row["epoch"] == int(row["epoch"]) else f"epoch {row['epoch']:.1f}"
    score = row[headline]
    shown = f"{score:.1%}" if headline == "top1" else f"{score:.4f}"
    return (
        f"{epoch:<12}step {int(row['step']):<8}train loss {row['train_loss']:<9.4f}"
        f"val loss {row['val_loss']:<9.4f}{headline} {shown:<9}{clock(row['seconds'])}"
    )


def clock(seconds: float) -> str:
    """Seconds as 4:05 or 1:02:03."""
    minutes, rest = divmod(math.floor(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
