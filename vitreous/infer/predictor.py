"""Predictor: a run directory, or an exported file, and pictures to answers."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitreous import metrics
from vitreous.calibration import Calibration
from vitreous.data.preprocess import InputSpec
from vitreous.data.sources import Source, open_pictures
from vitreous.data.store import reader
from vitreous.data.tables import Columns
from vitreous.data.targets import Task
from vitreous.errors import InputError, counted
from vitreous.infer.agreement import Bar
from vitreous.infer.card import Seen, identity
from vitreous.infer.division import divided
from vitreous.infer.engines import BATCH, Engine, TorchEngine, candidates, describe
from vitreous.infer.files import format_of, open_export
from vitreous.infer.pipeline import Answered, outputs_in_order
from vitreous.model.config import ModelConfig
from vitreous.model.merging import tokens_left
from vitreous.model.vit import VisionTransformer, count_macs
from vitreous.rundir import RunDir
from vitreous.training.plan import Plan
from vitreous.training.recipe import TrainConfig, choose_device, choose_threads
from vitreous.training.torchrun import current

Picture = str | os.PathLike | np.ndarray
VIEWS = ("one", "flip", "shift")
WORK = 2e13  # floating-point operations, a minute or so on two cores: a search for the fastest engine pays from there
ENOUGH = 512  # pictures from which on it pays to load the one that was found before


@dataclass(frozen=True)
class AnswerConfig:
    """How answers are computed."""

    # auto is a GPU where there is one
    device: str = "auto"
    # What computes: torch, compiled (torch.compile), openvino or onnxruntime. auto: the fastest that is installed and
    # agrees with the model as it was trained; measured once for a run, when there is a minute of work, and remembered
    engine: Literal["auto", "torch", "compiled", "openvino", "onnxruntime"] = "auto"
    # fp32, bf16 or int8. auto: the fastest whose answers to the run's validation pictures stay the same
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    # Tokens that are merged in every block (2210.09461): faster, at some cost in accuracy, which is measured and said
    # when the engine is chosen
    merge: int = 0
    # Answer with the mean over the picture and its mirror image (flip), and over both moved a little (shift)
    views: Literal["one", "flip", "shift"] = "one"
    # What a faster engine may cost
    bar: Bar = field(default_factory=Bar)
    # Where the run's pictures are now, if they were moved, to measure and to calibrate by
    data: str | None = None

    @property
    def asked(self) -> bool:
        """Whether an engine or a precision was asked for: then also few pictures are worth a measurement."""
        return (self.engine, self.precision) != ("auto", "auto")


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
        spec: InputSpec,
        task: Task,
        calibration: Calibration,
        options: AnswerConfig,
        *,
        run: RunDir | None = None,
        engine: Engine | None = None,
        columns: Columns = Columns(),
        seen: Seen | None = None,
    ):
        """Of a run directory, or with the `engine` of an exported file and the pictures that it has `seen`. `columns`
        are those that the targets stood in.
        """
        self.spec, self.task, self.calibration, self.options = spec, task, calibration, options
        self.world = current()
        self.device = self.world.use(choose_device("cpu" if run is None else options.device))
        self.batch, self.threads = BATCH, choose_threads(None)
        self._run, self._engine, self._seen, self.columns = run, engine, seen, columns
        self.converted: dict[str, Any] = {}  # graphs by format, while engines are made of them
        self.settled = engine is not None  # whether the engine is chosen for good

    @property
    def exported(self) -> bool:
        """Whether the answers come from an exported file."""
        return self._run is None

    @property
    def run(self) -> RunDir:
        """The run directory. Raises `InputError` where the answers come from an exported file."""
        if self._run is None:
            raise InputError("an exported file holds no more than its answers take: expected the run directory")
        return self._run

    @property
    def mirrored(self) -> bool:
        """Whether mirrored views make sense: the model was trained on such pictures, or elsewhere."""
        trained_here = (self.run.path / "plan.json").exists()
        return not trained_here or bool(self.run.parsed("plan.json", "", Plan.from_json).augmentation.flip)

    @cached_property
    def seen(self) -> Seen:
        """The pictures of the run. Raises `InputError` where its split.csv cannot be read."""
        return Seen.of(self.run.read_split()) if self._seen is None else self._seen

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What an export is made of: the run, its weights, and versions."""
        config, path, place = self.run.config(), self.run.path, self.run.config().get("data")
        return {
            "run": path.resolve().name,
            "data": Path(str(place)).name if place else config.get("imported"),
            "weights": hashlib.blake2b((path / "model.safetensors").read_bytes(), digest_size=16).hexdigest(),
            "merge": self.options.merge,
            "trained_with": config.get("vitreous"),
            "vitreous": version("vitreous"),
            "torch": version("torch"),
        }

    @property
    def identity(self) -> dict[str, Any]:
        """What its outputs depend on, however the run is called. Raises `InputError` for an exported file."""
        return identity(self.origin, self.spec)

    @cached_property
    def model(self) -> VisionTransformer:
        """The model as it was trained. Raises `InputError` where there is none, as for an exported file."""
        config = read_model_config(self.run)
        if (config.channels, config.outputs) != (self.spec.channels, self.task.outputs):
            raise InputError(
                f"{self.run.path} is damaged: its model has other channels or outputs than its input and task"
            )
        weights = self.run.read_weights()
        model = VisionTransformer(dataclasses.replace(config, merge=self.options.merge))
        model.load_state_dict(weights)
        return model.eval().to(self.device)

    @property
    def engine(self) -> Engine:
        """What computes the outputs; until one is chosen PyTorch, in fp32."""
        if self._engine is None:
            self._engine = TorchEngine(self.model, self.spec, self.device)
        return self._engine

    def settle(self, say: Callable[[str], None] = print) -> None:
        """Chooses the engine that the options ask for: once for a run, by a measurement that is kept in its folder.

        Raises `InputError` where there is none: it cannot be made here, or of several none agrees with the run.
        """
        from vitreous.infer.choose import choose_engine

        if not self.settled:
            self._engine, self.settled = choose_engine(self, say), True
            self.converted.clear()

    def predict(self, pictures: Picture | Sequence[Picture]) -> list[Prediction]:
        """Answers to files, folders (all pictures in them) or arrays (H, W) or (H, W, C) of the model's depth, in their
        order: calibrated probabilities, or numbers in their units.

        A picture that cannot be used gets a prediction with `error`. Raises `InputError` for paths that are not there,
        and where the options ask for an engine that cannot be had.
        """
        one = isinstance(pictures, str | os.PathLike | np.ndarray)
        source = open_pictures([pictures] if one else pictures)  # pyright: ignore
        return list(self.stream(source, print if len(source) > self.batch else lambda text: None))

    def stream(self, source: Source, say: Callable[[str], None] = print) -> Generator[Prediction, None, None]:
        """Answers to the pictures of a source as they come, in their order; memory stays bounded."""
        with closing(self.answers(source, say)) as found:
            for numbers, answers, faults in found:
                for number, answer in zip(numbers, answers, strict=True):
                    yield self.prediction(source.names[number], answer, faults.get(number, ""))

    def answers(self, source: Source, say: Callable[[str], None] = print) -> Generator[Answered, None, None]:
        """As they come, in order: numbers of pictures, answers (n, K), NaN where there is a fault, and the faults.

        The processes of torchrun each answer a part, and all get all answers.
        """
        if not self.settled and self.world.agree(lambda: self._pays(len(source))):
            if self.world.size > 1:
                self.world.agree(lambda: self.settle(say))  # measured once; the others find what was chosen
            self.settle(say)
        elif not self.settled:
            say(self._unsettled)
        own = self._own_answers
        return own(source) if self.world.size == 1 else divided(own, source, self.task.outputs, self.batch, self.world)

    def _own_answers(self, source: Source) -> Generator[Answered, None, None]:
        pictures = outputs_in_order(
            len(source),
            # Too little memory, a disk that is gone, what a library raises at odd contents: of one picture alone.
            reader(source, self.spec, Exception),
            self.outputs,
            outputs=self.task.outputs,
            batch=self.batch,
            threads=self.threads,
        )
        with closing(pictures):
            for numbers, outputs, faults in pictures:
                good = [number not in faults for number in numbers]
                answers = np.full(outputs.shape, math.nan)
                answers[good] = self.calibration.answers(self.task, outputs[good])
                yield numbers, answers, faults

    def _pays(self, pictures: int) -> bool:
        """Whether so many pictures are worth a search for the fastest engine, or what it takes to load it."""
        from vitreous.infer.choose import remembers

        if self.options.asked or pictures < ENOUGH:
            return self.options.asked
        size = max(self.spec.sizes, key=math.prod)
        return 2 * count_macs(self.model.config, *size) * pictures >= WORK or remembers(self)

    @cached_property
    def _unsettled(self) -> str:
        """What answers as long as nothing is measured, and what becomes of tokens that merge."""
        words = [f"engine: {describe(self.engine)}"]
        if len(candidates(self.device, self.options.engine, self.options.precision)) > 1:
            words.append("where there is more to do, a faster one is looked for")
        if self.options.merge:
            config, size = self.model.config, max(self.spec.sizes, key=math.prod)
            left, tokens = tokens_left(config, *size), math.prod(config.grid(*size))
            words.append(f"merging leaves {left:,} of {counted(tokens, 'token')}; its cost is measured then too")
        return "; ".join(words)

    def outputs(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (B, H, W, C) as `InputSpec.read` makes them -> the model's raw outputs (B, K), the mean over the
        views.
        """
        return np.mean([self.engine.run(view) for view in views_of(pixels, self.options.views)], 0)

    def normalised(self, pixels: np.ndarray | Tensor) -> Tensor:
        """Pixels (B, H, W, C) as `InputSpec.read` makes them -> what `model` takes, (B, C, H, W) on its device."""
        return self.spec.normalise(torch.as_tensor(pixels).permute(0, 3, 1, 2).to(self.device))

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
        order = np.argsort(-answer, kind="stable").tolist()
        probabilities = dict(zip([names[k] for k in order], answer[order].tolist(), strict=True))
        if kind == "multilabel":
            return Prediction(name, kind, probabilities)
        members = metrics.plausible(answer[None], self.calibration.threshold)[0]
        return Prediction(name, kind, probabilities, tuple(names[k] for k in order if members[k]))


def read_model_config(run: RunDir) -> ModelConfig:
    """The config of a run's model. Raises `InputError` where it is damaged, or another than that of its weights.

    Their sizes are compared on the meta device, so that no config can ask for more memory than the weights take.
    """
    config = run.parsed("config.json", "model", ModelConfig.from_json)
    if config.depth > len(run.weights_header().tensors):
        raise InputError(f"{run.path}: the weights are not those of its config.json: it has {config.depth} blocks")
    with torch.device("meta"):
        run.check_weights(VisionTransformer(config).state_dict())
    return config


def views_of(pixels: np.ndarray, kind: str) -> Iterator[np.ndarray]:
    """Pixels (B, H, W, C), with "flip" mirrored too, with "shift" both also moved by a sixteenth each way, the edge
    repeated.
    """
    H, W = pixels.shape[1:3]
    for share in (0, 1 / 16, -1 / 16) if kind == "shift" else (0,):
        rows, columns = (np.clip(np.arange(n) + round(share * n), 0, n - 1) for n in (H, W))
        moved = pixels[:, rows][:, :, columns] if share else pixels
        yield moved
        if kind != "one":
            yield np.ascontiguousarray(moved[:, :, ::-1])


def load(place: str | os.PathLike, options: AnswerConfig | None = None, **fields: Any) -> Predictor:
    """A predictor from a run directory, or from a file that `export` made. `fields` are those of `AnswerConfig`.

    Raises `InputError` where it is none, unfinished, or of another version; for views of a model that was not trained
    on mirrored pictures; and for an engine or precision that cannot be had.
    """
    chosen = dataclasses.replace(options or AnswerConfig(), **fields)
    if chosen.views not in VIEWS:
        raise InputError(f"views is {chosen.views!r}: expected {', '.join(VIEWS)}")
    if format_of(place):
        return _load_export(Path(place), chosen)
    candidates(choose_device(chosen.device), chosen.engine, chosen.precision)
    folder = RunDir.open(place)
    spec = folder.parsed("config.json", "input", InputSpec.from_json)
    task = folder.parsed("config.json", "task", Task.from_json)
    train = folder.parsed("config.json", "train", TrainConfig.from_json)
    calibration = folder.parsed("validation.json", "calibration", Calibration.from_json)
    columns = Columns(train.target, train.path_column)
    predictor = Predictor(spec, task, calibration, chosen, run=folder, columns=columns)
    if chosen.views != "one" and not predictor.mirrored:
        raise _no_mirror(chosen, folder.path)
    _ = predictor.model  # so that a fault in it shows now
    return predictor


def _no_mirror(options: AnswerConfig, place: Path) -> InputError:
    return InputError(f"views is {options.views}: {place} was not trained on mirrored pictures; expected one")


def _load_export(path: Path, options: AnswerConfig) -> Predictor:
    card, engine = open_export(path, choose_threads(None))
    if options.views != "one" and not card.mirrored:
        raise _no_mirror(options, path)
    own = {"device": "cpu", "engine": engine.name, "precision": engine.precision, "views": options.views}
    usual, asked = ({**vars(some), **vars(some.bar), "bar": None} for some in (AnswerConfig(), options))
    odd = [name for name, value in asked.items() if value not in (usual[name], own.get(name))]
    if odd:
        lines = [f"{name} {asked[name]}: expected {own.get(name, usual[name])}" for name in odd]
        title = f"{path} is computed by {engine.name} in {engine.precision}, on the CPU; of the options it refuses:"
        raise InputError.listing(title, lines, "a run directory takes them")
    parts = card.spec, card.task, card.calibration
    return Predictor(*parts, options, engine=engine, columns=card.columns, seen=card.seen)
