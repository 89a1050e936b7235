"""The training loop."""

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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
from vitreous.training.health import (
    WINDOW,
    Vital,
    all_finite,
    diverged,
    fault_of,
    loss_of_guessing,
    size_of,
    suspects,
)
from vitreous.training.incidents import Incidents, StepError, blaming, some
from vitreous.training.interruption import Interruption
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

PATIENCE = 5  # updates in a row that may be refused before training goes back to an earlier state
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
    refused: int = 0  # updates in a row that were not made
    retreats: int = 0
    owed: bool = False  # whether what follows the last step, a row or a checkpoint, is still to be done
    anchor: int = 0  # the last step with a checkpoint that the plan asked for: what training goes back to
    incidents: int = 0  # rows of incidents.csv
    recent: list[Vital] = field(default_factory=list)  # of the last updates that were made

    def count(self, vital: Vital, made: bool) -> None:
        """A step more."""
        self.step, self.owed = self.step + 1, True
        self.refused = 0 if made else self.refused + 1
        if made:
            self.loss_sum, self.loss_count = self.loss_sum + vital.loss, self.loss_count + 1
            self.recent = [*self.recent, vital][-WINDOW:]


class Learner:
    """What a step changes: the model, its moving average, the optimizers, and the progress; and how."""

    def __init__(
        self,
        model: VisionTransformer,
        job: Job,
        plan: Plan,
        interruption: Interruption | None = None,
        world: World = ALONE,
    ):
        self.plan, self.device, self.world = plan, torch.device(plan.device), world
        self.criterion = make_criterion(job.task, plan.smoothing, class_weights(job, plan))
        self.guessing = loss_of_guessing(job.task)
        self.model = model.to(self.device).train()
        world.spread(model.state_dict())
        self.average: AveragedModel = make_average(model, plan.ema)
        self.divided = plan.shard and world.size > 1
        if self.divided:
            divide(model, world, self.device)
            divide(self.average.module, world, self.device)
        self.optimizers = make_optimizers(
            model, plan.optimizer, plan.lr, plan.weight_decay, plan.layer_decay, plan.freeze, plan.precision
        )
        self.lanes = Lanes(plan.threads, self.device, 1 if world.size > 1 else None, aside=True)
        joins = world.size > 1 and not self.divided
        self.replicas = [average_gradients(model)] if joins else replicas(self.model, self.lanes.count)
        self.interruption = interruption or Interruption()
        self.progress = Progress()
        self.whole = True  # not while an update is being made
        self.started = self.saved = time.perf_counter()

    def clock(self) -> float:
        """Seconds that the run has trained for, by the first process's clock."""
        return self.world.of_first(time.perf_counter() - self.started)

    def checkpoint(self) -> Checkpoint:
        """The whole state; of several processes the first has the tensors."""
        self.progress.seconds = time.perf_counter() - self.started
        values = dataclasses.asdict(self.progress)
        tensors = gathered(state_of(self.model, self.average, self.optimizers), self.world.first)
        return Checkpoint(values.pop("step"), tensors, values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back, or on, to a checkpoint."""
        restore_state(checkpoint.tensors, self.model, self.average, self.optimizers)
        values = {**checkpoint.values, "recent": [Vital(*seen) for seen in checkpoint.values.get("recent", ())]}
        self.progress = Progress(step=checkpoint.step, **values)

    def save(self, run: RunDir, *, planned: bool = False, alone: bool = False) -> bool:
        """Writes a checkpoint; `planned`: one to go back to. False, and none, where the state is not finite. `alone`
        does it without the other processes.
        """
        at, before = self.progress, self.progress.anchor
        at.anchor = at.step if planned else before
        checkpoint = self.checkpoint()
        if not (all_finite(checkpoint.tensors) if alone else self.is_finite(checkpoint)):
            at.anchor = before
            return False
        run.save(checkpoint, keep=(before, at.anchor))
        self.saved = time.perf_counter()
        return True

    def is_finite(self, checkpoint: Checkpoint) -> bool:
        """Whether every number of the state is finite, as the process that has it finds."""
        return not self.world.any(not all_finite(checkpoint.tensors))


def fit(
    job: Job,
    plan: Plan,
    model: VisionTransformer,
    run: RunDir,
    journal: Journal,
    interruption: Interruption | None = None,
    world: World = ALONE,
) -> nn.Module:
    """Trains to the plan's last step, from the newest checkpoint of the run where there is one. A run of minutes is
    timed now and then, and its last step moved.

    Returns the moving average of the weights. An update that is not finite, or far outside of what is usual, is not
    made; after five in a row training goes back to the last checkpoint that the plan asked for, at half the learning
    rate. Raises `InputError` where that does not help, and `StepError` where a step cannot be computed. A signal ends
    it, with a checkpoint of the last step that was made.
    """
    learner = Learner(model, job, plan, interruption, world)
    names = job.store.source.names
    if checkpoint := run.newest(journal.say):
        learner.restore(checkpoint)
    else:
        run.save(learner.checkpoint())
    journal.settle(run.path, read_rows(run.path, learner.progress.step))
    incidents = Incidents(run.path, mute=not world.first)
    incidents.keep(learner.progress.incidents)
    learner.started -= learner.progress.seconds

    try:
        while (at := learner.progress).step < (plan := learner.plan).steps or at.owed:
            batches, order = training_batches(job, plan, world=world)
            rows = row_steps(order, plan)
            since = Mark(at.step, learner.clock())
            with journal.bar("training", plan.steps, at.step) as bar:
                if at.owed and not finish_step(learner, job, order, rows, run, journal, incidents):
                    continue
                steps = batches.steps(at.step, plan.steps, plan.workers)
                while (batch := next_batch(steps, at.step, order, names)) is not None:
                    learner.interruption.check()
                    with blaming(at.step, batch.numbers, names):
                        vital = gradient(learner, batch)
                    with learner.interruption.held():
                        wrong = make_update(learner, vital)
                        if wrong:
                            report(wrong, vital, batch, learner, names, journal, incidents)
                        at.count(vital, made=not wrong)
                    if not finish_step(learner, job, order, rows, run, journal, incidents):
                        break
                    bar(at.step)
                    if at.step in rows or at.step % math.ceil(plan.steps / LOOKS) == 0:
                        at.seconds = learner.clock()
                        learner.plan = keep_to_budget(learner, order, since, at.step in rows, run, journal)
                        if learner.plan is not plan:
                            break
                        since = Mark(at.step, at.seconds)
    except (KeyboardInterrupt, SystemExit, StepError):
        with learner.interruption.held():
            keep_what_is_done(learner, run, journal)
        raise
    return learner.average.module


def keep_what_is_done(learner: Learner, run: RunDir, journal: Journal) -> None:
    """Writes a checkpoint of the last step that was made, before training is left. Of several processes the first does,
    by itself, where it has the whole state: the others may be anywhere.
    """
    if learner.divided or not learner.world.first:
        return
    try:
        if learner.whole and learner.save(run, alone=True):
            journal.say(f"step {learner.progress.step:,} is saved")
    except (OSError, MemoryError) as fault:
        journal.say(f"what was done since the last checkpoint cannot be saved: {fault}")


def finish_step(
    learner: Learner,
    job: Job,
    order: Order,
    rows: set[int],
    run: RunDir,
    journal: Journal,
    incidents: Incidents,
) -> bool:
    """What follows a step: a row of metrics and a checkpoint where they are due. False where training had to go back
    to an earlier state instead.
    """
    at, plan = learner.progress, learner.plan
    lost = at.refused >= PATIENCE or diverged(at.recent, learner.guessing)
    row = measure(learner, job, order) if at.step in rows and not lost else None
    with learner.interruption.held():
        at.seconds = learner.clock()
        at.owed = False
        if row:
            journal.row(row)
            journal.say(row_line(row, HEADLINES[job.task.kind]))
            at.loss_sum, at.loss_count = 0.0, 0
        planned = at.step % plan.save_every == 0 if plan.save_every else at.step in rows
        planned = planned or at.step == plan.steps
        since = learner.world.of_first(time.perf_counter() - learner.saved) if plan.save_seconds else 0.0
        timely = bool(plan.save_seconds) and since >= plan.save_seconds
        if not lost and not at.refused and (planned or timely):
            lost = not learner.save(run, planned=planned)
        elif at.step == plan.steps and at.refused:
            lost = lost or not learner.is_finite(learner.checkpoint())
        if lost:
            retreat(learner, run, journal, incidents)
            journal.settle(run.path, read_rows(run.path, learner.progress.step))
        return not lost


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
    """One update: the loss, and whether it was made. If not, nothing has changed."""
    vital = gradient(learner, batch)
    return vital.loss, not make_update(learner, vital)


def gradient(learner: Learner, batch: Batch) -> Vital:
    """Computes the gradient of a batch, clipped; the state stays what it is."""
    plan, device = learner.plan, learner.device
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
    join_gradients(learner.replicas)
    norm = whole(nn.utils.clip_grad_norm_(learner.model.parameters(), plan.clip, foreach=True))
    squares = size_of(batch.pixels) ** 2 * (len(batch.pixels) / batch.size)
    loss, squares = learner.world.sum(torch.tensor([float(total), squares], dtype=torch.float64)).tolist()
    return Vital(loss, float(norm), math.sqrt(squares))


def make_update(learner: Learner, vital: Vital) -> str:
    """Makes the update of the gradient that was computed, unless something is wrong with it: what, else ""."""
    at = learner.progress
    wrong = fault_of(vital, at.recent, learner.guessing, learner.plan.clip)
    if not wrong:
        learner.whole = False
        rate = learner.plan.rate(at.step) * at.rate_scale
        for optimizer in learner.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            optimizer.step()
        learner.average.update_parameters(learner.model)
        learner.whole = True
    learner.model.zero_grad(set_to_none=True)
    return wrong


def report(
    wrong: str,
    vital: Vital,
    batch: Batch,
    learner: Learner,
    names: Sequence[str],
    journal: Journal,
    incidents: Incidents,
) -> None:
    """Says, and writes to incidents.csv, why an update is not made, and which pictures it would have come from."""
    at = learner.progress
    pictures = [names[int(i)] for i in batch.numbers]
    odd = learner.world.together([pictures[row] for row in suspects(batch.pixels, batch.targets)])
    pictures = learner.world.together(pictures)
    rate = learner.plan.rate(at.step) * at.rate_scale
    at.incidents += 1
    incidents.add(at.step + 1, wrong, vital, rate, odd, pictures)
    which = f"because of {some(odd)}" if odd else f"its pictures are {some(pictures)}"
    journal.say(f"step {at.step + 1}: {wrong}; the update is not made; {which}")


def retreat(learner: Learner, run: RunDir, journal: Journal, incidents: Incidents) -> None:
    """Goes back to the last checkpoint that the plan asked for, at half the learning rate."""
    at = learner.progress
    if at.refused:
        why = f"{at.refused} updates in a row were not made"
    elif diverged(at.recent, learner.guessing):
        why = f"the loss is far above that of guessing ({learner.guessing:.3g})"
    else:
        why = "the weights are not finite"
    checkpoint = run.newest(journal.say, until=at.anchor)
    if checkpoint is None or at.retreats == RETREATS:
        advice = "try a lower --lr" + (", or --precision fp32" if learner.plan.precision == "bf16" else "")
        listed = f"; {incidents.path} lists the steps and their pictures" if at.incidents else ""
        raise InputError(
            f"training does not stay finite, after {at.retreats} returns to an earlier state: {why}; {advice}{listed}; "
            f"the last good state is in {run.path / 'last'}"
        )
    learner.restore(checkpoint)
    back, scale = learner.progress, at.rate_scale / 2
    back.rate_scale, back.retreats, back.incidents = scale, at.retreats + 1, at.incidents + 1
    run.forget_after(back.step)
    incidents.add(at.step, f"{why}: back to step {back.step}", rate=learner.plan.rate(back.step) * scale)
    journal.say(f"{why}: back to step {back.step}, at {scale:g} of the rate")


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
    lanes = lanes or Lanes(plan.threads, torch.device(plan.device), 1, aside=True)
    outputs, order = run_model(model, batches, precision, lanes)
    places = np.argsort(numbers)[np.searchsorted(np.sort(numbers), order)]
    answers = torch.zeros(len(numbers), outputs.shape[1])
    answers[torch.from_numpy(places)] = torch.from_numpy(outputs)
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


def next_batch(steps: Iterator[Batch], step: int, order: Order, names: Sequence[str]) -> Batch | None:
    """The batch of a step, None after the last. Raises `StepError` that names its pictures where it cannot be made."""
    try:
        return next(steps, None)
    except Exception:
        with blaming(step, order.batch(step), names):
            raise


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
    """The steps after which a row of metrics is due: as each point of the plan has it, from there to the next."""
    starts = [start for start, _, _ in plan.points]
    parts = zip(plan.points, [*starts[1:], plan.steps], strict=True)
    return {
        step
        for (start, _, end), until in parts
        for step in _rows_to(end, order, plan.row_every)
        if start < step <= until
    }


def _rows_to(end: int, order: Order, every: int) -> list[int]:
    """Ends of epochs, and the last step, which a short rest joins."""
    ends, epoch = [], every
    while (step := order.steps_before(epoch)) < end:
        ends.append(step)
        epoch += every
    if ends and end - ends[-1] < (step - ends[-1]) / 2:
        ends.pop()
    return [*ends, end]
