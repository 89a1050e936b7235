"""train: from data, or from a run that was interrupted, to a finished run directory."""

import copy
import dataclasses
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitreous.calibration import Calibration, headline, summarise
from vitreous.data.augment import resolve
from vitreous.data.batches import Order
from vitreous.errors import InputError
from vitreous.model.config import ModelConfig
from vitreous.model.vit import VisionTransformer, build, count_macs, count_parameters
from vitreous.model.weights import adapt
from vitreous.rundir import FORMAT, RunDir, discard
from vitreous.training import figures
from vitreous.training.journal import Journal, clock
from vitreous.training.loop import (
    HEADLINES,
    Learner,
    class_weights,
    fit,
    outputs_on,
    training_batches,
    update,
)
from vitreous.training.optim import make_criterion
from vitreous.training.prepare import Job, prepare, prepare_again
from vitreous.training.recipe import (
    DEFAULT_MINUTES,
    MOST_ROWS,
    Plan,
    TrainConfig,
    choose_batch,
    choose_device,
    choose_precision,
    choose_rate,
    choose_threads,
)

SHOWN = 32  # pictures in batch.png and worst.png


def train(
    data: str | Path | None = None, *, out: str | Path | None = None, resume: str | Path | None = None, **options: Any
) -> Path:
    """Trains a Vision Transformer from scratch and returns its run directory.

    `data` is a folder of class folders, a table, arrays, a tar, or "digits"; the options are the fields of
    `TrainConfig` and `AugmentConfig`. With `resume`, a run that was interrupted goes on, to the same bits.
    Raises `InputError` for whatever stands against it, before anything is written.
    """
    if resume is not None:
        if data is not None or out is not None or options:
            raise InputError("a run is resumed with the options it began with: expected resume=RUN and nothing else")
        return resume_run(resume, Journal())
    if data is None:
        raise InputError("expected data to train on, or resume=RUN")
    return start_run(data, TrainConfig.of(**options), out, Journal())


def start_run(data: str | Path, config: TrainConfig, out: str | Path | None, journal: Journal) -> Path:
    """Trains on data, into `out` or a new folder in runs/. Returns the run directory."""
    torch.set_num_threads(choose_threads(config.threads))
    if out is not None:
        RunDir.check_free(out)
    device = choose_device(config.device)
    job = prepare(str(data), config, journal)
    model = build(job.model, config.seed)
    if config.init is not None:
        _initialise(model, config.init, journal)
    plan, order = _plan_without_steps(job, config, device)
    _tell_model(model, job, plan, journal)
    plan = _with_steps(job, plan, order, config, model, journal)
    run = RunDir.create(out or _name(str(data), config))
    try:
        run.write_split(job.split)
        run.write_json("plan.json", plan.to_json())
        if config.init is not None:
            run.write_weights(model.state_dict(), "initial.safetensors")
        run.write_json("config.json", _description(str(data), config, job))
        _draw_batch(job, plan, run)
    except BaseException:
        discard(run.path)
        raise
    return _finish(job, plan, fit(job, plan, model, run, journal), run, journal)


def resume_run(path: str | Path, journal: Journal) -> Path:
    """Goes on with a run from its newest checkpoint, to the same bits. Returns the run directory."""
    run = RunDir.open(path)
    plan = Plan.from_json(run.read_json("plan.json"))
    if plan.torch != torch.__version__:
        journal.say(f"not bit-exact: the run began with torch {plan.torch}, this is {torch.__version__}")
    if plan.threads > choose_threads(None):
        journal.say(
            f"not bit-exact: the run began with {plan.threads} threads, this machine has {choose_threads(None)}"
        )
    torch.set_num_threads(plan.threads)
    job = prepare_again(run, journal)
    model = build(job.model, plan.seed)
    if (run.path / "initial.safetensors").exists():
        model.load_state_dict(run.read_weights("initial.safetensors"))
    return _finish(job, plan, fit(job, plan, model, run, journal), run, journal)


def _plan_without_steps(job: Job, config: TrainConfig, device: torch.device) -> tuple[Plan, Order]:
    batch = min(config.batch or choose_batch(len(job.training)), len(job.training))
    augmentation = resolve(
        config.augmentation, config.augment, job.task.kind, job.spec.channels, job.spec.depth, job.task.mirror_sensitive
    )
    plan = Plan(
        steps=0,
        epochs=0,
        batch=batch,
        accumulate=min(config.accumulate, batch),
        lr=config.lr or choose_rate(job.model.width, batch),
        warmup_steps=0,
        weight_decay=config.weight_decay,
        clip=config.clip,
        smoothing=config.smoothing,
        ema=0.0,
        balance=config.balance,
        augmentation=augmentation,
        precision=choose_precision(config.precision, device),
        device=str(device),
        threads=choose_threads(config.threads),
        workers=config.workers if config.workers is not None else 0 if device.type == "cpu" else 2,
        seed=config.seed,
        row_every=1,
        save_every=config.save_every or 0,
        seconds=None,
        torch=torch.__version__,
    )
    order = training_batches(job, plan)[1]
    return dataclasses.replace(plan, batch=order.batch_size), order


def _with_steps(job: Job, plan: Plan, order: Order, config: TrainConfig, model: nn.Module, journal: Journal) -> Plan:
    """The plan with its number of steps: of whole epochs, or of as many as the minutes hold by a short timing."""
    began = time.perf_counter()
    seconds_a_step, seconds_a_row = _timed(job, plan, model)
    if config.epochs:
        steps = order.steps_before(config.epochs)
    else:
        left = 60 * (config.minutes or DEFAULT_MINUTES) - (time.perf_counter() - began) - 2 * seconds_a_row
        steps = max(1, int(left / seconds_a_step))
        row_every = _row_every(job, order, steps)
        rows = order.epoch_of(steps) / row_every
        steps = max(1, int((left - rows * seconds_a_row) / seconds_a_step))
    row_every = _row_every(job, order, steps)
    epochs = order.epoch_of(steps)
    ending = steps - order.steps_before(epochs)
    length = order.steps_before(epochs + 1) - order.steps_before(epochs)
    plan = dataclasses.replace(
        plan,
        steps=steps,
        epochs=round(epochs + ending / max(1, length), 3),
        warmup_steps=round(config.warmup * steps),
        ema=config.ema if config.ema is not None else 0.5 ** (1 / max(1.0, 0.02 * steps)),
        row_every=row_every,
        seconds=round(steps * seconds_a_step + epochs / row_every * seconds_a_row, 1),
    )
    journal.say(
        f"plan: {plan.epochs:g} epochs, {steps:,} steps of {plan.batch} pictures, {plan.precision}, "
        f"{plan.threads} threads, {plan.device}; about {clock(plan.seconds or 0)}"
    )
    return plan


def _timed(job: Job, plan: Plan, model: nn.Module) -> tuple[float, float]:
    """Seconds a step and a row of metrics take: some real steps on a copy that is thrown away."""
    learner = Learner(copy.deepcopy(model), plan)
    batches, _ = training_batches(job, plan)
    criterion, device = make_criterion(job.task, plan.smoothing, class_weights(job, plan)), torch.device(plan.device)
    learner.model.to(device)
    times, until = [], time.perf_counter() + 4.0
    for number in range(40):
        start = time.perf_counter()
        update(learner, batches.make(number), criterion, plan, device)
        times.append(time.perf_counter() - start)
        if number >= 4 and time.perf_counter() > until:
            break
    sample = job.validation[: 2 * plan.batch]
    start = time.perf_counter()
    outputs_on(learner.model, job, sample, plan.batch, plan.precision, device)
    row = (time.perf_counter() - start) * len(job.validation) / len(sample)
    return statistics.fmean(sorted(times[2:])[: max(1, len(times) - 4)]), row


def _row_every(job: Job, order: Order, steps: int) -> int:
    """Epochs between rows, so that they are at most a hundred, and take about a tenth of the time at most."""
    epochs = order.epoch_of(steps) or 1
    costs = len(job.validation) / (3 * len(job.training))  # a forward pass is a third of an update
    return max(1, round(epochs / MOST_ROWS), round(costs / 0.1))


def _finish(job: Job, plan: Plan, model: nn.Module, run: RunDir, journal: Journal) -> Path:
    """The final weights, what the validation split tells of them, and the figures."""
    run.write_weights(model.state_dict())
    outputs, targets = outputs_on(model, job, job.validation, plan.batch, "fp32", torch.device(plan.device))
    calibration = Calibration.fit(job.task, outputs, targets)
    answers = calibration.answers(job.task, outputs)
    true = job.task.restore(targets) if job.task.kind == "regression" else targets
    summary = summarise(job.task, answers, true)
    run.write_json("validation.json", {"calibration": calibration.to_json(), "summary": summary})
    figures.curves(journal.rows, run.path / "curves.png", HEADLINES[job.task.kind])
    figures.result(job.task, answers, true, summary, calibration.halfwidth, run.path / "confusion.png")
    _draw_worst(job, answers, true, run)
    journal.say(f"validation: {headline(job.task, summary)}")
    journal.say(f"run: {run.path}  (curves.png, confusion.png, batch.png, worst.png)")
    journal.say(f"next: vitreous predict {run.path} PICTURES…   or   vitreous eval {run.path} DATA")
    return run.path


def _draw_batch(job: Job, plan: Plan, run: RunDir):
    batch = training_batches(job, plan)[0].make(0)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (job.spec.mean, job.spec.std))
    images = (batch.pixels[:SHOWN] * std + mean) * job.spec.scale  # (b, C, H, W)
    if job.spec.depth != "float32":
        images = images.round().clamp(0, job.spec.scale)
    pictures = [image.permute(1, 2, 0).numpy().astype(job.spec.depth) for image in images]
    captions = [_caption(job, target) for target in batch.targets[:SHOWN].numpy()]
    figures.pictures(pictures, captions, run.path / "batch.png", "The first batch, as the model sees it")


def _draw_worst(job: Job, answers: np.ndarray, true: np.ndarray, run: RunDir):
    """The most confident mistakes, or the largest errors."""
    if job.task.kind == "classification":
        wrong = np.flatnonzero(answers.argmax(1) != true)
        order = wrong[np.argsort(-answers[wrong].max(1), kind="stable")]
        captions = [
            f"said {job.task.names[answers[i].argmax()]} {answers[i].max():.0%}\nis {job.task.names[true[i]]}"
            for i in order[:SHOWN]
        ]
    else:
        order = np.argsort(
            -np.abs(answers - true).max(1)
            if job.task.kind == "multilabel"
            else -np.abs((answers - true) / np.array(job.task.std)).max(1),
            kind="stable",
        )
        worst = [int(np.abs(answers[i] - true[i]).argmax()) for i in order[:SHOWN]]
        captions = [
            f"said {job.task.names[k]} {answers[i, k]:.4g}\nis {true[i, k]:.4g}"
            for i, k in zip(order[:SHOWN], worst, strict=True)
        ]
    pictures = [job.store.gather(job.validation[i : i + 1])[0].numpy() for i in order[:SHOWN]]
    title = (
        "The most confident mistakes on the validation split"
        if job.task.kind == "classification"
        else "The largest errors on the validation split"
    )
    figures.pictures(pictures, captions, run.path / "worst.png", title)


def _caption(job: Job, target: np.ndarray) -> str:
    if job.task.kind == "classification":
        if target.ndim == 0:
            return job.task.names[int(target)]
        return "\n".join(f"{job.task.names[k]} {target[k]:.0%}" for k in np.argsort(-target)[:2] if target[k] > 0)
    if job.task.kind == "multilabel":
        return ", ".join(job.task.names[k] for k in np.flatnonzero(target > 0.5)) or "none"
    return ", ".join(f"{value:.4g}" for value in job.task.restore(target[None])[0])


def _tell_model(model: VisionTransformer, job: Job, plan: Plan, journal: Journal):
    height, width = job.model.image_size
    gh, gw = job.model.grid(height, width)
    tokenizer = {"patch": f"patches of {job.model.patch_size[0]}×{job.model.patch_size[1]}", "t2t": "tokens-to-token"}
    journal.say(
        f"model: {count_parameters(model) / 1e6:.2f}M parameters, {count_macs(job.model, height, width) / 1e9:.3g} GMACs "
        f"a picture of {height}×{width}, {gh}×{gw} tokens from {tokenizer[job.model.tokenizer]}"
    )
    shown = {name: value for name, value in vars(plan.augmentation).items() if value and name != "magnitude"}
    journal.say("augmentation: " + (", ".join(f"{name} {value:g}" for name, value in shown.items()) or "none"))


def _initialise(model: VisionTransformer, init: str, journal: Journal):
    run = RunDir.open(init)
    fresh = adapt(model, run.read_weights(), ModelConfig.from_json(run.config()["model"]))
    journal.say(f"weights from {init}" + (f"; new: {', '.join(fresh)}" if fresh else ""))


def _description(data: str, config: TrainConfig, job: Job) -> dict[str, Any]:
    """config.json."""
    where = data if job.store.source.kind == "digits" else job.store.source.location
    return {
        "format": FORMAT,
        "vitreous": version("vitreous"),
        "data": where,
        "model": job.model.to_json(),
        "input": job.spec.to_json(),
        "task": job.task.to_json(),
        "train": config.to_json(),
    }


def _name(data: str, config: TrainConfig) -> Path:
    kind = config.model if config.model != "auto" else "vit"
    stem = f"{Path(data).resolve().stem or 'data'}-{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path
