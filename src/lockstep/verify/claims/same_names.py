"""The claims of `diff`: leaves of the same name hold the same bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lockstep.artifacts.printable import printable
from lockstep.formats.leaf import Leaf, Store, path_text
from lockstep.verify.claim import Claim, Excuse, Plan, Problem
from lockstep.verify.claims.coverage import account
from lockstep.verify.layouts.layout import whole

RULE = "same name"


def same_names(source: Store, target: Store) -> Plan:
    """Identity for each leaf that both have under one name, with one type and shape.

    A leaf that is on one side only, or of another type or shape there, is a problem.
    """
    pairs = [(source.leaves[name], leaf) for name, leaf in target.leaves.items()
             if name in source.leaves]  # fmt: skip
    claims = tuple(_claim(leaf) for old, leaf in pairs if _kind(old) == _kind(leaf))
    excuses = tuple(_excuse(leaf) for old, leaf in pairs if _kind(old) != _kind(leaf))
    ledger = account(claims, excuses, (), source, target)
    problems = list(_problems(ledger.problems, source, target))
    if not claims:
        problems.append(_nothing(source, target))
    return Plan(
        source=source,
        target=target,
        claims=claims,
        excuses=excuses,
        problems=tuple(problems),
        title="the same names",
    )


def _claim(leaf: Leaf) -> Claim:
    return Claim(
        id=leaf.name,
        rule=RULE,
        group=path_text(leaf.path[:1]) if len(leaf.path) > 1 else "all",
        target=leaf.name,
        sources=(leaf.name,),
        layout=None if leaf.value else whole(leaf.name, leaf.grid_shape),
    )


def _excuse(leaf: Leaf) -> Excuse:
    """What differs in kind is said once, on the side of the target."""
    reason = f"the target has it as {leaf.element} {list(leaf.shape)}"
    return Excuse("source", leaf.name, "derived", reason, RULE)


def _kind(leaf: Leaf) -> tuple[object, ...]:
    """What has to be the same before bits can be; values that are no arrays are compared later."""
    return ("value",) if leaf.value else (leaf.element, leaf.shape)


def _problems(found: Sequence[Problem], source: Store, target: Store) -> Iterator[Problem]:
    """The gaps, each said as what it is where there are no claims to mend."""
    for problem in found:
        side, _, name = problem.where.partition(" ")
        old, new = source.leaves.get(name), target.leaves.get(name)
        if problem.kind != "gap":
            yield problem
        elif old is None or new is None:
            yield _alone(side, name, source if side == "target" else target)
        else:
            yield _other_kind(name, old, new)


def _alone(side: str, name: str, other: Store) -> Problem:
    return Problem(
        "gap",
        f"{side} {name}",
        f"{name}: expected it in both checkpoints, got it in the {side} only",
        f"look for another name in {printable(other.where)}, and claim that with --claims",
    )


def _other_kind(name: str, old: Leaf, new: Leaf) -> Problem:
    return Problem(
        "gap",
        f"target {name}",
        f"{name}: expected {old.element} {list(old.shape)} as in the source, got "
        f"{new.element} {list(new.shape)}",
        "claim the change with --claims, if it is meant",
    )


def _nothing(source: Store, target: Store) -> Problem:
    return Problem(
        "empty",
        "claims",
        f"expected leaves of one name, type and shape on both sides, got none among the "
        f"{len(source.leaves)} of the source and the {len(target.leaves)} of the target",
        "claim how the names follow from each other with --claims",
    )
