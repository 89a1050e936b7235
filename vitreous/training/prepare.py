"""Data to a Job: all that a run trains on, checked before the first step."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from vitreous.data.decode import Facts
from vitreous.data.doctor import Scan, fast_findings, scan
from vitreous.data.places import is_there
from vitreous.data.preprocess import InputSpec, Size, infer_spec, shrink
from vitreous.data.sources import Source, open_source
from vitreous.data.splits import assign_splits
from vitreous.data.store import PixelStore, UndecodableError, open_store
from vitreous.data.targets import Task, describe, infer_task
from vitreous.errors import InputError, counted
from vitreous.model.config import ModelConfig
from vitreous.rundir import RunDir, SplitRow
from vitreous.training.journal import Journal
from vitreous.training.recipe import TrainConfig, choose_model, choose_threads, choose_validation
from vitreous.training.world import World

SHRINK_WORTH_A_WORD = 4.0
CHANGED = "changed since the run began; these pictures are"


@dataclass(frozen=True)
class Job:
    """What a run trains on. Pictures are numbers in the store; test pictures are in `split` alone."""

    task: Task
    spec: InputSpec
    model: ModelConfig
    store: PixelStore
    targets: np.ndarray  # (n,) int64 or (n, K) float32; numbers standardised
    training: np.ndarray
    validation: np.ndarray
    split: list[SplitRow]
    shapes: list[Size]  # of the pictures in the store, as they are in their files

    @property
    def main_size(self) -> Size:
        """The size (height, width) that most pictures take."""
        return self.spec.sizes[int(np.bincount(self.store.which).argmax())]

    def to_json(self) -> dict[str, Any]:
        """Plain values, of which another process makes the same job."""
        return {
            "data": self.store.source.location,
            "split": [[row.path, row.digest, row.split] for row in self.split],
            "shapes": self.shapes,
            "task": self.task.to_json(),
            "input": self.spec.to_json(),
            "model": self.model.to_json(),
            "cached": self.store.arrays is not None,
        }


@dataclass(frozen=True)
class Survey:
    """What was found of the data before a picture is decoded, and what was chosen for it."""

    source: Source
    found: Scan
    split: list[SplitRow]
    task: Task
    spec: InputSpec
    model: ModelConfig

    def only(self, numbers: list[int]) -> Self:
        """The survey of some of the pictures."""
        source, found, split = self.source.only(numbers), self.found.only(numbers), [self.split[i] for i in numbers]
        return dataclasses.replace(self, source=source, found=found, split=split)


@dataclass(frozen=True)
class Origin:
    """A model that was trained before, its weights, and how its pixels are normalised, where that is known."""

    model: ModelConfig
    weights: dict[str, Tensor]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def size(self) -> str:
        """The side of a square of the area that it is made for."""
        return str(round(math.prod(self.model.image_size) ** 0.5))


def prepare(data: str, config: TrainConfig, journal: Journal, origin: Origin | None = None) -> Job:
    """Opens and examines the data, splits it, chooses sizes and model, decodes every picture once.

    With `origin`, a model that was trained before, that model is taken, and pixels are normalised as they were for it;
    without a size of their own, pictures take about the area that it is made for.
    Raises `InputError` for whatever would make the training wrong, with the files' names.
    """
    source = open_source(data, config.columns)
    if source.ignored:
        journal.say(f"passed over {counted(len(source.ignored), 'file')}, no pictures: {_some(source.ignored)}")
    source, found = _examined(source, config, journal)
    task = infer_task(source.columns, config.task, source.names)
    encoded = task.encode(source.columns, source.names)
    journal.say(f"{counted(len(source), 'picture')}; {describe(task, encoded)}")
    splits = assign_splits(
        source.splits,
        encoded if task.kind == "classification" else None,
        source.groups,
        found.digests,
        config.seed,
        config.validation or choose_validation(int(np.isin(source.splits, ("", "train")).sum())),
        task.names if task.kind == "classification" else (),
    )
    _tell_findings(dataclasses.replace(source, splits=splits), found, config, journal)
    task = task.fitted(encoded[splits == "train"])

    used = np.flatnonzero(splits != "test")
    facts = _facts(found, used)
    shapes = [(fact.height, fact.width) for fact in facts]
    model = origin.model if origin else choose_model(config, shapes)
    spec = infer_spec(
        facts,
        [source.names[i] for i in used],
        size=origin.size if origin and config.size == "auto" else config.size,
        stride=model.stride,
        channels=config.channels,
        depth=config.depth,
        max_pixels=config.max_pixels,
    )
    _tell_split(splits, journal)
    _tell_sizes(shapes, spec, journal)
    split = [SplitRow(*row) for row in zip(source.names, found.digests, splits.tolist(), strict=True)]
    survey = Survey(source, found, split, task, spec, model)
    try:
        job = _job(survey, config, journal)
    except UndecodableError as fault:
        if not config.skip_bad:
            raise
        journal.say(f"{fault}\n--skip-bad: they are left out")
        keep = sorted(set(range(len(source))) - {int(used[i]) for i in fault.numbers})
        job = _job(survey.only(keep), config, journal)
    return _completed(job, origin)


def prepare_again(run: RunDir, journal: Journal, data: str | Path | None = None) -> Job:
    """The job of a run that is there, from its own config and split; `data` is where its pictures were moved to.

    Raises `InputError` where they are gone or changed.
    """
    config = run.parsed("config.json", "train", TrainConfig.from_json)
    place = data or run.place(network=True)
    if place is None:
        raise InputError(f"{run.path} was not trained here, so it cannot be resumed")
    if data is None:
        journal.say(f"pictures: {place}, as the run's config.json has it")
    if data is None and not is_there(place):
        raise InputError(
            f"the pictures of the run are gone from {place}; where they lie elsewhere now: "
            f"vitreous train DATA --resume {run.path}"
        )
    split = run.read_split()
    source = _in_order_of(split, place, config)
    found = _scan(source, config, journal)
    if others := [row.path for row, digest in zip(split, found.digests, strict=True) if row.digest != digest]:
        raise InputError.listing(f"{source.location} {CHANGED} others now:", others)
    task = run.parsed("config.json", "task", Task.from_json)
    spec = run.parsed("config.json", "input", InputSpec.from_json)
    model = run.parsed("config.json", "model", ModelConfig.from_json)
    return _job(Survey(source, found, split, task, spec, model), config, journal)


def _prepare_alike(values: dict[str, Any], config: TrainConfig, journal: Journal) -> Job:
    """The job that another process of the run has prepared: its pictures are neither examined nor decoded again where
    the cache has them.
    """
    split = [SplitRow(*row) for row in values["split"]]
    source = _in_order_of(split, values["data"], config)
    parts = (
        Task.from_json(values["task"]),
        InputSpec.from_json(values["input"]),
        ModelConfig.from_json(values["model"]),
    )
    shapes = [(height, width) for height, width in values["shapes"]]
    return _assembled(source, split, shapes, *parts, config, journal, decode=values["cached"])


def prepare_together(make: Callable[[], Job], config: TrainConfig, journal: Journal, world: World) -> Job:
    """The job that the first process makes, in all: it alone examines the data, and says what is wrong with it."""
    if world.size == 1:
        return make()
    made: list[Job] = []

    def described() -> dict[str, Any]:
        made.append(make())
        return made[0].to_json()

    values = world.agree(described)
    return world.in_turn(lambda: made[0] if made else _prepare_alike(values, config, journal))


def _in_order_of(split: list[SplitRow], place: str | Path, config: TrainConfig) -> Source:
    """The pictures of a split in a place. Raises `InputError` where some are gone."""
    source = open_source(place, config.columns)
    places = {name: i for i, name in enumerate(source.names)}
    if missing := [row.path for row in split if row.path not in places]:
        raise InputError.listing(f"{source.location} {CHANGED} gone:", missing)
    return source.only([places[row.path] for row in split])


def _job(survey: Survey, config: TrainConfig, journal: Journal) -> Job:
    used = np.flatnonzero(np.array([row.split for row in survey.split]) != "test")
    shapes = [(fact.height, fact.width) for fact in _facts(survey.found, used)]
    parts = (survey.task, survey.spec, survey.model)
    return _assembled(survey.source, survey.split, shapes, *parts, config, journal)


def _assembled(
    source: Source,
    split: list[SplitRow],
    shapes: list[Size],
    task: Task,
    spec: InputSpec,
    model: ModelConfig,
    config: TrainConfig,
    journal: Journal,
    decode: bool = True,
) -> Job:
    """The job of what was found and chosen. `decode` fills the cache, where it is not filled yet."""
    splits = np.array([row.split for row in split])
    used = np.flatnonzero(splits != "test")
    part = source.only(used)
    if decode:
        digests, threads = [split[i].digest for i in used], choose_threads(config.threads)
        with journal.bar("decoding", len(part)) as progress:
            store = open_store(part, spec, shapes, digests, config.cache, threads, journal.say, progress)
    else:
        store = PixelStore(part, spec, shapes, None)
    targets = task.encode(part.columns, part.names)
    return Job(
        task=task,
        spec=spec,
        model=model,
        store=store,
        targets=task.standardise(targets) if task.kind == "regression" else targets,
        training=np.flatnonzero(splits[used] == "train"),
        validation=np.flatnonzero(splits[used] == "validation"),
        split=split,
        shapes=shapes,
    )


def _completed(job: Job, origin: Origin | None) -> Job:
    """The job with what its pixels tell: mean and deviation, and the model's sizes.

    A model that was trained before stays made for its own size, and its pixels are normalised as they were: positions
    and features mean what they meant.
    """
    made_for = origin.model.image_size if origin else job.main_size
    mean, std = job.store.statistics(job.training)
    if origin and len(origin.mean) == len(mean):
        mean, std = origin.mean, origin.std
    job.store.spec = dataclasses.replace(job.spec, mean=mean, std=std)
    model = dataclasses.replace(job.model, image_size=made_for, channels=job.spec.channels, outputs=job.task.outputs)
    return dataclasses.replace(job, spec=job.store.spec, model=model)


def _examined(source: Source, config: TrainConfig, journal: Journal) -> tuple[Source, Scan]:
    found = _scan(source, config, journal)
    if not found.faults:
        return source, found
    faults = list(found.faults.values())
    title = f"{len(faults):,} of {len(source):,} pictures cannot be read:"
    if not config.skip_bad:
        raise InputError.listing(title, faults, "mend or remove them, or leave them out with --skip-bad")
    journal.say(str(InputError.listing(title, faults, "--skip-bad: they are left out")))
    keep = sorted(set(range(len(source))) - set(found.faults))
    return source.only(keep), found.only(keep)


def _scan(source: Source, config: TrainConfig, journal: Journal) -> Scan:
    with journal.bar("looking", len(source)) as progress:
        return scan(source, choose_threads(config.threads), config.max_pixels, progress)


def _facts(found: Scan, numbers: np.ndarray) -> list[Facts]:
    return [fact for i in numbers if (fact := found.facts[i])]


def _tell_findings(source: Source, found: Scan, config: TrainConfig, journal: Journal):
    """What `check` would say of the headers and labels, where it is more than a note."""
    for finding in fast_findings(source, found):
        if finding.code == "imbalance" and config.balance != "none":
            continue
        if finding.severity != "note" and finding.code != "kinds":
            more = "; `vitreous check` lists them" if len(finding.details) > 3 else ""
            journal.say(f"warning: {finding.title}: {_some(finding.details)}{more}")


def _tell_split(splits: np.ndarray, journal: Journal):
    counts = Counter(splits.tolist())
    parts = [
        f"{counts[name]:,} {words}"
        for name, words in (
            ("train", "to train on"),
            ("validation", "to validate with"),
            ("test", "for a test, not touched"),
        )
        if counts[name]
    ]
    journal.say("; ".join(parts))


def _tell_sizes(shapes: list[tuple[int, int]], spec: InputSpec, journal: Journal):
    (height, width), _ = Counter(shapes).most_common(1)[0]
    kinds = {1: "grey", 3: "RGB"}.get(spec.channels, f"{spec.channels} channels")
    became = ", ".join(f"{h}×{w}" for h, w in spec.sizes)
    journal.say(f"pictures of {height}×{width} (the commonest; height × width), {kinds}, {spec.depth} -> {became}")
    factor = shrink(shapes, spec)
    if factor < 0.5:
        journal.say(f"warning: pictures are enlarged {1 / factor:.1f} times a side, which adds work and no detail")
    if factor > SHRINK_WORTH_A_WORD:
        side = round(float(np.sqrt(np.median([h * w for h, w in shapes]))) / 2)
        journal.say(
            f"warning: pictures shrink {factor:.1f} times a side; small things may be lost. "
            f"--size {side} keeps more, and takes longer"
        )


def _some(names, most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
