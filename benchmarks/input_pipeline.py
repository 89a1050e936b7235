"""How long one core takes to make an augmented, normalised batch of 128 pictures once they are in the cache.

    python benchmarks/input_pipeline.py cifar10/train.tar

DATA is whatever `vitreous train` takes, all of one size; the held-to figure is for 32×32 pictures.
"""

import argparse
import os
import statistics
import sys
import time

import torch

from vitreous.data.augment import AugmentConfig, resolve
from vitreous.data.batches import Order, TrainingBatches
from vitreous.training.journal import Journal
from vitreous.training.prepare import Job, prepare
from vitreous.training.recipe import TrainConfig

BATCH, HELD_TO = 128, 8.0  # pictures, and milliseconds a batch
WARM_UP = 20  # batches that are not timed


def milliseconds_a_batch(job: Job, policy: str, count: int) -> list[float]:
    """Times of `count` batches under an augmentation policy, sorted."""
    config = resolve(
        AugmentConfig(), policy, job.task.kind, job.spec.channels, job.spec.depth, job.task.mirror_sensitive
    )
    classes = job.task.outputs if job.task.kind == "classification" else None
    batches = TrainingBatches(job.store, job.targets, Order([job.training], BATCH, seed=0), config, classes)
    times = []
    for step in range(WARM_UP + count):
        start = time.perf_counter()
        batches.make(step)
        times.append(1000 * (time.perf_counter() - start))
    return sorted(times[WARM_UP:])


def main() -> int:
    """Prints the figures; 1 where they are not held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--batches", type=int, default=400)
    options = parser.parse_args()
    job = prepare(options.data, TrainConfig(), Journal(stderr=True))
    if len(job.spec.sizes) != 1:
        parser.error(f"expected pictures of one size; these take {len(job.spec.sizes)}")
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    (height, width), held = job.spec.sizes[0], True
    for policy, words in (("auto", "auto, as train would"), ("medium", "medium, with mixup and cutmix")):
        times = milliseconds_a_batch(job, policy, options.batches)
        median, ninetieth = statistics.median(times), times[int(0.9 * len(times))]
        held &= median <= HELD_TO
        print(
            f"{BATCH} pictures of {height}×{width}, {words}: median {median:.2f} ms, 90 % within {ninetieth:.2f} ms "
            f"({options.batches} batches, one core; held to {HELD_TO:g} ms)"
        )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
