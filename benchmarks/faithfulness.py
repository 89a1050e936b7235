"""How far the maps of `vitreous.insight` can be believed, each method beside the others and beside captum's.

    python benchmarks/faithfulness.py RUN DATA                        # to choose a method, on validation pictures
    python benchmarks/faithfulness.py RUN DATA --split test           # to confirm it
    python benchmarks/faithfulness.py RUN DATA --captum               # with the peers, where captum is installed
    python benchmarks/faithfulness.py RUN DATA --randomisation --pictures 200
    python benchmarks/faithfulness.py --planted [RUN]

RUN is a run directory and DATA what it was trained on, or test pictures that it has not seen. Token cells are removed
in the order of each map, most important first (positive) and least important first (negative); the score is the area
under the second curve less that under the first, the mean of two fills, and of a random order 0. Behind the best: the
paired difference, with its 95 % interval; a tie where that contains 0.

--randomisation draws the model's weights afresh and prints how far the maps still agree with those before: mean |ρ| of
Spearman's rank correlation. "edges", which knows no weights, has 1; a map that shows what the model does has little
more than unrelated maps have by chance.

--planted trains a small model on pictures of noise, shapes and textures in which one small texture, the cue, decides
the class (in a last class there is none), and prints in what share of the held-out pictures with a cue that it gets
right the largest cell of each map lies on it. The model stays in RUN, where one is named, and is taken from there if it
is there already.
"""

import argparse
import importlib
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
Method = Callable[[VisionTransformer, Tensor, Target], Tensor]  # to maps (B, gh, gw)


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


def read_pictures(predictor: Predictor, data: str, split: str, most: int, seed: int) -> list[Tensor]:
    """Normalised pixels (B, C, H, W) of up to `most` pictures that were not trained on, a tensor a size.

    "test" takes those held out for testing and those that the run has not seen. Raises `InputError` for none.
    """
    options = predictor.run.config()["train"]
    source = open_source(data, target=tuple(options["target"]), path_column=options["path_column"])
    rank = ("test", "validation", "train").index  # a picture that stands in several was trained on
    known = {row.digest: row.split for row in sorted(predictor.run.read_split(), key=lambda row: rank(row.split))}
    wanted = ("validation",) if split == "validation" else ("test", "new")
    by_size: dict[int, list[np.ndarray]] = {}
    found = 0
    for number in np.random.default_rng(seed).permutation(len(source)).tolist():
        picture = source.read(number)
        if known.get(digest(picture), "new") in wanted:
            size, pixels = predictor.spec.read(picture, source.names[number])
            by_size.setdefault(size, []).append(pixels)
            found += 1
        if found == most:
            break
    if not found:
        raise InputError(f"{data} has no picture of the {split} split of {predictor.run.path}")
    stacks = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) for pixels in by_size.values())
    return [predictor.spec.normalise(stack.to(predictor.device)) for stack in stacks]


# What is measured


def measure(predictor: Predictor, groups: list[Tensor], methods: dict[str, Method], steps: int) -> None:
    """Prints a line a method, best first."""
    kind = predictor.task.kind
    target = 0 if kind == "regression" else None
    parts: dict[str, list[Faithfulness]] = {}
    seconds = dict.fromkeys(methods, 0.0)
    for number, pixels in enumerate(groups):
        made = {name: timed(method, predictor.model, pixels, target) for name, method in methods.items()}
        found = faithfulness(
            predictor.model,
            pixels,
            {name: maps for name, (maps, _) in made.items()},
            target,
            steps=steps,
            kind=kind,
            temperature=predictor.calibration.temperature,
            batch=2 * BATCH,
            seed=number,
        )
        for name, one in found.items():
            parts.setdefault(name, []).append(one)
        seconds = {name: seconds[name] + taken for name, (_, taken) in made.items()}

    def joined(name: str, of: Callable[[Faithfulness], Tensor]) -> Tensor:
        return torch.cat([of(part) for part in parts[name]])

    scores = {name: joined(name, lambda part: part.score) for name in parts}
    order = sorted(parts, key=lambda name: -float(scores[name].mean()))
    best = next(name for name in order if name not in CONTROLS)
    fills = parts[best][0].fills
    count, width = len(scores[best]), max(map(len, parts))
    heads = "".join(f"{'with ' + fill:>10}" for fill in fills)
    print(f"{'method':<{width}}  positive  negative    score  {'95 %':<18}{heads}  {'behind the best':<37}  a picture")
    for name in order:
        positive, negative = (joined(name, of).mean() for of in (lambda p: p.positive, lambda p: p.negative))
        score = interval(scores[name])
        line = f"{name:<{width}}  {positive:8.4f}  {negative:8.4f}  {score.mean:7.4f}  {between(score):<18}"
        line += "".join(f"{joined(name, one_fill(number)).mean():10.4f}" for number in range(len(fills)))
        behind = interval(scores[best] - scores[name])
        words = f"{behind.mean:.4f} ({between(behind)}){' tie' if behind.tie else ''}"
        line += f"  {'the best' if name == best else words:<37}"
        print(line + (f"{1000 * seconds[name] / count:8.1f} ms" if name in methods else ""), flush=True)


def between(found: Interval) -> str:
    """The interval in words."""
    return f"{found.low:.4f} to {found.high:.4f}"


def one_fill(number: int) -> Callable[[Faithfulness], Tensor]:
    """The score (B,) with one of the fills alone."""

    def score(of: Faithfulness) -> Tensor:
        some = slice(number, number + 1)
        alone = Faithfulness(of.fills[some], of.removed, of.positive_curves[some], of.negative_curves[some])
        return alone.score

    return score


def measure_randomised(predictor: Predictor, groups: list[Tensor], names: Sequence[str]) -> None:
    """Prints mean |ρ| of each method's maps before and after all weights were drawn afresh."""

    def of_edges(model: VisionTransformer, pixels: Tensor, target: Target) -> Attribution:
        return Attribution("edges", edges(model, pixels), pixels.sum(1), pixels.new_zeros(len(pixels)))

    target = 0 if predictor.task.kind == "regression" else None
    methods = {**{name: METHODS[name] for name in names or METHODS if name not in CONTROLS}, "edges": of_edges}
    width = max(map(len, methods))
    cells = [math.prod(predictor.model.config.grid(*pixels.shape[-2:])) for pixels in groups for _ in pixels]
    chance = float(np.sqrt(2 / (np.pi * (np.array(cells) - 1))).mean())  # of unrelated orders, nearly normal
    print(f"{'method':<{width}} {'mean |ρ|':>9}  95 %\n{'by chance':<{width}} {chance:9.3f}")
    for name, method in methods.items():
        parts = [randomisation(predictor.model, pixels, method, target, batch=BATCH) for pixels in groups]
        found = interval(torch.cat([part.correlations[-1].abs() for part in parts]))
        print(f"{name:<{width}} {found.mean:9.3f}  {found.low:.3f} to {found.high:.3f}", flush=True)


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
    raw = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    pixels = predictor.spec.normalise(raw.to(predictor.device))
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
                measure_planted(load(run, options.device), methods, held_out)
            return 0
        predictor = load(options.run, options.device)
        groups = read_pictures(predictor, options.data, options.split, options.pictures, options.seed)
    except InputError as fault:
        print(fault, file=sys.stderr)
        return 2
    print(
        f"{options.run}: {sum(map(len, groups)):,} pictures of the {options.split} split, {predictor.device}, "
        f"{torch.get_num_threads()} threads",
        flush=True,
    )
    if options.randomisation:
        measure_randomised(predictor, groups, options.methods)
    else:
        measure(predictor, groups, methods, options.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
