"""One forward pass, with every intermediate that was asked for."""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitreous.errors import InputError
from vitreous.insight.pixels import grid_of
from vitreous.model.t2t import TokenPerformer, TokensToToken, TokenTransformer
from vitreous.model.vit import VisionTransformer

BLOCK_SCORES = 2**24  # of attention that are worked out at a time
Seen = dict[str, Any]

# What can be recorded of a block, by name. T = prefix + N tokens.
WHAT = {
    "before": "(B, T, D) the residual stream as it comes in",
    "after": "(B, T, D) as it leaves",
    "position": "(B, T, D) what was added just before the block to tell places; worked out when it is looked at",
    "q": "(B, heads, T, D/heads) queries as attention uses them: normalised, turned; a performer's φ(q), (B, T, m)",
    "k": "(B, heads, T, D/heads) keys, likewise",
    "v": "(B, heads, T, D/heads) values; a performer's (B, T, D)",
    "attention": "(B, heads, T, T) weights, a query a row; never on the graph",
    "heads": "(B, heads, T, D/heads) weights times values, before the projection",
    "projected": "(B, heads, T, D) each through its part of the projection, with its value skip, without the bias; "
    "likewise",
    "attended": "(B, T, D) what attention adds to the residual stream; between soft splits, where none is, gives",
    "hidden": "(B, T, hidden) of the MLP, after its activation",
    "mlp": "(B, T, D) what the MLP adds to the stream",
    "norms": "(B, T) lengths of the tokens that leave; likewise where these are recorded too",
}
# What has to be seen for what is worked out afterwards.
SOURCES = {"attention": ("q", "k"), "projected": ("heads", "v"), "norms": ("after",)}


@dataclass(frozen=True, repr=False)
class Layer:
    """What was recorded of a block: each of `WHAT` that was asked for is an attribute."""

    recorded: dict[str, Tensor]
    later: dict[str, Callable[[], Tensor]]  # what is worked out when it is first looked at
    cell: int = 1  # side of the square of tokens over which `attention` is pooled, where it would not fit
    gradients: bool = False  # whether what is worked out lies on a graph

    def __getattr__(self, name: str) -> Tensor:
        recorded, later = (self.__dict__.get(part, {}) for part in ("recorded", "later"))
        if name in later and name not in recorded:
            with torch.set_grad_enabled(self.gradients):
                recorded[name] = later[name]()
        if name not in recorded:
            there = ", ".join({**recorded, **later}) or "nothing"
            raise AttributeError(f"{name} was not recorded; recorded: {there}. Ask for it in trace(…, what=[…])")
        return recorded[name]


@dataclass(frozen=True, repr=False)
class Stage:
    """A stage of the tokens-to-token module: a soft split, and what works on its tokens. The last split has none."""

    grid: tuple[int, int]
    kernel: int
    windows: Tensor  # (B, N, C·k·k)
    layer: Layer | None


@dataclass(frozen=True, repr=False)
class Trace:
    """A forward pass of B pictures. T = prefix + N tokens: class token, distillation token, registers, the grid's."""

    outputs: Tensor  # (B, outputs)
    grid: tuple[int, int]
    prefix: int
    tokens: Tensor  # (B, T, D) as they enter the first block
    features: Tensor  # what the head reads
    layers: dict[int, Layer]
    stages: tuple[Stage, ...]
    pool: Tensor | None  # (B, heads, N) weights, where attention pools the tokens


def trace(
    model: VisionTransformer,
    pixels: Tensor,
    layers: Sequence[int] | None = None,
    what: Collection[str] = tuple(WHAT),
    rows: Sequence[int] | None = None,
    memory: int = 2**30,
    gradients: bool = False,
) -> Trace:
    """The forward pass of normalised pixels (B, C, H, W), with what is asked for, by the names of `WHAT`.

    `layers` may count from the end; None is all. Attention is worked out again from q and k: for the queries `rows`
    alone, where they are given; where a layer's would take more than `memory` bytes it is pooled over squares of
    tokens, queries averaged and keys summed, so that rows still sum to 1. With `gradients` the tensors of the pass
    itself lie on the graph of the outputs.

    The model runs as it would without, to the bit. A model is traced by one thread at a time. Raises `InputError` for
    a name or a layer that is not there.
    """
    grid_of(model, pixels)
    if isinstance(what, str) or {*what} - {*WHAT}:
        raise InputError(f"what is {what!r}: expected a list of some of {', '.join(WHAT)}")
    needed = {*what, *(source for name in what for source in SOURCES.get(name, ()))}
    numbers = resolve_layers(model, layers)
    inside: dict[int, Seen] = {number: {} for number in numbers}
    entered: list[tuple[Tensor, tuple[int, int], Tensor]] = []  # of each block: tokens, their grid, with positions
    around: Seen = {}
    with ExitStack() as stack, torch.set_grad_enabled(gradients):
        stages = _watch_stages(stack, model.tokenizer, needed)
        watch(stack, model.position, lambda args, out: entered.append((*args[:2], out)))
        watch(stack, model.head, lambda args, out: around.update(features=args[0]))
        for number, seen in inside.items():
            _watch_block(stack, model.blocks[number], seen, needed)
        if model.pool.attention is not None:
            _watch_split(stack, model.pool.attention, around)
        outputs = model(pixels)

        grid, prefix = entered[0][1], model.config.prefix
        for number, seen in inside.items():
            seen["plain"], _, seen["placed"] = entered[number]
        asked = what, rows, memory, gradients
        return Trace(
            outputs=outputs,
            grid=grid,
            prefix=prefix,
            tokens=entered[0][2],
            features=around["features"],
            layers={n: _layer(model.blocks[n], seen, grid, prefix, *asked) for n, seen in inside.items()},
            stages=tuple(
                Stage(
                    seen["grid"],
                    seen["kernel"],
                    seen["windows"],
                    block and _layer(block, seen, seen["grid"], 0, *asked),
                )
                for block, seen in stages
            ),
            pool=_pool_weights(model, around),
        )


def resolve_layers(model: VisionTransformer, layers: Sequence[int] | None) -> list[int]:
    """Numbers of blocks from 0 on; those below 0 count from the end."""
    depth = len(model.blocks)
    numbers = list(range(depth)) if layers is None else [n + depth if n < 0 else n for n in layers]
    if any(not 0 <= n < depth for n in numbers):
        raise InputError(f"layers are {list(layers or ())}: expected 0 to {depth - 1}, or -{depth} to -1 from the end")
    return numbers


def watch(stack: ExitStack, module: nn.Module, record: Callable[[tuple, Any], None]) -> None:
    """Calls `record` with what the module takes and gives, until the stack closes."""
    stack.callback(module.register_forward_hook(lambda _, args, out: record(args, out)).remove)


def _watch_split(stack: ExitStack, attention: Any, seen: Seen) -> None:
    """Records what the module's `split` gives as q, k and v."""
    original = attention.split

    def split(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        seen["q"], seen["k"], seen["v"] = parts = original(*args)
        return parts

    attention.__dict__["split"] = split
    stack.callback(attention.__dict__.pop, "split")


def _watch_block(stack: ExitStack, block: Any, seen: Seen, needed: Collection[str]) -> None:
    """Records what is needed of an encoder block, or of what works between soft splits."""
    watch(stack, block, lambda args, out: seen.update(before=args[0], after=out))
    if not hasattr(block, "mlp"):  # the transition between dense blocks
        return
    attention = getattr(block, "attention", block)  # a performer is its own
    if {"q", "k", "v"} & set(needed):
        _watch_split(stack, attention, seen)
        if attention is not block:
            watch(stack, attention, lambda args, out: seen.update(bias=args[1].bias if args[1:] else None))
    if "heads" in needed:
        _watch_heads(stack, attention, seen)
    if isinstance(block, TokenTransformer | TokenPerformer):  # they have no stream to add to
        watch(stack, block.mlp_norm, lambda args, out: seen.update(attended=args[0]))
    else:
        added = next(name for name in ("attention_branch", "excitation", "attention") if hasattr(block, name))
        watch(stack, getattr(block, added), lambda args, out: seen.update(attended=out))
    watch(stack, block.mlp.contract, lambda args, out: seen.update(hidden=args[0]))
    watch(stack, getattr(block, "mlp_branch", block.mlp), lambda args, out: seen.update(mlp=out))


def _watch_heads(stack: ExitStack, attention: Any, seen: Seen) -> None:
    """Records what the projection takes, by head, and puts that in its place: so it lies on the way to the outputs."""

    def record(_: nn.Module, args: tuple[Tensor]) -> Tensor:
        seen["heads"] = args[0].unflatten(-1, (getattr(attention, "heads", 1), -1)).transpose(1, 2)
        return seen["heads"].transpose(1, 2).flatten(2)

    stack.callback(attention.projection.register_forward_pre_hook(record).remove)


def _watch_stages(stack: ExitStack, tokenizer: Any, needed: Collection[str]) -> list[tuple[Any, Seen]]:
    """Records the soft splits of a tokens-to-token module, each with the block that works on its tokens."""
    if not isinstance(tokenizer, TokensToToken):
        return []
    stages = [(block, {}) for block in (*tokenizer.transformers, None)]
    for split, (block, seen) in zip(tokenizer.splits, stages, strict=True):
        seen["kernel"] = split.kernel
        watch(stack, split, lambda args, out, seen=seen: seen.update(windows=out[0], grid=out[1]))
        if block is not None:
            _watch_block(stack, block, seen, needed)
    return stages


def _layer(
    block: Any,
    seen: Seen,
    grid: tuple[int, int],
    prefix: int,
    what: Collection[str],
    rows: Sequence[int] | None,
    memory: int,
    gradients: bool,
) -> Layer:
    """What was seen of a block, and what is worked out from it."""
    recorded = {name: seen[name] for name in what if name in seen}
    later: dict[str, Callable[[], Tensor]] = {}
    if "norms" in what:
        norms = partial(torch.linalg.vector_norm, seen["after"], dim=-1)
        if "after" in what:
            later["norms"] = norms
        else:  # or numbers would keep their tokens
            recorded["norms"] = norms()
    if "position" in what and "plain" in seen:
        later["position"] = partial(added, seen["plain"], seen["placed"])
    if "projected" in what and "heads" in seen:
        later["projected"] = partial(project_heads, getattr(block, "attention", block), seen["heads"], seen["v"])
    cell = 1
    if "attention" in what and "q" in seen:
        q, k = seen["q"].detach(), seen["k"].detach()
        cell = cell_that_fits(q, grid, prefix, memory) if rows is None else 1
        recorded["attention"] = attention_weights(block, q, k, seen.get("bias"), rows, cells_of(grid, prefix, cell))
    return Layer(recorded, later, cell, gradients)


def added(plain: Tensor, placed: Tensor) -> Tensor:
    """What was added to plain tokens to tell them their places; zeros that take no memory where nothing was."""
    return plain.new_zeros(()).expand_as(plain) if plain is placed else placed - plain


def project_heads(attention: Any, heads: Tensor, v: Tensor) -> Tensor:
    """(B, heads, T, D/heads) -> (B, heads, T, D): what each head gives; with the bias they sum to attention's output.

    `v` (B, heads, T, D/heads), or of a performer (B, T, D), joins where attention has a value skip.
    """
    weight = attention.projection.weight.T  # (D, D): its rows are the columns of the heads, one head after the other
    projected = heads @ weight.unflatten(0, (heads.shape[1], -1)).to(heads)
    if getattr(attention, "value_skip", isinstance(attention, TokenPerformer)):
        own = v if v.ndim == 4 else v[:, None]
        projected = projected + own @ torch.eye(len(weight)).unflatten(0, (heads.shape[1], -1)).to(heads)
    return projected


def attention_weights(
    block: Any, q: Tensor, k: Tensor, bias: Tensor | None, rows: Sequence[int] | None, cells: Tensor | None
) -> Tensor:
    """The weights that q and k stand for, fp32 or fp64: (B, heads, T, T), or of `rows` alone, or pooled over `cells`.

    `cells` (T,) are numbers from 0 on, of the square that a token lies in. Softmax (Attention Is All You Need, eq. 1)
    or a performer's formula, a block of rows at a time.
    """
    if q.ndim == 3:
        q, k = q[:, None], k[:, None]
    q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k))
    if rows is not None:
        q = q[:, :, list(rows)]
        bias = None if bias is None else bias[:, list(rows)]
    B, heads, M, _ = q.shape
    N = k.shape[2]
    performer = isinstance(block, TokenPerformer)
    total = k.sum(2, keepdim=True).mT if performer else None  # (B, 1, m, 1)

    def weigh(part: slice) -> Tensor:  # (B, heads, rows of the part, T)
        if total is not None:
            return q[:, :, part] @ k.mT / (q[:, :, part] @ total + 1e-8)
        scores = q[:, :, part] * block.attention.scale @ k.mT
        return (scores if bias is None else scores + bias[:, part]).softmax(-1)

    step = max(1, BLOCK_SCORES // (B * heads * N))
    parts = [slice(start, start + step) for start in range(0, M, step)]
    if cells is None and len(parts) == 1:
        return weigh(parts[0])
    size = N if cells is None else int(cells.max()) + 1
    found = q.new_zeros(B, heads, M if cells is None else size, size)
    for part in parts:
        weights = weigh(part)
        if cells is None:
            found[:, :, part] = weights
            continue
        share = 1 / torch.bincount(cells)[cells[part]].to(weights)
        onto = cells.to(q.device)
        keys = weights.new_zeros(*weights.shape[:3], size).index_add_(3, onto, weights)
        found.index_add_(2, onto[part], keys * share[:, None])
    return found


def cell_that_fits(q: Tensor, grid: tuple[int, int], prefix: int, memory: int) -> int:
    """The side of the smallest square of tokens over which attention must be pooled to take at most `memory` bytes."""
    heads = q.shape[1] if q.ndim == 4 else 1
    most = math.isqrt(max(1, memory // (4 * len(q) * heads)))  # tokens
    return next(
        cell
        for cell in range(1, max(grid) + 1)
        if prefix + math.prod(math.ceil(side / cell) for side in grid) <= most or cell == max(grid)
    )


def cells_of(grid: tuple[int, int], prefix: int, cell: int) -> Tensor | None:
    """(T,) numbers of the squares of `cell`² tokens that tokens lie in, prefix tokens apart; None for single ones."""
    if cell == 1:
        return None
    rows, columns = (torch.arange(side) // cell for side in grid)
    numbers = rows[:, None] * (int(columns[-1]) + 1) + columns
    return torch.cat((torch.arange(prefix), prefix + numbers.flatten()))


def _pool_weights(model: VisionTransformer, seen: Seen) -> Tensor | None:
    pool = model.pool.attention
    return None if pool is None else (seen["q"] @ seen["k"].mT * pool.scale).softmax(-1).squeeze(2)
