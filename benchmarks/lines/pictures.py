"""Odd and broken pictures: the right pixels or an error with the file's name, no process dies; one input everywhere.

Each kind of `tests/odd_pictures.py` is made as often as is asked, and read as a decoding process reads it, of 1 GB at
most. Then pictures of 30 kinds go through train, predict, serve and an exported file, and what each gives its model is
compared bit for bit. With --data, a folder of photos, decoding in processes is measured beside decoding in threads.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import vitreous
from vitreous.calibration import Calibration
from vitreous.data.decode import inspect
from vitreous.data.preprocess import InputSpec
from vitreous.data.sources import open_pictures
from vitreous.data.store import read_in_order, reader
from vitreous.data.workers import Decoders
from vitreous.infer.build import write_export
from vitreous.infer.judge import noise_judge
from vitreous.rundir import FORMAT, RunDir
from vitreous.training.journal import Journal
from vitreous.training.prepare import prepare
from vitreous.training.recipe import TrainConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from odd_pictures import KINDS, make, verdict  # pyright: ignore
from serving import running  # pyright: ignore
from tiny_models import tiny_config, tiny_model  # pyright: ignore

COUNT = 25  # of each kind
MEMORY, SECONDS = 1 << 30, 5.0  # what a picture may take
EVERYWHERE = 30  # kinds that go through all
RATIO, ROUNDS, THREADS = 0.95, 5, 2  # of decoding in processes to decoding in threads
SIDE = 224  # of what they are decoded to, at most
MOST, MOST_BYTES = 2000, 20 << 20  # pictures, and bytes of them, that are decoded


def odd_pictures(count: int, seed: int = 0) -> bool:
    """Whether each odd picture came right, and none ended a decoding process or took long; prints what did not."""
    decoders, tally, slowest = Decoders(memory=MEMORY), Counter(), (0.0, "")
    verdict(make("png_interlaced", 0), decoders.read)
    first, good = decoders.pids, True
    for kind in KINDS:
        for number in range(seed * count, seed * count + count):
            odd = make(kind, number)
            began = time.monotonic()
            found = verdict(odd, decoders.read)
            slowest = max(slowest, (time.monotonic() - began, f"{kind} {number}"))
            tally[found] += 1
            if found not in ("read", "refused"):
                good = False
                print(f"{kind} {number}: {found}")
    same = decoders.pids == first
    decoders.close()
    rows = ", ".join(f"{number:,} {words[:60]}" for words, number in sorted(tally.items()))
    print(
        f"{len(KINDS)} kinds × {count}: {rows}; the slowest {slowest[0]:.2f} s ({slowest[1]}); "
        f"{'one process read them all' if same else 'a decoding process died'}, of 1 GB at most"
    )
    return good and same and slowest[0] <= SECONDS


def usable_kinds() -> list[str]:
    """30 kinds whose pictures are grey or RGB, of 8 bits."""
    found = []
    for kind in KINDS:
        odd = make(kind, 0)
        if (
            odd.pixels is not None
            and not odd.or_refused
            and odd.pixels.dtype == np.uint8
            and odd.pixels.shape[2] in (1, 3)
        ):
            found.append(kind)
    return found[:EVERYWHERE]


def model_inputs(folder: Path) -> dict[str, np.ndarray]:
    """What models are given of pictures of 30 kinds, (30, H, W, 3): by train, predict, serve and an exported file."""
    for number, kind in enumerate(usable_kinds()):
        place = folder / "data" / "ab"[number % 2] / f"{kind}.png"  # whatever it is
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(make(kind, 0).file)
    config = TrainConfig(size="24x32", validation=0.2, threads=1, cache=str(folder / "cache"))
    job = prepare(str(folder / "data"), config, Journal(stderr=True))
    files = [folder / "data" / row.path for row in job.split]
    given = {"train": job.store.gather(np.arange(len(files))).numpy()}

    model = tiny_model(tiny_config(patch_size=(8, 8), image_size=(24, 32), outputs=2))
    run = RunDir.create(folder / "run")
    run.write_split(job.split)
    run.write_json("validation.json", {"calibration": Calibration().to_json(), "summary": None})
    run.write_weights(model.state_dict())
    origin = {"format": FORMAT, "vitreous": version("vitreous"), "data": str(folder / "data")}
    values = {"model": model.config.to_json(), "input": job.spec.to_json(), "task": job.task.to_json()}
    run.write_json("config.json", {**origin, **values, "train": config.to_json()})
    predictor = vitreous.load(run.path, engine="torch", precision="fp32", device="cpu")
    predictor.settle(lambda line: None)
    seen: list[np.ndarray] = []
    answer = predictor.engine.run
    predictor.engine.run = lambda pixels: seen.append(pixels.copy()) or answer(pixels)
    predictor.predict(files)
    given["predict"] = np.concatenate(seen)
    with running(predictor) as server:
        seen.clear()
        for file in files:
            server.ask(file.read_bytes(), kind="application/octet-stream").raise_for_status()
    given["serve"] = np.concatenate(seen)

    write_export(predictor, folder / "run.onnx", "fp32", lambda: noise_judge(predictor))
    exported = vitreous.load(folder / "run.onnx")
    exported.engine.session = session = _Session(exported.engine.session)  # pyright: ignore
    exported.predict(files)
    given["export"] = np.concatenate(session.seen)
    return given


class _Session:
    """A session of an exported file, and the pixels that it is given."""

    def __init__(self, session: Any):
        self.session, self.seen = session, []

    def run(self, names: list[str], values: dict[str, np.ndarray]) -> Any:
        self.seen.append(values["pixels"].copy())
        return self.session.run(names, values)


def same_inputs(folder: Path) -> bool:
    """Whether all four give their models the same bits."""
    given = model_inputs(folder)
    shape, expected = given["train"].shape, given["train"].tobytes()
    different = [way for way, pixels in given.items() if (pixels.shape, pixels.tobytes()) != (shape, expected)]
    print(
        f"{shape[0]} odd pictures, {', '.join(given)}: {'different: ' + str(different) if different else 'bit-equal'}"
    )
    return not different and shape[0] == EVERYWHERE


def decoding_rates(photos: Path) -> bool:
    """Whether processes decode as fast as threads of this process do; prints both."""
    source = open_pictures([photos])
    files: list[Any] = []
    while len(files) < min(MOST, len(source)) and sum(map(len, files)) < MOST_BYTES:
        files.append(source.read(len(files)))
    source = dataclasses.replace(source, read=files.__getitem__)
    facts = inspect(files[0], "a picture")
    height, width = min(facts.height, SIDE), min(facts.width, SIDE)
    spec = InputSpec(3, "uint8", ((height, width),), convert=True)

    def rate(read: Callable[[Sequence[int]], list[Any]]) -> float:
        began = time.perf_counter()
        for _ in read_in_order(read, len(files), THREADS):
            pass
        return len(files) / (time.perf_counter() - began)

    def here(numbers: Sequence[int]) -> list[Any]:
        return [spec.read_here(files[number], "a picture") for number in numbers]

    apart = reader(source, spec)
    rate(apart)
    rows = [(rate(here), rate(apart)) for _ in range(ROUNDS)]
    first, second = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(there / here for here, there in rows)
    print(
        f"{len(files)} pictures of {sum(map(len, files)) / len(files) / 1e3:.1f} kB to {height}×{width}, "
        f"{THREADS} threads: here {first:.0f}/s, in processes {second:.0f}/s, ratio {ratio:.3f} (held to {RATIO}; "
        f"median of {ROUNDS} rounds)"
    )
    return ratio >= RATIO


def run(options: argparse.Namespace) -> bool:
    """Prints a row a finding; whether all held."""
    held = odd_pictures(options.count, options.seed) & same_inputs(Path(options.folder))
    return held & decoding_rates(options.data) if options.data else held
