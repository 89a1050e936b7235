"""Files that mean harm, each made by a function: what reads it must refuse it, run nothing and read nothing outside.

A name, the reader that it is given to, and its maker, which writes it into a folder and returns what the reader opens.
`Place.canary` is a file that appears where code in an artefact runs; `Place.secret` one outside that none may open.
"""

import io
import json
import os
import pickle
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from vitreous.calibration import Calibration
from vitreous.data.augment import POLICIES
from vitreous.data.preprocess import InputSpec
from vitreous.data.targets import Task
from vitreous.model.config import ModelConfig
from vitreous.model.vit import VisionTransformer
from vitreous.rundir import FORMAT, RunDir, SplitRow
from vitreous.training.plan import Pace, Plan
from vitreous.training.recipe import TrainConfig

CONFIG = ModelConfig(width=16, depth=2, heads=2, outputs=2, image_size=(16, 24), patch_size=(8, 8))
SPEC = InputSpec(3, "uint8", ((16, 24),), (0.5,) * 3, (0.2,) * 3)
BOMB = 64 << 20  # bytes that bombs unpack to; the benchmark takes more
TASK = Task("classification", ("cat", "dog"), column="class")


@dataclass(frozen=True)
class Place:
    """Where an artefact is made."""

    folder: Path  # the artefact's own, empty
    canary: Path
    secret: Path  # a picture, outside of the folder

    @property
    def call(self) -> "Call":
        """What writes the canary as it is unpickled."""
        return Call(str(self.canary))


class Call:
    """Runs code as it is unpickled."""

    def __init__(self, canary: str):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({self.canary!r}, 'w').close()",)


@dataclass(frozen=True)
class Artefact:
    """One of them."""

    name: str
    reader: str  # of READERS
    make: Callable[[Place], Path]
    passed_over: bool = False  # it is not refused: what means harm in it is left out


ARTEFACTS: list[Artefact] = []


def artefact(reader: str, passed_over: bool = False):
    """Adds a maker to the list."""

    def add(make: Callable[[Place], Path]) -> Callable[[Place], Path]:
        ARTEFACTS.append(Artefact(make.__name__.replace("_", " "), reader, make, passed_over))
        return make

    return add


def several(reader: str, makers: dict[str, Callable[[Place], Path]]):
    """Adds makers by name."""
    ARTEFACTS.extend(Artefact(name, reader, make) for name, make in makers.items())


def put(place: Place, name: str, content: bytes | str) -> Path:
    """A file in the artefact's folder."""
    path = place.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Readers


def read_weights(path: Path) -> None:
    """`vitreous import`."""
    from vitreous.model.weights import import_weights

    import_weights(path, say=lambda text: None)


def read_run(path: Path) -> None:
    """`vitreous predict` and others."""
    from vitreous.infer.predictor import load

    load(path, engine="torch", precision="fp32")


def read_plan(path: Path) -> None:
    """`vitreous train --resume`."""
    run = RunDir.open(path)
    run.parsed("plan.json", "", Plan.from_json)
    run.parsed("config.json", "train", TrainConfig.from_json)
    run.read_split()


def read_export(path: Path) -> None:
    """`vitreous predict` with an exported file."""
    from vitreous.infer.files import open_export

    open_export(path, 1)


def read_data(path: Path) -> None:
    """`vitreous check`, and any other verb that takes DATA."""
    from vitreous.data.sources import open_source

    source = open_source(path)
    for number in range(len(source)):
        SPEC.read(source.read(number), source.names[number])


def read_pictures_of_run(path: Path) -> None:
    """What measures engines by the run's own pictures."""
    from vitreous.infer.predictor import load
    from vitreous.infer.sample import own_pictures

    own_pictures(load(path, engine="torch", precision="fp32"), "validation")


def read_choice(path: Path) -> None:
    """The engine that was chosen before."""
    from vitreous.infer.choose import MEMORY, _remembered

    assert not _remembered(path / "engines" / MEMORY, [("torch", "fp32"), ("openvino", "int8")])


READERS: dict[str, Callable[[Path], None]] = {
    "weights": read_weights,
    "run": read_run,
    "plan": read_plan,
    "export": read_export,
    "data": read_data,
    "own pictures": read_pictures_of_run,
    "choice": read_choice,
}


# Pickles, and archives of them


def torch_zip(
    place: Place, pickled: bytes, name: str = "model.pth", more: dict[str, bytes] | None = None, **kw
) -> Path:
    """An archive as torch.save writes it."""
    path = place.folder / name
    with zipfile.ZipFile(path, "w", **kw) as file:
        for member, content in {"a/data.pkl": pickled, "a/version": b"3\n", **(more or {})}.items():
            file.writestr(member, content)
    return path


def asked(module: str, name: str, argument: bytes) -> bytes:
    """A pickle that calls something with one argument, as opcodes of protocol 2."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + b"\x85R."


several(
    "weights",
    {
        "a pickle": lambda p: put(p, "model.pth", pickle.dumps(p.call, 2)),
        "a pickle of protocol 5": lambda p: put(p, "model.pth", pickle.dumps(p.call, 5)),
        "a pickle called .safetensors": lambda p: put(p, "model.safetensors", pickle.dumps(p.call, 2)),
        "a pickle called .npz": lambda p: put(p, "model.npz", pickle.dumps(p.call, 2)),
        "a pickle in a folder of transformers": lambda p: put(p, "t/pytorch_model.bin", pickle.dumps(p.call, 2)).parent,
        "an archive whose pickle runs code": lambda p: torch_zip(p, pickle.dumps({"w": p.call}, 2)),
        "an archive whose pickle asks for os.system": lambda p: torch_zip(p, asked("os", "system", b"X\x04\0\0\0true")),
        "an archive whose pickle asks for 10 GB": lambda p: torch_zip(
            p, asked("__builtin__", "bytearray", b"\x8a\x05" + (10**10).to_bytes(5, "little"))
        ),
        "an archive with a packed storage of zeros": lambda p: torch_zip(
            p, pickle.dumps({}, 2), more={"a/data/0": bytes(BOMB)}, compression=zipfile.ZIP_DEFLATED, compresslevel=1
        ),
        "an archive of TorchScript": lambda p: torch_zip(
            p, pickle.dumps({}, 2), more={"a/constants.pkl": pickle.dumps((), 2), "a/code/m.py": b"1"}
        ),
        "an archive that leads out of its folder": lambda p: torch_zip(
            p, pickle.dumps({}, 2), more={"../../canary": b""}
        ),
        "an archive behind a pickle": lambda p: put(
            p, "model.pth", pickle.dumps(p.call, 2) + torch_zip(p, pickle.dumps({}, 2), "z").read_bytes()
        ),
        "a pickle behind an archive": lambda p: put(
            p, "model.pth", torch_zip(p, pickle.dumps({}, 2), "z").read_bytes() + pickle.dumps(p.call, 2)
        ),
        "an archive in an archive's comment": lambda p: put(
            p,
            "model.pth",
            torch_zip(p, pickle.dumps({}, 2), "z").read_bytes()[:-2]
            + struct.pack("<H", len(inner := torch_zip(p, pickle.dumps(p.call, 2), "y").read_bytes()))
            + inner,
        ),
        "an old file of torch that runs code": lambda p: put(
            p,
            "model.pth",
            b"".join(pickle.dumps(o, 2) for o in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, p.call, [])),
        ),
        "a pickle of a million parts": lambda p: torch_zip(p, b"\x80\x02" + b"N0" * 1_000_000 + b"}."),
    },
)


@artefact("weights")
def an_archive_with_members_of_one_name(p: Place) -> Path:
    path = torch_zip(p, pickle.dumps({}, 2), more={"a/data.pkk": pickle.dumps(p.call, 2)})
    path.write_bytes(path.read_bytes().replace(b"data.pkk", b"data.pkl"))
    return path


@artefact("weights")
def a_tensor_of_40_gigabytes_by_strides_of_0(p: Place) -> Path:
    torch.save({"head.weight": torch.zeros(1).expand(10**10)}, p.folder / "model.pth")
    return p.folder / "model.pth"


@artefact("weights")
def a_tar_as_torch_once_saved(p: Place) -> Path:
    with tarfile.open(p.folder / "model.pth.tar", "w") as tar:
        for name in ("pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            content = pickle.dumps(p.call, 2)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return p.folder / "model.pth.tar"


def npz(place: Place, members: dict[str, bytes], name: str = "model.npz") -> Path:
    """An .npz of members as they are."""
    with zipfile.ZipFile(place.folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for member, content in members.items():
            file.writestr(f"{member}.npy", content)
    return place.folder / name


def npy(shape: str, descr: str = "'<f4'", data: bytes = b"") -> bytes:
    """An .npy with a header of one's own."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


def objects(place: Place) -> bytes:
    """An .npy of objects, which are pickled."""
    return npy("(1,)", "'|O'", pickle.dumps(np.array([place.call], dtype=object), 2))


for reader, key in (("weights", "embedding/kernel"), ("data", "images")):
    several(
        reader,
        {
            f"{reader}: an .npz of pickled objects": lambda p, key=key: npz(p, {key: objects(p), "labels": objects(p)}),
            f"{reader}: an .npz of zeros": lambda p, key=key: npz(
                p,
                {key: npy(f"(1000, {BOMB // 4000})", data=bytes(BOMB)), "labels": npy("(1000,)", "'<i8'", bytes(8000))},
            ),
            f"{reader}: an .npz that claims 4 TB": lambda p, key=key: npz(p, {key: npy("(1000000, 1000, 1000)")}),
            f"{reader}: an .npz with a header of brackets": lambda p, key=key: npz(p, {key: npy("(" * 9000)}),
            f"{reader}: an .npz that is an .npy": lambda p: put(p, "model.npz", objects(p)),
        },
    )


# Safetensors


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of a header as it is, or as JSON, and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    """A tensor in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


UNSOUND = {
    "longer than the file": safetensors({}, length=1 << 62),
    "of 100 MB": safetensors(b"{" + b" " * (100 << 20) + b"}"),
    "whose tensors overlap": safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "with a hole": safetensors({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "with a name twice": safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "with many names, the last twice": safetensors(
        b"{" + b",".join(b'"%d":0' % min(n, 199_998) for n in range(200_000)) + b"}"
    ),
    "beyond the file": safetensors({"a": entry([1 << 30], 0, 4 << 30)}, bytes(4)),
    "of an unknown type": safetensors({"a": entry([1], 0, 4, "os.system")}, bytes(4)),
    "of a negative shape": safetensors({"a": entry([-1, -1], 0, 4)}, bytes(4)),
    "whose sizes wrap around": safetensors({"a": entry([1 << 32, 1 << 32], 0, 0)}),
    "of fractions": safetensors({"a": entry([1.0], 0, 4.0)}, bytes(4)),
    "with NaN": safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
    "nested": safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "of a million tensors": safetensors(
        b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % n for n in range(250_000)) + b"}"
    ),
    "with metadata that are no text": safetensors({"__metadata__": {"a": {"b": 1}}, "a": entry([1], 0, 4)}, bytes(4)),
    "with data behind it": safetensors({"a": entry([1], 0, 4)}, bytes(4) + b"PK\3\4" + bytes(100)),
    "in no UTF-8": safetensors(b'{"\xff":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "that is a list": safetensors([1, 2]),
    "that is empty": b"",
}
several(
    "weights",
    {
        f"safetensors {name}": lambda p, content=content: put(p, "model.safetensors", content)
        for name, content in UNSOUND.items()
    },
)


@artefact("weights")
def shapes_that_derive_a_large_model(p: Place) -> Path:
    tensors = {"patch_embed.proj.weight": torch.zeros(32768, 1, 1, 1), "norm.weight": torch.ones(1)}
    tensors["head.weight"], tensors["head.bias"] = torch.zeros(2, 1), torch.zeros(2)
    for n in range(500):
        for name in ("mlp.fc1.weight", "mlp.fc2.weight", "attn.qkv.weight", "attn.proj.weight"):
            tensors[f"blocks.{n}.{name}"] = torch.zeros(1, 1)
    torch.save(tensors, p.folder / "model.pth")
    return p.folder / "model.pth"


def transformers(place: Place, **values: Any) -> Path:
    """A folder of transformers with a config of its own."""
    put(place, "t/model.safetensors", safetensors({"embeddings.cls_token": entry([1], 0, 4)}, bytes(4)))
    return put(place, "t/config.json", json.dumps(values)).parent


several(
    "weights",
    {
        "a config of transformers that names code": lambda p: transformers(p, hidden_act="os.system", auto_map={}),
        "a config of transformers for pictures of 10⁹": lambda p: transformers(p, image_size=10**9),
        "a config of transformers that is a list": lambda p: put(p, "t/config.json", (transformers(p), "[]")[1]).parent,
    },
)


def special(make: Callable[[Path], Any], name: str) -> Callable[[Place], Path]:
    """A pipe, or a link to a device."""

    def made(p: Place) -> Path:
        make(p.folder / name)
        return p.folder / name

    return made


if os.name != "nt":
    several(
        "weights",
        {
            "a pipe": special(os.mkfifo, "model.safetensors"),
            "a link to /dev/zero": special(lambda path: path.symlink_to("/dev/zero"), "model.pth"),
        },
    )
    several("export", {"a pipe called .onnx": special(os.mkfifo, "model.onnx")})


# Run directories


def make_run(place: Place, changes: dict[str, Any] | None = None, name: str = "config.json") -> Path:
    """A run directory that can be read; `changes` are made to a JSON file of it, at a path of keys such as
    "model.width".
    """
    run = RunDir.create(place.folder / "run")
    run.write_split([SplitRow("a.png", "00", "validation")])
    plan = Plan(
        points=((0, 0.0, 10),), epochs=1.0, batch=4, accumulate=1, optimizer="adamw", lr=0.001, schedule="linear",
        warmup=0.1, coarse=0.0, weight_decay=0.1, layer_decay=1.0, freeze="none", clip=1.0, smoothing=0.0, ema=0.9,
        balance="none", augmentation=POLICIES["none"], precision="fp32", device="cpu", threads=1, workers=0, seed=0,
        row_every=1, save_every=0, budget=0.0, pace=Pace(1.0, 1.0, 1.0), seconds=1.0, torch=torch.__version__,
    )  # fmt: skip
    own = {"format": FORMAT, "vitreous": version("vitreous"), "data": None, "train": TrainConfig().to_json()}
    parts = {"model": CONFIG.to_json(), "input": SPEC.to_json(), "task": TASK.to_json()}
    files = {
        "config.json": {**own, **parts},
        "plan.json": plan.to_json(),
        "validation.json": {"calibration": Calibration().to_json(), "summary": None},
    }
    for path, value in (changes or {}).items():
        *keys, last = path.split(".")
        at = files[name]
        for key in keys:
            at = at[key]
        at[last] = value
    for file, values in files.items():
        (run.path / file).write_text(json.dumps(values), "utf-8")
    torch.manual_seed(0)
    run.write_weights(VisionTransformer(CONFIG).state_dict())
    return run.path


def changed(path: str, value: Any, name: str = "config.json") -> Callable[[Place], Path]:
    """A maker of a run with one value changed."""
    return lambda p: make_run(p, {path: value}, name)


several(
    "run",
    {
        "a config of width 10⁹": changed("model.width", 10**9),
        "a config of a million blocks": changed("model.depth", 10**6),
        "a config of 500 blocks": changed("model.depth", 500),
        "a config of wide blocks": changed("model.width", 32_768),
        "a config for pictures of 10⁹": changed("model.image_size", [10**9, 10**9]),
        "a config of a trillion outputs": changed("model.outputs", 10**12),
        "a config of many kernels": changed("model.kernels", [3] * 100_000),
        "a config that names a class": changed("model.__class__", "os.system"),
        "a config that reduces": changed("model.width", {"__reduce__": ["os.system", "true"]}),
        "a config whose tokenizer is a module": changed("model.tokenizer", "os:system"),
        "a config of text for numbers": changed("model.depth", "2"),
        "a config of true for a number": changed("model.heads", True),
        "a config without a model": changed("model", None),
        "pictures of 10⁵×10⁵": changed("input.sizes", [[10**5, 10**5]]),
        "a million sizes of pictures": changed("input.sizes", [[16, 16]] * 1_000_000),
        "a depth of pixels that is code": changed("input.depth", "__import__('os')"),
        "other channels than its model": changed("input.channels", 4000),
        "another task than its model": changed("task.names", ["x"] * 100_000),
        "a temperature of 0": changed("calibration.temperature", 0, "validation.json"),
        "half-widths that are objects": changed("calibration.halfwidth", [{}], "validation.json"),
    },
)
several(
    "plan",
    {
        "a plan of 10⁹ threads": changed("threads", 10**9, "plan.json"),
        "a plan of batches of 10¹²": changed("batch", 10**12, "plan.json"),
        "a plan with points that go back": changed("points", [[0, 0.0, 9], [5, 2.0, 1]], "plan.json"),
        "a plan that names code": changed("optimizer", "os.system", "plan.json"),
        "a plan of operations without end": changed("augmentation.operations", 10**9, "plan.json"),
        "options of training that are objects": changed("train.target", {"a": 1}),
    },
)
several("own pictures", {"pictures on a network": changed("data", "https://example.invalid/photos.tar")})


def replaced(name: str, content: bytes | str) -> Callable[[Place], Path]:
    """A maker of a run with a file changed."""

    def make(p: Place) -> Path:
        run = make_run(p)
        (run / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return run

    return make


several(
    "run",
    {
        "a config with a name twice": replaced("config.json", '{"format": 1, "format": 1}'),
        "a config with NaN": replaced("config.json", '{"format": NaN}'),
        "a config of brackets": replaced("config.json", '{"format": ' + "[" * 150_000),
        "a config of lists": replaced("config.json", '{"format": [' + "[]," * 5_000_000 + "1]}"),
        "a config of digits": replaced("config.json", '{"format": ' + "9" * 10_000_000 + "}"),
        "a config in UTF-16": replaced("config.json", '{"format": 1}'.encode("utf-16")),
        "weights that overlap": replaced("model.safetensors", UNSOUND["whose tensors overlap"]),
    },
)
several("plan", {"a split.csv of one cell": replaced("split.csv", "path,digest,split\n" + "a" * 10_000_000 + "\n")})
several("plan", {"a split.csv of other splits": replaced("split.csv", "path,digest,split\n../../etc/passwd,0,evil\n")})


@artefact("run")
def weights_that_are_a_pickle(p: Place) -> Path:
    return replaced("model.safetensors", pickle.dumps(p.call, 2))(p)


@artefact("run")
def a_config_of_2_gigabytes(p: Place) -> Path:
    run = make_run(p)
    with open(run / "config.json", "r+b") as file:
        file.truncate(2 << 30)
    return run


@artefact("choice", passed_over=True)
def a_choice_that_leads_out_of_the_run(p: Place) -> Path:
    run = make_run(p)
    chosen = {key: {"chosen": ["openvino", f"../../{key}"], "said": "\x1b[2J"} for key in ("evil", "worse")}
    put(p, "run/engines/choices.json", json.dumps({**chosen, "odd": [1], "code": {"chosen": "os.system"}}))
    return run


def linked(name: str, folder: bool = False) -> Callable[[Place], Path]:
    """A maker of a run in which something is a link to a place outside."""

    def make(p: Place) -> Path:
        run = make_run(p)
        path = run / name
        if path.is_dir():
            path.rmdir()
        elif path.exists():
            path.unlink()
        path.symlink_to(p.secret.parent if folder else p.secret)
        return run

    return make


@artefact("run")
def a_pipe_for_a_config(p: Place) -> Path:
    run = make_run(p)
    (run / "validation.json").unlink()
    os.mkfifo(run / "validation.json")
    return run


if os.name == "nt":
    ARTEFACTS.pop()
else:
    several(
        "run",
        {
            "a config that is a link": linked("config.json"),
            "weights that are a link": linked("model.safetensors"),
            "checkpoints in a linked folder": linked("last", folder=True),
            "engines in a linked folder": linked("engines", folder=True),
            "a log that is a link": linked("log.txt"),
        },
    )


# Exported files


def card(**changes: Any) -> dict[str, Any]:
    """What an exported file says of itself."""
    parts = {"input": SPEC.to_json(), "task": TASK.to_json(), "calibration": Calibration().to_json()}
    rest = {"precision": "fp32", "mirrored": True, "columns": {}, "origin": {}, "seen": {}}
    return {"format": 1, **parts, **rest, **changes}


def make_onnx(place: Place, change: Callable[[Any], Any] = lambda model: None, text: str | None = None) -> Path:
    """An ONNX file that can be read: the mean of the channels, and a weight; `change` is made to it."""
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 2], np.ones(6, "<f4").tobytes(), raw=True)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["outputs"]),
        helper.make_node("Softmax", ["outputs"], ["answers"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", "height", "width", 3])
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2]) for n in ("outputs", "answers")]
    graph = helper.make_graph(nodes, "g", [pixels], given, [weight, axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"vitreous": json.dumps(card()) if text is None else text})
    change(model)
    return put(place, "model.onnx", model.SerializeToString())


def elsewhere(place: Place, location: str) -> Callable[[Any], None]:
    """A change by which a weight lies in another file."""

    def change(model: Any) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = 1
        for key, value in {"location": location, "offset": "0", "length": "24"}.items():
            found = weight.external_data.add()
            found.key, found.value = key, value

    return change


def with_node(kind: str, inputs: tuple[str, ...] = (), domain: str = "", **attributes: Any) -> Callable[[Any], None]:
    """A change that adds an operator."""

    def change(model: Any) -> None:
        from onnx import helper

        model.graph.node.append(helper.make_node(kind, inputs, ["odd"], domain=domain, **attributes))

    return change


def with_tensor(name: str, numbers: list[int], *then: Callable[[Any], None]) -> Callable[[Any], None]:
    """A change that adds a tensor of whole numbers, and others."""

    def change(model: Any) -> None:
        from onnx import helper

        model.graph.initializer.append(helper.make_tensor(name, 7, [len(numbers)], numbers))
        for each in then:
            each(model)

    return change


def with_function(model: Any) -> None:
    """Adds a function."""
    from onnx import helper

    body = [helper.make_node("Identity", ["x"], ["y"])]
    made = helper.make_function("mine", "F", ["x"], ["y"], body, [helper.make_opsetid("", 20)])
    model.functions.append(made)


def nested() -> bytes:
    """Graphs in graphs, as bytes: more than protobuf's own library would write."""

    def field(number: int, content: bytes) -> bytes:
        length, head = len(content), bytes([number << 3 | 2])
        while length > 127:
            head, length = head + bytes([length & 127 | 128]), length >> 7
        return head + bytes([length]) + content

    graph = b""
    for _ in range(400):
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph)


def without_numbers(model: Any) -> None:
    """A large tensor without its numbers."""
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    del weight.dims[:]
    weight.dims.extend([1 << 20, 1 << 14])


several(
    "export",
    {
        "ONNX with weights in a file outside": lambda p: make_onnx(p, elsewhere(p, str(p.secret))),
        "ONNX with weights above its folder": lambda p: make_onnx(p, elsewhere(p, "../" + p.secret.name)),
        "ONNX with an operator of another library": lambda p: make_onnx(p, with_node("Evil", (), "ai.evil")),
        "ONNX with an operator of Microsoft's": lambda p: make_onnx(p, with_node("Tokenizer", (), "com.microsoft")),
        "ONNX with a function": lambda p: make_onnx(p, with_function),
        "ONNX with a loop": lambda p: make_onnx(p, with_node("Loop", ("n", "c"))),
        "ONNX that reads pictures": lambda p: make_onnx(p, with_node("ImageDecoder", ("pixels",))),
        "ONNX that makes 40 GB": lambda p: make_onnx(
            p, with_tensor("s", [100_000, 100_000], with_node("ConstantOfShape", ("s",)))
        ),
        "ONNX that spreads a number over 40 GB": lambda p: make_onnx(
            p, with_tensor("s", [100_000, 100_000], with_node("Expand", ("axes", "s")))
        ),
        "ONNX whose range ends at one of two numbers": lambda p: make_onnx(
            p, with_tensor("s", [1 << 40], with_tensor("s", [1], with_node("Range", ("s", "s", "s"))))
        ),
        "ONNX with a tensor without its numbers": lambda p: make_onnx(p, without_numbers),
        "ONNX with graphs in graphs": lambda p: put(p, "model.onnx", nested()),
        "ONNX without a card": lambda p: make_onnx(p, lambda model: model.metadata_props.pop()),
        "ONNX with two cards": lambda p: make_onnx(
            p, lambda model: model.metadata_props.append(model.metadata_props[0])
        ),
        "ONNX with a card of brackets": lambda p: make_onnx(p, text='{"format":' + "[" * 100_000),
        "ONNX with a card that names code": lambda p: make_onnx(p, text=json.dumps(card(origin="os.system"))),
        "a pickle called .onnx": lambda p: put(p, "model.onnx", pickle.dumps(p.call, 2)),
        "protobuf of groups": lambda p: put(p, "model.onnx", b"\x3b" * 100_000),
        "protobuf of a million parts": lambda p: put(p, "model.onnx", b"\x08\x01" * 1_000_000),
        "protobuf that is longer than the file": lambda p: put(p, "model.onnx", b"\x3a\xff\xff\xff\xff\x07" + b"a"),
    },
)

GRAPH = """<?xml version="1.0"?><net name="g" version="11"><layers>
<layer id="0" name="pixels" type="Parameter" version="opset1"><data shape="?,16,24,3" element_type="u8"/><output>
<port id="0" precision="U8"><dim>-1</dim><dim>16</dim><dim>24</dim><dim>3</dim></port></output></layer>
</layers><edges/></net>"""


BROADCAST = """
<layer id="1" name="one" type="Const" version="opset1"><data element_type="f32" shape="" offset="8" size="4"/>
<output><port id="0" precision="FP32"/></output></layer>
<layer id="2" name="many" type="Const" version="opset1"><data element_type="i64" shape="1" offset="0" size="8"/>
<output><port id="0" precision="I64"><dim>1</dim></port></output></layer>
<layer id="3" name="made" type="Broadcast" version="opset3"><data mode="numpy"/>
<input><port id="0" precision="FP32"/><port id="1" precision="I64"><dim>1</dim></port></input>
<output><port id="2" precision="FP32"><dim>8</dim></port></output></layer>
<layer id="4" name="result" type="Result" version="opset1"><input><port id="0"><dim>8</dim></port></input></layer>"""
EDGES = """<edges><edge from-layer="1" from-port="0" to-layer="3" to-port="0"/>
<edge from-layer="2" from-port="0" to-layer="3" to-port="1"/>
<edge from-layer="3" from-port="2" to-layer="4" to-port="0"/></edges>"""


def make_zip(place: Place, more: dict[str, bytes | str] | None = None, packed: bool = False, **changes: Any) -> Path:
    """OpenVINO's files in an archive, and others."""
    members = {"graph-16x24.xml": GRAPH, "weights.bin": b"", "vitreous.json": json.dumps(card(**changes))}
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(place.folder / "model.zip", "w", kind) as file:
        for name, content in {**members, **(more or {})}.items():
            file.writestr(zipfile.ZipInfo(name), content, kind)
    return place.folder / "model.zip"


def xml(before: str = "", layer: str = "", edges: str = "<edges/>") -> dict[str, bytes | str]:
    """A graph with something before it, or layers more."""
    graph = GRAPH.replace("<net", before + "<net").replace("</layers>", layer + "</layers>")
    return {"graph-16x24.xml": graph.replace("<edges/>", edges)}


LAUGHS = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9))
several(
    "export",
    {
        "OpenVINO with a member above its folder": lambda p: make_zip(p, {"../../canary": b""}),
        "OpenVINO with an absolute member": lambda p: make_zip(p, {"/tmp/canary": b""}),
        "OpenVINO with a pickle": lambda p: make_zip(p, {"more.pkl": pickle.dumps(p.call, 2)}),
        "OpenVINO with packed weights of zeros": lambda p: make_zip(p, {"weights.bin": bytes(BOMB)}, packed=True),
        "OpenVINO with entities of entities": lambda p: make_zip(
            p, xml(f'<!DOCTYPE net [<!ENTITY a0 "ha">{LAUGHS}]>', "<x>&a9;</x>")
        ),
        "OpenVINO with an entity of a file": lambda p: make_zip(
            p, xml(f'<!DOCTYPE net [<!ENTITY a SYSTEM "file://{p.secret}">]>', "<x>&a;</x>")
        ),
        "OpenVINO with an operator of an extension": lambda p: make_zip(
            p, xml(layer='<layer id="9" name="x" type="Evil" version="extension"/>')
        ),
        "OpenVINO with a loop": lambda p: make_zip(
            p, xml(layer='<layer id="9" name="x" type="TensorIterator" version="opset1"/>')
        ),
        "OpenVINO that makes a tensor of a terabyte of one number": lambda p: make_zip(
            p, {"weights.bin": np.array([1 << 38], np.int64).tobytes() + bytes(4), **xml(layer=BROADCAST, edges=EDGES)}
        ),
        "OpenVINO with a card that names code": lambda p: make_zip(p, task={"kind": "os.system", "names": ["a"]}),
        "OpenVINO for pictures of 10⁹": lambda p: make_zip(p, input={**SPEC.to_json(), "sizes": [[10**9, 10**9]]}),
    },
)


@artefact("export")
def a_graph_with_a_member_twice(p: Place) -> Path:
    path = make_zip(p, {"vitreous.jsoo": json.dumps(card(origin={"evil": 1}))})
    path.write_bytes(path.read_bytes().replace(b"vitreous.jsoo", b"vitreous.json"))
    return path


@artefact("export")
def a_graph_with_a_link(p: Place) -> Path:
    path = make_zip(p)
    with zipfile.ZipFile(path, "a") as file:
        link = zipfile.ZipInfo("weights.link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, str(p.secret))
    return path


# Data


def make_tar(place: Place, odd: Callable[[tarfile.TarFile, bytes], None]) -> Path:
    """A tar of two classes, and what `odd` adds."""
    stream = io.BytesIO()
    Image.new("RGB", (24, 16)).save(stream, "png")
    with tarfile.open(place.folder / "data.tar", "w") as tar:
        for name in ("cat/a.png", "dog/b.png"):
            add(tar, name, stream.getvalue())
        odd(tar, stream.getvalue())
    return place.folder / "data.tar"


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    """A member of a tar."""
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, link
    tar.addfile(member, io.BytesIO(content))


def write_parquet(place: Place, old: bytes = b"", new: bytes = b"", **columns: Any) -> Path:
    """A table, in whose file some bytes are others."""
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": [b"a"] * 4000, "label": ["x"] * 4000} | columns), stream, store_schema=False)
    return put(place, "data.parquet", stream.getvalue().replace(old, new) if old else stream.getvalue())


def alike(value: Any) -> Any:
    """A column of one value, which its file holds once."""
    return pa.DictionaryArray.from_arrays(np.zeros(4000, np.int32), pa.array([value]))


several(
    "data",
    {
        "a tar with a member above its folder": lambda p: make_tar(p, lambda tar, x: add(tar, "../../evil.png", x)),
        "a tar with an absolute member": lambda p: make_tar(p, lambda tar, x: add(tar, "/tmp/evil.png", x)),
        "a tar with a drive": lambda p: make_tar(p, lambda tar, x: add(tar, "C:/evil.png", x)),
        "an .npy of pickled objects": lambda p: put(p, "d/cat/a.npy", put(p, "d/dog/a.npy", objects(p)).read_bytes())
        .parents[1],
        "an .npy that claims 4 TB": lambda p: put(
            p, "d/cat/a.npy", put(p, "d/dog/a.npy", npy("(1000000, 1000000)")).read_bytes()
        ).parents[1],
        "a pickle called .parquet": lambda p: put(p, "data.parquet", pickle.dumps(p.call, 2)),
        "a .parquet at which its library ends the process": lambda p: write_parquet(
            p, b"\x25\x02\x18\x05image", b"\x25\x00\x18\x05image"
        ),
        "a .parquet whose texts unpack to 4 GB": lambda p: write_parquet(p, label=alike("x" * 1_000_000)),
        "a pickle called .png": lambda p: put(
            p, "d/cat/a.png", put(p, "d/dog/a.png", pickle.dumps(p.call, 2)).read_bytes()
        ).parents[1],
    },
)  # fmt: skip


@artefact("data", passed_over=True)
def a_tar_with_links_and_devices(p: Place) -> Path:
    def odd(tar: tarfile.TarFile, content: bytes) -> None:
        add(tar, "cat/link.png", kind=tarfile.SYMTYPE, link=str(p.secret))
        add(tar, "cat/hard.png", kind=tarfile.LNKTYPE, link=str(p.secret))
        add(tar, "dog/pipe.png", kind=tarfile.FIFOTYPE)
        add(tar, "dog/zero.png", kind=tarfile.CHRTYPE)

    return make_tar(p, odd)
