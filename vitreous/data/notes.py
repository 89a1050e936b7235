"""What `vitreous pack` writes beside each picture, as JSON, so that the shards give back what was packed."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from vitreous.data.decode import DEPTHS, Facts
from vitreous.data.splits import SPLITS
from vitreous.data.workers import DECODERS
from vitreous.errors import InputError

NOTE = "vitreous"  # the field of a sample's JSON, and the column of a table, that holds the note
NO_LIMIT = 1 << 62  # of pixels: a header is no pixel


def digest(picture: bytes | np.ndarray) -> str:
    """BLAKE2b of a file's bytes, or of an array's shape, type and values."""
    if isinstance(picture, np.ndarray):
        head = f"{picture.shape} {picture.dtype.str}".encode()
        return hashlib.blake2b(head + np.ascontiguousarray(picture).tobytes(), digest_size=16).hexdigest()
    return hashlib.blake2b(picture, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Known:
    """A picture's digest and facts, told beforehand; whatever is read is held against them."""

    digest: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class Note:
    """Of one picture: its name and place in the source, its split, which fields are targets, and which is the group."""

    name: str
    number: int
    split: str
    targets: tuple[str, ...]
    group: str | None
    known: Known

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        facts = self.known.facts
        return {
            "name": self.name,
            "number": self.number,
            "split": self.split,
            "targets": list(self.targets),
            "group": self.group,
            "digest": self.known.digest,
            "facts": [facts.height, facts.width, facts.channels, facts.depth],
        }

    @classmethod
    def from_json(cls, values: Any, where: str) -> Self:
        """The note that `to_json` wrote. Raises `InputError` that names `where`, for anything else."""
        try:
            height, width, channels, depth = values["facts"]
            note = cls(
                values["name"],
                values["number"],
                values["split"],
                tuple(values["targets"]),
                values["group"],
                Known(values["digest"], Facts(height, width, channels, depth)),
            )
            words = (note.name, note.split, note.known.digest, *note.targets, note.group or "")
            counts = (note.number + 1, height, width, channels)
            right = all(type(word) is str for word in words) and all(type(n) is int and 0 < n < 2**40 for n in counts)
            right = right and note.split in ("", *SPLITS) and depth in DEPTHS and len(note.known.digest) == 32
        except (TypeError, KeyError, ValueError):
            right, note = False, None
        if note is None or not right:
            raise InputError(f"{where}: its note is not one that `vitreous pack` wrote; pack the data anew.")
        return note

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """The note of a text. Raises `InputError`."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        return cls.from_json(values, where)


@dataclass(frozen=True)
class Verified:
    """Reads what another reader reads, and holds it against what is known of it."""

    read: Callable[[int], "bytes | np.ndarray"]
    names: Sequence[str]
    known: Sequence[Known]

    def __call__(self, i: int) -> "bytes | np.ndarray":
        """A picture. Raises `InputError` where it is another than the one that was packed."""
        picture, known = self.read(i), self.known[i]
        same = digest(picture) == known.digest
        if not same or DECODERS.inspect(picture, self.names[i], NO_LIMIT) != known.facts:
            raise InputError(
                f"{self.names[i]} is not what was packed: its content has changed, or is damaged. Pack the data anew, "
                "or get the shard anew."
            )
        return picture
