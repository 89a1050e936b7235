"""Answers over HTTP: real sockets, a real model, clients that behave and clients that do not."""

import asyncio
import copy
import dataclasses
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from making import COLOURS, PATIENCE, make_shapes, shape
from PIL import Image
from serving import Running, gated, read_one, read_response, running

import vitreous
from vitreous.data.workers import DECODERS
from vitreous.errors import InputError, StartError
from vitreous.infer.predictor import Predictor
from vitreous.rundir import RunDir
from vitreous.serve.batching import Batcher, batch_of
from vitreous.serve.connection import AFTER
from vitreous.serve.forms import Upload
from vitreous.serve.metrics import Metrics
from vitreous.serve.replies import Refused
from vitreous.serve.room import Room
from vitreous.serve.server import Service
from vitreous.serve.settings import Settings, bind, read_key

KEY = "a-key-of-enough-letters"


@pytest.fixture(scope="module")
def predictor(shapes_run) -> Predictor:
    return vitreous.load(shapes_run)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> list[Path]:
    """Pictures that the run has not seen, of three classes."""
    return sorted(make_shapes(tmp_path_factory.mktemp("fresh") / "fresh", each=3, seed=50).rglob("*.*g"))


@pytest.fixture(scope="module")
def server(predictor) -> Iterator[Running]:
    with running(predictor) as served:
        yield served


def until(true: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Waits for something that must come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def send_slowly(connection: socket.socket, pieces: Iterator[bytes], pause: float) -> int:
    """Sends piece by piece until the other side has had enough; the bytes that went out."""
    sent = 0
    try:
        for piece in pieces:
            connection.sendall(piece)
            sent += len(piece)
            time.sleep(pause)
    except (ConnectionError, TimeoutError):
        pass
    return sent


class TestAnswers:
    def test_files_of_a_form_are_answered_in_order_as_offline(self, server, predictor, fresh):
        files = [("pictures", (path.name, path.read_bytes())) for path in fresh]
        response = httpx.post(f"{server.address}/predict?top=3", files=files)
        assert response.status_code == 200
        answers = response.json()["answers"]
        assert [answer["picture"] for answer in answers] == [path.name for path in fresh]
        for answer, offline in zip(answers, predictor.predict(fresh), strict=True):
            assert list(answer["probabilities"]) == list(offline.probabilities)
            assert answer["probabilities"] == pytest.approx(offline.probabilities, abs=1e-5)
            assert (answer["kind"], answer["label"]) == ("classification", offline.label)
            assert (answer["plausible"], answer["unsure"]) == (list(offline.plausible), offline.unsure)

    @pytest.mark.parametrize("kind", ["image/png", "IMAGE/JPEG; x=y", "application/octet-stream", ""])
    def test_a_body_is_one_picture_whatever_kind_it_says(self, server, predictor, fresh, kind):
        [answer] = server.ask(fresh[0].read_bytes(), kind=kind).json()["answers"]
        assert answer["probabilities"] == pytest.approx(predictor.predict(fresh[0])[0].probabilities, abs=1e-5)

    def test_top_is_how_many_classes_are_told(self, server, fresh):
        for top, told in ((1, 1), (2, 2), (9, 3), (10**20, 3)):
            [answer] = server.ask(fresh[0].read_bytes(), f"/predict?top={top}").json()["answers"]
            assert len(answer["probabilities"]) == told
        refused = server.ask(fresh[0].read_bytes(), "/predict?top=0")
        assert (refused.status_code, list(refused.json())) == (422, ["error"])
        assert refused.json()["error"].startswith("top: ")

    def test_many_clients_with_pictures_of_two_sizes_each_get_their_own_answer(self, predictor, tmp_path):
        several = copy.copy(predictor)
        several.spec = dataclasses.replace(predictor.spec, sizes=((24, 32), (32, 24)))
        rng, paths = np.random.default_rng(3), []
        for i in range(60):
            size = (24, 32) if i % 3 else (32, 24)
            paths.append(tmp_path / f"{i}.png")
            Image.fromarray(shape(rng, list(COLOURS.values())[i % 3], *size)).save(paths[-1])
        offline = several.predict(paths)
        with running(several) as served, ThreadPoolExecutor(12) as clients:
            replies = list(clients.map(lambda path: served.ask(path.read_bytes()).json()["answers"][0], paths))
            batches, pictures = (
                served.count("vitreous_batch_pictures_count"),
                served.count("vitreous_batch_pictures_sum"),
            )
        assert pictures == 60 > batches
        for reply, expected in zip(replies, offline, strict=True):
            assert reply["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)

    def test_numbers_come_with_units_and_intervals(self, blobs_run, blobs):
        picture = blobs.parent / "007.npy"
        offline = vitreous.load(blobs_run).predict(picture)[0]
        with running(vitreous.load(blobs_run)) as served:
            [answer] = served.ask(picture.read_bytes(), kind="application/octet-stream").json()["answers"]
        assert answer["values"] == pytest.approx(offline.values, abs=1e-5)
        assert answer["units"] == {"place (mm)": "mm"}
        assert answer["intervals"]["place (mm)"] == pytest.approx(offline.intervals["place (mm)"], abs=1e-5)
        assert "probabilities" not in answer

    def test_a_bad_picture_has_its_error_and_its_neighbours_their_answers(self, server, predictor, fresh):
        good, cut = fresh[0].read_bytes(), fresh[1].read_bytes()[:300]
        parts = [("a", ("good.png", good)), ("b", ("cut.png", cut)), ("c", ("none.png", b"")), ("d", ("too.png", good))]
        response = httpx.post(f"{server.address}/predict", files=parts)
        answers = response.json()["answers"]
        assert response.status_code == 200
        assert ["error" in answer for answer in answers] == [False, True, True, False]
        assert answers[1]["error"].startswith("cut.png: ")
        assert answers[2]["error"].startswith("none.png: the file is empty")
        assert answers[0]["probabilities"] == answers[3]["probabilities"]

    def test_where_no_picture_can_be_used_the_status_says_so(self, server):
        response = server.ask(b"no picture")
        assert response.status_code == 422
        assert response.json()["error"] == response.json()["answers"][0]["error"]
        assert response.json()["error"].startswith("picture 1: ")

    def test_a_picture_as_it_is_may_be_told_its_name_and_any_kind_that_says_nothing(self, server, fresh):
        kind = "application/x-www-form-urlencoded"  # what `curl --data-binary @picture` says
        answer = server.ask(fresh[0].read_bytes(), "/predict?name=a%0Ab.png", kind=kind).json()["answers"][0]
        assert answer["picture"] == "a\ufffdb.png"
        assert answer["label"] in COLOURS

    def test_names_of_clients_are_text_and_nothing_else(self, server, fresh):
        name = '../../etc/<script>"\u202e\x07' + 300 * "x"
        files = {"a": (name, fresh[0].read_bytes()), "b": ("", b"z", "image/png")}
        response = httpx.post(f"{server.address}/predict", files=files)
        told = [answer["picture"] for answer in response.json()["answers"]]
        assert told[0].startswith("../../etc/<script>")
        assert all(letter.isprintable() or letter == "\ufffd" for letter in told[0])
        assert len(told[0]) == 200
        assert told[1] == "picture 2"
        assert response.headers["content-type"] == "application/json"

    def test_waiting_pictures_are_taken_together_once_the_engine_is_free(self, predictor, fresh):
        slow, gate = gated(predictor)
        with running(slow) as served, ThreadPoolExecutor(6) as clients:
            first = clients.submit(served.ask, fresh[0].read_bytes())
            until(lambda: len(gate.batches) == 2)
            others = [clients.submit(served.ask, path.read_bytes()) for path in fresh[1:6]]
            until(lambda: served.count("vitreous_waiting_pictures") == 6)
            time.sleep(0.2)  # to be decoded
            gate.opened.set()
            assert all(asked.result().status_code == 200 for asked in (first, *others))
        assert gate.batches[1:] == [1, 5]

    def test_a_batch_takes_as_many_as_fill_one_that_is_compiled_for(self):
        assert [batch_of(n, (1, 4, 16)) for n in (1, 2, 3, 4, 5, 11, 12, 16, 20, 32)] == [
            1,
            1,
            3,
            4,
            4,
            4,
            12,
            16,
            16,
            16,
        ]
        assert [batch_of(n, (1, 4, 8)) for n in (9, 16, 31, 32)] == [8, 8, 8, 16]
        assert [batch_of(n, ()) for n in (1, 5, 32)] == [1, 5, 32]

    def test_an_engine_that_fails_is_told_of_and_goes_on(self, predictor, fresh):
        broken = copy.copy(predictor)
        calls = []

        def outputs(pixels):
            calls.append(len(pixels))
            if len(calls) == 2:
                raise RuntimeError("no memory")
            return predictor.outputs(pixels)

        broken.outputs = outputs
        with running(broken) as served:
            assert [served.ask(fresh[0].read_bytes()).status_code for _ in range(2)] == [500, 200]

    def test_answers_that_are_no_numbers_are_a_failure_in_json(self, predictor, fresh):
        broken = copy.copy(predictor)
        broken.outputs = lambda pixels: np.full((len(pixels), 3), np.nan)
        with running(broken) as served:
            response = served.ask(fresh[0].read_bytes())
        assert (response.status_code, "the server's log says why" in response.json()["error"]) == (500, True)

    def test_whatever_else_fails_is_told_in_json(self, predictor, fresh):
        broken = copy.copy(predictor)
        broken.prediction = lambda *_: 1 / 0
        with running(broken) as served:
            response = served.ask(fresh[0].read_bytes())
        assert (response.status_code, response.json()) == (500, {"error": "the server failed; its log says why"})
        assert response.headers["x-content-type-options"] == "nosniff"


class TestDecoding:
    """What stands against all decoding is the server's fault, and leaves nobody waiting."""

    async def refused(self, batcher: Batcher, content: bytes) -> Refused:
        uploads = [Upload(f"{number}.png", content) for number in range(5)]
        with pytest.raises(Refused) as fault:
            await asyncio.wait_for(batcher.ask(uploads, lambda: False), PATIENCE)
        return fault.value

    @pytest.mark.parametrize("why", ["no thread", "a thread that dies at once", "no process"])
    def test_it_fails_and_is_not_ready_for_a_while_and_nothing_waits_for_ever(self, predictor, fresh, monkeypatch, why):
        content = fresh[0].read_bytes()

        def fail(*_: object, **__: object) -> None:
            raise StartError("out of processes") if why == "no process" else RuntimeError("no more threads")

        async def check() -> None:
            batcher = Batcher(predictor, Settings(), Metrics())
            await batcher.start()
            assert batcher.ready
            with monkeypatch.context() as patch:
                if why == "no thread":
                    patch.setattr(batcher._decoding, "submit", fail)
                elif why == "no process":
                    patch.setattr(DECODERS, "_lease", fail)
                else:
                    patch.setattr(batcher, "_decoding", ThreadPoolExecutor(1, initializer=fail))
                assert (await self.refused(batcher, content)).status == 500
                assert (batcher.waiting, batcher.ready, batcher.alive) == (0, False, True)
            if why == "no process":  # the next that is decoded shows that it can be
                [job] = await batcher.ask([Upload("a.png", content)], lambda: False)
                assert (job.outcome, batcher.ready) == ("answered", True)
            batcher.stop()

        asyncio.run(check())

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_pictures_that_no_engine_will_take_expire(self, predictor, fresh, monkeypatch):
        async def check() -> None:
            batcher = Batcher(predictor, Settings(deadline=2), Metrics())
            await batcher.start()
            monkeypatch.setattr(batcher, "_answer", sys.exit)  # the thread ends with a batch in its hands
            assert (await self.refused(batcher, fresh[0].read_bytes())).status == 503
            assert (batcher.alive, batcher.ready) == (False, False)
            batcher.stop()

        asyncio.run(check())


class TestTooMuch:
    def test_a_length_beyond_the_limit_is_refused_before_a_byte_of_it(self, server):
        with server.connect() as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")

    def test_chunks_beyond_the_limit_are_refused_while_they_come_and_no_longer_read(self, predictor):
        limit = 200_000
        with running(predictor, picture_bytes=limit, request_bytes=limit) as served, served.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head)
            chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
            sent = send_slowly(connection, (chunk for _ in range(4000)), 0)
            assert limit < sent < limit + AFTER + 8_000_000  # what the kernel holds is not the server's
            assert served.count("vitreous_requests_total") >= 1
        assert sent < 4000 * len(chunk)

    def test_the_refusal_is_heard_by_a_client_that_sends_a_little_too_much(self, predictor):
        with running(predictor, picture_bytes=100_000, request_bytes=100_000) as served:
            response = served.ask(bytes(600_000))
            assert (response.status_code, "larger than 100,000 bytes" in response.json()["error"]) == (413, True)
            with served.client() as client:  # and its connection is of use
                for content, status in ((bytes(100_001), 413), (b"x", 422)):
                    headers = {"Content-Type": "image/png"}
                    assert client.post("/predict", content=iter([content]), headers=headers).status_code == status

    def test_files_of_a_form_have_a_limit_each_and_in_number(self, predictor, fresh):
        good = fresh[0].read_bytes()
        with running(predictor, picture_bytes=20_000, request_bytes=10**6, pictures=3) as served:

            def status(*contents: bytes) -> int:
                files = [("p", (f"{i}.png", content)) for i, content in enumerate(contents)]
                return httpx.post(f"{served.address}/predict", files=files).status_code

            assert status(good, good, good) == 200
            assert status(good, good, good, good) == 413
            assert status(good, bytes(20_001)) == 413

    @pytest.mark.parametrize(
        ("body", "kind", "status", "words"),
        [
            (b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\nabc', "form", 400, "is cut"),
            (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nabc\r\n--x--\r\n', "form", 400, "holds no file"),
            (b"what is this", "form", 400, "cannot be read"),
            (b"", "form", 400, "is cut"),
            (b"--x\r\nA: " + 9000 * b"b", "form", 400, "form"),
            (b"--x--", "multipart/form-data", 400, "no boundary"),
            (b"{}", "application/json", 415, "application/json: expected multipart/form-data"),
            (b"", "image/png", 400, "the request is empty: expected a picture"),
        ],
        ids=["cut", "no file", "no form", "empty", "long head", "no boundary", "json", "no picture"],
    )
    def test_other_bodies_are_refused_with_what_was_expected(self, server, body, kind, status, words):
        kind = "multipart/form-data; boundary=x" if kind == "form" else kind
        response = server.ask(body, kind=kind)
        assert (response.status_code, words in response.json()["error"]) == (status, True), response.text

    def test_a_compressed_body_is_refused(self, server, fresh):
        response = server.ask(fresh[0].read_bytes(), headers={"Content-Encoding": "gzip"})
        assert response.status_code == 415

    def test_a_full_queue_answers_429_at_once_and_says_when_to_come_again(self, predictor, fresh):
        slow, gate = gated(predictor)
        with running(slow, queue=4, pictures=4) as served, ThreadPoolExecutor(4) as clients:
            accepted = [clients.submit(served.ask, path.read_bytes()) for path in fresh[:4]]
            until(lambda: served.count("vitreous_waiting_pictures") == 4)
            with served.connect() as connection:  # refused before its body is sent
                connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n")
                head = read_one(connection).decode()
            assert head.startswith("HTTP/1.1 429 ")
            assert 1 <= int(head.lower().split("retry-after: ")[1].split("\r\n")[0]) <= 60
            gate.opened.set()
            assert [asked.result().status_code for asked in accepted] == [200] * 4
            assert served.ask(fresh[0].read_bytes()).status_code == 200

    def test_idle_time_is_not_taken_for_slowness(self, predictor, fresh):
        slow, gate = gated(predictor)
        gate.opened.set()
        with running(slow, queue=4, pictures=4) as served, ThreadPoolExecutor(4) as clients:
            for _ in range(8):  # the first starts the decoder
                assert served.ask(fresh[0].read_bytes()).status_code == 200
            time.sleep(3)
            gate.opened.clear()
            accepted = [clients.submit(served.ask, path.read_bytes()) for path in fresh[:4]]
            until(lambda: served.count("vitreous_waiting_pictures") == 4)
            refused = served.ask(fresh[0].read_bytes())
            gate.opened.set()
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) < 9  # four pictures at three seconds each would be 12
            assert [asked.result().status_code for asked in accepted] == [200] * 4

    def test_what_is_past_its_deadline_gets_503_and_is_not_computed(self, predictor, fresh):
        slow, gate = gated(predictor)
        with running(slow, deadline=1.5) as served, ThreadPoolExecutor(4) as clients:
            first = clients.submit(served.ask, fresh[0].read_bytes())
            until(lambda: len(gate.batches) == 2)
            late = [clients.submit(served.ask, path.read_bytes()) for path in fresh[1:4]]
            until(lambda: served.count("vitreous_waiting_pictures") == 4)
            time.sleep(1.7)
            gate.opened.set()
            assert first.result().status_code == 200  # it was begun with in time
            assert [asked.result().status_code for asked in late] == [503] * 3
            assert late[0].result().json()["error"] == "not begun within 1.5 seconds"
            assert "retry-after" in late[0].result().headers
        assert gate.batches[1:] == [1]

    def test_a_request_whose_pictures_nobody_comes_to_is_answered_at_its_deadline(self, predictor, fresh, monkeypatch):
        free, other = threading.Event(), copy.copy(predictor)
        other.spec = copy.copy(predictor.spec)

        def read(content: bytes, name: str, *rest: object) -> object:
            assert free.wait(20)
            return predictor.spec.read(content, name)

        object.__setattr__(other.spec, "read", read)
        with running(other, deadline=0.5) as served, ThreadPoolExecutor(6) as clients:
            begun = [clients.submit(served.ask, fresh[0].read_bytes()) for _ in range(other.threads)]
            until(lambda: served.count("vitreous_waiting_pictures") == other.threads)
            assert served.ask(fresh[1].read_bytes()).status_code == 503
            assert not any(one.done() for one in begun)
            free.set()

    def test_the_pictures_of_one_request_have_a_limit_in_all(self, predictor, fresh):
        sent = [("a", (path.name, path.read_bytes())) for path in fresh[:4]]
        with running(predictor, pixels=3 * 24 * 32) as served:  # as many as three of these have
            answers = httpx.post(f"{served.address}/predict", files=sent).json()["answers"]
            alone = served.ask(fresh[3].read_bytes())
        assert alone.status_code == 200
        assert ["error" in answer for answer in answers] == [False, False, False, True]
        assert answers[3]["error"].endswith("the pictures of this request have more than 0.0 megapixels in all")

    def test_the_pictures_of_a_client_that_is_gone_are_not_computed(self, predictor, fresh):
        slow, gate = gated(predictor)
        with running(slow) as served, ThreadPoolExecutor(2) as clients:
            first = clients.submit(served.ask, fresh[0].read_bytes())
            until(lambda: len(gate.batches) == 2)
            with served.connect() as connection:
                content = fresh[1].read_bytes()
                head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
                connection.sendall(head.encode() + content)
                until(lambda: served.count("vitreous_waiting_pictures") == 2)
            time.sleep(0.2)
            gate.opened.set()
            assert first.result().status_code == 200
            until(lambda: served.count("vitreous_waiting_pictures") == 0)
        assert gate.batches[1:] == [1]

    def test_where_uploads_hold_too_much_the_oldest_goes(self, predictor, fresh):
        with running(predictor, held_bytes=300_000, picture_bytes=250_000) as served, served.connect() as oldest:
            oldest.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 240000\r\n\r\n" + bytes(200_000)
            )
            time.sleep(0.2)
            response = served.ask(bytes(150_000))
            assert response.status_code == 422  # it was read, and is no picture
            assert oldest.recv(1000).startswith(b"HTTP/1.1 429 ")
            assert served.ask(fresh[0].read_bytes()).status_code == 200

    def test_one_whose_time_is_just_up_gives_its_place_like_any_other(self):
        async def check() -> None:
            room = Room(100)
            with room.reader() as first, room.reader() as second:
                first.take(80)
                with suppress(TimeoutError):
                    async with asyncio.timeout(0) as first.patience:
                        try:
                            await asyncio.sleep(PATIENCE)
                        finally:
                            second.take(50)
                assert (first.evicted, second.evicted, room.free) == (True, False, 50)

        asyncio.run(check())


class TestTooSlow:
    def test_a_body_that_stops_coming_gets_408(self, predictor):
        with running(predictor, patience=0.4) as served, served.connect() as connection:
            start = time.monotonic()
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\nabc")
            response = read_response(connection)
            assert response.startswith(b"HTTP/1.1 408 ")
            assert b"connection: close" in response.lower()
            assert time.monotonic() - start > 0.2

    def test_a_body_that_trickles_gets_408_though_each_byte_is_in_time(self, predictor):
        with running(predictor, patience=0.4, slowest=1000) as served, served.connect() as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n")
            assert send_slowly(connection, (b"x" for _ in range(4000)), 0.02) < 4000

    @pytest.mark.parametrize(
        "beginning", [b"", b"POST /predict HT", b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX: "]
    )
    def test_a_head_that_does_not_come_to_an_end_is_cut_off(self, predictor, beginning):
        with running(predictor, patience=0.4) as served, served.connect() as connection:
            connection.sendall(beginning)
            sent = send_slowly(connection, (b"x" for _ in range(4000)), 0.02) if beginning else 0
            assert read_response(connection) == b""
            assert sent < 4000

    def test_a_rest_that_trickles_after_the_answer_is_cut_off(self, predictor):
        with running(predictor, patience=0.4) as served, served.connect() as connection:
            connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n")
            assert read_one(connection).startswith(b"HTTP/1.1 404 ")
            assert send_slowly(connection, (b"x" for _ in range(4000)), 0.02) < 4000

    def test_idle_connections_shut_nobody_out(self, predictor, fresh):
        with running(predictor, connections=10) as served:
            idle = [served.connect() for _ in range(15)]
            for connection in idle[::2]:
                connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\nabc")
            assert [served.ask(path.read_bytes()).status_code for path in fresh] == [200] * len(fresh)
            for connection in idle:
                connection.close()

    def test_a_request_under_way_is_kept_however_many_connect(self, predictor, fresh):
        slow, gate = gated(predictor)
        with running(slow, connections=5) as served, ThreadPoolExecutor(1) as clients:
            first = clients.submit(served.ask, fresh[0].read_bytes())
            until(lambda: len(gate.batches) == 2)
            idle = [served.connect() for _ in range(15)]
            gate.opened.set()
            assert first.result().status_code == 200
            for connection in idle:
                connection.close()


class TestWhoMayAsk:
    def test_with_a_key_only_who_shows_it_is_answered(self, predictor, fresh):
        content = fresh[0].read_bytes()
        with running(predictor, key=KEY.encode()) as served:

            def status(**headers: str) -> int:
                names = {name.replace("_", "-"): value for name, value in headers.items()}
                return served.ask(content, headers=names).status_code

            assert status(Authorization=f"Bearer {KEY}") == 200
            assert status(X_API_Key=KEY) == 200
            for wrong in ({}, {"X_API_Key": KEY[:-1]}, {"Authorization": f"Basic {KEY}"}, {"X_API_Key": "é" * 20}):
                assert status(**{k: v.encode("latin-1") for k, v in wrong.items()}) == 401  # pyright: ignore
            refused = served.ask(content)
            assert refused.headers["www-authenticate"] == "Bearer"
            assert "X-API-Key" in refused.json()["error"]
            closed = [httpx.get(served.address + path).status_code for path in ("/metrics", "/openapi.json", "/x")]
            assert closed == [401] * 3
            opened = [httpx.get(served.address + path) for path in ("/", "/health/live", "/health/ready")]
            assert [response.status_code for response in opened] == [200] * 3
            assert "blue, green" not in opened[0].text  # which tells who has no key nothing of the model

    def test_the_description_tells_how_the_key_is_shown_where_there_is_one(self, predictor, server):
        assert "security" not in httpx.get(f"{server.address}/openapi.json").json()
        with running(predictor, key=KEY.encode()) as served:
            told = httpx.get(f"{served.address}/openapi.json", headers={"X-API-Key": KEY}).json()
        assert [next(iter(one)) for one in told["security"]] == list(told["components"]["securitySchemes"])

    def test_on_loopback_other_names_and_other_sites_pages_are_refused(self, predictor, fresh):
        content = fresh[0].read_bytes()
        with running(predictor, names=("Ask.Example.org",)) as served:
            for host in ("localhost:1234", "127.0.0.1", "[::1]:8000", "ask.example.org"):
                assert served.ask(content, headers={"Host": host}).status_code == 200
            for host in ("evil.example.org", "127.0.0.1.evil.org", "localhost.evil.org:8000", ""):
                assert served.ask(content, headers={"Host": host}).status_code == 403
            for origin in ("http://localhost:8000", "https://ask.example.org"):
                assert served.ask(content, headers={"Origin": origin}).status_code == 200
            for origin in ("http://evil.org", "null", "http://["):
                assert served.ask(content, headers={"Origin": origin}).status_code == 403

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    def test_beyond_loopback_a_key_or_an_explicit_word_is_needed(self, host):
        with pytest.raises(
            InputError, match=r"expected a key \(--api-key-file FILE, or VITREOUS_API_KEY\), or --insecure"
        ):
            bind(Settings(host=host, port=0))
        bind(Settings(host="0.0.0.0", port=0, key=KEY.encode())).close()
        bind(Settings(host="0.0.0.0", port=0, insecure=True)).close()
        for loopback in ("localhost", "127.0.0.1", "127.9.9.9"):
            bind(Settings(host=loopback, port=0)).close()

    def test_an_address_that_cannot_be_had_is_named(self):
        with bind(Settings(port=0)) as taken:
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(InputError, match=rf"--port {port} cannot be had"):
                bind(Settings(port=port))
        with pytest.raises(InputError, match=r"--host no\.such\.host\.invalid: expected a name or an address"):
            bind(Settings(host="no.such.host.invalid"))

    def test_a_key_is_read_from_a_file_or_the_environment_and_must_be_one(self, tmp_path, monkeypatch):
        monkeypatch.delenv("VITREOUS_API_KEY", raising=False)
        assert read_key(None) == b""
        monkeypatch.setenv("VITREOUS_API_KEY", KEY)
        assert read_key(None) == KEY.encode()
        file = tmp_path / "key"
        file.write_text(f"{KEY}-of-the-file\n")
        assert read_key(file) == f"{KEY}-of-the-file".encode()
        for bad in ("", "short", "with spaces in between", "\u00e9" * 20):
            file.write_text(bad, encoding="utf-8")
            with pytest.raises(InputError, match="holds no key: expected 16 letters or more"):
                read_key(file)
        with pytest.raises(InputError, match="cannot be read"):
            read_key(tmp_path / "nothing")


class TestAround:
    def test_metrics_count_requests_pictures_and_batches(self, predictor, fresh):
        with running(predictor) as served:
            for content in (fresh[0].read_bytes(), fresh[1].read_bytes(), b"bad"):
                served.ask(content)
            httpx.get(f"{served.address}/no/such/path/{time.time()}")
            text = httpx.get(f"{served.address}/metrics").text
        for line in (
            'vitreous_requests_total{code="200",route="/predict"} 2.0',
            'vitreous_requests_total{code="422",route="/predict"} 1.0',
            'vitreous_requests_total{code="404",route="other"} 1.0',
            'vitreous_pictures_total{outcome="answered"} 2.0',
            'vitreous_pictures_total{outcome="unusable"} 1.0',
            'vitreous_request_seconds_count{route="/predict"} 3.0',
            "vitreous_batch_pictures_sum 2.0",
            "vitreous_engine_seconds_count 2.0",
            "vitreous_waiting_pictures 0.0",
        ):
            assert line in text.splitlines()
        assert "process_resident_memory_bytes" in text

    def test_the_api_describes_itself_and_loads_nothing_from_elsewhere(self, server):
        api = httpx.get(f"{server.address}/openapi.json").json()
        assert set(api["paths"]) == {"/predict", "/explain", "/health/live", "/health/ready", "/metrics"}
        predict = api["paths"]["/predict"]["post"]
        assert {"multipart/form-data", "application/octet-stream"} < set(predict["requestBody"]["content"])
        assert {"200", "413", "429", "503"} < set(predict["responses"])
        assert {"label", "probabilities", "error"} < set(api["components"]["schemas"]["Answer"]["properties"])
        assert [httpx.get(server.address + path).status_code for path in ("/docs", "/redoc")] == [404, 404]

    def test_health_is_told_and_what_is_not_there_is_an_error_in_json(self, server):
        assert httpx.get(f"{server.address}/health/live").json() == {"status": "live"}
        assert httpx.get(f"{server.address}/health/ready").json() == {"status": "ready"}
        for method, path, status in (("GET", "/nothing", 404), ("GET", "/predict", 405), ("POST", "/metrics", 405)):
            response = httpx.request(method, server.address + path)
            assert (response.status_code, list(response.json())) == (status, ["error"])

    @pytest.mark.parametrize("path", ["/", "/health/live", "/health/ready", "/nothing", "/predict"])
    def test_head_is_answered_as_get_without_a_body(self, server, path):
        with server.client() as client:
            head, got = (client.request(method, path) for method in ("HEAD", "GET"))
            connection = client.get("/health/live")  # which is of use after it
        told = [(one.status_code, one.headers["content-type"]) for one in (head, got)]
        assert (told[0], head.content, connection.status_code) == (told[1], b"", 200)
        assert int(head.headers["content-length"]) == len(got.content) > 0

    def test_every_response_carries_what_keeps_browsers_safe(self, server):
        for response in (httpx.get(server.address), server.ask(b"x"), httpx.get(f"{server.address}/nothing")):
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["content-security-policy"] == "frame-ancestors 'none'"
            assert not {"server", "access-control-allow-origin"} & set(response.headers)

    def test_the_page_asks_nobody_but_this_server(self, server):
        html = httpx.get(server.address).text
        policy = html.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
        assert "default-src 'none'" in policy
        assert "connect-src 'self'" in policy
        assert "http" not in policy.replace("http-equiv", "")
        assert "blue, green, red" in html


class TestExplain:
    def test_a_map_comes_with_its_answer_and_how_far_to_believe_it(self, server, predictor, fresh):
        path = next(path for path in fresh if path.parent.name == "red")
        found = server.ask(path.read_bytes(), "/explain").json()
        assert found["answer"]["label"] == found["target"] == "red"
        assert found["answer"]["probabilities"] == pytest.approx(predictor.predict(path)[0].probabilities, abs=1e-5)
        assert found["grid"] == [3, 4]
        assert np.shape(found["map"]) == (3, 4)
        expected = vitreous.explain(predictor, path, methods=["integrated_tokens"]).pictures[0]
        tokens = expected.attributions["integrated_tokens"].tokens[0].numpy()
        assert np.asarray(found["map"]) == pytest.approx(tokens, abs=1e-4 * float(np.abs(tokens).max()))
        assert set(found["faithfulness"]) == {"score", "chance", "edges"}
        assert found["faithfulness"]["chance"] > 0
        for name in ("seen", "overlay"):
            assert picture_in(found[name]).size == (32, 24)
        assert np.array_equal(np.asarray(picture_in(found["seen"])), predictor.spec.read(path.read_bytes(), "")[1])

    def test_a_target_and_a_method_are_followed(self, server, fresh):
        content = fresh[0].read_bytes()
        found = server.ask(content, "/explain?target=green%20-%20red&method=rollout").json()
        assert (found["target"], found["method"]) == ("green rather than red", "rollout")
        assert server.ask(content, "/explain?target=crimson").json()["error"].startswith("the model knows no 'crimson'")
        assert server.ask(content, "/explain?method=magic").status_code == 422
        assert server.ask(b"bad", "/explain").status_code == 422

    def test_the_whole_account_is_a_page_where_html_is_asked_for(self, server, fresh):
        headers = {"Accept": "text/html"}
        response = server.ask(fresh[0].read_bytes(), "/explain?method=attention", headers=headers)
        assert response.headers["content-type"].startswith("text/html")
        assert "Which parts mattered" in response.text
        assert "default-src 'none'" in response.text

    def test_predictions_go_on_meanwhile_and_explanations_wait_in_a_queue_of_their_own(self, predictor, fresh):
        content = fresh[0].read_bytes()
        with running(predictor, explanations=1) as served, ThreadPoolExecutor(6) as clients:
            served.ask(content, "/explain?method=attention")
            asked = [clients.submit(served.ask, content, "/explain?method=shapley") for _ in range(6)]
            assert served.ask(content).status_code == 200
            statuses = sorted(one.result().status_code for one in asked)
        assert statuses[0] == 200
        assert statuses[-1] == 429
        assert set(statuses) == {200, 429}

    def test_a_run_that_is_no_longer_what_predicts_is_not_explained(self, shapes_run, fresh, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(shapes_run, run, ignore=shutil.ignore_patterns("last", "engines"))
        content = fresh[0].read_bytes()
        with running(vitreous.load(run)) as served:
            weights = RunDir(run).read_weights()
            RunDir(run).write_weights({name: 1.001 * tensor for name, tensor in weights.items()})
            response = served.ask(content, "/explain")
            assert (response.status_code, "trained again" in response.json()["error"]) == (503, True)
            (run / "model.safetensors").write_bytes(b"")
            response = served.ask(content, "/explain")
            assert (response.status_code, "cannot be loaded again" in response.json()["error"]) == (500, True)
            assert served.ask(content).status_code == 200

    def test_an_exported_file_answers_and_says_why_it_does_not_explain(self, predictor, fresh):
        exported = copy.copy(predictor)
        exported._run = None
        with running(exported) as served:
            assert served.ask(fresh[0].read_bytes()).status_code == 200
            response = served.ask(fresh[0].read_bytes(), "/explain")
        assert (response.status_code, "exported file" in response.json()["error"]) == (501, True)


def picture_in(text: str) -> Image.Image:
    import base64
    import io

    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_what_is_written_to_a_client_is_sent_at_once():
    with bind(Settings(port=0)) as listening:  # asyncio turns off the waiting for sockets that say that they are TCP's
        assert listening.proto == socket.IPPROTO_TCP


class TestLoading:
    def test_it_lives_at_once_and_is_ready_when_the_model_is(self, predictor):
        settings, loaded, ready = Settings(port=0), threading.Event(), threading.Event()

        def load() -> Predictor:
            assert loaded.wait(20)
            return predictor

        with bind(settings) as listening:
            service = Service(load, settings, listening, lambda facts: ready.set())
            thread = threading.Thread(target=lambda: asyncio.run(service.run()))
            thread.start()
            with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=20) as client:
                told = [client.get(path) for path in ("/health/live", "/health/ready", "/predict")]
                assert [one.status_code for one in told] == [200, 503, 503]
                assert told[2].headers["Retry-After"] == "5"
                loaded.set()
                assert ready.wait(20)
                assert client.get("/health/ready").status_code == 200
            service.server.should_exit = True
            thread.join(20)
        assert not thread.is_alive()

    def test_what_stands_against_loading_ends_it(self):
        def load() -> Predictor:
            raise InputError("no such run")

        settings = Settings(port=0)
        with bind(settings) as listening, pytest.raises(InputError, match="no such run"):
            asyncio.run(Service(load, settings, listening, lambda facts: None).run())

    def test_told_to_end_before_it_is_ready_it_does(self):
        settings, never = Settings(port=0), threading.Event()
        with bind(settings) as listening:
            service = Service(never.wait, settings, listening, lambda facts: None)  # pyright: ignore[reportArgumentType]
            service.server.should_exit = True
            with pytest.raises(KeyboardInterrupt):
                asyncio.run(service.run())
        never.set()
