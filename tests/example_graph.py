"""A graph file of a small decoder: forward, backward and update sections."""

from __future__ import annotations

from lockstep.artifacts.graph_file import GraphFile, GraphInput, GraphNode, GraphValue

LAYERS = 3


def graph_record(hostile: str = "") -> GraphFile:
    """The graph; `hostile` becomes a part of one node's id."""
    nodes: list[GraphNode] = []

    def add(id: str, op: str, *read: str, section: str = "forward") -> str:
        outputs = (GraphValue(id=id, dtype="f32", dims=("M", 96)),)
        nodes.append(GraphNode(id=id, op=op, section=section, inputs=read, outputs=outputs))
        return id

    x = add("embed", "embedding", "tokens", "embed.weight")
    for layer in range(LAYERS):
        p = f"layers.{layer}"
        h = add(f"{p}.attn.norm", "rmsnorm", x)
        q, k, v = (add(f"{p}.attn.{name}", "linear", h) for name in "qkv")
        q, k = (add(f"{id}.rope", "rope", id) for id in (q, k))
        x = add(f"{p}.attn.add", "add", x, add(f"{p}.attn.mix", "attention", q, k, v))
        h = add(f"{p}.ffn.norm", "rmsnorm", x)
        gate, up = (add(f"{p}.ffn.{name}", "linear", h) for name in ("gate", "up"))
        down = add(f"{p}.ffn.down", "linear", add(f"{p}.ffn.mul", "silu_mul", gate, up))
        x = add(f"{p}.ffn.add", "add", x, down)
    add("loss" + hostile, "cross_entropy", add("head", "linear", add("norm", "rmsnorm", x)))

    made: dict[str, str] = {}
    forward = list(nodes)
    for node in reversed(forward):
        readers = [made[other.id] for other in forward if node.id in other.inputs]
        reads = (*readers, *node.inputs[:1])
        made[node.id] = add(f"{node.id}@d", f"{node.op}_bwd", *reads, section="backward")
    for layer in range(LAYERS):
        add(f"layers.{layer}.adamw", "adamw", f"layers.{layer}.attn.q@d", section="update")
    names = (("tokens", "input"), ("embed.weight", "parameter"))
    inputs = (GraphInput(id=id, dtype="f32", dims=("M",), role=role) for id, role in names)
    return GraphFile(name="qwen3 training", inputs=tuple(inputs), nodes=tuple(nodes))
