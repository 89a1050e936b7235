"""Makers of small real pictures, tables and runs, for the tests of training, answers and the command line."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from forks import Forked, finished
from PIL import Image

from vitreous.model.config import ModelConfig
from vitreous.rundir import Checkpoint, RunDir

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}

# 12 tokens each: of the table's smallest model, and of one that is smaller still.
TINY: dict[str, Any] = {"model": "vit_xxs_4", "size": "12x16", "threads": 1}
TINY_WORDS = ("--model", "vit_xxs_4", "--size", "12x16", "--threads", "1")
TOYS = {
    "toy": ModelConfig(width=48, depth=2, heads=3, patch_size=(8, 8), image_size=(32, 32)),
    "toy_t2t": ModelConfig(
        width=48, depth=2, heads=3, tokenizer="t2t", kernels=(3, 3), token_width=8, image_size=(24, 32)
    ),
    "toy_stem": ModelConfig(
        width=48, depth=2, heads=3, tokenizer="stem", stem=(8, 16, 48), conditional=True, image_size=(32, 32)
    ),
}
TOY: dict[str, Any] = {"model": "toy", "size": "24x32", "threads": 1, "optimizer": "adamw"}
TOY_WORDS = ("--model", "toy", "--size", "24x32", "--threads", "1", "--optimizer", "adamw")

PATIENCE = 300  # seconds that anything may take: no test is about speed, and machines are busy at times


def shape(rng: np.random.Generator, colour: tuple[int, int, int], height: int = 24, width: int = 32) -> np.ndarray:
    """A coloured box on noise, (height, width, 3) uint8."""
    pixels = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
    y, x = rng.integers(0, height - 9), rng.integers(0, width - 11)
    pixels[y : y + 10, x : x + 12] = colour
    return pixels


def make_shapes(root: Path, each: int = 16, seed: int = 0, mixed: bool = False) -> Path:
    """A class folder a colour, half PNG and half JPEG; `mixed` lays every other picture on its side."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(each):
            size = (32, 24) if mixed and i % 2 else (24, 32)
            image = Image.fromarray(shape(rng, colour, *size))
            image.save(root / name / f"{i:02}.{'jpg' if i % 4 < 2 else 'png'}", quality=95)
    return root


def blob(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A bright blob on faint noise, (20, 36) float32, and the column of its centre."""
    y, x = rng.uniform(5, 15), rng.uniform(4, 32)
    rows, columns = np.mgrid[:20, :36]
    pixels = rng.normal(0, 0.05, (20, 36)) + np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8)
    return pixels.astype(np.float32), x


def make_blobs(root: Path, pictures: int, seed: int = 1) -> Path:
    """table.csv beside .npy pictures: where each one's blob is, in mm, two columns a mm."""
    rng, rows = np.random.default_rng(seed), ["path,place (mm)"]
    root.mkdir(parents=True)
    for i in range(pictures):
        pixels, x = blob(rng)
        np.save(root / f"{i:03}.npy", pixels)
        rows.append(f"{i:03}.npy,{x / 2:.4f}")
    (root / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root / "table.csv"


def make_unbalanced(root: Path) -> Path:
    """24 blue boxes and 6 red ones."""
    rng = np.random.default_rng(5)
    for name, colour, count in (("blue", (40, 40, 200), 24), ("red", (200, 40, 40), 6)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(shape(rng, colour)).save(root / name / f"{i}.png")
    return root


@contextmanager
def unpainted() -> Iterator[None]:
    """The figures of runs are blank, where no test looks at them: they take twice as long as so short a run."""
    from vitreous.training import figures

    def blank(*given: Any) -> None:
        [path] = [one for one in given if isinstance(one, Path)]
        Image.new("L", (60, 60)).save(path, "png")

    with patch.multiple(figures, curves=blank, result=blank, pictures=blank):
        yield


def command(words: list[str], limit: int) -> None:
    """What `python -m vitreous …` runs, with our toys among the presets and its figures unpainted; with `limit`, no
    file may grow beyond so many bytes.
    """
    from vitreous.cli import entry
    from vitreous.model.presets import PRESETS

    if limit >= 0:
        import resource

        sys.dont_write_bytecode = True  # a module of which a half is kept would be taken for whole
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    PRESETS.update(TOYS)
    sys.argv = ["vitreous", *words]
    with unpainted():
        entry()


def start(*words: str | Path, limit: int = -1) -> Forked:
    """`vitreous …` in a process of its own; with `limit`, no file may grow beyond so many bytes."""
    return Forked(command, [str(word) for word in words], limit)


def vitreous(*words: str | Path, limit: int = -1) -> subprocess.CompletedProcess[str]:
    """`vitreous …` in a process of its own, to its end."""
    return finished(command, [str(word) for word in words], limit)


def kill_when(words: tuple[str | Path, ...], due: Callable[[], bool]) -> None:
    """Starts `vitreous …` and sends it SIGKILL as soon as something is due."""
    process = start(*words)
    try:
        while not due():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()


def json_of(run: Path, name: str) -> dict[str, Any]:
    """A file of a run directory."""
    return RunDir(run).read_json(name)


def newest(run: Path) -> Checkpoint:
    """The newest checkpoint of a run."""
    checkpoint = RunDir.open(run).newest(print)
    assert checkpoint is not None
    return checkpoint


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The final weights of a run."""
    return RunDir.open(run).read_weights()


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors agree in names, types, shapes and every bit."""
    if a.keys() != b.keys():
        return False
    raw = lambda t: (t.dtype, t.shape, t.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())  # noqa: E731
    return all(raw(a[name]) == raw(b[name]) for name in a)


def tree(*roots: Path) -> set[str]:
    """Every file and folder below, to see that nothing came or went."""
    return {os.path.join(folder, name) for root in roots for folder, d, f in os.walk(root) for name in (*d, *f)}
