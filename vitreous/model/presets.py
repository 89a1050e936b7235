"""The table of models: a name, and what differs from the defaults of `ModelConfig`."""

import dataclasses
import difflib
from typing import Any

from vitreous.errors import InputError
from vitreous.model.config import ModelConfig

# An Image Is Worth 16×16 Words (2010.11929), table 1, with the Ti and S of its follow-ups, and one size for small data.
VIT_SIZES: dict[str, dict[str, Any]] = {
    "xs": {"width": 192, "depth": 6, "heads": 3},
    "ti": {"width": 192, "depth": 12, "heads": 3},
    "s": {"width": 384, "depth": 12, "heads": 6},
    "b": {"width": 768, "depth": 12, "heads": 12},
    "l": {"width": 1024, "depth": 24, "heads": 16},
    "h": {"width": 1280, "depth": 32, "heads": 16},
}
PATCHES = {
    "xs": (1, 2, 4, 8, 16),
    "ti": (8, 16),
    "s": (8, 14, 16, 32),
    "b": (8, 14, 16, 32),
    "l": (14, 16, 32),
    "h": (14,),
}

# Tokens-to-Token ViT (2101.11986), table 1: transformer kind.
T2T_SIZES: dict[str, dict[str, Any]] = {
    "14": {"width": 384, "depth": 14, "heads": 6},
    "19": {"width": 448, "depth": 19, "heads": 7},
    "24": {"width": 512, "depth": 24, "heads": 8},
}
T2T_PAPER: dict[str, Any] = {
    "tokenizer": "t2t",
    "mlp_ratio": 3.0,
    "qkv_bias": False,
    "norm_eps": 1e-5,
    "position": "sinusoid",
    "class_position": True,
    "pool": "class",
}
T2T_SMALL: dict[str, Any] = {**VIT_SIZES["xs"], "tokenizer": "t2t", "token_width": 32, "mlp_ratio": 3.0}


PRESETS: dict[str, ModelConfig] = {
    **{
        f"vit_{size}_{patch}": ModelConfig(
            **values, patch_size=(patch, patch), image_size=(32, 32) if size == "xs" and patch < 16 else (224, 224)
        )
        for size, values in VIT_SIZES.items()
        for patch in PATCHES[size]
    },
    "t2t_vit_xs_4": ModelConfig(**T2T_SMALL, kernels=(3, 3), image_size=(32, 32)),
    "t2t_vit_xs_16": ModelConfig(**T2T_SMALL, kernels=(7, 3, 3)),
    **{f"t2t_vit_t_{name}": ModelConfig(**T2T_PAPER, **values) for name, values in T2T_SIZES.items()},
}


def preset(name: str, **overrides) -> ModelConfig:
    """The config of a named model, with fields replaced: `preset("vit_s_16", outputs=10, image_size=(96, 160))`.

    Raises `InputError` for a name or a field that is not there, with the nearest ones.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "`vitreous models` lists them"
        raise InputError(f"no model is called {name!r}: {hint}")
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    if unknown := sorted(set(overrides) - fields):
        near = difflib.get_close_matches(unknown[0], fields, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected {', '.join(sorted(fields))}"
        raise InputError(f"a model config has no field {unknown[0]!r}: {hint}")
    return dataclasses.replace(PRESETS[name], **overrides)
