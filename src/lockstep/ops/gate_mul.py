"""h = act(gate) * up for silu, gelu (its tanh form) and sigmoid, and the gradients.

Source: arXiv:2002.05202 (silu, gelu), arXiv:1606.08415 (gelu), transformers modeling_qwen3_5
(sigmoid).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from lockstep.ir import GradientBuilder, Kernel, Node, NotDifferentiable, Op, Tolerance, Type, Value
from lockstep.ir.op import Array
from lockstep.ops.expect import expect_rank, expect_type
from lockstep.ops.registry import OPS, source

_SOURCE = source("gate_mul.c")
_CASES = ({"M": 3, "F": 8}, {"M": 5, "F": 37})
_ROOT, _CUBE = math.sqrt(2.0 / math.pi), 0.044715

Curve = Callable[[Array], Array]


def _infer(name: str, gate_MF: Type, up_MF: Type) -> tuple[Type, ...]:
    expect_rank(f"{name} gate", gate_MF, 2)
    expect_type(f"{name} up", up_MF, gate_MF)
    return (gate_MF,)


def _register(name: str, act: Curve, slope: Curve, tolerance: Tolerance) -> None:
    """Adds the op of an activation, whose derivative is `slope`, and that of its gradient."""
    grad = _register_grad(name, act, slope, tolerance)

    def infer(gate_MF: Type, up_MF: Type) -> tuple[Type, ...]:
        return _infer(name, gate_MF, up_MF)

    def reference(gate_MF: Array, up_MF: Array) -> tuple[Array, ...]:
        return (act(gate_MF) * up_MF,)

    def gradient(g: GradientBuilder, node: Node, dh: Value | None) -> tuple[Value | None, ...]:
        gate, up = (g.value(i) for i in node.inputs if i)
        dgate = g.add(grad, f"{node.id}@grad", dh, gate, up)
        return dgate, g.value(f"{node.id}@grad:dup")

    OPS.register(
        Op(
            name=name,
            inputs=("gate_MF", "up_MF"),
            outputs=("h_MF",),
            attrs={},
            infer=infer,
            reference=reference,
            gradient=gradient,
            source=_SOURCE,
            naive=f"{name}_naive",
            kernels=(Kernel(symbol=f"{name}_f32", tiling="rows"),),
            cases=_CASES,
            tolerance=tolerance,
            row_inputs=frozenset({"gate_MF", "up_MF"}),
            inplace={"h_MF": "gate_MF"},
        )
    )


def _register_grad(name: str, act: Curve, slope: Curve, tolerance: Tolerance) -> Op:
    def infer(dh_MF: Type, gate_MF: Type, up_MF: Type) -> tuple[Type, ...]:
        expect_type(f"{name}_grad dh", dh_MF, gate_MF)
        return _infer(name, gate_MF, up_MF) * 2

    def reference(dh_MF: Array, gate_MF: Array, up_MF: Array) -> tuple[Array, ...]:
        return dh_MF * up_MF * slope(gate_MF), dh_MF * act(gate_MF)

    return OPS.register(
        Op(
            name=f"{name}_grad",
            inputs=("dh_MF", "gate_MF", "up_MF"),
            outputs=("dgate_MF", "dup_MF"),
            attrs={},
            infer=infer,
            reference=reference,
            gradient=NotDifferentiable("it is itself a gradient; training needs no second order"),
            source=_SOURCE,
            naive=f"{name}_grad_naive",
            kernels=(Kernel(symbol=f"{name}_grad_f32", tiling="rows"),),
            cases=_CASES,
            tolerance=tolerance,
            row_inputs=frozenset({"dh_MF", "gate_MF", "up_MF"}),
            inplace={"dgate_MF": "dh_MF", "dup_MF": "gate_MF"},
        )
    )


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def _sigmoid_slope(x: Array) -> Array:
    return _sigmoid(x) * (1.0 - _sigmoid(x))


def _silu(x: Array) -> Array:
    return x * _sigmoid(x)


def _silu_slope(x: Array) -> Array:
    return _sigmoid(x) * (1.0 + x * (1.0 - _sigmoid(x)))


def _gelu_tanh(x: Array) -> Array:
    t: Array = np.tanh(_ROOT * (x + _CUBE * x**3))
    return t


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + _gelu_tanh(x))


def _gelu_slope(x: Array) -> Array:
    t = _gelu_tanh(x)
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t**2) * _ROOT * (1.0 + 3.0 * _CUBE * x**2)


_WHY = "a vector exponential within 2 ulp and fewer than ten roundings"
_register("silu_mul", _silu, _silu_slope, Tolerance(rel=1e-6, why=_WHY))
_register("sigmoid_mul", _sigmoid, _sigmoid_slope, Tolerance(rel=1e-6, why=_WHY))
_register("gelu_mul", _gelu, _gelu_slope, Tolerance(rel=2e-6, why=f"{_WHY}, of an inner cubic"))
