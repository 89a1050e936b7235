"""Several processes of torchrun train the model that one trains, answer as one answers, and fail as one."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranked
import torch
from forks import Forked
from making import PATIENCE
from safetensors.torch import load_file, save_file
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

import vitreous
from vitreous.data.batches import divide_rows
from vitreous.errors import ElsewhereError, InputError
from vitreous.model.vit import build
from vitreous.rundir import RunDir
from vitreous.training import train
from vitreous.training.journal import read_rows
from vitreous.training.planner import make_plan
from vitreous.training.recipe import TrainConfig
from vitreous.training.torchrun import is_loss, joined
from vitreous.training.world import ALONE, World
from vitreous.verbs.output import speaks


class TestRows:
    @pytest.mark.parametrize(
        ("size", "ranks", "cell", "rows"),
        [
            (20, 2, 8, ((0, 8), (8, 20))),
            (24, 2, 8, ((0, 8), (8, 24))),
            (5, 3, 1, ((0, 1), (1, 3), (3, 5))),
            (64, 1, 8, ((0, 64),)),
        ],
    )
    def test_each_process_has_whole_cells_and_all_have_all(self, size, ranks, cell, rows):
        assert divide_rows(size, ranks, cell) == rows

    def test_a_batch_with_fewer_cells_than_processes_is_refused_with_one_that_fits(self):
        with pytest.raises(InputError, match=r"16 pictures is too small for 4 processes.*--batch 32"):
            divide_rows(16, 4, 8)


class TestAlone:
    def test_without_torchrun_there_is_one_process(self):
        with joined() as world:
            assert world == World() == ALONE
        assert world.first
        assert world.agree(lambda: "as it is") == "as it is"

    def test_half_of_what_torchrun_says_is_refused(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.delenv("RANK", raising=False)
        with pytest.raises(InputError, match="RANK"), joined():
            pass

    def test_processes_that_do_not_find_each_other_say_what_is_missing(self, monkeypatch):
        for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        with pytest.raises(InputError, match=r"do not find each other \[.*MASTER_ADDR"), joined():
            pass

    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            ({}, True),
            ({"RANK": "1"}, True),  # of something else than torchrun
            ({"RANK": "1", "WORLD_SIZE": "1"}, True),
            ({"RANK": "0", "WORLD_SIZE": "2"}, True),
            ({"RANK": "1", "WORLD_SIZE": "2"}, False),
        ],
    )
    def test_the_first_of_several_speaks_and_one_that_is_alone(self, monkeypatch, variables, expected):
        for name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert speaks() == expected


class TestFailing:
    def test_where_the_first_in_turn_fails_the_others_end(self):
        store = HashStore()
        first, second = (World(rank, 2, rank, store=store) for rank in (0, 1))

        def fail() -> None:
            raise InputError("what the first one met")

        with pytest.raises(InputError, match="what the first one met"):
            first.in_turn(fail)
        with pytest.raises(ElsewhereError):
            second.in_turn(lambda: None)

    @pytest.mark.parametrize(
        ("text", "lost"),
        [
            ("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1", True),
            ("The TCPStore is gone", True),
            ("the weights cannot be restored", False),
        ],
    )
    def test_what_says_that_a_process_is_gone_is_told_from_other_faults(self, text, lost):
        assert is_loss(RuntimeError(text)) == lost

    def test_a_loss_lies_behind_what_is_raised_because_of_it(self):
        try:
            try:
                raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
            except RuntimeError as fault:
                raise InputError("step 3 failed") from fault
        except InputError:
            with pytest.raises(SystemExit) as raised:
                sys.exit(143)
        assert is_loss(raised.value)

    @pytest.mark.parametrize(
        ("restarts", "expected"),
        [(0, "start torchrun as before with: -m vitreous train --resume runs/one"), (1, "starts all of them again")],
    )
    def test_where_a_process_is_gone_the_run_says_how_it_goes_on(self, monkeypatch, restarts, expected):
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(3 - restarts))
        assert expected in train._after_a_loss(Path("runs/one"))


class TestStartedAgain:
    """What torchrun has started again, before the first step: it removes what it had begun, and nothing else."""

    @pytest.fixture(autouse=True)
    def again(self, monkeypatch):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")

    def begun(self, folder: Path) -> bool:
        return train._was_begun(TrainConfig(), folder)

    @pytest.mark.parametrize(
        "names", [[".git/HEAD"], ["config.json", "log.txt"], ["last/mine.txt"], ["last/", "notes/"]]
    )
    def test_a_folder_of_the_users_stays(self, tmp_path, names):
        for name in names:
            path = tmp_path / "own" / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.write_text("mine")
        before = sorted((tmp_path / "own").rglob("*"))
        assert not self.begun(tmp_path / "own")
        assert sorted((tmp_path / "own").rglob("*")) == before
        with pytest.raises(InputError, match="expected a new or empty folder"):
            RunDir.check_free(tmp_path / "own")

    def test_a_run_without_a_step_makes_room(self, tmp_path):
        run = RunDir.create(tmp_path / "run")
        run.write_json("config.json", {})
        for name in ("log.txt", ".batch.png-0123abcd.tmp", "last/.step-000000000.safetensors-0123abcd.tmp"):
            (run.path / name).touch()
        assert not self.begun(run.path)
        assert not run.path.exists()


@pytest.fixture(scope="module")
def compared(shapes, tmp_path_factory) -> tuple[dict[str, Any], dict[str, Any], Path, str]:
    """What one process came to, what two did, where their states are, and what they said."""
    folder, job = tmp_path_factory.mktemp("ranks"), ranked.small_job(str(shapes))
    config = TrainConfig.of(**ranked.OPTIONS)
    plan = make_plan(job, config, build(job.model, 0), torch.device("cpu"))
    (folder / "plan.json").write_text(json.dumps(plan.to_json()), "utf-8")
    alone: dict[str, Any] = {}
    for name in ("whole", "whole, muon"):
        own = dataclasses.replace(plan, **ranked.CASES[name])
        found, state = ranked.learn(job, own)
        path = folder / f"alone, {own.optimizer}.safetensors"
        save_file(ranked.kept(state.tensors), path)
        resumed, _ = ranked.learn(job, own, start=ranked.state_at(path, ranked.STEPS))
        for case in (name, name.replace("whole", "divided")):
            alone |= {case: found, f"{case}, resumed": resumed}
    _, said = Forked(ranked.launch, str(shapes), folder).communicate(2 * PATIENCE)
    assert (folder / "answers.json").exists(), said
    return alone, json.loads((folder / "found.json").read_text("utf-8")), folder, said


class TestTwoProcesses:
    @pytest.mark.parametrize("case", [*ranked.CASES, *(f"{case}, resumed" for case in ranked.CASES)])
    def test_they_take_the_steps_of_one(self, compared, case):
        alone, found = compared[0][case], compared[1][case]
        assert found["pictures"] == alone["pictures"]
        np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-4)
        np.testing.assert_allclose(found["outputs"], alone["outputs"], atol=2e-3 if "muon" in case else 2e-4)

    @pytest.mark.parametrize("case", ranked.CASES)
    def test_their_weights_have_the_same_bits(self, compared, case):
        first, second = compared[1][case]["bits"]
        assert first == second

    @pytest.mark.parametrize("case", ranked.CASES)
    def test_their_state_is_written_as_that_of_one(self, compared, case):
        _, _, folder, _ = compared
        one = load_file(folder / f"alone, {ranked.CASES[case]['optimizer']}.safetensors")
        two = load_file(folder / f"{case}.safetensors")
        assert {name: tensor.shape for name, tensor in two.items()} == {name: t.shape for name, t in one.items()}
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-4 if "muon" not in case else 2e-3)

    def test_they_agree(self, compared):
        assert compared[1]["sums"] == [True, False, 7.5]
        assert compared[1]["turns"] == [0, 1]

    def test_where_one_fails_it_says_why_and_the_others_end(self, compared):
        assert compared[3].count("what the first process alone can know") == 1
        assert "gloo" not in compared[3]  # process 1 was killed before


class TestKilledAndStartedAgain:
    @pytest.mark.usefixtures("unpainted")
    def test_the_run_goes_on_and_ends_as_that_of_one_process(self, compared, shapes, tmp_path):
        folder = compared[2]
        assert json.loads((folder / "answers.json").read_text("utf-8"))["again"]
        alone = vitreous.train(shapes, out=tmp_path / "alone", **ranked.RUN)
        two, one = read_rows(folder / "run", 1000), read_rows(alone, 1000)
        assert [row["step"] for row in two] == [row["step"] for row in one]
        for name in ("train_loss", "val_loss"):
            np.testing.assert_allclose([row[name] for row in two], [row[name] for row in one], rtol=1e-3)

    def test_they_answer_as_one(self, compared, shapes):
        found = json.loads((compared[2] / "answers.json").read_text("utf-8"))
        predictor = vitreous.load(compared[2] / "run", engine="torch", precision="fp32")
        result = vitreous.evaluate(predictor, shapes, split="all", say=lambda text: None)
        assert found["names"] == list(result.names)
        np.testing.assert_allclose(found["answers"], result.answers, atol=1e-6)
