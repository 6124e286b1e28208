"""y = a + b, element by element."""

from __future__ import annotations

from lockstep.ir import GradientBuilder, Kernel, Node, Op, Tolerance, Type, Value
from lockstep.ir.op import Array
from lockstep.ops.expect import expect_rank, expect_type
from lockstep.ops.registry import OPS, source


def _infer(a_MD: Type, b_MD: Type) -> tuple[Type, ...]:
    expect_rank("add a", a_MD, 2)
    expect_type("add b", b_MD, a_MD)
    return (a_MD,)


def _reference(a_MD: Array, b_MD: Array) -> tuple[Array, ...]:
    return (a_MD + b_MD,)


def _gradient(g: GradientBuilder, node: Node, dy: Value | None) -> tuple[Value | None, ...]:
    return dy, dy


ADD = OPS.register(
    Op(
        name="add",
        inputs=("a_MD", "b_MD"),
        outputs=("y_MD",),
        attrs={},
        infer=_infer,
        reference=_reference,
        gradient=_gradient,
        source=source("add.c"),
        naive="add_naive",
        kernels=(Kernel(symbol="add_f32", tiling="rows"),),
        cases=({"M": 3, "D": 8}, {"M": 5, "D": 33}),
        tolerance=Tolerance(rel=1e-7, why="one rounding"),
        row_inputs=frozenset({"a_MD", "b_MD"}),
        inplace={"y_MD": "a_MD"},
    )
)
