"""`vitreous predict` on a folder of photos, from decoding to CSV, beside what its parts allow; and its memory.

    python benchmarks/predict.py PHOTOS RUN --engine openvino --precision int8
    python benchmarks/predict.py PHOTOS --fresh vit_s_16 --memory

PHOTOS is a folder of them, which is copied as often as it takes; RUN is a run directory. --fresh makes one of a named
model at 224² with random weights, as if it had been trained on half of the photos and validated on the others.

The bound: where decoding takes d core-seconds a picture and the engine e, each alone, C cores give at most C / (d + e)
pictures a second. d is what one thread takes in this process (`predict` decodes in others), e what the engine takes
with all of its threads, times these. The rate of `predict` is that of a fresh process, less the time of one that is
asked about fewer: Python, PyTorch, the model. Rounds of all four follow each other; their medians are compared. Memory
is what the process holds when it answers its last picture beside when it answers the 200th. Exits with 1 where a figure
is not held.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from vitreous.calibration import Calibration
from vitreous.data.decode import decoder_name
from vitreous.data.doctor import digest
from vitreous.data.folders import is_picture
from vitreous.data.preprocess import InputSpec
from vitreous.data.sources import open_pictures
from vitreous.data.targets import Task
from vitreous.infer.importing import IMAGENET
from vitreous.infer.predictor import ENOUGH, Predictor, load
from vitreous.model.head import Head
from vitreous.model.vit import create
from vitreous.rundir import FORMAT, RunDir, SplitRow
from vitreous.training.recipe import TrainConfig

HELD_TO = 0.92  # of the bound
GROWTH = 20.0  # MB of memory, from picture FROM to the last
FROM, SMALL = 200, 64  # a picture, and the longer side of the small ones that memory is measured with
FEW = ENOUGH  # pictures that a process is asked about for the time of its start, by the same engine
DECODED, COMPUTED = 200, 8  # pictures and batches in a round of the parts alone
CLASSES = 10  # of a fresh run


def fresh_run(model: str, photos: Sequence[Path], folder: Path) -> Path:
    """A run directory of a model with random weights, and its data: the photos, half of them to validate with."""
    rows = []
    for number, photo in enumerate(photos):
        name = f"class-{number % CLASSES}/{photo.name}"
        (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, folder / "data" / name)
        side = "validation" if number // CLASSES % 2 else "train"
        rows.append(SplitRow(name, digest(photo.read_bytes()), side))
    network = create(model, outputs=CLASSES, image_size=(224, 224))
    for module in network.modules():
        if isinstance(module, Head):
            nn.init.normal_(module.outputs.weight, std=0.05)  # it begins at zero, and would answer nothing
    task = Task("classification", tuple(f"class-{k}" for k in range(CLASSES)), column="class")
    spec = InputSpec(3, "uint8", (network.config.image_size,), *IMAGENET, decoder=decoder_name())
    run = RunDir.create(folder / "run")
    run.write_split(rows)
    run.write_json("validation.json", {"calibration": Calibration().to_json(), "summary": None})
    run.write_weights(network.state_dict())
    origin = {"format": FORMAT, "vitreous": version("vitreous"), "data": str(folder / "data")}
    values = {"model": network.config.to_json(), "input": spec.to_json(), "task": task.to_json()}
    run.write_json("config.json", {**origin, **values, "train": TrainConfig().to_json()})
    return run.path


def copies(photos: Sequence[Path], count: int, folder: Path, side: int | None = None) -> Path:
    """A folder of so many pictures: the photos again and again, where `side` is given made small."""
    folder.mkdir()
    for number in range(count):
        photo = photos[number % len(photos)]
        target = folder / f"{number:06}{photo.suffix}"
        if number >= len(photos):
            shutil.copyfile(folder / f"{number % len(photos):06}{photo.suffix}", target)
        elif side is None:
            shutil.copyfile(photo, target)
        else:
            with Image.open(photo) as image:
                image.thumbnail((side, side))
                image.convert("RGB").save(target, "JPEG", quality=90)
    return folder


def settled(run: Path, options: argparse.Namespace) -> Predictor:
    """The predictor with the engine that was asked for; the run directory remembers it for the processes after."""
    predictor = load(run, engine=options.engine, precision=options.precision)
    predictor.settle()
    return predictor


def decode_seconds(predictor: Predictor, folder: Path) -> float:
    """Core-seconds a picture that one thread decodes and resizes."""
    source = open_pictures([folder])
    count = min(DECODED, len(source))
    began = time.thread_time()
    for number in range(count):
        predictor.spec.read_here(source.read(number), source.names[number])
    return (time.thread_time() - began) / count


def engine_seconds(predictor: Predictor) -> float:
    """Core-seconds a picture of full batches, in all of the engine's threads."""
    height, width = predictor.spec.sizes[0]
    shape = (predictor.batch, height, width, predictor.spec.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(predictor.spec.depth)
    predictor.outputs(pixels)
    began = time.perf_counter()
    for _ in range(COMPUTED):
        predictor.outputs(pixels)
    return predictor.threads * (time.perf_counter() - began) / (COMPUTED * predictor.batch)


def command(run: Path, folder: Path, options: argparse.Namespace) -> list[str]:
    """`vitreous predict`, to CSV."""
    words = ["-m", "vitreous", "predict", run, folder, "--out", folder.with_suffix(".csv")]
    words += ["--engine", options.engine, "--precision", options.precision]
    return [sys.executable, *map(str, words)]


def seconds(words: Sequence[str]) -> float:
    """Wall time of a fresh process."""
    began = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure_rate(run: Path, photos: Sequence[Path], folder: Path, options: argparse.Namespace) -> bool:
    """Prints the parts, the bound and the rate; whether it is held."""
    predictor = settled(run, options)
    few, all_of_them = copies(photos, FEW, folder / "few"), copies(photos, options.pictures, folder / "all")
    seconds(command(run, few, options))  # files that were never read
    rounds = []
    for number in range(options.rounds):
        d, e = decode_seconds(predictor, all_of_them), engine_seconds(predictor)
        start, whole = seconds(command(run, few, options)), seconds(command(run, all_of_them, options))
        bound, rate = predictor.threads / (d + e), (options.pictures - FEW) / (whole - start)
        rounds.append((1000 * d, 1000 * e, bound, rate, rate / bound, whole))
        print(f"round {number + 1}: {_line(rounds[-1])}")
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    held = medians[4] >= HELD_TO
    print(
        f"{predictor.engine.name}, {predictor.engine.precision}, {predictor.threads} threads, medians: {_line(medians)}"
    )
    print(f"held to ≥ {HELD_TO:.0%} of the bound: {'yes' if held else 'no'}")
    return held


def _line(values: Sequence[float]) -> str:
    d, e, bound, rate, share, whole = values
    return (
        f"decoding {d:.2f} and engine {e:.2f} core-ms a picture, bound {bound:.1f}/s; predict {rate:.1f}/s, "
        f"{share:.1%} of it; {whole:.1f} s with its start"
    )


def measure_memory(run: Path, photos: Sequence[Path], folder: Path, options: argparse.Namespace) -> bool:
    """Prints what the process holds on its way; whether it is held. Linux only."""
    settled(run, options)
    pictures = copies(photos, options.small, folder / "small", SMALL)
    words = [*command(run, pictures, options), "--json"]  # a line a picture, as soon as it is answered
    held: dict[int, float] = {}
    answered = 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for number, line in zip(range(1, options.small + 1), process.stdout, strict=False):
                answered += json.loads(line[1:])["error"] is None  # after the list's bracket or comma
                if number % FROM == 0 or number == options.small:
                    held[number] = resident(process.pid)
            process.communicate()
        finally:
            process.kill()
    if answered < options.small:
        print(f"{answered:,} of {options.small:,} pictures were answered")
        return False
    growth, highest = held[options.small] - held[FROM], max(held.values()) - held[FROM]
    shown = [held[number] for number in (FROM, options.small // 2 // FROM * FROM, options.small)]
    print(
        f"{options.small:,} pictures of {SMALL} pixels: {shown[0]:.0f} MB at picture {FROM}, {shown[1]:.0f} half way, "
        f"{shown[2]:.0f} at the end: {growth:+.1f} MB, {highest:+.1f} at most (held to {GROWTH:g})"
    )
    return process.returncode == 0 and growth <= GROWTH


def resident(pid: int) -> float:
    """MB of memory that a process holds now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1000


def main() -> int:
    """Prints the figures; 1 where they are not held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", metavar="PHOTOS", type=Path)
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?")
    parser.add_argument("--fresh", metavar="MODEL")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure memory, not speed")
    parser.add_argument("--small", type=int, default=20_000, help="small pictures that memory is measured with")
    options = parser.parse_args()
    if (options.run is None) == (options.fresh is None):
        parser.error("expected RUN or --fresh MODEL")
    photos = sorted(path for path in options.photos.iterdir() if is_picture(path.name))
    with tempfile.TemporaryDirectory(prefix="vitreous-") as place:
        folder = Path(place)
        run = options.run or fresh_run(options.fresh, photos, folder)
        measure = measure_memory if options.memory else measure_rate
        return 0 if measure(run, photos, folder, options) else 1


if __name__ == "__main__":
    sys.exit(main())
