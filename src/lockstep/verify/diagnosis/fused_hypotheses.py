"""How fused projections may have been joined or taken apart: q, k and v; gate and up; exchanges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations, permutations
from typing import Literal, get_args

from lockstep.errors import UsageError
from lockstep.formats.leaf import Leaf
from lockstep.verify.claims.model_moves import (
    GateUpOrder,
    QkvLayout,
    gate_up,
    qkv,
    ungate_up,
    unqkv,
)
from lockstep.verify.claims.moves import Array, concat
from lockstep.verify.diagnosis.hypotheses import Case, Hypothesis
from lockstep.verify.layouts.layout import Layout, permute, whole

QKV: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")
MAX_JOINED = 4  # sources of which every order is tried
MAX_EXCHANGED = 48  # sources of which every pair is tried


def fused_hypotheses(case: Case) -> Iterator[Hypothesis]:
    """Joins of the claim's sources, then parts of its one source, then two sources exchanged."""
    leaves = [case.plan.source.leaves.get(name) for name in case.claim.sources]
    known = [leaf for leaf in leaves if leaf is not None and leaf.element.n_numbers == 1]
    if not known or len(known) < len(leaves):
        return
    for turned in (False, True):
        if turned and any(len(leaf.grid_shape) != 2 for leaf in known):
            continue
        arrays = [_array(leaf, turned) for leaf in known]
        make = _parts if len(arrays) == 1 else _joins
        for name, text, build in make(case, arrays):
            layout = _built(build)
            if layout is not None and layout.shape == case.layout.shape:
                said = f"{text}, its sources transposed" if turned else text
                yield Hypothesis(name, said, case.with_layout(layout))
    yield from _exchanges(case, known)


Builds = Iterator[tuple[str, str, Callable[[], Array]]]


def _array(leaf: Leaf, turned: bool) -> Array:
    layout = whole(leaf.name, leaf.grid_shape)
    return Array(permute(layout, (1, 0)) if turned else layout, leaf.element, leaf.element)


def _built(build: Callable[[], Array]) -> Layout | None:
    """The layout, or None where the moves do not fit the shapes."""
    try:
        return build().layout
    except UsageError:
        return None


def _joins(case: Case, arrays: list[Array]) -> Builds:
    n, n_axes = len(arrays), len(arrays[0].shape)
    if n > MAX_JOINED:
        return
    for order in permutations(range(n)):
        chosen = [arrays[i] for i in order]
        said = ", ".join(case.claim.sources[i] for i in order)
        for axis in range(n_axes):
            yield "joined", f"{said} side by side on axis {axis}", partial(concat, chosen, axis)
        if n == 3:
            for n_heads, n_kv_heads in _heads(case):
                for layout in get_args(QkvLayout):
                    build = partial(qkv, chosen, n_heads, n_kv_heads, layout)
                    text = f"{said} fused with layout={layout}, {n_heads} and {n_kv_heads} heads"
                    yield "fused_qkv", text, build
        if n == 2:
            for axis in range(n_axes):
                text = f"{said} interleaved on axis {axis}"
                yield "fused_gate_up", text, partial(gate_up, chosen, "interleaved", axis)


def _parts(case: Case, arrays: list[Array]) -> Builds:
    (fused,) = arrays
    for axis in range(len(fused.shape)):
        for order in get_args(GateUpOrder):
            for part in ("gate", "up"):
                text = f"{part} of a source that holds {order} on axis {axis}"
                yield "split_gate_up", text, partial(ungate_up, fused, part, order, axis)
    rows = fused.shape[0] if fused.shape else 0
    for n_heads, n_kv_heads in _heads(case):
        n_all = n_heads + 2 * n_kv_heads
        for layout in get_args(QkvLayout) if rows % n_all == 0 else ():
            for part in QKV:
                text = f"{part} of a source with layout={layout}, {n_heads} and {n_kv_heads} heads"
                size = rows // n_all
                yield (
                    "split_qkv",
                    text,
                    partial(unqkv, fused, part, n_heads, n_kv_heads, size, layout),
                )


def _heads(case: Case) -> list[tuple[int, int]]:
    """Heads and key-value heads, as the facts allow."""
    counts = sorted({n for name, n in case.facts.items() if "head" in name}, reverse=True)
    return [(a, b) for a in counts for b in counts if a % b == 0]


def _exchanges(case: Case, leaves: list[Leaf]) -> Iterator[Hypothesis]:
    """Two sources of one shape in each other's place."""
    if not 1 < len(leaves) <= MAX_EXCHANGED:
        return
    for a, b in combinations(leaves, 2):
        if (a.grid_shape, a.element) == (b.grid_shape, b.element):
            names = {a.name: b.name, b.name: a.name}
            pieces = tuple(
                replace(piece, leaf=names.get(piece.leaf, piece.leaf)) if piece.leaf else piece
                for piece in case.layout.pieces
            )
            claim = case.with_layout(Layout(case.layout.shape, pieces))
            text = f"{a.name} and {b.name} in each other's place"
            yield Hypothesis("sources_exchanged", text, claim, (a.name, b.name))
