"""The routes: pictures in, answers out."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from vitreous.infer.predictor import Predictor
from vitreous.insight.attribution import METHODS
from vitreous.serve.batching import Batcher
from vitreous.serve.explaining import METHOD, Explainer
from vitreous.serve.metrics import Metrics
from vitreous.serve.page import page_html
from vitreous.serve.replies import Answers, Fault, Map, Refused, as_json, as_reply
from vitreous.serve.room import Room
from vitreous.serve.settings import Settings
from vitreous.serve.uploads import read_uploads

BINARY = {"schema": {"type": "string", "format": "binary"}}
FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "properties": {"pictures": FILES}}},
        "image/*": BINARY,
        "application/octet-stream": BINARY,
    },
}
Top = Annotated[int, Query(ge=1, description="How many of the most probable classes to tell.")]
Target = Annotated[str | None, Query(description='What to explain, or "cat - dog"; the most probable by default.')]
Name = Annotated[str, Query(description="Of the picture, where the body is one as it is.")]
Method = Annotated[str, Query(description=f"One of {', '.join(METHODS)}.")]


def routes(
    predictor: Predictor,
    batcher: Batcher,
    explainer: Explainer,
    metrics: Metrics,
    settings: Settings,
    ready: Callable[[], bool],
) -> APIRouter:
    """All routes of the app. `ready` tells whether new requests are welcome."""
    router = APIRouter()
    room, html = Room(settings.held_bytes), page_html(predictor, settings)

    @router.post("/predict", response_model=Answers, openapi_extra={"requestBody": BODY})
    async def predict(request: Request, top: Top = 5, name: Name = "") -> Response:
        """Answers one picture, or several, in the order in which they are sent.

        A picture that cannot be used has its `error`; where none can be used the status is 422.
        """
        batcher.check(1)
        with room.reader() as reader:
            uploads = await read_uploads(request, settings, reader, name)
            jobs = await batcher.ask(uploads, gone(request))
        top = min(top, predictor.task.outputs)
        answers = [
            as_reply(predictor.prediction(upload.name, job.answer, job.fault), top)  # pyright: ignore[reportArgumentType]
            for upload, job in zip(uploads, jobs, strict=True)
        ]
        faults = [job.fault for job in jobs if job.fault]
        found: dict[str, Any] = {"answers": answers}
        return as_json(found) if len(faults) < len(jobs) else as_json({"error": faults[0]} | found, 422)

    @router.post(
        "/explain",
        response_model=Map,
        responses={200: {"content": {"text/html": {}}}, 501: {"model": Fault, "description": "an exported file"}},
        openapi_extra={"requestBody": BODY},
    )
    async def explain(request: Request, target: Target = None, method: Method = "", name: Name = "") -> Response:
        """Shows which parts of one picture the answer rests on, and how far to believe that.

        With `Accept: text/html` it is a page with the whole account, by several methods unless one is asked for.
        """
        if method and method not in METHODS:
            raise Refused(422, f"method: there is no {method!r}: expected one of {', '.join(METHODS)}")
        with room.reader() as reader:
            uploads = await read_uploads(request, settings, reader, name)
            if len(uploads) != 1:
                raise Refused(422, f"{len(uploads)} pictures: expected one")
            if request.headers.get("accept", "").startswith("text/html"):
                return HTMLResponse(await explainer.page(uploads[0], target, method, gone(request)))
            return as_json(await explainer.map(uploads[0], target, method or METHOD, gone(request)))

    @router.get("/health/live", response_model=dict[str, str])
    async def live() -> Response:
        """Whether the server works at all."""
        return as_json({"status": "live"}) if batcher.alive else as_json({"status": "dead"}, 503)

    @router.get("/health/ready", response_model=dict[str, str])
    async def is_ready() -> Response:
        """Whether it takes requests."""
        return as_json({"status": "ready"}) if ready() else as_json({"status": "not ready"}, 503)

    @router.get("/metrics", response_class=Response)
    async def counts() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(html)

    return router


def gone(request: Request) -> Callable[[], bool]:
    """What tells whether the client of a request is gone, where the server's protocol knows."""
    return getattr(request.state, "gone", lambda: False)
