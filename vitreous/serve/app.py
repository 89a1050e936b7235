"""The app: its routes behind a guard, what it says of faults, and how it describes itself."""

from importlib.metadata import version

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from vitreous.serve.guard import Guard
from vitreous.serve.metrics import Metrics
from vitreous.serve.replies import Fault, Refused, as_json
from vitreous.serve.settings import Settings

KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
SILENT = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)
WHY = {
    400: "an empty body, or a form that is cut or holds no file",
    401: "no key, or another one",
    403: "asked by another name, or by another site's page",
    408: "the request came too slowly",
    413: "the request, or a picture, is too large",
    415: "the body is of another kind",
    422: "the picture cannot be used, or an option does not fit",
    500: "the server failed; its log says why",
    429: "too many wait; Retry-After says when to try again",
    503: "not begun with before its deadline",
}


def create_app(routes: APIRouter, settings: Settings, metrics: Metrics) -> ASGIApp:
    """The app with its routes, behind its guard."""
    key = " Send the key as `Authorization: Bearer KEY` or `X-API-Key: KEY`." if settings.key else ""
    app = FastAPI(
        title="Vitreous",
        version=version("vitreous"),
        description=f"Asks a Vision Transformer about pictures.{key}",
        docs_url=None,  # its page would load parts from elsewhere
        redoc_url=None,
        responses={status: {"model": Fault, "description": words} for status, words in WHY.items()},
        telemetry=SILENT,  # pyright: ignore[reportArgumentType]
    )
    app.include_router(routes)

    @app.exception_handler(Refused)
    async def refused(_: Request, fault: Refused) -> Response:
        return as_json({"error": fault.message}, fault.status, fault.headers)

    @app.exception_handler(HTTPException)
    async def not_there(_: Request, fault: HTTPException) -> Response:
        return as_json({"error": str(fault.detail)}, fault.status_code, dict(fault.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def not_valid(_: Request, fault: RequestValidationError) -> Response:
        faults = [f"{one['loc'][-1]}: {one['msg']}" for one in fault.errors()]
        return as_json({"error": "; ".join(faults)}, 422)

    @app.exception_handler(Exception)
    async def failed(_: Request, fault: Exception) -> Response:  # which is raised again, for the log
        return as_json({"error": WHY[500]}, 500)

    if settings.key:
        described = app.openapi()
        described.setdefault("components", {})["securitySchemes"] = KEYS
        described["security"] = [{name: []} for name in KEYS]
    return Guard(app, settings, metrics)


class Opening:
    """What answers until there is an app: the process lives, and is not ready."""

    app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if self.app is not None:
            return await self.app(scope, receive, send)
        if scope["path"] == "/health/live":
            return await as_json({"status": "live"})(scope, receive, send)
        wait = Refused(503, "the model is being loaded: try again later", 5)
        values = {"status": "loading"} if scope["path"] == "/health/ready" else {"error": wait.message}
        return await as_json(values, wait.status, wait.headers)(scope, receive, send)
