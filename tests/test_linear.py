"""What the laws of single ops cannot say: all kernels of a product give the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_harness import Call, same_bits

from lockstep.ir.op import Array
from lockstep.ops import OPS

pytestmark = pytest.mark.usefixtures("kernel_builds")

SIZES = [(1, 5, 3), (7, 64, 96), (13, 257, 47), (26, 513, 70), (97, 300, 290)]


def run(op: str, *inputs: Array | None, **attrs: int) -> Array:
    """The output of the op's first kernel."""
    call = Call(OPS[op], inputs, attrs)
    return call.run(OPS[op].kernels[0])[0]


def in_every_way(op: str, x: Array, w: Array, *rest: Array | None) -> dict[str, Array]:
    """The product by each kernel of the op, on packed weights, and row by row on packed weights."""
    call = Call(OPS[op], (x, w, *rest), {})
    found = {kernel.symbol: call.run(kernel)[0] for kernel in OPS[op].kernels}
    columns = {"n": w.shape[0]} if op == "linear" else {"k": w.shape[1]}
    (panels,) = Call(OPS[f"pack_{op}"], (w,), {}).run(OPS[f"pack_{op}"].kernels[0])
    packed = Call(OPS[f"{op}_packed"], (x, panels, *rest), columns)
    kernel = packed.op.kernels[0]
    found["packed"] = packed.run(kernel)[0]
    found["row by row"] = packed.run(kernel, [(i, i + 1) for i in range(len(x))])[0]
    return found


def assert_same(found: dict[str, Array]) -> None:
    first = next(iter(found.values()))
    for way, array in found.items():
        assert same_bits(array, first), way


@pytest.mark.parametrize(("M", "K", "N"), SIZES)
def test_every_way_to_a_product_gives_the_same_bits(M: int, K: int, N: int) -> None:
    rng = np.random.default_rng(M)
    x, w, b, add = (
        rng.standard_normal(dims).astype(np.float32) for dims in ((M, K), (N, K), (N,), (M, N))
    )
    assert_same(in_every_way("linear", x, w, b, add))
    assert_same(in_every_way("linear", x, w, None, None))
    assert_same(in_every_way("linear_dx", add, w, x))


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 600), st.integers(1, 70), st.data())
def test_a_row_does_not_depend_on_its_neighbours(
    M: int, K: int, N: int, data: st.DataObject
) -> None:
    """Prefill and decode agree because of this: a row alone is the row among others."""
    rng = np.random.default_rng(M)
    x, w = (rng.standard_normal(dims).astype(np.float32) for dims in ((M, K), (N, K)))
    row = data.draw(st.integers(0, M - 1))
    (panels,) = Call(OPS["pack_linear"], (w,), {}).run(OPS["pack_linear"].kernels[0])
    many = run("linear_packed", x, panels, None, None, n=N)
    one = run("linear_packed", x[row : row + 1], panels, None, None, n=N)
    assert same_bits(many[row : row + 1], one)


def test_another_order_of_summation_is_seen() -> None:
    """The comparison above is strict: the same sum in another order has other bits."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(dims).astype(np.float32) for dims in ((9, 300), (40, 300)))
    found = in_every_way("linear", x, w, None, None)
    found["backwards"] = run("linear", x[:, ::-1].copy(), w[:, ::-1].copy(), None, None)
    with pytest.raises(AssertionError, match="backwards"):
        assert_same(found)
