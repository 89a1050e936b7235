"""A server over real sockets, for tests: in a thread of this process, on a port of its own."""

import asyncio
import copy
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from making import PATIENCE

from vitreous.infer.predictor import Predictor
from vitreous.serve.server import Server, Service
from vitreous.serve.settings import Settings, bind


@dataclass
class Running:
    """A server that listens."""

    address: str
    port: int
    server: Server

    def client(self, **options: Any) -> httpx.Client:
        """A client of it."""
        return httpx.Client(base_url=self.address, timeout=PATIENCE, **options)

    def ask(self, content: bytes, path: str = "/predict", kind: str = "image/png", **options: Any) -> httpx.Response:
        """One picture, as it is."""
        headers = {"Content-Type": kind, **options.pop("headers", {})}
        return httpx.post(self.address + path, content=content, headers=headers, timeout=PATIENCE, **options)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def count(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(f"{self.address}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


@contextmanager
def running(predictor: Predictor, **changed: Any) -> Iterator[Running]:
    """Serves until the block ends; then the server must end by itself, and well."""
    settings = Settings(port=0, **changed)
    started, servers, faults = threading.Event(), [], []
    facts: dict[str, Any] = {}
    listening = bind(settings)

    def tell(told: dict[str, Any]) -> None:
        facts.update(told)
        started.set()

    def run() -> None:
        try:
            service = Service(lambda: predictor, settings, listening, tell)
            servers.append(service.server)
            asyncio.run(service.run())
        except BaseException as fault:  # raised where the test can see it
            faults.append(fault)
        finally:
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert started.wait(PATIENCE)
        assert not faults, faults
        yield Running(facts["address"], listening.getsockname()[1] if listening.fileno() >= 0 else 0, servers[0])
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(PATIENCE)
        listening.close()
    assert not thread.is_alive()
    assert not faults, faults


class Gate:
    """Lets the engine's batches through once it is opened, and keeps how many pictures were in each."""

    def __init__(self):
        self.opened, self.batches = threading.Event(), []

    def __call__(self, outputs: Callable[[np.ndarray], np.ndarray]) -> Any:
        """Outputs behind the gate."""

        def gated(pixels: np.ndarray) -> np.ndarray:
            if not self.batches:  # the first is the engine's own, before the server starts
                self.batches.append(0)
                return outputs(pixels)
            self.batches.append(len(pixels))
            assert self.opened.wait(PATIENCE)
            return outputs(pixels)

        return gated


def gated(predictor: Predictor) -> tuple[Predictor, Gate]:
    """A predictor whose engine waits at a gate."""
    gate, other = Gate(), copy.copy(predictor)
    other.outputs = gate(predictor.outputs)
    return other, gate


def read_response(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, or nothing does for a while."""
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except ConnectionError:
        pass
    return b"".join(pieces)


def read_one(connection: socket.socket) -> bytes:
    """One response, whole."""
    told = b""
    while b"\r\n\r\n" not in told:
        told += connection.recv(65536) or b"\r\n\r\n"
    head, _, body = told.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    while len(body) < length and (piece := connection.recv(65536)):
        body += piece
    return head + b"\r\n\r\n" + body
