"""train: from data, or from a run that was interrupted, to a finished run directory."""

import dataclasses
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vitreous.calibration import Calibration, headline, summarise
from vitreous.data.batches import coarser
from vitreous.data.places import title_of
from vitreous.data.preprocess import InputSpec
from vitreous.errors import InputError
from vitreous.model.config import ModelConfig
from vitreous.model.presets import name_of
from vitreous.model.vit import VisionTransformer, build, count_macs, count_parameters
from vitreous.model.weights import adapt, import_weights
from vitreous.rundir import FORMAT, RunDir, discard
from vitreous.training import figures, gallery
from vitreous.training.journal import Journal, clock
from vitreous.training.loop import HEADLINES, fit, outputs_on, training_batches
from vitreous.training.planner import make_plan
from vitreous.training.prepare import Job, Origin, prepare, prepare_again
from vitreous.training.recipe import Plan, TrainConfig, choose_device, choose_threads, larger_model


def train(
    data: str | Path | None = None, *, out: str | Path | None = None, resume: str | Path | None = None, **options: Any
) -> Path:
    """Trains a Vision Transformer from scratch and returns its run directory.

    `data` is a folder of class folders, a table, arrays, a tar, or "digits"; the options are the fields of
    `TrainConfig` and `AugmentConfig`. With `resume`, a run that was interrupted goes on, to the same bits; `data` then
    says where its pictures lie now, where they were moved.
    Raises `InputError` for whatever stands against it, before anything is written.
    """
    if resume is not None:
        if out is not None or options:
            raise InputError(
                "a run is resumed with the options it began with: expected resume=RUN, and data where it was moved"
            )
        return resume_run(resume, Journal(), data)
    if data is None:
        raise InputError("expected data to train on, or resume=RUN")
    return start_run(data, TrainConfig.of(**options), out, Journal())


def start_run(data: str | Path, config: TrainConfig, out: str | Path | None, journal: Journal) -> Path:
    """Trains on data, into `out` or a new folder in runs/. Returns the run directory."""
    config.check()
    torch.set_num_threads(choose_threads(config.threads))
    RunDir.check_free(out if out is not None else Path("runs") / "new")
    origin = read_origin(config.init, journal) if config.init is not None else None
    device = choose_device(config.device)
    job = prepare(str(data), config, journal, origin)
    model = build(job.model, config.seed)
    if origin:
        fresh = adapt(model, origin.weights, origin.model)
        journal.say(f"weights from {config.init}" + (f"; new: {', '.join(fresh)}" if fresh else ""))
    began = time.perf_counter()
    plan = make_plan(job, config, model, device)
    if config.model == "auto" and not origin and plan.budget:
        larger = larger_model(job.model, plan.epochs)
        if larger != job.model:
            job, model = dataclasses.replace(job, model=larger), build(larger, config.seed)
            plan = make_plan(job, config, model, device, spent=time.perf_counter() - began)
    _tell(model, job, plan, journal)
    run = RunDir.create(out if out is not None else _name(str(data), job))
    try:
        run.write_split(job.split)
        run.write_json("plan.json", plan.to_json())
        if origin:
            run.write_weights(model.state_dict(), "initial.safetensors")
        run.write_json("config.json", _description(config, job))
        gallery.draw_batch(job, training_batches(job, plan)[0].make(0), run.path / "batch.png")
        return _fit_and_finish(job, plan, model, run, journal)
    except BaseException:
        if not any(run.path.glob("last/step-*")):  # nothing that could be resumed
            discard(run.path)
        raise


def resume_run(path: str | Path, journal: Journal, data: str | Path | None = None) -> Path:
    """Goes on with a run from its newest checkpoint, to the same bits. Returns the run directory.

    `data` is where its pictures lie now, where they were moved; the run remembers it.
    """
    run = RunDir.open(path)
    plan = run.parsed("plan.json", "", Plan.from_json)
    if plan.torch != torch.__version__:
        journal.say(f"not bit-exact: the run began with torch {plan.torch}, this is {torch.__version__}")
    if plan.threads > choose_threads(None):
        journal.say(
            f"not bit-exact: the run began with {plan.threads} threads, this machine has {choose_threads(None)}"
        )
    torch.set_num_threads(plan.threads)
    job = prepare_again(run, journal, data)
    if data is not None:
        run.write_json("config.json", {**run.config(), "data": job.store.source.location})
    model = build(job.model, plan.seed)
    if (run.path / "initial.safetensors").exists():
        model.load_state_dict(run.read_weights("initial.safetensors"))
    return _fit_and_finish(job, plan, model, run, journal)


def _fit_and_finish(job: Job, plan: Plan, model: VisionTransformer, run: RunDir, journal: Journal) -> Path:
    """Training, the final weights, what the validation split tells of them, and the figures."""
    try:
        trained = fit(job, plan, model, run, journal)
    except KeyboardInterrupt:
        journal.say(f"interrupted; vitreous train --resume {run.path} goes on")
        raise
    run.write_weights(trained.state_dict())
    outputs, targets = outputs_on(trained, job, job.validation, plan, "fp32")
    calibration = Calibration.fit(job.task, outputs, targets)
    answers = calibration.answers(job.task, outputs)
    true = job.task.restore(targets) if job.task.kind == "regression" else targets
    summary = summarise(job.task, answers, true)
    run.write_json("validation.json", {"calibration": calibration.to_json(), "summary": summary})
    figures.curves(journal.rows, run.path / "curves.png", HEADLINES[job.task.kind])
    figures.result(job.task, answers, true, summary, calibration.halfwidth, run.path / "confusion.png")
    gallery.draw_worst(job, answers, true, run.path / "worst.png")
    journal.say(f"validation: {headline(job.task, summary)}")
    journal.say(f"run: {run.path}  (curves.png, confusion.png, batch.png, worst.png)")
    journal.say(f"next: vitreous predict {run.path} PICTURES…   or   vitreous eval {run.path} DATA")
    journal.say(f"to look inside: vitreous explain {run.path} PICTURES…   or   vitreous report {run.path}")
    return run.path


def _tell(model: VisionTransformer, job: Job, plan: Plan, journal: Journal):
    height, width = job.main_size
    gh, gw = job.model.grid(height, width)
    ph, pw = job.model.patch_size
    tokenizer = {"patch": f"patches of {ph}×{pw}", "t2t": "tokens-to-token", "stem": "convolutions"}
    journal.say(
        f"model: {name_of(job.model) or 'of its own kind'}, {count_parameters(model) / 1e6:.2f}M parameters, "
        f"{gh}×{gw} tokens from {tokenizer[job.model.tokenizer]}, "
        f"{count_macs(job.model, height, width) / 1e9:.3g} GMACs a picture of {height}×{width}"
    )
    changes = {**vars(plan.augmentation), "crop": plan.augmentation.crop if plan.augmentation.crop != 1 else None}
    if not plan.augmentation.operations:
        del changes["magnitude"]
    shown = ", ".join(f"{name} {value:g}" for name, value in changes.items() if value)
    journal.say(f"augmentation: {shown or 'none'} (--help says what each is)")
    ch, cw = coarser(job.main_size, job.model.stride)
    coarse = f", the first {plan.coarse_steps:,} at {ch}×{cw}" if plan.coarse_steps else ""
    journal.say(
        f"plan: {plan.epochs:g} epochs, {plan.steps:,} steps of {plan.batch} pictures{coarse}, {plan.optimizer}, "
        f"{plan.precision}, {plan.threads} threads, {plan.device}; about {clock(plan.seconds)}"
    )


def read_origin(init: str | Path, journal: Journal) -> Origin:
    """The model to start from: a run directory's, or another project's checkpoint."""
    if (Path(init) / "split.csv").exists() or not Path(init).exists():
        run = RunDir.open(init)
        spec = run.parsed("config.json", "input", InputSpec.from_json)
        return Origin(
            run.parsed("config.json", "model", ModelConfig.from_json), run.read_weights(), spec.mean, spec.std
        )
    model = import_weights(init, say=journal.say, outputs=1)  # the head is made anew all the same
    return Origin(model.config, model.state_dict())


def _description(config: TrainConfig, job: Job) -> dict[str, Any]:
    """config.json."""
    return {
        "format": FORMAT,
        "vitreous": version("vitreous"),
        "data": job.store.source.location,
        "model": job.model.to_json(),
        "input": job.spec.to_json(),
        "task": job.task.to_json(),
        "train": config.to_json(),
    }


def _name(data: str, job: Job) -> Path:
    """runs/<data>-<model>-<time>, with a number where that is there."""
    stem = f"{title_of(data)}-{name_of(job.model) or 'vit'}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path
