"""y = x w^T + b + add with w in panels of a stored type and x from `quantize_rows`.

One op for each stored type. What is computed is exact but for the order of one float32 sum: the
product of the integers and scales that both sides hold. How far those are from the numbers that
they were made of is the affair of `quantize_rows` and of who wrote the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lockstep.errors import UsageError
from lockstep.ir import Kernel, NotDifferentiable, Op, Tolerance, Type
from lockstep.ir import f32 as f32_type
from lockstep.ir import u8 as u8_type
from lockstep.ir.op import Array, Attr, Example, Infer, Reference
from lockstep.ops import panels
from lockstep.ops.example import normal, size
from lockstep.ops.expect import expect_rank, expect_type, whole
from lockstep.ops.quantize_rows import quantized, quantized_types
from lockstep.ops.registry import OPS, source
from lockstep.ops.stored import BLOCKS

WIDE = "Q8_0"  # the one type that may also have int16 activations


def _infer(stored: str) -> Infer:
    def infer(
        q_MK: Type,
        scale_MJ: Type,
        sum_MJ: Type,
        panels_P: Type,
        b_N: Type | None = None,
        add_MN: Type | None = None,
        *,
        n: int,
        bits: int,
    ) -> tuple[Type, ...]:
        name = f"linear_{stored.lower()}"
        if bits == 16 and stored != WIDE:
            raise UsageError(f"{name}: expected 8 bits, got {bits}", hint="quantise rows to int8")
        expect_rank(f"{name} q", q_MK, 2)
        M, K = q_MK.dims
        given = zip(("q", "scale", "sum"), (q_MK, scale_MJ, sum_MJ), strict=True)
        expected = quantized_types(f32_type(M, K), bits)
        for (part, got), wanted in zip(given, expected, strict=True):
            expect_type(f"{name} {part}", got, wanted)
        n_bytes = panels.n_bytes(stored, n, whole(f"{name} q", K))
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
        q_MK: Array,
        scale_MJ: Array,
        sum_MJ: Array,
        panels_P: Array,
        b_N: Array | None = None,
        add_MN: Array | None = None,
        *,
        n: int,
        bits: int,
    ) -> tuple[Array, ...]:
        M, K = q_MK.shape
        w_NK = panels.dequantise(stored, panels_P, n, K).astype(np.float64)
        dx = np.where(np.isfinite(scale_MJ), scale_MJ, np.nan)  # a spoilt block spoils its row
        x_MK = (q_MK.reshape(M, -1, panels.BLOCK) * dx[..., None]).reshape(M, K)
        y_MN = x_MK @ w_NK.T
        if b_N is not None:
            y_MN = y_MN + b_N
        return (y_MN if add_MN is None else y_MN + add_MN,)

    return reference


def random_rows(rng: np.random.Generator, stored: str, n: int, k: int) -> Array:
    """Rows of a stored type as bytes: random quants and sub-scales under scales near 1/64."""
    block_bytes, _ = BLOCKS[stored]
    per_block = 256 if panels.LAYOUTS[stored].sub else panels.BLOCK
    raw = rng.integers(0, 256, (n, k // per_block, block_bytes), dtype=np.uint8)
    halves = rng.uniform(0.01, 0.02, (2, *raw.shape[:2], 1)).astype("<f2").view(np.uint8)
    if stored == "MXFP4":
        raw[..., 0] = rng.integers(118, 123, raw.shape[:2])
    elif stored in ("Q2_K", "Q3_K", "Q6_K"):
        raw[..., -2:] = halves[0]
        if stored == "Q2_K":
            raw[..., -4:-2] = halves[1]
    else:
        raw[..., :2] = halves[0]
        if panels.LAYOUTS[stored].has_minimum:
            raw[..., 2:4] = halves[1]
    return raw.reshape(n, -1)


def _example(stored: str) -> Example:
    def example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
        M, n, K = size(case, "M"), size(case, "n"), 32 * size(case, "blocks")
        packed = panels.pack(stored, random_rows(rng, stored, n, K), K)
        rows = quantized(normal(rng, M, K), size(case, "bits"))
        return *rows, packed, normal(rng, n), normal(rng, M, n)

    return example


def _with_bits(bits: int) -> Callable[..., bool]:
    return lambda sizes, attrs: attrs["bits"] == bits


def _cases(stored: str) -> tuple[dict[str, Attr], ...]:
    """Few and many rows, a part of a panel, several tasks and chunks, an odd count of blocks."""
    step = 8 if panels.LAYOUTS[stored].sub else 1
    shapes = ((1, 3, step), (2, 47, 2 * step), (3, 16, 3 * step), (4, 100, 9 * step))
    more = ((5, 33, 8), (27, 50, 16 + step), (301, 18, 8))
    cases: list[dict[str, Attr]] = [
        {"M": M, "n": n, "blocks": k, "bits": 8} for M, n, k in (*shapes, *more)
    ]
    if stored == WIDE:
        cases += [{**case, "bits": 16} for case in cases]
    return tuple(cases)


def _kernels(stored: str) -> tuple[Kernel, ...]:
    name = f"linear_{stored.lower()}"
    narrow = Kernel(symbol=f"{name}_i8", tiling="tiles", when=_with_bits(8))
    wide = Kernel(symbol=f"{name}_i16", tiling="tiles", when=_with_bits(16))
    return (narrow, wide) if stored == WIDE else (narrow,)


for _stored in panels.LAYOUTS:
    OPS.register(
        Op(
            name=f"linear_{_stored.lower()}",
            inputs=("q_MK", "scale_MJ", "sum_MJ", "panels_P", "b_N?", "add_MN?"),
            outputs=("y_MN",),
            attrs={"n": int, "bits": int},
            infer=_infer(_stored),
            reference=_reference(_stored),
            gradient=NotDifferentiable("packed weights are for inference only"),
            source=source("linear_quant.c"),
            naive=f"linear_{_stored.lower()}_naive",
            kernels=_kernels(_stored),
            cases=_cases(_stored),
            tolerance=Tolerance(
                rel=2e-6,
                why="exact sums of 32 products, added in float32: the roundings of 800 of them, K "
                "= 25600, wider than most models, walk as far as 2^-24 sqrt(800) = 1.7e-6",
            ),
            inplace={"y_MN": "add_MN?"},
            example=_example(_stored),
        )
    )
