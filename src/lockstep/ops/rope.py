"""Turns each pair of a head by the angle of its position, and the table of the angles.

A row holds heads, each of R pairs, (j, j+R) as transformers has them or interleaved, (2j, 2j+1),
and behind them `rest` elements that stay as they are. Pair j has the frequency
theta^(-j/R). Where a model was stretched to a longer context, a share of each frequency is kept and
the rest divided by `factor`: the share rises from 0 to 1 as u goes from `begin` to `end`, u being j
(`by_pair`: yarn) or how often the pair turns within `original` positions (Llama 3; 0 positions:
nothing is kept, linear). `magnitude` scales the turned pairs (yarn's attention factor).
Source: arXiv:2104.09864, arXiv:2309.00071, transformers modeling_rope_utils.
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
    rotary: int,
    factor: float,
    by_pair: bool,
    begin: float,
    end: float,
    original: float,
    magnitude: float,
) -> tuple[Type, ...]:
    if rotary % 2 or theta <= 0 or factor <= 0 or begin == end:
        raise UsageError(
            "rope_table: expected an even rotary width, theta > 0, factor > 0 and begin != end, "
            f"got {rotary}, {theta}, {factor}, {begin} and {end}",
            hint="check the model's configuration",
        )
    return (f32_type(context, rotary // 2),) * 2


def _reference_table(
    *,
    theta: float,
    context: int,
    rotary: int,
    factor: float,
    by_pair: bool,
    begin: float,
    end: float,
    original: float,
    magnitude: float,
) -> tuple[Array, ...]:
    pair_R = np.arange(rotary // 2)
    frequency_R = theta ** -(pair_R / (rotary // 2))
    if factor != 1.0:
        along_R = pair_R if by_pair else original * frequency_R / (2 * np.pi)
        kept_R = np.clip((along_R - begin) / (end - begin), 0.0, 1.0)
        frequency_R = frequency_R * (kept_R + (1.0 - kept_R) / factor)
    angle_CR = np.arange(context)[:, None] * frequency_R
    return np.cos(angle_CR) * magnitude, np.sin(angle_CR) * magnitude


def _infer(
    x_MN: Type,
    positions_M: Type,
    cos_CR: Type,
    sin_CR: Type,
    *,
    rest: int,
    interleaved: bool,
    inverse: bool,
) -> tuple[Type, ...]:
    expect_rank("rope x", x_MN, 2)
    expect_rank("rope cos", cos_CR, 2)
    expect_type("rope sin", sin_CR, cos_CR)
    expect_type("rope positions", positions_M, i32_type(x_MN.dims[0]))
    parts("rope x", x_MN.dims[1], 2 * whole("rope cos", cos_CR.dims[1]) + rest)
    return (x_MN,)


def _reference(
    x_MN: Array,
    positions_M: Array,
    cos_CR: Array,
    sin_CR: Array,
    *,
    rest: int,
    interleaved: bool,
    inverse: bool,
) -> tuple[Array, ...]:
    M, R = len(x_MN), cos_CR.shape[1]
    cos_M1R = cos_CR[positions_M][:, None]
    sin_M1R = sin_CR[positions_M][:, None] * (-1.0 if inverse else 1.0)
    pair_axis = -1 if interleaved else -2
    y_MHE = x_MN.reshape(M, -1, 2 * R + rest).copy()
    x = y_MHE[..., : 2 * R].reshape((M, -1, R, 2) if interleaved else (M, -1, 2, R))
    a_MHR, b_MHR = np.take(x, 0, pair_axis), np.take(x, 1, pair_axis)
    turned = (a_MHR * cos_M1R - b_MHR * sin_M1R, b_MHR * cos_M1R + a_MHR * sin_M1R)
    y_MHE[..., : 2 * R] = np.stack(turned, pair_axis).reshape(M, -1, 2 * R)
    return (y_MHE.reshape(x_MN.shape),)


def _gradient(g: GradientBuilder, node: Node, dy: Value | None) -> tuple[Value | None, ...]:
    x, positions, cos, sin = (g.value(i) for i in node.inputs if i)
    if not g.wants(x):
        return None, None, None, None
    back = {**node.attrs, "inverse": not node.attrs["inverse"]}
    return g.add(ROPE, f"{node.id}@dx", dy, positions, cos, sin, **back), None, None, None


def _example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    angle_CR = rng.uniform(-np.pi, np.pi, (size(case, "C"), size(case, "R")))
    cos_CR, sin_CR = np.cos(angle_CR).astype(np.float32), np.sin(angle_CR).astype(np.float32)
    M, head_dim = size(case, "M"), 2 * cos_CR.shape[1] + int(case["rest"])
    return normal(rng, M, size(case, "H") * head_dim), indices(rng, len(cos_CR), M), cos_CR, sin_CR


_PLAIN: dict[str, Attr] = {
    "factor": 1.0,
    "by_pair": False,
    "begin": 0.0,
    "end": 1.0,
    "original": 0.0,
    "magnitude": 1.0,
}
_LLAMA3: dict[str, Attr] = {"factor": 8.0, "begin": 1.0, "end": 4.0, "original": 8192.0}
_YARN: dict[str, Attr] = {
    "factor": 4.0,
    "by_pair": True,
    "begin": 19.0,
    "end": 3.5,
    "magnitude": 1.14,
}

ROPE_TABLE = OPS.register(
    Op(
        name="rope_table",
        inputs=(),
        outputs=("cos_CR", "sin_CR"),
        attrs={
            "theta": float,
            "context": int,
            "rotary": int,
            "factor": float,
            "by_pair": bool,
            "begin": float,
            "end": float,
            "original": float,
            "magnitude": float,
        },
        infer=_infer_table,
        reference=_reference_table,
        gradient=NotDifferentiable("it has no inputs"),
        source=_SOURCE,
        naive="rope_table_naive",
        kernels=(Kernel(symbol="rope_table_f32", tiling="tiles"),),
        cases=(
            {**_PLAIN, "theta": 1e4, "context": 70, "rotary": 12},
            {**_PLAIN, "theta": 1e6, "context": 65, "rotary": 24, "factor": 8.0},
            {**_PLAIN, **_LLAMA3, "theta": 5e5, "context": 129, "rotary": 64},
            {**_PLAIN, **_YARN, "theta": 1e6, "context": 131, "rotary": 48},
        ),
        tolerance=Tolerance(rel=2e-7, why="float64 angles, rounded once"),
    )
)

ROPE = OPS.register(
    Op(
        name="rope",
        inputs=("x_MN", "positions_M", "cos_CR", "sin_CR"),
        outputs=("y_MN",),
        attrs={"rest": int, "interleaved": bool, "inverse": bool},
        infer=_infer,
        reference=_reference,
        gradient=_gradient,
        source=_SOURCE,
        naive="rope_naive",
        kernels=(Kernel(symbol="rope_f32", tiling="rows"),),
        cases=tuple(
            {
                "M": 5,
                "H": 3,
                "C": 11,
                "R": pairs,
                "rest": rest,
                "interleaved": interleaved,
                "inverse": inverse,
            }
            for pairs, rest, interleaved, inverse in (
                (4, 0, False, False),
                (19, 0, False, True),
                (8, 48, False, False),
                (4, 0, True, False),
                (19, 3, True, True),
            )
        ),
        tolerance=Tolerance(rel=2e-7, why="two products and a sum"),
        row_inputs=frozenset({"x_MN", "positions_M"}),
        inplace={"y_MN": "x_MN"},
        example=_example,
    )
)
