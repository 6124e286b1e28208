"""Coverage over elements: every element of both sides is claimed exactly once, or has an excuse.

It is decided by arithmetic on pieces, never by names alone and never by an array of flags, so a
leaf of any size is counted in the memory of its pieces.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lockstep.formats.leaf import Leaf, Store
from lockstep.verify.claim import Claim, Excuse, Problem, Tie
from lockstep.verify.layouts.piece import Loop, Piece, strides_of
from lockstep.verify.layouts.uses import Uses, count_uses

# Excuses of elements that are used again; every other kind explains what nobody uses.
_REUSED = ("duplicate",)


@dataclass(frozen=True, slots=True)
class Account:
    """One leaf's row of the ledger: elements claimed, elements excused, and why."""

    n_claimed: int
    n_excused: int
    excuse: str = ""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The accounts of both sides by leaf, and what does not add up."""

    source: Mapping[str, Account]
    target: Mapping[str, Account]
    problems: tuple[Problem, ...]


def account(
    claims: Sequence[Claim],
    excuses: Sequence[Excuse],
    ties: Sequence[Tie],
    source: Store,
    target: Store,
) -> Ledger:
    """Accounts for every element of both checkpoints."""
    uses = {"source": _uses_of_source(claims, source), "target": _uses_of_target(claims, target)}
    problems: list[Problem] = []
    books: dict[str, dict[str, Account]] = {}
    for side, store in (("source", source), ("target", target)):
        reasons = _Reasons(side, excuses, ties, uses[side])
        books[side] = {
            name: _account(side, leaf, uses[side].get(name), reasons, problems)
            for name, leaf in store.leaves.items()
        }
    return Ledger(books["source"], books["target"], tuple(problems))


def unsaid(found: Iterable[Problem], said: Sequence[Problem]) -> list[Problem]:
    """The problems of a ledger but those said before, and gaps where a claim was not made."""
    known = {(problem.kind, problem.where) for problem in said}
    known |= {("gap", leaf) for problem in said for leaf in problem.stops}
    return [problem for problem in found if (problem.kind, problem.where) not in known]


class _Reasons:
    """The excuses of one side by leaf, ties among them."""

    def __init__(
        self,
        side: str,
        excuses: Sequence[Excuse],
        ties: Sequence[Tie],
        uses: Mapping[str, Uses],
    ) -> None:
        self.unused: dict[str, str] = {}
        self.reused: dict[str, str] = {}
        self.tied: dict[str, str] = {}
        for excuse in excuses:
            if excuse.side == side:
                book = self.reused if excuse.kind in _REUSED else self.unused
                book[excuse.leaf] = f"{excuse.kind}: {excuse.reason}"
        for tie in ties:
            claimed = [leaf for leaf in tie.leaves if leaf in uses]
            if tie.side == side and claimed:
                self.tied |= dict.fromkeys(tie.leaves, f"tied to {claimed[0]}")


def _account(
    side: str, leaf: Leaf, uses: Uses | None, reasons: _Reasons, problems: list[Problem]
) -> Account:
    """One leaf's row; what does not add up is put to the problems."""
    name, n = leaf.name, leaf.n_elements
    found = uses or Uses(n_zero=n, n_once=0, n_more=0, gap=0 if n else None)
    if found.n_more and name not in reasons.reused:
        problems.append(_overlap(side, leaf, found))
    unused = reasons.unused.get(name) or (reasons.tied.get(name, "") if uses is None else "")
    untouched = found.n_zero or uses is None
    if untouched and not unused:
        problems.append(_gap(side, leaf, found))
    if not untouched and name in reasons.unused:
        problems.append(
            Problem(
                "unused",
                f"{side} {name}",
                f"{side} {name}: expected elements that no claim covers, as the excuse says "
                f"({reasons.unused[name]}), got none",
                "remove the excuse, or the claim",
            )
        )
    excuse = "; ".join(filter(None, [unused if untouched else "", reasons.reused.get(name, "")]))
    return Account(found.n_once + found.n_more, found.n_zero if unused else 0, excuse)


def _gap(side: str, leaf: Leaf, uses: Uses) -> Problem:
    verb = "used" if side == "source" else "produced"
    place = f"; the first is {_index(leaf, uses.gap)}" if uses.n_once + uses.n_more else ""
    return Problem(
        "gap",
        f"{side} {leaf.name}",
        f"{side} {leaf.name}: expected every element to be {verb} by a claim, got {uses.n_zero} "
        f"of {leaf.n_elements} that no claim names{place}",
        "add a claim, or say why not: [[drop]] for the source, [[new]] for the target",
    )


def _overlap(side: str, leaf: Leaf, uses: Uses) -> Problem:
    verb = "used" if side == "source" else "produced"
    return Problem(
        "overlap",
        f"{side} {leaf.name}",
        f"{side} {leaf.name}: expected every element to be {verb} once, got {uses.n_more} of "
        f"{leaf.n_elements} {verb} more often; the first is {_index(leaf, uses.overlap)}",
        "mend the rules, or declare the copy with [[duplicate]]"
        if side == "source"
        else "let one rule produce it",
    )


def _index(leaf: Leaf, flat: int | None) -> str:
    axes = zip(strides_of(leaf.grid_shape), leaf.grid_shape, strict=True)
    return str(tuple((flat or 0) // stride % n for stride, n in axes))


def _uses_of_source(claims: Sequence[Claim], source: Store) -> dict[str, Uses]:
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for claim in claims:
        if claim.layout is None:
            for name in claim.sources:
                pieces[name].append(Piece(None, 0, 0, ()))
        else:
            for piece in claim.layout.pieces:
                if piece.leaf is not None:
                    pieces[piece.leaf] += in_source(piece)
            for name in claim.sources:
                pieces[name] += []  # named, though it has no elements
    leaves = source.leaves
    return {
        name: count_uses(found, leaves[name].n_elements)
        for name, found in pieces.items()
        if name in leaves
    }


def in_source(piece: Piece) -> list[Piece]:
    """The set of source elements that a piece takes, twice if it takes them more than once."""
    first = piece.src + sum((loop.n - 1) * loop.src for loop in piece.loops if loop.src < 0)
    loops = [Loop(loop.n, 0, abs(loop.src)) for loop in piece.loops if loop.src]
    taken = Piece(None, 0, first, tuple(sorted(loops, key=lambda loop: -loop.dst)))
    return [taken] * (1 if len(loops) == len(piece.loops) else 2)


def _uses_of_target(claims: Sequence[Claim], target: Store) -> dict[str, Uses]:
    """A layout names every element of its target, so whole leaves are counted."""
    times: dict[str, int] = defaultdict(int)
    for claim in claims:
        times[claim.target] += 1
    return {
        name: Uses(0, leaf.n_elements, 0)
        if times[name] == 1
        else Uses(0, 0, max(1, leaf.n_elements), overlap=0)
        for name, leaf in target.leaves.items()
        if times[name]
    }
