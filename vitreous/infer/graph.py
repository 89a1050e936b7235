"""The graph that answers by itself: pixels as they are stored -> outputs, and answers as people read them."""

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vitreous.calibration import Calibration
from vitreous.data.preprocess import InputSpec, Size
from vitreous.data.targets import Task
from vitreous.infer.surgery import operate
from vitreous.model.position import Grid
from vitreous.model.vit import VisionTransformer

MOST_AT_ONCE = 4096  # pictures in a batch


class Answering(nn.Module):
    """A model with what comes before it and after it: normalisation, and calibrated probabilities or units."""

    factor: Tensor
    shift: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, model: VisionTransformer, spec: InputSpec, task: Task, calibration: Calibration):
        super().__init__()
        self.model, self.kind = model, task.kind
        std = torch.tensor(spec.std).view(-1, 1, 1)
        number = task.kind == "regression"
        self.register_buffer("factor", 1 / (spec.scale * std))
        self.register_buffer("shift", torch.tensor(spec.mean).view(-1, 1, 1) / std)
        self.register_buffer("scale", torch.tensor(task.std if number else 1 / calibration.temperature))
        self.register_buffer("offset", torch.tensor(task.mean if number else 0.0))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, C) as `InputSpec.read` makes them -> outputs and answers, (B, K) both."""
        image = pixels.float().permute(0, 3, 1, 2)  # cast first: runtimes have few operators for uint16
        outputs = self.model(image * self.factor - self.shift).float()
        answers = outputs * self.scale + self.offset
        if self.kind == "classification":
            answers = answers.softmax(-1)
        elif self.kind == "multilabel":
            answers = answers.sigmoid()
        return outputs, answers


def export_graphs(
    model: VisionTransformer, spec: InputSpec, task: Task, calibration: Calibration
) -> Mapping[Size, ExportedProgram]:
    """A graph a size of the spec, each for any number of pictures.

    One graph for all sizes would have to work out every position embedding from symbols, learned tables and how they
    are resampled among them; these are worked out here, by the code that trained them.
    """
    graph = Answering(model, spec, task, calibration).cpu().eval()
    batch, graphs = Dim("batch", min=1, max=MOST_AT_ONCE), {}
    with torch.no_grad(), quiet():
        for size in spec.sizes:
            sample = torch.zeros(2, *size, spec.channels, dtype=getattr(torch, spec.depth))
            fixed = with_fixed_tables(graph, model.config.grid(*size))
            operate(fixed.model)
            graphs[size] = torch.export.export(fixed, (sample,), dynamic_shapes={"pixels": {0: batch}})
    return graphs


class FixedTable(nn.Module):
    """A learned position table as it is on one grid."""

    table: Tensor

    def __init__(self, table: Tensor):
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, grid: Grid) -> Tensor:
        """What the learned one gives there."""
        return self.table


def with_fixed_tables(graph: Answering, grid: Grid) -> Answering:
    """A copy for pictures of one grid, that shares the other weights."""
    graph = copy.deepcopy(graph, {id(weight): weight for weight in graph.parameters()})
    position = graph.model.position
    position.tables = nn.ModuleList(FixedTable(table(grid).clone()) for table in position.tables)
    return graph


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters say to their own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
