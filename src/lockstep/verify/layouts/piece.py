"""Pieces: elements that move alike, as one nest of loops over two flat arrays.

The loops of a piece are nested on the side of the result: each step of a loop is longer than all
that the loops inside it reach. Every function here keeps that; it is what makes cutting a piece a
matter of arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from lockstep.errors import UsageError

MAX_PIECES = 1 << 16  # of one target; each costs some hundred bytes and a call


@dataclass(frozen=True, slots=True, order=True)
class Loop:
    """`n` steps, of `src` and `dst` flat elements each; `dst` is positive, `src` may be any."""

    n: int
    src: int
    dst: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Where the first element lies on both sides, and the loops over the rest, outermost first.

    With `leaf` None every element is `fill`, the little-endian bytes of one element.
    """

    leaf: str | None
    src: int
    dst: int
    loops: tuple[Loop, ...]
    fill: bytes = b""

    @property
    def n_elements(self) -> int:
        """How many elements it moves."""
        return prod(loop.n for loop in self.loops)

    @property
    def last(self) -> int:
        """The flat place of its last element in the result."""
        return self.dst + sum((loop.n - 1) * loop.dst for loop in self.loops)

    def part(self, i: int, start: int, stop: int) -> Piece:
        """The steps `start` to `stop` of loop `i`."""
        loop = self.loops[i]
        kept = () if stop - start == 1 else (Loop(stop - start, loop.src, loop.dst),)
        loops = (*self.loops[:i], *kept, *self.loops[i + 1 :])
        src, dst = self.src + start * loop.src, self.dst + start * loop.dst
        return Piece(self.leaf, src, dst, loops, self.fill)

    def with_loops(self, loops: tuple[Loop, ...]) -> Piece:
        """The same first element, with other loops: `replace` takes three times as long."""
        return Piece(self.leaf, self.src, self.dst, loops, self.fill)


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """The C-order strides of a shape, in elements."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def nest(loops: Iterable[Loop]) -> tuple[Loop, ...]:
    """The loops that do something, outermost first, with neighbours that make one run joined."""
    joined: list[Loop] = []
    for loop in sorted(loops, key=lambda loop: -loop.dst):
        outer = joined[-1] if joined else None
        if loop.n == 1:
            continue
        if outer and (outer.src, outer.dst) == (loop.n * loop.src, loop.n * loop.dst):
            joined[-1] = Loop(outer.n * loop.n, loop.src, loop.dst)
        else:
            joined.append(loop)
    return tuple(joined)


def turned(piece: Piece) -> Piece:
    """The same moves seen from the source: `src` and `dst` change places.

    Only a piece that takes no source element twice can be turned.
    """
    src, dst, loops = piece.src, piece.dst, []
    for loop in piece.loops:
        sign = -1 if loop.src < 0 else 1
        if sign < 0:
            src += (loop.n - 1) * loop.src
            dst += (loop.n - 1) * loop.dst
        loops.append(Loop(loop.n, sign * loop.dst, sign * loop.src))
    return Piece(piece.leaf, dst, src, nest(loops), piece.fill)


def align(pieces: Iterable[Piece], shape: Sequence[int]) -> list[Piece]:
    """The same pieces, cut so that each loop stays inside one axis of the result's shape.

    Raises: UsageError if that takes too many pieces.
    """
    found = list(pieces)
    for stride in strides_of(shape)[:-1]:
        todo, found = found[::-1], []
        while todo:
            cuts = _cut_rows(todo[-1], stride)
            if cuts is None:
                found.append(todo.pop())
            else:
                todo[-1:] = cuts[::-1]
            if len(todo) + len(found) > MAX_PIECES:
                raise UsageError(
                    f"transform: expected at most {MAX_PIECES} regular pieces, got more",
                    hint="bring the axes apart with a reshape before they are moved",
                )
    return found


def _cut_rows(piece: Piece, row: int) -> list[Piece] | None:
    """Cuts a piece nearer to rows of `row` elements; None if no loop carries out of its row."""
    for i, loop in enumerate(piece.loops):
        if loop.dst >= row:
            if loop.dst % row:
                return [piece.part(i, t, t + 1) for t in range(loop.n)]
            continue
        place = piece.dst % row
        inner = sum((o.n - 1) * o.dst for o in piece.loops[i + 1 :])
        if place + (loop.n - 1) * loop.dst + inner < row:
            return None
        if row % loop.dst == 0 and place % loop.dst + inner < loop.dst:
            return _whole_rows(piece, i, row, place)
        alone = max(1, (row - 1 - inner - place) // loop.dst + 1)
        return _non_empty(piece.part(i, 0, alone), piece.part(i, alone, loop.n))
    return None


def _whole_rows(piece: Piece, i: int, row: int, place: int) -> list[Piece]:
    """Loop `i` walks through rows in even steps: the rest of a row, whole rows, a row's begin."""
    loop = piece.loops[i]
    per_row = row // loop.dst
    if place >= loop.dst:
        first = min(loop.n, -(-(row - place) // loop.dst))
        return _non_empty(piece.part(i, 0, first), piece.part(i, first, loop.n))
    n_rows = loop.n // per_row
    rows = Loop(n_rows, loop.src * per_row, row)
    inside = Loop(per_row, loop.src, loop.dst)
    # not joined again by `nest`: that they are two loops is the point
    two = tuple(part for part in (rows, inside) if part.n > 1)
    middle = piece.with_loops((*piece.loops[:i], *two, *piece.loops[i + 1 :]))
    return _non_empty(middle, piece.part(i, n_rows * per_row, loop.n))


def _non_empty(*pieces: Piece) -> list[Piece]:
    return [piece for piece in pieces if piece.n_elements]


def in_axis(loop: Loop, stride: int, n: int) -> bool:
    """Whether an aligned loop steps along the axis of this stride and length."""
    return stride <= loop.dst < stride * n


def restrict(piece: Piece, first: int, steps: Sequence[int], lo: int, hi: int) -> list[Piece]:
    """The parts of a piece where a coordinate lies in [lo, hi).

    The coordinate is `first` at the first element and grows by `steps[i]` with loop i.
    """
    reach = [(loop.n - 1) * step for loop, step in zip(piece.loops, steps, strict=True)]
    low = first + sum(r for r in reach if r < 0)
    high = first + sum(r for r in reach if r > 0)
    if lo <= low and high < hi:
        return [piece]
    if high < lo or hi <= low:
        return []
    i = max(range(len(steps)), key=lambda j: abs(steps[j]) * (piece.loops[j].n > 1))
    step, n = steps[i], piece.loops[i].n
    inner_low = low - first - min(reach[i], 0)
    inner_high = high - first - max(reach[i], 0)
    parts: list[Piece] = []
    for start, stop in _stretches(first, step, n, inner_low, inner_high, lo, hi):
        kept = [*steps[:i], *steps[i + 1 :]] if stop - start == 1 else steps
        parts += restrict(piece.part(i, start, stop), first + start * step, kept, lo, hi)
    return parts


def _stretches(
    first: int, step: int, n: int, inner_low: int, inner_high: int, lo: int, hi: int
) -> list[tuple[int, int]]:
    """Runs of a loop's steps: one that is all inside, single ones that are so in part."""
    if step < 0:  # count from the other end, then turn the runs round
        far = first + (n - 1) * step
        runs = _stretches(far, -step, n, inner_low, inner_high, lo, hi)
        return [(n - stop, n - start) for start, stop in reversed(runs)]
    touch_from = max(0, -(-(lo - inner_high - first) // step))
    touch_to = min(n, -(-(hi - inner_low - first) // step))
    full_from = max(touch_from, -(-(lo - inner_low - first) // step))
    full_to = min(touch_to, -(-(hi - inner_high - first) // step))
    if full_from >= full_to:
        return [(t, t + 1) for t in range(touch_from, touch_to)]
    before = [(t, t + 1) for t in range(touch_from, full_from)]
    after = [(t, t + 1) for t in range(full_to, touch_to)]
    return [*before, (full_from, full_to), *after]


def tidy(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """The same moves in fewer pieces, in the order of the result."""
    kept: list[Piece] = []
    for piece in sorted((p for p in pieces if p.n_elements), key=lambda p: p.dst):
        piece = piece.with_loops(nest(piece.loops))
        while kept and (both := _merged(kept[-1], piece)):
            kept.pop()
            piece = both
        kept.append(piece)
    return tuple(_with_series(kept))


def _with_series(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Makes one more loop of three or more pieces at even distances; two are so by chance."""
    start = 0
    while start < len(pieces):
        stop = start + 1
        while stop < len(pieces) and _is_even(pieces, start, stop):
            stop += 1
        first, n = pieces[start], stop - start
        loops = nest((*first.loops, Loop(n, *_gap(pieces, start)))) if n > 2 else ()
        if loops and is_nested(loops):
            yield first.with_loops(loops)
        else:
            yield from pieces[start:stop]
        start = stop


def _is_even(pieces: Sequence[Piece], start: int, j: int) -> bool:
    """Whether piece `j` follows the one before it as the second follows the first."""
    a, b = pieces[start], pieces[j]
    return (a.leaf, a.fill, a.loops) == (b.leaf, b.fill, b.loops) and _gap(pieces, j - 1) == _gap(
        pieces, start
    )


def _gap(pieces: Sequence[Piece], i: int) -> tuple[int, int]:
    return pieces[i + 1].src - pieces[i].src, pieces[i + 1].dst - pieces[i].dst


def _merged(a: Piece, b: Piece) -> Piece | None:
    """One piece for two that follow each other, or None."""
    if (a.leaf, a.fill) != (b.leaf, b.fill):
        return None
    gap = (b.src - a.src, b.dst - a.dst)
    if not a.loops and not b.loops:
        return a.with_loops((Loop(2, 1, 1),)) if gap == (1, 1) else None
    longer, shorter = (a.loops, b.loops) if len(a.loops) >= len(b.loops) else (b.loops, a.loops)
    for i, loop in enumerate(longer):
        others = (*longer[:i], *longer[i + 1 :])
        n_a, n_b = _counts(a, b, i, loop, others, shorter)
        if n_a and gap == (n_a * loop.src, n_a * loop.dst):
            grown = nest((*others, Loop(n_a + n_b, loop.src, loop.dst)))
            return a.with_loops(grown) if is_nested(grown) else None
    return None


def _counts(
    a: Piece, b: Piece, i: int, loop: Loop, others: tuple[Loop, ...], shorter: tuple[Loop, ...]
) -> tuple[int, int]:
    """How often each of two pieces goes round a loop that they have in common, or (0, 0)."""
    if shorter == others:
        return (loop.n, 1) if a.loops != shorter else (1, loop.n)
    if len(a.loops) != len(b.loops) or (*shorter[:i], *shorter[i + 1 :]) != others:
        return 0, 0
    same_steps = (shorter[i].src, shorter[i].dst) == (loop.src, loop.dst)
    return (a.loops[i].n, b.loops[i].n) if same_steps else (0, 0)


def is_nested(loops: Sequence[Loop]) -> bool:
    """Whether each step is longer than all that the loops inside it reach."""
    reach = 0
    for loop in reversed(loops):
        if loop.dst <= reach:
            return False
        reach += (loop.n - 1) * loop.dst
    return True
