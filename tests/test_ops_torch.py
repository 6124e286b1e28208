"""Law 3 of the ops: an error of at most twice that of PyTorch's float32 on the same input."""

from __future__ import annotations

import numpy as np
import pytest
from op_harness import Call, Case, attrs_of, draw, error, letters_of, reference

from lockstep.ir import Op
from lockstep.ir.op import Array
from lockstep.ops import OPS

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("kernel_builds")]
INEXACT = [op for op in OPS.values() if op.tolerance.rel > 0]


def grown(case: Case) -> Case:
    """The case at sizes where sums are long; sequences and heads only multiply what is summed."""
    few = {"B": 2, "H": 5}
    sizes = {x: few.get(x, 97 + 64 * i) for i, x in enumerate(letters_of(case))}
    return {**case, **sizes}


def torch_outputs(op: Op, inputs: tuple[Array | None, ...], case: Case) -> list[Array]:
    import torch
    from torch_ops import TORCH

    tensors = [None if a is None else torch.from_numpy(a.copy()) for a in inputs]
    return [np.asarray(y) for y in TORCH[op.name](*tensors, **attrs_of(op, case))]


def worse(a: float, b: float) -> float:
    """The larger one, NaN if one is NaN: Python's `max` may hide it."""
    return float(np.maximum(a, b))


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in INEXACT])
def test_error_is_at_most_twice_that_of_torch(op: Op) -> None:
    long = [grown(op.cases[0]), grown(op.cases[-1])]  # one and the same if the attributes are
    for case in (*op.cases, *(long if long[0] != long[1] else long[:1])):
        ours: dict[tuple[str, str], float] = {}
        theirs = dict.fromkeys(op.outputs, 0.0)
        for seed in range(4):  # the largest of a few draws, so that no lucky rounding sets the bar
            call = Call(op, draw(op, case, seed), case)
            expected = reference(op, call.inputs, case)
            for name, got, exact in zip(
                op.outputs, torch_outputs(op, call.inputs, case), expected, strict=True
            ):
                theirs[name] = worse(theirs[name], error(got, exact))
            for kernel in call.usable():
                for name, got, exact in zip(op.outputs, call.run(kernel), expected, strict=True):
                    key = (kernel.symbol, name)
                    # No result can be nearer than its own rounding, nor than that of the referee.
                    floor = 2.0**-24 if got.dtype == np.float32 else 2.0**-48
                    ours[key] = worse(ours.get(key, 0.0), error(got, exact) - floor)
        assert ours
        for (symbol, name), distance in ours.items():
            assert distance <= 2 * theirs[name], (
                f"{symbol} {name}: {distance:.3g}, PyTorch {theirs[name]:.3g}, sizes {case}"
            )


def test_an_error_that_is_no_number_is_not_small() -> None:
    assert worse(0.0, 1.0) == 1.0
    assert not worse(0.0, np.nan) <= 1e9
    assert not worse(np.nan, 0.0) <= 1e9
