"""The manifest of a program: everything that a caller must know, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from lockstep.ir import Graph, Plan, Value

SCHEMA = "lockstep.program/1"


def manifest_record(
    graph: Graph,
    plan: Plan,
    entries: Mapping[str, int],
    places: Sequence[Mapping[str, object]],
) -> dict[str, object]:
    """The manifest; `places` says for each node where its code is."""
    values = {i.value.id: _value(graph, plan, i.value, i.role) for i in graph.inputs.values()}
    for node in graph.nodes:
        values |= {v.id: _value(graph, plan, v, "computed") for v in node.outputs}
    nodes = [
        {
            "index": index,
            "id": node.id,
            "op": node.op.name,
            "section": node.section,
            "covers": list(node.covers),
            "inputs": list(node.inputs),
            "outputs": [value.id for value in node.outputs],
            **place,
        }
        for index, (node, place) in enumerate(zip(graph.nodes, places, strict=True))
    ]
    return {
        "schema": SCHEMA,
        "name": graph.name,
        "mode": plan.mode,
        "arenas": [{"name": name, "n_bytes": n} for name, n in plan.arenas.items()],
        "values": values,
        "nodes": nodes,
        "entries": dict(entries),
        "symbols": dict(graph.symbols),
        "outputs": dict(graph.outputs),
        "guards": [asdict(guard) for guard in plan.guards],
    }


def _value(graph: Graph, plan: Plan, value: Value, role: str) -> dict[str, object]:
    spot = plan.spots[value.id]
    return {
        "arena": spot.arena,
        "offset": spot.offset,
        "dtype": value.type.dtype,
        "dims": list(value.type.shape(graph.symbols)),
        "symbols": [dim if isinstance(dim, str) else None for dim in value.type.dims],
        "role": role,
    }
