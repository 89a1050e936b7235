"""eval and predict: what a trained model answers."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitreous.data.sources import Source, open_pictures
from vitreous.data.workers import DECODERS
from vitreous.errors import SHOWN, InputError, ToldInterrupt, counted, visible
from vitreous.infer.predictor import AnswerConfig, Prediction, Predictor, load
from vitreous.infer.tables import Row, as_json, as_row, check_name, columns, keep_done, part_of, plain, write_rows
from vitreous.training.journal import Journal
from vitreous.training.shared_run import journal_in
from vitreous.training.torchrun import current
from vitreous.verbs.options import Data, Json, Pictures, Run
from vitreous.verbs.output import answer_line, print_json, speaks


def evaluate(
    run: Run,
    data: Data,
    /,
    *,
    target: tuple[str, ...] = (),
    path_column: str | None = None,
    split: str = "auto",
    figure: Path | None = None,
    skip_bad: bool = False,
    how: AnswerConfig = AnswerConfig(),  # noqa: B008
    json: Json = False,
) -> int:
    """Measures a trained model on data with the same targets.

    Pictures that the run was trained on are told by their content and not scored.

    Args:
        target: Target columns of a table, in the order of the run's; default: those it was trained on.
        path_column: Column of a table that holds the pictures' paths.
        split: Which pictures of the run's data to score: auto (those held out), train, validation, test or all.
        figure: Write the confusion matrix, or predicted against true, to this PNG.
        skip_bad: Leave out pictures that cannot be read, by name, rather than stop.
    """
    from vitreous.calibration import headline
    from vitreous.infer.evaluation import evaluate

    journal = journal_in(current(), Journal(stderr=json))
    DECODERS.warm()
    predictor = load(run, how)
    with journal.bar("evaluating", 1) as progress:
        result = evaluate(
            predictor,
            data,
            target=target,
            path_column=path_column,
            split=split,
            skip_bad=skip_bad,
            say=journal.say,
            progress=progress,
        )
    if not speaks():
        return 0
    if figure is not None:
        from vitreous.training import figures

        figures.result(
            predictor.task, result.answers, result.targets, result.summary, predictor.calibration.halfwidth, figure
        )
    if json:
        print_json(result.summary)
        return 0
    journal.say(headline(predictor.task, result.summary))
    for line in _details(result.summary):
        journal.say(line)
    return 0


def _details(summary: dict[str, Any]) -> list[str]:
    """A line a class or label, and what is most often mistaken for what."""
    each = summary.get("classes") or summary.get("labels")
    if not each:
        return []
    width = max(map(len, [*each, "class"]))
    lines = [f"{'':<{width}}  precision  recall     F1  pictures"]
    lines += [
        f"{name:<{width}}  {v['precision']:9.3f}  {v['recall']:6.3f}  {v['f1']:5.3f}  {v['support']:8,}"
        for name, v in each.items()
    ]
    names = list(each)
    mistakes = [
        (n, names[i], names[j])
        for i, row in enumerate(summary.get("confusion", ()))
        for j, n in enumerate(row)
        if i != j and n
    ]
    for n, true, said in sorted(mistakes, reverse=True)[:3]:
        lines.append(f"{n:,} × {true} taken for {said}")
    return lines


def predict(
    run: Run,
    pictures: Pictures,
    /,
    *,
    out: Path | None = None,
    skip_done: bool = False,
    top: int = 1,
    how: AnswerConfig = AnswerConfig(),  # noqa: B008
    json: Json = False,
) -> int:
    """Asks a trained model about pictures: classes with calibrated probabilities, or numbers with 90 % intervals.

    A picture is "unsure" where the set of classes that holds the truth 90 times of 100 has more than one. Pictures
    that cannot be used get a row with the error, and the exit code is 2.

    Args:
        out: Write a table: .csv, .jsonl or .parquet. Until it is whole, rows of the first two are in OUT.part.
        skip_done: Go on with the table --out: what has an answer there (or in OUT.part, after an interruption) is kept
            and not asked again; errors are tried again.
        top: How many of the most probable classes to show.
    """
    _check_options(pictures, out, skip_done, top)
    world = current()
    journal = journal_in(world, Journal(stderr=json or out is None))  # standard output is for the answers alone
    if out is not None and not skip_done and part_of(out).exists():
        journal.say(f"{part_of(out)}, of an interrupted predict, is begun anew; --skip-done would go on with it")
    DECODERS.warm()
    predictor = load(run, how)
    top = min(top, predictor.task.outputs)
    if out is not None or json:
        columns(predictor.task, top)  # a target whose name cannot stand in it is seen before the work
    source = open_pictures(pictures)
    if out is not None and skip_done:
        source = _without_done(source, predictor, out, top, journal)
    if not world.first:
        for _ in predictor.answers(source, journal.say):
            pass
        return 0
    unusable = _Unusable()
    with closing(_predictions(predictor, source, unusable, journal)) as predictions:
        rows = (as_row(predictor.task, prediction, top) for prediction in predictions)
        rows = _printed_as_json(rows) if json else rows
        if out is None:
            for _ in rows if json else _printed_as_lines(predictions, top):
                pass
        else:
            _write(rows, out, predictor, top, skip_done, journal)
            journal.say(f"{counted(len(source), 'row')} {'written to' if skip_done else 'in'} {out}")
    unusable.check(len(source), skip_done)
    return 0


def _check_options(pictures: Pictures, out: Path | None, skip_done: bool, top: int) -> None:
    if top < 1:
        raise InputError(f"--top {top}: expected 1 or more")
    if out is not None:
        check_name(out, append=skip_done)
    elif skip_done:
        raise InputError("--skip-done goes on with a table: expected --out, the table that was begun")
    if not pictures:
        raise InputError("expected pictures, or folders of them")


def _without_done(source: Source, predictor: Predictor, out: Path, top: int, journal: Journal) -> Source:
    """The pictures that have no answer in the table yet."""

    def not_done() -> list[int]:
        done = keep_done(out, predictor.task, top)
        return [number for number, name in enumerate(source.names) if name not in done]

    left = predictor.world.agree(not_done)
    journal.say(f"{len(source) - len(left):,} of {len(source):,} pictures have their answers: skipped")
    return source.only(left)


@dataclass
class _Unusable:
    """How many pictures could not be used, and why the first could not: there may be as many as pictures."""

    count: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, fault: str) -> None:
        """One more."""
        self.count += 1
        self.faults = [*self.faults, fault][:SHOWN]

    def check(self, total: int, again: bool) -> None:
        """Raises `InputError` where there are any, of so many pictures; `again`: others have their answers already."""
        if self.count:
            some = again or self.count < total
            title = f"{self.count:,} of {total:,} pictures could not be used:" if some else "no picture could be used:"
            more = f"  … and {self.count - SHOWN:,} more" if self.count > SHOWN else ""
            raise InputError.listing(title, self.faults, more)


def _predictions(
    predictor: Predictor, source: Source, unusable: _Unusable, journal: Journal
) -> Generator[Prediction, None, None]:
    with (
        journal.bar("predicting", len(source)) as progress,
        closing(predictor.stream(source, journal.say)) as predictions,
    ):
        for number, prediction in enumerate(predictions, 1):
            if prediction.error:
                unusable.add(prediction.error)
            yield prediction
            progress(number)


def _printed_as_lines(predictions: Iterable[Prediction], top: int) -> Iterator[Prediction]:
    for prediction in predictions:
        if not prediction.error:
            print(visible(plain(answer_line(prediction, top))), flush=True)
        yield prediction


def _printed_as_json(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, printed as one list."""
    mark = "["
    for row in rows:
        print(mark, as_json(row), flush=True)
        mark = ","
        yield row
    print("]" if mark == "," else "[]")


def _write(rows: Iterable[Row], out: Path, predictor: Predictor, top: int, append: bool, journal: Journal) -> None:
    """Writes the table, and where that is interrupted says how to go on."""
    try:
        write_rows(rows, out, columns(predictor.task, top), append=append)
    except (KeyboardInterrupt, SystemExit) as end:
        if part_of(out).exists():
            journal.say(f"interrupted; the rows so far are in {part_of(out)}; --skip-done goes on with them")
            if isinstance(end, KeyboardInterrupt):
                raise ToldInterrupt from None
        raise
