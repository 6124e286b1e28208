"""y = x w^T + b + add with w as it is stored, F32, F16 or BF16, in panels; x in float32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.ir import Kernel, NotDifferentiable, Op, Tolerance, Type
from lockstep.ir import f32 as f32_type
from lockstep.ir import u8 as u8_type
from lockstep.ir.op import Array, Attr, Example, Infer, Reference
from lockstep.ops import panels
from lockstep.ops.embed_panels import stored_rows
from lockstep.ops.example import normal, size
from lockstep.ops.expect import expect_rank, expect_type, whole
from lockstep.ops.registry import OPS, source


def _infer(stored: str) -> Infer:
    def infer(
        x_MK: Type,
        panels_P: Type,
        b_N: Type | None = None,
        add_MN: Type | None = None,
        *,
        n: int,
    ) -> tuple[Type, ...]:
        name = f"linear_{stored.lower()}"
        expect_rank(f"{name} x", x_MK, 2)
        M, K = x_MK.dims
        expect_type(f"{name} x", x_MK, f32_type(M, K))
        n_bytes = panels.n_bytes(stored, n, whole(f"{name} x", K))
        expect_type(f"{name} panels", panels_P, u8_type(n_bytes))
        y_MN = f32_type(M, n)
        if b_N is not None:
            expect_type(f"{name} b", b_N, f32_type(n))
        if add_MN is not None:
            expect_type(f"{name} add", add_MN, y_MN)
        return (y_MN,)

    return infer


def _reference(stored: str) -> Reference:
    def reference(
        x_MK: Array,
        panels_P: Array,
        b_N: Array | None = None,
        add_MN: Array | None = None,
        *,
        n: int,
    ) -> tuple[Array, ...]:
        w_NK = panels.dequantise(stored, panels_P, n, x_MK.shape[1]).astype(np.float64)
        y_MN = x_MK @ w_NK.T
        if b_N is not None:
            y_MN = y_MN + b_N
        return (y_MN if add_MN is None else y_MN + add_MN,)

    return reference


def _example(stored: str) -> Example:
    def example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
        M, n, K = size(case, "M"), size(case, "n"), size(case, "K")
        packed = panels.pack(stored, stored_rows(rng, stored, n, K), K)
        return normal(rng, M, K), packed, normal(rng, n), normal(rng, M, n)

    return example


# Few and many rows, parts of panels, several tasks, below, at and beyond a block of terms.
_CASES: tuple[dict[str, Attr], ...] = (
    {"M": 1, "K": 5, "n": 3},
    {"M": 1, "K": 1024, "n": 200},
    {"M": 2, "K": 300, "n": 90},
    {"M": 3, "K": 256, "n": 17},
    {"M": 4, "K": 257, "n": 80},
    {"M": 23, "K": 515, "n": 70},
    {"M": 201, "K": 33, "n": 18},
)

for _stored in panels.FLOATS:
    OPS.register(
        Op(
            name=f"linear_{_stored.lower()}",
            inputs=("x_MK", "panels_P", "b_N?", "add_MN?"),
            outputs=("y_MN",),
            attrs={"n": int},
            infer=_infer(_stored),
            reference=_reference(_stored),
            gradient=NotDifferentiable("packed weights are for inference only"),
            source=source("linear_float.c"),
            naive=f"linear_{_stored.lower()}_naive",
            kernels=(Kernel(symbol=f"linear_{_stored.lower()}_panels", tiling="tiles"),),
            cases=_CASES,
            tolerance=Tolerance(
                rel=2e-6, why="products summed in float32 in runs of 64, at most 8192 of them"
            ),
            inplace={"y_MN": "add_MN?"},
            example=_example(_stored),
        )
    )
