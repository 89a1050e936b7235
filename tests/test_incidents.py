"""Bad numbers and failing steps: no update is made of them, no checkpoint holds them, and who did it is named."""

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from making import newest, same_bits
from tiny_runs import begin, tiny_job

from vitreous.data.store import PixelStore
from vitreous.errors import InputError
from vitreous.model.vit import build
from vitreous.rundir import RunDir
from vitreous.training import loop
from vitreous.training.health import OUTLIER, WINDOW, Vital, all_finite, diverged, fault_of, suspects
from vitreous.training.incidents import Incidents, StepError, some
from vitreous.training.journal import Journal
from vitreous.training.learner import Learner, Progress, gradient, make_update
from vitreous.training.loop import fit
from vitreous.training.plan import Plan
from vitreous.training.prepare import Job
from vitreous.training.shared_run import MuteJournal
from vitreous.training.steps import training_batches

USUAL = [Vital(1.0, 2.0, 1.0)] * WINDOW


@pytest.fixture(scope="module", params=["classification", "regression"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return tiny_job(tmp_path_factory.mktemp("data") / "arrays.npz", request.param)


def trained(job: Job, plan: Plan) -> Learner:
    """A learner after eight sound steps."""
    learner = Learner(build(job.model, plan.seed), job, plan)
    for step in range(8):
        vital = gradient(learner, training_batches(job, plan)[0].make(step))
        assert make_update(learner, vital) == ""
        learner.progress.count(vital, made=True)
    return learner


class TestWhatIsFarOutside:
    @pytest.mark.parametrize(
        ("vital", "what"),
        [
            (Vital(math.nan, 1, 1), "not finite"),
            (Vital(1, math.inf, 1), "not finite"),
            (Vital(1, 1, math.inf), "not finite"),
            (Vital(250, 1, 1), "loss 250 is far outside what is usual (2)"),
            (Vital(1, 201, 1), "gradient of norm 201"),
            (Vital(1, 1, 101), "pixels are 101 times as large"),
            (Vital(190, 199, 99), ""),
        ],
    )
    def test_is_measured_by_what_is_usual_and_by_what_guessing_loses(self, vital, what):
        found = fault_of(vital, USUAL, guessing=2.0, clip=1.0)
        assert found.startswith(what) or what in found
        assert bool(found) == bool(what)

    def test_a_hard_picture_late_in_a_run_is_none(self):
        late = [Vital(1e-5, 1e-4, 1.0)] * WINDOW
        assert fault_of(Vital(3.0, 40.0, 1.2), late, guessing=1.1, clip=1.0) == ""

    def test_the_first_gradients_may_be_large(self):
        assert fault_of(Vital(2.3, 1e5, 1.0), [], guessing=2.3, clip=1.0) == ""
        assert fault_of(Vital(2.3e4, 1.0, 1.0), [], guessing=2.3, clip=1.0)

    def test_a_run_has_diverged_where_most_of_its_last_losses_are_far_above_guessing(self):
        bad = [Vital(40.0, 1.0, 1.0)] * WINDOW
        assert diverged(bad, guessing=1.0)
        assert not diverged(bad[1:], guessing=1.0)
        assert not diverged([*bad[: WINDOW // 2 - 1], *USUAL[: WINDOW // 2 + 1]], guessing=1.0)


class TestAnUpdate:
    @pytest.mark.parametrize("times", [math.nan, math.inf, 1e4, -1e4])
    @pytest.mark.parametrize("where", ["a picture", "all pictures", "a target"])
    def test_of_bad_numbers_leaves_every_bit_as_it_was(self, job, tmp_path, where, times):
        if where == "a target" and job.task.kind == "classification":
            pytest.skip("a class has no size")
        _, plan, _ = begin(tmp_path / "run", job)
        learner = trained(job, plan)
        before = {name: tensor.clone() for name, tensor in learner.checkpoint().tensors.items()}
        batch = training_batches(job, plan)[0].make(8)
        if where == "a target":
            batch.targets[2] *= times
        else:
            batch.pixels[2 if where == "a picture" else slice(None)] *= times
        assert make_update(learner, gradient(learner, batch))
        assert same_bits(learner.checkpoint().tensors, before)
        assert suspects(batch.pixels, batch.targets) == ([2] if where != "all pictures" else [*range(6)])


class Spoiled(PixelStore):
    """Pixels that a picture does not have, at some of the calls."""

    def __init__(self, store: PixelStore, calls: range, times: float):
        self.__dict__.update(store.__dict__)
        self.calls, self.number, self.times = calls, 0, times

    def gather(self, numbers: np.ndarray) -> torch.Tensor:
        pixels = super().gather(numbers)
        self.number += 1
        return pixels * self.times if self.number in self.calls else pixels


def spoiled_run(folder: Path, job: Job, calls: range, times: float, **changes) -> tuple[RunDir, Journal]:
    run, plan, model = begin(folder, job, row_every=1000, save_every=3, **changes)
    journal = Journal()
    fit(dataclasses.replace(job, store=Spoiled(job.store, calls, times)), plan, model, run, journal)
    return run, journal


def rows_of(run: RunDir) -> list[dict[str, str]]:
    with open(run.path / "incidents.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class TestARun:
    @pytest.mark.parametrize("times", [math.nan, 1e4])
    def test_passes_over_a_bad_batch_and_says_which(self, job, tmp_path, capsys, times):
        run, _ = spoiled_run(tmp_path / "run", job, range(5, 6), times)
        [row] = rows_of(run)
        assert row["step"] == "5"
        assert row["what"].startswith("loss or gradient is not finite" if math.isnan(times) else "pixels are")
        assert len(row["pictures"].splitlines()) == 6
        assert row["suspects"] == row["pictures"]
        said = [line for line in capsys.readouterr().out.splitlines() if "the update is not made" in line]
        assert len(said) == 1
        assert f"because of {row['pictures'].splitlines()[0]}, " in said[0]
        last = newest(run.path)
        assert (last.step, last.values["incidents"]) == (12, 1)
        assert all_finite(last.tensors)

    def test_that_is_sound_has_no_account_of_incidents(self, job, tmp_path):
        run, _ = spoiled_run(tmp_path / "run", job, range(0), 1.0)
        assert not (run.path / "incidents.csv").exists()

    def test_goes_back_at_half_the_rate_after_five_and_the_account_stays(self, job, tmp_path):
        run, _ = spoiled_run(tmp_path / "run", job, range(5, 10), 1e5)
        assert [row["step"] for row in rows_of(run)] == ["5", "6", "7", "8", "9", "9"]
        assert rows_of(run)[-1]["what"] == "5 updates in a row were not made: back to step 3"
        assert newest(run.path).values["rate_scale"] == 0.5

    def test_whose_weights_are_not_finite_writes_no_checkpoint_of_them(self, job, tmp_path, monkeypatch):
        run, plan, model = begin(tmp_path / "run", job, save_every=3)
        original, calls = loop.make_update, []

        def poisoned(learner, vital):
            wrong = original(learner, vital)
            calls.append(wrong)
            if len(calls) == 6:
                learner.optimizers[0].state[next(model.parameters())]["exp_avg"][0] = math.inf
            return wrong

        monkeypatch.setattr(loop, "make_update", poisoned)
        saved, save = [], RunDir.save
        monkeypatch.setattr(
            RunDir, "save", lambda self, made, keep=(): (saved.append(all_finite(made.tensors)), save(self, made, keep))
        )
        fit(job, plan, model, run, Journal(quiet=True))
        assert saved == [True] * 5  # steps 0, 3, then from 3 on again 6, 9, 12
        assert rows_of(run)[0]["what"] == "the weights are not finite: back to step 3"

    def test_that_never_recovers_ends_with_advice_and_where_the_account_is(self, job, tmp_path):
        with pytest.raises(InputError, match=r"does not stay finite, .*lower --lr.*incidents\.csv lists the steps"):
            spoiled_run(tmp_path / "run", job, range(5, 1000), math.inf)
        assert newest(tmp_path / "run").step == 3

    def test_whose_step_fails_names_the_pictures_and_keeps_what_was_done(self, job, tmp_path, monkeypatch, capsys):
        class Failing(Spoiled):
            def gather(self, numbers: np.ndarray) -> torch.Tensor:
                self.number += 1
                if self.number == 6:
                    raise MemoryError("16 GB")
                return PixelStore.gather(self, numbers)

        for workers in (0, 2):
            run, plan, model = begin(tmp_path / f"run-{workers}", job, row_every=1000, workers=workers)
            failing = dataclasses.replace(job, store=Failing(job.store, range(0), 1.0))
            with pytest.raises(StepError) as told:
                fit(failing, plan, model, run, Journal())
            batch = [job.store.source.names[i] for i in training_batches(job, plan)[1].batch(newest(run.path).step)]
            assert f"failed: MemoryError: 16 GB\nits pictures: {batch[0]}, " in str(told.value)
            assert "too little memory for it: a new run with a smaller --batch" in str(told.value)
            if not workers:  # with them it is chance which of them comes to be the sixth
                assert newest(run.path).step == 5
                assert "step 5 is saved" in capsys.readouterr().out

    def test_that_runs_out_of_memory_in_an_update_keeps_the_checkpoint_before_it(self, job, tmp_path, monkeypatch):
        run, plan, model = begin(tmp_path / "run", job)

        def step(optimizer):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(StepError, match=r"step 1 failed: OutOfMemoryError: CUDA out of memory\n(.|\n)*--batch"):
            fit(job, plan, model, run, Journal(quiet=True))
        assert newest(run.path).step == 0

    def test_whose_last_state_finds_no_memory_either_still_says_what_failed(self, job, tmp_path, monkeypatch, capsys):
        run, plan, model = begin(tmp_path / "run", job)

        def full(*given, **named):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(loop, "gradient", full)
        monkeypatch.setattr(Learner, "save", full)
        with pytest.raises(StepError, match="too little memory"):
            fit(job, plan, model, run, Journal())
        assert "cannot be saved: CUDA out of memory" in capsys.readouterr().out

    def test_that_is_cut_between_an_update_and_its_count_keeps_the_checkpoint_before_it(
        self, job, tmp_path, monkeypatch
    ):
        run, plan, model = begin(tmp_path / "run", job, row_every=1000, save_every=3)
        count = Progress.count

        def cut(progress, vital, made):
            if progress.step == 4:
                raise KeyboardInterrupt
            count(progress, vital, made)

        monkeypatch.setattr(Progress, "count", cut)
        with pytest.raises(KeyboardInterrupt):
            fit(job, plan, model, run, Journal(quiet=True))
        assert newest(run.path).step == 3

    def test_tells_the_seconds_of_a_row_from_its_own_step(self, job, tmp_path):
        run, plan, model = begin(tmp_path / "run", job, points=((0, 0.0, 1),))
        journal = Journal(quiet=True)
        fit(job, plan, model, run, journal)
        assert journal.rows[0]["seconds"] > 0


@pytest.mark.parametrize(
    "text", ["", "epoch,step\n1\n", "epoch,step\n1,x\n", "epoch\n1\n", "epoch,step\n1,2\0\n\udcff"]
)
def test_a_damaged_table_of_metrics_is_named_with_the_way_on(tmp_path, text):
    (tmp_path / "metrics.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"metrics\.csv is damaged \(.*\): move it away, and the run goes on"):
        Journal(quiet=True).settle(tmp_path, 9)
    MuteJournal().settle(tmp_path, 9)  # another process than the first does not look


class TestTheAccount:
    def test_what_came_after_a_checkpoint_is_dropped_when_the_run_goes_on_from_it(self, tmp_path):
        incidents = Incidents(tmp_path)
        incidents.keep(3)
        for step in (1, 2, 3):
            incidents.add(step, "odd", Vital(0.5, 1.5, 2.5), 1e-3, ["a,b.png"], ["a,b.png", "c\nd.png"])
        with open(incidents.path, "ab") as file:
            file.write(b"4,od")  # killed as it wrote
        incidents.keep(2)
        with open(incidents.path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows] == ["1", "2"]
        assert (rows[0]["loss"], rows[0]["rate"], rows[0]["suspects"]) == ("0.5", "0.001", "a,b.png")
        incidents.keep(0)
        assert not incidents.path.exists()

    def test_of_a_large_batch_with_long_names_is_read_again(self, tmp_path):
        incidents, names = Incidents(tmp_path), [f"{number:0200}.png" for number in range(1024)]
        incidents.add(1, "odd", pictures=names)
        before = incidents.path.read_bytes()
        assert len(before) > 131_072
        incidents.keep(1)
        assert incidents.path.read_bytes() == before

    def test_no_name_becomes_a_formula(self, tmp_path):
        Incidents(tmp_path).add(1, "odd", None, None, ["=1+1.png"], ["@a.png"])
        assert b",'=1+1.png,'@a.png\n" in (tmp_path / "incidents.csv").read_bytes()

    def test_a_few_names_are_said_and_how_many_more_there_are(self):
        assert some(["a", "b"]) == "a, b"
        assert some(list("abcde")) == "a, b, c and 2 more"


def test_nothing_sound_is_ever_near_the_limit(job, tmp_path):
    """Largest loss, gradient and pixels of a run from scratch, in the units of the limit."""
    run, plan, model = begin(tmp_path / "run", job, points=((0, 0.0, 60),), lr=1e-2)
    fit(job, plan, model, run, Journal(quiet=True))
    recent = [Vital(*seen) for seen in newest(run.path).values["recent"]]
    assert len(recent) == WINDOW
    assert max(seen.loss for seen in recent) < 0.05 * OUTLIER
    assert max(seen.pixels for seen in recent) < 0.05 * OUTLIER
