"""y = x / sqrt(mean(x^2) + eps) * gain over every chunk of D in a row, and its gradients.

A row holds H chunks: H = 1 is the plain norm, H heads the norm of queries and keys.
Source: arXiv:1910.07467 (eps inside the root: Llama).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.ir import GradientBuilder, Kernel, Node, NotDifferentiable, Op, Tolerance, Type, Value
from lockstep.ir import f32 as f32_type
from lockstep.ir.op import Array, Attr
from lockstep.ops.example import normal, scalar, size
from lockstep.ops.expect import expect_rank, expect_type, parts, whole
from lockstep.ops.registry import OPS, source

_SOURCE = source("rmsnorm.c")


def _infer(x_MN: Type, gain_D: Type, *, eps: float) -> tuple[Type, ...]:
    expect_rank("rmsnorm x", x_MN, 2)
    expect_rank("rmsnorm gain", gain_D, 1)
    M, N = x_MN.dims
    return x_MN, f32_type(M, parts("rmsnorm x", N, whole("rmsnorm gain", gain_D.dims[0])))


def _reference(x_MN: Array, gain_D: Array, *, eps: float) -> tuple[Array, ...]:
    x_MHD = x_MN.reshape(len(x_MN), -1, len(gain_D))
    rstd_MH = 1.0 / np.sqrt((x_MHD**2).mean(-1) + eps)
    return (x_MHD * rstd_MH[..., None] * gain_D).reshape(x_MN.shape), rstd_MH


def _gradient(
    g: GradientBuilder, node: Node, dy: Value | None, _: Value | None
) -> tuple[Value | None, ...]:
    x, gain = (g.value(i) for i in node.inputs if i)
    rstd = node.outputs[1]
    dx = dgain = None
    if g.wants(x):
        dx = g.add(RMSNORM_DX, f"{node.id}@dx", dy, x, gain, rstd, None)
    if g.wants(gain):
        dgain = g.add(RMSNORM_DGAIN, f"{node.id}@dgain", dy, x, rstd, *g.accumulator(gain))
    return dx, dgain


def _example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    return normal(rng, size(case, "M"), size(case, "H", "D")), normal(rng, size(case, "D"))


def _infer_dx(
    dy_MN: Type, x_MN: Type, gain_D: Type, rstd_MH: Type, add_MN: Type | None
) -> tuple[Type, ...]:
    expect_type("rmsnorm_dx dy", dy_MN, x_MN)
    expect_type("rmsnorm_dx rstd", rstd_MH, _infer(x_MN, gain_D, eps=0.0)[1])
    if add_MN is not None:
        expect_type("rmsnorm_dx add", add_MN, x_MN)
    return (x_MN,)


def _reference_dx(
    dy_MN: Array, x_MN: Array, gain_D: Array, rstd_MH: Array, add_MN: Array | None
) -> tuple[Array, ...]:
    x_MHD = x_MN.reshape(len(x_MN), -1, len(gain_D))
    rstd_MH1 = rstd_MH[..., None]
    direct_MHD = dy_MN.reshape(x_MHD.shape) * gain_D
    mean_MH1 = (direct_MHD * x_MHD).mean(-1, keepdims=True)
    dx_MN = (rstd_MH1 * (direct_MHD - x_MHD * rstd_MH1**2 * mean_MH1)).reshape(x_MN.shape)
    return (dx_MN if add_MN is None else dx_MN + add_MN,)


def _example_dx(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    x_MN, gain_D = _example(rng, case)
    assert x_MN is not None
    assert gain_D is not None
    # eps = 1: dx of a chunk of one element is in eps/x^2, so a small eps would leave rounding only.
    rstd_MH = _reference(x_MN.astype(np.float64), gain_D, eps=1.0)[1].astype(np.float32)
    return normal(rng, *x_MN.shape), x_MN, gain_D, rstd_MH, normal(rng, *x_MN.shape)


def _infer_dgain(
    dy_MN: Type, x_MN: Type, rstd_MH: Type, acc_D: Type | None, accumulate: Type | None
) -> tuple[Type, ...]:
    expect_type("rmsnorm_dgain dy", dy_MN, x_MN)
    D = parts("rmsnorm_dgain x", x_MN.dims[1], whole("rmsnorm_dgain rstd", rstd_MH.dims[1]))
    if acc_D is not None:
        expect_type("rmsnorm_dgain acc", acc_D, f32_type(D))
    return (f32_type(D),)


def _reference_dgain(
    dy_MN: Array, x_MN: Array, rstd_MH: Array, acc_D: Array | None, accumulate: Array | None
) -> tuple[Array, ...]:
    M, H = rstd_MH.shape
    terms_MHD = (dy_MN * x_MN).reshape(M, H, -1) * rstd_MH[..., None]
    dgain_D = terms_MHD.sum((0, 1))
    if acc_D is not None and (accumulate is None or accumulate):
        dgain_D = acc_D + dgain_D
    return (dgain_D,)


def _example_dgain(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    dy_MN, x_MN, _, rstd_MH, _ = _example_dx(rng, case)
    return dy_MN, x_MN, rstd_MH, normal(rng, size(case, "D")), scalar(1)


_CASES: tuple[dict[str, Attr], ...] = (
    {"M": 3, "D": 8, "H": 1},
    {"M": 2, "D": 129, "H": 1},
    {"M": 5, "D": 12, "H": 4},
    {"M": 7, "D": 16, "H": 2},
)
_WHY = "D squares summed in float32 lanes, D <= 8192"

RMSNORM = OPS.register(
    Op(
        name="rmsnorm",
        inputs=("x_MN", "gain_D"),
        outputs=("y_MN", "rstd_MH"),
        attrs={"eps": float},
        infer=_infer,
        reference=_reference,
        gradient=_gradient,
        source=_SOURCE,
        naive="rmsnorm_naive",
        kernels=(Kernel(symbol="rmsnorm_f32", tiling="rows"),),
        cases=tuple(
            {**case, "eps": eps} for case, eps in zip(_CASES, (1e-5, 1e-6, 0.1, 1e-6), strict=True)
        ),
        tolerance=Tolerance(rel=1e-6, why=_WHY),
        row_inputs=frozenset({"x_MN"}),
        inplace={"y_MN": "x_MN"},
        example=_example,
    )
)

RMSNORM_DX = OPS.register(
    Op(
        name="rmsnorm_dx",
        inputs=("dy_MN", "x_MN", "gain_D", "rstd_MH", "add_MN?"),
        outputs=("dx_MN",),
        attrs={},
        infer=_infer_dx,
        reference=_reference_dx,
        gradient=NotDifferentiable("it is itself a gradient; training needs no second order"),
        source=_SOURCE,
        naive="rmsnorm_dx_naive",
        kernels=(Kernel(symbol="rmsnorm_dx_f32", tiling="rows"),),
        cases=_CASES,
        tolerance=Tolerance(rel=2e-6, why=_WHY),
        row_inputs=frozenset({"dy_MN", "x_MN", "rstd_MH", "add_MN?"}),
        inplace={"dx_MN": "dy_MN"},
        example=_example_dx,
    )
)

RMSNORM_DGAIN = OPS.register(
    Op(
        name="rmsnorm_dgain",
        inputs=("dy_MN", "x_MN", "rstd_MH", "acc_D?", "accumulate?"),
        outputs=("dgain_D",),
        attrs={},
        infer=_infer_dgain,
        reference=_reference_dgain,
        gradient=NotDifferentiable("it is itself a gradient; training needs no second order"),
        source=_SOURCE,
        naive="rmsnorm_dgain_naive",
        kernels=(Kernel(symbol="rmsnorm_dgain_f32", tiling="tiles"),),
        cases=_CASES,
        tolerance=Tolerance(
            rel=2e-6, why="M*H products summed in float32 in runs of 64, runs in float64"
        ),
        example=_example_dgain,
    )
)
