"""The table of models: a name, and what differs from the defaults of `ModelConfig`."""

import dataclasses
import difflib
from typing import Any

from vitreous.errors import InputError
from vitreous.model.config import ModelConfig

Fields = dict[str, Any]

# An Image Is Worth 16×16 Words (2010.11929), table 1, with the Ti, S and g of its follow-ups, and two for small data.
SIZES: dict[str, Fields] = {
    "xxs": {"width": 96, "depth": 6, "heads": 3},
    "xs": {"width": 192, "depth": 6, "heads": 3},
    "ti": {"width": 192, "depth": 12, "heads": 3},
    "s": {"width": 384, "depth": 12, "heads": 6},
    "b": {"width": 768, "depth": 12, "heads": 12},
    "l": {"width": 1024, "depth": 24, "heads": 16},
    "h": {"width": 1280, "depth": 32, "heads": 16},
    "g": {"width": 1408, "depth": 40, "heads": 16, "mlp_ratio": 6144 / 1408},
}
PATCHES = {"xxs": (1, 2, 4), "xs": (1, 2, 4, 8, 16)}  # of other sizes: 8, 14, 16 and 32

# ViTs with a convolutional stem for small data (2106.14881 shows what it does; the sizes are ours).
STEMMED: dict[str, Fields] = {
    "xs": {"width": 128, "depth": 4, "heads": 4, "stem": (24, 64, 128)},
    "s": {"width": 192, "depth": 6, "heads": 6, "stem": (32, 96, 192)},
    "m": {"width": 256, "depth": 8, "heads": 8, "stem": (48, 128, 256)},
}

# DeiT (2012.12877), DeiT-III (2204.07118), DINOv2 (2304.07193) and its registers (2309.16588).
DEIT: Fields = {"position": "learned", "class_position": True, "pool": "class"}
DEIT3: Fields = {"position": "learned", "pool": "class", "layer_scale": 1e-4}
DINOV2: Fields = {**DEIT, "image_size": (518, 518), "layer_scale": 1e-5}
DINOV2_G: Fields = {"width": 1536, "depth": 40, "heads": 24, "mlp": "swiglu", "mlp_ratio": 8 / 3}

# Tokens-to-Token ViT (2101.11986), tables 1 and 6: the plain name is the performer, t the transformer.
T2T: Fields = {
    "tokenizer": "t2t",
    "mlp_ratio": 3.0,
    "qkv_bias": False,
    "norm_eps": 1e-5,
    "position": "sinusoid",
    "class_position": True,
    "pool": "class",
}
T2T_SIZES: dict[str, Fields] = {
    "7": {"width": 256, "depth": 7, "heads": 4, "mlp_ratio": 2.0},
    "10": {"width": 256, "depth": 10, "heads": 4, "mlp_ratio": 2.0},
    "12": {"width": 256, "depth": 12, "heads": 4, "mlp_ratio": 2.0},
    "14": {"width": 384, "depth": 14, "heads": 6},
    "19": {"width": 448, "depth": 19, "heads": 7},
    "24": {"width": 512, "depth": 24, "heads": 8},
    "14_wide": {"width": 768, "depth": 4, "heads": 12},
    "14_resnext": {"width": 384, "depth": 14, "heads": 32},
    "14_se": {"width": 384, "depth": 14, "heads": 6, "ablation": "se"},
    "16_ghost": {"width": 384, "depth": 16, "heads": 6, "ablation": "ghost"},
    "dense": {"width": 128, "depth": 19, "heads": 8, "mlp_ratio": 2.0, "ablation": "dense"},
}
T2T_SMALL: Fields = {**SIZES["xs"], "tokenizer": "t2t", "token_width": 32}

# Vision Transformers, Explained: one head, one number, V + proj(A·V) everywhere.
SERIES: Fields = {
    "width": 768,
    "depth": 12,
    "heads": 1,
    "channels": 1,
    "outputs": 1,
    "qkv_bias": False,
    "value_skip": True,
    "token_scale": "head",
    "norm_eps": 1e-5,
    "position": "sinusoid",
    "class_position": True,
    "pool": "class",
}


def _vit(size: str, patch: int, **fields) -> ModelConfig:
    small = size in PATCHES and patch < 16
    return ModelConfig(
        **{"image_size": (32, 32) if small else (224, 224), **SIZES.get(size, {}), **fields}, patch_size=(patch, patch)
    )


def _stemmed(size: str, patch: int) -> ModelConfig:
    first, *widths = STEMMED[size]["stem"]
    steps = min(len(widths), patch.bit_length() - 1)
    stride = patch >> steps
    stem = (first if stride == 1 else 16 * round(first / 12), *widths[-steps:])  # a strided window holds more
    fields = {**STEMMED[size], "conditional": True, "stem": stem, "stem_stride": stride}
    side = 32 if patch < 8 else 160
    return ModelConfig(**fields, tokenizer="stem", image_size=(side, side))


PRESETS: dict[str, ModelConfig] = {
    **{f"vit_{size}_{patch}": _vit(size, patch) for size in SIZES for patch in PATCHES.get(size, (8, 14, 16, 32))},
    **{f"vit_c_{size}_{patch}": _stemmed(size, patch) for size in STEMMED for patch in (2, 4, 8, 16)},
    "t2t_vit_xs_2": ModelConfig(**T2T_SMALL, kernels=(3,), image_size=(32, 32)),
    "t2t_vit_xs_4": ModelConfig(**T2T_SMALL, kernels=(3, 3), image_size=(32, 32)),
    "t2t_vit_xs_16": ModelConfig(**T2T_SMALL, kernels=(7, 3, 3)),
    **{
        f"t2t_vit_{name}": ModelConfig(**{**T2T, **fields}, token_kind="performer")
        for name, fields in T2T_SIZES.items()
    },
    **{f"t2t_vit_t_{name}": ModelConfig(**{**T2T, **T2T_SIZES[name]}) for name in ("14", "19", "24")},
    "t2t_vit_c_14": ModelConfig(**{**T2T, **T2T_SIZES["14"]}, token_kind="convolution"),
    **{f"deit_{size}_16": _vit(size, 16, **DEIT) for size in ("ti", "s", "b")},
    **{f"deit_distilled_{size}_16": _vit(size, 16, **DEIT, distillation=True) for size in ("ti", "s", "b")},
    **{
        f"deit3_{size}_{patch}": _vit(size, patch, **DEIT3)
        for size, patch in (("s", 16), ("b", 16), ("l", 16), ("h", 14))
    },
    **{
        f"dinov2{'_reg' if registers else ''}_{size}_14": _vit(
            size, 14, **DINOV2, registers=registers, **(DINOV2_G if size == "g" else {})
        )
        for registers in (0, 4)
        for size in ("s", "b", "l", "g")
    },
    "series_vit": ModelConfig(**SERIES, image_size=(400, 100), patch_size=(50, 50)),
    "series_t2t_vit": ModelConfig(**SERIES, image_size=(1700, 500), tokenizer="t2t", kernels=(31, 3, 3)),
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


def name_of(config: ModelConfig) -> str:
    """The preset that a config is, whatever its image size, channels and outputs; "" where it is none."""

    def fields(of: ModelConfig) -> Fields:
        return {k: v for k, v in vars(of).items() if k not in ("image_size", "channels", "outputs")}

    return next((name for name, known in PRESETS.items() if fields(known) == fields(config)), "")
