"""The run directory on disk: JSON and safetensors, each written whole or not at all; no pickle.

config.json         all that rebuilds the model: model, input, task, training options, versions
plan.json           the plan of the run, each version written before it is used
split.csv           path, digest and split of every picture
model.safetensors   the final weights (their exponential moving average)
validation.json     what the validation split tells: metrics, and the calibration of the answers
last/               checkpoints with all that an exact resume needs
metrics.csv  log.txt  curves.png  confusion.png  batch.png  worst.png
incidents.csv       updates that were not made and why, where there were any
"""

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitreous.errors import InputError
from vitreous.files import write_atomically, write_whole

FORMAT = 1  # of the run directory; one that this version cannot read is refused
KEPT = 2  # checkpoints in last/: the newest, and the one before it


@dataclass(frozen=True)
class Checkpoint:
    """The state of training after `step` steps: tensors by name, and plain values."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class SplitRow:
    """A picture of the run: its name, the digest of its content, and "train", "validation" or "test"."""

    path: str
    digest: str
    split: str


class RunDir:
    """One run's folder. `create` makes a new one, `open` reads one that is there."""

    writes = True  # whether this process is the one that writes it

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: str | os.PathLike) -> "RunDir":
        """A new, empty run directory. Raises `InputError` where something is in the way."""
        cls.check_free(path)
        folder = Path(path)
        (folder / "last").mkdir(parents=True, exist_ok=True)
        return cls(folder)

    @staticmethod
    def check_free(path: str | os.PathLike) -> None:
        """Raises `InputError` where a run directory cannot be made because something is in the way."""
        folder = Path(path)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"{folder} exists: expected a new or empty folder for --out; "
                f"`vitreous train --resume {folder}` goes on with a run"
            )
        parent = next(parent for parent in folder.absolute().parents if parent.exists())
        if not os.access(parent, os.W_OK):
            raise InputError(f"{folder} cannot be made: {parent} may not be written to; choose another --out")

    @classmethod
    def open(cls, path: str | os.PathLike) -> "RunDir":
        """A run directory that is there. Raises `InputError` where it is none, or one of another version."""
        folder = Path(path)
        if not (folder / "config.json").is_file():
            what = "does not exist" if not folder.exists() else "holds no config.json"
            raise InputError(f"{folder} is no run directory: it {what}; expected what `vitreous train` made")
        run = cls(folder)
        version = run.config().get("format")
        if version != FORMAT:
            raise InputError(
                f"{folder} is a run directory of format {version}: this version of vitreous reads "
                f"format {FORMAT}; use the version that made it ({run.config().get('vitreous', '?')})"
            )
        return run

    def config(self) -> dict[str, Any]:
        """config.json."""
        return self.read_json("config.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run. Raises `InputError` where it is missing or damaged."""
        try:
            values = json.loads((self.path / name).read_text("utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{self.path} has no {name}: was the run interrupted? `vitreous train --resume {self.path}` finishes it"
            ) from None
        except (ValueError, OSError) as fault:
            raise InputError(f"{self.path / name} is damaged ({fault})") from None
        if not isinstance(values, dict):
            raise InputError(f"{self.path / name} is damaged: expected a JSON object")
        return values

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Writes a JSON file of the run, whole or not at all."""
        write_atomically(self.path / name, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())

    def write_split(self, rows: Sequence[SplitRow]) -> None:
        """Writes split.csv."""
        text = io.StringIO()
        odd = any("\r" in row.path for row in rows)  # which would end a row
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL)
        writer.writerow(("path", "digest", "split"))
        writer.writerows((row.path, row.digest, row.split) for row in rows)
        write_atomically(self.path / "split.csv", text.getvalue().encode(errors="surrogateescape"))

    def read_split(self) -> list[SplitRow]:
        """Reads split.csv. Raises `InputError` where it is missing."""
        try:
            with open(self.path / "split.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
                return [SplitRow(row["path"], row["digest"], row["split"]) for row in csv.DictReader(file)]
        except (OSError, KeyError) as fault:
            raise InputError(f"{self.path / 'split.csv'} cannot be read ({fault})") from None

    def write_weights(self, tensors: dict[str, Tensor], name: str = "model.safetensors") -> None:
        """Writes weights, whole or not at all."""
        target = self.path / name
        write_whole(target, lambda temporary: save_file(_contiguous(tensors), temporary))

    def read_weights(self, name: str = "model.safetensors") -> dict[str, Tensor]:
        """Reads weights. Raises `InputError` where they are missing or damaged."""
        path = self.path / name
        if not path.exists():
            raise InputError(
                f"{self.path} has no {name}: the run is not finished; "
                f"`vitreous train --resume {self.path}` goes on with it"
            )
        try:
            return _read_safetensors(path)[0]
        except (SafetensorError, OSError) as fault:
            raise InputError(f"{path} is damaged ({fault})") from None

    def save(self, checkpoint: Checkpoint, keep: Collection[int] = ()) -> None:
        """Adds a checkpoint to last/: one file with its own checksum, renamed into place when it is on the disk, then
        read back.

        The one before it stays, and those of the steps `keep`; older ones go, and orphaned temporaries. Raises
        `OSError` where it cannot be written, or reads otherwise than it was written; then all older ones stay.
        """
        folder = self.path / "last"
        values = json.dumps({**checkpoint.values, "step": checkpoint.step})
        tensors = _contiguous(checkpoint.tensors)
        metadata = {"values": values, "checksum": _checksum(sorted(tensors.items()), values)}
        target = self._checkpoint_path(checkpoint.step)
        write_whole(target, lambda temporary: save_file(tensors, temporary, metadata))
        _verify(target, metadata["checksum"])
        kept = {self._checkpoint_path(step) for step in keep}
        old = [path for path in sorted(folder.glob("step-*.safetensors"))[:-KEPT] if path not in kept]
        for path in old + sorted(folder.glob(".*.tmp")):
            path.unlink(missing_ok=True)

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, to which training does not come back as they are."""
        for path in (self.path / "last").glob("step-*.safetensors"):
            if path.name > self._checkpoint_path(step).name:
                path.unlink(missing_ok=True)

    def clean(self) -> None:
        """Removes the temporaries that a process left which was killed as it wrote."""
        for path in [*self.path.glob(".*.tmp"), *self.path.glob("last/.*.tmp")]:
            with suppress(OSError):  # a folder that may only be read
                path.unlink(missing_ok=True)

    def _checkpoint_path(self, step: int) -> Path:
        return self.path / "last" / f"step-{step:09}.safetensors"

    def newest(self, say: Callable[[str], None], until: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole, of those up to the step `until`; a damaged one is named and passed over.
        None where there is none.
        """
        found = sorted((self.path / "last").glob("step-*.safetensors"), reverse=True)
        for path in found if until is None else [p for p in found if p.name <= self._checkpoint_path(until).name]:
            try:
                tensors, metadata = _read_safetensors(path)
                if metadata["checksum"] != _checksum(sorted(tensors.items()), metadata["values"]):
                    raise ValueError("its checksum differs")
                values = json.loads(metadata["values"])
                return Checkpoint(values.pop("step"), tensors, values)
            except (SafetensorError, OSError, ValueError, KeyError) as fault:
                say(f"{path} is damaged ({fault}): the checkpoint before it is used")
        return None


def discard(path: Path) -> None:
    """Removes a run directory that never got to its first step."""
    shutil.rmtree(path, ignore_errors=True)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _checksum(tensors: Iterable[tuple[str, Tensor]], values: str) -> str:
    """Of values, and tensors in the order of their names."""
    digest = hashlib.blake2b(values.encode(), digest_size=16)
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _verify(path: Path, checksum: str):
    """Reads a checkpoint back from the disk; removes it and raises `OSError` where it is not what was written."""
    if hasattr(os, "posix_fadvise"):  # else what is read is what the system still has in memory
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        with safe_open(path, "pt") as file:
            names = sorted(file.keys())
            same = _checksum(((name, file.get_tensor(name)) for name in names), file.metadata()["values"]) == checksum
    except (SafetensorError, OSError, KeyError):
        same = False
    if not same:
        path.unlink(missing_ok=True)
        raise OSError(f"{path} reads otherwise than it was written: the disk or the memory of this machine is failing")
