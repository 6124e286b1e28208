"""Where the elements of a piece lie: the units that a leaf is stored in, and the steps in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from lockstep.formats.leaf import Extent, Held, Leaf, Parts
from lockstep.verify.engine.reading import Unit
from lockstep.verify.layouts.piece import (
    Loop,
    Piece,
    align,
    in_axis,
    is_nested,
    restrict,
    strides_of,
)


@dataclass(frozen=True, slots=True)
class Box:
    """A unit and the block of its leaf that it holds, as steps in the unit for the leaf's axes.

    With `flat` the unit holds the C-order elements from `start[0]` on.
    """

    unit: Unit
    start: tuple[int, ...]
    steps: tuple[int, ...]
    flat: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece begins in a unit, and the step in it for each loop of the piece."""

    unit: Unit
    start: int
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """A piece whose elements lie in one unit on each side; `source` is None for a constant."""

    piece: Piece
    source: Place | None
    target: Place


def is_plain(leaf: Leaf) -> bool:
    """Whether its elements lie in C order in one stretch of a file, as they are."""
    storage = leaf.storage
    if not isinstance(storage, Extent) or (storage.big_endian and leaf.element.n_bytes > 1):
        return False
    return storage.strides is None or _is_c_order(leaf.grid_shape, storage.strides)


def _is_c_order(shape: Sequence[int], strides: Sequence[int]) -> bool:
    wanted = strides_of(shape)
    return all(n == 1 or a == b for n, a, b in zip(shape, wanted, strides, strict=True))


def chunk_shape(leaf: Leaf) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The array and the chunk, both flat where chunks are stretches; None if there are none."""
    storage = leaf.storage
    if isinstance(storage, Extent | Held | Parts):
        return None
    return ((leaf.n_elements,) if storage.flat else leaf.grid_shape), tuple(storage.shape)


def n_chunks(leaf: Leaf) -> int:
    """How many chunks it has; 0 if it is not chunked."""
    shapes = chunk_shape(leaf)
    return prod(-(-n // c) for n, c in zip(*shapes, strict=True)) if shapes else 0


def chunk_bytes(leaf: Leaf) -> int:
    """The bytes of its largest chunk, decoded."""
    shapes = chunk_shape(leaf)
    if shapes is None:
        return 0
    return prod(min(n, c) for n, c in zip(*shapes, strict=True)) * leaf.element.n_bytes


def by_boxes(leaf: Leaf, pieces: Iterable[Piece]) -> Iterator[tuple[Box, list[Piece]]]:
    """The parts of pieces (whose `dst` is in this leaf) in each unit of it, in the units' order."""
    storage, shape = leaf.storage, leaf.grid_shape
    if isinstance(storage, Extent | Held):
        extent = storage if isinstance(storage, Extent) else None
        unit = Unit(leaf, extent, (), leaf.n_elements)
        if extent and extent.strides and not _is_c_order(shape, extent.strides):
            yield Box(unit, (0,) * len(shape), extent.strides), align(pieces, shape)
        else:
            yield Box(unit, (0,), (1,), flat=True), list(pieces)
    elif isinstance(storage, Parts):
        aligned = align(pieces, shape)
        for part in storage.parts:
            inside = _in_block(aligned, shape, part.start, part.shape)
            if inside:
                unit = Unit(leaf, part.extent, (), prod(part.shape))
                steps = part.extent.strides or strides_of(part.shape)
                yield Box(unit, part.start, steps), inside
    else:
        yield from _by_chunks(leaf, list(pieces))


def _in_block(
    pieces: list[Piece], shape: Sequence[int], start: Sequence[int], block: Sequence[int]
) -> list[Piece]:
    for stride, n, lo, count in zip(strides_of(shape), shape, start, block, strict=True):
        if count != n:
            pieces = _in_axis_range(pieces, stride, n, lo, lo + count)
    return pieces


def _in_axis_range(pieces: list[Piece], stride: int, n: int, lo: int, hi: int) -> list[Piece]:
    found: list[Piece] = []
    for piece in pieces:
        steps = [loop.dst // stride if in_axis(loop, stride, n) else 0 for loop in piece.loops]
        found += restrict(piece, piece.dst // stride % n, steps, lo, hi)
    return found


def _by_chunks(leaf: Leaf, pieces: list[Piece]) -> Iterator[tuple[Box, list[Piece]]]:
    shapes = chunk_shape(leaf)
    assert shapes is not None
    shape, chunk = shapes
    flat = leaf.storage.flat  # type: ignore[union-attr]
    if not flat:
        pieces = align(pieces, shape)
    for index, inside in _split(pieces, shape, chunk, strides_of(shape), ()):
        start = tuple(i * c for i, c in zip(index, chunk, strict=True))
        block = [min(c, n - s) for c, n, s in zip(chunk, shape, start, strict=True)]
        yield Box(Unit(leaf, None, index, prod(block)), start, strides_of(block), flat), inside


def _split(
    pieces: list[Piece],
    shape: Sequence[int],
    chunk: Sequence[int],
    strides: Sequence[int],
    index: tuple[int, ...],
) -> Iterator[tuple[tuple[int, ...], list[Piece]]]:
    """Cuts by the grid, axis after axis; only what the pieces touch is visited."""
    k = len(index)
    if k == len(shape):
        yield index, pieces
        return
    stride, n, c = strides[k], shape[k], chunk[k]
    lows, highs = zip(*(_range_in_axis(piece, stride, n) for piece in pieces), strict=True)
    for i in range(min(lows) // c, max(highs) // c + 1):
        lo, hi = i * c, min(n, (i + 1) * c)
        near = [p for p, a, b in zip(pieces, lows, highs, strict=True) if a < hi and b >= lo]
        inside = _in_axis_range(near, stride, n, lo, hi)
        if inside:
            yield from _split(inside, shape, chunk, strides, (*index, i))


def _range_in_axis(piece: Piece, stride: int, n: int) -> tuple[int, int]:
    first = piece.dst // stride % n
    steps = [(m.n - 1) * (m.dst // stride) for m in piece.loops if in_axis(m, stride, n)]
    return first, first + sum(steps)


def swapped(piece: Piece) -> Piece:
    """The piece with source and target exchanged, loop for loop; twice is the piece again.

    It has no loop that stays at one source element.
    """
    src, dst, loops = piece.src, piece.dst, []
    for loop in piece.loops:
        if loop.src < 0:
            src += (loop.n - 1) * loop.src
            dst += (loop.n - 1) * loop.dst
            loops.append(Loop(loop.n, -loop.dst, -loop.src))
        else:
            loops.append(Loop(loop.n, loop.dst, loop.src))
    return Piece(piece.leaf, dst, src, _outermost_first(loops), piece.fill)


def _outermost_first(loops: Iterable[Loop]) -> tuple[Loop, ...]:
    return tuple(sorted(loops, key=lambda loop: -loop.dst))


def _in_source_order(piece: Piece) -> Iterator[Piece]:
    """The piece seen from the source, in parts whose loops nest there."""
    turned = swapped(piece)
    if is_nested(turned.loops):
        yield turned
    else:
        for t in range(turned.loops[0].n):
            yield from _in_source_order(swapped(turned.part(0, t, t + 1)))


def source_boxes(leaf: Leaf, pieces: Iterable[Piece]) -> Iterator[tuple[Box, list[Piece]]]:
    """Like `by_boxes`, for the side that a piece takes its elements from."""
    repeated: dict[tuple[Loop, ...], list[Piece]] = {}
    for piece in pieces:
        stays = tuple(loop for loop in piece.loops if loop.src == 0)
        moving = tuple(loop for loop in piece.loops if loop.src)
        repeated.setdefault(stays, []).extend(_in_source_order(replace(piece, loops=moving)))
    for stays, turned in repeated.items():
        for box, inside in by_boxes(leaf, turned):
            back = [swapped(piece) for piece in inside]
            if stays:
                back = [replace(p, loops=_outermost_first((*p.loops, *stays))) for p in back]
            yield box, back


def place(box: Box, at: int, loop_steps: Sequence[int]) -> Place:
    """Where the element `at` of the leaf lies in the box's unit, and the steps of loops there."""
    if box.flat:
        return Place(box.unit, at - box.start[0], tuple(loop_steps))
    shape = box.unit.leaf.grid_shape
    axes = list(zip(strides_of(shape), shape, box.start, box.steps, strict=True))
    start = sum((at // stride % n - first) * step for stride, n, first, step in axes)
    return Place(box.unit, start, tuple(_step(far, axes) for far in loop_steps))


def _step(far: int, axes: Sequence[tuple[int, int, int, int]]) -> int:
    for stride, n, _, step in axes:
        if stride <= abs(far) < stride * n:
            return abs(far) // stride * step * (1 if far > 0 else -1)
    return 0


def moves_on_source(leaf: Leaf, pieces: Iterable[Piece], target: Box) -> Iterator[Move]:
    """The moves of pieces that lie in one box of the target."""
    for box, inside in source_boxes(leaf, pieces):
        for piece in inside:
            yield move(piece, box, target)


def move(piece: Piece, source: Box | None, target: Box) -> Move:
    """A piece that lies in one box on each side."""
    taken = place(source, piece.src, [loop.src for loop in piece.loops]) if source else None
    return Move(piece, taken, place(target, piece.dst, [loop.dst for loop in piece.loops]))
