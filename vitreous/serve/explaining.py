"""Maps of what an answer rests on, worked out one after the other beside the predictions.

They need the model itself, of which this keeps one of its own: what looks inside a model must be alone with it.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from vitreous.errors import InputError, counted
from vitreous.infer.predictor import Predictor, load
from vitreous.insight.attribution import METHODS
from vitreous.insight.explain import LINES, SHOWN, Explanation, beside_chance, explain_pixels, find_target
from vitreous.insight.page import png_uri
from vitreous.insight.report.mistakes import map_pixels
from vitreous.serve.batching import NICE, stand_back
from vitreous.serve.forms import Upload
from vitreous.serve.replies import Refused, as_reply
from vitreous.serve.settings import Settings
from vitreous.training.figures import as_shown, visible_range

METHOD = "integrated_tokens"  # a good one that takes seconds where the best takes a minute
RANDOM = 4  # maps whose scores tell what is chance on a picture
STEPS = 8  # of the curves of faithfulness
TOP = 6  # classes that are told

Found = TypeVar("Found")

logger = logging.getLogger("vitreous.serve")


class Explainer:
    """Explains one picture at a time; a few may wait."""

    def __init__(self, predictor: Predictor, settings: Settings):
        self.shared, self.settings = predictor, settings
        self._weights = "" if predictor.exported else predictor.origin["weights"]  # of what predicts
        self.waiting = 0  # with the one that is worked on
        self.seconds = 5.0  # that one takes, of late
        self._worker = ThreadPoolExecutor(1, "explain", initializer=stand_back, initargs=(NICE,))

    @property
    def able(self) -> bool:
        """Whether there is a model to look into: an exported file holds none."""
        return not self.shared.exported

    @cached_property
    def predictor(self) -> Predictor:
        """A predictor with a model that nobody else runs. Raises `Refused` where the run is no longer what it was."""
        try:
            own = load(self.shared.run.path, device=self.shared.options.device, engine="torch", precision="fp32")
        except InputError as fault:
            logger.error("the model cannot be loaded again, to explain", exc_info=fault)
            raise Refused(500, "the model cannot be loaded again, to explain; the server's log says why") from None
        if own.origin["weights"] != self._weights:
            raise Refused(503, "the run was trained again since the server started: start it again to explain")
        return own

    def stop(self) -> None:
        """Ends the thread once it is done with what it works on."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def map(self, upload: Upload, target: str | None, method: str, gone: Callable[[], bool]) -> dict[str, Any]:
        """The answer to a picture and a map of what it rests on, ready for JSON. Raises `Refused`."""
        return await self._in_turn(lambda: self._map(upload, target, method or METHOD), gone)

    async def page(self, upload: Upload, target: str | None, method: str, gone: Callable[[], bool]) -> str:
        """The whole account as a page of its own. Raises `Refused`."""
        return await self._in_turn(lambda: self._page(upload, target, method), gone)

    async def _in_turn(self, work: Callable[[], Found], gone: Callable[[], bool]) -> Found:
        if not self.able:
            raise Refused(501, "an exported file only answers: serve the run directory it was made of to explain, too")
        if self.waiting > self.settings.explanations:
            raise Refused(429, f"{self.waiting} pictures wait to be explained", self.waiting * self.seconds)
        due = time.monotonic() + self.settings.explain_deadline

        def todo() -> Found:
            start = time.monotonic()
            if gone():
                raise Refused(499, "the client is gone")
            if start > due:
                limit = counted(self.settings.explain_deadline, "second")
                raise Refused(503, f"not begun within {limit}", self.seconds)
            try:
                _ = self.predictor  # what stands against it is not the picture's fault
                return work()
            except InputError as fault:
                raise Refused(422, str(fault)) from None
            finally:
                self.seconds = 0.5 * self.seconds + 0.5 * (time.monotonic() - start)

        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, todo)
        finally:
            self.waiting -= 1

    def _read(self, upload: Upload, target: str | None) -> tuple[np.ndarray, Any]:
        pixels = self.predictor.spec.read(upload.content, upload.name)[1]
        return pixels, None if target is None else find_target(self.predictor.task, target)

    def _page(self, upload: Upload, target: str | None, method: str) -> str:
        pixels, wanted = self._read(upload, target)
        methods = (method,) if method else SHOWN
        return Explanation(
            self.predictor, [explain_pixels(self.predictor, upload.name, pixels, wanted, methods)]
        ).html()

    def _map(self, upload: Upload, target: str | None, method: str) -> dict[str, Any]:
        predictor, task = self.predictor, self.predictor.task
        pixels, wanted = self._read(upload, target)
        normalised = predictor.normalised(pixels[None].copy())
        with torch.inference_mode():
            outputs = predictor.model(normalised).float().cpu().numpy()
        answer = predictor.calibration.answers(task, outputs)[0]
        if wanted is None:
            wanted = 0 if task.kind == "regression" else int(answer.argmax())
        found = METHODS[method](predictor.model, normalised, wanted)
        brief = {"random": RANDOM, "fills": ("mean",), "steps": STEPS}
        scored, chance = beside_chance(predictor, normalised, {"map": found.tokens}, wanted, **brief)
        score, edges = (float(scored[name].score) for name in ("map", "edges"))
        shown = as_shown(pixels, max(pixels.shape), visible_range([pixels]))
        labels = [task.names[number] for number in ([wanted] if isinstance(wanted, int) else wanted)]
        return {
            "answer": as_reply(predictor.prediction(upload.name, answer), TOP),
            "target": " rather than ".join(labels),
            "method": method,
            "line": LINES.get(method, ""),
            "note": found.note,
            "grid": found.tokens.shape[1:],
            "map": found.tokens[0].double().nan_to_num(0, 0, 0).cpu().tolist(),
            "faithfulness": {"score": score, "chance": chance, "edges": edges},
            "seen": png(shown),
            "overlay": png(overlay(shown, found.pixels[0].double().cpu().numpy())),
        }


def overlay(shown: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A picture (H, W) or (H, W, C) uint8 in grey, and a map of its pixels (H, W) on it in the colours of the report:
    (H, W, 3) uint8.
    """
    grey, colour = shown.reshape(*shown.shape[:2], -1).mean(-1, keepdims=True), map_pixels(values)
    cover = colour[..., 3:] / 255
    return np.rint((1 - cover) * grey + cover * colour[..., :3]).astype(np.uint8)


def png(pixels: np.ndarray) -> str:
    """A PNG in base64."""
    return png_uri(pixels).partition(",")[2]
