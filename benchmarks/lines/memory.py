"""A long run takes no more memory than a short one: the peak of 20 epochs within 2 % of that of 2.

Each in a process of its own; --data takes a data set, else small pictures are made. --count is the epochs of the long
one.
"""

import argparse
import os
import subprocess
import sys

from ._runs import MODELS, make_pictures

COUNT = 20
SHORT, MOST = 2, 1.02


def peak(data: str, epochs: int, folder) -> float:
    """MiB that a training held at most."""
    words = [*MODELS["ViT"], "--batch", "8", "--threads", "1", "--epochs", str(epochs), "--out", str(folder)]
    command = [sys.executable, "-m", "vitreous", "train", data, *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with {status}")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def run(options: argparse.Namespace) -> bool:
    """Prints the two peaks."""
    data = str(options.data or make_pictures(options.folder))
    peak(data, 1, options.folder / "first")  # fills the cache of pixels
    short = peak(data, SHORT, options.folder / "short")
    long = peak(data, options.count, options.folder / "long")
    print(f"{SHORT} epochs {short:.0f} MiB, {options.count} epochs {long:.0f} MiB: {long / short:.3f}, held to {MOST}")
    return long <= MOST * short
