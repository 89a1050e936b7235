"""Lanes: parts of a batch beside each other give what the whole batch gives."""

import threading

import pytest
import torch
from tiny_models import KINDS, pictures, tiny_config, tiny_model

from vitreous.training.lanes import MOST, Lanes, join_gradients, replicas

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads():
    """The number of threads of the test's own process stays as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class TestLanes:
    @pytest.mark.parametrize(("cores", "lanes"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 3), (8, 4), (64, 4)])
    def test_there_are_at_most_four_and_all_have_as_many_threads(self, cores, lanes):
        assert Lanes(cores, CPU).count == lanes <= MOST

    def test_a_gpu_has_one(self):
        assert Lanes(8, torch.device("cuda")).count == 1

    @pytest.mark.parametrize("cores", [1, 2])
    def test_results_come_in_order_and_there_may_be_more_rows_than_lanes(self, cores):
        assert Lanes(cores, CPU).map(lambda a, b: a - b, range(10, 17), range(7)) == [10] * 7

    def test_parts_are_computed_at_the_same_time_each_on_its_share_of_the_threads(self):
        torch.set_num_threads(4)
        meet = threading.Barrier(2, timeout=300)

        def part(_):
            meet.wait()  # never comes back where one waits for the other to end
            return torch.get_num_threads()

        assert Lanes(4, CPU).map(part, range(4)) == [1, 1, 1, 1]
        assert torch.get_num_threads() == 4

    def test_what_a_part_raises_is_raised(self):
        def part(number):
            if number:
                raise ArithmeticError("of the second")

        with pytest.raises(ArithmeticError, match="of the second"):
            Lanes(2, CPU).map(part, range(2))


class TestReplicas:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("count", [2, 3])
    def test_the_gradients_of_parts_join_to_that_of_the_whole_batch(self, kind, count):
        config = tiny_config(kind)
        model, pixels = tiny_model(config).double().train(), pictures(config, count=6).double()
        model(pixels).square().mean().backward()
        expected = {name: parameter.grad for name, parameter in model.named_parameters()}
        model.zero_grad()

        def learn(replica, part):
            (replica(part).square().mean() * len(part) / len(pixels)).backward()

        models = replicas(model, count)
        Lanes(count, CPU).map(learn, models, pixels.chunk(count))
        join_gradients(models)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)
        assert all(parameter.grad is None for replica in models[1:] for parameter in replica.parameters())

    def test_they_share_the_weights(self):
        model = tiny_model(tiny_config())
        other = replicas(model, 2)[1]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        pixels = pictures(tiny_config())
        assert torch.equal(model(pixels), other(pixels))

    def test_what_learns_nothing_has_no_gradient(self):
        model = tiny_model(tiny_config())
        model.norm.weight.requires_grad_(False)
        models = replicas(model, 2)
        for replica in models:
            replica(pictures(tiny_config())).square().mean().backward()
        join_gradients(models)
        assert model.norm.weight.grad is None
        assert model.norm.bias.grad is not None
