"""Bit flips and truncations of a checkpoint: every one is found and named, and the checkpoint before it is used.

--count bits are flipped, one at a time, a third of them in the header; and the file is cut at a fifth as many lengths.
"""

import argparse
import random

import torch

from vitreous.rundir import Checkpoint, RunDir

COUNT = 500


def checkpoint(step: int) -> Checkpoint:
    """Of several types and shapes."""
    draw = torch.Generator().manual_seed(step)
    tensors = {f"model.{i}": torch.randn(40, 30, generator=draw) for i in range(8)}
    tensors |= {"half": torch.randn(99, generator=draw).bfloat16(), "step": torch.tensor(float(step))}
    return Checkpoint(step, tensors, {"seconds": 0.5, "recent": [[1.0, 2.0, 3.0]] * 32})


def run(options: argparse.Namespace) -> bool:
    """Prints what was missed, and how many were found."""
    random.seed(options.seed)
    directory = RunDir.create(options.folder / "run")
    for step in (1, 2):
        directory.save(checkpoint(step))
    file = directory.path / "last" / "step-000000002.safetensors"
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    missed = 0
    for number in range(options.count):
        place = random.randrange(*((0, header) if number % 3 == 0 else (header, len(whole))))
        content = bytearray(whole)
        content[place] ^= 1 << random.randrange(8)
        missed += not _found(directory, file, bytes(content), f"a bit of byte {place} flipped")
    cuts = options.count // 5
    for _ in range(cuts):
        length = random.randrange(len(whole))
        missed += not _found(directory, file, whole[:length], f"cut to {length} bytes")
    print(f"{options.count} bit flips and {cuts} truncations of {len(whole):,} bytes: {missed} missed")
    return not missed


def _found(directory: RunDir, file, content: bytes, what: str) -> bool:
    file.write_bytes(content)
    said: list[str] = []
    newest = directory.newest(said.append)
    expected = checkpoint(1).tensors
    well = (
        newest is not None
        and newest.step == 1
        and all(torch.equal(newest.tensors[name], tensor) for name, tensor in expected.items())
        and len(said) == 1
        and str(file) in said[0]
    )
    if not well:
        print(f"missed: {what}")
    return well
