"""Readers of files that anyone may have made: each is checked whole before a library sees it, at a bounded cost.

What they refuse is an `InputError` that starts with the file's name and says what to do. A pickle is never run: what
one names is looked at, opcode by opcode, and all but tensors of plain numbers is refused.
"""

import json
import math
import os
import pickletools
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO

from vitreous.errors import InputError

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile
    from torch import Tensor

MOST_JSON = 64 << 20  # bytes of a JSON file: the confusion of two thousand classes has some forty million
MOST_HEADER = 16 << 20  # bytes of a safetensors header, where the format itself allows 100,000,000
MOST_NESTED, MOST_GROUPS, MOST_VALUES = 32, 200_000, 8_000_000  # depth, objects and lists, and commas, of a JSON text
MOST_PICKLED = 500_000  # opcodes of a pickle: a checkpoint of 40 blocks with its optimizer has some fifty thousand
BYTES = {  # of a number, by safetensors' name of its type
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
TENSOR_PARTS = re.compile(  # what a pickle of tensors names, and the options that old checkpoints keep beside them
    r"torch\._utils _rebuild_(tensor|tensor_v2|parameter)|collections OrderedDict|argparse Namespace|torch Size"
    r"|torch (Float|Half|BFloat16|Double|Long|Int|Short|Char|Byte|Bool)Storage|torch\.storage (Untyped|Typed)Storage"
    r"|torch (float16|float32|float64|bfloat16|uint8|int8|int16|int32|int64|bool)"
)
TORCH_MEMBER = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment)"
)
# What zipfile raises on a damaged archive: RuntimeError for passwords and kinds of packing that it does not know.
ZIP_FAULTS = (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError, struct.error, zlib.error)
# How a pickle begins, or an archive with one.
PICKLED = re.compile(rb"\x80[\x02-\x05]|PK\x03\x04.{22,200}/data\.pkl", re.DOTALL)
LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # how torch.save began until 1.6: a magic number, pickled


# Files


def open_regular(path: Path) -> BinaryIO:
    """Opens a file to read; a pipe, a device or a folder, at which a reader would wait or never end, is refused."""
    if path.exists() and not stat.S_ISREG(os.stat(path).st_mode):
        raise InputError(f"{path} is no regular file: expected one that can be read from start to end")
    return open(path, "rb")


# JSON


def read_json(path: Path, most: int = MOST_JSON) -> dict[str, Any]:
    """The object in a JSON file of at most so many bytes. Raises `OSError` where it cannot be opened."""
    with open_regular(path) as file:
        text = file.read(most + 1)
    return parse_json(text, str(path), most)


def parse_json(text: bytes | str, name: str, most: int = MOST_JSON) -> dict[str, Any]:
    """An object of plain values; `name` is what errors call the text.

    Raises `InputError` for text that is no JSON object in UTF-8, that names a key twice, holds NaN, Infinity or numbers
    beyond them, is larger than `most` bytes, is nested deeper than 32, or has too many values.
    """
    try:
        if len(text) > most:
            raise ValueError(f"it is larger than {most:,} bytes")
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        if text.count("[") + text.count("{") > MOST_GROUPS or text.count(",") > MOST_VALUES:
            raise ValueError("it holds too many values")
        values = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)
        if not isinstance(values, dict):
            raise ValueError("expected an object")
        _check_depth(values)
    except RecursionError:
        raise InputError(f"{name} is damaged (it is nested too deeply): expected JSON") from None
    except ValueError as fault:
        raise InputError(f"{name} is damaged ({fault}): expected JSON") from None
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        times = Counter(name for name, _ in pairs)
        raise ValueError(f"it names {next(name for name in times if times[name] > 1)[:200]!r} twice")
    return values


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _finite(word: str) -> float:
    if not math.isfinite(number := float(word)):
        raise ValueError(f"{word[:20]} is beyond all numbers")
    return number


def _check_depth(values: dict[str, Any]):
    level: list[Any] = [values]
    for _ in range(MOST_NESTED):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {MOST_NESTED}")


# Safetensors


@dataclass(frozen=True)
class Header:
    """What a safetensors file says it holds: type and shape by name, and its metadata."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    metadata: dict[str, str]


def read_safetensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """The tensors of a file by name, and its metadata. Raises `InputError` as `safetensors_header` does."""
    from safetensors import SafetensorError, safe_open

    header = safetensors_header(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in header.tensors}, header.metadata
    except SafetensorError as fault:
        raise _no_safetensors(str(path), str(fault)) from None


def safetensors_header(path: Path) -> Header:
    """The header, once all of it is known to be sound: sizes, types, shapes, and that the tensors lie one after the
    other up to the end, without overlap or hole.

    Raises `InputError` where it is not, and `OSError` where the file cannot be opened.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        return parse_header(file.read(min(size, MOST_HEADER + 8)), size, str(path))


def parse_header(start: bytes, size: int, name: str) -> Header:
    """The header of a safetensors file of `size` bytes, from its start; `name` is what errors call it."""
    if start[8:9] != b"{" and PICKLED.match(start):
        raise InputError(
            f"{name} is a pickle, such as torch.save writes, by another name: expected safetensors. Rename it to end "
            "in .pth: `vitreous import` reads weights from that, and runs nothing that is in it"
        )
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > size - 8:
        raise _no_safetensors(name, "its header is longer than the file")
    if length > MOST_HEADER:
        raise _no_safetensors(name, f"its header has {length:,} bytes, and {MOST_HEADER:,} are the most that is read")
    text = start[8 : 8 + length]
    if not text.startswith(b"{"):
        raise _no_safetensors(name, "its header is no JSON object")
    values = parse_json(text, f"the header of {name}", MOST_HEADER)
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _no_safetensors(name, "its metadata are not text by name")
    try:
        found = {key: _entry(value) for key, value in values.items()}
    except (KeyError, TypeError, ValueError) as fault:
        raise _no_safetensors(name, f"an entry of its header is no tensor: {fault}") from None
    end = 0
    for begin, stop, *_ in sorted(found.values()):
        if begin != end:
            raise _no_safetensors(name, "its tensors overlap" if begin < end else "there are holes between its tensors")
        end = stop
    if end != size - 8 - length:
        raise _no_safetensors(name, f"its tensors take {end:,} bytes, and it has {size - 8 - length:,} for them")
    return Header({key: (kind, shape) for key, (_, _, kind, shape) in found.items()}, metadata)


def _entry(values: Any) -> tuple[int, int, str, tuple[int, ...]]:
    """Begin, end, type and shape of a tensor. Raises KeyError, TypeError or ValueError for anything else."""
    if not isinstance(values, dict) or values.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("expected dtype, shape and data_offsets")
    kind, shape, (begin, end) = values["dtype"], values["shape"], values["data_offsets"]
    if not isinstance(shape, list) or len(shape) > 16:
        raise ValueError("its shape is no list of numbers")
    if not all(type(number) is int and 0 <= number < 1 << 48 for number in (*shape, begin, end)):
        raise ValueError("a size or an offset is no whole number in range")
    if end - begin != math.prod(shape) * BYTES[kind]:
        raise ValueError(f"{end - begin:,} bytes are not those of {kind} {shape}")
    return begin, end, kind, tuple(shape)


def _no_safetensors(name: str, why: str) -> InputError:
    return InputError(f"{name} is damaged, or is not safetensors ({why}): copy it again from where it came")


# Archives and pickles


def check_archive(path: Path, times: float) -> list[zipfile.ZipInfo]:
    """The members of a .zip, which together unpack to at most `times` its size, a MiB more or less.

    Raises `InputError` for what is no such archive, with names that are there twice or lead out of a folder, links,
    passwords, or members that overlap.
    """
    expected = "it is no such archive, or damaged; copy it again"
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(4) != b"PK\3\4":
            raise InputError(f"{path} does not begin as an archive does: {expected}")
        file.seek(max(0, size - 22))
        if not file.read(22).startswith(b"PK\5\6"):  # where else it ended, two readers could see two archives
            raise InputError(f"{path} does not end as an archive does: {expected}")
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except ZIP_FAULTS as fault:
            raise InputError(f"{path} cannot be read as an archive ({fault}): {expected}") from None
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise InputError(f"{path} holds members of the same name: {expected}")
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        link = stat.S_ISLNK(member.external_attr >> 16)
        if link or ".." in parts or not parts[0] or PureWindowsPath(parts[0]).drive or member.flag_bits & 1:
            raise InputError(f"{path}: {member.filename!r} in it is a link, a secret, or leads out of it: {expected}")
    if sum(member.compress_size for member in members) > size:
        raise InputError(f"{path}: its members overlap: {expected}")
    if (total := sum(member.file_size for member in members)) > times * size + (1 << 20):
        raise InputError(
            f"{path}: its {size:,} bytes unpack to {total:,}, more than is believed of such a file; "
            "write it again without compression if it is yours"
        )
    return members


def check_torch_file(path: Path) -> None:
    """Raises `InputError` where what torch.save may have written holds more than tensors, or unpacks to more than it
    is.
    """
    with open_regular(path) as file:
        first = file.read(len(LEGACY))
    if first.startswith(b"PK\3\4"):
        members = check_archive(path, times=1)
        pickles = [member for member in members if member.filename.endswith("/data.pkl")]
        strange = [member.filename for member in members if not TORCH_MEMBER.fullmatch(member.filename)]
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if strange or packed or len(pickles) != 1:
            what = f"it holds {strange[0]!r}" if strange else "it is packed" if packed else "it has no data.pkl"
            raise InputError(f"{path} is not what torch.save writes of weights: {what}")
        try:
            with zipfile.ZipFile(path) as archive, archive.open(pickles[0]) as stream:
                _check_pickles(stream, 1, path)
        except InputError:
            raise
        except ZIP_FAULTS as fault:
            raise InputError(f"{path} cannot be read as an archive ({fault}): it is damaged; copy it again") from None
    elif first == LEGACY:
        with open_regular(path) as file:
            _check_pickles(file, 5, path)  # a magic number, a version, sizes, the tensors, their keys
    else:
        raise InputError(f"{path} is not what torch.save writes of weights: it is not opened. Save a state_dict")


def _check_pickles(stream: Any, count: int, path: Path):
    """Looks at pickles that follow each other, and runs none."""
    left = MOST_PICKLED
    for _ in range(count):
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                left -= 1
                named = opcode.name in ("GLOBAL", "INST")
                if (named and not TENSOR_PARTS.fullmatch(str(argument))) or opcode.name in REFUSED:
                    what = str(argument)[:100].replace(" ", ".") if named else opcode.name
                    raise InputError(f"{path} holds more than weights, and is not opened: it asks for {what}")
                if left < 0:
                    raise InputError(f"{path} holds more than weights: more than {MOST_PICKLED:,} parts")
        except (*ZIP_FAULTS, OverflowError, MemoryError) as fault:
            if isinstance(fault, InputError):
                raise
            raise InputError(f"{path} cannot be read as weights alone: {str(fault)[:200]}") from None


REFUSED = {"STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "PERSID"}


def check_memory(sizes: Iterable[int], path: Path) -> None:
    """Raises `InputError` where tensors of so many bytes are more than their file can hold, told by strides of 0."""
    total, size = sum(sizes), path.stat().st_size
    if total > 2 * size:
        raise InputError(f"{path}: its {size:,} bytes claim to be {total:,} of weights; it is damaged or was made up")


def open_npz(path: Path, times: float) -> "NpzFile":
    """The arrays of an .npz that unpack to at most `times` its size, opened without pickles. The caller closes it."""
    import numpy as np

    check_archive(path, times)
    return np.load(path, allow_pickle=False)
