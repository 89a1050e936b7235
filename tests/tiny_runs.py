"""Runs so small that a test can make many: 24 pictures of 8×8, two blocks of width 16, a step in a few milliseconds."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import tiny_config

from vitreous.data.augment import AugmentConfig
from vitreous.model.vit import VisionTransformer, build
from vitreous.rundir import FORMAT, RunDir
from vitreous.training.journal import Journal
from vitreous.training.plan import Pace, Plan
from vitreous.training.prepare import Job, prepare
from vitreous.training.recipe import TrainConfig

PLAN = Plan(
    points=((0, 0.0, 12),),
    epochs=4,
    batch=6,
    accumulate=1,
    optimizer="adamw",
    lr=1e-3,
    schedule="linear",
    warmup=0.1,
    coarse=0.0,
    weight_decay=0.05,
    layer_decay=1.0,
    freeze="none",
    clip=1.0,
    smoothing=0.1,
    ema=0.9,
    balance="none",
    augmentation=AugmentConfig(flip=0.5),
    precision="fp32",
    device="cpu",
    threads=1,
    workers=0,
    seed=3,
    row_every=1,
    save_every=0,
    budget=0.0,
    pace=Pace(1.0, 1.0, 1.0),
    seconds=1.0,
    torch="2",
)


def make_arrays(path: Path, kind: str = "classification") -> Path:
    """An .npz of 24 grey pictures, the brighter the higher their class of three, or their number."""
    rng = np.random.default_rng(2)
    labels = np.arange(24) % 3
    images = (rng.integers(0, 60, (24, 8, 8)) + 60 * labels[:, None, None]).astype(np.uint8)
    targets = labels if kind == "classification" else labels + rng.normal(0, 0.1, 24)
    np.savez(path, images=images, labels=targets)
    return path


def tiny_job(path: Path, kind: str = "classification") -> Job:
    """The job of such pictures, and of a tiny model."""
    config = TrainConfig.of(model="vit_xs_1", size="8x8", cache="off", threads=1, validation=0.25, task=kind)
    job = prepare(str(make_arrays(path, kind)), config, Journal(quiet=True))
    shapes = {"patch_size": (4, 4), "image_size": (8, 8), "channels": 1, "outputs": job.task.outputs}
    return dataclasses.replace(job, model=tiny_config("patch", **shapes))


def begin(folder: Path, job: Job, plan: Plan = PLAN, **changes: Any) -> tuple[RunDir, Plan, VisionTransformer]:
    """What `fit` needs to begin in a new folder: the run directory, the plan with some changes, and the model."""
    run = RunDir.create(folder)
    plan = dataclasses.replace(plan, **changes)
    run.write_json("config.json", {"format": FORMAT})
    run.write_json("plan.json", plan.to_json())
    return run, plan, build(job.model, plan.seed)
