"""A box of a target as a leaf of its own: what is claimed there, what is there, and where it lies.

A box is a stretch of each axis. Hypotheses about a part are tried like those about a leaf, over the
elements of the part alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from lockstep.artifacts.verification import Difference, Spot
from lockstep.verify.claim import Claim, Words
from lockstep.verify.claims.sampled import sampled
from lockstep.verify.diagnosis.hypotheses import Case, Probe, Side
from lockstep.verify.layouts.layout import Layout, cut, join, whole
from lockstep.verify.layouts.piece import align, in_axis, strides_of

Box = tuple[tuple[int, int], ...]
_HOLE = "\0"  # no leaf has this name


def n_in(box: Box) -> int:
    """How many elements a box has."""
    return prod(stop - start for start, stop in box)


def is_inside(box: Box, other: Box) -> bool:
    """Whether one box lies in another."""
    return all(c <= a and b <= d for (a, b), (c, d) in zip(box, other, strict=True))


def whole_box(shape: Sequence[int]) -> Box:
    """All of a leaf."""
    return tuple((0, n) for n in shape)


def taken(layout: Layout, box: Box) -> Layout:
    """What is claimed in a box."""
    for axis, (start, stop) in enumerate(box):
        layout = cut(layout, axis, start, stop)
    return layout


def embedded(inside: Layout, shape: Sequence[int], box: Box) -> Layout:
    """The pieces of a box in the places of the whole leaf, and nothing else."""
    layout = inside
    for axis, (start, stop) in enumerate(box):
        sizes = (start, shape[axis] - stop)
        holes = [whole(_HOLE, (*layout.shape[:axis], n, *layout.shape[axis + 1 :])) for n in sizes]
        parts = [holes[0], layout, holes[1]]
        layout = join([part for part in parts if part.n_elements], axis)
        kept = tuple(piece for piece in layout.pieces if piece.leaf != _HOLE)
        layout = Layout(layout.shape, kept)
    return layout


def boxes_of_sources(layout: Layout) -> dict[str, Box]:
    """The box that each source leaf fills, for those that fill one."""
    strides = strides_of(layout.shape)
    axes = list(zip(strides, layout.shape, strict=True))
    found: dict[str, tuple[int, list[list[int]]]] = {}
    for piece in align(layout.pieces, layout.shape):
        if piece.leaf is None:
            continue
        low = [piece.dst // stride % n for stride, n in axes]
        high = list(low)
        for loop in piece.loops:
            for k, (stride, n) in enumerate(axes):
                if in_axis(loop, stride, n):
                    high[k] += (loop.n - 1) * (loop.dst // stride)
        count, bounds = found.get(piece.leaf, (0, [list(p) for p in zip(low, high, strict=True)]))
        for k, (a, b) in enumerate(zip(low, high, strict=True)):
            bounds[k] = [min(bounds[k][0], a), max(bounds[k][1], b)]
        found[piece.leaf] = count + piece.n_elements, bounds
    boxes = {name: tuple((a, b + 1) for a, b in bounds) for name, (_, bounds) in found.items()}
    return {name: box for name, box in boxes.items() if n_in(box) == found[name][0]}


def part_of(case: Case, box: Box) -> Case:
    """The case of a box alone.

    Raises: UsageError if the claim is too irregular to be cut.
    """
    layout = taken(case.layout, box)
    names = {piece.leaf for piece in layout.pieces}
    sources = tuple(name for name in case.claim.sources if name in names)
    shape = tuple(stop - start for start, stop in box)
    return replace(
        case,
        claim=replace(case.claim, layout=layout, sources=sources),
        layout=layout,
        target=replace(case.target, shape=shape),
        probe=PartProbe(case.probe, case.target.name, case.layout.shape, box),
        difference=_moved(case.difference, box) if case.difference else None,
    )


def _moved(found: Difference, box: Box) -> Difference:
    return replace(found, first=_spot(found.first, box), last=_spot(found.last, box))


def _spot(spot: Spot, box: Box) -> Spot:
    index = tuple(i - start for i, (start, _) in zip(spot.target_index, box, strict=True))
    return replace(spot, target_index=index)


class PartProbe:
    """A probe that sees the box of a target as all of it."""

    def __init__(self, probe: Probe, target: str, shape: tuple[int, ...], box: Box) -> None:
        self._probe, self._target = probe, target
        self._shape, self._box = shape, box

    def agrees(self, claim: Claim, at_most: int | None = None) -> bool:
        """Whether the claim holds in the box."""
        if at_most is not None:
            claim = sampled(claim, at_most)
        assert claim.layout is not None
        layout = embedded(claim.layout, self._shape, self._box)
        return self._probe.agrees(replace(claim, layout=layout))

    def elements(self, side: Side, leaf: str, start: int, stop: int) -> Words:
        """The words of flat elements, of the box where it is the target's."""
        if side == "source" or leaf != self._target:
            return self._probe.elements(side, leaf, start, stop)
        counts = [b - a for a, b in self._box]
        found = []
        while start < stop:
            flat, rest, run = 0, start, stop - start
            strides = strides_of(counts)
            for k, (stride, (first, _), n) in enumerate(
                zip(strides, self._box, self._shape, strict=True)
            ):
                i, rest = divmod(rest, stride)
                flat = flat * n + first + i
                if k == len(counts) - 1:
                    run = min(run, counts[k] - i)
            found.append(self._probe.elements("target", leaf, flat, flat + run))
            start += run
        return np.concatenate(found)

    def digest(self, side: Side, leaf: str) -> str | None:
        """That of a source; a part of a target has none."""
        return self._probe.digest(side, leaf) if side == "source" else None

    def is_late(self) -> bool:
        """Whether the time is over."""
        return self._probe.is_late()
