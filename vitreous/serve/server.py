"""A predictor behind a port, from the first line in the terminal to the last answer."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import uvicorn
from starlette.types import ASGIApp

from vitreous.infer.predictor import Predictor
from vitreous.leaving import unhurried
from vitreous.serve.app import Opening, create_app
from vitreous.serve.batching import Batcher
from vitreous.serve.connection import limited
from vitreous.serve.explaining import Explainer
from vitreous.serve.metrics import Metrics
from vitreous.serve.routes import routes
from vitreous.serve.settings import Settings, address_of, bind

KEEP_ALIVE = 15  # seconds that a connection may be silent between two requests
BACKLOG = 256  # connections that wait to be taken
Started = Callable[[dict[str, Any]], None]
T = TypeVar("T")


class Server(uvicorn.Server):
    """Uvicorn's server, which returns rather than die of the signal that ends it."""

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


class Service:
    """What answers behind a server, once it is loaded."""

    def __init__(self, load: Callable[[], Predictor], settings: Settings, listening: socket.socket, started: Started):
        self.load, self.settings, self.listening, self.started = load, settings, listening, started
        self.opening = Opening()
        self.server = Server(configured(self.opening, settings))
        self.batcher: Batcher | None = None
        self.explainer: Explainer | None = None

    async def run(self) -> None:
        """Listens at once, loads, and answers until told to end. Raises what stands against loading."""
        loading = asyncio.ensure_future(self._open())
        loading.add_done_callback(lambda _: self._end_where_it_failed(loading))
        try:
            await self.server.serve([self.listening])
            if not loading.done():
                loading.cancel()
                raise KeyboardInterrupt
            loading.result()
        finally:
            for part in (self.batcher, self.explainer):
                if part is not None:
                    part.stop()

    async def _open(self) -> None:
        predictor, metrics = await on_its_own(self.load), Metrics()
        self.batcher = batcher = Batcher(predictor, self.settings, metrics)
        self.explainer = Explainer(predictor, self.settings)
        await batcher.start()

        def ready() -> bool:
            return batcher.ready and not self.server.should_exit

        answering = routes(predictor, batcher, self.explainer, metrics, self.settings, ready)
        self.opening.app = create_app(answering, self.settings, metrics)
        self.started(
            {
                "address": address_of(self.listening, self.settings.host),
                "engine": predictor.engine.name,
                "precision": predictor.engine.precision,
                "key": bool(self.settings.key),
            }
        )

    def _end_where_it_failed(self, loading: asyncio.Future[None]) -> None:
        if not loading.cancelled() and loading.exception() is not None:
            self.server.should_exit = True


def configured(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves an app."""
    return uvicorn.Config(
        app,
        http=limited(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.INFO if settings.log else logging.ERROR,
        access_log=settings.log,
        proxy_headers=False,  # who a client says that it is does not count
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=settings.grace,
    )


async def on_its_own(work: Callable[[], T]) -> T:
    """What work gives, by a thread that nobody waits for when the process ends."""
    loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def tell(result: T | None, fault: BaseException | None) -> None:
        if not done.done():
            done.set_exception(fault) if fault is not None else done.set_result(result)

    def run() -> None:
        try:
            outcome = work(), None
        except BaseException as fault:
            outcome = None, fault
        with suppress(RuntimeError):  # the loop is closed: the server was told to end
            loop.call_soon_threadsafe(tell, *outcome)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return await done


def run(load: Callable[[], Predictor], settings: Settings, started: Started) -> None:
    """Serves until told to end, as `vitreous.serve.serve` says."""
    for name in ("vitreous.serve", "python_multipart", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO if settings.log else logging.ERROR)
    if settings.log:
        shown = logging.StreamHandler()
        shown.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        for name in ("vitreous.serve", "uvicorn"):
            logging.getLogger(name).addHandler(shown)
    with unhurried(), bind(settings) as listening:  # it answers what it has taken
        asyncio.run(Service(load, settings, listening, started).run())
