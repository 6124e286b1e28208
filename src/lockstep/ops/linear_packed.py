"""`linear` and `linear_dx` on weights packed once, after each change of the weights.

Panels hold 32 columns of the product, term by term: what a register tile reads in a row.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.ir import Kernel, NotDifferentiable, Op, Tolerance, Type
from lockstep.ir import f32 as f32_type
from lockstep.ir.op import Array, Attr
from lockstep.ops.example import normal, size
from lockstep.ops.expect import expect_rank, expect_type, whole
from lockstep.ops.linear import CASES
from lockstep.ops.registry import OPS, source

PANEL = 32


def _n_panels(columns: int) -> int:
    return -(-columns // PANEL)


def _infer_pack(w_NK: Type) -> tuple[Type, ...]:
    expect_rank("pack_linear w", w_NK, 2)
    N, K = (whole("pack_linear w", dim) for dim in w_NK.dims)
    return (f32_type(_n_panels(N), K, PANEL),)


def _reference_pack(w_NK: Array) -> tuple[Array, ...]:
    return _reference_pack_dx(w_NK.T)


def _infer_pack_dx(w_NK: Type) -> tuple[Type, ...]:
    expect_rank("pack_linear_dx w", w_NK, 2)
    N, K = (whole("pack_linear_dx w", dim) for dim in w_NK.dims)
    return (f32_type(_n_panels(K), N, PANEL),)


def _reference_pack_dx(w_NK: Array) -> tuple[Array, ...]:
    N, K = w_NK.shape
    wide = np.zeros((N, _n_panels(K) * PANEL), w_NK.dtype)
    wide[:, :K] = w_NK
    return (wide.reshape(N, -1, PANEL).transpose(1, 0, 2),)


def _example_pack(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    return (normal(rng, size(case, "N"), size(case, "K")),)


def _infer(
    x_MK: Type, panels_JKQ: Type, b_N: Type | None = None, add_MN: Type | None = None, *, n: int
) -> tuple[Type, ...]:
    expect_rank("linear_packed x", x_MK, 2)
    M, K = x_MK.dims
    y_MN = f32_type(M, n)
    expect_type("linear_packed panels", panels_JKQ, f32_type(_n_panels(n), K, PANEL))
    if b_N is not None:
        expect_type("linear_packed b", b_N, f32_type(n))
    if add_MN is not None:
        expect_type("linear_packed add", add_MN, y_MN)
    return (y_MN,)


def _reference(
    x_MK: Array, panels_JKQ: Array, b_N: Array | None = None, add_MN: Array | None = None, *, n: int
) -> tuple[Array, ...]:
    y_MN = np.hstack([x_MK @ panel_KQ for panel_KQ in panels_JKQ])[:, :n]
    if b_N is not None:
        y_MN = y_MN + b_N
    return (y_MN if add_MN is None else y_MN + add_MN,)


def _example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    M, K, n = size(case, "M"), size(case, "K"), size(case, "n")
    (panels_JKQ,) = _reference_pack(normal(rng, n, K))
    return normal(rng, M, K), panels_JKQ, normal(rng, n), normal(rng, M, n)


def _infer_dx(
    dy_MN: Type, panels_JNQ: Type, add_MK: Type | None = None, *, k: int
) -> tuple[Type, ...]:
    expect_rank("linear_dx_packed dy", dy_MN, 2)
    M, N = dy_MN.dims
    dx_MK = f32_type(M, k)
    expect_type("linear_dx_packed panels", panels_JNQ, f32_type(_n_panels(k), N, PANEL))
    if add_MK is not None:
        expect_type("linear_dx_packed add", add_MK, dx_MK)
    return (dx_MK,)


def _reference_dx(
    dy_MN: Array, panels_JNQ: Array, add_MK: Array | None = None, *, k: int
) -> tuple[Array, ...]:
    return _reference(dy_MN, panels_JNQ, None, add_MK, n=k)


def _example_dx(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    M, N, k = size(case, "M"), size(case, "N"), size(case, "k")
    (panels_JNQ,) = _reference_pack_dx(normal(rng, N, k))
    return normal(rng, M, N), panels_JNQ, normal(rng, M, k)


_WHY = "products summed in float32 in runs of 256, at most 8192 of them"
_SOURCE = source("linear.c")
_LOWERED = NotDifferentiable("it exists only after the gradient has been taken")
_PACK_CASES = tuple({"N": case["N"], "K": case["K"]} for case in CASES)

PACK_LINEAR = OPS.register(
    Op(
        name="pack_linear",
        inputs=("w_NK",),
        outputs=("panels_JKQ",),
        attrs={},
        infer=_infer_pack,
        reference=_reference_pack,
        gradient=_LOWERED,
        source=_SOURCE,
        naive="pack_linear_naive",
        kernels=(Kernel(symbol="pack_linear_f32", tiling="tiles"),),
        cases=_PACK_CASES,
        tolerance=Tolerance(rel=0.0, why="a copy"),
        example=_example_pack,
    )
)

PACK_LINEAR_DX = OPS.register(
    Op(
        name="pack_linear_dx",
        inputs=("w_NK",),
        outputs=("panels_JNQ",),
        attrs={},
        infer=_infer_pack_dx,
        reference=_reference_pack_dx,
        gradient=_LOWERED,
        source=_SOURCE,
        naive="pack_linear_dx_naive",
        kernels=(Kernel(symbol="pack_linear_dx_f32", tiling="tiles"),),
        cases=_PACK_CASES,
        tolerance=Tolerance(rel=0.0, why="a copy"),
        example=_example_pack,
    )
)

LINEAR_PACKED = OPS.register(
    Op(
        name="linear_packed",
        inputs=("x_MK", "panels_JKQ", "b_N?", "add_MN?"),
        outputs=("y_MN",),
        attrs={"n": int},
        infer=_infer,
        reference=_reference,
        gradient=_LOWERED,
        source=_SOURCE,
        naive="linear_packed_naive",
        kernels=(Kernel(symbol="linear_packed_f32", tiling="rows"),),
        cases=tuple({"M": case["M"], "K": case["K"], "n": case["N"]} for case in CASES),
        tolerance=Tolerance(rel=2e-6, why=_WHY),
        row_inputs=frozenset({"x_MK", "add_MN?"}),
        inplace={"y_MN": "add_MN?"},
        example=_example,
    )
)

LINEAR_DX_PACKED = OPS.register(
    Op(
        name="linear_dx_packed",
        inputs=("dy_MN", "panels_JNQ", "add_MK?"),
        outputs=("dx_MK",),
        attrs={"k": int},
        infer=_infer_dx,
        reference=_reference_dx,
        gradient=_LOWERED,
        source=_SOURCE,
        naive="linear_dx_packed_naive",
        kernels=(Kernel(symbol="linear_dx_packed_f32", tiling="rows"),),
        cases=tuple({"M": case["M"], "N": case["N"], "k": case["K"]} for case in CASES),
        tolerance=Tolerance(rel=2e-6, why=_WHY),
        row_inputs=frozenset({"dy_MN", "add_MK?"}),
        inplace={"dx_MK": "add_MK?"},
        example=_example_dx,
    )
)
