"""Heads, experts or other blocks of an axis in another order, by what the blocks begin with."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from lockstep.formats.leaf import Leaf
from lockstep.verify.diagnosis.hypotheses import Probe, Side
from lockstep.verify.suggestion.spellings import Heads, Steps

MAX_BLOCKS = 128  # whose order a step spells out
N_LOOKED_AT = 16  # elements that a block is known by


def block_orders(source: Leaf, target: Leaf, heads: Heads, probe: Probe) -> Iterator[Steps]:
    """Steps that bring the blocks of one leaf into the order of another of its shape and type."""
    if source.grid_shape != target.grid_shape or source.element != target.element:
        return
    for axis, n in enumerate(source.grid_shape):
        for n_blocks in heads.dividing(n, 1):
            if 1 < n_blocks <= MAX_BLOCKS:
                order = _order(source, target, axis, n_blocks, probe)
                if order:
                    yield (f"heads({axis}, {n_blocks}, {order})",)


def _order(source: Leaf, target: Leaf, axis: int, n_blocks: int, probe: Probe) -> list[int] | None:
    """Which block of the source each block of the target begins like, if that is an order."""
    begins = []
    sides: tuple[tuple[Side, Leaf], ...] = (("source", source), ("target", target))
    for side, leaf in sides:
        size = prod(leaf.grid_shape[axis:]) // n_blocks
        n = min(N_LOOKED_AT, size)
        starts = range(0, n_blocks * size, size)
        found = [probe.elements(side, leaf.name, at, at + n).tobytes() for at in starts]
        begins.append(found)
    there = {begin: i for i, begin in enumerate(begins[0])}
    order = [there.get(begin, -1) for begin in begins[1]]
    if sorted(order) != list(range(n_blocks)) or order == sorted(order):
        return None
    return order
