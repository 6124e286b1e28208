"""Moves of elements and their counting, held to numpy doing the same with arrays of numbers."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lockstep.errors import UsageError
from lockstep.verify.claims.coverage import in_source
from lockstep.verify.layouts import layout as moves
from lockstep.verify.layouts.layout import Layout
from lockstep.verify.layouts.piece import (
    Loop,
    Piece,
    align,
    is_nested,
    restrict,
    strides_of,
    turned,
)
from lockstep.verify.layouts.uses import count_uses

Numbers = NDArray[np.int64]
Pair = tuple[Layout, Numbers]
Draw = st.DrawFn


def places(piece: Piece) -> tuple[Numbers, Numbers]:
    """The flat elements of the source and of the result, in the order of the loops."""
    src, dst = np.array([piece.src]), np.array([piece.dst])
    for loop in piece.loops:
        steps = np.arange(loop.n)
        src = (src[:, None] + steps * loop.src).ravel()
        dst = (dst[:, None] + steps * loop.dst).ravel()
    return src, dst


def executed(layout: Layout, sources: dict[str, Numbers]) -> Numbers:
    """What a layout says, element by element; each is said exactly once."""
    out = np.full(layout.n_elements, -1)
    for piece in layout.pieces:
        assert is_nested(piece.loops)
        src, dst = places(piece)
        assert (out[dst] == -1).all()
        assert piece.leaf is not None
        out[dst] = sources[piece.leaf].ravel()[src]
    assert (out >= 0).all()
    return out.reshape(layout.shape)


@st.composite
def shapes(draw: Draw, n: int | None = None) -> tuple[int, ...]:
    """A shape, of `n` elements where that is given."""
    if n is None:
        return tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    found = []
    for _ in range(draw(st.integers(0, 3))):
        found.append(draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0])))
        n //= found[-1]
    return tuple(draw(st.permutations([*found, n])))


@st.composite
def moved(draw: Draw, start: Pair, n_moves: int = 7) -> Pair:
    """A chain of moves, done to the layout and to the array of numbers."""
    layout, array = start
    for _ in range(draw(st.integers(0, n_moves))):
        layout, array = draw(one_move(layout, array))
        assert layout.shape == array.shape
    return layout, array


@st.composite
def one_move(draw: Draw, layout: Layout, array: Numbers) -> Pair:
    axis = draw(st.integers(0, array.ndim - 1))
    n = array.shape[axis]
    move = draw(st.sampled_from(["reshape", "permute", "cut", "flip", "take", "join", "broadcast"]))
    if move == "reshape":
        shape = draw(shapes(array.size))
        return moves.reshape(layout, shape), array.reshape(shape)
    if move == "permute":
        axes = draw(st.permutations(range(array.ndim)))
        return moves.permute(layout, axes), array.transpose(axes)
    if move == "cut":
        start = draw(st.integers(0, n - 1))
        stop = draw(st.integers(start + 1, n))
        return moves.cut(layout, axis, start, stop), array.take(range(start, stop), axis)
    if move == "flip":
        return moves.flip(layout, axis), np.flip(array, axis)
    if move == "take":
        order = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n))
        return moves.take(layout, axis, order), array.take(order, axis)
    if array.size > 2000:
        return layout, array
    if move == "join":
        return moves.join([layout, layout], axis), np.concatenate([array, array], axis)
    shape = (*array.shape[:axis], 1, *array.shape[axis:])
    wide = moves.broadcast(moves.reshape(layout, shape), axis, 3)
    return wide, np.repeat(array.reshape(shape), 3, axis)


@st.composite
def leaves(draw: Draw) -> Pair:
    shape = draw(shapes())
    return moves.whole("x", shape), np.arange(prod(shape)).reshape(shape)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_chain_of_moves_is_what_numpy_makes_of_it(data: st.DataObject) -> None:
    start = data.draw(leaves())
    layout, array = data.draw(moved(start))
    assert np.array_equal(executed(layout, {"x": start[1]}), array)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_aligned_pieces_are_the_same_moves_inside_the_axes(data: st.DataObject) -> None:
    start = data.draw(leaves())
    layout, array = data.draw(moved(start))
    shape = data.draw(shapes(array.size))
    parts = align(layout.pieces, shape)
    assert np.array_equal(
        executed(Layout(shape, tuple(parts)), {"x": start[1]}), array.reshape(shape)
    )
    for part in parts:
        for stride, n in zip(strides_of(shape), shape, strict=True):
            along = [loop for loop in part.loops if stride <= loop.dst < stride * n]
            reach = sum((loop.n - 1) * loop.dst // stride for loop in along)
            assert all(loop.dst % stride == 0 for loop in along)
            assert part.dst // stride % n + reach < n


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_restricted_piece_holds_what_lies_in_the_window(data: st.DataObject) -> None:
    start = data.draw(leaves())
    layout, _ = data.draw(moved(start))
    low = data.draw(st.integers(0, start[1].size))
    high = data.draw(st.integers(low, start[1].size))
    for piece in layout.pieces:
        parts = restrict(piece, piece.src, [loop.src for loop in piece.loops], low, high)
        got = [pair for part in parts for pair in zip(*map(list, places(part)), strict=True)]
        want = [(s, d) for s, d in zip(*map(list, places(piece)), strict=True) if low <= s < high]
        assert sorted(got) == sorted(want)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_turned_pieces_lead_back(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    n = prod(shape)
    axes = data.draw(st.permutations(range(len(shape))))
    layout = moves.flip(moves.permute(moves.whole("x", shape), axes), 0)
    back = Layout((n,), tuple(turned(piece) for piece in layout.pieces))
    forward = executed(layout, {"x": np.arange(n).reshape(shape)}).ravel()
    assert np.array_equal(executed(back, {"x": forward}), np.arange(n))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_uses_are_counted_as_an_array_of_counters_would(data: st.DataObject) -> None:
    start = data.draw(leaves())
    counters = np.zeros(start[1].size, int)
    pieces = []
    for _ in range(data.draw(st.integers(1, 4))):
        layout, array = data.draw(moved(start, n_moves=4))
        pieces += [found for piece in layout.pieces for found in in_source(piece)]
        np.add.at(counters, array.ravel(), 1)
    uses = count_uses(pieces, counters.size)
    never, often = np.flatnonzero(counters == 0), np.flatnonzero(counters > 1)
    assert (uses.n_zero, uses.n_more) == (never.size, often.size)
    assert uses.n_once == counters.size - never.size - often.size
    assert uses.gap == (never[0] if never.size else None)
    assert uses.overlap == (often[0] if often.size else None)


def test_moves_at_real_shapes_are_few_pieces() -> None:
    heads = moves.reshape(moves.whole("q", (4096, 49152)), (32, 2, 64, 49152))
    rope = moves.reshape(moves.permute(heads, (0, 2, 1, 3)), (4096, 49152))
    assert len(rope.pieces) == 1
    assert moves.permute(moves.whole("w", (4096, 49152)), (1, 0)).pieces == (
        Piece("w", 0, 0, (Loop(49152, 1, 4096), Loop(4096, 49152, 1))),
    )
    halves = [moves.cut(moves.whole("w", (64, 32)), 1, a, a + 16) for a in (0, 16)]
    assert moves.join(halves, 1).is_identity
    evens_then_odds = [*range(0, 32, 2), *range(1, 32, 2)]
    assert len(moves.take(moves.whole("w", (32, 8)), 0, evens_then_odds).pieces) == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: moves.reshape(w, (7, -1)), "reshape: expected 24 elements"),
        (lambda w: moves.permute(w, (0, 0)), "permute: expected each axis"),
        (lambda w: moves.cut(w, 0, 2, 5), "slice: expected 0 <= start"),
        (lambda w: moves.cut(w, 2, 0, 1), "slice: expected an axis"),
        (lambda w: moves.join([], 0), "concat: expected at least one"),
        (lambda w: moves.join([w, moves.reshape(w, (3, 8))], 0), "differ on axis 0 only"),
        (lambda w: moves.take(w, 0, [4]), "take: expected places from 0 to 3"),
        (lambda w: moves.broadcast(w, 0, 2), "broadcast: expected length 1"),
    ],
)
def test_a_wrong_move_is_named(call: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call(moves.whole("w", (4, 6)))  # type: ignore[operator]


def test_empty_arrays_and_scalars_move_too() -> None:
    empty = moves.whole("e", (0, 4))
    assert moves.permute(empty, (1, 0)) == Layout((4, 0), ())
    assert empty.is_identity
    assert moves.reshape(moves.whole("s", ()), (1, 1)).is_identity
    assert count_uses([], 0).n_zero == 0
