"""The loss of each row, its gradient in the same pass, and the sum of the losses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.ir import GradientBuilder, Kernel, Node, NotDifferentiable, Op, Tolerance, Type, Value
from lockstep.ir import f32 as f32_type
from lockstep.ir import f64 as f64_type
from lockstep.ir import i32 as i32_type
from lockstep.ir.op import Array, Attr
from lockstep.ops.example import indices, normal, scalar, size
from lockstep.ops.expect import expect_rank, expect_type
from lockstep.ops.registry import OPS, source

_SOURCE = source("cross_entropy.c")


def _infer(logits_MV: Type, targets_M: Type, scale: Type) -> tuple[Type, ...]:
    expect_rank("cross_entropy logits", logits_MV, 2)
    expect_type("cross_entropy targets", targets_M, i32_type(logits_MV.dims[0]))
    expect_type("cross_entropy scale", scale, f32_type())
    return f32_type(logits_MV.dims[0]), logits_MV


def _reference(logits_MV: Array, targets_M: Array, scale: Array) -> tuple[Array, ...]:
    rows_M = np.arange(len(targets_M))
    shifted_MV = logits_MV - logits_MV.max(-1, keepdims=True)
    e_MV = np.exp(shifted_MV)
    loss_M = np.log(e_MV.sum(-1)) - shifted_MV[rows_M, targets_M]
    dlogits_MV = e_MV / e_MV.sum(-1, keepdims=True)
    dlogits_MV[rows_M, targets_M] -= 1.0
    dlogits_MV *= scale
    ignored_M = targets_M < 0
    loss_M[ignored_M] = 0.0
    dlogits_MV[ignored_M] = 0.0
    return loss_M, dlogits_MV


def _gradient(
    g: GradientBuilder, node: Node, _loss: Value | None, _dlogits: Value | None
) -> tuple[Value | None, ...]:
    """The loss that training minimises is scale * sum(loss), so dlogits is the whole gradient."""
    return node.outputs[1], None, None


def _example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    targets_M = indices(rng, size(case, "V"), size(case, "M"))
    targets_M[1::3] = -1
    return normal(rng, size(case, "M"), size(case, "V")) * 3, targets_M, scalar(0.25)


def _infer_sum(loss_M: Type) -> tuple[Type, ...]:
    expect_rank("loss_sum loss", loss_M, 1)
    return (f64_type(),)


def _reference_sum(loss_M: Array) -> tuple[Array, ...]:
    return (np.asarray(loss_M.sum()),)


CROSS_ENTROPY = OPS.register(
    Op(
        name="cross_entropy",
        inputs=("logits_MV", "targets_M", "scale"),
        outputs=("loss_M", "dlogits_MV"),
        attrs={},
        infer=_infer,
        reference=_reference,
        gradient=_gradient,
        source=_SOURCE,
        naive="cross_entropy_naive",
        kernels=(Kernel(symbol="cross_entropy_f32", tiling="rows"),),
        cases=({"M": 3, "V": 8}, {"M": 5, "V": 1037}),
        tolerance=Tolerance(rel=1e-6, why="exponentials within 2 ulp, summed in runs of 64"),
        row_inputs=frozenset({"logits_MV", "targets_M"}),
        inplace={"dlogits_MV": "logits_MV"},
        example=_example,
    )
)

LOSS_SUM = OPS.register(
    Op(
        name="loss_sum",
        inputs=("loss_M",),
        outputs=("total",),
        attrs={},
        infer=_infer_sum,
        reference=_reference_sum,
        gradient=NotDifferentiable("cross_entropy hands out the gradient of this sum itself"),
        source=_SOURCE,
        naive="loss_sum_naive",
        kernels=(Kernel(symbol="loss_sum_f64", tiling="tiles"),),
        cases=({"M": 3}, {"M": 67}),
        tolerance=Tolerance(rel=1e-12, why="summed in float64"),
    )
)
