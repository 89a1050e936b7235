"""The bytes that requests hold, all together."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from vitreous.serve.replies import Refused


class Room:
    """The bytes that all requests may hold at once. Where they are too many, the upload that began first goes."""

    def __init__(self, most: int):
        self.free = most
        self.reading: list[Reader] = []

    @contextmanager
    def reader(self) -> Iterator["Reader"]:
        """A request's place, until it is answered."""
        reader = Reader(self)
        self.reading.append(reader)
        try:
            yield reader
        finally:
            reader.leave()


class Reader:
    """A request that holds bytes."""

    def __init__(self, room: Room):
        self.room, self.held, self.evicted = room, 0, False
        self.patience: asyncio.Timeout | None = None

    def take(self, count: int) -> None:
        """Holds so many bytes more. Raises `Refused` where there is no room."""
        if not self.evicted:
            self.held += count
            self.room.free -= count
        while self.room.free < 0 and not self.evicted:
            self.room.reading[0].evict()
        if self.evicted:
            raise Refused(429, "more is being sent than the server can hold: try again later", 1)

    def evict(self) -> None:
        """Gives up the place for others; whoever reads is woken."""
        self.evicted = True
        self.leave()
        if self.patience is not None and not self.patience.expired():
            self.patience.reschedule(asyncio.get_running_loop().time())

    def accepted(self) -> None:
        """Keeps the place: all has come."""
        self.room.reading.remove(self)

    def leave(self) -> None:
        """Gives the bytes back."""
        self.room.free += self.held
        self.held = 0
        if self in self.room.reading:
            self.room.reading.remove(self)
