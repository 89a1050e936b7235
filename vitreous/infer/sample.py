"""A run's own pictures of one side of its split, as the model takes them: to measure by, or to calibrate with."""

import os
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from vitreous.data.doctor import digest
from vitreous.data.preprocess import Size
from vitreous.data.sources import Source, open_source
from vitreous.data.store import read_in_order, reader
from vitreous.errors import InputError

if TYPE_CHECKING:
    from vitreous.infer.predictor import Predictor

COMPARED = 2_000  # pictures that answers are compared on, at most
MOST_BYTES = 512 << 20  # of their pixels


@dataclass(frozen=True)
class Sample:
    """Pictures by size, and their targets in the same order, where they are known."""

    pixels: dict[Size, np.ndarray]  # (n, H, W, C) each
    targets: np.ndarray | None
    of: str  # what they are, in words

    def __len__(self) -> int:
        return sum(map(len, self.pixels.values()))

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """(B, H, W, C), B at most `size`."""
        for pixels in self.pixels.values():
            yield from (pixels[start : start + size] for start in range(0, len(pixels), size))


def own_pictures(
    predictor: "Predictor", side: str, most: int = COMPARED, data: str | os.PathLike | None = None
) -> Sample:
    """At most so many pictures of the run's "train" or "validation" side, the same ones each time.

    They are looked for where the run was trained, or in `data`, and left out where they have changed since. For a run
    without a split, an imported one, half of the names in `data` are one side, half the other. Raises `InputError`
    where no picture is there any more.
    """
    source, digests = _side(predictor, side, data)
    spec = predictor.spec
    weight = max(h * w for h, w in spec.sizes) * spec.channels * np.dtype(spec.depth).itemsize
    count = min(most, len(source), max(1, MOST_BYTES // weight))
    chosen = source.only(np.sort(np.random.default_rng(0).permutation(len(source))[:count]).tolist())

    def unchanged(number: int) -> bytes | np.ndarray:
        picture = chosen.read(number)
        if digests and digest(picture) not in digests:
            raise InputError(f"{chosen.names[number]} has changed")
        return picture

    rows = defaultdict(list)
    read = reader(replace(chosen, read=unchanged), spec)
    for number, picture in enumerate(read_in_order(read, len(chosen), predictor.threads)):
        if not isinstance(picture, str):
            rows[spec.sizes[picture[0]]].append((number, picture[1]))
    if not rows:
        raise InputError(f"none of the {side} pictures in {source.location} is what it was")
    kept = chosen.only([number for some in rows.values() for number, _ in some])
    try:
        targets = predictor.task.encode(kept.columns, kept.names)
    except InputError:  # other data, or none
        targets = None
    return Sample(
        {size: np.stack([picture for _, picture in some]) for size, some in rows.items()}, targets, f"{side} pictures"
    )


def _side(predictor: "Predictor", side: str, data: str | os.PathLike | None) -> tuple[Source, set[str]]:
    """The pictures that by their names are of that side, and the digests that they may have; an empty set is any."""
    run = predictor.run
    place = run.place() if data is None else data
    if place is None:
        raise InputError(f"{run.path} was not trained here, so it has no pictures of its own: --data names some")
    source = open_source(place, predictor.columns)
    split = run.read_split()
    if split:
        wanted = {row.path for row in split if row.split == side}
        numbers = [i for i, name in enumerate(source.names) if name in wanted]
    else:
        numbers = [i for i, name in enumerate(source.names) if zlib.crc32(name.encode()) % 2 == (side == "train")]
    if not numbers:
        raise InputError(f"{place} holds none of the {side} pictures of {run.path}: --data says where they are now")
    return source.only(numbers), {row.digest for row in split if row.split == side}
