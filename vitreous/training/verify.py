"""train --verify-resume: a short run of the user's own, undisturbed and killed, must end with the same bits."""

import dataclasses
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from vitreous.errors import InputError
from vitreous.rundir import Checkpoint, RunDir, newest_step
from vitreous.training.journal import Journal
from vitreous.training.plan import Plan
from vitreous.training.recipe import TrainConfig
from vitreous.training.train import resume_run, set_up, write_start

STEPS, FEWEST, SECONDS = 48, 8, 15.0  # of the short run: at most, at least, and about how long it may take
SAVES = 12  # checkpoints in it
TRIES = 3  # a run that was done before it could be killed is begun anew
LIMIT = 1800.0  # seconds that a process may take to its first steps


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A part of the state, and its SHA-256 in the run that was not disturbed and in the one that was."""

    part: str
    undisturbed: str
    killed: str

    @property
    def equal(self) -> bool:
        """Whether all bits are."""
        return self.undisturbed == self.killed


def verify_resume(data: str | Path, config: TrainConfig, journal: Journal) -> list[Comparison]:
    """Trains some dozen steps with these options; then the same steps in another process that is killed in the middle
    and resumed in a third one with another number of workers. Nothing stays but the cache of decoded pictures.

    Returns what was compared: final weights, and the weights, moving average, optimizer and progress of the last
    checkpoint.
    """
    start = set_up(data, config, journal)
    plan = _short(start.plan)
    with tempfile.TemporaryDirectory(prefix="vitreous-verify-") as folder:
        whole, killed = RunDir.create(Path(folder) / "undisturbed"), Path(folder) / "killed"
        write_start(dataclasses.replace(start, plan=plan), config, whole)
        for _ in range(TRIES):
            shutil.copytree(whole.path, killed)
            step = _kill_in_the_middle(killed, plan.steps)
            if step < plan.steps:
                break
            shutil.rmtree(killed)
        else:
            raise InputError(f"the short run of {plan.steps} steps was done before it could be killed, {TRIES} times")
        journal.say(f"killed after the checkpoint of step {step} of {plan.steps}, with {plan.workers} workers")
        other = dataclasses.replace(plan, workers=(plan.workers + 1) % 3)
        RunDir(killed).write_json("plan.json", other.to_json())
        resume_run(killed, Journal(quiet=True))
        journal.say(f"resumed in another process, with {other.workers} workers")
        resume_run(whole.path, Journal(quiet=True))
        parts = [parts_of(run) for run in (whole.path, killed)]
        return [Comparison(part, parts[0][part], parts[1][part]) for part in parts[0]]


def _short(plan: Plan) -> Plan:
    """The plan of some dozen steps, coarse ones and whole."""
    step = max(plan.pace.whole, plan.pace.coarse, 1e-3)
    steps = min(plan.steps, max(FEWEST, min(STEPS, int(SECONDS / step))))
    points = ((0, 0.0, steps),)
    return dataclasses.replace(plan, points=points, budget=0.0, save_every=max(1, steps // SAVES), save_seconds=0.0)


def _kill_in_the_middle(run: Path, steps: int) -> int:
    """Starts the run in a process of its own, and kills it once half of the steps are done; the step of its newest
    checkpoint, or all steps where it was faster.
    """
    command = [sys.executable, "-m", "vitreous", "train", "--resume", str(run)]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            until = time.monotonic() + LIMIT
            while newest_step(run) < steps // 2:
                if process.poll() is not None and newest_step(run) < steps // 2:
                    said.seek(0)
                    words = said.read().decode(errors="replace").strip()
                    raise InputError(f"the run that was to be killed failed ({process.returncode}): {words}")
                if time.monotonic() > until:
                    raise InputError(f"the run that was to be killed made no {steps // 2} steps in {LIMIT:.0f} seconds")
                time.sleep(0.002)
        finally:
            process.kill()
            process.wait()
    return steps if (run / "model.safetensors").exists() else newest_step(run)


def parts_of(run: Path) -> dict[str, str]:
    """The SHA-256 of each part of a finished run: final weights, and what its last checkpoint holds."""
    last = RunDir(run).newest(lambda fault: None)
    if last is None:
        raise InputError(f"{run} has no checkpoint that is whole")
    prefixes = {"weights": "model.", "moving average": "average", "optimizer": "optimizer."}
    parts = {
        part: _sha256({name: tensor for name, tensor in last.tensors.items() if name.startswith(prefix)})
        for part, prefix in prefixes.items()
    }
    final = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    return {"final weights": final, **parts, "progress": _sha256_of_progress(last)}


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sha256_of_progress(checkpoint: Checkpoint) -> str:
    """Of all that a run carries on beside its tensors, but for the time it took."""
    values = {name: value for name, value in sorted(checkpoint.values.items()) if name != "seconds"}
    return hashlib.sha256(f"{checkpoint.step} {values}".encode()).hexdigest()
