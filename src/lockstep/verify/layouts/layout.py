"""Which element of which source leaf stands at each place of an array: the algebra of moves.

A `Layout` is a list of pieces; a piece is a nest of loops that steps through flat C-order elements
of one source leaf and of the result together. Moves (reshape, permute, cut, join, ...) map layouts
to layouts, so any chain of them is one list of pieces, which can be executed in tiles, counted and
turned round, without an array in sight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from lockstep.errors import UsageError
from lockstep.verify.layouts.piece import (
    Loop,
    Piece,
    align,
    in_axis,
    nest,
    restrict,
    strides_of,
    tidy,
)

_MAX_CUTS = 1 << 20  # of pieces by an order; each takes some microseconds


@dataclass(frozen=True, slots=True)
class Layout:
    """An array of `shape` (in elements), each of them named by exactly one piece."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def n_elements(self) -> int:
        """How many elements it has."""
        return prod(self.shape)

    @property
    def is_identity(self) -> bool:
        """Whether it is one leaf, element for element in C order."""
        if len(self.pieces) != 1:
            return self.n_elements == 0
        piece = self.pieces[0]
        return (
            piece.leaf is not None
            and piece.src == piece.dst == 0
            and piece.n_elements == self.n_elements
            and all(loop.src == loop.dst for loop in piece.loops)
        )


# --- where layouts come from


def whole(leaf: str, shape: Sequence[int]) -> Layout:
    """A source leaf as it is."""
    return Layout(tuple(shape), tidy([Piece(leaf, 0, 0, (Loop(prod(shape), 1, 1),))]))


def filled(value: bytes, shape: Sequence[int]) -> Layout:
    """A constant array; `value` is one element in little-endian bytes."""
    return Layout(tuple(shape), tidy([Piece(None, 0, 0, (Loop(prod(shape), 0, 1),), value)]))


# --- moves


def reshape(layout: Layout, shape: Sequence[int]) -> Layout:
    """The same elements in C order under another shape; one axis may be -1.

    Raises: UsageError if the number of elements differs.
    """
    wanted = list(shape)
    if wanted.count(-1) == 1:
        known = prod(n for n in wanted if n != -1)
        if known and layout.n_elements % known == 0:
            wanted[wanted.index(-1)] = layout.n_elements // known
    if min(wanted, default=0) < 0 or prod(wanted) != layout.n_elements:
        raise UsageError(
            f"reshape: expected {layout.n_elements} elements as in {_text(layout.shape)}, "
            f"got {_text(shape)}"
        )
    return Layout(tuple(wanted), layout.pieces)


def permute(layout: Layout, axes: Sequence[int]) -> Layout:
    """The axes in another order: axis k of the result is axis `axes[k]`.

    Raises: UsageError if `axes` is no permutation.
    """
    order = [_axis(layout, a, "permute") for a in axes]
    if sorted(order) != list(range(len(layout.shape))):
        raise UsageError(
            f"permute: expected each axis of {_text(layout.shape)} once, got {_text(axes)}"
        )
    shape = tuple(layout.shape[a] for a in order)
    by_axis = dict(zip(order, strides_of(shape), strict=True))
    strides = [by_axis[k] for k in range(len(shape))]
    return Layout(shape, tidy(_placed(layout, strides, 0)))


def cut(layout: Layout, axis: int, start: int, stop: int) -> Layout:
    """The places `start` to `stop` of one axis.

    Raises: UsageError if they are not in the axis.
    """
    k = _axis(layout, axis, "slice")
    n, stride = layout.shape[k], strides_of(layout.shape)[k]
    if not 0 <= start <= stop <= n:
        raise UsageError(
            f"slice: expected 0 <= start <= stop <= {n} on axis {axis} of {_text(layout.shape)}, "
            f"got {start}:{stop}"
        )
    kept: list[Piece] = []
    for piece in align(layout.pieces, layout.shape):
        steps = [loop.dst // stride if in_axis(loop, stride, n) else 0 for loop in piece.loops]
        kept += restrict(piece, piece.dst // stride % n, steps, start, stop)
    shape = (*layout.shape[:k], stop - start, *layout.shape[k + 1 :])
    strides = strides_of(shape)
    kept_layout = Layout(layout.shape, tuple(kept))
    return Layout(shape, tidy(_placed(kept_layout, strides, -start * strides[k])))


def flip(layout: Layout, axis: int) -> Layout:
    """One axis backwards."""
    k = _axis(layout, axis, "flip")
    n, stride = layout.shape[k], strides_of(layout.shape)[k]
    turned = []
    for piece in align(layout.pieces, layout.shape):
        along = [in_axis(loop, stride, n) for loop in piece.loops]
        walked = [loop for loop, yes in zip(piece.loops, along, strict=True) if yes]
        first = piece.dst // stride % n
        last = first + sum((loop.n - 1) * loop.dst // stride for loop in walked)
        loops = [
            Loop(loop.n, -loop.src, loop.dst) if yes else loop
            for loop, yes in zip(piece.loops, along, strict=True)
        ]
        src = piece.src + sum((loop.n - 1) * loop.src for loop in walked)
        dst = piece.dst + (n - 1 - last - first) * stride
        turned.append(Piece(piece.leaf, src, dst, tuple(loops), piece.fill))
    return Layout(layout.shape, tidy(turned))


def join(parts: Sequence[Layout], axis: int) -> Layout:
    """Arrays side by side along one axis.

    Raises: UsageError if another axis differs, or there are none.
    """
    if not parts:
        raise UsageError("concat: expected at least one array, got none")
    k = _axis(parts[0], axis, "concat")
    rest = {(*p.shape[:k], -1, *p.shape[k + 1 :]) for p in parts if len(p.shape) > k}
    if len(rest) != 1 or any(len(p.shape) <= k for p in parts):
        shapes = ", ".join(_text(p.shape) for p in parts)
        raise UsageError(f"concat: expected shapes that differ on axis {axis} only, got {shapes}")
    total = sum(p.shape[k] for p in parts)
    shape = (*parts[0].shape[:k], total, *parts[0].shape[k + 1 :])
    strides = strides_of(shape)
    pieces: list[Piece] = []
    start = 0
    for part in parts:
        pieces += _placed(part, strides, start * strides[k])
        start += part.shape[k]
    return Layout(shape, tidy(pieces))


def take(layout: Layout, axis: int, order: Sequence[int]) -> Layout:
    """The places of one axis in another order: place i of the result is place `order[i]`.

    Raises: UsageError if a place is not in the axis.
    """
    n = layout.shape[_axis(layout, axis, "take")]
    if not all(0 <= i < n for i in order):
        raise UsageError(f"take: expected places from 0 to {n - 1} on axis {axis}")
    if not order:
        return cut(layout, axis, 0, 0)
    runs = list(_runs(order))
    if len(runs) * len(layout.pieces) > _MAX_CUTS:
        raise UsageError(
            f"take: expected an order of {_MAX_CUTS // len(layout.pieces)} runs at most here, "
            f"got {len(runs)}",
            hint="write the order as one step, on the leaf as it is",
        )
    return join([cut(layout, axis, a, b) for a, b in runs], axis)


def broadcast(layout: Layout, axis: int, n: int) -> Layout:
    """One axis of length 1 repeated `n` times.

    Raises: UsageError if the axis is longer.
    """
    k = _axis(layout, axis, "broadcast")
    if layout.shape[k] != 1 or n < 1:
        raise UsageError(
            f"broadcast: expected length 1 on axis {axis} and n >= 1, "
            f"got {_text(layout.shape)} and {n}"
        )
    shape = (*layout.shape[:k], n, *layout.shape[k + 1 :])
    strides = strides_of(shape)
    more = Loop(n, 0, strides[k])
    pieces = _placed(layout, strides, 0)
    return Layout(shape, tidy([p.with_loops(nest((*p.loops, more))) for p in pieces]))


def _placed(layout: Layout, strides: Sequence[int], shift: int) -> list[Piece]:
    """The pieces of a layout with new strides of the result for its axes."""
    old = strides_of(layout.shape)
    axes = list(zip(old, layout.shape, strides, strict=True))
    moved = []
    for piece in align(layout.pieces, layout.shape):
        dst = shift + sum(piece.dst // stride % n * new for stride, n, new in axes)
        loops = [
            Loop(loop.n, loop.src, loop.dst // stride * new)
            for loop in piece.loops
            for stride, n, new in axes
            if in_axis(loop, stride, n)
        ]
        by_reach = tuple(sorted(loops, key=lambda loop: -loop.dst))
        moved.append(Piece(piece.leaf, piece.src, dst, by_reach, piece.fill))
    return moved


def _runs(order: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The stretches of an order that go up by one."""
    start = 0
    for i, (a, b) in enumerate(pairwise([*order, -1]), 1):
        if b != a + 1:
            yield order[start], order[i - 1] + 1
            start = i


def _axis(layout: Layout, axis: int, move: str) -> int:
    n = len(layout.shape)
    if not -n <= axis < n:
        raise UsageError(f"{move}: expected an axis of {_text(layout.shape)}, got {axis}")
    return axis % n


def _text(shape: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
