"""Judge: how fast an engine answers, and how far its answers agree with those of the model as it was trained."""

import os
import statistics
import time
from typing import TYPE_CHECKING

import numpy as np

from vitreous.infer.agreement import Agreement, compare
from vitreous.infer.engines import BATCH, Engine, TorchEngine
from vitreous.infer.sample import Sample, own_pictures
from vitreous.model.vit import VisionTransformer

if TYPE_CHECKING:
    from vitreous.infer.predictor import Predictor

TIMED = 128  # pictures whose answers are timed
ROUNDS, SECONDS = 3, 3.0  # at most so many times, and about so long
NOISE = 64  # pictures of noise, where the run has none


class Judge:
    """Holds pictures of the run, and the answers to them by PyTorch in fp32."""

    def __init__(self, predictor: "Predictor", sample: Sample):
        self.predictor, self.sample = predictor, sample
        self.reference = self.answers(TorchEngine(predictor.model, predictor.spec, predictor.device))

    def answers(self, engine: Engine) -> np.ndarray:
        """Calibrated answers (n, K) to the sample."""
        outputs = np.concatenate([engine.run(pixels) for pixels in self.sample.batches(BATCH)])
        return self.predictor.calibration.answers(self.predictor.task, outputs)

    def agreement(self, engine: Engine) -> Agreement:
        """Of an engine's answers with the reference."""
        return self.compared(self.answers(engine))

    def compared(self, answers: np.ndarray) -> Agreement:
        """Of answers (n, K) to the sample, however they were made."""
        return compare(self.predictor.task, self.reference, answers, self.sample.targets, self.sample.of)

    def cost_of(self, model: VisionTransformer) -> Agreement:
        """Of the reference with the answers of another model, which came before it."""
        before = self.answers(TorchEngine(model, self.predictor.spec, self.predictor.device))
        return compare(self.predictor.task, before, self.reference, self.sample.targets)

    def rate(self, engine: Engine) -> float:
        """Pictures a second, the median of some rounds over pictures of the commonest size."""
        return rate(engine, max(self.sample.pixels.values(), key=len)[:TIMED])


def rate(engine: Engine, pixels: np.ndarray, batch: int = BATCH, seconds: float = SECONDS) -> float:
    """Pictures a second of an engine on pictures (n, H, W, C) of one size, after a first batch that is not timed."""
    engine.run(pixels[:batch])
    times, until = [], time.perf_counter() + seconds
    while not times or (len(times) < ROUNDS and time.perf_counter() < until):
        start = time.perf_counter()
        for first in range(0, len(pixels), batch):
            engine.run(pixels[first : first + batch])
        times.append(time.perf_counter() - start)
    return len(pixels) / statistics.median(times)


def validation_judge(predictor: "Predictor", data: str | os.PathLike | None) -> Judge:
    """A judge by the run's own validation pictures. Raises `InputError` where they are gone."""
    return Judge(predictor, own_pictures(predictor, "validation", data=data))


def noise_judge(predictor: "Predictor") -> Judge:
    """A judge by pictures of noise, which shows whether the same is computed, and not what that is worth."""
    rng, spec = np.random.default_rng(0), predictor.spec
    each = max(1, NOISE // len(spec.sizes))
    pixels = {size: (rng.random((each, *size, spec.channels)) * spec.scale).astype(spec.depth) for size in spec.sizes}
    return Judge(predictor, Sample(pixels, None, "pictures of noise"))
