"""What is exported computes what the model computes."""

import copy

import pytest
import torch
from tiny_models import KINDS, pictures, tiny_config, tiny_model

from vitreous.calibration import Calibration
from vitreous.data.preprocess import InputSpec
from vitreous.data.targets import Task
from vitreous.infer.graph import export_graphs
from vitreous.infer.surgery import ChannelsLast, ThreeProducts, operate, windows
from vitreous.model.t2t import SoftSplit

VARIANTS = {
    "rope2d": {"position": "rope2d"},
    "normalised queries": {"qk_norm": True},
    "no bias": {"qkv_bias": False},
    "value skip": {"value_skip": True},
    "relative": {"position": "relative", "position_at": "shared"},
    "merging": {"merge": 2},
}


def operated(model):
    model = copy.deepcopy(model)
    operate(model)
    return model


def assert_equal(model, sizes):
    other = operated(model)
    assert any(isinstance(module, ThreeProducts) for module in other.modules())
    with torch.no_grad():
        for size in sizes:
            pixels = pictures(model.config, size)
            expected = model(pixels)
            assert (other(pixels) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_equal_for_every_kind_and_size(kind):
    height, width = KINDS[kind]["image_size"]
    assert_equal(tiny_model(tiny_config(kind)), [(height, width), (3 * height, width), (height, 2 * width)])


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_outputs_are_equal_for_every_attention(fields):
    assert_equal(tiny_model(tiny_config("patch", **fields)), [(12, 40)])


@pytest.mark.parametrize("kind", ["t2t", "performer"])
@pytest.mark.parametrize("kernels", [(7, 3, 3), (5, 2), (3, 4), (9, 3)])
def test_outputs_are_equal_for_every_kernel(kind, kernels):
    config = tiny_config(kind, kernels=kernels, image_size=(64, 96), channels=2)
    assert_equal(tiny_model(config), [(64, 96)])


@pytest.mark.parametrize("kernel", range(1, 12))
@pytest.mark.parametrize("size", [(11, 17), (16, 12), (13, 40)])
def test_windows_hold_what_a_soft_split_gives_channels_last(kernel, size):
    image = torch.randn(2, 3, *size)
    tokens, grid = SoftSplit(kernel)(image)
    found = windows(image.permute(0, 2, 3, 1), kernel)
    assert found.shape[1:3] == grid
    turned = found.unflatten(-1, (-1, 3)).transpose(-1, -2).flatten(-2).flatten(1, 2)
    assert torch.equal(turned, tokens)


@pytest.mark.parametrize("kind", ["t2t", "performer"])
def test_the_model_keeps_its_modules_and_weights(kind):
    model = tiny_model(tiny_config(kind))
    before, pixels = copy.deepcopy(model.state_dict()), pictures(model.config)
    with torch.no_grad():
        expected = model(pixels)
        height, width = model.config.image_size
        spec = InputSpec(3, "uint8", ((height, width),), mean=(0.4,) * 3, std=(0.2,) * 3)
        export_graphs(model, spec, Task("classification", tuple("abcde"), column="class"), Calibration())
        assert torch.equal(model(pixels), expected)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(isinstance(module, ThreeProducts | ChannelsLast) for module in model.modules())


def test_exported_graphs_make_windows_without_indices_and_products_one_by_one():
    config = tiny_config("t2t")
    spec = InputSpec(3, "uint8", (config.image_size,), mean=(0.4,) * 3, std=(0.2,) * 3)
    task = Task("classification", tuple("abcde"), column="class")
    program = export_graphs(tiny_model(config), spec, task, Calibration())[config.image_size]
    names = [str(node.target) for node in program.graph.nodes]
    assert not any("unfold" in name for name in names)
    transformers = len(config.kernels) - 1 + config.depth
    products = transformers * (3 + 1 + 2) + 1 + 1  # q, k, v, projection, MLP; to D; the head
    assert sum("linear" in name for name in names) == products
