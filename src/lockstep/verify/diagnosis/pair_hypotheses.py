"""Two faults at once: values that come from elsewhere, or lie otherwise, and were changed as well.

What was rounded is still near to what it was, so the first fault is looked for by nearness, and
only then is the second one asked for; what is said holds to the bit, as every hypothesis does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np

from lockstep.verify.claim import Claim
from lockstep.verify.diagnosis.hypotheses import Case, Hypothesis
from lockstep.verify.diagnosis.layout_hypotheses import layout_hypotheses
from lockstep.verify.diagnosis.leaf_hypotheses import (
    leaf_hypotheses,
    other_target_hypotheses,
    turned_leaf_hypotheses,
)
from lockstep.verify.diagnosis.step_hypotheses import step_hypotheses
from lockstep.verify.diagnosis.value_hypotheses import value_hypotheses
from lockstep.verify.numbers.float_formats import FLOATS
from lockstep.verify.numbers.numbers_text import as_float64

N_PLACES = 12  # at which the first fault must come near
LEAST_SHARE = 4  # two faults change more than one in so many elements
NEAR = 2.0**-4  # of the value: what rounding to three bits of mantissa leaves
MAX_FIRST = 600  # first faults that are looked at


def pair_hypotheses(case: Case) -> Iterator[Hypothesis]:
    """Another leaf, another step or another order, each followed by a change of values."""
    few = case.differs_in_less_than(case.layout.n_elements // LEAST_SHARE)
    if few or not case.is_simple or case.target.element.name not in FLOATS:
        return
    firsts = chain(
        leaf_hypotheses(case, to_the_bit=False),
        other_target_hypotheses(case),
        step_hypotheses(case),
        layout_hypotheses(case),
        turned_leaf_hypotheses(case),
    )
    places = _places(case)
    found = _numbers(case, places)
    for _, first in zip(range(MAX_FIRST), firsts, strict=False):
        layout = first.claim.layout
        if layout is None or not _is_near(case, first.claim, places, found):
            continue
        moved = replace(case, claim=first.claim, layout=layout)
        for second in value_hypotheses(moved):
            name, text = f"{first.name}_and_{second.name}", f"{first.text}, then {second.text}"
            yield Hypothesis(name, text, second.claim, first.suspects)


def _places(case: Case) -> list[int]:
    """Places all over the leaf, no multiple of the last axis apart."""
    n = case.layout.n_elements
    return sorted({(2 * i + 1) * n // (2 * N_PLACES) for i in range(N_PLACES)})


def _numbers(case: Case, places: list[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    words = np.concatenate([case.found(i, i + 1) for i in places])
    return as_float64(words, FLOATS[case.target.element.name])


def _is_near(
    case: Case,
    claim: Claim,
    places: list[int],
    found: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> bool:
    """Whether a claim comes near to what is there, and does so not because all of it is zero."""
    words = np.concatenate([case.expected(claim, i, i + 1) for i in places])
    if words.itemsize != case.target.element.n_bytes:
        return False
    claimed = as_float64(words, FLOATS[case.target.element.name])
    finite = np.isfinite(claimed) & np.isfinite(found)
    a, b = claimed[finite], found[finite]
    return bool(a.any()) and bool((np.abs(a - b) <= NEAR * np.abs(a)).all())
