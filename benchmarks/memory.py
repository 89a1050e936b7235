"""Memory that a training step needs on a tall scan: series_t2t_vit, 1×1700×500, batch 4, forward and backward.

python benchmarks/memory.py, on Linux or macOS: the peak of a fresh process, Python and torch themselves counted.
"""

import resource
import subprocess
import sys

import torch

from vitreous.model.vit import create

LIMIT = 4.0  # GiB


def peak(precision: str) -> float:
    """GiB that this process has held at most, after a training step."""
    model = create("series_t2t_vit")
    pixels = torch.randn(4, 1, *model.config.image_size)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        outputs = model(pixels)
    outputs.float().square().mean().backward()
    unit = 2**30 if sys.platform == "darwin" else 2**20  # of bytes there, of KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> int:
    """Prints the figures; 1 where they are not held."""
    if len(sys.argv) > 1:
        print(peak(sys.argv[1]))
        return 0
    held = True
    for precision in ("fp32", "bf16"):
        command = [sys.executable, __file__, precision]
        figure = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        held &= figure <= LIMIT
        print(f"training step of series_t2t_vit, 4×1×1700×500, {precision}   {figure:.2f} GiB   held to {LIMIT:g} GiB")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
