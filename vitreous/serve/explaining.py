"""Maps of what an answer rests on, worked out one after the other beside the predictions.

They need the model itself, of which this keeps one of its own: what looks inside a model must be alone with it.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from vitreous.errors import InputError
from vitreous.infer.predictor import Predictor, load
from vitreous.insight.attribution import METHODS, Attribution
from vitreous.insight.explain import LINES, SHOWN, Explanation, explain_pixels, find_target
from vitreous.insight.faithfulness import faithfulness
from vitreous.insight.page import png_uri
from vitreous.serve.batching import stand_back
from vitreous.serve.replies import Refused, as_reply
from vitreous.serve.settings import Settings
from vitreous.serve.uploads import Upload
from vitreous.training.figures import as_shown, visible_range

METHOD = "integrated_tokens"  # a good one that takes seconds where the best takes a minute
RANDOM = 4  # maps whose scores tell what is chance on a picture
STUDENT = 2.78  # times the root mean square of so many scores, whose mean is known to be 0: 95 % lie within
STEPS = 8  # of the curves of faithfulness
TOP = 6  # classes that are told
NICE = 5  # by how much this stands back behind all else

Found = TypeVar("Found")


class Explainer:
    """Explains one picture at a time; a few may wait."""

    def __init__(self, predictor: Predictor, settings: Settings):
        self.shared, self.settings = predictor, settings
        self.waiting = 0  # with the one that is worked on
        self.seconds = 5.0  # that one takes, of late
        self._worker = ThreadPoolExecutor(1, "explain", initializer=stand_back, initargs=(NICE,))

    @property
    def able(self) -> bool:
        """Whether there is a model to look into: an exported file holds none."""
        return not self.shared.exported

    @cached_property
    def predictor(self) -> Predictor:
        """A predictor with a model that nobody else runs."""
        return load(self.shared.run.path, device=self.shared.options.device, engine="torch", precision="fp32")

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
                raise Refused(503, f"not begun within {self.settings.explain_deadline:g} seconds", self.seconds)
            try:
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
            "faithfulness": self._faith(normalised, found, wanted),
            "seen": png(shown),
            "overlay": png(overlay(shown, found.pixels[0].double().cpu().numpy())),
        }

    def _faith(self, normalised: torch.Tensor, found: Attribution, target: Any) -> dict[str, float]:
        """The score of a map beside those of random ones and of edges, on a picture."""
        generator = torch.Generator().manual_seed(0)
        noise = {f"random {i}": torch.rand(found.tokens.shape, generator=generator) for i in range(1, RANDOM)}
        scored = faithfulness(
            self.predictor.model,
            normalised,
            {"map": found.tokens, **noise},
            target,
            fills=("mean",),
            steps=STEPS,
            kind=self.predictor.task.kind,
            temperature=self.predictor.calibration.temperature,
            orders=1,
        )
        blind = [float(scored[name].score) for name in ("random", *noise)]
        chance = STUDENT * float(np.sqrt(np.mean(np.square(blind))))
        return {"score": float(scored["map"].score), "chance": chance, "edges": float(scored["edges"].score)}


def overlay(shown: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A picture (H, W) or (H, W, C) uint8 in grey, and a map of its pixels (H, W) on it: (H, W, 3) uint8.

    What counts least is dark. The hundredth of the values that are largest share the strongest colour; what speaks
    against the answer stays grey.
    """
    from matplotlib import colormaps

    grey = shown.reshape(*shown.shape[:2], -1).mean(-1, keepdims=True) / 255
    values = np.nan_to_num(values, posinf=0, neginf=0).clip(0)
    values = values - values.min()
    share = (values / (np.quantile(values, 0.99) or values.max() or 1)).clip(0, 1)
    colour = colormaps["inferno"](share)[..., :3]
    cover = 0.35 + 0.4 * share[..., None]
    return np.rint(255 * ((1 - cover) * 0.8 * grey + cover * colour)).astype(np.uint8)


def png(pixels: np.ndarray) -> str:
    """A PNG in base64."""
    return png_uri(pixels).partition(",")[2]
