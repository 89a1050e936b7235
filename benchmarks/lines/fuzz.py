"""Our own parsers on inputs made up by coverage (atheris): no fault but InputError, no hang over 2 s.

atheris is for Linux and macOS: pip install atheris. Each parser gets `count` inputs in a process of its own, begun from
a few sound ones; an input on which one fails is left in the folder, with the parser's name.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
COUNT = 100_000  # inputs a parser
SECONDS = 2.0  # of the processor, an input
MEMORY = 1 << 30  # bytes of a child process, an input
PATIENCE = 1800  # seconds a parser in all, beyond which what was done is reported


def run(options: argparse.Namespace) -> bool:
    """Prints a row a parser; returns whether all held."""
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed, so nothing was fuzzed: pip install atheris")
        return False
    print(f"{'parser':<22}{'inputs':>9}{'slowest':>9}  outcome")
    held = [row(name, options) for name in parsers()]  # all of them, also where one does not
    return all(held)


def row(name: str, options: argparse.Namespace) -> bool:
    """Fuzzes a parser, and prints how many inputs it took."""
    folder = Path(options.folder) / name
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-P", __file__, name, str(folder), str(options.count), str(options.seed)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, errors="replace")
        code, said = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        code, said = -1, f"ended after {PATIENCE} s"
    found = folder / "done.json"
    facts = json.loads(found.read_text()) if found.exists() else {"inputs": 0, "slowest": 0.0, "fault": ""}
    left = [path.name for path in folder.glob("*-*") if path.name.startswith(("crash", "timeout", "oom", "slow"))]
    good = code == 0 and not facts["fault"] and not left and facts["inputs"] >= options.count
    why = "held" if good else facts["fault"] or ", ".join(left) or said.strip()[-300:]
    print(f"{name:<22}{facts['inputs']:>9,}{facts['slowest']:>8.2f}s  {why}", flush=True)
    return good


def parsers() -> dict[str, tuple[Callable[[bytes], object], list[bytes]]]:
    """Each parser, and sound inputs to begin with."""
    return {
        "safetensors": (safetensors, seeds_of_safetensors()),
        "json": (plain, [b'{"a": [1, 2.5, null, true, "\\u00e9"], "b": {"c": -1e3}}']),
        "config": (config, [json.dumps(part).encode() for part in parts().values()]),
        "split": (split, [b'path,digest,split\na.png,00,train\n"b,\n\'=c.png",01,test\n']),
        "csv": (csv, [b"path,label\na.png,cat\nb.png,dog\n", b"path;x (mm);split\na.png;1,5;train\nb.png;2,5;test\n"]),
        "parquet": (parquet, seeds_of_parquet()),
        "onnx": (onnx, [b"\x08\x0a\x3a\x04\x0a\x02\x22\x00", *seeds_of_onnx()]),
        "openvino": (openvino, [b'<net><layers><layer id="0" type="Add" version="opset1"/></layers></net>']),
        "pickle": (pickles, seeds_of_torch()),
        "exif": (exif, [b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0", b"MM\0*\0\0\0\x08\0\0"]),
        "png": (png, [seed_of_png(), seed_of_png()[:60]]),
        "shards": (shard, [b"", bytes(1024)]),
    }


def safetensors(data: bytes) -> object:
    """The header of weights."""
    from vitreous.strict import parse_header

    return parse_header(data, len(data), "weights")


def plain(data: bytes) -> object:
    """JSON."""
    from vitreous.strict import parse_json

    return parse_json(data, "text")


def parts() -> dict[str, Any]:
    """What configs hold, by the name of the class that reads it."""
    from vitreous.calibration import Calibration
    from vitreous.data.preprocess import InputSpec
    from vitreous.data.targets import Task
    from vitreous.model.config import ModelConfig
    from vitreous.training.recipe import TrainConfig

    spec = InputSpec(3, "uint8", ((16, 24),), (0.5,) * 3, (0.2,) * 3)
    whole = (ModelConfig(), spec, Task("classification", ("a", "b")), Calibration(), TrainConfig())
    return {type(part).__name__: {type(part).__name__: part.to_json()} for part in whole}


def config(data: bytes) -> object:
    """JSON to the class that its one key names."""
    from vitreous.calibration import Calibration
    from vitreous.data.preprocess import InputSpec
    from vitreous.data.targets import Task
    from vitreous.model.config import ModelConfig
    from vitreous.strict import parse_json
    from vitreous.training.plan import Plan
    from vitreous.training.recipe import TrainConfig

    classes = {cls.__name__: cls for cls in (Calibration, InputSpec, Task, ModelConfig, Plan, TrainConfig)}
    values = parse_json(data, "text")
    return [classes.get(name, ModelConfig).from_json(value) for name, value in values.items()]


def on_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A parser of files, of bytes: they are written to one file of memory, where there is such."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))

    def parse(data: bytes) -> object:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return parse


def split(data: bytes) -> object:
    """split.csv."""
    from vitreous.rundir import RunDir

    return FILES.setdefault("split", on_file("split.csv", lambda path: RunDir(path.parent).read_split()))(data)


def csv(data: bytes) -> object:
    """A table of pictures."""
    from vitreous.data.tables import Columns, read_table

    return FILES.setdefault("csv", on_file("t.csv", lambda path: read_table(path, Columns())))(data)


def parquet(data: bytes) -> object:
    """A table of pictures in Parquet, and its first picture."""
    from vitreous.data.tables import Columns, read_table

    def read(path: Path) -> None:
        table = read_table(path, Columns())
        if table.read is not None and table.names:
            table.read(0)

    return FILES.setdefault("parquet", on_file("t.parquet", read))(data)


def pickles(data: bytes) -> object:
    """What torch.save may have written, before it is opened."""
    from vitreous.strict import check_torch_file

    return FILES.setdefault("pickle", on_file("m.pth", check_torch_file))(data)


FILES: dict[str, Callable[[bytes], object]] = {}


def onnx(data: bytes) -> object:
    """The walk through an ONNX file."""
    from vitreous.infer.foreign import check_onnx

    return check_onnx(data, Path("m.onnx"))


def openvino(data: bytes) -> object:
    """The walk through an OpenVINO graph."""
    from vitreous.infer.foreign import check_openvino

    return check_openvino(data, Path("m.zip"))


def exif(data: bytes) -> object:
    """The orientation of a picture."""
    from vitreous.data.decode import exif_orientation

    return exif_orientation(data)


def png(data: bytes) -> object:
    """The chunks of a PNG; its pixels are libpng's."""
    from vitreous.data.decode import inspect

    return inspect(b"\x89PNG\r\n\x1a\n" + data, "picture")


def shard(data: bytes) -> object:
    """A tar of pictures and their fields."""
    from shard_bytes import open_bytes

    return open_bytes(data)


def seeds_of_safetensors() -> list[bytes]:
    """A sound file."""
    import torch
    from safetensors.torch import save

    return [save({"a": torch.ones(2, 3), "b": torch.ones(1)}, {"k": "v"})]


def seeds_of_parquet() -> list[bytes]:
    """A sound table."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.table({"image": [b"a", b"b"], "label": ["cat", "dog"]}), stream)
    return [stream.getvalue()]


def seeds_of_onnx() -> list[bytes]:
    """A sound model, where onnx is installed."""
    with contextlib.suppress(ImportError):
        from onnx import TensorProto, helper

        weight = helper.make_tensor("w", TensorProto.INT64, [2], [1, 2])
        graph = helper.make_graph([helper.make_node("Expand", ["x", "w"], ["y"])], "g", [], [], [weight])
        model = helper.make_model(graph)
        helper.set_model_props(model, {"vitreous": "{}"})
        return [model.SerializeToString()]
    return []


def seeds_of_torch() -> list[bytes]:
    """A state dict, as torch writes it now and as it did."""
    import torch

    made = []
    for new in (True, False):
        stream = io.BytesIO()
        torch.save({"a": torch.ones(2)}, stream, _use_new_zipfile_serialization=new)
        made.append(stream.getvalue())
    return made


def seed_of_png() -> bytes:
    """A PNG without its signature."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (4, 3)).save(stream, "png")
    return stream.getvalue()[8:]


def spent() -> tuple[float, int]:
    """Seconds of the processor that this process and its children took, and bytes that the largest child had."""
    from vitreous.data.parquet import READERS

    ended = os.times()
    seconds, most = time.process_time() + ended.children_user + ended.children_system, 0
    for folder in (Path(f"/proc/{pid}") for pid in READERS.pids):
        with contextlib.suppress(OSError):
            words = (folder / "stat").read_text().rpartition(")")[2].split()
            seconds += sum(map(int, words[11:13])) / os.sysconf("SC_CLK_TCK")
            most = max(most, int((folder / "status").read_text().partition("VmHWM:")[2].split()[0]) << 10)
    return seconds, most


def fuzz(name: str, folder: Path, count: int, seed: int) -> None:
    """Gives a parser so many inputs, by what they reach in our own modules."""
    import atheris  # pyright: ignore[reportMissingImports]

    instrumented: Any = atheris.instrument_imports  # pyright: ignore
    with instrumented(include=["vitreous"], enable_loader_override=False):
        import vitreous.data.decode
        import vitreous.data.shards
        import vitreous.data.tables
        import vitreous.infer.foreign
        import vitreous.rundir
        import vitreous.strict
        import vitreous.training.recipe  # noqa: F401
    from vitreous.errors import InputError

    parse, seeds = parsers()[name]
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, content in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(content)
    facts = {"inputs": 0, "slowest": 0.0, "largest": 0, "fault": ""}

    def note() -> None:
        (folder / "done.json").write_text(json.dumps(facts))

    def one(data: bytes) -> None:
        began, _ = spent()
        try:
            parse(data)
        except InputError:
            pass
        except BaseException as fault:
            facts["fault"] = f"{type(fault).__name__}: {fault}"[:300]
            (folder / "crash-input").write_bytes(data)
            note()
            raise
        facts["inputs"] += 1
        ended, most = spent()
        facts["slowest"], facts["largest"] = max(facts["slowest"], ended - began), max(facts["largest"], most)
        if (facts["slowest"] > SECONDS or most > MEMORY) and not facts["fault"]:
            facts["fault"] = f"an input took {facts['slowest']:.1f} s, or a child {most / 1e6:,.0f} MB"
            (folder / "slow-input").write_bytes(data)
        if facts["inputs"] % 1000 == 0 or facts["inputs"] >= count:
            note()

    words = [f"-runs={count}", f"-seed={seed + 1}", "-max_len=4096", "-rss_limit_mb=4096"]
    words += ["-timeout=60", "-report_slow_units=60"]  # of the clock
    atheris.Setup([__file__, *words, f"-artifact_prefix={folder}/", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
