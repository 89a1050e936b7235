import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import KINDS, POSITIONS, PREFIXES, pictures, tiny_config, tiny_model

from vitreous.errors import InputError
from vitreous.insight.trace import Layer, Trace, cells_of, trace
from vitreous.model.config import ModelConfig
from vitreous.model.presets import PRESETS
from vitreous.model.vit import VisionTransformer

FAMILIES: dict[str, ModelConfig] = {
    **{kind: tiny_config(kind) for kind in KINDS},
    **{name: tiny_config(**fields) for name, fields in {**POSITIONS, **PREFIXES}.items()},
    "value skip": tiny_config(value_skip=True),
    "layer scale, qk norm, swiglu": tiny_config(layer_scale=0.5, qk_norm=True, mlp="swiglu", norm="rms"),
    "se": tiny_config(ablation="se", heads=2, width=32),
    "ghost": tiny_config(ablation="ghost", heads=2, width=32),
    "dense": dataclasses.replace(PRESETS["t2t_vit_dense"], image_size=(32, 32), outputs=5),
    "series": dataclasses.replace(PRESETS["series_vit"], width=16, depth=2, image_size=(100, 50)),
}


@pytest.fixture(params=FAMILIES)
def model(request) -> VisionTransformer:
    return tiny_model(FAMILIES[request.param])


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.abs().max())))


def parts(model: VisionTransformer, found: Trace) -> list[tuple[Any, Layer]]:
    """The blocks that have attention, each with what was recorded of it."""
    blocks = [(model.blocks[number], layer) for number, layer in found.layers.items()]
    stages = zip(getattr(model.tokenizer, "transformers", ()), (s.layer for s in found.stages), strict=False)
    return [(block, layer) for block, layer in [*blocks, *stages] if layer and "q" in layer.recorded]


def test_outputs_are_those_of_the_model_alone_to_the_bit_with_gradients_and_without(model):
    pixels = pictures(model.config)
    with torch.no_grad():
        assert torch.equal(trace(model, pixels).outputs, model(pixels))
    assert torch.equal(trace(model, pixels, gradients=True).outputs, model(pixels))


def test_attention_times_values_through_the_projection_is_what_attention_gave(model):
    found = trace(model, pictures(model.config))
    assert parts(model, found)
    for block, layer in parts(model, found):
        v = layer.v if layer.v.ndim == 4 else layer.v[:, None]
        assert close(layer.attention @ v, layer.heads)
        assert layer.attention.sum(-1).sub(1).abs().max() <= 1e-6 or block.__class__.__name__ == "TokenPerformer"
        attention = getattr(block, "attention", block)
        whole = layer.projected.sum(1) + attention.projection.bias
        for branch in getattr(block, "attention_branch", ()):
            whole = branch(whole)
        if hasattr(block, "excitation"):
            whole = block.excitation(whole)
        assert close(whole, layer.attended)


def test_the_residual_stream_is_the_sum_of_what_is_recorded():
    model = tiny_model(tiny_config("stem", conditional=True, position="learned", layer_scale=0.5))
    found = trace(model, pictures(model.config))
    before = found.tokens
    for number, layer in found.layers.items():
        if number:
            before = before + layer.position
        assert close(layer.before, before)
        before = layer.before + layer.attended + layer.mlp
        assert close(layer.after, before)
        assert torch.equal(layer.norms, layer.after.norm(dim=-1))


def test_only_what_is_asked_for_is_recorded_of_the_layers_that_are():
    model = tiny_model(tiny_config())
    found = trace(model, pictures(model.config), layers=[-1], what=["q", "norms"])
    assert list(found.layers) == [1]
    assert set(found.layers[1].recorded) == {"q", "norms"}
    with pytest.raises(AttributeError, match="attention was not recorded; recorded: q, norms"):
        _ = found.layers[1].attention


def test_what_follows_from_what_is_kept_is_worked_out_when_it_is_looked_at():
    model = tiny_model(tiny_config("stem", conditional=True))
    layer = trace(model, pictures(model.config)).layers[1]
    late = {"position", "norms", "projected"}
    assert not late & set(layer.recorded)
    assert all(getattr(layer, name) is getattr(layer, name) for name in late)
    assert not any(getattr(layer, name).requires_grad for name in late)
    assert trace(model, pictures(model.config), gradients=True).layers[1].position.requires_grad


def test_all_that_is_traced_lies_where_the_model_is(model):
    """On the meta device, whose tensors are as strict about meeting those of others as a GPU's."""
    found = trace(model.to("meta"), pictures(model.config).to("meta"), memory=1)
    assert max(layer.cell for _, layer in parts(model, found)) > 1
    for _, layer in parts(model, found):
        assert all(getattr(layer, name).is_meta for name in (*layer.recorded, *layer.later))


def test_nothing_of_a_pass_is_kept_twice():
    model = tiny_model(tiny_config(depth=2))
    first, second = trace(model, pictures(model.config)).layers.values()
    assert first.after is second.before
    memory = {name: tensor.untyped_storage().data_ptr() for name, tensor in first.recorded.items()}
    assert memory["q"] == memory["k"] == memory["v"]


def test_nothing_stays_on_the_model_even_where_the_pass_fails():
    model = tiny_model(tiny_config("t2t"))

    def fail(*_: Any):
        raise ArithmeticError

    model.blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(ArithmeticError):
        trace(model, pictures(model.config))
    hooks = [hook for module in model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
    assert len(hooks) == 1  # that which fails
    assert not any("split" in vars(module) for module in model.modules())


def test_recorded_tensors_have_gradients_of_the_outputs_when_asked():
    model = tiny_model(tiny_config("t2t", pool="class"))
    found = trace(model, pictures(model.config), gradients=True)
    wanted = [t for layer in found.layers.values() for t in (layer.before, layer.q, layer.k, layer.v, layer.heads)]
    stage = found.stages[0].layer
    assert stage is not None
    gradients = torch.autograd.grad(found.outputs[:, 0].sum(), [*wanted, stage.heads])
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert not trace(model, pictures(model.config)).layers[0].q.requires_grad


@pytest.mark.parametrize("kind", ["patch", "performer"])
def test_rows_of_attention_are_those_of_the_whole(kind):
    model = tiny_model(tiny_config(kind, position="relative", position_at="shared"))
    pixels = pictures(model.config)
    whole, some = trace(model, pixels), trace(model, pixels, rows=[4, 1])
    for (_, a), (_, b) in zip(parts(model, whole), parts(model, some), strict=True):
        assert torch.allclose(a.attention[:, :, [4, 1]], b.attention, atol=1e-7)


def test_attention_that_would_not_fit_is_pooled_over_squares_of_tokens_and_its_rows_still_sum_to_1():
    model = tiny_model(tiny_config(image_size=(20, 56), pool="class"))  # 5 by 7 tokens
    pixels = pictures(model.config)
    whole = trace(model, pixels).layers[0].attention
    small = trace(model, pixels, memory=2 * 2 * 4 * 13**2).layers[0]  # 1 + 3 by 4 squares
    assert small.cell == 2
    cells = cells_of((5, 7), 1, 2)
    assert cells is not None
    onto = torch.nn.functional.one_hot(cells).float()  # (T, squares)
    expected = (onto / onto.sum(0)).T @ whole @ onto
    assert torch.allclose(small.attention, expected, atol=1e-6)
    assert small.attention.sum(-1).sub(1).abs().max() <= 1e-6


def test_stages_of_a_tokens_to_token_module_hold_its_soft_splits():
    model = tiny_model(tiny_config("t2t", kernels=(7, 3, 3), image_size=(32, 48)))
    pixels = pictures(model.config)
    stages = trace(model, pixels).stages
    assert [stage.grid for stage in stages] == [(8, 12), (4, 6), (2, 3)]
    assert [stage.kernel for stage in stages] == [7, 3, 3]
    assert stages[-1].layer is None
    windows = torch.nn.functional.unfold(pixels, 7, padding=2, stride=4).mT
    assert torch.equal(stages[0].windows, windows)


def test_attention_pooling_shows_its_weights():
    model = tiny_model(tiny_config(pool="attention", registers=2))
    found = trace(model, pictures(model.config))
    assert found.pool is not None
    assert found.pool.shape == (2, 2, found.grid[0] * found.grid[1])
    assert found.pool.sum(-1).sub(1).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None}, "model is a NoneType: expected a VisionTransformer, such as predictor.model"),
        ({"pixels": "a.jpg"}, r"pixels are a str: .*\(batch, 3, height, width\).*vitreous.explain"),
        ({"pixels": np.zeros((12, 40, 3))}, "pixels are a ndarray: expected a tensor"),
        ({"pixels": torch.zeros(12, 40, 3)}, r"\(12, 40, 3\): expected \(batch, 3, height, width\)"),
        ({"pixels": torch.zeros(0, 3, 12, 40)}, "there are no pictures"),
        ({"pixels": torch.zeros(1, 3, 12, 40).byte()}, "pixels are uint8: expected float32, .*predictor.normalised"),
        ({"pixels": torch.zeros(1, 3, 12, 40).double()}, "pixels are float64: expected float32"),
        ({"what": ["queries"]}, "expected a list of some of before, after"),
        ({"what": "q"}, "expected a list"),
        ({"layers": [2]}, "expected 0 to 1, or -2 to -1"),
    ],
)
def test_what_cannot_be_traced_is_refused(options, message):
    given: dict[str, Any] = {"model": tiny_model(tiny_config()), "pixels": pictures(tiny_config()), **options}
    with pytest.raises(InputError, match=message):
        trace(**given)
