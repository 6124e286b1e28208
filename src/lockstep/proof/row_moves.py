"""Matrices row by row: which rows or blocks differ, and which rows of the original lie there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from lockstep.families.weight import Parts
from lockstep.ir import Array
from lockstep.proof.tolerances import BLOCK_FACTOR, QUIET_ROW

_CHUNK = 1 << 22  # elements that are taken in float64 at a time
_MOST_PAIRS = 1 << 24  # of rows that are held against each other
_SHOWN = 4  # runs that are listed


def row_errors(got: Array, expected: Array) -> Array:
    """The root mean square of each row's difference, relative to that of the original row.

    A row is the last axis; NaN where one of the two is.
    """
    return np.concatenate([*_errors(got, expected)])


def apart(a: Array, b: Array) -> float:
    """Root mean square of the difference, relative to the second."""
    away, own = 0.0, 0.0
    for x, y in _pieces(a, b):
        away += float(np.square(x - y).sum())
        own += float(np.square(y).sum())
    return float(np.sqrt(away / (own or b.size)))


def factor_of(got: Array, expected: Array) -> float:
    """The factor by which the second comes nearest to the first."""
    both = own = 0.0
    for x, y in _pieces(got, expected):
        both += float((x * y).sum())
        own += float(np.square(y).sum())
    return both / own if own else 0.0


def _pieces(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    x, y = a.reshape(-1), b.reshape(-1)
    with np.errstate(all="ignore"):
        for i in range(0, len(y), _CHUNK):
            cut = slice(i, i + _CHUNK)
            yield x[cut].astype(np.float64), y[cut].astype(np.float64)


def is_same(got: Array, expected: Array, bound: float, block: int = 1) -> bool:
    """Whether every row is that of the original, and so is every block of a row.

    A row of many blocks hardly shows that one of them is damaged.
    """
    if got.shape != expected.shape:
        return False
    if not all(bool((errors <= bound).all()) for errors in _errors(got, expected)):
        return False
    return next(wrong_blocks(got, expected, bound, block), None) is None


def wrong_blocks(
    got: Array, expected: Array, bound: float, block: int
) -> Iterator[tuple[int, int]]:
    """The blocks that are not those of the original: row, and number in the row."""
    n_blocks = expected.shape[-1] // block
    if block == 1 or n_blocks * block != expected.shape[-1]:
        return
    limit, first = BLOCK_FACTOR.value * bound, 0
    for errors in _errors(got.reshape(-1, block), expected.reshape(-1, block)):
        for i in np.flatnonzero(~(errors <= limit)):
            yield divmod(first + int(i), n_blocks)
        first += len(errors)


def _errors(got: Array, expected: Array) -> Iterator[Array]:
    a, b = (x.reshape(-1, x.shape[-1]) for x in (got, expected))
    step = max(1, _CHUNK // b.shape[1])
    cuts = range(0, len(b), step)
    with np.errstate(all="ignore"):  # what was damaged may hold anything
        own_N = np.concatenate([_rms(b[i : i + step].astype(np.float64)) for i in cuts])
        scale_N = np.maximum(own_N, QUIET_ROW.value * _rms(own_N))
        scale_N[scale_N == 0.0] = 1.0
        for i in cuts:
            away = a[i : i + step].astype(np.float64) - b[i : i + step]
            yield _rms(away) / scale_N[i : i + step]


def _rms(x: Array) -> Array:
    found: Array = np.sqrt(np.mean(np.square(x), axis=-1))
    return found


def rows_moved(got: Array, expected: Array, bound: float, parts: Parts = ()) -> str | None:
    """From where the rows that differ are, in words; None where one of them is no row of it.

    Of many rows a sample is looked at.
    """
    wrong = np.flatnonzero(~(row_errors(got, expected) <= bound))
    if not len(wrong):
        return None
    most = max(64, _MOST_PAIRS // len(expected))
    looked_at = wrong[:: -(-len(wrong) // most)]
    places = _nearest(got[looked_at], expected)
    if not is_same(got[looked_at], expected[places], bound):
        return None
    return _described(looked_at, places, len(expected), parts, len(looked_at) == len(wrong))


def _nearest(rows_NK: Array, all_MK: Array) -> Array:
    """For each row the one of all that is nearest."""
    squares_M = np.einsum("mk,mk->m", all_MK, all_MK, dtype=np.float64)
    exact = np.float64 if all_MK.size <= _CHUNK else np.float32
    rows_NK, all_MK = rows_NK.astype(exact), all_MK.astype(exact, copy=False)
    step = max(1, _CHUNK // len(all_MK))
    return np.concatenate(
        [
            np.argmin(squares_M - 2.0 * (rows_NK[i : i + step] @ all_MK.T), axis=-1)
            for i in range(0, len(rows_NK), step)
        ]
    )


def _described(rows: Array, places: Array, n_rows: int, parts: Parts, is_whole: bool) -> str:
    offsets = np.unique((places - rows) % n_rows)
    if len(offsets) == 1:
        behind = int(offsets[0])
        if behind <= n_rows // 2:
            return f"moved: each from {behind} behind"
        return f"moved: each from {n_rows - behind} before"
    if is_whole and n_rows - len(rows) < 2 and (places == n_rows - 1 - rows).all():
        return "in reverse order"
    cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(places) != 1)) + 1
    ends = [0, *(cuts.tolist() if is_whole else range(1, len(rows))), len(rows)]
    runs = [*pairwise(ends)]
    named = [
        f"{_named(int(rows[a]), b - a, parts)} from {_named(int(places[a]), b - a, parts)}"
        for a, b in runs[:_SHOWN]
    ]
    more = f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN and is_whole else ""
    return ("moved: " if is_whole else "moved, for example: ") + ", ".join(named) + more


def _named(begin: int, size: int, parts: Parts) -> str:
    """Rows by their numbers, and by the name of the part that they are."""
    numbers = f"{begin}" if size == 1 else f"{begin} to {begin + size - 1}"
    inside = [p for p in parts if p[1] <= begin and begin + size <= p[2]]
    whole = [name for name, first, end in inside if (first, end) == (begin, begin + size)]
    if whole:
        return f"{whole[0]} ({numbers})"
    return f"{numbers} (of {inside[0][0]})" if inside else numbers
