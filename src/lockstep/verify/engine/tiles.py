"""How a claim is cut into tiles that fit the budget, and what that takes, before anything is read.

Three ways: `plain` claims are the same bytes in the same order in two stretches of files; `linear`
ones are read on both sides in C order, block by block; the rest are `moves`, whose pieces are cut
by the units of both sides and then into tiles that give long runs on either side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isqrt, prod
from typing import Literal

from lockstep.errors import BudgetError
from lockstep.formats.leaf import Extent, Held, Leaf, Parts, Store
from lockstep.verify.claim import Claim
from lockstep.verify.engine.budget import MIB, SCRATCH, SMALLEST_ARENA, Budget
from lockstep.verify.engine.places import (
    Box,
    Move,
    by_boxes,
    chunk_bytes,
    chunk_shape,
    is_plain,
    move,
    moves_on_source,
    n_chunks,
    source_boxes,
)
from lockstep.verify.engine.reading import span_of, words_of
from lockstep.verify.layouts.piece import Piece

PLAIN_BLOCK = MIB // 4  # both buffers of a worker stay in its cache
ROOMS = (16 * MIB, 8 * MIB, 5 * MIB, 3 * MIB, 2 * MIB, MIB, MIB // 2)  # the first that fits
LINEAR_ROOMS = (2 * MIB, MIB, MIB // 2)
SMALLEST_ROOM = MIB // 4
RUN = 16384  # bytes in one row from which on a longer row gains little
_PIECES = 1024  # that are placed at a time, where nothing has to be decoded in one go

Way = Literal["value", "plain", "linear", "moves"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a claim is worked on: buffers, places for decoded chunks, and which side leads.

    Units: bytes. The arena holds two (linear: three) buffers of `room`, `flags`, and the slots;
    `decoding` is what a decoder takes beside them.
    """

    way: Way
    room: int = 0
    flags: int = 0
    slot: int = 0
    n_slots: int = 0
    decoding: int = 0
    leader: Literal["source", "target", "neither"] = "neither"
    splits: bool = True

    @property
    def arena(self) -> int:
        """What is taken from a worker's arena, the gaps between included."""
        n_rooms = 3 if self.way == "linear" else 2
        slots = self.n_slots * (self.slot + 64)
        return n_rooms * (self.room + 64) + self.flags + 64 + slots

    @property
    def need(self) -> int:
        """What it takes beside the base of the process and a worker's scratch."""
        return 0 if self.way == "value" else self.arena + self.decoding


PLAIN = Scheme("plain", room=PLAIN_BLOCK, flags=PLAIN_BLOCK)


def scheme_of(claim: Claim, leaves: Sequence[Leaf], target: Leaf, arena: int) -> Scheme:
    """How the claim is worked on within `arena` bytes.

    Raises: BudgetError naming the leaf, what it needs, and why.
    """
    if claim.layout is None or target.value or any(leaf.value for leaf in leaves):
        return Scheme("value")
    sides = [*leaves, target]
    # the beginning of a longer leaf is no identity: digests of both sides are made on the way
    if claim.is_identity and [leaf.n_elements for leaf in leaves] == [target.n_elements]:
        if is_plain(target) and is_plain(leaves[0]):
            return PLAIN
        linear = _linear(sides, arena)
        if linear:
            return linear
    return _moves(claim, leaves, target, arena)


def digest_scheme(leaf: Leaf, arena: int) -> Scheme:
    """How one leaf is read for its digest alone.

    Raises: BudgetError if one of its chunks does not fit.
    """
    if is_plain(leaf):
        return PLAIN
    linear = _linear([leaf], arena)
    if linear:
        return linear
    slot, decoding = chunk_bytes(leaf), _decoding([leaf])
    least = Scheme("linear", SMALLEST_ROOM, SMALLEST_ROOM, slot, 1, decoding, splits=False)
    if least.need > arena:
        raise _refused(leaf.name, least, arena, [leaf])
    n_slots = 1 + (arena - least.need) // (slot + 64)
    return Scheme("linear", SMALLEST_ROOM, SMALLEST_ROOM, slot, n_slots, decoding, splits=False)


def _linear(sides: Sequence[Leaf], arena: int) -> Scheme | None:
    """Reading in C order, if each chunk is decoded once that way."""
    if len(sides) > 1 and any(_is_strided(leaf) for leaf in sides):
        return None
    slot = max(chunk_bytes(leaf) for leaf in sides)
    n_slots = sum(_band(leaf) for leaf in sides)
    splits = not n_slots
    # what lies in another order is read in as long runs as there is memory for
    rooms = ROOMS if any(_is_strided(leaf) for leaf in sides) else LINEAR_ROOMS
    for room in (*rooms, SMALLEST_ROOM):
        found = Scheme("linear", room, room, slot, n_slots, _decoding(sides), splits=splits)
        if found.need <= arena:
            return found
    return None


def _is_strided(leaf: Leaf) -> bool:
    storage = leaf.storage
    return isinstance(storage, Extent) and storage.strides is not None and not is_plain(leaf)


def _band(leaf: Leaf) -> int:
    """How many chunks are needed at a time when the leaf is read in C order."""
    shapes = chunk_shape(leaf)
    if shapes is None:
        return 0
    k = next((k for k, (_, c) in enumerate(zip(*shapes, strict=True)) if c > 1), len(shapes[0]))
    return prod(-(-n // c) for n, c in list(zip(*shapes, strict=True))[k + 1 :])


def _decoding(sides: Iterable[Leaf]) -> int:
    return max((leaf.storage.peak_bytes for leaf in sides if _is_chunked(leaf)), default=0)  # type: ignore[union-attr]


def _is_chunked(leaf: Leaf) -> bool:
    return not isinstance(leaf.storage, Extent | Held | Parts)


def _is_sequential(leaf: Leaf) -> bool:
    return _is_chunked(leaf) and leaf.storage.sequential and n_chunks(leaf) > 1  # type: ignore[union-attr]


def _moves(claim: Claim, leaves: Sequence[Leaf], target: Leaf, arena: int) -> Scheme:
    """Tiles of pieces, with as many places for chunks as the arena has room for."""
    sides = [*leaves, target]
    chunked = [leaf for leaf in sides if _is_chunked(leaf)]
    leader = _leader(leaves, target)
    slot, decoding = max(map(chunk_bytes, sides)), _decoding(sides)
    n_most = sum(map(n_chunks, chunked))
    n_least = min(n_most, 1 + (_is_chunked(target) and any(map(_is_chunked, leaves))))
    if leader == "source" and _is_sequential(target):
        n_least = n_chunks(target) + 1  # or it would be decoded from its begin for each tile
    splits = not chunked or (n_least == 1 and not any(map(_is_sequential, chunked)))
    narrow = min(words_of(leaf.element)[0].itemsize for leaf in sides)

    def with_room(room: int, n_slots: int) -> Scheme:
        return Scheme("moves", room, room // narrow, slot, n_slots, decoding, leader, splits=splits)

    least = with_room(_least_room(sides), n_least)
    if least.need > arena:
        raise _refused(claim.target, least, arena, chunked or sides)
    for room in (*ROOMS, least.room):
        best = with_room(max(room, least.room), n_least)
        if best.need <= arena:
            break
    n_slots = n_least
    if slot and not splits:
        n_slots = min(n_most, n_least + (arena - best.need) // (slot + 64))
    return with_room(best.room, n_slots)


def _least_room(sides: Sequence[Leaf]) -> int:
    return max(SMALLEST_ROOM, *(4 * leaf.element.n_bytes for leaf in sides))


def _leader(leaves: Sequence[Leaf], target: Leaf) -> Literal["source", "target", "neither"]:
    """The side whose units are visited one after the other; the other side is read at random."""
    if any(map(_is_sequential, leaves)):
        return "source"
    if _is_sequential(target) or not any(map(_is_chunked, leaves)):
        return "target" if _is_chunked(target) else "neither"
    from_source = max(map(chunk_bytes, leaves)) > chunk_bytes(target)
    return "source" if from_source else "target"


def _refused(name: str, least: Scheme, arena: int, sides: Sequence[Leaf]) -> BudgetError:
    largest = max(sides, key=lambda leaf: chunk_bytes(leaf))
    why = (
        f"{least.n_slots} chunks of {largest.name} decoded, {least.slot} bytes each, and "
        f"{least.decoding} to decode one"
        if least.slot
        else "buffers for both sides"
    )
    return BudgetError(
        f"{name}: expected to work in {max(0, arena)} bytes, got a need of {least.need}: {why}",
        hint=f"allow {-(-(least.need - arena) // MIB) + 1} MiB more with --max-memory",
    )


def predict(claim: Claim, source: Store, target: Store, budget: Budget) -> int:
    """The peak of the process, in bytes, when this claim is worked on by itself.

    Raises: BudgetError if it cannot be, within the budget.
    """
    leaves = [source.leaves[name] for name in claim.sources]
    return budget.base + SCRATCH + fitting(claim, leaves, target.leaves[claim.target], budget).need


def fitting(claim: Claim, leaves: Sequence[Leaf], target: Leaf, budget: Budget) -> Scheme:
    """The scheme within a worker's share, else within all that the budget leaves.

    Where the share has too few places for decoded chunks, so that some would be decoded again, one
    worker with all of the memory is faster than several with too little.

    Raises: BudgetError if it fits neither.
    """
    try:
        shared = scheme_of(claim, leaves, target, budget.arena)
    except BudgetError:
        return scheme_of(claim, leaves, target, budget.alone)
    if shared.way != "moves" or shared.splits:
        return shared
    n_most = sum(n_chunks(leaf) for leaf in (*leaves, target) if _is_chunked(leaf))
    return shared if shared.n_slots >= n_most else scheme_of(claim, leaves, target, budget.alone)


# --- visits


def visits(
    claim: Claim, leaves: Mapping[str, Leaf], target: Leaf, scheme: Scheme
) -> Iterator[Iterator[Move]]:
    """The moves of a claim, group by group; each unit of the leading side is in one group."""
    assert claim.layout is not None
    pieces = claim.layout.pieces
    if scheme.leader == "source":
        for name in sorted({p.leaf for p in pieces if p.leaf is not None}):
            mine = [piece for piece in pieces if piece.leaf == name]
            for source, inside in source_boxes(leaves[name], mine):
                yield _to_target(inside, source, target)
        pieces = tuple(piece for piece in pieces if piece.leaf is None)
    at_a_time = _PIECES if scheme.leader == "neither" else max(1, len(pieces))
    for i in range(0, len(pieces), at_a_time):
        for box, inside in by_boxes(target, pieces[i : i + at_a_time]):
            yield _from_leaves(inside, leaves, box)


def _to_target(pieces: list[Piece], source: Box, target: Leaf) -> Iterator[Move]:
    for box, inside in by_boxes(target, pieces):
        for piece in inside:
            yield move(piece, source, box)


def _from_leaves(pieces: list[Piece], leaves: Mapping[str, Leaf], box: Box) -> Iterator[Move]:
    for name, group in groupby(pieces, key=lambda piece: piece.leaf):
        if name is None:
            for piece in group:
                yield move(piece, None, box)
        else:
            yield from moves_on_source(leaves[name], group, box)


# --- tiles


@dataclass(frozen=True, slots=True)
class Grid:
    """Tiles of a nest of loops: all have these extents, but for those at the ends."""

    counts: tuple[int, ...]
    extents: tuple[int, ...]

    @property
    def n_tiles(self) -> int:
        """How many tiles."""
        return prod(-(-n // t) for n, t in zip(self.counts, self.extents, strict=True))

    def tiles(self, first: int, last: int) -> Iterator[tuple[list[int], list[int]]]:
        """The starts and counts of the tiles `first` to `last`, the innermost loop fastest."""
        for i in range(first, last):
            starts, counts = [0] * len(self.counts), [1] * len(self.counts)
            for k in range(len(self.counts) - 1, -1, -1):
                n, t = self.counts[k], self.extents[k]
                i, at = divmod(i, -(-n // t))
                starts[k], counts[k] = at * t, min(t, n - at * t)
            yield starts, counts


def grid_of(counts: Sequence[int], sides: Sequence[tuple[Sequence[int], int]], room: int) -> Grid:
    """Tiles of which each side fits `room`; `sides` are steps and bytes of an element of each."""
    n_most = room * 3 // 4 // max(n for _, n in sides)
    while True:
        extents = _extents(counts, sides, max(1, n_most))
        fits = all(span_of(extents, steps, n, room) for steps, n in sides)
        if fits or n_most <= 1:
            return Grid(tuple(counts), tuple(extents))
        n_most //= 2


def grid_for(moved: Move, target: Leaf, scheme: Scheme) -> Grid:
    """How a move is cut into tiles for the scheme of its claim."""
    counts = [loop.n for loop in moved.piece.loops] or [1]
    sides = [(one_or_more(moved.target.steps), target.element.n_bytes)]
    if moved.source is not None:
        n_bytes = moved.source.unit.leaf.element.n_bytes
        sides.insert(0, (one_or_more(moved.source.steps), n_bytes))
    return grid_of(counts, sides, scheme.room)


def one_or_more(steps: tuple[int, ...]) -> tuple[int, ...]:
    """The steps of a piece's loops; a single element is a loop that goes nowhere."""
    return steps or (0,)


def _extents(
    counts: Sequence[int], sides: Sequence[tuple[Sequence[int], int]], n_most: int
) -> list[int]:
    """Long runs on the one side, then on the other, then what else fits, innermost first."""
    extents = [1] * len(counts)
    for steps, n_bytes in (*sides, (range(len(counts), 0, -1), 0)):
        run = min(max(1, RUN // n_bytes), isqrt(n_most)) if n_bytes else n_most
        length = 1
        for k in sorted(range(len(counts)), key=lambda k: abs(steps[k])):
            if steps[k] == 0:
                continue
            others = prod(extents) // extents[k]
            wanted = -(-run // length) if n_bytes else counts[k]
            extents[k] = max(extents[k], min(counts[k], wanted, max(1, n_most // others)))
            length *= extents[k]
            if extents[k] < counts[k] and n_bytes:
                break
    return extents


def inner_grid(counts: Sequence[int], n_most: int) -> Grid:
    """Tiles of at most `n_most` elements that follow each other in the order of the loops."""
    extents = []
    for n in reversed(counts):
        extents.append(max(1, min(n, n_most)))
        n_most = n_most // n if extents[-1] == n else 1
    return Grid(tuple(counts), tuple(reversed(extents)))


assert SMALLEST_ARENA >= 2 * PLAIN_BLOCK + PLAIN_BLOCK + 256
