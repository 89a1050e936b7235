"""The verbs of the command line. Each puts the layers below together, and says what came of it."""

import json as jsonlib
import os
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from vitreous.data.decode import MAX_PIXELS
from vitreous.data.workers import DECODERS
from vitreous.errors import SHOWN, InputError, visible
from vitreous.infer.agreement import Bar
from vitreous.infer.predictor import AnswerConfig
from vitreous.training.journal import Journal
from vitreous.training.recipe import TrainConfig

DIVISIBLE = ("train", "eval", "predict")  # verbs whose work the processes of torchrun share
DATA = (
    "A folder of class folders, a table (.csv, .tsv, .parquet), arrays (.npz), a .tar of class folders, or digits; "
    "shards (.tar, .parquet): a folder, a pattern or a URL of them; or hf://owner/name."
)
PICTURES = "Files, and folders of them; shards of them."
Json = Annotated[bool, arg(help="Print JSON for machines; what is meant for people goes to standard error.")]
Data = Annotated[Positional[str], arg(help=DATA, metavar="DATA")]
Run = Annotated[Positional[Path], arg(help="A run directory that train made, or a file of export.", metavar="RUN")]


def run(name: str, words: list[str]) -> int:
    """Parses the words of a verb and runs it; returns the exit code."""
    from vitreous.training.distributed import joined

    config = (OmitArgPrefixes, FlagCreatePairsOff, DisallowNone)
    with joined() as world:
        if world.size > 1 and name not in DIVISIBLE:
            raise InputError(f"this is the work of one process: torchrun is for {', '.join(DIVISIBLE)}")
        return tyro.cli(FUNCTIONS[name], args=words, prog=f"vitreous {name}", config=config, console_outputs=speaks())


def speaks() -> bool:
    """Whether this process is the one that speaks: the first of those that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def check(
    data: Data,
    /,
    *,
    target: tuple[str, ...] = (),
    path_column: str | None = None,
    group: str | None = None,
    max_pixels: int = MAX_PIXELS,
    json: Json = False,
) -> int:
    """Lists, file by file, what cannot be read, copies and near copies, imbalance, sizes, and kinds that differ.

    Exits with 1 where training would be wrong.

    Args:
        target: Target columns of a table; default: all that look like targets.
        path_column: Column of a table that holds the pictures' paths.
        group: Column whose equal values never stand on both sides of a split.
        max_pixels: Larger pictures are refused before they are decoded.
    """
    from vitreous.data.doctor import check_data

    journal = Journal(stderr=json)
    with journal.bar("checking", 1) as progress:
        found = check_data(
            data, target=target, path_column=path_column, group=group, max_pixels=max_pixels, progress=progress
        )
    if json:
        _print_json({"ok": found.ok, **asdict(found)})
        return 0 if found.ok else 1
    for finding in found.findings:
        journal.say(f"{finding.severity}: {finding.title}")
        for line in finding.details:
            journal.say(f"  {line}")
    verdict = "nothing that would make a training wrong" if found.ok else "mend the errors before you train"
    journal.say(f"{found.pictures:,} pictures: {verdict}")
    return 0 if found.ok else 1


def train(
    data: Annotated[Positional[str | None], arg(help=DATA, metavar="DATA")] = None,
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
        resume: A run that was interrupted; it goes on to the same bits. Takes no other option of the training, and
            DATA only if moved.
        verify_resume: Train nothing; prove on DATA, with these options and in about a minute, that a run that is killed
            and resumed ends with the same bits. Exits with 1 where it does not.
        report: When it is trained, write report.html into the run directory, as vitreous report does.
    """
    from vitreous.training.distributed import current
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
    page = {"page": str(_write_report(journal, path, device=config.device))} if report else {}
    if json:
        summary = jsonlib.loads((path / "validation.json").read_text("utf-8"))["summary"]
        _print_json({"run": str(path), "validation": summary, **page})
    return 0


def _verify_resume(data: str, config: TrainConfig, journal: Journal, json: bool) -> int:
    from vitreous.training.verify import verify_resume

    found = verify_resume(data, config, journal)
    equal = all(part.equal for part in found)
    if json:
        _print_json({"equal": equal, "compared": [{**asdict(part), "equal": part.equal} for part in found]})
        return 0 if equal else 1
    for part in found:
        other = "equal" if part.equal else f"DIFFERENT: {part.killed[:16]}…"
        journal.say(f"{part.part:<16}{part.undisturbed[:16]}…  {other}")
    journal.say("a run that is killed and resumed gives the same bits" if equal else "it does NOT give the same bits")
    return 0 if equal else 1


def evaluate(
    run: Run,
    data: Data,
    /,
    *,
    target: tuple[str, ...] = (),
    path_column: str | None = None,
    split: str = "auto",
    figure: Path | None = None,
    skip_bad: bool = False,
    how: AnswerConfig = AnswerConfig(),  # noqa: B008
    json: Json = False,
) -> int:
    """Measures a trained model on data with the same targets.

    Pictures that the run was trained on are told by their content and not scored.

    Args:
        target: Target columns of a table, in the order of the run's; default: those it was trained on.
        path_column: Column of a table that holds the pictures' paths.
        split: Which pictures of the run's data to score: auto (those held out), train, validation, test or all.
        figure: Write the confusion matrix, or predicted against true, to this PNG.
        skip_bad: Leave out pictures that cannot be read, by name, rather than stop.
    """
    from vitreous.calibration import headline
    from vitreous.infer.evaluation import evaluate
    from vitreous.infer.predictor import load
    from vitreous.training.distributed import current

    journal = current().journal(Journal(stderr=json))
    DECODERS.warm()
    predictor = load(run, how)
    with journal.bar("evaluating", 1) as progress:
        result = evaluate(
            predictor,
            data,
            target=target,
            path_column=path_column,
            split=split,
            skip_bad=skip_bad,
            say=journal.say,
            progress=progress,
        )
    if not speaks():
        return 0
    if figure is not None:
        from vitreous.training import figures

        figures.result(
            predictor.task, result.answers, result.targets, result.summary, predictor.calibration.halfwidth, figure
        )
    if json:
        _print_json(result.summary)
        return 0
    journal.say(headline(predictor.task, result.summary))
    for line in _details(result.summary):
        journal.say(line)
    return 0


def predict(
    run: Run,
    pictures: Annotated[Positional[tuple[str, ...]], arg(help=PICTURES, metavar="PICTURES…")],
    /,
    *,
    out: Path | None = None,
    skip_done: bool = False,
    top: int = 1,
    how: AnswerConfig = AnswerConfig(),  # noqa: B008
    json: Json = False,
) -> int:
    """Asks a trained model about pictures: classes with calibrated probabilities, or numbers with 90 % intervals.

    A picture is "unsure" where the set of classes that holds the truth 90 times of 100 has more than one. Pictures
    that cannot be used get a row with the error, and the exit code is 2.

    Args:
        out: Write a table: .csv, .jsonl or .parquet. Until it is whole, rows of the first two are in OUT.part.
        skip_done: Go on with the table --out: what has an answer there (or in OUT.part, after an interruption) is kept
            and not asked again; errors are tried again.
        top: How many of the most probable classes to show.
    """
    from vitreous.data.sources import open_pictures
    from vitreous.infer.predictor import load
    from vitreous.infer.tables import as_row, check_name, columns, keep_done, part_of, plain, write_rows
    from vitreous.training.distributed import current

    if top < 1:
        raise InputError(f"--top {top}: expected 1 or more")
    if out is not None:
        check_name(out, append=skip_done)
    elif skip_done:
        raise InputError("--skip-done goes on with a table: expected --out, the table that was begun")
    if not pictures:
        raise InputError("expected pictures, or folders of them")
    world = current()
    journal = world.journal(Journal(stderr=json))
    if out is not None and not skip_done and part_of(out).exists():
        journal.say(f"{part_of(out)}, of an interrupted predict, is begun anew; --skip-done would go on with it")
    DECODERS.warm()
    predictor = load(run, how)
    source = open_pictures(pictures)
    if out is not None and skip_done:

        def not_done() -> list[int]:
            done = keep_done(out, predictor.task, top)
            return [number for number, name in enumerate(source.names) if name not in done]

        left = world.agree(not_done)
        journal.say(f"{len(source) - len(left):,} of {len(source):,} pictures have their answers: skipped")
        source = source.only(left)
    if not world.first:
        for _ in predictor.answers(source, journal.say):
            pass
        return 0
    bad, faults = 0, []  # the first of the faults: there may be as many as pictures

    def rows() -> Generator[dict[str, Any], None, None]:
        nonlocal bad
        with (
            journal.bar("predicting", len(source)) as progress,
            closing(predictor.stream(source, journal.say)) as answers,
        ):
            for number, prediction in enumerate(answers, 1):
                if prediction.error:
                    bad += 1
                    faults.extend([prediction.error] if bad <= SHOWN else ())
                row = as_row(predictor.task, prediction, top)
                if json:
                    print("[" if number == 1 else ",", plain(jsonlib.dumps(row, ensure_ascii=False)), flush=True)
                elif out is None and not prediction.error:
                    # Not through `say`, which keeps what it said.
                    journal.console.print(visible(plain(_line(prediction, top))), markup=False)
                progress(number)
                yield row
        if json:
            print("]" if len(source) else "[]")

    with closing(rows()) as found:
        if out is None:
            for _ in found:
                pass
        else:
            try:
                write_rows(found, out, columns(predictor.task, top), append=skip_done)
            except KeyboardInterrupt:
                if part_of(out).exists():
                    journal.say(f"the rows so far are in {part_of(out)}; --skip-done goes on with them")
                raise
            journal.say(f"{len(source):,} rows {'added to' if skip_done else 'in'} {out}")
    if bad:
        some = f"{bad:,} of {len(source):,} pictures could not be used:"
        more = f"  … and {bad - len(faults):,} more" if bad > len(faults) else ""
        raise InputError.listing("no picture could be used:" if bad == len(source) else some, faults, more)
    return 0


def explain(
    run: Run,
    pictures: Annotated[Positional[tuple[str, ...]], arg(help=PICTURES, metavar="PICTURES…")],
    /,
    *,
    out: Path = Path("why.html"),
    target: str | None = None,
    methods: tuple[str, ...] = (),
    skip_bad: bool = False,
    device: str = "auto",
    json: Json = False,
) -> int:
    """Shows how a model came to its answers: one page with attention, attributions and how far to believe them.

    The page opens in a browser without a network: what each patch attends to, which parts the answer rests on by
    several methods, each with its faithfulness beside that of random maps, the answer block by block, and its parts.

    Args:
        out: The page to write.
        target: The class, label or number to explain, or "cat - dog": what speaks for the first rather than the
            second; default: each picture's most probable, or the first number.
        methods: Attributions to show, of guided_shapley, shapley, occlusion, integrated_gradients, integrated_tokens,
            gradient_attention, rollout, grad_cam, attention and contributions; default: most of them. The first
            is what the page opens with.
        skip_bad: Leave out pictures that cannot be read, by name, rather than stop.
        device: auto is a GPU where there is one.
    """
    from vitreous.infer.predictor import load
    from vitreous.insight.explain import SHOWN, explain

    if not pictures:
        raise InputError("expected pictures, or folders of them")
    _check_page(out)
    journal = Journal(stderr=json)
    with journal.bar("explaining", 1) as progress:
        found = explain(
            load(run, AnswerConfig(device=device)),
            pictures,
            target=target,
            methods=methods or SHOWN,
            skip_bad=skip_bad,
            say=journal.say,
            progress=progress,
        )
    found.save(out)
    for picture in found.pictures:
        first, attribution = next(iter(picture.attributions.items()))
        journal.say(
            f"{_line(picture.prediction, 1)}   explained: {picture.label}, by {first.replace('_', ' ')} with a "
            f"faithfulness of {float(picture.faithfulness[first].score):.3g}, {picture.verdict(first)} "
            f"(random maps stay within ±{picture.chance:.3g})" + (f"; {attribution.note}" if attribution.note else "")
        )
    journal.say(f"page: {out}")
    if json:
        _print_json({"page": str(out), "pictures": [picture.summary() for picture in found.pictures]})
    return 0


def report(
    run: Run,
    data: Annotated[Positional[str | None], arg(help=DATA, metavar="DATA")] = None,
    /,
    *,
    out: Path | None = None,
    target: tuple[str, ...] = (),
    path_column: str | None = None,
    split: str = "auto",
    skip_bad: bool = False,
    device: str = "auto",
    json: Json = False,
) -> int:
    """Shows a whole run in one page: curves, classes, calibration, mistakes, data, and how to repeat it.

    The page opens in a browser without a network. Its numbers are those of eval: of the run's own held-out pictures,
    or of DATA. Where the pictures are gone it shows what the training wrote.

    Args:
        out: The page to write; default: report.html in the run directory.
        target: Target columns of a table, in the order of the run's; default: those it was trained on.
        path_column: Column of a table that holds the pictures' paths.
        split: Which pictures of the run's data to score: auto (those held out), train, validation, test or all.
        skip_bad: Leave out pictures that cannot be read, by name, rather than stop.
        device: auto is a GPU where there is one.
    """
    if out is not None:
        _check_page(out)
    options = {"target": target, "path_column": path_column, "split": split, "skip_bad": skip_bad, "device": device}
    page = _write_report(Journal(stderr=json), run, data, out, **options)
    if json:
        _print_json({"page": str(page)})
    return 0


def _write_report(journal: Journal, run: Path, *places: str | Path | None, **options: Any) -> Path:
    """The page of a run with all that it can have; `places` are the data, and where to write."""
    from vitreous.insight.attribution import METHODS
    from vitreous.insight.figures import model_pictures
    from vitreous.insight.report import METHOD, write_report

    with journal.bar("evaluating", 1) as progress:
        shown = {"maps": METHODS[METHOD], "figures": model_pictures, "say": journal.say, "progress": progress}
        page = write_report(run, *places, **options, **shown)
    journal.say(f"page: {page}")
    return page


def export_run(
    run: Run,
    /,
    *,
    out: Path | None = None,
    format: Literal["onnx", "openvino"] | None = None,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    merge: int = 0,
    bar: Bar = Bar(),  # noqa: B008
    data: str | None = None,
    json: Json = False,
) -> int:
    """Writes a trained model to one file that answers by itself, and proves that it answers as the run does.

    The file takes pixels as they are stored, in the sizes that the run has chosen, and gives calibrated probabilities
    or numbers in their units; names, sizes and where it comes from are in its metadata. It is taken wherever a run
    directory is. int8 is calibrated on the run's own pictures. Another process then answers the run's validation
    pictures with it; where it does not agree, nothing is written, and the exit code is 2.

    Args:
        out: The file to write, .onnx or .zip (OpenVINO); default: model-PRECISION.onnx or .zip in the run directory.
        format: onnx for ONNX Runtime and others, or openvino; default: by the name of --out, else onnx.
        precision: bf16 in ONNX is for size: ONNX Runtime computes in fp32 on a CPU.
        merge: Tokens that are merged in every block (2210.09461).
        data: Where the run's pictures are now, if they were moved.
    """
    from vitreous.infer.export import export

    journal = Journal(stderr=json)
    options = {"merge": merge, "bar": bar, "data": data}
    found = export(run, out, format=format, precision=precision, say=journal.say, **options)
    for line in found.lines():
        journal.say(line)
    if json:
        _print_json({**asdict(found), "path": str(found.path)})
    return 0


def serve(
    run: Run,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: tuple[str, ...] = (),
    api_key_file: Path | None = None,
    insecure: bool = False,
    deadline: float = 10.0,
    queue: int = 256,
    max_mb: int = 32,
    log: bool = False,
    how: AnswerConfig = AnswerConfig(),  # noqa: B008
    json: Json = False,
) -> int:
    """Answers over HTTP, with a page to drop pictures on, until it is told to end: Ctrl-C, or SIGTERM.

    POST /predict takes a picture as it is, or several as the files of a form; POST /explain one. /openapi.json
    describes them; /health/live, /health/ready and /metrics (Prometheus) tell how it fares. Told to end, it answers
    what it has taken.

    Args:
        host: Where to listen. Beyond this machine it takes a key, or --insecure; TLS is a proxy's work.
        port: 0 takes one that is free.
        name: Another name by which this machine's own browsers and proxies reach it: requests by other names are
            refused on loopback.
        api_key_file: A file that holds a key, which every request but for the page and /health must show, as
            `Authorization: Bearer KEY` or `X-API-Key: KEY`; default: the variable VITREOUS_API_KEY.
        insecure: Listen beyond this machine without a key.
        deadline: Seconds after which a picture that is not begun with is given up (503).
        queue: Pictures that may wait or be worked on; a request beyond that is refused (429).
        max_mb: Of a picture; a request may have twice as much, and 64 pictures.
        log: A line a request, on the standard error.
    """
    from vitreous.infer.predictor import Predictor, load
    from vitreous.serve import serve
    from vitreous.serve.settings import Settings, read_key

    journal = Journal(stderr=json)
    settings = Settings(
        host=host,
        port=port,
        names=name,
        key=read_key(api_key_file),
        insecure=insecure,
        log=log,
        deadline=deadline,
        queue=queue,
        picture_bytes=max_mb << 20,
        request_bytes=max_mb << 21,
        held_bytes=max(512, 4 * max_mb) << 20,
    )

    def loaded() -> Predictor:
        predictor = load(run, how)
        predictor.settle(journal.say)
        return predictor

    def started(facts: dict[str, Any]) -> None:
        if json:
            _print_json(facts)
        guard = "a key is asked for" if facts["key"] else "no key is asked for"
        journal.say(f"{facts['address']}   {facts['engine']}, {facts['precision']}; {guard}; Ctrl-C ends it")

    serve(loaded, settings, started)
    return 0


def import_checkpoint(
    checkpoint: Annotated[Positional[Path], arg(help="A file, or a folder of transformers.", metavar="CHECKPOINT")],
    /,
    *,
    out: Path,
    names: Path | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    format: str = "auto",
    heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    outputs: int | None = None,
    channels: int | None = None,
    hint: tuple[str, ...] = (),
    json: Json = False,
) -> int:
    """Makes a run directory of a classifier's weights: timm, DeiT, DINOv2, transformers, torchvision, Google, T2T-ViT.

    Args:
        out: The run directory to make.
        names: A text file with the name of a class a line, in the order of the outputs.
        mean: What is taken from the pixels, a channel, in 0 to 1; default: ImageNet's.
        std: What they are divided by then.
        format: auto tells it by the names: timm, t2t, series, transformers, torchvision, google.
        heads: Of attention, which shapes do not tell; default: one for 64 columns.
        image_size: Height and width, for a position table that is not square; another size resamples the table.
        outputs: A fresh head with so many.
        channels: Adapt the first layer to so many.
        hint: What else shapes do not tell, as fields of ModelConfig: kernels=31,3,3 norm_eps=1e-5 value_skip=true.
    """
    from vitreous.infer.importing import import_run

    journal = Journal(stderr=json)
    given = {"heads": heads, "image_size": image_size, "outputs": outputs, "channels": channels}
    hints = {name: value for name, value in given.items() if value is not None} | dict(map(_hint, hint))
    lines = [line.strip() for line in names.read_text("utf-8").splitlines() if line.strip()] if names else ()
    run = import_run(checkpoint, out, names=lines, mean=mean, std=std, format=format, say=journal.say, **hints)
    if json:
        _print_json({"run": str(run)})
    else:
        journal.say(f"run: {run}")
        journal.say(f"next: vitreous predict {run} PICTURES…")
    return 0


def _hint(text: str) -> tuple[str, Any]:
    """ "kernels=31,3,3" -> ("kernels", (31, 3, 3))."""
    name, found, value = text.partition("=")
    if not found:
        raise InputError(f"--hint {text}: expected NAME=VALUE, such as norm_eps=1e-5")

    def plain(part: str) -> Any:
        try:
            return jsonlib.loads(part)
        except ValueError:
            return part

    return name, tuple(plain(part) for part in value.split(",") if part) if "," in value else plain(value)


def pack_data(
    data: Data,
    out: Annotated[Positional[Path], arg(help="The folder to make.", metavar="OUT")],
    /,
    *,
    format: Literal["tar", "parquet"] = "tar",
    size: str = "1GB",
    pictures: int | None = None,
    target: tuple[str, ...] = (),
    path_column: str | None = None,
    group: str | None = None,
    skip_bad: bool = False,
    json: Json = False,
) -> int:
    """Packs pictures and targets to shards: few large files that can lie anywhere. Files go in byte for byte.

    The shards are named after the split, such as train-000000.tar, and stay readable to others: WebDataset's key.jpg
    with key.json, or Hugging Face's Parquet. A training on them has the same pictures, order and split, so the same
    weights, as one on DATA; and it need not look through them first, as digests and sizes are packed too.

    Args:
        format: tar, or parquet.
        size: Bytes of a shard, such as 200MB.
        pictures: In a shard at most.
        target: Target columns of a table; default: all that look like targets.
        path_column: Column of a table that holds the pictures' paths.
        group: Column whose equal values never stand on both sides of a split; the shards remember it.
        skip_bad: Leave out pictures that cannot be read, by name, rather than stop.
    """
    from vitreous.data.packing import pack, parse_size
    from vitreous.data.sources import open_source
    from vitreous.training.recipe import choose_threads

    if pictures is not None and pictures < 1:
        raise InputError(f"--pictures {pictures}: expected 1 or more")
    journal, limit = Journal(stderr=json), parse_size(size)
    source = open_source(data, target=target, path_column=path_column, group=group)
    options: dict[str, Any] = {"size": limit, "pictures": pictures, "skip_bad": skip_bad, "group": group}
    with journal.bar("packing", len(source)) as progress:
        found = pack(
            source, out, form=format, **options, threads=choose_threads(None), say=journal.say, progress=progress
        )
    if json:
        _print_json(asdict(found))
    parts = ", ".join(f"{count:,} {split}" for split, count in found.splits.items())
    journal.say(f"{found.pictures:,} pictures ({parts}) in {found.shards:,} shards, {found.bytes / 1e6:,.1f} MB: {out}")
    journal.say(f"next: vitreous train {out}")
    return 0


def models(*, size: str = "224", channels: int = 3, outputs: int = 1000, json: Json = False) -> int:
    """Lists the models with parameters, multiply-accumulates a picture, and tokens.

    Args:
        size: Of the pictures: 224 or 160x384 (height x width); small models that do not suit it show their own size.
        channels: Of the pictures.
        outputs: Classes, labels or numbers.
    """
    from rich.table import Table

    from vitreous.model.vit import describe_presets

    rows = describe_presets(size, channels, outputs)
    if json:
        _print_json(rows)
        return 0
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("model", "parameters", "GMACs", "picture", "tokens"):
        table.add_column(title, justify="left" if title == "model" else "right")
    for row in rows:
        (height, width), (gh, gw) = row["size"], row["grid"]
        table.add_row(
            row["model"],
            f"{row['parameters'] / 1e6:.1f}M",
            f"{row['macs'] / 1e9:.3g}",
            f"{height}×{width}",
            f"{gh}×{gw} = {gh * gw:,}",
        )
    Journal().console.print(table)
    return 0


def _details(summary: dict[str, Any]) -> list[str]:
    """A line a class or label, and what is most often mistaken for what."""
    each = summary.get("classes") or summary.get("labels")
    if not each:
        return []
    width = max(map(len, [*each, "class"]))
    lines = [f"{'':<{width}}  precision  recall     F1  pictures"]
    lines += [
        f"{name:<{width}}  {v['precision']:9.3f}  {v['recall']:6.3f}  {v['f1']:5.3f}  {v['support']:8,}"
        for name, v in each.items()
    ]
    names = list(each)
    mistakes = [
        (n, names[i], names[j])
        for i, row in enumerate(summary.get("confusion", ()))
        for j, n in enumerate(row)
        if i != j and n
    ]
    for n, true, said in sorted(mistakes, reverse=True)[:3]:
        lines.append(f"{n:,} × {true} taken for {said}")
    return lines


def _line(prediction: Any, top: int) -> str:
    if prediction.kind == "classification":
        best = ", ".join(f"{name} {p:.1%}" for name, p in list(prediction.probabilities.items())[:top])
        doubt = f"   unsure: {' or '.join(prediction.plausible[:5])}{' or …' if len(prediction.plausible) > 5 else ''}"
        return f"{prediction.picture}   {best}{doubt if prediction.unsure else ''}"
    if prediction.kind == "multilabel":
        found = ", ".join(f"{name} {prediction.probabilities[name]:.1%}" for name in prediction.labels)
        return f"{prediction.picture}   {found or 'no label'}"
    parts = []
    for name, value in prediction.values.items():
        low, high = prediction.intervals.get(name, (None, None))
        between = "no interval: too few validation pictures" if low is None else f"{low:.4g} to {high:.4g}"
        unit = prediction.units[name]
        parts.append(f"{name} {value:.4g} ({between}){' ' + unit if unit and unit not in name else ''}")
    return f"{prediction.picture}   {', '.join(parts)}"


def _check_page(path: Path) -> None:
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {path}: expected a name that ends in .html")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {path.parent}")


def _print_json(values: Any):
    print(jsonlib.dumps(values, ensure_ascii=False))
    sys.stdout.flush()


FUNCTIONS = {
    "check": check,
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "explain": explain,
    "report": report,
    "export": export_run,
    "serve": serve,
    "import": import_checkpoint,
    "pack": pack_data,
    "models": models,
}
