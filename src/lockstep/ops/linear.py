"""y = x w^T + b + add, and its gradients.

`add` is what a residual adds, or a gradient that other readers of x have left. Small weights are
packed on the fly or by `linear_packed`; large ones, which no cache holds, are packed block by block
inside tiles of many rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.ir import (
    Dim,
    GradientBuilder,
    Kernel,
    Node,
    NotDifferentiable,
    Op,
    Tolerance,
    Type,
    Value,
)
from lockstep.ir import f32 as f32_type
from lockstep.ir.op import Array, Attr
from lockstep.ops.example import normal, scalar, size
from lockstep.ops.expect import expect_rank, expect_type
from lockstep.ops.registry import OPS, source

# From this many weights (1 MiB) a row tile would stream them from the level-3 cache or from memory.
_LARGE_WEIGHTS = 1 << 18
# From this many rows packing inside the tile costs little: about a cycle in 4 to 10 per row tile.
_LARGE_ROWS = 96


def is_large(sizes: Mapping[str, Dim], _: Mapping[str, Attr] | None = None) -> bool:
    """Whether tiles that pack the weights as they go are the faster way for sizes M, N and K."""
    M, N, K = sizes["M"], sizes["N"], sizes["K"]
    if isinstance(M, str) or isinstance(N, str) or isinstance(K, str):
        return False
    return M >= _LARGE_ROWS and N * K >= _LARGE_WEIGHTS


def _infer(
    x_MK: Type, w_NK: Type, b_N: Type | None = None, add_MN: Type | None = None
) -> tuple[Type, ...]:
    expect_rank("linear x", x_MK, 2)
    expect_rank("linear w", w_NK, 2)
    y_MN = f32_type(x_MK.dims[0], w_NK.dims[0])
    expect_type("linear x", x_MK, f32_type(x_MK.dims[0], w_NK.dims[1]))
    if b_N is not None:
        expect_type("linear b", b_N, f32_type(w_NK.dims[0]))
    if add_MN is not None:
        expect_type("linear add", add_MN, y_MN)
    return (y_MN,)


def _reference(
    x_MK: Array, w_NK: Array, b_N: Array | None = None, add_MN: Array | None = None
) -> tuple[Array, ...]:
    y_MN = x_MK @ w_NK.T
    if b_N is not None:
        y_MN = y_MN + b_N
    return (y_MN if add_MN is None else y_MN + add_MN,)


def _gradient(g: GradientBuilder, node: Node, dy: Value | None) -> tuple[Value | None, ...]:
    x, w, b, add = (g.value(i) if i else None for i in node.inputs)
    dx = dw = db = None
    if g.wants(x):
        dx = g.add(LINEAR_DX, f"{node.id}@dx", dy, w, None)
    if w is not None and g.wants(w):
        dw = g.add(LINEAR_DW, f"{node.id}@dw", dy, x, *g.accumulator(w))
    if b is not None and g.wants(b):
        db = g.add(LINEAR_DB, f"{node.id}@db", dy, *g.accumulator(b))
    return dx, dw, db, dy if g.wants(add) else None


def _example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    M, N, K = size(case, "M"), size(case, "N"), size(case, "K")
    return normal(rng, M, K), normal(rng, N, K), normal(rng, N), normal(rng, M, N)


def _infer_dx(dy_MN: Type, w_NK: Type, add_MK: Type | None = None) -> tuple[Type, ...]:
    expect_rank("linear_dx dy", dy_MN, 2)
    expect_rank("linear_dx w", w_NK, 2)
    expect_type("linear_dx dy", dy_MN, f32_type(dy_MN.dims[0], w_NK.dims[0]))
    dx_MK = f32_type(dy_MN.dims[0], w_NK.dims[1])
    if add_MK is not None:
        expect_type("linear_dx add", add_MK, dx_MK)
    return (dx_MK,)


def _reference_dx(dy_MN: Array, w_NK: Array, add_MK: Array | None = None) -> tuple[Array, ...]:
    dx_MK = dy_MN @ w_NK
    return (dx_MK if add_MK is None else dx_MK + add_MK,)


def _example_dx(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    M, N, K = size(case, "M"), size(case, "N"), size(case, "K")
    return normal(rng, M, N), normal(rng, N, K), normal(rng, M, K)


def _infer_dw(
    dy_MN: Type, x_MK: Type, acc_NK: Type | None = None, accumulate: Type | None = None
) -> tuple[Type, ...]:
    expect_rank("linear_dw dy", dy_MN, 2)
    expect_rank("linear_dw x", x_MK, 2)
    expect_type("linear_dw x", x_MK, f32_type(dy_MN.dims[0], x_MK.dims[1]))
    dw_NK = f32_type(dy_MN.dims[1], x_MK.dims[1])
    if acc_NK is not None:
        expect_type("linear_dw acc", acc_NK, dw_NK)
    return (dw_NK,)


def _accumulated(sum: Array, acc: Array | None, accumulate: Array | None) -> tuple[Array, ...]:
    return (sum if acc is None or (accumulate is not None and not accumulate) else acc + sum,)


def _reference_dw(
    dy_MN: Array, x_MK: Array, acc_NK: Array | None = None, accumulate: Array | None = None
) -> tuple[Array, ...]:
    return _accumulated(dy_MN.T @ x_MK, acc_NK, accumulate)


def _example_dw(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    M, N, K = size(case, "M"), size(case, "N"), size(case, "K")
    return normal(rng, M, N), normal(rng, M, K), normal(rng, N, K), scalar(1)


def _infer_db(
    dy_MN: Type, acc_N: Type | None = None, accumulate: Type | None = None
) -> tuple[Type, ...]:
    expect_rank("linear_db dy", dy_MN, 2)
    db_N = f32_type(dy_MN.dims[1])
    if acc_N is not None:
        expect_type("linear_db acc", acc_N, db_N)
    return (db_N,)


def _reference_db(
    dy_MN: Array, acc_N: Array | None = None, accumulate: Array | None = None
) -> tuple[Array, ...]:
    return _accumulated(dy_MN.sum(0), acc_N, accumulate)


def _example_db(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    M, N = size(case, "M"), size(case, "N")
    return normal(rng, M, N), normal(rng, N), scalar(1)


# Below, at and beyond the sizes of a register tile (12 x 32), a block of terms and a tile; the last
# two are large.
CASES: tuple[dict[str, Attr], ...] = (
    {"M": 1, "K": 5, "N": 3},
    {"M": 13, "K": 33, "N": 47},
    {"M": 25, "K": 300, "N": 130},
    {"M": 2, "K": 1024, "N": 70},
    {"M": 99, "K": 515, "N": 517},
    {"M": 97, "K": 1024, "N": 260},
)
_WHY = "products summed in float32 in runs of 256, at most 8192 of them"
_SOURCE = source("linear.c")
_FIRST_ORDER = NotDifferentiable("it is itself a gradient; training needs no second order")

LINEAR = OPS.register(
    Op(
        name="linear",
        inputs=("x_MK", "w_NK", "b_N?", "add_MN?"),
        outputs=("y_MN",),
        attrs={},
        infer=_infer,
        reference=_reference,
        gradient=_gradient,
        source=_SOURCE,
        naive="linear_naive",
        kernels=(
            Kernel(symbol="linear_f32", tiling="rows"),
            Kernel(symbol="linear_large_f32", tiling="tiles", when=is_large),
        ),
        cases=CASES,
        tolerance=Tolerance(rel=2e-6, why=_WHY),
        row_inputs=frozenset({"x_MK", "add_MN?"}),
        inplace={"y_MN": "add_MN?"},
        example=_example,
    )
)

LINEAR_DX = OPS.register(
    Op(
        name="linear_dx",
        inputs=("dy_MN", "w_NK", "add_MK?"),
        outputs=("dx_MK",),
        attrs={},
        infer=_infer_dx,
        reference=_reference_dx,
        gradient=_FIRST_ORDER,
        source=_SOURCE,
        naive="linear_dx_naive",
        kernels=(
            Kernel(symbol="linear_dx_f32", tiling="rows"),
            Kernel(symbol="linear_dx_large_f32", tiling="tiles", when=is_large),
        ),
        cases=CASES,
        tolerance=Tolerance(rel=2e-6, why=_WHY),
        row_inputs=frozenset({"dy_MN", "add_MK?"}),
        inplace={"dx_MK": "add_MK?"},
        example=_example_dx,
    )
)

LINEAR_DW = OPS.register(
    Op(
        name="linear_dw",
        inputs=("dy_MN", "x_MK", "acc_NK?", "accumulate?"),
        outputs=("dw_NK",),
        attrs={},
        infer=_infer_dw,
        reference=_reference_dw,
        gradient=_FIRST_ORDER,
        source=_SOURCE,
        naive="linear_dw_naive",
        kernels=(Kernel(symbol="linear_dw_f32", tiling="tiles"),),
        cases=(*CASES, {"M": 600, "K": 20, "N": 14}),
        tolerance=Tolerance(rel=2e-6, why=_WHY),
        inplace={"dw_NK": "acc_NK?"},
        example=_example_dw,
    )
)

LINEAR_DB = OPS.register(
    Op(
        name="linear_db",
        inputs=("dy_MN", "acc_N?", "accumulate?"),
        outputs=("db_N",),
        attrs={},
        infer=_infer_db,
        reference=_reference_db,
        gradient=_FIRST_ORDER,
        source=_SOURCE,
        naive="linear_db_naive",
        kernels=(Kernel(symbol="linear_db_f32", tiling="tiles"),),
        cases=({"M": 1, "N": 3}, {"M": 300, "N": 70}),
        tolerance=Tolerance(rel=2e-7, why="summed in double, rounded once or twice"),
        inplace={"db_N": "acc_N?"},
        example=_example_db,
    )
)
