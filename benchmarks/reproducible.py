"""Whether a run is the same run, bit for bit: repeated, with 0, 1 and 2 workers.

    python benchmarks/reproducible.py DATA

What it does not know itself, such as --threads 1, goes to `vitreous train`. What is compared is the SHA-256 of
model.safetensors. Runs that are killed and resumed are a line of their own: `reliability.py kills`.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT = 1800.0  # seconds that any one run may take


def train(*words: str) -> None:
    """A whole `vitreous train`; stops with what it said where it failed."""
    command = [sys.executable, "-m", "vitreous", "train", *words]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=LIMIT)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")


def main() -> int:
    """Prints a line a run; 1 where any weights differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--epochs", type=int, default=6)
    options, others = parser.parse_known_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="vitreous-") as folder:
        for workers in (0, 0, 1, 2):
            run = Path(folder) / str(len(found))
            words = ("--epochs", str(options.epochs), "--workers", str(workers), "--out", str(run))
            train(options.data, *words, *others)
            found.append(hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest())
            equal = "equal" if found[-1] == found[0] else "DIFFERENT"
            print(f"{found[-1][:16]}  {equal:<9}  --workers {workers}", flush=True)
    print("all equal, bit for bit" if len(set(found)) == 1 else "NOT equal")
    return 0 if len(set(found)) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
