"""The first steps of a training, in one process or in each of torchrun's; the first writes what they were as JSON.

python benchmarks/lines/_steps.py '{"data": "digits", "out": "one.json", "steps": 50, "options": {"epochs": 30}}'
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from vitreous.model.vit import build
from vitreous.training.journal import Journal
from vitreous.training.learner import Learner, update
from vitreous.training.planner import make_plan
from vitreous.training.prepare import prepare, prepare_together
from vitreous.training.recipe import TrainConfig, choose_threads
from vitreous.training.steps import training_batches
from vitreous.training.torchrun import joined

WARM_UP = 3  # steps that are not timed


def take(asked: dict[str, Any]) -> None:
    """Losses and pictures of each step, and pictures a second."""
    config, journal = TrainConfig.of(**asked["options"]), Journal(quiet=True)
    torch.set_num_threads(choose_threads(config.threads))
    with joined() as world:
        job = prepare_together(lambda: prepare(asked["data"], config, journal), config, journal, world)
        model = build(job.model, config.seed)
        plan = make_plan(job, config, model, torch.device("cpu"), world=world)
        learner, (batches, order) = Learner(model, job, plan, world=world), training_batches(job, plan, world=world)
        losses, numbers, began = [], [], 0.0
        for step in range(asked["steps"]):
            if step == WARM_UP:
                world.sum(torch.zeros(1))
                began = time.perf_counter()
            batch = batches.make(step)
            loss, made = update(learner, batch)
            assert made, f"step {step} was not made"
            learner.progress.step += 1
            losses.append(loss)
            numbers.append(batch.numbers.tolist())
        rate = order.batch_size * (asked["steps"] - WARM_UP) / (time.perf_counter() - began)
        found = {"losses": losses, "pictures": [world.together(some) for some in numbers], "rate": rate}
        if world.first:
            Path(asked["out"]).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    take(json.loads(sys.argv[1]))
