"""Models small enough to be built in a test."""

from typing import Any

import torch
from torch import nn

from vitreous.model.config import ModelConfig
from vitreous.model.vit import VisionTransformer

KINDS: dict[str, dict[str, Any]] = {
    "patch": {"tokenizer": "patch", "patch_size": (4, 8), "image_size": (12, 40)},
    "t2t": {"tokenizer": "t2t", "kernels": (3, 3), "token_width": 8, "image_size": (12, 20)},
    "performer": {
        "tokenizer": "t2t",
        "token_kind": "performer",
        "kernels": (3, 3),
        "token_width": 8,
        "image_size": (12, 20),
    },
    "stem": {"tokenizer": "stem", "stem": (6, 8, 12), "image_size": (12, 20)},
    "convolution": {
        "tokenizer": "t2t",
        "token_kind": "convolution",
        "kernels": (3, 3),
        "token_width": 8,
        "image_size": (12, 20),
    },
}
POSITIONS: dict[str, dict[str, Any]] = {
    "none": {"position": "none"},
    "rope2d": {"position": "rope2d"},
    "conditional": {"position": "none", "conditional": True},
    **{
        f"{position} at {place}": {"position": position, "position_at": place}
        for position in ("sincos2d", "sinusoid", "learned", "learned2d", "relative")
        for place in ("input", "every", "shared")
        if (position, place) != ("relative", "input")
    },
}
POOLS: dict[str, dict[str, Any]] = {
    "mean": {"pool": "mean"},
    "class": {"pool": "class"},
    "placed class": {"pool": "class", "class_position": True},
    "attention": {"pool": "attention"},
}
PREFIXES: dict[str, dict[str, Any]] = {
    **POOLS,
    **{f"{pool}, registers": {**fields, "registers": 2} for pool, fields in POOLS.items()},
    "class, distillation": {"pool": "class", "distillation": True},
    "placed class, distillation": {"pool": "class", "distillation": True, "class_position": True},
    "placed class, distillation, registers": {
        "pool": "class",
        "distillation": True,
        "class_position": True,
        "registers": 2,
    },
}


def tiny_config(kind: str = "patch", **fields: Any) -> ModelConfig:
    """Two blocks of width 16, at a size that is not square."""
    return ModelConfig(**{"width": 16, "depth": 2, "heads": 2, "outputs": 5, **KINDS[kind], **fields})


def tiny_model(config: ModelConfig, seed: int = 0) -> VisionTransformer:
    """With every weight drawn, so that every weight counts: a fresh model's head is zero, and answers 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # for the directions of a performer, which are no parameters
        model = VisionTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.weight.add_(1)
    return model


def pictures(config: ModelConfig, size: tuple[int, int] | None = None, count: int = 2, seed: int = 1) -> torch.Tensor:
    """Normalised pixels (B, C, H, W)."""
    shape = (count, config.channels, *(size or config.image_size))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
