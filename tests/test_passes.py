"""Passes: what they change, and that they change no value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from program_harness import bits_differ, random_inputs, small_graph

from lockstep.build import training_graph
from lockstep.errors import UsageError
from lockstep.ir import (
    ALIGN_BYTES,
    Array,
    CheckError,
    Graph,
    Mode,
    Node,
    ParallelStage,
    Plan,
    Schedule,
    check,
    f32,
    interpret,
    padded,
    parse_graph,
    print_graph,
)
from lockstep.ops import OPS
from lockstep.passes import (
    OptimizerSpec,
    add_optimizer,
    autodiff,
    fuse,
    pack,
    plan_memory,
    schedule,
)
from lockstep.passes.schedule import tile_rows

BACKWARD = ("init", "pack", "forward", "backward")


def gradients(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The gradient of each parameter, in float64."""
    values = interpret(graph, inputs, BACKWARD)
    return {state: values[v] for v, state in graph.writes.items() if state.endswith("@grad")}


def wide(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in inputs.items()}


def lowered(layers: int = 2, rows: int = 40) -> Graph:
    graph = small_graph(layers, rows)
    decayed = [p.id for p in graph.with_role("parameter") if len(p.type.dims) > 1]
    return pack(training_graph(graph, OptimizerSpec(weight_decay=0.1), decayed))


def test_gradient_is_that_of_finite_differences(rng: np.random.Generator) -> None:
    graph = autodiff(small_graph(rows=6, width=4, ffn=5))
    inputs = wide(random_inputs(graph))
    found = gradients(graph, inputs)

    def loss(changed: Mapping[str, Array]) -> float:
        values = interpret(graph, {**inputs, **changed}, ("init", "forward"))
        return float(values["loss.sum"] * inputs["scale"])

    step = 1e-5
    for parameter in graph.with_role("parameter"):
        at = inputs[parameter.id]
        direction = rng.standard_normal(at.shape)
        slope = loss({parameter.id: at + step * direction}) - loss(
            {parameter.id: at - step * direction}
        )
        expected = float((found[f"{parameter.id}@grad"] * direction).sum())
        assert slope / (2 * step) == pytest.approx(expected, rel=1e-5, abs=1e-9), parameter.id


def test_gradients_accumulate_over_calls() -> None:
    graph = autodiff(small_graph())
    inputs = wide(random_inputs(graph))
    once = gradients(graph, inputs)
    twice = gradients(graph, {**inputs, **once, "accumulate": np.int32(1)})
    for id, gradient in once.items():
        np.testing.assert_allclose(twice[id], 2 * gradient, rtol=1e-12, atol=1e-15)
    stale = {id: np.full_like(g, np.nan) for id, g in once.items()}
    assert not bits_differ(gradients(graph, {**inputs, **stale}), once)


def test_ops_without_gradient_and_unused_parameters_are_named() -> None:
    graph = small_graph()
    graph.input("spare", f32(3), "parameter")
    with pytest.raises(UsageError, match="expected the loss to use spare"):
        autodiff(graph)
    with pytest.raises(UsageError, match="expected a node 'los'"):
        autodiff(small_graph(), loss="los")
    graph = small_graph()
    add = graph.node("layers.0.add")
    stuck = replace(add, op=replace(add.op, gradient=OPS["add"].gradient))
    forbidden = replace(OPS["add"], gradient=OPS["rmsnorm_dx"].gradient)
    nodes = [replace(stuck, op=forbidden) if n is add else n for n in graph.nodes]
    with pytest.raises(UsageError, match=r"layers\.0\.add \(add\) has no gradient: it is itself"):
        autodiff(graph.with_nodes(nodes))


def test_fusion_folds_every_add_and_changes_no_value() -> None:
    graph = autodiff(small_graph())
    fused = fuse(graph)
    assert {n.op.name for n in graph.nodes} - {n.op.name for n in fused.nodes} == {"add"}
    assert fused.node("layers.0.add").covers == ("layers.0.down",)
    assert fused.node("layers.1.norm@sum").op.name == "linear_dx"
    assert fused.node("layers.0.add@sum").covers == ("layers.1.norm@dx",)
    inputs = wide(random_inputs(graph))
    before, after = interpret(graph, inputs, BACKWARD), interpret(fused, inputs, BACKWARD)
    assert not bits_differ({id: after[id] for id in after}, before)


def test_fusion_keeps_a_producer_that_others_read() -> None:
    graph = Graph("two readers")
    x_MK, w_NK = graph.input("x", f32(3, 4), "input"), graph.input("w", f32(4, 4), "parameter")
    y_MN = graph.add(OPS["linear"], "y", x_MK, w_NK)
    graph.outputs = {"sum": graph.add(OPS["add"], "sum", x_MK, y_MN).id, "y": y_MN.id}
    assert [n.id for n in fuse(graph).nodes] == ["y", "sum"]
    graph.outputs = {"sum": "sum"}
    assert [n.id for n in fuse(graph).nodes] == ["sum"]
    double = Graph("both operands")
    x_MK, w_NK = double.input("x", f32(3, 4), "input"), double.input("w", f32(4, 4), "parameter")
    y_MN = double.add(OPS["linear"], "y", x_MK, w_NK)
    double.outputs = {"sum": double.add(OPS["add"], "sum", y_MN, y_MN).id}
    assert [n.id for n in fuse(double).nodes] == ["y", "sum"]


def test_packing_changes_no_value_and_packs_each_weight_once() -> None:
    graph = fuse(autodiff(small_graph()))
    packed = pack(graph)
    ids = [n.id for n in packed.nodes if n.section == "pack"]
    assert ids.count("embed.weight@pack") == ids.count("embed.weight@pack_dx") == 1
    assert not {"linear", "linear_dx"} & {n.op.name for n in packed.nodes}
    inputs = wide(random_inputs(graph))
    before, after = gradients(graph, inputs), gradients(packed, inputs)
    for id, gradient in before.items():
        np.testing.assert_allclose(after[id], gradient, rtol=1e-12, atol=1e-15)


def test_optimizer_decays_only_what_it_is_told() -> None:
    graph = lowered()
    decay = {n.id: n.attrs["weight_decay"] for n in graph.nodes if n.op.name == "adamw"}
    assert decay["embed.weight@adamw"] == 0.1
    assert decay["layers.0.norm.weight@adamw"] == decay["layers.0.gate.bias@adamw"] == 0.0
    assert set(decay) == {f"{p.id}@adamw" for p in graph.with_role("parameter")}
    assert graph.outputs == {"loss": "loss.sum", "grad_norm": "clip"}
    plain = add_optimizer(autodiff(small_graph()), OptimizerSpec(kind="sgd"), decayed=[])
    assert not plain.with_role("moment")
    with pytest.raises(UsageError, match=r"optimizer beta2: .* got 1\.0"):
        OptimizerSpec(beta2=1.0)


def test_lowered_graph_prints_and_parses_back() -> None:
    text = print_graph(lowered())
    assert print_graph(parse_graph(text, OPS)) == text


def test_each_pass_leaves_a_graph_that_the_checker_accepts() -> None:
    graph = lowered()
    check(graph, "lowered")
    with pytest.raises(CheckError, match="in section pack, which this stage does not have"):
        check(graph, "training")
    swapped = [*graph.nodes[1:], graph.nodes[0]]
    with pytest.raises(UsageError, match=r"no value 'layers\.0\.gate\.weight@pack'"):
        check(graph.with_nodes(swapped), "lowered")


def broken_edges(graph: Graph, stages: tuple[ParallelStage, ...]) -> list[str]:
    """Every edge that the stages do not respect."""
    stage_of, place, broken = {}, {}, []
    for number, stage in enumerate(stages):
        stage_of.update((node.id, number) for node in stage.nodes)
        for c, chain in enumerate(stage.chains):
            place.update((node.id, (number, c, i)) for i, node in enumerate(chain.nodes))
    producers = graph.producers()
    for stage in stages:
        for node in stage.nodes:
            for name, id in zip(node.op.inputs, node.inputs, strict=True):
                producer = producers.get(id or "")
                if producer is None or producer.id not in stage_of:
                    continue
                if stage_of[producer.id] < stage_of[node.id]:
                    continue
                here, there = place.get(node.id), place.get(producer.id)
                together = here is not None and there is not None and here[:2] == there[:2]
                if not (together and there < here and name in node.op.row_inputs):  # type: ignore[operator]
                    broken.append(f"{producer.id} -> {node.id}")
    return broken


def test_stages_respect_every_edge_and_hold_every_node_once() -> None:
    graph = lowered()
    order = schedule(graph)
    assert list(order.entries) == ["init", "forward", "repack", "step", "update"]
    for entry in ("init", "forward", "step", "update"):
        assert broken_edges(graph, order.entries[entry]) == []
    ids = [n.id for stage in order.entries["step"] for n in stage.nodes]
    assert sorted(ids) == sorted(n.id for n in graph.nodes if n.section in ("forward", "backward"))
    early = order.entries["step"][0], order.entries["step"][2], order.entries["step"][1]
    assert broken_edges(graph, (*early, *order.entries["step"][3:]))


def test_few_barriers() -> None:
    """Without attention, rows run through forward and backward in one chain; the rest is tiles."""
    for layers in (1, 5):
        assert len(schedule(lowered(layers)).entries["step"]) <= 3


def test_tiles_of_rows_depend_on_the_rows_alone() -> None:
    assert [tile_rows(n) for n in (1, 8, 40, 64, 256, 512, 4096)] == [16, 16, 16, 16, 64, 128, 128]


def overwritten(graph: Graph, order: Schedule, plan: Plan) -> list[str]:
    """Runs the stages on a map of who owns which bytes; values lost before they are read."""
    owner: dict[tuple[str, int], str] = {}
    lost = []

    def blocks(id: str) -> list[tuple[str, int]]:
        spot = plan.spots[id]
        n_bytes = padded(graph.value(id).type.n_bytes(graph.symbols))
        return [(spot.arena, spot.offset + i) for i in range(0, n_bytes, ALIGN_BYTES)]

    def own(id: str) -> None:
        owner.update((block, id) for block in blocks(id))

    def same(a: str, b: str) -> bool:
        return graph.writes.get(a, a) == graph.writes.get(b, b)

    def read(node: Node) -> None:
        own_ids = {value.id for value in node.outputs}
        for name, id in zip(node.op.inputs, node.inputs, strict=True):
            if id is None or id in graph.inputs:
                continue
            fine = own_ids if name.startswith("acc_") else set()  # a sum may grow in its place
            taken = [b for b in blocks(id) if not same(owner[b], id) and owner[b] not in fine]
            lost.extend(f"{node.id} reads {id}" for _ in taken)

    for id in graph.inputs:
        own(id)
    for entry in ("init", "step", "step", "update"):
        for stage in order.entries[entry]:
            for chain in stage.chains:
                for node in chain.nodes:
                    read(node)
                    for value in node.outputs:
                        own(value.id)
            for node in stage.tiles:  # in any order beside the chains: nobody's place may be taken
                for value in node.outputs:
                    own(value.id)
            for node in stage.tiles:
                read(node)
                for value in node.outputs:
                    taken = [b for b in blocks(value.id) if not same(owner[b], value.id)]
                    lost.extend(f"{node.id} loses {value.id}" for _ in taken)
    return lost


@pytest.mark.parametrize("mode", ["reuse", "keep"])
@pytest.mark.parametrize("layers", [1, 4])
def test_no_value_is_overwritten_before_its_last_reader(mode: Mode, layers: int) -> None:
    graph = lowered(layers)
    order = schedule(graph)
    plan = plan_memory(graph, order, mode=mode)
    assert overwritten(graph, order, plan) == []
    spots = {**plan.spots, "layers.0.gate": plan.spots["layers.0.up"]}
    assert overwritten(graph, order, replace(plan, spots=spots))


def test_reuse_is_smaller_and_keep_shares_nothing() -> None:
    graph = lowered(6)
    order = schedule(graph)
    reuse, keep = (plan_memory(graph, order, mode=mode) for mode in ("reuse", "keep"))
    assert reuse.arenas["work"] < 0.9 * keep.arenas["work"]
    own = [id for id in keep.spots if id not in graph.writes and id != "gradients"]
    spans = sorted(
        (s.arena, s.offset, s.offset + graph.value(id).type.n_bytes(graph.symbols))
        for id, s in keep.spots.items()
        if id in own
    )
    for before, after in pairwise(spans):
        assert before[0] != after[0] or before[2] <= after[1]


def test_guards_lie_around_every_buffer() -> None:
    graph = small_graph()
    training = training_graph(graph, OptimizerSpec(), [], guards=True)
    order = schedule(training)
    plan = plan_memory(training, order, mode="keep", guards=True)
    behind = {g.after: g for g in plan.guards}
    for id, spot in plan.spots.items():
        if id in training.writes or id == "gradients":
            continue
        n_bytes = training.value(id).type.n_bytes(training.symbols)
        assert behind[id].offset == spot.offset + n_bytes
        assert behind[id].n_bytes >= 64
    assert training.value("gradients").type.n_bytes({}) == plan.arenas["grads"]
    with pytest.raises(UsageError, match="expected guards only in mode keep"):
        plan_memory(training, order, mode="reuse", guards=True)
