"""Checkpoints in every naming, written here with random weights; the numbers of public ones are in test_parity.py."""

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_models import pictures

from vitreous.errors import InputError
from vitreous.model.formats import FORMATS
from vitreous.model.position import resample
from vitreous.model.vit import VisionTransformer
from vitreous.model.weights import import_weights, usual_heads

Tensors = dict[str, torch.Tensor]
D, DEPTH, HEADS, PATCH, OUTPUTS = 24, 2, 3, 4, 5
HINTS: dict[str, Any] = {"heads": HEADS, "say": lambda line: None}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.3


def linear(name: str, outputs: int, inputs: int) -> Tensors:
    return {f"{name}.weight": drawn(outputs, inputs), f"{name}.bias": drawn(outputs + 1)[1:]}


def norm(name: str, width: int = D) -> Tensors:
    return {f"{name}.weight": 1 + drawn(width), f"{name}.bias": drawn(width + 2)[2:]}


def timm(grid: int = 3, prefix_places: int = 1, channels: int = 3) -> Tensors:
    """A class token, a learned table; as timm and DeiT name them."""
    tensors = {
        "cls_token": drawn(1, 1, D),
        "pos_embed": drawn(1, prefix_places + grid * grid, D),
        "patch_embed.proj.weight": drawn(D, channels, PATCH, PATCH),
        "patch_embed.proj.bias": drawn(D),
        **norm("norm"),
        **linear("head", OUTPUTS, D),
    }
    for n in range(DEPTH):
        block = f"blocks.{n}"
        tensors |= {**norm(f"{block}.norm1"), **norm(f"{block}.norm2")}
        tensors |= {**linear(f"{block}.attn.qkv", 3 * D, D), **linear(f"{block}.attn.proj", D, D)}
        tensors |= {**linear(f"{block}.mlp.fc1", 4 * D, D), **linear(f"{block}.mlp.fc2", D, 4 * D)}
    return {name: tensor + 0.01 * n for n, (name, tensor) in enumerate(tensors.items())}


def without(tensors: Tensors, *starts: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(starts)}


def renamed(tensors: Tensors, **names: str) -> Tensors:
    """Each piece of a name replaced by another, in order."""
    out = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(old.replace("__", "."), new)
        out[name] = tensor
    return out


@pytest.fixture
def written(tmp_path) -> Callable[..., Path]:
    def write(tensors: Tensors, name: str = "model.safetensors") -> Path:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name)
        return tmp_path / name

    return write


def same_answers(model: VisionTransformer, other: VisionTransformer, pixels: torch.Tensor | None = None):
    pixels = pictures(other.config) if pixels is None else pixels
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), other(pixels), rtol=0, atol=1e-5)


def forward(tensors: Tensors, pixels: torch.Tensor, eps: float = 1e-6, prefix: Tensors | None = None) -> torch.Tensor:
    """The tokens before the last norm, written plainly from timm's names; the class token's place is its table's."""
    tokens = F.conv2d(pixels, tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"], PATCH)
    tokens = tokens.flatten(2).mT
    tokens = torch.cat((tensors["cls_token"].expand(len(tokens), -1, -1), tokens), 1) + tensors["pos_embed"]
    if prefix:
        tokens = torch.cat((tokens[:, :1], prefix["registers"].expand(len(tokens), -1, -1), tokens[:, 1:]), 1)

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (D,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    def through(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    for n in range(DEPTH):
        b = f"blocks.{n}"
        q, k, v = through(normed(tokens, f"{b}.norm1"), f"{b}.attn.qkv").unflatten(-1, (3, HEADS, -1)).unbind(2)
        a = ((q.transpose(1, 2) @ k.permute(0, 2, 3, 1)) * (D // HEADS) ** -0.5).softmax(-1) @ v.transpose(1, 2)
        branch = through(a.transpose(1, 2).flatten(2), f"{b}.attn.proj")
        tokens = tokens + branch * tensors.get(f"{b}.ls1.gamma", torch.ones(D))
        hidden = normed(tokens, f"{b}.norm2")
        if f"{b}.mlp.w12.weight" in tensors:
            gate, value = through(hidden, f"{b}.mlp.w12").chunk(2, -1)
            branch = through(F.silu(gate) * value, f"{b}.mlp.w3")
        else:
            branch = through(F.gelu(through(hidden, f"{b}.mlp.fc1")), f"{b}.mlp.fc2")
        tokens = tokens + branch * tensors.get(f"{b}.ls2.gamma", torch.ones(D))
    return tokens


class TestDinov2:
    """Facebook's names: register_tokens, mask_token, ls1.gamma; no head; the giant's SwiGLU."""

    def tensors(self, giant: bool = False) -> Tensors:
        tensors = without(timm(), "head.") | {"mask_token": drawn(1, D), "register_tokens": drawn(1, 4, D)}
        for n in range(DEPTH):
            tensors |= {f"blocks.{n}.ls1.gamma": drawn(D) + 1, f"blocks.{n}.ls2.gamma": drawn(D) - 1}
        if giant:
            tensors = without(tensors, *(f"blocks.{n}.mlp" for n in range(DEPTH)))
            for n in range(DEPTH):
                tensors |= {**linear(f"blocks.{n}.mlp.w12", 64, D), **linear(f"blocks.{n}.mlp.w3", D, 32)}
        return tensors

    @pytest.mark.parametrize("giant", [False, True])
    def test_gives_its_tokens(self, written, giant):
        tensors = self.tensors(giant)
        model = import_weights(written(tensors), outputs=2, **HINTS)
        assert model.config.registers == 4
        assert model.config.mlp == ("swiglu" if giant else "gelu")
        pixels = pictures(model.config)
        with torch.no_grad():
            got = model.encode(pixels)
            expected = forward(tensors, pixels, prefix={"registers": tensors["register_tokens"]})
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)  # numbers up to 100
        assert torch.equal(model(pixels), torch.zeros(2, 2))

    def test_asks_for_the_outputs_of_the_head_that_it_lacks(self, written):
        with pytest.raises(InputError, match=r"has no head: .*outputs=N"):
            import_weights(written(self.tensors()), **HINTS)

    def test_opens_blocks_in_chunks(self, written):
        chunked = {name.replace("blocks.", "blocks.0."): tensor for name, tensor in self.tensors().items()}
        plain = import_weights(written(self.tensors(), "plain.safetensors"), outputs=2, **HINTS)
        model = import_weights(written(chunked), outputs=2, **HINTS)
        assert torch.equal(model.encode(pictures(model.config)), plain.encode(pictures(model.config)))


class TestDeit:
    def test_a_class_token_under_the_usual_names(self, written):
        tensors = timm()
        model = import_weights(written(tensors), **HINTS)
        pixels = pictures(model.config)
        tokens = F.layer_norm(forward(tensors, pixels), (D,), tensors["norm.weight"], tensors["norm.bias"], 1e-6)
        expected = tokens[:, 0] @ tensors["head.weight"].T + tensors["head.bias"]
        torch.testing.assert_close(model(pixels), expected, rtol=0, atol=1e-5)

    def test_deit_3_calls_its_layer_scale_gamma(self, written):
        named_ls = timm(prefix_places=0) | {f"blocks.{n}.ls{i}.gamma": drawn(D) for n in range(DEPTH) for i in (1, 2)}
        named_gamma = {
            name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): tensor
            for name, tensor in named_ls.items()
        }
        assert set(named_gamma) != set(named_ls)
        model = import_weights(written(named_gamma), **HINTS)
        assert model.config.layer_scale > 0
        assert not model.config.class_position
        same_answers(model, import_weights(written(named_ls, "other.safetensors"), **HINTS))

    def test_a_checkpoint_of_its_training_opens_with_the_arguments_beside(self, tmp_path, written):
        args = argparse.Namespace(lr=1e-3, model="deit_tiny", drop=[0.1], eval=False)
        torch.save({"model": timm(), "epoch": 3, "args": args}, tmp_path / "deit.pth")
        model = import_weights(tmp_path / "deit.pth", **HINTS)
        same_answers(model, import_weights(written(timm()), **HINTS))

    @pytest.mark.parametrize("wrapper", ["state_dict_ema", "model_ema", "state_dict", "model"])
    def test_every_wrapper_and_the_prefix_of_data_parallel_are_taken_off(self, tmp_path, written, wrapper):
        parallel = {f"module.{name}": tensor for name, tensor in timm().items()}
        torch.save({wrapper: parallel, "epoch": 3}, tmp_path / "model.pth")
        plain = import_weights(written(timm()), **HINTS)
        same_answers(import_weights(tmp_path / "model.pth", **HINTS), plain)
        same_answers(import_weights(written(parallel, "parallel.safetensors"), **HINTS), plain)

    def test_the_averaged_weights_are_preferred(self, tmp_path):
        other = {name: tensor * 2 for name, tensor in timm().items()}
        torch.save({"model": other, "model_ema": timm()}, tmp_path / "model.pth")
        model = import_weights(tmp_path / "model.pth", **HINTS)
        assert torch.equal(model.get_parameter("head.outputs.bias"), timm()["head.bias"])

    def test_a_distilled_one_has_two_heads_and_both_follow_the_outputs(self, written):
        tensors = timm(prefix_places=2) | {"dist_token": drawn(1, 1, D), **linear("head_dist", OUTPUTS, D)}
        model = import_weights(written(tensors), **HINTS)
        assert model.config.distillation
        assert model.config.class_position
        assert torch.equal(model.get_parameter("head.of_teacher.outputs.weight"), tensors["head_dist.weight"])
        fresh = import_weights(written(tensors), outputs=2, **HINTS)
        pixels = pictures(model.config)
        assert torch.equal(fresh(pixels), torch.zeros(2, 2))
        assert torch.equal(fresh.features(pixels), model.features(pixels))


class Canary:
    """Would run when a pickle that holds it is opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class TestNothingIsRun:
    @pytest.mark.parametrize("name", ["m.pth", "m.pth.tar", "m.bin", "m.safetensors", "m.npz", "m"])
    @pytest.mark.parametrize("how", ["torch", "pickle"])
    def test_a_pickle_of_anything_else_is_refused_by_any_name(self, tmp_path, name, how):
        content = {"model": timm(), "args": Canary(tmp_path / "ran")}
        if how == "torch":
            torch.save(content, tmp_path / name)
        else:
            (tmp_path / name).write_bytes(pickle.dumps(content))
        with pytest.raises(InputError, match=name):
            import_weights(tmp_path / name, **HINTS)
        assert not (tmp_path / "ran").exists()
        assert pickle.loads(pickle.dumps(Canary(tmp_path / "ran"))) is None  # it would have
        assert (tmp_path / "ran").exists()

    def test_another_class_in_the_arguments_is_refused(self, tmp_path):
        args = argparse.Namespace(output=Canary(tmp_path / "ran"))
        torch.save({"model": timm(), "args": args}, tmp_path / "m.pth")
        with pytest.raises(InputError, match="holds more than weights"):
            import_weights(tmp_path / "m.pth", **HINTS)
        assert not (tmp_path / "ran").exists()

    def test_the_leave_given_for_a_namespace_is_taken_back(self, tmp_path):
        torch.save({"model": timm(), "args": argparse.Namespace()}, tmp_path / "m.pth")
        import_weights(tmp_path / "m.pth", **HINTS)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "m.pth", weights_only=True)

    def test_objects_in_an_npz_are_refused(self, tmp_path):
        np.savez(tmp_path / "m.npz", cls=np.array([Canary(tmp_path / "ran")], dtype=object), allow_pickle=True)
        with pytest.raises(InputError, match=r"m\.npz"):
            import_weights(tmp_path / "m.npz", **HINTS)
        assert not (tmp_path / "ran").exists()


def transformers(old: bool, with_head: bool = True) -> Tensors:
    theirs = timm()
    tensors = {
        "vit.embeddings.cls_token": theirs["cls_token"],
        "vit.embeddings.position_embeddings": theirs["pos_embed"],
    }
    places = {
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
    }
    for n in range(DEPTH):
        layer = f"vit.encoder.layer.{n}" if old else f"vit.layers.{n}"
        places |= {
            f"blocks.{n}.norm1": f"{layer}.layernorm_before",
            f"blocks.{n}.norm2": f"{layer}.layernorm_after",
            f"blocks.{n}.attn.proj": f"{layer}.attention.{'output.dense' if old else 'o_proj'}",
            f"blocks.{n}.mlp.fc1": f"{layer}.{'intermediate.dense' if old else 'mlp.fc1'}",
            f"blocks.{n}.mlp.fc2": f"{layer}.{'output.dense' if old else 'mlp.fc2'}",
        }
        for leaf in ("weight", "bias"):
            three = theirs[f"blocks.{n}.attn.qkv.{leaf}"].chunk(3)
            for which, part in zip(("query", "key", "value"), three, strict=True):
                own = f"attention.attention.{which}" if old else f"attention.{which[0]}_proj"
                tensors[f"{layer}.{own}.{leaf}"] = part
    for place, own in places.items():
        tensors |= {f"{own}.{leaf}": theirs[f"{place}.{leaf}"] for leaf in ("weight", "bias")}
    if not with_head:
        tensors = {name.removeprefix("vit."): tensor for name, tensor in without(tensors, "classifier").items()}
        tensors |= linear("pooler.dense", D, D)
    return tensors


class TestTransformers:
    def folder(self, tmp_path: Path, tensors: Tensors, **config: Any) -> Path:
        folder = tmp_path / "vit"
        folder.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
        values = {"num_attention_heads": HEADS, "layer_norm_eps": 1e-12, "image_size": 12, "hidden_act": "gelu"}
        (folder / "config.json").write_text(json.dumps(values | config))
        return folder

    @pytest.mark.parametrize("old", [True, False], ids=["vit.encoder.layer", "vit.layers"])
    def test_a_folder_tells_all_that_is_needed(self, tmp_path, written, old):
        said: list[str] = []
        model = import_weights(self.folder(tmp_path, transformers(old)), say=said.append)
        assert said == []
        assert (model.config.heads, model.config.norm_eps, model.config.image_size) == (HEADS, 1e-12, (12, 12))
        same_answers(model, import_weights(written(timm()), norm_eps=1e-12, **HINTS))

    def test_a_model_without_a_head_has_no_vit_before_its_names(self, tmp_path, written):
        model = import_weights(self.folder(tmp_path, transformers(True, with_head=False)), outputs=3, **HINTS)
        whole = import_weights(written(timm()), norm_eps=1e-12, **HINTS)
        pixels = pictures(whole.config)
        torch.testing.assert_close(model.features(pixels), whole.features(pixels), rtol=0, atol=1e-5)

    def test_hints_win_over_the_folder(self, tmp_path):
        model = import_weights(self.folder(tmp_path, transformers(False)), image_size=[8, 20], heads=1)
        assert (model.config.image_size, model.config.heads) == ((8, 20), 1)

    def test_another_activation_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="hidden_act is 'gelu_new': expected gelu"):
            import_weights(self.folder(tmp_path, transformers(False), hidden_act="gelu_new"))

    def test_a_key_without_its_query_is_listed(self, tmp_path):
        tensors = without(transformers(True), "vit.encoder.layer.1.attention.attention.query.bias")
        with pytest.raises(InputError, match=r"1\.attention\.qkv\.bias has no query"):
            import_weights(self.folder(tmp_path, tensors))

    def test_a_folder_without_weights_says_what_was_looked_for(self, tmp_path):
        with pytest.raises(InputError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
            import_weights(tmp_path)

    def test_a_folder_of_a_pickle_of_weights_opens(self, tmp_path, written):
        torch.save(transformers(True), tmp_path / "pytorch_model.bin")
        same_answers(import_weights(tmp_path, **HINTS), import_weights(written(timm()), norm_eps=1e-12, **HINTS))


def test_torchvision_with_its_hidden_layer(written):
    theirs = timm()
    tensors = {"class_token": theirs["cls_token"], "encoder.pos_embedding": theirs["pos_embed"]}
    tensors |= {f"conv_proj.{leaf}": theirs[f"patch_embed.proj.{leaf}"] for leaf in ("weight", "bias")}
    for leaf in ("weight", "bias"):
        tensors[f"encoder.ln.{leaf}"] = theirs[f"norm.{leaf}"]
        tensors[f"heads.head.{leaf}"] = theirs[f"head.{leaf}"]
        for n in range(DEPTH):
            layer = f"encoder.layers.encoder_layer_{n}"
            tensors[f"{layer}.self_attention.in_proj_{leaf}"] = theirs[f"blocks.{n}.attn.qkv.{leaf}"]
            for own, name in {
                "ln_1": "norm1",
                "ln_2": "norm2",
                "self_attention.out_proj": "attn.proj",
                "mlp.linear_1": "mlp.fc1",
                "mlp.linear_2": "mlp.fc2",
            }.items():
                tensors[f"{layer}.{own}.{leaf}"] = theirs[f"blocks.{n}.{name}.{leaf}"]
    plain = import_weights(written(theirs, "timm.safetensors"), **HINTS)
    same_answers(import_weights(written(tensors), **HINTS), plain)
    older = renamed(tensors, mlp__linear_1="mlp.0", mlp__linear_2="mlp.3")
    same_answers(import_weights(written(older, "older.safetensors"), **HINTS), plain)
    hidden = {**tensors, **linear("heads.pre_logits", 7, D), "heads.head.weight": drawn(OUTPUTS, 7)}
    model = import_weights(written(hidden), **HINTS)
    pixels = pictures(plain.config)
    middle = torch.tanh(
        F.linear(plain.features(pixels), hidden["heads.pre_logits.weight"], hidden["heads.pre_logits.bias"])
    )
    expected = F.linear(middle, hidden["heads.head.weight"], hidden["heads.head.bias"])
    torch.testing.assert_close(model(pixels), expected, rtol=0, atol=1e-5)


def google(hidden: int = 0) -> dict[str, np.ndarray]:
    theirs = timm()
    tensors = {
        "cls": theirs["cls_token"],
        "Transformer/posembed_input/pos_embedding": theirs["pos_embed"],
        "embedding/kernel": theirs["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": theirs["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": theirs["norm.weight"],
        "Transformer/encoder_norm/bias": theirs["norm.bias"],
        "head/kernel": drawn(hidden, OUTPUTS) if hidden else theirs["head.weight"].T,
        "head/bias": theirs["head.bias"],
    }
    if hidden:
        tensors |= {"pre_logits/kernel": drawn(D, hidden), "pre_logits/bias": drawn(hidden)}
    for n in range(DEPTH):
        block, b = f"Transformer/encoderblock_{n}", f"blocks.{n}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        weights, biases = theirs[f"{b}.attn.qkv.weight"].chunk(3), theirs[f"{b}.attn.qkv.bias"].chunk(3)
        for which, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            tensors[f"{attention}/{which}/kernel"] = weight.T.reshape(D, HEADS, -1)
            tensors[f"{attention}/{which}/bias"] = bias.reshape(HEADS, -1)
        tensors[f"{attention}/out/kernel"] = theirs[f"{b}.attn.proj.weight"].T.reshape(HEADS, -1, D)
        tensors[f"{attention}/out/bias"] = theirs[f"{b}.attn.proj.bias"]
        for own, name in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            tensors[f"{block}/{own}/scale"] = theirs[f"{b}.{name}.weight"]
            tensors[f"{block}/{own}/bias"] = theirs[f"{b}.{name}.bias"]
        for own, name in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
            tensors[f"{block}/MlpBlock_3/{own}/kernel"] = theirs[f"{b}.mlp.{name}.weight"].T
            tensors[f"{block}/MlpBlock_3/{own}/bias"] = theirs[f"{b}.mlp.{name}.bias"]
    return {name: tensor.numpy() for name, tensor in tensors.items()}


class TestGoogle:
    def test_heads_are_told_by_its_shapes(self, tmp_path, written):
        np.savez(tmp_path / "vit.npz", **google())  # pyright: ignore[reportArgumentType]
        said: list[str] = []
        model = import_weights(tmp_path / "vit.npz", say=said.append)
        assert model.config.heads == HEADS
        assert not any("heads" in line for line in said)
        same_answers(model, import_weights(written(timm()), **HINTS))

    def test_pre_logits_are_a_hidden_layer(self, tmp_path, written):
        arrays = google(hidden=7)
        np.savez(tmp_path / "vit.npz", **arrays)  # pyright: ignore[reportArgumentType]
        model = import_weights(tmp_path / "vit.npz", **HINTS)
        assert model.config.head_hidden == 7
        plain = import_weights(written(timm()), **HINTS)
        pixels = pictures(plain.config)
        hidden = torch.tanh(
            plain.features(pixels) @ torch.tensor(arrays["pre_logits/kernel"]) + torch.tensor(arrays["pre_logits/bias"])
        )
        expected = hidden @ torch.tensor(arrays["head/kernel"]) + torch.tensor(arrays["head/bias"])
        torch.testing.assert_close(model(pixels), expected, rtol=0, atol=1e-5)


class TestTimm:
    def pool(self) -> Tensors:
        tensors = {"attn_pool.latent": drawn(1, 1, D), **norm("attn_pool.norm")}
        tensors |= {**linear("attn_pool.q", D, D), **linear("attn_pool.kv", 2 * D, D), **linear("attn_pool.proj", D, D)}
        return tensors | {**linear("attn_pool.mlp.fc1", 4 * D, D), **linear("attn_pool.mlp.fc2", D, 4 * D)}

    @pytest.mark.parametrize("class_token", [False, True])
    def test_attention_pooling_reads_the_tokens_of_the_picture(self, written, class_token):
        tensors = timm() | self.pool()
        if not class_token:
            tensors = without(tensors, "cls_token") | {"pos_embed": tensors["pos_embed"][:, 1:]}
        model = import_weights(written(tensors), **HINTS)
        assert (model.config.pool, model.config.registers) == ("attention", int(class_token))
        pixels = pictures(model.config)
        if class_token:
            tokens = forward(tensors, pixels)
            tokens = F.layer_norm(tokens, (D,), tensors["norm.weight"], tensors["norm.bias"], 1e-6)[:, 1:]
        else:
            tokens = model.norm(model.encode(pixels))
        q, k, v = self.qkv(tensors, tokens)
        joined = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[:, 0]
        pooled = self.through(tensors, joined, "attn_pool.proj")
        normed = F.layer_norm(pooled, (D,), tensors["attn_pool.norm.weight"], tensors["attn_pool.norm.bias"], 1e-6)
        hidden = F.gelu(self.through(tensors, normed, "attn_pool.mlp.fc1"))
        expected = self.through(tensors, pooled + self.through(tensors, hidden, "attn_pool.mlp.fc2"), "head")
        torch.testing.assert_close(model(pixels), expected, rtol=0, atol=1e-4)

    def through(self, tensors: Tensors, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def qkv(self, tensors: Tensors, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q = self.through(tensors, tensors["attn_pool.latent"], "attn_pool.q").expand(len(tokens), -1, -1)
        k, v = self.through(tensors, tokens, "attn_pool.kv").chunk(2, -1)
        return tuple(x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))

    @pytest.mark.parametrize("hint", [{}, {"pool": "mean"}], ids=["fc_norm", "norm and a hint"])
    def test_a_class_token_that_is_not_read_becomes_a_register(self, written, hint):
        """Average pooling over the picture; with fc_norm the norm comes after it."""
        tensors = timm()
        stored = (
            tensors
            if hint
            else {f"fc_{name}" if name.startswith("norm.") else name: tensor for name, tensor in tensors.items()}
        )
        model = import_weights(written(stored), **hint, **HINTS)
        assert (model.config.pool, model.config.registers, model.config.class_position) == ("mean", 1, False)
        assert model.config.norm_after_pool == (not hint)
        pixels = pictures(model.config)
        weight, bias = tensors["norm.weight"], tensors["norm.bias"]
        tokens = forward(tensors, pixels)[:, 1:]
        if hint:
            pooled = F.layer_norm(tokens, (D,), weight, bias, 1e-6).mean(1)
        else:
            pooled = F.layer_norm(tokens.mean(1), (D,), weight, bias, 1e-6)
        torch.testing.assert_close(model(pixels), self.through(tensors, pooled, "head"), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("places", ["class token only", "registers too", "none"])
    def test_registers_with_and_without_places(self, written, places):
        registers, count = drawn(1, 2, D), {"class token only": 1, "registers too": 3, "none": 0}[places]
        tensors = timm(prefix_places=count) | {"reg_token": registers}
        model = import_weights(written(tensors), **HINTS)
        assert (model.config.registers, model.config.class_position) == (2, count > 0)
        table = tensors["pos_embed"]
        plain = tensors | {
            "pos_embed": torch.cat((table[:, :1] if count else torch.zeros(1, 1, D), table[:, count:]), 1)
        }
        if count == 3:
            registers = registers + table[:, 1:3]
        pixels = pictures(model.config)
        expected = forward(plain, pixels, prefix={"registers": registers})
        torch.testing.assert_close(model.encode(pixels), expected, rtol=1e-5, atol=1e-5)

    def test_head_width_of_a_query_norm_tells_the_heads(self, written):
        normed = {
            f"blocks.{n}.attn.{which}_norm.{leaf}": drawn(8)
            for n in range(2)
            for which in "qk"
            for leaf in ("weight", "bias")
        }
        model = import_weights(written(timm() | normed), say=lambda line: None)
        assert (model.config.heads, model.config.qk_norm) == (3, True)


class TestT2T:
    def tensors(self) -> Tensors:
        return without(timm(), "patch_embed.") | {
            "tokens_to_token.soft_split0.weight": drawn(6, 3, 7, 7),
            "tokens_to_token.soft_split0.bias": drawn(6),
            "tokens_to_token.soft_split1.weight": drawn(6, 6, 3, 3),
            "tokens_to_token.soft_split1.bias": drawn(6),
            "tokens_to_token.project.weight": drawn(D, 6, 3, 3),
            "tokens_to_token.project.bias": drawn(D),
        }

    def test_convolutions_tell_their_kernels(self, written):
        tensors = self.tensors()
        said: list[str] = []
        model = import_weights(written(tensors), heads=HEADS, say=said.append)
        assert (model.config.token_kind, model.config.kernels, model.config.token_width) == (
            "convolution",
            (7, 3, 3),
            6,
        )
        assert model.config.image_size == (48, 48)
        assert said == ["norm_eps: 1e-05, as t2t has it"]
        image = pictures(model.config)
        expected = image
        for name, stride, padding in (("soft_split0", 4, 2), ("soft_split1", 2, 1), ("project", 2, 1)):
            layer = f"tokens_to_token.{name}"
            expected = F.conv2d(expected, tensors[f"{layer}.weight"], tensors[f"{layer}.bias"], stride, padding)
        tokens, grid = model.tokenizer(image)
        assert grid == (3, 3)
        torch.testing.assert_close(tokens, expected.flatten(2).mT, rtol=0, atol=1e-5)

    def test_other_channels_are_refused(self, written):
        with pytest.raises(InputError, match="cannot be adapted to other channels"):
            import_weights(written(self.tensors()), channels=1, **HINTS)

    def test_kernels_of_soft_splits_are_assumed_aloud_or_given(self):
        file = Path(__file__).parent / "golden" / "article_t2t_vit.safetensors"
        said: list[str] = []
        import_weights(file, heads=1, image_size=(64, 96), say=said.append)
        assert any("kernels: assumed (7, 3, 3)" in line for line in said)
        with pytest.raises(InputError, match="windows of 49 numbers are not made by a kernel of 5"):
            import_weights(file, heads=1, image_size=(64, 96), kernels=(5, 3, 3), say=said.append)


class TestSeries:
    @pytest.mark.parametrize(("channels", "patch"), [(1, (4, 4)), (3, (4, 4)), (3, (2, 6)), (4, (4, 4))])
    def test_flat_patches_become_a_convolution(self, written, channels, patch):
        inputs = channels * patch[0] * patch[1]
        tensors = {f"backbone.{name}": tensor for name, tensor in without(timm(), "patch_embed").items()}
        tensors |= linear("patch_tokens.project", D, inputs)
        hints = (
            {"channels": channels, "patch_size": patch} if (channels, patch) not in ((1, (4, 4)), (3, (4, 4))) else {}
        )
        model = import_weights(written(tensors), **hints, **HINTS)
        assert (model.config.channels, model.config.patch_size) == (channels, patch)
        pixels = pictures(model.config)
        flat = F.unfold(pixels, patch, stride=patch).mT
        weight, bias = tensors["patch_tokens.project.weight"], tensors["patch_tokens.project.bias"]
        torch.testing.assert_close(model.tokenizer(pixels)[0], F.linear(flat, weight, bias), rtol=0, atol=1e-5)

    def test_patches_that_are_not_square_are_asked_for(self, written):
        tensors = without(timm(), "patch_embed") | linear("patch_tokens.project", D, 15)
        with pytest.raises(InputError, match=r"a patch of 15 numbers .*give channels and patch_size"):
            import_weights(written(tensors), **HINTS)


class TestFaults:
    def test_names_that_are_left_over_and_missing_are_listed_together(self, written):
        tensors = without(timm(), "norm.weight", "blocks.0.mlp.fc2.weight") | {
            "rope.freqs": drawn(2),
            "blocks.0.x": drawn(2),
        }
        with pytest.raises(InputError) as fault:
            import_weights(written(tensors), **HINTS)
        for line in ("left over: rope.freqs", "left over: blocks.0.x", "missing: norm.weight"):
            assert line in str(fault.value)
        assert "missing: blocks.0.mlp.contract.weight" in str(fault.value)

    def test_tensors_of_the_derived_model_are_listed_with_their_shapes(self, written):
        tensors = without(timm(), "blocks.1.norm2.bias") | {
            "blocks.1.attn.q_norm.weight": drawn(8),
            "blocks.1.mlp.fc1.weight": drawn(90, D),
        }
        with pytest.raises(InputError) as fault:
            import_weights(written(tensors), **HINTS)
        assert "missing: blocks.1.mlp_norm.bias (24,)" in str(fault.value)
        assert "left over: blocks.1.attention.q_norm.weight (8,)" in str(fault.value)
        assert "shape: blocks.1.mlp.expand.weight is (90, 24), expected (96, 24)" in str(fault.value)

    def test_half_a_head_is_missing_its_other_half(self, written):
        with pytest.raises(InputError, match=r"missing: head\.outputs\.bias"):
            import_weights(written(without(timm(), "head.bias")), **HINTS)

    def test_two_names_for_one_tensor_are_refused(self, written):
        with pytest.raises(InputError, match=r"norm\.weight \(another name is norm\.weight too\)"):
            import_weights(written(timm() | norm("fc_norm")), **HINTS)

    def test_a_hint_that_is_no_field_is_named_before_the_file_is_opened(self, tmp_path):
        with pytest.raises(InputError, match="no fields of a model config: dropout, head"):
            import_weights(tmp_path / "nothing.pth", head=3, dropout=0.1)

    def test_an_unknown_format_lists_the_known_ones(self, written):
        with pytest.raises(InputError) as fault:
            import_weights(written(timm()), format="keras", **HINTS)
        assert all(kind.name in str(fault.value) for kind in FORMATS)

    def test_names_that_fit_no_format_are_shown(self, written):
        with pytest.raises(InputError, match=r"fit no format.*\n.*layer4\.conv"):
            import_weights(written({"layer4.conv": drawn(2)}), **HINTS)

    def test_a_format_can_be_named(self, written):
        assert import_weights(written(timm()), format="timm", **HINTS).config.depth == DEPTH

    @pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.npz", "a.tar"])
    @pytest.mark.parametrize("content", [b"", b"hello, this is a letter", b"PK\x03\x04 not a zip"])
    def test_a_file_that_holds_no_weights_is_named(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            import_weights(tmp_path / name)

    @pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3)], ids=["list", "no tensors", "tensor"])
    def test_a_checkpoint_without_weights_by_name_says_so(self, tmp_path, content):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(InputError, match="holds no weights"):
            import_weights(tmp_path / "a.pth")

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            import_weights(tmp_path / "gone.pth")

    def test_a_table_of_no_square_grid_asks_for_the_size(self, written):
        tensors = timm() | {"pos_embed": drawn(1, 1 + 15, D)}
        with pytest.raises(InputError, match=r"15 rows.*image_size=\(height, width\)"):
            import_weights(written(timm() | {"pos_embed": drawn(1, 1 + 14, D)}), **HINTS)
        assert import_weights(written(tensors), image_size=(12, 20), **HINTS).config.grid(12, 20) == (3, 5)


class TestAdapting:
    def test_what_is_assumed_is_said(self, written):
        said: list[str] = []
        model = import_weights(written(timm()), say=said.append)
        assert model.config.heads == 1
        assert said == [
            "heads: assumed 1, for a head width of 24; heads=N says otherwise",
            "norm_eps: 1e-06, as timm has it",
        ]
        said.clear()
        import_weights(written(timm()), heads=3, norm_eps=1e-6, say=said.append)
        assert said == []

    def test_grey_pictures_get_the_answers_of_grey_pictures_in_colour(self, written):
        colour = import_weights(written(timm()), **HINTS)
        grey = import_weights(written(timm()), channels=1, **HINTS)
        pixels = pictures(grey.config)
        assert pixels.shape[1] == 1
        torch.testing.assert_close(grey(pixels), colour(pixels.repeat(1, 3, 1, 1)), rtol=0, atol=1e-5)

    def test_more_channels_that_are_all_alike_get_the_same_answers_too(self, written):
        colour, many = (import_weights(written(timm()), channels=c, **HINTS) for c in (3, 8))
        pixels = torch.randn(2, 1, 12, 12)
        torch.testing.assert_close(
            many(pixels.expand(-1, 8, -1, -1)), colour(pixels.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5
        )

    def test_other_outputs_give_a_fresh_head_of_zeros_on_the_same_features(self, written):
        whole, fresh = import_weights(written(timm()), **HINTS), import_weights(written(timm()), outputs=2, **HINTS)
        pixels = pictures(whole.config)
        assert torch.equal(fresh(pixels), torch.zeros(2, 2))
        assert torch.equal(fresh.features(pixels), whole.features(pixels))

    def test_as_many_outputs_keep_the_head(self, written):
        model = import_weights(written(timm()), outputs=OUTPUTS, **HINTS)
        assert torch.equal(model.get_parameter("head.outputs.weight"), timm()["head.weight"])

    @pytest.mark.parametrize("places", [0, 1])
    @pytest.mark.parametrize("size", [(20, 8), (12, 24)])
    def test_another_image_size_resamples_the_table(self, written, size, places):
        tensors = timm(prefix_places=places)
        model = import_weights(written(tensors), image_size=size, **HINTS)
        grid = (size[0] // PATCH, size[1] // PATCH)
        expected = resample(tensors["pos_embed"][0], (3, 3), grid, places)
        assert torch.equal(model.get_parameter("position.tables.0.table"), expected)
        whole = import_weights(written(tensors), **HINTS)
        same_answers(model, whole, pictures(model.config))

    @pytest.mark.parametrize(
        ("places", "rows", "size", "hints", "grid", "placed"),
        [
            (1, 3 * 3, (8, 20), {}, (3, 3), True),  # 10 rows are 2×5 places too
            (0, 2 * 5, (8, 20), {"class_position": False}, (2, 5), False),
            (1, 2 * 8, (8, 32), {}, (2, 8), True),  # and no 4×4
            (0, 4 * 4, (12, 20), {"class_position": False}, (4, 4), False),  # and no 3×5 with a class token
        ],
    )
    def test_a_table_that_can_be_read_in_two_ways_is_read_aloud(self, written, places, rows, size, hints, grid, placed):
        table = drawn(1, places + rows, D)
        said: list[str] = []
        model = import_weights(
            written(timm() | {"pos_embed": table}),
            image_size=size,
            **hints,
            heads=HEADS,
            norm_eps=1e-6,
            say=said.append,
        )
        assert model.config.class_position == placed
        expected = resample(table[0], grid, model.config.grid(*size), places)
        assert torch.equal(model.get_parameter("position.tables.0.table"), expected)
        assert bool(said) == (not hints)
        assert all("says otherwise" in line for line in said)

    def test_a_size_that_its_patches_do_not_divide_says_which_would(self, written):
        with pytest.raises(InputError, match="height 12 or 16 would"):
            import_weights(written(timm()), image_size=(13, 12), **HINTS)

    def test_half_precision_becomes_single(self, written):
        model = import_weights(written({name: tensor.half() for name, tensor in timm().items()}), **HINTS)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("shapes", "heads"),
    [({"width": 1280, "depth": 32}, 16), ({"width": 1408, "depth": 40}, 16), ({"width": 128, "depth": 5}, 2)],
)
def test_heads_that_are_not_said_are_those_of_the_published_model_or_one_for_64_columns(shapes, heads):
    assert usual_heads(shapes) == heads
