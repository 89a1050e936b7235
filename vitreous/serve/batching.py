"""Pictures of many requests into the engine's batches, and each answer back to where it belongs.

Pictures are decoded by a few threads. Another one runs the engine: whenever it is free it takes what waits, up to a
batch of one size of pictures, and never waits for more. All that is counted is counted on the event loop.
"""

import asyncio
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from vitreous.data.workers import DECODERS
from vitreous.errors import InputError, StartError, counted
from vitreous.infer.predictor import Predictor
from vitreous.serve.forms import Upload
from vitreous.serve.metrics import Metrics
from vitreous.serve.replies import Refused
from vitreous.serve.settings import Settings

WINDOW = 10.0  # seconds over which the rate is measured that tells when to try again
UNABLE = 10.0  # seconds for which the server is not ready once nothing could be decoded
FULL_ENOUGH = 0.7  # share of a batch that is compiled for, from which on the rest of it may go empty
NICE = 5  # by how much all else stands back behind the engine, whose threads wait for each other

logger = logging.getLogger("vitreous.serve")


@dataclass(eq=False)
class Asked:
    """A request whose pictures are on their way."""

    future: asyncio.Future[None]  # done when all of them are
    due: float  # on the monotonic clock: when they must be begun with
    gone: Callable[[], bool]  # whether nobody waits for the answer any more
    left: int  # pictures
    several: bool
    waiting: "Iterator[Job]" = field(default_factory=lambda: iter(()))  # those that are still to be decoded
    pixels: int = 0  # of those that are, where there are several


@dataclass(eq=False)
class Job:
    """A picture on its way: bytes, then pixels, then an answer or why there is none."""

    asked: Asked
    upload: Upload | None  # until a thread decodes it, or it is given up
    size: int = 0  # which of the spec's
    pixels: np.ndarray | None = None
    answer: np.ndarray | None = None  # (outputs,), calibrated
    begun: bool = False  # whether it is decoded, or being so
    outcome: str = ""  # "answered", "unusable", "late", "gone" or "failed"
    fault: str = ""  # why it is unusable

    def dropped(self, now: float) -> bool:
        """Whether it need not be worked on, as nobody waits for it or it is past its deadline."""
        if now > self.asked.due:
            self.outcome = "late"
        elif self.asked.gone() or self.asked.future.cancelled():
            self.outcome = "gone"
        return bool(self.outcome)


class Batcher:
    """Answers pictures. `start` and `ask` are called on the event loop."""

    def __init__(self, predictor: Predictor, settings: Settings, metrics: Metrics):
        self.predictor, self.settings, self.metrics = predictor, settings, metrics
        self.waiting = 0  # pictures that are accepted and not done
        self._batches = predictor.engine.batches
        self._loop: asyncio.AbstractEventLoop
        self._done: deque[tuple[float, int, float]] = deque()  # when, how many, and the seconds that they took
        self._since = 0.0  # when the last ones were done, or the first came after none had waited
        self._decoding = ThreadPoolExecutor(predictor.threads, "decode", initializer=stand_back, initargs=(NICE,))
        self._ready: dict[int, list[Job]] = {number: [] for number in range(len(predictor.spec.sizes))}
        self._changed = threading.Condition()  # guards _ready and _stopping
        self._stopping = False
        self._unable = -math.inf  # on the monotonic clock: when nothing could be decoded, if nothing was since
        self._warm: Future[None] = Future()
        self._engine = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._engine.is_alive()

    @property
    def ready(self) -> bool:
        """Whether pictures can be decoded, by what was seen of late, and computed."""
        return self.alive and time.monotonic() > self._unable + UNABLE

    async def start(self) -> None:
        """Starts the engine and lets it work once on each size of pictures, so that no request waits for that."""
        self._loop = asyncio.get_running_loop()
        self._decoding.submit(DECODERS.warm, self.predictor.threads)  # by a thread that stands back, and so do they
        self._engine.start()
        await asyncio.wrap_future(self._warm)

    def stop(self) -> None:
        """Ends the threads. What is still on its way gets no answer."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._decoding.shutdown(wait=False, cancel_futures=True)

    def check(self, count: int) -> None:
        """Raises `Refused` where so many pictures more would be too many."""
        if self.waiting + count > self.settings.queue:
            raise Refused(429, f"{self.waiting} pictures wait already: try again later", self.retry_after())

    def retry_after(self) -> float:
        """Seconds until what waits is done, by how long pictures took of late; at most a minute."""
        self._forget(self._loop.time())
        done, seconds = sum(count for _, count, _ in self._done), sum(took for *_, took in self._done)
        return min(60.0, self.waiting * seconds / done) if done else 1.0

    async def ask(self, uploads: Sequence[Upload], gone: Callable[[], bool]) -> list[Job]:
        """The jobs of a request's pictures, done. Raises `Refused` where there are too many, or it took too long."""
        self.check(len(uploads))
        asked = Asked(
            self._loop.create_future(), time.monotonic() + self.settings.deadline, gone, len(uploads), len(uploads) > 1
        )
        jobs = [Job(asked, upload) for upload in uploads]
        self._count(len(jobs))
        asked.waiting = iter(jobs)
        for _ in range(max(1, self.predictor.threads - 1)):  # a request with many leaves a thread to others
            self._decode_next(asked)
        expiry = self._loop.call_later(self.settings.deadline, self._expire, asked, jobs)
        try:
            await asked.future
        finally:
            expiry.cancel()
        outcomes = {job.outcome for job in jobs}
        if "failed" in outcomes:
            raise Refused(500, "these pictures could not be worked on; the server's log says why")
        if "late" in outcomes:
            raise self._late()
        if "gone" in outcomes:
            raise Refused(499, "the client is gone")
        return jobs

    # On the event loop

    def _late(self) -> Refused:
        return Refused(503, f"not begun within {counted(self.settings.deadline, 'second')}", self.retry_after())

    def _expire(self, asked: Asked, jobs: Sequence[Job]) -> None:
        """Answers a request that is past its deadline, though no thread has come to its pictures yet, or none will."""
        if asked.future.done():
            return
        if self.alive and all(job.begun or job.outcome for job in jobs):
            self._loop.call_later(self.settings.deadline, self._expire, asked, jobs)
        else:
            asked.future.set_exception(self._late())

    def _count(self, change: int) -> None:
        if not self.waiting:
            self._since = self._loop.time()
        self.waiting += change
        self.metrics.waiting.set(self.waiting)

    def _deliver(self, jobs: Sequence[Job], seconds: float | None) -> None:
        now = self._loop.time()
        self._count(-len(jobs))
        for job in jobs:
            self.metrics.pictures.labels(job.outcome).inc()
            job.asked.left -= 1
            if not job.asked.left and not job.asked.future.done():
                job.asked.future.set_result(None)
        if seconds is not None:
            self.metrics.batches.observe(len(jobs))
            self.metrics.engine.observe(seconds)
            self._forget(now)
            self._done.append((now, len(jobs), now - self._since))
            self._since = now

    def _forget(self, now: float) -> None:
        while self._done and self._done[0][0] < now - WINDOW:
            self._done.popleft()

    # On a thread that decodes

    def _decode_next(self, asked: Asked) -> None:
        """Lets the next picture of a request be decoded, after what others have sent meanwhile."""
        with self._changed:
            job = next(asked.waiting, None)
        if job is not None:
            try:
                self._decoding.submit(self._decode, job).add_done_callback(partial(self._check, job))
            except RuntimeError as fault:  # it is being stopped, or no thread can be had
                self._give_up(job, fault)

    def _check(self, job: Job, decoded: Future[None]) -> None:
        """Where a job never came to a thread, or not to its end, nobody may wait for it."""
        if not decoded.cancelled() and (fault := decoded.exception()) is not None:
            self._give_up(job, fault)

    def _give_up(self, job: Job, fault: BaseException) -> None:
        """A picture, and those of its request that are still to be decoded, fail."""
        with self._changed:
            if self._stopping:
                return
            left = [one for one in (job, *job.asked.waiting) if one.upload is not None]
            for one in left:
                one.upload, one.outcome = None, "failed"
        self._fail(left, fault)

    def _fail(self, jobs: Sequence[Job], fault: BaseException) -> None:
        self._unable = time.monotonic()
        logger.error("nothing can be decoded", exc_info=fault)
        for job in jobs:
            job.outcome = "failed"
        self._finish(jobs)

    def _decode(self, job: Job) -> None:
        try:
            self._read(job)
        finally:
            self._decode_next(job.asked)

    def _read(self, job: Job) -> None:
        with self._changed:
            upload, job.upload = job.upload, None
        if upload is None:  # it was given up
            return None
        if job.dropped(time.monotonic()):
            return self._finish([job])
        job.begun = True
        try:
            self._allow(job.asked, upload)
            job.size, job.pixels = self.predictor.spec.read(upload.content, upload.name)
        except InputError as fault:
            job.outcome, job.fault = "unusable", str(fault)
            return self._finish([job])
        except StartError as fault:  # there is nothing to decode in: the picture is not to blame
            return self._fail([job], fault)
        except Exception as fault:  # out of memory, or a fault of a decoder: of this picture alone
            logger.info("a picture could not be decoded", exc_info=fault)
            job.outcome, job.fault = "unusable", f"{upload.name}: it cannot be decoded ({type(fault).__name__})"
            return self._finish([job])
        self._unable = -math.inf
        with self._changed:
            self._ready[job.size].append(job)
            self._changed.notify()
        return None

    def _allow(self, asked: Asked, upload: Upload) -> None:
        """Raises `InputError` for a picture with which a request of several has too many pixels."""
        if asked.several:
            facts = DECODERS.inspect(upload.content, upload.name, self.settings.pixels)
            asked.pixels += facts.height * facts.width
            if asked.pixels > self.settings.pixels:
                most = f"{self.settings.pixels / 1e6:,.1f} megapixels"
                raise InputError(f"{upload.name}: the pictures of this request have more than {most} in all")

    def _finish(self, jobs: Sequence[Job], seconds: float | None = None) -> None:
        if jobs and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, jobs, seconds)

    # On the engine's thread

    def _run(self) -> None:
        try:
            self._warm_up()
        except BaseException as fault:  # told to whoever waits for the start
            self._warm.set_exception(fault)
            return
        self._warm.set_result(None)
        while (taken := self._take()) is not None:
            batch, dropped = taken
            self._finish(dropped)
            if batch:
                start = time.perf_counter()
                self._answer(batch)
                self._finish(batch, time.perf_counter() - start)

    def _warm_up(self) -> None:
        spec = self.predictor.spec
        most = self.predictor.batch
        for height, width in spec.sizes:
            for count in [size for size in self._batches if size <= most] or [1]:
                self.predictor.outputs(np.zeros((count, height, width, spec.channels), spec.depth))

    def _take(self) -> tuple[list[Job], list[Job]] | None:
        """The next batch, of the size whose first picture waits the longest, and what was dropped; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or any(self._ready.values()))
            if self._stopping:
                return None
            now, dropped = time.monotonic(), []
            for number, jobs in self._ready.items():
                kept: list[Job] = []
                for job in jobs:
                    (dropped if job.dropped(now) else kept).append(job)
                self._ready[number] = kept
            waiting = [jobs for jobs in self._ready.values() if jobs]
            if not waiting:
                return [], dropped
            oldest = min(waiting, key=lambda jobs: jobs[0].asked.due)
            count = batch_of(min(len(oldest), self.predictor.batch), self._batches)
            batch = oldest[:count]
            del oldest[:count]
            return batch, dropped

    def _answer(self, batch: Sequence[Job]) -> None:
        try:
            outputs = self.predictor.outputs(np.stack([job.pixels for job in batch]))  # pyright: ignore
            answers = self.predictor.calibration.answers(self.predictor.task, outputs)
            for job, answer in zip(batch, answers, strict=True):
                job.answer, job.outcome = answer, "answered" if np.isfinite(answer).all() else "failed"
            if any(job.outcome == "failed" for job in batch):
                logger.error("the model's answers are no finite numbers")
        except Exception as fault:  # an engine that fails must not leave requests waiting
            logger.error("the engine failed on %d pictures", len(batch), exc_info=fault)
            for job in batch:
                job.outcome = "failed"
        for job in batch:
            job.pixels = None


def batch_of(waiting: int, batches: Sequence[int]) -> int:
    """How many of the waiting pictures to take, for an engine that fills them up to the next of `batches`.

    All of them, where the engine takes any number or little of the next batch would be empty; otherwise as many as
    fill one. Of more than the largest batch it takes half, in whole ones: while it works, clients that wait for their
    answers ask nothing, and would leave it idle if all of them were answered at once.
    """
    following = min((size for size in batches if size >= waiting), default=None)
    if not batches or (following is not None and waiting >= FULL_ENOUGH * following):
        return waiting
    largest = max(size for size in batches if size <= waiting)
    return max(largest, waiting // 2 // largest * largest) if following is None else largest


def stand_back(nice: int) -> None:
    """Lets this thread, and those that it starts, run after others; where threads cannot have that, nothing."""
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.nice(0) + nice)
