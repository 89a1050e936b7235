"""ONNX files: one model with `pixels` in, `outputs` and `answers` out; the card is JSON in its metadata, "vitreous".

Where there are several sizes of pictures it branches by size; weights that the branches share are there once.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from vitreous.data.preprocess import Size
from vitreous.errors import InputError
from vitreous.files import write_whole
from vitreous.infer.card import Card, Port
from vitreous.infer.engines import ONNXEngine, import_quietly
from vitreous.infer.foreign import check_onnx, unreadable
from vitreous.infer.graph import quiet
from vitreous.strict import open_regular

WRONG_SIZE = "expected_pixels_of_"  # the name of the node that fails where they are of no such size, and then these
LARGEST_FILE = 2 << 30  # bytes of an ONNX file: protobuf's own limit
TYPES = {"tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(float)": "float32"}  # of pixels
OPSET = 20  # of ONNX: the first whose Gelu is an operator


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


def check_fits(model: Any) -> None:
    """Raises `InputError` where a model is larger than ONNX can hold in one file."""
    if model.ByteSize() >= LARGEST_FILE:
        raise InputError(f"{model.ByteSize() / 2**30:.1f} GiB, and ONNX holds 2 in one file; use --format openvino")


def _tidied(model: Any) -> Any:
    """An ONNX model with its constants worked out, by ONNX Runtime's basic passes."""
    check_fits(model)
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
    check_fits(model)
    write_whole(path, lambda temporary: temporary.write_bytes(model.SerializeToString()))


def branching(models: Mapping[Size, Any], card: Card) -> Any:
    """One ONNX model that takes pictures of several sizes, and computes what that of their size computes.

    An If has two branches, so they lie in each other: the first size is outermost, the last innermost.
    """
    onnx = import_quietly("onnx")
    graphs = [onnx.compose.add_prefix_graph(model.graph, f"g{n}/") for n, model in enumerate(models.values())]
    weights = _share_weights(graphs)
    *others, last = zip(range(len(graphs)), models, graphs, strict=True)
    nested = _last_branch(*last, card, list(models))
    for number, size, graph in reversed(others):
        nested = _choice(number, size, graph, card, nested)
    first = next(iter(models.values()))
    kind = first.graph.input[0].type.tensor_type.elem_type
    pixels = onnx.helper.make_tensor_value_info("pixels", kind, ["batch", "height", "width", card.spec.channels])
    initializers = [*nested.initializer, *weights]
    graph = onnx.helper.make_graph(list(nested.node), "vitreous", [pixels], list(nested.output), initializers)
    return onnx.helper.make_model(graph, opset_imports=first.opset_import, ir_version=first.ir_version)


def _share_weights(graphs: Sequence[Any]) -> list[Any]:
    """Renames the weights of graphs so that equal ones have one name; returns them, each once."""
    shared: dict[bytes, Any] = {}
    for graph in graphs:
        renamed = {}
        for weight in graph.initializer:
            name, weight.name = weight.name, ""
            key = hashlib.blake2b(weight.SerializeToString()).digest()
            if key not in shared:
                weight.name = f"w{len(shared)}"
                shared[key] = weight
            renamed[name] = shared[key].name
        for node in graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
    return list(shared.values())


def _last_branch(number: int, size: Size, graph: Any, card: Card, sizes: Sequence[Size]) -> Any:
    """A graph of the pictures of the last size.

    ONNX cannot refuse: of another size, this asks for a row that is not there, in a node whose name says what was due.
    """
    onnx = import_quietly("onnx")
    helper = onnx.helper
    expected = WRONG_SIZE + "_or_".join(f"{h}x{w}" for h, w in sizes)
    comparison, wanted = _comparison(number, size)
    shape, reshape = _reshape(number, size, card)
    one = helper.make_tensor("one", onnx.TensorProto.INT64, [], [1])
    row = [
        helper.make_node("Sub", [one.name, f"is{number}/least"], [f"g{number}/row"]),
        helper.make_node("Gather", [shape.name, f"g{number}/row"], [f"g{number}/known"], name=expected),
    ]
    nodes = [*comparison, *row, reshape, *graph.node]
    return helper.make_graph(nodes, f"g{number}", [], list(graph.output), [shape, wanted, one])


def _choice(number: int, size: Size, graph: Any, card: Card, other: Any) -> Any:
    """A graph of which the pictures of this size take one branch, all others the other."""
    onnx = import_quietly("onnx")
    helper = onnx.helper
    comparison, wanted = _comparison(number, size)
    shape, reshape = _reshape(number, size, card)
    squeeze = helper.make_node("Squeeze", [shape.name], [f"g{number}/known"])
    branch = helper.make_graph([squeeze, reshape, *graph.node], f"g{number}", [], list(graph.output), [shape])
    yes = helper.make_node("Cast", [f"is{number}/least"], [f"is{number}/yes"], to=onnx.TensorProto.BOOL)
    names = ("outputs", "answers") if number == 0 else (f"if{number}/outputs", f"if{number}/answers")
    choice = helper.make_node("If", [f"is{number}/yes"], names, then_branch=branch, else_branch=other)
    outputs = [_tensor(name, ["batch", card.task.outputs]) for name in names]
    return helper.make_graph([*comparison, yes, choice], f"if{number}", [], outputs, [wanted])


def _comparison(number: int, size: Size) -> tuple[list[Any], Any]:
    """Nodes that tell whether pixels are of a size, is{number}/least being 1 or 0, and the constant they take."""
    onnx = import_quietly("onnx")
    node, wanted = onnx.helper.make_node, onnx.helper.make_tensor(f"is{number}/size", onnx.TensorProto.INT64, [2], size)
    nodes = [
        node("Shape", ["pixels"], [f"is{number}/shape"], start=1, end=3),
        node("Equal", [f"is{number}/shape", wanted.name], [f"is{number}/equal"]),
        node("Cast", [f"is{number}/equal"], [f"is{number}/whole"], to=onnx.TensorProto.INT64),
        node("ReduceMin", [f"is{number}/whole"], [f"is{number}/least"], keepdims=0),
    ]
    return nodes, wanted


def _reshape(number: int, size: Size, card: Card) -> tuple[Any, Any]:
    """The shape of pixels of a size, a constant of one row, and the node that gives pixels that of g{number}/known."""
    onnx = import_quietly("onnx")
    shape = onnx.helper.make_tensor(f"g{number}/shape", onnx.TensorProto.INT64, [1, 4], [0, *size, card.spec.channels])
    return shape, onnx.helper.make_node("Reshape", ["pixels", f"g{number}/known"], [f"g{number}/pixels"])


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


def open_onnx(path: Path, threads: int) -> tuple[Card, ONNXEngine]:
    """The card of a file, and the engine that runs it. Raises `InputError` for any other file."""
    import_quietly("onnxruntime")
    with open_regular(path) as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise InputError(f"{path} is larger than ONNX allows: expected a file that `vitreous export` made")
    text = check_onnx(content, path)
    card = Card.from_json(text, path)
    try:
        engine = ONNXEngine(content, threads, card.precision)
        inputs, outputs = map(_ports, (engine.session.get_inputs(), engine.session.get_outputs()))
    except Exception as fault:  # ONNX Runtime's own kinds share no other class
        raise unreadable(path, "ONNX Runtime", fault) from None
    card.check(inputs, outputs, path)
    return card, engine


def _ports(nodes: Sequence[Any]) -> list[Port]:
    return [Port({node.name}, TYPES.get(node.type, ""), node.shape) for node in nodes]
