"""Integers among each other, and as numbers that can be rounded to floating point."""

from __future__ import annotations

import numpy as np

from lockstep.verify.claim import Words
from lockstep.verify.numbers.float_formats import TOP, U64, Numbers, normalise

# name: (1 if signed, bits); BOOL counts as the byte that it is, so that damage is not hidden
INTEGERS: dict[str, tuple[int, int]] = {
    "BOOL": (0, 8),
    **{f"{kind}{n}": (int(kind == "I"), n) for n in (8, 16, 32, 64) for kind in ("U", "I")},
}


def holds_integer(target: str, source: str) -> bool:
    """Whether every value of one type is one of the other."""
    signed, n_bits = INTEGERS[target]
    source_signed, n_source_bits = INTEGERS[source]
    if target == "BOOL":
        return source == "BOOL"
    return n_bits - signed >= n_source_bits - source_signed and signed >= source_signed


def to_integer(words: Words, source: str, target: str, overflow: str) -> Words:
    """The words of another integer type; values that do not fit wrap, or saturate."""
    signed, n_bits = INTEGERS[target]
    dtype = np.dtype(f"<u{n_bits // 8}")
    values = words.view(f"<{'i' if INTEGERS[source][0] else 'u'}{words.itemsize}")
    if overflow == "saturate":
        low = -(1 << (n_bits - 1)) if signed else 0
        high = (1 << (n_bits - signed)) - 1
        limits = np.iinfo(values.dtype)
        values = np.clip(values, max(low, int(limits.min)), min(high, int(limits.max)))
    return values.astype(dtype)


def integer_numbers(words: Words, name: str) -> Numbers:
    """The numbers that integer words stand for."""
    none = np.zeros(words.shape, np.bool_)
    wide: U64 = words.astype(np.uint64)
    negative = none
    if INTEGERS[name][0]:
        values = words.view(f"<i{words.itemsize}").astype(np.int64)
        negative = values < 0
        wide = np.where(negative, (~values).astype(np.uint64) + np.uint64(1), wide)
    over: U64 = wide >> np.uint64(TOP + 1)
    kept: U64 = np.bitwise_or(wide >> over, wide & over)
    numbers = Numbers(
        negative=negative,
        exponent=over.astype(np.int64) + TOP,
        significand=kept,
        nan=none,
        infinite=none,
        payload=np.zeros(words.shape, np.uint64),
    )
    normalise(numbers, np.flatnonzero(kept))
    return numbers
