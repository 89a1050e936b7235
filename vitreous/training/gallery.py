"""What a run shows of its pictures: batch.png and worst.png."""

from pathlib import Path

import numpy as np
import torch

from vitreous.data.batches import Batch
from vitreous.training import figures
from vitreous.training.prepare import Job

SHOWN = 32  # pictures on a sheet


def draw_batch(job: Job, batch: Batch, path: Path) -> None:
    """A batch as the model sees it, augmented, with its targets."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (job.spec.mean, job.spec.std))
    images = (batch.pixels[:SHOWN] * std + mean) * job.spec.scale  # (b, C, H, W)
    if job.spec.depth != "float32":
        images = images.round().clamp(0, job.spec.scale)
    pictures = [image.permute(1, 2, 0).numpy().astype(job.spec.depth) for image in images]
    captions = [_caption(job, target) for target in batch.targets[:SHOWN].numpy()]
    figures.pictures(pictures, captions, path, "The first batch, as the model sees it")


def draw_worst(job: Job, answers: np.ndarray, true: np.ndarray, path: Path) -> None:
    """The validation pictures with the most confident mistakes, or the largest errors. Answers in their units."""
    names = job.task.names
    if job.task.kind == "classification":
        title = "The most confident mistakes on the validation split"
        wrong = np.flatnonzero(answers.argmax(1) != true)
        order = wrong[np.argsort(-answers[wrong].max(1), kind="stable")][:SHOWN]
        captions = [f"said {names[answers[i].argmax()]} {answers[i].max():.0%}\nis {names[true[i]]}" for i in order]
    else:
        title = "The largest errors on the validation split"
        errors = np.abs(answers - true) / (np.array(job.task.std) if job.task.kind == "regression" else 1)
        order = np.argsort(-errors.max(1), kind="stable")[:SHOWN]
        worst = errors.argmax(1)
        captions = [
            f"said {names[k]} {answers[i, k]:.4g}\nis {true[i, k]:.4g}"
            for i, k in zip(order, worst[order], strict=True)
        ]
    pictures = [job.store.gather(job.validation[i : i + 1])[0].numpy() for i in order]
    figures.pictures(pictures, captions, path, title)


def _caption(job: Job, target: np.ndarray) -> str:
    names = job.task.names
    if job.task.kind == "regression":
        return ", ".join(f"{value:.4g}" for value in job.task.restore(target[None])[0])
    if job.task.kind == "multilabel":
        return ", ".join(names[k] for k in np.flatnonzero(target > 0.5)) or "none"
    if target.ndim == 0:
        return names[int(target)]
    return "\n".join(f"{names[k]} {target[k]:.0%}" for k in np.argsort(-target)[:2] if target[k] > 0)
