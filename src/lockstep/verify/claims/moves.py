"""The index steps of claim files: names of transforms, and what they do to layouts.

Shapes in steps are logical. A quantised leaf's layout counts blocks on its last axis, so a step
that would take a block apart is refused. The moves of attention and of gated layers are in
`model_moves.py`, those of values in `values.py`, the table of all of them in `steps.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from lockstep.errors import UsageError
from lockstep.formats.leaf import ElementType
from lockstep.verify.claim import ValueMove
from lockstep.verify.claims.constants import constant
from lockstep.verify.layouts import layout as algebra
from lockstep.verify.layouts.layout import Layout


@dataclass(frozen=True, slots=True)
class Array:
    """What a chain of steps has made so far: a layout, its value moves, the types before and after.

    Fills of the layout are elements of the type `source`: value moves apply to them too.
    """

    layout: Layout
    source: ElementType
    element: ElementType
    values: tuple[ValueMove, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape."""
        return logical(self.layout.shape, self.block)

    @property
    def block(self) -> int:
        """How many numbers of the last axis are one element."""
        return self.source.n_numbers

    def moved(self, layout: Layout) -> Array:
        """The same elements elsewhere."""
        return replace(self, layout=layout)


def logical(grid: Sequence[int], block: int) -> tuple[int, ...]:
    """The shape in numbers of a grid of blocks."""
    return (*grid[:-1], grid[-1] * block) if block > 1 else tuple(grid)


def text(shape: Sequence[int]) -> str:
    """A shape as messages show it."""
    return "(" + ", ".join(map(str, shape)) + ")"


def axis_of(array: Array, axis: int, step: str) -> int:
    """The axis counted from the front.

    Raises: UsageError if there is no such axis.
    """
    n = len(array.shape)
    if not -n <= axis < n:
        raise UsageError(
            f"{step}: expected an axis of {text(array.shape)}, got {axis}",
            hint="count axes from 0, or from -1 at the end",
        )
    return axis % n


def _is_blocked(array: Array, axis: int) -> bool:
    return array.block > 1 and axis == len(array.shape) - 1


def _apart(array: Array, step: str, got: str) -> UsageError:
    return UsageError(
        f"{step}: expected whole blocks of {array.block} numbers ({array.source}) on the last "
        f"axis of {text(array.shape)}, got {got}",
        hint="keep blocks whole, or claim from an unquantised checkpoint",
    )


def _blocks(array: Array, axis: int, n: int, step: str) -> int:
    """A length or place on an axis in units of its grid."""
    if not _is_blocked(array, axis):
        return n
    if n % array.block:
        raise _apart(array, step, str(n))
    return n // array.block


# --- shape


def reshape(array: Array, *sizes: int) -> Array:
    """The same elements in C order under another shape; one size may be -1."""
    wanted = list(sizes)
    n = prod(array.shape)
    if wanted.count(-1) == 1:
        known = prod(size for size in wanted if size != -1)
        if known and n % known == 0:
            wanted[wanted.index(-1)] = n // known
    if array.block > 1 and prod(wanted) == n and min(wanted, default=-1) >= 0:
        if not wanted or wanted[-1] % array.block:
            raise _apart(array, "reshape", text(sizes))
        wanted[-1] //= array.block
    elif min(wanted, default=1) < 0 or prod(wanted) != n:
        raise UsageError(
            f"reshape: expected {n} elements as in {text(array.shape)}, got {text(sizes)}",
            hint="check the sizes; one of them may be -1",
        )
    return array.moved(algebra.reshape(array.layout, wanted))


def squeeze(array: Array, axis: int) -> Array:
    """Removes an axis of length 1."""
    k = axis_of(array, axis, "squeeze")
    if array.shape[k] != 1:
        raise UsageError(
            f"squeeze: expected length 1 on axis {axis}, got {text(array.shape)}",
            hint="name the axis that has length 1",
        )
    return reshape(array, *array.shape[:k], *array.shape[k + 1 :])


def unsqueeze(array: Array, axis: int) -> Array:
    """Adds an axis of length 1 at this place of the new shape."""
    n = len(array.shape) + 1
    if not -n <= axis < n:
        raise UsageError(
            f"unsqueeze: expected a place from {-n} to {n - 1}, got {axis}",
            hint="count axes of the new shape",
        )
    k = axis % n
    return reshape(array, *array.shape[:k], 1, *array.shape[k:])


def flatten(array: Array) -> Array:
    """One axis, in C order."""
    return reshape(array, prod(array.shape))


def transpose(array: Array) -> Array:
    """The last two axes exchanged."""
    n = len(array.shape)
    if n < 2:
        raise UsageError(
            f"transpose: expected two axes or more, got {text(array.shape)}",
            hint="leave the step out for vectors",
        )
    return permute(array, *range(n - 2), n - 1, n - 2)


def permute(array: Array, *axes: int) -> Array:
    """The axes in another order: axis k of the result is axis axes[k]."""
    order = [axis_of(array, axis, "permute") for axis in axes]
    if sorted(order) != list(range(len(array.shape))):
        raise UsageError(
            f"permute: expected each axis of {text(array.shape)} once, got {text(axes)}",
            hint="name all axes, each of them once",
        )
    if array.block > 1 and order and order[-1] != len(array.shape) - 1:
        raise _apart(array, "permute", f"the order {text(axes)}")
    return array.moved(algebra.permute(array.layout, order))


# --- parts


def slice_(array: Array, axis: int, start: int, stop: int) -> Array:
    """The places start to stop of an axis; from the end where negative."""
    k = axis_of(array, axis, "slice")
    n = array.shape[k]
    lo, hi = (place + n if place < 0 else place for place in (start, stop))
    if not 0 <= lo <= hi <= n:
        raise UsageError(
            f"slice: expected 0 <= start <= stop <= {n} on axis {axis} of {text(array.shape)}, "
            f"got {start}:{stop}",
            hint="check the bounds; a split is one slice for each part",
        )
    lo, hi = (_blocks(array, k, place, "slice") for place in (lo, hi))
    return array.moved(algebra.cut(array.layout, k, lo, hi))


def index(array: Array, axis: int, i: int) -> Array:
    """One place of an axis, which is removed."""
    k = axis_of(array, axis, "index")
    n = array.shape[k]
    if not -n <= i < n:
        raise UsageError(
            f"index: expected a place from {-n} to {n - 1} on axis {axis} of "
            f"{text(array.shape)}, got {i}",
            hint="check the captures that the place is made of",
        )
    if _is_blocked(array, k):
        raise _apart(array, "index", f"place {i}")
    return squeeze(slice_(array, k, i % n, i % n + 1), k)


def take(array: Array, axis: int, order: Sequence[int]) -> Array:
    """The places of an axis in another order: place i of the result is place order[i]."""
    k = axis_of(array, axis, "take")
    n = array.shape[k]
    for i in order:
        if not 0 <= i < n:
            raise UsageError(
                f"take: expected places from 0 to {n - 1} on axis {axis} of {text(array.shape)}, "
                f"got {i}",
                hint="check the order",
            )
    if _is_blocked(array, k):
        order = _whole_runs(array, order)
    return array.moved(algebra.take(array.layout, k, order))


def _whole_runs(array: Array, order: Sequence[int]) -> list[int]:
    size = array.block
    runs = [order[i : i + size] for i in range(0, len(order), size)]
    for run in runs:
        if run[0] % size or list(run) != list(range(run[0], run[0] + size)):
            raise _apart(array, "take", f"places from {run[0]}")
    return [run[0] // size for run in runs]


def flip(array: Array, axis: int) -> Array:
    """An axis backwards."""
    k = axis_of(array, axis, "flip")
    if _is_blocked(array, k):
        raise _apart(array, "flip", "its numbers backwards")
    return array.moved(algebra.flip(array.layout, k))


def broadcast(array: Array, axis: int, n: int) -> Array:
    """An axis of length 1 repeated n times."""
    k = axis_of(array, axis, "broadcast")
    if array.shape[k] != 1 or n < 1:
        raise UsageError(
            f"broadcast: expected length 1 on axis {axis} and n >= 1, "
            f"got {text(array.shape)} and {n}",
            hint="insert the axis with unsqueeze first",
        )
    return array.moved(algebra.broadcast(array.layout, k, n))


def pad(array: Array, axis: int, before: int, after: int, value: float | str) -> Array:
    """An axis made longer by a constant, which is a number, or bits such as "0x7fc0"."""
    k = axis_of(array, axis, "pad")
    if before < 0 or after < 0:
        raise UsageError(
            f"pad: expected lengths of 0 or more, got {before} and {after}",
            hint="use unpad to make an axis shorter",
        )
    fill = _fill(array, value)
    grid = array.layout.shape
    parts = []
    for n in (before, after):
        shape = (*grid[:k], _blocks(array, k, n, "pad"), *grid[k + 1 :])
        parts.append(algebra.filled(fill, shape))
    return array.moved(algebra.join([parts[0], array.layout, parts[1]], k))


def _fill(array: Array, value: object) -> bytes:
    """The element that the value moves so far make the constant of.

    Raises: UsageError if they do not.
    """
    wanted = constant(value, array.element, "pad")
    if not array.values:
        return wanted
    first = constant(value, array.source, "pad") if array.block == 1 else b""
    if not first or constant_after(first, array) != wanted:
        raise UsageError(
            f"pad: expected a constant that {array.values[-1].text} leaves as it is, "
            f"got {value!r:.40}",
            hint="put the step pad before the steps that change values",
        )
    return first


def constant_after(fill: bytes, array: Array) -> bytes:
    """What the value moves make of one element."""
    words = np.frombuffer(fill, dtype=f"<u{array.source.n_bytes}")
    for move in array.values:
        words = move.apply(words)
    return words.tobytes()


def unpad(array: Array, axis: int, before: int, after: int) -> Array:
    """An axis made shorter at both ends; say with [[drop]] why what it leaves is not needed."""
    k = axis_of(array, axis, "unpad")
    if before < 0 or after < 0 or before + after > array.shape[k]:
        raise UsageError(
            f"unpad: expected lengths that axis {axis} of {text(array.shape)} has, "
            f"got {before} and {after}",
            hint="check the sizes of the padding",
        )
    return slice_(array, k, before, array.shape[k] - after)


# --- joins


def concat(arrays: Sequence[Array], axis: int) -> Array:
    """Arrays side by side along an axis."""
    first = same_kind(arrays, "concat")
    k = axis_of(first, axis, "concat")
    if len({(*a.shape[:k], -1, *a.shape[k + 1 :]) for a in arrays}) != 1:
        shapes = ", ".join(text(a.shape) for a in arrays[:8])
        raise UsageError(
            f"concat: expected shapes that differ on axis {axis} only, got {shapes}",
            hint="bring the sources to one shape with steps of their own",
        )
    return first.moved(algebra.join([a.layout for a in arrays], k))


def stack(arrays: Sequence[Array], axis: int) -> Array:
    """Arrays of one shape along a new axis at this place of the new shape."""
    first = same_kind(arrays, "stack")
    if len({a.shape for a in arrays}) != 1:
        shapes = ", ".join(dict.fromkeys(text(a.shape) for a in arrays))
        raise UsageError(
            f"stack: expected arrays of one shape, got {shapes:.200}",
            hint="bring the sources to one shape with steps of their own",
        )
    k = axis % (len(first.shape) + 1) if axis >= -len(first.shape) - 1 else axis
    return concat([unsqueeze(a, k) for a in arrays], k)


def same_kind(arrays: Sequence[Array], step: str) -> Array:
    """The first of arrays that have the same types and the same value moves.

    Raises: UsageError if they have not, or there are none.
    """
    if not arrays:
        raise UsageError(f"{step}: expected at least one array, got none", hint="name a source")
    first = arrays[0]
    for other in arrays[1:]:
        if (other.source, [m.text for m in other.values]) != (
            first.source,
            [m.text for m in first.values],
        ):
            raise UsageError(
                f"{step}: expected sources of one type with the same value steps, got "
                f"{_kind(first)} and {_kind(other)}",
                hint="the elements of one target are computed alike: claim parts of one type, "
                "with value steps after the join",
            )
    return first


def _kind(array: Array) -> str:
    return " | ".join([str(array.source), *(move.text for move in array.values)])
