"""The run directory on disk: JSON and safetensors, each written whole or not at all, with a checksum; no pickle.

config.json         all that rebuilds the model: model, input, task, training options, versions
plan.json           the plan of the run, each version written before it is used
split.csv           path, digest and split of every picture
model.safetensors   the final weights (their exponential moving average)
validation.json     what the validation split tells: metrics, and the calibration of the answers
last/               checkpoints with all that an exact resume needs
log.txt             what was said; held by the process that trains the run
metrics.csv  curves.png  confusion.png  batch.png  worst.png
incidents.csv       updates that were not made and why, where there were any
"""

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitreous.cells import csv_rows, guarded, unguarded
from vitreous.errors import InputError
from vitreous.files import write_atomically, write_whole
from vitreous.locks import locked
from vitreous.strict import Header, open_regular, read_json, read_safetensors, safetensors_header

T = TypeVar("T")
FORMAT = 1  # of the run directory; one that this version cannot read is refused
SPLITS = ("train", "validation", "test")
KINDS = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
FIRST_FILES = ("log.txt", "split.csv", "plan.json", "config.json", "initial.safetensors", "batch.png")  # before a step
CHECKSUM = "checksum"  # what one is called in a file: of its tensors and other values
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

    writes = True  # whether this process is the one that writes it; another writes and removes nothing

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: str | os.PathLike) -> "RunDir":
        """A new, empty run directory. Raises `InputError` where something is in the way."""
        cls.check_free(path)
        folder = Path(path)
        (folder / "last").mkdir(parents=True, exist_ok=True)
        return cls(folder)

    @classmethod
    def check_free(cls, path: str | os.PathLike) -> None:
        """Raises `InputError` where a run directory cannot be made because something is in the way."""
        folder = Path(path)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"{folder} exists: expected a new or empty folder for --out; "
                f"`vitreous train --resume {folder}` goes on with a run"
            )
        cls.check_parent(folder)

    @staticmethod
    def check_parent(path: str | os.PathLike) -> None:
        """Raises `InputError` where no folder can be made at a path because of what lies above it."""
        folder = Path(path)
        parent = next(parent for parent in folder.absolute().parents if parent.exists())
        if not os.access(parent, os.W_OK):
            raise InputError(f"{folder} cannot be made: {parent} may not be written to; choose another --out")

    @classmethod
    def open(cls, path: str | os.PathLike) -> "RunDir":
        """A run directory that is there. Raises `InputError` where it is none, or one of another version."""
        folder = Path(path)
        if not (folder / "config.json").is_file():
            what = "holds no config.json" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
            raise InputError(f"{folder} is no run directory: it {what}; expected what `vitreous train` made")
        run = cls(folder)
        if led := list(run._links_out()):
            raise InputError.listing(
                f"{folder} holds links that lead out of it, which are not followed:",
                led,
                "put what they lead to in their place: cp -rL makes such a copy of the whole folder",
            )
        version = run.config().get("format")
        if version != FORMAT:
            raise InputError(
                f"{folder} is a run directory of format {version}: this version of vitreous reads "
                f"format {FORMAT}; use the version that made it ({run.config().get('vitreous', '?')})"
            )
        return run

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps others from training the run, by a lock on log.txt, which alone is never replaced. Raises `InputError`
        where another process has it.
        """
        with locked(self.path / "log.txt") as free:
            if not free:
                raise InputError(
                    f"{self.path} is being trained by another process: expected a run that none trains; "
                    f"once that one has ended, `vitreous train --resume {self.path}` goes on"
                )
            yield

    def config(self) -> dict[str, Any]:
        """config.json."""
        return self.read_json("config.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run. Raises `InputError` where it is missing, damaged, or not as it was written.

        One without a checksum is taken as it is: who changes it by hand says so by removing that.
        """
        try:
            values = read_json(self.path / name)
        except FileNotFoundError:
            raise InputError(
                f"{self.path} has no {name}: was the run interrupted? `vitreous train --resume {self.path}` finishes it"
            ) from None
        except OSError as fault:
            raise InputError(f"{self.path / name} cannot be read ({fault.strerror})") from None
        checksum = values.pop(CHECKSUM, None)
        if checksum not in (None, _checksum([], json.dumps(values))):
            raise InputError(
                f"{self.path / name} is damaged, or was changed (its checksum differs): copy it again from where it "
                f"came. If you changed it on purpose, remove the line that begins with {CHECKSUM!r}, and it is taken so"
            )
        return values

    def parsed(self, name: str, part: str, parse: Callable[[Any], T]) -> T:
        """What one part of a JSON file says, or the whole of it (""). Raises `InputError` where that is damaged."""
        values = self.read_json(name)
        try:
            return parse(values.get(part) if part else values)
        except InputError as fault:
            raise InputError(f"{self.path / name} is damaged: {fault}") from None

    def place(self, network: bool = False) -> str | None:
        """Where the run's pictures were when it was trained; None for an imported one.

        Raises `InputError` where that is on a `network`, unless that may be: a run directory may be another's, and
        what it names there is only asked for if the user says so, or goes on with the run.
        """
        place = self.config().get("data")
        if place is not None and not isinstance(place, str):
            raise InputError(f"{self.path / 'config.json'} is damaged: data is {place!r}, expected a path")
        if place and not network and (place.startswith(("\\\\", "//")) or "://" in place):
            raise InputError(f"the pictures of {self.path} were at {place}, on a network: name that place to use them")
        return place

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Writes a JSON file of the run with its checksum, whole or not at all; numbers that are none become null."""
        if not self.writes:
            return
        values = _finite(values)
        sealed = {CHECKSUM: _checksum([], json.dumps(values)), **values}
        text = json.dumps(sealed, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.path / name, f"{text}\n".encode())

    def write_split(self, rows: Sequence[SplitRow]) -> None:
        """Writes split.csv."""
        if not self.writes:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("path", "digest", "split"))
        writer.writerows((guarded(row.path), row.digest, row.split) for row in rows)
        write_atomically(self.path / "split.csv", text.getvalue().encode())

    def read_split(self) -> list[SplitRow]:
        """Reads split.csv. Raises `InputError` where it is missing, or no such table. Its names are only compared."""
        path = self.path / "split.csv"
        try:
            with open_regular(path) as file:
                text = io.TextIOWrapper(file, encoding="utf-8", newline="")
                titles, *rows = csv_rows(text)
            fit = all(len(row) == 3 and set(row[1]) <= set("0123456789abcdef") and row[2] in SPLITS for row in rows)
            if titles != ["path", "digest", "split"] or not fit:
                raise ValueError(f"expected path, hexadecimal digest, and one of {', '.join(SPLITS)} in every row")
            return [SplitRow(unguarded(name), digest, split) for name, digest, split in rows]
        except (OSError, ValueError, csv.Error) as fault:
            raise InputError(f"{path} cannot be read ({fault})") from None

    def write_weights(self, tensors: dict[str, Tensor], name: str = "model.safetensors") -> None:
        """Writes weights with their checksum, whole or not at all."""
        if not self.writes:
            return
        tensors = _contiguous(tensors)
        metadata = {CHECKSUM: _checksum(sorted(tensors.items()), "")}
        write_whole(self.path / name, lambda temporary: save_file(tensors, temporary, metadata))

    def read_weights(self, name: str = "model.safetensors") -> dict[str, Tensor]:
        """Reads weights. Raises `InputError` where they are missing or damaged."""
        tensors, metadata = self._opened(name, read_safetensors)
        if metadata.get(CHECKSUM) != _checksum(sorted(tensors.items()), ""):
            raise InputError(
                f"{self.path / name} is damaged (its checksum differs): copy it again from where it came; "
                f"of a training here `vitreous train --resume {self.path}` writes it again"
            )
        return tensors

    def weights_header(self, name: str = "model.safetensors") -> Header:
        """What weights say they hold. Raises `InputError` where they are missing or damaged."""
        return self._opened(name, safetensors_header)

    def check_weights(self, expected: Mapping[str, Tensor], name: str = "model.safetensors") -> None:
        """Raises `InputError` where weights that are there have other names, types or shapes than these, which may lie
        on the meta device: before any memory is taken for them.
        """
        found = self.weights_header(name).tensors
        wanted = {key: (KINDS[tensor.dtype], tuple(tensor.shape)) for key, tensor in expected.items()}
        if found != wanted:
            odd = [key for key in (*wanted, *found) if found.get(key) != wanted.get(key)]
            lines = [
                f"{key}: {found.get(key, 'missing')}, expected {wanted.get(key, 'none')}" for key in sorted(set(odd))
            ]
            raise InputError.listing(f"{self.path}: the weights are not those of its config.json:", lines)

    def save(self, checkpoint: Checkpoint, keep: Collection[int] = ()) -> None:
        """Adds a checkpoint to last/: one file with its own checksum, renamed into place when it is on the disk, then
        read back.

        The one before it stays, and those of the steps `keep`; older ones go, and orphaned temporaries. Raises
        `OSError` where it cannot be written, or reads otherwise than it was written; then all older ones stay.
        """
        if not self.writes:
            return
        folder = self.path / "last"
        values = json.dumps({**checkpoint.values, "step": checkpoint.step})
        tensors = _contiguous(checkpoint.tensors)
        metadata = {"values": values, CHECKSUM: _checksum(sorted(tensors.items()), values)}
        target = self._checkpoint_path(checkpoint.step)
        write_whole(target, lambda temporary: save_file(tensors, temporary, metadata))
        _verify(target, metadata[CHECKSUM])
        kept = {self._checkpoint_path(step) for step in keep}
        old = [path for path in sorted(folder.glob("step-*.safetensors"))[:-KEPT] if path not in kept]
        for path in old + sorted(folder.glob(".*.tmp")):
            path.unlink(missing_ok=True)

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, to which training does not come back as they are."""
        if not self.writes:
            return
        for path in (self.path / "last").glob("step-*.safetensors"):
            if path.name > self._checkpoint_path(step).name:
                path.unlink(missing_ok=True)

    def clean(self) -> None:
        """Removes the temporaries that a process left which was killed as it wrote."""
        if not self.writes:
            return
        for path in [*self.path.glob(".*.tmp"), *self.path.glob("last/.*.tmp")]:
            with suppress(OSError):  # a folder that may only be read
                path.unlink(missing_ok=True)

    def _checkpoint_path(self, step: int) -> Path:
        return self.path / "last" / f"step-{step:09}.safetensors"

    def newest(self, say: Callable[[str], None], until: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole, of those up to the step `until`; a damaged one is named and passed over.
        None where there is none. Raises `InputError` where there are some, all damaged.
        """
        found = sorted((self.path / "last").glob("step-*.safetensors"), reverse=True)
        found = [path for path in found if until is None or path.name <= self._checkpoint_path(until).name]
        for path in found:
            try:
                tensors, metadata = read_safetensors(path)
                if metadata[CHECKSUM] != _checksum(sorted(tensors.items()), metadata["values"]):
                    raise ValueError("its checksum differs")
                values = json.loads(metadata["values"])
                return Checkpoint(values.pop("step"), tensors, values)
            except (OSError, ValueError, KeyError, RecursionError) as fault:
                why = "it cannot be read" if isinstance(fault, InputError) else fault
                then = "looking for one before it" if path != found[-1] else "there is none before it"
                say(f"{path} is damaged ({why}): {then}")
        if found:
            raise InputError(
                f"{self.path}: no checkpoint is whole: copy last/ from where there is a copy of it, "
                "or remove last/ to train from the first step again"
            )
        return None

    def _opened(self, name: str, read: Callable[[Path], T]) -> T:
        path = self.path / name
        try:
            return read(path)
        except FileNotFoundError:
            raise InputError(
                f"{self.path} has no {name}: the run is not finished; "
                f"`vitreous train --resume {self.path}` goes on with it"
            ) from None
        except OSError as fault:
            raise InputError(f"{path} cannot be read ({fault.strerror})") from None

    def _links_out(self) -> Iterator[str]:
        """Links in the run directory, and in the folders in it, that lead elsewhere."""
        home = self.path.resolve()
        for folder in (self.path, self.path / "last", self.path / "engines"):
            for entry in os.scandir(folder) if folder.is_dir() else ():
                if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(home):
                    yield entry.path


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint in a run directory, whole or not; -1 where there is none."""
    return max((int(path.stem.removeprefix("step-")) for path in run.glob("last/step-*.safetensors")), default=-1)


def never_trained(path: Path) -> bool:
    """Whether a folder is a run directory that never got to its first step, and holds nothing else."""
    found = [*path.glob("*"), *path.glob("last/*")]
    ours = all(one.name in ("last", *FIRST_FILES) or one.match(".*.tmp") for one in found)
    return ours and (path / "last").is_dir()  # which `create` makes before all else


def discard(path: Path) -> None:
    """Removes a run directory that never got to its first step, by the names of its files: what else is there stays."""
    RunDir(path).clean()
    with suppress(OSError):
        for name in FIRST_FILES:
            (path / name).unlink(missing_ok=True)
        (path / "last").rmdir()
        path.rmdir()


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


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
