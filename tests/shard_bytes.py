"""Bytes as a shard, without a file: for the tests and benchmarks that change them."""

from vitreous.data import index
from vitreous.data.shards import open_shards
from vitreous.data.tables import Columns


def index_bytes(content: bytes, place: str) -> index.Shard:
    """The index of a shard that is held in memory."""
    return index._indexed(place, lambda start, count: content[start : start + count], len(content), index.LOCAL_READ)


def open_bytes(content: bytes) -> None:
    """Reads bytes as a shard, as far as it goes without decoding a picture. Raises `InputError` alone."""
    _, table = open_shards([index_bytes(content, "a.tar")], ["a.tar"], "a.tar", Columns())
    assert len(table.names) == len(table.splits)
