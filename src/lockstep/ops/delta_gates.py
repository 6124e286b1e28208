"""The two gates of a delta rule, how much of the state stays and how much is written, per head.

decay = exp(-e^rate * softplus(a + dt)) and beta = sigmoid(b); `rate` is the logarithm of the rate
of decay, which transformers calls A_log.
Source: transformers modeling_qwen3_5, Qwen3_5GatedDeltaNet; arXiv:2412.06464.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.ir import GradientBuilder, Kernel, Node, NotDifferentiable, Op, Tolerance, Type, Value
from lockstep.ir import f32 as f32_type
from lockstep.ir.op import Array, Attr
from lockstep.ops.example import normal, size
from lockstep.ops.expect import expect_rank, expect_type
from lockstep.ops.registry import OPS, source

_SOURCE = source("delta_gates.c")


def _infer(a_MH: Type, b_MH: Type, dt_H: Type, rate_H: Type) -> tuple[Type, ...]:
    expect_rank("delta_gates a", a_MH, 2)
    expect_type("delta_gates b", b_MH, a_MH)
    expect_type("delta_gates dt", dt_H, f32_type(a_MH.dims[1]))
    expect_type("delta_gates rate", rate_H, dt_H)
    return a_MH, a_MH


def _reference(a_MH: Array, b_MH: Array, dt_H: Array, rate_H: Array) -> tuple[Array, ...]:
    log_decay_MH = -np.exp(rate_H) * np.logaddexp(0.0, a_MH + dt_H)
    return np.exp(log_decay_MH), 1.0 / (1.0 + np.exp(-b_MH))


def _gradient(
    g: GradientBuilder, node: Node, ddecay: Value | None, dbeta: Value | None
) -> tuple[Value | None, ...]:
    inputs = [g.value(i) for i in node.inputs if i]
    id = f"{node.id}@grad"
    da = g.add(DELTA_GATES_GRAD, id, ddecay, dbeta, *inputs)
    sums = {"dt": da, "rate": g.value(f"{id}:drate")}
    ddt, drate = (
        g.add(OPS["linear_db"], f"{node.id}@d{name}", rows, *g.accumulator(parameter))
        if g.wants(parameter)
        else None
        for (name, rows), parameter in zip(sums.items(), inputs[2:], strict=True)
    )
    return da, g.value(f"{id}:db"), ddt, drate


def _example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    M, H = size(case, "M"), size(case, "H")
    rate_H = rng.uniform(np.log(0.1), np.log(8.0), H).astype(np.float32)
    return normal(rng, M, H), normal(rng, M, H), normal(rng, H) - 3, rate_H


def _infer_grad(
    ddecay_MH: Type, dbeta_MH: Type | None, a_MH: Type, b_MH: Type, dt_H: Type, rate_H: Type
) -> tuple[Type, ...]:
    expect_type("delta_gates_grad ddecay", ddecay_MH, a_MH)
    if dbeta_MH is not None:
        expect_type("delta_gates_grad dbeta", dbeta_MH, a_MH)
    return (*_infer(a_MH, b_MH, dt_H, rate_H), a_MH)


def _reference_grad(
    ddecay_MH: Array, dbeta_MH: Array | None, a_MH: Array, b_MH: Array, dt_H: Array, rate_H: Array
) -> tuple[Array, ...]:
    decay_MH, beta_MH = _reference(a_MH, b_MH, dt_H, rate_H)
    log_decay_MH = -np.exp(rate_H) * np.logaddexp(0.0, a_MH + dt_H)
    dlog_MH = ddecay_MH * decay_MH
    da_MH = -dlog_MH * np.exp(rate_H) / (1.0 + np.exp(-a_MH - dt_H))
    db_MH = np.zeros_like(b_MH) if dbeta_MH is None else dbeta_MH * beta_MH * (1.0 - beta_MH)
    return da_MH, db_MH, dlog_MH * log_decay_MH


def _example_grad(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    M, H = size(case, "M"), size(case, "H")
    return normal(rng, M, H), normal(rng, M, H), *_example(rng, case)


_CASES: tuple[dict[str, Attr], ...] = ({"M": 3, "H": 8}, {"M": 5, "H": 37})
_WHY = "exponentials and logarithms within 2 ulp, one of them of an exponent up to 20"

DELTA_GATES = OPS.register(
    Op(
        name="delta_gates",
        inputs=("a_MH", "b_MH", "dt_H", "rate_H"),
        outputs=("decay_MH", "beta_MH"),
        attrs={},
        infer=_infer,
        reference=_reference,
        gradient=_gradient,
        source=_SOURCE,
        naive="delta_gates_naive",
        kernels=(Kernel(symbol="delta_gates_f32", tiling="rows"),),
        cases=_CASES,
        tolerance=Tolerance(rel=2e-6, why=_WHY),
        row_inputs=frozenset({"a_MH", "b_MH"}),
        inplace={"decay_MH": "a_MH", "beta_MH": "b_MH"},
        example=_example,
    )
)

DELTA_GATES_GRAD = OPS.register(
    Op(
        name="delta_gates_grad",
        inputs=("ddecay_MH", "dbeta_MH?", "a_MH", "b_MH", "dt_H", "rate_H"),
        outputs=("da_MH", "db_MH", "drate_MH"),
        attrs={},
        infer=_infer_grad,
        reference=_reference_grad,
        gradient=NotDifferentiable("it is itself a gradient; training needs no second order"),
        source=_SOURCE,
        naive="delta_gates_grad_naive",
        kernels=(Kernel(symbol="delta_gates_grad_f32", tiling="rows"),),
        cases=_CASES,
        tolerance=Tolerance(rel=2e-6, why=_WHY),
        row_inputs=frozenset({"ddecay_MH", "dbeta_MH?", "a_MH", "b_MH"}),
        inplace={"da_MH": "a_MH", "db_MH": "b_MH", "drate_MH": "ddecay_MH"},
        example=_example_grad,
    )
)
