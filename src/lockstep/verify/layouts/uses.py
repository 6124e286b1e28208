"""How often each element of a flat array is named by a list of pieces, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from lockstep.verify.layouts.piece import Piece, align, is_nested, nest


@dataclass(frozen=True, slots=True)
class Uses:
    """How many elements are named never, once and more often, and the first of either fault."""

    n_zero: int
    n_once: int
    n_more: int
    gap: int | None = None
    overlap: int | None = None


def count_uses(pieces: Sequence[Piece], n_elements: int) -> Uses:
    """Counts the elements `dst` of the pieces in an array of `n_elements`."""
    sets = [part for piece in pieces for part in _nested(piece.with_loops(nest(piece.loops)))]
    steps = [loop.dst for piece in sets for loop in piece.loops if not _is_interval(piece)]
    if not steps:
        return _sweep([(piece.dst, piece.last + 1) for piece in sets], n_elements)
    return _by_rows(sets, max(steps), n_elements)


def _nested(piece: Piece) -> Iterator[Piece]:
    """The piece, or, where its loops interleave, the steps of the outermost one by one."""
    if is_nested(piece.loops):
        yield piece
    else:
        for t in range(piece.loops[0].n):
            yield from _nested(piece.part(0, t, t + 1))


def _is_interval(piece: Piece) -> bool:
    return not piece.loops or (len(piece.loops) == 1 and piece.loops[0].dst == 1)


def _sweep(intervals: Sequence[tuple[int, int]], n_elements: int) -> Uses:
    """Counts where every set is a stretch."""
    changes: dict[int, int] = {0: 0, n_elements: 0}
    for start, stop in intervals:
        changes[start] = changes.get(start, 0) + 1
        changes[stop] = changes.get(stop, 0) - 1
    places = sorted(changes)
    depths = accumulate(changes[place] for place in places)
    total = {0: 0, 1: 0, 2: 0}
    first: dict[int, int] = {}
    for (start, stop), depth in zip(pairwise(places), depths, strict=False):
        kind = min(depth, 2)
        total[kind] += stop - start
        if stop > start:
            first.setdefault(kind, start)
    return Uses(total[0], total[1], total[2], first.get(0), first.get(2))


def _by_rows(sets: Sequence[Piece], row: int, n_elements: int) -> Uses:
    """Counts in rows as long as the largest step: in each stretch of rows, the same columns."""
    n_rows = -(-n_elements // row)
    # a set that runs on into the next row is cut, so that each is rows times columns
    parts = align(sets, (n_rows, row))
    blocks = []
    for part in parts:
        over_rows = [loop.n for loop in part.loops if loop.dst >= row]
        columns = tuple(loop for loop in part.loops if loop.dst < row)
        start = part.dst // row
        n_rows_of = over_rows[0] if over_rows else 1
        blocks.append((start, start + n_rows_of, Piece(None, 0, part.dst % row, columns)))
    places = sorted({0, n_rows, *(b[0] for b in blocks), *(b[1] for b in blocks)})
    return _add_up(blocks, places, row, n_elements)


def _add_up(
    blocks: Sequence[tuple[int, int, Piece]], places: Sequence[int], row: int, n_elements: int
) -> Uses:
    opening: dict[int, list[Piece]] = {}
    closing: dict[int, list[Piece]] = {}
    for start, stop, columns in blocks:
        opening.setdefault(start, []).append(columns)
        closing.setdefault(stop, []).append(columns)
    known: dict[tuple[Piece, ...], Uses] = {}
    active: list[Piece] = []
    found: list[tuple[int, int, Uses]] = []
    for start, stop in pairwise(places):
        for columns in closing.get(start, []):
            active.remove(columns)
        active += opening.get(start, [])
        key = tuple(sorted(active, key=lambda p: (p.dst, p.loops)))
        if key not in known:
            known[key] = count_uses(key, row)
        found.append((start * row, stop - start, known[key]))
    n_beyond = places[-1] * row - n_elements  # of the last row, which no set names
    n_zero = sum(n * uses.n_zero for _, n, uses in found) - n_beyond
    return Uses(
        n_zero,
        sum(n * uses.n_once for _, n, uses in found),
        sum(n * uses.n_more for _, n, uses in found),
        min((at + u.gap for at, _, u in found if u.gap is not None), default=0) if n_zero else None,
        min((at + u.overlap for at, _, u in found if u.overlap is not None), default=None),
    )
