"""Predictions as rows of a table: .csv, .parquet or .jsonl."""

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from vitreous.data.targets import Task
from vitreous.errors import InputError
from vitreous.infer.predictor import Prediction
from vitreous.rundir import write_whole

CHUNK = 4096  # rows that Parquet groups
Row = dict[str, Any]


def as_row(task: Task, prediction: Prediction, top: int) -> Row:
    """A prediction as a row, with the `top` most probable classes; every row of a task has the same columns."""
    row: Row = {"picture": prediction.picture}
    good = not prediction.error
    if task.kind == "classification":
        ranked = list(prediction.probabilities.items())
        for place in range(min(top, task.outputs)):
            suffix = f"_{place + 1}" if place else ""
            name, probability = ranked[place] if good else (None, None)
            row |= {f"label{suffix}": name, f"probability{suffix}": probability}
        row |= {"unsure": prediction.unsure if good else None, "plausible": "|".join(prediction.plausible) or None}
    elif task.kind == "multilabel":
        row["labels"] = "|".join(prediction.labels) if good else None
        row |= {f"p({name})": prediction.probabilities.get(name) for name in task.names}
    else:
        for name in task.names:
            low, high = prediction.intervals.get(name, (None, None))
            row |= {name: prediction.values.get(name), f"{name} low": low, f"{name} high": high}
    return {**row, "error": prediction.error or None}


def check_name(path: Path) -> None:
    """Raises `InputError` for a file name whose ending is none that can be written."""
    if path.suffix.lower() not in WRITERS:
        raise InputError(f"--out {path}: expected a name that ends in {', '.join(WRITERS)}")


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Writes rows as they come to .csv, .parquet or .jsonl, by the name; the file is there whole or not at all."""
    check_name(path)
    write_whole(path, lambda temporary: WRITERS[path.suffix.lower()](iter(rows), temporary))


def _write_csv(rows: Iterator[Row], path: Path):
    with open(path, "w", encoding="utf-8", newline="") as file:
        first = next(rows)
        writer = csv.DictWriter(file, list(first), lineterminator="\n")
        writer.writeheader()
        writer.writerows(chain([first], rows))


def _write_jsonl(rows: Iterator[Row], path: Path):
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(rows: Iterator[Row], path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    first = next(rows)
    words = ("picture", "label", "plausible", "error")
    kinds = {
        name: pa.bool_() if name == "unsure" else pa.string() if name.startswith(words) else pa.float64()
        for name in first
    }
    schema = pa.schema(list(kinds.items()))
    rows = chain([first], rows)
    with parquet.ParquetWriter(path, schema) as writer:
        while chunk := list(islice(rows, CHUNK)):
            writer.write_table(pa.Table.from_pylist(chunk, schema))


WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
