"""Activations as small integers: 32 in a row under one float32 scale, with their sums.

A block that holds a NaN or an infinity has the scale NaN and integers 0, so what is made of it is
NaN. Scales are float32 and of 32 elements whatever the weights are: finer than llama.cpp's, of 256
for K formats and in half precision for others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lockstep.errors import UsageError
from lockstep.ir import Kernel, NotDifferentiable, Op, Tolerance, Type
from lockstep.ir import f32 as f32_type
from lockstep.ir import i32 as i32_type
from lockstep.ir.op import Array, Attr
from lockstep.ops.example import normal, size
from lockstep.ops.expect import expect_rank, parts
from lockstep.ops.registry import OPS, source

BLOCK = 32
_MOST = {8: np.float32(127), 16: np.float32(32767)}
_LEAST = np.float32(2.0**-100)  # a block with less than this is zeros: its inverse would overflow


def quantized_types(x_MK: Type, bits: int) -> tuple[Type, ...]:
    """The types of the integers, scales and sums of rows.

    Raises: UsageError if rows are no multiple of 32, or there are no integers of so many bits.
    """
    if bits not in _MOST:
        raise UsageError(f"quantize_rows: expected 8 or 16 bits, got {bits}", hint="choose one")
    expect_rank("quantize_rows x", x_MK, 2)
    M, K = x_MK.dims
    blocks = parts("quantize_rows x", K, BLOCK)
    q_MK = Type("i8" if bits == 8 else "i16", (M, K))
    return q_MK, f32_type(M, blocks), i32_type(M, blocks)


def _infer(x_MK: Type, *, bits: int) -> tuple[Type, ...]:
    return quantized_types(x_MK, bits)


def quantized(x_MK: Array, bits: int) -> tuple[Array, Array, Array]:
    """The integers, scales and sums of rows; every step in float32, as the kernels do it."""
    M, K = x_MK.shape
    x = x_MK.astype(np.float32).reshape(M, K // BLOCK, BLOCK)
    finite = np.isfinite(x).all(-1, keepdims=True)
    x = np.where(finite, x, np.float32(0))
    most = np.abs(x).max(-1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(most >= _LEAST, _MOST[bits] / most, np.float32(0))
        q = np.rint(x * inverse).astype(np.int8 if bits == 8 else np.int16)
    halves = q.astype(np.int32).reshape(M, K // BLOCK, 2, BLOCK // 2).sum(-1, dtype=np.int32)
    sums = halves.astype("<i2").view("<i4")[..., 0] if bits == 8 else halves.sum(-1, dtype=np.int32)
    scale = np.where(finite, most / _MOST[bits], np.float32(np.nan))[..., 0]
    return q.reshape(M, K), scale, sums


def _reference(x_MK: Array, *, bits: int) -> tuple[Array, ...]:
    return quantized(x_MK, bits)


def _has_bits(bits: int) -> Callable[..., bool]:
    return lambda sizes, attrs: attrs["bits"] == bits


def _example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    x_MJB = normal(rng, size(case, "M"), size(case, "J"), BLOCK)
    for i, scale in enumerate((0.0, 1e-38, 1e-30)):  # nothing, and what is nearly nothing
        x_MJB[i % len(x_MJB), -1 - i // len(x_MJB) % x_MJB.shape[1]] *= np.float32(scale)
    return (x_MJB.reshape(len(x_MJB), -1),)


QUANTIZE_ROWS = OPS.register(
    Op(
        name="quantize_rows",
        inputs=("x_MK",),
        outputs=("q_MK", "scale_MJ", "sum_MJ"),
        attrs={"bits": int},
        infer=_infer,
        reference=_reference,
        gradient=NotDifferentiable("rounding has none; it is for inference only"),
        source=source("quantize_rows.c"),
        naive="quantize_rows_naive",
        kernels=(
            Kernel(symbol="quantize_rows_i8", tiling="rows", when=_has_bits(8)),
            Kernel(symbol="quantize_rows_i16", tiling="rows", when=_has_bits(16)),
        ),
        cases=tuple(
            {"M": M, "J": J, "bits": bits} for M, J in ((1, 2), (3, 1), (4, 7)) for bits in (8, 16)
        ),
        tolerance=Tolerance(rel=0.0, why="every step is the reference's own, in float32"),
        row_inputs=frozenset({"x_MK"}),
        example=_example,
    )
)
