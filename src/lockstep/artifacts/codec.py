"""Typed records to JSON values and back, strictly."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lockstep.errors import GateError, InputError

Scalar = bool | int | float | str | None
_SCALARS = (bool, int, float, str, NoneType)
_HINT = "write the file again with this version, or remove it"


def keyed(key: str) -> Any:
    """A field whose JSON key is not a Python name."""
    return dataclasses.field(metadata={"key": key})


@cache
def keys_of(cls: Any) -> dict[str, tuple[str, Any]]:
    """For each JSON key of a record, the name and the type of its field."""
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cls)
    return {f.metadata.get("key", f.name): (f.name, hints[f.name]) for f in fields}


@cache
def _maybe_numbers(cls: Any) -> frozenset[str]:
    """The keys of a record whose values are numbers or null."""
    keys = keys_of(cls).items()
    return frozenset(k for k, (_, hint) in keys if not {int, float}.isdisjoint(get_args(hint)))


def unexplained(record: Any, prefix: str = "") -> set[str]:
    """The paths, without indices, of numbers that are null in a record that gives no reason."""
    found: set[str] = set()
    explained = bool(getattr(record, "reason", ""))
    cls: Any = type(record)
    for key, (name, _) in keys_of(cls).items():
        value = getattr(record, name)
        if value is None:
            if not explained and key in _maybe_numbers(cls):
                found.add(prefix + key)
        elif type(value) not in _SCALARS:
            for item in value if isinstance(value, tuple) else (value,):
                if dataclasses.is_dataclass(item):
                    found |= unexplained(item, f"{prefix}{key}.")
    return found


def encode(value: Any, where: str) -> Any:
    """The JSON value of a record.

    Raises: GateError if a number is not finite.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise GateError(
                f"{where}: expected a finite number, got {value!r}",
                hint="look for the first non-finite value in metrics.jsonl",
            )
        return float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls: Any = type(value)
        keys = keys_of(cls)
        return {k: encode(getattr(value, n), f"{where}.{k}") for k, (n, _) in keys.items()}
    if isinstance(value, dict):
        if not all(isinstance(k, str) for k in value):
            raise TypeError(f"{where}: expected keys that are strings, got {value!r:.80}")
        return {k: encode(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{where}: expected a JSON value or a record, got {type(value).__name__}")


def decode(value: Any, hint: Any, where: str) -> Any:
    """The record, or the part of one, that a JSON value spells.

    Raises: InputError naming the key if a key is missing, unknown or of another type.
    """
    if type(hint) is type:  # a class as it is: most hints, and `typing` is slow
        is_record = dataclasses.is_dataclass(hint)
        return (_decode_record if is_record else _decode_scalar)(value, hint, where)
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        return _decode_union(value, args, where)
    if origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        raise _wrong(where, "one of " + ", ".join(map(repr, args)), value)
    if origin is tuple:
        return _decode_tuple(value, args, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        return {k: decode(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return _decode_record(value, hint, where)
    return _decode_scalar(value, hint, where)


def _decode_scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is float and type(value) is int and abs(value) < 1 << 1023:
        return float(value)
    if type(value) is float and not math.isfinite(value):  # JSON spells it 1e999
        raise _wrong(where, "a finite number", value)
    if hint in _SCALARS and type(value) is hint:
        return value
    raise _wrong(where, getattr(hint, "__name__", str(hint)), value)


def _decode_union(value: Any, arms: tuple[Any, ...], where: str) -> Any:
    if value is None and NoneType in arms:
        return None
    arms = tuple(arm for arm in arms if arm is not NoneType)
    for arm in arms[:-1]:
        try:
            return decode(value, arm, where)
        except InputError:
            continue
    return decode(value, arms[-1], where)


def _decode_tuple(value: Any, args: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(where, "a list", value)
    if args[1:] == (...,):
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise _wrong(where, f"a list of {len(args)}", value)
    pairs = enumerate(zip(value, args, strict=True))
    return tuple(decode(item, arm, f"{where}[{i}]") for i, (item, arm) in pairs)


def _decode_record(value: Any, cls: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    keys = keys_of(cls)
    missing, extra = sorted(keys.keys() - value.keys()), sorted(value.keys() - keys.keys())
    if missing:
        raise InputError(f"{where}: expected the key {missing[0]!r}, got none", hint=_HINT)
    if extra:
        raise InputError(f"{where}: expected no key {extra[0]!r}, got one", hint=_HINT)
    return cls(**{n: decode(value[k], t, f"{where}.{k}") for k, (n, t) in keys.items()})


def _wrong(where: str, expected: str, value: Any) -> InputError:
    return InputError(f"{where}: expected {expected}, got {value!r:.80}", hint=_HINT)
