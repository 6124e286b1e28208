"""Packing: linears whose kernel works by rows read their weight from panels packed once."""

from __future__ import annotations

from dataclasses import replace

from lockstep.ir import Attr, Graph, Node, check, make_node
from lockstep.ops import OPS

# What takes the place of an op that reads a weight; the attribute is the size that panels hide.
_PACKED = {
    "linear": ("linear_packed", "pack_linear", "pack", "N", "n"),
    "linear_dx": ("linear_dx_packed", "pack_linear_dx", "pack_dx", "K", "k"),
}


def pack(graph: Graph) -> Graph:
    """The graph with a pack section, which runs again after each update."""
    packs: dict[str, Node] = {}
    nodes = [_packed(graph, node, packs) for node in graph.nodes]
    if not packs:
        return graph
    first = [node for node in nodes if node.section == "init"]
    rest = [node for node in nodes if node.section != "init"]
    return check(graph.with_nodes([*first, *packs.values(), *rest]), "lowered")


def _packed(graph: Graph, node: Node, packs: dict[str, Node]) -> Node:
    if node.op.name not in _PACKED:
        return node
    name, packer, suffix, letter, attr = _PACKED[node.op.name]
    types = tuple(graph.value(i).type if i else None for i in node.inputs)
    sizes = node.op.sizes(types, tuple(v.type for v in node.outputs))
    weight = graph.value(node.inputs[1] or "")
    if weight.id not in graph.inputs or node.op.kernel(sizes, node.attrs).tiling != "rows":
        return node
    id = f"{weight.id}@{suffix}"
    if id not in packs:
        packs[id] = make_node(OPS[packer], id, (weight,), {}, "pack")
    x, _, *more = (graph.value(i) if i else None for i in node.inputs)
    width = sizes[letter]
    assert isinstance(width, int)  # only rows are symbols
    attrs: dict[str, Attr] = {attr: width}
    inputs = (x, packs[id].outputs[0], *more)
    made = make_node(OPS[name], node.id, inputs, attrs, node.section)
    return replace(made, covers=node.covers)
