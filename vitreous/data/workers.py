"""Decoders: the processes in which picture files are opened.

A file's bytes go to a child process, and its pixels come back. A child knows NumPy and the picture libraries, not
PyTorch. What it says is taken for data alone: words of JSON, and pixels of a shape that was to be expected.
"""

import functools
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from vitreous.data.decode import DEPTHS, THUMB, Facts, decode, inspect, is_read_by_python, thumbnail
from vitreous.data.processes import MAX_SECONDS, Child, GoneError, Line, Processes, run_child, within
from vitreous.errors import InputError
from vitreous.fields import read_fields

if TYPE_CHECKING:
    from vitreous.data.preprocess import InputSpec

SMALL = 1 << 20  # bytes of a file that is not large
MOST_FAULT = 10_000  # characters of a fault
MAIN = "from vitreous.data.workers import main"  # what a child runs
Kind = tuple[tuple[int, ...], str]  # of pixels: shape and depth
Pixels = tuple[int, np.ndarray]  # which kind they are of, and themselves


class Decoders(Processes):
    """Child processes that open pictures."""

    title, verb = "decoder", "decode"

    def __init__(self, seconds: float = MAX_SECONDS, memory: int = 0, program: str = MAIN):
        super().__init__(program, seconds, memory)

    def read(self, spec: "InputSpec", picture: bytes, name: str) -> Pixels:
        """What `spec.read_here` makes of a file's bytes. Raises `InputError`, also where the picture ends a child."""
        return self._one("read", spec.text, picture, name, _kinds(spec))

    def read_all(self, spec: "InputSpec", pictures: Sequence[bytes], names: Sequence[str]) -> list[Pixels | InputError]:
        """What `read` gives of each picture, or raises at it, for less: they are asked for at once."""
        return self._together("read", spec.text, pictures, names, _kinds(spec))

    def inspect(self, picture: bytes | np.ndarray, name: str, max_pixels: int) -> Facts:
        """What `decode.inspect` tells of a file's bytes, or of an array. Raises `InputError`.

        An array, and a header that Python reads, of a file that is not large, can do no harm, and stay in this process.
        """
        if isinstance(picture, np.ndarray) or (len(picture) <= SMALL and is_read_by_python(picture)):
            return inspect(picture, name, max_pixels)
        return self._one("inspect", max_pixels, picture, name)

    def thumbnails(self, pictures: Sequence[bytes], names: Sequence[str], max_pixels: int) -> list[Pixels | InputError]:
        """The `decode.thumbnail` (16, 16) of each file's bytes, as `read_all` gives pixels."""
        return self._together("thumbnail", max_pixels, pictures, names, [((THUMB, THUMB), "float32")])

    def _together(
        self, job: str, how: str | int, pictures: Sequence[bytes], names: Sequence[str], kinds: Sequence[Kind]
    ) -> list[Any]:
        with suppress(GoneError):  # which of them ended it is seen when each is asked for alone
            return self.ask_once(lambda child: _converse(child, job, how, pictures, names, kinds))
        return [self._alone(job, how, *one, kinds) for one in zip(pictures, names, strict=True)]

    def _one(self, job: str, how: str | int, picture: bytes, name: str, kinds: Sequence[Kind] = ()) -> Any:
        heard = self._alone(job, how, picture, name, kinds)
        if isinstance(heard, InputError):
            raise heard
        return heard

    def _alone(self, job: str, how: str | int, picture: bytes, name: str, kinds: Sequence[Kind]) -> Any:
        try:
            return self.ask(name, lambda child: _converse(child, job, how, [picture], [name], kinds))[0]
        except InputError as fault:  # it ended children
            return fault


def _converse(
    child: Child, job: str, how: str | int, pictures: Sequence[bytes], names: Sequence[str], kinds: Sequence[Kind]
) -> list[Any]:
    """What a child says of each picture: pixels of one of the kinds, facts, or a fault."""
    child.say([job, how, list(zip(names, map(len, pictures), strict=True))], *pictures)
    words, size = child.hear()
    if not isinstance(words, list) or len(words) != len(pictures):
        raise GoneError
    heard = [_understood(word, kinds) for word in words]
    pixels = [one[1] for one in heard if isinstance(one, tuple)]
    if size != sum(array.nbytes for array in pixels):
        raise GoneError
    for array in pixels:
        child.fill(array.data.cast("B"))
    return heard


def _understood(word: Any, kinds: Sequence[Kind]) -> Pixels | Facts | InputError:
    match word:
        case int(kind) if kind in range(len(kinds)):
            return kind, np.empty(*kinds[kind])  # which are heard next
        case str(fault):
            return InputError(fault)
        case [int(height), int(width), int(channels), str(depth)] if depth in DEPTHS:
            return Facts(height, width, channels, depth)
    raise GoneError


def _kinds(spec: "InputSpec") -> list[Kind]:
    return [((*size, spec.channels), spec.depth) for size in spec.sizes]


DECODERS = Decoders()


# In a child


def main(seconds: float, memory: int) -> NoReturn:
    """Opens the pictures that it is given."""
    from vitreous.data.preprocess import InputSpec  # which imports this

    # Not `from_json`, which asks for what is not known while pixels are read for the first time: their mean.
    specs = functools.cache(lambda text: read_fields(InputSpec, json.loads(text), "an input spec"))

    def found(job: str, how: Any, picture: bytes, name: str) -> tuple[Any, np.ndarray | None]:
        try:
            if job == "inspect":
                return astuple(inspect(picture, name, how)), None
            if job == "thumbnail":
                return 0, thumbnail(decode(picture, name, max_pixels=how, at_least=(64, 64)))
            return specs(how).read_here(picture, name)
        except InputError as fault:
            return str(fault)[:MOST_FAULT], None
        except Exception as fault:  # too little memory, what a library raises at odd contents
            return f"{name}: it cannot be decoded [{type(fault).__name__}: {fault}]"[:MOST_FAULT], None

    def answer(line: Line, words: Any) -> None:
        job, how, some = words
        pictures = [(name, line.take(size)) for name, size in some]
        answers = []
        with within(seconds) as renew:
            for name, picture in pictures:
                renew()
                answers.append(found(job, how, picture, name))
        pixels = [np.ascontiguousarray(array).data.cast("B") for _, array in answers if array is not None]
        line.say([word for word, _ in answers], *pixels)

    run_child(answer, memory)
