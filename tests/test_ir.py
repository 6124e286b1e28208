"""The graph room: text form, checker, arenas and the referee."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.errors import InputError, UsageError
from lockstep.ir import (
    CheckError,
    Graph,
    Value,
    check,
    f32,
    flat_layout,
    interpret,
    parse_graph,
    parse_type,
    print_graph,
)
from lockstep.ops import OPS

ADD, RMSNORM, LINEAR = OPS["add"], OPS["rmsnorm"], OPS["linear"]


def small_graph() -> Graph:
    """A norm, a linear and a residual add."""
    graph = Graph("small", {"rows": 7})
    x_MD = graph.input("x", f32("rows", 6), "input")
    gain_D = graph.input("norm.weight", f32(6), "parameter")
    w_NK = graph.input("up.weight", f32(6, 6), "parameter")
    y_MD = graph.add(RMSNORM, "norm", x_MD, gain_D, eps=1e-5)
    up_MN = graph.add(LINEAR, "up", y_MD, w_NK)
    graph.outputs["y"] = graph.add(ADD, "sum", up_MN, x_MD).id
    return graph


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Chains and trees of adds and norms over random earlier values."""
    graph = Graph(draw(st.text(min_size=1, max_size=8)), {"rows": draw(st.integers(1, 9))})
    width = draw(st.integers(2, 5))
    values = [graph.input("x", f32("rows", width), "input")]
    gain_D = graph.input("gain", f32(width), "parameter")
    for i in range(draw(st.integers(1, 6))):
        a_MD = draw(st.sampled_from(values))
        if draw(st.booleans()):
            values.append(graph.add(ADD, f"layers.{i}.add", a_MD, draw(st.sampled_from(values))))
        else:
            eps = draw(st.floats(1e-9, 1.0))
            values.append(graph.add(RMSNORM, f"layers.{i}.norm", a_MD, gain_D, eps=eps))
    graph.outputs["y"] = values[-1].id
    return graph


@given(graphs())
def test_text_parses_back_to_an_equal_graph(graph: Graph) -> None:
    again = parse_graph(print_graph(graph), OPS)
    assert again == graph
    assert print_graph(again) == print_graph(graph)


def test_text_keeps_sections_covers_and_writes() -> None:
    graph = small_graph()
    state = graph.input("state", f32("rows", 6), "cache")
    graph.writes["sum"] = state.id
    graph.nodes[-1] = replace(graph.nodes[-1], covers=("a", "b"), section="backward")
    again = parse_graph(print_graph(graph), OPS)
    assert again.nodes[-1].covers == ("a", "b")
    assert again.nodes[-1].section == "backward"
    assert again.writes == {"sum": "state"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("rmsnorm(", "nonsense("),
        lambda text: text.replace("norm.weight)", "no.such.value)"),
        lambda text: text.replace("f32[", "f24["),
        lambda text: text.replace("graph ", "grap "),
        lambda text: text + "  broken line\n",
        lambda text: "",
    ],
)
def test_damaged_text_is_refused(damage) -> None:
    text = print_graph(small_graph())
    assert damage(text) != text
    with pytest.raises(InputError, match="graph text"):
        parse_graph(damage(text), OPS)


def test_checker_accepts_a_good_graph() -> None:
    graph = small_graph()
    assert check(graph, "forward") is graph


def _wrong_type(graph: Graph) -> None:
    node = graph.nodes[1]
    graph.nodes[1] = replace(node, outputs=(Value(node.id, f32("rows", 5)),))


def _wrong_order(graph: Graph) -> None:
    graph.nodes.reverse()


def _wrong_section(graph: Graph) -> None:
    graph.nodes[0] = replace(graph.nodes[0], section="update")


def _unknown_symbol(graph: Graph) -> None:
    graph.symbols.clear()


def _write_to_an_input(graph: Graph) -> None:
    graph.writes["sum"] = "x"


def _no_such_output(graph: Graph) -> None:
    graph.outputs["z"] = "nothing"


@pytest.mark.parametrize(
    "fault",
    [
        _wrong_type,
        _wrong_order,
        _wrong_section,
        _unknown_symbol,
        _write_to_an_input,
        _no_such_output,
    ],
)
def test_checker_catches_a_planted_fault(fault) -> None:
    graph = small_graph()
    fault(graph)
    with pytest.raises(CheckError, match="graph small, stage forward"):
        check(graph, "forward")


def test_graph_refuses_bad_nodes() -> None:
    graph = small_graph()
    x_MD, w_NK = graph.value("x"), graph.value("up.weight")
    with pytest.raises(UsageError, match="defined twice"):
        graph.add(ADD, "sum", x_MD, x_MD)
    with pytest.raises(UsageError, match="attributes"):
        graph.add(RMSNORM, "norm2", x_MD, graph.value("norm.weight"))
    with pytest.raises(UsageError, match="expected an input"):
        graph.add(LINEAR, "down", None, w_NK)
    with pytest.raises(UsageError):
        graph.add(ADD, "bad", x_MD, w_NK)
    with pytest.raises(UsageError, match="no node"):
        graph.node("nothing")


def test_referee_runs_in_float64() -> None:
    rng = np.random.default_rng(0)
    x_MD, gain_D, w_NK = rng.normal(size=(7, 6)), rng.normal(size=6), rng.normal(size=(6, 6))
    inputs = {"x": x_MD, "norm.weight": gain_D, "up.weight": w_NK}
    values = interpret(small_graph(), {k: v.astype(np.float32) for k, v in inputs.items()})
    x, gain, w = (a.astype(np.float32).astype(np.float64) for a in (x_MD, gain_D, w_NK))
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain
    assert values["sum"].dtype == np.float64
    np.testing.assert_allclose(values["sum"], y @ w.T + x, rtol=1e-13, atol=1e-13)


def test_referee_names_what_is_missing() -> None:
    with pytest.raises(UsageError, match=r"up: expected a value for up\.weight"):
        interpret(small_graph(), {"x": np.ones((7, 6)), "norm.weight": np.ones(6)})


def test_types_print_and_parse() -> None:
    assert str(parse_type("f32[rows,64]")) == "f32[rows,64]"
    assert parse_type("f64[]").dims == ()
    for text in ("f24[2]", "f32", "f32[2", "f32[-1]"):
        with pytest.raises(UsageError):
            parse_type(text)
    with pytest.raises(UsageError, match="at least 1"):
        f32(0)


def test_arena_tensors_start_at_cache_lines_and_do_not_overlap() -> None:
    values = [Value("a", f32(3)), Value("b", f32(17)), Value("c", f32(2, 2))]
    layout = flat_layout(values, {})
    assert layout.offsets == {"a": 0, "b": 64, "c": 192}
    assert layout.n_bytes == 256
