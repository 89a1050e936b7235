"""Predictor: a run directory and pictures to answers. evaluate: to metrics."""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitreous import metrics
from vitreous.calibration import Calibration, summarise
from vitreous.data.doctor import digest
from vitreous.data.preprocess import InputSpec
from vitreous.data.sources import Source, open_pictures, open_source
from vitreous.data.store import in_order
from vitreous.data.targets import Task
from vitreous.errors import InputError
from vitreous.model.config import ModelConfig
from vitreous.model.vit import VisionTransformer
from vitreous.rundir import RunDir
from vitreous.training.recipe import choose_device, choose_threads

Picture = str | os.PathLike | np.ndarray
VIEWS = ("one", "flip", "shift")
WINDOW = 8  # batches that are decoded before their answers go out


@dataclass(frozen=True)
class Prediction:
    """The answer to one picture: a class, labels, or numbers; or why there is none."""

    picture: str
    kind: str  # the task's
    probabilities: dict[str, float] = dataclasses.field(default_factory=dict)  # most probable first
    plausible: tuple[str, ...] = ()  # classes that hold the truth in 90 % of pictures
    values: dict[str, float] = dataclasses.field(default_factory=dict)  # of a regression, in units
    intervals: dict[str, tuple[float, float]] = dataclasses.field(
        default_factory=dict
    )  # that hold it in 90 %; none for too few validation pictures
    units: dict[str, str] = dataclasses.field(default_factory=dict)
    error: str = ""

    @property
    def label(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities), "")

    @property
    def labels(self) -> tuple[str, ...]:
        """Of a multi-label model: the labels of probability one half or more."""
        return tuple(name for name, p in self.probabilities.items() if p >= 0.5)

    @property
    def unsure(self) -> bool:
        """Whether more than one class is plausible."""
        return len(self.plausible) > 1


class Predictor:
    """A trained model that answers. `load` makes one."""

    def __init__(
        self,
        model: VisionTransformer,
        spec: InputSpec,
        task: Task,
        calibration: Calibration,
        run: RunDir,
        device: torch.device,
        batch: int = 32,
        views: str = "one",
    ):
        self.model, self.spec, self.task, self.calibration = model.eval().to(device), spec, task, calibration
        self.run, self.device, self.batch, self.views = run, device, batch, views
        self.threads = choose_threads(None)

    def predict(self, pictures: Picture | Sequence[Picture]) -> list[Prediction]:
        """Answers to files, folders (all pictures in them) or arrays (H, W) or (H, W, C), in their order.

        A picture that cannot be used gets a prediction with `error`. Raises `InputError` for paths that are not there.
        """
        one = isinstance(pictures, str | os.PathLike | np.ndarray)
        return list(self.stream(open_pictures([pictures] if one else pictures)))  # pyright: ignore

    def stream(self, source: Source) -> Iterator[Prediction]:
        """Answers to the pictures of a source as they come, in their order; memory stays bounded."""
        for numbers, answers, faults in self.answers(source):
            for number, answer in zip(numbers, answers, strict=True):
                yield self.prediction(source.names[number], answer, faults.get(number, ""))

    def answers(self, source: Source) -> Iterator[tuple[list[int], np.ndarray, dict[int, str]]]:
        """Window by window: numbers of pictures, answers (n, outputs), NaN where there is a fault, and the faults."""

        def read(number: int) -> tuple[int, np.ndarray] | str:
            try:
                return self.spec.read(source.read(number), source.names[number])
            except InputError as fault:
                return str(fault)

        window: list[tuple[int, tuple[int, np.ndarray] | str]] = []
        for number, picture in enumerate(in_order(read, range(len(source)), self.threads)):
            window.append((number, picture))
            if len(window) == WINDOW * self.batch or number == len(source) - 1:
                yield self._answer_window(window)
                window = []

    def outputs(self, pixels: Tensor) -> np.ndarray:
        """Pixels (B, H, W, C) as `InputSpec.read` makes them -> the model's raw outputs (B, outputs), the mean over the
        views.
        """
        with torch.inference_mode():
            found = [self.model(self.normalised(view)).float() for view in views_of(pixels, self.views)]
            return torch.stack(found).mean(0).cpu().numpy()

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels (B, H, W, C) as `InputSpec.read` makes them -> what the model takes, (B, C, H, W) on its device."""
        return self.spec.normalise(pixels.permute(0, 3, 1, 2).to(self.device))

    def _answer_window(
        self, window: list[tuple[int, tuple[int, np.ndarray] | str]]
    ) -> tuple[list[int], np.ndarray, dict[int, str]]:
        answers = np.full((len(window), self.task.outputs), math.nan)
        by_size: dict[int, list[tuple[int, np.ndarray]]] = {}
        for row, (_, picture) in enumerate(window):
            if not isinstance(picture, str):
                by_size.setdefault(picture[0], []).append((row, picture[1]))
        for some in by_size.values():
            for start in range(0, len(some), self.batch):
                rows, pixels = zip(*some[start : start + self.batch], strict=True)
                outputs = self.outputs(torch.from_numpy(np.stack(pixels)))
                answers[list(rows)] = self.calibration.answers(self.task, outputs)
        faults = {number: picture for number, picture in window if isinstance(picture, str)}
        return [number for number, _ in window], answers, faults

    def prediction(self, name: str, answer: np.ndarray, error: str = "") -> Prediction:
        """What the calibrated answer (outputs,) to a picture says."""
        kind, names = self.task.kind, self.task.names
        if error:
            return Prediction(name, kind, error=error)
        if kind == "regression":
            values = dict(zip(names, answer.tolist(), strict=True))
            widths = dict(zip(names, self.calibration.halfwidth, strict=True))
            known = {key: width for key, width in widths.items() if math.isfinite(width)}
            intervals = {key: (values[key] - width, values[key] + width) for key, width in known.items()}
            units = dict(zip(names, self.task.units, strict=True))
            return Prediction(name, kind, values=values, intervals=intervals, units=units)
        order = np.argsort(-answer, kind="stable")
        probabilities = {names[k]: float(answer[k]) for k in order}
        if kind == "multilabel":
            return Prediction(name, kind, probabilities)
        members = metrics.plausible(answer[None], self.calibration.threshold)[0]
        return Prediction(name, kind, probabilities, tuple(names[k] for k in order if members[k]))


def views_of(pixels: Tensor, kind: str) -> Iterator[Tensor]:
    """Pixels (B, H, W, C), with "flip" mirrored too, with "shift" both also moved by a sixteenth each way, the edge
    repeated.
    """
    H, W = pixels.shape[1:3]
    for share in (0, 1 / 16, -1 / 16) if kind == "shift" else (0,):
        rows, columns = ((torch.arange(n) + round(share * n)).clamp(0, n - 1) for n in (H, W))
        moved = pixels[:, rows][:, :, columns] if share else pixels
        yield moved
        if kind != "one":
            yield moved.flip(2)


def load(run: str | os.PathLike, device: str = "auto", views: str = "one") -> Predictor:
    """A predictor from a run directory. With `views` it answers with the mean over a picture and its mirror image
    ("flip"), and over both moved a little ("shift"): two and six times the work.

    Raises `InputError` where it is none, unfinished, or of another version, and for views of a model that was not
    trained on mirrored pictures.
    """
    folder = RunDir.open(run)
    config = folder.config()
    if views not in VIEWS:
        raise InputError(f"views is {views!r}: expected {', '.join(VIEWS)}")
    trained_here = (folder.path / "plan.json").exists()
    if views != "one" and trained_here and not folder.read_json("plan.json")["augmentation"]["flip"]:
        raise InputError(f"views is {views}: {folder.path} was not trained on mirrored pictures; expected one")
    try:
        model_config = ModelConfig.from_json(config["model"])
        spec, task = InputSpec.from_json(config["input"]), Task.from_json(config["task"])
    except (KeyError, TypeError) as fault:
        raise InputError(f"{folder.path / 'config.json'} is damaged ({fault!r})") from None
    weights = folder.read_weights()
    calibration = Calibration.from_json(folder.read_json("validation.json")["calibration"])
    model = VisionTransformer(model_config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as fault:
        raise InputError(f"{folder.path}: the weights are not those of its config.json ({fault})") from None
    return Predictor(model, spec, task, calibration, folder, choose_device(device), views=views)


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
    options = predictor.run.config()["train"]
    source = open_source(
        data, target=target or tuple(options["target"]), path_column=path_column or options["path_column"]
    )
    if target:
        source = source.renamed(predictor.task.columns)
    source = source.only(_scored(predictor.run, source, predictor.threads, split, say))
    predictor.task.encode(source.columns, source.names)  # a fault in the targets shows before the work
    chunks, faults = [], {}
    for numbers, answers, more in predictor.answers(source):
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
        say(str(InputError.listing(f"left out, {len(faults):,} pictures that cannot be used:", list(faults.values()))))
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


def _scored(run: RunDir, source: Source, threads: int, split: str, say: Callable[[str], None]) -> list[int]:
    """The numbers of the pictures to score, and a word about those that are not."""
    if split not in ("auto", "train", "validation", "test", "all"):
        raise InputError(f"--split {split}: expected auto, train, validation, test or all")
    if split == "all":
        return list(range(len(source)))
    known = _known(run)
    sides = [known.get(text, "new") for text in in_order(lambda i: _digest(source, i), range(len(source)), threads)]
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


def _known(run: RunDir) -> dict[str, str]:
    """Digest -> split; what stands in several splits counts as trained on first, then as validation."""
    rank = {"test": 0, "validation": 1, "train": 2}
    known: dict[str, str] = {}
    for row in sorted(run.read_split(), key=lambda row: rank[row.split]):
        known[row.digest] = row.split
    return known


def _digest(source: Source, number: int) -> str:
    try:
        return digest(source.read(number))
    except InputError:
        return ""  # named when it is decoded
