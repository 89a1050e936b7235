"""export: a run to one file that answers by itself, and the proof that it does, from a fresh process."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitreous.data.processes import python_command
from vitreous.errors import InputError, counted
from vitreous.infer.agreement import Agreement, Bar
from vitreous.infer.build import write_export
from vitreous.infer.engines import BATCH, PRECISIONS, TorchEngine
from vitreous.infer.files import FORMATS, format_of, open_export
from vitreous.infer.judge import TIMED, Judge, noise_judge, rate, validation_judge
from vitreous.infer.predictor import Predictor, load
from vitreous.infer.sample import Sample
from vitreous.training.recipe import choose_threads

MAIN = "from vitreous.infer.export import main\nmain()"  # what the fresh process runs
EXACT = 1e-4  # how far the answers in the file may be from those that its outputs give
SAME = 1e-3  # how far the probability of the answer, or a number in deviations, may move in fp32, in the mean, on noise


@dataclass(frozen=True)
class Export:
    """A file that was made, and what a fresh process found of it."""

    path: Path
    precision: str
    size: int  # bytes
    agreement: Agreement  # with the checkpoint
    rate: float  # pictures a second
    checkpoint_rate: float  # of the checkpoint in PyTorch, fp32

    def lines(self) -> list[str]:
        """In words."""
        slower = self.rate < self.checkpoint_rate and self.path.suffix.lower() == ".onnx"
        advice = "; --format openvino is usually faster" if slower else ""
        return [
            f"agreement with the checkpoint: {self.agreement.line()}",
            f"speed: {self.rate:,.0f} pictures/s, {self.rate / self.checkpoint_rate:.1f} times PyTorch in fp32{advice}",
            f"{self.path}: {self.size / 1e6:,.1f} MB, {self.precision}",
        ]


def export(
    run: str | os.PathLike | Predictor,
    out: str | os.PathLike | None = None,
    *,
    format: str | None = None,
    precision: str = "fp32",
    say: Callable[[str], None] = print,
    **options: Any,
) -> Export:
    """Writes a run as one file, .onnx or OpenVINO's .zip, that takes pixels as they are stored and gives answers.

    Another process then answers the run's validation pictures with it; where they are gone, pictures of noise.
    `options` are `merge`, `bar` and `data` of `AnswerConfig`. Raises `InputError`, and leaves no file, where the
    answers are beyond the bar, or where format, precision or name do not fit each other.
    """
    if not isinstance(run, Predictor) and format_of(run):
        raise InputError(f"{run} is an exported file: expected the run directory that it was made of")
    if isinstance(run, Predictor):
        own = run.options
        options = {"merge": own.merge, "bar": own.bar, "data": own.data} | options
        run = run.run.path
    predictor = load(run, device="cpu", engine="torch", precision="fp32", **options)
    path = _place(predictor, out, format, precision)
    try:
        judge, known = validation_judge(predictor, predictor.options.data), True
    except InputError as fault:
        if precision == "int8":
            raise InputError(f"int8 is calibrated on pictures of the run, and held against others: {fault}") from None
        say(f"note: no pictures of the run to hold it against ({fault}): pictures of noise are taken")
        judge, known = noise_judge(predictor), False
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        say(f"making it{', smoothed and not' if precision == 'int8' else ''} …")
        write_export(predictor, temporary, precision, lambda: judge)
        say(f"answering {counted(len(judge.sample), 'picture')} with it, in another process …")
        answers, speed = _replayed(temporary, judge)
        agreement = judge.compared(answers)
        _refuse_worse(agreement, predictor.options.bar, precision, known)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    checkpoint = judge.rate(TorchEngine(predictor.model, predictor.spec, predictor.device))
    return Export(path, precision, path.stat().st_size, agreement, speed, checkpoint)


def _place(predictor: Predictor, out: str | os.PathLike | None, format: str | None, precision: str) -> Path:
    """Where the file goes. Raises `InputError` for a name, format or precision that cannot be."""
    if precision not in PRECISIONS:
        raise InputError(f"--precision {precision}: expected {', '.join(PRECISIONS)}")
    possible = [one for one in FORMATS if format in (None, one.name)]
    if not possible:
        raise InputError(f"--format {format}: expected {', '.join(one.name for one in FORMATS)}")
    if out is None:
        return predictor.run.path / f"model-{precision}{possible[0].suffix}"
    path = Path(out)
    if format_of(path) not in possible:
        expected = " or ".join(one.suffix for one in possible)
        raise InputError(f"--out {path}: expected a name that ends in {expected}")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {path.parent}")
    return path


def _replayed(path: Path, judge: Judge) -> tuple[np.ndarray, float]:
    """Answers of the file to the judge's pictures, and pictures a second, by a process that has nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        asked, found = Path(folder) / "asked.npz", Path(folder) / "found.npz"
        np.savez(asked, *judge.sample.pixels.values())
        done = subprocess.run(python_command(MAIN, *map(str, (path, asked, found))), capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"{path.suffix} was made, but another process cannot use it: {done.stderr.strip()[-500:]}")
        with np.load(found) as file:
            return file["answers"], float(file["rate"])


def replay(path: str, asked: str, found: str) -> None:
    """Answers the pictures in one .npz into another: what the fresh process does."""
    card, engine = open_export(path, choose_threads(None))
    with np.load(asked) as file:
        pixels = [file[name] for name in file.files]
    sample = Sample({some.shape[1:3]: some for some in pixels}, None, "pictures")
    outputs, answers = (
        np.concatenate(some) for some in zip(*(engine.both(part) for part in sample.batches(BATCH)), strict=True)
    )
    own = card.calibration.answers(card.task, outputs)
    scale = np.array(card.task.std) if card.task.kind == "regression" else 1.0
    off = float(np.abs((own - answers) / scale).max())
    if not off <= EXACT:
        raise InputError(f"the answers in the file are off by {off:.1e} from those that its outputs give")
    np.savez(found, answers=answers, rate=rate(engine, max(pixels, key=len)[:TIMED]))


def _refuse_worse(agreement: Agreement, bar: Bar, precision: str, known: bool) -> None:
    if not np.isfinite(agreement.largest):
        raise InputError(f"in {precision} it gives no numbers: nothing was written")
    most = SAME if precision == "fp32" else bar.max_shift
    if not known and not agreement.shift <= most:
        raise InputError(
            f"in {precision} it does not compute what the checkpoint does, so nothing was written: {agreement.line()}. "
            f"Allowed is a mean change of {most:g}: expected another --precision or --format, or pictures by --data"
        )
    if known and not agreement.holds(bar):
        raise InputError(
            f"in {precision} it does not agree with the checkpoint, so nothing was written: {agreement.line()}.\n"
            f"Allowed are {bar.max_loss:g} points of accuracy and a mean change of {bar.max_shift:g} (--max-loss, "
            f"--max-shift; regression: {bar.max_rmse:g} % of the RMSE, --max-rmse); or take another --precision."
        )


def main() -> None:
    """`replay` of the command line's words."""
    try:
        replay(*sys.argv[1:])
    except InputError as fault:
        sys.exit(str(fault))
