"""OpenVINO's files, .zip: a graph a size, graph-160x120.xml, all with their weights in weights.bin; the card is
vitreous.json.
"""

import hashlib
import importlib
import math
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch.export import ExportedProgram

from vitreous.data.preprocess import Size
from vitreous.errors import InputError
from vitreous.files import write_whole
from vitreous.infer.card import LARGEST_CARD, Card, Port
from vitreous.infer.engines import OpenVINOEngine, import_openvino
from vitreous.infer.foreign import EXPECTED, check_openvino, unreadable
from vitreous.infer.graph import quiet
from vitreous.strict import ZIP_FAULTS, check_archive

LARGEST_TEXT = 16 << 20  # bytes of a graph without its weights
TYPES = {"u8": "uint8", "u16": "uint16", "f32": "float32"}  # of pixels
MOST_IN_A_TENSOR = 1 << 32  # numbers: attention of 65,536 tokens to each other


def to_openvino(program: ExportedProgram) -> Any:
    """A graph as an OpenVINO model. Raises `InputError` where OpenVINO is not installed."""
    openvino = import_openvino()
    assert program.example_inputs is not None
    [pixels] = program.example_inputs[0]
    if pixels.dtype == torch.uint16:  # which OpenVINO knows, but not by PyTorch's name
        names = importlib.import_module("openvino.frontend.pytorch.utils").pt_to_ov_type_map
        names.setdefault("torch.uint16", openvino.Type.u16)
    with quiet():
        graph = openvino.convert_model(program)
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


def graph_name(size: Size) -> str:
    """ "graph-160x120"."""
    return f"graph-{size[0]}x{size[1]}"


def check_shapes(graph: Any, path: Path) -> None:
    """Raises `InputError` where a graph, as OpenVINO understands it, makes larger tensors than any model of ours."""
    for node in graph.get_ops():
        for output in node.outputs():
            shape = output.get_partial_shape()
            sizes = [dim.get_length() for dim in shape if dim.is_static] if shape.rank.is_static else []
            if math.prod(sizes) > MOST_IN_A_TENSOR:
                raise InputError(f"{path} holds a tensor of {math.prod(sizes):,} numbers: {EXPECTED}")


def open_openvino(path: Path, threads: int) -> tuple[Card, OpenVINOEngine]:
    """The card of a file, and the engine that runs it. Raises `InputError` for any other file."""
    openvino, graphs = import_openvino(), {}
    core = openvino.Core()
    members = {member.filename for member in check_archive(path, times=1)}
    with _opened(path) as file:
        card = Card.from_json(_member(file, "vitreous.json", path, LARGEST_CARD), path)
        names = {size: f"{graph_name(size)}.xml" for size in card.spec.sizes}
        if strange := sorted(members - {"vitreous.json", "weights.bin", *names.values()}):
            raise InputError(f"{path} holds {strange[0]!r}: expected a file that `vitreous export` made")
        weights = openvino.Tensor(np.frombuffer(_member(file, "weights.bin", path), np.uint8))  # which graphs share
        for size in card.spec.sizes:
            text = _member(file, names[size], path, LARGEST_TEXT)
            check_openvino(text, path)
            try:
                graphs[size] = core.read_model(model=text, weights=weights)
                check_shapes(graphs[size], path)
                inputs, outputs = map(_ports, (graphs[size].inputs, graphs[size].outputs))
            except RuntimeError as fault:
                raise unreadable(path, "OpenVINO", fault) from None
            card.check(inputs, outputs, path)
    return card, OpenVINOEngine(graphs, card.precision, threads)


def _ports(nodes: Sequence[Any]) -> list[Port]:
    ports = []
    for node in nodes:
        shape, kind = node.get_partial_shape(), node.get_element_type().get_type_name()
        sizes = [one.to_string() for one in shape] if shape.rank.is_static else []
        ports.append(Port(node.get_names(), TYPES.get(kind, ""), sizes))
    return ports


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
