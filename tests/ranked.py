"""What tests/test_torchrun.py compares: some steps of a tiny model, in one process or in each of torchrun's; and a
run of which a process is killed.
"""

import dataclasses
import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from making import unpainted
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config
from torch import Tensor

from vitreous.errors import ElsewhereError, InputError
from vitreous.infer.evaluation import evaluate
from vitreous.infer.predictor import load
from vitreous.model.vit import build
from vitreous.rundir import Checkpoint, newest_step
from vitreous.training.journal import Journal
from vitreous.training.learner import Learner, update
from vitreous.training.measuring import outputs_on
from vitreous.training.parallel import gathered
from vitreous.training.plan import Plan
from vitreous.training.prepare import Job, prepare, prepare_together
from vitreous.training.recipe import TrainConfig
from vitreous.training.steps import training_batches
from vitreous.training.torchrun import joined, restarted
from vitreous.training.train import start_run
from vitreous.training.world import ALONE, World

STEPS = 4
CASES: dict[str, dict[str, Any]] = {  # of each: what differs from the plan
    "whole": {"optimizer": "adamw", "accumulate": 2},
    "divided": {"optimizer": "adamw", "accumulate": 2, "shard": True},
    "whole, muon": {"optimizer": "muon", "balance": "weights"},
    "divided, muon": {"optimizer": "muon", "balance": "weights", "shard": True},
}
OPTIONS: dict[str, Any] = {
    "model": "vit_xs_8",
    "size": "24x32",
    "threads": 1,
    "epochs": 3,
    "batch": 20,  # three cells of mixup: two processes have 8 rows and 12
    "augment": "medium",
    "precision": "fp32",
    "lr": 1e-3,
}


RUN: dict[str, Any] = {
    **OPTIONS,
    "model": "vit_c_xs_8",
    "optimizer": "adamw",
    "batch": 16,
    "save_every": "1",
    "validation": 0.25,
}


def small_job(data: str, world: World = ALONE) -> Job:
    """A job with a tiny model that leaves out branches."""
    config, journal = TrainConfig.of(**OPTIONS), Journal(quiet=True)
    job = prepare_together(lambda: prepare(data, config, journal), config, journal, world)
    return dataclasses.replace(job, model=tiny_config("stem", image_size=(24, 32), outputs=3, drop_path=0.3, depth=3))


def learn(
    job: Job, plan: Plan, world: World = ALONE, start: Checkpoint | None = None
) -> tuple[dict[str, Any], Checkpoint]:
    """Some steps: losses and pictures, the answers on the validation pictures, and the state at the end."""
    learner = Learner(build(job.model, 0), job, plan, world=world)
    if start:
        learner.restore(start)
    batches, _ = training_batches(job, plan, world=world)
    losses, pictures = [], []
    for step in range(learner.progress.step, learner.progress.step + STEPS):
        batch = batches.make(step)
        losses.append(update(learner, batch)[0])
        learner.progress.step = step + 1
        pictures.append(world.together(batch.numbers.tolist()))
    outputs, _ = outputs_on(learner.average.module, job, job.validation, plan, "fp32", world=world)
    own = hashlib.sha256(b"".join(t.numpy().tobytes() for t in gathered(learner.model.state_dict(), True).values()))
    bits = world.together([own.hexdigest()])
    found = {"losses": losses, "pictures": pictures, "outputs": outputs.tolist(), "bits": bits}
    return found, learner.checkpoint()


def state_at(path: Path, step: int) -> Checkpoint:
    """A checkpoint of tensors alone."""
    return Checkpoint(step, load_file(path), {})


def kept(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that can be written to a file."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def compare(data: str, folder: Path) -> None:
    """Each case from the start, and from the state that one process came to; and what all agree on."""
    base = Plan.from_json(json.loads((folder / "plan.json").read_text("utf-8")))
    with joined() as world:
        job, found = small_job(data, world), {}
        for name, changes in CASES.items():
            plan = dataclasses.replace(base, **changes)
            found[name], state = learn(job, plan, world)
            if world.first:
                save_file(kept(state.tensors), folder / f"{name}.safetensors")
            start = state_at(folder / f"alone, {changes['optimizer']}.safetensors", STEPS)
            found[f"{name}, resumed"], _ = learn(job, plan, world, start)
        found["sums"] = [world.any(world.rank == 1), world.any(False), world.of_first(world.rank + 7.5)]
        found["turns"] = world.together([world.in_turn(lambda: world.local_rank)])
        if world.first:
            (folder / "found.json").write_text(json.dumps(found), "utf-8")


def die_at(step: int, run: Path) -> None:
    """Kills this process as soon as the run has a checkpoint of that step."""

    def watch() -> None:
        while newest_step(run) < step:
            time.sleep(0.005)
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    threading.Thread(target=watch, daemon=True).start()


def main(data: str, folder: Path) -> None:
    """Compares, trains with process 1 killed on the way, answers with what was trained, and fails as one."""
    run, again = folder / "run", restarted()
    with joined() as world:
        if not again:
            compare(data, folder)
            if world.rank == 1:
                die_at(2, run)
        with unpainted():
            start_run(data, TrainConfig.of(**RUN), run, Journal(quiet=True))
        result = evaluate(load(run, engine="torch", precision="fp32"), data, split="all", say=lambda text: None)
        if world.first:
            found = {"names": list(result.names), "answers": result.answers.tolist(), "again": again}
            (folder / "answers.json").write_text(json.dumps(found), "utf-8")

        def fail() -> None:
            raise InputError("what the first process alone can know")

        world.agree(fail)


def entry(data: str, folder: Path) -> None:
    """Leaves as the command does where it fails."""
    try:
        main(data, folder)
    except (InputError, ElsewhereError) as fault:
        sys.exit(f"failed: {fault}" if str(fault) else 3)


def launch(data: str, folder: Path) -> None:
    """torchrun --standalone --nproc-per-node 2 --max-restarts 1, whose processes are forked off one that has imported
    all.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    rendezvous: dict[str, Any] = {"run_id": folder.name, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    elastic_launch(LaunchConfig(1, 1, 2, max_restarts=1, start_method="forkserver", **rendezvous), entry)(data, folder)
