"""Numbers of a claim file as the bytes of one element, if it can hold them exactly."""

from __future__ import annotations

import math
import struct
from functools import cache

import numpy as np

from lockstep.errors import UsageError
from lockstep.formats.leaf import ElementType
from lockstep.verify.numbers.float_formats import FLOATS, TOP, decode

_STRUCTS = {"F64": "<d", "F32": "<f", "F16": "<e"}


def constant(value: object, element: ElementType, where: str) -> bytes:
    """One element in little-endian bytes, from a number, or from its bits as `"0x7fc0"`.

    Raises: UsageError if no element is exactly that.
    """
    found = None
    if isinstance(value, str) and value[:2].lower() == "0x":
        found = _bits(value, element)
    elif isinstance(value, int | float):
        found = _number(value, element)
    if found is None:
        raise UsageError(
            f"{where}: expected a number that {element} holds exactly, got {value!r:.60}",
            hint='choose one that it holds, or give its bits as a word: "0x..."',
        )
    return found


def _bits(text: str, element: ElementType) -> bytes | None:
    if element.n_numbers == 1 and len(text) != 2 + 2 * element.n_bytes:
        return None  # the bits of another type
    try:
        return int(text, 16).to_bytes(element.n_bytes, "little")
    except (ValueError, OverflowError):
        return None


def _number(value: int | float, element: ElementType) -> bytes | None:
    kind = element.name
    if kind in FLOATS:
        return _float(value, kind)
    if kind in ("C64", "C128"):
        part = "F32" if kind == "C64" else "F64"
        real, zero = _float(value, part), _float(0.0, part)
        return None if real is None or zero is None else real + zero
    if value != value or value in (math.inf, -math.inf) or int(value) != value:
        return None
    return _integer(int(value), element)


def _integer(value: int, element: ElementType) -> bytes | None:
    if element.name == "BOOL":
        return bytes([value]) if value in (0, 1) else None
    if element.n_numbers != 1 or element.name[:1] not in ("U", "I"):
        return None
    try:
        return value.to_bytes(element.n_bytes, "little", signed=element.name[0] == "I")
    except OverflowError:
        return None


def _float(value: int | float, kind: str) -> bytes | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    if number != value and value == value:
        return None
    if kind == "BF16":
        wide = _float(value, "F32")
        return wide[2:] if wide and wide[:2] == b"\0\0" else None
    if kind not in _STRUCTS:
        return _small(number, kind)
    try:
        packed = struct.pack(_STRUCTS[kind], number)
    except OverflowError:
        return None
    back = struct.unpack(_STRUCTS[kind], packed)[0]
    return packed if back == number or number != number else None


def _small(number: float, kind: str) -> bytes | None:
    key = "nan" if number != number else number.hex()
    return _patterns(kind).get(key)


@cache
def _patterns(kind: str) -> dict[str, bytes]:
    """The byte of each number of a format of eight bits, by the number's hexadecimal spelling."""
    form = FLOATS[kind]
    numbers = decode(np.arange(256, dtype=np.uint8), form)
    found: dict[str, bytes] = {}
    for i in range(256):
        size = math.ldexp(int(numbers.significand[i]), int(numbers.exponent[i]) - TOP)
        size = math.inf if numbers.infinite[i] else size
        sign = -1.0 if numbers.negative[i] else 1.0
        text = "nan" if numbers.nan[i] else math.copysign(size, sign).hex()
        found.setdefault(text, bytes([i]))
    return found
