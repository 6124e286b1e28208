"""y = x * by, a number of the model, rounded to float32."""

from __future__ import annotations

import numpy as np

from lockstep.ir import GradientBuilder, Kernel, Node, Op, Tolerance, Type, Value
from lockstep.ir.op import Array
from lockstep.ops.expect import expect_rank
from lockstep.ops.registry import OPS, source


def _infer(x_MD: Type, *, by: float) -> tuple[Type, ...]:
    expect_rank("scale x", x_MD, 2)
    return (x_MD,)


def _reference(x_MD: Array, *, by: float) -> tuple[Array, ...]:
    return (x_MD * float(np.float32(by)),)


def _gradient(g: GradientBuilder, node: Node, dy: Value | None) -> tuple[Value | None, ...]:
    (x,) = (g.value(i) for i in node.inputs if i)
    return (g.add(SCALE, f"{node.id}@dx", dy, **node.attrs) if g.wants(x) else None,)


SCALE = OPS.register(
    Op(
        name="scale",
        inputs=("x_MD",),
        outputs=("y_MD",),
        attrs={"by": float},
        infer=_infer,
        reference=_reference,
        gradient=_gradient,
        source=source("scale.c"),
        naive="scale_naive",
        kernels=(Kernel(symbol="scale_f32", tiling="rows"),),
        cases=({"M": 3, "D": 8, "by": 25.3}, {"M": 5, "D": 33, "by": -0.1}),
        tolerance=Tolerance(rel=1e-7, why="one rounding"),
        row_inputs=frozenset({"x_MD"}),
        inplace={"y_MD": "x_MD"},
    )
)
