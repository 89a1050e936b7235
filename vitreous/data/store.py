"""PixelStore: every picture decoded and resized once, in memory maps on disk, so that later epochs decode nothing."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from vitreous.data.cache import cache_root, remove_forsaken
from vitreous.data.preprocess import InputSpec, Size
from vitreous.data.sources import Source
from vitreous.errors import InputError, StartError

SPARE = 2 << 30  # bytes that a cache leaves free on the disk
LIMIT = 10.0  # GB of all caches; $VITREOUS_CACHE_GB says otherwise
TOGETHER, LARGE = 32, 1 << 20  # files, and bytes of them, that are decoded at once
N = TypeVar("N")
T = TypeVar("T")
Decoded = tuple[int, np.ndarray] | str  # which size, and pixels (H, W, C), as `InputSpec.read` has them; or a fault


class UndecodableError(InputError):
    """Pictures that cannot be decoded, by number."""

    numbers: tuple[int, ...] = ()


class PixelStore:
    """Pictures by number, as the model's InputSpec makes them: from the cache, or decoded anew at each call."""

    def __init__(self, source: Source, spec: InputSpec, shapes: Sequence[Size], arrays: list[np.ndarray] | None):
        self.source, self.spec, self.arrays = source, spec, arrays
        self.which, self.rows = _places(spec, shapes)

    def __len__(self) -> int:
        return len(self.which)

    def gather(self, numbers: np.ndarray) -> Tensor:
        """(B,) numbers of pictures of one size -> pixels (B, H, W, C) in the spec's depth."""
        if self.arrays is not None:
            return torch.from_numpy(self.arrays[self.which[numbers[0]]][self.rows[numbers]])
        found = reader(self.source, self.spec)(numbers.tolist())
        if faults := [one for one in found if isinstance(one, str)]:
            raise InputError(faults[0])
        return torch.from_numpy(np.stack([one[1] for one in found]))

    def statistics(self, numbers: np.ndarray, most: int = 4096) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation a channel over (at most `most` of) these pictures, in units of the depth's range."""
        count, total, squares = 0, 0.0, 0.0
        for i in numbers[:: -(-len(numbers) // most) or 1]:
            pixels = self.gather(np.array([i]))[0].flatten(0, 1).double() / self.spec.scale
            count, total, squares = count + len(pixels), total + pixels.sum(0), squares + (pixels**2).sum(0)
        mean = torch.as_tensor(total) / count
        std = (torch.as_tensor(squares) / count - mean**2).clamp(min=0).sqrt()
        std[std <= 1e-6 * mean.abs()] = 1.0  # a channel that never changes stays 0
        return tuple(mean.tolist()), tuple(std.tolist())


def open_store(
    source: Source,
    spec: InputSpec,
    shapes: Sequence[Size],
    digests: Sequence[str],
    cache: str,
    threads: int,
    say: Callable[[str], None],
    progress: Callable[[int], None],
) -> PixelStore:
    """Decodes every picture once; keeps the pixels in `cache` ("auto", "off" or a folder) where they fit.

    The cache is keyed by the content of the files and by the spec. Before one is written, those that were not used for
    longest go, so that all stay below the limit. `progress` is called with the number of pictures done. Raises
    `UndecodableError` that lists every picture that cannot be decoded.
    """
    folder = None if cache == "off" else cache_root(cache) / _key(spec, digests)
    if folder is not None and (arrays := _open_arrays(folder, spec, shapes)) is not None:
        say(f"pixels from the cache: {_bytes(_size(folder))} in {folder} (delete it at any time)")
        return PixelStore(source, spec, shapes, arrays)
    counts = _counts(spec, shapes)
    needed = sum(count * h * w for count, (h, w) in zip(counts, spec.sizes, strict=True))
    needed *= spec.channels * np.dtype(spec.depth).itemsize
    if folder is not None:
        room = _limit() - needed
        with suppress(OSError):  # another process prunes at the same time
            _prune(folder.parent, room, say)
    if folder is not None and needed > _free(folder.parent) - SPARE:
        say(f"no cache: {_bytes(needed)} would not fit in {folder.parent}; pictures are decoded at every epoch")
        folder = None
    if folder is None:
        _decode_all(source, spec, threads, progress, lambda i, number, pixels: None)
        return PixelStore(source, spec, shapes, None)
    try:
        _fill(folder, source, spec, shapes, counts, threads, progress)
    except OSError as fault:
        raise InputError(
            f"{folder.parent}: the pixels cannot be cached there ({fault.strerror or fault}); "
            "make room, or choose --cache FOLDER or --cache off"
        ) from fault
    say(f"pixels cached once: {_bytes(needed)} in {folder} (delete it at any time)")
    return PixelStore(source, spec, shapes, _open_arrays(folder, spec, shapes))


def in_order(
    function: Callable[[N], T], numbers: Iterable[N], threads: int, ahead: int = 4
) -> Generator[T, None, None]:
    """`map` over a thread pool, in order, with at most `ahead` results a thread waiting."""
    if threads < 1:
        yield from map(function, numbers)
        return
    pool, waiting = ThreadPoolExecutor(threads), []
    try:
        for number in numbers:
            waiting.append(pool.submit(function, number))
            if len(waiting) >= threads * ahead:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        pool.shutdown(cancel_futures=True)


class Decoding(Protocol):
    """What makes pixels of pictures: see `InputSpec`."""

    def read(self, picture: np.ndarray, name: str) -> tuple[int, np.ndarray]:
        """Of an array. Raises `InputError`."""
        ...

    def read_all(self, pictures: Sequence[bytes], names: Sequence[str]) -> list[tuple[int, np.ndarray] | InputError]:
        """Of some files at once."""
        ...


def reader(
    source: Source, spec: Decoding, caught: type[Exception] = InputError
) -> Callable[[Sequence[int]], list[Decoded]]:
    """Reads a source's pictures by numbers, small files together; what is caught is that picture's own fault."""

    def tried(number: int, act: Callable[..., T], *given: Any) -> T | str:
        try:
            return act(*given)
        except StartError:  # there is nothing to decode with, for any picture
            raise
        except InputError as fault:
            return str(fault)
        except caught as fault:
            return f"{source.names[number]}: it cannot be decoded [{type(fault).__name__}: {fault}]"

    def read(numbers: Sequence[int]) -> list[Decoded]:
        found: dict[int, Decoded] = {}
        files: dict[int, bytes] = {}
        for number in numbers:
            picture = tried(number, source.read, number)
            if isinstance(picture, np.ndarray):
                found[number] = tried(number, spec.read, picture, source.names[number])
            elif isinstance(picture, str):
                found[number] = picture
            else:
                files[number] = picture
            if files and (number == numbers[-1] or sum(map(len, files.values())) >= LARGE):
                decoded = spec.read_all(list(files.values()), [source.names[i] for i in files])
                plain = (str(one) if isinstance(one, InputError) else one for one in decoded)
                found |= zip(files, plain, strict=True)
                files = {}
        return [found[number] for number in numbers]

    return read


def read_in_order(
    read: Callable[[Sequence[int]], list[T]], count: int, threads: int, ahead: int = 2 * TOGETHER
) -> Generator[T, None, None]:
    """What `read` gives of the numbers below `count`, by `in_order`, some of them at a time."""
    size = max(1, min(TOGETHER, ahead // 2, count // (4 * max(threads, 1))))  # so that all threads end together
    groups = (range(start, min(start + size, count)) for start in range(0, count, size))
    with closing(in_order(read, groups, threads, ahead // size)) as found:
        yield from chain.from_iterable(found)


def _fill(
    folder: Path,
    source: Source,
    spec: InputSpec,
    shapes: Sequence[Size],
    counts: list[int],
    threads: int,
    progress: Callable[[int], None],
):
    _, rows = _places(spec, shapes)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    files = []
    try:
        # Written with write(), not through the map: on a full disk a map kills the process.
        files.extend(open(partial / f"{number}.raw", "wb") for number in range(len(counts)))  # noqa: SIM115

        def keep(i: int, number: int, pixels: np.ndarray):
            files[number].seek(int(rows[i]) * pixels.nbytes)
            files[number].write(pixels.tobytes())

        _decode_all(source, spec, threads, progress, keep)
        for file in files:
            file.close()
        (partial / "cache.json").write_text(json.dumps({"pictures": len(shapes), "source": source.location}))
        with suppress(OSError):  # another process was faster: its cache is as good
            partial.rename(folder)
    finally:
        for file in files:
            with suppress(OSError):  # what could not be written is thrown away with the folder
                file.close()
        shutil.rmtree(partial, ignore_errors=True)


def _decode_all(
    source: Source,
    spec: InputSpec,
    threads: int,
    progress: Callable[[int], None],
    keep: Callable[[int, int, np.ndarray], None],
):
    faults = {}
    for i, result in enumerate(read_in_order(reader(source, spec), len(source), threads)):
        if isinstance(result, str):
            faults[i] = result
        else:
            keep(i, *result)
        progress(i + 1)
    if faults:
        error = UndecodableError.listing(
            f"{len(faults):,} of {len(source):,} pictures cannot be decoded:",
            list(faults.values()),
            "mend or remove them, or leave them out with --skip-bad",
        )
        error.numbers = tuple(faults)
        raise error


def _prune(root: Path, room: float, say: Callable[[str], None]):
    """Removes the caches that were not used for longest, until the others fit in `room` bytes; and forsaken halves."""
    remove_forsaken(root, ".partial-*")
    markers = sorted(root.glob("[!.]*/cache.json"), key=lambda marker: marker.stat().st_mtime, reverse=True)
    sizes = [_size(marker.parent) for marker in markers]
    for marker, total, size in zip(markers, accumulate(sizes), sizes, strict=True):
        if total > room:
            with suppress(OSError):  # on Windows, one that another process has open
                shutil.rmtree(marker.parent.rename(root / f".partial-{marker.parent.name}"))
                say(f"removed an old cache of {_bytes(size)}: {marker.parent}")


def _limit() -> float:
    """Bytes that all caches may take. One that is larger by itself is written all the same."""
    text = os.environ.get("VITREOUS_CACHE_GB", str(LIMIT))
    try:
        return float(text) * 1e9
    except ValueError:
        raise InputError(f"VITREOUS_CACHE_GB is {text!r}: expected a number of gigabytes") from None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _open_arrays(folder: Path, spec: InputSpec, shapes: Sequence[Size]) -> list[np.ndarray] | None:
    if not folder.is_dir():
        return None
    if not (folder / "cache.json").exists():  # half deleted: a cache appears with all its files at once
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with suppress(OSError):  # a cache that may only be read
        (folder / "cache.json").touch()  # the last one to be pruned
    arrays = []
    for number, (count, size) in enumerate(zip(_counts(spec, shapes), spec.sizes, strict=True)):
        shape = (count, *size, spec.channels)
        path = folder / f"{number}.raw"
        if not path.exists() or path.stat().st_size != math.prod(shape) * np.dtype(spec.depth).itemsize:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        arrays.append(np.memmap(path, spec.depth, "r", shape=shape) if count else np.empty(shape, spec.depth))
    return arrays


def _places(spec: InputSpec, shapes: Sequence[Size]) -> tuple[np.ndarray, np.ndarray]:
    """Of each picture: which size it takes, and its row among the pictures of that size."""
    which = np.array([spec.size_of(*shape) for shape in shapes], dtype=np.int64)
    rows = np.empty_like(which)
    for number in range(len(spec.sizes)):
        members = which == number
        rows[members] = np.arange(members.sum())
    return which, rows


def _counts(spec: InputSpec, shapes: Sequence[Size]) -> list[int]:
    return np.bincount(_places(spec, shapes)[0], minlength=len(spec.sizes)).tolist()


def _key(spec: InputSpec, digests: Sequence[str]) -> str:
    digest = hashlib.blake2b(spec.pixel_key().encode(), digest_size=12)
    for one in digests:
        digest.update(one.encode())
    return digest.hexdigest()


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
