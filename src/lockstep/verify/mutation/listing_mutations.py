"""Mutations that show before any element is read: of the listing, of the claims, of how it is used.

Each of them is a resolve of its own; it is caught if the claims do not add up any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from lockstep.formats.leaf import ELEMENT_TYPES, Leaf, Name, Store
from lockstep.verify.claim import Claim, Plan
from lockstep.verify.claims.resolve import resolve
from lockstep.verify.claims.rules import ClaimFile
from lockstep.verify.mutation.mutations import names_of

# A type of the same width, so that nothing but the tag tells.
_OTHER_TAG = {
    "F32": "I32", "BF16": "F16", "F16": "BF16", "F64": "I64", "I64": "U64", "I32": "U32",
    "I16": "U16", "U8": "I8", "I8": "U8", "U32": "I32", "U64": "I64", "BOOL": "U8",
    "F8_E4M3": "F8_E4M3FNUZ", "F8_E5M2": "F8_E5M2FNUZ", "F8_E4M3FNUZ": "F8_E4M3",
    "F8_E5M2FNUZ": "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Listed:
    """A mutation as the plan that it leads to; `says` is an expression for a problem's words."""

    section: str
    name: str
    place: str
    plan: Callable[[], Plan]
    says: str = ""


def listing_mutations(rules: ClaimFile, plan: Plan, picks: Sequence[Claim]) -> Iterator[Listed]:
    """Those of leaves that were picked, one of each rule, then those of the claims."""
    seen: set[str] = set()
    for claim in picks:
        if claim.rule not in seen:
            seen.add(claim.rule)
            yield from _of_leaf(rules, plan, claim)
    yield from _of_listing(rules, plan)
    yield from _of_rules(rules, plan)


def _of_leaf(rules: ClaimFile, plan: Plan, claim: Claim) -> Iterator[Listed]:
    leaf = plan.target.leaves[claim.target]

    def changed(section: str, name: str, new: Leaf | None, says: str = "") -> Listed:
        def resolved() -> Plan:
            leaves = dict(plan.target.leaves)
            if new is None:
                del leaves[leaf.name]
            else:
                leaves[leaf.name] = new
            return resolve(rules, plan.source, replace(plan.target, leaves=leaves))

        return Listed(section, name, leaf.name, resolved, says or names_of(claim))

    yield changed("mapping", "leaf missing", None)
    if leaf.value:
        return
    tag = _OTHER_TAG.get(leaf.element.name)
    if tag:
        # where the type is a fact that other claims use, it is theirs that do not fit
        other = replace(leaf, element=ELEMENT_TYPES[tag])
        yield changed("values", "tag of another type", other, rf"type.*\b{tag}\b")
    if leaf.shape and leaf.shape != leaf.shape[::-1]:
        yield changed("axes", "shape reversed", replace(leaf, shape=leaf.shape[::-1]))
    more = (*leaf.shape[:-1], 1, *leaf.shape[-1:])
    yield changed("axes", "an axis of 1 too many", replace(leaf, shape=more))
    if leaf.shape and leaf.n_elements:
        yield changed("embeddings", "empty placeholder", replace(leaf, shape=(0, *leaf.shape[1:])))


def _of_listing(rules: ClaimFile, plan: Plan) -> Iterator[Listed]:
    def extra(name: str) -> Plan:
        first = next(iter(plan.target.leaves.values()))
        leaves = {**plan.target.leaves, name: replace(first, path=(Name(name),), shares="")}
        return resolve(rules, plan.source, replace(plan.target, leaves=leaves))

    def swapped() -> Plan:
        return resolve(rules, plan.target, plan.source)

    def with_facts(store: Store, name: str) -> Store:
        value = store.facts[name]
        assert isinstance(value, int)
        return replace(store, facts={**store.facts, name: value + 1})

    stale = "a_leaf_that_nobody_claims"
    yield Listed("mapping", "leaf too many", "the target", lambda: extra(stale), stale)
    if swapped().problems:  # claims that fit both ways are decided by values, not by the listing
        yield Listed("misuse", "source and target exchanged", "the command", swapped)
    for fact, rule in rules.facts.items():
        both = [
            (side, key) for side, key in (("source", rule.source), ("target", rule.target))
            if key and isinstance(getattr(plan, side).facts.get(key), int)
        ]  # fmt: skip
        if len(both) == 2:
            target = with_facts(plan.target, both[1][1])
            yield Listed(
                "attention", "a fact that the two configurations differ in", fact,
                lambda target=target: resolve(rules, plan.source, target),  # type: ignore[misc]
                re.escape(fact),
            )  # fmt: skip


def _of_rules(rules: ClaimFile, plan: Plan) -> Iterator[Listed]:
    def resolved(changed: ClaimFile) -> Callable[[], Plan]:
        return lambda: resolve(changed, plan.source, plan.target)

    used = {claim.rule for claim in plan.claims}
    yield Listed(
        "misuse", "no claims", "the claims",
        resolved(replace(rules, claims=(), likes=(), excuses=(), ties=())),
    )  # fmt: skip
    for i, rule in enumerate(rules.claims):
        label = f"claim {i + 1}"
        if label not in used:
            continue
        rest = (*rules.claims[:i], *rules.claims[i + 1 :])
        typo = replace(rule, target=f"{rule.target}_typo")
        yield Listed("misuse", "rule left out", label, resolved(replace(rules, claims=rest)))
        with_typo = replace(rules, claims=(*rules.claims[:i], typo, *rules.claims[i + 1 :]))
        said = rf"\b{label}\b|{names_of(*(c for c in plan.claims if c.rule == label))}"
        yield Listed("misuse", "rule with a typo", label, resolved(with_typo), said)
        twice = replace(rules, claims=(*rules.claims, rule))
        yield Listed("mapping", "two rules for one leaf", label, resolved(twice), rf"\b{label}\b")
