"""Facts by name: numbers and words that steps use, from the claim file and from both checkpoints.

All places that have a fact must agree on it. A place that lacks it says nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from lockstep.errors import UsageError
from lockstep.formats.leaf import Store
from lockstep.verify.claim import Problem
from lockstep.verify.claims.expressions import evaluate, parse_expression
from lockstep.verify.claims.rules import ClaimFile, Fact
from lockstep.verify.claims.templates import NameIndex, patterns

MAX_FACT_ITEMS = 1 << 20  # of all computed lists of a claim file


def resolve_facts(
    claims: ClaimFile, source: Store, target: Store, names: NameIndex
) -> tuple[dict[str, object], list[Problem]]:
    """The facts that are known, and what is unknown or contradicts itself.

    Where places disagree, the first in the order value, source, target, count is taken.
    """
    known: dict[str, object] = {}
    problems: list[Problem] = []
    left = dict(claims.facts)
    while ready := [name for name, fact in left.items() if not _needs(fact, left)]:
        for name in ready:
            fact = left.pop(name)
            places = _places(name, fact, (source, target), names, known, problems)
            _decide(name, places, known, problems)
    for name in left:
        problems.append(_unknown(name, "expressions that do not need each other"))
    return known, problems


def _needs(fact: Fact, left: Mapping[str, Fact]) -> bool:
    """Whether an expression of the fact waits for another fact."""
    texts = [text for text in (fact.expression, fact.default) if text]
    return any(parse_expression(text, "facts").names & left.keys() for text in texts)


def _places(
    name: str,
    fact: Fact,
    stores: tuple[Store, Store],
    names: NameIndex,
    known: Mapping[str, object],
    problems: list[Problem],
) -> dict[str, object]:
    """What each place says."""
    found: dict[str, object] = {}
    if fact.value is not None:
        found["the claim file"] = fact.value
    if fact.expression:
        found |= _computed("the claim file", name, fact.expression, known, problems)
    for side, store, key, leaf in (
        ("source", stores[0], fact.source, fact.source_type),
        ("target", stores[1], fact.target, fact.target_type),
    ):
        if key:
            found[f"the {side}'s {key}"] = lookup(store.facts, key)
        if leaf in store.leaves:
            found[f"the type of the {side}'s {leaf}"] = store.leaves[leaf].element.name
    if fact.count:
        (pattern,) = patterns([fact.count], {}, name)
        values = {tuple(captures.values()) for _, captures in names.matches(pattern)}
        found[f"the number of {fact.count}"] = len(values) or None
    found = {place: value for place, value in found.items() if value is not None}
    if not found and fact.default:
        found = _computed("the default", name, fact.default, known, problems)
    return found


def _computed(
    place: str, name: str, text: str, known: Mapping[str, object], problems: list[Problem]
) -> dict[str, object]:
    expression = parse_expression(text, name)
    if not expression.names <= known.keys():
        return {}  # that fact has a problem of its own
    try:
        return {place: evaluate(expression.tree, known, f"facts: {name}")}
    except UsageError as error:
        problems.append(Problem("fact", f"fact {name}", error.message, error.hint))
        return {}


def lookup(facts: Mapping[str, object], key: str) -> object:
    """The fact under a key, or under a path with dots into tables; None if there is none."""
    if key in facts:
        return facts[key]
    head, dot, rest = key.partition(".")
    while dot:
        inner = facts.get(head)
        if isinstance(inner, Mapping):
            return lookup(inner, rest)
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return None


def _decide(
    name: str, places: Mapping[str, object], known: dict[str, object], problems: list[Problem]
) -> None:
    if not places:
        problems.append(_unknown(name, "a value in the claim file or in one of the checkpoints"))
        return
    (first, value), *others = places.items()
    known[name] = value
    n_items = sum(len(fact) for fact in known.values() if isinstance(fact, list))
    if n_items > MAX_FACT_ITEMS:
        raise UsageError(
            f"fact {name}: expected at most {MAX_FACT_ITEMS} items in computed facts, got more",
            hint="state shorter lists",
        )
    for place, other in others:
        if not agree(value, other):
            problems.append(
                Problem(
                    "fact",
                    f"fact {name}",
                    f"fact {name}: expected one value, got {value!r:.80} from {first} and "
                    f"{other!r:.80} from {place}",
                    "find out which of them is true; the transforms depend on it",
                )
            )


def _unknown(name: str, wanted: str) -> Problem:
    return Problem(
        "fact",
        f"fact {name}",
        f"fact {name}: expected {wanted}, got none",
        "state the value under [facts]",
    )


def agree(a: object, b: object) -> bool:
    """Whether two facts say the same; formats that keep float32 round decimal fractions."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(agree, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return isinstance(a, int) and isinstance(b, int) and a == b
    if isinstance(a, float) and isinstance(b, float):
        return a == b or _single(a) == _single(b)
    return a == b


def _single(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<d", value)
