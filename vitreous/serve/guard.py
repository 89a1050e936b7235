"""What every request passes first: by which name it came, whose page sent it, and whether it shows the key."""

import hmac
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitreous.serve.metrics import Metrics
from vitreous.serve.replies import Refused, as_json
from vitreous.serve.settings import Settings, is_loopback

OPEN = ("/", "/health/live", "/health/ready")  # without a key
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


class Guard:
    """An app behind its checks. It counts all requests, those that it turns away, too."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics):
        self.app, self.key, self.metrics = app, settings.key, metrics
        self.hosts: frozenset[str] | None = None
        if is_loopback(settings.host):  # else by any name
            own = (settings.host, *settings.names)
            self.hosts = frozenset({"localhost", "127.0.0.1", "::1", *(name.lower().rstrip(".") for name in own)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["method"] == "HEAD":  # as GET: the body is left out by uvicorn, whose own scope stays
            scope = {**scope, "method": "GET"}
        start, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self.check(scope["path"], Headers(scope=scope))
            await self.app(scope, receive, sent)
        except Refused as fault:
            await as_json({"error": fault.message}, fault.status, fault.headers)(scope, receive, sent)
        finally:
            self.metrics.request(scope["path"], status, time.perf_counter() - start)
        return None

    def check(self, path: str, headers: Headers) -> None:
        """Raises `Refused` for a request that must not pass.

        A page of another site could reach a server on loopback by a name of its own that points here (DNS rebinding),
        or send it forms; browsers tell the name and the page.
        """
        if self.hosts is not None:
            if host_of(headers.get("host", "")) not in self.hosts:
                raise Refused(403, "this server is not known by that name; `vitreous serve --name NAME` makes it known")
            origin = headers.get("origin")
            if origin is not None and host_of(origin.partition("://")[2]) not in self.hosts:
                raise Refused(403, "pages of other sites may not ask this server")
        if self.key and path not in OPEN and not self._shows_key(headers):
            asked = Refused(401, "expected the key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
            asked.headers["WWW-Authenticate"] = "Bearer"
            raise asked

    def _shows_key(self, headers: Headers) -> bool:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        shown = bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(shown.encode("latin-1"), self.key)


def host_of(host: str) -> str:
    """ "localhost:8000" -> "localhost"; "[::1]:8000" -> "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")
