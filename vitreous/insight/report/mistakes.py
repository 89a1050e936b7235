"""The parts of the page that show pictures: where answers are wrong, and what is inside the model."""

import io
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from vitreous.infer.evaluation import Evaluation
from vitreous.insight.attribution import Attribution
from vitreous.insight.figures import draw_scores_by_depth, to_svg
from vitreous.insight.measures import scores_by_depth
from vitreous.insight.page import data_uri, escape, png_uri
from vitreous.insight.report import pieces as html
from vitreous.insight.report.material import Material
from vitreous.insight.report.pieces import percent, short
from vitreous.insight.report.results import GONE
from vitreous.model.vit import VisionTransformer
from vitreous.training.figures import as_shown, visible_range

Maps = Callable[[VisionTransformer, Tensor, int], Attribution]  # normalised pixels (1, C, H, W), and an output
Drawn = tuple[str, str, Figure]  # a title, a caption of one sentence, and a figure
Figures = Callable[[VisionTransformer, Tensor], Sequence[Drawn]]  # normalised pixels (B, C, H, W)

METHOD = "integrated_tokens"  # nearly as faithful as the best, in a fifth of its time
SHOWN_MISTAKES = 20
SHOWN_INSIDE = 16  # pictures that figures of the model are made of
READ_BY_DEPTH = 128  # pictures that are answered after each block
BROAD = 6  # inches, beyond which a figure may be scrolled
THUMB = 168  # pixels of the page that the longer side of a picture takes
SIDE = 256  # pixels that the longer side of a picture keeps
SMALL = 64  # pixels a side, up to which a picture is kept to the bit


def mistakes(m: Material, maps: Maps | None) -> str:
    """The pictures that are answered worst, each with a map of what spoke for the answer."""
    title = "The largest errors" if m.task.kind == "regression" else "The most confident mistakes"
    worst = find_mistakes(m.found) if m.found else []
    if m.found is None or not worst:
        why = GONE if m.found is None else f"There is none on {escape(m.subject)}."
        return html.section("mistakes", title, (why,))
    names = [m.found.names[number] for number, _ in worst]
    pixels = [*m.pixels(names)]
    extent, figures = visible_range(pixels), []
    for name, one, (number, output) in zip(names, pixels, worst, strict=True):
        over = ""
        if maps is not None:
            grid = maps(m.predictor.model, m.normalised(one), output).tokens[0]
            over = f'<img class="map coarse" src="{png_uri(map_pixels(grid.float().cpu().numpy()))}" alt="">'
        figures.append(
            f'<figure><span class="shot">{_picture(as_shown(one, max(one.shape), extent), name)}{over}</span>'
            f'<figcaption>{_said(m.found, number, output)}<span class="file" title="{escape(name)}">{escape(name)}'
            "</span></figcaption></figure>"
        )
    words = [
        {
            "classification": "Wrong answers, the most certain first. Some may be mistakes of the labels.",
            "multilabel": "Labels that are wrong, the most certain first. Some may be mistakes of those who labelled.",
            "regression": "The answers furthest from the truth, in deviations of the training targets.",
        }[m.task.kind],
        "Pictures are shown as the model sees them.",
        "Blue speaks for the answer, orange against it; each map on its own scale." if maps else "",
    ]
    switch = '<label class="switch"><input type="checkbox" checked> Show the maps</label>' if maps else ""
    grid = f'<div class="shots">{switch}<div class="grid">{"".join(figures)}</div></div>'
    return html.section("mistakes", title, words, grid)


def find_mistakes(found: Evaluation, most: int = SHOWN_MISTAKES) -> list[tuple[int, int]]:
    """The wrong answers that are most certain, or the largest errors, the worst first: picture and output."""
    answers, targets = found.answers.astype(np.float64), found.targets
    if found.task.kind == "classification":
        said = answers.argmax(1)
        order = np.argsort(-answers.max(1), kind="stable")
        return [(int(i), int(said[i])) for i in order if said[i] != targets[i]][:most]
    errors = np.abs(answers - targets) / (np.array(found.task.std) if found.task.kind == "regression" else 1)
    least = 0.5 if found.task.kind == "multilabel" else 0.0
    order = np.argsort(-errors.max(1), kind="stable")[:most]
    return [(int(i), int(errors[i].argmax())) for i in order if errors[i].max() > least]


def _said(found: Evaluation, number: int, k: int) -> str:
    """What was said of a picture, and what is true."""
    task, answer, target = found.task, found.answers[number], found.targets[number]
    said = f"<b>{html.named(task.names[k])}</b> {percent(answer[k])}"
    if task.kind == "classification":
        true = f"is <b>{html.named(task.names[target])}</b> {percent(answer[target])}"
    elif task.kind == "multilabel":
        true = "is labelled so" if target[k] else "is not labelled so"
    else:
        said, true = (f"<b>{escape(short(values[k], task.units[k]))}</b>" for values in (answer, target))
        off = f"{answer[k] - target[k]:+.3g}".replace("-", "−")
        title = f"<span>{html.named(task.names[k])}</span>" if task.outputs > 1 else ""
        return f"{title}<span>said {said} ({off})</span><span>is {true}</span>"
    return f"<span>said {said}</span><span>{true}</span>"


def _picture(shown: np.ndarray, name: str) -> str:
    """Pixels (H, W) or (H, W, 3) uint8: as a PNG where they are few, else as a smaller JPEG."""
    height, width = shown.shape[:2]
    larger = THUMB / max(height, width)
    if max(height, width) <= SMALL:
        uri = png_uri(shown)
    else:
        image, buffer = Image.fromarray(shown), io.BytesIO()
        image.thumbnail((SIDE, SIDE))
        image.save(buffer, "JPEG", quality=88, subsampling=0)
        uri = data_uri(buffer.getvalue(), "image/jpeg")
    size = f'width="{max(1, round(width * larger))}" height="{max(1, round(height * larger))}"'
    return f'<img class="{"coarse" if larger > 1.5 else ""}" src="{uri}" {size} alt="picture {escape(name)}">'


def map_pixels(grid: np.ndarray) -> np.ndarray:
    """A map (gh, gw) as RGBA: blue for what is positive, orange for what is negative, as dense as it is large.

    Where nothing is negative, what counts least is clear, however much it counts.
    """
    grid = np.nan_to_num(grid.astype(np.float64))
    grid = grid - max(0.0, grid.min(initial=np.inf))
    shares = grid / (np.abs(grid).max(initial=0) or 1.0)
    pixels = np.where((shares > 0)[..., None], (30, 120, 220, 0), (255, 140, 30, 0)).astype(np.uint8)
    pixels[..., 3] = (190 * np.abs(shares)).round()
    return pixels


def inside(m: Material, figures: Figures | None, room: int) -> str:
    """Figures of the model, of pictures that were scored, as far as they fit in so many bytes."""
    if figures is None or m.found is None:
        return ""
    pixels = [*m.pixels([m.found.names[n] for n in some_of(m.found, SHOWN_INSIDE)])]
    of_one_size = m.normalised(*(one for one in pixels if one.shape == pixels[0].shape))
    parts, left_out = [], 0
    for title, caption, drawn in [*by_depth(m), *figures(m.predictor.model, of_one_size)]:
        shown = to_svg(drawn, title)
        if len(shown) > room:
            left_out += 1
            continue
        room -= len(shown)
        parts.append(html.figure(title, html.wide(title, shown) if drawn.get_figwidth() > BROAD else shown, caption))
    words = (
        "Pictures of the weights and of what they do.",
        f"{left_out} more would make this file too large." if left_out else "",
    )
    return html.section("inside", "Inside the model", words, *parts)


def by_depth(m: Material) -> list[Drawn]:
    """How good the answers are that the head gives after each block, on some of the pictures that were scored."""
    found, model = m.found, m.predictor.model
    some = some_of(found, READ_BY_DEPTH) if found else ()
    nothing = m.task.kind == "multilabel" and found and not found.targets[some].any()
    if not found or nothing or model.config.ablation == "dense":  # whose blocks have no width in common
        return []
    pixels = m.pixels([found.names[number] for number in some])
    batches = ((m.normalised(one), found.targets[[number]]) for number, one in zip(some, pixels, strict=True))
    scores = scores_by_depth(model, batches, m.task)
    caption = (
        f"The {scores.measure} of what the head reads after each block, on {len(some):,} of {m.subject}: it learned to "
        "read the last block alone, so that those before may know more than it finds."
    )
    return [("How good the answer is after each block", caption, draw_scores_by_depth(scores, m.task))]


def some_of(found: Evaluation, most: int) -> range:
    """Numbers of at most so many pictures that were scored, evenly apart."""
    return range(0, len(found.names), -(-len(found.names) // most))
