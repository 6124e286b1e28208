"""A graph as plain data, for the report and for comparison."""

from __future__ import annotations

from lockstep.ir import Graph, Node, Value


def graph_record(graph: Graph) -> dict[str, object]:
    """The graph's name, and its inputs and nodes with their types."""
    return {
        "name": graph.name,
        "inputs": [{**_value(i.value), "role": i.role} for i in graph.inputs.values()],
        "nodes": [_node(node) for node in graph.nodes],
    }


def _node(node: Node) -> dict[str, object]:
    return {
        "id": node.id,
        "op": node.op.name,
        "section": node.section,
        "inputs": [id for id in node.inputs if id is not None],
        "outputs": [_value(value) for value in node.outputs],
        "covers": list(node.covers),
    }


def _value(value: Value) -> dict[str, object]:
    return {"id": value.id, "dtype": value.type.dtype, "dims": list(value.type.dims)}
