import copy
import dataclasses

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from tiny_runs import PLAN

from vitreous.training.muon import Muon, dealt, orthogonal
from vitreous.training.optim import FROZEN, make_average, make_optimizers, restore_state, state_of
from vitreous.training.plan import Plan

CONFIG = tiny_config("stem", conditional=True, pool="class")


def names_of(kind: str, **changes) -> tuple[dict[str, set[str]], dict[str, dict]]:
    """Names of the parameters of each optimizer, and the group of each parameter."""
    model = tiny_model(CONFIG)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizers = make_optimizers(model, dataclasses.replace(PLAN, optimizer=kind, **changes))
    found = {type(o).__name__: {names[id(p)] for group in o.param_groups for p in group["params"]} for o in optimizers}
    groups = {names[id(p)]: group for o in optimizers for group in o.param_groups for p in group["params"]}
    return found, groups


class TestMakeOptimizers:
    def test_adamw_takes_every_parameter(self):
        found, _ = names_of("adamw")
        assert found == {"AdamW": {name for name, _ in tiny_model(CONFIG).named_parameters()}}

    def test_muon_takes_the_matrices_between_pixels_and_head_and_adamw_all_others(self):
        found, _ = names_of("muon")
        matrices = {
            *(f"tokenizer.steps.{i}.convolution.weight" for i in range(3)),
            "tokenizer.first.weight",
            "tokenizer.projection.weight",
            *(f"blocks.{i}.attention.{part}.weight" for i in range(2) for part in ("qkv", "projection")),
            *(f"blocks.{i}.mlp.{part}.weight" for i in range(2) for part in ("expand", "contract")),
        }
        assert found["Muon"] == matrices
        assert found["AdamW"] == {name for name, _ in tiny_model(CONFIG).named_parameters()} - matrices

    def test_beside_muon_the_rest_learns_five_times_slower(self):
        _, groups = names_of("muon")
        assert groups["blocks.0.mlp.expand.weight"]["scale"] == 1.0
        assert groups["head.outputs.weight"]["scale"] == 0.2

    def test_the_stems_steps_learn_at_a_rate_of_their_own_with_muon(self):
        for kind, rate in (("muon", 4.0), ("adamw", 1.0)):
            _, groups = names_of(kind, stem_rate=4.0)
            assert {groups[f"tokenizer.steps.{i}.convolution.weight"]["scale"] for i in range(3)} == {rate}
            assert groups["tokenizer.first.weight"]["scale"] == 1.0

    def test_that_of_the_rest_is_the_plans(self):
        _, groups = names_of("muon", rest_rate=0.1)
        assert groups["head.outputs.weight"]["scale"] == 0.1
        assert groups["tokenizer.first.weight"]["scale"] == 1.0

    def test_a_plan_from_before_the_stem_had_its_own_rate_is_followed_as_it_was(self):
        before = PLAN.to_json()
        del before["stem_rate"]
        _, groups = names_of("muon", stem_rate=Plan.from_json(before).stem_rate)
        matrices = [group for name, group in groups.items() if name.endswith("expand.weight") or "steps.0.conv" in name]
        assert all(group is matrices[0] for group in matrices)  # checkpoints number the parameters group by group

    @pytest.mark.parametrize("kind", ["adamw", "muon"])
    def test_only_weights_of_layers_decay(self, kind):
        _, groups = names_of(kind)
        decaying = {name for name, group in groups.items() if group["weight_decay"]}
        assert decaying == {name for name in groups if name.endswith(".weight") and "norm" not in name}

    @pytest.mark.parametrize("kind", ["adamw", "muon"])
    def test_what_is_frozen_is_in_no_optimizer(self, kind):
        found, groups = names_of(kind, freeze="encoder")
        assert set(groups) == {"head.outputs.weight", "head.outputs.bias"}
        assert not any(name.startswith(FROZEN["encoder"]) for name in groups)
        assert "Muon" not in found

    def test_layer_decay_slows_both_optimizers(self):
        _, groups = names_of("muon", layer_decay=0.5)
        assert groups["blocks.1.mlp.expand.weight"]["scale"] == 0.5
        assert groups["blocks.0.mlp.expand.weight"]["scale"] == 0.25
        assert groups["blocks.0.mlp.expand.bias"]["scale"] == 0.25 * 0.2
        assert groups["tokenizer.projection.weight"]["scale"] == 0.125
        assert groups["position.convolutions.1.convolution.weight"]["scale"] == 0.5 * 0.2

    @pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
    def test_muon_computes_in_the_precision_of_the_run(self, precision, dtype):
        plan = dataclasses.replace(PLAN, optimizer="muon", precision=precision)
        muon = make_optimizers(tiny_model(CONFIG), plan)[1]
        assert isinstance(muon, Muon)
        assert muon.dtype is dtype


class TestMuon:
    @staticmethod
    def matrices() -> list[torch.nn.Parameter]:
        """A tall one, a wide one and a square one."""
        generator = torch.Generator().manual_seed(1)
        shapes = ((24, 8), (8, 24), (16, 16))
        return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]

    @staticmethod
    def step(optimizer: torch.optim.Optimizer, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for matrix in optimizer.param_groups[0]["params"]:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        optimizer.step()

    def moved(self, make, steps: int = 3) -> list[torch.Tensor]:
        optimizer = make([{"params": self.matrices(), "weight_decay": 0.3}])
        for number in range(steps):
            self.step(optimizer, number)
        parameters = optimizer.param_groups[0]["params"]
        return [after.detach() - before.detach() for before, after in zip(self.matrices(), parameters, strict=True)]

    def test_in_bf16_it_has_the_bits_of_pytorch(self):
        ours = self.moved(lambda groups: Muon(groups, 0.1, torch.bfloat16))
        theirs = self.moved(lambda groups: torch.optim.Muon(groups, lr=0.1))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    def test_in_fp32_it_differs_from_that_by_the_rounding_of_bf16_alone(self):
        exact, fp32, bf16 = (
            self.moved(lambda groups, dtype=dtype: Muon(groups, 0.1, dtype))
            for dtype in (torch.float64, torch.float32, torch.bfloat16)
        )
        for reference, close, rough in zip(exact, fp32, bf16, strict=True):
            assert (close - reference).norm() <= 1e-5 * reference.norm()
            assert (rough - reference).norm() <= 0.02 * reference.norm()

    def test_it_goes_on_with_the_state_of_pytorch(self):
        groups = [{"params": self.matrices(), "weight_decay": 0.3}]
        theirs, ours = torch.optim.Muon(groups, lr=0.1), Muon(copy.deepcopy(groups), 0.1, torch.bfloat16)
        self.step(theirs, 0)
        self.step(ours, 0)
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        self.step(theirs, 1)
        self.step(ours, 1)
        pairs = zip(theirs.param_groups[0]["params"], ours.param_groups[0]["params"], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    @pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
    def test_a_matrix_becomes_orthogonal_with_its_own_singular_vectors(self, shape):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        before = matrix.clone()
        found = orthogonal(matrix, torch.float32)
        assert torch.equal(matrix, before)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        values = u.T @ found @ v.T
        torch.testing.assert_close(values, torch.diag(values.diagonal()), rtol=0, atol=1e-4)
        assert 0.6 < values.diagonal().min() <= values.diagonal().max() < 1.3


class TestDealt:
    def test_all_have_about_as_much_to_do_however_the_matrices_come(self):
        block = [(576, 192), (192, 192), (768, 192), (192, 768)]
        matrices = [torch.empty(shape) for shape in block * 3]
        owners = dealt(matrices, 2)
        loads = [sum(m.numel() for m, owner in zip(matrices, owners, strict=True) if owner == rank) for rank in (0, 1)]
        assert min(loads) > 0.9 * max(loads)

    def test_with_more_processes_than_matrices_some_have_none(self):
        assert dealt([torch.empty(8, 4), torch.empty(4, 4)], 3) == [0, 1]


class TestState:
    @pytest.mark.parametrize("kind", ["adamw", "muon"])
    def test_a_restored_state_goes_on_to_the_same_bits(self, kind):
        def learner():
            model = tiny_model(CONFIG)
            return model, make_average(model, 0.9), make_optimizers(model, dataclasses.replace(PLAN, optimizer=kind))

        def step(model, average, optimizers, number):
            pixels = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(number))
            model(pixels).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            average.update_parameters(model)

        first, second = learner(), learner()
        for number in range(3):
            step(*first, number)
        restore_state({name: tensor.clone() for name, tensor in state_of(*first).items()}, *second)
        for one in (first, second):
            step(*one, 3)
        a, b = state_of(*first), state_of(*second)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
