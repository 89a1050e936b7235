"""Pictures a second of every engine, beside what a user has otherwise and what the machine's matrix products allow.

    python benchmarks/inference.py --peers ../peers/bin/python --t2t ../T2T-ViT
    python benchmarks/inference.py --rounds 0 --checkpoint RUN TEST_PICTURES

ViT-S/16 at 224² with 10 outputs and random weights, in a run directory whose pictures are drawn, so that int8 is
calibrated and the engine chosen as for a user; by speed alone, as the answers of random weights say nothing. An engine
takes pixels as they are stored; a peer gets them normalised. --peers is the Python of an environment with timm.
--t2t is a folder with the public repository of the T2T-ViT paper (its `models/`): that code in fp32 stands beside
T2T-ViT_t-14, at the batch where it is faster.

All take turns for some rounds, the peers in a fresh process each; rates are medians, ratios medians of those within a
round. The GEMM bound of a precision is the rate of the products with weights in the encoder blocks, at batch 16, by the
faster of PyTorch and OpenVINO, which in int8 is OpenVINO; an engine's rate counts all products of the model. Where the
chosen engine stays far from it, and with --profile, OpenVINO's own account of its time is printed.

--checkpoint also compares the accuracy of a trained run on labelled pictures, in PyTorch's fp32 and as `--precision
auto` has it, or with --int8 as OpenVINO has it in int8, whatever it loses. Exits with 1 where a figure is not held.
"""

import argparse
import importlib
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peers.inference import rate
from predict import CLASSES, fresh_run
from train_speed import draw_pictures

from vitreous.calibration import headline
from vitreous.infer.agreement import Bar, compare
from vitreous.infer.build import build, folder_of
from vitreous.infer.engines import describe, import_openvino, openvino_options
from vitreous.infer.evaluation import evaluate
from vitreous.infer.judge import validation_judge
from vitreous.infer.openvino_files import graph_name
from vitreous.infer.predictor import AnswerConfig, Predictor, load
from vitreous.model.config import ModelConfig
from vitreous.model.vit import count_macs

ROOT = Path(__file__).resolve().parent.parent
ENGINES = tuple(("openvino", kind) for kind in ("fp32", "bf16", "int8"))
OTHERS = (("torch", "fp32"), ("torch", "bf16"), ("onnxruntime", "fp32"))
FULL = 16  # pictures in a batch
PAPER = (16, 4)  # pictures in a batch of the paper's code
AUTO, BF16, ALONE = 7.5, 4.6, 5.5  # times timm in fp32: the chosen engine, bf16, and the chosen engine at batch 1
T2T = {"bf16": 6.0, "int8": 7.0}  # times the paper's code in fp32
BOUND = 70.0  # per cent of the GEMM bound
LOSS = 0.3  # points of accuracy
PROFILED = 10  # batches
OPEN = Bar(max_loss=100.0, max_shift=1.0)  # an engine is taken whatever it loses

Ways = dict[str, Callable[[], float]]  # a name, and what measures its rate


def silent(text: str) -> None:
    """Says nothing."""


def fresh_predictor(model: str, photos: Sequence[Path], folder: Path, threads: int) -> Predictor:
    """Of a run directory that is made in the folder, with random weights."""
    torch.manual_seed(0)
    folder.mkdir()
    predictor = load(fresh_run(model, photos, folder), device="cpu", bar=OPEN)
    predictor.threads = threads
    return predictor


def engine_ways(
    predictor: Predictor, engines: Sequence[tuple[str, str]], batches: Sequence[int], seconds: float
) -> Ways:
    """Pictures a second of engines, with batches of noise."""
    shape = (max(batches), *predictor.spec.sizes[0], predictor.spec.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    ways: Ways = {}
    for name, precision in engines:
        engine = build(predictor, name, precision, partial(validation_judge, predictor, None))
        for batch in batches:
            run = partial(engine.run, pixels[:batch])
            ways[f"{describe(engine)}, batch {batch}"] = partial(rate, run, batch, seconds)
    return ways


def peer_rates(title: str, python: str, words: Sequence[object], options: argparse.Namespace) -> dict[str, float]:
    """Pictures a second of a peer, by variant, from a fresh process."""
    command = [python, ROOT / "benchmarks" / "peers" / "inference.py", *words]
    command += ["--threads", options.threads, "--seconds", options.seconds]
    said = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
    return {f"{title}, {name}": float(found) for name, found in (line.split("\t") for line in said.splitlines())}


@dataclass(frozen=True)
class Products:
    """The products with weights in the encoder blocks of a model: queries, keys and values, projection, and the MLP."""

    rows: int  # tokens in a batch
    widths: tuple[tuple[int, int], ...]  # (K, N) of each: (rows, K) times (K, N)

    @classmethod
    def of(cls, config: ModelConfig, batch: int) -> "Products":
        """Those of a batch."""
        gh, gw = config.grid(*config.image_size)
        D, hidden = config.width, round(config.width * config.mlp_ratio)
        block = ((D, 3 * D), (D, D), (D, hidden), (hidden, D))
        return cls(batch * (config.prefix + gh * gw), block * config.depth)

    @property
    def gflop(self) -> float:
        """Of all of them."""
        return sum(2e-9 * self.rows * K * N for K, N in self.widths)

    def ways(self, threads: int, seconds: float) -> Ways:
        """GFLOP a second, by precision and library."""
        ways: Ways = {}
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            ways[f"GEMM, {precision}, PyTorch"] = partial(rate, self._in_torch(dtype), self.gflop, seconds)
        for precision in ("fp32", "bf16", "int8"):
            request = compiled(self._chain(precision), precision, threads)
            ways[f"GEMM, {precision}, OpenVINO"] = partial(rate, request.infer, self.gflop, seconds)
        return ways

    def _in_torch(self, dtype: torch.dtype) -> Callable[[], None]:
        """What computes them, one after the other."""
        inputs = {K: torch.randn(self.rows, K).to(dtype) for K, _ in self.widths}
        weights = [(torch.randn(N, K) / K**0.5).to(dtype) for K, N in self.widths]

        def run() -> None:
            with torch.inference_mode():
                for weight in weights:
                    F.linear(inputs[weight.shape[1]], weight)

        return run

    def _chain(self, precision: str) -> Any:
        """An OpenVINO model that computes each from what the one before gave, cut where it is too wide.

        int8 is written as exporters write it: weights with a scale a column, and values rounded to 256 steps between.
        """
        openvino = import_openvino()
        opset13 = importlib.import_module("openvino.opset13")

        def rounded(values: Any) -> Any:
            bounds = (opset13.constant(np.float32(bound)) for bound in (-4, 4 * 127 / 128, -4, 4 * 127 / 128))
            return opset13.fake_quantize(values, *bounds, 256) if precision == "int8" else values

        def weights(K: int, N: int) -> Any:
            numbers = rng.standard_normal((N, K), dtype=np.float32) / K**0.5
            if precision != "int8":
                return opset13.constant(numbers)
            scale = np.abs(numbers).max(1, keepdims=True) / 127
            whole = opset13.constant(np.rint(numbers / scale).astype(np.int8))
            return opset13.multiply(opset13.convert(whole, np.float32), opset13.constant(scale))

        rng = np.random.default_rng(0)
        first = opset13.parameter([self.rows, self.widths[0][0]], np.float32)
        values, width = rounded(first), self.widths[0][0]
        for K, N in self.widths:
            if width != K:
                values = opset13.slice(values, *(opset13.constant([number]) for number in (0, K, 1, 1)))
            values, width = rounded(opset13.matmul(values, weights(K, N), False, True)), N
        return openvino.Model([values], [first], "products")


def compiled(graph: Any, precision: str, threads: int, **more: Any) -> Any:
    """A request for an OpenVINO model, with the options of the project's own engine for a batch of one piece."""
    core = import_openvino().Core()
    options = openvino_options(core, precision, threads) | {"NUM_STREAMS": 1} | more
    return core.compile_model(graph, "CPU", options).create_infer_request()


def profile(predictor: Predictor, precision: str) -> list[str]:
    """What OpenVINO spends its time on, in lines: a kind of layer and what executes it, the dearest first."""
    size = predictor.spec.sizes[0]
    with zipfile.ZipFile(folder_of(predictor) / f"openvino-{precision}.zip") as file:
        text, weights = file.read(f"{graph_name(size)}.xml"), file.read("weights.bin")
    graph = import_openvino().Core().read_model(model=text, weights=weights)
    shape = [FULL, *size, predictor.spec.channels]
    graph.reshape(shape)
    request = compiled(graph, precision, predictor.threads, PERF_COUNT=True)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    request.infer([pixels])
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(PROFILED):
        request.infer([pixels])
        for layer in request.profiling_info:
            if layer.real_time:
                spent[layer.node_type, layer.exec_type].append(1000 * layer.real_time.total_seconds())
    total = sum(map(sum, spent.values()))
    lines = [f"OpenVINO's own account of {precision}, batch {FULL}: {total / PROFILED:.1f} ms in layers"]
    for (kind, executed), times in sorted(spent.items(), key=lambda item: -sum(item[1])):
        layers, time = round(len(times) / PROFILED), sum(times)
        lines.append(f"  {kind:<28} {executed:<28} {layers:4} × {time / PROFILED:8.2f} ms {time / total:7.1%}")
    return lines


class Rounds:
    """What was measured: names and rates, a round a row."""

    def __init__(self, rows: list[dict[str, float]]):
        self.rows, self.names = rows, list(rows[0])

    def median(self, name: str) -> float:
        """The rate of a name."""
        return statistics.median(row[name] for row in self.rows)

    def best(self, *beginnings: str) -> str | None:
        """The fastest of the names that begin so; None where there is none."""
        return max((name for name in self.names if name.startswith(beginnings)), key=self.median, default=None)

    def times(self, name: str, base: str) -> float:
        """How many times the rate of the base it is."""
        return statistics.median(row[name] / row[base] for row in self.rows)


class Ledger:
    """Prints figures beside what they are held to, and remembers whether one was missed."""

    def __init__(self):
        self.missed = False

    def hold(self, what: str, figure: float, unit: str, bound: float, most: bool = False) -> bool:
        """A line; whether it is held. `most`: the bound is an upper one."""
        held = figure <= bound if most else figure >= bound
        self.missed |= not held
        print(f"{what:<76} {figure:6.2f}{unit}   {'≤' if most else '≥'} {bound:g}{unit}   {'yes' if held else 'NO'}")
        return held


def table(rounds: Rounds, bases: dict[str, str | None], gflop: float) -> None:
    """A line an engine or peer: its rate, how many times that of the base of its batch, and its share of the bound."""
    last = "of the GEMM bound" if rounds.best("GEMM") else ""
    print(f"{'':<34} {'pictures/s':>10} {'the peer':>9} {'GFLOP/s':>9} {last:>18}".rstrip())
    for name in rounds.names:
        if name.startswith("GEMM"):
            print(f"{name:<34} {'':>10} {'':>9} {rounds.median(name):9.0f}")
            continue
        base = bases[name.rsplit(", ", 1)[1]]
        bound = rounds.best(f"GEMM, {name.split(', ')[1]}")
        times = f"{rounds.times(name, base):.2f}×" if base else ""
        share = f"{gflop * rounds.times(name, bound):.1%}" if bound and name.endswith(f" {FULL}") else ""
        rate = rounds.median(name)
        print(f"{name:<34} {rate:10.1f} {times:>9} {gflop * rate:9.0f} {share:>18}".rstrip())


def measured(ways: Ways, peer: Callable[[], dict[str, float]] | None, count: int) -> Rounds:
    """So many rounds in which all take turns."""
    return Rounds([(peer() if peer else {}) | {name: way() for name, way in ways.items()} for _ in range(count)])


def title(config: ModelConfig, what: str, options: argparse.Namespace) -> float:
    """Prints what is measured, and returns the GFLOP of a picture."""
    gflop = 2e-9 * count_macs(config, *config.image_size)
    print(
        f"{what}, {config.image_size[0]}×{config.image_size[1]}, {CLASSES} outputs, random weights, {gflop:.2f} GFLOP "
        f"a picture; {options.threads} threads, medians of {options.rounds} rounds"
    )
    return gflop


def measure_vit(photos: Sequence[Path], folder: Path, ledger: Ledger, options: argparse.Namespace) -> None:
    """ViT-S/16 beside timm's and the GEMM bound."""
    predictor = fresh_predictor("vit_s_16", photos, folder, options.threads)
    config = predictor.model.config
    ways = engine_ways(predictor, (*OTHERS, *ENGINES), (FULL, 1), options.seconds)
    ways |= Products.of(config, FULL).ways(options.threads, options.seconds)
    peer = partial(peer_rates, "timm", options.peers, ["--batches", FULL, 1], options) if options.peers else None
    rounds = measured(ways, peer, options.rounds)
    predictor.settle(silent)
    chosen, precision = describe(predictor.engine), predictor.engine.precision

    gflop = title(config, "ViT-S/16", options)
    full, alone = f"timm, fp32, batch {FULL}", "timm, fp32, batch 1"
    table(rounds, {f"batch {FULL}": full if peer else None, "batch 1": alone if peer else None}, gflop)
    print()
    if peer:
        fast, half, one = (f"{name}, batch {n}" for name, n in ((chosen, FULL), ("openvino, bf16", FULL), (chosen, 1)))
        ledger.hold(f"--precision auto: {fast}, beside {full}", rounds.times(fast, full), "×", AUTO)
        ledger.hold(f"--precision bf16: {half}, beside {full}", rounds.times(half, full), "×", BF16)
        ledger.hold(f"--precision auto: {one}, beside {alone}", rounds.times(one, alone), "×", ALONE)
        print(f"{f'  the same beside {full}':<76} {rounds.times(one, full):6.2f}×")
    else:
        print("beside timm: not measured, --peers was not given")
    bound = rounds.best(f"GEMM, {precision}")
    assert bound is not None
    share = 100 * gflop * rounds.times(f"{chosen}, batch {FULL}", bound)
    held = ledger.hold(f"{chosen}, batch {FULL}, of the GEMM bound ({bound.rsplit(', ', 1)[1]})", share, " %", BOUND)
    if (options.profile or not held) and predictor.engine.name == "openvino":
        print("\n".join(["", *profile(predictor, precision)]))
    print(flush=True)


def measure_t2t(photos: Sequence[Path], folder: Path, ledger: Ledger, options: argparse.Namespace) -> None:
    """T2T-ViT_t-14 beside the paper's code."""
    predictor = fresh_predictor("t2t_vit_t_14", photos, folder, options.threads)
    ways = engine_ways(predictor, ENGINES, (FULL,), options.seconds)
    words = ["--t2t", options.t2t, "--batches", *PAPER]
    rounds = measured(ways, partial(peer_rates, "paper", sys.executable, words, options), options.rounds)
    gflop = title(predictor.model.config, "T2T-ViT_t-14", options)
    base = rounds.best("paper, fp32")
    assert base is not None
    table(rounds, defaultdict(lambda: base), gflop)
    print()
    for precision, bound in T2T.items():
        name = f"openvino, {precision}, batch {FULL}"
        ledger.hold(f"T2T-ViT_t-14: {name}, beside {base}", rounds.times(name, base), "×", bound)
    if options.profile:
        print("\n".join(["", *profile(predictor, "int8")]))
    print(flush=True)


def measure_loss(run: str, data: str, int8: bool, ledger: Ledger, threads: int) -> None:
    """What `--precision auto` costs in accuracy, or what int8 would."""
    exactly = AnswerConfig(engine="torch", precision="fp32")
    reduced = AnswerConfig(engine="openvino", precision="int8", bar=OPEN) if int8 else AnswerConfig()
    found, names = [], []
    for asked in (exactly, reduced):
        predictor = load(run, asked, device="cpu")
        predictor.threads = threads
        predictor.settle(silent)
        found.append(evaluate(predictor, data, say=silent))
        names.append(describe(predictor.engine))
    exact, fast = found
    agreement = compare(exact.task, exact.answers, fast.answers, exact.targets)
    for name, one in zip(names, found, strict=True):
        print(f"{name:<34} {headline(one.task, one.summary)}")
    assert agreement.loss is not None
    assert agreement.interval is not None
    low, high = agreement.interval
    what = f"lost by {names[1]} on {agreement.pictures:,} pictures (95 %: {low:+.2f} to {high:+.2f})"
    ledger.hold(what, agreement.loss, " points", LOSS, most=True)


def main() -> int:
    """Prints the figures; 1 where one is not held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment with timm")
    parser.add_argument("--t2t", metavar="FOLDER", help="the T2T-ViT paper's public repository")
    parser.add_argument("--checkpoint", nargs=2, metavar=("RUN", "DATA"), help="a trained run, and labelled pictures")
    parser.add_argument("--int8", action="store_true", help="of --checkpoint: whatever it loses, not what auto takes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="0: speed is not measured")
    parser.add_argument("--seconds", type=float, default=2.0, help="that each is timed for in a round")
    parser.add_argument("--profile", action="store_true", help="print what OpenVINO spends its time on")
    options = parser.parse_args()
    if options.int8 and not options.checkpoint:
        parser.error("--int8 is of --checkpoint RUN DATA: expected it too")
    torch.set_num_threads(options.threads)
    ledger = Ledger()
    if options.rounds:
        with tempfile.TemporaryDirectory(prefix="vitreous-") as place:
            folder = Path(place)
            draw_pictures(folder / "drawn")
            photos = sorted((folder / "drawn").rglob("*.jpg"))
            measure_vit(photos, folder / "vit", ledger, options)
            if options.t2t:
                measure_t2t(photos, folder / "t2t", ledger, options)
            else:
                print("T2T-ViT_t-14: not measured, --t2t was not given")
    if options.checkpoint:
        run, data = options.checkpoint
        measure_loss(run, data, options.int8, ledger, options.threads)
    return int(ledger.missed)


if __name__ == "__main__":
    sys.exit(main())
