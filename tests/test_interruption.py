"""Ctrl-C, SIGTERM and the clock: wherever they come, the run ends with the bits of one that was left in peace."""

import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forks import Forked
from making import TOY_WORDS, newest, same_bits, start
from tiny_runs import begin, make_arrays, tiny_job
from torch import nn

from vitreous.cli import main
from vitreous.errors import InputError
from vitreous.leaving import SIGNALS
from vitreous.model.vit import build
from vitreous.rundir import Checkpoint, RunDir, newest_step
from vitreous.training import loop
from vitreous.training.interruption import Interruption
from vitreous.training.journal import Journal, read_rows
from vitreous.training.loop import fit
from vitreous.training.plan import Plan
from vitreous.training.prepare import Job
from vitreous.training.recipe import TrainConfig, parse_save_every

posix = pytest.mark.skipif(os.name == "nt", reason="there a process cannot be sent these signals")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return tiny_job(tmp_path_factory.mktemp("data") / "arrays.npz")


@pytest.fixture(scope="module")
def whole(job: Job, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of 12 steps, three an epoch, that nothing disturbed."""
    run, plan, model = begin(tmp_path_factory.mktemp("runs") / "whole", job)
    fit(job, plan, model, run, Journal(quiet=True))
    return run


def assert_same(run: RunDir, other: RunDir) -> None:
    """Equal tensors and progress in the last checkpoint, and equal rows of metrics."""
    a, b = newest(run.path), newest(other.path)
    assert same_bits(a.tensors, b.tensors)
    assert (a.step, {**a.values, "seconds": 0}) == (b.step, {**b.values, "seconds": 0})
    rows = [[{**row, "seconds": 0} for row in read_rows(r.path, a.step)] for r in (run, other)]
    assert rows[0] == rows[1]


def go_on(run: RunDir, job: Job) -> nn.Module:
    plan = Plan.from_json(run.read_json("plan.json"))
    return fit(job, plan, build(job.model, plan.seed), run, Journal(quiet=True))


class TestSignals:
    def test_outside_of_a_with_nothing_is_handled_and_inside_old_handlers_come_back(self):
        before = [signal.getsignal(number) for number in SIGNALS]
        with Interruption():
            assert [signal.getsignal(number) for number in SIGNALS] != before
        assert [signal.getsignal(number) for number in SIGNALS] == before

    def test_what_is_ignored_stays_ignored(self):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with Interruption():
                signal.raise_signal(signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, before)

    def test_ctrl_c_is_a_keyboard_interrupt_and_sigterm_leaves_with_143(self):
        with pytest.raises(KeyboardInterrupt), Interruption():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit) as left, Interruption():
            signal.raise_signal(signal.SIGTERM)
        assert left.value.code == 143

    def test_what_is_held_is_not_cut(self):
        done = []

        def work(interruption: Interruption):
            with interruption.held():
                with interruption.held():
                    signal.raise_signal(signal.SIGTERM)
                    signal.raise_signal(signal.SIGTERM)  # as a supervisor sends them
                done.append("all")
            done.append("never")

        with pytest.raises(SystemExit), Interruption() as interruption:
            work(interruption)
        assert done == ["all"]

    def test_what_python_drops_is_raised_again_before_the_next_step(self, monkeypatch):
        monkeypatch.setattr(sys, "unraisablehook", lambda fault: None)

        class Something:
            pass

        with Interruption() as interruption:
            something = Something()
            watched = weakref.ref(something, lambda _: signal.raise_signal(signal.SIGTERM))
            del something  # the callback raises, and nobody hears of it
            assert watched() is None
            with pytest.raises(SystemExit):
                interruption.check()

    def test_a_second_ctrl_c_leaves_at_once_even_what_is_held(self):
        done = []

        def save():
            signal.raise_signal(signal.SIGTERM)
            done.append("saving")
            signal.raise_signal(signal.SIGINT)
            done.append("never")

        with pytest.raises(KeyboardInterrupt), Interruption() as interruption, interruption.held():
            save()
        assert done == ["saving"]

    def test_another_thread_than_the_main_one_handles_none(self):
        seen = []

        def enter():
            with Interruption() as interruption, interruption.held():
                seen.append(signal.getsignal(signal.SIGTERM))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert seen == [signal.getsignal(signal.SIGTERM)]


def send_when(monkeypatch: pytest.MonkeyPatch, function: str, call: int, number: int = signal.SIGTERM) -> None:
    """Lets a signal come as a function of the loop is called for the so-manieth time, before it does anything."""
    original, calls = getattr(loop, function), 0

    def watched(*words, **named):
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(number)
        return original(*words, **named)

    monkeypatch.setattr(loop, function, watched)


class TestARunThatIsInterrupted:
    @pytest.mark.parametrize(
        ("function", "call", "step"),
        [
            ("gradient", 5, 4),  # the step that is being computed is dropped
            ("make_update", 5, 5),  # the update is not cut in two
            ("measure", 2, 6),  # the row is made when the run goes on
            ("row_line", 2, 6),
            ("next_batch", 1, 0),
            ("keep_to_budget", 1, 2),
        ],
    )
    def test_is_saved_and_goes_on_to_the_same_bits(self, job, whole, tmp_path, monkeypatch, function, call, step):
        run, plan, model = begin(tmp_path / "run", job)
        with monkeypatch.context() as patch, Interruption() as interruption:
            send_when(patch, function, call)
            with pytest.raises(SystemExit) as left:
                fit(job, plan, model, run, Journal(quiet=True), interruption)
        assert left.value.code == 143
        assert newest(run.path).step == step
        go_on(run, job)
        assert_same(run, whole)

    def test_again_and_again_too(self, job, whole, tmp_path, monkeypatch):
        run, plan, _ = begin(tmp_path / "run", job)
        for function in ("measure", "gradient", "row_line", "measure"):
            with monkeypatch.context() as patch, Interruption() as interruption:
                send_when(patch, function, 1, signal.SIGINT)
                with pytest.raises(KeyboardInterrupt):
                    fit(job, plan, build(job.model, plan.seed), run, Journal(quiet=True), interruption)
        go_on(run, job)
        assert_same(run, whole)

    def test_a_step_that_takes_long_is_not_waited_for(self, job, whole, tmp_path, monkeypatch):
        run, plan, model = begin(tmp_path / "run", job)
        asked, ended = threading.Event(), threading.Event()
        backward, calls = torch.Tensor.backward, []

        def slow(tensor, *words, **named):
            calls.append(tensor)
            if len(calls) == 5:
                asked.set()
                ended.wait(60)
            return backward(tensor, *words, **named)

        monkeypatch.setattr(torch.Tensor, "backward", slow)
        main_thread = threading.get_ident()
        sender = threading.Thread(target=lambda: asked.wait(60) and signal.pthread_kill(main_thread, signal.SIGTERM))
        if os.name == "nt":
            pytest.skip("there a thread cannot be sent a signal")
        sender.start()
        with pytest.raises(SystemExit), Interruption() as interruption:
            fit(job, plan, model, run, Journal(quiet=True), interruption)
        assert newest(run.path).step == 4  # and the step is still being computed
        ended.set()
        sender.join()
        monkeypatch.undo()
        go_on(run, job)
        assert_same(run, whole)

    def test_a_full_disk_then_costs_no_more_than_what_was_done_since_the_last_checkpoint(
        self, job, whole, tmp_path, monkeypatch, capsys
    ):
        run, plan, model = begin(tmp_path / "run", job)
        with monkeypatch.context() as patch, Interruption() as interruption:
            send_when(patch, "make_update", 5)

            def full(self, checkpoint, keep=()):
                if checkpoint.step == 5:
                    raise OSError("no space")
                save(self, checkpoint, keep)

            save = RunDir.save
            patch.setattr(RunDir, "save", full)
            with pytest.raises(SystemExit):
                fit(job, plan, model, run, Journal(), interruption)
        assert "cannot be saved: no space" in capsys.readouterr().out
        assert newest(run.path).step == 3
        go_on(run, job)
        assert_same(run, whole)


class TestSaveEvery:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (None, (0, 0)),
            ("500", (500, 0)),
            ("90s", (0, 90)),
            ("5min", (0, 300)),
            ("1.5 h", (0, 5400)),
            ("2M", (0, 120)),
        ],
    )
    def test_is_steps_or_a_time(self, text, expected):
        assert parse_save_every(text) == expected

    @pytest.mark.parametrize("text", ["0", "-5", "1.5", "five", "5 days", "", "0min", "1e3"])
    def test_nothing_else(self, text):
        with pytest.raises(InputError, match=r"save_every is .*expected steps"):
            TrainConfig.of(save_every=text)

    def test_a_number_is_taken_too_and_a_run_directory_from_when_it_was_one(self, job, tmp_path):
        assert TrainConfig.of(save_every=7).save_every == "7"
        old = {**TrainConfig().to_json(), "save_every": 7}
        assert TrainConfig.from_json(old).save_every == "7"
        plan = begin(tmp_path / "run", job)[1].to_json()
        del plan["save_seconds"]
        assert Plan.from_json({**plan, "save_every": 7}).save_every == 7

    def test_by_the_clock_the_bits_are_the_same(self, job, whole, tmp_path, monkeypatch):
        run, plan, model = begin(tmp_path / "run", job, save_seconds=1e-9)
        saved = []
        save = RunDir.save
        monkeypatch.setattr(RunDir, "save", lambda self, c, keep=(): (saved.append(c.step), save(self, c, keep)))
        fit(job, plan, model, run, Journal(quiet=True))
        assert saved == list(range(13))
        assert_same(run, whole)

    def test_and_so_they_are_where_it_goes_back_because_that_is_to_what_the_plan_asked_for(self, job, tmp_path):
        """With checkpoints at every step or only at those of the plan, the way back ends at the same one."""
        runs = []
        for name, seconds in (("clock", 1e-9), ("plan", 0.0)):
            run, plan, model = begin(tmp_path / name, job, save_seconds=seconds)
            with pytest.MonkeyPatch.context() as patch:
                spoil(patch, range(5, 10))
                fit(job, plan, model, run, Journal(quiet=True))
            assert newest(run.path).values["rate_scale"] == 0.5
            assert newest(run.path).values["anchor"] == 12
            runs.append(run)
        assert_same(*runs)

    def test_an_interruption_on_the_way_changes_nothing_either(self, job, tmp_path):
        """Resumed in the middle of bad batches, after a checkpoint that the plan did not ask for."""
        runs = []
        for name, at in (("whole", 0), ("interrupted", 7)):
            run, plan, model = begin(tmp_path / name, job)
            with pytest.MonkeyPatch.context() as patch, Interruption() as interruption:
                spoil(patch, range(5, 10), signal_at=at)
                if at:
                    with pytest.raises(SystemExit):
                        fit(job, plan, model, run, Journal(quiet=True), interruption)
                    assert newest(run.path).values["refused"] == 3
                    fit(job, plan, build(job.model, plan.seed), run, Journal(quiet=True))
                else:
                    fit(job, plan, model, run, Journal(quiet=True))
            runs.append(run)
        assert_same(*runs)
        accounts = [(run.path / "incidents.csv").read_bytes() for run in runs]
        assert accounts[0] == accounts[1]
        assert accounts[0].count(b"not finite") == 5


def spoil(patch: pytest.MonkeyPatch, calls: range, signal_at: int = 0) -> None:
    """Makes the losses of the so-manieth gradients NaN; a signal comes with one of them."""
    original, count = loop.make_update, 0

    def spoiled(learner, vital):
        nonlocal count
        count += 1
        if count == signal_at:
            signal.raise_signal(signal.SIGTERM)
        return original(learner, vital._replace(loss=float("nan")) if count in calls else vital)

    patch.setattr(loop, "make_update", spoiled)


class TestCheckpoints:
    def test_one_that_reads_otherwise_than_it_was_written_is_said_and_older_ones_stay(self, tmp_path, monkeypatch):
        run = RunDir.create(tmp_path / "run")
        for step in (1, 2):
            run.save(Checkpoint(step, {"a": torch.full((9,), float(step))}, {}))
        replace = os.replace

        def failing_disk(source, target):
            content = bytearray(Path(source).read_bytes())
            content[-3] ^= 4
            Path(source).write_bytes(content)
            replace(source, target)

        monkeypatch.setattr(os, "replace", failing_disk)
        with pytest.raises(OSError, match="reads otherwise than it was written"):
            run.save(Checkpoint(3, {"a": torch.full((9,), 3.0)}, {}))
        assert sorted(os.listdir(run.path / "last")) == [f"step-{step:09}.safetensors" for step in (1, 2)]

    def test_those_that_are_to_be_kept_are(self, tmp_path):
        run = RunDir.create(tmp_path / "run")
        for step in range(6):
            run.save(Checkpoint(step, {"a": torch.zeros(1)}, {}), keep=(1, 9))
        assert [int(p.stem[-3:]) for p in sorted(run.path.glob("last/*"))] == [1, 4, 5]
        found = run.newest(print, until=3)
        assert found is not None
        assert found.step == 1

    def test_orphans_go_when_a_run_is_resumed(self, tmp_path):
        run = RunDir.create(tmp_path / "run")
        for name in (".model.safetensors-ab12.tmp", ".plan.json-1.tmp", "last/.step-3.safetensors-2.tmp"):
            (run.path / name).write_bytes(b"half")
        run.clean()
        assert [path for path in run.path.rglob("*") if path.is_file()] == []


def wait_for(process: Forked, due: Callable[[], bool]) -> None:
    while not due():
        if process.poll() is not None:
            pytest.fail(f"it ended before it was due: {process.communicate()}")
        time.sleep(0.005)


WORDS = (*TOY_WORDS, "--epochs", "1000", "--batch", "6")


@posix
class TestTheCommand:
    def test_sigterm_leaves_with_143_and_says_how_to_go_on_which_nobody_can_before(self, tmp_path, capsys):
        run = tmp_path / "run"
        data = make_arrays(tmp_path / "arrays.npz")
        process = start("train", data, "--out", run, "--save-every", "1", *WORDS)
        wait_for(process, lambda: newest_step(run) > 0)
        for words, fault in ((("--resume", run), "is being trained"), ((data, "--out", run), "exists")):
            assert main(["train", *map(str, words)]) == 2
            assert fault in capsys.readouterr().err
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (143, "")
        assert f"interrupted; vitreous train --resume {run} goes on" in out
        assert f"step {newest(run).step:,} is saved" in out

    def test_ctrl_c_is_told_once(self, tmp_path, monkeypatch, capsys):
        send_when(monkeypatch, "gradient", 2, signal.SIGINT)
        data, run = make_arrays(tmp_path / "arrays.npz"), tmp_path / "run"
        assert main(["train", str(data), "--out", str(run), *WORDS]) == 130
        said = "".join(capsys.readouterr())
        assert said.count("interrupted") == 1
        assert f"step 1 is saved\ninterrupted; vitreous train --resume {run} goes on\n" in said

    @pytest.mark.parametrize("fault", [MemoryError("16 GB"), OSError(28, "No space left on device")])
    def test_what_fails_says_how_to_go_on_once_it_is_mended(self, tmp_path, monkeypatch, capsys, fault):
        def fail(*given):
            raise fault

        monkeypatch.setattr(loop, "gradient" if isinstance(fault, MemoryError) else "keep_to_budget", fail)
        data, run = make_arrays(tmp_path / "arrays.npz"), tmp_path / "run"
        assert main(["train", str(data), "--out", str(run), *WORDS]) == 2
        said = capsys.readouterr().err
        assert fault.args[-1] in said
        assert said.endswith(f"\nonce that is mended, vitreous train --resume {run} goes on\n")

    def test_before_there_is_anything_to_save_ctrl_c_leaves_nothing_behind(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        data = make_arrays(tmp_path / "arrays.npz")
        monkeypatch.setattr("vitreous.training.train.make_plan", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        assert main(["train", str(data), "--out", "run", *WORDS]) == 130
        assert [path.name for path in tmp_path.iterdir()] == ["arrays.npz"]

    def test_of_two_that_begin_in_one_folder_at_once_the_second_leaves_the_first_ones_run_alone(
        self, tmp_path, monkeypatch, capsys
    ):
        with ExitStack() as first:

            def faster(path):
                run = create(path)
                first.enter_context(run.held())
                run.write_json("plan.json", {})
                return run

            create = RunDir.create
            monkeypatch.setattr(RunDir, "create", faster)
            data = make_arrays(tmp_path / "arrays.npz")
            assert main(["train", str(data), "--out", str(tmp_path / "run"), *WORDS]) == 2
        assert "is being trained" in capsys.readouterr().err
        assert {path.name for path in (tmp_path / "run").iterdir()} == {"last", "log.txt", "plan.json"}

    @pytest.mark.usefixtures("unpainted")
    def test_verify_resume_proves_it_and_keeps_nothing(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("vitreous.training.verify.STEPS", 12)

        def forked(words: list[str], **_: object) -> Forked:
            assert words[:3] == [sys.executable, "-m", "vitreous"]
            return start(*words[3:])

        monkeypatch.setattr("vitreous.training.verify.subprocess", SimpleNamespace(Popen=forked, DEVNULL=None))
        data = make_arrays(tmp_path / "arrays.npz")
        assert main(["train", str(data), "--verify-resume", *WORDS]) == 0
        out = capsys.readouterr().out
        assert out.count("  equal\n") == 5
        assert "gives the same bits" in out
        assert [path.name for path in tmp_path.iterdir()] == ["arrays.npz"]
        assert main(["train", "--verify-resume"]) == 2
