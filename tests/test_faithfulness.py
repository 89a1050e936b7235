from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor

from vitreous.errors import InputError
from vitreous.insight.attribution import Attribution
from vitreous.insight.faithfulness import (
    Faithfulness,
    edges,
    faithfulness,
    interval,
    randomisation,
    spearman,
)
from vitreous.model.config import ModelConfig
from vitreous.model.vit import VisionTransformer

GRID = (3, 5)  # of tiny_models' patches: 4×8 pixels on 12×40
N = 15


class OneCell(VisionTransformer):
    """Output 0 is the mean of one cell's pixels; output 1 its opposite."""

    def __init__(self, cell: tuple[int, int] = (0, 0)):
        super().__init__(tiny_models.tiny_config(outputs=2))
        self.cell = cell

    def forward(self, pixels: Tensor) -> Tensor:
        rows, columns = (slice(i * s, i * s + s) for i, s in zip(self.cell, self.config.patch_size, strict=True))
        value = pixels[..., rows, columns].mean((1, 2, 3))
        return torch.stack((value, -value), 1)


class Remainder(VisionTransformer):
    """Its output is the mean of all pixels: of white pictures, the share that is not removed."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean((1, 2, 3))[:, None]


def white(count: int, size: tuple[int, int] = (12, 40)) -> Tensor:
    return torch.ones(count, 3, *size)


def pointing(cell: tuple[int, int], count: int) -> Tensor:
    maps = torch.zeros(count, *GRID)
    maps[:, *cell] = 1
    return maps


def drawn(count: int) -> Tensor:
    return torch.randn(count, *GRID, generator=torch.Generator().manual_seed(0))


def as_attribution(tokens: Tensor) -> Attribution:
    return Attribution("test", tokens, torch.zeros(len(tokens), 12, 40), torch.zeros(len(tokens)))


def score_of_number(model: VisionTransformer, pixels: Tensor, maps: dict[str, Tensor], **options: Any):
    options = {"target": 0, "kind": "regression", "fills": ("mean",), "steps": N, **options}
    return faithfulness(model, pixels, maps, **options)


def test_the_map_that_points_at_the_one_cell_read_has_the_best_score_and_its_opposite_the_worst():
    cell = (1, 3)
    found = score_of_number(OneCell(cell), white(2), {"true": pointing(cell, 2), "false": -pointing(cell, 2)})
    # The cell goes with the first removal (area 1/2 of a step) or with the last (all but 1/2 of a step).
    torch.testing.assert_close(found["true"].positive, torch.full((2,), 0.5 / N, dtype=torch.float64))
    torch.testing.assert_close(found["true"].negative, torch.full((2,), 1 - 0.5 / N, dtype=torch.float64))
    torch.testing.assert_close(found["true"].score, torch.full((2,), 1 - 1 / N, dtype=torch.float64))
    torch.testing.assert_close(found["false"].score, -found["true"].score)
    assert (found["random"].score.abs() < found["true"].score).all()


def test_random_orders_score_0_within_their_interval():
    found = score_of_number(OneCell(), white(400), {})["random"].summary()
    assert found.pictures == 400
    assert found.score.tie
    assert abs(found.score.mean) < 0.05
    assert found.score.high - found.score.low < 0.1


def test_a_map_without_any_order_scores_as_a_random_one_wherever_the_cell_lies():
    for cell in ((0, 0), (2, 4)):
        found = score_of_number(OneCell(cell), white(400), {"constant": torch.zeros(400, *GRID)})
        assert abs(found["constant"].summary().score.mean) < 0.1


def test_curves_begin_with_the_whole_picture_and_end_with_the_filled_one():
    config = tiny_models.tiny_config()
    model, pixels = tiny_models.tiny_model(config), tiny_models.pictures(config, count=3)
    target = 2
    found = faithfulness(model, pixels, {"some": drawn(3)}, target, steps=4)
    with torch.no_grad():
        whole, grey = model(pixels).softmax(1)[:, target], model(torch.zeros_like(pixels)).softmax(1)[:, target]
    assert set(found) == {"some", "random", "edges"}
    for one in found.values():
        assert one.fills == ("mean", "blur")
        assert one.removed.tolist() == pytest.approx([0, 3 / 15, 7 / 15, 11 / 15, 1])
        for curves in (one.positive_curves, one.negative_curves):
            assert curves.shape == (2, 3, 5)
            torch.testing.assert_close(curves[..., 0], whole.expand(2, 3))
            torch.testing.assert_close(curves[0, :, -1], grey)
        torch.testing.assert_close(one.insertion_curves[0, :, 0], grey)
        torch.testing.assert_close(one.insertion_curves[..., -1], whole.expand(2, 3))


def test_blur_keeps_what_is_broad_and_removes_what_is_fine():
    pixels = torch.stack((white(1)[0], torch.randn(3, 12, 40, generator=torch.Generator().manual_seed(0))))

    class Contrast(VisionTransformer):
        def forward(self, pixels: Tensor) -> Tensor:
            return torch.stack((pixels.mean((1, 2, 3)), pixels.var((1, 2, 3))), 1)

    model, options = Contrast(tiny_models.tiny_config(outputs=2)), {"fills": ("blur",), "kind": "regression"}
    mean, variance = (faithfulness(model, pixels, {}, output, **options)["edges"] for output in (0, 1))
    assert mean.positive_curves[0, 0, -1] == pytest.approx(1)
    assert variance.positive_curves[0, 1, -1] < 0.05 * variance.positive_curves[0, 1, 0]


def test_a_last_cell_is_as_large_as_is_left_where_the_stride_does_not_divide_the_size():
    config = ModelConfig(
        tokenizer="t2t", kernels=(3, 3), token_width=8, width=16, depth=1, heads=2, outputs=1, image_size=(13, 16)
    )
    assert config.grid(13, 16) == (4, 4)
    downwards = -torch.arange(16.0).view(1, 4, 4)
    found = score_of_number(Remainder(config), white(1, (13, 16)), {"downwards": downwards}, steps=4)["downwards"]
    # Rows of cells of 4, 4, 4 and 1 pixels.
    assert found.positive_curves.flatten().tolist() == pytest.approx([1, 9 / 13, 5 / 13, 1 / 13, 0])
    assert found.negative_curves.flatten().tolist() == pytest.approx([1, 12 / 13, 8 / 13, 4 / 13, 0])


def test_steps_are_no_more_than_there_are_cells():
    found = score_of_number(OneCell(), white(1), {}, steps=100)["random"]
    assert found.removed.tolist() == pytest.approx([i / N for i in range(N + 1)])
    alone = score_of_number(OneCell(), white(1), {"true": pointing((0, 0), 1)}, steps=1)["true"]
    assert alone.positive_curves.flatten().tolist() == alone.negative_curves.flatten().tolist() == [1, 0]


def test_the_result_is_the_same_whatever_the_batch():
    config = tiny_models.tiny_config()
    model, pixels = tiny_models.tiny_model(config), tiny_models.pictures(config, count=5)
    maps = {"some": drawn(5)}
    large, small = (faithfulness(model, pixels, maps, steps=5, batch=batch) for batch in (1000, 3))
    for name, one in large.items():
        torch.testing.assert_close(one.positive_curves, small[name].positive_curves)
        torch.testing.assert_close(one.negative_curves, small[name].negative_curves)


def test_of_a_model_in_float64_it_is_the_same():
    config = tiny_models.tiny_config()
    model, pixels, maps = tiny_models.tiny_model(config), tiny_models.pictures(config), {"some": drawn(2)}
    single = faithfulness(model, pixels, maps, steps=3)
    double = faithfulness(model.double(), pixels.double(), maps, steps=3)
    for name, one in single.items():
        torch.testing.assert_close(one.score, double[name].score, rtol=0, atol=1e-5)


def test_random_orders_follow_from_the_seed():
    first, again, other = (score_of_number(OneCell(), white(5), {}, seed=seed)["random"].score for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_kind_of_task_reads_its_own_answer():
    model, maps = OneCell(), {"true": pointing((0, 0), 1)}

    def begin_and_end(target: Any, kind: str, temperature: float = 1.0) -> list[float]:
        found = faithfulness(model, white(1), maps, target, ("mean",), kind=kind, temperature=temperature)["true"]
        return found.positive_curves[0, 0, [0, -1]].tolist()

    def sigmoid(x: float) -> float:
        return float(torch.tensor(x).sigmoid())

    assert begin_and_end(None, "classification") == pytest.approx([sigmoid(2.0), 0.5])  # outputs 1 and -1
    assert begin_and_end(1, "classification") == pytest.approx([sigmoid(-2.0), 0.5])
    assert begin_and_end(0, "classification", 2.0) == pytest.approx([sigmoid(1.0), 0.5])
    assert begin_and_end(0, "multilabel") == pytest.approx([sigmoid(1.0), 0.5])
    assert begin_and_end(1, "regression") == pytest.approx([-1, 0])
    assert begin_and_end((0, 1), "classification") == pytest.approx([2, 0])


def test_no_target_means_the_largest_output_of_the_whole_picture_throughout():
    pixels = torch.stack((white(1)[0], -white(1)[0]))
    found = faithfulness(OneCell(), pixels, {"true": pointing((0, 0), 2)}, fills=("mean",), steps=N)["true"]
    torch.testing.assert_close(found.positive_curves[0, 0], found.positive_curves[0, 1])
    assert (found.score > 0.3).all()


def test_deletion_fills_with_the_mean_and_insertion_starts_from_the_blur():
    config = tiny_models.tiny_config()
    model, pixels = tiny_models.tiny_model(config), tiny_models.pictures(config)
    maps = {"some": drawn(2)}
    both, mean, blur = (
        faithfulness(model, pixels, maps, steps=3, fills=fills)["some"]
        for fills in (("blur", "mean"), ["mean"], ["blur"])
    )
    torch.testing.assert_close(both.deletion, mean.positive)
    torch.testing.assert_close(both.insertion, blur.negative)
    torch.testing.assert_close(both.score, (mean.score + blur.score) / 2)
    inserted = torch.trapezoid(blur.insertion_curves.double(), (1 - blur.removed.flip(0)).double()).mean(0)
    torch.testing.assert_close(both.insertion, inserted)


def test_edges_are_found_where_they_are():
    pixels = torch.zeros(1, 3, 12, 40)
    pixels[..., 28:] = 1  # within the cells of column 3
    found = edges(OneCell(), pixels)
    assert (found[..., 3] > 1).all()
    assert found.sum() == pytest.approx(found[..., 3].sum())
    # Sobel's slope of a step of 1 is 4, on both sides of it, in 3 channels and 4 rows.
    assert found[0, 1, 3] == pytest.approx(4 * 2 * 3 * 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"attributions": {"a": torch.zeros(2, 5, 3), "b": torch.zeros(1, 3, 5)}}, ["a have", "b have", "(2, 3, 5)"]),
        ({"attributions": {"a": torch.full((2, 3, 5), torch.nan)}}, ["not finite"]),
        ({"fills": ("black",), "steps": 0, "batch": 0}, ["black", "mean, blur", "steps is 0", "batch is 0"]),
        ({"fills": ()}, ["mean, blur"]),
        ({"target": 2}, ["target is 2", "0 to 1"]),
        ({"target": (0, 7)}, ["target is (0, 7)"]),
        ({"target": (0,)}, ["target is (0,)"]),
        ({"target": 0.5}, ["target is 0.5"]),
        ({"attributions": torch.zeros(2, 3, 5), "steps": 0}, ["attributions are a Tensor", "maps by name", "steps"]),
        ({"attributions": {"a": as_attribution(torch.zeros(2, 3, 5))}}, ["a are a Attribution", "(2, 3, 5)"]),
        ({"pixels": white(2)[0]}, ["(3, 12, 40): expected (batch, 3, height, width)"]),
        ({"pixels": white(2).double()}, ["pixels are float64: expected float32"]),
        ({"pixels": white(2).numpy()}, ["pixels are a ndarray"]),
        ({"model": SimpleNamespace(model=OneCell())}, ["model is a SimpleNamespace", "predictor.model"]),
        ({"kind": "detection"}, ["detection", "classification"]),
        ({"kind": "regression"}, ["which of the 2 numbers"]),
        ({"pixels": white(0), "attributions": {}}, ["no pictures"]),
        ({"model": Remainder(tiny_models.tiny_config(outputs=1))}, ["one output"]),
    ],
)
def test_arguments_that_do_not_fit_are_all_named(given: dict[str, Any], said: list[str]):
    arguments: dict[str, Any] = {"model": OneCell(), "pixels": white(2), "attributions": {}, **given}
    with pytest.raises(InputError) as fault:
        faithfulness(**arguments)
    assert all(words in str(fault.value) for words in said), fault.value


# Intervals


def test_an_interval_is_as_wide_as_theory_has_it_and_covers_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(100, 60, generator=generator)
    found = [interval(sample) for sample in samples]
    assert 88 <= sum(one.low <= 0.5 <= one.high for one in found) <= 99
    width = sum(one.high - one.low for one in found) / len(found)
    assert width == pytest.approx(2 * 1.96 * (1 / 12 / 60) ** 0.5, rel=0.05)


def test_one_picture_has_no_interval():
    found = interval(torch.tensor([0.25]))
    assert found.mean == 0.25
    assert found.low != found.low
    assert found.tie


def made(scores: Tensor) -> Faithfulness:
    """With negative curves that lie at the scores throughout, and positive ones at 0."""
    curves = scores[None, :, None].expand(1, -1, 2)
    return Faithfulness(("mean",), torch.tensor([0.0, 1.0]), torch.zeros_like(curves), curves)


def test_a_difference_is_paired_by_picture():
    generator = torch.Generator().manual_seed(0)
    shared = torch.rand(50, generator=generator)
    better, worse = made(shared + 0.02 + 0.01 * torch.rand(50, generator=generator)), made(shared)
    a, b = better.summary().score, worse.summary().score
    assert a.low < b.high, "each interval alone does not tell them apart"
    difference = better.minus(worse)
    assert not difference.tie
    assert difference.mean == pytest.approx(0.025, abs=0.003)
    assert made(shared).minus(made(shared.flip(0))).tie


# Randomised weights


def test_spearman_of_known_values_with_ties():
    a, b = torch.tensor([[1.0, 2, 2, 3], [1, 2, 3, 4]]), torch.tensor([[1.0, 3, 2, 4], [9, 7, 5, 3]])
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5.
    torch.testing.assert_close(spearman(a, b), torch.tensor([4.5 / 22.5**0.5, -1], dtype=torch.float64))
    # Ranks 1.5, 1.5, 3.5, 3.5 and 1, 2.5, 2.5, 4: covariance 3, variances 4 and 4.5.
    tied = spearman(torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 5, 5, 9]))
    assert tied.item() == pytest.approx(3 / 18**0.5)
    assert spearman(torch.ones(4), torch.arange(4)).item() == 0


def test_spearman_refuses_maps_of_two_shapes():
    with pytest.raises(InputError, match="expected two alike"):
        spearman(torch.zeros(2, 4), torch.zeros(2, 5))


def of_edges(model: VisionTransformer, pixels: Tensor, target: Any) -> Attribution:
    return as_attribution(edges(model, pixels))


def of_gradients(model: VisionTransformer, pixels: Tensor, target: Any) -> Attribution:
    pixels = pixels.clone().requires_grad_()
    model(pixels)[:, target].sum().backward()
    assert pixels.grad is not None
    by_cell = (pixels * pixels.grad).detach().unflatten(3, (5, 8)).unflatten(2, (3, 4))
    return as_attribution(by_cell.sum((1, 3, 5)))


def tiny() -> tuple[VisionTransformer, Tensor]:
    config = tiny_models.tiny_config(pool="class", registers=1, conditional=True)
    return tiny_models.tiny_model(config, seed=1), tiny_models.pictures(config, count=12)


def test_maps_that_show_the_picture_alone_survive_fresh_weights_and_gradients_do_not():
    model, pixels = tiny()
    assert randomisation(model, pixels, of_edges).means.tolist() == pytest.approx([1])
    found = randomisation(model, pixels, of_gradients)
    assert found.stages == ("all",)
    assert found.correlations.shape == (1, 12)
    assert 0 < found.means.item() < 0.5


def test_the_cascade_replaces_stage_after_stage_and_ends_where_all_at_once_does():
    model, pixels = tiny()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = randomisation(model, pixels, of_gradients, target=0, cascade=True)
    assert found.stages == ("head", "block 1", "block 0", "tokens")
    assert found.means[0] > found.means[-1]
    assert len(set(found.means.tolist())) == 4, "every stage changes the maps"
    at_once = randomisation(model, pixels, of_gradients, target=0)
    torch.testing.assert_close(found.correlations[-1], at_once.correlations[0])
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_each_picture_keeps_the_target_it_had_before_and_its_place():
    model, pixels = tiny()
    asked: list[dict[float, int]] = []

    def recording(model: VisionTransformer, pixels: Tensor, target: Any) -> Attribution:
        asked.append({picture.sum().item(): target for picture in pixels})
        return of_gradients(model, pixels, target)

    found = randomisation(model, pixels, recording, batch=5)
    assert all(len(some) <= 5 for some in asked)
    assert sum(len(some) for some in asked) == 2 * len(pixels)
    with torch.no_grad():
        largest = dict(zip([p.sum().item() for p in pixels], model(pixels).argmax(1).tolist(), strict=True))
    assert set(largest.values()) == {2, 3}
    assert all(largest[picture] == target for some in asked for picture, target in some.items())
    alone = torch.cat([randomisation(model, picture[None], of_gradients).correlations for picture in pixels], 1)
    torch.testing.assert_close(found.correlations, alone)
