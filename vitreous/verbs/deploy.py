"""export and serve: a trained model where others reach it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from vitreous.infer.agreement import Bar
from vitreous.infer.predictor import AnswerConfig
from vitreous.training.journal import Journal
from vitreous.verbs.options import Json, Run, TrainedRun
from vitreous.verbs.output import print_json


def export_run(
    run: TrainedRun,
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
    pictures with it, or noise where they are gone; where it does not agree, nothing is written, and the exit code is 2.

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
        print_json({**asdict(found), "path": str(found.path)})
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
        api_key_file: A file that holds a key, 16 characters or more, which every request but for the page and /health
            must show, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; default: the variable VITREOUS_API_KEY.
        insecure: Listen beyond this machine without a key.
        deadline: Seconds from a request's last byte until its pictures must be begun with; else it is refused (503).
        queue: Pictures that may wait or be worked on, 64 or more; a request beyond that is refused (429).
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
            print_json(facts)
        guard = "a key is asked for" if facts["key"] else "no key is asked for"
        journal.say(f"{facts['address']}   {facts['engine']}, {facts['precision']}; {guard}; Ctrl-C ends it")

    serve(loaded, settings, started)
    return 0
