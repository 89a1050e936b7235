"""evaluate: a predictor and pictures with targets to metrics, of those that it was not trained on."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitreous.calibration import summarise
from vitreous.data.doctor import digest
from vitreous.data.sources import Source, open_source
from vitreous.data.store import in_order
from vitreous.data.tables import Columns
from vitreous.data.targets import Task
from vitreous.errors import InputError, counted
from vitreous.infer.card import DIGITS
from vitreous.infer.predictor import Predictor


def evaluate(
    predictor: Predictor,
    data: str | os.PathLike,
    *,
    target: Sequence[str] = (),
    path_column: str | None = None,
    split: str = "auto",
    skip_bad: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "Evaluation":
    """Metrics on data with the targets of the run's task.

    Pictures that the run was trained on, told by their content, are not scored: on data that overlaps the training
    data the test pictures are, or where there are none the validation pictures. `split` ("train", "validation",
    "test" or "all") asks for others; `target` and `path_column` are for a table whose columns have other names than the
    run's. Raises `InputError` for targets that are not the task's, or bad pictures.
    """
    own = predictor.columns
    source = open_source(data, Columns.of(target or own.target, path_column or own.path))
    if target:
        source = source.renamed(predictor.task.columns)
    source = source.only(predictor.world.agree(lambda: _scored(predictor, source, split, say)))
    predictor.task.encode(source.columns, source.names)  # a fault in the targets shows before the work
    chunks, faults = [], {}
    with closing(predictor.answers(source, say)) as found:
        for numbers, answers, more in found:
            chunks.append(answers)
            faults |= more
            progress(numbers[-1] + 1, len(source))
    if faults and not skip_bad:
        raise InputError.listing(
            f"{len(faults):,} of {len(source):,} pictures cannot be used:",
            list(faults.values()),
            "mend or remove them, or leave them out with --skip-bad",
        )
    kept = [i for i in range(len(source)) if i not in faults]
    if not kept:
        raise InputError("no picture is left to score")
    if faults:
        title = f"left out, {counted(len(faults), 'picture')} that cannot be used:"
        say(str(InputError.listing(title, list(faults.values()))))
    source, answers = source.only(kept), np.concatenate(chunks)[kept]
    targets = predictor.task.encode(source.columns, source.names)
    return Evaluation(predictor.task, summarise(predictor.task, answers, targets), answers, targets, source.names)


@dataclass(frozen=True)
class Evaluation:
    """Metrics ready for JSON, and what they were computed from: answers (n, outputs) and targets, a name a row."""

    task: Task
    summary: dict[str, Any]
    answers: np.ndarray
    targets: np.ndarray
    names: tuple[str, ...]


def _scored(predictor: Predictor, source: Source, split: str, say: Callable[[str], None]) -> list[int]:
    """The numbers of the pictures to score, and a word about those that are not."""
    if split not in ("auto", "train", "validation", "test", "all"):
        raise InputError(f"--split {split}: expected auto, train, validation, test or all")
    if split == "all":
        return list(range(len(source)))
    known = predictor.seen.sides()
    if not known and split == "auto":
        say("note: it is not known what this model was trained on; all pictures are scored")
        return list(range(len(source)))
    digests = in_order(lambda i: _digest(source, i)[:DIGITS], range(len(source)), predictor.threads)
    sides = [known.get(text, "new") for text in digests]
    counts = Counter(sides)
    if split != "auto":
        chosen = {split}
    elif not counts["train"]:
        chosen = {"validation", "test", "new"}
    else:
        held_out = "test" if counts["test"] else "validation"
        chosen = {held_out, "new"}
        say(
            f"{counts['train']:,} of these pictures were trained on and are not scored; scored: "
            f"{counts[held_out]:,} held out for {held_out}"
            + (f", {counts['new']:,} that the run has not seen" if counts["new"] else "")
        )
    if counts["validation"] and "validation" in chosen and split == "auto":
        say(f"note: {counts['validation']:,} of them also served to calibrate the probabilities")
    numbers = [i for i, side in enumerate(sides) if side in chosen]
    if not numbers:
        raise InputError(
            f"nothing to score: of {len(source):,} pictures none is held out "
            f"({', '.join(f'{n:,} {side}' for side, n in counts.items())}); --split all scores all"
        )
    return numbers


def _digest(source: Source, number: int) -> str:
    try:
        return source.known[number].digest if source.known else digest(source.read(number))
    except InputError:
        return ""  # named when it is decoded
