"""Plan: what it asks for is what is done, and a run of minutes keeps to them."""

import dataclasses
import itertools
import re
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from making import TOY, json_of, make_unbalanced, unpainted
from torch import nn

import vitreous
from vitreous.data.augment import POLICIES
from vitreous.errors import InputError
from vitreous.model.kernels import processor_name
from vitreous.model.vit import build
from vitreous.rundir import RunDir
from vitreous.training import planner
from vitreous.training.incidents import Incidents
from vitreous.training.journal import Journal
from vitreous.training.learner import Learner, class_weights, update
from vitreous.training.loop import Mark, Session, fit, keep_to_budget
from vitreous.training.optim import make_criterion
from vitreous.training.plan import Pace, Plan
from vitreous.training.planner import make_plan, shortened
from vitreous.training.prepare import Job, prepare_again
from vitreous.training.recipe import TrainConfig
from vitreous.training.steps import training_batches
from vitreous.training.train import set_up, write_start

SHORT = {**TOY, "epochs": 2, "batch": 8}


def learner_of(job: Job, plan: Plan) -> Learner:
    return Learner(build(job.model, plan.seed), job, plan)


@pytest.fixture(scope="module")
@unpainted()
def rare(tmp_path_factory) -> tuple[Path, Job, Plan]:
    """A run on unbalanced classes with class weights and accumulation, its job and plan."""
    root = tmp_path_factory.mktemp("rare")
    options = {**TOY, "epochs": 2, "batch": 8, "precision": "fp32", "balance": "weights", "accumulate": 3}
    run = vitreous.train(make_unbalanced(root / "data"), out=root / "run", **options)
    job = prepare_again(RunDir.open(run), Journal(quiet=True))
    return run, job, Plan.from_json(json_of(run, "plan.json"))


class TestKeepToBudget:
    """100 steps of a second each, timed anew after 20."""

    def kept(self, rare, tmp_path, step: int, seconds: float, **changes) -> tuple[Plan, Plan, Path]:
        _, job, plan = rare
        usual = {"points": ((0, 0.0, 100),), "budget": 100.0, "pace": Pace(1.0, 1.0, 0.0), "coarse": 0.0}
        plan = dataclasses.replace(plan, **{**usual, **changes})
        learner, run = learner_of(job, plan), RunDir.create(tmp_path / "run")
        learner.progress.step, learner.progress.seconds = step, seconds
        order = training_batches(job, plan)[1]
        session = Session(learner, job, run, Journal(quiet=True), Incidents(run.path))
        new = keep_to_budget(session, order, Mark(0, 0.0), row=True)
        return plan, new, run.path

    @pytest.mark.parametrize(("seconds", "least", "most"), [(40, 48, 50), (10, 190, 200)])
    def test_a_pace_that_changed_moves_the_end_and_is_written_first(self, rare, tmp_path, seconds, least, most):
        _, new, run = self.kept(rare, tmp_path, 20, seconds)
        assert least <= new.steps <= most
        assert Plan.from_json(json_of(run, "plan.json")) == new

    def test_a_stall_in_the_first_timing_is_mended_before_the_first_row(self, rare, tmp_path, monkeypatch):
        ticks = itertools.count()  # of a clock that goes by how often it is asked: a step takes some hundredths
        clock = types.SimpleNamespace(**{**vars(time), "perf_counter": lambda: 0.02 * next(ticks)})
        monkeypatch.setattr("vitreous.training.learner.time", clock)
        _, job, plan = rare
        slow = {"points": ((0, 0.0, 4),), "budget": 2.0, "pace": Pace(0.5, 0.5, 0.0), "save_every": 0}
        plan = dataclasses.replace(plan, **slow)
        run = RunDir.create(tmp_path / "run")
        fit(job, plan, build(job.model, plan.seed), run, Journal(quiet=True))
        assert Plan.from_json(json_of(run.path, "plan.json")).steps > 8

    def test_a_plan_is_told_again_where_it_is_a_quarter_away_from_what_was_told_last(self, rare, tmp_path, capsys):
        _, job, plan = rare
        changes = {"points": ((0, 0.0, 100),), "budget": 100.0, "pace": Pace(1.0, 1.0, 0.0), "coarse": 0.0}
        plan = dataclasses.replace(plan, **changes)
        learner, run, ends = learner_of(job, plan), RunDir.create(tmp_path / "run"), [100]
        session = Session(learner, job, run, Journal(), Incidents(run.path))
        order = training_batches(job, plan)[1]
        for step, pace in ((20, 1.2), (30, 1.45), (40, 1.3), (50, 1.45)):
            learner.progress.step, learner.progress.seconds = step, step * pace
            learner.plan = keep_to_budget(session, order, Mark(0, 0.0), row=True)
            ends.append(learner.plan.steps)
        assert len(set(ends)) > 2
        assert capsys.readouterr().out == f"plan: {learner.told} steps, to keep to the time\n"

    @pytest.mark.parametrize(
        ("step", "seconds", "changes"),
        [
            (20, 20.4, {}),
            (3, 9.0, {}),
            (95, 190.0, {}),
            (20, 40.0, {"budget": 0.0}),
            (20, 40.0, {"points": ((20, 0.2, 100),)}),
        ],
        ids=["the pace is kept", "a stall of few steps", "it is almost over", "a run of epochs", "timed here before"],
    )
    def test_otherwise_the_plan_stays(self, rare, tmp_path, step, seconds, changes):
        plan, new, run = self.kept(rare, tmp_path, step, seconds, **changes)
        assert new is plan
        assert not (run / "plan.json").exists()


@pytest.mark.usefixtures("unpainted")
class TestTheRecipe:
    def test_an_update_in_three_pieces_is_the_update_in_one(self, rare):
        _, job, plan = rare
        assert (plan.balance, plan.accumulate) == ("weights", 3)
        batch = training_batches(job, plan)[0].make(0)
        assert len(set(batch.targets.tolist())) == 2
        results = []
        for pieces in (1, 3):
            learner = learner_of(job, dataclasses.replace(plan, accumulate=pieces))
            loss, _ = update(learner, batch)
            moments = {n: t for n, t in learner.checkpoint().tensors.items() if n.endswith("exp_avg")}
            results.append((loss, moments))
        (loss, whole), (loss_of_pieces, pieces) = results
        assert loss == pytest.approx(loss_of_pieces, rel=1e-5)
        for name in whole:
            torch.testing.assert_close(whole[name], pieces[name], rtol=1e-4, atol=1e-7)

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's own
    def test_an_update_of_a_compiled_model_is_the_same(self, rare, monkeypatch):
        _, job, plan = rare
        batch = training_batches(job, plan)[0].make(0)
        compiled = []

        def traced(module: nn.Module):  # without a C++ compiler, which would take half a minute
            compiled.append(module)
            module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")

        monkeypatch.setattr(nn.Module, "compile", traced)
        results = []
        for wanted in (False, True):
            learner = learner_of(job, dataclasses.replace(plan, compile=wanted))
            loss, made = update(learner, batch)
            results.append((loss, made, learner.model.state_dict()))
        assert compiled == [learner.model.tokenizer, *learner.model.blocks]
        (loss, made, plain), (loss_compiled, made_compiled, after) = results
        assert made
        assert made_compiled
        assert loss == pytest.approx(loss_compiled, rel=1e-5)
        torch.testing.assert_close(plain, after, rtol=1e-4, atol=1e-6)

    def test_a_machine_that_cannot_compile_is_told_so(self, rare, monkeypatch):
        _, job, _ = rare

        def broken(module: nn.Module):
            def backend(*_):
                raise OSError("no C++ compiler")

            module._compiled_call_impl = torch.compile(module._call_impl, backend=backend)

        monkeypatch.setattr(nn.Module, "compile", broken)
        with pytest.raises(InputError, match=r"--compile: .*no C\+\+ compiler.* or leave --compile out"):
            make_plan(job, TrainConfig(epochs=1, compile=True), build(job.model), torch.device("cpu"))

    def test_class_weights_make_classes_count_alike_and_a_picture_1_on_average(self, rare):
        _, job, plan = rare
        weight = class_weights(job, plan)
        assert weight is not None
        counts = np.bincount(job.targets[job.training])
        each = weight.numpy() * counts
        assert each[0] == pytest.approx(each[1])
        assert each.sum() == pytest.approx(len(job.training))

    def test_balanced_sampling_draws_classes_alike(self, rare):
        _, job, plan = rare
        order = training_batches(job, dataclasses.replace(plan, balance="sampling"))[1]
        drawn = np.concatenate([job.targets[order.batch(step)] for step in range(100)])
        assert 0.4 < (drawn == 1).mean() < 0.6
        plain = training_batches(job, dataclasses.replace(plan, balance="none"))[1]
        drawn = np.concatenate([job.targets[plain.batch(step)] for step in range(100)])
        assert 0.1 < (drawn == 1).mean() < 0.3

    def test_balanced_sampling_trains_end_to_end(self, rare, tmp_path):
        data = rare[0].parent / "data"
        run = vitreous.train(data, out=tmp_path / "run", balance="sampling", **{**SHORT, "epochs": 1})
        assert json_of(run, "plan.json")["balance"] == "sampling"

    @pytest.mark.parametrize(("epochs", "expected"), [(29, "slight"), (30, "varied")])
    def test_small_pictures_that_are_seen_often_are_varied_more(self, rare, epochs, expected):
        _, job, plan = rare
        config = TrainConfig(epochs=epochs, batch=8, precision="fp32")
        made = make_plan(job, config, build(job.model, plan.seed), torch.device("cpu"))
        assert made.augmentation == POLICIES[expected]

    def test_a_plan_has_the_rates_of_the_stem_and_of_the_rest_and_the_processor_that_it_was_made_on(self, rare):
        _, job, plan = rare
        config = TrainConfig(epochs=1, batch=8, precision="fp32")
        made = make_plan(job, config, build(job.model, plan.seed), torch.device("cpu"))
        assert (made.stem_rate, made.rest_rate, made.processor) == (4.0, 0.2, processor_name())

    @pytest.mark.parametrize("wanted", [False, True])
    def test_a_model_that_is_to_be_compiled_is_timed_for_longer(self, rare, monkeypatch, wanted):
        _, job, plan = rare
        monkeypatch.setattr(planner, "ESTIMATE_SECONDS", 0.0)
        monkeypatch.setattr(nn.Module, "compile", lambda module: None)
        made = []
        monkeypatch.setattr(planner, "update", lambda learner, batch: made.append(batch))
        config = TrainConfig(epochs=1, batch=8, precision="fp32", compile=wanted)
        found = make_plan(job, config, build(job.model, plan.seed), torch.device("cpu"))
        assert found.compile == wanted
        assert len(made) == (planner.LEAST_COMPILED if wanted else planner.LEAST_TIMED)

    @pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True), ("cuda:1", True)])
    def test_batches_are_pinned_for_a_gpu(self, rare, device, pinned):
        _, job, plan = rare
        assert training_batches(job, dataclasses.replace(plan, device=device))[0].pin == pinned

    def test_timing_leaves_short_budgets_almost_whole(self, rare, monkeypatch):
        _, job, plan = rare
        monkeypatch.setattr(planner, "TIMED_SECONDS", 0.0)  # as on a machine where a single step takes longer
        made = []
        monkeypatch.setattr(planner, "update", lambda learner, batch: made.append(batch))
        config = TrainConfig(minutes=1, batch=8, coarse=0.5, precision="fp32")
        found = make_plan(job, config, build(job.model, plan.seed), torch.device("cpu"))
        assert len(made) == 4  # of coarse pictures and of whole ones, one to warm up and one that counts
        assert 0 < found.pace.coarse < 60
        assert 0 < found.pace.whole < 60

    def test_what_is_done_before_the_first_step_is_taken_off_the_budget(self, shapes, tmp_path, monkeypatch):
        monkeypatch.setattr(planner, "TIMED_SECONDS", 0.1)
        config, run = TrainConfig.of(**TOY, minutes=1), RunDir.create(tmp_path / "run")
        start = set_up(str(shapes), config, Journal(quiet=True))
        began = time.perf_counter()
        plan, before = write_start(start, config, run).plan, shortened(start.plan, start.job, 0.0)
        gone = before.budget - plan.budget
        assert 0 < gone < time.perf_counter() - began
        again = shortened(start.plan, start.job, gone)
        assert plan == dataclasses.replace(again, budget=plan.budget)  # but for rounding
        assert plan == Plan.from_json(json_of(run.path, "plan.json"))

    def test_a_shorter_budget_has_fewer_steps_and_is_the_same_plan_otherwise(self, shapes, tmp_path, monkeypatch):
        monkeypatch.setattr(planner, "TIMED_SECONDS", 0.1)
        start = set_up(str(shapes), TrainConfig.of(**TOY, minutes=1), Journal(quiet=True))
        before, plan = (shortened(start.plan, start.job, seconds) for seconds in (0.0, 30.0))
        assert plan.budget == pytest.approx(before.budget - 30)
        assert plan.steps < before.steps
        assert plan.epochs < before.epochs
        assert plan.seconds < before.seconds
        kept = {name: getattr(before, name) for name in ("budget", "points", "epochs", "seconds")}
        assert dataclasses.replace(plan, **kept) == before

    def test_a_run_of_epochs_is_not_shortened(self, rare):
        _, job, plan = rare
        assert shortened(plan, job, 1000.0) == plan

    @pytest.mark.usefixtures("unpainted")
    @pytest.mark.parametrize(
        ("length", "worth", "said"),
        [
            ({"minutes": "3s"}, 0.0, r"were ready after \d:\d\d; the budget of 0:03 begins now\n"),
            ({"epochs": 1}, 0.0, r"were ready after \d:\d\d\n"),
            ({"epochs": 1}, 1e9, None),
        ],
    )
    def test_the_time_before_it_is_told_where_it_is_worth_a_word(
        self, shapes, monkeypatch, capsys, length, worth, said
    ):
        monkeypatch.setattr("vitreous.training.train.WORTH_A_WORD", worth)
        set_up(str(shapes), TrainConfig.of(**TOY, **length), Journal())
        out = capsys.readouterr().out
        assert re.search(said, out) if said else "were ready" not in out

    def test_smoothing_moves_its_share_of_the_truth_to_all_classes_alike(self, rare):
        task = rare[1].task
        outputs, targets = torch.tensor([[2.0, -1.0], [0.5, 0.3]]), torch.tensor([0, 1])
        logs = outputs.log_softmax(1)
        expected = -(0.9 * logs[[0, 1], targets] + 0.1 * logs.mean(1)).mean()
        assert make_criterion(task, 0.1)(outputs, targets) == pytest.approx(float(expected))
