"""NaN, Inf or a spike at 20 places: no update is made of it, no checkpoint holds it.

Each time, at a random step of a small run, the pixels of one picture, of all, the targets (of a run that learns a
number) or the gradient of one weight become NaN, Inf or 10,000 times as large. The state after that step must have the
bits from before it; every checkpoint and the final weights must be finite.
"""

import argparse
import dataclasses
import itertools
import math
import random
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from vitreous.model.config import ModelConfig
from vitreous.model.vit import build
from vitreous.rundir import RunDir
from vitreous.training import learner as learning
from vitreous.training import loop
from vitreous.training.health import all_finite
from vitreous.training.journal import Journal
from vitreous.training.planner import make_plan
from vitreous.training.prepare import Job, prepare
from vitreous.training.recipe import TrainConfig

COUNT = 20
TIMES = {"NaN": math.nan, "Inf": math.inf, "spike": 1e4}
PLACES = ("one picture", "all pictures", "targets", "gradient")
TINY = ModelConfig(width=16, depth=2, heads=2, tokenizer="patch", patch_size=(4, 4), image_size=(8, 8), channels=1)


def job_of(folder: Path, kind: str) -> Job:
    """24 pictures of 8×8, with classes or a number, and a tiny model."""
    rng, labels = np.random.default_rng(2), np.arange(24) % 3
    images = (rng.integers(0, 60, (24, 8, 8)) + 60 * labels[:, None, None]).astype(np.uint8)
    targets = labels if kind == "classification" else labels + rng.normal(0, 0.1, 24)
    np.savez(folder / f"{kind}.npz", images=images, labels=targets)
    config = TrainConfig.of(model="vit_xs_1", size="8x8", cache="off", threads=1, validation=0.25, task=kind)
    job = prepare(str(folder / f"{kind}.npz"), config, Journal(quiet=True))
    return dataclasses.replace(job, model=dataclasses.replace(TINY, outputs=job.task.outputs))


@contextmanager
def poisoned(place: str, times: float, step: int):
    """Poison in a step; what is yielded is told how many updates were made of it, and of checkpoints that hold it."""
    original_gradient, original_update, save = loop.gradient, loop.make_update, RunDir.save
    join, counts, now = learning.join_gradients, {"updates": 0, "checkpoints": 0}, [False]

    def gradient(learner, batch):
        now[0] = learner.progress.step == step and not learner.progress.retreats
        if now[0] and place == "targets":
            batch.targets.mul_(times)
        elif now[0] and place != "gradient":
            batch.pixels[0 if place == "one picture" else slice(None)] *= times
        return original_gradient(learner, batch)

    def join_gradients(models):
        join(models)
        if now[0] and place == "gradient":
            largest = max((p for p in models[0].parameters() if p.grad is not None), key=lambda p: float(p.grad.norm()))
            largest.grad *= times

    def make_update(learner, vital):
        before = {name: tensor.clone() for name, tensor in learner.checkpoint().tensors.items()} if now[0] else {}
        wrong = original_update(learner, vital)
        after = learner.checkpoint().tensors if now[0] else {}
        counts["updates"] += any(not torch.equal(before[name], tensor) for name, tensor in after.items())
        return wrong

    def checked(self, checkpoint, keep=()):
        counts["checkpoints"] += not all_finite(checkpoint.tensors)
        save(self, checkpoint, keep)

    with (
        patch.object(loop, "gradient", gradient),
        patch.object(loop, "make_update", make_update),
        patch.object(learning, "join_gradients", join_gradients),
        patch.object(RunDir, "save", checked),
    ):
        yield counts


def run(options: argparse.Namespace) -> bool:
    """Prints a row a place."""
    random.seed(options.seed)
    jobs = {kind: job_of(options.folder, kind) for kind in ("classification", "regression")}
    config = TrainConfig.of(epochs=10, batch=6, save_every=3, threads=1, precision="fp32", augment="none")
    plans = {k: make_plan(job, config, build(job.model, 0), torch.device("cpu")) for k, job in jobs.items()}
    bad = 0
    cases = itertools.cycle(itertools.product(PLACES, TIMES))
    for number, (place, times) in zip(range(options.count), cases, strict=False):
        kind = "regression" if place == "targets" or number % 2 else "classification"
        job, plan = jobs[kind], plans[kind]
        step = random.randrange(12 if place == "gradient" else 0, plan.steps)
        directory = RunDir.create(options.folder / f"run-{number}")
        with poisoned(place, TIMES[times], step) as counts:
            trained = loop.fit(job, plan, build(job.model, number), directory, Journal(quiet=True))
        finite = all_finite(dict(trained.state_dict()))
        account = directory.path / "incidents.csv"
        told = account.exists() and f"\n{step + 1}," in account.read_text("utf-8")
        well = not any(counts.values()) and finite and told
        bad += not well
        print(f"{'held' if well else 'NOT HELD':<10}{times:<6} in {place:<13} step {step + 1:<4} {kind:<15} {counts}")
    print(f"{options.count} places: {bad} not held")
    return not bad
