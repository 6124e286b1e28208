"""Rows of a table by their ids, out of the panels that a tied head reads as well."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.ir import Kernel, NotDifferentiable, Op, Tolerance, Type
from lockstep.ir import f32 as f32_type
from lockstep.ir import i32 as i32_type
from lockstep.ir import u8 as u8_type
from lockstep.ir.op import Array, Attr, Example, Infer, Reference
from lockstep.ops import panels
from lockstep.ops.example import indices, normal, size
from lockstep.ops.expect import expect_rank, expect_type
from lockstep.ops.linear_quant import random_rows
from lockstep.ops.registry import OPS, source


def _infer(stored: str) -> Infer:
    def infer(ids_M: Type, panels_P: Type, *, n: int, k: int) -> tuple[Type, ...]:
        name = f"embed_{stored.lower()}"
        expect_rank(f"{name} ids", ids_M, 1)
        expect_type(f"{name} ids", ids_M, i32_type(*ids_M.dims))
        expect_type(f"{name} panels", panels_P, u8_type(panels.n_bytes(stored, n, k)))
        return (f32_type(ids_M.dims[0], k),)

    return infer


def _reference(stored: str) -> Reference:
    def reference(ids_M: Array, panels_P: Array, *, n: int, k: int) -> tuple[Array, ...]:
        return (panels.dequantise(stored, panels_P, n, k)[ids_M],)

    return reference


def stored_rows(rng: np.random.Generator, stored: str, n: int, k: int) -> Array:
    """Random rows of any stored type as bytes."""
    if stored in panels.LAYOUTS:
        return random_rows(rng, stored, n, k)
    wide = normal(rng, n, k)
    if stored == "F16":
        return wide.astype("<f2").view(np.uint8)
    if stored == "BF16":
        return (wide.view("<u4") >> np.uint32(16)).astype("<u2").view(np.uint8)
    return wide.view(np.uint8)


def _example(stored: str) -> Example:
    def example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
        n, k = size(case, "n"), size(case, "k")
        packed = panels.pack(stored, stored_rows(rng, stored, n, k), k)
        return indices(rng, n, size(case, "M")), packed

    return example


for _stored in panels.STORED:
    OPS.register(
        Op(
            name=f"embed_{_stored.lower()}",
            inputs=("ids_M", "panels_P"),
            outputs=("x_MD",),
            attrs={"n": int, "k": int},
            infer=_infer(_stored),
            reference=_reference(_stored),
            gradient=NotDifferentiable("packed weights are for inference only"),
            source=source("embed_panels.c"),
            naive=f"embed_{_stored.lower()}_naive",
            kernels=(Kernel(symbol=f"embed_{_stored.lower()}_rows", tiling="rows"),),
            cases=({"M": 3, "n": 50, "k": 256}, {"M": 7, "n": 16, "k": 768}),
            tolerance=Tolerance(rel=0.0, why="the numbers of the file, in its own arithmetic"),
            row_inputs=frozenset({"ids_M"}),
            example=_example(_stored),
        )
    )
