"""Binary floating-point formats as integers: what a pattern of bits means, exactly.

Nothing here asks the floating-point unit for a rounding or for a subnormal, so that no flush mode,
library or processor has a say.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]

TOP = 62  # the bit of a significand that stands for one; the bit above is room for a sum


@dataclass(frozen=True)
class FloatFormat:
    """Sign, exponent and mantissa, and what the patterns at the end of the range are.

    `ieee` has infinities and NaNs; `fn` has neither infinity nor more than one NaN for each sign;
    `fnuz` has one NaN, in the place of the negative zero.
    Source: IEEE 754; OCP 8-bit floating point; arXiv:2206.02915
    """

    name: str
    n_bytes: int
    n_mantissa: int
    bias: int
    ends: Literal["ieee", "fn", "fnuz"] = "ieee"

    @cached_property
    def sign(self) -> int:
        """The bit of the sign."""
        return 1 << (8 * self.n_bytes - 1)

    @cached_property
    def infinity(self) -> int:
        """The pattern of the positive infinity; -1 where there is none."""
        return self.n_exponents << self.n_mantissa if self.ends == "ieee" else -1

    @cached_property
    def largest(self) -> int:
        """The pattern of the largest finite number."""
        return {"ieee": self.infinity - 1, "fn": self.sign - 2, "fnuz": self.sign - 1}[self.ends]

    @cached_property
    def n_exponents(self) -> int:
        """The largest exponent field."""
        return (self.sign >> self.n_mantissa) - 1

    @cached_property
    def quiet(self) -> int:
        """The bit of a NaN that makes it quiet; 0 where there is but one NaN."""
        return 1 << (self.n_mantissa - 1) if self.ends == "ieee" else 0

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The unsigned integers that hold it."""
        return np.dtype(f"<u{self.n_bytes}")

    def holds(self, other: FloatFormat) -> bool:
        """Whether every number of the other format is one of this, special ones included."""
        specials = self.ends == "ieee" or other.ends != "ieee"
        zeros = self.ends != "fnuz" or other.ends == "fnuz"
        fine = self.n_mantissa >= other.n_mantissa and _bottom(self) <= _bottom(other)
        return specials and zeros and fine and _top(self) >= _top(other)


def _bottom(form: FloatFormat) -> int:
    """The exponent of the smallest subnormal number."""
    return 1 - form.bias - form.n_mantissa


def _top(form: FloatFormat) -> int:
    """The exponent of the largest finite number."""
    return (form.largest >> form.n_mantissa) - form.bias


FLOATS: dict[str, FloatFormat] = {
    form.name: form
    for form in (
        FloatFormat("F64", 8, 52, 1023),
        FloatFormat("F32", 4, 23, 127),
        FloatFormat("F16", 2, 10, 15),
        FloatFormat("BF16", 2, 7, 127),
        FloatFormat("F8_E5M2", 1, 2, 15),
        FloatFormat("F8_E4M3", 1, 3, 7, "fn"),
        FloatFormat("F8_E5M2FNUZ", 1, 2, 16, "fnuz"),
        FloatFormat("F8_E4M3FNUZ", 1, 3, 8, "fnuz"),
    )
}


@dataclass(slots=True)
class Numbers:
    """A block of numbers: (-1)^negative * significand * 2^(exponent - TOP), or NaN, or infinite.

    A significand is 0 or has its bit `TOP` set. `payload` is a NaN's mantissa field, the quiet bit
    included, moved to the top of 64 bits.
    """

    negative: Flags
    exponent: I64
    significand: U64
    nan: Flags
    infinite: Flags
    payload: U64


def decode(words: NDArray[Any], form: FloatFormat) -> Numbers:
    """What the patterns mean."""
    wide = words.astype(np.uint64)
    negative = (wide & np.uint64(form.sign)) != 0
    magnitude = wide & np.uint64(form.sign - 1)
    mantissa = magnitude & np.uint64((1 << form.n_mantissa) - 1)
    field = (magnitude >> np.uint64(form.n_mantissa)).astype(np.int64)
    nan, infinite = special(wide, form)
    one = np.where(field > 0, np.uint64(1 << form.n_mantissa), np.uint64(0))
    significand = (mantissa | one) << np.uint64(TOP - form.n_mantissa)
    numbers = Numbers(
        negative=negative,
        exponent=np.maximum(field, 1) - form.bias,
        significand=significand,
        nan=nan,
        infinite=infinite,
        payload=_payload(mantissa, form),
    )
    normalise(numbers, np.flatnonzero((field == 0) & (mantissa != 0)))
    return numbers


def _payload(mantissa: U64, form: FloatFormat) -> U64:
    """Mantissas at the top of 64 bits; the one NaN of a format that has no more is quiet."""
    if form.ends != "ieee":
        return np.full(mantissa.shape, 1 << 63, np.uint64)
    return mantissa << np.uint64(64 - form.n_mantissa)


def normalise(numbers: Numbers, places: NDArray[np.intp]) -> None:
    """Moves the first set bit of these significands, none of which is 0, to bit `TOP`."""
    if places.size:
        found = numbers.significand[places]
        shift = TOP - bit_length(found) + 1
        numbers.significand[places] = found << shift.astype(np.uint64)
        numbers.exponent[places] -= shift


def bit_length(values: U64) -> I64:
    """How many bits each integer below 2**63 takes."""
    left, length = values.copy(), np.zeros(values.shape, np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        more = left >= np.uint64(1 << step)
        length += np.where(more, step, 0)
        left = np.where(more, left >> np.uint64(step), left)
    return length + (left > 0)


def special(words: NDArray[Any], form: FloatFormat) -> tuple[Flags, Flags]:
    """Which patterns are NaN, and which are infinite."""
    if form.ends == "fnuz":
        return words == form.sign, np.zeros(words.shape, np.bool_)
    magnitude = words & words.dtype.type(form.sign - 1)
    if form.ends == "fn":
        return magnitude > form.largest, np.zeros(words.shape, np.bool_)
    return magnitude > form.infinity, magnitude == form.infinity
