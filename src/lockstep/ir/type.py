"""What a value is: its element type and its dimensions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from lockstep.errors import UsageError

DType = Literal["f32", "f64", "i32", "f16", "u8", "i8", "i16"]
Dim = int | str  # a str names a symbol of the graph: a count that is known only at the call

ITEM_BYTES: dict[DType, int] = {
    "f32": 4,
    "f64": 8,
    "i32": 4,
    "f16": 2,
    "u8": 1,
    "i8": 1,
    "i16": 2,
}
_PATTERN = re.compile(r"(\w+)\[([\w,]*)\]")


@dataclass(frozen=True, slots=True)
class Type:
    """An element type and dimensions; no dimensions is a scalar."""

    dtype: DType
    dims: tuple[Dim, ...]

    def __post_init__(self) -> None:
        for dim in self.dims:
            if isinstance(dim, int) and dim <= 0:
                raise UsageError(f"type {self}: expected dimensions of at least 1, got {dim}")

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"

    def shape(self, symbols: Mapping[str, int]) -> tuple[int, ...]:
        """The dimensions with each symbol replaced by its value."""
        return tuple(symbols[d] if isinstance(d, str) else d for d in self.dims)

    def n_elements(self, symbols: Mapping[str, int]) -> int:
        """How many elements there are when the symbols have these values."""
        return prod(self.shape(symbols))

    def flat(self) -> Type:
        """The type with all dimensions, none of them a symbol, in one."""
        return Type(self.dtype, (self.n_elements({}),))

    def n_bytes(self, symbols: Mapping[str, int]) -> int:
        """How many bytes the elements take when the symbols have these values."""
        return self.n_elements(symbols) * ITEM_BYTES[self.dtype]


def f32(*dims: Dim) -> Type:
    """A float32 type."""
    return Type("f32", dims)


def f64(*dims: Dim) -> Type:
    """A float64 type."""
    return Type("f64", dims)


def i32(*dims: Dim) -> Type:
    """An int32 type."""
    return Type("i32", dims)


def f16(*dims: Dim) -> Type:
    """A float16 type; C sees its bits as uint16_t."""
    return Type("f16", dims)


def u8(*dims: Dim) -> Type:
    """A type of bytes: packed weights."""
    return Type("u8", dims)


def i8(*dims: Dim) -> Type:
    """An int8 type."""
    return Type("i8", dims)


def i16(*dims: Dim) -> Type:
    """An int16 type."""
    return Type("i16", dims)


def parse_type(text: str) -> Type:
    """Reads what `str(Type)` prints.

    Raises: UsageError if the text is not a type.
    """
    match = _PATTERN.fullmatch(text)
    if match is None or match[1] not in get_args(DType):
        raise UsageError(f"type: expected something like f32[M,64], got {text!r}")
    dims = (int(d) if d.isdigit() else d for d in match[2].split(",") if d)
    return Type(match[1], tuple(dims))  # type: ignore[arg-type]  # checked against DType above
