"""How long `vitreous --help` and `import vitreous` take in a fresh process, beside a Python that does nothing.

python benchmarks/startup.py
"""

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

RUNS = 11
VERB = shutil.which("vitreous", path=str(Path(sys.executable).parent)) or "vitreous"
COMMANDS = (  # in words, what is run, and the seconds it is held to
    ("python -c pass", (sys.executable, "-c", "pass"), None),
    ('python -c "import vitreous"', (sys.executable, "-c", "import vitreous"), 0.2),
    ("vitreous --help", (VERB, "--help"), 0.3),
)


def seconds(command: Sequence[str]) -> float:
    """Wall time of one fresh process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    """Prints the figures; 1 where they are not held."""
    held = True
    for words, command, limit in COMMANDS:
        median = statistics.median(seconds(command) for _ in range(RUNS))
        held &= limit is None or median <= limit
        print(f"{words:<28} {median:.3f} s" + (f"   held to {limit} s" if limit else ""))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
