"""Pixels as a model takes them, and from tokens to pixels and back: where in the picture the mass of a map lies."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitreous.errors import InputError
from vitreous.model.config import ModelConfig, split_length, split_padding, split_stride

Size = tuple[int, int]


def grid_of(model: Any, pixels: Any) -> Size:
    """The token grid (gh, gw) of normalised pixels (B, C, H, W).

    Whoever looks inside comes by here first: raises `InputError` for what is no model, for one that merges tokens,
    and for no such pixels.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise InputError(f"model is a {type(model).__name__}: expected a VisionTransformer, such as predictor.model")
    if config.merge:
        raise InputError(
            f"this model merges tokens (merge is {config.merge}), and a merged one stands for no single patch: "
            "look inside the same weights with merge 0"
        )
    if not isinstance(pixels, Tensor):
        raise InputError(
            f"pixels are a {type(pixels).__name__}: expected a tensor of normalised pixels (batch, {config.channels}, "
            "height, width); vitreous.explain(predictor, pictures) takes files and arrays"
        )
    if pixels.ndim != 4 or pixels.shape[1] != config.channels:
        raise InputError(f"pixels of shape {tuple(pixels.shape)}: expected (batch, {config.channels}, height, width)")
    if not len(pixels):
        raise InputError(f"pixels of shape {tuple(pixels.shape)}: there are no pictures")
    weight = next(model.parameters(), pixels)
    if pixels.device != weight.device:
        raise InputError(f"pixels are on {pixels.device}: expected {weight.device}, where the model is")
    fits = pixels.dtype == weight.dtype or torch.is_autocast_enabled(pixels.device.type)
    if not (pixels.is_floating_point() and fits):
        raise InputError(
            f"pixels are {_type_name(pixels)}: expected {_type_name(weight)}, normalised as in training, which "
            "predictor.normalised(pixels) does"
        )
    return config.grid(*size_of(pixels))


def size_of(pixels: Tensor) -> Size:
    """(H, W) of pixels (…, H, W)."""
    return pixels.shape[-2], pixels.shape[-1]


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def to_pixels(config: ModelConfig, tokens: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """A map over tokens (B, gh, gw) over the picture's pixels: (B, H, W), and the share (B,) that falls on padding.

    Patches and stems spread a token's mass evenly over its cell, soft splits over all of its window, whose windows
    they are in turn: a pixel gets a share from every token that saw it. A map's sum is that of its pixels and of what
    falls on the padding; of a map with negative parts the share is that of its absolute values. Raises `InputError`
    for a grid that is not the picture's.
    """
    grid = config.grid(*size)
    if tokens.ndim != 3 or tuple(tokens.shape[1:]) != grid:
        raise InputError(
            f"a map of shape {tuple(tokens.shape)}: expected (batch, {grid[0]}, {grid[1]}), "
            f"the tokens of a picture of {size[0]}×{size[1]}"
        )
    if config.tokenizer != "t2t":
        return spread(tokens, size, config.stride), tokens.new_zeros(len(tokens))
    sizes = [size]
    for kernel in config.kernels[:-1]:
        height, width = sizes[-1]
        sizes.append((split_length(height, kernel), split_length(width, kernel)))
    image = torch.cat((tokens, tokens.abs()))  # the second half tells the share
    lost = image.new_zeros(len(image))
    for kernel, inner in zip(reversed(config.kernels), reversed(sizes), strict=True):
        image, padding = unsplit(image.flatten(1), kernel, inner)
        lost += padding
    total = tokens.abs().sum((1, 2))
    return image[: len(tokens)], lost[len(tokens) :] / total.where(total > 0, 1)


def unsplit(tokens: Tensor, kernel: int, size: Size) -> tuple[Tensor, Tensor]:
    """A soft split undone: (B, N) each evenly over its window of k×k -> (B, h, w), and the mass (B,) on the padding."""
    (height, width), stride, padding = size, split_stride(kernel), split_padding(kernel)
    windows = (tokens / kernel**2)[:, None].expand(-1, kernel**2, -1)
    padded = F.fold(windows, (height + 2 * padding, width + 2 * padding), kernel, stride=stride)[:, 0]
    image = padded[:, padding : padding + height, padding : padding + width]
    return image, padded.sum((1, 2)) - image.sum((1, 2))


def to_cells(pixels: Tensor, grid: Size, stride: Size | None = None) -> Tensor:
    """(B, H, W) -> (B, gh, gw): the sum over each token's cell, as `cell_numbers` has them."""
    cells = cell_numbers(grid, (pixels.shape[1], pixels.shape[2]), stride).flatten().to(pixels.device)
    found = pixels.new_zeros(len(pixels), grid[0] * grid[1])
    return found.index_add_(1, cells, pixels.flatten(1)).unflatten(1, grid)


def spread(tokens: Tensor, size: Size, stride: Size | None = None) -> Tensor:
    """(B, gh, gw) -> (B, H, W): each token's mass evenly over its cell."""
    cells = cell_numbers((tokens.shape[1], tokens.shape[2]), size, stride).to(tokens.device)
    return (tokens.flatten(1) / cells.flatten().bincount())[:, cells]


def cell_numbers(grid: Size, size: Size, stride: Size | None = None) -> Tensor:
    """(H, W) numbers of the token in whose cell a pixel lies, row by row.

    A cell is as large as the model's `stride`, a last one as large as is left; without a stride cells are even.
    """
    rows, columns = (
        (torch.arange(length) // step if step else torch.arange(length) * tokens // length).clamp(max=tokens - 1)
        for length, tokens, step in zip(size, grid, stride or (0, 0), strict=True)
    )
    return rows[:, None] * grid[1] + columns


def filled(pixels: Tensor, fill: str | Tensor, grid: Size) -> Tensor:
    """What stands in for a picture that shows nothing, (B, C, H, W) normalised pixels.

    "mean" is the mean colour of the training pictures, 0. "blur" is the picture under a Gaussian as wide as a cell, or
    as an eighth of the side. Pixels are taken as they are. Raises `InputError` for anything else.
    """
    if isinstance(fill, Tensor):
        if fill.ndim > 4 or any(
            own not in (1, n) for own, n in zip(fill.shape[::-1], pixels.shape[::-1], strict=False)
        ):
            raise InputError(f"a fill of shape {tuple(fill.shape)}: expected {tuple(pixels.shape)}")
        return fill.to(pixels).expand_as(pixels)
    if fill == "mean":
        return torch.zeros_like(pixels)
    if fill != "blur":
        raise InputError(f"fill is {fill!r}: expected mean, blur or pixels")
    down, across = (
        gaussian(length, max(length / cells, length / 8)).to(pixels)
        for length, cells in zip(pixels.shape[-2:], grid, strict=True)
    )
    return down @ pixels @ across.T


def gaussian(length: int, deviation: float) -> Tensor:
    """A Gaussian blur along a side as a matrix (length, length); at the ends it weighs what is there."""
    places = torch.arange(length)
    return (-((places - places[:, None]) ** 2) / (2 * deviation**2)).softmax(-1)
