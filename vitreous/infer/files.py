"""Exported files: the graphs of a model in one file with a card that says what they take and give, in two formats."""

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from vitreous.data.preprocess import Size
from vitreous.errors import InputError
from vitreous.infer.card import Card
from vitreous.infer.engines import ONNXEngine, OpenVINOEngine
from vitreous.infer.onnx_files import open_onnx, to_onnx, write_onnx
from vitreous.infer.openvino_files import open_openvino, to_openvino, write_openvino


@dataclass(frozen=True)
class Format:
    """A format of exported files, and how they are made and read."""

    name: str
    suffix: str
    engine: str  # that runs them, of `ENGINES`
    convert: Callable[[ExportedProgram], Any]  # to a graph of this format
    copy: Callable[[Any], Any]  # of such a graph
    write: Callable[[Path, Mapping[Size, Any], Card], None]  # graphs, a size each, to a file
    open: Callable[[Path, int], tuple[Card, OpenVINOEngine | ONNXEngine]]  # with so many threads


FORMATS = (
    Format("onnx", ".onnx", "onnxruntime", to_onnx, copy.deepcopy, write_onnx, open_onnx),
    Format("openvino", ".zip", "openvino", to_openvino, lambda graph: graph.clone(), write_openvino, open_openvino),
)


def format_of(path: str | os.PathLike) -> Format | None:
    """The format of an exported file, by the ending of its name; None where it is none."""
    return next((format for format in FORMATS if format.suffix == Path(path).suffix.lower()), None)


def open_export(path: str | os.PathLike, threads: int) -> tuple[Card, OpenVINOEngine | ONNXEngine]:
    """The card of an exported file, and the engine that runs it.

    Raises `InputError` where it is none or damaged, or what runs it is not installed.
    """
    path, format = Path(path), format_of(path)
    if format is None or not path.exists():
        what = "is no exported file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}: expected a run directory, or a file that `vitreous export` made")
    return format.open(path, threads)
