"""Options and data to a Plan, by a timing of the first steps on a copy."""

import copy
import dataclasses
import math
import time

import torch

from vitreous.data.augment import AugmentConfig, resolve
from vitreous.data.batches import Order, TrainingBatches
from vitreous.errors import InputError
from vitreous.model.kernels import processor_name
from vitreous.model.vit import VisionTransformer
from vitreous.training.learner import Learner, update
from vitreous.training.measuring import outputs_on
from vitreous.training.plan import Pace, Plan
from vitreous.training.prepare import Job
from vitreous.training.recipe import (
    DEFAULT_MINUTES,
    RECIPES,
    REST_RATE,
    STEM_RATE,
    Recipe,
    TrainConfig,
    choose_batch,
    choose_precision,
    choose_rate,
    choose_threads,
    parse_save_every,
)
from vitreous.training.steps import training_batches
from vitreous.training.world import ALONE, World

SMALL = 64  # pixels a side up to which pictures are varied slightly
OFTEN = 30  # passes over the pictures from which on they are varied more
MOST_ROWS = 100  # rows of metrics.csv that a run aims at
LEAST_TIMED, MOST_TIMED = 2, 40  # steps of a kind
LEAST_COMPILED = 5  # of a model that is compiled meanwhile
COARSE_TOKENS = 36  # of a picture, from which on coarser ones are worth it
TIMED_SECONDS, TIMED_SHARE = 4.0, 0.05  # that timing the first steps may take, the less of both: of the run's minutes
ESTIMATE_SECONDS = 1.0  # that it may take where epochs are given, and it is for an estimate alone


def make_plan(
    job: Job,
    config: TrainConfig,
    model: VisionTransformer,
    device: torch.device,
    spent: float = 0.0,
    world: World = ALONE,
) -> Plan:
    """All that the run depends on. With `minutes` the number of steps follows from a short timing; `spent` are seconds
    of them that are gone. Several processes make the timed steps together, and follow the first one's plan.
    """
    batch = min(config.batch or choose_batch(len(job.training)), len(job.training))
    recipe = RECIPES["paper" if config.init else config.recipe]
    optimizer = config.optimizer if config.optimizer != "auto" else recipe.optimizer
    save_steps, save_seconds = parse_save_every(config.save_every)
    draft = Plan(
        points=((0, 0.0, 1),),
        epochs=0,
        batch=batch,
        accumulate=min(config.accumulate, batch),
        optimizer=optimizer,
        lr=config.lr or choose_rate(optimizer, job.model.width, batch),
        schedule=config.schedule if config.schedule != "auto" else recipe.schedule,
        warmup=config.warmup,
        coarse=_coarse(job, config, recipe),
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        freeze=config.freeze,
        clip=config.clip,
        smoothing=config.smoothing,
        ema=0.0,
        balance=config.balance,
        augmentation=_augmentation(job, config, often=False),
        precision=choose_precision(config.precision, device),
        device=str(device),
        threads=choose_threads(config.threads),
        workers=config.workers if config.workers is not None else 0 if device.type == "cpu" else 2,
        seed=config.seed,
        row_every=1,
        save_every=save_steps,
        save_seconds=save_seconds,
        budget=0.0,
        pace=Pace(0.0, 0.0, 0.0),
        seconds=0.0,
        torch=torch.__version__,
        ranks=world.size,
        shard=config.shard,
        stem_rate=STEM_RATE,
        rest_rate=REST_RATE,
        processor=processor_name(),
        compile=config.compile,
    )
    began = time.perf_counter()
    minutes = config.minutes or DEFAULT_MINUTES
    timing = ESTIMATE_SECONDS if config.epochs else min(TIMED_SECONDS, TIMED_SHARE * 60 * minutes)
    timed = _compiled_and_timed if config.compile else _timed
    pace = timed(job, draft, model, timing, world)
    order = training_batches(job, draft)[1]
    plan = dataclasses.replace(draft, batch=order.batch_size, pace=pace)
    if config.epochs:
        plan = dataclasses.replace(plan, points=((0, 0.0, order.steps_before(config.epochs)),))
    else:
        budget = 60 * minutes - spent - (time.perf_counter() - began)
        plan = dataclasses.replace(plan, budget=budget)
        for _ in range(2):  # how often rows come depends on the steps, and the steps on the rows
            plan = plan.retimed(0, 0.0, 1.0, order.steps_before(_row_every(job, order, plan.steps)))
    row_every = _row_every(job, order, plan.steps)
    plan = dataclasses.replace(
        plan,
        augmentation=_augmentation(job, config, often=order.epochs_at(plan.steps) >= OFTEN),
        ema=config.ema if config.ema is not None else 0.5 ** (1 / max(1.0, 0.02 * plan.steps)),
        row_every=row_every,
    )
    return _agreed(_estimated(plan, order), world)


def shortened(plan: Plan, job: Job, seconds: float, world: World = ALONE) -> Plan:
    """A plan before its first step, once so many more seconds of its budget are gone; without a budget, as it is."""
    if not plan.budget:
        return plan
    order = training_batches(job, plan)[1]
    plan = dataclasses.replace(plan, budget=plan.budget - seconds)
    plan = plan.retimed(0, 0.0, 1.0, order.steps_before(plan.row_every))
    return _agreed(_estimated(plan, order), world)


def _estimated(plan: Plan, order: Order) -> Plan:
    """The plan with what its steps come to, in epochs and in seconds."""
    epochs = order.epochs_at(plan.steps)
    seconds = plan.predicted(0, plan.steps, epochs // plan.row_every + 1)
    return dataclasses.replace(plan, epochs=epochs, seconds=round(seconds, 1))


def _agreed(plan: Plan, world: World) -> Plan:
    """The first process's plan."""
    return plan if world.size == 1 else Plan.from_json(world.agree(plan.to_json))


def _augmentation(job: Job, config: TrainConfig, often: bool) -> AugmentConfig:
    return resolve(
        config.augmentation,
        config.augment,
        job.task.kind,
        job.spec.channels,
        job.spec.depth,
        job.task.mirror_sensitive,
        small=max(job.main_size) <= SMALL,
        often=often,
    )


def _coarse(job: Job, config: TrainConfig, recipe: Recipe) -> float:
    """The share of the steps that see coarser pictures."""
    if config.coarse is not None:
        return config.coarse
    enough = math.prod(job.model.grid(*job.main_size)) >= COARSE_TOKENS
    return recipe.coarse if enough else 0.0


def _timed(job: Job, plan: Plan, model: VisionTransformer, seconds: float, world: World) -> Pace:
    """Some real steps, coarse ones and whole, and a validation on a batch, with a copy that is thrown away."""
    learner = Learner(copy.deepcopy(model), job, plan, world=world)
    kinds = [(plan.coarse, MOST_TIMED), (1 - plan.coarse, 0)]  # all timed steps coarse, then none
    coarse, whole = (
        _time_of_step(learner, training_batches(job, plan, coarse_steps, world)[0], share * seconds) if share else 0.0
        for share, coarse_steps in kinds
    )
    sample, times = job.validation[: plan.batch], []
    for _ in range(2):  # the less of two, again for a stall's sake
        start = time.perf_counter()
        outputs_on(learner.average.module, job, sample, plan, plan.precision, learner.lanes, world)
        times.append(time.perf_counter() - start)
    return Pace(coarse, whole, min(times) * len(job.validation) / len(sample))


def _compiled_and_timed(job: Job, plan: Plan, model: VisionTransformer, seconds: float, world: World) -> Pace:
    """The same of a model that is compiled. Raises `InputError` where this machine cannot compile it."""
    from torch._dynamo.exc import BackendCompilerFailed  # which takes a second to import

    try:
        return _timed(job, plan, model, seconds, world)
    except BackendCompilerFailed as fault:
        raise InputError(
            f"--compile: this machine cannot compile the model ({str(fault.inner_exception).splitlines()[0]}): "
            f"expected a C++ compiler such as g++, on a GPU Triton too; install it, or leave --compile out"
        ) from fault


def _time_of_step(learner: Learner, batches: TrainingBatches, seconds: float) -> float:
    times, until = [], time.perf_counter() + seconds
    least = LEAST_COMPILED if learner.plan.compile else LEAST_TIMED
    while len(times) < least or (len(times) < MOST_TIMED and learner.world.of_first(until - time.perf_counter()) > 0):
        start = time.perf_counter()
        update(learner, batches.make(len(times)))
        times.append(time.perf_counter() - start)
    warm = sorted(times[min(2, len(times) - 1) :])
    return warm[len(warm) // 4]  # about the lower quartile: a stall of the machine is no measure of a step


def _row_every(job: Job, order: Order, steps: int) -> int:
    """Epochs between rows, so that they are at most about a hundred, and take about a tenth of the time at most."""
    epochs = order.epoch_of(steps) or 1
    costs = len(job.validation) / (3 * len(job.training))  # a forward pass is a third of an update
    return max(1, round(epochs / MOST_ROWS), round(costs / 0.1))
