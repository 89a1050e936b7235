"""Graphs in exported files, looked at before a runtime sees them: operators that compute, and nothing else.

A graph may hold what tensors are computed by. It may not name another file, bring functions or operators of its own, or
loop. A size that stands as a whole number in an ONNX file may not be large; OpenVINO tells the sizes that it knows once
it has read a graph (`check_shapes`). Sizes that are worked out, as those that follow the number of pictures, and the
results of products are not bounded here.
ONNX is walked as protobuf's bytes, OpenVINO's XML by its start tags: neither is built in memory, so that a file costs
no more than its size.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

from vitreous.errors import InputError

DEEP, MOST_PARTS = 100, 600_000  # how deep messages stand in each other, and how many fields they have in all
MOST_NUMBERS = 1 << 28  # that an operator may make of the numbers in its inputs
EXPECTED = "expected a file that `vitreous export` made"
SMALL = 64  # numbers in a tensor that tell of a size

# Operators whose results are as large as their inputs allow, of ONNX and of OpenVINO.
ONNX_NAMES = """
    Abs Acos Add And ArgMax ArgMin Asin Atan Attention AveragePool BatchNormalization Cast CastLike Ceil Clip Concat
    Constant Conv ConvInteger Cos CumSum DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp
    Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
    GroupNormalization HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LayerNormalization
    LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization MatMul MatMulInteger Max MaxPool Mean Min Mish Mod Mul Neg
    NonZero Not Or PRelu Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape
    RotaryEmbedding Round ScatterElements ScatterND Selu SequenceAt SequenceConstruct Shape Sigmoid Sign Sin Size Slice
    Softmax Softplus Softsign Split SplitToSequence Sqrt Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu
    TopK Transpose Trilu Unsqueeze Where Xor
"""
MAKING = {"ConstantOfShape", "Expand", "Pad", "Range", "Tile"}  # that make as much as a number in an input says
OPENVINO_NAMES = """
    Abs Add AvgPool BatchNormInference Ceiling Clamp Concat Const Convert ConvertLike Convolution Cos CumSum Divide
    Einsum Elu Equal Erf Exp FakeConvert FakeQuantize Floor FloorMod Gather GatherElements GatherND Gelu Greater
    GreaterEqual GroupConvolution GroupNormalization HSigmoid HSwish Less LessEqual Log LogSoftmax LogicalAnd LogicalNot
    LogicalOr LogicalXor MVN MatMul MaxPool Maximum Minimum Mish Mod Multiply Negative NonZero NormalizeL2 NotEqual
    PRelu Parameter Power RMS ReLU ReduceL1 ReduceL2 ReduceLogicalAnd ReduceLogicalOr ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum Relu Reshape Result RoPE Round ScaledDotProductAttention ScatterElementsUpdate ScatterNDUpdate
    ScatterUpdate Select ShapeOf Sigmoid Sign Sin SoftMax SoftPlus Softmax Split Sqrt SquaredDifference Squeeze
    StridedSlice Subtract Swish Tan Tanh TopK Transpose Unsqueeze VariadicSplit
    Broadcast Pad Range Slice Tile
"""

COMPUTING, OPENVINO = frozenset(ONNX_NAMES.split()), frozenset(OPENVINO_NAMES.split())

# Fields of ONNX's messages that are walked into, by the message; those whose numbers are kept; and those not allowed.
INTO = {
    "model": {7: "graph", 8: "opset", 14: "property"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
REFUSED = {
    ("model", 20): "a training graph",
    ("model", 25): "functions of its own",
    ("model", 26): "plans for several devices",
    ("attribute", 21): "attributes of a function",
    ("tensor", 13): "weights in another file",
}


def check_onnx(content: bytes, path: Path) -> str:
    """The card in an ONNX file's metadata. Raises `InputError` where the file has none, or holds more than a graph."""
    cards: list[str] = []
    try:
        walk = _Walk(memoryview(content), cards)
        walk.message("model", 0, len(content), 0)
        walk.check_sizes()
    except _OddError as fault:
        raise InputError(f"{path} holds {fault}: {EXPECTED}") from None
    except (IndexError, ValueError, TypeError, struct.error):  # TypeError: a field of another wire type than its own
        raise InputError(f"{path} is damaged, or no ONNX file: {EXPECTED}") from None
    if len(cards) != 1:
        raise InputError(f"{path} has {'several cards' if cards else 'no card'}: {EXPECTED}")
    return cards[0]


class _OddError(Exception):
    """What a file holds and may not."""


class _Walk:
    """Goes through the bytes of an ONNX model."""

    def __init__(self, content: memoryview, cards: list[str]):
        self.content, self.cards, self.left = content, cards, MOST_PARTS
        self.made: list[tuple[str, list[str]]] = []  # operators that make tensors, and their inputs
        self.known: dict[str, list[int]] = {}  # small tensors of whole numbers

    def message(self, kind: str, start: int, end: int, depth: int) -> dict[Any, Any]:
        """Walks a message and all in it; returns its fields of text and numbers that are of use."""
        if depth > DEEP:
            raise _OddError("graphs too deep in each other")
        values: dict[Any, Any] = {}
        for number, value in self.fields(start, end):
            if (kind, number) in REFUSED:
                raise _OddError(REFUSED[kind, number])
            if inner := INTO.get(kind, {}).get(number):
                if not isinstance(value, tuple):
                    raise ValueError
                found = self.message(inner, value[0], value[1], depth + 1)
                if kind == "node" and found.get("name", "").startswith("value"):
                    values["constant"] = found.get("numbers")
                if inner == "tensor" and kind == "attribute":
                    values["numbers"] = found.get("numbers")
            else:
                values.setdefault(number, []).append(value)
        return getattr(self, f"_{kind}", lambda values: values)(values)

    def fields(self, at: int, end: int) -> Iterator[tuple[int, Any]]:
        """The fields of a message: numbers, or (start, end) of what is longer."""
        while at < end:
            tag, at = self.varint(at, end)
            number, wire = tag >> 3, tag & 7
            if wire == 0:
                value, at = self.varint(at, end)
            elif wire == 2:
                length, at = self.varint(at, end)
                value, at = (at, at + length), at + length
            elif wire in (1, 5):
                value, at = None, at + (8 if wire == 1 else 4)
            else:
                raise ValueError  # groups, which protobuf gave up
            if at > end or not number:
                raise ValueError
            self.left -= 1
            if self.left < 0:
                raise _OddError("too many parts")
            yield number, value

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """A number in steps of seven bits, and where it ends."""
        value = shift = 0
        while at < end and shift < 70:
            byte = self.content[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value, at
        raise ValueError

    def text(self, place: Any) -> str:
        """The text of a field."""
        if not isinstance(place, tuple):
            raise ValueError
        return bytes(self.content[slice(*place)]).decode("utf-8")

    def _property(self, values: dict[int, Any]) -> dict[int, Any]:
        if [self.text(key) for key in values.get(1, [])] == ["vitreous"]:
            self.cards += [self.text(value) for value in values.get(2, [])]
        return values

    def _node(self, values: dict[Any, Any]) -> dict[int, Any]:
        kind, domain = ("".join(self.text(part) for part in values.get(number, [])) for number in (4, 7))
        if domain not in ("", "ai.onnx") or kind not in COMPUTING | MAKING:
            raise _OddError(f"the operator {domain[:40]}{'.' * bool(domain)}{kind[:40]}")
        if kind in MAKING:
            self.made.append((kind, [self.text(name) for name in values.get(1, [])]))
        if kind == "Constant" and values.get("constant"):
            for name in map(self.text, values.get(2, [])):
                self.know(name, values["constant"])
        return values

    def _attribute(self, values: dict[Any, Any]) -> dict[Any, Any]:
        own = self.numbers([*values.get(3, []), *values.get(8, [])])
        return {"name": "".join(map(self.text, values.get(1, []))), "numbers": own or values.get("numbers")}

    def _tensor(self, values: dict[Any, Any]) -> dict[Any, Any]:
        if any(values.get(14, [])):
            raise _OddError("weights in another file")
        dims, kind = self.numbers(values.get(1, [])), (values.get(2) or [0])[-1]
        size = self.width(kind) * math.prod(dims)
        stored = sum(end - start for start, end in values.get(9, []))
        if stored and size and stored != size:
            raise _OddError("a tensor of another size than its numbers")
        typed = any(values.get(number) for number in (4, 5, 6, 7, 10, 11))
        if size > 8 * SMALL and not stored and not typed:
            raise _OddError("a tensor without its numbers")
        numbers = []
        if kind == 7 and math.prod(dims) <= SMALL:
            numbers = self.numbers(values.get(7, []))
            for start, end in values.get(9, []):
                numbers += [n for (n,) in struct.iter_unpack("<q", bytes(self.content[start:end]))]
        for name in map(self.text, values.get(8, [])):
            self.know(name, numbers)
        return {"numbers": numbers}

    def know(self, name: str, numbers: list[int]) -> None:
        """Keeps the numbers of a tensor; of several with one name, in graphs inside each other, the largest."""
        self.known[name] = max(self.known.get(name, []), numbers, key=_size)

    def numbers(self, values: list[Any]) -> list[int]:
        """Whole numbers, one by one or packed."""
        found: list[int] = []
        for value in values:
            if not isinstance(value, tuple):
                found.append(value)
                continue
            at, end = value
            if end - at > 10 * SMALL:
                raise ValueError
            while at < end:
                number, at = self.varint(at, end)
                found.append(number)
        return [number - (1 << 64) if number >> 63 else number for number in found]

    @staticmethod
    def width(kind: int) -> int:
        """Bytes of a number of ONNX's type; 0 where that is not as simple."""
        return {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}.get(kind, 0)

    def check_sizes(self) -> None:
        """What operators make of numbers that the file itself holds is bounded."""
        for kind, inputs in self.made:
            for name in inputs[1:] if kind in ("Expand", "Pad", "Tile") else inputs:
                if _size(self.known.get(name, [])) > MOST_NUMBERS:
                    raise _OddError(f"the operator {kind} with a result of more than {MOST_NUMBERS:,} numbers")


def _size(numbers: list[int]) -> int:
    return math.prod(max(1, abs(number)) for number in numbers)


def check_openvino(text: bytes, path: Path) -> None:
    """Raises `InputError` where the XML of a graph holds more than operators that compute."""
    left = MOST_PARTS

    def refuse(*_: Any) -> NoReturn:
        raise _OddError("a document type or entities")

    def start(tag: str, fields: dict[str, str]) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _OddError("too many elements")
        if tag == "layer":
            kind, version = fields.get("type", ""), fields.get("version", "opset1")
            if kind not in OPENVINO or not version.startswith("opset"):
                raise _OddError(f"the operator {version[:40]}.{kind[:40]}")
        if tag == "data" and "size" in fields and len(fields["size"]) > 12:
            raise _OddError("a tensor larger than 10¹² bytes")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler = start
    try:
        parser.Parse(text, True)
    except _OddError as fault:
        raise InputError(f"{path} holds {fault}: {EXPECTED}") from None
    except (expat.ExpatError, ValueError) as fault:
        raise InputError(f"{path}: its graph is damaged ({fault}): {EXPECTED}") from None


def unreadable(path: Path, runtime: str, fault: Exception) -> InputError:
    """What a runtime says against a file that passed the checks: its first line."""
    why = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
    return InputError(f"{path}: {runtime} cannot read it ({why})")
