"""The page that shows how a model came to its answers: one HTML file that asks for nothing from elsewhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vitreous.errors import InputError
from vitreous.insight import page

BUDGET = 8_000_000  # bytes that a picture may take in the file
SHELL = 150_000  # that the page takes without any picture, and more
PICTURE_BYTES = 2_500_000  # of them for its pixels
MAP_SIDE = 256  # values along a side of an attribution, at most
POSITIONS = 32 * 32  # whose likeness is kept
ANSWERS = 6  # shown one by one, as are
CONTRIBUTIONS = 14
FAINT = 0.005  # an answer less probable, or a part less than so much of the largest, is one of the others
LENS_NAMES = 5  # lines of the lens

Grid = tuple[int, int]


@dataclass(frozen=True)
class PageAnswer:
    """An answer of the model: a probability, or with a `unit` (which may be empty) a number."""

    label: str
    value: float
    unit: str | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class PageAttribution:
    """How much each part of the picture counts, by one method, and how far that can be believed."""

    name: str
    line: str  # what the method does, in one sentence
    values: np.ndarray  # (gh, gw), or (h, w) of pixels; above 0 for the answer, below 0 against it
    score: float | None = None  # its faithfulness: the higher the better
    note: str = ""


@dataclass(frozen=True)
class PageLens:
    """The answer as the head would give it before the first block and after each: values (depth + 1, names)."""

    names: Sequence[str]
    values: np.ndarray
    unit: str | None = None  # None: probabilities


@dataclass(frozen=True)
class PageLedger:
    """The parts of which the answer's score is the sum; `tokens` (parts, prefix + N) is what each token gives."""

    names: Sequence[str]
    values: np.ndarray
    total: float
    unit: str | None = None  # None: a logit
    tokens: np.ndarray | None = None
    start: float | None = None  # of a number: the mean of the training pictures, to which the parts are added


@dataclass(frozen=True)
class PageSplit:
    """A soft split of a tokens-to-token module; `grid` is that of the tokens it makes."""

    grid: Grid
    kernel: int
    stride: int
    padding: int


@dataclass(frozen=True)
class PageFacts:
    """The model of the page, in words."""

    model: str
    size: Grid  # (height, width) in pixels
    parameters: int
    accuracy: str = ""  # "86.2 % of 341 validation pictures are answered rightly"
    score: str = ""  # what the faithfulness score is, in one sentence
    rows: Sequence[tuple[str, str]] = ()  # more facts: a name, and what is to be said


@dataclass(frozen=True)
class PageExplanation:
    """What is shown of one picture. What is None or empty is left out of the page."""

    name: str
    pixels: np.ndarray  # (H, W), (H, W, 1) or (H, W, 3) uint8, as the model sees them
    grid: Grid
    answers: Sequence[PageAnswer]  # the largest first
    target: str  # the answer that is explained
    against: str = ""  # rather than which other one
    labels: bool = False  # answers are labels, each with a probability of its own
    prefix: Sequence[str] = ()  # "class token", "register 1": the tokens before the picture's
    attributions: Sequence[PageAttribution] = ()  # the first is shown at first
    chance: float | None = None  # the scores of random maps stay within ± this
    edges: float | None = None  # the score of a map of the picture's edges, which knows no model
    attention: Sequence[np.ndarray] | np.ndarray | None = None  # (blocks, heads, T, T), rows sum to 1
    blocks: Sequence[int] = ()  # the numbers of these blocks, from 1 on; empty: all
    cell: int = 1  # side of the square of tokens over which attention is pooled already
    pool: np.ndarray | None = None  # (heads, N) weights, where attention pools the tokens
    lens: PageLens | None = None
    ledger: PageLedger | None = None
    position: np.ndarray | None = None  # (N, N) likeness of position embeddings
    splits: Sequence[PageSplit] = ()


def explain_page(explanations: Sequence[PageExplanation], facts: PageFacts) -> str:
    """The HTML of the page. A picture takes at most 8 MB of it: where attention does not fit it is kept coarser.

    Raises `InputError` where there is no picture.
    """
    if not explanations:
        raise InputError("no picture to explain")
    data = {"facts": _facts(facts), "pictures": [_picture(explanation) for explanation in explanations]}
    first = explanations[0].name[:80] if len(explanations) == 1 else f"{len(explanations)} pictures"
    title = f"How {facts.model} came to its answer: {first}"
    script = page.asset("board.js") + page.asset("explain.js")
    return page.render(title, page.asset("explain.html"), page.asset("explain.css"), script, data)


def _facts(facts: PageFacts) -> dict[str, Any]:
    rows = [("model", facts.model), ("parameters", _count(facts.parameters))]
    return {
        "rows": [*rows, ("made for", "{}×{} pixels".format(*facts.size)), *facts.rows],
        "accuracy": facts.accuracy,
        "score": facts.score,
    }


def _picture(shown: PageExplanation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": shown.name,
        **_pixels(shown.pixels),
        "grid": shown.grid,
        "prefix": shown.prefix,
        **_answers(shown),
        "target": shown.target,
        "against": shown.against,
        "attributions": [_attribution(one, shown.grid) for one in shown.attributions],
        "chance": shown.chance,
        "edges": shown.edges,
        "lens": shown.lens and _lens(shown.lens),
        "ledger": shown.ledger and _ledger(shown.ledger, shown.grid),
        "position": None if shown.position is None else _position(np.asarray(shown.position), shown.grid),
        "pool": None if shown.pool is None else page.packed(shown.pool),
        "splits": [vars(split) for split in shown.splits],
    }
    if shown.attention is not None and len(shown.attention):
        left = BUDGET - len(page.json_text(found)) - SHELL
        found["attention"] = _attention(shown, shown.attention, left)
    return found


def _answers(shown: PageExplanation) -> dict[str, Any]:
    """The first ones unless they are faint, those that are explained, and the others in a word."""
    kept = [
        one
        for number, one in enumerate(shown.answers)
        if number == 0
        or one.label in (shown.target, shown.against)
        or (number < ANSWERS and (one.unit is not None or not one.value < FAINT))
    ]
    rest = [one for one in shown.answers if one not in kept]
    if len(rest) == 1:
        kept, rest = list(shown.answers), []
    many, words = f"{len(rest):,}", ""
    if rest and rest[0].unit is not None:
        words = f"{many} other numbers"
    elif rest and shown.labels:
        words = f"others: {many} labels, none above {_percent(max(one.value for one in rest))}"
    elif rest:
        words = f"others: {many} classes, {_percent(sum(one.value for one in rest))}"
    return {"answers": [vars(one) for one in kept], "others": words}


def _percent(share: float) -> str:
    return "<\u00a00.1\u00a0%" if 0 < share < 0.001 else f"{100 * share:.1f}\u00a0%"


def _pixels(pixels: np.ndarray) -> dict[str, Any]:
    """The picture, its size, and by how much it is shown smaller so that it takes no more than its bytes."""
    height, width = pixels.shape[:2]
    picture, shrunk = pixels, 1
    while len(uri := page.png_uri(picture)) > PICTURE_BYTES:
        shrunk += 1
        image = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
        picture = np.asarray(image.reduce(shrunk))
    return {"picture": uri, "size": (height, width), "shrunk": shrunk}


def _attribution(attribution: PageAttribution, grid: Grid) -> dict[str, Any]:
    values = np.nan_to_num(np.asarray(attribution.values, np.float64), posinf=0, neginf=0)
    on_tokens = values.shape == tuple(grid)
    while max(values.shape) > MAP_SIDE:
        values = pooled(values, 2) / pooled(np.ones_like(values), 2)
        on_tokens = False
    low, high = max(0.0, float(values.min(initial=np.inf))), float(values.max(initial=0))
    values = values - low  # what counts least is dark, however much it counts
    span = float(np.abs(values).max(initial=0))
    if not on_tokens:  # a few pixels would leave all others dark
        span = float(np.quantile(np.abs(values), 0.99)) or span
    found = {key: value for key, value in vars(attribution).items() if key != "values"}
    return found | {"map": page.packed(values, "u8", span), "tokens": on_tokens, "least": low / high if high > 0 else 0}


def _lens(lens: PageLens) -> dict[str, Any]:
    values = np.asarray(lens.values, np.float64)[:, :LENS_NAMES]
    return {"names": list(lens.names)[:LENS_NAMES], "values": values.tolist(), "unit": lens.unit}


def _ledger(ledger: PageLedger, grid: Grid) -> dict[str, Any]:
    """The largest parts, the sum of the others, and where on the picture each comes from."""
    values = np.asarray(ledger.values, np.float64)
    sizes = np.abs(np.nan_to_num(values))
    order = np.argsort(-sizes, kind="stable")[:CONTRIBUTIONS]
    order = order[sizes[order] >= FAINT * sizes.max(initial=0)]
    others = np.setdiff1d(np.arange(len(values)), order)
    tokens = None
    if ledger.tokens is not None:
        rows = np.asarray(ledger.tokens, np.float64)
        rows = np.concatenate((rows[order], rows[others].sum(0, keepdims=True), rows.sum(0, keepdims=True)))
        maps = [row[-grid[0] * grid[1] :] for row in rows]
        prefix = [float(row[: -grid[0] * grid[1]].sum()) for row in rows]
        tokens = {"maps": [page.packed(one, "u8") for one in maps], "prefix": prefix}
    return {
        "names": [ledger.names[i] for i in order],
        "values": values[order].tolist(),
        "others": len(others),
        "rest": float(values[others].sum()),
        "total": ledger.total,
        "unit": ledger.unit,
        "tokens": tokens,
        "start": ledger.start,
    }


def _position(likeness: np.ndarray, grid: Grid) -> dict[str, Any]:
    """Likeness (N, N), of squares of positions where there are too many."""
    cell = 1
    while -(-grid[0] // cell) * -(-grid[1] // cell) > POSITIONS:
        cell += 1
    if cell > 1:
        counts = pooled(np.ones(grid), cell).reshape(-1)
        likeness = pooled(likeness.reshape(-1, *grid), cell)  # (N, kh, kw)
        likeness = pooled(likeness.reshape(*grid, -1).transpose(2, 0, 1), cell)  # (keys, kh, kw)
        likeness = likeness.reshape(len(counts), -1).T / np.outer(counts, counts)
    low = float(np.nanmin(likeness))
    return {"map": page.packed(likeness - low, "u8"), "low": low, "cell": cell}


def _attention(shown: PageExplanation, blocks: Sequence[np.ndarray] | np.ndarray, budget: int) -> dict[str, Any] | None:
    """Attention as finely as it fits: in 8 bits, in 4, for squares of patches, for the mean of the heads."""
    rows, prefix, heads = _coarser(shown.grid, shown.cell), len(shown.prefix), len(blocks[0])
    for bits, factor, mean in _ways(rows, heads):
        layers = _layers(blocks, prefix, rows, bits, factor, mean, budget)
        if layers is not None:
            numbers = list(shown.blocks) or list(range(1, len(blocks) + 1))
            return {
                "layers": [layer | {"number": number} for layer, number in zip(layers, numbers, strict=True)],
                "heads": 1 if mean else heads,
                "mean": heads if mean else 0,
                "rows": rows,
                "cell": shown.cell,
                "keys": _coarser(rows, factor),
                "factor": factor,
                "words": _words(shown.cell, bits, factor, mean),
            }
    return None


def _ways(rows: Grid, heads: int) -> Iterator[tuple[str, int, bool]]:
    """Bits, side of a square of patches, mean over heads: from the finest on."""
    for mean in (False, True) if heads > 1 else (False,):
        factor, most = 1, max(1, min(rows) // 4) if not mean else max(rows)
        while factor <= most:
            yield from (("u8", factor, mean), ("u4", factor, mean))
            factor += 1


def _layers(
    blocks: Sequence[np.ndarray] | np.ndarray, prefix: int, rows: Grid, bits: str, factor: int, mean: bool, budget: int
) -> list[dict[str, Any]] | None:
    """Each block's attention, or None where they take more than the budget."""
    layers, taken = [], 0
    for block in blocks:
        block = np.asarray(block, np.float32)  # (heads, T, T)
        block = block.mean(0, keepdims=True) if mean else block
        keys = block[:, :, prefix:].reshape(*block.shape[:2], *rows)
        keys = (pooled(keys, factor) if factor > 1 else keys).reshape(*block.shape[:2], -1)  # (heads, T, keys)
        top = keys.max(-1, initial=0).astype(np.float16)
        shares = keys / np.maximum(top, np.finfo(np.float16).tiny).astype(np.float32)[..., None]
        layer = {
            "codes": {"shape": keys.shape, "dtype": bits, "data": page.compressed(page.quantised(shares, bits))},
            "top": page.packed(top),
            "prefix": page.packed(block[:, :, :prefix]),
        }
        taken += sum(len(part["data"]) + 100 for part in layer.values())
        if taken > budget:
            return None
        layers.append(layer)
    return layers


def pooled(values: np.ndarray, cell: int) -> np.ndarray:
    """(…, gh, gw) -> sums over squares of `cell` by `cell`; those at the lower and right edge may be smaller."""
    height, width = values.shape[-2:]
    summed = np.add.reduceat(values, range(0, height, cell), axis=-2)
    return np.add.reduceat(summed, range(0, width, cell), axis=-1)


def _words(cell: int, bits: str, factor: int, mean: bool) -> str:
    """What the file keeps less finely than the model has it."""
    said = [f"averaged over squares of {cell}×{cell} patches"] if cell > 1 else []
    said += [f"summed over squares of {cell * factor}×{cell * factor} patches that are attended to"] * (factor > 1)
    said += ["given as the mean of the heads alone"] * mean
    said += ["kept in 16 steps"] * (bits == "u4")
    if not said:
        return ""
    joined = " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)
    return f"So that this file stays small, attention is {joined}."


def _coarser(grid: Grid, cell: int) -> Grid:
    return -(-grid[0] // cell), -(-grid[1] // cell)


def _count(number: int) -> str:
    for size, word in ((10**9, " billion"), (10**6, " million")):
        if number >= size:
            return f"{number / size:.3g}{word}"
    return f"{number:,}"
