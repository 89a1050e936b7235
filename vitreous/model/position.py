"""Position embeddings, each for any grid: a place in the picture means the same on every one."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.model.config import ModelConfig
from vitreous.model.encoder import Relation

Grid = tuple[int, int]


def sinusoid(length: int, width: int) -> Tensor:
    """(length, width) table of *Attention Is All You Need*, section 3.5: sines in even columns, cosines in odd.

    θ(i, j) = i / 10000^(2⌊j/2⌋ / width), computed in float64.
    """
    rates = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1).float()


def axis_angles(tokens: int, tokens_of_base: int, count: int, temperature: float) -> Tensor:
    """(tokens, count) of place · temperature^(-i/count) in float64; places are measured on the base grid.

    With the temperature of 10,000 that is made for sentences most columns would hardly change over a grid.
    """
    places = (torch.arange(tokens, dtype=torch.float64) + 0.5) * tokens_of_base / tokens - 0.5
    rates = temperature ** (-torch.arange(count, dtype=torch.float64) / count)
    return places[:, None] * rates


def sincos2d(grid: Grid, width: int, base: Grid, temperature: float) -> Tensor:
    """(gh·gw, width) table: half of the columns encode the row, half the column, as sines then cosines.

    Rates fall from 1 to 1/temperature a token of the `base` grid: tokens of another grid lie between those of the base.
    """

    def encode(tokens: int, tokens_of_base: int) -> Tensor:
        angles = axis_angles(tokens, tokens_of_base, width // 4, temperature)
        return torch.cat((angles.sin(), angles.cos()), 1)

    gh, gw = grid
    rows, columns = encode(gh, base[0]), encode(gw, base[1])
    return torch.cat((rows.repeat_interleave(gw, 0), columns.repeat(gh, 1)), 1).float()


def rope2d(grid: Grid, head_width: int, base: Grid, temperature: float, prefix: int) -> Tensor:
    """(2, prefix + gh·gw, head width / 2) cosines and sines: half of the pairs turn with the row, half with the column.

    The axial form of Rotary Position Embedding for Vision Transformer (2403.13298); prefix tokens do not turn.
    """
    gh, gw = grid
    rows, columns = (axis_angles(n, m, head_width // 4, temperature) for n, m in zip(grid, base, strict=True))
    angles = torch.cat((rows.repeat_interleave(gw, 0), columns.repeat(gh, 1)), 1)
    angles = F.pad(angles, (0, 0, prefix, 0))
    return torch.stack((angles.cos(), angles.sin())).float()


def resample(table: Tensor, base: Grid, grid: Grid, prefix: int = 0) -> Tensor:
    """A learned table (prefix + gh·gw of the base, D) for another grid: bicubic with antialias, the prefix kept."""
    if grid == base:
        return table
    first, places = table[:prefix], table[prefix:]
    image = places.float().T.unflatten(1, base)[None]
    image = F.interpolate(image, grid, mode="bicubic", antialias=True)
    return torch.cat((first, image[0].flatten(1).T.to(table.dtype)))


def fixed_table(config: ModelConfig, grid: Grid) -> Tensor:
    """What a fixed embedding gives on a grid: (prefix + gh·gw, D) to add, or the (2, …) rotation of "rope2d"."""
    tokens, prefix = grid[0] * grid[1], config.prefix
    base = config.grid(*config.image_size)
    if config.position == "rope2d":
        return rope2d(grid, config.width // config.heads, base, config.position_temperature, prefix)
    if config.position == "sincos2d":
        return F.pad(sincos2d(grid, config.width, base, config.position_temperature), (0, 0, prefix, 0))
    own = config.positioned_prefix
    return skip_unplaced(sinusoid(own + tokens, config.width), own, prefix)


def skip_unplaced(table: Tensor, own: int, prefix: int) -> Tensor:
    """Zeros after the first `own` rows, for the prefix tokens without a position: (own + N, D) -> (prefix + N, D)."""
    return torch.cat((table[:own], table.new_zeros(prefix - own, table.shape[1]), table[own:]))


@functools.lru_cache(maxsize=64)
def kept_table(config: ModelConfig, grid: Grid) -> Tensor:
    """`fixed_table`, worked out once: on the CPU and outside inference mode, whoever asks first."""
    with torch.inference_mode(False), torch.device("cpu"):
        return fixed_table(config, grid)


def table_on(config: ModelConfig, grid: Grid, like: Tensor) -> Tensor:
    """The fixed table of a grid, on the device and in the type of the tokens."""
    tracing = torch.compiler.is_compiling() or type(like) is not Tensor  # then tensors are stand-ins, not to be kept
    return (fixed_table if tracing else kept_table)(config, grid).to(like)


class LearnedTable(nn.Module):
    """One learned vector a token of the base grid, and one a prefix token that has a position of its own."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.base, self.own = config.grid(*config.image_size), config.positioned_prefix
        self.prefix = config.prefix
        self.table = nn.Parameter(torch.empty(self.own + self.base[0] * self.base[1], config.width))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, grid: Grid) -> Tensor:
        """(prefix + N, D)."""
        return skip_unplaced(resample(self.table, self.base, grid, self.own), self.own, self.prefix)


class LearnedAxes(nn.Module):
    """A learned vector of half the width a row, and one a column (2010.11929, appendix D.4)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.base, self.prefix = config.grid(*config.image_size), config.prefix
        half = config.width // 2
        self.rows, self.columns = (nn.Parameter(torch.empty(n, half)) for n in self.base)
        for table in (self.rows, self.columns):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, grid: Grid) -> Tensor:
        """(prefix + N, D)."""
        gh, gw = grid
        rows = resample(self.rows, (self.base[0], 1), (gh, 1))
        columns = resample(self.columns, (self.base[1], 1), (gw, 1))
        return F.pad(torch.cat((rows.repeat_interleave(gw, 0), columns.repeat(gh, 1)), 1), (0, 0, self.prefix, 0))


class RelativeBias(nn.Module):
    """A learned number a head and offset (rows, columns) between two tokens; prefix tokens have none.

    Its memory grows with the square of the number of tokens, unlike that of the others.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.base, self.prefix = config.grid(*config.image_size), config.prefix
        self.offsets = self.base[0] * 2 - 1, self.base[1] * 2 - 1
        self.table = nn.Parameter(torch.empty(self.offsets[0] * self.offsets[1], config.heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, grid: Grid) -> Tensor:
        """(heads, prefix + N, prefix + N)."""
        gh, gw = grid
        table = resample(self.table, self.offsets, (2 * gh - 1, 2 * gw - 1))
        y = torch.arange(gh, device=table.device).repeat_interleave(gw)
        x = torch.arange(gw, device=table.device).repeat(gh)
        index = (y[:, None] - y + gh - 1) * (2 * gw - 1) + x[:, None] - x + gw - 1  # (N, N)
        return F.pad(table[index].permute(2, 0, 1), (self.prefix, 0, self.prefix, 0))


class ConditionalPosition(nn.Module):
    """A depthwise convolution of 3×3 over the tokens, whose zero padding tells where the edges are (2102.10882).

    What it adds depends on a token's neighbours, so that it also tells attention what lies beside what.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.prefix = config.prefix
        self.convolution = nn.Conv2d(config.width, config.width, 3, padding=1, groups=config.width)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """(B, prefix + N, D) -> what is added to it, 0 for prefix tokens."""
        image = tokens[:, self.prefix :].mT.unflatten(2, grid)  # (B, D, gh, gw), channels last in memory
        return F.pad(self.convolution(image).flatten(2).mT, (0, 0, self.prefix, 0))


LEARNED = {"learned": LearnedTable, "learned2d": LearnedAxes, "relative": RelativeBias}


class PositionEmbedding(nn.Module):
    """Tells the tokens their places: at the input, or before or inside every block.

    "sincos2d" and "rope2d" are evaluated on the grid, "sinusoid" is built for its number of tokens, learned ones are
    resampled to it. With `position_at` "every", each block has tables of its own; with "shared" all use the same.
    With `conditional`, a depthwise convolution before each block adds to them.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        count = config.depth if config.position_at == "every" else 1
        learned = config.position in LEARNED
        self.tables = nn.ModuleList(LEARNED[config.position](config) for _ in range(count) if learned)
        self.convolutions = nn.ModuleList(ConditionalPosition(config) for _ in range(config.depth * config.conditional))

    def forward(self, tokens: Tensor, grid: Grid, layer: int) -> Tensor:
        """(B, prefix + N, D) as they come to a block -> the same with what is added there."""
        tokens = self._with_table(tokens, grid, layer)
        return tokens + self.convolutions[layer](tokens, grid) if self.convolutions else tokens

    def _with_table(self, tokens: Tensor, grid: Grid, layer: int) -> Tensor:
        kind = self.config.position
        if kind in ("none", "relative", "rope2d") or (layer and self.config.position_at == "input"):
            return tokens
        if self.tables:
            return tokens + self.tables[layer % len(self.tables)](grid).to(tokens)
        return tokens + table_on(self.config, grid, tokens)

    def relation(self, grid: Grid, layer: int, tokens: Tensor) -> Relation:
        """What the attention of a block is told of places."""
        if self.config.position == "relative":
            return Relation(bias=self.tables[layer % len(self.tables)](grid))
        if self.config.position == "rope2d":
            return Relation(rotation=table_on(self.config, grid, tokens))
        return Relation()
