"""Hypotheses about a leaf that differs: another claim over the same target, and a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, Protocol

import numpy as np

from lockstep.artifacts.verification import Difference
from lockstep.errors import UsageError
from lockstep.formats.leaf import ElementType, Leaf
from lockstep.verify.claim import Claim, Equality, Plan, ValueMove, Words
from lockstep.verify.layouts.layout import Layout
from lockstep.verify.numbers.float_formats import FLOATS
from lockstep.verify.numbers.values import value_move

Side = Literal["source", "target"]


class Probe(Protocol):
    """What a diagnosis may read; the engine gives it, bounded like everything that it reads."""

    def agrees(self, claim: Claim, at_most: int | None = None) -> bool:
        """Whether the target has the bits that the claim says, stopping at the first that differs.

        With `at_most`, only so many elements are looked at, spread over the leaf.
        """

    def elements(self, side: Side, leaf: str, start: int, stop: int) -> Words:
        """The words of the flat elements `start` to `stop` of a leaf, in C order."""

    def digest(self, side: Side, leaf: str) -> str | None:
        """The digest of the logical array with its type and shape, where it is known already."""

    def is_late(self) -> bool:
        """Whether the time for questions is over; then nothing is agreed to."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A name that does not change, a sentence, and the claim that would be exact if it held."""

    name: str
    text: str
    claim: Claim
    suspects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A claim that failed, with what a diagnosis may ask."""

    claim: Claim
    plan: Plan
    probe: Probe
    layout: Layout
    target: Leaf
    difference: Difference | None

    def with_layout(self, layout: Layout) -> Claim:
        """The claim over another layout, to the bit."""
        return replace(self.claim, layout=layout, equality=Equality())

    def with_values(self, *values: ValueMove) -> Claim:
        """The claim with other value moves, to the bit."""
        return replace(self.claim, values=values, equality=Equality())

    @property
    def only_source(self) -> Leaf | None:
        """The source leaf, where there is one and nothing else."""
        names = {piece.leaf for piece in self.layout.pieces}
        name = names.pop() if len(names) == 1 else None
        return self.plan.source.leaves.get(name) if name else None

    @property
    def facts(self) -> Mapping[str, int]:
        """The facts that are small numbers."""
        found = self.plan.facts.items()
        return {name: n for name, n in found if isinstance(n, int) and 1 < n <= 4096}

    def expected(self, claim: Claim, start: int, stop: int) -> Words:
        """The few words that a claim says are at flat places of the target."""
        assert claim.layout is not None
        places = [source_of(claim.layout, i) for i in range(start, stop)]
        words = np.concatenate([self._read(*run) for run in _runs(places)])
        for move in claim.values:
            words = move.apply(words)
        return words

    def _read(self, leaf: str | None, start: int, n: int, step: int, fill: bytes) -> Words:
        if leaf is None:
            return np.frombuffer(fill * n, f"<u{len(fill)}")
        if step >= 0:
            return self.probe.elements("source", leaf, start, start + n)
        return self.probe.elements("source", leaf, start - n + 1, start + 1)[::-1]

    def differs_in_less_than(self, n: int) -> bool:
        """Whether fewer elements than that are known to be all that differ."""
        return self.difference is not None and self.difference.n_differ < n

    @property
    def zero(self) -> bytes:
        """A constant of zero bits, which is of the source's type if there is one."""
        leaf = self.plan.source.leaves.get(self.claim.sources[0]) if self.claim.sources else None
        return bytes((leaf or self.target).element.n_bytes)

    def found(self, start: int, stop: int) -> Words:
        """The few words that are there."""
        return self.probe.elements("target", self.target.name, start, stop)

    @property
    def is_simple(self) -> bool:
        """Whether every element is one word and stays one, so that single places can be read."""
        leaves = [self.plan.source.leaves.get(name) for name in self.claim.sources]
        elements = [self.target.element, *(leaf.element for leaf in leaves if leaf)]
        plain = all(e.n_bytes in (1, 2, 4, 8) and e.n_numbers == 1 for e in elements)
        return plain and all(move.expands == 1 for move in self.claim.values)


def source_of(layout: Layout, i: int) -> tuple[str | None, int, bytes]:
    """The source leaf and flat element at one flat place of a layout, or the constant there."""
    for piece in layout.pieces:
        if piece.dst <= i <= piece.last:
            rest, src = i - piece.dst, piece.src
            for loop in piece.loops:
                step = min(rest // loop.dst, loop.n - 1)
                rest, src = rest - step * loop.dst, src + step * loop.src
            if not rest:
                return piece.leaf, src, piece.fill
    raise AssertionError(f"no piece at {i}")


def _runs(
    places: list[tuple[str | None, int, bytes]],
) -> Iterator[tuple[str | None, int, int, int, bytes]]:
    """Stretches of one leaf that go up, or down, by one: leaf, start, length, step, constant."""
    at = 0
    while at < len(places):
        leaf, start, fill = places[at]
        step, n = 0, 1
        while at + n < len(places) and places[at + n][::2] == (leaf, fill):
            gap = places[at + n][1] - places[at + n - 1][1]
            if leaf is not None and (abs(gap) != 1 or step not in (0, gap)):
                break
            step, n = gap, n + 1
        yield leaf, start, n, step, fill
        at += n


def attempt(build: Callable[[], Layout]) -> Layout | None:
    """The layout, or None if a move does not fit the shape."""
    try:
        return build()
    except UsageError:
        return None


def row_elements(shape: tuple[int, ...], axis: int) -> int:
    """The flat elements of one place of an axis."""
    return prod(shape[axis + 1 :])


# --- moves of values

Values = tuple[ValueMove, ...]


def move_or_none(
    name: str, element: ElementType, *args: object, **options: object
) -> ValueMove | None:
    """The move of values, or None if there is none for this type."""
    try:
        return value_move(name, element, args, options)
    except UsageError:
        return None


def before_casts(case: Case) -> tuple[Values, ElementType]:
    """The declared moves without the casts at their end, and the type after them."""
    moves = list(case.claim.values)
    element = moves[0].source if moves else case.target.element
    while moves and moves[-1].text.startswith(("cast(", "widen(")):
        moves.pop()
    return tuple(moves), moves[-1].target if moves else element


def value_places(case: Case) -> Iterator[tuple[Values, ElementType, Values, str]]:
    """Where one more change may stand: at the end, and before the casts that stand there.

    Each is the moves before it, the type there, the moves after it, and words that say so.
    """
    target = case.target.element
    yield case.claim.values, target, (), ""
    before, element = before_casts(case)
    casts = case.claim.values[len(before) :]
    if casts and element != target and element.name in FLOATS:
        yield before, element, casts, f" before the cast to {target}"
