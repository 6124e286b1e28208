"""Claims as text over checkpoints that are listings alone: names, shapes and types."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from lockstep.formats.leaf import ELEMENT_TYPES, ElementType, Held, Leaf, Name, Store
from lockstep.verify.claim import Claim, Plan
from lockstep.verify.claims.claim_file import (
    ClaimFile,
    parse_claims,
)
from lockstep.verify.claims.resolve import resolve

Spec = tuple[tuple[int, ...], str]
HEAD = 'schema = "lockstep.claims/1"\n'


def store(leaves: Mapping[str, Spec], facts: Mapping[str, object] | None = None) -> Store:
    """A listed checkpoint with leaves of these shapes and types; an empty type is a value."""
    found = {}
    for name, (shape, kind) in leaves.items():
        if kind in ELEMENT_TYPES or kind == "Q8_0":
            element = ELEMENT_TYPES.get(kind) or ElementType("Q8_0", 34, 32)
            found[name] = Leaf((Name(name),), shape, element, Held(b""))
        else:
            found[name] = Leaf((Name(name),), (), ElementType(kind, 0), Held(b""), value=(7,))
    return Store("here", "test", found, (), facts or {})


def claims(text: str) -> ClaimFile:
    return parse_claims(tomllib.loads(HEAD + text), "c.toml")


def plan(text: str, source: Mapping[str, Spec], target: Mapping[str, Spec], **facts: Any) -> Plan:
    return resolve(
        claims(text),
        store(source, facts.get("source_facts")),
        store(target, facts.get("target_facts")),
    )


def messages(found: Plan) -> list[str]:
    return [f"{problem.kind}: {problem.message}" for problem in found.problems]


def claim(found: Plan, target: str) -> Claim:
    (one,) = [c for c in found.claims if c.target == target]
    return one


MATRIX: Spec = ((4, 6), "F32")
