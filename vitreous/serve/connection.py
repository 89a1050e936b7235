"""One connection of a client, which may be slow, lie, or never come to an end.

Uvicorn bounds how long a connection may be silent between two requests, and no more. Here the head of a request must
come in time; what is still sent after an answer is dropped, up to a limit; and where there are too many connections,
the one that has kept a place the longest without a whole request goes, so that those who wait idly shut nobody out.
Bodies are timed where they are read.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from vitreous.serve.settings import Settings

AFTER = 1 << 20  # bytes beyond a request's limit that may still come after its answer
LAST_CALL = 1.0  # seconds that an idle connection is kept when the server ends, for a request that is on its way


class Connection(H11Protocol):
    """Uvicorn's protocol with limits. `limited` gives it those of a server."""

    settings: Settings

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.since = self.loop.time()  # when it began to wait for the request that is not all here
        self.came = 0  # bytes since the last head
        self.ending = False
        self.late: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is being read or answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def waits(self) -> bool:
        """Whether there is no request of which all has come."""
        return self.idle or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes room if it must, and gives the first head its time."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.connections:
            longest = min((other for other in self.connections if other.waits), key=lambda other: other.since)  # pyright: ignore
            self.connections.discard(longest)
            longest.transport.abort()
        self._allow_time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it."""
        self._in_time()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes the next bytes."""
        new = self.idle
        super().data_received(data)
        if self.idle:  # the beginning of a head, or the rest of a body that was answered already
            self.came += len(data)
            if self.came > self.settings.request_bytes + AFTER:
                self.transport.abort()
            elif self.late is None:
                self._allow_time()
        elif new:
            self.since, self.came = self.loop.time(), len(data)
            self._in_time()
        else:
            self.came += len(data)

    def handle_events(self) -> None:
        """Tells the request how to learn that its client is gone."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            cycle = self.cycle
            self.scope.setdefault("state", {})["gone"] = lambda: cycle.disconnected
            if self.ending:
                self._last()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request."""
        self.since = self.loop.time()
        super().on_response_complete()

    def shutdown(self) -> None:
        """Answers what is under way, and a request that is being sent just now."""
        self.ending = True
        if self.idle:
            self.loop.call_later(LAST_CALL, self._end)
        else:
            self._last()

    def _last(self) -> None:
        """Lets the request be the last of its connection, and has the answer say so: else its client would ask again
        while the connection closes.
        """
        self.cycle.keep_alive = False
        scope = self.cycle.scope  # whose list of headers may be another by now
        scope["headers"] = [*scope["headers"], CLOSE_HEADER]  # as if the client had said so

    def _end(self) -> None:
        if self.idle:
            self.transport.close()

    def _allow_time(self) -> None:
        if not self.transport.is_closing():
            self.late = self.loop.call_later(self.settings.patience, self._leave)

    def _in_time(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None

    def _leave(self) -> None:
        self.late = None
        if self.idle:
            self.transport.abort()


def limited(settings: Settings) -> type[Connection]:
    """The protocol with the limits of a server."""
    return type("Connection", (Connection,), {"settings": settings})
