"""A derived map and claim files: holding one against the other, and writing one from the other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lockstep.artifacts.derivation import ComparedClaim, Place
from lockstep.artifacts.verification import ProblemRow
from lockstep.formats.leaf import Leaf, Store
from lockstep.verify.claim import Claim, Excuse, Words
from lockstep.verify.claims.resolve import resolve
from lockstep.verify.claims.rules import ClaimFile, ExcuseKind, ExcuseRule, TieRule
from lockstep.verify.derivation.markers import Ids
from lockstep.verify.derivation.name_steps import Spelled
from lockstep.verify.derivation.recover import CONSTANT, Recovered, Sources, ids_of
from lockstep.verify.numbers.numbers_text import bits_text
from lockstep.verify.suggestion.generalise import Made, Part, generalise
from lockstep.verify.suggestion.name_slots import by_texts, slots

_UNKNOWN = -2  # an element of a leaf that held no markers


@dataclass(frozen=True)
class Derived:
    """Everything that the runs showed.

    `random` has the target's words of the run with random values; `aliases` are the ids of the
    elements that lie on the same bytes; `spelled` has the steps of each of the `leaves`.
    """

    source: Store
    target: Store
    sources: Sources
    random: Mapping[str, Words]
    aliases: Ids
    leaves: tuple[Recovered, ...]
    spelled: tuple[Spelled | None, ...]
    unmarked: Mapping[str, str]
    notes: tuple[str, ...]
    n_runs: int

    def sources_of(self, found: Recovered) -> tuple[str, ...]:
        """The source leaves of a target leaf, in the order in which they come first."""
        if found.ids is None:
            return ()
        owner, _ = self.sources.numbering.owners(found.ids[found.ids >= 0])
        names = self.sources.numbering.names
        return tuple(names[i] for i in dict.fromkeys(owner.tolist()))

    @property
    def used(self) -> set[str]:
        """The source leaves of which an element was found, or that share its bytes."""
        names = {name for leaf in self.leaves for name in self.sources_of(leaf)}
        numbering = self.sources.numbering
        for name in numbering.names:
            ids = self.aliases[numbering.of(name)]
            owners, _ = numbering.owners(np.unique(ids[ids >= 0]))
            if {numbering.names[i] for i in np.unique(owners)} & names:
                names.add(name)
        return names


# --- claims against the map


def compare(
    found: Derived, rules: ClaimFile
) -> tuple[tuple[ComparedClaim, ...], tuple[ProblemRow, ...]]:
    """What a claim file says of each leaf, element by element, and what does not add up in it."""
    plan = resolve(rules, found.source, found.target)
    by_target = {leaf.leaf.name: leaf for leaf in found.leaves}
    rows = [_compared(claim, by_target.get(claim.target), found) for claim in plan.claims]
    rows += [
        row
        for excuse in plan.excuses
        if excuse.side == "target" and excuse.leaf in by_target
        for row in _excused(excuse, by_target[excuse.leaf], found)
    ]
    problems = tuple(
        ProblemRow(kind=p.kind, where=p.where, message=p.message, hint=p.hint)
        for p in plan.problems
    )
    return tuple(rows), problems


def _compared(claim: Claim, leaf: Recovered | None, found: Derived) -> ComparedClaim:
    blank = ComparedClaim(target=claim.target, rule=claim.rule, agrees=None, why="")
    if leaf is None or leaf.ids is None:
        return replace(blank, why=f"not derived: {leaf.why if leaf else 'not in the target'}")
    if claim.layout is None or any(move.expands > 1 for move in claim.values):
        return replace(blank, why="claims of blocks and of values are not compared")
    claimed = ids_of(claim.layout, found.sources.numbering)
    claimed = np.where(claimed >= 0, found.aliases[np.maximum(claimed, 0)], claimed)
    differs = claimed != leaf.ids
    if differs.any():
        return _elsewhere(blank, claimed, leaf, found, claim)
    expected = _expected(claim, found)
    words = found.random[claim.target]
    differs = expected != words
    if differs.any() and claim.equality.kind == "bits":
        i = int(np.argmax(differs))
        place = _place(int(claimed[i]), found)
        return replace(
            blank,
            agrees=False,
            why=f"the elements are the same, their values are not: the claim says {claim.text}, "
            f"which makes {bits_text(expected[i])} of an element of which the converter makes "
            f"{bits_text(words[i])}",
            n_differ=int(differs.sum()),
            index=_index(i, leaf.leaf.grid_shape),
            claimed=place,
            derived=place,
        )
    return replace(blank, agrees=True, why="the same element at every place, and the same values")


def _elsewhere(
    blank: ComparedClaim, claimed: Ids, leaf: Recovered, found: Derived, claim: Claim
) -> ComparedClaim:
    assert leaf.ids is not None
    differs = claimed != leaf.ids
    i, n = int(np.argmax(differs)), int(differs.sum())
    theirs = ", ".join(found.sources_of(leaf)) or "a constant"
    ours = ", ".join(claim.sources) or "a constant"
    if set(claim.sources) == set(found.sources_of(leaf)):
        why = f"{n:,} of {len(claimed):,} elements of {ours} are at other places"
    else:
        why = f"the claim takes it from {ours}, the converter from {theirs}"
    return replace(
        blank,
        agrees=False,
        why=why,
        n_differ=n,
        index=_index(i, leaf.leaf.grid_shape),
        claimed=_claimed_place(claim, i, int(claimed[i]), found),
        derived=_place(int(leaf.ids[i]), found),
    )


def _claimed_place(claim: Claim, i: int, id_: int, found: Derived) -> Place:
    if id_ != _UNKNOWN:
        return _place(id_, found)
    assert claim.layout is not None
    piece = next(p for p in claim.layout.pieces if p.dst <= i <= p.last)
    return Place(leaf=piece.leaf or "", index=())


def _expected(claim: Claim, found: Derived) -> Words:
    """The words that the claim makes of the random values of the source."""
    assert claim.layout is not None
    layout = claim.layout
    first = claim.values[0].source if claim.values else found.target.leaves[claim.target].element
    words = np.zeros(layout.n_elements, f"<u{first.n_bytes}")
    for piece in layout.pieces:
        dst = np.array([piece.dst], np.int64)
        src = np.array([piece.src], np.int64)
        for loop in piece.loops:
            along = np.arange(loop.n, dtype=np.int64)
            dst = (dst[:, None] + along * loop.dst).ravel()
            src = (src[:, None] + along * loop.src).ravel()
        if piece.leaf is None:
            words[dst] = np.frombuffer(piece.fill, words.dtype)[0]
        else:
            words[dst] = found.sources.random[piece.leaf][src]
    made: Words = words
    for move in claim.values:
        made = move.apply(made)
    return made


def _excused(excuse: Excuse, leaf: Recovered, found: Derived) -> Iterator[ComparedClaim]:
    """A leaf that is said to be new, but that the converter takes from the source."""
    if excuse.kind == "new" and leaf.ids is not None and (leaf.ids >= 0).any():
        i = int(np.argmax(leaf.ids >= 0))
        yield ComparedClaim(
            target=excuse.leaf,
            rule=excuse.rule,
            agrees=False,
            why="the claims call it new, the converter takes it from "
            + ", ".join(found.sources_of(leaf)),
            n_differ=int((leaf.ids >= 0).sum()),
            index=_index(i, leaf.leaf.grid_shape),
            claimed=Place(leaf="", index=()),
            derived=_place(int(leaf.ids[i]), found),
        )


def _place(id_: int, found: Derived) -> Place:
    if id_ == CONSTANT:
        return Place(leaf="", index=())
    owner, flat = found.sources.numbering.owners(np.array([id_]))
    name = found.sources.numbering.names[int(owner[0])]
    shape = found.sources.numbering.leaves[name].grid_shape
    return Place(leaf=name, index=_index(int(flat[0]), shape))


def _index(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, tuple(shape))) if shape else ()


# --- a claim file from the map


def rules_of(found: Derived, title: str) -> ClaimFile:
    """The map as rules; what was not derived has none, so that coverage fails on it."""
    made = [
        _made(leaf.leaf, spelled)
        for leaf, spelled in zip(found.leaves, found.spelled, strict=True)
        if spelled is not None
    ]
    tied = _tied(found)
    ruled = generalise(made, found.source.leaves, found.target.leaves)
    return ClaimFile(
        claims=tuple(each.rule for each in ruled),
        excuses=(*_new(found), *_source_excuses(found, tied)),
        ties=tuple(TieRule(side="source", leaves=(first, name)) for name, first in tied.items()),
        mapping="shared with the converter",
        title=title,
    )


def _made(leaf: Leaf, spelled: Spelled) -> Made:
    """One finding; sources that are alike but for numbers are gathered."""
    sources = spelled.sources
    alike = {(slots(s.name)[0], s.transform) for s in sources}
    if len(sources) > 1 and len(alike) == 1 and spelled.steps[0].startswith(("stack", "concat")):
        own = (*sources[0].transform, spelled.steps[0])
        part = Part(tuple(s.name for s in sources), own)
        return Made(leaf.name, (part,), spelled.steps[1:])
    parts = tuple(Part((s.name,), s.transform) for s in sources)
    return Made(leaf.name, parts, spelled.steps)


def _tied(found: Derived) -> dict[str, str]:
    """Leaves of the source that are all of another leaf's bytes, and that leaf."""
    numbering = found.sources.numbering
    tied = {}
    for name, leaf in numbering.leaves.items():
        own = numbering.of(name)
        if not len(own) or found.aliases[own[0]] in (own[0], -1):
            continue
        owner, _ = numbering.owners(found.aliases[own[:1]])
        first = numbering.leaves[numbering.names[int(owner[0])]]
        whole = np.array_equal(found.aliases[own], numbering.of(first.name))
        if whole and (first.shape, first.element) == (leaf.shape, leaf.element):
            tied[name] = first.name
    return tied


def _new(found: Derived) -> Iterator[ExcuseRule]:
    for leaf in found.leaves:
        name = _escaped(leaf.leaf.name)
        if leaf.status == "constant":
            value = bits_text(found.random[leaf.leaf.name][:1])
            reason = "the converter was seen to write this constant"
            yield ExcuseRule(kind="new", side="target", leaf=name, reason=reason, value=value)
        elif leaf.status == "computed":
            reason = "the converter was seen to write it without the source"
            yield ExcuseRule(kind="new", side="target", leaf=name, reason=reason)


def _source_excuses(found: Derived, tied: Collection[str]) -> Iterator[ExcuseRule]:
    """What is used more than once, and what is not used, if all of the target is explained."""
    numbering = found.sources.numbering
    counts = np.zeros(numbering.n_ids, np.int64)
    for leaf, spelled in zip(found.leaves, found.spelled, strict=True):
        if leaf.ids is not None and spelled is not None:
            np.add.at(counts, leaf.ids[leaf.ids >= 0], 1)
    complete = all(
        spelled is not None or leaf.status in ("constant", "computed")
        for leaf, spelled in zip(found.leaves, found.spelled, strict=True)
    )
    reasons: dict[tuple[ExcuseKind, str], list[str]] = {}
    for name in numbering.names:
        if name in tied:
            continue  # proved to be equal, not dropped: elsewhere it may not be
        mine = counts[numbering.of(name)]
        shared = counts[found.aliases[numbering.of(name)]]
        if (mine > 1).any():
            reason = "the converter was seen to use it more than once"
            reasons.setdefault(("duplicate", reason), []).append(name)
        if complete and mine.size and (mine == 0).any():
            part = "part of " if (mine > 0).any() else ""
            reason = f"the converter was seen not to use {part}it"
            if (mine == 0).all() and (shared > 0).all():
                reason = "it lies on the bytes of another leaf, which the converter uses"
            reasons.setdefault(("drop", reason), []).append(name)
    for (kind, reason), names in reasons.items():
        for pattern in _patterns(names, found.source.leaves):
            yield ExcuseRule(kind=kind, side="source", leaf=pattern, reason=reason)


def _patterns(names: Sequence[str], of: Iterable[str]) -> Iterator[str]:
    """Names as patterns: one for those that differ in one number, if it fits nothing else."""
    mine, others = by_texts(names), by_texts(of)
    for texts, found in mine.items():
        moving = [k for k, column in enumerate(zip(*found, strict=True)) if len(set(column)) > 1]
        together = len(moving) == 1 and len(found) == len(others[texts])
        for numbers in found[:1] if together else found:
            holes = [("{i:int}" if together and k == moving[0] else str(n))
                     for k, n in enumerate(numbers)]  # fmt: skip
            yield "".join(_escaped(a) + b for a, b in zip(texts, [*holes, ""], strict=True))


def _escaped(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")
