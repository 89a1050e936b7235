"""Engines: pixels as they are stored to the model's outputs, by PyTorch, OpenVINO or ONNX Runtime."""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vitreous.data.preprocess import InputSpec, Size
from vitreous.errors import InputError
from vitreous.model.vit import VisionTransformer
from vitreous.training.lanes import Lanes, lanes_of
from vitreous.training.recipe import choose_precision

ENGINES = ("torch", "compiled", "openvino", "onnxruntime")
PRECISIONS = ("fp32", "bf16", "int8")
BATCHES: tuple[int, ...] = (1, 4, 8)  # pictures that OpenVINO compiles for; a batch is filled up to the next of them
BATCH = 32  # pictures that an engine is given at once, where there are so many
LEAST = 4  # pictures that are worth a lane
FAST = "pip install 'vitreous[fast]'"


class Engine(Protocol):
    """Something that computes a model's outputs. Not more than one thread runs it at a time."""

    name: str  # of `ENGINES`
    precision: str  # of `PRECISIONS`
    batches: tuple[int, ...]  # numbers of pictures that it computes without filling up; (): any

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (B, H, W, C) as `InputSpec.read` makes them, of one of its sizes -> outputs (B, K) in float32: logits,
        or numbers in deviations from the mean. Raises what its library does, of whatever kind.
        """
        ...


class TorchEngine:
    """PyTorch on any device, in fp32 or under bf16 autocast; compiled by torch.compile, or not."""

    def __init__(
        self,
        model: VisionTransformer,
        spec: InputSpec,
        device: torch.device,
        precision: str = "fp32",
        compiled: bool = False,
    ):
        self.name, self.precision = "compiled" if compiled else "torch", precision
        self.spec, self.device = spec, device
        self.model = model.eval().to(device)
        self.batches = tuple(1 << n for n in range(6)) if compiled else ()  # it is compiled anew for every number
        self.forward = compiled_for(self.model, len(self.batches) * len(spec.sizes)) if compiled else self.model
        self.lanes = Lanes(1 if compiled else torch.get_num_threads(), device)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """(B, H, W, C) -> (B, K)."""
        count = len(pixels)
        if self.batches:
            pixels = filled(pixels, 1 << (count - 1).bit_length())
        split = np.array_split(pixels, self.lanes.count) if count >= LEAST * self.lanes.count else [pixels]
        return np.concatenate(self.lanes.map(self._run, split) if len(split) > 1 else [self._run(pixels)])[:count]

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        bf16 = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with torch.inference_mode(), bf16:
            normalised = self.spec.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device))
            return self.forward(normalised).float().cpu().numpy()


def compiled_for(model: VisionTransformer, shapes: int) -> Callable[[Tensor], Tensor]:
    """A model that is compiled anew for every shape of images, so many, and in every precision.

    PyTorch by itself gives up after eight, and says so in a log alone.
    """
    from torch._dynamo import config  # a second that only this takes

    forward = torch.compile(model, dynamic=False)

    def run(images: Tensor) -> Tensor:
        with config.patch(recompile_limit=len(PRECISIONS) * shapes):  # a setting of each thread
            return forward(images)

    return run


class OpenVINOEngine:
    """OpenVINO on a CPU: a graph a size of pictures, compiled for a few sizes of batches when they first come.

    Up to 8 pictures are computed by all threads together, which is the sooner answer. More go in pieces of 8 to
    streams, each with its own share of the threads, which is the most answers a second.
    """

    name = "openvino"

    def __init__(self, graphs: Mapping[Size, Any], precision: str, threads: int):
        self.precision, self.batches, self.streams = precision, BATCHES, lanes_of(threads)
        core = import_openvino().Core()
        options = openvino_options(core, precision, threads)

        @lru_cache(maxsize=(len(BATCHES) + 1) * len(graphs))
        def requests(size: Size, batch: int, streams: int) -> list[Any]:
            graph = graphs[size].clone()
            graph.reshape([batch, *list(graph.inputs[0].get_partial_shape())[1:]])
            compiled = core.compile_model(graph, "CPU", {**options, "NUM_STREAMS": streams})
            return [compiled.create_infer_request() for _ in range(streams)]

        self._requests = requests

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """(B, H, W, C) -> (B, K)."""
        return self.both(pixels)[0]

    def both(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, H, W, C) -> outputs, and calibrated answers: probabilities, or numbers in their units; both (B, K)."""
        batch = next((size for size in BATCHES if size >= len(pixels)), BATCHES[-1])
        requests = self._requests(pixels.shape[1:3], batch, self.streams if len(pixels) > batch else 1)
        pieces = [pixels[start : start + batch] for start in range(0, len(pixels), batch)]
        found: list[list[np.ndarray]] = []
        for number, piece in enumerate([*pieces, *[None] * len(requests)]):
            request = requests[number % len(requests)]
            if 0 <= number - len(requests) < len(pieces):
                request.wait()
                count = len(pieces[number - len(requests)])
                found.append([request.get_output_tensor(i).data[:count].copy() for i in range(2)])
            if piece is not None:
                request.start_async([np.ascontiguousarray(filled(piece, batch))], share_inputs=True)
        outputs, answers = (np.concatenate(some) for some in zip(*found, strict=True))
        return outputs, answers


class ONNXEngine:
    """ONNX Runtime on a CPU: one file for all sizes."""

    name = "onnxruntime"

    def __init__(self, model: bytes, threads: int, precision: str = "fp32"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.precision, self.batches = precision, ()
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """(B, H, W, C) -> (B, K)."""
        return self.both(pixels)[0]

    def both(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, H, W, C) -> outputs, and calibrated answers: probabilities, or numbers in their units; both (B, K)."""
        outputs, answers = self.session.run(["outputs", "answers"], {"pixels": np.ascontiguousarray(pixels)})
        return np.asarray(outputs), np.asarray(answers)


def openvino_options(core: Any, precision: str, threads: int) -> dict[str, Any]:
    """How OpenVINO compiles a graph of a precision: below fp32 it computes in bf16, where the CPU can."""
    reduced = precision != "fp32" and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if reduced else "f32",
        "ENABLE_CPU_PINNING": False,  # decoding needs the cores too
    }


def filled(pixels: np.ndarray, batch: int) -> np.ndarray:
    """(n, …) -> (batch, …), the last picture repeated."""
    missing = batch - len(pixels)
    return pixels if not missing else np.concatenate((pixels, pixels[-1:].repeat(missing, 0)))


def installed(engine: str) -> bool:
    """Whether an engine can be used here."""
    return engine in ("torch", "compiled") or importlib.util.find_spec(engine) is not None


def import_openvino() -> Any:
    """OpenVINO, without its telemetry. Raises `InputError` where it is not installed."""
    return import_quietly("openvino")


def import_quietly(name: str) -> Any:
    """A package of the `fast` extra; what OpenVINO and NNCF would tell their makers of its use stays here.

    Both do without the package that would send it. Raises `InputError` where `name` is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    try:
        return importlib.import_module(name)
    except ImportError as fault:
        raise InputError(f"{name} is not installed here ({fault}): {FAST}") from None


def candidates(device: torch.device, engine: str = "auto", precision: str = "auto") -> list[tuple[str, str]]:
    """Engines and precisions that may be tried on a device, the likely fastest first. Raises `InputError` for none."""
    for name, value, known in (("engine", engine, ENGINES), ("precision", precision, PRECISIONS)):
        if value not in ("auto", *known):
            raise InputError(f"--{name} {value}: expected auto, {', '.join(known)}")
    if engine != "auto" and not installed(engine):
        raise InputError(f"--engine {engine}: {engine} is not installed here: {FAST}")
    bf16 = choose_precision("auto", device) == "bf16"
    if device.type == "cpu":
        exported = [(name, kind) for name in ("openvino", "onnxruntime") for kind in ("int8", "bf16", "fp32")]
        known = [*exported, *(("torch", kind) for kind in ("bf16", "fp32")), ("compiled", "bf16"), ("compiled", "fp32")]
        usual = [("openvino", "int8"), ("openvino", "bf16"), ("openvino", "fp32")]
        if not installed("openvino"):
            usual = [("onnxruntime", "fp32")]
        usual += [("torch", "bf16"), ("torch", "fp32")]
    else:
        known = [(name, kind) for name in ("compiled", "torch") for kind in ("bf16", "fp32")]
        usual = known
    asked = [
        (name, kind)
        for name, kind in (usual if engine == precision == "auto" else known)
        if engine in ("auto", name)
        and precision in ("auto", kind)
        and installed(name)
        and (bf16 or kind != "bf16" or precision == "bf16")
        and (engine == "compiled" or name != "compiled" or device.type != "cpu")
    ]
    if not asked:
        raise InputError(
            f"--engine {engine} --precision {precision}: not to be had on {device.type}; "
            + ("int8 takes openvino or onnxruntime on a CPU: " + FAST if precision == "int8" else "expected auto, auto")
        )
    return asked


def describe(engine: Engine) -> str:
    """ "openvino, int8"."""
    return f"{engine.name}, {engine.precision}"
