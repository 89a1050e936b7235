"""A predictor behind a port, from the first line in the terminal to the last answer."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from vitreous.infer.predictor import Predictor
from vitreous.serve.app import create_app
from vitreous.serve.batching import Batcher
from vitreous.serve.connection import limited
from vitreous.serve.explaining import Explainer
from vitreous.serve.metrics import Metrics
from vitreous.serve.settings import Settings, address_of, bind

KEEP_ALIVE = 15  # seconds that a connection may be silent between two requests
BACKLOG = 256  # connections that wait to be taken
Started = Callable[[dict[str, Any]], None]


class Server(uvicorn.Server):
    """Uvicorn's server, which says that it listens, and returns rather than die of the signal that ends it."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]):
        super().__init__(config)
        self._say_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says so."""
        await super().startup(sockets)
        self._say_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends in order at SIGTERM and Ctrl-C; at a second Ctrl-C at once."""
        if threading.current_thread() is not threading.main_thread():  # which alone hears them
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(load: Callable[[], Predictor], settings: Settings, started: Started) -> None:
    """Serves until told to end, as `vitreous.serve.serve` says."""
    level = logging.INFO if settings.verbose else logging.ERROR
    if settings.verbose:
        logging.basicConfig(format="%(asctime)s %(message)s")
    for name in ("vitreous.serve", "python_multipart"):
        logging.getLogger(name).setLevel(level)
    with bind(settings) as listening:
        asyncio.run(answer(load(), settings, listening, started))


async def answer(
    predictor: Predictor,
    settings: Settings,
    listening: socket.socket,
    started: Started,
    serving: Callable[[Server], None] = lambda server: None,
) -> None:
    """Answers requests that come to a bound socket. `serving` is handed the server, whose `should_exit` ends it."""
    metrics = Metrics()
    batcher, explainer = Batcher(predictor, settings, metrics), Explainer(predictor, settings)
    try:
        await batcher.start()

        def ready() -> bool:
            return batcher.alive and not server.should_exit

        config = uvicorn.Config(
            create_app(predictor, batcher, explainer, metrics, settings, ready),
            http=limited(settings),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.INFO if settings.verbose else logging.ERROR,
            access_log=settings.verbose,
            proxy_headers=False,  # who a client says that it is does not count
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=settings.grace,
        )
        facts = {
            "address": address_of(listening, settings.host),
            "engine": predictor.engine.name,
            "precision": predictor.engine.precision,
            "key": bool(settings.key),
        }
        server = Server(config, lambda: started(facts))
        serving(server)
        await server.serve([listening])
    finally:
        batcher.stop()
        explainer.stop()
