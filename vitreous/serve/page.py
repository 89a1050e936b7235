"""The page at /: drop, choose or photograph a picture, see the answer and what it rests on."""

from importlib import resources
from typing import Any

from vitreous.infer.engines import describe
from vitreous.infer.predictor import Predictor
from vitreous.insight import page as shell
from vitreous.serve.settings import Settings

NAMES = 60  # classes that are named
ALLOWED = " blob:; connect-src 'self'"  # to show a picture that was chosen, and to ask this server


def page_html(predictor: Predictor, settings: Settings) -> str:
    """The page. It says what the model is where no key is asked for: it is open to all."""
    data: dict[str, Any] = {
        "bytes": settings.picture_bytes,
        "explains": not predictor.exported,
        "facts": [] if settings.key else facts(predictor),
    }
    style = shell.asset("explain.css") + asset("serve.css")
    script = shell.asset("board.js") + asset("serve.js")
    return shell.render("Vitreous", asset("serve.html"), style, script, data, ALLOWED)


def facts(predictor: Predictor) -> list[tuple[str, str]]:
    """What the model is, in words: names and what is to be said."""
    task, spec, engine = predictor.task, predictor.spec, predictor.engine
    names = ", ".join(task.names[:NAMES]) + (f" and {len(task.names) - NAMES:,} more" if task.names[NAMES:] else "")
    what = {"classification": "classes", "multilabel": "labels", "regression": "numbers"}[task.kind]
    sizes = ", ".join(f"{height}×{width}" for height, width in spec.sizes)
    rows = [(f"{len(task.names):,} {what}", names)]
    channels = {1: "grey", 3: "RGB"}.get(spec.channels, f"{spec.channels} channels")
    rows.append(("sees", f"{sizes} pixels, {channels}"))
    return [*rows, ("computed by", describe(engine))]


def asset(name: str) -> str:
    """The text of a file beside this module."""
    return resources.files("vitreous.serve").joinpath("assets", name).read_text(encoding="utf-8")
