"""Turns each pair of a head by the angle of its position, and the table of the angles.

A row holds heads of R pairs: (j, j+R) as transformers has them, or interleaved, (2j, 2j+1).
Source: arXiv:2104.09864; the stretch of low frequencies: Llama 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.errors import UsageError
from lockstep.ir import GradientBuilder, Kernel, Node, NotDifferentiable, Op, Tolerance, Type, Value
from lockstep.ir import f32 as f32_type
from lockstep.ir import i32 as i32_type
from lockstep.ir.op import Array, Attr
from lockstep.ops.example import indices, normal, size
from lockstep.ops.expect import expect_rank, expect_type, parts, whole
from lockstep.ops.registry import OPS, source

_SOURCE = source("rope.c")


def _infer_table(
    *,
    theta: float,
    context: int,
    head_dim: int,
    factor: float,
    low: float,
    high: float,
    original: float,
) -> tuple[Type, ...]:
    if head_dim % 2 or theta <= 0:
        raise UsageError(
            f"rope_table: expected an even head width and theta > 0, got {head_dim} and {theta}",
            hint="check the model's configuration",
        )
    return (f32_type(context, head_dim // 2),) * 2


def _reference_table(
    *,
    theta: float,
    context: int,
    head_dim: int,
    factor: float,
    low: float,
    high: float,
    original: float,
) -> tuple[Array, ...]:
    pairs = head_dim // 2
    frequency_R = theta ** -(np.arange(pairs) / pairs)
    if factor != 1.0:
        turns_R = original * frequency_R / (2 * np.pi)
        share_R = np.clip((turns_R - low) / (high - low), 0.0, 1.0)
        frequency_R = frequency_R * (share_R + (1.0 - share_R) / factor)
    angle_CR = np.arange(context)[:, None] * frequency_R
    return np.cos(angle_CR), np.sin(angle_CR)


def _infer(
    x_MN: Type, positions_M: Type, cos_CR: Type, sin_CR: Type, *, interleaved: bool, inverse: bool
) -> tuple[Type, ...]:
    expect_rank("rope x", x_MN, 2)
    expect_rank("rope cos", cos_CR, 2)
    expect_type("rope sin", sin_CR, cos_CR)
    expect_type("rope positions", positions_M, i32_type(x_MN.dims[0]))
    parts("rope x", x_MN.dims[1], 2 * whole("rope cos", cos_CR.dims[1]))
    return (x_MN,)


def _reference(
    x_MN: Array,
    positions_M: Array,
    cos_CR: Array,
    sin_CR: Array,
    *,
    interleaved: bool,
    inverse: bool,
) -> tuple[Array, ...]:
    M, R = len(x_MN), cos_CR.shape[1]
    cos_M1R = cos_CR[positions_M][:, None]
    sin_M1R = sin_CR[positions_M][:, None] * (-1.0 if inverse else 1.0)
    pair_axis = -1 if interleaved else -2
    x = x_MN.reshape((M, -1, R, 2) if interleaved else (M, -1, 2, R))
    a_MHR, b_MHR = np.take(x, 0, pair_axis), np.take(x, 1, pair_axis)
    turned = (a_MHR * cos_M1R - b_MHR * sin_M1R, b_MHR * cos_M1R + a_MHR * sin_M1R)
    return (np.stack(turned, pair_axis).reshape(x_MN.shape),)


def _gradient(g: GradientBuilder, node: Node, dy: Value | None) -> tuple[Value | None, ...]:
    x, positions, cos, sin = (g.value(i) for i in node.inputs if i)
    if not g.wants(x):
        return None, None, None, None
    back = {**node.attrs, "inverse": not node.attrs["inverse"]}
    return g.add(ROPE, f"{node.id}@dx", dy, positions, cos, sin, **back), None, None, None


def _example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    angle_CR = rng.uniform(-np.pi, np.pi, (size(case, "C"), size(case, "R")))
    cos_CR, sin_CR = np.cos(angle_CR).astype(np.float32), np.sin(angle_CR).astype(np.float32)
    M, heads = size(case, "M"), size(case, "H")
    return normal(rng, M, heads * 2 * cos_CR.shape[1]), indices(rng, len(cos_CR), M), cos_CR, sin_CR


_PLAIN: dict[str, Attr] = {"factor": 1.0, "low": 1.0, "high": 4.0, "original": 8192.0}

ROPE_TABLE = OPS.register(
    Op(
        name="rope_table",
        inputs=(),
        outputs=("cos_CR", "sin_CR"),
        attrs={
            "theta": float,
            "context": int,
            "head_dim": int,
            "factor": float,
            "low": float,
            "high": float,
            "original": float,
        },
        infer=_infer_table,
        reference=_reference_table,
        gradient=NotDifferentiable("it has no inputs"),
        source=_SOURCE,
        naive="rope_table_naive",
        kernels=(Kernel(symbol="rope_table_f32", tiling="tiles"),),
        cases=(
            {"theta": 1e4, "context": 70, "head_dim": 12, **_PLAIN},
            {"theta": 5e5, "context": 129, "head_dim": 64, **_PLAIN, "factor": 8.0},
        ),
        tolerance=Tolerance(rel=2e-7, why="float64 angles, rounded once"),
    )
)

ROPE = OPS.register(
    Op(
        name="rope",
        inputs=("x_MN", "positions_M", "cos_CR", "sin_CR"),
        outputs=("y_MN",),
        attrs={"interleaved": bool, "inverse": bool},
        infer=_infer,
        reference=_reference,
        gradient=_gradient,
        source=_SOURCE,
        naive="rope_naive",
        kernels=(Kernel(symbol="rope_f32", tiling="rows"),),
        cases=tuple(
            {"M": 5, "H": 3, "C": 11, "R": pairs, "interleaved": interleaved, "inverse": inverse}
            for pairs, interleaved, inverse in (
                (4, False, False),
                (19, False, True),
                (4, True, False),
                (19, True, True),
            )
        ),
        tolerance=Tolerance(rel=2e-7, why="two products and a sum"),
        row_inputs=frozenset({"x_MN", "positions_M"}),
        inplace={"y_MN": "x_MN"},
        example=_example,
    )
)
