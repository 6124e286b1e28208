"""Two rows of heads out of one, whose heads hold both side by side, and the inverse.

Source: transformers modeling_qwen3_5, where one projection makes queries and their gates.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.ir import GradientBuilder, Kernel, Node, Op, Tolerance, Type, Value
from lockstep.ir import f32 as f32_type
from lockstep.ir.op import Array, Attr
from lockstep.ops.example import normal, size
from lockstep.ops.expect import expect_rank, expect_type, parts, whole
from lockstep.ops.registry import OPS, source

_SOURCE = source("split_heads.c")


def _infer_split(x_MK: Type, *, heads: int) -> tuple[Type, ...]:
    expect_rank("split_heads x", x_MK, 2)
    M, K = x_MK.dims
    return (f32_type(M, heads * parts("split_heads x", K, 2 * heads)),) * 2


def _reference_split(x_MK: Array, *, heads: int) -> tuple[Array, ...]:
    x_MH2E = x_MK.reshape(len(x_MK), heads, 2, -1)
    return tuple(x_MH2E[:, :, i].reshape(len(x_MK), -1) for i in range(2))


def _gradient_split(
    g: GradientBuilder, node: Node, da: Value | None, db: Value | None
) -> tuple[Value | None, ...]:
    return (g.add(JOIN_HEADS, f"{node.id}@dx", da, db, **node.attrs),)


def _example_split(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    return (normal(rng, size(case, "M"), 2 * size(case, "E", "heads")),)


def _infer_join(a_MN: Type, b_MN: Type | None, *, heads: int) -> tuple[Type, ...]:
    expect_rank("join_heads a", a_MN, 2)
    if b_MN is not None:
        expect_type("join_heads b", b_MN, a_MN)
    M, N = a_MN.dims
    parts("join_heads a", N, heads)
    return (f32_type(M, 2 * whole("join_heads a", N)),)


def _reference_join(a_MN: Array, b_MN: Array | None, *, heads: int) -> tuple[Array, ...]:
    halves = (a_MN, np.zeros_like(a_MN) if b_MN is None else b_MN)
    joined = np.stack([half.reshape(len(a_MN), heads, -1) for half in halves], 2)
    return (joined.reshape(len(a_MN), -1),)


def _gradient_join(g: GradientBuilder, node: Node, dx: Value | None) -> tuple[Value | None, ...]:
    da = g.add(SPLIT_HEADS, f"{node.id}@da", dx, **node.attrs)
    return da, g.value(f"{node.id}@da:b") if node.inputs[1] else None


def _example_join(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    width = size(case, "E", "heads")
    return normal(rng, size(case, "M"), width), normal(rng, size(case, "M"), width)


_CASES: tuple[dict[str, Attr], ...] = (
    {"M": 3, "E": 8, "heads": 4},
    {"M": 5, "E": 13, "heads": 1},
)

SPLIT_HEADS = OPS.register(
    Op(
        name="split_heads",
        inputs=("x_MK",),
        outputs=("a_MN", "b_MN"),
        attrs={"heads": int},
        infer=_infer_split,
        reference=_reference_split,
        gradient=_gradient_split,
        source=_SOURCE,
        naive="split_heads_naive",
        kernels=(Kernel(symbol="split_heads_f32", tiling="rows"),),
        cases=_CASES,
        tolerance=Tolerance(rel=0.0, why="a copy"),
        row_inputs=frozenset({"x_MK"}),
        example=_example_split,
    )
)

JOIN_HEADS = OPS.register(
    Op(
        name="join_heads",
        inputs=("a_MN", "b_MN?"),
        outputs=("x_MK",),
        attrs={"heads": int},
        infer=_infer_join,
        reference=_reference_join,
        gradient=_gradient_join,
        source=_SOURCE,
        naive="join_heads_naive",
        kernels=(Kernel(symbol="join_heads_f32", tiling="rows"),),
        cases=_CASES,
        tolerance=Tolerance(rel=0.0, why="a copy"),
        row_inputs=frozenset({"a_MN", "b_MN?"}),
        example=_example_join,
    )
)
