"""What a peer reaches from scratch in a wall-clock budget, on one device.

    python benchmarks/peers/from_scratch.py resnet18 TRAIN TEST --minutes 10
    python benchmarks/peers/from_scratch.py resnet18 DATA --split RUN/split.csv

MODEL is resnet18 or vit: timm's, with the optimizer and schedule that are usual for it. TRAIN, TEST and DATA are what
`vitreous train` takes; with --split the peer learns from the training pictures of a run, and is asked about those that
the run was validated with. Pictures of up to 64 pixels are taken as they are, others as squares of 160. The budget
begins when all are decoded; it computes in bf16 where the hardware does. With --augmentation-of RUN pictures are
varied as in that run of Vitreous, otherwise as is usual for the peer: moved by up to an eighth, or cropped, and
mirrored where that leaves a class what it is. That is done between two steps, which costs little on a CPU and would
hold a GPU back: compare the two sides on a CPU.

Writes the answer to each picture to a CSV file, for a paired comparison. README.md says how to install timm.
"""

import argparse
import csv
import math
import time
from collections.abc import Callable

import numpy as np
import stand_in  # noqa: F401
import timm  # pyright: ignore[reportMissingImports]
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vitreous.data.augment import AugmentConfig, apply, draw
from vitreous.data.decode import MAX_PIXELS, decode
from vitreous.data.sources import Source, open_source
from vitreous.data.targets import Task
from vitreous.rundir import RunDir
from vitreous.training.plan import Plan
from vitreous.training.recipe import choose_precision

SMALL = 64  # pixels a side up to which pictures are taken as they are
LARGE, KEPT = 160, 192  # pixels a side of what a model sees of larger ones, and of what they are cropped from
SHIFT, CROP = 1 / 8, 0.35  # of the side, and the smallest share of the area: the usual for small and for large ones
MEAN, STD = torch.tensor([124.0, 118.0, 110.0]), torch.tensor([62.0, 60.0, 62.0])
Augment = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def open_sides(data: str, test: str | None, split: str | None) -> tuple[Source, Source]:
    """What is learned from, and what is asked about."""
    source = open_source(data)
    if test is not None:
        return source, open_source(test)
    with open(split or "", encoding="utf-8", newline="") as file:
        sides = {row["path"]: row["split"] for row in csv.DictReader(file)}
    numbers = [[i for i, name in enumerate(source.names) if sides.get(name) == s] for s in ("train", "validation")]
    return source.only(numbers[0]), source.only(numbers[1])


def read(source: Source) -> Tensor:
    """(n, H, W, 3) uint8 of all pictures."""
    pictures = []
    for number, name in enumerate(source.names):
        picture = decode(source.read(number), name, max_pixels=MAX_PIXELS)
        picture = picture if picture.shape[2] == 3 else picture[..., :1].repeat(3, axis=2)
        if max(picture.shape[:2]) > SMALL:
            picture = np.asarray(Image.fromarray(picture).resize((KEPT, KEPT), Image.Resampling.BOX))
        pictures.append(picture)
    return torch.from_numpy(np.stack(pictures))


def normalised(pixels: Tensor) -> Tensor:
    """(B, H, W, 3) of 0 to 255 -> (B, 3, H, W), channels last in memory as convolutions like it."""
    mean, std = MEAN.to(pixels.device), STD.to(pixels.device)
    return ((pixels.float() - mean) / std).permute(0, 3, 1, 2)


def resized(pixels: Tensor, size: int) -> Tensor:
    """(B, h, w, 3) -> (B, size, size, 3)."""
    if pixels.shape[1:3] == (size, size):
        return pixels
    image = pixels.permute(0, 3, 1, 2).float()
    return F.interpolate(image, (size, size), mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def as_theirs(small: bool, mirror: float) -> Augment:
    """What is usual for the peer: windows of each picture, mirrored with the given chance."""

    def vary(pixels: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        windows = shifted(pixels, generator) if small else cropped(pixels, generator)
        mirrored = (torch.rand(len(pixels), generator=generator) < mirror).tolist()
        return torch.stack([w.flip(1) if m else w for w, m in zip(windows, mirrored, strict=True)]), targets

    return vary


def shifted(pixels: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Pictures moved by up to SHIFT of their height, the edge mirrored."""
    B, H, W, _ = pixels.shape
    most = round(SHIFT * H)
    padded = F.pad(pixels.permute(0, 3, 1, 2).float(), (most,) * 4, mode="reflect").permute(0, 2, 3, 1)
    places = torch.randint(0, 2 * most + 1, (B, 2), generator=generator).tolist()
    return [padded[b, top : top + H, left : left + W] for b, (top, left) in enumerate(places)]


def cropped(pixels: Tensor, generator: torch.Generator) -> list[Tensor]:
    """A square window of CROP to all of each picture's area, scaled to LARGE."""
    windows, side = [], pixels.shape[1]
    for picture in pixels:
        area, top, left = torch.rand(3, generator=generator).tolist()
        length = int(side * math.sqrt(CROP + (1 - CROP) * area))
        top, left = int(top * (side - length + 1)), int(left * (side - length + 1))
        windows.append(resized(picture[None, top : top + length, left : left + length], LARGE)[0])
    return windows


def as_ours(config: AugmentConfig, classes: int) -> Augment:
    """What a run of `vitreous train` does."""

    def vary(pixels: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if pixels.shape[1] > SMALL:
            pixels = resized(pixels, LARGE).round().byte()
        B, H, W, C = pixels.shape
        draws = draw(config, (B, H, W, C), generator)
        varied, mixed = apply(pixels.cpu(), targets.cpu(), draws, MEAN, 255.0, classes)
        return varied.permute(0, 2, 3, 1).to(pixels.device), mixed.to(pixels.device)

    return vary


def make(name: str, small: bool, classes: int, device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The peer and its optimizer."""
    if name == "resnet18":
        model = timm.create_model("resnet18", num_classes=classes)
        if small:  # the usual stem for small pictures: no stride, no pooling
            model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        model = model.to(device, memory_format=torch.channels_last)
        rate = 0.1 if small else 0.05
        return model, torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    size, patch, depth = (32, 4, 9) if small else (LARGE, 16, 12)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=size, patch_size=patch, embed_dim=192, depth=depth, num_heads=3, num_classes=classes
    ).to(device)
    return model, torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05, fused=True)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, vary: Augment, seconds: float, seed: int
) -> int:
    """Trains until the budget is spent; the rate rises for a twentieth of it, then falls to 0 along a cosine.

    Returns the number of pictures seen.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = min(128 if x.shape[1] <= SMALL else 64, len(x))
    peak, seen, order = optimizer.param_groups[0]["lr"], 0, torch.randperm(len(x), generator=generator)
    clip = 1.0 if isinstance(optimizer, torch.optim.AdamW) else math.inf
    bf16 = choose_precision("auto", x.device) == "bf16"
    start = time.perf_counter()
    while (done := (time.perf_counter() - start) / seconds) < 1:
        fallen = 0.5 * (1 + math.cos(math.pi * (done - 0.05) / 0.95))
        for group in optimizer.param_groups:
            group["lr"] = peak * max(1e-3, done / 0.05 if done < 0.05 else fallen)
        if len(order) < batch:
            order = torch.randperm(len(x), generator=generator)
        rows, order = order[:batch], order[batch:]
        pixels, targets = vary(x[rows], y[rows], generator)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            outputs = model(normalised(pixels))
        F.cross_entropy(outputs.float(), targets, label_smoothing=0.1).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        seen += batch
    return seen


def answer(model: nn.Module, x: Tensor, size: int) -> list[int]:
    """The most probable class of each picture."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(normalised(resized(some, size))).argmax(1) for some in x.split(100)]).tolist()


def main() -> None:
    """Trains, answers, writes the answers and prints the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", choices=("resnet18", "vit"))
    parser.add_argument("train", metavar="TRAIN")
    parser.add_argument("test", metavar="TEST", nargs="?")
    parser.add_argument("--split", help="the split.csv of a run, in place of TEST")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--augmentation-of", metavar="RUN", help="vary pictures as this run did")
    parser.add_argument("--out", default="answers.csv")
    options = parser.parse_args()
    if (options.test is None) == (options.split is None):
        parser.error("expected either TEST or --split")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    learn, test = open_sides(options.train, options.test, options.split)
    x, test_x, truth = read(learn).to(options.device), read(test).to(options.device), test.columns["class"]
    names = sorted(set(learn.columns["class"]))
    y = torch.tensor([names.index(name) for name in learn.columns["class"]], device=options.device)
    small = x.shape[1] <= SMALL
    vary, whose = as_theirs(small, 0.0 if Task("classification", tuple(names)).mirror_sensitive else 0.5), "theirs"
    if options.augmentation_of:
        plan = RunDir.open(options.augmentation_of).parsed("plan.json", "", Plan.from_json)
        vary, whose = as_ours(plan.augmentation, len(names)), "ours"

    model, optimizer = make(options.model, small, len(names), options.device)
    seconds = 60 * options.minutes
    seen = train(model, optimizer, x, y, vary, seconds, options.seed)
    answers = [names[k] for k in answer(model, test_x, x.shape[1] if small else LARGE)]
    with open(options.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("picture", "class", "answer"))
        writer.writerows(zip(test.names, truth, answers, strict=True))
    right = np.mean([a == t for a, t in zip(answers, truth, strict=True)])
    print(
        f"{options.model}, augmentation {whose}, seed {options.seed}: top-1 {100 * right:.2f} % "
        f"of {len(truth):,} pictures, {seen / len(x):.1f} epochs of {len(x):,}, {seen / seconds:.0f} pictures/s"
    )


if __name__ == "__main__":
    main()
