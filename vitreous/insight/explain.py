"""explain: a trained model and pictures to an account of its answers, with how far each part can be believed."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitreous.data.sources import open_pictures
from vitreous.errors import InputError
from vitreous.infer.predictor import Picture, Prediction, Predictor
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
from vitreous.insight.trace import Trace, trace
from vitreous.model.config import split_padding, split_stride
from vitreous.model.presets import name_of
from vitreous.model.vit import VisionTransformer, count_parameters
from vitreous.rundir import write_atomically
from vitreous.training.figures import as_shown, visible_range

SHOWN = ("shapley", "occlusion", "integrated_gradients", "gradient_attention", "rollout", "grad_cam", "attention")
LINES = {
    "gradient_attention": "Attention, where more of it would raise the answer, followed back through all blocks.",
    "contributions": "What each token brings to the answer where the head reads it.",
    "integrated_tokens": "The gradient of each token, summed on the way from the tokens of an empty picture.",
    "rollout": "Attention of all blocks multiplied together. It does not know which answer is asked about.",
    "attention": "Where the last block looks. It does not know which answer is asked about.",
    "grad_cam": "The last tokens, weighted by how their columns raise the answer.",
    "integrated_gradients": "The gradient of each pixel, summed on the way from a picture of the mean colour.",
    "occlusion": "How far the answer falls when a patch is painted over.",
    "shapley": "What the answer gains by a patch, in the mean over random orders of showing them.",
}
SCORE = (
    "Patches are taken away in a map's order, the least important first, then the most important first: its score is "
    "by how much longer the answer lasts the first way. A map that knows nothing scores 0."
)
MOST_PICTURES = 100  # of a page


@dataclass(frozen=True)
class PictureExplanation:
    """What was found about the answer to one picture."""

    prediction: Prediction
    pixels: np.ndarray  # (h, w, C) as the model sees them
    target: int  # the output that is explained
    label: str
    trace: Trace  # with attention
    attributions: dict[str, Attribution]
    faithfulness: dict[str, Faithfulness]
    ledger: Ledger | None  # None for dense blocks, as is the lens
    lens: np.ndarray | None  # (depth + 1, outputs) answers by depth

    def summary(self) -> dict[str, Any]:
        """What is explained and how faithful each map is, ready for JSON."""
        answer = self.prediction.values or self.prediction.probabilities
        return {
            "picture": self.prediction.picture,
            "target": self.label,
            "answer": answer[self.label],
            "faithfulness": {name: float(found.score) for name, found in self.faithfulness.items()},
            "notes": {name: found.note for name, found in self.attributions.items() if found.note},
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
    predictor: Predictor,
    pictures: Picture | Sequence[Picture],
    *,
    target: str | None = None,
    methods: Sequence[str] = SHOWN,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Explanation:
    """How the model came to its answers to files, folders or arrays.

    `target` names the class, label or number to explain; without it, each picture's most probable, or the first
    number. Raises `InputError` for names that are not there, and for pictures that cannot be used, all together.
    """
    if unknown := sorted({*methods} - {*METHODS}):
        raise InputError(f"no attribution is called {unknown[0]!r}: expected some of {', '.join(METHODS)}")
    names = predictor.task.names
    if target is not None and target not in names:
        raise InputError(f"the model knows no {target!r}: expected one of {', '.join(names[:20])}")
    one = isinstance(pictures, str | os.PathLike | np.ndarray)
    source = open_pictures([pictures] if one else pictures)  # pyright: ignore[reportArgumentType]
    if len(source) > MOST_PICTURES:
        raise InputError(f"{len(source):,} pictures: expected at most {MOST_PICTURES}, which one page can show")
    pixels, faults = [], []
    for number, name in enumerate(source.names):
        try:
            pixels.append(predictor.spec.read(source.read(number), name)[1])
        except InputError as fault:
            faults.append(str(fault))
    if faults:
        raise InputError.listing(f"{len(faults):,} of {len(source):,} pictures cannot be used:", faults)
    found = []
    for number, name in enumerate(source.names):
        found.append(_explain_one(predictor, name, pixels[number], target, methods))
        progress(number + 1, len(source))
    return Explanation(predictor, found)


def _explain_one(
    predictor: Predictor, name: str, pixels: np.ndarray, asked: str | None, methods: Sequence[str]
) -> PictureExplanation:
    model, task = predictor.model, predictor.task
    normalised = predictor.normalised(torch.from_numpy(pixels[None].copy()))
    found = trace(model, normalised, what=("attention",))
    answers = predictor.calibration.answers(task, found.outputs.float().cpu().numpy())[0]
    first = 0 if task.kind == "regression" else int(answers.argmax())
    target = task.names.index(asked) if asked is not None else first
    attributions = {method: METHODS[method](model, normalised, target) for method in methods}
    stream = model.config.ablation != "dense"
    return PictureExplanation(
        prediction=predictor.prediction(name, answers),
        pixels=pixels,
        target=target,
        label=task.names[target],
        trace=found,
        attributions=attributions,
        faithfulness=faithfulness(
            model,
            normalised,
            {method: attribution.tokens for method, attribution in attributions.items()},
            target,
            kind=task.kind,
            temperature=predictor.calibration.temperature,
        ),
        ledger=ledger(model, normalised, target) if stream else None,
        lens=predictor.calibration.answers(task, lens(model, normalised)[0].cpu().numpy()) if stream else None,
    )


def _page(predictor: Predictor, found: PictureExplanation) -> PageExplanation:
    """What the page shows of a picture."""
    model, task = predictor.model, predictor.task
    grid = found.trace.grid
    unit = task.units[found.target] if task.kind == "regression" else None
    layers = {number: layer for number, layer in found.trace.layers.items() if "attention" in layer.recorded}
    return PageExplanation(
        name=found.prediction.picture,
        pixels=as_shown(found.pixels, max(found.pixels.shape), visible_range([found.pixels])),
        grid=grid,
        answers=_answers(predictor, found),
        target=found.label,
        prefix=prefix_names(model),
        attributions=[_attribution(found, method) for method in found.attributions],
        attention=[layer.attention[0].cpu().numpy() for layer in layers.values()],
        blocks=list(layers),
        cell=max((layer.cell for layer in layers.values()), default=1),
        pool=None if found.trace.pool is None else found.trace.pool[0].cpu().numpy(),
        lens=None if found.lens is None else _lens(predictor, found, found.lens),
        ledger=found.ledger and _ledger(found.ledger, unit),
        position=_positions(model, grid),
        splits=[
            PageSplit(stage.grid, stage.kernel, split_stride(stage.kernel), split_padding(stage.kernel))
            for stage in found.trace.stages
        ],
    )


def _answers(predictor: Predictor, found: PictureExplanation) -> list[PageAnswer]:
    told = found.prediction
    if told.kind != "regression":
        return [PageAnswer(name, probability) for name, probability in told.probabilities.items()]
    return [PageAnswer(name, value, told.units[name], told.intervals.get(name)) for name, value in told.values.items()]


def _attribution(found: PictureExplanation, method: str) -> PageAttribution:
    attribution, believed = found.attributions[method], found.faithfulness
    pixelwise = method == "integrated_gradients"
    return PageAttribution(
        name=method.replace("_", " "),
        line=LINES.get(method, ""),
        values=(attribution.pixels if pixelwise else attribution.tokens)[0].float().cpu().numpy(),
        score=float(believed[method].score),
        random=0.0,  # an order and its reverse have opposite scores; what a few random ones have is noise about that
        edges=float(believed["edges"].score),
        note=attribution.note,
    )


def _lens(predictor: Predictor, found: PictureExplanation, answers: np.ndarray) -> PageLens:
    task = predictor.task
    order = [found.target, *(k for k in np.argsort(-answers[-1]) if k != found.target)]
    if task.kind == "regression":
        return PageLens([found.label], answers[:, [found.target]], task.units[found.target])
    return PageLens([task.names[k] for k in order], answers[:, order])


def _ledger(found: Ledger, unit: str | None) -> PageLedger:
    return PageLedger(
        found.names,
        found.values[0].cpu().numpy(),
        float(found.score),
        "logit" if unit is None else "deviations",  # of a number: what the model gives before units
        found.tokens[0].cpu().numpy(),
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
    return f"On {n:,} validation pictures its numbers explain {summary['r2']:.1%} of the variance.".replace("%", " %")
