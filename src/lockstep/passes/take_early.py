"""Rows that nobody wants are not made: `take_rows` moves up through the nodes in front of it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from lockstep.ir import Graph, Node, Value, check, make_node
from lockstep.ir.graph import renamed
from lockstep.ops import OPS

_TAKES = {"f32": "take_rows", "i32": "take_i32"}  # by the type of the elements


def take_early(graph: Graph) -> Graph:
    """The graph with `take_rows` moved up to where a node needs rows that it leaves out.

    A node whose rows follow from the same rows of its inputs, and which nothing else reads, works
    on the taken rows alone: of a prompt's last layer that is one row, but for keys and values.
    Nodes keep their ids and what they cover; only their outputs have fewer rows.
    """
    for take in [node for node in graph.nodes if node.op.name == "take_rows"]:
        early = _early(graph, take)
        if early:
            graph = _moved(graph, take, early)
    return check(graph, "forward")


def _early(graph: Graph, take: Node) -> set[str]:
    """The nodes of whose outputs only the taken rows are ever read, and only row by row."""
    x, _ = take.inputs
    rows = graph.value(x or "").type.dims[:1]
    consumers, kept = graph.consumers(), {*graph.outputs.values(), *graph.writes}
    early: set[str] = set()

    def is_taken(value: Value) -> bool:
        readers = consumers[value.id]
        return (
            value.id not in kept
            and value.type.dims[:1] == rows
            and all(_reads_rows(r, value.id, early) or r is take for r in readers)
        )

    for node in reversed(graph.nodes):
        is_read = any(consumers[value.id] for value in node.outputs)
        if node.op.row_inputs and is_read and all(map(is_taken, node.outputs)):
            early.add(node.id)
    return early


def _reads_rows(node: Node, id: str, early: Set[str]) -> bool:
    """Whether the node works on taken rows, and needs no others of this value."""
    names = [n for n, i in zip(node.op.inputs, node.inputs, strict=True) if i == id]
    return node.id in early and node.op.row_inputs.issuperset(names)


def _moved(graph: Graph, take: Node, early: Set[str]) -> Graph:
    x, index = take.inputs
    assert x is not None
    assert index is not None
    made = graph.with_nodes(())
    shorter = {value.id for node in graph.nodes if node.id in early for value in node.outputs}
    taken: dict[str, Value] = {}

    def of(node: Node, name: str, id: str | None) -> Value | None:
        if id is None or id in shorter or name not in node.op.row_inputs:
            return made.value(id) if id is not None else None
        if id not in taken:
            op = OPS[_TAKES[graph.value(id).type.dtype]]
            taken[id] = made.add(op, f"{take.id}.{id}", made.value(id), made.value(index))
        return taken[id]

    for node in graph.nodes:
        if node.id in early:
            inputs = (of(node, *pair) for pair in zip(node.op.inputs, node.inputs, strict=True))
            new = make_node(node.op, node.id, tuple(inputs), node.attrs, node.section)
            made.append(replace(new, covers=node.covers))
        elif node is not take:
            made.append(renamed(node, {take.id: x}))
    made.outputs = {name: x if id == take.id else id for name, id in graph.outputs.items()}
    return made
