"""Training: the same bits each time, killed or not; nothing that is not finite; every task from data to a run."""

import csv
import dataclasses
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from making import (
    TOY,
    TOY_WORDS,
    blob,
    json_of,
    kill_when,
    make_blobs,
    make_shapes,
    make_unbalanced,
    newest,
    same_bits,
    shape,
    tree,
    unpainted,
    weights,
)
from PIL import Image
from safetensors.torch import save_file

import vitreous
from vitreous.data.store import PixelStore
from vitreous.errors import InputError
from vitreous.model.vit import build
from vitreous.rundir import Checkpoint, RunDir, newest_step
from vitreous.training.journal import Journal
from vitreous.training.learner import Learner, update
from vitreous.training.loop import fit
from vitreous.training.plan import Plan
from vitreous.training.prepare import Job, prepare_again
from vitreous.training.recipe import TrainConfig, choose_device, choose_precision
from vitreous.training.steps import training_batches
from vitreous.training.train import _plan_here
from vitreous.training.world import ALONE

SHORT = {**TOY, "epochs": 2, "batch": 8}
LONG = {"model": "toy", "size": "24x32", "threads": 1, "epochs": 6, "batch": 8, "save_every": 3}
LONG_WORDS = (*TOY_WORDS[:6], "--epochs", "6", "--batch", "8", "--save-every", "3")


def rows_of(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same_run(run: Path, other: Path) -> None:
    """Equal weights, optimizer, average and progress, bit for bit, and one row of metrics an epoch, the same."""
    assert same_bits(weights(run), weights(other))
    a, b = newest(run), newest(other)
    assert a.step == b.step
    assert same_bits(a.tensors, b.tensors)
    assert {**a.values, "seconds": 0} == {**b.values, "seconds": 0}
    assert rows_of(run) == rows_of(other)
    steps = [int(row["step"]) for row in rows_of(run)]
    assert steps == sorted(set(steps))


def half_done(run: Path, at: int = 6) -> bool:
    return newest_step(run) >= at


def assert_unfinished(run: Path) -> None:
    assert 0 < newest_step(run) < json_of(run, "plan.json")["points"][-1][2]
    assert not (run / "model.safetensors").exists()


@pytest.fixture(scope="module")
@unpainted()
def first(shapes, tmp_path_factory) -> Path:
    return vitreous.train(shapes, out=tmp_path_factory.mktemp("runs") / "first", seed=3, **SHORT)


@pytest.mark.usefixtures("unpainted")
class TestTheSameBits:
    @pytest.mark.parametrize("workers", [0, 1, 2])
    def test_one_seed_gives_equal_weights_with_any_workers(self, shapes, first, tmp_path, workers):
        again = vitreous.train(shapes, out=tmp_path / "run", seed=3, workers=workers, **SHORT)
        assert_same_run(again, first)

    def test_another_seed_gives_other_weights(self, shapes, first, tmp_path):
        other = vitreous.train(shapes, out=tmp_path / "run", seed=4, **SHORT)
        assert not same_bits(weights(other), weights(first))

    def test_pixels_decoded_anew_at_every_epoch_give_the_same_weights_as_the_cache(self, shapes, first, tmp_path):
        again = vitreous.train(shapes, out=tmp_path / "run", seed=3, cache="off", **SHORT)
        assert same_bits(weights(again), weights(first))


@pytest.fixture(scope="module")
@unpainted()
def whole(shapes, tmp_path_factory) -> Path:
    """A run that nothing has disturbed."""
    return vitreous.train(shapes, out=tmp_path_factory.mktemp("runs") / "whole", **LONG)


@pytest.mark.usefixtures("unpainted")
class TestKilledAndResumed:
    def test_a_vit_ends_with_the_bits_of_the_run_that_was_not_killed(self, shapes, whole, tmp_path):
        run = tmp_path / "killed"
        kill_when(("train", shapes, "--out", run, *LONG_WORDS), lambda: half_done(run))
        assert_unfinished(run)
        vitreous.train(resume=run)
        assert_same_run(run, whole)

    def test_a_t2t_vit_does_too(self, shapes, tmp_path):
        run, options = tmp_path / "killed", {**LONG, "model": "toy_t2t", "optimizer": "adamw"}
        words = ("--model", "toy_t2t", "--optimizer", "adamw", *LONG_WORDS[2:])
        kill_when(("train", shapes, "--out", run, *words), lambda: half_done(run))
        assert_unfinished(run)
        vitreous.train(resume=run)
        assert_same_run(run, vitreous.train(shapes, out=tmp_path / "whole", **options))

    def test_portrait_and_landscape_mixed_and_killed_twice_does_too(self, tmp_path):
        data, run = make_shapes(tmp_path / "mixed", mixed=True), tmp_path / "killed"
        words = ("--model", "toy", "--size", "28", "--threads", "1", *LONG_WORDS[6:])
        kill_when(("train", data, "--out", run, *words, "--workers", "2"), lambda: half_done(run))
        assert_unfinished(run)
        at = newest_step(run)
        kill_when(("train", "--resume", run), lambda: half_done(run, at + 6))
        assert_unfinished(run)
        vitreous.train(resume=run)
        whole = vitreous.train(data, out=tmp_path / "whole", **{**LONG, "size": 28, "workers": 2})
        assert len(json_of(whole, "config.json")["input"]["sizes"]) == 2
        assert_same_run(run, whole)

    def test_a_run_of_minutes_gives_the_bits_of_its_plan_which_is_written_before_it_is_used(self, shapes, tmp_path):
        run, whole = tmp_path / "killed", tmp_path / "whole"
        words = ("--batch", "4", "--save-every", "3", *LONG_WORDS[:6])
        for minutes in ("0.1", "0.3", "1"):  # on a busy machine a short one may be planned to have a step or two
            with suppress(AssertionError):
                kill_when(("train", shapes, "--out", run, "--minutes", minutes, *words), lambda: half_done(run, 3))
                break
            shutil.rmtree(run)
        assert_unfinished(run)
        first = json_of(run, "plan.json")
        shutil.copytree(run, whole)  # to be run from the first step to the last
        for path in (*whole.glob("last/*"), whole / "metrics.csv"):
            path.unlink(missing_ok=True)
        vitreous.train(resume=run)
        plan = json_of(run, "plan.json")
        assert {**plan, "points": 0} == {**first, "points": 0}
        RunDir(whole).write_json("plan.json", {**plan, "budget": 0.0})  # no clock has a say any more
        vitreous.train(resume=whole)
        assert newest_step(run) == plan["points"][-1][2]
        assert_same_run(run, whole)

    def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(self, whole, tmp_path, capsys):
        run = tmp_path / "damaged"
        shutil.copytree(whole, run)
        (run / "model.safetensors").unlink()
        last = max(run.glob("last/*"))
        with open(last, "r+b") as file:
            file.seek(-1000, 2)
            file.write(b"\xff" * 8)
        capsys.readouterr()
        vitreous.train(resume=run)
        assert f"{last} is damaged" in capsys.readouterr().out
        assert_same_run(run, whole)

    def test_a_finished_run_stays_as_it_is(self, first, tmp_path):
        run = tmp_path / "copy"
        shutil.copytree(first, run)
        vitreous.train(resume=run)
        assert_same_run(run, first)

    def test_data_that_changed_is_named(self, tmp_path):
        data = make_shapes(tmp_path / "data", each=4)
        run = vitreous.train(data, out=tmp_path / "run", **{**SHORT, "epochs": 1})
        Image.fromarray(shape(np.random.default_rng(9), (1, 2, 3))).save(data / "red" / "02.png")
        with pytest.raises(InputError, match=r"these pictures are others now:\n  red/02\.png"):
            vitreous.train(resume=run)
        (data / "blue" / "03.png").unlink()
        with pytest.raises(InputError, match=r"these pictures are gone:\n  blue/03\.png"):
            vitreous.train(resume=run)

    def test_data_that_were_moved_are_said_once(self, tmp_path):
        data = make_shapes(tmp_path / "data", each=4)
        run = vitreous.train(data, out=tmp_path / "run", **{**SHORT, "epochs": 1})
        moved, other = data.rename(tmp_path / "moved"), make_shapes(tmp_path / "other", each=3)
        with pytest.raises(InputError, match=rf"gone from {data}; .*: vitreous train DATA --resume {run}"):
            vitreous.train(resume=run)
        with pytest.raises(InputError, match=rf"{other} changed since the run began"):
            vitreous.train(other, resume=run)
        before = weights(run)
        vitreous.train(moved, resume=run)
        vitreous.train(resume=run)
        assert same_bits(weights(run), before)

    def test_takes_no_other_options(self, first):
        with pytest.raises(InputError, match="the options it began with"):
            vitreous.train(resume=first, epochs=7)


@pytest.fixture(scope="module")
@unpainted()
def small(tmp_path_factory) -> tuple[Path, Job, Plan]:
    """A small finished regression run, its job and plan."""
    root = tmp_path_factory.mktemp("small")
    table = make_blobs(root / "blobs", 40)
    options = {**TOY, "size": "24x40", "epochs": 4, "batch": 8, "save_every": 3, "precision": "fp32"}
    run = vitreous.train(table, out=root / "run", **options)
    job = prepare_again(RunDir.open(run), Journal(quiet=True))
    return run, job, Plan.from_json(json_of(run, "plan.json"))


def learner_of(job: Job, plan: Plan) -> Learner:
    return Learner(build(job.model, plan.seed), job, plan)


class Poisoned(PixelStore):
    """Gives NaN for pixels at some of its calls."""

    def __init__(self, store: PixelStore, calls: range):
        self.__dict__.update(store.__dict__)
        self.calls, self.number = calls, 0

    def gather(self, numbers: np.ndarray) -> torch.Tensor:
        pixels = super().gather(numbers)
        self.number += 1
        return pixels * torch.nan if self.number in self.calls else pixels


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is a GPU")
def test_a_run_that_began_on_a_gpu_goes_on_without_one_and_says_so(small, capsys):
    plan = dataclasses.replace(small[2], device="cuda", precision="bf16", torch=torch.__version__)
    found = _plan_here(plan, TrainConfig(), False, ALONE, Journal())
    assert found.device == str(choose_device("auto"))
    assert found.precision == choose_precision("auto", choose_device("auto"))
    assert f"not bit-exact: the run began on cuda, this machine computes on {found.device}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("began", "said"),
    [("Another One", "not bit-exact: the run began on Another One, this is This One\n"), ("This One", ""), ("", "")],
)
def test_a_run_that_goes_on_with_another_processor_says_so(small, capsys, monkeypatch, began, said):
    monkeypatch.setattr("vitreous.training.train.processor_name", lambda: "This One")
    plan = dataclasses.replace(small[2], device="cpu", threads=1, torch=torch.__version__, processor=began)
    assert _plan_here(plan, TrainConfig(device="cpu"), False, ALONE, Journal()) == plan
    assert capsys.readouterr().out == said


@pytest.mark.usefixtures("unpainted")
class TestNotFinite:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_an_update_leaves_every_bit_as_it_was(self, small, bad):
        _, job, plan = small
        learner = learner_of(job, plan)
        batches, _ = training_batches(job, plan)
        for step in range(3):
            assert update(learner, batches.make(step))[1]
        before = {name: tensor.clone() for name, tensor in learner.checkpoint().tensors.items()}
        batch = batches.make(3)
        batch.pixels[2, 0, 5, 5] = bad
        loss, finite = update(learner, batch)
        assert not finite
        assert not np.isfinite(loss)
        assert same_bits(learner.checkpoint().tensors, before)
        assert update(learner, batches.make(3))[1]
        assert not same_bits(learner.checkpoint().tensors, before)

    def run_poisoned(self, small, tmp_path, calls: range) -> tuple[RunDir, torch.nn.Module, list[dict]]:
        source, job, plan = small
        run = RunDir.create(tmp_path / "run")
        for name in ("config.json", "plan.json", "split.csv"):
            shutil.copy(source / name, run.path / name)
        job = dataclasses.replace(job, store=Poisoned(job.store, calls))
        plan = dataclasses.replace(plan, row_every=1000)  # so that only training batches are gathered, one a step
        journal = Journal(quiet=True)
        model = fit(job, plan, build(job.model, plan.seed), run, journal)
        return run, model, journal.rows

    def test_one_bad_batch_is_passed_over_and_said(self, small, tmp_path):
        run, model, rows = self.run_poisoned(small, tmp_path, range(5, 6))
        log = (run.path / "log.txt").read_text("utf-8")
        assert log.count("not finite") == 1
        assert "step 5: loss or gradient is not finite" in log
        assert all(torch.isfinite(p).all() for p in model.parameters())
        assert np.isfinite(rows[-1]["train_loss"])
        assert newest(run.path).values["rate_scale"] == 1

    def test_five_in_a_row_go_back_to_the_last_checkpoint_at_half_the_rate(self, small, tmp_path):
        run, model, rows = self.run_poisoned(small, tmp_path, range(5, 10))
        log = (run.path / "log.txt").read_text("utf-8")
        assert "5 updates in a row were not made: back to step 3, at 0.5 of the rate" in log
        assert all(torch.isfinite(p).all() for p in model.parameters())
        last, plan = newest(run.path), small[2]
        assert last.step == plan.steps
        assert last.values["rate_scale"] == 0.5
        assert rows[-1]["lr"] == plan.rate(plan.steps - 1) / 2

    def test_a_run_that_is_never_finite_ends_with_advice_and_keeps_its_last_good_state(self, small, tmp_path):
        with pytest.raises(InputError, match=r"does not stay finite.* try a lower --lr"):
            self.run_poisoned(small, tmp_path, range(5, 10_000))
        assert newest_step(tmp_path / "run") == 3

    def test_a_checkpoint_with_poisoned_weights_ends_with_advice_too(self, small, tmp_path):
        source, run = small[0], tmp_path / "run"
        shutil.copytree(source, run)
        (run / "model.safetensors").unlink()
        for path in run.glob("last/*"):
            path.unlink()
        learner = learner_of(*small[1:])
        state = learner.checkpoint()
        state.tensors["model.head.outputs.weight"].fill_(torch.nan)
        RunDir.open(run).save(Checkpoint(2, state.tensors, state.values))
        with pytest.raises(InputError, match="does not stay finite"):
            vitreous.train(resume=run)
        assert not (run / "model.safetensors").exists()


TUNE = {name: value for name, value in SHORT.items() if name != "model"}


@pytest.mark.usefixtures("unpainted")
class TestInit:
    def test_weights_of_the_same_classes_are_all_taken(self, shapes, first, tmp_path, capsys):
        run = vitreous.train(shapes, out=tmp_path / "run", init=first, **{**TUNE, "epochs": 1})
        assert f"weights from {first}\n" in capsys.readouterr().out
        assert same_bits(weights_at_start(run), weights(first))

    def test_other_classes_get_a_new_head_on_the_old_weights(self, first, tmp_path, capsys):
        data = make_unbalanced(tmp_path / "data")
        run = vitreous.train(data, out=tmp_path / "run", init=str(first), **{**TUNE, "epochs": 1})
        assert f"weights from {first}; new: head.outputs.weight, head.outputs.bias" in capsys.readouterr().out
        start, old = weights_at_start(run), weights(first)
        assert start["head.outputs.weight"].shape[0] == 2
        body = [name for name in old if not name.startswith("head.")]
        assert same_bits({n: start[n] for n in body}, {n: old[n] for n in body})

    def test_a_run_that_began_so_is_resumed_without_the_first_one(self, shapes, first, tmp_path):
        init = tmp_path / "init"
        shutil.copytree(first, init)
        run = vitreous.train(shapes, out=tmp_path / "run", init=init, **{**TUNE, "epochs": 1})
        shutil.rmtree(init)
        whole = tmp_path / "whole"
        shutil.copytree(run, whole)
        for path in (*run.glob("last/*"), run / "metrics.csv"):
            path.unlink()
        vitreous.train(resume=run)
        assert_same_run(run, whole)

    def test_pixels_are_normalised_as_they_were_and_pictures_take_the_area_the_model_is_made_for(self, first, tmp_path):
        data = tmp_path / "data"
        for name in ("bright", "dark"):
            (data / name).mkdir(parents=True)
            for i in range(8):
                pixels = np.full((9, 9, 3), 200 if name == "bright" else 20, np.uint8) + np.uint8(i)
                Image.fromarray(pixels).save(data / name / f"{i}.png")
        options = {name: value for name, value in TUNE.items() if name != "size"}
        run = vitreous.train(data, out=tmp_path / "run", init=first, **{**options, "epochs": 1})
        old, new = json_of(first, "config.json"), json_of(run, "config.json")
        assert (new["input"]["mean"], new["input"]["std"]) == (old["input"]["mean"], old["input"]["std"])
        made_for, taken = old["model"]["image_size"], new["input"]["sizes"][0]
        assert 0.7 < np.prod(taken) / np.prod(made_for) < 1.4

    def test_a_model_of_ones_own_beside_init_is_refused_and_nothing_is_left(self, shapes, first, tmp_path):
        with pytest.raises(InputError, match="--init brings its own model"):
            vitreous.train(shapes, out=tmp_path / "run", init=first, **{**SHORT, "model": "vit_ti_8"})
        assert not (tmp_path / "run").exists()

    def test_a_recipe_beside_init_is_refused(self, shapes, first, tmp_path):
        with pytest.raises(InputError, match="recipe is t2t: --init brings a model"):
            vitreous.train(shapes, out=tmp_path / "run", init=first, recipe="t2t", **TUNE)

    def test_a_frozen_encoder_keeps_its_weights_and_the_head_learns(self, shapes, first, tmp_path):
        options = {**TUNE, "epochs": 2}
        run = vitreous.train(shapes, out=tmp_path / "run", init=first, freeze="encoder", **options)
        start, end = weights_at_start(run), RunDir.open(run).read_weights()
        changed = {name for name in end if not torch.equal(start[name], end[name])}
        assert changed == {"head.outputs.weight", "head.outputs.bias"}

    def test_with_layer_decay_early_layers_move_less(self, shapes, first, tmp_path):
        options = {**TUNE, "epochs": 1}
        run = vitreous.train(shapes, out=tmp_path / "run", init=first, layer_decay=0.1, weight_decay=0.0, **options)
        start, end = weights_at_start(run), RunDir.open(run).read_weights()
        moved = {n: float((end[n] - start[n]).abs().max()) for n in end}
        late = moved["blocks.1.mlp.contract.weight"]
        assert 0 < moved["blocks.0.mlp.contract.weight"] < 0.2 * late

    def test_another_projects_checkpoint_is_a_beginning(self, shapes, tmp_path):
        donor = vitreous.create("deit_ti_16", image_size=(32, 32), outputs=7, depth=2, seed=3)
        names = {"prefix": "cls_token", "position.tables.0.table": "pos_embed"}
        parts = (
            ("tokenizer.projection.", "patch_embed.proj."),
            ("attention_norm", "norm1"),
            ("attention.projection", "attn.proj"),
            ("attention.qkv", "attn.qkv"),
            ("mlp_norm", "norm2"),
            ("mlp.expand", "mlp.fc1"),
            ("mlp.contract", "mlp.fc2"),
            ("head.outputs.", "head."),
        )
        theirs = {}
        for name, tensor in donor.state_dict().items():
            new = names.get(name, name)
            for ours, timms in parts:
                new = new.replace(ours, timms)
            theirs[new] = tensor[None].contiguous() if name in names else tensor
        save_file(theirs, tmp_path / "deit.safetensors")
        options = {**TUNE, "size": "32x48", "epochs": 1}
        run = vitreous.train(shapes, out=tmp_path / "run", init=tmp_path / "deit.safetensors", **options)
        start = weights_at_start(run)
        assert torch.equal(start["blocks.1.mlp.expand.weight"], donor.state_dict()["blocks.1.mlp.expand.weight"])
        assert not start["head.outputs.weight"].any()


def weights_at_start(run: Path) -> dict[str, torch.Tensor]:
    return RunDir.open(run).read_weights("initial.safetensors")


class TestTasks:
    def test_a_computable_place_is_learned_from_grey_float_pictures_with_an_interval(self, blobs_run):
        """Non-square, single-channel, .npy, through `vitreous train table.csv`."""
        result = json_of(blobs_run, "validation.json")["summary"]["targets"]["place (mm)"]
        assert result["r2"] >= 0.95
        assert result["unit"] == "mm"
        spec = json_of(blobs_run, "config.json")["input"]
        assert (spec["channels"], spec["depth"], spec["sizes"]) == (1, "float32", [[20, 36]])

        rng = np.random.default_rng(77)
        pictures, places = zip(*(blob(rng) for _ in range(80)), strict=True)
        found = vitreous.load(blobs_run).predict(list(pictures))
        true = np.array(places) / 2
        values = np.array([p.values["place (mm)"] for p in found])
        low, high = np.array([p.intervals["place (mm)"] for p in found]).T
        assert 1 - ((values - true) ** 2).sum() / ((true - true.mean()) ** 2).sum() >= 0.95
        assert (low < values).all()
        assert (values < high).all()
        assert 0.75 <= ((low <= true) & (true <= high)).mean() <= 1
        assert (high - low).max() < 0.5 * (true.max() - true.min())

    def test_several_labels_a_picture(self, tmp_path):
        rng, rows = np.random.default_rng(2), ["file,warm,left"]
        for i in range(32):
            pixels = rng.integers(0, 60, (24, 32, 3)).astype(np.uint8)
            warm, left = i % 2, i // 2 % 2
            pixels[4:20, 2 if left else 18 :][:, :12] = (220, 60, 30) if warm else (30, 60, 220)
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
            rows.append(f"{i}.png,{warm},{left}")
        (tmp_path / "table.csv").write_text("\n".join(rows), "utf-8")
        options = {**TOY, "epochs": 12, "batch": 8, "lr": 4e-3, "augment": "none"}
        run = vitreous.train(tmp_path / "table.csv", out=tmp_path / "run", **options)
        assert json_of(run, "config.json")["task"]["kind"] == "multilabel"
        assert json_of(run, "validation.json")["summary"]["map"] > 0.8
        assert {"val_loss", "map"} <= rows_of(run)[-1].keys()
        answer = vitreous.load(run).predict(tmp_path / "1.png")[0]
        assert set(answer.probabilities) == {"warm", "left"}
        assert set(answer.labels) == {name for name, p in answer.probabilities.items() if p >= 0.5}
        everything_drawn(run)

    def test_several_numbers_a_picture(self, tmp_path):
        rng, rows = np.random.default_rng(3), ["path,x (px),level"]
        for i in range(24):
            pixels, x = blob(rng)
            np.save(tmp_path / f"{i}.npy", pixels)
            rows.append(f"{i}.npy,{x:.3f},{1000 + rng.normal() * 50:.2f}")
        (tmp_path / "table.csv").write_text("\n".join(rows), "utf-8")
        run = vitreous.train(tmp_path / "table.csv", out=tmp_path / "run", **{**SHORT, "size": "24x40"})
        answer = vitreous.load(run).predict(tmp_path / "3.npy")[0]
        assert answer.units == {"x (px)": "px", "level": ""}
        assert 4 < answer.values["x (px)"] < 32  # given back in their own units
        assert 850 < answer.values["level"] < 1150
        everything_drawn(run)

    @pytest.mark.usefixtures("unpainted")
    def test_group_column_keeps_groups_on_one_side(self, tmp_path):
        table = make_blobs(tmp_path / "blobs", 24)
        head, *rows = table.read_text("utf-8").splitlines()
        table.write_text("\n".join([f"{head},patient", *(f"{row},p{i // 4}" for i, row in enumerate(rows))]), "utf-8")
        options = {**SHORT, "size": "24x40", "epochs": 1, "group": "patient", "target": "place (mm)"}
        run = vitreous.train(table, out=tmp_path / "run", **options)
        sides = {}
        for row in RunDir.open(run).read_split():
            sides.setdefault(int(row.path.split(".")[0]) // 4, set()).add(row.split)
        assert sorted(map(len, sides.values())) == [1] * 6
        assert set().union(*sides.values()) == {"train", "validation"}


def everything_drawn(run: Path) -> None:
    """Every file that a run promises is there and of its kind."""
    for name in ("curves.png", "confusion.png", "batch.png", "worst.png"):
        with Image.open(run / name) as image:
            assert min(image.size) > 50, name
    for name in ("config.json", "plan.json", "validation.json"):
        assert json_of(run, name)
    assert weights(run)
    assert newest(run).step == json_of(run, "plan.json")["points"][-1][2]
    assert rows_of(run)
    assert RunDir.open(run).read_split()
    assert "plan: " in (run / "log.txt").read_text("utf-8")
    assert not [path for path in tree(run) if path.endswith(".tmp")]


class TestTheRunDirectory:
    def test_holds_every_file_and_no_temporary(self, shapes_run):
        everything_drawn(shapes_run)

    @pytest.mark.usefixtures("unpainted")
    def test_without_out_it_is_named_for_data_and_model_in_runs(self, shapes, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("runs/new").mkdir(parents=True)
        Path("runs/new/config.json").touch()  # whatever is there already
        run = vitreous.train(shapes, **{**SHORT, "epochs": 1})
        assert run.parent == Path("runs")
        assert run.name.startswith("shapes-toy-20")

    @pytest.mark.usefixtures("unpainted")
    def test_split_lists_every_picture_once_and_test_pictures_are_not_trained_on(self, tmp_path):
        data = tmp_path / "data"
        for split, seed in (("train", 0), ("validation", 1), ("test", 2)):
            make_shapes(data / split, each=4, seed=seed)
        run = vitreous.train(data, out=tmp_path / "run", **{**SHORT, "epochs": 1})
        rows = RunDir.open(run).read_split()
        assert [row.split for row in rows] == [row.path.split("/")[0] for row in rows]
        assert sorted(row.path for row in rows) == sorted(
            path.relative_to(data).as_posix() for path in data.rglob("*.*g")
        )
        job = prepare_again(RunDir.open(run), Journal(quiet=True))
        assert len(job.store) == 24
        assert (len(job.training), len(job.validation)) == (12, 12)

    def test_the_classes_are_learned(self, shapes_run):
        assert json_of(shapes_run, "validation.json")["summary"]["top1"] == 1
