"""Why a claim failed: the simplest hypothesis under which the target is exact to the bit.

A hypothesis is another claim. It is tried at the places that are known to differ, then at a sample,
then over every element, and only what holds over every element is said. What nothing explains is
not guessed at. A rule of values is inferred from no single element: that is damage, and is named by
its place and bits; where the differences fill a part of the leaf, the part is explained by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from math import prod

from lockstep.artifacts.verification import Diagnosis, Difference
from lockstep.verify.claim import Claim, Plan
from lockstep.verify.diagnosis.block_order import block_hypotheses
from lockstep.verify.diagnosis.damage import damage
from lockstep.verify.diagnosis.factor_hypotheses import same_ratio
from lockstep.verify.diagnosis.fused_hypotheses import fused_hypotheses
from lockstep.verify.diagnosis.hypotheses import Case, Hypothesis, Probe
from lockstep.verify.diagnosis.layout_hypotheses import layout_hypotheses
from lockstep.verify.diagnosis.leaf_hypotheses import (
    leaf_hypotheses,
    other_target_hypotheses,
    turned_leaf_hypotheses,
)
from lockstep.verify.diagnosis.pair_hypotheses import pair_hypotheses
from lockstep.verify.diagnosis.regions import explain_region, name_region, region_of
from lockstep.verify.diagnosis.step_hypotheses import step_hypotheses
from lockstep.verify.diagnosis.value_hypotheses import constant_hypotheses, value_hypotheses

SAMPLED = 512  # elements at which a hypothesis must hold before all are compared
MAX_WHOLE = 24  # comparisons of a whole leaf; most end at the first element that differs
MAX_TRIED = 3000  # hypotheses, for a leaf and again for each part of it
FEWEST = 2  # elements that a rule of values has to explain; one is explained by any


def diagnose(
    claim: Claim, plan: Plan, probe: Probe, difference: Difference | None = None
) -> Diagnosis | None:
    """The diagnosis of one claim that failed, that none was found, or None if time was up.

    `difference` is what the comparison counted, over every element: its places tell most hypotheses
    apart at once, and few elements are named by it.
    """
    target = plan.target.leaves.get(claim.target)
    if claim.layout is None or target is None or not claim.layout.n_elements:
        return None
    case = Case(claim, plan, probe, claim.layout, target, difference)
    search = _Search()
    found = search(case, _simple(case))
    box = region_of(case) if found is None else None
    if box is not None:
        region = explain_region(case, box, search)
        if region is not None:
            return region
    found = found or search(case, _composed(case))
    if found is not None:
        return Diagnosis(
            hypothesis=found.name,
            text=found.text,
            confirmed=True,
            suspects=found.suspects,
        )
    if difference is None:
        return None
    where = name_region(case, box, difference.n_differ) if box else None
    where = where or damage(difference, prod(target.grid_shape))
    if where is not None or probe.is_late():
        return where
    return same_ratio(case) or _unexplained(search.n_tried)


class _Search:
    """The first of some hypotheses that holds over every element, and how many were tried."""

    def __init__(self) -> None:
        self.n_tried = 0

    def __call__(self, case: Case, hypotheses: Iterator[Hypothesis]) -> Hypothesis | None:
        n_whole = 0
        for n_before, hypothesis in enumerate(hypotheses):
            if n_before >= MAX_TRIED or n_whole >= MAX_WHOLE or case.probe.is_late():
                break
            self.n_tried += 1
            if not _holds_at_places(case, hypothesis):
                continue
            if not case.probe.agrees(hypothesis.claim, SAMPLED):
                continue
            n_whole += 1
            if case.probe.agrees(hypothesis.claim):
                return hypothesis
        return None


def _unexplained(n_tried: int) -> Diagnosis | None:
    """That nothing was found, where something was tried; it names no cause."""
    if not n_tried:
        return None
    tried = "the one explanation" if n_tried == 1 else f"none of the {n_tried:,} explanations"
    verb = "was tried does not make" if n_tried == 1 else "were tried makes"
    text = f"{tried} that {verb} the leaf exact"
    return Diagnosis(hypothesis="unexplained", text=text, confirmed=False)


def _simple(case: Case) -> Iterator[Hypothesis]:
    """One thing done otherwise to the whole leaf, the cheap ones first.

    A single number is explained by any change of value, so only other leaves are asked after it.
    """
    if case.layout.n_elements == 1:
        return leaf_hypotheses(case)
    by_value = not case.differs_in_less_than(FEWEST)
    return chain(
        constant_hypotheses(case) if by_value else (),
        leaf_hypotheses(case),
        other_target_hypotheses(case),
        step_hypotheses(case),
        layout_hypotheses(case),
        value_hypotheses(case) if by_value else (),
        fused_hypotheses(case),
    )


def _composed(case: Case) -> Iterator[Hypothesis]:
    """What is put together of parts, or of two faults."""
    if case.layout.n_elements == 1:
        return iter(())
    return chain(
        block_hypotheses(case),
        turned_leaf_hypotheses(case),
        () if case.differs_in_less_than(FEWEST) else pair_hypotheses(case),
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
