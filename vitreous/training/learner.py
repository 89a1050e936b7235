"""What a step of training changes, and how: the model, its moving average, the optimizers, and the progress."""

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vitreous.data.batches import Batch, seed_of
from vitreous.model.encoder import draw_paths, set_paths
from vitreous.model.vit import VisionTransformer
from vitreous.rundir import Checkpoint, RunDir
from vitreous.training.health import WINDOW, Vital, all_finite, fault_of, loss_of_guessing, size_of
from vitreous.training.interruption import Interruption
from vitreous.training.lanes import Lanes, join_gradients, replicas
from vitreous.training.optim import make_average, make_criterion, make_optimizers, restore_state, state_of
from vitreous.training.parallel import average_gradients, divide, gathered, unless_last, whole
from vitreous.training.plan import Plan
from vitreous.training.prepare import Job
from vitreous.training.world import ALONE, World


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


def class_weights(job: Job, plan: Plan) -> Tensor | None:
    """Loss weight of each class, inverse to its number of training pictures; the mean over pictures is 1."""
    if plan.balance != "weights" or job.task.kind != "classification":
        return None
    counts = np.bincount(job.targets[job.training], minlength=job.task.outputs)
    weights = len(job.training) / (len(counts) * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32, device=plan.device)


def compile_parts(model: nn.Module) -> None:
    """Has tokenizer and blocks compiled by their first passes. Where no path is dropped, blocks are alike, and the code
    of one serves all.
    """
    for module in model.modules():
        if isinstance(module, VisionTransformer):
            for part in (module.tokenizer, *module.get_submodule("blocks").children()):
                part.compile()


class Learner:
    """The model, its moving average, the optimizers, and the progress."""

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
        self.optimizers = make_optimizers(model, plan, ALONE if self.divided else world)
        self.lanes = Lanes(plan.threads, self.device, 1 if world.size > 1 else None, aside=True)
        joins = world.size > 1 and not self.divided
        self.replicas = [average_gradients(model)] if joins else replicas(self.model, self.lanes.count)
        if plan.compile:
            for replica in self.replicas:
                compile_parts(replica)
        self.interruption = interruption or Interruption()
        self.progress = Progress()
        self.whole = True  # whether tensors and progress are those of the same step
        self.told = plan.steps  # of the plan's steps, what the user heard last
        self.started = self.saved = time.perf_counter()

    def clock(self) -> float:
        """Seconds that the run has trained for, by the first process's clock."""
        return self.world.of_first(time.perf_counter() - self.started)

    def unsaved(self) -> float:
        """Seconds since the last checkpoint, by the same clock."""
        return self.world.of_first(time.perf_counter() - self.saved)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around what changes the state: cut short, it leaves none that is `whole`."""
        self.whole = False
        yield
        self.whole = True

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
        progress, before = self.progress, self.progress.anchor
        progress.anchor = progress.step if planned else before
        checkpoint = self.checkpoint()
        if not (all_finite(checkpoint.tensors) if alone else self.is_finite(checkpoint)):
            progress.anchor = before
            return False
        run.save(checkpoint, keep=(before, progress.anchor))
        self.saved = time.perf_counter()
        return True

    def is_finite(self, checkpoint: Checkpoint) -> bool:
        """Whether every number of the state is finite, as the process that has it finds."""
        return not self.world.any(not all_finite(checkpoint.tensors))


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
    progress = learner.progress
    wrong = fault_of(vital, progress.recent, learner.guessing, learner.plan.clip)
    if not wrong:
        rate = learner.plan.rate(progress.step) * progress.rate_scale
        for optimizer in learner.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            optimizer.step()
        learner.average.update_parameters(learner.model)
    learner.model.zero_grad(set_to_none=True)
    return wrong


def update(learner: Learner, batch: Batch) -> tuple[float, bool]:
    """One update: the loss, and whether it was made. If not, nothing has changed."""
    vital = gradient(learner, batch)
    return vital.loss, not make_update(learner, vital)
