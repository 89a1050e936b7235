"""T2T-ViT against the paper's own code, side by side in one run: `python benchmarks/t2t.py [FOLDER]`.

FOLDER holds the paper's public repository (its `models/`). Without it, the same arithmetic written plainly is the
reference: attention as two products and a softmax over the whole matrix, an unfold and a transpose a soft split.
Prints the median time a picture of both, for the module, the whole model and a training step, the ratio, the largest
difference of the answers, and the peak memory of the module at batch 16.
"""

import argparse
import importlib
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitreous.model import kernels
from vitreous.model.presets import preset
from vitreous.model.vit import VisionTransformer, build
from vitreous.model.weights import import_weights

ROUNDS = 7


def paper_model(folder: Path) -> Any:
    """T2T-ViT_t-14 of the public code, whose few uses of timm are stood in for: nothing is dropped in evaluation."""
    timm, models = types.ModuleType("timm"), types.ModuleType("timm.models")
    layers, registry, helpers = (types.ModuleType(f"timm.models.{name}") for name in ("layers", "registry", "helpers"))
    data = types.ModuleType("timm.data")
    layers.DropPath, layers.trunc_normal_ = nn.Identity, nn.init.trunc_normal_  # pyright: ignore
    layers.to_2tuple = lambda x: (x, x)  # pyright: ignore
    registry.register_model = lambda function: function  # pyright: ignore
    helpers.load_pretrained = None  # pyright: ignore
    data.IMAGENET_DEFAULT_MEAN = data.IMAGENET_DEFAULT_STD = ()  # pyright: ignore
    for module in (timm, models, layers, registry, helpers, data):
        sys.modules[module.__name__] = module
    sys.path.insert(0, str(folder))
    return importlib.import_module("models.t2t_vit").t2t_vit_t_14()


def plain_model() -> VisionTransformer:
    """Ours, with attention always written plainly."""
    return build(preset("t2t_vit_t_14"))


def plainly(call: Callable[[], Tensor]) -> Tensor:
    """Runs a call with the plain attention kernel."""
    kept, kernels.attention_kernel = kernels.attention_kernel, lambda q, bias=None: "plain"
    try:
        return call()
    finally:
        kernels.attention_kernel = kept


def together(calls: dict[str, Callable[[], object]], pictures: int) -> dict[str, float]:
    """Median milliseconds a picture of each call, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) / pictures * 1e3)
    return {name: statistics.median(some[1:]) for name, some in times.items()}


def peak(which: str, folder: str) -> float:
    """MiB by which the module's forward pass at batch 16 raises the peak of a fresh process."""
    command = [sys.executable, __file__, "--peak", which, *([folder] if folder else [])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_peak(which: str, theirs: Any, ours: VisionTransformer):
    """Prints by how many MiB the module's forward pass at batch 16 raises this process's memory at its peak (Linux)."""
    pixels = torch.randn(16, 3, 224, 224)
    if which == "ours":
        run = lambda x: ours.get_submodule("tokenizer")(x)[0]  # noqa: E731
    elif hasattr(theirs, "tokens_to_token"):
        run = theirs.tokens_to_token
    else:
        run = lambda x: plainly(lambda: ours.get_submodule("tokenizer")(x)[0])  # noqa: E731
    with torch.inference_mode():
        run(pixels[:1])
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = memory("VmRSS")
        run(pixels)
    print(memory("VmHWM") - before)


def memory(what: str) -> float:
    """MiB, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def main():
    """Measures, and prints a line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak", choices=("ours", "theirs"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.folder:
        theirs = paper_model(Path(arguments.folder)).eval()
        with tempfile.TemporaryDirectory() as scratch:
            torch.save(theirs.state_dict(), Path(scratch) / "t2t.pth")
            ours = import_weights(Path(scratch) / "t2t.pth", say=lambda text: None, heads=6)
        module, whole = theirs.tokens_to_token, theirs
    else:
        theirs = ours = plain_model().eval()
        module = lambda x: plainly(lambda: theirs.get_submodule("tokenizer")(x)[0])  # noqa: E731
        whole = lambda x: plainly(lambda: theirs(x))  # noqa: E731
    if arguments.peak:
        measure_peak(arguments.peak, theirs, ours)
        return
    pixels = torch.randn(arguments.batch, 3, 224, 224)
    with torch.inference_mode():
        print(f"largest difference of the outputs, fp32: {(whole(pixels) - ours(pixels)).abs().max():.1e}")
    for precision in ("fp32", "bf16"):
        for name, theirs_run, ours_run in (
            ("module", module, lambda x: ours.get_submodule("tokenizer")(x)[0]),
            ("model", whole, ours),
        ):
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                found = together({"theirs": lambda: theirs_run(pixels), "ours": lambda: ours_run(pixels)}, len(pixels))  # noqa: B023
            tell(f"{name}, {precision}", found)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found = together(
                {"theirs": lambda: step(theirs, whole, pixels), "ours": lambda: step(ours, ours, pixels)}, len(pixels)
            )
        tell(f"training step, {precision}", found)
    a, b = peak("theirs", arguments.folder), peak("ours", arguments.folder)
    print(
        f"{'peak memory of the module, batch 16':<36} theirs {a:7.0f} MiB   ours {b:7.0f} MiB   1/{a / max(b, 1):.1f}"
    )


def step(model: nn.Module, run: Callable[[Tensor], Tensor], pixels: Tensor):
    """Forward and backward."""
    model.zero_grad(set_to_none=True)
    run(pixels).float().square().mean().backward()


def tell(what: str, found: dict[str, float]):
    """A line of the result."""
    a, b = found["theirs"], found["ours"]
    print(f"{what:<36} theirs {a:7.1f} ms/picture   ours {b:7.1f}   {a / b:.2f}×", flush=True)


if __name__ == "__main__":
    main()
