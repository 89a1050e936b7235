"""How far the maps of `vitreous.insight` can be believed, each method beside the others and beside captum's.

    python benchmarks/faithfulness.py RUN DATA                        # to choose a method, on validation pictures
    python benchmarks/faithfulness.py RUN DATA --split test           # to confirm it
    python benchmarks/faithfulness.py RUN DATA --captum               # with the peers, where captum is installed
    python benchmarks/faithfulness.py RUN DATA --methods shapley occlusion --out scores.csv
    python benchmarks/faithfulness.py RUN DATA --randomisation --pictures 200 --methods shapley occlusion
    python benchmarks/faithfulness.py --planted [RUN]

RUN is a run directory and DATA what it was trained on, or test pictures that it has not seen. Token cells are removed
in the order of each map, most important first (positive) and least important first (negative); the score is the area
under the second curve less that under the first, the mean of two fills, and of a random order 0. Behind the best: the
difference, paired by picture, with its 95 % interval; a tie where that contains 0. --out writes a row a picture and
method, with both areas.

Most of the time goes into passes of the model: for a method's score 4·(steps - 1) a picture, 60 of 16 steps; for a map
1 to 4, but of occlusion one a token, of Shapley values 226, of integrated gradients 15 to 60, each with a backward pass
and so worth 3. After each part of the pictures is said how long the rest will take.

--randomisation draws the model's weights afresh and prints how far the maps still agree with those before: mean |ρ| of
Spearman's rank correlation. "edges", which knows no weights, has 1; a map that shows what the model does has little
more than unrelated maps have by chance.

--planted trains a small model on pictures of noise, shapes and textures in which one small texture, the cue, decides
the class (in a last class there is none), and prints in what share of the held-out pictures with a cue that it gets
right the largest cell of each map lies on it. The model stays in RUN, where one is named, and is taken from there if it
is there already.
"""

import argparse
import csv
import importlib
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import vitreous
from vitreous.data.doctor import digest
from vitreous.data.sources import open_source
from vitreous.errors import InputError
from vitreous.infer.predictor import Predictor, load
from vitreous.insight.attribution import METHODS, Attribution
from vitreous.insight.faithfulness import CONTROLS, Faithfulness, Interval, edges, faithfulness, interval, randomisation
from vitreous.insight.pixels import to_cells
from vitreous.insight.target import Target
from vitreous.model.vit import VisionTransformer

BATCH = 32  # pictures that a method is given at once
PART = 2 * BATCH  # pictures after which is said how long the rest will take
Method = Callable[[VisionTransformer, Tensor, Target], Tensor]  # to maps (B, gh, gw)


class Part(NamedTuple):
    """Some pictures of one size."""

    names: list[str]
    pixels: Tensor  # (B, C, H, W) normalised


# Methods


def our_methods(names: Sequence[str]) -> dict[str, Method]:
    """The named methods of `vitreous.insight`, or all but the controls."""

    def maps(name: str) -> Method:
        return lambda model, pixels, target: METHODS[name](model, pixels, target).tokens

    return {name: maps(name) for name in names or METHODS if name not in CONTROLS}


def captum_methods() -> dict[str, Method]:
    """Captum's, with its own defaults, summed over channels and over each cell."""
    try:
        captum: Any = importlib.import_module("captum.attr")
    except ImportError:
        raise InputError("--captum: captum is not installed here; `pip install captum` brings it") from None

    def method(found: Callable[[VisionTransformer, Tensor, Tensor], Tensor]) -> Method:
        def maps(model: VisionTransformer, pixels: Tensor, target: Target) -> Tensor:
            if target is None:
                with torch.no_grad():
                    chosen = model(pixels).argmax(1)
            else:
                chosen = torch.full((len(pixels),), int(target), device=pixels.device)  # pyright: ignore
            torch.manual_seed(0)
            by_pixel = found(model, pixels.clone().requires_grad_(), chosen).detach().sum(1).float()
            return to_cells(by_pixel, model.config.grid(*pixels.shape[-2:]), model.config.stride)

        return maps

    def occlusion(model: VisionTransformer, pixels: Tensor, chosen: Tensor) -> Tensor:
        window = (pixels.shape[1], *model.config.stride)
        with torch.no_grad():
            return captum.Occlusion(model).attribute(
                pixels, sliding_window_shapes=window, strides=window, target=chosen, perturbations_per_eval=8
            )

    return {
        "captum Saliency": method(lambda m, x, k: captum.Saliency(m).attribute(x, target=k)),
        "captum SmoothGrad": method(
            lambda m, x, k: captum.NoiseTunnel(captum.Saliency(m)).attribute(x, target=k, nt_samples_batch_size=1)
        ),
        "captum InputXGradient": method(lambda m, x, k: captum.InputXGradient(m).attribute(x, target=k)),
        "captum IntegratedGradients": method(
            lambda m, x, k: captum.IntegratedGradients(m).attribute(x, target=k, internal_batch_size=2 * BATCH)
        ),
        "captum GradientShap": method(
            lambda m, x, k: captum.GradientShap(m).attribute(x, torch.zeros_like(x[:1]), target=k)
        ),
        "captum Occlusion": method(occlusion),
    }


def timed(method: Method, model: VisionTransformer, pixels: Tensor, target: Target) -> tuple[Tensor, float]:
    """Maps (B, gh, gw), and the seconds that they took."""
    start = time.perf_counter()
    maps = torch.cat([method(model, some, target) for some in pixels.split(BATCH)]).cpu()
    return maps, time.perf_counter() - start


# Pictures of a run


def read_pictures(predictor: Predictor, data: str, split: str, most: int, seed: int) -> list[Part]:
    """Up to `most` pictures that were not trained on, in parts of a size.

    "test" takes those held out for testing and those that the run has not seen. Raises `InputError` for none.
    """
    source = open_source(data, predictor.columns)
    rank = ("test", "validation", "train").index  # a picture that stands in several was trained on
    known = {row.digest: row.split for row in sorted(predictor.run.read_split(), key=lambda row: rank(row.split))}
    wanted = ("validation",) if split == "validation" else ("test", "new")
    by_size: dict[int, list[tuple[str, np.ndarray]]] = {}
    found = 0
    for number in np.random.default_rng(seed).permutation(len(source)).tolist():
        picture = source.read(number)
        if known.get(digest(picture), "new") in wanted:
            size, pixels = predictor.spec.read(picture, source.names[number])
            by_size.setdefault(size, []).append((source.names[number], pixels))
            found += 1
        if found == most:
            break
    if not found:
        raise InputError(f"{data} has no picture of the {split} split of {predictor.run.path}")
    parts = [some[i : i + PART] for some in by_size.values() for i in range(0, len(some), PART)]
    return [Part([name for name, _ in part], normalised(predictor, [pixels for _, pixels in part])) for part in parts]


def normalised(predictor: Predictor, pictures: Sequence[np.ndarray]) -> Tensor:
    """Pictures (H, W, C) of one size as the model takes them, (B, C, H, W)."""
    return predictor.normalised(torch.from_numpy(np.stack(pictures)))


# What is measured


def measure(
    predictor: Predictor, pictures: list[Part], methods: dict[str, Method], steps: int, out: Path | None
) -> None:
    """Prints a line a method, best first, and writes a row a picture and method."""
    kind = predictor.task.kind
    target = 0 if kind == "regression" else None
    scores: dict[str, list[dict[str, Tensor]]] = {}  # by method and part, what `numbers_of` gives
    seconds = dict.fromkeys(methods, 0.0)
    say = progress(sum(len(part.names) for part in pictures))
    for number, (_, pixels) in enumerate(pictures):
        made = {name: timed(method, predictor.model, pixels, target) for name, method in methods.items()}
        found = faithfulness(
            predictor.model,
            pixels,
            {name: maps for name, (maps, _) in made.items()},
            target,
            steps=steps,
            kind=kind,
            temperature=predictor.calibration.temperature,
            orders=1,
            batch=2 * BATCH,
            seed=number,
        )
        for name, one in found.items():
            scores.setdefault(name, []).append(numbers_of(one))
        seconds = {name: seconds[name] + taken for name, (_, taken) in made.items()}
        say(len(pixels))

    columns = list(scores["edges"][0])
    joined = {name: {c: torch.cat([part[c] for part in parts]) for c in columns} for name, parts in scores.items()}
    order = sorted(joined, key=lambda name: -float(joined[name]["score"].mean()))
    best = next(name for name in order if name not in CONTROLS)
    behind = {name: interval(joined[best]["score"] - joined[name]["score"]) for name in order}
    width, shown = max(map(len, order)), columns[3:]
    heads = "".join(f"{column:>11}" for column in shown)
    print(f"{'method':<{width}}    score  {'95 %':<18}  {'behind the best':<32}{heads}   a picture")
    for name in order:
        own = interval(joined[name]["score"])
        words = f"{behind[name].mean:7.4f}  {between(behind[name])}{'  tie' if behind[name].tie else ''}"
        line = f"{name:<{width}}  {own.mean:7.4f}  {between(own):<18}  {'the best' if name == best else words:<32}"
        line += "".join(f"{joined[name][column].mean():11.4f}" for column in shown)
        each = 1000 * seconds[name] / len(joined[best]["score"]) if name in methods else 0.0
        print(line + (f"{each:9.1f} ms" if each else ""))
    ties = [name for name in order if name not in (best, *CONTROLS) and behind[name].tie]
    print(f"the best: {best}" + (f", in a tie with {', '.join(ties)}" if ties else "; no other is in a tie with it"))
    names = [name for part in pictures for name in part.names]
    rows = (
        [picture, name, *(float(joined[name][column][number]) for column in columns)]
        for name in order
        for number, picture in enumerate(names)
    )
    write_rows(out, ["picture", "method", *columns], rows)


def numbers_of(found: Faithfulness) -> dict[str, Tensor]:
    """What is kept of each picture (B,): the score, both areas, and the score with each fill alone."""
    alone = {
        f"with {fill}": Faithfulness((fill,), found.removed, found.positive_curves[[i]], found.negative_curves[[i]])
        for i, fill in enumerate(found.fills)
    }
    both = {"score": found.score, "positive": found.positive, "negative": found.negative}
    return both | {name: one.score for name, one in alone.items()}


def between(found: Interval) -> str:
    """The interval in words."""
    return f"{found.low:.4f} to {found.high:.4f}"


def progress(total: int) -> Callable[[int], None]:
    """To be told of pictures that are done: says how many there are, and how long the others will take."""
    began, done = time.perf_counter(), 0

    def say(some: int) -> None:
        nonlocal done
        done += some
        left = (time.perf_counter() - began) * (total - done) / done / 60
        print(f"{done:,} of {total:,} pictures, {left:.1f} min to go", file=sys.stderr, flush=True)

    return say


def write_rows(path: Path | None, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table, where a path is given."""
    if path is not None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([heads, *rows])


def measure_randomised(predictor: Predictor, pictures: list[Part], names: Sequence[str], out: Path | None) -> None:
    """Prints mean |ρ| of each method's maps before and after all weights were drawn afresh."""

    def of_edges(model: VisionTransformer, pixels: Tensor, target: Target) -> Attribution:
        return Attribution("edges", edges(model, pixels), pixels.sum(1), pixels.new_zeros(len(pixels)))

    target = 0 if predictor.task.kind == "regression" else None
    methods = {**{name: METHODS[name] for name in names or METHODS if name not in CONTROLS}, "edges": of_edges}
    width = max(map(len, methods))
    cells = [math.prod(predictor.model.config.grid(*part.pixels.shape[-2:])) for part in pictures for _ in part.names]
    chance = float(np.sqrt(2 / (np.pi * (np.array(cells) - 1))).mean())  # of unrelated orders, nearly normal
    print(f"{'method':<{width}} {'mean |ρ|':>9}  95 %\n{'by chance':<{width}} {chance:9.3f}")
    rows: list[tuple[str, str, float]] = []
    for name, method in methods.items():
        found = [randomisation(predictor.model, part.pixels, method, target, batch=BATCH) for part in pictures]
        correlations = torch.cat([part.correlations[-1] for part in found])
        mean = interval(correlations.abs())
        print(f"{name:<{width}} {mean.mean:9.3f}  {mean.low:.3f} to {mean.high:.3f}", flush=True)
        shown = [picture for part in pictures for picture in part.names]
        rows += [(picture, name, float(one)) for picture, one in zip(shown, correlations, strict=True)]
    write_rows(out, ["picture", "method", "correlation"], rows)


# A planted cue

SIDE, CUE = 64, 8  # pixels
SHAPES, DECOYS = 12, 4  # that tell nothing: discs and boxes of one colour, and textures of the cue's size and contrast
ROWS, COLUMNS = np.mgrid[:CUE, :CUE] // 2 % 2  # squares of 2×2 pixels
TEXTURES = np.stack((ROWS, COLUMNS, ROWS ^ COLUMNS, ROWS & COLUMNS))  # stripes, a chequer, dots: a class each
Planted = tuple[np.ndarray, np.ndarray, np.ndarray]


def plant(count: int, seed: int) -> Planted:
    """Pictures (n, H, W, 3) uint8, classes (n,), and top left corners (n, 2) of the textures that decide them."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 120, (count, SIDE, SIDE, 3)).astype(np.uint8)
    classes = rng.integers(0, len(TEXTURES) + 1, count)  # the last has no texture, so that the others must be seen
    corners = rng.integers(0, SIDE - CUE + 1, (count, 2))
    rows, columns = np.mgrid[:SIDE, :SIDE]

    def draw(picture: np.ndarray, top: int, left: int, texture: np.ndarray):
        dark, light = rng.integers(0, 80, 3), rng.integers(176, 256, 3)
        picture[top : top + CUE, left : left + CUE] = np.where(texture[..., None], light, dark)

    for picture, kind, (top, left) in zip(pictures, classes, corners, strict=True):
        for y, x, reach, form in zip(*rng.integers(0, (SIDE, SIDE, 6, 2), (SHAPES, 4)).T, strict=True):
            down, across = np.abs(rows - y), np.abs(columns - x)
            distance = np.maximum(down, across) if form else np.hypot(down, across)
            picture[distance <= 2 + reach] = rng.integers(0, 256, 3)
        for y, x in rng.integers(0, SIDE - CUE + 1, (DECOYS + (kind == len(TEXTURES)), 2)):
            squares = rng.permutation(16).reshape(4, 4) < 8  # half of them light, in no order
            draw(picture, y, x, squares.repeat(2, 0).repeat(2, 1))
        if kind < len(TEXTURES):
            draw(picture, top, left, TEXTURES[kind])
    return pictures, classes, corners


def train_on_planted(run: Path, options: argparse.Namespace) -> None:
    """Trains a model that knows the textures, or nearly."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        data = Path(folder, "planted.npz")
        pictures, classes, _ = plant(options.train, options.seed)
        np.savez(data, x_train=pictures, y_train=classes)
        words: dict[str, Any] = {"model": options.model, "epochs": options.epochs, "threads": options.threads}
        words |= {"augment": "none", "cache": "off", "device": options.device, "seed": options.seed}
        vitreous.train(str(data), out=run, **words)


def measure_planted(predictor: Predictor, methods: dict[str, Method], held_out: Planted) -> None:
    """Prints in what share of the pictures that are answered right the largest cell lies on the texture."""
    pictures, classes, corners = held_out
    model, config = predictor.model, predictor.model.config
    pixels = normalised(predictor, list(pictures))
    with torch.no_grad():
        said = torch.cat([model(some).argmax(1) for some in pixels.split(BATCH)]).cpu().numpy()
    print(f"{len(classes):,} pictures held out, of which the model gets {(said == classes).mean():.1%} right")
    right = np.flatnonzero((said == classes) & (classes < len(TEXTURES)))

    inside = np.zeros((len(right), SIDE, SIDE), np.float32)
    for mask, (top, left) in zip(inside, corners[right], strict=True):
        mask[top : top + CUE, left : left + CUE] = 1
    overlap = to_cells(torch.from_numpy(inside), config.grid(SIDE, SIDE), config.stride).flatten(1)  # (n, N) pixels
    touching, nearest = overlap > 0, overlap == overlap.amax(1, keepdim=True)
    methods = methods | {"edges": lambda model, pixels, target: edges(model, pixels)}
    width = max(12, *map(len, methods))
    print(f"{'largest cell':<{width}}  touches the cue  is most on it   a picture")
    print(f"{'by chance':<{width}}  {touching.float().mean():15.1%}  {nearest.float().mean():13.1%}", flush=True)
    for name, method in methods.items():
        maps, seconds = timed(method, model, pixels[right], None)
        largest = maps.flatten(1).argmax(1, keepdim=True)
        shares = [some.gather(1, largest).float().mean() for some in (touching, nearest)]
        line = f"{name:<{width}}  {shares[0]:15.1%}  {shares[1]:13.1%}  {1000 * seconds / len(right):7.1f} ms"
        print(line, flush=True)


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN")
    parser.add_argument("data", nargs="?", metavar="DATA")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument(
        "--methods", nargs="+", choices=sorted(set(METHODS) - set(CONTROLS)), default=[], metavar="METHOD"
    )
    parser.add_argument("--captum", action="store_true", help="its methods too")
    parser.add_argument("--steps", type=int, default=16, help="of removal")
    parser.add_argument("--randomisation", action="store_true")
    parser.add_argument("--out", type=Path, metavar="CSV", help="what was found of each picture")
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--train", type=int, default=6000, help="so many planted pictures")
    parser.add_argument("--epochs", type=int, default=8, help="on planted pictures")
    parser.add_argument("--model", default="vit_c_xs_8", help="for planted pictures")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.planted == bool(options.data):
        parser.error("expected RUN and DATA, or --planted and perhaps RUN")
    torch.set_num_threads(options.threads)
    try:
        methods = our_methods(options.methods) | (captum_methods() if options.captum else {})
        if options.planted:
            with tempfile.TemporaryDirectory(prefix="planted-") as folder:
                run = Path(options.run or Path(folder, "run"))
                if not run.exists():
                    train_on_planted(run, options)
                held_out = plant(options.pictures, options.seed + 1)
                measure_planted(load(run, device=options.device), methods, held_out)
            return 0
        predictor = load(options.run, device=options.device)
        pictures = read_pictures(predictor, options.data, options.split, options.pictures, options.seed)
    except InputError as fault:
        print(fault, file=sys.stderr)
        return 2
    count = sum(len(part.names) for part in pictures)
    where = f"{predictor.device}, {torch.get_num_threads()} threads"
    print(f"{options.run}: {count:,} pictures of the {options.split} split, {where}", flush=True)
    if options.randomisation:
        measure_randomised(predictor, pictures, options.methods, options.out)
    else:
        measure(predictor, pictures, methods, options.steps, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
