"""Files that mean harm: nothing in them runs, nothing outside is read, each is refused in 2 s and 200 MB.

The artefacts are those of tests/hostile.py, with bombs of 1 GB. Each is read in a process of its own that has imported
what it needs, forked where that can be. Seconds are of the processor, since other work on the machine is not the
artefact's; a reader that waits is ended after a minute, and has failed. Memory is what the process held at most above
what it held before. Files that were opened, and processes and connections that were begun, are told by Python's own
audit events: what a library opens in C is not heard, which is why the artefacts that would have it do so are refused
before a library sees them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

COUNT = 40  # at least; all there are are run
SECONDS, MEGABYTES, PATIENCE = 2.0, 200.0, 60
EVENTS = ("open", "pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")


def run(options: argparse.Namespace) -> bool:
    """Runs all artefacts, or the first `count` of them; prints a row each, and what was most."""
    from hostile import ARTEFACTS  # pyright: ignore[reportMissingImports]

    chosen = ARTEFACTS if options.count >= COUNT else ARTEFACTS[: options.count]
    print(f"{'artefact':<58}{'seconds':>8}{'MB':>7}  outcome")
    rows = []
    for artefact in chosen:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            row = measure(artefact.name, Path(folder))
        print(f"{artefact.name:<58}{row['seconds']:>8.2f}{row['megabytes']:>7.0f}  {row['outcome']}", flush=True)
        rows.append(row)
    good = [row for row in rows if row["good"]]
    most = {key: max(row[key] for row in rows) for key in ("seconds", "megabytes")}
    print(
        f"{len(good)} of {len(rows)} refused or passed over, with no code run and nothing read outside; at most "
        f"{most['seconds']:.2f} s of {SECONDS:g} and {most['megabytes']:.0f} MB of {MEGABYTES:g}"
    )
    return len(good) == len(rows)


def measure(name: str, folder: Path) -> dict[str, Any]:
    """One artefact, in a process of its own."""
    try:
        row = json.loads((forked if hasattr(os, "fork") else spawned)(name, folder).splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as fault:
        row = {"seconds": float(PATIENCE), "megabytes": 0.0, "outcome": f"the process died or hung ({fault})"}
    if (folder / "canary").exists():
        row["outcome"] = "code ran"
    within = row["seconds"] <= SECONDS and row["megabytes"] <= MEGABYTES
    return {**row, "good": within and row["outcome"] in ("refused", "passed over")}


def spawned(name: str, folder: Path) -> str:
    """What a new process prints of an artefact."""
    words = [sys.executable, __file__, name, str(folder)]
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE + 120).stdout


def forked(name: str, folder: Path) -> str:
    """What a copy of this process, in which nothing was read yet, prints of an artefact."""
    prepare()
    output, end = os.pipe()
    if not (process := os.fork()):
        os.dup2(end, 1)
        try:
            child(name, folder)
        finally:
            os._exit(1)
    os.close(end)
    with open(output) as said:
        text = said.read()
    os.waitpid(process, 0)
    return text


def prepare() -> None:
    """Imports what reads the artefacts."""
    import vitreous.data.sources
    import vitreous.infer.choose
    import vitreous.infer.files
    import vitreous.infer.predictor
    import vitreous.infer.sample
    import vitreous.model.weights  # noqa: F401
    from vitreous.infer.engines import import_openvino, import_quietly

    import_quietly("onnxruntime")
    import_openvino()
    import pyarrow.csv
    import pyarrow.parquet  # noqa: F401


def child(name: str, folder: Path) -> None:
    """Makes an artefact, reads it, prints what came of it, and ends the process."""
    prepare()
    import hostile  # pyright: ignore[reportMissingImports]
    from PIL import Image

    from vitreous.errors import InputError

    hostile.BOMB = 1 << 30
    (folder / "own").mkdir()
    (folder / "outside").mkdir()
    place = hostile.Place(folder / "own", folder / "canary", folder / "outside" / "secret.png")
    Image.new("RGB", (24, 16)).save(place.secret)
    artefact = next(artefact for artefact in hostile.ARTEFACTS if artefact.name == name)
    path, heard = artefact.make(place), []
    own = [str(Path(p).resolve()) for p in (place.folder, sys.prefix, sys.base_prefix, *filter(None, sys.path))]
    sys.addaudithook(lambda event, arguments: heard.append((event, arguments)) if event in EVENTS else None)
    watch = threading.Timer(PATIENCE, end, ["it waited"])
    watch.daemon = True
    watch.start()
    before, began = memory(reset=True), time.process_time()
    try:
        hostile.READERS[artefact.reader](path)
        outcome = "passed over" if artefact.passed_over else "accepted"
    except InputError:
        outcome = "refused"
    except BaseException as fault:
        outcome = f"another fault ({type(fault).__name__}: {fault})"
    seconds, held = time.process_time() - began, memory() - before
    for event, arguments in heard[:]:
        if event == "subprocess.Popen" and "from vitreous.data." in str(arguments[1]):
            continue  # our own, that opens files
        if event != "open":
            outcome = f"{event} {arguments[:1]}"
        elif isinstance(arguments[0], str | bytes) and arguments[0]:
            opened = str(Path(arguments[0] if isinstance(arguments[0], str) else arguments[0].decode()).resolve())
            if not any(opened.startswith(folder) for folder in (*own, "/proc/", "/sys/", "/dev/null", "/dev/urandom")):
                outcome = f"opened {opened}"
    end(outcome, seconds, held)


def end(outcome: str, seconds: float = float(PATIENCE), megabytes: float = 0.0) -> None:
    """Prints the row, and ends the process whatever else it does."""
    print(json.dumps({"outcome": outcome, "seconds": seconds, "megabytes": megabytes}), flush=True)
    os._exit(0)


def memory(reset: bool = False) -> float:
    """Megabytes that this process has held at most; on Linux since the last `reset`."""
    if sys.platform == "linux":
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import psutil

    facts = psutil.Process().memory_info()
    return (facts.rss if reset else getattr(facts, "peak_wset", facts.rss)) / 2**20


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]))
