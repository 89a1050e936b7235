"""Data sets of Hugging Face, through its `datasets` library: downloaded to its own cache, no code of theirs run."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitreous.data.decode import check_bytes
from vitreous.data.splits import split_of
from vitreous.data.tables import PATH_COLUMNS, Columns, Table, of_rows
from vitreous.errors import InputError, first_line
from vitreous.strict import open_regular

_NAME = re.compile(r"hf://([\w.\-]+/[\w.\-]+|[\w.\-]+)(?::([\w.\-]+))?")


@dataclass(frozen=True)
class _Rows:
    """Reads the pictures, as they are stored, of several splits one after the other."""

    parts: tuple[Any, ...]  # datasets.Dataset, of the column of pictures alone, undecoded
    starts: np.ndarray
    column: str
    names: Sequence[str]
    folders: tuple[str, ...]  # of the library, out of which no file is read

    def __call__(self, i: int) -> bytes:
        which = int(np.searchsorted(self.starts, i, side="right")) - 1
        picture = self.parts[which][i - int(self.starts[which])][self.column] or {}
        content = picture.get("bytes")
        if content is None and picture.get("path"):
            content = self._read(picture["path"], self.names[i])
        if content is None:
            raise InputError(f"{self.names[i]} holds no picture.")
        return content

    def _read(self, named: str, name: str) -> bytes:
        """A file that was downloaded: a row may name any other."""
        path = Path(os.path.realpath(named.replace("\0", "\ufffd")))
        if not any(path.is_relative_to(folder) for folder in self.folders):
            raise InputError(f"{name} names {path}: expected a picture in the data set, or a file downloaded with it.")
        try:
            with open_regular(path) as file:
                check_bytes(os.fstat(file.fileno()).st_size, name)
                return file.read()
        except OSError as error:
            raise InputError(f"{name}: {path} cannot be read: {error.strerror}.") from error


def open_hub(data: str, columns: Columns) -> Table:
    """The data set hf://owner/name or hf://owner/name:config with all its splits.

    Raises:
        InputError: the library is not there, the data set cannot be loaded, or it has no pictures or targets.
    """
    found = _NAME.fullmatch(data)
    if not found:
        raise InputError(f"{data}: expected hf://owner/name, or hf://owner/name:config.")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"{data} is read with Hugging Face's library: pip install 'vitreous[hub]'") from error
    try:
        splits = datasets.load_dataset(found[1], found[2])
    except Exception as error:  # of the library, the network, or the data set's own files
        raise InputError(f"{data} cannot be loaded: {first_line(error)}") from error
    return of_splits(splits, data, columns)


def of_splits(splits: Mapping[Any, Any], where: str, columns: Columns) -> Table:
    """The pictures and targets of a `datasets.DatasetDict`. Raises `InputError` as `open_hub` does."""
    import datasets  # pyright: ignore[reportMissingImports]
    import pyarrow as pa

    parts = {str(name): part for name, part in splits.items() if len(part)}
    if not parts:
        raise InputError(f"{where} holds no rows.")
    features = next(iter(parts.values())).features
    pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    column = columns.path or next((name for name in PATH_COLUMNS if name in pictures), next(iter(pictures), None))
    if column is None or column not in pictures:
        raise InputError(
            f"{where} has no column of pictures{f' {columns.path!r}' if columns.path else ''}: its columns are "
            f"{', '.join(features)}."
        )
    undecoded = [
        part.select_columns([column]).cast_column(column, datasets.Image(decode=False)) for part in parts.values()
    ]
    others = [name for name in features if name not in pictures]
    tables = [_table(part.select_columns(others), len(part)) for part in parts.values()]
    table = pa.concat_tables(tables).replace_schema_metadata(tables[0].schema.metadata)
    names = tuple(f"{name}[{i}]" for name, part in parts.items() for i in range(len(part)))
    sides = [split_of(name) or "" for name, part in parts.items() for _ in range(len(part))]
    starts = np.cumsum([0, *(len(part) for part in parts.values())])
    read = _Rows(tuple(undecoded), starts, column, names, _folders())
    return of_rows(table, names, (), where, columns, set(), read, sides)


def _folders() -> tuple[str, ...]:
    """Where the library keeps what it downloads and unpacks."""
    from datasets import config  # pyright: ignore[reportMissingImports]
    from huggingface_hub.constants import HF_HUB_CACHE  # pyright: ignore[reportMissingImports]

    own = config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH
    return tuple(map(os.path.realpath, (*own, HF_HUB_CACHE)))


def _table(part: Any, rows: int) -> Any:
    """The columns of a split, in the order that its indices say, with its features beside them."""
    import pyarrow as pa

    if not part.column_names:
        return pa.table({"\0": pa.nulls(rows)})
    return part.with_format("arrow")[:].replace_schema_metadata(part.features.arrow_schema.metadata)
