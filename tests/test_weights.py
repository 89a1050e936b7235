"""Weights of one model into another."""

import dataclasses

import pytest
import torch
from tiny_models import KINDS, pictures, tiny_config, tiny_model

from vitreous.errors import InputError
from vitreous.model.position import resample
from vitreous.model.weights import adapt


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", ["sincos2d", "learned", "learned2d", "rope2d"])
def test_weights_of_an_equal_model_make_it_answer_the_same(kind, position):
    config = tiny_config(kind, position=position)
    giver, taker = tiny_model(config, seed=1), tiny_model(config, seed=2)
    assert adapt(taker, giver.state_dict(), config) == []
    assert torch.equal(taker(pictures(config)), giver(pictures(config)))


def test_a_head_of_other_outputs_keeps_its_fresh_weights_and_is_named():
    config = tiny_config(outputs=5)
    other = dataclasses.replace(config, outputs=3)
    giver, taker = tiny_model(config, seed=1), tiny_model(other, seed=2)
    fresh = taker.get_parameter("head.outputs.weight").detach().clone()
    assert sorted(adapt(taker, giver.state_dict(), config)) == ["head.outputs.bias", "head.outputs.weight"]
    assert torch.equal(taker.get_parameter("head.outputs.weight"), fresh)
    assert torch.equal(taker.features(pictures(config)), giver.features(pictures(config)))


@pytest.mark.parametrize("size", [(24, 48), (20, 24)], ids=["more tokens", "as many tokens, otherwise laid out"])
@pytest.mark.parametrize("pool", [{"pool": "mean"}, {"pool": "class", "class_position": True}])
def test_learned_positions_are_resampled_to_the_grid(size, pool):
    config = tiny_config(position="learned", **pool)  # 3×5 tokens
    giver, taker = tiny_model(config, 1), tiny_model(dataclasses.replace(config, image_size=size), 2)
    assert adapt(taker, giver.state_dict(), config) == []
    name, own = "position.tables.0.table", int(config.class_position)
    expected = resample(giver.get_parameter(name), (3, 5), config.grid(*size), own)
    assert torch.equal(taker.get_parameter(name), expected)
    torch.testing.assert_close(taker(pictures(config, size)), giver(pictures(config, size)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(24, 48), (20, 24)], ids=["more tokens", "as many tokens, otherwise laid out"])
@pytest.mark.parametrize("place", ["every", "shared"])
@pytest.mark.parametrize("position", ["learned", "learned2d", "relative"])
def test_every_learned_table_is_resampled_so_that_the_answers_stay(position, place, size):
    config = tiny_config(position=position, position_at=place, pool="class", registers=1)
    giver, taker = tiny_model(config, 1), tiny_model(dataclasses.replace(config, image_size=size), 2)
    assert adapt(taker, giver.state_dict(), config) == []
    torch.testing.assert_close(taker(pictures(config, size)), giver(pictures(config, size)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"channels": 1}, "tokenizer.projection.weight"),
        ({"depth": 3}, "blocks.2.mlp.expand.weight"),
        ({"depth": 1}, "blocks.1.mlp.expand.weight"),
        ({"position": "learned"}, "position.tables.0.table"),
        ({"pool": "class"}, "prefix"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(fields, name):
    config = tiny_config()
    taker = tiny_model(dataclasses.replace(config, **fields), seed=2)
    before = {key: value.clone() for key, value in taker.state_dict().items()}
    with pytest.raises(InputError) as fault:
        adapt(taker, tiny_model(config, seed=1).state_dict(), config)
    assert name in str(fault.value)
    assert all(torch.equal(value, before[key]) for key, value in taker.state_dict().items())
