from typing import Any

import pytest
import torch
from test_trace import FAMILIES, close
from tiny_models import pictures, tiny_config, tiny_model

from vitreous.errors import InputError
from vitreous.insight.ledger import ledger, lens
from vitreous.model.config import ModelConfig

LINEAR: dict[str, ModelConfig] = {
    **{name: config for name, config in FAMILIES.items() if config.ablation != "dense"},
    "norm after pool": tiny_config(norm_after_pool=True),
    "norm after pool by attention": tiny_config(norm_after_pool=True, pool="attention", norm="rms"),
    "hidden layer in the head": tiny_config(head_hidden=8),
    "distilled, hidden": tiny_config(pool="class", distillation=True, head_hidden=8),
}


@pytest.mark.parametrize("name", LINEAR)
def test_entries_sum_to_the_score(name):
    model = tiny_model(LINEAR[name])
    pixels = pictures(model.config)
    outputs = model(pixels).detach()
    for target, score in ((0, outputs[:, 0]), (None, outputs.amax(1))):
        found = ledger(model, pixels, target)
        assert len(found.names) == found.values.shape[1] == found.tokens.shape[1]
        assert close(found.score, score)
        assert close(found.values.sum(1), score, 1e-4)
        assert close(found.tokens.sum(2)[:, :-1], found.values[:, :-1])


def test_the_difference_of_two_outputs_is_the_difference_of_their_ledgers():
    model = tiny_model(tiny_config())
    pixels = pictures(model.config)
    first, second = ledger(model, pixels, 0), ledger(model, pixels, 3)
    assert close(ledger(model, pixels, (0, 3)).values, first.values - second.values)


def test_a_head_that_writes_nothing_has_no_entry_but_0_and_the_others_have_theirs():
    model = tiny_model(tiny_config())
    block: Any = model.blocks[1]
    with torch.no_grad():
        block.attention.projection.weight[:, :8] = 0  # the columns that the first head is read by
    found = ledger(model, pictures(model.config), 0)
    zero = [name for name, value in zip(found.names, found.values[0], strict=True) if value == 0]
    assert zero == ["head 1.0"]


@pytest.mark.parametrize("name", LINEAR)
def test_the_lens_ends_with_the_answer(name):
    model = tiny_model(LINEAR[name])
    pixels = pictures(model.config)
    found = lens(model, pixels)
    assert found.shape[:2] == (len(pixels), len(model.blocks) + 1)
    assert close(found[:, -1], model(pixels).detach())
    assert not close(found[:, 0], found[:, -1], 1e-2)


def test_dense_blocks_and_outputs_that_are_not_there_are_refused():
    dense, plain = tiny_model(FAMILIES["dense"]), tiny_model(tiny_config())
    with pytest.raises(InputError, match="no residual stream"):
        ledger(dense, pictures(dense.config))
    with pytest.raises(InputError, match="change the width"):
        lens(dense, pictures(dense.config))
    for target in (5, -1, (0, 7)):
        with pytest.raises(InputError, match="expected an output, 0 to 4"):
            ledger(plain, pictures(plain.config), target)


@pytest.mark.parametrize("account", [ledger, lens])
def test_no_model_and_no_pixels_are_refused(account):
    model = tiny_model(tiny_config())
    for given, message in (
        ((None, pictures(model.config)), "model is a NoneType"),
        ((model, "a.jpg"), "pixels are a str"),
    ):
        with pytest.raises(InputError, match=message):
            account(*given)
