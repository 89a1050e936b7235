"""check and pack: pictures before they are trained on."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from vitreous.data.decode import MAX_PIXELS
from vitreous.errors import InputError, counted
from vitreous.training.journal import Journal
from vitreous.verbs.options import Data, Json
from vitreous.verbs.output import print_json


def check(
    data: Data,
    /,
    *,
    target: tuple[str, ...] = (),
    path_column: str | None = None,
    group: str | None = None,
    max_pixels: int = MAX_PIXELS,
    json: Json = False,
) -> int:
    """Lists, file by file, what cannot be read, copies and near copies, imbalance, sizes, and kinds that differ.

    Exits with 1 where training would be wrong.

    Args:
        target: Target columns of a table; default: all that look like targets.
        path_column: Column of a table that holds the pictures' paths.
        group: Column whose equal values never stand on both sides of a split.
        max_pixels: Larger pictures are refused before they are decoded.
    """
    from vitreous.data.doctor import check_data

    journal = Journal(stderr=json)
    with journal.bar("checking", 1) as progress:
        found = check_data(
            data, target=target, path_column=path_column, group=group, max_pixels=max_pixels, progress=progress
        )
    if json:
        print_json({"ok": found.ok, **asdict(found)})
        return 0 if found.ok else 1
    for finding in found.findings:
        journal.say(f"{finding.severity}: {finding.title}")
        for line in finding.details:
            journal.say(f"  {line}")
    verdict = "nothing that would make a training wrong" if found.ok else "mend the errors before you train"
    journal.say(f"{counted(found.pictures, 'picture')}: {verdict}")
    return 0 if found.ok else 1


def pack_data(
    data: Data,
    out: Annotated[Positional[Path], arg(help="The folder to make.", metavar="OUT")],
    /,
    *,
    format: Literal["tar", "parquet"] = "tar",
    size: str = "1GB",
    pictures: int | None = None,
    target: tuple[str, ...] = (),
    path_column: str | None = None,
    group: str | None = None,
    skip_bad: bool = False,
    json: Json = False,
) -> int:
    """Packs pictures and targets to shards: few large files that can lie anywhere. Files go in byte for byte.

    The shards are named after the split, such as train-000000.tar, and stay readable to others: WebDataset's key.jpg
    with key.json, or Hugging Face's Parquet. A training on them has the same pictures, order and split, so the same
    weights, as one on DATA; and it need not look through them first, as digests and sizes are packed too.

    Args:
        format: tar, or parquet.
        size: Bytes of a shard, such as 200MB.
        pictures: In a shard at most.
        target: Target columns of a table; default: all that look like targets.
        path_column: Column of a table that holds the pictures' paths.
        group: Column whose equal values never stand on both sides of a split; the shards remember it.
        skip_bad: Leave out pictures that cannot be read, by name, rather than stop.
    """
    from vitreous.data.packing import pack, parse_bytes
    from vitreous.data.sources import open_source
    from vitreous.data.tables import Columns
    from vitreous.training.recipe import choose_threads

    if pictures is not None and pictures < 1:
        raise InputError(f"--pictures {pictures}: expected 1 or more")
    journal, limit = Journal(stderr=json), parse_bytes(size)
    source = open_source(data, Columns(target, path_column, group))
    options: dict[str, Any] = {"size": limit, "pictures": pictures, "skip_bad": skip_bad, "group": group}
    with journal.bar("packing", len(source)) as progress:
        found = pack(
            source, out, form=format, **options, threads=choose_threads(None), say=journal.say, progress=progress
        )
    if json:
        print_json(asdict(found))
    parts = ", ".join(f"{count:,} {split}" for split, count in found.splits.items())
    packed = f"{counted(found.pictures, 'picture')} ({parts}) in {counted(found.shards, 'shard')}"
    journal.say(f"{packed}, {found.bytes / 1e6:,.1f} MB: {out}")
    journal.say(f"next: vitreous train {out}")
    return 0
