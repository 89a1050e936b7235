"""Exported files: the graphs of a model in one file, and a card that says what they take and give.

.onnx   one model with `pixels` in, `outputs` and `answers` out; the card is JSON in its metadata, under "vitreous".
        Where there are several sizes of pictures it branches by size; weights that the branches share are there once.
.zip    OpenVINO's: a graph a size, graph-160x120.xml, all with their weights in weights.bin; the card is vitreous.json.
"""

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree

import torch
from torch.export import ExportedProgram

from vitreous.calibration import Calibration
from vitreous.data.preprocess import InputSpec, Size
from vitreous.data.targets import Task
from vitreous.errors import InputError
from vitreous.fields import read_fields
from vitreous.files import write_whole
from vitreous.infer.engines import ONNXEngine, OpenVINOEngine, import_openvino, import_quietly
from vitreous.infer.foreign import check_onnx, check_openvino
from vitreous.infer.graph import quiet
from vitreous.strict import ZIP_FAULTS, check_archive, open_regular, parse_json

FORMAT = 1
SUFFIXES = {".onnx": "onnx", ".zip": "openvino"}
EXPECTED = "expected_pixels_of_"  # the name of the node that fails where they are of no such size, and then these
LARGEST = 2 << 30  # bytes of an ONNX file: protobuf's own limit
LARGEST_TEXT, LARGEST_CARD = 16 << 20, 16 << 20  # bytes of a graph without its weights, and of a card
OPSET = 20  # of ONNX: the first whose Gelu is an operator


@dataclass(frozen=True)
class Card:
    """What an exported file takes and gives, and what it was made of."""

    spec: InputSpec
    task: Task
    calibration: Calibration
    precision: str
    mirrored: bool  # whether mirrored views of a picture make sense
    columns: dict[str, Any]  # `target` and `path_column`, for tables
    origin: dict[str, Any]  # of the weights, and versions

    def to_json(self) -> str:
        """JSON text."""
        plain = {"input": self.spec.to_json(), "task": self.task.to_json(), "calibration": self.calibration.to_json()}
        rest = {key: getattr(self, key) for key in ("precision", "mirrored", "columns", "origin")}
        return json.dumps({"format": FORMAT, **plain, **rest}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, path: Path) -> Self:
        """The card that `to_json` wrote. Raises `InputError` for anything else."""
        values = parse_json(text, f"{path}: the card in it", LARGEST_CARD)
        version = values.get("format")
        if version != FORMAT:
            raise InputError(f"{path} is an export of format {version}: this version of vitreous reads {FORMAT}")
        try:
            card = read_fields(_Written, values, "expected what an export says")
            parts = (InputSpec.from_json(card.input), Task.from_json(card.task))
            calibration = Calibration.from_json(card.calibration)
        except InputError as fault:
            raise InputError(f"{path}: the card in it is damaged: {fault}") from None
        return cls(*parts, calibration, card.precision, bool(card.mirrored), card.columns, card.origin)


@dataclass(frozen=True)
class _Written:
    """A card as it is written."""

    format: int
    input: dict[str, Any]
    task: dict[str, Any]
    calibration: dict[str, Any]
    precision: str
    mirrored: bool | float
    columns: dict[str, Any]
    origin: dict[str, Any]


def is_export(path: str | os.PathLike) -> bool:
    """Whether a path names an exported file, by its ending."""
    return Path(path).suffix.lower() in SUFFIXES


def open_export(path: str | os.PathLike, threads: int) -> tuple[Card, OpenVINOEngine | ONNXEngine]:
    """The card of an exported file, and the engine that runs it.

    Raises `InputError` where it is none or damaged, or what runs it is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: expected a run directory, or a file that `vitreous export` made")
    return (_open_onnx if SUFFIXES[path.suffix.lower()] == "onnx" else _open_openvino)(path, threads)


def graph_name(size: Size) -> str:
    """ "graph-160x120"."""
    return f"graph-{size[0]}x{size[1]}"


def to_openvino(program: ExportedProgram) -> Any:
    """A graph as an OpenVINO model. Raises `InputError` where OpenVINO is not installed."""
    openvino = import_openvino()
    with quiet():
        graph = openvino.convert_model(program)
    assert program.example_inputs is not None
    [pixels] = program.example_inputs[0]
    graph.reshape([-1, *pixels.shape[1:]])  # the size, which the conversion forgets
    for port, name in zip(graph.outputs, ("outputs", "answers"), strict=True):
        port.get_tensor().set_names({name})
    return graph


def write_openvino(path: Path, graphs: Mapping[Size, Any], card: Card) -> None:
    """Writes OpenVINO's models, a size each, and the card, as one file; below fp32 the rest of the weights is fp16, but
    where numbers in units come out: their mean and deviation would be rounded too.
    """
    texts, pool, half = {}, _Pool(), card.precision != "fp32" and card.task.kind != "regression"
    with tempfile.TemporaryDirectory() as folder:
        for size, graph in graphs.items():
            place = Path(folder) / f"{graph_name(size)}.xml"
            import_openvino().save_model(graph, place, compress_to_fp16=half)
            root = ElementTree.parse(place).getroot()
            pool.take(root, place.with_suffix(".bin").read_bytes())
            texts[place.name] = ElementTree.tostring(root)

    def write(temporary: Path):
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:
            for name, content in {**texts, "weights.bin": pool.content, "vitreous.json": card.to_json()}.items():
                file.writestr(zipfile.ZipInfo(name), bytes(content) if not isinstance(content, str) else content)

    write_whole(path, write)


class _Pool:
    """Weights of several graphs, equal ones once."""

    def __init__(self):
        self.content, self.places = bytearray(), {}

    def take(self, graph: ElementTree.Element, weights: bytes) -> None:
        """Takes over the weights of a graph, and tells it where they are now."""
        for data in graph.iter("data"):
            if "offset" not in data.attrib:
                continue
            start, size = int(data.attrib["offset"]), int(data.attrib["size"])
            part = weights[start : start + size]
            key = hashlib.blake2b(part).digest()
            if key not in self.places:
                self.content.extend(bytes(-len(self.content) % 64))  # aligned, as OpenVINO's own are
                self.places[key] = len(self.content)
                self.content.extend(part)
            data.attrib["offset"] = str(self.places[key])


def to_onnx(program: ExportedProgram) -> Any:
    """A graph as an ONNX model. Raises `InputError` where onnx and onnxscript are not installed."""
    import_quietly("onnxscript")
    names = {"input_names": ["pixels"], "output_names": ["outputs", "answers"]}
    # Not optimised: ONNX Runtime does that, and onnxscript changed what token performers compute.
    options = {"dynamo": True, "opset_version": OPSET, "external_data": False, "optimize": False, "verbose": False}
    with quiet():
        made = torch.onnx.export(program, **names, **options)
    assert made is not None
    return _tidied(made.model_proto)


def _tidied(model: Any) -> Any:
    """An ONNX model with its constants worked out, by ONNX Runtime's basic passes."""
    onnx, onnxruntime = import_quietly("onnx"), import_quietly("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath, options.log_severity_level = str(path), 3
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        model = onnx.load(path)
    # What the passes leave, and NNCF stumbles over: casts of numbers that are known, and zeros worked out for the bias
    # of convolutions that have none.
    known = {weight.name: onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in known]:
        [kind] = [attribute.i for attribute in node.attribute if attribute.name == "to"]
        numbers = known[node.input[0]].astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, node.output[0]))
        known[node.output[0]] = numbers
        model.graph.node.remove(node)
    spread = [node for node in model.graph.node if node.op_type == "Expand" and node.input[0] in known]
    zeros = {node.output[0] for node in spread if not known[node.input[0]].any()}
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and node.input[2] in zeros:
            del node.input[2]
    used = {name for node in model.graph.node for name in node.input}
    for weight in [weight for weight in model.graph.initializer if weight.name not in used]:
        model.graph.initializer.remove(weight)
    return model


def write_onnx(path: Path, models: Mapping[Size, Any], card: Card) -> None:
    """Writes ONNX models, a size each, and the card, as one file. Raises `InputError` beyond what ONNX can hold."""
    onnx = import_quietly("onnx")
    model = next(iter(models.values())) if len(models) == 1 else branching(models, card)
    if card.precision == "bf16":
        store_as_bf16(model)
    if len(models) == 1:
        for port in (*model.graph.input, *model.graph.output):
            port.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.metadata_props[:]
    classes = json.dumps(list(card.task.names), ensure_ascii=False)
    onnx.helper.set_model_props(model, {"vitreous": card.to_json(), "names": classes})
    if model.ByteSize() >= LARGEST:
        raise InputError(
            f"{path}: {model.ByteSize() / 2**30:.1f} GiB, and ONNX holds 2 in one file; use --format openvino"
        )
    write_whole(path, lambda temporary: temporary.write_bytes(model.SerializeToString()))


def branching(models: Mapping[Size, Any], card: Card) -> Any:
    """One ONNX model that takes pictures of several sizes, and computes what that of their size computes."""
    onnx = import_quietly("onnx")
    helper = onnx.helper
    shared: dict[bytes, str] = {}
    initializers, inner = [], None
    sizes = list(models)
    listed, one = "_or_".join(f"{h}x{w}" for h, w in sizes), helper.make_tensor("one", onnx.TensorProto.INT64, [], [1])
    for number, size in reversed(list(enumerate(sizes))):
        graph = onnx.compose.add_prefix_graph(models[size].graph, f"g{number}/")
        renamed = {}
        for weight in graph.initializer:
            name, weight.name = weight.name, ""
            key = hashlib.blake2b(weight.SerializeToString()).digest()
            if key not in shared:
                shared[key] = f"w{len(shared)}"
                weight.name = shared[key]
                initializers.append(weight)
            renamed[name] = shared[key]
        for node in graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
        shape = helper.make_tensor(f"g{number}/shape", onnx.TensorProto.INT64, [1, 4], [0, *size, card.spec.channels])
        wanted = helper.make_tensor(f"is{number}/size", onnx.TensorProto.INT64, [2], list(size))
        told = [
            helper.make_node("Shape", ["pixels"], [f"is{number}/shape"], start=1, end=3),
            helper.make_node("Equal", [f"is{number}/shape", wanted.name], [f"is{number}/equal"]),
            helper.make_node("Cast", [f"is{number}/equal"], [f"is{number}/whole"], to=onnx.TensorProto.INT64),
            helper.make_node("ReduceMin", [f"is{number}/whole"], [f"is{number}/least"], keepdims=0),
        ]
        # ONNX cannot refuse: of another size, this asks for a row that is not there, and its name says what was due.
        row = [
            helper.make_node("Sub", [one.name, f"is{number}/least"], [f"g{number}/row"]),
            helper.make_node("Gather", [shape.name, f"g{number}/row"], [f"g{number}/known"], name=EXPECTED + listed),
            helper.make_node("Reshape", ["pixels", f"g{number}/known"], [f"g{number}/pixels"]),
        ]
        if inner is None:  # the last: what is of no other size
            inner = helper.make_graph(
                [*told, *row, *graph.node], f"g{number}", [], list(graph.output), [shape, wanted, one]
            )
            continue
        cast = [helper.make_node("Squeeze", [shape.name], [f"g{number}/known"]), row[-1]]
        branch = helper.make_graph([*cast, *graph.node], f"g{number}", [], list(graph.output), [shape])
        nodes = [
            *told,
            helper.make_node("Cast", [f"is{number}/least"], [f"is{number}/yes"], to=onnx.TensorProto.BOOL),
        ]
        names = ("outputs", "answers") if number == 0 else (f"if{number}/outputs", f"if{number}/answers")
        choice = helper.make_node("If", [f"is{number}/yes"], names, then_branch=branch, else_branch=inner)
        outputs = [_tensor(name, ["batch", card.task.outputs]) for name in names]
        inner = helper.make_graph([*nodes, choice], f"if{number}", [], outputs, [wanted])
    assert inner is not None
    kind = models[sizes[0]].graph.input[0].type.tensor_type.elem_type
    pixels = helper.make_tensor_value_info("pixels", kind, ["batch", "height", "width", card.spec.channels])
    graph = helper.make_graph(
        list(inner.node), "vitreous", [pixels], list(inner.output), [*inner.initializer, *initializers]
    )
    first = models[sizes[0]]
    return helper.make_model(graph, opset_imports=first.opset_import, ir_version=first.ir_version)


def store_as_bf16(model: Any) -> None:
    """Halves the size of an ONNX model: its matrices are kept in bf16, and cast to fp32 as they are read.

    ONNX Runtime computes in fp32 on a CPU: what it gives is what bf16 weights give.
    """
    onnx = import_quietly("onnx")
    kept, casts = [], []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2:
            kept.append(weight)
            continue
        numbers = onnx.numpy_helper.to_array(weight)
        name = f"{weight.name}/bf16"
        raw = torch.from_numpy(numbers.copy()).bfloat16().view(torch.int16).numpy().tobytes()
        kept.append(onnx.helper.make_tensor(name, onnx.TensorProto.BFLOAT16, weight.dims, raw, raw=True))
        casts.append(onnx.helper.make_node("Cast", [name], [weight.name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)


def _tensor(name: str, shape: list[Any]) -> Any:
    onnx = import_quietly("onnx")
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _open_onnx(path: Path, threads: int) -> tuple[Card, OpenVINOEngine | ONNXEngine]:
    import_quietly("onnxruntime")
    with open_regular(path) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise InputError(f"{path} is larger than ONNX allows: expected a file that `vitreous export` made")
    text = check_onnx(content, path)
    card = Card.from_json(text, path)
    try:
        engine = ONNXEngine(content, threads)
        shapes = [node.shape for node in (*engine.session.get_inputs(), *engine.session.get_outputs())]
    except Exception as fault:  # ONNX Runtime's own kinds share no other class
        raise InputError(f"{path}: ONNX Runtime cannot read it ({_first_line(fault)})") from None
    _check_numbers(card, [shape[-1] for shape in shapes if shape], path)
    engine.precision = card.precision
    return card, engine


def _open_openvino(path: Path, threads: int) -> tuple[Card, OpenVINOEngine | ONNXEngine]:
    openvino, graphs = import_openvino(), {}
    members = {member.filename for member in check_archive(path, times=1)}
    with _opened(path) as file:
        card = Card.from_json(_member(file, "vitreous.json", path, LARGEST_CARD), path)
        names = {size: f"{graph_name(size)}.xml" for size in card.spec.sizes}
        if strange := sorted(members - {"vitreous.json", "weights.bin", *names.values()}):
            raise InputError(f"{path} holds {strange[0]!r}: expected a file that `vitreous export` made")
        weights = _member(file, "weights.bin", path)
        for size in card.spec.sizes:
            text = _member(file, names[size], path, LARGEST_TEXT)
            check_openvino(text, path)
            try:
                graphs[size] = openvino.Core().read_model(model=text, weights=weights)
                ports = (*graphs[size].inputs, *graphs[size].outputs)
                last = [port.get_partial_shape()[-1].to_string() for port in ports]
            except (RuntimeError, IndexError) as fault:
                raise InputError(f"{path}: OpenVINO cannot read it ({_first_line(fault)})") from None
            _check_numbers(card, last, path)
    return card, OpenVINOEngine(graphs, card.precision, threads)


def _check_numbers(card: Card, last: list[Any], path: Path):
    """The last dimensions of what a graph takes and gives: channels, outputs and answers."""
    expected = [card.spec.channels, card.task.outputs, card.task.outputs]
    if list(map(str, last)) != list(map(str, expected)):
        raise InputError(f"{path}: its card is of another model; expected a file that `vitreous export` made")


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except ZIP_FAULTS as fault:
        raise InputError(f"{path} cannot be read ({fault}): expected a file that `vitreous export` made") from None


def _member(file: zipfile.ZipFile, name: str, path: Path, most: int = 1 << 40) -> bytes:
    try:
        facts = file.getinfo(name)
        packed = facts.compress_type != zipfile.ZIP_STORED or facts.compress_size != facts.file_size
        if packed or facts.file_size > min(most, path.stat().st_size):
            raise InputError(f"{path}: {name} in it is packed or too large; expected what `vitreous export` made")
        return file.read(name)
    except KeyError:
        raise InputError(f"{path} holds no {name}: expected a file that `vitreous export` made") from None
    except ZIP_FAULTS as fault:
        if isinstance(fault, InputError):
            raise
        raise InputError(f"{path}: {name} in it is damaged ({fault})") from None


def _first_line(fault: Exception) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]
