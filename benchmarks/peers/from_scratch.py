"""What a peer reaches from scratch in a wall-clock budget: `python benchmarks/peers/from_scratch.py MODEL TRAIN TEST`.

MODEL is resnet18 or vit: timm's, with the optimizer and schedule that are usual for it. TRAIN and TEST are what
`vitreous train` and `eval` take. Pictures of up to 64 pixels are taken as they are, others as squares of 160. The
budget begins when they are decoded. With `--augmentation ours` its pictures are varied as Vitreous varies them.
Writes the answer to each test picture to a CSV file, for a paired comparison. README.md says how to install timm.
"""

import argparse
import csv
import math
import time
from collections.abc import Callable

import numpy as np
import stand_in  # noqa: F401
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vitreous.data.augment import AugmentConfig, augment, resolve
from vitreous.data.decode import MAX_PIXELS, decode
from vitreous.data.sources import Source, open_source

SMALL, LARGE, KEPT = 64, 160, 192  # pixels a side: taken as they are up to; what a model sees of others; crops are of
MEAN, STD = torch.tensor([124.0, 118.0, 110.0]), torch.tensor([62.0, 60.0, 62.0])
Augment = Callable[[Tensor, torch.Generator], Tensor]


def read(source: Source) -> Tensor:
    """(n, H, W, 3) uint8 of all pictures."""
    pictures = []
    for number, name in enumerate(source.names):
        picture = decode(source.read(number), name, max_pixels=MAX_PIXELS)
        if max(picture.shape[:2]) > SMALL:
            picture = np.asarray(Image.fromarray(picture).resize((KEPT, KEPT), Image.Resampling.BOX))
        pictures.append(picture)
    return torch.from_numpy(np.stack(pictures))


def normalised(pixels: Tensor) -> Tensor:
    """(B, H, W, 3) of 0 to 255 -> (B, 3, H, W)."""
    return ((pixels.float() - MEAN) / STD).permute(0, 3, 1, 2)


def resized(pixels: Tensor, size: int) -> Tensor:
    """(B, h, w, 3) -> (B, size, size, 3)."""
    if pixels.shape[1:3] == (size, size):
        return pixels
    image = pixels.permute(0, 3, 1, 2).float()
    return F.interpolate(image, (size, size), mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def shift_and_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures moved by up to 4 pixels, the edge mirrored, and half of them flipped."""
    out = torch.empty_like(pixels)
    padded = F.pad(pixels.permute(0, 3, 1, 2).float(), (4,) * 4, mode="reflect").permute(0, 2, 3, 1)
    places = torch.randint(0, 9, (len(pixels), 2), generator=generator).tolist()
    flips = torch.rand(len(pixels), generator=generator) < 0.5
    height, width = pixels.shape[1:3]
    for number, (top, left) in enumerate(places):
        window = padded[number, top : top + height, left : left + width]
        out[number] = window.flip(1) if flips[number] else window
    return out


def crop_and_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A square window of 35 % to all of each picture's area, scaled to LARGE, and half of them flipped."""
    out, side = [], pixels.shape[1]
    for picture in pixels:
        area, top, left, flip = torch.rand(4, generator=generator).tolist()
        length = int(side * math.sqrt(0.35 + 0.65 * area))
        top, left = int(top * (side - length + 1)), int(left * (side - length + 1))
        window = resized(picture[None, top : top + length, left : left + length], LARGE)[0]
        out.append(window.flip(1) if flip < 0.5 else window)
    return torch.stack(out)


def as_ours(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """What `vitreous train` does by default."""
    config = resolve(AugmentConfig(), "auto", "classification", 3, "uint8", False)
    targets = torch.zeros(len(pixels), dtype=torch.long)
    varied, _ = augment(resized(pixels, min(pixels.shape[1], LARGE)).byte(), targets, config, generator, MEAN, 255.0)
    return varied.permute(0, 2, 3, 1)


def make(name: str, small: bool, classes: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The peer and its optimizer."""
    if name == "resnet18":
        model = timm.create_model("resnet18", num_classes=classes)
        if small:  # the usual stem for small pictures: no stride, no pooling
            model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        model = model.to(memory_format=torch.channels_last)
        rate = 0.1 if small else 0.05
        return model, torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    size, patch, depth = (32, 4, 9) if small else (LARGE, 16, 12)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=size, patch_size=patch, embed_dim=192, depth=depth, num_heads=3, num_classes=classes
    )
    return model, torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05, fused=True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, vary: Augment, budget: float):
    """Trains until the budget, in seconds, is spent; the learning rate rises for a twentieth, then falls to zero."""
    generator = torch.Generator().manual_seed(torch.initial_seed())
    batch = 128 if x.shape[1] <= SMALL else 64
    peak, start, seen, order = optimizer.param_groups[0]["lr"], time.perf_counter(), 0, torch.randperm(len(x))
    clip = 1.0 if isinstance(optimizer, torch.optim.AdamW) else math.inf
    while (done := (time.perf_counter() - start) / budget) < 1:
        for group in optimizer.param_groups:
            group["lr"] = peak * min(max(done / 0.05, 1e-3), 0.5 * (1 + math.cos(math.pi * max(0, done - 0.05) / 0.95)))
        if len(order) < batch:
            order = torch.randperm(len(x))
        rows, order = order[:batch], order[batch:]
        pixels = normalised(vary(x[rows], generator))
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(pixels)  # channels last in memory, as convolutions like it
        F.cross_entropy(outputs.float(), y[rows], label_smoothing=0.1).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        seen += batch
    print(f"{seen / len(x):.1f} epochs, {seen / budget:.0f} pictures/s")


def main():
    """Trains, answers, writes the answers and prints the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("resnet18", "vit"))
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--augmentation", choices=("theirs", "ours"), default="theirs")
    parser.add_argument("--out", default="answers.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    learn, test = open_source(arguments.train), open_source(arguments.test)
    x, test_x = read(learn), read(test)
    names = sorted(set(learn.columns["class"]))
    y = torch.tensor([names.index(name) for name in learn.columns["class"]])
    small = x.shape[1] <= SMALL
    theirs = shift_and_flip if small else crop_and_flip
    model, optimizer = make(arguments.model, small, len(names))
    vary = as_ours if arguments.augmentation == "ours" else theirs
    train(model, optimizer, x, y, vary, 60 * arguments.minutes)
    model.eval()
    answers = []
    with torch.inference_mode():
        for rows in test_x.split(100):
            answers += model(normalised(resized(rows, x.shape[1] if small else LARGE))).argmax(1).tolist()
    truth = test.columns["class"]
    with open(arguments.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("picture", "class", "answer"))
        writer.writerows((n, t, names[a]) for n, t, a in zip(test.names, truth, answers, strict=True))
    right = sum(names[a] == t for a, t in zip(answers, truth, strict=True))
    print(f"{arguments.model}, seed {arguments.seed}: top-1 {100 * right / len(truth):.2f} %")


if __name__ == "__main__":
    main()
