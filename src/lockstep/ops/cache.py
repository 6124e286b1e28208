"""Rows in and out: new keys or values into the caches of their sequences, some rows out of many.

Keys lie as [L,G,J,E,Q]: blocks of Q = 16 positions, transposed, so that 16 keys are lanes; values
as [L,G,C,E]. The elements are f32, f16, or i8 with a scale in f16 for every 32 elements of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from lockstep.errors import UsageError
from lockstep.ir import Kernel, NotDifferentiable, Op, Tolerance, Type
from lockstep.ir import f32 as f32_type
from lockstep.ir import i32 as i32_type
from lockstep.ir.op import Array, Attr, Example, Infer, Reference
from lockstep.ir.type import DType
from lockstep.ops.example import indices, normal, size
from lockstep.ops.expect import expect_rank, expect_type, whole
from lockstep.ops.registry import OPS, source

_SOURCE = source("cache.c")

LANES = 16  # CACHE_LANES: positions that lie side by side in a cache of keys
GROUP = 32  # CACHE_GROUP: elements of a row that share a scale
Element = Literal["f32", "f16", "q8_0"]
Kind = Literal["keys", "values"]
_DTYPES: dict[Element, DType] = {"f32": "f32", "f16": "f16", "q8_0": "i8"}


def cache_types(
    kind: Kind, element: Element, slots: int, kv_heads: int, head_dim: int, context: int
) -> tuple[Type, ...]:
    """The types of a cache: of its elements, and for q8_0 of its scales; the context is rounded up.

    Shapes: keys [L,G,J,E,Q], scales [L,G,J,S,Q]; values [L,G,C,E], scales [L,G,C,S].
    """
    blocks, groups = -(-context // LANES), -(-head_dim // GROUP)
    types = []
    for dtype, width in ((_DTYPES[element], head_dim), ("f16", groups)):
        block = (blocks, width, LANES) if kind == "keys" else (blocks * LANES, width)
        types.append(Type(dtype, (slots, kv_heads, *block)))
    return tuple(types if element == "q8_0" else types[:1])


def quantised(x_E: Array) -> tuple[Array, Array]:
    """A row in bytes, and a scale for every 32 elements: what a cache of bytes keeps of it.

    Computed in float32, as the kernel does it; a group with infinity or NaN keeps only its scale.
    """
    bytes_E, scales = np.zeros(x_E.shape, np.int8), []
    for e in range(0, len(x_E), GROUP):
        part = x_E[e : e + GROUP].astype(np.float32)
        scale = (np.abs(part).max() / np.float32(127.0)).astype(np.float16)
        if 0 < scale < np.inf:
            nearest = np.rint(part / scale.astype(np.float32))
            bytes_E[e : e + GROUP] = np.clip(nearest, -127, 127)
        scales.append(scale)
    return bytes_E, np.array(scales, np.float64)


def _check_caches(name: str, x_MO: Type, got: tuple[Type, ...], expected: tuple[Type, ...]) -> None:
    for have, want in zip(got, expected, strict=True):
        expect_type(f"{name} cache", have, want)
    if x_MO.dtype != "f32" or len(x_MO.dims) != 2:
        raise UsageError(f"{name} x: expected rows of f32, got {x_MO}")


def _infer_put(kind: Kind, element: Element) -> Infer:
    name = f"cache_{kind}_{element}"

    def infer(x_MO: Type, *inputs: Type) -> tuple[Type, ...]:
        *caches, positions_M, slots_M = inputs
        expect_rank(f"{name} cache", caches[0], 5 if kind == "keys" else 4)
        slots, heads, *block = (whole(f"{name} cache", d) for d in caches[0].dims)
        blocks = block[0] if kind == "keys" else block[0] / LANES
        context, width = int(blocks * LANES), block[1]
        types = cache_types(kind, element, slots, heads, width, context)
        _check_caches(name, x_MO, tuple(caches), types)
        expect_type(f"{name} x", x_MO, f32_type(x_MO.dims[0], heads * width))
        for rows in (positions_M, slots_M):
            expect_type(f"{name} rows", rows, i32_type(x_MO.dims[0]))
        return tuple(caches)

    return infer


def _reference_put(kind: Kind, element: Element) -> Reference:
    def reference(x_MO: Array, *inputs: Array) -> tuple[Array, ...]:
        *caches, positions_M, slots_M = inputs
        written = [cache.copy() for cache in caches]
        heads, width = caches[0].shape[1], caches[0].shape[3]
        for x_GE, position, slot in zip(
            x_MO.reshape(-1, heads, width), positions_M, slots_M, strict=True
        ):
            for g, x_E in enumerate(x_GE):
                kept = quantised(x_E) if element == "q8_0" else (x_E,)
                if element == "f16":
                    kept = (x_E.astype(np.float16).astype(x_E.dtype),)
                for cache, part in zip(written, kept, strict=True):
                    if kind == "keys":
                        cache[slot, g, position // LANES, :, position % LANES] = part
                    else:
                        cache[slot, g, position] = part
        return tuple(written)

    return reference


def _example_put(kind: Kind, element: Element) -> Example:
    def example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
        M, E, L, G = (size(case, name) for name in ("M", "E", "slots", "heads"))
        context = size(case, "depth") + M
        caches = []
        for t in cache_types(kind, element, L, G, E, context):
            numbers = 9 * normal(rng, *t.shape({}))
            caches.append(numbers.astype({"f32": "f4", "f16": "f2", "i8": "i1"}[t.dtype]))
        cells = rng.permutation(L * context)[:M]  # no two rows go to one place
        rows = [(cells % context).astype(np.int32), (cells // context).astype(np.int32)]
        return normal(rng, M, G * E), *caches, *rows

    return example


def _infer_take_i32(x_M: Type, index_B: Type) -> tuple[Type, ...]:
    for name, type in (("x", x_M), ("index", index_B)):
        expect_rank(f"take_i32 {name}", type, 1)
        expect_type(f"take_i32 {name}", type, i32_type(*type.dims))
    return (index_B,)


def _infer_take(x_MD: Type, index_B: Type) -> tuple[Type, ...]:
    expect_rank("take_rows x", x_MD, 2)
    expect_rank("take_rows index", index_B, 1)
    expect_type("take_rows index", index_B, i32_type(*index_B.dims))
    return (f32_type(index_B.dims[0], x_MD.dims[1]),)


def _reference_take(x: Array, index_B: Array) -> tuple[Array, ...]:
    return (x[index_B],)


def _example_take(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    x_MD = normal(rng, size(case, "M"), size(case, "D"))
    return x_MD, indices(rng, len(x_MD), size(case, "B"))


def _example_take_i32(
    rng: np.random.Generator, case: Mapping[str, Attr]
) -> tuple[Array | None, ...]:
    x_M = rng.integers(-9, 999, size(case, "M"), dtype=np.int32)
    return x_M, indices(rng, len(x_M), size(case, "B"))


_TAKEN_ONLY = NotDifferentiable("it picks the rows whose logits are wanted, in inference only")

OPS.register(
    Op(
        name="take_rows",
        inputs=("x_MD", "index_B"),
        outputs=("y_BD",),
        attrs={},
        infer=_infer_take,
        reference=_reference_take,
        gradient=_TAKEN_ONLY,
        source=_SOURCE,
        naive="take_rows_naive",
        kernels=(Kernel(symbol="take_rows_f32", tiling="tiles"),),
        cases=({"M": 3, "D": 8, "B": 2}, {"M": 6, "D": 37, "B": 9}),
        tolerance=Tolerance(rel=0.0, why="a copy"),
        example=_example_take,
    )
)

OPS.register(
    Op(
        name="take_i32",
        inputs=("x_M", "index_B"),
        outputs=("y_B",),
        attrs={},
        infer=_infer_take_i32,
        reference=_reference_take,
        gradient=_TAKEN_ONLY,
        source=_SOURCE,
        naive="take_i32_naive",
        kernels=(Kernel(symbol="take_i32_all", tiling="tiles"),),
        cases=({"M": 3, "B": 2}, {"M": 6, "B": 9}),
        tolerance=Tolerance(rel=0.0, why="a copy"),
        example=_example_take_i32,
    )
)


def _register_put(kind: Kind, element: Element) -> None:
    name, axes = f"cache_{kind}_{element}", "LGJEQ" if kind == "keys" else "LGCE"
    caches = (f"{kind}_{axes}", f"scale_{axes.replace('E', 'S')}")[: 2 if element == "q8_0" else 1]
    x = f"{kind[0]}_MO"
    OPS.register(
        Op(
            name=name,
            inputs=(x, *caches, "positions_M", "slots_M"),
            outputs=caches,
            attrs={},
            infer=_infer_put(kind, element),
            reference=_reference_put(kind, element),
            gradient=NotDifferentiable("caches exist in inference only"),
            source=_SOURCE,
            naive=f"{name}_naive",
            kernels=(Kernel(symbol=name, tiling="rows"),),
            cases=(
                {"M": 3, "E": 8, "slots": 2, "heads": 1, "depth": 5},
                {"M": 21, "E": 70, "slots": 3, "heads": 2, "depth": 19},
            ),
            tolerance=Tolerance(rel=0.0, why="each element is rounded once, as the reference does"),
            row_inputs=frozenset({x, "positions_M", "slots_M"}),
            example=_example_put(kind, element),
        )
    )


ELEMENTS: tuple[Element, ...] = ("f32", "f16", "q8_0")
for _element in ELEMENTS:
    _register_put("keys", _element)
    _register_put("values", _element)
