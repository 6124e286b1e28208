"""One factor or divisor for all elements: an interval from sampled pairs, and numbers in it.

Every element that was looked at bounds the factor by the rounding of what is there; a number that
lies in all bounds is tried like any other hypothesis, over every element, and only then said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite, sqrt

import numpy as np
from numpy.typing import NDArray

from lockstep.artifacts.verification import Diagnosis
from lockstep.formats.leaf import ElementType
from lockstep.verify.claim import Words
from lockstep.verify.diagnosis.hypotheses import (
    Case,
    Hypothesis,
    Values,
    move_or_none,
    value_places,
)
from lockstep.verify.numbers.float_formats import FLOATS, FloatFormat, decode
from lockstep.verify.numbers.numbers_text import as_float64
from lockstep.verify.numbers.rounding import encode
from lockstep.verify.numbers.values import Move

FITTED_BITS = 64  # that the elements say of a factor, so that it is no accident
N_SAMPLED = 256  # pairs from which a factor is worked out
N_BEFORE_CAST = 1024  # of them where a cast hid most bits of each
FEW_DIGITS, MAX_DIGITS = 3, 17  # of a factor that is tried first, and of any
MAX_ROOT = 4096  # whole numbers whose roots and parts are known by name
LOOSE = 4.0  # halves of the last place by which ratios that are the same may be apart

Numbers64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Numbers that are claimed (x) and found (y), and how far each y may be rounded."""

    x: Numbers64
    y: Numbers64
    half: Numbers64

    def factor(self, loose: float = 1.0) -> tuple[float, float]:
        """The least and the largest factor that explains all pairs; crossed if none does."""
        half = loose * self.half
        return _common((self.y - half) / self.x, (self.y + half) / self.x)

    def divisor(self) -> tuple[float, float]:
        """The same of what x was divided by."""
        return _common(self.x / (self.y + self.half), self.x / (self.y - self.half))


def factor_hypotheses(case: Case) -> Iterator[Hypothesis]:
    """Numbers that all elements may have been multiplied with, or divided by, simple ones first."""
    for before, element, casts, said in value_places(case):
        pairs = _pairs(case, before, element, N_BEFORE_CAST if casts else N_SAMPLED)
        if pairs is None:
            continue
        for factor, known in _factors(pairs, FLOATS[element.name]):
            for compute in dict.fromkeys((element.name, "F32", "F64")):
                move = move_or_none("scale", element, factor, compute=compute)
                if move is not None:
                    where = "" if compute == element.name else f" in {compute}"
                    text = f"scaled by {factor!r}{known}{where}{said}"
                    claim = case.with_values(*before, move, *casts)
                    yield Hypothesis("scaled", text, claim)
        form = FLOATS["F64" if element.name == "F64" else "F32"]
        divisor = simplest(*pairs.divisor(), form, MAX_DIGITS)
        if divisor is not None:
            rule = partial(_divided, form=FLOATS[element.name], step=form, by=divisor)
            move = Move(f"divided by {divisor!r}", element, element, rule)
            text = f"divided by {divisor!r} in {form.name}{said}"
            yield Hypothesis("divided", text, case.with_values(*before, move, *casts))


def same_ratio(case: Case) -> Diagnosis | None:
    """What is seen of a factor that no exact rule explains: an observation, not a cause."""
    if not case.is_simple or case.target.element.name not in FLOATS:
        return None
    pairs = _pairs(case, case.claim.values, case.target.element, N_SAMPLED)
    if pairs is None:
        return None
    low, high = pairs.factor(LOOSE)
    if not low <= high or low <= 1.0 <= high:
        return None
    text = (
        f"each of {len(pairs.x)} elements that were looked at is about {(low + high) / 2:.6g} "
        "times what is claimed: the ratio is the same within rounding, and no exact rule was found"
    )
    return Diagnosis(hypothesis="same_ratio", text=text, confirmed=False)


def _pairs(case: Case, before: Values, element: ElementType, n_sampled: int) -> Pairs | None:
    """The sampled pairs of normal numbers; None if they say too little of a factor."""
    form, found_form = FLOATS[element.name], FLOATS[case.target.element.name]
    spans = _spans(case.layout.n_elements, n_sampled)
    part = replace(case.claim, values=before)
    a = claimed = np.concatenate([case.expected(part, *span) for span in spans])
    for move in case.claim.values[len(before) :]:
        claimed = move.apply(claimed)
    b = np.concatenate([case.found(*span) for span in spans])
    kept = _normal(a, form) & _normal(b, found_form)
    # a factor moves nearly all numbers; one that is fitted to a few explains only these
    n_kept, moved = np.count_nonzero(kept), kept & (claimed != b)
    n_bits = len(np.unique(a[moved])) * (found_form.n_mantissa + 1)
    if n_kept < 4 or 2 * np.count_nonzero(moved) < n_kept or n_bits < FITTED_BITS:
        return None
    x, y = as_float64(a[kept], form), as_float64(b[kept], found_form)
    half = 2.0 ** -(found_form.n_mantissa + 1) * np.abs(y)
    if form is not found_form:
        half += 2.0**-form.n_mantissa * np.abs(y)  # it was rounded once before the cast
    return Pairs(x, y, half)


def _spans(n: int, n_sampled: int) -> list[tuple[int, int]]:
    starts = sorted({i * (n // 16) for i in range(16)}) if n > n_sampled else [0]
    step = min(n, n_sampled // len(starts))
    return [(start, min(n, start + step)) for start in starts]


def _normal(words: Words, form: FloatFormat) -> NDArray[np.bool_]:
    magnitude = words & words.dtype.type(form.sign - 1)
    normal: NDArray[np.bool_] = (magnitude >> form.n_mantissa > 0) & (magnitude <= form.largest)
    return normal


def _common(a: Numbers64, b: Numbers64) -> tuple[float, float]:
    """What lies in all intervals, a little widened for the rounding of their ends."""
    ends = np.sort(np.stack([a, b]), axis=0)
    low, high = float(ends[0].max()), float(ends[1].min())
    slack = abs(high) * 2.0**-50
    return low - slack, high + slack


def _factors(pairs: Pairs, form: FloatFormat) -> Iterator[tuple[float, str]]:
    """Factors to try, and what they are where that has a name."""
    low, high = pairs.factor()
    computed = FLOATS["F64"] if form.n_bytes == 8 else FLOATS["F32"]
    seen = {1.0}
    found = [(simplest(low, high, computed, FEW_DIGITS), ""), *_named(low, high)]
    found += [(simplest(low, high, f, MAX_DIGITS), "") for f in (computed, FLOATS["F64"])]
    for factor, known in found:
        if factor is not None and factor not in seen:
            seen.add(factor)
            yield factor, known


def _named(low: float, high: float) -> Iterator[tuple[float, str]]:
    """Roots and parts of a whole number that lie between two bounds."""
    middle = (low + high) / 2
    if not 0 < low <= high or not MAX_ROOT**-1.0 <= middle <= MAX_ROOT:
        return
    for n, power, text in (
        (round(1 / middle), -1.0, "1/{}"),
        (round(middle**2), 0.5, "sqrt({})"),
        (round(middle**-2), -0.5, "1/sqrt({})"),
    ):
        if not 1 < n <= MAX_ROOT:
            continue
        value = 1 / n if power == -1.0 else sqrt(n) if power == 0.5 else 1 / sqrt(n)
        if low <= float(np.float32(value)) <= high or low <= value <= high:
            yield value, f" ({text.format(n)})"


def _divided(words: Words, form: FloatFormat, step: FloatFormat, by: float) -> Words:
    """Each number divided in the type of `step`, as IEEE 754 has it, then rounded to its own."""
    kind = np.dtype(f"<f{step.n_bytes}")
    wide = encode(decode(words, form), step).view(kind)
    with np.errstate(all="ignore"):
        made = (wide / kind.type(by)).view(f"<u{step.n_bytes}")
    return made if step is form else encode(decode(made, step), form)


def simplest(low: float, high: float, form: FloatFormat, n_digits: int) -> float | None:
    """The number of fewest digits that a format has between two; None if there is none, or 1."""
    if not isfinite(low + high):
        return None
    for n in range(n_digits) if low <= high else ():
        near = float(f"{(low + high) / 2:.{n}e}")
        word = encode(decode(np.array([near], "<f8").view("<u8"), FLOATS["F64"]), form)
        if low <= float(as_float64(word, form)[0]) <= high:
            return near if near not in (0.0, 1.0) else None
    return None
