"""Other projects' checkpoints: how they are read, and the config that shapes tell; weights of one model in another.

Files are opened as safetensors, as arrays without pickles, or by torch with `weights_only=True`, and in no other way;
each is looked at first, at a bounded cost, so that none takes more memory than it has bytes.
"""

import argparse
import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.errors import InputError, first_line
from vitreous.model.config import ModelConfig, split_stride
from vitreous.model.formats import TABLE, Format, Tensors, recognise, translate
from vitreous.model.position import Grid, resample, sinusoid
from vitreous.model.presets import PRESETS
from vitreous.model.vit import VisionTransformer
from vitreous.strict import check_memory, check_torch_file, open_npz, read_json, read_safetensors

MOST_SIDE = 2_048  # pixels that a file beside the weights may ask to resample their positions for
UNPACKED = 4.0  # how many times its size an .npz of weights may unpack to: such numbers hardly pack
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # keys under which checkpoints keep their weights
ABLATIONS = {"se": "excitation.squeeze.weight", "ghost": "mlp.cheap", "dense": "narrow.weight"}  # what tells them
LAST_LAYER = re.compile(r"head\.(of_\w+\.)?outputs\.(weight|bias)")  # the tensors that follow from the outputs


def import_weights(
    path: str | Path, format: str = "auto", say: Callable[[str], None] = print, **hints: Any
) -> VisionTransformer:
    """A model from another project's checkpoint: timm, DeiT, DINOv2, transformers (file or folder), torchvision,
    Google's .npz, T2T-ViT's .pth.tar, or the article series' state dict.

    The format is told by the names, the config by the shapes. What they cannot tell is a hint, a field of
    `ModelConfig`: `heads`, `image_size` (height, width), `norm_eps` …; the usual value is assumed, and said, where
    there is one. `image_size` other than the checkpoint's resamples its position table, `channels` adapts the first
    layer (the mean over channels, repeated), `outputs` gives a fresh, zero head.

    Raises:
        InputError: the file cannot be read, no format fits, or names are left over or missing, which are listed.
    """
    if unknown := sorted(set(hints) - {field.name for field in dataclasses.fields(ModelConfig)}):
        raise InputError(f"hints that are no fields of a model config: {', '.join(unknown)}")
    tensors, found = read_checkpoint(Path(path))
    hints = {**found, **{name: tuple(v) if isinstance(v, list) else v for name, v in hints.items()}}
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    kind = recognise(tensors, format, path)
    named, unknown = translate(kind, tensors, hints)
    if faults := [f"left over: {name}" for name in unknown] + [f"missing: {name}" for name in _lacking(named)]:
        raise InputError.listing(f"{path}: names that do not fit the format {kind.name}:", faults)
    if "fc_norm.weight" in tensors:
        hints.setdefault("norm_after_pool", True)
    config, named = _derive(kind, named, {**kind.defaults, **kind.fields(tensors)}, hints, say, path)
    first = _meta(dataclasses.replace(config, depth=1))  # where a block does not fit, hundreds of them need no look
    if faults := _misshapen({name: first[name] for name in first if name.startswith("blocks.0.")}, named):
        raise InputError.listing(f"{path} does not fit the config that was derived from it:", faults)
    own = _meta(config)  # what the shapes derive may be large: no memory is taken before all of them fit
    fresh = {name for name in own if LAST_LAYER.fullmatch(name)} if not any(map(LAST_LAYER.fullmatch, named)) else set()
    faults = [f"missing: {name} {tuple(own[name].shape)}" for name in own if name not in named and name not in fresh]
    faults += [f"left over: {name} {tuple(named[name].shape)}" for name in named if name not in own]
    faults += _misshapen(own, named)
    if faults:
        raise InputError.listing(f"{path} does not fit the config that was derived from it:", faults)
    weights = {name: named[name] if name in named else torch.zeros(own[name].shape) for name in own}
    model = VisionTransformer(config)
    model.load_state_dict(weights)
    return model.eval()


def _meta(config: ModelConfig) -> Tensors:
    """The tensors of a model, on the meta device."""
    with torch.device("meta"):
        return VisionTransformer(config).state_dict()


def _misshapen(own: Tensors, named: Tensors) -> list[str]:
    return [
        f"shape: {name} is {tuple(named[name].shape)}, expected {tuple(own[name].shape)}"
        for name in named
        if name in own and named[name].shape != own[name].shape
    ]


def read_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a checkpoint by their own names, and hints that lie beside them (a transformers config.json).

    Raises `InputError` for files that cannot be read without running what is in them.
    """
    hints: dict[str, Any] = {}
    if path.is_dir():
        if (path / "config.json").exists():
            hints = _transformers_hints(path / "config.json")
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).exists()]
        if not files:
            raise InputError(f"{path} holds neither model.safetensors nor pytorch_model.bin")
        path = files[0]
    if not path.exists():
        raise InputError(f"{path} does not exist")
    try:
        content = _open(path)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, EOFError, KeyError) as fault:
        raise InputError(f"{path} cannot be read as weights alone: {first_line(fault)}") from None
    except Exception as fault:  # pickle.UnpicklingError and its kin: what the file asks for is not allowed
        raise InputError(f"{path} holds more than weights, and is not opened: {first_line(fault)}") from None
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    found = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name).removeprefix("module."): value for name, value in found if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no weights")
    check_memory((tensor.numel() * tensor.element_size() for tensor in tensors.values()), path)
    return tensors, hints


def adapt(model: VisionTransformer, tensors: Tensors, config: ModelConfig) -> list[str]:
    """Loads the weights of a model of `config`; learned positions are resampled to the grid of `model`.

    Returns the names that keep their fresh weights, because the head has other outputs. Raises `InputError` where
    anything but the head does not fit.
    """
    own = model.state_dict()
    base, grid = config.grid(*config.image_size), model.config.grid(*model.config.image_size)
    tensors = {name: _regrid(config, name, tensor, base, grid) for name, tensor in tensors.items()}
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


def _regrid(config: ModelConfig, name: str, tensor: Tensor, base: Grid, grid: Grid) -> Tensor:
    """A tensor of a learned position embedding made for the grid `base`, for another grid; any other as it is."""
    match = re.fullmatch(r"position\.tables\.\d+\.(table|rows|columns)", name)
    if match is None:
        return tensor
    if match[1] != "table":
        axis = ("rows", "columns").index(match[1])
        return resample(tensor, (base[axis], 1), (grid[axis], 1))
    if config.position == "relative":
        offsets, wanted = ((2 * gh - 1, 2 * gw - 1) for gh, gw in (base, grid))
        return resample(tensor, offsets, wanted)
    return resample(tensor, base, grid, config.positioned_prefix)


def _open(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if path.suffix == ".npz":
        with open_npz(path, UNPACKED) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    check_torch_file(path)
    with torch.serialization.safe_globals([argparse.Namespace]):  # old checkpoints hold the arguments of their run
        return torch.load(path, map_location="cpu", weights_only=True)


def usual_heads(fields: dict[str, Any]) -> int:
    """Those of the preset with these shapes, else one for 64 columns."""
    names = ("tokenizer", "width", "depth", "ablation")
    default = ModelConfig()
    for config in PRESETS.values():
        if all(getattr(config, name) == fields.get(name, getattr(default, name)) for name in names):
            return config.heads
    return max(1, fields["width"] // 64)


def _lacking(named: Tensors) -> list[str]:
    """Tensors that the config is derived from and that are not there, by our names."""
    wanted = ["norm.weight", "tokenizer.projection.weight"]
    wanted += [f"blocks.0.mlp.{layer}.weight" for layer in ("expand", "contract")]
    if any(name.startswith("tokenizer.transformers.") for name in named):
        wanted += [f"tokenizer.transformers.0.{layer}.weight" for layer in ("attention_norm", "mlp_norm", "mlp.expand")]
    if "head.of_teacher.outputs.weight" in named:
        wanted += ["head.outputs.weight", "head.outputs.bias"]
    return [name for name in wanted if name not in named]


def _derive(
    kind: Format,
    named: Tensors,
    fields: dict[str, Any],
    hints: dict[str, Any],
    say: Callable[[str], None],
    path: str | Path,
) -> tuple[ModelConfig, Tensors]:
    """The config that the shapes tell, and the tensors with what was asked for adapted."""
    width = named["tokenizer.projection.weight"].shape[0]
    blocks = {int(match[1]) for name in named if (match := re.match(r"blocks\.(\d+)\.(?!linear\.)", name))}
    first = "blocks.0."
    expand, contract = named[f"{first}mlp.expand.weight"], named[f"{first}mlp.contract.weight"]
    prefix = named["prefix"].shape[0] if "prefix" in named else 0
    distilled = "head.of_teacher.outputs.weight" in named
    usual_pool = "mean" if hints.get("norm_after_pool") or not prefix else "class"
    pool = hints.get("pool", "attention" if "pool.attention.query" in named else usual_pool)
    fields |= {
        "width": width,
        "depth": len(blocks),
        "mlp_ratio": contract.shape[1] / width,
        "mlp": "swiglu" if expand.shape[0] == 2 * contract.shape[1] else "gelu",
        "qkv_bias": f"{first}attention.qkv.bias" in named,
        "qk_norm": f"{first}attention.q_norm.weight" in named,
        "ablation": next((kind for kind, part in ABLATIONS.items() if f"{first}{part}" in named), ""),
        "layer_scale": 1.0 if f"{first}attention_branch.0.factor" in named else 0.0,
        "pool": pool,
        "distillation": distilled,
        # a class token that the head does not read carries no answer: it is a register
        "registers": max(0, prefix - (pool == "class") - distilled),
        "head_hidden": named["head.hidden.weight"].shape[0] if "head.hidden.weight" in named else 0,
    }
    if distilled:
        for part in ("weight", "bias"):
            named[f"head.of_class.outputs.{part}"] = named.pop(f"head.outputs.{part}")
    _tokenizer_fields(named, fields, hints, say)
    _position_fields(named, fields, hints, say)
    head = named.get("head.of_class.outputs.weight" if distilled else "head.outputs.weight")
    if head is None and "outputs" not in hints:
        raise InputError(f"{path} has no head: say how many outputs it is to get, outputs=N")
    fields["outputs"] = hints["outputs"] if head is None else hints.get("outputs", head.shape[0])
    if head is not None and head.shape[0] != fields["outputs"]:
        for name in [name for name in named if LAST_LAYER.fullmatch(name)]:
            del named[name]
    if "heads" not in hints and "heads" not in fields:
        fields["heads"] = usual_heads(fields)
        say(f"heads: assumed {fields['heads']}, for a head width of {width // fields['heads']}; heads=N says otherwise")
    if "norm_eps" not in hints:
        say(f"norm_eps: {fields['norm_eps']:g}, as {kind.name} has it")
    channels = hints.get("channels", fields["channels"])
    if channels != fields["channels"]:
        _adapt_channels(named, fields, channels)
    return ModelConfig(**{**fields, **hints}), named


def _tokenizer_fields(named: Tensors, fields: dict[str, Any], hints: dict[str, Any], say: Callable[[str], None]):
    projection = named["tokenizer.projection.weight"]
    stage = "tokenizer.transformers.0."
    if "tokenizer.convolutions.0.weight" in named:
        layers = [named[name] for name in sorted(named) if re.fullmatch(r"tokenizer\.convolutions\.\d\.weight", name)]
        fields |= {
            "tokenizer": "t2t",
            "token_kind": "convolution",
            "kernels": tuple(layer.shape[2] for layer in (*layers, projection)),
            "channels": layers[0].shape[1],
            "token_width": layers[0].shape[0],
        }
    elif f"{stage}attention_norm.weight" in named:
        if "kernels" not in hints:
            say("kernels: assumed (7, 3, 3); kernels=(…) says otherwise")
        kernels = fields["kernels"] = hints.get("kernels", (7, 3, 3))
        inputs, token_width = (named[f"{stage}{norm}.weight"].shape[0] for norm in ("attention_norm", "mlp_norm"))
        if inputs % kernels[0] ** 2:
            raise InputError(f"windows of {inputs} numbers are not made by a kernel of {kernels[0]}: give kernels=(…)")
        fields |= {
            "tokenizer": "t2t",
            "token_kind": "performer" if f"{stage}kqv.weight" in named else "transformer",
            "token_width": token_width,
            "token_mlp_ratio": named[f"{stage}mlp.expand.weight"].shape[0] / token_width,
            "channels": inputs // kernels[0] ** 2,
        }
    else:
        fields |= {"tokenizer": "patch", "channels": projection.shape[1], "patch_size": tuple(projection.shape[2:])}


def _position_fields(named: Tensors, fields: dict[str, Any], hints: dict[str, Any], say: Callable[[str], None]):
    """Which embedding the table is, the grid it was made for, and the table on the grid that was asked for.

    Rows of prefix tokens that have no position here (registers) are added to those tokens, once for all.
    """
    table, asked = named.get(TABLE), hints.get("image_size")
    if table is None:
        fields |= {"position": "none"}
        return
    shape = {name: {**fields, **hints}[name] for name in ("tokenizer", "patch_size", "kernels") if name in fields}
    if shape["tokenizer"] == "t2t":
        stride = (math.prod(split_stride(kernel) for kernel in shape["kernels"]),) * 2
    else:
        stride = shape["patch_size"]
    rows, prefix = table.shape[0], len(named.get("prefix", ()))
    placed = (fields["pool"] == "class") + fields["distillation"]  # that can have a position of their own
    grid = ModelConfig(**shape, image_size=asked).grid(*asked) if asked else None
    # With places for class and distillation token, for every prefix token, for none.
    choices = [own for own in dict.fromkeys((placed, prefix, 0)) if rows > own]
    if "class_position" in hints:
        choices = [own for own in choices if (own > 0) == hints["class_position"]]
    readings: list[tuple[int, Grid]] = []
    for own in choices:
        side = math.isqrt(rows - own)
        grids: list[Grid] = [grid, (side, side)] if grid else [(side, side)]
        readings += [(own, base) for base in dict.fromkeys(grids) if base[0] * base[1] == rows - own]
    if not readings:
        raise InputError(
            f"the position table has {rows} rows, which are no square grid: give image_size=(height, width)"
        )
    (own, base), *others = readings
    if others:
        other_own, other = others[0]
        say(
            f"position table: {rows} rows taken as {base[0]}×{base[1]} places and {own} of prefix tokens, not "
            f"{other[0]}×{other[1]} and {other_own}; class_position=… or leaving image_size out says otherwise"
        )
    if own > placed:
        named["prefix"] = torch.cat((named["prefix"][:placed], named["prefix"][placed:] + table[placed:own]))
        table = torch.cat((table[:placed], table[own:]))
        own = placed
    fields["class_position"] = own > 0
    fields["image_size"] = asked or (base[0] * stride[0], base[1] * stride[1])
    if table.shape[1] % 2 == 0 and torch.allclose(table, sinusoid(*table.shape), atol=1e-4):
        fields["position"] = "sinusoid"
        del named[TABLE]
        return
    fields["position"] = "learned"
    named[TABLE] = resample(table, base, grid or base, own)


def _adapt_channels(named: Tensors, fields: dict[str, Any], channels: int):
    """The first layer for another number of channels: the mean over its channels, repeated, at the same total."""
    if fields["tokenizer"] != "patch":
        raise InputError("channels: the tokens of a T2T-ViT cannot be adapted to other channels; leave the hint out")
    name = "tokenizer.projection.weight"
    weight = named[name]
    named[name] = weight.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (weight.shape[1] / channels)
    fields["channels"] = channels


def _transformers_hints(file: Path) -> dict[str, Any]:
    """What a transformers config.json tells of a model. Raises `InputError` for an activation that is not ours."""
    config = read_json(file)
    if config.get("hidden_act", "gelu") != "gelu":
        raise InputError(f"{file}: hidden_act is {config['hidden_act']!r}: expected gelu")
    size = config.get("image_size")
    sides = size if isinstance(size, list) else [size]
    if any(isinstance(side, int) and side > MOST_SIDE for side in sides):
        raise InputError(f"{file}: image_size is {size}: expected at most {MOST_SIDE:,}; --image-size asks for more")
    hints = {
        "heads": config.get("num_attention_heads"),
        "norm_eps": config.get("layer_norm_eps"),
        "image_size": (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list) else None,
    }
    return {name: value for name, value in hints.items() if value is not None}
