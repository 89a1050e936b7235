"""Pictures of a whole model, or of a model on a set of pictures: what `measures` gives, as matplotlib Figures.

The style is that of `vitreous.training.figures`. Maps are clear where there is nothing, so that a figure can lie on a
light ground or a dark one.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from vitreous.data.targets import Task
from vitreous.insight.measures import (
    AttentionDistance,
    Components,
    DepthScores,
    TokenNorms,
    attention_distance,
    convolution_parts,
    displayable,
    evenly_apart,
    first_filters,
    position_bias,
    position_similarity,
    prefix_names,
    principal_directions,
    principal_filters,
    token_features,
    token_norms,
)
from vitreous.model.patch import PatchEmbedding
from vitreous.model.stem import ConvolutionStem
from vitreous.model.t2t import ConvolutionTokens
from vitreous.model.vit import VisionTransformer
from vitreous.training.figures import BLUE, DPI, FAINT, GREY, INK, MUTED, ORANGE, as_shown, house_style, short

Grid = tuple[int, int]
SHOWN = 8  # pictures on a figure, and maps a side
DASHED: dict[str, Any] = {"linewidth": 1, "linestyle": (0, (4, 3))}
SERIES = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # of Okabe & Ito 2008
RAMP = LinearSegmentedColormap.from_list("ramp", ["#2a86c800", "#2a86c8"])
BOTH_WAYS = LinearSegmentedColormap.from_list(
    "both ways", [(0, "#2a86c8"), (0.5, "#2a86c800"), (0.5, "#e0701800"), (1, "#e07018")]
)
PAGE = {  # what colours are called in a page's style sheet
    INK: "ink",
    MUTED: "muted",
    FAINT: "line",
    GREY: "strong-line",
    BLUE: "blue",
    ORANGE: "orange",
    "#009e73": "green",
    "#cc79a7": "purple",
}
PER_POINT = 1.45  # pixels of a page: 8.5 points become 12


def model_pictures(
    model: VisionTransformer, pixels: Tensor, pictures: np.ndarray | None = None
) -> list[tuple[str, str, Figure]]:
    """Title, caption and figure of all that suit a model in eval mode, from normalised pixels (B, C, H, W).

    `pictures` (B, H, W, 3) uint8 are shown for them; without these the pixels are, brought to the range of uint8.
    """
    config = model.config
    H, W = pixels.shape[-2:]
    gh, gw = grid = config.grid(H, W)
    aspect = config.stride[0] / config.stride[1]
    pictures = displayable(pixels) if pictures is None else pictures
    B = len(pixels)
    said = f"{B:,} pictures" if B > 1 else "1 picture"
    found: list[tuple[str, str, Figure]] = []

    def add(title: str, caption: str, figure: Figure) -> None:
        found.append((title, caption, figure))

    add(
        "What the first layer looks for",
        f"{_first_layer(model)}, each scaled by its own largest weight; beside them the principal components of all, "
        "with the share of the weights' square that they hold.",
        draw_filters(first_filters(model)),
    )
    where = {"input": "", "shared": " in every block", "every": " in the first block"}[config.position_at]
    if config.position == "relative":
        add(
            "What the position embedding adds",
            f"The learned number that is added{where} to the score of a key, by where it lies from the query, which is "
            "in the middle (circle).",
            draw_position_bias(position_bias(model, grid), aspect),
        )
    elif config.position != "none":
        most = SHOWN if min(grid) > 1 else SHOWN**2
        rows, columns = evenly_apart(gh, most), evenly_apart(gw, most)
        maps = position_similarity(model, grid, (rows[:, None] * gw + columns).ravel().tolist())
        alike = "mean cosine of the angles between rotations" if config.position == "rope2d" else "cosine similarity"
        add(
            "How alike places are",
            f"A map a token: {alike} of its position ({config.position}){where} with all others'.",
            draw_position_similarity(maps, rows, columns, aspect),
        )
    if config.conditional and B > 1:
        add(
            "What the convolutions between blocks add",
            f"Shares of its mean square over {B:,} pictures: what depends on the place alone works as a position "
            "embedding, and what depends on the picture mixes neighbours.",
            draw_convolution_parts(convolution_parts(model, pixels)),
        )
    distance = attention_distance(model, pixels)
    if np.isfinite(distance.pixels).any():
        add(
            "How far heads look",
            "A dot a head: distance between a token and what it attends to, weighted by attention, mean over all "
            f"tokens of {said} of {H}×{W} pixels.",
            draw_attention_distance(distance),
        )
    add(
        "Tokens that stand out",
        f"Lengths of the tokens of {said}, where an outlier is longer than Q3 + 3·(Q3 − Q1) and than twice the median; "
        "below, the pictures with the longest tokens after the last block, where it would be of the deepest blue.",
        draw_token_norms(token_norms(model, pixels), pictures, prefix_names(model)),
    )
    features = token_features(model, pixels)
    own = features - features.mean((1, 2), keepdims=True)
    among, within = Components.fit(features), Components.fit(own)
    colours = {"among all": among.colours(features[:SHOWN]), "within a picture": within.colours(own[:SHOWN])}
    add(
        "What tokens have become",
        "The first three principal components of the last block's tokens as red, green and blue, so that alike colours "
        f"are alike tokens: among those of all pictures they hold {_share(among.shares.sum())} of the variance, within "
        f"a picture, its mean taken off, {_share(within.shares.sum())}.",
        draw_colours(colours, pictures[:SHOWN]),
    )
    return found


def draw_position_similarity(maps: np.ndarray, rows: np.ndarray, columns: np.ndarray, aspect: float = 1.0) -> Figure:
    """Maps (rows·columns, gh, gw) of the tokens at some rows and columns of the grid; `aspect` is a token's.

    Of a grid with one row or column a matrix, a token a row.
    """
    n, gh, gw = maps.shape
    line = min(gh, gw) == 1
    gap = 0 if line else max(1, round(0.1 * max(gh, gw)))
    sheet = maps.reshape(n, -1) if line else mosaic(maps[..., None], (len(rows), len(columns)), gap)[..., 0]
    aspect = 1.0 if line else aspect
    width, height = _fitted(sheet.shape[1], sheet.shape[0] * aspect, 3.8)
    with styled(width + 1.5, height + 0.9) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(sheet, cmap=RAMP, vmax=1, aspect=aspect, interpolation="nearest")
        if line:
            _places(axes.yaxis, columns if gh == 1 else rows, 1)
            axes.set(xlabel="all tokens, in their order", ylabel="token", xticks=[])
        else:
            _places(axes.yaxis, rows, gh, gap)
            _places(axes.xaxis, columns, gw, gap)
            axes.set(xlabel="column of the token", ylabel="row of the token")
        _bare(axes)
        _bar(figure, axes, image, "cosine similarity")
    return figure


def draw_position_bias(bias: np.ndarray, aspect: float = 1.0) -> Figure:
    """The mean over heads (heads, rows, columns), and each head's, up to 15."""
    panels = [("all heads", bias.mean(0)), *((f"head {n + 1}", one) for n, one in enumerate(bias[:15]))]
    panels = panels[:1] if len(bias) == 1 else panels
    most = float(np.abs(bias).max()) or 1.0
    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    width, height = _fitted(bias.shape[2], bias.shape[1] * aspect, 1.9)
    with styled(columns * (width + 0.25) + 1.2, rows * (height + 0.35) + 0.3) as figure:
        every = figure.subplots(rows, columns, squeeze=False).ravel()
        image = None
        for axes, (title, one) in zip(every, panels, strict=False):
            image = axes.imshow(one, cmap=BOTH_WAYS, vmin=-most, vmax=most, aspect=aspect, interpolation="nearest")
            axes.plot([(one.shape[1] - 1) / 2], [(one.shape[0] - 1) / 2], "o", mfc="none", mec=INK, ms=5, mew=0.8)
            axes.set_title(title)
            _bare(axes, ticks=False)
        for axes in every[len(panels) :]:
            axes.set_axis_off()
        figure.supxlabel("column of the key, the query's in the middle", fontsize=8.5, color=MUTED)
        figure.supylabel("row of the key", fontsize=8.5, color=MUTED)
        _bar(figure, list(every), image, "added to the score")
    return figure


def draw_convolution_parts(parts: np.ndarray) -> Figure:
    """Stacked shares (depth, 4) of what the convolutions add, a bar a block, and how much they add."""
    blocks = np.arange(1, len(parts) + 1)
    with styled(6.6, 2.9) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
        floor = np.zeros(len(parts))
        kinds = [
            ("place", BLUE, parts[:, 1]),
            ("picture", ORANGE, parts[:, 2]),
            ("same everywhere", GREY, parts[:, 0]),
        ]
        for name, colour, shares in kinds:
            shares = shares.clip(0)
            left.bar(blocks, shares, bottom=floor, color=colour, width=0.72, label=name)
            floor += shares
        left.set(title="What it depends on", ylim=(0, 1), xlabel="before block", ylabel="share of its mean square")
        left.yaxis.set_major_formatter(_percent)
        _legend(figure, 3)
        right.plot(blocks, parts[:, 3], "o-", color=MUTED, markersize=4)
        top = 1.15 * float(parts[:, 3].max()) or 1.0
        right.set(title="How large it is", ylim=(0, top), xlabel="before block", ylabel="size, that of the tokens = 1")
        right.set_xlim(0.4, len(parts) + 0.6)
        for axes in (left, right):
            axes.grid(visible=False, axis="x")
            _count(axes, len(parts))
    return figure


def draw_filters(filters: np.ndarray, most: int = 64) -> Figure:
    """The filters (n, C, kh, kw) with the largest weights, and the principal components of all, beside each other."""
    n, _, kh, kw = filters.shape
    order = np.argsort(-np.square(filters).sum((1, 2, 3)), kind="stable")[:most]
    components, shares = principal_filters(filters)
    panels = [
        (f"{len(order)} of {n} filters" if len(order) < n else f"{n} filters", filters[order]),
        (f"{len(components)} principal components: {_share(shares.sum())}", components),
    ]
    shapes = [_tiling(len(one), kh / kw) for _, one in panels]
    widths = [columns * kw / (rows * kh) * 2.5 for rows, columns in shapes]
    with styled(sum(widths) + 0.5, 2.9, gap=0.08) as figure:
        for axes, (title, one), shape in zip(figure.subplots(1, 2, width_ratios=widths), panels, shapes, strict=True):
            sheet = mosaic(filter_colours(one), shape, max(1, round(0.12 * max(kh, kw))), enlarge=-(-8 // max(kh, kw)))
            drawn = np.dstack((np.nan_to_num(sheet), np.isfinite(sheet[..., :1])))  # clear between the filters
            axes.imshow(drawn, interpolation="nearest")
            axes.set_title(title)
            _bare(axes, ticks=False)
    return figure


def filter_colours(filters: np.ndarray) -> np.ndarray:
    """Filters (n, C, kh, kw) -> (n, kh, kw, 3) in 0 … 1, each scaled by its largest weight; a weight of 0 is 0.5.

    One channel is grey and three are red, green and blue; others are brought to three by the principal components of
    the channels.
    """
    C = filters.shape[1]
    if C == 1:
        filters = filters.repeat(3, 1)
    elif C != 3:
        directions, _ = principal_directions(filters.transpose(0, 2, 3, 1).reshape(-1, C), 3)
        filters = np.einsum("nchw,dc->ndhw", filters, directions)
    largest = np.abs(filters).max((1, 2, 3), keepdims=True)
    return (0.5 + 0.5 * filters / np.where(largest, largest, 1)).transpose(0, 2, 3, 1)


def draw_attention_distance(distance: AttentionDistance) -> Figure:
    """A dot a head and block, the line through each block's mean, and what attending to everything would give."""
    depth, heads = distance.pixels.shape
    blocks = np.arange(1, depth + 1)
    with styled(max(4.6, 2.2 + 0.3 * depth), 3.4) as figure:
        axes = figure.add_subplot()
        offsets = np.linspace(-0.16, 0.16, heads) if heads > 1 else np.zeros(1)
        x = np.broadcast_to(blocks[:, None] + offsets, distance.pixels.shape)
        dots = {"color": BLUE, "alpha": 0.75, "markersize": 4.2, "markeredgewidth": 0}
        axes.plot(x.ravel(), distance.pixels.ravel(), "o", label="a head", **dots)
        has = np.isfinite(distance.pixels).any(1)
        means = np.nanmean(distance.pixels[has], axis=1)
        axes.plot(blocks[has], means, color=BLUE, linewidth=1.4, alpha=0.45, label="mean of a block")
        axes.axhline(distance.everywhere, **DASHED, color=GREY, label="attends to all alike")
        _legend(figure, 3)
        top = 1.15 * max(float(np.nanmax(distance.pixels, initial=0)), distance.everywhere) or 1.0
        axes.set(xlabel="block", ylabel="mean distance, pixels", ylim=(0, top), xlim=(0.4, depth + 0.6))
        axes.grid(visible=False, axis="x")
        _count(axes, depth)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        shares = axes.secondary_yaxis(
            "right", functions=(lambda y: np.divide(y, distance.diagonal), lambda y: np.multiply(y, distance.diagonal))
        )
        shares.yaxis.set_major_formatter(_percent)
        shares.set_ylabel("of the picture's diagonal")
        shares.spines["right"].set_visible(False)
    return figure


def draw_token_norms(norms: TokenNorms, pictures: np.ndarray, prefix: Sequence[str] = ()) -> Figure:
    """Norms by depth, their histogram at the end, and maps of the pictures (B, H, W, 3) with the largest, up to 4.

    `prefix` names the prefix tokens.
    """
    S, B = norms.tokens.shape[:2]
    flat, thresholds = norms.tokens.reshape(S, -1), norms.thresholds
    order = np.argsort(-norms.tokens[-1].reshape(B, -1).max(1), kind="stable")[:4]
    size = pictures.shape[1:3]
    tall, share = size[0] > size[1], size[0] / size[1]
    height = 0.3 + (min(1.3, 0.82 * share) if tall else 2 * min(1.3, 1.6 * share))
    with styled(7.2, 3.0 + height) as figure:
        (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.0, height])
        left, right = upper.subplots(1, 2, width_ratios=[1.25, 1])
        stages = np.arange(S)
        for low, high, alpha in ((0, 100, 0.12), (25, 75, 0.3)):
            band = np.percentile(flat, [low, high], axis=1)
            left.fill_between(stages, *band, color=BLUE, alpha=alpha, linewidth=0)
        left.plot(stages, np.median(flat, axis=1), color=BLUE, label="median, quartiles, range")
        left.plot(stages, thresholds, **DASHED, color=ORANGE, label="outliers above")
        for number, name in enumerate(prefix):
            shade = (INK, MUTED, GREY)[min(number, 2)]
            left.plot(stages, norms.prefix[:, :, number].mean(1), color=shade, linewidth=1, label=name)
        left.set(title="Length of tokens", xlabel="after block (0: embedded)", ylabel="length", xlim=(0, S - 1))
        left.legend(fontsize=7, labelcolor=MUTED, loc="best", handlelength=1.4)
        left.grid(visible=False, axis="x")
        left.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))

        last = flat[-1]
        edges = np.geomspace(max(last.min(), 1e-9), max(last.max() * 1.001, 1e-8), 41)
        right.stairs(np.histogram(last, edges)[0], edges, fill=True, color=BLUE, alpha=0.8)
        right.axvline(thresholds[-1], **DASHED, color=ORANGE)
        outliers = _share(norms.outliers[-1]) if norms.outliers[-1] else "no"
        right.set(title=f"After the last block: {outliers} outliers", xlabel="length", ylabel="tokens")
        for axes in (left, right):
            axes.set_yscale("log")
            _plain_logarithms(axes.yaxis)
        right.set_xscale("log")
        _plain_logarithms(right.xaxis)
        right.set_ylim(bottom=0.7)

        for cell, one in zip(lower.subfigures(1, 4, squeeze=False)[0], order, strict=False):
            _, mapped = _pair(cell, pictures[one])
            lengths, extent = norms.tokens[-1][one], (0, size[1], size[0], 0)
            mapped.imshow(
                lengths, cmap=RAMP, vmin=0, vmax=thresholds[-1] or 1.0, extent=extent, interpolation="nearest"
            )
            mapped.set_xlabel(f"up to {_number(lengths.max())}", fontsize=7.5)
    return figure


def draw_colours(maps: Mapping[str, np.ndarray], pictures: np.ndarray) -> Figure:
    """Maps of colours, name -> (B, gh, gw, 3), below their pictures (B, H, W, 3), or beside those that are tall."""
    B, H, W = pictures.shape[:3]
    tall = H > W
    columns = min(B, 2 if tall else 4)
    rows = math.ceil(B / columns)
    width, height = _fitted(W, H, 1.2)
    width, height = (width * (1 + len(maps)), height) if tall else (width, height * (1 + len(maps)))
    with styled(columns * (width + 0.15) + 0.2, rows * (height + 0.15) + 0.2, gap=0.02) as figure:
        cells = figure.subfigures(rows, columns, squeeze=False, wspace=0.05, hspace=0.05).ravel()
        for number, cell in enumerate(cells[:B]):
            panels = _pair(cell, pictures[number], 1 + len(maps))
            for axes, one in zip(panels[1:], maps.values(), strict=True):
                axes.imshow(one[number], extent=(0, W, H, 0), interpolation="nearest")
            for axes, name in zip(panels if tall else panels[1:], ("", *maps) if tall else maps, strict=True):
                title = " " if number or not name else name  # blanks keep all pictures at one size
                axes.set_title(title, fontsize=7.5, fontweight="normal", color=MUTED, pad=3)
    return figure


def draw_scores_by_depth(scores: DepthScores, task: Task) -> Figure:
    """A line of the scores by depth; of several targets a line each, as shares of what always saying the mean gives."""
    S, K = scores.values.shape
    values, baseline = scores.values, scores.baseline
    unit = next(iter(task.units), "") if scores.measure == "RMSE" else ""
    label = f"{scores.measure} ({unit})" if unit else scores.measure
    if K > 1:
        values, baseline, label = values / np.where(baseline, baseline, 1), np.ones(1), "RMSE / spread of the target"
    with styled(max(4.2, 2.2 + 0.26 * S), 3.1) as figure:
        axes = figure.add_subplot()
        for k in reversed(range(K)):
            named = {"color": SERIES[k], "label": short(task.names[k], 24) if K > 1 else ""} if k < len(SERIES) else {}
            axes.plot(range(S), values[:, k], "o-", **{"color": FAINT, "markersize": 4, **named})
        chance = {"accuracy": "always the commonest class", "RMSE": "always the mean"}
        axes.axhline(baseline[0], **DASHED, color=GREY, label=chance.get(scores.measure, "chance"))
        _legend(figure, 2 if K > 1 else 1)
        axes.set(xlabel="after block (0: embedded)", ylabel=label, xlim=(-0.2, S - 0.8))
        axes.set_ylim(0, 1.15 * max(float(np.nanmax(values)), float(baseline[0])))
        if K == 1:
            said = f"{values[-1, 0]:.3g}" if scores.measure == "RMSE" else f"{100 * values[-1, 0]:.1f} %"
            axes.annotate(said, (S - 1, values[-1, 0]), (0, 7), textcoords="offset points", ha="center", color=BLUE)
        if scores.measure != "RMSE":
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(_percent)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.grid(visible=False, axis="x")
    return figure


def mosaic(maps: np.ndarray, shape: Grid, gap: int, enlarge: int = 1) -> np.ndarray:
    """Maps (n, h, w, c) in rows of a grid, NaN in the gaps between them and where there are no more."""
    _, h, w, c = maps.shape
    rows, columns = shape
    h, w, gap = h * enlarge, w * enlarge, gap * enlarge
    sheet = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, c), math.nan)
    for number, one in enumerate(maps[: rows * columns]):
        y, x = (number // columns) * (h + gap), (number % columns) * (w + gap)
        sheet[y : y + h, x : x + w] = one.repeat(enlarge, 0).repeat(enlarge, 1)
    return sheet


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file, whatever a user's matplotlib settings are."""
    with house_style():
        file = io.BytesIO()
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})
        return file.getvalue()


def to_svg(figure: Figure, words: str) -> str:
    """The figure as an SVG element of HTML, whose colours and type are those of the page around it.

    `words`, which no other figure of the page has, say what it shows to who cannot see it.
    """
    file = io.StringIO()
    with house_style(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": words}):
        figure.savefig(file, format="svg", bbox_inches="tight", pad_inches=0.02, facecolor="none")
    tree = ElementTree.fromstring(file.getvalue())
    for parent in [*tree.iter()]:
        for child in [*parent]:
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in tree.iter():
        given = {name.partition("}")[2] or name: value for name, value in element.attrib.items()}
        for rule in filter(None, given.pop("style", "").split("; ")):
            name, value = rule.split(": ", 1)
            given[name] = f"var(--{PAGE[value]})" if value in PAGE else value
        given.pop("font-family", None)
        element.tag, element.tail = element.tag.partition("}")[2], None
        element.text = (element.text or "").strip()
        if element.tag in ("g", "image"):
            given.pop("id", None)
        element.attrib = given
    box = tree.attrib["viewBox"]
    width, height = (f"{PER_POINT * float(side):.0f}" for side in box.split()[2:])
    tree.attrib = {"class": "drawn", "viewBox": box, "width": width, "height": height}
    tree.attrib |= {"role": "img", "aria-label": words}
    return ElementTree.tostring(tree, "unicode")


@contextmanager
def styled(width: float, height: float, gap: float = 0.0) -> Iterator[Figure]:
    """A figure of a size in inches in the house's style; it is laid out before the style is gone."""
    with house_style():
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
        if gap:
            figure.get_layout_engine().set(w_pad=gap, h_pad=gap)  # pyright: ignore
        yield figure
        figure.draw_without_rendering()


_percent = FuncFormatter(lambda share, _: f"{100 * share:.4g} %")


def _legend(figure: Figure, columns: int) -> None:
    """Over the axes, where it hides nothing."""
    figure.legend(loc="outside upper left", ncols=columns, fontsize=7.5, labelcolor=MUTED, handlelength=1.6)


def _pair(cell: SubFigure, picture: np.ndarray, count: int = 2) -> list[Axes]:
    """The axes of a picture, which is drawn, and of what belongs to it."""
    H, W = picture.shape[:2]
    every = list(cell.subplots(*((1, count) if H > W else (count, 1))).ravel())
    every[0].imshow(as_shown(picture, 320, (0, 255)), extent=(0, W, H, 0))
    for axes in every:
        _bare(axes, ticks=False)
    return every


def _bare(axes: Axes, ticks: bool = True) -> None:
    """A picture needs neither grid nor frame."""
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if not ticks:
        axes.set(xticks=[], yticks=[])


def _bar(figure: Figure, axes: Axes | list[Axes], image: Any, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=30)
    bar.outline.set_visible(False)  # pyright: ignore
    bar.ax.grid(visible=False)
    bar.set_label(label)


def _count(axes: Axes, blocks: int) -> None:
    axes.set_xticks(range(1, blocks + 1, math.ceil(blocks / 16)))


def _places(axis: Axis, places: np.ndarray, length: int, gap: int = 0) -> None:
    """Numbers from 1 on of places whose maps, so long and so far apart, lie along an axis; at most 16."""
    some = range(0, len(places), math.ceil(len(places) / 16))
    axis.set_ticks([n * (length + gap) + (length - 1) / 2 for n in some], [f"{places[n] + 1}" for n in some])


def _plain_logarithms(axis: Axis) -> None:
    """Ticks of a logarithmic axis in plain numbers, also where it holds less than a decade."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 5 * low else (1, 1.5, 2, 3, 4, 5, 7)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.3g}"


def _fitted(width: float, height: float, most: float) -> tuple[float, float]:
    """Inches of a shape whose longer side is `most`, the shorter at least a tenth of it."""
    longer = max(width, height)
    return max(width / longer, 0.1) * most, max(height / longer, 0.1) * most


def _tiling(count: int, aspect: float) -> Grid:
    """Rows and columns in which so many tiles of height / width come nearest to a square."""
    columns = max(1, min(count, round(math.sqrt(count * aspect))))
    return math.ceil(count / columns), columns


def _share(share: float) -> str:
    """A share in per cent, with digits where they say something."""
    return f"{100 * share:.3g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _first_layer(model: VisionTransformer) -> str:
    """What `first_filters` gives, in words."""
    if isinstance(model.tokenizer, PatchEmbedding):
        return "Filters of the patch embedding"
    if isinstance(model.tokenizer, ConvolutionStem | ConvolutionTokens):
        return "Filters of the first convolution"
    return "What the first soft split's tokens give as values"
