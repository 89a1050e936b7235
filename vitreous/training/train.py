"""train: from data, or from a run that was interrupted, to a finished run directory."""

import dataclasses
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitreous.calibration import Calibration, headline, summarise
from vitreous.data.batches import coarser
from vitreous.data.places import title_of
from vitreous.data.preprocess import InputSpec
from vitreous.errors import InputError, ToldInterrupt, counted, said_of
from vitreous.files import write_whole
from vitreous.model.config import ModelConfig
from vitreous.model.kernels import processor_name
from vitreous.model.presets import name_of
from vitreous.model.vit import VisionTransformer, build, count_macs, count_parameters
from vitreous.model.weights import adapt, import_weights
from vitreous.rundir import FORMAT, RunDir, discard, never_trained
from vitreous.training import figures, gallery
from vitreous.training.incidents import StepError
from vitreous.training.interruption import Interruption
from vitreous.training.journal import Journal, clock
from vitreous.training.loop import fit
from vitreous.training.measuring import HEADLINES, outputs_on
from vitreous.training.parallel import gathered
from vitreous.training.plan import Plan
from vitreous.training.planner import make_plan, shortened
from vitreous.training.prepare import Job, Origin, prepare, prepare_again, prepare_together
from vitreous.training.recipe import (
    DEFAULT_MINUTES,
    TrainConfig,
    choose_device,
    choose_precision,
    choose_threads,
    larger_model,
    machine_threads,
)
from vitreous.training.shared_run import journal_in, run_in
from vitreous.training.steps import training_batches
from vitreous.training.torchrun import LostError, is_loss, joined, restarted, restarts_left
from vitreous.training.world import ALONE, World

WORTH_A_WORD = 1.0  # seconds that getting the pictures ready takes
ALL_SEEN = 0.95  # share of the pictures to train on, as the last ones may not fill a batch


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
    """Trains on data, into `out` or a new folder in runs/, in all processes of torchrun. Returns the run directory.

    Where torchrun has started them again, the run that they had begun goes on.
    """
    with joined() as world, Interruption() as interruption:
        journal = journal_in(world, journal)
        if world.size > 1 and world.agree(lambda: _was_begun(config, out)):
            assert out is not None
            return _go_on(out, journal, None, config.shard, interruption, world)
        world.agree(lambda: RunDir.check_free(out) if out is not None else RunDir.check_parent(Path("runs") / "new"))
        start = set_up(data, config, journal, world)
        path = world.agree(lambda: str(RunDir.create(out if out is not None else _name(str(data), start.job)).path))
        run = run_in(world, path)
        with ExitStack() as stack:
            stack.enter_context(run.held())
            try:
                start = write_start(start, config, run, world)
                _tell_plan(start, journal)
                return _fit_and_finish(start, run, journal, interruption, world)
            except BaseException:
                if world.first and not any(run.path.glob("last/step-*")):  # nothing that could be resumed
                    stack.close()  # Windows removes no file that is open
                    discard(run.path)
                raise


@dataclass(frozen=True)
class Start:
    """All that a run begins with."""

    job: Job
    plan: Plan
    model: VisionTransformer


def set_up(data: str | Path, config: TrainConfig, journal: Journal, world: World = ALONE) -> Start:
    """Data and options to what a run begins with; nothing is written but the cache."""
    config.check()
    torch.set_num_threads(choose_threads(config.threads))
    origin: Origin | None = None

    def begin() -> Job:
        nonlocal origin
        origin = read_origin(config.init, journal) if config.init is not None else None
        return prepare(str(data), config, journal, origin)

    device = world.use(choose_device(config.device))
    opened = time.perf_counter()
    job = prepare_together(begin, config, journal, world)
    began = time.perf_counter()
    if (taken := began - opened) >= WORTH_A_WORD:
        then = "" if config.epochs else f"; the budget of {clock(60 * (config.minutes or DEFAULT_MINUTES))} begins now"
        journal.say(f"the pictures were ready after {clock(taken)}{then}")
    model = build(job.model, config.seed)
    if origin:  # the first process has it, and brings the weights to all
        fresh = adapt(model, origin.weights, origin.model)
        journal.say(f"weights from {config.init}" + (f"; new: {', '.join(fresh)}" if fresh else ""))
    compiling = "compiling it, a minute or so, and " if config.compile else ""
    journal.say(f"{compiling}measuring how fast this machine trains it …")
    plan = make_plan(job, config, model, device, time.perf_counter() - began, world)
    if config.model == "auto" and config.init is None and plan.budget:
        larger = larger_model(job.model, plan.epochs)
        if larger != job.model:
            job, model = dataclasses.replace(job, model=larger), build(larger, config.seed)
            journal.say("there is time for a larger model; measuring how fast that is …")
            plan = make_plan(job, config, model, device, time.perf_counter() - began, world)
    training_batches(job, plan, world=world)[0].check()
    _tell(model, job, plan, journal)
    if config.shard and world.size == 1:
        journal.say("--shard: there is one process, which has the model whole; torchrun starts several")
    return Start(job, plan, model)


def write_start(start: Start, config: TrainConfig, run: RunDir, world: World = ALONE) -> Start:
    """Writes what `resume_run` needs, but for checkpoints. Returns what the run begins with, the time that this took
    off its budget.
    """
    began = time.perf_counter()
    run.write_split(start.job.split)
    if config.init is not None:
        run.write_weights(start.model.state_dict(), "initial.safetensors")
    run.write_json("config.json", _description(config, start.job))
    if run.writes:
        gallery.draw_batch(start.job, training_batches(start.job, start.plan)[0].make(0), run.path / "batch.png")
    plan = shortened(start.plan, start.job, time.perf_counter() - began, world)
    run.write_json("plan.json", plan.to_json())
    return dataclasses.replace(start, plan=plan)


def resume_run(path: str | Path, journal: Journal, data: str | Path | None = None, shard: bool = False) -> Path:
    """Goes on with a run from its newest checkpoint, to the same bits. Returns the run directory.

    `data` is where its pictures lie now, where they were moved; the run remembers it. With `shard` the processes of
    torchrun divide the model from now on.
    """
    with joined() as world, Interruption() as interruption:
        return _go_on(path, journal_in(world, journal), data, shard, interruption, world)


def _go_on(
    path: str | Path,
    journal: Journal,
    data: str | Path | None,
    shard: bool,
    interruption: Interruption,
    world: World,
) -> Path:
    run = run_in(world, world.agree(lambda: str(RunDir.open(path).path)))
    with run.held():
        run.clean()
        start = _read_start(run, journal, data, shard, world)
        return _fit_and_finish(start, run, journal, interruption, world)


def _read_start(run: RunDir, journal: Journal, data: str | Path | None, shard: bool, world: World) -> Start:
    """What a run began with."""
    written = world.agree(
        lambda: {
            "plan": run.parsed("plan.json", "", Plan.from_json).to_json(),
            "train": run.parsed("config.json", "train", TrainConfig.from_json).to_json(),
        }
    )
    config = TrainConfig.from_json(written["train"])
    plan = _plan_here(Plan.from_json(written["plan"]), config, shard, world, journal)
    torch.set_num_threads(plan.threads)
    world.use(torch.device(plan.device))
    job = prepare_together(lambda: prepare_again(run, journal, data), config, journal, world)
    if data is not None and world.first:
        run.write_json("config.json", {**run.config(), "data": job.store.source.location})
    model = build(job.model, plan.seed)
    if world.first and (run.path / "initial.safetensors").exists():  # it brings the weights to all
        model.load_state_dict(run.read_weights("initial.safetensors"))
    return Start(job, plan, model)


def _plan_here(plan: Plan, config: TrainConfig, shard: bool, world: World, journal: Journal) -> Plan:
    """The plan of a run as these processes follow it, and a word where the bits will differ."""
    if (here := _device_here(plan.device)) != plan.device:
        journal.say(f"not bit-exact: the run began on {plan.device}, this machine computes on {here}")
        precision = choose_precision("auto", torch.device(here)) if plan.precision == "bf16" else plan.precision
        plan = dataclasses.replace(plan, device=here, precision=precision)
    elif here == "cpu" and plan.processor not in ("", processor_name()):
        journal.say(f"not bit-exact: the run began on {plan.processor}, this is {processor_name()}")
    if plan.compile:
        journal.say("not bit-exact: compiled code may differ from process to process")
    if plan.torch != torch.__version__:
        journal.say(f"not bit-exact: the run began with torch {plan.torch}, this is {torch.__version__}")
    if plan.ranks != world.size or (shard and not plan.shard):
        began, now = _processes(plan.ranks, plan.shard), _processes(world.size, plan.shard or shard)
        journal.say(f"not bit-exact: the run began with {began}, and goes on with {now}")
        return dataclasses.replace(plan, threads=choose_threads(config.threads), shard=plan.shard or shard)
    if plan.threads > (threads := machine_threads()):
        journal.say(f"not bit-exact: the run began with {counted(plan.threads, 'thread')}, this machine has {threads}")
    return plan


def _device_here(planned: str) -> str:
    """The device of a plan, or where it is not to be had here, the one that is chosen by itself."""
    chosen = str(choose_device("auto"))
    try:
        return planned if planned == chosen else str(choose_device(planned))
    except InputError:
        return chosen


def _processes(count: int, shard: bool) -> str:
    return f"{counted(count, 'process')}{', which divide the model' if shard and count > 1 else ''}"


def _was_begun(config: TrainConfig, out: str | Path | None) -> bool:
    """Whether `out` is the run of this very command, which torchrun has started again; what never got to its first
    step is removed. Raises `InputError` where torchrun may start it again and there is no `out`.
    """
    if out is None:
        if restarts_left():
            raise InputError("torchrun --max-restarts: expected --out RUN too, the run that a restart goes on with")
        return False
    folder = Path(out)
    if not restarted() or not folder.is_dir():
        return False
    if not any(folder.glob("last/step-*")):
        if never_trained(folder):
            with RunDir(folder).held():
                pass  # another process does not begin a run there
            discard(folder)
        return False
    return RunDir.open(folder).config()["train"] == json.loads(json.dumps(config.to_json()))


def _fit_and_finish(start: Start, run: RunDir, journal: Journal, interruption: Interruption, world: World) -> Path:
    """Training, and what follows it; where it is cut short, how to go on."""
    try:
        trained = fit(start.job, start.plan, start.model, run, journal, interruption, world)
        _finish(trained, start.job, start.plan, run, journal, world)
    except BaseException as fault:
        if any(run.path.glob("last/step-*")):
            if world.size > 1 and is_loss(fault):
                raise LostError(_after_a_loss(run.path)) from fault
            then = f"vitreous train --resume {run.path} goes on"
            if isinstance(fault, KeyboardInterrupt | SystemExit):
                journal.say(f"interrupted; {then}")
                if isinstance(fault, KeyboardInterrupt):
                    raise ToldInterrupt from None
            elif isinstance(fault, StepError):
                raise StepError(f"{fault}\nonce that is mended, {then}") from fault
            elif isinstance(fault, OSError) and not isinstance(fault, BrokenPipeError):  # a full disk
                raise OSError(f"{said_of(fault)}\nonce that is mended, {then}") from fault
        raise
    journal.say(f"run: {run.path}  (curves.png, confusion.png, batch.png, worst.png)")
    journal.say(f"next: vitreous predict {run.path} PICTURES…   or   vitreous eval {run.path} DATA")
    journal.say(f"to look inside: vitreous explain {run.path} PICTURES…   or   vitreous report {run.path}")
    return run.path


def _after_a_loss(run: Path) -> str:
    """What becomes of a run, one of whose processes has ended."""
    if restarts_left():
        return "torchrun starts all of them again, and the run goes on from its last checkpoint"
    return (
        f"to go on from the last checkpoint, start torchrun as before with: -m vitreous train --resume {run}\n"
        "a run that is started with torchrun --max-restarts 3, and with --out, goes on by itself"
    )


def _finish(trained: nn.Module, job: Job, plan: Plan, run: RunDir, journal: Journal, world: World):
    """The final weights, and what is said of them."""
    run.write_weights(gathered(trained.state_dict(), world.first))
    outputs, targets = outputs_on(trained, job, job.validation, plan, "fp32", world=world)
    world.agree(lambda: _judge(outputs, targets, job, run, journal))  # a run is finished in all processes, or in none


def _judge(outputs: np.ndarray, targets: np.ndarray, job: Job, run: RunDir, journal: Journal):
    """What the validation split tells of the final weights, and the figures."""
    calibration = Calibration.fit(job.task, outputs, targets)
    answers = calibration.answers(job.task, outputs)
    true = job.task.restore(targets) if job.task.kind == "regression" else targets
    summary = summarise(job.task, answers, true)
    run.write_json("validation.json", {"calibration": calibration.to_json(), "summary": summary})
    draw = (
        ("curves.png", lambda path: figures.curves(journal.rows, path, HEADLINES[job.task.kind])),
        ("confusion.png", lambda path: figures.result(job.task, answers, true, summary, calibration.halfwidth, path)),
        ("worst.png", lambda path: gallery.draw_worst(job, answers, true, path)),
    )
    for name, figure in draw:
        write_whole(run.path / name, figure)
    journal.say(f"validation: {headline(job.task, summary)}")


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
    mirrored = "mirrored at random: --flip 0 where left and right differ; " if plan.augmentation.flip else ""
    journal.say(f"augmentation: {shown or 'none'} ({mirrored}--help says what each is)")


def _tell_plan(start: Start, journal: Journal):
    job, plan = start.job, start.plan
    ch, cw = coarser(job.main_size, job.model.stride)
    divided = ", which divide the model" if plan.shard else ""
    processes = f" in each of {plan.ranks} processes{divided}" if plan.ranks > 1 else ""
    coarse = f", the first {plan.coarse_steps:,} at {ch}×{cw}" if plan.coarse_steps else ""
    epochs = round(plan.epochs, 1 if plan.epochs > 1 else 2)
    journal.say(
        f"plan: {counted(epochs, 'epoch')}, {counted(plan.steps, 'step')} of {counted(plan.batch, 'picture')}"
        f"{coarse}, {plan.optimizer}, {plan.precision}, {counted(plan.threads, 'thread')}{processes}, {plan.device}; "
        f"about {clock(plan.seconds)}"
    )
    seen = plan.steps * plan.batch / len(job.training)  # an epoch of pictures in many shapes may leave most of them out
    if plan.budget and seen < ALL_SEEN:
        cheaper = ", or leave --compile out" if plan.compile else ""
        journal.say(
            f"note: in this time the model sees {seen:.0%} of the pictures, each once; "
            f"expect little of it, or give it more --minutes{cheaper}"
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
