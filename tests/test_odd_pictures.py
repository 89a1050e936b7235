"""Odd and broken pictures: the right pixels or an error that names the file, and no process dies of one."""

import numpy as np
import pytest
from odd_pictures import KINDS, Odd, make

from vitreous.data.preprocess import InputSpec
from vitreous.data.workers import Decoders
from vitreous.errors import InputError

EACH = 3


@pytest.fixture(scope="module")
def decoders():
    """Of one gigabyte and a few seconds each."""
    one = Decoders(seconds=30, memory=1 << 30)
    yield one
    one.close()


def outcome(odd: Odd, decoders: Decoders) -> str:
    """ "read" or "refused", as it should be; what is wrong otherwise."""
    shape, depth = ((8, 8, 3), "uint8") if odd.pixels is None else (odd.pixels.shape, odd.pixels.dtype.name)
    spec = InputSpec(shape[2], depth, (shape[:2],), convert=odd.pixels is None)
    try:
        pixels = decoders.read(spec, odd.file, odd.name)[1]
    except InputError as fault:
        return (
            "refused"
            if (odd.pixels is None or odd.or_refused) and str(fault).startswith(f"{odd.name}: ")
            else str(fault)
        )
    if odd.pixels is None:
        return "read, though it is broken"
    apart = np.abs(pixels.astype(np.float64) - odd.pixels.astype(np.float64)).max()
    return (
        "read" if pixels.dtype == odd.pixels.dtype and apart <= odd.tolerance else f"pixels differ by up to {apart:g}"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_picture_is_read_right_or_refused_by_name(kind, decoders):
    for number in range(EACH):
        assert outcome(make(kind, number), decoders) in ("read", "refused")
    assert len(decoders._free) == 1  # the process that read them all
