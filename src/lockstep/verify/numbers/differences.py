"""What differs between two blocks of words: counts by kind, first and last, worst, in one pass.

Kinds of floating point, the first that fits: `nan_payload` both are NaN; `nan_vs_number`;
`inf_vs_number` one is infinite; `sign_of_zero`; `sign` the same magnitude; `one_ulp`; `few_ulp` up
to 4; `exponent`; `other`. Integers have `value`; blocks `bytes`; packed pairs `low_nibble`,
`high_nibble`, `both_nibbles`. A complex number has the kind of its first part that differs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lockstep.artifacts.verification import Difference, Spot, Verdict
from lockstep.formats.leaf import ElementType, Leaf
from lockstep.verify.claim import Claim, Equality, Plan, Words
from lockstep.verify.numbers.float_formats import FLOATS, FloatFormat, special
from lockstep.verify.numbers.integers import INTEGERS
from lockstep.verify.numbers.numbers_text import (
    as_float64,
    bits_text,
    component,
    components,
    value_text,
)

BLOCK = 1 << 15  # elements at a time; the scratch of one block is about 60 bytes for each
FEW_ULP = 4
FLOAT_KINDS = (
    "other", "exponent", "few_ulp", "one_ulp", "sign", "sign_of_zero", "inf_vs_number",
    "nan_vs_number", "nan_payload",
)  # fmt: skip
NIBBLE_KINDS = ("low_nibble", "high_nibble", "both_nibbles")
FORGIVEN = ("sign_of_zero", "nan_payload")  # under the equality of values

Where = Callable[[int], tuple[int, str, int]]
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Place:
    """An element that differs: where it lies on both sides, and its words."""

    target: int
    leaf: str
    source: int
    expected: bytes
    found: bytes


class Tally:
    """The differences of one claim. Tallies of parts merge to the same in any order."""

    def __init__(self, element: ElementType, equality: Equality) -> None:
        self._element, self._equality = element, equality
        self._form = FLOATS.get(component(element))
        self._names = _kinds_of(element, self._form)
        self._counts = np.zeros(len(self._names), np.int64)
        self._n_outside = 0
        self._first: Place | None = None
        self._last: Place | None = None
        self._worst_ulp: int | None = None
        self._max_abs: float | None = None

    @property
    def n_differ(self) -> int:
        """How many elements have other bits."""
        return int(self._counts.sum())

    @property
    def kinds(self) -> dict[str, int]:
        """How many elements differ in each way that occurs."""
        pairs = zip(self._names, self._counts.tolist(), strict=True)
        return {name: n for name, n in pairs if n}

    def add(self, expected: Words, found: Words, where: Where) -> None:
        """Counts one block; `where(i)` is called for its first and last difference only."""
        a, b = (self._rows(words) for words in (expected, found))
        first, last = -1, -1
        for start in range(0, len(a), BLOCK):
            differs = a[start : start + BLOCK] != b[start : start + BLOCK]
            if differs.ndim > 1:
                differs = differs.any(axis=1)
            places = np.flatnonzero(differs)
            if places.size:
                first = start + int(places[0]) if first < 0 else first
                last = start + int(places[-1])
                self._count(a[start : start + BLOCK][places], b[start : start + BLOCK][places])
        for i in sorted({first, last} - {-1}):
            target, leaf, source = where(i)
            self._note(Place(target, leaf, source, a[i].tobytes(), b[i].tobytes()))

    def merge(self, other: Tally) -> None:
        """Adds what another tally of the same claim has counted."""
        self._counts += other._counts
        self._n_outside += other._n_outside
        self._worst_ulp = _larger(self._worst_ulp, other._worst_ulp)
        self._max_abs = _larger(self._max_abs, other._max_abs)
        for place in (other._first, other._last):
            if place:
                self._note(place)

    def verdict(self, claim: Claim) -> tuple[Verdict, str]:
        """What follows for a claim of which every element was compared, and why.

        NaN is equal to the same bits only; under `values` and `within` to any NaN, never to a
        number. An infinity is within nothing but itself.
        """
        if not self.n_differ:
            inexact = [move.text for move in claim.values if not move.exact]
            if inexact:
                return "WITHIN", f"the same bits, but {', '.join(inexact)} is not exactly specified"
            if claim.is_identity:
                return "EXACT_BITS", "every element has the same bits"
            return "EXACT_UNDER", f"every element has the same bits under {claim.text}"
        kinds = ", ".join(f"{name} {n}" for name, n in self.kinds.items())
        if self._equality.kind == "values" and not self._n_outside:
            return "EXACT_VALUES", f"only signs of zeros and payloads of NaN differ: {kinds}"
        if self._equality.kind == "within" and not self._n_outside:
            return "WITHIN", f"{self.n_differ} elements differ, all within the stated bound"
        outside = f", {self._n_outside} beyond what is allowed" * (self._equality.kind != "bits")
        return "FAIL", f"{self.n_differ} elements differ{outside}: {kinds}"

    def difference(self, plan: Plan, claim: Claim) -> Difference | None:
        """What the report says of the differences; None if there are none."""
        if self._first is None or self._last is None:
            return None
        return Difference(
            n_differ=self.n_differ,
            kinds=self.kinds,
            first=self._spot(self._first, plan, claim),
            last=self._spot(self._last, plan, claim),
            worst_ulp=self._worst_ulp,
            max_abs=self._max_abs,
        )

    # --- inside

    def _rows(self, words: Words) -> Words:
        """One row, or one word, for each element."""
        if self._element.name == "C64":
            return components(words.reshape(-1), self._element)
        if self._element.name == "C128":
            return words.reshape(-1, 2)
        return words if words.ndim == 1 else words.reshape(len(words), -1)

    def _note(self, place: Place) -> None:
        if self._first is None or place.target < self._first.target:
            self._first = place
        if self._last is None or place.target > self._last.target:
            self._last = place

    def _count(self, a: Words, b: Words) -> None:
        """Counts elements all of which differ."""
        if self._form is None:
            self._count_others(a, b)
        elif a.ndim == 1:
            kinds, outside = self._classify(a, b, self._form)
            self._counts += np.bincount(kinds, minlength=len(self._names))
            self._n_outside += int(outside.sum())
        else:
            self._count_pairs(a, b, self._form)

    def _count_pairs(self, a: Words, b: Words, form: FloatFormat) -> None:
        """Complex numbers: parts that do not differ are left out, then each counts once."""
        differs = a != b
        kinds = np.zeros(differs.shape, np.uint8)
        outside = np.zeros(differs.shape, np.bool_)
        kinds[differs], outside[differs] = self._classify(a[differs], b[differs], form)
        first = kinds[np.arange(len(kinds)), differs.argmax(axis=1)]
        self._counts += np.bincount(first, minlength=len(self._names))
        self._n_outside += int(outside.any(axis=1).sum())

    def _classify(
        self, a: Words, b: Words, form: FloatFormat
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The kind of each pair, and whether it is beyond what the equality allows."""
        sign, low = a.dtype.type(form.sign), a.dtype.type(form.sign - 1)
        size_a, size_b = a & low, b & low
        opposite = ((a ^ b) & sign) != 0
        larger, smaller = np.maximum(size_a, size_b), np.minimum(size_a, size_b)
        ulp = np.where(opposite, larger + smaller, larger - smaller)
        places = np.uint8(form.n_mantissa)
        kinds = ((size_a >> places) != (size_b >> places)).astype(np.uint8)
        kinds[ulp <= FEW_ULP] = FLOAT_KINDS.index("few_ulp")
        kinds[ulp == 1] = FLOAT_KINDS.index("one_ulp")
        kinds[opposite & (size_a == size_b)] = FLOAT_KINDS.index("sign")
        kinds[ulp == 0] = FLOAT_KINDS.index("sign_of_zero")
        number = np.ones(len(a), np.bool_)
        if form.ends == "fnuz" or int(larger.max()) > form.largest:
            number = _mark_specials(kinds, a, b, form)
        self._measure(a, b, ulp, number, form)
        return kinds, self._outside(a, b, kinds, ulp, number, form)

    def _measure(
        self, a: Words, b: Words, ulp: Words, number: NDArray[np.bool_], form: FloatFormat
    ) -> None:
        """Keeps the worst over pairs of finite numbers."""
        if not number.all():
            a, b, ulp = a[number], b[number], ulp[number]
        if a.size:
            self._worst_ulp = _larger(self._worst_ulp, int(ulp.max()))
            with np.errstate(over="ignore"):
                gap = float(np.abs(as_float64(a, form) - as_float64(b, form)).max())
            self._max_abs = _larger(self._max_abs, min(gap, sys.float_info.max))

    def _outside(
        self,
        a: Words,
        b: Words,
        kinds: NDArray[np.uint8],
        ulp: Words,
        number: NDArray[np.bool_],
        form: FloatFormat,
    ) -> NDArray[np.bool_]:
        if self._equality.kind == "bits":
            return np.ones(len(a), np.bool_)
        forgiven = np.isin(kinds, [FLOAT_KINDS.index(name) for name in FORGIVEN])
        if self._equality.kind == "within":
            near = np.zeros(len(a), np.bool_)
            near[number] = self._near(
                as_float64(a[number], form), as_float64(b[number], form), ulp[number]
            )
            forgiven |= near
        return ~forgiven

    def _near(
        self, a: NDArray[np.float64], b: NDArray[np.float64], units: Words
    ) -> NDArray[np.bool_]:
        """Whether pairs are within the bound; `a` is what is expected."""
        near = np.zeros(len(a), np.bool_)
        if self._equality.ulp is not None:
            near |= units <= self._equality.ulp
        if self._equality.atol is not None or self._equality.rtol is not None:
            with np.errstate(over="ignore"):
                bound = (self._equality.atol or 0.0) + (self._equality.rtol or 0.0) * np.abs(a)
                near |= np.abs(a - b) <= bound
        return near

    def _count_others(self, a: Words, b: Words) -> None:
        """Integers, by value; blocks and packed pairs, by their bytes."""
        self._n_outside += len(a)
        if self._names == NIBBLE_KINDS:
            changed = a ^ b
            low, high = (changed & 15) != 0, (changed >> 4) != 0
            kinds = np.where(low & high, 2, np.where(high, 1, 0))
            self._counts += np.bincount(kinds.reshape(-1), minlength=3)
            return
        self._counts[0] += len(a)
        if self._names != ("value",):
            return
        kind = "i" if INTEGERS.get(self._element.name, (0, 0))[0] else "u"
        values_a, values_b = (words.view(f"<{kind}{words.itemsize}") for words in (a, b))
        larger = values_a > values_b
        gap = np.where(larger, a - b, b - a)  # right modulo 2**n, and it is below that
        self._max_abs = _larger(self._max_abs, float(gap.max()))
        if self._equality.kind == "within":
            near = self._near(values_a.astype(np.float64), values_b.astype(np.float64), gap)
            self._n_outside -= int(near.sum())

    def _spot(self, place: Place, plan: Plan, claim: Claim) -> Spot:
        expected, found = (
            np.frombuffer(raw, self._word_type(len(raw))) for raw in (place.expected, place.found)
        )
        return Spot(
            target_index=_index(plan.target.leaves.get(claim.target), place.target),
            source=place.leaf,
            source_index=_index(plan.source.leaves.get(place.leaf), place.source),
            expected_bits=bits_text(expected),
            found_bits=bits_text(found),
            expected=value_text(expected, self._element),
            found=value_text(found, self._element),
        )

    def _word_type(self, n_bytes: int) -> str:
        whole = self._element.n_numbers == 1 and n_bytes in (1, 2, 4, 8)
        return f"<u{n_bytes}" if whole else "u1"


def _kinds_of(element: ElementType, form: FloatFormat | None) -> tuple[str, ...]:
    if form:
        return FLOAT_KINDS
    if element.n_numbers == 2 and element.n_bytes == 1:
        return NIBBLE_KINDS
    return ("bytes",) if element.n_numbers > 1 else ("value",)


def _mark_specials(
    kinds: NDArray[np.uint8], a: Words, b: Words, form: FloatFormat
) -> NDArray[np.bool_]:
    """Gives pairs with NaN or infinity their kind; returns which pairs are finite numbers."""
    nan_a, infinite_a = special(a, form)
    nan_b, infinite_b = special(b, form)
    kinds[infinite_a ^ infinite_b] = FLOAT_KINDS.index("inf_vs_number")
    kinds[nan_a ^ nan_b] = FLOAT_KINDS.index("nan_vs_number")
    kinds[nan_a & nan_b] = FLOAT_KINDS.index("nan_payload")
    return ~(nan_a | nan_b | infinite_a | infinite_b)


def _larger(a: Number | None, b: Number | None) -> Number | None:
    return max((x for x in (a, b) if x is not None), default=None)


def _index(leaf: Leaf | None, flat: int) -> tuple[int, ...]:
    """A flat element as an index into the leaf; () where there is no leaf."""
    shape: Sequence[int] = leaf.grid_shape if leaf else ()
    index: list[int] = []
    for n in reversed(shape):
        flat, i = divmod(flat, n) if n else (0, 0)
        index.append(i)
    return tuple(reversed(index))
