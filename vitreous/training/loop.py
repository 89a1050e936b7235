"""The training loop."""

import dataclasses
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vitreous import metrics
from vitreous.data.batches import Batch, Order, TrainingBatches, plain_batches, seed_of
from vitreous.errors import InputError
from vitreous.model.encoder import draw_paths, set_paths
from vitreous.model.vit import VisionTransformer
from vitreous.rundir import Checkpoint, RunDir
from vitreous.training.distributed import ALONE, World
from vitreous.training.journal import Journal, read_rows, row_line
from vitreous.training.lanes import Lanes, join_gradients, replicas
from vitreous.training.optim import (
    make_average,
    make_criterion,
    make_optimizers,
    restore_state,
    state_of,
)
from vitreous.training.parallel import average_gradients, divide, gathered, unless_last, whole, without_gradients
from vitreous.training.prepare import Job
from vitreous.training.recipe import Plan

PATIENCE = 5  # updates in a row that may be refused before training goes back to the last checkpoint
LOOKS = 10  # times that a run of minutes is timed beside its rows of metrics
RETREATS = 5  # times that it goes back, each at half the learning rate, before it gives up
MOVED = 0.03  # share of the steps that are left, by which the end must move for a new plan
SAID = 0.1  # share of the steps by which it must move to be said
LAST_RETIMED = 0.9  # share of a run after which its plan stays as it is
HEADLINES = {"classification": "top1", "multilabel": "map", "regression": "r2"}


class Mark(NamedTuple):
    """A moment of a run: the step, and the seconds that it has trained for."""

    step: int
    seconds: float


@dataclass
class Progress:
    """Where a run stands, beside its tensors."""

    step: int = 0
    seconds: float = 0.0  # spent training, over all of the run's processes
    loss_sum: float = 0.0  # since the last row
    loss_count: int = 0
    rate_scale: float = 1.0
    refused: int = 0  # updates in a row that were not finite
    retreats: int = 0


class Learner:
    """What a step changes: the model, its moving average, the optimizers, and the progress; and how."""

    def __init__(self, model: VisionTransformer, job: Job, plan: Plan, world: World = ALONE):
        self.plan, self.device, self.world = plan, torch.device(plan.device), world
        self.criterion = make_criterion(job.task, plan.smoothing, class_weights(job, plan))
        self.model = model.to(self.device).train()
        world.spread(model.state_dict())
        self.average: AveragedModel = make_average(model, plan.ema)
        if divided := plan.shard and world.size > 1:
            divide(model, world, self.device)
            divide(self.average.module, world, self.device)
        self.optimizers = make_optimizers(
            model, plan.optimizer, plan.lr, plan.weight_decay, plan.layer_decay, plan.freeze
        )
        self.lanes = Lanes(plan.threads if world.size == 1 else 1, self.device)
        synchronised = world.size > 1 and not divided
        self.replicas = [average_gradients(model)] if synchronised else replicas(model, self.lanes.count)
        self.progress = Progress()

    def checkpoint(self) -> Checkpoint:
        """The whole state; of several processes the first has the tensors."""
        values = dataclasses.asdict(self.progress)
        tensors = gathered(state_of(self.model, self.average, self.optimizers), self.world.first)
        return Checkpoint(values.pop("step"), tensors, values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back, or on, to a checkpoint."""
        restore_state(checkpoint.tensors, self.model, self.average, self.optimizers)
        self.progress = Progress(step=checkpoint.step, **checkpoint.values)


def fit(
    job: Job, plan: Plan, model: VisionTransformer, run: RunDir, journal: Journal, world: World = ALONE
) -> nn.Module:
    """Trains to the plan's last step, from the newest checkpoint of the run where there is one. A run of minutes is
    timed now and then, and its last step moved.

    Returns the moving average of the weights. An update that is not finite is not made; after five in a row training
    goes back to the last checkpoint at half the learning rate. Raises `InputError` where that does not help.
    """
    learner = Learner(model, job, plan, world)
    headline = HEADLINES[job.task.kind]
    if checkpoint := run.newest(journal.say):
        learner.restore(checkpoint)
    else:
        run.save(learner.checkpoint())
    journal.settle(run.path, read_rows(run.path, learner.progress.step))
    started = time.perf_counter() - learner.progress.seconds
    clock = lambda: world.of_first(time.perf_counter() - started)  # noqa: E731

    while (at := learner.progress).step < (plan := learner.plan).steps:
        batches, order = training_batches(job, plan, world=world)
        rows = row_steps(order, plan)
        since = Mark(at.step, clock())
        with journal.bar("training", plan.steps, at.step) as bar:
            for batch in batches.steps(at.step, plan.steps, plan.workers):
                loss, finite = update(learner, batch)
                at.step += 1
                at.refused = 0 if finite else at.refused + 1
                if not finite:
                    journal.say(f"step {at.step}: loss or gradient is not finite; the update is not made")
                    if at.refused == PATIENCE:
                        retreat(learner, run, journal)
                        journal.settle(run.path, read_rows(run.path, learner.progress.step))
                        break
                else:
                    at.loss_sum, at.loss_count = at.loss_sum + loss, at.loss_count + 1
                at.seconds = clock()
                if at.step in rows:
                    row = measure(learner, job, order)
                    journal.row(row)
                    journal.say(row_line(row, headline))
                    at.loss_sum, at.loss_count = 0.0, 0
                    at.seconds = clock()
                due = at.step % plan.save_every == 0 if plan.save_every else at.step in rows
                if (due or at.step == plan.steps) and not at.refused:
                    run.save(learner.checkpoint())
                bar(at.step)
                if at.step in rows or at.step % math.ceil(plan.steps / LOOKS) == 0:
                    learner.plan = keep_to_budget(learner, order, since, at.step in rows, run, journal)
                    if learner.plan is not plan:
                        break
                    since = Mark(at.step, at.seconds)
    return learner.average.module


def keep_to_budget(learner: Learner, order: Order, since: Mark, row: bool, run: RunDir, journal: Journal) -> Plan:
    """The plan, or where its end has moved away from the budget a new one, which is written before it is used.

    `since`: when it was last looked at; `row`: whether a row of metrics was made now.
    """
    at, plan = learner.progress, learner.plan
    if not plan.budget or at.step <= plan.points[-1][0] or plan.done(at.step) > LAST_RETIMED:
        return plan
    # Half of it the pace since the last row, half that of the whole run: a passing stall does not end a run.
    lately = (at.seconds - since.seconds) / plan.predicted(since.step, at.step, rows=row)
    slower = (lately + at.seconds / plan.predicted(0, at.step, rows=order.epochs_at(at.step) / plan.row_every)) / 2
    new = plan.retimed(at.step, at.seconds, slower, order.steps_before(plan.row_every))
    if abs(new.steps - plan.steps) < MOVED * (plan.steps - at.step):
        return plan
    run.write_json("plan.json", new.to_json())
    if abs(new.steps - plan.steps) > SAID * plan.steps:
        journal.say(f"plan: {new.steps:,} steps, to keep to the time")
    return new


def update(learner: Learner, batch: Batch) -> tuple[float, bool]:
    """One update: the loss, and whether it and the gradient were finite. If not, nothing has changed."""
    plan, device = learner.plan, learner.device
    rate = plan.rate(learner.progress.step) * learner.progress.rate_scale
    for optimizer in learner.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
    # Which branches a picture's pass leaves out follows from the seed, the step, and its row in the whole batch.
    generator = torch.Generator().manual_seed(seed_of(plan.seed, "drop path", learner.progress.step))
    paths = draw_paths(learner.model, batch.size, generator)[batch.own]
    ranks = learner.world.size

    def learn(model: nn.Module, pixels: Tensor, targets: Tensor, paths: Tensor) -> Tensor:
        set_paths(model, paths.to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
            outputs = model(pixels.to(device, non_blocking=True))
        loss = learner.criterion(outputs, targets.to(device, non_blocking=True)) * (len(pixels) / batch.size)
        (loss * ranks if ranks > 1 else loss).backward()  # gradients are averaged over the processes
        return loss.detach()

    total = torch.zeros((), device=device)
    pieces = batch.pieces(plan.accumulate)
    split = (tensor.tensor_split(pieces) for tensor in (batch.pixels, batch.targets, paths))
    for number, piece in enumerate(zip(*split, strict=True), 1):
        parts = (tensor.chunk(learner.lanes.count) for tensor in piece)
        with unless_last(learner.replicas[0], number == pieces):
            total += torch.stack(learner.lanes.map(learn, learner.replicas, *parts)).sum()
    total = learner.world.sum(total)
    join_gradients(learner.replicas)
    norm = whole(nn.utils.clip_grad_norm_(learner.model.parameters(), plan.clip, foreach=True))
    finite = bool(torch.isfinite(norm) & torch.isfinite(total))
    if finite:
        for optimizer in learner.optimizers:
            optimizer.step()
        learner.average.update_parameters(learner.model)
    learner.model.zero_grad(set_to_none=True)
    return float(total), finite


def retreat(learner: Learner, run: RunDir, journal: Journal) -> None:
    """Goes back to the last checkpoint at half the learning rate."""
    retreats = learner.progress.retreats + 1
    checkpoint = run.newest(journal.say)
    if checkpoint is None or retreats > RETREATS:
        advice = "try a lower --lr" + (", or --precision fp32" if learner.plan.precision == "bf16" else "")
        raise InputError(
            f"training does not stay finite, after {RETREATS} returns to an earlier state; {advice}; "
            f"the last good state is in {run.path / 'last'}"
        )
    scale = learner.progress.rate_scale / 2
    learner.restore(checkpoint)
    learner.progress.rate_scale, learner.progress.retreats, learner.progress.refused = scale, retreats, 0
    journal.say(
        f"{PATIENCE} updates in a row were not finite: back to step {checkpoint.step}, at {scale:g} of the rate"
    )


def measure(learner: Learner, job: Job, order: Order) -> dict[str, float]:
    """A row of metrics, from the moving average on the validation pictures."""
    at, plan, device = learner.progress, learner.plan, learner.device
    model, world = learner.average.module, learner.world
    outputs, targets = outputs_on(model, job, job.validation, plan, plan.precision, learner.lanes, world)
    loss = learner.criterion(torch.from_numpy(outputs).to(device), torch.from_numpy(targets).to(device))
    return {
        "epoch": order.epochs_at(at.step),
        "step": at.step,
        "seconds": round(at.seconds, 3),
        "lr": plan.rate(at.step - 1) * at.rate_scale,
        "train_loss": at.loss_sum / max(1, at.loss_count),
        "val_loss": float(loss),
        HEADLINES[job.task.kind]: headline_of(job, outputs, targets),
    }


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
    outputs, order = run_model(model, batches, precision, lanes or Lanes(1, torch.device(plan.device)))
    answers = torch.zeros(len(numbers), outputs.shape[1])
    answers[torch.from_numpy(np.argsort(numbers)[np.searchsorted(np.sort(numbers), order)])] = torch.from_numpy(outputs)
    return world.sum(answers).numpy(), job.targets[numbers]


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


def training_batches(
    job: Job, plan: Plan, coarse_steps: int | None = None, world: World = ALONE
) -> tuple[TrainingBatches, Order]:
    """The augmented batches of the plan, of several processes this one's rows of each, and their order."""
    weights = None
    if plan.balance == "sampling" and job.task.kind == "classification":
        counts = np.bincount(job.targets[job.training], minlength=job.task.outputs)
        weights = 1 / np.maximum(counts, 1)[job.targets]
    which = job.store.which[job.training]
    groups = [job.training[which == number] for number in range(len(job.spec.sizes))]
    order = Order(groups, plan.batch, plan.seed, weights)
    classes = job.task.outputs if job.task.kind == "classification" else None
    coarse = plan.coarse_steps if coarse_steps is None else coarse_steps
    sizes, part = (coarse, job.model.stride), (world.rank, world.size)
    batches = TrainingBatches(job.store, job.targets, order, plan.augmentation, classes, *sizes, *part)
    return batches, order


def class_weights(job: Job, plan: Plan) -> Tensor | None:
    """Weights of the loss, inverse to the number of training pictures a class, on average 1 a picture."""
    if plan.balance != "weights" or job.task.kind != "classification":
        return None
    counts = np.bincount(job.targets[job.training], minlength=job.task.outputs)
    weights = len(job.training) / (len(counts) * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32, device=plan.device)


def row_steps(order: Order, plan: Plan) -> set[int]:
    """The steps after which a row of metrics is due: ends of epochs, and the last, which a short rest joins."""
    ends, epoch = [], plan.row_every
    while (step := order.steps_before(epoch)) < plan.steps:
        ends.append(step)
        epoch += plan.row_every
    if ends and plan.steps - ends[-1] < (step - ends[-1]) / 2:
        ends.pop()
    return {*ends, plan.steps}
