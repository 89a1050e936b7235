"""What a model answers on the validation pictures while it trains, and how good that is."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from vitreous import metrics
from vitreous.data.batches import Batch, Order, plain_batches
from vitreous.training.lanes import Lanes
from vitreous.training.learner import Learner
from vitreous.training.parallel import without_gradients
from vitreous.training.plan import Plan
from vitreous.training.prepare import Job
from vitreous.training.world import ALONE, World

HEADLINES = {"classification": "top1", "multilabel": "map", "regression": "r2"}


def run_model(
    model: nn.Module, batches: Iterable[Batch], precision: str, lanes: Lanes
) -> tuple[np.ndarray, np.ndarray]:
    """(n, outputs) float32 of the model on batches, and the numbers of the pictures in that order."""
    device = lanes.device

    def answer(pixels: Tensor) -> Tensor:
        with without_gradients(model), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return model(pixels.to(device)).float().cpu()

    outputs, numbers = [], []
    for batch in batches:
        answers = torch.cat(lanes.map(answer, batch.pixels.chunk(lanes.count)))
        outputs.append(answers[: len(batch.numbers)])  # none of a batch that only fills up
        numbers.append(batch.numbers)
    return torch.cat(outputs).numpy(), np.concatenate(numbers)


def outputs_on(
    model: nn.Module,
    job: Job,
    numbers: np.ndarray,
    plan: Plan,
    precision: str,
    lanes: Lanes | None = None,
    world: World = ALONE,
) -> tuple[np.ndarray, np.ndarray]:
    """(n, outputs) float32 of the model on these pictures, and their targets, in the order of `numbers`.

    Several processes each answer a part, and all have all answers.
    """
    batch = -(-plan.batch // world.size)
    batches = plain_batches(job.store, job.targets, numbers, batch, 0, world.rank, world.size)
    lanes = lanes or Lanes(plan.threads, torch.device(plan.device), 1, aside=True)
    outputs, order = run_model(model, batches, precision, lanes)
    places = np.argsort(numbers)[np.searchsorted(np.sort(numbers), order)]
    answers = torch.zeros(len(numbers), outputs.shape[1])
    answers[torch.from_numpy(places)] = torch.from_numpy(outputs)
    return world.sum(answers).numpy(), job.targets[numbers]


def headline_of(job: Job, outputs: np.ndarray, targets: np.ndarray) -> float:
    """The one number that tells how good a model is: top-1 accuracy, mean average precision, or R²; NaN for none."""
    if job.task.kind == "classification":
        return metrics.accuracy(outputs, targets)
    scores = (
        metrics.average_precision(outputs, targets)
        if job.task.kind == "multilabel"
        else metrics.regression_errors(outputs, targets).r2
    )
    known = scores[np.isfinite(scores)]
    return float(known.mean()) if len(known) else math.nan


def measure(learner: Learner, job: Job, order: Order) -> dict[str, float]:
    """A row of metrics, from the moving average on the validation pictures."""
    progress, plan, device = learner.progress, learner.plan, learner.device
    model, world = learner.average.module, learner.world
    outputs, targets = outputs_on(model, job, job.validation, plan, plan.precision, learner.lanes, world)
    loss = learner.criterion(torch.from_numpy(outputs).to(device), torch.from_numpy(targets).to(device))
    return {
        "epoch": order.epochs_at(progress.step),
        "step": progress.step,
        "seconds": round(progress.seconds, 3),
        "lr": plan.rate(progress.step - 1) * progress.rate_scale,
        "train_loss": progress.loss_sum / max(1, progress.loss_count),
        "val_loss": float(loss),
        HEADLINES[job.task.kind]: headline_of(job, outputs, targets),
    }
