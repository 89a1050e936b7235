"""Weights from elsewhere into a model."""

import torch
from torch import Tensor

from vitreous.errors import InputError
from vitreous.model.config import ModelConfig
from vitreous.model.position import resample
from vitreous.model.vit import VisionTransformer


def adapt(model: VisionTransformer, tensors: dict[str, Tensor], config: ModelConfig) -> list[str]:
    """Loads the weights of a model of `config`; a learned position table is resampled to the grid of `model`.

    Returns the names that keep their fresh weights, because the head has other outputs. Raises `InputError` where
    anything but the head does not fit.
    """
    own = model.state_dict()
    table = "position.table"
    if table in own and table in tensors:
        prefix = int(config.class_token and config.class_position)
        base, grid = config.grid(*config.image_size), model.position.base
        tensors = {**tensors, table: resample(tensors[table], base, grid, prefix)}
    fits = {name for name in own if name in tensors and tensors[name].shape == own[name].shape}
    fresh = [name for name in own if name not in fits]
    misfits = [name for name in (*fresh, *(set(tensors) - set(own))) if not name.startswith("head.")]
    if misfits:
        raise InputError.listing(
            "these weights are of another model; what does not fit:",
            sorted(misfits),
            "choose the same --model and --channels as theirs",
        )
    with torch.no_grad():
        for name in fits:
            own[name].copy_(tensors[name])
    return fresh
