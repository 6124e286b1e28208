"""x[m] = table[ids[m]], and the gradient of the table: rows that met the same id add up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.ir import GradientBuilder, Kernel, Node, NotDifferentiable, Op, Tolerance, Type, Value
from lockstep.ir import f32 as f32_type
from lockstep.ir import i32 as i32_type
from lockstep.ir.op import Array, Attr
from lockstep.ops.example import indices, normal, scalar, size
from lockstep.ops.expect import expect_rank, expect_type
from lockstep.ops.registry import OPS, source

_SOURCE = source("embedding.c")


def _infer(ids_M: Type, table_VD: Type) -> tuple[Type, ...]:
    expect_rank("embedding table", table_VD, 2)
    expect_rank("embedding ids", ids_M, 1)
    expect_type("embedding ids", ids_M, i32_type(*ids_M.dims))
    return (f32_type(ids_M.dims[0], table_VD.dims[1]),)


def _reference(ids_M: Array, table_VD: Array) -> tuple[Array, ...]:
    return (table_VD[ids_M],)


def _gradient(g: GradientBuilder, node: Node, dx: Value | None) -> tuple[Value | None, ...]:
    ids, table = (g.value(i) for i in node.inputs if i)
    if not g.wants(table):
        return None, None
    vocab = table.type.dims[0]
    acc, accumulate = g.accumulator(table)
    return None, g.add(EMBEDDING_DW, f"{node.id}@dw", ids, dx, acc, accumulate, vocab=vocab)


def _example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    return indices(rng, size(case, "V"), size(case, "M")), normal(rng, *_table(case))


def _table(case: Mapping[str, Attr]) -> tuple[int, int]:
    return size(case, "V"), size(case, "D")


def _infer_dw(
    ids_M: Type, dx_MD: Type, acc_VD: Type | None, accumulate: Type | None, *, vocab: int
) -> tuple[Type, ...]:
    expect_rank("embedding_dw dx", dx_MD, 2)
    expect_type("embedding_dw ids", ids_M, i32_type(dx_MD.dims[0]))
    dtable_VD = f32_type(vocab, dx_MD.dims[1])
    if acc_VD is not None:
        expect_type("embedding_dw acc", acc_VD, dtable_VD)
    return (dtable_VD,)


def _reference_dw(
    ids_M: Array, dx_MD: Array, acc_VD: Array | None, accumulate: Array | None, *, vocab: int
) -> tuple[Array, ...]:
    dtable_VD = np.zeros((vocab, dx_MD.shape[1]))
    if acc_VD is not None and (accumulate is None or accumulate):
        dtable_VD += acc_VD
    np.add.at(dtable_VD, ids_M, dx_MD)
    return (dtable_VD,)


def _example_dw(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    vocab = int(case["vocab"])
    ids_M = indices(rng, vocab, size(case, "M"))
    acc_VD = normal(rng, vocab, size(case, "D"))
    return ids_M, normal(rng, size(case, "M"), size(case, "D")), acc_VD, scalar(1)


EMBEDDING = OPS.register(
    Op(
        name="embedding",
        inputs=("ids_M", "table_VD"),
        outputs=("x_MD",),
        attrs={},
        infer=_infer,
        reference=_reference,
        gradient=_gradient,
        source=_SOURCE,
        naive="embedding_naive",
        kernels=(Kernel(symbol="embedding_f32", tiling="rows"),),
        cases=({"M": 3, "V": 5, "D": 8}, {"M": 17, "V": 4, "D": 37}),
        tolerance=Tolerance(rel=0.0, why="a copy"),
        row_inputs=frozenset({"ids_M"}),
        example=_example,
    )
)

EMBEDDING_DW = OPS.register(
    Op(
        name="embedding_dw",
        inputs=("ids_M", "dx_MD", "acc_VD?", "accumulate?"),
        outputs=("dtable_VD",),
        attrs={"vocab": int},
        infer=_infer_dw,
        reference=_reference_dw,
        gradient=NotDifferentiable("it is itself a gradient; training needs no second order"),
        source=_SOURCE,
        naive="embedding_dw_naive",
        kernels=(Kernel(symbol="embedding_dw_f32", tiling="tiles"),),
        cases=({"M": 3, "D": 8, "vocab": 5}, {"M": 31, "D": 70, "vocab": 6}),
        tolerance=Tolerance(
            rel=1e-6, why="rows of one id summed in float32 in order, as in PyTorch"
        ),
        inplace={"dtable_VD": "acc_VD?"},
        example=_example_dw,
    )
)
