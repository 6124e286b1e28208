"""What a self-test picks of a plan, and the plan of a few leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, field, replace

import numpy as np

from lockstep.verify.claim import Claim, Plan
from lockstep.verify.engine.budget import roomy

Say = Callable[[int, int], None]  # mutations that are done, and of how many


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How a self-test is made: leaves for each rule, and the seed of what is drawn.

    `sections` are those of the mutations that are made, () for all.
    """

    max_memory_bytes: int = field(default_factory=roomy)
    per_rule: int = 2
    seed: int = 0
    sections: tuple[str, ...] = ()
    progress: Say | None = None


def pick(plan: Plan, per_rule: int, rng: np.random.Generator) -> tuple[Claim, ...]:
    """Of each rule that claims equal bits its largest leaf, and others that are drawn."""
    by_rule: dict[str, list[Claim]] = {}
    for claim in plan.claims:
        leaf = plan.target.leaves[claim.target]
        if claim.equality.kind == "bits" and (leaf.n_elements or leaf.value):
            by_rule.setdefault(claim.rule, []).append(claim)
    picked: list[Claim] = []
    for claims in by_rule.values():
        largest = max(claims, key=lambda claim: plan.target.leaves[claim.target].n_bytes)
        rest = [claim for claim in claims if claim is not largest]
        drawn = rng.permutation(len(rest))[: per_rule - 1]
        picked += [largest, *(rest[i] for i in drawn)]
    return tuple(picked)


def narrowed(plan: Plan, changed: Set[str], more: Set[str] = frozenset()) -> Plan:
    """The plan of these target leaves alone; coverage is that of the whole plan, not of this."""
    claims = tuple(claim for claim in plan.claims if claim.target in changed)
    names = changed | more
    leaves = {name: leaf for name, leaf in plan.target.leaves.items() if name in names}
    ties = tuple(t for t in plan.ties if t.side == "target" and changed & set(t.leaves))
    return replace(
        plan, target=replace(plan.target, leaves=leaves, records=()), claims=claims, excuses=(),
        ties=ties, problems=(), ambiguities=(), source=replace(plan.source, records=()),
    )  # fmt: skip
