"""report: a whole training run in one HTML file that needs no network, no server and no other file.

Every number on it is what `evaluate` gives, or is said to be something else; what is not known is said to be unknown.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitreous.errors import InputError
from vitreous.files import write_atomically
from vitreous.insight.page import asset, render
from vitreous.insight.report import card as cards
from vitreous.insight.report import pieces as html
from vitreous.insight.report.calibration import calibration
from vitreous.insight.report.material import gather
from vitreous.insight.report.mistakes import METHOD, Figures, Maps, inside, mistakes
from vitreous.insight.report.results import answers, classes, confusion, learning, opening, targets
from vitreous.rundir import RunDir

__all__ = ["METHOD", "report", "write_report"]

MOST_BYTES = 5_000_000  # of the file; figures that would take it beyond are left out
SHELL = 100_000  # that the page takes without its sections, and more


def write_report(
    run: str | os.PathLike,
    data: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    **options: Any,
) -> Path:
    """Writes the `report` to `out`, by default report.html in the run directory. Returns the path."""
    path = Path(out) if out is not None else RunDir.open(run).path / "report.html"
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}")
    write_atomically(path, report(run, data, **options).encode())
    return path


def report(
    run: str | os.PathLike,
    data: str | os.PathLike | None = None,
    *,
    device: str = "auto",
    maps: Maps | None = None,
    figures: Figures | None = None,
    card: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> str:
    """The run as one HTML page: what it reached, how it got there, where it is wrong, and how to repeat it.

    Args:
        run: a finished run directory.
        data: what to score it on, as in `evaluate`; default: the held-out pictures of the run's own data. Where those
            are gone the numbers are the ones that the training wrote, without pictures and diagrams.
        device: of the model.
        maps: a method of attribution, which gives each mistake a map of what spoke for the output that was said.
        figures: what makes figures of the model and some pictures, as `model_pictures` does; with it come the answers
            after each block.
        card: what the model card says beside the facts: the words of `GAPS`.
        say: hears what `evaluate` says.
        options: of `evaluate`: target, path_column, split, skip_bad and progress.

    Raises:
        InputError: the run is not finished, one of its files is missing or damaged, or the data does not fit.
    """
    card = card or {}
    if unknown := sorted({*card} - {*cards.GAPS}):
        raise InputError(f"a model card has no field {', '.join(unknown)}: expected {', '.join(cards.GAPS)}")
    m = gather(RunDir.open(run), data, device, say, **options)
    regression = m.task.kind == "regression"
    results = [targets(m), answers(m)] if regression else [classes(m)]
    results += [confusion(m)] if m.task.kind == "classification" else []
    before = "".join([learning(m), *results, calibration(m), mistakes(m, maps)])
    after = "".join([cards.pictures(m), cards.repeat(m), cards.card(m, card)])
    room = MOST_BYTES - SHELL - len((before + after).encode())
    sections = before + inside(m, figures, room) + after
    shown = {"run": m.run.path.name, "task": m.task.kind, "scored": m.subject, "summary": m.summary}
    body = opening(m) + html.contents(sections) + sections
    return render(f"{m.run.path.name}: report", body, asset("report.css"), asset("report.js"), shown)
