"""What a converter did to a weight that is not the one of the original."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from lockstep.engine.source import Source
from lockstep.families.delta_forms import ValueHeads
from lockstep.families.form import join_pairs, split_pairs
from lockstep.ir import Array


def explain(left: Source, right: Source, ours: str, theirs: str, bound: float) -> str | None:
    """Why the weight of the left side differs from the right one; None if it does not.

    The bound is for the root mean square of the difference, relative to the original.
    """
    got, expected = left.parameters.f32(ours), right.parameters.f32(theirs)
    if apart(got, expected) <= bound:
        return None
    for what, changed in chain(_left(left, ours, expected), _changes(right, theirs, expected)):
        if changed.shape == got.shape and apart(got, changed) <= bound:
            return f"its weight {ours} is {what}"
    return f"its weight {ours} is not that of the original, {apart(got, expected):.2g} off"


def apart(a: Array, b: Array) -> float:
    """Root mean square of the difference, relative to the second."""
    scale = float(np.sqrt(np.mean(np.square(b, dtype=np.float64)))) or 1.0
    return float(np.sqrt(np.mean(np.square(a.astype(np.float64) - b)))) / scale


def _left(left: Source, id: str, expected: Array) -> Iterator[tuple[str, Array]]:
    """What a GGUF file would give whose converter left the tensor as Hugging Face has it."""
    weights = left.model.family.weights(left.model.config) if left.kind == "gguf" else ()
    for weight in weights:
        if weight.id == id and isinstance(weight.gguf_form, ValueHeads):
            with np.errstate(invalid="ignore"):
                kept = weight.gguf_form.held(weight.hf_form.stored(expected))
            yield "the original with its value heads as Hugging Face orders them", kept


def _changes(right: Source, id: str, expected: Array) -> Iterator[tuple[str, Array]]:
    """What might stand in its place, with the words for it."""
    config, shapes = right.model.config, right.model.shapes
    layer = id.rpartition(".")[0].split(".")[:2]
    for other, shape in shapes.items():
        if other != id and shape == expected.shape and other.split(".")[:2] == layer:
            yield f"that of {other}", right.parameters.f32(other)
    if expected.ndim == 2 and expected.shape[0] == expected.shape[1]:
        yield "the original transposed", expected.T
    for heads in {config.heads, config.kv_heads}:
        if len(expected) % (2 * heads) == 0:
            yield "the original with its rows in pairs for rope", join_pairs(expected, heads)
            yield "the original with its rows in halves for rope", split_pairs(expected, heads)
    yield "the original less one", expected - 1.0
    yield "the original plus one", expected + 1.0
    yield "all ones: the original's scale is missing", np.ones_like(expected)
    factor = config.width**0.5
    yield f"the original times {factor:.4g}", expected * factor
    yield f"the original over {factor:.4g}", expected / factor
    for other, shape in shapes.items():
        if other != id and shape == expected.shape and other.split(".")[:2] != layer:
            yield f"that of {other}", right.parameters.f32(other)
