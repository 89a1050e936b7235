"""What token merging costs and gains: python benchmarks/merging.py RUN DATA [--merge 0 2 4 8].

For each number of tokens that merge in a block: how many tokens leave the last block, pictures a second of PyTorch (the
median of rounds in which the numbers take turns), and how well the run's validation pictures are answered.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from vitreous.calibration import headline
from vitreous.infer.engines import TorchEngine
from vitreous.infer.evaluation import evaluate
from vitreous.infer.predictor import Predictor, load


def merging(run: str, merge: int, precision: str) -> Predictor:
    """The run's model, merging so many tokens a block, by PyTorch."""
    own = load(run, merge=merge)
    engine = TorchEngine(own.model, own.spec, own.device, precision)
    return Predictor(own.spec, own.task, own.calibration, own.options, run=own.run, engine=engine, columns=own.columns)


def main():
    """Prints a line for each number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("--merge", type=int, nargs="+", default=[0, 1, 2, 4, 8, 16])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    asked = parser.parse_args()
    predictors = {merge: merging(asked.run, merge, asked.precision) for merge in asked.merge}
    spec = predictors[asked.merge[0]].spec
    shape = asked.batch, *spec.sizes[0], spec.channels
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(spec.depth)
    times: dict[int, list[float]] = {merge: [] for merge in predictors}
    for _ in range(asked.rounds + 1):
        for merge, predictor in predictors.items():
            start = time.perf_counter()
            predictor.outputs(pixels)
            times[merge].append(time.perf_counter() - start)
    print(f"{asked.run}: {asked.precision}, {torch.get_num_threads()} threads, batches of {asked.batch}")
    print("merge  tokens  pictures/s")
    for merge, predictor in predictors.items():
        with torch.inference_mode():
            tokens = predictor.model.encode(predictor.normalised(pixels[:1])).shape[1]
        rate = asked.batch / statistics.median(times[merge][1:])
        found = evaluate(predictor, asked.data, split="validation", say=lambda text: None)
        print(f"{merge:5}  {tokens:6}  {rate:10.1f}  {headline(predictor.task, found.summary)}", flush=True)


if __name__ == "__main__":
    main()
