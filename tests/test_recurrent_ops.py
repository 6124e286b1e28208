"""Ops with a state per slot: the bits of a whole sequence, however it is cut, whoever is near."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_harness import Call, draw, reference, same_bits
from test_ops import assert_kernels_agree

from lockstep.errors import UsageError
from lockstep.ir import f32, i32
from lockstep.ir.op import Array
from lockstep.ops import OPS

pytestmark = pytest.mark.usefixtures("kernel_builds")

HEADS: dict[str, Any] = {"key_heads": 2, "key_width": 20, "tiled": False, "eps": 1e-6}


def drawn(name: str, sequences: int, tokens: int) -> tuple[Call, Array]:
    """The training form over some sequences, and the state of that many slots, full of NaN."""
    case = {
        "B": sequences,
        "tokens": tokens,
        "N": 37,
        "taps": 4,
        "D": 40,
        "value_heads": 4,
        **HEADS,
    }
    call = Call(OPS[name], draw(OPS[name], case, 0), case)
    shape = (sequences, 3, 37) if name == "causal_conv" else (sequences, 4, 2, 20, 32)
    return call, np.full(shape, np.nan, np.float32)


@pytest.mark.parametrize("name", ["causal_conv", "gated_delta"])
@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 40),
    sequences=st.integers(1, 3),
    cuts=st.lists(st.integers(1, 39), max_size=4),
)
def test_a_sequence_has_the_same_bits_however_it_is_cut(
    name: str, tokens: int, sequences: int, cuts: list[int]
) -> None:
    call, state = drawn(name, sequences, tokens)
    expected = call.run(call.op.kernels[-1])[0].reshape(sequences, tokens, -1)
    cached = OPS[f"{name}_cached"]
    for begin, end in pairwise(sorted({0, tokens, *(c for c in cuts if c < tokens)})):
        rows = np.concatenate([np.arange(begin, end) + s * tokens for s in range(sequences)])
        slots = np.repeat(np.arange(sequences, dtype=np.int32), end - begin)
        positions = np.tile(np.arange(begin, end, dtype=np.int32), sequences)
        if name == "causal_conv":
            x, w = call.inputs
            assert x is not None
            inputs = (x[rows], w, state, positions, slots)
        else:
            inputs = (*(a[rows] for a in call.inputs if a is not None), state, positions, slots)
        part = Call(cached, inputs, call.case)
        y, state = part.run(cached.kernels[-1])
        assert same_bits(y.reshape(sequences, end - begin, -1), expected[:, begin:end])


def test_a_slot_that_no_row_names_keeps_its_state() -> None:
    case = {"M": 3, "L": 3, "D": 8, "value_heads": 4, **HEADS}
    op = OPS["gated_delta_cached"]
    *rows, state, _, _ = draw(op, case, 0)
    one = np.arange(4, 7, dtype=np.int32)
    call = Call(op, (*rows, state, one, np.full(3, 1, np.int32)), case)
    _, after = call.run(op.kernels[-1])
    assert state is not None
    assert same_bits(after[[0, 2]], state[[0, 2]])
    assert not same_bits(after[1], state[1])


@settings(max_examples=12, deadline=None)
@given(
    group=st.integers(1, 3),
    key_heads=st.integers(1, 3),
    key_width=st.integers(1, 70),
    value_width=st.integers(1, 70),
    tokens=st.integers(1, 40),
    tiled=st.booleans(),
)
def test_the_delta_rule_agrees_for_any_heads(
    group: int, key_heads: int, key_width: int, value_width: int, tokens: int, tiled: bool
) -> None:
    case = {
        **HEADS,
        "B": 2,
        "D": value_width,
        "tokens": tokens,
        "key_heads": key_heads,
        "key_width": key_width,
        "value_heads": key_heads * group,
        "tiled": tiled,
    }
    for name in ("gated_delta", "gated_delta_grad"):
        assert_kernels_agree(Call(OPS[name], draw(OPS[name], case, 0), case))


def test_tiled_heads_are_grouped_heads_in_another_order() -> None:
    case = {"B": 2, "tokens": 7, "D": 5, "value_heads": 6, **HEADS}
    x, decay, beta = draw(OPS["gated_delta"], case, 0)
    assert x is not None
    assert decay is not None
    assert beta is not None
    order = np.arange(6).reshape(2, 3).T.reshape(-1)  # value head h of key head h // 3, to h % 2
    v = x[:, 80:].reshape(len(x), 6, 5)[:, order].reshape(len(x), -1)
    tiled = (np.concatenate([x[:, :80], v], 1), decay[:, order], beta[:, order])
    op = OPS["gated_delta"]
    (o,) = reference(op, (x, decay, beta), case)
    (other,) = reference(op, tiled, {**case, "tiled": True})
    assert np.array_equal(o.reshape(-1, 6, 5)[:, order], other.reshape(-1, 6, 5))


@pytest.mark.parametrize(
    ("name", "types", "attrs", "says"),
    [
        ("causal_conv", (f32(6, 4), f32(9, 4)), {"tokens": 3}, "expected 2 to 8 taps, got 9"),
        ("causal_conv", (f32(6, 4), f32(4, 5)), {"tokens": 3}, r"expected f32\[4,4\]"),
        ("causal_conv", (f32(6, 4), f32(4, 4)), {"tokens": 4}, "expected a multiple of 4, got 6"),
        (
            "gated_delta",
            (f32(6, 2 * 257 + 8), f32(6, 1), f32(6, 1)),
            {**HEADS, "key_heads": 1, "key_width": 257, "tokens": 3},
            "expected keys of 1 to 256, got 257",
        ),
        (
            "gated_delta",
            (f32(6, 88), f32(6, 3), f32(6, 3)),
            {**HEADS, "tokens": 3},
            "value heads: expected a multiple of 2, got 3",
        ),
        (
            "gated_delta_cached",
            (f32(1, 88), f32(1, 2), f32(1, 2), f32(1, 2, 1, 20, 16), i32(1), i32(1)),
            HEADS,
            r"state: expected f32\[1,2,1,20,32\]",
        ),
    ],
)
def test_shapes_that_no_kernel_has_are_refused(
    name: str, types: Any, attrs: Any, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        OPS[name].infer(*types, **attrs)
