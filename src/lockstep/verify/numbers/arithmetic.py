"""Sums and products of numbers as IEEE 754 has them, before the one rounding that follows."""

from __future__ import annotations

import numpy as np

from lockstep.verify.numbers.float_formats import TOP, U64, Numbers, normalise

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def power_of_two(numbers: Numbers, power: int) -> Numbers:
    """The numbers times 2^power, exactly."""
    numbers.exponent += power
    return numbers


def times(numbers: Numbers, factor: Numbers) -> Numbers:
    """The numbers times one finite factor but 0; the lowest bit says whether more follows."""
    other = np.uint64(factor.significand[0])
    upper, lower = _product(numbers.significand, other)
    rest = np.uint64(64 - TOP)
    significand = (upper << rest) | (lower >> np.uint64(TOP))
    significand |= (lower & np.uint64((1 << TOP) - 1) != 0).astype(np.uint64)
    return _carried(
        Numbers(
            negative=numbers.negative ^ factor.negative[0],
            exponent=numbers.exponent + factor.exponent[0],
            significand=significand,
            nan=numbers.nan,
            infinite=numbers.infinite,
            payload=numbers.payload,
        )
    )


def plus(numbers: Numbers, term: Numbers) -> Numbers:
    """The numbers plus one finite number; the lowest bit says whether more follows."""
    other_negative, other_exponent = bool(term.negative[0]), term.exponent[0]
    theirs, mine = np.uint64(term.significand[0]), numbers.significand
    larger = (numbers.exponent > other_exponent) & (mine != 0)
    larger |= (numbers.exponent == other_exponent) & (mine >= theirs)
    large = np.where(larger, mine, theirs)
    apart = np.abs(numbers.exponent - other_exponent)
    small = _shifted(np.where(larger, theirs, mine), apart.astype(np.uint64))
    same = numbers.negative == other_negative
    significand = np.where(same, large + small, large - small)
    negative = np.where(larger, numbers.negative, other_negative) & (significand != 0)
    total = _carried(
        Numbers(
            negative=np.where(numbers.nan | numbers.infinite, numbers.negative, negative),
            exponent=np.where(larger, numbers.exponent, other_exponent),
            significand=significand,
            nan=numbers.nan,
            infinite=numbers.infinite,
            payload=numbers.payload,
        )
    )
    lost = (total.significand != 0) & (total.significand < np.uint64(1 << TOP))
    normalise(total, np.flatnonzero(lost))
    return total


def _product(values: U64, factor: np.uint64) -> tuple[U64, U64]:
    """The upper and the lower 64 bits of the products."""
    high, low = values >> _HALF, values & _LOW
    factor_high, factor_low = factor >> _HALF, factor & _LOW
    cross, other = high * factor_low, low * factor_high
    lowest = low * factor_low
    middle = (lowest >> _HALF) + (cross & _LOW) + (other & _LOW)
    upper = high * factor_high + (cross >> _HALF) + (other >> _HALF) + (middle >> _HALF)
    return upper, (middle << _HALF) | (lowest & _LOW)


def _shifted(values: U64, n_bits: U64) -> U64:
    """Shifted to the right; the lowest bit is set if a set bit was cut off."""
    by = np.minimum(n_bits, np.uint64(63))
    kept = values >> by
    cut: U64 = ((kept << by) != values).astype(np.uint64)
    return kept | cut


def _carried(numbers: Numbers) -> Numbers:
    """The same numbers, where the significand has run into the bit above `TOP`."""
    over = numbers.significand >> np.uint64(TOP + 1)
    numbers.significand = _shifted(numbers.significand, over)
    numbers.exponent = numbers.exponent + over.astype(np.int64)
    return numbers
