"""The namings of other projects' checkpoints: how each is recognised, what its names mean, how it lays tensors out."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitreous.errors import InputError

Tensors = dict[str, Tensor]
Hints = Mapping[str, Any]
TABLE = "position.tables.0.table"
OURS = ("prefix", TABLE)  # names that `prepare` gives


@dataclass(frozen=True)
class Format:
    """A family of checkpoints: how it is recognised, what its names mean, and what its shapes do not tell."""

    name: str
    mark: str  # a pattern that one of its keys matches, and none of an earlier family's
    names: tuple[tuple[str, str], ...]  # patterns of names, and what they are here; "" is left out
    defaults: Mapping[str, Any]  # fields of ModelConfig
    prepare: Callable[[Tensors, Hints], Tensors]  # reshapes and joins, still in its own names
    fields: Callable[[Tensors], dict[str, Any]] = lambda tensors: {}  # fields that only its own shapes tell


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
    (rf"^{BLOCK}attn\.se_layer\.fc\.0\.", r"blocks.\1.excitation.squeeze."),
    (rf"^{BLOCK}attn\.se_layer\.fc\.2\.", r"blocks.\1.excitation.excite."),
    (rf"^{BLOCK}attn\.cheap$", r"blocks.\1.attention.cheap"),
    (rf"^{BLOCK}mlp\.cheap$", r"blocks.\1.mlp.cheap"),
    (rf"^{BLOCK}dense_linear\.", r"blocks.\1.narrow."),
    (rf"^{BLOCK}linear\.", r"blocks.\1.linear."),
    *TIMM_NAMES,
)
GHOST_PARTS = (  # what is one tensor here: pattern, our whole, the parts in order
    (rf"^({BLOCK}attn\.)([qkv])\.(weight|bias)$", r"\1qkv.\4", "qkv"),
    (rf"^({BLOCK}attn\.cheap)_operation_([qkv])\.weight$", r"\1", "qkv"),
    (rf"^({BLOCK}mlp\.cheap)_operation([23])\.weight$", r"\1", "23"),
)
LAYER = r"(?:encoder\.)?layers?\.(\d+)\."
TRANSFORMERS_NAMES = (
    (r"^layernorm\.", "norm."),
    (r"^embeddings\.patch_embeddings\.projection\.", "tokenizer.projection."),
    (r"^classifier\.", "head.outputs."),
    (rf"^{LAYER}layernorm_before\.", r"blocks.\1.attention_norm."),
    (rf"^{LAYER}layernorm_after\.", r"blocks.\1.mlp_norm."),
    (rf"^{LAYER}attention\.qkv\.", r"blocks.\1.attention.qkv."),
    (rf"^{LAYER}attention\.(?:o_proj|output\.dense)\.", r"blocks.\1.attention.projection."),
    (rf"^{LAYER}(?:mlp\.fc1|intermediate\.dense)\.", r"blocks.\1.mlp.expand."),
    (rf"^{LAYER}(?:mlp\.fc2|output\.dense)\.", r"blocks.\1.mlp.contract."),
    (r"^pooler\.", ""),  # a layer of BERT's that no picture was pre-trained through
    (r"^embeddings\.mask_token$", ""),
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


def recognise(tensors: Tensors, name: str, path: object) -> Format:
    """The format of that name, or with "auto" the one that the names of the tensors fit. Raises `InputError`."""
    known = ", ".join(kind.name for kind in FORMATS)
    for kind in FORMATS:
        if kind.name == name or (name == "auto" and any(re.search(kind.mark, key) for key in tensors)):
            return kind
    if name != "auto":
        raise InputError(f"no format is called {name!r}: expected auto, {known}")
    raise InputError.listing(
        f"{path}: the names fit no format; they begin with:", list(tensors)[:5], f"known are {known}"
    )


def translate(kind: Format, tensors: Tensors, hints: Hints) -> tuple[Tensors, list[str]]:
    """The tensors by our names, and the names that mean nothing or the same as another."""
    named, unknown = {}, []
    for name, tensor in kind.prepare(dict(tensors), hints).items():
        ours = _our_name(kind, name)
        if ours is None:
            unknown.append(name)
        elif ours in named:
            unknown.append(f"{name} (another name is {ours} too)")
        elif ours:
            named[ours] = tensor
    return named, unknown


def _our_name(kind: Format, name: str) -> str | None:
    if name in OURS:
        return name
    for pattern, ours in kind.names:
        new, hits = re.subn(pattern, ours, name)
        if hits:
            return new if ours else ""
    return None


def _join_prefix(tensors: Tensors, hints: Hints) -> Tensors:
    """Class token, distillation token and registers as our rows of the prefix; the position table without its batch."""
    tokens = ("cls_token", "class_token", "cls", "embeddings.cls_token", "dist_token", "reg_token", "register_tokens")
    parts = [tensors.pop(name).flatten(0, 1) for name in tokens if name in tensors]
    if parts:
        tensors["prefix"] = torch.cat(parts)
    for name in (
        "pos_embed",
        "encoder.pos_embedding",
        "embeddings.position_embeddings",
        "Transformer/posembed_input/pos_embedding",
    ):
        if name in tensors:
            tensors[TABLE] = tensors.pop(name)[0]
    return tensors


def _join(tensors: Tensors, found: Mapping[str, Mapping[str, Tensor]], parts: Sequence[str]) -> None:
    """Parts that were found apart, such as queries, keys and values, as one tensor each."""
    if lacking := [f"{name} has no {part}" for name, has in found.items() for part in parts if part not in has]:
        raise InputError.listing(f"{', '.join(parts)} are not complete:", lacking)
    tensors.update({name: torch.cat([has[part] for part in parts]) for name, has in found.items()})


def _prepare_timm(tensors: Tensors, hints: Hints) -> Tensors:
    """DINOv2's training writes blocks.CHUNK.N."""
    tensors = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): tensor for name, tensor in tensors.items()}
    if "attn_pool.latent" in tensors:
        tensors["attn_pool.latent"] = tensors["attn_pool.latent"][0]
    return _join_prefix(tensors, hints)


def _prepare_t2t(tensors: Tensors, hints: Hints) -> Tensors:
    """Stages are counted from 1 there, from 0 here. Ghost blocks have q, k and v apart, and a factor a convolution."""
    tensors = {re.sub(r"^(?:vit_)?backbone\.", "", name): tensor for name, tensor in tensors.items()}
    counted = re.compile(r"^(tokens_to_token\.(?:attention|transformer))(\d)\.")
    tensors = {counted.sub(lambda m: f"{m[1]}{int(m[2]) - 1}.", name): tensor for name, tensor in tensors.items()}
    for pattern, whole, parts in GHOST_PARTS:
        found: dict[str, dict[str, Tensor]] = {}
        for name in list(tensors):
            if match := re.match(pattern, name):
                tensor = tensors.pop(name)
                found.setdefault(match.expand(whole), {})[match[3]] = tensor.view(1, -1) if tensor.ndim == 3 else tensor
        _join(tensors, found, parts)
    return _join_prefix(tensors, hints)


def _prepare_series(tensors: Tensors, hints: Hints) -> Tensors:
    """Its patches come from an unfold and a linear layer: the same numbers as a convolution's, channel-major."""
    tensors = _prepare_t2t(tensors, hints)
    if "patch_tokens.project.weight" in tensors:
        weight = tensors.pop("patch_tokens.project.weight")
        inputs = weight.shape[1]
        channels = hints.get("channels", 1 if math.isqrt(inputs) ** 2 == inputs else 3)
        ph, pw = hints.get("patch_size", (math.isqrt(inputs // channels),) * 2)
        if channels * ph * pw != inputs:
            raise InputError(
                f"a patch of {inputs} numbers is not {channels}×{ph}×{pw}: give channels and patch_size=(height, width)"
            )
        tensors["patch_embed.proj.weight"] = weight.reshape(-1, channels, ph, pw)
        if "patch_tokens.project.bias" in tensors:
            tensors["patch_embed.proj.bias"] = tensors.pop("patch_tokens.project.bias")
    return tensors


def _prepare_transformers(tensors: Tensors, hints: Hints) -> Tensors:
    """Names with the `vit.` of a model with a head, or without; q, k and v apart."""
    tensors = {name.removeprefix("vit."): tensor for name, tensor in tensors.items()}
    pattern = re.compile(r"^(.*?\.attention\.)(?:(?:attention\.)?(query|key|value)|([qkv])_proj)\.(weight|bias)$")
    found: dict[str, dict[str, Tensor]] = {}
    for name in list(tensors):
        if match := pattern.match(name):
            which = match[2] or {"q": "query", "k": "key", "v": "value"}[match[3]]
            found.setdefault(f"{match[1]}qkv.{match[4]}", {})[which] = tensors.pop(name)
    _join(tensors, found, ("query", "key", "value"))
    return _join_prefix(tensors, hints)


def _prepare_google(tensors: Tensors, hints: Hints) -> Tensors:
    """Flax kernels are (in, out), its heads an axis of their own."""
    found: dict[str, dict[str, Tensor]] = {}
    for name in list(tensors):
        path, _, leaf = name.rpartition("/")
        tensor = tensors[name]
        if match := re.fullmatch(r"(.*MultiHeadDotProductAttention_1/)(query|key|value)", path):
            flat = tensor.flatten(1).T if leaf == "kernel" else tensor.flatten()
            part = {"kernel": "weight", "bias": "bias"}.get(leaf, leaf)
            found.setdefault(f"{match[1]}qkv/{part}", {})[match[2]] = flat
            del tensors[name]
        elif leaf == "kernel":
            del tensors[name]
            flat = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.flatten(0, -2).T
            tensors[f"{path}/weight"] = flat
        elif leaf == "scale":
            tensors[f"{path}/weight"] = tensors.pop(name)
    _join(tensors, found, ("query", "key", "value"))
    return _join_prefix(tensors, hints)


def _google_heads(tensors: Tensors) -> dict[str, Any]:
    kernel = tensors.get("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel")
    return {} if kernel is None else {"heads": kernel.shape[1]}


def _timm_heads(tensors: Tensors) -> dict[str, Any]:
    norm, table = tensors.get("blocks.0.attn.q_norm.weight"), tensors.get("blocks.0.attn.proj.weight")
    return {} if norm is None or table is None else {"heads": len(table) // len(norm)}


T2T = {"tokenizer": "t2t", "norm_eps": 1e-5}
SERIES = {"norm_eps": 1e-5, "value_skip": True, "token_scale": "head"}
TRANSFORMERS = {"norm_eps": 1e-12}
USUAL = {"norm_eps": 1e-6}
FORMATS = (
    Format("series", r"neuralnet\.fc1|^patch_tokens\.", T2T_NAMES, SERIES, _prepare_series),
    Format("t2t", r"^tokens_to_token\.", T2T_NAMES, T2T, _prepare_t2t),
    Format(
        "transformers",
        r"^(vit\.)?(embeddings\.|encoder\.layer\.|layers\.)",
        TRANSFORMERS_NAMES,
        TRANSFORMERS,
        _prepare_transformers,
    ),
    Format("torchvision", r"^encoder\.layers\.encoder_layer_0\.", TORCHVISION_NAMES, USUAL, _join_prefix),
    Format("google", r"^Transformer/encoderblock_0/", GOOGLE_NAMES, USUAL, _prepare_google, _google_heads),
    Format("timm", r"^blocks\.(\d+\.)?0\.", TIMM_NAMES, USUAL, _prepare_timm, _timm_heads),
)
