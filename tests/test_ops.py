"""The laws that every registered op keeps; an op adds no test code."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_harness import (
    Call,
    Case,
    attrs_of,
    draw,
    error,
    infer,
    letters_of,
    reference,
    same_bits,
    type_of,
    without_optional,
)

from lockstep.ir import Graph, Kernel, Node, NotDifferentiable, Op, Value, interpret
from lockstep.ir.op import Array
from lockstep.ops import OPS

pytestmark = pytest.mark.usefixtures("kernel_builds")

CASES = [
    pytest.param(op, case, id=f"{op.name}-{i}")
    for op in OPS.values()
    for i, case in enumerate(op.cases)
]
EACH_OP = pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in OPS.values()])


def variants(op: Op, case: Case, seed: int = 0) -> list[Call]:
    """The op with its inputs drawn: all present, all optional ones absent, and not accumulating."""
    inputs = draw(op, case, seed)
    calls = [Call(op, inputs, case)]
    bare = without_optional(op, inputs)
    if any((a is None) != (b is None) for a, b in zip(inputs, bare, strict=True)):
        calls.append(Call(op, bare, case))
    if "accumulate?" in op.inputs:
        index = op.inputs.index("accumulate?")
        off = (*inputs[:index], np.array(0, np.int32), *inputs[index + 1 :])
        acc = op.inputs.index(next(n for n in op.inputs if n.startswith("acc_")))
        hidden = np.full_like(off[acc], np.nan)  # type: ignore[arg-type]
        calls.append(Call(op, (*off[:acc], hidden, *off[acc + 1 :]), case))
    return calls


def assert_near(call: Call, got: tuple[Array, ...], expected: tuple[Array, ...], who: str) -> None:
    for name, a, b in zip(call.op.outputs, got, expected, strict=True):
        if b.dtype.kind == "f":
            distance = error(a, b)
            assert distance <= call.op.tolerance.rel, f"{who} {name}: {distance:.3g} off"
        else:
            assert same_bits(a, b), f"{who} {name}"


def assert_kernels_agree(call: Call) -> None:
    expected = reference(call.op, call.inputs, call.case)
    assert_near(call, call.run(None), expected, call.op.naive)
    for kernel in call.usable():
        assert_near(call, call.run(kernel), expected, kernel.symbol)


@pytest.mark.parametrize(("op", "case"), CASES)
def test_type_rule_agrees_with_reference(op: Op, case: Case) -> None:
    for call in variants(op, case):
        types = infer(op, call.inputs, case)
        arrays = reference(op, call.inputs, case)
        assert [t.shape({}) for t in types] == [a.shape for a in arrays]
        for t, a in zip(types, arrays, strict=True):
            assert (t.dtype[0] in "iu") == (a.dtype.kind in "iu")


@pytest.mark.parametrize(("op", "case"), CASES)
def test_kernels_agree_with_reference_and_keep_guards(op: Op, case: Case) -> None:
    for call in variants(op, case):
        assert_kernels_agree(call)


@EACH_OP
@settings(max_examples=12)
@given(data=st.data())
def test_kernels_agree_for_any_size(op: Op, data: st.DataObject) -> None:
    case = dict(data.draw(st.sampled_from(op.cases)))
    for letter in letters_of(case):
        case[letter] = data.draw(st.integers(1, 3 if letter == "B" else 70), letter)
    for call in variants(op, case, data.draw(st.integers(0, 3))):
        assert_kernels_agree(call)


@pytest.mark.parametrize(("op", "case"), CASES)
def test_any_split_of_the_work_gives_the_same_bits(op: Op, case: Case) -> None:
    rng = np.random.default_rng(1)
    for call in variants(op, case):
        for kernel in call.usable():
            whole = call.run(kernel)
            n = call.n_tiles(kernel)
            if kernel.tiling == "rows":
                cuts = sorted({0, n, *rng.integers(0, n + 1, 3).tolist()})
                spans = list(pairwise(cuts))
                single = [(i, i + 1) for i in range(n)]
            else:
                spans = single = call.spans(kernel)
            for order in (spans, single[::-1]):
                shuffled = [order[i] for i in rng.permutation(len(order))]
                for some in (order, shuffled):
                    for a, b in zip(call.run(kernel, some), whole, strict=True):
                        assert same_bits(a, b), kernel.symbol


@pytest.mark.parametrize(("op", "case"), [p for p in CASES if p.values[0].inplace])
def test_working_in_place_gives_the_same_bits(op: Op, case: Case) -> None:
    for call in variants(op, case):
        for kernel in call.usable():
            for a, b in zip(call.run(kernel, inplace=True), call.run(kernel), strict=True):
                assert same_bits(a, b), kernel.symbol


@EACH_OP
def test_row_inputs_are_read_at_their_own_row_only(op: Op) -> None:
    """A row kernel that runs rows [1, 2) may not look at other rows of its row inputs."""
    for case in op.cases:
        call = variants(op, case)[0]
        for kernel in (k for k in call.usable() if k.tiling == "rows"):
            n = call.n_tiles(kernel)
            row = n // 2
            poisoned = list(call.inputs)
            for i, name in enumerate(op.inputs):
                if name in op.row_inputs and call.inputs[i] is not None:
                    other = call.inputs[i].copy()  # type: ignore[union-attr]
                    other[np.arange(n) != row] = np.nan if other.dtype.kind == "f" else 0
                    poisoned[i] = other
            clean = call.run(kernel, [(row, row + 1)])
            dirty = Call(op, tuple(poisoned), case).run(kernel, [(row, row + 1)])
            for name, a, b in zip(op.outputs, dirty, clean, strict=True):
                if name not in op.inputs:  # a state keeps its other rows
                    assert same_bits(a[row], b[row]), f"{kernel.symbol} {name}"


@EACH_OP
@settings(max_examples=20)
@given(data=st.data())
def test_nan_and_infinity_propagate_as_in_the_reference(op: Op, data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(op.cases))
    inputs = list(draw(op, case, 0))
    floats = [i for i, a in enumerate(inputs) if a is not None and a.dtype.kind == "f" and a.size]
    if not floats:
        return
    which = data.draw(st.sampled_from(floats))
    array = inputs[which].copy()  # type: ignore[union-attr]
    position = data.draw(st.integers(0, array.size - 1))
    array.reshape(-1)[position] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    inputs[which] = array
    call = Call(op, tuple(inputs), case)
    expected = reference(op, call.inputs, case)
    for kernel in (None, *call.usable()):
        for name, a, b in zip(op.outputs, call.run(kernel), expected, strict=True):
            who = f"{kernel.symbol if kernel else op.naive} {name}"
            assert np.array_equal(np.isnan(a), np.isnan(b)), who
            assert np.array_equal(a[np.isinf(b)], b[np.isinf(b)]), who
            assert np.array_equal(np.isinf(a), np.isinf(b)), who


heads_and_width = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 70))


@pytest.mark.parametrize("name", ["attention", "attention_grad"])
@settings(max_examples=15)
@given(
    shape=heads_and_width,
    tokens=st.integers(1, 140),
    window=st.one_of(st.just(0), st.integers(1, 140)),
)
def test_attention_agrees_for_any_heads_tokens_and_window(
    name: str, shape: tuple[int, int, int], tokens: int, window: int
) -> None:
    group, kv_heads, E = shape
    heads = {"heads": group * kv_heads, "kv_heads": kv_heads}
    case = {"B": 2, "E": E, **heads, "tokens": tokens, "window": window, "scale": E**-0.5}
    assert_kernels_agree(Call(OPS[name], draw(OPS[name], case, 0), case))


@pytest.mark.parametrize("element", ["f32", "f16", "q8_0"])
@settings(max_examples=10)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 90),
    window=st.sampled_from([0, 1, 30, 256]),
    heads=st.sampled_from([(2, 1), (4, 2), (3, 3), (40, 1)]),
    n_calls=st.integers(1, 6),
)
def test_cached_rows_keep_their_bits_in_any_calls(
    element: str, seed: int, rows: int, window: int, heads: tuple[int, int], n_calls: int
) -> None:
    """However several sequences are cut and mixed, rows left out or not, they get the same."""
    op, rng = OPS[f"attend_{element}"], np.random.default_rng(seed)
    case: dict[str, Any] = {"M": rows, "E": 20, "slots": 3, "depth": 600, "scale": 0.2}
    case |= {"heads": heads[0], "kv_heads": heads[1], "window": window}
    q, *caches, positions, slots, room = draw(op, case, seed)
    whole = Call(op, (q, *caches, positions, slots, room), case)
    expected = whole.run(op.kernels[-1])[0]
    marks = rng.integers(0, n_calls, (3, rows))  # the call of each row, by slot
    if seed % 2:
        marks.sort(axis=1)  # so that no call leaves rows out
    for number in range(n_calls):
        mine = np.flatnonzero(marks[slots, np.arange(rows)] == number)
        mine = np.concatenate([mine[slots[mine] == s] for s in rng.permutation(3)])
        if len(mine):
            inputs = (q[mine], *caches, positions[mine], slots[mine])
            for borrowed in (room, None):
                part = Call(op, (*inputs, borrowed), case).run(op.kernels[-1])[0]
                assert same_bits(part, expected[mine])


class Tape:
    """A gradient builder for one node: adds to the same graph and accumulates nothing."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        graph.section = "backward"

    def add(self, op: Op, id: str, *inputs: Value | None, **attrs: Any) -> Value:
        return self.graph.add(op, id, *inputs, **attrs)

    def value(self, id: str) -> Value:
        return self.graph.value(id)

    def wants(self, value: Value | None) -> bool:
        return value is not None and value.type.dtype == "f32"

    def accumulator(self, value: Value) -> tuple[Value | None, Value | None]:
        return None, None


def graph_of(call: Call) -> tuple[Graph, Node]:
    """A graph with one node that applies the op to inputs of its own."""
    graph = Graph(call.op.name)
    values = [
        graph.input(f"in{i}", type_of(array), "input") if array is not None else None
        for i, array in enumerate(call.inputs)
    ]
    graph.add(call.op, "node", *values, **attrs_of(call.op, call.case))
    return graph, graph.node("node")


@pytest.mark.parametrize(
    ("op", "case"),
    [p for p in CASES if not isinstance(p.values[0].gradient, NotDifferentiable)],
)
def test_gradient_agrees_with_finite_differences(op: Op, case: Case) -> None:
    for call in variants(op, case):
        rng = np.random.default_rng(2)
        graph, node = graph_of(call)
        weight = loss_weight(call, rng)
        upstream = graph.input("upstream", node.outputs[0].type, "input")
        assert not isinstance(op.gradient, NotDifferentiable)
        rest = [None] * (len(op.outputs) - 1)
        gradients = op.gradient(Tape(graph), node, upstream, *rest)
        assert len(gradients) == len(op.inputs)
        arrays = {f"in{i}": a for i, a in enumerate(call.inputs) if a is not None}
        values = interpret(graph, {**arrays, "upstream": weight})
        slopes = [
            (i, g, finite_difference(call, i, weight, rng))
            for i, g in enumerate(gradients)
            if g is not None
        ]
        assert slopes
        for i, gradient, (direction, slope) in slopes:
            terms = values[gradient.id] * direction
            limit = 1e-7 * float(np.abs(terms).sum() + abs(slope))
            assert abs(terms.sum() - slope) <= limit, f"input {op.inputs[i]}"


def loss_weight(call: Call, rng: np.random.Generator) -> Array:
    """The upstream gradient: random, but for a loss the scale that it was given."""
    shape = infer(call.op, call.inputs, call.case)[0].shape({})
    if "scale" in call.op.inputs:
        scale = call.inputs[call.op.inputs.index("scale")]
        assert scale is not None
        return np.full(shape, float(scale))
    return rng.standard_normal(shape)


def finite_difference(
    call: Call, which: int, weight: Array, rng: np.random.Generator
) -> tuple[Array, float]:
    """A random direction of one input, and the slope of sum(weight * output) along it."""
    base = call.inputs[which]
    assert base is not None
    direction = rng.standard_normal(base.shape)
    step = 1e-5
    ends = []
    for sign in (1.0, -1.0):
        moved = base.astype(np.float64) + sign * step * direction
        inputs = (*call.inputs[:which], moved, *call.inputs[which + 1 :])
        ends.append(float((weight * reference(call.op, inputs, call.case)[0]).sum()))
    return direction, (ends[0] - ends[1]) / (2 * step)


def rmsnorm_call() -> tuple[Call, Kernel]:
    op = OPS["rmsnorm"]
    return Call(op, draw(op, op.cases[0], 0), op.cases[0]), op.kernels[0]


def test_a_kernel_that_writes_too_far_is_caught() -> None:
    call, kernel = rmsnorm_call()
    with pytest.raises(AssertionError, match="wrote outside"):
        call.run(kernel, [(0, call.n_tiles(kernel) + 1)])


def test_a_kernel_that_leaves_rows_out_is_caught() -> None:
    call, kernel = rmsnorm_call()
    got = call.run(kernel, [(0, call.n_tiles(kernel) - 1)])
    with pytest.raises(AssertionError, match="nan off"):
        assert_near(call, got, reference(call.op, call.inputs, call.case), kernel.symbol)


def test_a_wrong_reference_is_caught() -> None:
    op, case = OPS["silu_mul"], OPS["silu_mul"].cases[0]
    broken = replace(op, reference=lambda gate, up: (gate * up,))
    with pytest.raises(AssertionError, match="off"):
        assert_kernels_agree(Call(broken, draw(broken, case, 0), case))


def test_a_wrong_gradient_is_caught() -> None:
    op, case = OPS["silu_mul"], OPS["silu_mul"].cases[0]
    assert not isinstance(op.gradient, NotDifferentiable)
    right = op.gradient
    broken = replace(op, gradient=lambda *arguments: right(*arguments)[::-1])
    with pytest.raises(AssertionError, match="input"):
        test_gradient_agrees_with_finite_differences(broken, case)
