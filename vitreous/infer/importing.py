"""Another project's checkpoint to a run directory, which answers like any other."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vitreous.calibration import Calibration
from vitreous.data.decode import decoder_name
from vitreous.data.preprocess import InputSpec
from vitreous.data.targets import Task
from vitreous.errors import InputError, counted
from vitreous.model.weights import import_weights
from vitreous.rundir import FORMAT, RunDir
from vitreous.training.recipe import TrainConfig

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation that most checkpoints expect


def import_run(
    checkpoint: str | Path,
    out: str | Path,
    *,
    names: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    format: str = "auto",
    say: Callable[[str], None] = print,
    **hints: Any,
) -> Path:
    """Makes a run directory of a classifier's checkpoint, and returns it.

    `names` are its classes (default: their numbers), `mean` and `std` a channel what its pixels are normalised with, in
    0 to 1 (default: ImageNet's, or 0.5). Its probabilities are not calibrated: there are no validation pictures.
    Hints are those of `import_weights`. Raises `InputError` for a checkpoint, names or numbers that do not fit.
    """
    RunDir.check_free(out)
    model = import_weights(checkpoint, format, say, **hints)
    config = model.config
    usual = IMAGENET if config.channels == 3 else ((0.5,) * config.channels,) * 2
    if not mean or not std:
        say(f"pixels: assumed mean {usual[0]} and deviation {usual[1]}; --mean and --std say otherwise")
    pixels = tuple(mean) or usual[0], tuple(std) or usual[1]
    if any(len(numbers) != config.channels for numbers in pixels):
        raise InputError(f"mean and std: expected {counted(config.channels, 'number')} each, one a channel")
    if names and len(set(names)) != config.outputs:
        raise InputError(f"names: expected {config.outputs} different ones, one an output; got {len(set(names))}")
    task = Task("classification", tuple(names) or tuple(map(str, range(config.outputs))), column="class")
    spec = InputSpec(config.channels, "uint8", (config.image_size,), *pixels, decoder=decoder_name())
    run = RunDir.create(out)
    run.write_split([])
    run.write_json("validation.json", {"calibration": Calibration(threshold=0.0).to_json(), "summary": None})
    run.write_weights(model.state_dict())
    values = {"model": config.to_json(), "input": spec.to_json(), "task": task.to_json()}
    origin = {"format": FORMAT, "vitreous": version("vitreous"), "data": None, "imported": Path(checkpoint).name}
    run.write_json("config.json", {**origin, **values, "train": TrainConfig().to_json()})
    return run.path
