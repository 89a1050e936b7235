"""Pictures a second of the loop that a user writes otherwise, at 224²: timm's ViT-S/16, or T2T-ViT_t-14 in its paper's
own code.

    python benchmarks/peers/inference.py --batches 16 1 --threads 2
    python benchmarks/peers/inference.py --t2t FOLDER --batches 16 4

FOLDER holds the paper's public repository (its `models/`); this takes Vitreous in place of timm. Prints a line a batch
and precision: eager in fp32, and with model and pictures in bf16.
"""

import argparse
import contextlib
import io
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

CLASSES = 10
LEAST = 3  # calls that are timed at any rate


def rate(call: Callable[[], object], work: float, seconds: float) -> float:
    """Work a second, where each call does so much: the median of calls for so long, after one that is not timed."""
    call()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < LEAST or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return work / statistics.median(times)


def timm_model() -> nn.Module:
    """ViT-S/16 as timm makes it."""
    import stand_in  # noqa: F401
    import timm  # pyright: ignore[reportMissingImports]

    return timm.create_model("vit_small_patch16_224", num_classes=CLASSES)


def paper_model(folder: str) -> nn.Module:
    """T2T-ViT_t-14 of the paper's public code."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from t2t import paper_model as made

    with contextlib.redirect_stdout(io.StringIO()):  # it tells what it is made of
        return made(Path(folder))


def main() -> None:
    """Prints the name of each variant, a tab, and its rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--t2t", metavar="FOLDER")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="that each variant is timed for")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = (paper_model(options.t2t) if options.t2t else timm_model()).eval()
    pixels = torch.randn(max(options.batches), 3, 224, 224)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model, pixels = model.to(dtype), pixels.to(dtype)
        for batch in options.batches:
            with torch.inference_mode():
                found = rate(partial(model, pixels[:batch]), batch, options.seconds)
            print(f"{precision}, batch {batch}\t{found:.3f}")


if __name__ == "__main__":
    main()
