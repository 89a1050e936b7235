"""What it costs to look inside: everything of ViT-Ti/16 at 224², and the memory of a tokens-to-token first stage.

python benchmarks/trace.py, on Linux or macOS. Times are medians of rounds in which the plain pass, the attention
matrices alone and the trace follow each other. A trace keeps what a pass lets go of, in fresh memory: the pages that
the system hands out are counted too. "looked at" also works out the lengths of tokens and what positions add. Memory is
the peak of a fresh process.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from vitreous.insight.trace import WHAT, trace
from vitreous.model.vit import VisionTransformer, create

COST = 1.25  # times the plain pass, beside the attention matrices
MEMORY = 1.5  # GiB
ROUNDS = 15


def matrices(layers: list[tuple[torch.Tensor, torch.Tensor, float]]) -> list[torch.Tensor]:
    """The attention matrices of queries and keys, written plainly."""
    return [(q @ k.mT * scale).softmax(-1) for q, k, scale in layers]


def measure_cost() -> float:
    """The time of a trace less that of the matrices, as a multiple of the plain pass."""
    model = create("deit_ti_16").eval()
    pixels = torch.randn(1, 3, 224, 224)
    found = trace(model, pixels, what=("q", "k"))
    scale = (model.config.width // model.config.heads) ** -0.5
    layers = [(layer.q, layer.k, scale) for layer in found.layers.values()]
    work: dict[str, Callable[[], object]] = {
        "plain": lambda: model(pixels),
        "matrices": lambda: matrices(layers),
        "trace": lambda: trace(model, pixels),
        "looked at": lambda: [(layer.norms, layer.position) for layer in trace(model, pixels).layers.values()],
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    pages: dict[str, list[int]] = {name: [] for name in work}
    with torch.no_grad():
        for _ in range(ROUNDS):
            for name, call in work.items():
                before, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
                call()
                times[name].append(time.perf_counter() - began)
                pages[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    medians = {name: statistics.median(some) for name, some in times.items()}
    for name, seconds in medians.items():
        print(f"{name:<9} {1000 * seconds:6.1f} ms {statistics.median(pages[name]):7,.0f} pages")
    return (medians["trace"] - medians["matrices"]) / medians["plain"]


def peak(what: str) -> float:
    """GiB that this process has held at most, after a pass or a trace of a T2T-ViT at 224²."""
    model: VisionTransformer = create("t2t_vit_t_14").eval()
    pixels = torch.randn(1, 3, 224, 224)
    if what == "trace":
        trace(model, pixels, layers=[], what=tuple(WHAT))
    else:
        with torch.no_grad():
            model(pixels)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def main() -> int:
    """Prints the figures; 1 where they are not held."""
    if len(sys.argv) > 1:
        print(peak(sys.argv[1]))
        return 0
    cost = measure_cost()
    print(f"a trace of everything in ViT-Ti/16, less the matrices: {cost:.2f}× the plain pass (held to {COST:g}×)")
    plain, traced = (
        float(subprocess.run([sys.executable, __file__, what], check=True, capture_output=True, text=True).stdout)
        for what in ("plain", "trace")
    )
    print(f"T2T-ViT-t-14 at 224², all of its stages: {traced:.2f} GiB, a plain pass {plain:.2f} (held to {MEMORY:g})")
    return 0 if cost <= COST and traced <= MEMORY else 1


if __name__ == "__main__":
    sys.exit(main())
