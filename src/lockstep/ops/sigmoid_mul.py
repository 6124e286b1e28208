"""h = sigmoid(gate) * up, and its gradient.  Source: transformers modeling_qwen3_5."""

from __future__ import annotations

import numpy as np

from lockstep.ir import GradientBuilder, Kernel, Node, NotDifferentiable, Op, Tolerance, Type, Value
from lockstep.ir.op import Array
from lockstep.ops.expect import expect_rank, expect_type
from lockstep.ops.registry import OPS, source

_SOURCE = source("sigmoid_mul.c")


def _infer(gate_MF: Type, up_MF: Type) -> tuple[Type, ...]:
    expect_rank("sigmoid_mul gate", gate_MF, 2)
    expect_type("sigmoid_mul up", up_MF, gate_MF)
    return (gate_MF,)


def _reference(gate_MF: Array, up_MF: Array) -> tuple[Array, ...]:
    return (up_MF / (1.0 + np.exp(-gate_MF)),)


def _gradient(g: GradientBuilder, node: Node, dh: Value | None) -> tuple[Value | None, ...]:
    gate, up = (g.value(i) for i in node.inputs if i)
    dgate = g.add(SIGMOID_MUL_GRAD, f"{node.id}@grad", dh, gate, up)
    return dgate, g.value(f"{node.id}@grad:dup")


def _infer_grad(dh_MF: Type, gate_MF: Type, up_MF: Type) -> tuple[Type, ...]:
    expect_type("sigmoid_mul_grad dh", dh_MF, gate_MF)
    return _infer(gate_MF, up_MF) * 2


def _reference_grad(dh_MF: Array, gate_MF: Array, up_MF: Array) -> tuple[Array, ...]:
    s_MF = 1.0 / (1.0 + np.exp(-gate_MF))
    return dh_MF * up_MF * s_MF * (1.0 - s_MF), dh_MF * s_MF


SIGMOID_MUL = OPS.register(
    Op(
        name="sigmoid_mul",
        inputs=("gate_MF", "up_MF"),
        outputs=("h_MF",),
        attrs={},
        infer=_infer,
        reference=_reference,
        gradient=_gradient,
        source=_SOURCE,
        naive="sigmoid_mul_naive",
        kernels=(Kernel(symbol="sigmoid_mul_f32", tiling="rows"),),
        cases=({"M": 3, "F": 8}, {"M": 5, "F": 37}),
        tolerance=Tolerance(
            rel=1e-6, why="a vector exponential within 2 ulp and fewer than ten roundings"
        ),
        row_inputs=frozenset({"gate_MF", "up_MF"}),
        inplace={"h_MF": "gate_MF"},
    )
)

SIGMOID_MUL_GRAD = OPS.register(
    Op(
        name="sigmoid_mul_grad",
        inputs=("dh_MF", "gate_MF", "up_MF"),
        outputs=("dgate_MF", "dup_MF"),
        attrs={},
        infer=_infer_grad,
        reference=_reference_grad,
        gradient=NotDifferentiable("it is itself a gradient; training needs no second order"),
        source=_SOURCE,
        naive="sigmoid_mul_grad_naive",
        kernels=(Kernel(symbol="sigmoid_mul_grad_f32", tiling="rows"),),
        cases=({"M": 3, "F": 8}, {"M": 5, "F": 37}),
        tolerance=Tolerance(
            rel=1e-6, why="a vector exponential within 2 ulp and fewer than ten roundings"
        ),
        row_inputs=frozenset({"dh_MF", "gate_MF", "up_MF"}),
        inplace={"dgate_MF": "dh_MF", "dup_MF": "gate_MF"},
    )
)
