"""What a converter did to a weight that is not the one of the original."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from lockstep.engine.source import Source
from lockstep.families import Weight
from lockstep.families.delta_forms import Logarithm, ValueHeads
from lockstep.families.form import join_pairs, split_pairs
from lockstep.families.weight import Parts
from lockstep.ir import Array
from lockstep.proof.row_moves import apart, factor_of, is_same, row_errors, rows_moved, wrong_blocks


def explain(left: Source, right: Source, ours: str, theirs: str, bound: float, block: int) -> str:
    """How the weight of the left side differs from the right one.

    The bound is for the root mean square of a row's difference, relative to the original; blocks
    of this size are looked at where all rows keep to it.
    """
    got, expected = left.parameters.f32(ours), right.parameters.f32(theirs)
    if is_same(got, expected, bound):
        wrong = [*wrong_blocks(got, expected, bound, block)]
        row, i = wrong[0]
        return (
            f"its weight {ours} is not that of the original in {len(wrong):,} of its blocks of "
            f"{block}, the first is block {i} of row {row}"
        )
    if ours != theirs:
        return f"it reads {ours}, the original {theirs}: only one of them ties head and embedding"
    if not got.any():
        return f"its weight {ours} is all zeros"
    if got.shape == expected.shape:
        for what, changed in chain(
            _left(left, ours, expected), _changes(left, right, theirs, expected)
        ):
            if is_same(got, changed, bound):
                return f"its weight {ours} is {what}"
        if (scaled := _scaled(got, expected, bound)) is not None:
            return f"its weight {ours} is the original {scaled}"
        if (moved := _moved(right, got, expected, theirs, bound)) is not None:
            return f"its weight {ours} is the original with its {moved}"
    return f"its weight {ours} is not that of the original{_where(got, expected, bound)}"


def _where(got: Array, expected: Array, bound: float) -> str:
    """How far it is off, and in which rows."""
    if got.shape != expected.shape:
        return f": its shape is {got.shape}, not {expected.shape}"
    off = f", {apart(got, expected):.2g} off"
    wrong = np.flatnonzero(~(row_errors(got, expected) <= bound))
    if expected.ndim < 2 or len(wrong) == len(expected):
        return off
    return f"{off}, in {len(wrong)} of {len(expected)} rows, the first is {wrong[0]}"


def _standing_in(left: Source, right: Source, id: str, other: str) -> Array:
    """What the left file gives for a weight where it holds another one in its place."""
    found: Array = right.parameters.f32(other)
    ours, theirs = _weight(left, id), _weight(left, other)
    if left.kind == "run" or ours is None or theirs is None:
        return found
    if ours.form(left.kind) == theirs.form(left.kind):
        return found
    with np.errstate(invalid="ignore"):
        return ours.form(left.kind).held(theirs.form(left.kind).stored(found))


def _weight(side: Source, id: str) -> Weight | None:
    """The row of the table, where a family has one for this source."""
    weights = side.model.family.weights(side.model.config)
    return next((weight for weight in weights if weight.id == id), None)


def _left(left: Source, id: str, expected: Array) -> Iterator[tuple[str, Array]]:
    """What a GGUF file would give whose converter did too little, or turned what it wrote."""
    weight = _weight(left, id) if left.kind == "gguf" else None
    if weight is None:
        return
    if expected.ndim == 2 and expected.shape[0] == expected.shape[1]:
        turned = weight.gguf_form.stored(expected).T  # behind what else the converter does to it
        yield "the original transposed", weight.gguf_form.held(turned)
    if not isinstance(weight.gguf_form, (ValueHeads, Logarithm)):
        return
    stored = weight.hf_form.stored(expected)
    with np.errstate(invalid="ignore"):  # not each is a number that the file could hold
        kept = weight.gguf_form.held(stored)
    if isinstance(weight.gguf_form, Logarithm):
        yield "the original without the -exp of GGUF", kept
    else:
        yield "the original with its value heads as Hugging Face orders them", kept


def _changes(left: Source, right: Source, id: str, expected: Array) -> Iterator[tuple[str, Array]]:
    """What might stand in its place, with the words for it."""
    config, shapes = right.model.config, right.model.shapes
    layer = id.rpartition(".")[0].split(".")[:2]
    for other, shape in shapes.items():
        if other != id and shape == expected.shape and other.split(".")[:2] == layer:
            yield f"that of {other}", _standing_in(left, right, id, other)
    if expected.ndim == 2 and expected.shape[0] == expected.shape[1]:
        yield "the original transposed", expected.T
    for heads in {config.heads, config.kv_heads, len(expected) // config.head_dim}:
        if heads and len(expected) % (2 * heads) == 0:
            yield "the original with its rows in pairs for rope", join_pairs(expected, heads)
            yield "the original with its rows in halves for rope", split_pairs(expected, heads)
    yield "the original less one", expected - 1.0
    yield "the original plus one", expected + 1.0
    yield "all ones: the original's scale is missing", np.ones_like(expected)
    for other, shape in shapes.items():
        if other != id and shape == expected.shape and other.split(".")[:2] != layer:
            yield f"that of {other}", _standing_in(left, right, id, other)


def _scaled(got: Array, expected: Array, bound: float) -> str | None:
    """By what it is multiplied, if that is all."""
    factor = factor_of(got, expected)
    if not np.isfinite(factor) or factor == 0.0 or not is_same(got, factor * expected, bound):
        return None
    if abs(factor) < 1.0:
        return f"over {1.0 / factor:.4g}"
    return f"times {factor:.4g}"


def _moved(right: Source, got: Array, expected: Array, id: str, bound: float) -> str | None:
    """Where rows, columns or elements went, if that is all."""
    weight = _weight(right, id)
    parts: Parts = weight.parts if weight is not None else ()
    if expected.ndim == 1:
        moved = rows_moved(got[:, None], expected[:, None], bound)
        return None if moved is None else f"elements {moved}"
    axis = 0 if expected.shape[0] == sum(end - first for _, first, end in parts) else 1
    for name, turned in (("rows", 0), ("columns", 1)):
        ours, theirs = (x.T if turned else x for x in (got, expected))
        moved = rows_moved(ours, theirs, bound, parts if turned == axis else ())
        if moved is not None:
            return f"{name} {moved}"
    return None
