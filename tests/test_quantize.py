"""Packed linears in graphs and beside each other: what the laws of single ops cannot say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_harness import Call, draw, same_bits

from lockstep.errors import UsageError
from lockstep.ir import Graph, f32, i32, interpret
from lockstep.ir.op import Array
from lockstep.ops import OPS, panels
from lockstep.ops.embed_panels import stored_rows
from lockstep.passes import Target, fuse, quantize

pytestmark = pytest.mark.usefixtures("kernel_builds")

PACKED = [f"linear_{stored.lower()}" for stored in panels.STORED]
PLAIN, DOTS = Target(byte_dots=False), Target(byte_dots=True)


@pytest.mark.parametrize("op", PACKED)
@settings(max_examples=6)
@given(M=st.integers(5, 40), first=st.integers(0, 4), few=st.integers(1, 4))
def test_rows_alone_have_the_bits_of_rows_together(op: str, M: int, first: int, few: int) -> None:
    """Prefill and decode agree because of this, and so does a call with other rows beside them."""
    case = {"M": M, "n": 37, "blocks": 16, "K": 300}
    for bits in (8, 16) if op == "linear_q8_0" else (8,):
        case["bits"] = bits
        call = Call(OPS[op], draw(OPS[op], case, M), case)
        together = call.run(call.usable()[0])[0]
        some = tuple(
            a[first : first + few] if a is not None and "_M" in name else a
            for name, a in zip(call.op.inputs, call.inputs, strict=True)
        )
        alone = Call(OPS[op], some, {**case, "M": few})
        assert same_bits(alone.run(alone.usable()[0])[0], together[first : first + few])


def test_int8_sums_are_exact_at_the_ends_of_their_range() -> None:
    """The largest weights against the largest activations: nothing may saturate on the way."""
    for stored, layout in panels.LAYOUTS.items():
        op = OPS[f"linear_{stored.lower()}"]
        case = {"M": 6, "n": 16, "blocks": 8, "bits": 8}
        q, scale, _, packed, _, _ = draw(op, case, 0)
        assert q is not None
        assert packed is not None
        q[:3], q[3:] = 127, -127
        packed.reshape(-1, layout.unit_bytes)[:, layout.head_bytes :] = 0xFF
        halves = q.reshape(6, 8, 2, 16).sum(-1).astype("<i2")
        call = Call(op, (q, scale, halves.view("<i4")[..., 0], packed, None, None), case)
        naive, got = call.run(None)[0], call.run(call.usable()[0])[0]
        assert np.abs(naive - got).max() <= 1e-6 * np.abs(naive).max(), stored


def graph_of(k: int, n: int) -> Graph:
    """A tied embedding and head with two linears and a residual between them."""
    graph = Graph("small", {"rows": 8})
    table = graph.input("table", f32(n, k), "parameter")
    up = graph.input("up", f32(2 * k, k), "parameter")
    gate = graph.input("gate", f32(2 * k, k), "parameter")
    down = graph.input("down", f32(k, 2 * k), "parameter")
    ids = graph.input("ids", i32("rows"), "input")
    x = graph.add(OPS["embedding"], "embed", ids, table)
    wide = [graph.add(OPS["linear"], name, x, w) for name, w in (("u", up), ("g", gate))]
    h = graph.add(OPS["silu_mul"], "h", wide[1], wide[0])
    y = graph.add(OPS["add"], "y", graph.add(OPS["linear"], "d", h, down), x)
    graph.add(OPS["linear"], "logits", y, table)
    graph.outputs["logits"] = "logits"
    return graph


def test_a_graph_of_packed_parameters_computes_what_its_numbers_say() -> None:
    rng, k, n = np.random.default_rng(0), 256, 40
    plain = fuse(graph_of(k, n))
    stored = {"table": "Q6_K", "up": "Q4_K", "gate": "Q8_0", "down": "F16"}
    packed = quantize(plain, stored, PLAIN)
    numbers: dict[str, Array] = {}
    raw: dict[str, Array] = {}
    for id, type_name in stored.items():
        rows, width = plain.value(id).type.dims
        raw[id] = panels.pack(type_name, stored_rows(rng, type_name, rows, width), width)
        numbers[id] = panels.dequantise(type_name, raw[id], rows, width)
    ids = np.array([3, 39, 0], np.int32)
    with np.errstate(over="ignore"):
        expected = interpret(plain, {**numbers, "ids": ids})["logits"]
        got = interpret(packed, {**raw, "ids": ids})["logits"]
    # int8 activations: half a step of 1/127 of the largest of 32, four linears in a row
    assert np.linalg.norm(got - expected) <= 0.02 * np.linalg.norm(expected)
    assert [n.id for n in packed.nodes if n.op.name == "quantize_rows"] == [
        "embed@q8",
        "embed@q16",
        "y@q8",
    ]
    assert packed.node("y").covers == plain.node("y").covers != ()
    assert packed.inputs["table"].role == "parameter"


def test_a_processor_with_dot_products_of_bytes_needs_no_int16() -> None:
    packed = quantize(graph_of(256, 40), {"gate": "Q8_0", "up": "Q4_K"}, DOTS)
    assert packed.node("g").attrs["bits"] == packed.node("u").attrs["bits"] == 8
    assert [n.op.name for n in packed.nodes].count("quantize_rows") == 1
    assert packed.node("d").op.name == "linear"
    assert Target.of(frozenset({"avx2", "avx_vnni"})) == DOTS
    assert Target.of(frozenset({"avx2", "fma"})) == PLAIN


def test_what_reads_no_panels_is_named() -> None:
    graph = Graph("norm")
    gain = graph.input("gain", f32(8), "parameter")
    graph.add(OPS["rmsnorm"], "norm", graph.input("x", f32(3, 8), "input"), gain, eps=1e-6)
    with pytest.raises(UsageError, match=r"gain.*matrix"):
        quantize(graph, {"gain": "F16"}, PLAIN)
    with pytest.raises(UsageError, match="'nothing'"):
        quantize(graph, {"nothing": "F16"}, PLAIN)
    graph = graph_of(256, 40)
    graph.add(OPS["linear_dx"], "dx", graph.value("u"), graph.value("up"))
    with pytest.raises(UsageError, match="got linear_dx of dx"):
        quantize(graph, {"up": "F16"}, PLAIN)
