"""The server as a process of its own: how it starts, how it ends, and what it says."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from forks import Forked
from making import PATIENCE, make_shapes
from making import vitreous as vitreous_process
from serving import read_one, read_response, running

import vitreous
from vitreous.infer.predictor import Predictor
from vitreous.serve import serve
from vitreous.serve.settings import Settings

WITHOUT = """
import sys
sys.modules["uvicorn"] = None
from vitreous.serve import serve
from vitreous.serve.settings import Settings
serve(lambda: None, Settings(port=0), print)
"""


def serve_slowly(run: Path, seconds: float) -> None:
    """Serves a run whose every batch takes so long."""

    def slow() -> Predictor:
        predictor = vitreous.load(run, engine="torch", precision="fp32")
        outputs = predictor.outputs

        def slowly(pixels: np.ndarray) -> np.ndarray:
            time.sleep(seconds)
            return outputs(pixels)

        predictor.outputs = slowly
        return predictor

    serve(slow, Settings(port=0, grace=2 * PATIENCE), lambda facts: print(json.dumps(facts), flush=True))
    print("ended")


class Process:
    """A server whose engine takes its time."""

    def __init__(self, run: Path, seconds: float):
        self.process = Forked(serve_slowly, run, seconds)
        self.facts = json.loads(self.process.stdout.readline())
        self.address = self.facts["address"]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Signals it; its exit code, and what it said."""
        self.process.send_signal(number)
        said, faults = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said, faults


@pytest.fixture
def start(shapes_run) -> Iterator:
    started = []

    def starting(seconds: float = 0.0) -> Process:
        started.append(Process(shapes_run, seconds))
        return started[-1]

    yield starting
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    root = make_shapes(tmp_path_factory.mktemp("one") / "shapes", each=1)
    return next(root.rglob("*.jpg")).read_bytes()


def ask(address: str, content: bytes) -> int:
    return httpx.post(f"{address}/predict", content=content, timeout=PATIENCE).status_code


class TestEnding:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_every_accepted_request_is_answered_and_it_exits_with_0(self, start, content, number):
        served = start(0.3)
        with ThreadPoolExecutor(40) as clients:
            asked = [clients.submit(ask, served.address, content) for _ in range(40)]
            waiting = 0.0
            while waiting < 40:
                text = httpx.get(f"{served.address}/metrics").text
                waiting = float(text.split("\nvitreous_waiting_pictures ")[1].split("\n")[0])
                waiting += sum(one.done() for one in asked)
            code, said, faults = served.end(number)
            assert [one.result() for one in asked] == [200] * 40
        assert (code, said, faults) == (0, "ended\n", "")
        with pytest.raises(httpx.ConnectError):
            ask(served.address, content)

    def test_clients_that_go_on_asking_never_lose_a_request_that_was_taken(self, start, content):
        served, lost, answered = start(0.01), [], []
        stopped = threading.Event()

        def go_on() -> None:
            with httpx.Client(base_url=served.address, timeout=PATIENCE) as client:
                while not stopped.is_set():
                    try:
                        answered.append(client.post("/predict", content=content).status_code)
                    except httpx.ConnectError:  # not taken
                        return
                    except httpx.HTTPError as fault:
                        lost.append(repr(fault))
                        return

        threads = [threading.Thread(target=go_on) for _ in range(8)]
        for thread in threads:
            thread.start()
        while len(answered) <= 20:
            assert not lost, lost
            time.sleep(0.01)
        code, _, faults = served.end()
        stopped.set()
        for thread in threads:
            thread.join()
        assert (code, faults, lost) == (0, "", [])
        assert set(answered) == {200}

    def test_a_request_of_the_last_moment_is_answered_and_is_the_last(self, shapes_run, content, monkeypatch):
        monkeypatch.setattr("vitreous.serve.connection.LAST_CALL", 2 * PATIENCE)
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        with running(vitreous.load(shapes_run)) as served, served.connect() as connection:
            connection.sendall(head + content)
            assert read_one(connection).startswith(b"HTTP/1.1 200 ")
            served.server.should_exit = True
            time.sleep(0.5)
            connection.sendall(head + content)
            assert read_response(connection).startswith(b"HTTP/1.1 200 ")  # until the other side closes

    def test_idle_connections_do_not_keep_it(self, start):
        served = start()
        with httpx.Client(base_url=served.address) as client:
            assert client.get("/health/live").status_code == 200
            code, _, faults = served.end()
            assert (code, faults) == (0, "")


class TestStarting:
    def test_it_tells_where_it_listens_and_what_answers_and_nothing_more(self, start, content):
        served = start()
        assert served.address.startswith("http://127.0.0.1:")
        assert {name: served.facts[name] for name in ("engine", "precision", "key")} == {
            "engine": "torch",
            "precision": "fp32",
            "key": False,
        }
        ask(served.address, content)
        ask(served.address, b"bad")
        httpx.post(
            f"{served.address}/predict", content=b"x", headers={"Content-Type": "multipart/form-data; boundary=b"}
        )
        assert served.end() == (0, "ended\n", "")

    def test_the_verb_serves_a_run_until_it_is_told_to_end(self, shapes_run, content):
        command = [sys.executable, "-m", "vitreous", "serve", str(shapes_run), "--port", "0", "--json"]
        command += ["--engine", "torch", "--precision", "fp32"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as process:
            assert process.stdout is not None
            facts = json.loads(process.stdout.readline())
            status = ask(facts["address"], content)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=PATIENCE)
        assert (status, process.returncode) == (200, 0)
        assert said == f"{facts['address']}   torch, fp32; no key is asked for; Ctrl-C ends it\n"

    def test_the_verb_does_not_listen_beyond_this_machine_without_a_word(self, shapes_run):
        done = vitreous_process("serve", shapes_run, "--host", "0.0.0.0", "--port", "0")
        assert done.returncode == 2
        assert done.stderr.startswith("vitreous serve: --host 0.0.0.0: whoever reaches this machine")

    def test_without_its_packages_it_says_what_to_install(self):
        done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=PATIENCE)
        assert "pip install 'vitreous[serve]'" in done.stderr

    def test_it_sends_nothing_about_itself_even_where_the_environment_asks_for_it(self, start, content, monkeypatch):
        monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        served = start()
        assert ask(served.address, content) == 200
        assert os.environ["FASTAPI_OTEL_AUTO_CONFIGURE"] == "true"
        assert served.end() == (0, "ended\n", "")
