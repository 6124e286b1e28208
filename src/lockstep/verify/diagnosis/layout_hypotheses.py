"""What may have happened to the order of elements: axes, rotary halves, rolls, padding, stacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import permutations

from lockstep.verify.diagnosis.hypotheses import Case, Hypothesis, attempt, source_of
from lockstep.verify.layouts.layout import (
    Layout,
    cut,
    filled,
    flip,
    join,
    permute,
    reshape,
    whole,
)

MAX_RANK = 4  # axes of which every order is tried
MAX_HEADS = 24  # numbers of heads that are tried


def layout_hypotheses(case: Case) -> Iterator[Hypothesis]:
    """Cheap to state and to check; the likely ones first."""
    for make in (_axis_orders, _rope, _halves, _rolls, _flips, _stacks, _padding):
        for name, text, layout in make(case):
            if layout is not None and layout.shape == case.layout.shape:
                yield Hypothesis(name, text, case.with_layout(layout))


Found = Iterator[tuple[str, str, Layout | None]]


def _axis_orders(case: Case) -> Found:
    layout, shape = case.layout, case.layout.shape
    source = case.only_source
    if source is not None and not layout.is_identity:
        plain = whole(source.name, source.grid_shape)
        text = f"not transformed: the elements of {source.name} in their own order"
        yield "not_transformed", text, attempt(partial(reshape, plain, shape))
    for base in (shape, source.grid_shape if source else ()):
        if not 2 <= len(base) <= MAX_RANK:
            continue
        start = layout if base is shape else whole(source.name, base) if source else None
        for order in sorted(permutations(range(len(base))), key=_disorder):
            if start is None or order == tuple(range(len(base))):
                continue
            last_two = (*range(len(base) - 2), len(base) - 1, len(base) - 2)
            name = "transposed" if order == last_two else "axis_order"
            text = "transposed" if name == "transposed" else f"axes in the order {order}"
            there = tuple(base[k] for k in order)
            if there != shape:
                name, text = "reshaped", f"{text}, then seen as {shape}"
            yield name, text, attempt(partial(_permuted, start, order, shape))


def _permuted(layout: Layout, order: tuple[int, ...], shape: tuple[int, ...]) -> Layout:
    return reshape(permute(layout, order), shape)


def _disorder(order: tuple[int, ...]) -> int:
    return sum(k != i for i, k in enumerate(order))


# --- rotary halves


def _interleaved(layout: Layout, axis: int, n_heads: int, back: bool) -> Layout:
    """Rows of each head from (half, pair) order to (pair, half) order, or back."""
    shape = layout.shape
    half = shape[axis] // n_heads // 2
    pairs = (half, 2) if back else (2, half)
    split = reshape(layout, (*shape[:axis], n_heads, *pairs, *shape[axis + 1 :]))
    axes = list(range(len(shape) + 2))
    axes[axis + 1], axes[axis + 2] = axes[axis + 2], axes[axis + 1]
    return reshape(permute(split, axes), shape)


def _rope(case: Case) -> Found:
    declared = "rope" in case.claim.text
    source = case.only_source
    for axis in range(len(case.layout.shape)):
        for n_heads, known in _head_counts(case, case.layout.shape[axis]):
            heads = f"over {n_heads} heads of axis {axis}" if n_heads > 1 else f"along axis {axis}"
            for back in (False, True):
                layout = attempt(partial(_interleaved, case.layout, axis, n_heads, back))
                order = "interleaved to half" if back else "half to interleaved"
                more = " once more" if declared else ", which is not claimed"
                text = f"rotary pairs moved{more}, {order}, {heads}{known}"
                yield "rope_missing_or_doubled" if declared else "rope_interleaved", text, layout
                if declared and source is not None:
                    plain = whole(source.name, source.grid_shape)
                    wrong = attempt(partial(_plain_rope, plain, case, axis, n_heads, back))
                    text = f"rotary pairs moved {order}, {heads}{known}"
                    yield "rope_heads", text, wrong


def _plain_rope(plain: Layout, case: Case, axis: int, n_heads: int, back: bool) -> Layout:
    return _interleaved(reshape(plain, case.layout.shape), axis, n_heads, back)


def _head_counts(case: Case, n: int) -> list[tuple[int, str]]:
    """How many heads an axis may have: the facts that divide it, then what gives usual widths."""
    found: dict[int, str] = {}
    for name, value in case.facts.items():
        for n_heads in (value, n // value):
            if n_heads and n % n_heads == 0 and n // n_heads % 2 == 0:
                known = f" (as {name})" if n_heads == value else f" (of {name} rows)"
                found.setdefault(n_heads, known)
    for n_heads in range(1, min(n // 2, 256) + 1):
        if n % n_heads == 0 and n // n_heads % 2 == 0:
            found.setdefault(n_heads, "")
    return list(found.items())[:MAX_HEADS]


# --- halves, rolls, flips


def _rolled(layout: Layout, axis: int, by: int) -> Layout:
    """Each element `by` places further along an axis; what leaves comes in at the front."""
    n = layout.shape[axis]
    return join([cut(layout, axis, n - by, n), cut(layout, axis, 0, n - by)], axis)


def _halves(case: Case) -> Found:
    for axis, n in enumerate(case.layout.shape):
        if n % 2 == 0 and n > 2:
            text = f"the halves of axis {axis} exchanged"
            yield "halves_swapped", text, attempt(partial(_rolled, case.layout, axis, n // 2))


def _rolls(case: Case) -> Found:
    layout = case.layout
    for axis, n in enumerate(layout.shape):
        for by in {1, n - 1} if n > 1 else ():
            forward = by == 1
            text = f"rolled by one place {'forward' if forward else 'back'} along axis {axis}"
            yield "rolled", text, attempt(partial(_rolled, layout, axis, by))
    flat = reshape(layout, (layout.n_elements,))
    zero = filled(case.zero, (1,))
    n = flat.n_elements
    for forward in (True, False):
        parts = [zero, cut(flat, 0, 0, n - 1)] if forward else [cut(flat, 0, 1, n), zero]
        way = "forward" if forward else "back"
        text = f"shifted {way} by one element, with a zero in its place"
        yield "shifted", text, reshape(join(parts, 0), layout.shape)
        if len(layout.shape) > 1:
            text = f"shifted {way} by one element, the last coming round"
            whole_round = _rolled(flat, 0, 1 if forward else n - 1)
            yield "shifted", text, reshape(whole_round, layout.shape)


def _flips(case: Case) -> Found:
    for axis, n in enumerate(case.layout.shape):
        if n > 1:
            text = f"axis {axis} backwards"
            yield "flipped", text, attempt(partial(flip, case.layout, axis))


# --- several sources, constants


def _stacks(case: Case) -> Found:
    """Whole leaves of one shape, side by side along another axis, or stacked on it."""
    leaves = [case.plan.source.leaves.get(name) for name in case.claim.sources]
    shapes = {leaf.grid_shape for leaf in leaves if leaf}
    if len(leaves) < 2 or None in leaves or len(shapes) != 1:
        return
    (shape,) = shapes
    parts = [whole(leaf.name, shape) for leaf in leaves if leaf]
    for axis in range(len(shape) + 1):
        thin = (*shape[:axis], 1, *shape[axis:])
        stacked = attempt(partial(_joined, parts, thin, axis, case.layout.shape))
        yield "stack_axis", f"its sources stacked on axis {axis}", stacked
        if axis < len(shape):
            side = attempt(partial(_joined, parts, shape, axis, case.layout.shape))
            yield "stack_axis", f"its sources side by side along axis {axis}", side


def _joined(
    parts: list[Layout], thin: tuple[int, ...], axis: int, shape: tuple[int, ...]
) -> Layout:
    return reshape(join([reshape(part, thin) for part in parts], axis), shape)


def _padding(case: Case) -> Found:
    """Constants at the other end, or of another value."""
    layout = case.layout
    fills = [piece for piece in layout.pieces if piece.leaf is None]
    n_fill = sum(piece.n_elements for piece in fills)
    if not fills or n_fill == layout.n_elements:
        return
    for axis, n in enumerate(layout.shape):
        rest = layout.n_elements // n
        if n_fill % rest == 0:
            by = n_fill // rest
            at_start = source_of(layout, 0)[0] is None
            rolled = attempt(partial(_rolled, layout, axis, n - by if at_start else by))
            yield "padding_end", f"the padding at the other end of axis {axis}", rolled
    if case.is_simple and not case.claim.values:
        value = case.found(fills[0].dst, fills[0].dst + 1).tobytes()
        pieces = tuple(replace(p, fill=value) if p.leaf is None else p for p in layout.pieces)
        text = f"padded with another value, bytes {value.hex()}"
        yield "padding_value", text, Layout(layout.shape, pieces)
