"""Whether nothing is lost and nobody let in: each line of what the project is held to, at any count.

    python benchmarks/reliability.py            # the lines
    python benchmarks/reliability.py kills      # one, at its full count
    python benchmarks/reliability.py kills --count 8 --seed 3

A line is a module in benchmarks/lines/. It prints a row a finding, and the exit code is 1 where it does not hold.
"""

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

LINES = Path(__file__).parent / "lines"


def names() -> list[str]:
    """The lines that are there."""
    return sorted(path.stem for path in LINES.glob("[!_]*.py"))


def main() -> int:
    """Runs a line, or lists them."""
    if len(sys.argv) < 2 or sys.argv[1] not in names():
        print(__doc__)
        for name in names():
            line = importlib.import_module(f"lines.{name}")
            print(f"  {name:<12}{line.COUNT:>8,}  {(line.__doc__ or '').splitlines()[0]}")
        return 0 if sys.argv[1:] in ([], ["--help"], ["-h"]) else 2
    line = importlib.import_module(f"lines.{sys.argv[1]}")
    parser = argparse.ArgumentParser(
        prog=f"reliability.py {sys.argv[1]}",
        description=line.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=line.COUNT, help="of what is tried")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--folder", type=Path, help="to work in; default: one that is removed at the end")
    parser.add_argument("--data", type=Path, help="the user's own, for lines that take some")
    if hasattr(line, "add_arguments"):
        line.add_arguments(parser)
    options = parser.parse_args(sys.argv[2:])
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vitreous-") as folder:
        options.folder = options.folder or Path(folder)
        options.folder.mkdir(parents=True, exist_ok=True)
        held = line.run(options)
    print(f"{sys.argv[1]} {'is held' if held else 'is NOT held'}, in {time.monotonic() - began:.0f} s")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
