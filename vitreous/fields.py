"""Plain values, as JSON has them, to dataclasses: every field of its own type, none unknown, all faults together.

Configs are data: a field is a number, a word, a list of these or another such object, and nothing in it names code.
"""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar

from vitreous.errors import InputError

T = TypeVar("T")
MOST = 1e300  # of a number
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null", dict: "{…}"}


class UnfitError(ValueError):
    """A value of another type than its field: what was expected, and what came."""


def read_fields(cls: type[T], values: Any, title: str) -> T:
    """A dataclass of the values of its fields; lists become tuples, and a whole number may stand for a number.

    Raises `InputError`, under `title`, for fields that are missing, not known, or of another type.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{title}: expected an object of named values, got {_shown(values)}")
    known = {field.name: field for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    faults = [f"{name}: this version knows no such field" for name in values if name not in known]
    found = {}
    for name, field in known.items():
        if name in values:
            try:
                found[name] = fitted(values[name], kinds_of(cls)[name])
            except UnfitError as fault:
                faults.append(f"{name}: {fault}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            faults.append(f"{name} is missing")
    if faults:
        raise InputError.listing(f"{title}:", faults)
    return cls(**found)


def broken_rules(values: Any, rules: Iterable[tuple[str, object, str]]) -> list[str]:
    """Of rules for the fields of a dataclass (name, whether it holds, what is expected) the broken ones, in words."""
    return [f"{name} is {getattr(values, name)!r}: expected {expected}" for name, holds, expected in rules if not holds]


@cache
def kinds_of(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return typing.get_type_hints(cls)


def fitted(value: Any, kind: Any) -> Any:
    """A value as its type has it. Raises `UnfitError` where it is of another."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            try:
                return fitted(value, part)
            except UnfitError:
                continue
        raise UnfitError(f"expected {' or '.join(map(_named, parts))}, got {_shown(value)}")
    if origin is Literal:
        return _checked(value, isinstance(value, str) and value in parts, f"one of {', '.join(parts)}")
    if origin is tuple:
        several = len(parts) == 2 and parts[1] is ...
        holds = isinstance(value, list | tuple) and (several or len(value) == len(parts))
        _checked(value, holds, "a list" if several else f"a list of {len(parts)}")
        return tuple(fitted(v, parts[0] if several else part) for v, part in zip(value, _of(value, parts), strict=True))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        try:
            return read_fields(kind, value, kind.__name__)
        except InputError as fault:
            raise UnfitError(str(fault)) from None
    if kind is float:
        number = type(value) in (int, float) and abs(value) < MOST  # NaN is not
        return float(_checked(value, number, WORDS[float]))
    if kind is int:
        return _checked(value, type(value) is int and abs(value) < 1 << 63, WORDS[int])
    kind = dict if origin is dict else kind
    return value if kind is Any else _checked(value, type(value) is kind, WORDS.get(kind, str(kind)))


def _of(value: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    return parts if parts[-1] is not ... else parts[:1] * len(value)


def _checked(value: Any, holds: bool, expected: str) -> Any:
    if not holds:
        raise UnfitError(f"expected {expected}, got {_shown(value)}")
    return value


def _named(kind: Any) -> str:
    return WORDS.get(kind, "a list" if typing.get_origin(kind) is tuple else getattr(kind, "__name__", str(kind)))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
