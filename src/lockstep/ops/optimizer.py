"""The update of the parameters: norm of the gradient, clipping, SGD and AdamW.

Source: torch.nn.utils.clip_grad_norm_, torch.optim.SGD and torch.optim.AdamW; arXiv:1711.05101.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.ir import Kernel, NotDifferentiable, Op, Tolerance, Type
from lockstep.ir import f32 as f32_type
from lockstep.ir import f64 as f64_type
from lockstep.ir import i32 as i32_type
from lockstep.ir.op import Array, Attr
from lockstep.ops.example import normal, scalar, size
from lockstep.ops.expect import expect_type, whole
from lockstep.ops.registry import OPS, source

_SOURCE = source("optimizer.c")
_RUN = 4096  # SUM_RUN in optimizer.c
_LAST = NotDifferentiable("it is part of the update, behind the gradient")


def _infer_squares(x_P: Type) -> tuple[Type, ...]:
    return (f64_type(-(-whole("sum_squares x", x_P.flat().dims[0]) // _RUN)),)


def _reference_squares(x_P: Array) -> tuple[Array, ...]:
    starts_S = np.arange(0, x_P.size, _RUN)
    return (np.add.reduceat(x_P.reshape(-1) ** 2, starts_S),)


def _infer_clip(part_S: Type, max_norm: Type) -> tuple[Type, ...]:
    expect_type("clip_scale part", part_S, f64_type(*part_S.dims))
    expect_type("clip_scale max_norm", max_norm, f32_type())
    return f64_type(), f32_type()


def _reference_clip(part_S: Array, max_norm: Array) -> tuple[Array, ...]:
    norm = np.sqrt(part_S.sum())
    coef = 1.0 if max_norm <= 0 else np.minimum(max_norm / (norm + 1e-6), 1.0)
    return np.asarray(norm), np.asarray(coef)


def _example_clip(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    return rng.random(size(case, "S")), scalar(float(case["S"]) / 4 - 1)


def _infer_sgd(
    p_P: Type, g_P: Type, coef: Type, lr: Type, *, weight_decay: float
) -> tuple[Type, ...]:
    expect_type("sgd g", g_P, p_P)
    for name, type in (("coef", coef), ("lr", lr)):
        expect_type(f"sgd {name}", type, f32_type())
    return (p_P,)


def _reference_sgd(
    p_P: Array, g_P: Array, coef: Array, lr: Array, *, weight_decay: float
) -> tuple[Array, ...]:
    return (p_P - lr * (coef * g_P + weight_decay * p_P),)


def _example_sgd(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    P = size(case, "P")
    return normal(rng, P), normal(rng, P), scalar(0.5), scalar(0.01)


def _infer_adamw(
    p_P: Type,
    g_P: Type,
    m_P: Type,
    v_P: Type,
    coef: Type,
    lr: Type,
    step: Type,
    **attrs: float,
) -> tuple[Type, ...]:
    for name, type in (("g", g_P), ("m", m_P), ("v", v_P)):
        expect_type(f"adamw {name}", type, p_P)
    expect_type("adamw coef", coef, f32_type())
    expect_type("adamw lr", lr, f32_type())
    expect_type("adamw step", step, i32_type())
    return p_P, p_P, p_P


def _reference_adamw(
    p_P: Array,
    g_P: Array,
    m_P: Array,
    v_P: Array,
    coef: Array,
    lr: Array,
    step: Array,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[Array, ...]:
    clipped_P = coef * g_P
    m_P = beta1 * m_P + (1.0 - beta1) * clipped_P
    v_P = beta2 * v_P + (1.0 - beta2) * clipped_P**2
    unbiased_m_P = m_P / (1.0 - beta1 ** int(step))
    unbiased_v_P = v_P / (1.0 - beta2 ** int(step))
    p_P = p_P * (1.0 - lr * weight_decay) - lr * unbiased_m_P / (np.sqrt(unbiased_v_P) + eps)
    return p_P, m_P, v_P


def _example_adamw(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    P = size(case, "P")
    p_P, g_P, m_P = normal(rng, P), normal(rng, P), normal(rng, P) * np.float32(0.1)
    v_P = m_P**2 + rng.random(P, dtype=np.float32) * np.float32(0.01)
    return p_P, g_P, m_P, v_P, scalar(0.5), scalar(0.01), scalar(3)


SUM_SQUARES = OPS.register(
    Op(
        name="sum_squares",
        inputs=("x_P",),
        outputs=("part_S",),
        attrs={},
        infer=_infer_squares,
        reference=_reference_squares,
        gradient=_LAST,
        source=_SOURCE,
        naive="sum_squares_naive",
        kernels=(Kernel(symbol="sum_squares_f64", tiling="tiles"),),
        cases=({"P": 7}, {"P": 4096}, {"P": 70001}),
        tolerance=Tolerance(rel=1e-12, why="summed in float64"),
    )
)

CLIP_SCALE = OPS.register(
    Op(
        name="clip_scale",
        inputs=("part_S", "max_norm"),
        outputs=("norm", "coef"),
        attrs={},
        infer=_infer_clip,
        reference=_reference_clip,
        gradient=_LAST,
        source=_SOURCE,
        naive="clip_scale_naive",
        kernels=(Kernel(symbol="clip_scale_f64", tiling="tiles"),),
        cases=({"S": 7}, {"S": 3}, {"S": 64}),
        tolerance=Tolerance(rel=1e-7, why="float64, the coefficient rounded once"),
        example=_example_clip,
    )
)

SGD = OPS.register(
    Op(
        name="sgd",
        inputs=("p_P", "g_P", "coef", "lr"),
        outputs=("p_P",),
        attrs={"weight_decay": float},
        infer=_infer_sgd,
        reference=_reference_sgd,
        gradient=_LAST,
        source=_SOURCE,
        naive="sgd_naive",
        kernels=(Kernel(symbol="sgd_f32", tiling="tiles"),),
        cases=({"P": 37, "weight_decay": 0.1}, {"P": 20001, "weight_decay": 0.0}),
        tolerance=Tolerance(rel=2e-7, why="three roundings"),
        example=_example_sgd,
    )
)

_BETAS: dict[str, Attr] = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}

ADAMW = OPS.register(
    Op(
        name="adamw",
        inputs=("p_P", "g_P", "m_P", "v_P", "coef", "lr", "step"),
        outputs=("p_P", "m_P", "v_P"),
        attrs={"beta1": float, "beta2": float, "eps": float, "weight_decay": float},
        infer=_infer_adamw,
        reference=_reference_adamw,
        gradient=_LAST,
        source=_SOURCE,
        naive="adamw_naive",
        kernels=(Kernel(symbol="adamw_f32", tiling="tiles"),),
        cases=(
            {"P": 37, **_BETAS, "weight_decay": 0.1},
            {"P": 20001, **_BETAS, "weight_decay": 0.0},
        ),
        tolerance=Tolerance(rel=5e-7, why="the roundings of beta and 1-beta, and about six others"),
        example=_example_adamw,
    )
)
