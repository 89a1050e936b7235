"""train, and what it is asked beside: to go on with a run, and to prove that it could."""

from dataclasses import asdict
from pathlib import Path

from vitreous.errors import InputError
from vitreous.rundir import RunDir
from vitreous.training.journal import Journal
from vitreous.training.recipe import TrainConfig
from vitreous.verbs.options import Json, OptionalData
from vitreous.verbs.output import print_json, speaks
from vitreous.verbs.pages import write_report


def train(
    data: OptionalData = None,
    /,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    config: TrainConfig = TrainConfig(),  # noqa: B008
    verify_resume: bool = False,
    report: bool = False,
    json: Json = False,
) -> int:
    """Trains a Vision Transformer from scratch, on DATA, or goes on with a run: --resume RUN.

    Args:
        out: The run directory to make; default: runs/<data>-<model>-<time>.
        resume: A run that was interrupted; it goes on to the same bits. Takes no other option of the training but
            --shard, and DATA only if moved.
        verify_resume: Train nothing; prove on DATA, with these options and in about a minute, that a run that is killed
            and resumed ends with the same bits. Exits with 1 where it does not.
        report: When it is trained, write report.html into the run directory, as vitreous report does.
    """
    from vitreous.training.torchrun import current
    from vitreous.training.train import resume_run, start_run

    journal = Journal(stderr=json)
    if verify_resume:
        if data is None or resume is not None or out is not None or report:
            raise InputError("--verify-resume keeps no run: expected DATA, and no --out, --resume or --report")
        if current().size > 1:
            raise InputError("--verify-resume is for one process: expected no torchrun")
        return _verify_resume(data, config, journal, json)
    if resume is not None:
        if out is not None or config not in (TrainConfig(), TrainConfig(shard=True)):
            raise InputError(
                "a run is resumed with the options it began with: expected --resume RUN, and DATA where it was moved"
            )
        path = resume_run(resume, journal, data, config.shard)
    elif data is None:
        raise InputError("expected DATA to train on, or --resume RUN; see vitreous train --help")
    else:
        path = start_run(data, config, out, journal)
    if not speaks():
        return 0
    page = {"page": str(write_report(journal, path, device=config.device))} if report else {}
    if json:
        summary = RunDir(path).read_json("validation.json")["summary"]
        print_json({"run": str(path), "validation": summary, **page})
    return 0


def _verify_resume(data: str, config: TrainConfig, journal: Journal, json: bool) -> int:
    from vitreous.training.verify import verify_resume

    found = verify_resume(data, config, journal)
    equal = all(part.equal for part in found)
    if json:
        print_json({"equal": equal, "compared": [{**asdict(part), "equal": part.equal} for part in found]})
        return 0 if equal else 1
    for part in found:
        other = "equal" if part.equal else f"DIFFERENT: {part.killed[:16]}…"
        journal.say(f"{part.part:<16}{part.undisturbed[:16]}…  {other}")
    journal.say("a run that is killed and resumed gives the same bits" if equal else "it does NOT give the same bits")
    return 0 if equal else 1
