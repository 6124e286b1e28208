"""Why a claim failed: the simplest hypothesis under which the target is exact to the bit.

A hypothesis is another claim. It is tried at the places that are known to differ, then at a sample,
then over every element, and only what holds over every element is said. What nothing explains is
not guessed at.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from math import prod

from lockstep.artifacts.verification import Diagnosis, Difference
from lockstep.verify.block_order import block_hypotheses
from lockstep.verify.claim import Claim, Plan
from lockstep.verify.damage import damage
from lockstep.verify.fused_hypotheses import fused_hypotheses
from lockstep.verify.hypotheses import Case, Hypothesis, Probe
from lockstep.verify.layout_hypotheses import layout_hypotheses
from lockstep.verify.leaf_hypotheses import (
    leaf_hypotheses,
    other_target_hypotheses,
    turned_leaf_hypotheses,
)
from lockstep.verify.value_hypotheses import constant_hypotheses, value_hypotheses

SAMPLED = 512  # elements at which a hypothesis must hold before all are compared
MAX_WHOLE = 24  # comparisons of a whole leaf; most end at the first element that differs
MAX_TRIED = 3000  # hypotheses


def diagnose(
    claim: Claim, plan: Plan, probe: Probe, difference: Difference | None = None
) -> Diagnosis | None:
    """The diagnosis of one claim that failed; None if no hypothesis explains it.

    `difference` is what the comparison counted: its places tell most hypotheses apart at once.
    """
    target = plan.target.leaves.get(claim.target)
    if claim.layout is None or target is None or not claim.layout.n_elements:
        return None
    case = Case(claim, plan, probe, claim.layout, target, difference)
    n_whole = 0
    for n_tried, hypothesis in enumerate(_hypotheses(case)):
        if n_tried >= MAX_TRIED or n_whole >= MAX_WHOLE:
            break
        if not _holds_at_places(case, hypothesis) or not probe.agrees(hypothesis.claim, SAMPLED):
            continue
        n_whole += 1
        if probe.agrees(hypothesis.claim):
            return Diagnosis(
                hypothesis=hypothesis.name,
                text=hypothesis.text,
                confirmed=True,
                suspects=hypothesis.suspects,
            )
    return damage(difference, prod(target.grid_shape)) if difference else None


def _hypotheses(case: Case) -> Iterator[Hypothesis]:
    """All hypotheses, the simple and cheap ones first.

    A single number is explained by any change of value, so only other leaves are asked after it.
    """
    if case.layout.n_elements == 1:
        return leaf_hypotheses(case)
    return chain(
        constant_hypotheses(case),
        leaf_hypotheses(case),
        other_target_hypotheses(case),
        layout_hypotheses(case),
        value_hypotheses(case),
        fused_hypotheses(case),
        block_hypotheses(case),
        turned_leaf_hypotheses(case),
    )


def _holds_at_places(case: Case, hypothesis: Hypothesis) -> bool:
    """Whether it explains the first and the last element that differ, where these can be read."""
    if case.difference is None or not case.is_simple:
        return True
    layout = hypothesis.claim.layout
    if layout is None or any(move.expands != 1 for move in hypothesis.claim.values):
        return True
    shape = case.target.grid_shape
    for spot in (case.difference.first, case.difference.last):
        flat = 0
        for i, n in zip(spot.target_index, shape, strict=True):
            flat = flat * n + i
        expected = case.expected(hypothesis.claim, flat, flat + 1)
        if expected.tobytes() != case.found(flat, flat + 1).tobytes():
            return False
    return True
