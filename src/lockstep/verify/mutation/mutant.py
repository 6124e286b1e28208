"""What a mutation is: leaves of a target that hold other values, and the words that name it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from lockstep.formats.leaf import Extent, Leaf, Part, Parts
from lockstep.verify.claim import Claim, Plan, Words
from lockstep.verify.engine.budget import Budget
from lockstep.verify.engine.probe import ReadingProbe
from lockstep.verify.engine.reading import words_of
from lockstep.verify.layouts.piece import strides_of
from lockstep.verify.mutation.overlay import Change, can_lie_under, overlaid, unchanged, written

MAX_ROOM = 128 << 20  # bytes of a leaf that is changed as an array
MAX_MAPPED = 256 << 20  # bytes of a leaf of which every word is changed on its way
PEEKED = 1 << 16  # elements that are searched for a zero, a NaN or a subnormal number


@dataclass(frozen=True, slots=True)
class Mutant:
    """Leaves that stand in the place of the target's; `says` are words of a right diagnosis.

    `says` is a regular expression, "" where there is nothing to name. `n_differ` is how many
    elements must differ, where that is known. `beside` are leaves that are compared too, unchanged,
    because a diagnosis names them.
    """

    changed: Mapping[str, Leaf]
    says: str = ""
    n_differ: int | None = None
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a mutation cannot be planted here; a leaf that is too large may have a smaller like."""

    why: str
    is_too_large: bool = False


@dataclass(frozen=True, slots=True)
class Mutation:
    """A fault that a converter can have, or, where `harmless`, a change that is none.

    `plant` gets one claim whose target leaf it is planted in.
    """

    section: str
    name: str
    plant: Callable[[Bench, Claim], Mutant | Unfit]
    harmless: bool = False


@dataclass
class Bench:
    """A plan that passes, the claims that were picked of it, and room for changed leaves."""

    plan: Plan
    picks: tuple[Claim, ...]
    budget: Budget
    directory: Path
    rng: np.random.Generator
    bytes_read: int = field(default=0, init=False)
    _n_files: int = field(default=0, init=False)

    @cached_property
    def room(self) -> int:
        """The bytes that one changed leaf may have as an array."""
        return min(MAX_ROOM, max(0, self.budget.alone // 16))

    @cached_property
    def by_rule(self) -> dict[str, list[Claim]]:
        """The claims of each rule, in the order of the numbers in their names."""
        found: dict[str, list[Claim]] = {}
        for claim in self.plan.claims:
            found.setdefault(claim.rule, []).append(claim)
        return {rule: sorted(claims, key=natural) for rule, claims in found.items()}

    def smaller(self, claim: Claim) -> Claim | None:
        """The largest of the claim's rule that there is room for."""
        fit = [c for c in self.by_rule[claim.rule] if 0 < self.leaf(c).n_bytes <= self.room]
        return max(fit, key=lambda c: self.leaf(c).n_bytes, default=None)

    def leaf(self, claim: Claim) -> Leaf:
        """The target's leaf of a claim."""
        return self.plan.target.leaves[claim.target]

    def words(self, leaf: Leaf, start: int = 0, stop: int | None = None) -> Words:
        """The words of the target's leaf: flat, and a last axis where an element has several."""
        stop = leaf.n_elements if stop is None else stop
        self.bytes_read += (stop - start) * leaf.element.n_bytes
        probe = ReadingProbe(self.plan, self._half, {"source": {}, "target": {}})
        try:
            return probe.elements("target", leaf.name, start, stop)
        finally:
            probe.close()

    def arranged(self, claim: Claim, change: Callable[[Words], Words]) -> Mapping[str, Leaf] | None:
        """The leaf as an array that was changed as a whole; None if there is no room for it.

        Shapes: `change` gets the grid shape, and a last axis where an element has several words.
        """
        leaf = self.leaf(claim)
        if leaf.n_bytes > self.room:
            return None
        _, n_words = words_of(leaf.element)
        shape = (*leaf.grid_shape, n_words) if n_words > 1 else leaf.grid_shape
        words = np.ascontiguousarray(change(self.words(leaf).reshape(shape)))
        return {leaf.name: self._stored(leaf, words)}

    def transposed(self, claim: Claim, axes: Sequence[int]) -> Mapping[str, Leaf] | None:
        """The leaf with the values of its own axes in another order, through strides if it can."""
        leaf = self.leaf(claim)
        if not isinstance(leaf.storage, Extent) or not can_lie_under(leaf):
            n = len(axes)  # behind which an element may have words of its own
            return self.arranged(claim, lambda w: w.transpose((*axes, *range(n, w.ndim))))
        plain = strides_of(leaf.grid_shape)
        storage = replace(leaf.storage, strides=tuple(plain[axis] for axis in axes))
        return {leaf.name: replace(leaf, storage=storage, checksum="", shares="")}

    def with_rows(self, claim: Claim, order: Words) -> Mapping[str, Leaf] | None:
        """The leaf with its rows in another order, as parts of its own bytes if that can be."""
        leaf = self.leaf(claim)
        if not isinstance(leaf.storage, Extent) or not can_lie_under(leaf):
            return self.arranged(claim, lambda words: words[order])
        starts = [0, *(np.flatnonzero(np.diff(order.astype(np.int64)) != 1) + 1), len(order)]
        rest, row = leaf.grid_shape[1:], leaf.n_bytes // len(order)
        extent = leaf.storage
        parts = tuple(
            Part((int(a), *(0 for _ in rest)), (int(b - a), *rest),
                 replace(extent, offset=extent.offset + int(order[a]) * row, strides=None))
            for a, b in pairwise(starts)
        )  # fmt: skip
        return {leaf.name: replace(leaf, storage=Parts(parts), checksum="", shares="")}

    def patched(self, claim: Claim, patches: Mapping[int, bytes]) -> Mapping[str, Leaf] | None:
        """The leaf with other bytes for some elements."""
        return self._laid_over(claim, unchanged, patches)

    def mapped(self, claim: Claim, change: Change) -> Mapping[str, Leaf] | None:
        """The leaf with every word changed; None if that would take too long."""
        return None if self.leaf(claim).n_bytes > MAX_MAPPED else self._laid_over(claim, change, {})

    def next_file(self) -> Path:
        """A new file among those that go when the mutation is done."""
        self._n_files += 1
        return self.directory / f"{self._n_files}.bin"

    # --- inside

    @cached_property
    def _half(self) -> Budget:
        """What is left to a reader beside an array and its changed copy."""
        return replace(self.budget, total=self.budget.total - 6 * self.room)

    def _laid_over(
        self, claim: Claim, change: Change, patches: Mapping[int, bytes]
    ) -> Mapping[str, Leaf] | None:
        leaf = self.leaf(claim)
        if can_lie_under(leaf):
            return {leaf.name: overlaid(leaf, change, patches)}

        def changed(words: Words) -> Words:
            flat = change(words.reshape(-1)).view(np.uint8)
            for element, data in patches.items():
                at = element * leaf.element.n_bytes
                flat[at : at + len(data)] = np.frombuffer(data, np.uint8)
            return flat.view(words.dtype).reshape(words.shape)

        return self.arranged(claim, changed)

    def _stored(self, leaf: Leaf, words: Words) -> Leaf:
        return written(leaf, words, self.next_file())


def natural(claim: Claim) -> tuple[object, ...]:
    """A key by which layer 2 comes before layer 10."""
    parts = re.split(r"(\d+)", claim.target)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)
