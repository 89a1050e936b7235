"""Position embeddings, each for any grid: a place in the picture means the same on every one."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.model.config import ModelConfig

Grid = tuple[int, int]


def sinusoid(length: int, width: int) -> Tensor:
    """(length, width) table of *Attention Is All You Need*, section 3.5: sines in even columns, cosines in odd.

    θ(i, j) = i / 10000^(2⌊j/2⌋ / width), computed in float64.
    """
    rates = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1).float()


def sincos2d(grid: Grid, width: int, base: Grid, temperature: float) -> Tensor:
    """(gh·gw, width) table: half of the columns encode the row, half the column, as sines then cosines.

    Rates fall from 1 to 1/temperature a token: with the 10,000 that is made for sentences most columns would hardly
    change over a grid. Coordinates are measured on the `base` grid: tokens of another lie between those of the base.
    """

    def encode(tokens: int, tokens_of_base: int) -> Tensor:
        places = (torch.arange(tokens, dtype=torch.float64) + 0.5) * tokens_of_base / tokens - 0.5
        rates = temperature ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
        angles = places[:, None] * rates
        return torch.cat((angles.sin(), angles.cos()), 1)

    gh, gw = grid
    rows, columns = encode(gh, base[0]), encode(gw, base[1])
    return torch.cat((rows.repeat_interleave(gw, 0), columns.repeat(gh, 1)), 1).float()


def resample(table: Tensor, base: Grid, grid: Grid, prefix: int = 0) -> Tensor:
    """A learned table (prefix + gh·gw of the base, D) for another grid: bicubic with antialias, the prefix kept."""
    if grid == base:
        return table
    first, places = table[:prefix], table[prefix:]
    image = places.float().T.unflatten(1, base)[None]
    image = F.interpolate(image, grid, mode="bicubic", antialias=True)
    return torch.cat((first, image[0].flatten(1).T.to(table.dtype)))


def fixed_table(config: ModelConfig, grid: Grid) -> Tensor:
    """(prefix + gh·gw, D) of the "sincos2d" or "sinusoid" embedding of a config on a grid."""
    tokens, prefix = grid[0] * grid[1], int(config.class_token)
    if config.position == "sinusoid" and config.class_position:
        return sinusoid(prefix + tokens, config.width)
    if config.position == "sinusoid":
        table = sinusoid(tokens, config.width)
    else:
        table = sincos2d(grid, config.width, config.grid(*config.image_size), config.position_temperature)
    return F.pad(table, (0, 0, prefix, 0))


@functools.lru_cache(maxsize=64)
def kept_table(config: ModelConfig, grid: Grid) -> Tensor:
    """`fixed_table`, worked out once: on the CPU and outside inference mode, whoever asks first."""
    with torch.inference_mode(False), torch.device("cpu"):
        return fixed_table(config, grid)


class PositionEmbedding(nn.Module):
    """The table that is added to the tokens, prefix tokens (the class token) first.

    "sincos2d" is evaluated on the grid, "sinusoid" built for its number of tokens, "learned" resampled to it.
    A prefix without a position of its own gets zeros.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.base = config.grid(*config.image_size)
        if config.position == "learned":
            rows = int(config.class_position) + self.base[0] * self.base[1]
            self.table = nn.Parameter(torch.zeros(rows, config.width))

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """(B, prefix + N, D) -> the same with the position embedding added."""
        config = self.config
        if config.position == "none":
            return tokens
        if config.position != "learned":
            tracing = torch.compiler.is_compiling()  # then tensors are stand-ins, which must not be kept
            return tokens + (fixed_table if tracing else kept_table)(config, grid).to(tokens)
        own = int(config.class_position)
        return tokens + F.pad(resample(self.table, self.base, grid, own), (0, 0, int(config.class_token) - own, 0))
