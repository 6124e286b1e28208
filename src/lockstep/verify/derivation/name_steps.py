"""Steps of a claim file that make a recovered map: found on arrays of places, proved on layouts.

A candidate is looked for with arrays of flat places. It counts only when the steps themselves,
done as a claim file would do them, give the same map, element for element.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import prod

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import LockstepError
from lockstep.formats.leaf import ElementType, Leaf
from lockstep.verify.claim import ValueMove
from lockstep.verify.claims.expressions import parse_call
from lockstep.verify.claims.moves import Array
from lockstep.verify.claims.rules import From
from lockstep.verify.claims.steps import apply
from lockstep.verify.derivation.markers import Ids, Numbering
from lockstep.verify.derivation.recover import ids_of
from lockstep.verify.layouts.layout import Layout, whole
from lockstep.verify.numbers.numbers_text import value_text

Places = NDArray[np.int64]
_MOST_AXES = 5
_MOST_TAKEN = 512  # places that a `take` lists


@dataclass(frozen=True, slots=True)
class Spelled:
    """The sources of a claim with steps of their own, and the steps after."""

    sources: tuple[From, ...]
    steps: tuple[str, ...]

    @property
    def text(self) -> str:
        """As the report shows it."""
        own = [f"{s.name}: {' | '.join(s.transform)}" for s in self.sources if s.transform]
        return " | ".join([*([f"[{'; '.join(own)}]"] if own else []), *self.steps]) or "identity"


def name_steps(
    leaf: Leaf, ids: Ids, values: Sequence[ValueMove], numbering: Numbering, fill: ValueText
) -> Spelled | None:
    """The steps of one leaf, or None if no steps that are known make it."""
    owner, flat = numbering.owners(ids)
    shape = leaf.grid_shape
    spelled = _of_block(owner.reshape(shape), flat.reshape(shape), numbering, fill)
    if spelled is None:
        return None
    texts = tuple(move.text for move in values)
    # the constant of a pad is written in the type before the moves
    for steps in ((*spelled.steps, *texts), (*texts, *spelled.steps)):
        found = Spelled(spelled.sources, steps)
        if _makes(found, leaf, ids, numbering):
            return found
    return None


@dataclass(frozen=True, slots=True)
class ValueText:
    """The constants of a leaf as steps spell them."""

    words: NDArray[np.unsignedinteger]
    element: ElementType

    def at(self, place: int) -> str:
        """The constant at one flat place."""
        return value_text(self.words[place : place + 1], self.element)


def _makes(found: Spelled, leaf: Leaf, ids: Ids, numbering: Numbering) -> bool:
    """Whether a claim of these steps says the same of every element."""
    made = layout_made(found, numbering.leaves)
    if made is None or made.shape != leaf.shape or made.element != leaf.element:
        return False
    return bool((ids_of(made.layout, numbering) == ids).all())


def layout_made(found: Spelled, leaves: Mapping[str, Leaf]) -> Array | None:
    """What the steps make, or None if they do not fit."""
    try:
        arrays: list[Array] = []
        for source in found.sources:
            leaf = leaves[source.name]
            layout: Layout = whole(leaf.name, leaf.grid_shape)
            own = [Array(layout, leaf.element, leaf.element)]
            for step in source.transform:
                own, _ = apply(parse_call(step, step), own, {})
            arrays += own
        for step in found.steps:
            arrays, _ = apply(parse_call(step, step), arrays, {})
    except LockstepError:
        return None
    return arrays[0] if len(arrays) == 1 else None


# --- a block of the target, of one source or of several


def _of_block(owner: Places, flat: Places, numbering: Numbering, fill: ValueText) -> Spelled | None:
    padded = _unpadded(owner, flat, fill)
    if padded is not None:
        inner_owner, inner_flat, pads = padded
        inner = _of_block(inner_owner, inner_flat, numbering, fill)
        return Spelled(inner.sources, (*inner.steps, *pads)) if inner else None
    owners = list(dict.fromkeys(owner.ravel().tolist()))
    if -1 in owners or not owners:
        return None
    if len(owners) == 1:
        leaf = numbering.leaves[numbering.names[owners[0]]]
        steps = _of_one(flat, leaf.grid_shape)
        return Spelled((From(name=leaf.name),), tuple(steps)) if steps is not None else None
    return _joined(owner, flat, numbering) or _mixed(owner, flat, owners, numbering)


def _unpadded(
    owner: Places, flat: Places, fill: ValueText
) -> tuple[Places, Places, list[str]] | None:
    """The block without constants at the ends of one axis, and the steps that put them there."""
    empty = owner < 0
    if not empty.any() or empty.all():
        return None
    for k in range(owner.ndim):
        others = tuple(i for i in range(owner.ndim) if i != k)
        lines = np.atleast_1d(empty.all(axis=others))
        if not lines.any() or (lines != np.atleast_1d(empty.any(axis=others))).any():
            continue
        inside = np.flatnonzero(~lines)
        before, after = int(inside[0]), len(lines) - int(inside[-1]) - 1
        box = tuple(
            slice(before, len(lines) - after) if i == k else slice(None) for i in range(owner.ndim)
        )
        place = int(np.argmax(empty.ravel()))
        pad = f"pad({k}, {before}, {after}, {fill.at(place)})"
        return owner[box], flat[box], [pad]
    return None


def _joined(owner: Places, flat: Places, numbering: Numbering) -> Spelled | None:
    """Sources side by side along one axis, each whole or moved by steps of its own."""
    for k in range(owner.ndim):
        first = np.moveaxis(owner, k, 0).reshape(owner.shape[k], -1)
        if (first != first[:, :1]).any():
            continue
        along = first[:, 0]
        ends = [*np.flatnonzero(np.diff(along)) + 1, len(along)]
        if len(ends) != len(set(along.tolist())):
            continue
        sources, start = [], 0
        for stop in ends:
            part = np.take(flat, range(start, stop), axis=k)
            leaf = numbering.leaves[numbering.names[int(along[start])]]
            sources.append((leaf, part))
            start = stop
        found = _stacked(sources, k, owner.ndim) or _side_by_side(sources, k)
        if found is not None:
            return found
    return None


def _stacked(sources: Sequence[tuple[Leaf, Places]], k: int, rank: int) -> Spelled | None:
    if any(part.shape[k] != 1 or len(leaf.grid_shape) != rank - 1 for leaf, part in sources):
        return None
    parts = [(leaf, part.squeeze(k)) for leaf, part in sources]
    return _each(parts, f"stack({k})")


def _side_by_side(sources: Sequence[tuple[Leaf, Places]], k: int) -> Spelled | None:
    return _each(sources, f"concat({k})")


def _each(sources: Sequence[tuple[Leaf, Places]], join: str) -> Spelled | None:
    found = []
    for leaf, part in sources:
        steps = _of_one(part, leaf.grid_shape)
        if steps is None:
            return None
        found.append(From(name=leaf.name, transform=tuple(steps)))
    return Spelled(tuple(found), (join,))


def _mixed(
    owner: Places, flat: Places, owners: Sequence[int], numbering: Numbering
) -> Spelled | None:
    """Sources woven into each other: joined first, then moved as one array."""
    leaves = [numbering.leaves[numbering.names[i]] for i in owners]
    shapes = [leaf.grid_shape for leaf in leaves]
    for k in range(len(shapes[0])):
        if len({(*s[:k], *s[k + 1 :]) for s in shapes}) > 1 or len({len(s) for s in shapes}) > 1:
            continue
        blocks, start = [], 0
        for shape in shapes:
            blocks.append(np.arange(start, start + prod(shape)).reshape(shape))
            start += prod(shape)
        starts = dict(zip(owners, np.cumsum([0, *map(prod, shapes)])[:-1].tolist(), strict=True))
        shift = np.vectorize(starts.__getitem__, otypes=[np.int64])(owner)
        names = tuple(From(name=leaf.name) for leaf in leaves)
        for join, made in _weaves(blocks, k):
            if made.shape == owner.shape and (made == flat + shift).all():
                return Spelled(names, (join,))
        joined = np.concatenate(blocks, axis=k)
        inverse = np.empty(joined.size, np.int64)
        inverse[joined.ravel()] = np.arange(joined.size)
        steps = _of_one(inverse[flat + shift], joined.shape)
        if steps is not None:
            return Spelled(names, (f"concat({k})", *steps))
    return None


def _weaves(blocks: Sequence[Places], k: int) -> Iterator[tuple[str, Places]]:
    """The fused layouts that have a name."""
    if len(blocks) == 2 and blocks[0].shape == blocks[1].shape:
        pairs = np.stack(blocks, axis=k + 1)
        shape = list(blocks[0].shape)
        shape[k] *= 2
        yield f"gate_up(interleaved, axis={k})", pairs.reshape(shape)
    if len(blocks) == 3 and k == 0 and blocks[1].shape == blocks[2].shape:
        rows_q, rows_kv = len(blocks[0]), len(blocks[1])
        for n_kv in range(1, rows_kv + 1):
            size = rows_kv // n_kv
            if rows_kv % n_kv or rows_q % size or (rows_q // size) % n_kv:
                continue
            groups = [b.reshape(n_kv, len(b) // n_kv, *b.shape[1:]) for b in blocks]
            made = np.concatenate(groups, axis=1).reshape(-1, *blocks[0].shape[1:])
            yield f"qkv({rows_q // size}, {n_kv}, layout=per_kv_group)", made


# --- one source


def _of_one(found: Places, shape: Sequence[int]) -> list[str] | None:
    """The steps that make an array of flat places out of a leaf of this shape."""
    size = prod(shape)
    if found.size == size:
        for search in (_in_order, _axes, _rope, _reordered):
            steps = search(found, tuple(shape))
            if steps is not None:
                return steps
        return None
    return _boxed(found, tuple(shape)) or _reordered(found, tuple(shape))


def _in_order(found: Places, shape: tuple[int, ...]) -> list[str] | None:
    """The elements in their own order, in another shape perhaps."""
    if (found.ravel() != np.arange(found.size)).any():
        return None
    return _reshaped(shape, found.shape)


def _reshaped(before: tuple[int, ...], after: tuple[int, ...]) -> list[str]:
    if before == after:
        return []
    ones = [k for k, n in enumerate(before) if n == 1]
    if tuple(n for n in before if n != 1) == after:
        return [f"squeeze({k})" for k in reversed(ones)]
    for k in ones:
        if before[:k] + before[k + 1 :] == after:
            return [f"squeeze({k})"]
    for k, n in enumerate(after):
        if n == 1 and after[:k] + after[k + 1 :] == before:
            return [f"unsqueeze({k})"]
    return ["flatten()"] if len(after) == 1 else [f"reshape({', '.join(map(str, after))})"]


def _axes(found: Places, shape: tuple[int, ...]) -> list[str] | None:
    """Axes in another order, before or after a reshape."""
    places = np.arange(found.size).reshape(shape)
    if 2 <= len(shape) <= _MOST_AXES:
        for order in permutations(range(len(shape))):
            moved = places.transpose(order)
            if (moved.ravel() == found.ravel()).all():
                return [_permute(order), *_reshaped(moved.shape, found.shape)]
    if 2 <= found.ndim <= _MOST_AXES and found.shape != shape:
        for order in permutations(range(found.ndim)):
            split = tuple(found.shape[order.index(k)] for k in range(found.ndim))
            if (places.reshape(split).transpose(order) == found).all():
                return [*_reshaped(shape, split), _permute(order)]
    return None


def _permute(order: Sequence[int]) -> str:
    n = len(order)
    if tuple(order) == (*range(n - 2), n - 1, n - 2):
        return "transpose()"
    return f"permute({', '.join(map(str, order))})"


def _rope(found: Places, shape: tuple[int, ...]) -> list[str] | None:
    """Rotary rows moved within heads, on one axis; transposed after that perhaps."""
    places = np.arange(found.size).reshape(shape)
    turned: list[tuple[list[str], Places]] = [([], found)] if found.shape == shape else []
    if len(shape) == 2 and found.shape == shape[::-1]:
        turned.append((["transpose()"], found.T))
    for after, wanted in turned:
        for k in range(len(shape)):
            for n_heads in range(1, shape[k] // 2 + 1):
                if shape[k] % (2 * n_heads):
                    continue
                for name, pairs in (
                    ("rope_half_to_interleaved", (2, shape[k] // n_heads // 2)),
                    ("rope_interleaved_to_half", (shape[k] // n_heads // 2, 2)),
                ):
                    split = places.reshape(*shape[:k], n_heads, *pairs, *shape[k + 1 :])
                    if (split.swapaxes(k + 1, k + 2).reshape(shape) == wanted).all():
                        axis = f", axis={k}" if k else ""
                        return [f"{name}({n_heads}{axis})", *after]
    return None


def _reordered(found: Places, shape: tuple[int, ...]) -> list[str] | None:
    """Places of one axis in another order, left out or repeated."""
    if found.ndim != len(shape) or not found.size:
        return None
    places = np.arange(prod(shape)).reshape(shape)
    for k, n in enumerate(shape):
        if found.shape[:k] + found.shape[k + 1 :] != shape[:k] + shape[k + 1 :]:
            continue
        line = np.moveaxis(found, k, 0).reshape(found.shape[k], -1)[:, 0]
        order = np.unravel_index(line, shape)[k]
        if (np.take(places, order, axis=k) != found).any():
            continue
        if len(order) == n and (order == np.arange(n)[::-1]).all():
            return [f"flip({k})"]
        return _heads(k, order.tolist(), n)
    return None


def _heads(k: int, order: list[int], n: int) -> list[str] | None:
    """The order of the largest heads that stay whole, or of all places."""
    for size in (s for s in range(len(order) // 2, 1, -1) if len(order) % s == 0 and n % s == 0):
        rows = [order[i : i + size] for i in range(0, len(order), size)]
        if all(r[0] % size == 0 and r == list(range(r[0], r[0] + size)) for r in rows):
            return [f"heads({k}, {n // size}, {[r[0] // size for r in rows]})"]
    return [f"take({k}, {order})"] if len(order) <= _MOST_TAKEN else None


def _boxed(found: Places, shape: tuple[int, ...]) -> list[str] | None:
    """A part of each axis, moved after that."""
    coordinates = np.unravel_index(found.ravel(), shape)
    kept = [np.unique(c) for c in coordinates]
    if prod(map(len, kept)) != found.size:
        return None
    steps: list[str] = []
    inner = list(map(len, kept))
    for k in reversed(range(len(shape))):
        places, n = kept[k], shape[k]
        if len(places) == n:
            continue
        start, stop = int(places[0]), int(places[-1]) + 1
        if stop - start != len(places):
            if len(places) > _MOST_TAKEN:
                return None
            steps.append(f"take({k}, {places.tolist()})")
        elif stop - start == 1 and found.ndim < len(inner):
            steps.append(f"index({k}, {start})")
            del inner[k]
        else:
            steps.append(f"slice({k}, {start}, {stop})")
    ranks = [np.searchsorted(places, c) for places, c in zip(kept, coordinates, strict=True)]
    flat = np.ravel_multi_index(tuple(ranks), tuple(map(len, kept))).reshape(found.shape)
    rest = _of_one(flat, tuple(inner))
    return None if rest is None else [*steps, *rest]
