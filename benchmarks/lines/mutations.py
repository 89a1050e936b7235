"""Files of every format, mutated: no crash of this process, no hang over 2 s, and every error names the file.

Bits are flipped, bytes set, lengths made extreme, parts cut out, doubled, swapped or put into another file. Each file
is looked at (its header) and read (its pixels), as `check` and all else do: by decoding processes, which may die of it
where that is told. Pictures may have up to 20 megapixels, as photos do: a larger one takes longer by right.
"""

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from vitreous.data.preprocess import InputSpec
from vitreous.data.workers import Decoders
from vitreous.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from odd_pictures import KINDS, every_format, make  # pyright: ignore

COUNT = 100_000
HANG = 2.0  # seconds
THREADS = 2
MOST = 20_000_000  # pixels
SPEC = InputSpec(3, "uint8", ((32, 32),), convert=True, max_pixels=MOST)
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 0x10000)


def corpus() -> list[bytes]:
    """Sound files of every format, and all odd ones that are not large."""
    sound = [odd.file for number in range(3) for odd in every_format(np.random.default_rng(number))]
    odd = [make(kind, number).file for kind in KINDS for number in range(2)]
    return [file for file in [*sound, *odd] if 8 < len(file) < 60_000]


def mutated(rng: np.random.Generator, file: bytes, other: bytes) -> bytes:
    """The file with one to three changes; half of them near its start, where the structure of most formats lies."""
    found = bytearray(file)
    for _ in range(int(rng.integers(1, 4))):
        if len(found) < 8:
            break
        span = len(found) if rng.integers(2) else min(len(found), 200)
        at, size = int(rng.integers(span)), int(rng.integers(1, 1 + min(64, len(found))))
        match int(rng.integers(9)):
            case 0:
                found[at] ^= 1 << int(rng.integers(8))
            case 1:
                found[at] = int(rng.integers(256))
            case 2 | 3:  # a length, a size, an offset
                width = int(rng.choice([1, 2, 4, 8]))
                value = int(rng.choice(EXTREMES)) if rng.integers(2) else int(rng.integers(len(found) + 9))
                found[at : at + width] = (value % 256**width).to_bytes(width, str(rng.choice(["big", "little"])))
            case 4:
                del found[at:]
            case 5:
                del found[at : at + size]
            case 6:
                found[at:at] = found[at : at + size] * int(rng.integers(1, 20))
            case 7:  # two parts change places
                to = int(rng.integers(len(found)))
                part = found[at : at + size]
                found[at : at + size] = found[to : to + size]
                found[to : to + size] = part
            case 8:
                start = int(rng.integers(len(other)))
                found[at : at + size] = other[start : start + size]
    return bytes(found)


def attempt(decoders: Decoders, file: bytes, name: str) -> tuple[str, float]:
    """What came of a file, and the seconds that the longer of both looks took."""
    longest, found = 0.0, "read"
    for look in (lambda: decoders.inspect(file, name, MOST), lambda: decoders.read(SPEC, file, name)):
        began = time.monotonic()
        try:
            look()
        except InputError as fault:
            found = "refused" if str(fault).startswith(f"{name}: ") else f"an error without its name: {fault}"
            for words in ("took the decoder down", "took longer than"):
                found = words if words in str(fault) else found
        except Exception as fault:
            found = f"{type(fault).__name__}: {fault}"
        longest = max(longest, time.monotonic() - began)
    return found, longest


def run(options: argparse.Namespace) -> bool:
    """Prints what came of the files; whether none crashed, hung, or failed otherwise."""
    files, tally, slowest, bad = corpus(), Counter(), (0.0, ""), 0
    decoders = Decoders(seconds=30, memory=1 << 30)

    def one(number: int) -> tuple[str, float, int, bytes]:
        rng = np.random.default_rng([options.seed, number])
        a, b = (files[int(n)] for n in rng.integers(len(files), size=2))
        file = mutated(rng, a, b)
        found, seconds = attempt(decoders, file, f"mutation {number}")
        for _ in range(2):  # a busy machine is no hang
            if seconds > HANG:
                seconds = min(seconds, attempt(decoders, file, f"mutation {number}")[1])
        return found, seconds, number, file

    with ThreadPoolExecutor(THREADS) as pool:  # their start, and that of the libraries
        list(pool.map(lambda file: attempt(decoders, file, "sound"), files[:40]))
    numbers = iter(range(options.count))
    with ThreadPoolExecutor(THREADS) as pool:
        while some := list(islice(numbers, 500)):
            for found, seconds, number, file in pool.map(one, some):
                tally[found.split(":")[0]] += 1
                slowest = max(slowest, (seconds, f"mutation {number}"))
                if found not in ("read", "refused") or seconds > HANG:
                    bad += found not in ("took the decoder down",) or seconds > HANG
                    place = Path(options.folder) / f"mutation-{number}"
                    place.write_bytes(file)
                    print(f"{found}, {seconds:.2f} s: {file[:12]!r}, kept as {place}")
    decoders.close()
    rows = ", ".join(f"{count:,} {words}" for words, count in sorted(tally.items()))
    print(f"{options.count:,} mutated files of {len(files)}: {rows}; the slowest {slowest[0]:.2f} s ({slowest[1]})")
    return not bad
