"""explain: a trained model and pictures to an account of its answers, with how far each part can be believed."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitreous.data.sources import open_pictures
from vitreous.data.targets import Task
from vitreous.errors import InputError, counted
from vitreous.files import write_atomically
from vitreous.infer.predictor import Picture, Prediction, Predictor, load
from vitreous.insight.attribution import METHODS, Attribution
from vitreous.insight.explain_page import (
    POSITIONS,
    PageAnswer,
    PageAttribution,
    PageExplanation,
    PageFacts,
    PageLedger,
    PageLens,
    PageSplit,
    explain_page,
)
from vitreous.insight.faithfulness import Faithfulness, faithfulness
from vitreous.insight.ledger import Ledger, ledger, lens
from vitreous.insight.measures import position_similarity, prefix_names
from vitreous.insight.target import score
from vitreous.insight.trace import Trace, trace
from vitreous.model.config import split_padding, split_stride
from vitreous.model.presets import name_of
from vitreous.model.vit import VisionTransformer, count_parameters
from vitreous.training.figures import as_shown, visible_range

# In the order in which they are shown. The first is the default, chosen over many pictures: the best of one flatters.
SHOWN = (
    "guided_shapley",
    "integrated_tokens",
    "occlusion",
    "integrated_gradients",
    "gradient_attention",
    "rollout",
    "grad_cam",
    "attention",
)
LINES = {
    "gradient_attention": "Attention, where more of it would raise the answer, followed back through all blocks.",
    "contributions": "What each token brings to the answer where the head reads it.",
    "integrated_tokens": "The gradient of each token, summed on the way from the tokens of an empty picture.",
    "rollout": "Attention of all blocks multiplied together. It does not know which answer is asked about.",
    "attention": "Where the last block looks. It does not know which answer is asked about.",
    "grad_cam": "The last tokens, weighted by how their columns raise the answer.",
    "integrated_gradients": "The gradient of each pixel, summed on the way from a picture of the mean colour.",
    "occlusion": "How far the answer falls when a patch is painted over.",
    "guided_shapley": "Integrated tokens, set right by what the answer really gains when groups of patches are shown.",
    "shapley": "What the answer gains by a patch, in the mean over random orders of showing them.",
}
SCORE = (
    "Patches are taken away in a map's order, the least important first, then the most important first: its score is "
    "by how much longer the answer lasts the first way. A map that knows nothing scores 0."
)
MOST_PICTURES = 100  # of a page
RANDOM = 8  # maps whose scores tell what is chance on a picture
# By how many scores, whose mean is known to be 0: times their root mean square, 95 % lie within (Student 1908).
STUDENT = {4: 2.78, RANDOM: 2.31}
MEAN = "mean of the training pictures"


@dataclass(frozen=True)
class PictureExplanation:
    """What was found about the answer to one picture."""

    prediction: Prediction
    pixels: np.ndarray  # (h, w, C) as the model sees them
    target: int | tuple[int, int]  # the output that is explained, or two: the first rather than the second
    names: tuple[str, ...]  # of the outputs
    trace: Trace  # with attention
    attributions: dict[str, Attribution]  # the default first
    faithfulness: dict[str, Faithfulness]
    chance: float  # scores of random maps lie within ± this on 95 of 100 tries
    ledger: Ledger | None  # of a number in its unit; None for dense blocks, as is the lens
    lens: np.ndarray | None  # (depth + 1, outputs) answers by depth

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of what is explained, and after it of what it is held against."""
        return tuple(self.names[k] for k in ([self.target] if isinstance(self.target, int) else self.target))

    @property
    def label(self) -> str:
        """What is explained, in words."""
        return " rather than ".join(self.labels)

    def verdict(self, method: str) -> str:
        """A map beside random ones, in words."""
        found = float(self.faithfulness[method].score)
        return "within chance" if abs(found) <= self.chance else f"{'better' if found > 0 else 'worse'} than chance"

    def summary(self) -> dict[str, Any]:
        """The answer, how it came about and how faithful each map is, ready for JSON.

        Of a difference the answer is that of the logits. Blocks and heads are numbered from 1, as on the page.
        """
        prediction, ledger, lens = self.prediction, self.ledger, self.lens
        numbers = {"values": prediction.values, "units": prediction.units, "intervals": prediction.intervals}
        answers = prediction.values or prediction.probabilities
        difference = float(score(self.trace.outputs, self.target))
        return {
            "picture": prediction.picture,
            "target": self.label,
            "answer": difference if len(self.labels) > 1 else answers[self.label],
            **(numbers if prediction.values else {"probabilities": prediction.probabilities}),
            "faithfulness": {name: float(found.score) for name, found in self.faithfulness.items()},
            "chance": self.chance,
            "notes": {name: found.note for name, found in self.attributions.items() if found.note},
            "padding": {name: float(found.padding[0]) for name, found in self.attributions.items()},
            "lens": None if lens is None else dict(zip(self.names, lens.T.tolist(), strict=True)),
            "ledger": ledger and dict(zip(map(part_name, ledger.names), ledger.values[0].tolist(), strict=True)),
        }


class Explanation:
    """Accounts of answers, picture by picture, and the page that shows them."""

    def __init__(self, predictor: Predictor, pictures: Sequence[PictureExplanation]):
        self.predictor, self.pictures = predictor, tuple(pictures)

    def html(self) -> str:
        """One page that asks for nothing from elsewhere."""
        return explain_page([_page(self.predictor, picture) for picture in self.pictures], _facts(self.predictor))

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the page."""
        path = Path(path)
        write_atomically(path, self.html().encode())
        return path


def explain(
    predictor: Predictor | str | os.PathLike,
    pictures: Picture | Sequence[Picture],
    *,
    target: str | tuple[str, str] | None = None,
    methods: Sequence[str] = SHOWN,
    skip_bad: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Explanation:
    """How the model of a predictor, or of a run directory, came to its answers to files, folders or arrays.

    `target` names the class, label or number to explain; two names, or "cat - dog", ask what speaks for the first
    rather than the second; without it, it is each picture's most probable, or the first number. Raises `InputError` for
    names that are not there, and for pictures that cannot be used, all together; `skip_bad` names these and goes on.
    """
    if isinstance(predictor, str | os.PathLike):
        predictor = load(predictor)
    if not isinstance(predictor, Predictor):
        raise InputError(
            f"a {type(predictor).__name__} alone cannot be explained, as it knows no names and no preprocessing: "
            "expected vitreous.load(RUN), or the path of RUN"
        )
    methods = (methods,) if isinstance(methods, str) else methods
    if unknown := sorted({*methods} - {*METHODS}):
        raise InputError(f"no attribution is called {unknown[0]!r}: expected some of {', '.join(METHODS)}")
    wanted = None if target is None else find_target(predictor.task, target)
    one = isinstance(pictures, str | os.PathLike | np.ndarray)
    source = open_pictures([pictures] if one else pictures)  # pyright: ignore[reportArgumentType]
    if len(source) > MOST_PICTURES:
        raise InputError(
            f"{len(source):,} pictures: expected at most {MOST_PICTURES}, which one page can show: name some of them"
        )
    usable, faults = [], []
    for number, name in enumerate(source.names):
        try:
            usable.append((name, predictor.spec.read(source.read(number), name)[1]))
        except InputError as fault:
            faults.append(str(fault))
    if faults and not (skip_bad and usable):
        title = f"{len(faults):,} of {len(source):,} pictures cannot be used:"
        advice = "mend or remove them, or leave them out with --skip-bad"
        raise InputError.listing(title, faults, advice if usable else "")
    if faults:
        say(str(InputError.listing(f"left out, {counted(len(faults), 'picture')} that cannot be used:", faults)))
    found = []
    for name, pixels in usable:
        found.append(explain_pixels(predictor, name, pixels, wanted, methods))
        progress(len(found), len(usable))
    return Explanation(predictor, found)


def find_target(task: Task, asked: str | tuple[str, str]) -> int | tuple[int, int]:
    """The output that a name means, or the two of a difference: ("cat", "dog"), or "cat - dog" where none is so called.

    Raises `InputError` for other names, for what can be read in two ways, and for a difference of numbers.
    """
    names = task.names
    if isinstance(asked, str):
        if asked in names:
            return names.index(asked)
        dashes = [i for i in range(len(asked)) if asked.startswith(" - ", i)]
        pairs = [(asked[:i], asked[i + 3 :]) for i in dashes]
    else:
        pairs = [tuple(asked)] if isinstance(asked, tuple | list) else []
    pairs = [pair for pair in pairs if len({*pair}) == 2 == len(pair) and {*pair} <= {*names}]
    if len(pairs) > 1:
        raise InputError(f"{asked!r} can be read in {len(pairs)} ways: expected target=(first, second), from Python")
    if not pairs:
        some = f"{names[0]} - {names[1]}" if len(names) > 1 and task.kind != "regression" else ""
        raise InputError(
            f"the model knows no {asked!r}: expected one of {', '.join(names[:20])}"
            + (f", or two as {some!r}: what speaks for the first rather than the second" if some else "")
        )
    if task.kind == "regression":
        raise InputError(f"{asked!r}: numbers have a scale each, so that their difference cannot be explained")
    first, second = pairs[0]
    return names.index(first), names.index(second)


def explain_pixels(
    predictor: Predictor, name: str, pixels: np.ndarray, wanted: int | tuple[int, int] | None, methods: Sequence[str]
) -> PictureExplanation:
    """What is found of a picture, (H, W, C) as `InputSpec.read` makes it; `wanted` None: its most probable class."""
    model, task = predictor.model, predictor.task
    normalised = predictor.normalised(torch.from_numpy(pixels[None].copy()))
    found = trace(model, normalised, what=("attention",))
    answers = predictor.calibration.answers(task, found.outputs.float().cpu().numpy())[0]
    target = wanted if wanted is not None else 0 if task.kind == "regression" else int(answers.argmax())
    attributions = {method: METHODS[method](model, normalised, target) for method in methods}
    maps = {method: attribution.tokens for method, attribution in attributions.items()}
    scored, chance = beside_chance(predictor, normalised, maps, target)
    stream = model.config.ablation != "dense"
    return PictureExplanation(
        prediction=predictor.prediction(name, answers),
        pixels=pixels,
        target=target,
        names=task.names,
        trace=found,
        attributions=attributions,
        faithfulness=scored,
        chance=chance,
        ledger=_in_units(ledger(model, normalised, target), task, target) if stream else None,
        lens=predictor.calibration.answers(task, lens(model, normalised)[0].cpu().numpy()) if stream else None,
    )


def beside_chance(
    predictor: Predictor,
    normalised: Tensor,
    maps: Mapping[str, Tensor],
    target: int | tuple[int, int],
    random: int = RANDOM,
    **options: Any,
) -> tuple[dict[str, Faithfulness], float]:
    """How far maps (1, gh, gw) of a picture can be believed, and within what the scores of random ones lie on 95 of
    100 tries. `random` of them are drawn, as many as `STUDENT` knows; `options` are those of `faithfulness`.
    """
    generator, shape = torch.Generator().manual_seed(0), next(iter(maps.values())).shape
    noise = {f"random {i}": torch.rand(shape, generator=generator) for i in range(1, random)}
    scored = faithfulness(
        predictor.model,
        normalised,
        {**maps, **noise},
        target,
        kind=predictor.task.kind,
        temperature=predictor.calibration.temperature,
        orders=1,
        **options,
    )
    blind = [float(scored[name].score) for name in ("random", *noise)]
    chance = STUDENT[random] * float(np.sqrt(np.mean(np.square(blind))))
    return {name: one for name, one in scored.items() if name not in noise}, chance


def _in_units(found: Ledger, task: Task, target: int | tuple[int, int]) -> Ledger:
    """The ledger of a number in its unit: of deviations, with what they deviate from as its last part."""
    if task.kind != "regression" or not isinstance(target, int):
        return found
    std, mean = task.std[target], task.mean[target]
    return Ledger(
        (*found.names, MEAN),
        F.pad(found.values.cpu().double() * std, (0, 1), value=mean),
        F.pad(found.tokens * std, (0, 0, 0, 1)),
        found.score.cpu().double() * std + mean,
    )


def part_name(name: str) -> str:
    """What a part of a ledger is called where it is shown: "head 0.3" is "block 1, head 4"."""
    kind, _, place = name.partition(" ")
    if kind not in ("position", "head", "mlp"):
        return name
    block, _, head = place.partition(".")
    return f"block {int(block) + 1}, " + (f"head {int(head) + 1}" if head else kind.replace("mlp", "MLP"))


def _page(predictor: Predictor, found: PictureExplanation) -> PageExplanation:
    """What the page shows of a picture."""
    model, task = predictor.model, predictor.task
    grid = found.trace.grid
    unit = task.units[found.target] if isinstance(found.target, int) and task.kind == "regression" else None
    layers = {number: layer for number, layer in found.trace.layers.items() if "attention" in layer.recorded}
    return PageExplanation(
        name=found.prediction.picture,
        pixels=as_shown(found.pixels, max(found.pixels.shape), visible_range([found.pixels])),
        grid=grid,
        answers=_answers(predictor, found),
        target=found.labels[0],
        against=found.labels[1] if len(found.labels) > 1 else "",
        labels=task.kind == "multilabel",
        prefix=prefix_names(model),
        attributions=[_attribution(found, method) for method in found.attributions],
        chance=found.chance,
        edges=float(found.faithfulness["edges"].score),
        attention=[layer.attention[0].cpu().numpy() for layer in layers.values()],
        blocks=[number + 1 for number in layers],
        cell=max((layer.cell for layer in layers.values()), default=1),
        pool=None if found.trace.pool is None else found.trace.pool[0].cpu().numpy(),
        lens=None if found.lens is None else _lens(found, found.lens, unit),
        ledger=found.ledger and _ledger(found.ledger, unit),
        position=_positions(model, grid),
        splits=[
            PageSplit(stage.grid, stage.kernel, split_stride(stage.kernel), split_padding(stage.kernel))
            for stage in found.trace.stages
        ],
    )


def _answers(predictor: Predictor, found: PictureExplanation) -> list[PageAnswer]:
    prediction = found.prediction
    if prediction.kind != "regression":
        return [PageAnswer(name, probability) for name, probability in prediction.probabilities.items()]
    return [
        PageAnswer(name, value, prediction.units[name], prediction.intervals.get(name))
        for name, value in prediction.values.items()
    ]


def _attribution(found: PictureExplanation, method: str) -> PageAttribution:
    attribution = found.attributions[method]
    pixelwise = method == "integrated_gradients" or bool(found.trace.stages)  # through the overlap of soft splits
    outside = float(attribution.padding[0])
    notes = [attribution.note] * bool(attribution.note)
    notes += [f"{outside:.0%} of it lies on the padding around the picture".replace("%", " %")] * (outside >= 0.005)
    return PageAttribution(
        name=method.replace("_", " "),
        line=LINES.get(method, ""),
        values=(attribution.pixels if pixelwise else attribution.tokens)[0].float().cpu().numpy(),
        score=float(found.faithfulness[method].score),
        note="; ".join(notes),
    )


def _lens(found: PictureExplanation, answers: np.ndarray, unit: str | None) -> PageLens:
    asked = [found.target] if isinstance(found.target, int) else list(found.target)
    others = [k for k in np.argsort(-answers[-1]) if k not in asked] if unit is None else []
    return PageLens([found.names[k] for k in asked + others], answers[:, asked + others], unit)


def _ledger(found: Ledger, unit: str | None) -> PageLedger:
    count = len(found.names) - (found.names[-1] == MEAN)
    values = found.values[0].tolist()
    return PageLedger(
        [part_name(name) for name in found.names[:count]],
        np.array(values[:count]),
        float(found.score),
        unit,
        found.tokens[0, :count].cpu().numpy(),
        values[-1] if count < len(values) else None,
    )


def _positions(model: VisionTransformer, grid: tuple[int, int]) -> np.ndarray | None:
    """(N, N) likeness of the positions' vectors, where they have any and are not too many."""
    if model.config.position in ("none", "relative") or grid[0] * grid[1] > POSITIONS:
        return None
    return position_similarity(model, grid).reshape(grid[0] * grid[1], -1)


def _facts(predictor: Predictor) -> PageFacts:
    config = predictor.model.config
    summary = predictor.run.read_json("validation.json").get("summary")
    return PageFacts(
        model=name_of(config) or "a model of its own kind",
        size=config.image_size,
        parameters=count_parameters(predictor.model),
        accuracy=_accuracy(summary) if summary else "",
        score=SCORE,
        rows=[("blocks", str(config.depth)), ("heads", str(config.heads)), ("width of a token", str(config.width))],
    )


def _accuracy(summary: dict[str, Any]) -> str:
    """How good the model is on its validation pictures, in words."""
    n = summary["n"]
    if "top1" in summary:
        return f"Of {n:,} validation pictures, {summary['top1']:.1%} are answered rightly.".replace("%", " %")
    if "map" in summary:
        return f"On {n:,} validation pictures its mean average precision is {summary['map']:.3f}."
    known = {name: one["r2"] for name, one in summary["targets"].items() if one["r2"] is not None}
    each = ", ".join(f"{r2:.1%} of the variance of {name}" for name, r2 in known.items()) or "nothing that varies"
    return f"On {n:,} validation pictures its numbers explain {each}.".replace("%", " %")
