"""Taking wanted rows early: no value changes, and rows that nobody wants are not made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from family_harness import EVERY_CONFIG, differences, drawn_parameters

from lockstep.families import FAMILIES, Family
from lockstep.ir import Array, Graph, InferenceShape, check, f32, i32, interpret
from lockstep.ops import OPS
from lockstep.passes import fuse, take_early

# Float64, and NumPy sums a product of few rows in another order than one of many.
ROUNDING = 1e-12
SHAPE = InferenceShape(context=12, rows=7, outs=7, slots=3)


def a_pass(family: Family[Any], config: Any, graph: Graph) -> dict[str, Array]:
    """Parameters, full caches, and rows of two sequences, of which three are wanted."""
    rng = np.random.default_rng(3)
    values: dict[str, Array] = dict(drawn_parameters(family, config))
    for role in ("cache", "state"):
        for value in graph.with_role(role):
            values[value.id] = rng.normal(size=value.type.shape({}))
    return values | {
        "tokens": rng.integers(0, config.vocab, 7).astype(np.int32),
        "positions": np.array([4, 5, 6, 7, 0, 1, 2], np.int32),
        "slots": np.array([2, 2, 2, 2, 0, 0, 0], np.int32),
        "wanted": np.array([6, 1, 3], np.int32),
    }


def results(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What a pass leaves behind: its outputs, and what its caches and states become."""
    values = interpret(graph, inputs)
    written = {target: values[id] for id, target in graph.writes.items()}
    return {name: values[id] for name, id in graph.outputs.items()} | written


def differing(graph: Graph, other: Graph, inputs: Mapping[str, Array]) -> list[str]:
    """The results that differ by more than rounding."""
    found = differences(results(graph, inputs), results(other, inputs))
    return [name for name, difference in found.items() if not difference <= ROUNDING]


def rows_of(graph: Graph, id: str) -> object:
    return graph.value(id).type.dims[0]


@pytest.mark.parametrize(("family", "config"), EVERY_CONFIG)
def test_no_value_changes(family: Family[Any], config: Any) -> None:
    whole = fuse(family.inference_graph(config, SHAPE))
    early = take_early(whole)
    assert differing(early, whole, a_pass(family, config, whole)) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_of_the_last_layer_only_keys_and_values_have_every_row(name: str) -> None:
    family = FAMILIES[name]
    at = f"layers.{family.TINY.layers - 1}"
    graph = take_early(fuse(family.inference_graph(family.TINY, SHAPE)))
    last = {n.op.name: n for n in graph.nodes if n.id.startswith(at) and n.op.row_inputs}
    whole = {n.id.removeprefix(at) for n in last.values() if rows_of(graph, n.id) == "rows"}
    assert all("attn.k" in id or "attn.v" in id or "norm1" in id for id in whole), whole
    assert rows_of(graph, f"{at}.ffn.down" if name == "gemma3" else f"{at}.ffn.add") == "outs"
    assert rows_of(graph, f"{at}.attn.core") == "outs"
    assert sum(n.op.name in ("take_rows", "take_i32") for n in graph.nodes) == 4


def test_other_rows_are_other_values() -> None:
    """The fault: one of the inserted nodes takes by another index."""
    family = FAMILIES["qwen3"]
    whole = fuse(family.inference_graph(family.TINY, SHAPE))
    early = take_early(whole)
    takes = [n for n in early.nodes if "wanted" in n.inputs]
    inputs = a_pass(family, family.TINY, whole)
    inputs["positions"][:3] = inputs["slots"][:3]  # an index that is in range wherever it is used
    for fault in takes:
        wrong = replace(fault, inputs=(fault.inputs[0], "other"))
        faulty = early.with_nodes([])
        faulty.input("other", i32("outs"), "input")
        for node in early.nodes:
            faulty.append(wrong if node is fault else node)
        assert "logits" in differing(
            check(faulty, "forward"), early, {**inputs, "other": np.array([0, 4, 5], np.int32)}
        )


def a_graph(*, is_output: bool = False, is_scored: bool = False) -> Graph:
    """Rows that are scaled twice before some are taken, and what else reads them half way."""
    graph = Graph("g", {"rows": 5, "outs": 5})
    x_MD = graph.input("x", f32("rows", 4), "input")
    wanted_B = graph.input("wanted", i32("outs"), "input")
    half_MD = graph.add(OPS["scale"], "half", x_MD, by=0.5)
    y_MD = graph.add(OPS["scale"], "y", half_MD, by=3.0)
    graph.add(OPS["take_rows"], "taken", y_MD, wanted_B)
    graph.outputs = {"taken": "taken"}
    if is_output:
        graph.outputs["half"] = half_MD.id
    if is_scored:
        other_MD = graph.add(OPS["add"], "other", half_MD, x_MD)
        graph.outputs["other"] = other_MD.id
    return check(graph, "forward")


@pytest.mark.parametrize(
    ("settings", "shorter"),
    [({}, {"half", "y"}), ({"is_output": True}, {"y"}), ({"is_scored": True}, {"y"})],
)
def test_rows_that_something_else_reads_are_all_made(
    settings: dict[str, bool], shorter: set[str]
) -> None:
    graph = a_graph(**settings)
    early = take_early(graph)
    found = {n.id for n in early.nodes if n.op.name == "scale" and rows_of(early, n.id) == "outs"}
    assert found == shorter
    inputs = {"x": np.arange(12.0).reshape(3, 4), "wanted": np.array([2, 0], np.int32)}
    assert differing(early, graph, inputs) == []
    assert results(early, inputs)["taken"].shape == (2, 4)


def test_a_take_behind_what_looks_at_other_rows_stays() -> None:
    graph = Graph("g", {"rows": 5, "outs": 5})
    x_MD = graph.input("x", f32("rows", 4), "input")
    wanted_B = graph.input("wanted", i32("outs"), "input")
    graph.outputs = {"taken": graph.add(OPS["take_rows"], "taken", x_MD, wanted_B).id}
    assert take_early(graph).nodes == graph.nodes
