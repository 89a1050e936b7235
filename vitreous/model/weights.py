"""Other projects' checkpoints: how they are read, what their names mean here, and the config that their shapes tell.

Files are opened as safetensors, as arrays without pickles, or by torch with `weights_only=True`, and in no other way.
"""

import argparse
import dataclasses
import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitreous.errors import InputError
from vitreous.model.config import ModelConfig, split_stride
from vitreous.model.position import resample, sinusoid
from vitreous.model.vit import VisionTransformer

Tensors = dict[str, Tensor]
TABLE = "position.tables.0.table"
OURS = ("prefix", TABLE)  # names that `prepare` gives
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # keys under which checkpoints keep their weights


@dataclass(frozen=True)
class Format:
    """A family of checkpoints: how it is recognised, what its names mean, and what its shapes do not tell."""

    name: str
    mark: str  # a pattern that one of its keys matches, and none of an earlier family's
    names: tuple[tuple[str, str], ...]  # patterns of names, and what they are here; "" is left out
    defaults: Mapping[str, Any]  # fields of ModelConfig
    prepare: Callable[[Tensors], Tensors] = lambda tensors: tensors  # reshapes and joins, still in its own names


BLOCK = r"blocks\.(\d+)\."
TIMM_NAMES = (
    (rf"^{BLOCK}norm1\.", r"blocks.\1.attention_norm."),
    (rf"^{BLOCK}norm2\.", r"blocks.\1.mlp_norm."),
    (rf"^{BLOCK}attn\.proj\.", r"blocks.\1.attention.projection."),
    (rf"^{BLOCK}attn\.(qkv|q_norm|k_norm)\.", r"blocks.\1.attention.\2."),
    (rf"^{BLOCK}(?:mlp|neuralnet)\.(?:fc1|w12)\.", r"blocks.\1.mlp.expand."),
    (rf"^{BLOCK}(?:mlp|neuralnet)\.(?:fc2|w3)\.", r"blocks.\1.mlp.contract."),
    (rf"^{BLOCK}(?:ls1\.gamma|gamma_1)$", r"blocks.\1.attention_branch.0.factor"),
    (rf"^{BLOCK}(?:ls2\.gamma|gamma_2)$", r"blocks.\1.mlp_branch.0.factor"),
    (r"^patch_embed\.proj\.", "tokenizer.projection."),
    (r"^(?:norm|fc_norm)\.", "norm."),
    (r"^head_dist\.", "head.of_teacher.outputs."),
    (r"^head\.", "head.outputs."),
    (r"^pre_logits(?:\.fc)?\.", "head.hidden."),
    (r"^attn_pool\.latent$", "pool.attention.query"),
    (r"^attn_pool\.(q|kv)\.", r"pool.attention.\1."),
    (r"^attn_pool\.proj\.", "pool.attention.projection."),
    (r"^attn_pool\.norm\.", "pool.attention.mlp_norm."),
    (r"^attn_pool\.mlp\.fc1\.", "pool.attention.mlp.expand."),
    (r"^attn_pool\.mlp\.fc2\.", "pool.attention.mlp.contract."),
    (r"^mask_token$", ""),
)
STAGE = r"tokens_to_token\.(?:attention|transformer)(\d)\."
T2T_NAMES = (
    (rf"^{STAGE}norm1\.", r"tokenizer.transformers.\1.attention_norm."),
    (rf"^{STAGE}norm2\.", r"tokenizer.transformers.\1.mlp_norm."),
    (rf"^{STAGE}attn\.qkv\.", r"tokenizer.transformers.\1.attention.qkv."),
    (rf"^{STAGE}attn\.proj\.", r"tokenizer.transformers.\1.attention.projection."),
    (rf"^{STAGE}kqv\.", r"tokenizer.transformers.\1.kqv."),
    (rf"^{STAGE}proj\.", r"tokenizer.transformers.\1.projection."),
    (rf"^{STAGE}w$", r"tokenizer.transformers.\1.directions"),
    (rf"^{STAGE}(?:mlp|neuralnet)\.(?:0|fc1)\.", r"tokenizer.transformers.\1.mlp.expand."),
    (rf"^{STAGE}(?:mlp|neuralnet)\.(?:2|fc2)\.", r"tokenizer.transformers.\1.mlp.contract."),
    (r"^tokens_to_token\.soft_split(\d)\.", r"tokenizer.convolutions.\1."),
    (r"^tokens_to_token\.project\.", "tokenizer.projection."),
    *TIMM_NAMES,
)
TRANSFORMERS_NAMES = (
    (r"^vit\.layernorm\.", "norm."),
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "tokenizer.projection."),
    (r"^classifier\.", "head.outputs."),
    (r"^vit\.(?:encoder\.)?layers?\.(\d+)\.layernorm_before\.", r"blocks.\1.attention_norm."),
    (r"^vit\.(?:encoder\.)?layers?\.(\d+)\.layernorm_after\.", r"blocks.\1.mlp_norm."),
    (r"^vit\.(?:encoder\.)?layers?\.(\d+)\.attention\.qkv\.", r"blocks.\1.attention.qkv."),
    (r"^vit\.(?:encoder\.)?layers?\.(\d+)\.attention\.(?:o_proj|output\.dense)\.", r"blocks.\1.attention.projection."),
    (r"^vit\.(?:encoder\.)?layers?\.(\d+)\.(?:mlp\.fc1|intermediate\.dense)\.", r"blocks.\1.mlp.expand."),
    (r"^vit\.(?:encoder\.)?layers?\.(\d+)\.(?:mlp\.fc2|output\.dense)\.", r"blocks.\1.mlp.contract."),
    (r"^vit\.pooler\.", ""),
    (r"^vit\.embeddings\.mask_token$", ""),
)
TORCHVISION_NAMES = (
    (r"^conv_proj\.", "tokenizer.projection."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.pre_logits\.", "head.hidden."),
    (r"^heads\.head\.", "head.outputs."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.ln_1\.", r"blocks.\1.attention_norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.ln_2\.", r"blocks.\1.mlp_norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"blocks.\1.attention.qkv."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attention.projection."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.expand."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.contract."),
)
GOOGLE_NAMES = (
    (r"^embedding/", "tokenizer.projection."),
    (r"^Transformer/encoder_norm/", "norm."),
    (r"^pre_logits/", "head.hidden."),
    (r"^head/", "head.outputs."),
    (r"^Transformer/encoderblock_(\d+)/LayerNorm_0/", r"blocks.\1.attention_norm."),
    (r"^Transformer/encoderblock_(\d+)/LayerNorm_2/", r"blocks.\1.mlp_norm."),
    (r"^Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_1/qkv/", r"blocks.\1.attention.qkv."),
    (r"^Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_1/out/", r"blocks.\1.attention.projection."),
    (r"^Transformer/encoderblock_(\d+)/MlpBlock_3/Dense_0/", r"blocks.\1.mlp.expand."),
    (r"^Transformer/encoderblock_(\d+)/MlpBlock_3/Dense_1/", r"blocks.\1.mlp.contract."),
)


def import_weights(
    path: str | Path, format: str = "auto", say: Callable[[str], None] = print, **hints: Any
) -> VisionTransformer:
    """A model from another project's checkpoint: timm, DeiT, DINOv2, transformers (file or folder), torchvision,
    Google's .npz, T2T-ViT's .pth.tar, or the article series' state dict.

    The format is told by the names, the config by the shapes. What they cannot tell is a hint, a field of
    `ModelConfig`: `heads`, `image_size` (height, width), `norm_eps` …; the usual value is assumed, and said, where
    there is one. `image_size` other than the checkpoint's resamples its position table, `channels` adapts the first layer (the
    mean over channels, repeated), `outputs` gives a fresh, zero head.

    Raises:
        InputError: the file cannot be read, no format fits, or names are left over or missing, which are listed.
    """
    tensors, found = read_checkpoint(Path(path))
    kind = _recognise(tensors, format, path)
    hints = {**found, **{k: tuple(v) if isinstance(v, list) else v for k, v in hints.items()}}
    named, unknown = _translate(kind, tensors)
    if unknown:
        raise InputError.listing(f"{path}: names that mean nothing to the format {kind.name}:", unknown)
    if "fc_norm.weight" in tensors:
        hints.setdefault("norm_after_pool", True)
        _class_token_to_register(named)
    config, named = _derive(kind, named, hints, say, path)
    model = VisionTransformer(config)
    own = model.state_dict()
    fresh = {"head.outputs.weight", "head.outputs.bias"} - set(named)
    faults = [f"missing: {name} {tuple(own[name].shape)}" for name in own if name not in named and name not in fresh]
    faults += [f"left over: {name} {tuple(named[name].shape)}" for name in named if name not in own]
    faults += [
        f"shape: {name} is {tuple(named[name].shape)}, expected {tuple(own[name].shape)}"
        for name in named
        if name in own and named[name].shape != own[name].shape
    ]
    if faults:
        raise InputError.listing(f"{path} does not fit the config that was derived from it:", faults)
    for name in fresh & set(own):
        named[name] = torch.zeros_like(own[name])
    model.load_state_dict({name: tensor.float() for name, tensor in named.items()})
    return model.eval()


def read_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a checkpoint by their own names, and hints that lie beside them (a transformers config.json).

    Raises `InputError` for files that cannot be read without running what is in them.
    """
    hints: dict[str, Any] = {}
    if path.is_dir():
        if (path / "config.json").exists():
            hints = _transformers_hints(json.loads((path / "config.json").read_text("utf-8")))
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).exists()]
        if not files:
            raise InputError(f"{path} holds neither model.safetensors nor pytorch_model.bin")
        path = files[0]
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path), hints
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: torch.from_numpy(file[name]) for name in file.files}, hints
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile) as fault:
        raise InputError(f"{path} cannot be read as weights alone: {str(fault).splitlines()[0]}") from None
    except Exception as fault:  # pickle.UnpicklingError and its kin: what the file asks for is not allowed
        raise InputError(f"{path} holds more than weights, and is not opened: {str(fault).splitlines()[0]}") from None
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no weights")
    return tensors, hints


def adapt(model: VisionTransformer, tensors: Tensors, config: ModelConfig) -> list[str]:
    """Loads the weights of a model of `config`; a learned position table is resampled to the grid of `model`.

    Returns the names that keep their fresh weights, because the head has other outputs. Raises `InputError` where
    anything but the head does not fit.
    """
    own = model.state_dict()
    base, grid = config.grid(*config.image_size), model.config.grid(*model.config.image_size)
    for name in [name for name in tensors if re.fullmatch(r"position\.tables\.\d+\.table", name)]:
        if config.position == "learned":
            tensors = {**tensors, name: resample(tensors[name], base, grid, config.positioned_prefix)}
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


def _recognise(tensors: Tensors, name: str, path: str | Path) -> Format:
    if name != "auto":
        for kind in FORMATS:
            if kind.name == name:
                return kind
        raise InputError(f"no format is called {name!r}: expected auto, {', '.join(kind.name for kind in FORMATS)}")
    for kind in FORMATS:
        if any(re.search(kind.mark, key) for key in tensors):
            return kind
    raise InputError.listing(
        f"{path}: the names fit no format; they begin with:",
        list(tensors)[:5],
        f"known are {', '.join(kind.name for kind in FORMATS)}",
    )


def _translate(kind: Format, tensors: Tensors) -> tuple[Tensors, list[str]]:
    """The tensors by our names, and the names that mean nothing."""
    named, unknown = {}, []
    for name, tensor in kind.prepare(dict(tensors)).items():
        if name in OURS:
            named[name] = tensor
            continue
        for pattern, ours in kind.names:
            new, hits = re.subn(pattern, ours, name)
            if hits:
                if ours:
                    named[new] = tensor
                break
        else:
            unknown.append(name)
    return named, unknown


def _derive(
    kind: Format, named: Tensors, hints: dict[str, Any], say: Callable[[str], None], path: str | Path
) -> tuple[ModelConfig, Tensors]:
    """The config that the shapes tell, and the tensors with what was asked for adapted."""
    fields: dict[str, Any] = {**kind.defaults}
    if any(name.startswith("tokenizer.transformers.") for name in named):
        fields |= {"tokenizer": "t2t", "kernels": hints.get("kernels", (7, 3, 3))}
    width = named["norm.weight"].shape[0]
    blocks = {int(match[1]) for name in named if (match := re.match(r"blocks\.(\d+)\.", name))}
    first = "blocks.0."
    expand, contract = named[f"{first}mlp.expand.weight"], named[f"{first}mlp.contract.weight"]
    prefix = named["prefix"].shape[0] if "prefix" in named else 0
    distilled = "head.of_teacher.outputs.weight" in named
    pooled = hints.get("norm_after_pool", False)
    fields |= {
        "width": width,
        "depth": len(blocks),
        "mlp_ratio": contract.shape[1] / width,
        "mlp": "swiglu" if expand.shape[0] == 2 * contract.shape[1] else "gelu",
        "qkv_bias": f"{first}attention.qkv.bias" in named,
        "qk_norm": f"{first}attention.q_norm.weight" in named,
        "layer_scale": 1.0 if f"{first}attention_branch.0.factor" in named else 0.0,
        "pool": "attention" if "pool.attention.query" in named else "class" if prefix and not pooled else "mean",
        "distillation": distilled,
        "registers": prefix if pooled else max(0, prefix - 1 - distilled),
        "head_hidden": named["head.hidden.weight"].shape[0] if "head.hidden.weight" in named else 0,
    }
    if distilled:
        for part in ("weight", "bias"):
            named[f"head.of_class.outputs.{part}"] = named.pop(f"head.outputs.{part}")
    _tokenizer_fields(named, fields)
    _position_fields(named, fields, hints)
    head = named.get("head.of_class.outputs.weight" if distilled else "head.outputs.weight")
    if head is None and "outputs" not in hints:
        raise InputError(f"{path} has no head: say how many outputs it is to get, outputs=N")
    fields["outputs"] = hints.get("outputs", 0) or head.shape[0]
    if head is None or head.shape[0] != fields["outputs"]:
        for name in [name for name in named if re.match(r"head\.(of_\w+\.)?outputs\.", name)]:
            del named[name]
        fields["distillation"] = False if distilled else fields["distillation"]
    if "heads" not in hints and "heads" not in fields:
        fields["heads"] = max(1, width // 64)
        say(f"heads: assumed {fields['heads']}, for a head width of {width // fields['heads']}; heads=N says otherwise")
    if "norm_eps" not in hints:
        say(f"norm_eps: {fields['norm_eps']:g}, as {kind.name} has it")
    channels = hints.get("channels", fields["channels"])
    if channels != fields["channels"]:
        _adapt_channels(named, fields, channels)
    unknown = set(hints) - {field.name for field in dataclasses.fields(ModelConfig)}
    if unknown:
        raise InputError(f"hints that are no fields of a model config: {', '.join(sorted(unknown))}")
    return ModelConfig(**{**fields, **hints}), named


def _tokenizer_fields(named: Tensors, fields: dict[str, Any]):
    projection = named["tokenizer.projection.weight"]
    if fields.get("tokenizer", "patch") == "patch":
        fields |= {"channels": projection.shape[1], "patch_size": tuple(projection.shape[2:])}
        return
    kernels = list(fields["kernels"])
    if "tokenizer.convolutions.0.weight" in named:
        weight = named["tokenizer.convolutions.0.weight"]
        fields |= {"token_kind": "convolution", "channels": weight.shape[1], "token_width": weight.shape[0]}
        return
    stage = "tokenizer.transformers.0."
    inputs, token_width = (
        named[f"{stage}attention_norm.weight"].shape[0],
        named[
            f"{stage}projection.weight"
            if f"{stage}projection.weight" in named
            else f"{stage}attention.projection.weight"
        ].shape[0],
    )
    fields |= {
        "token_kind": "performer" if f"{stage}kqv.weight" in named else "transformer",
        "token_width": token_width,
        "token_mlp_ratio": named[f"{stage}mlp.expand.weight"].shape[0] / token_width,
        "channels": inputs // kernels[0] ** 2,
    }


def _position_fields(named: Tensors, fields: dict[str, Any], hints: dict[str, Any]):
    """Which embedding the table is, the grid it was made for, and the table on the grid that was asked for."""
    table = named.get(TABLE)
    tokens_of_prefix = (fields["pool"] == "class") + fields["distillation"]
    if fields.get("tokenizer") == "t2t":
        kernels = hints.get("kernels", fields["kernels"])
        stride = (math.prod(split_stride(k) for k in kernels),) * 2
    else:
        stride = fields["patch_size"]
    if table is None:
        fields |= {"position": "none"}
        return
    rows = table.shape[0]
    asked = hints.get("image_size")
    probe = ModelConfig(
        **{k: v for k, v in {**fields, **hints}.items() if k in ("tokenizer", "patch_size", "kernels")},
        image_size=asked or (stride[0] * 64, stride[1] * 64),
    )
    grid = probe.grid(*asked) if asked else None
    # With its own places for the prefix, without, or made for a square and to be resampled.
    for own in (tokens_of_prefix, 0):
        if grid and rows - own == grid[0] * grid[1]:
            base = grid
            break
    else:
        own = next((own for own in (tokens_of_prefix, 0) if math.isqrt(rows - own) ** 2 == rows - own), None)
        if own is None:
            raise InputError(
                f"the position table has {rows} rows, which are no square grid: give image_size=(height, width)"
            )
        base = (math.isqrt(rows - own),) * 2
        grid = grid or base
    fields["class_position"] = own > 0
    fields["image_size"] = asked or (base[0] * stride[0], base[1] * stride[1])
    if own and torch.allclose(table, sinusoid(rows, table.shape[1]), atol=1e-4):
        fields["position"] = "sinusoid"
        del named[TABLE]
        return
    fields["position"] = "learned"
    named[TABLE] = resample(table, base, grid, own)


def _class_token_to_register(named: Tensors):
    """A class token beside mean pooling carries no answer: it becomes a register, its position added once for all."""
    if "prefix" in named and TABLE in named:
        own = len(named["prefix"])
        named["prefix"] = named["prefix"] + named[TABLE][:own]
        named[TABLE] = named[TABLE][own:]


def _adapt_channels(named: Tensors, fields: dict[str, Any], channels: int):
    """The first layer for another number of channels: the mean over its channels, repeated, at the same total."""
    if fields.get("tokenizer", "patch") != "patch":
        raise InputError("channels: the tokens of a T2T-ViT cannot be adapted to other channels; leave the hint out")
    name = "tokenizer.projection.weight"
    weight = named[name]
    named[name] = weight.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (weight.shape[1] / channels)
    fields["channels"] = channels


def _join_prefix(tensors: Tensors) -> Tensors:
    """Class token, distillation token and registers as our rows of the prefix; the position table without its batch."""
    names = (
        "cls_token",
        "class_token",
        "cls",
        "vit.embeddings.cls_token",
        "dist_token",
        "reg_token",
        "register_tokens",
    )
    parts = [tensors.pop(name).flatten(0, 1) for name in names if name in tensors]
    if parts:
        tensors["prefix"] = torch.cat(parts)
    for name in (
        "pos_embed",
        "encoder.pos_embedding",
        "vit.embeddings.position_embeddings",
        "Transformer/posembed_input/pos_embedding",
    ):
        if name in tensors:
            tensors[TABLE] = tensors.pop(name)[0]
    return tensors


def _prepare_timm(tensors: Tensors) -> Tensors:
    tensors = {name.replace("blocks.chunk.", "blocks."): tensor for name, tensor in tensors.items()}
    if "attn_pool.latent" in tensors:
        tensors["attn_pool.latent"] = tensors["attn_pool.latent"][0]
    return _join_prefix(tensors)


def _prepare_t2t(tensors: Tensors) -> Tensors:
    """Stages are counted from 1 there, from 0 here."""
    tensors = {re.sub(r"^(?:vit_)?backbone\.", "", name): tensor for name, tensor in tensors.items()}
    counted = re.compile(r"^(tokens_to_token\.(?:attention|transformer))(\d)\.")
    tensors = {counted.sub(lambda m: f"{m[1]}{int(m[2]) - 1}.", name): tensor for name, tensor in tensors.items()}
    return _join_prefix(tensors)


def _prepare_series(tensors: Tensors) -> Tensors:
    """Its patches come from an unfold and a linear layer: the same numbers as a convolution's, channel-major."""
    tensors = _prepare_t2t(tensors)
    if "patch_tokens.project.weight" in tensors:
        weight = tensors.pop("patch_tokens.project.weight")
        side = math.isqrt(weight.shape[1])
        tensors["patch_embed.proj.weight"] = weight.reshape(len(weight), -1, side, side)
        tensors["patch_embed.proj.bias"] = tensors.pop("patch_tokens.project.bias")
    return tensors


def _prepare_transformers(tensors: Tensors) -> Tensors:
    pattern = re.compile(r"^(.*\.attention\.)(?:(?:attention\.)?(query|key|value)|([qkv])_proj)\.(weight|bias)$")
    parts: dict[str, dict[str, Tensor]] = {}
    for name in list(tensors):
        if match := pattern.match(name):
            which = (match[2] or match[3])[0]
            parts.setdefault(f"{match[1]}qkv.{match[4]}", {})[which] = tensors.pop(name)
    for name, three in parts.items():
        tensors[name] = torch.cat([three[which] for which in "qkv"])
    return _join_prefix(tensors)


def _prepare_google(tensors: Tensors) -> Tensors:
    """Flax kernels are (in, out), its heads an axis of their own."""
    attention: dict[str, dict[str, Tensor]] = {}
    for name in list(tensors):
        path, _, leaf = name.rpartition("/")
        tensor = tensors[name]
        if match := re.fullmatch(r"(.*MultiHeadDotProductAttention_1/)(query|key|value)", path):
            flat = tensor.flatten(1).T if leaf == "kernel" else tensor.flatten()
            part = {"kernel": "weight", "bias": "bias"}[leaf]
            attention.setdefault(f"{match[1]}qkv/{part}", {})[match[2]] = flat
            del tensors[name]
        elif leaf == "kernel":
            del tensors[name]
            flat = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.flatten(0, -2).T
            tensors[f"{path}/weight"] = flat
        elif leaf == "scale":
            tensors[f"{path}/weight"] = tensors.pop(name)
    for name, three in attention.items():
        tensors[name] = torch.cat([three[which] for which in ("query", "key", "value")])
    return _join_prefix(tensors)


def _transformers_hints(config: dict[str, Any]) -> dict[str, Any]:
    size = config.get("image_size")
    hints = {
        "heads": config.get("num_attention_heads"),
        "norm_eps": config.get("layer_norm_eps"),
        "image_size": (size, size) if isinstance(size, int) else tuple(size) if size else None,
    }
    return {name: value for name, value in hints.items() if value is not None}


T2T = {"tokenizer": "t2t", "kernels": (7, 3, 3), "norm_eps": 1e-5}
SERIES = {"norm_eps": 1e-5, "value_skip": True, "token_scale": "head"}
FORMATS = (
    Format("series", r"neuralnet\.fc1|^patch_tokens\.", T2T_NAMES, SERIES, _prepare_series),
    Format("t2t", r"^tokens_to_token\.", T2T_NAMES, T2T, _prepare_t2t),
    Format(
        "transformers",
        r"^vit\.(embeddings|encoder|layers)\.",
        TRANSFORMERS_NAMES,
        {"norm_eps": 1e-12},
        _prepare_transformers,
    ),
    Format("torchvision", r"^encoder\.layers\.encoder_layer_0\.", TORCHVISION_NAMES, {"norm_eps": 1e-6}, _join_prefix),
    Format("google", r"^Transformer/encoderblock_0/", GOOGLE_NAMES, {"norm_eps": 1e-6}, _prepare_google),
    Format("timm", r"^blocks\.(chunk\.)?0\.", TIMM_NAMES, {"norm_eps": 1e-6}, _prepare_timm),
)
