"""Fusion: an `add` of what a linear or a norm gradient makes becomes that node's own addition."""

from __future__ import annotations

from dataclasses import replace

from lockstep.ir import Graph, Node, check

# These ops end with `+ add`, the last of their inputs unless a later one is absent as well.
_ADDING = {"linear": "add_MN?", "linear_dx": "add_MK?", "rmsnorm_dx": "add_MN?"}


def fuse(graph: Graph) -> Graph:
    """The graph with every `add` folded into a node that makes one of its operands, where one may.

    The fused node takes the sum's id, covers what it swallowed, and stands where the sum stood.
    """
    producers, consumers = graph.producers(), graph.consumers()
    kept = set(graph.outputs.values()) | set(graph.writes)
    swallowed: dict[str, Node] = {}  # id of a producer -> the add that swallows it
    for node in graph.nodes:
        if node.op.name != "add":
            continue
        for id in reversed(node.inputs):
            producer = producers.get(id or "")
            if (
                producer is not None
                and _takes_add(producer)
                and producer.section == node.section
                and len(consumers[producer.id]) == 1
                and producer.id not in kept
                and producer.id not in swallowed
                and node.inputs[0] != node.inputs[1]
            ):
                swallowed[producer.id] = node
                break
    if not swallowed:
        return graph
    hosts = {node.id: producers[id] for id, node in swallowed.items()}
    nodes = [
        _fused(hosts[node.id], node) if node.id in hosts else node
        for node in graph.nodes
        if node.id not in swallowed
    ]
    return check(graph.with_nodes(nodes), "training")


def _takes_add(node: Node) -> bool:
    """Whether the node could add something, and does not yet."""
    name = _ADDING.get(node.op.name)
    return name is not None and node.inputs[node.op.inputs.index(name)] is None


def _fused(host: Node, add: Node) -> Node:
    place = host.op.inputs.index(_ADDING[host.op.name])
    other = next(i for i in add.inputs if i != host.id)
    inputs = (*host.inputs[:place], other, *host.inputs[place + 1 :])
    covers = (*host.covers, host.id, *add.covers)
    return replace(host, id=add.id, inputs=inputs, outputs=add.outputs, covers=covers)
