"""What the steps of a plan are: the pictures of each, and the ones that a row of metrics follows."""

from collections.abc import Iterator, Sequence

import numpy as np

from vitreous.data.batches import Batch, Order, TrainingBatches
from vitreous.training.incidents import blaming
from vitreous.training.plan import Plan
from vitreous.training.prepare import Job
from vitreous.training.world import ALONE, World


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
    gpu = plan.device.startswith("cuda")
    batches = TrainingBatches(job.store, job.targets, order, plan.augmentation, classes, *sizes, *part, pin=gpu)
    return batches, order


def next_batch(steps: Iterator[Batch], step: int, order: Order, names: Sequence[str]) -> Batch | None:
    """The batch of a step, None after the last. Raises `StepError` that names its pictures where it cannot be made."""
    try:
        return next(steps, None)
    except Exception:
        with blaming(step, order.batch(step), names):
            raise


def _rows_to(end: int, order: Order, every: int) -> list[int]:
    """Ends of epochs, and the last step, which a short rest joins."""
    ends, epoch = [], every
    while (step := order.steps_before(epoch)) < end:
        ends.append(step)
        epoch += every
    if ends and end - ends[-1] < (step - ends[-1]) / 2:
        ends.pop()
    return [*ends, end]


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
