"""Which tokens an answer rests on: one function a method, each of normalised pixels, with an `Attribution`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vitreous.errors import InputError
from vitreous.insight.flow import Mixing, back, entered, flow, flow_with_gradients, leaf, to_picture
from vitreous.insight.pixels import cell_numbers, filled, grid_of, size_of, spread, to_cells, to_pixels
from vitreous.insight.target import Target, direction
from vitreous.insight.trace import resolve_layers, trace
from vitreous.model.vit import VisionTransformer

TOKENS_AT_ONCE = 2**12  # of all pictures that pass the model together: more leave a CPU's cache, and are slower
RIDGE = 4.0  # times the orders: the weight of a guess against the gains that speak against it
TOLERANCE = 0.01  # of integrated gradients' completeness
POWER = 3  # they walk α = u³ from the baseline, where LayerNorm makes much of little, with ever longer steps in α


@dataclass(frozen=True)
class Attribution:
    """A map of a picture's tokens, and of its pixels."""

    method: str
    tokens: Tensor  # (B, gh, gw)
    pixels: Tensor  # (B, H, W)
    padding: Tensor  # (B,) share of the mass that fell on the padding of soft splits
    note: str = ""  # what must be known of it


# What the model attends to


def attention(
    model: VisionTransformer, pixels: Tensor, target: Target = None, layer: int | None = None, head: int | None = None
) -> Attribution:
    """Attention weights of a block, of one head or their mean: the class token's row, or the mean of all tokens' rows.

    Without a `layer` it is the last attention before the head: the last block's, or attention pooling's. Raises
    `InputError` for a layer or a head that is not there.
    """
    grid_of(model, pixels)
    number = resolve_layers(model, [-1 if layer is None else layer])[0]
    chain = flow(model, pixels, [number])
    direction(chain.found.outputs, target)
    if layer is None and chain.found.pool is not None:
        tokens = _of_head(chain.found.pool, head)  # (B, N)
    elif chain.blocks:
        tokens = back(chain.read, chain.blocks[0], lambda weights, _: _of_head(weights, head))
        tokens = tokens[:, chain.found.prefix :]
    else:
        raise InputError(f"layer is {number}: that block has no attention")
    return _of_tokens("attention", model, tokens.unflatten(1, chain.found.grid), pixels)


def rollout(model: VisionTransformer, pixels: Tensor, target: Target = None) -> Attribution:
    """Attention followed from the tokens that are read back to the picture (Abnar & Zuidema 2020, 2005.00928).

    In a block a token keeps as much of itself as it attends to others, (A + I)/2; where attention adds V as it is,
    that is a way more: (A + 2I)/3, and (A + I)/2 in a token transformer, which has no other. A soft split's tokens
    are made evenly of those in their windows.
    """

    def step(row: Tensor, mixing: Mixing) -> Tensor:
        attended = back(row, mixing, lambda weights, _: weights.mean(1))
        return (attended + mixing.skips * row) / (1 + mixing.skips)

    chain = flow(model, pixels)
    direction(chain.found.outputs, target)
    return _of_picture("rollout", model, *to_picture(chain, chain.read, step, size_of(pixels)), pixels)


def gradient_attention(model: VisionTransformer, pixels: Tensor, target: Target = None) -> Attribution:
    """Attention times its gradient, followed back to the picture: R ← R + Ā·R, Ā the mean over heads of
    relu(∇A ⊙ A) (Generic Attention-model Explainability, 2103.15679, eq. 5 and 6). Where there is no class token, it
    begins with the tokens that pooling reads, each as much as it is read.
    """

    def step(row: Tensor, mixing: Mixing) -> Tensor:
        return row + back(row, mixing, lambda weights, rows: mixing.change(weights, rows).relu().mean(1))

    grid_of(model, pixels)
    with torch.no_grad():
        chosen = direction(model(pixels), target)
    chain = flow_with_gradients(model, pixels, chosen)
    return _of_picture("gradient_attention", model, *to_picture(chain, chain.read, step, size_of(pixels)), pixels)


# What the score is made of


def contributions(model: VisionTransformer, pixels: Tensor, target: Target = None) -> Attribution:
    """What each token brings to the score where the head reads it, weights of attention held. It may be negative.

    With the mean of the tokens and a linear head the map sums to the score but for biases, as the class activation map
    does (1512.04150); where the last norm comes after the mean, its statistics are held. The class token reads the
    others in every block: what it takes from each, times its gradient. Attention pooling's tokens likewise.
    """
    grid_of(model, pixels)
    with torch.no_grad():
        chosen = direction(model(pixels), target)
    chain = flow_with_gradients(model, pixels, chosen)
    if chain.reading is not None:
        tokens = chain.reading.sum(1)
    else:
        row = chain.read.ne(0).to(chosen)  # the gradients know that a distillation token is read as well
        parts = [back(row, mixing, lambda w, rows, m=mixing: m.change(w, rows).sum(1)) for mixing in chain.blocks]
        tokens = torch.stack(parts).sum(0)[:, chain.found.prefix :]
    return _of_tokens("contributions", model, tokens.unflatten(1, chain.found.grid), pixels)


def grad_cam(
    model: VisionTransformer, pixels: Tensor, target: Target = None, layer: int = -1, place: str | None = None
) -> Attribution:
    """Tokens weighted by column with the mean gradient of the column, and what is negative cut off (1610.02391).

    `place` is "before" or "after" the block. What leaves the last block has a gradient only where it is read, so that
    with a class token it is "before" unless chosen, otherwise "after".
    """
    grid_of(model, pixels)
    number = resolve_layers(model, [layer])[0]
    place = place or ("before" if model.config.class_token else "after")
    if place not in ("before", "after"):
        raise InputError(f"place is {place!r}: expected before or after")
    found = trace(model, leaf(pixels), [number], (place,), gradients=True)
    tokens = getattr(found.layers[number], place)
    gradient = torch.autograd.grad(found.outputs, tokens, direction(found.outputs.detach(), target))[0]
    tokens, gradient = (x.detach()[:, found.prefix :] for x in (tokens, gradient))
    weighted = (tokens @ gradient.mean(1)[..., None]).squeeze(-1).relu()  # (B, N)
    return _of_tokens("grad_cam", model, weighted.unflatten(1, found.grid), pixels)


def integrated_gradients(
    model: VisionTransformer,
    pixels: Tensor,
    target: Target = None,
    baseline: str | Tensor = "mean",
    steps: int = 16,
    most: int = 256,
) -> Attribution:
    """The gradient's mean on the way from a baseline to the picture, times their difference (1703.01365, eq. 1).

    The way is cut into parts, each summed by Simpson's rule. What a part must sum to is known, the difference of the
    scores at its ends: those that are furthest off are halved until the parts together are off by at most 1 % of the
    whole difference, so that the map sums to that as closely. At most `steps` gradients are taken to begin with, two a
    part and one more, and `most` in the end: where the map's sum is then off by more, the note says how far. For
    `baseline` see `filled`.
    """
    start = filled(pixels, baseline, grid_of(model, pixels))
    image, note = _integrate(model, model, pixels, start, pixels, target, steps, most, columns=1)
    return _of_pixels("integrated_gradients", model, image, image.new_zeros(len(image)), note)


def integrated_tokens(
    model: VisionTransformer,
    pixels: Tensor,
    target: Target = None,
    baseline: str | Tensor = "mean",
    steps: int = 16,
    most: int = 256,
) -> Attribution:
    """`integrated_gradients` from the tokens of a baseline to those of the picture, as the tokenizer gives them.

    For patches it is the same, whose tokens are linear in the pixels; otherwise it is faster, and less noisy. Soft
    splits are normalised, and give nearly the same tokens for a hundredth of the contrast: on the way through the
    pixels the score has changed before anything can be seen.
    """
    start = filled(pixels, baseline, grid_of(model, pixels))
    with torch.no_grad():
        first, grid = model.tokenizer(start)
        last, _ = model.tokenizer(pixels)

    def run(tokens: Tensor) -> Tensor:
        with entered(model, tokens, grid):
            return model(pixels[:1])

    found, note = _integrate(model, run, pixels, first, last, target, steps, most, columns=2)
    return _of_tokens("integrated_tokens", model, found.unflatten(1, grid), pixels, note)


def _integrate(
    model: VisionTransformer,
    run: Callable[[Tensor], Tensor],
    pixels: Tensor,
    start: Tensor,
    end: Tensor,
    target: Target,
    steps: int,
    most: int,
    columns: int,
) -> tuple[Tensor, str]:
    """Integrated gradients of `run` from `start` to `end`, summed over the axis of the `columns`; and a note."""
    if not 3 <= steps <= most:
        raise InputError(f"steps is {steps}: expected 3 to {most}, the most")
    with torch.no_grad():
        chosen = direction(model(pixels), target)
    at_once = _at_once(model, pixels)
    found = [
        _along(partial(_slopes, run, a, b, weights, columns, at_once), steps, most)
        for a, b, weights in zip(start, end, chosen, strict=True)
    ]
    gap, passes = max(((gap, passes) for _, gap, passes in found), key=lambda pair: pair[0])
    note = "" if gap <= TOLERANCE else f"completeness gap {100 * gap:.1f} % after {passes} steps"
    return torch.stack([total for total, _, _ in found]), note


def _slopes(
    run: Callable[[Tensor], Tensor],
    start: Tensor,
    end: Tensor,
    weights: Tensor,
    columns: int,
    at_once: int,
    alphas: Tensor,
) -> tuple[Tensor, Tensor]:
    """Scores (n,) of one picture at some α (n,), and gradients times the way, summed over the `columns`, (n, …)."""
    scores, maps = [], []
    for some in alphas.split(at_once):
        places = torch.lerp(start, end, some.to(end).view(-1, *[1] * end.ndim)).requires_grad_()
        with torch.enable_grad():
            score = run(places) @ weights
        gradient = torch.autograd.grad(score, places, torch.ones_like(score))[0]
        maps.append((gradient * (end - start)).sum(columns))
        scores.append(score.detach().cpu().double())
    return torch.cat(scores), torch.cat(maps)


def _along(at: Callable[[Tensor], tuple[Tensor, Tensor]], steps: int, most: int) -> tuple[Tensor, float, int]:
    """The integral over α from 0 to 1 of maps (n, …) that `at` gives for some α (n,) with the scores (n,), whose slopes
    their sums are; how far its sum is from the difference of the scores, as a share of that; and how many maps it took.
    """
    places, scores, slopes = torch.empty(3, 0).double()
    maps: list[Tensor] = []
    new = torch.linspace(0, 1, (steps - 1) // 2 * 2 + 1).double()
    while True:
        reached, some = at(new**POWER)
        speed = POWER * new ** (POWER - 1)
        some[speed == 0] = 0  # at the baseline it may be too large for a number
        maps.append(some * speed.to(some).view(-1, *[1] * (some.ndim - 1)))
        places, scores = torch.cat((places, new)), torch.cat((scores, reached))
        slopes = torch.cat((slopes, maps[-1].flatten(1).cpu().sum(1, dtype=torch.float64)))
        order = places.argsort()  # a part's beginning, its middle, its end, which is the beginning of the next
        u, f, slope = places[order], scores[order], slopes[order]
        sixth = (u[2::2] - u[:-2:2]) / 6
        gaps = sixth * (slope[:-2:2] + 4 * slope[1::2] + slope[2::2]) - f[::2].diff()
        least = 1000 * torch.finfo(some.dtype).eps * f.abs().max() + 1e-300  # beyond the rounding of the scores
        whole = (f[-1] - f[0]).abs().clamp(min=least)
        off, rank = gaps.abs().sort(descending=True)
        left = off.flip(0).cumsum(0).flip(0)  # of a part and all that are less far off
        worst = rank[left > TOLERANCE / 2 * whole][: (most - len(u)) // 2]
        if left[0] <= TOLERANCE * whole or not len(worst):
            break
        new = torch.cat((u[2 * worst] + u[2 * worst + 1], u[2 * worst + 1] + u[2 * worst + 2])) / 2
    weights = torch.zeros_like(u)
    weights[order[:-2:2]] += sixth
    weights[order[1::2]] += 4 * sixth
    weights[order[2::2]] += sixth
    shares = weights.split([len(some) for some in maps])
    total = torch.stack([torch.tensordot(w.to(some), some, 1) for w, some in zip(shares, maps, strict=True)]).sum(0)
    return total, float(gaps.sum().abs() / whole), len(u)


# What the score does without parts of the picture


def occlusion(
    model: VisionTransformer,
    pixels: Tensor,
    target: Target = None,
    fill: str | Tensor = "mean",
    window: int | None = None,
) -> Attribution:
    """How far the score falls when a square window of cells is filled, in the mean over all that hold a token's cell.

    A window has a side of two cells where the grid has more, unless it is chosen: one cell alone is often made up for
    by its neighbours. For `fill` see `filled`. Raises `InputError` for a window that is larger than the grid.
    """
    gh, gw = grid = grid_of(model, pixels)
    window = (2 if min(grid) > 2 else 1) if window is None else window
    if not 1 <= window <= min(grid):
        raise InputError(f"window is {window}: expected 1 to {min(grid)}, for a grid of {gh}×{gw}")
    numbers = torch.arange(gh * gw).view(grid)
    windows = numbers.unfold(0, window, 1).unfold(1, window, 1).flatten(0, 1).flatten(1)  # (M, cells of a window)
    hidden = torch.zeros(len(windows), gh * gw, dtype=torch.bool).scatter_(1, windows, True)
    kept = torch.cat((torch.ones_like(hidden[:1]), ~hidden))
    scores = _scores_of_parts(model, pixels, filled(pixels, fill, grid), kept, target)
    drops = scores[:, :1] - scores[:, 1:]  # (B, M)
    share = hidden / hidden.sum(0)
    return _of_cells("occlusion", model, (drops @ share.to(drops)).unflatten(1, grid), pixels)


def shapley(
    model: VisionTransformer,
    pixels: Tensor,
    target: Target = None,
    fill: str | Tensor = "mean",
    orders: int = 32,
    groups: int = 8,
    seed: int = 0,
) -> Attribution:
    """What the score gains when a token's cell is shown, in the mean over random orders in which cells are shown.

    Shapley values of cells by permutation sampling (Castro et al. 2009). Cells are shown in so many `groups`, in which
    they share what is gained, and every second order is the one before it turned about. The map sums to the score less
    that of the filled picture. For `fill` see `filled`.
    """
    gains, members = _gains(model, pixels, target, fill, orders, groups, seed)
    tokens = gains / members.sum(1) @ members / orders  # (B, N)
    return _of_cells("shapley", model, tokens.unflatten(1, grid_of(model, pixels)), pixels)


def guided_shapley(
    model: VisionTransformer,
    pixels: Tensor,
    target: Target = None,
    fill: str | Tensor = "mean",
    orders: int = 32,
    groups: int = 8,
    seed: int = 0,
) -> Attribution:
    """`integrated_tokens`, set right by what the score really gains when cells are shown in the orders of `shapley`.

    A control variate: were the score a sum over tokens, `integrated_tokens` would be its Shapley values, so that only
    what groups of cells gain beyond it is left to be estimated. That is shared out among their cells by ridge
    regression. The map sums to the score less that of the filled picture.
    """
    gains, members = _gains(model, pixels, target, fill, orders, groups, seed)
    prior = integrated_tokens(model, pixels, target, fill).tokens.flatten(1)  # (B, N)
    squares = members.T @ members + RIDGE * orders * torch.eye(members.shape[1]).to(members)
    tokens = prior + torch.linalg.solve(squares, ((gains - prior @ members.T) @ members).T).T
    left = gains.sum(1) / orders - tokens.sum(1)
    tokens = tokens + left[:, None] / members.shape[1]
    return _of_cells("guided_shapley", model, tokens.unflatten(1, grid_of(model, pixels)), pixels)


def _gains(
    model: VisionTransformer, pixels: Tensor, target: Target, fill: str | Tensor, orders: int, groups: int, seed: int
) -> tuple[Tensor, Tensor]:
    """What the score gains by each group of cells (B, orders·groups), and 1 for its cells (orders·groups, N)."""
    grid = grid_of(model, pixels)
    N = grid[0] * grid[1]
    groups = min(groups, N)
    if orders < 1 or groups < 1:
        raise InputError(f"orders is {orders} and groups is {groups}: expected 1 or more of each")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([torch.randperm(N, generator=generator) for _ in range((orders + 1) // 2)])
    rank = torch.stack((drawn, N - 1 - drawn), 1).flatten(0, 1)[:orders]  # (orders, N): when a cell is shown
    group = rank * groups // N
    kept = group[:, None] < torch.arange(groups + 1)[:, None]  # (orders, groups + 1, N)
    scores = _scores_of_parts(model, pixels, filled(pixels, fill, grid), kept.flatten(0, 1), target)
    members = (group[:, None] == torch.arange(groups)[:, None]).flatten(0, 1)
    return scores.unflatten(1, (orders, -1)).diff(dim=2).flatten(1), members.to(scores)


@torch.no_grad()
def _scores_of_parts(model: VisionTransformer, pixels: Tensor, fill: Tensor, kept: Tensor, target: Target) -> Tensor:
    """(B, M) scores of pictures of which only the cells are `kept` (M, N) that are true."""
    chosen = direction(model(pixels), target)
    size = size_of(pixels)
    cells = cell_numbers(model.config.grid(*size), size, model.config.stride).to(pixels.device)
    kept, places = kept.unique(dim=0, return_inverse=True)  # all orders begin with nothing and end with everything
    masks = kept.to(pixels.device).split(_at_once(model, pixels))
    scores = [
        torch.cat([model(torch.where(mask[:, cells][:, None], picture, other)) @ weights for mask in masks])
        for picture, other, weights in zip(pixels, fill, chosen, strict=True)
    ]
    return torch.stack(scores)[:, places]


def random(model: VisionTransformer, pixels: Tensor, target: Target = None, seed: int = 0) -> Attribution:
    """Numbers from 0 to 1 that know nothing of the picture: what any other method must beat."""
    grid = grid_of(model, pixels)
    direction(pixels.new_zeros(1, model.config.outputs), target)
    tokens = torch.rand(len(pixels), *grid, generator=torch.Generator().manual_seed(seed))
    return _of_tokens("random", model, tokens.to(pixels), pixels)


METHODS: dict[str, Callable[..., Attribution]] = {
    "attention": attention,
    "rollout": rollout,
    "gradient_attention": gradient_attention,
    "contributions": contributions,
    "grad_cam": grad_cam,
    "integrated_gradients": integrated_gradients,
    "integrated_tokens": integrated_tokens,
    "occlusion": occlusion,
    "shapley": shapley,
    "guided_shapley": guided_shapley,
    "random": random,
}


def _of_head(weights: Tensor, head: int | None) -> Tensor:
    """(B, heads, …) -> (B, …): of one head, or their mean."""
    if head is None:
        return weights.mean(1)
    if not 0 <= head < weights.shape[1]:
        raise InputError(f"head is {head}: expected 0 to {weights.shape[1] - 1}")
    return weights[:, head]


def _at_once(model: VisionTransformer, pixels: Tensor) -> int:
    """Pictures of that size that may pass the model together."""
    gh, gw = model.config.grid(*size_of(pixels))
    return max(1, TOKENS_AT_ONCE // (gh * gw))


# The two maps of an attribution


def _of_tokens(method: str, model: VisionTransformer, tokens: Tensor, pixels: Tensor, note: str = "") -> Attribution:
    """(B, gh, gw) over the pixels that the tokens saw."""
    return Attribution(method, tokens.detach(), *to_pixels(model.config, tokens.detach(), size_of(pixels)), note)


def _of_picture(method: str, model: VisionTransformer, image: Tensor, lost: Tensor, pixels: Tensor) -> Attribution:
    """What `to_picture` gives: over tokens, or over pixels. It has no negative part."""
    if image.shape[1:] != pixels.shape[2:]:
        return _of_tokens(method, model, image, pixels)
    total = lost + image.sum((1, 2))
    return _of_pixels(method, model, image, lost / total.where(total > 0, 1))


def _of_cells(method: str, model: VisionTransformer, tokens: Tensor, pixels: Tensor) -> Attribution:
    """(B, gh, gw) over the cells of the tokens."""
    image = spread(tokens, size_of(pixels), model.config.stride)
    return Attribution(method, tokens, image, tokens.new_zeros(len(tokens)))


def _of_pixels(method: str, model: VisionTransformer, image: Tensor, padding: Tensor, note: str = "") -> Attribution:
    """(B, H, W), and their sums over the cells of the tokens."""
    tokens = to_cells(image, model.config.grid(*size_of(image)), model.config.stride)
    return Attribution(method, tokens, image, padding, note)
