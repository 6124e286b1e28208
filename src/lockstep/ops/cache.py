"""Rows in and out: new keys or values into a cache, one row out of many."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.ir import Kernel, NotDifferentiable, Op, Tolerance, Type
from lockstep.ir import f32 as f32_type
from lockstep.ir import i32 as i32_type
from lockstep.ir.op import Array, Attr
from lockstep.ops.example import normal, scalar, size
from lockstep.ops.expect import expect_rank, expect_type
from lockstep.ops.registry import OPS, source

_SOURCE = source("cache.c")


def _infer_write(x_MO: Type, cache_CO: Type, start: Type) -> tuple[Type, ...]:
    expect_rank("cache_write x", x_MO, 2)
    expect_type("cache_write cache", cache_CO, f32_type(cache_CO.dims[0], x_MO.dims[1]))
    expect_type("cache_write start", start, i32_type())
    return (cache_CO,)


def _reference_write(x_MO: Array, cache_CO: Array, start: Array) -> tuple[Array, ...]:
    written_CO = cache_CO.copy()
    written_CO[int(start) : int(start) + len(x_MO)] = x_MO
    return (written_CO,)


def _example_write(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    M, width, start = size(case, "M"), size(case, "O"), size(case, "C")
    return normal(rng, M, width), normal(rng, start + M + 2, width), scalar(start)


def _infer_take(x_MD: Type, index: Type) -> tuple[Type, ...]:
    expect_rank("take_row x", x_MD, 2)
    expect_type("take_row index", index, i32_type())
    return (f32_type(1, x_MD.dims[1]),)


def _reference_take(x_MD: Array, index: Array) -> tuple[Array, ...]:
    return (x_MD[int(index)][None],)


def _example_take(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    x_MD = normal(rng, size(case, "M"), size(case, "D"))
    return x_MD, scalar(int(rng.integers(len(x_MD))))


CACHE_WRITE = OPS.register(
    Op(
        name="cache_write",
        inputs=("x_MO", "cache_CO", "start"),
        outputs=("cache_CO",),
        attrs={},
        infer=_infer_write,
        reference=_reference_write,
        gradient=NotDifferentiable("caches exist in inference only"),
        source=_SOURCE,
        naive="cache_write_naive",
        kernels=(Kernel(symbol="cache_write_f32", tiling="rows"),),
        cases=({"M": 3, "O": 8, "C": 5}, {"M": 6, "O": 37, "C": 2}),
        tolerance=Tolerance(rel=0.0, why="a copy"),
        row_inputs=frozenset({"x_MO"}),
        example=_example_write,
    )
)

TAKE_ROW = OPS.register(
    Op(
        name="take_row",
        inputs=("x_MD", "index"),
        outputs=("y_BD",),
        attrs={},
        infer=_infer_take,
        reference=_reference_take,
        gradient=NotDifferentiable("it picks the last row in inference only"),
        source=_SOURCE,
        naive="take_row_naive",
        kernels=(Kernel(symbol="take_row_f32", tiling="tiles"),),
        cases=({"M": 3, "D": 8}, {"M": 6, "D": 37}),
        tolerance=Tolerance(rel=0.0, why="a copy"),
        example=_example_take,
    )
)
