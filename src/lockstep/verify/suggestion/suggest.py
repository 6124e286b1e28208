"""A claim file proposed from the contents of two checkpoints, or from their shapes alone.

What is proposed was derived from the very checkpoints that it would be held against: the file says
so, and a verification with it grades no mapping. It is a start for somebody who knows the model.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from lockstep.artifacts.verification import Mapped
from lockstep.formats.leaf import Leaf, Store
from lockstep.verify.claim import Claim, Plan, Words
from lockstep.verify.claims.claim_file import parse_claims
from lockstep.verify.claims.resolve import resolve
from lockstep.verify.claims.rules import ClaimFile, ExcuseRule
from lockstep.verify.diagnosis.hypotheses import Side
from lockstep.verify.engine.budget import Budget, divide, roomy
from lockstep.verify.engine.examine import Options, check_unchanged
from lockstep.verify.engine.probe import ReadingProbe
from lockstep.verify.suggestion.contents import Content, chains, contents_of, plain_types
from lockstep.verify.suggestion.findings import Finder, Findings, claim_of
from lockstep.verify.suggestion.generalise import Made, Ruled, generalise
from lockstep.verify.suggestion.suggestion_text import suggestion_text

MAPPING: Mapped = "suggested from the checkpoints"
_REUSED = "the target holds its elements more than once, as the two checkpoints show"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A claim file as TOML with comments, and what it leaves open.

    `unshown` has, for a target, some leaves that contents would have allowed as well; `breaks`
    the targets that follow another rule than the rest of their pattern, or none; `unexplained` the
    leaves of each side of which some elements are not covered.
    """

    toml: str
    n_rules: int
    n_claims: int
    shapes_only: bool
    unshown: Mapping[str, tuple[str, ...]]
    breaks: tuple[str, ...]
    unexplained: Mapping[Side, tuple[str, ...]]

    def document(self) -> dict[str, Any]:
        """The suggestion as JSON."""
        return {
            "toml": self.toml,
            "n_rules": self.n_rules,
            "n_claims": self.n_claims,
            "shapes_only": self.shapes_only,
            "unshown": {name: list(others) for name, others in self.unshown.items()},
            "breaks": list(self.breaks),
            "unexplained": {side: list(names) for side, names in self.unexplained.items()},
        }


def suggest(
    source: Store, target: Store, options: Options, *, shapes_only: bool = False
) -> Suggestion:
    """Proposes claims; every one that contents show was compared element for element.

    Raises: InputError if a file is damaged or changed; BudgetError if a leaf does not fit.
    """
    check_unchanged(source, target)
    if shapes_only:
        found = _from_shapes(source, target)
    else:
        n_leaves = len(source.leaves) + len(target.leaves)
        allowed = options.max_memory_bytes
        budget = divide(roomy() if allowed is None else allowed, 1, n_leaves)
        found = _from_contents(source, target, budget, options.progress)
        check_unchanged(source, target)
    ruled, file, plan = _generalised(list(found.made.values()), source, target)
    unexplained = _unexplained(plan)
    toml = suggestion_text(ruled, file, plan, found, unexplained, shapes_only=shapes_only)
    parse_claims(tomllib.loads(toml), "the suggested claims")
    return Suggestion(
        toml=toml,
        n_rules=len(ruled),
        n_claims=len(plan.claims),
        shapes_only=shapes_only,
        unshown=found.unshown,
        breaks=tuple(name for each in ruled for name in each.left_out),
        unexplained=unexplained,
    )


# --- from contents


def _from_contents(
    source: Store, target: Store, budget: Budget, progress: Callable[[int, int], None] | None
) -> Findings:
    n_bytes = [sum(leaf.n_bytes for leaf in store.leaves.values()) for store in (source, target)]
    total = n_bytes[0] + 3 * n_bytes[1]  # read once for fingerprints, then pair by pair
    n_done = 0

    def done(n: int) -> None:
        nonlocal n_done
        n_done += n
        if progress:
            progress(min(n_done, total), total)

    there = contents_of(source, plain_types(target), budget, done)
    here = contents_of(target, (), budget, done)
    probe = ReadingProbe(Plan(source, target, ()), budget, {"source": {}, "target": {}})
    try:
        return Finder(source, target, (there, here), probe, done).find()
    finally:
        probe.close()
        if progress:
            progress(total, total)


# --- from shapes


class _Unread:
    """Agrees to everything, as nothing is read: what fits by shape and type is all there is."""

    def agrees(self, claim: Claim, at_most: int | None = None) -> bool:
        """Yes."""
        return True

    def elements(self, side: Side, leaf: str, start: int, stop: int) -> Words:
        """Nothing is read.

        Raises: AssertionError
        """
        raise AssertionError(f"{side} {leaf}: asked for elements {start} to {stop} of the unread")

    def digest(self, side: Side, leaf: str) -> str | None:
        """None is known."""
        return None

    def is_late(self) -> bool:
        """Never."""
        return False


def _from_shapes(source: Store, target: Store) -> Findings:
    types = plain_types(target)
    there = {leaf.name: _shape(leaf, types) for leaf in source.leaves.values() if not leaf.value}
    here = {leaf.name: _shape(leaf, ()) for leaf in target.leaves.values() if not leaf.value}
    finder = Finder(source, target, (there, here), _Unread(), lambda n: None)
    return finder.find_alike()


def _shape(leaf: Leaf, types: Any) -> Content:
    """The axes, in any order, in the place of a fingerprint."""
    axes = hash(tuple(sorted(n for n in leaf.grid_shape if n != 1)))
    names = {
        chain: moves[-1].target.name if moves else leaf.element.name
        for chain, moves in chains(leaf, types).items()
    }
    return Content({chain: (name, axes) for chain, name in names.items()}, prod(leaf.grid_shape))


# --- to a claim file


def _generalised(
    made: list[Made], source: Store, target: Store
) -> tuple[list[Ruled], ClaimFile, Plan]:
    """The rules, which say of every target just what was found of it, and the plan of them."""
    ruled = generalise(made, source.leaves, target.leaves)
    file, plan = _file(ruled, source, target)
    if not _says(plan, made):
        ruled = [each for one in made for each in generalise([one], source.leaves, (one.target,))]
        file, plan = _file(ruled, source, target)
    return ruled, file, plan


def _file(ruled: list[Ruled], source: Store, target: Store) -> tuple[ClaimFile, Plan]:
    """The rules as a claim file that allows for sources that were found to be used again."""
    file = ClaimFile(
        claims=tuple(each.rule for each in ruled),
        mapping=MAPPING,
        title="Suggested: read it before you use it",
        where="the suggested claims",
    )
    plan = resolve(file, source, target)
    again = tuple(
        ExcuseRule(kind="duplicate", side="source", leaf=_plain(name), reason=_REUSED)
        for problem in plan.problems
        for side, _, name in [problem.where.partition(" ")]
        if problem.kind == "overlap" and side == "source"
    )
    if again:
        file = replace(file, excuses=again)
        plan = resolve(file, source, target)
    return file, plan


def _plain(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


def _says(plan: Plan, made: list[Made]) -> bool:
    claims = {claim.target: claim for claim in plan.claims}
    if claims.keys() != {one.target for one in made}:
        return False
    for one in made:
        wanted = claim_of(one, plan.source, plan.target)
        got = claims[one.target]
        assert wanted is not None
        if (wanted.sources, wanted.layout) != (got.sources, got.layout):
            return False
        if [move.text for move in wanted.values] != [move.text for move in got.values]:
            return False
    return True


def _unexplained(plan: Plan) -> dict[Side, tuple[str, ...]]:
    found: dict[Side, list[str]] = {"source": [], "target": []}
    for problem in plan.problems:
        side, _, name = problem.where.partition(" ")
        if problem.kind == "gap" and side == "source":
            found["source"].append(name)
        elif problem.kind == "gap" and side == "target":
            found["target"].append(name)
    return {side: tuple(names) for side, names in found.items()}
