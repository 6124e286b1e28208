"""The gradient of the loss with respect to every parameter, as nodes of the same graph."""

from __future__ import annotations

from lockstep.errors import UsageError
from lockstep.ir import Attr, Graph, Node, NotDifferentiable, Op, Value, check, i32
from lockstep.ops import OPS


def autodiff(graph: Graph, *, loss: str = "loss") -> Graph:
    """The graph with a backward section that leaves the gradient of each parameter in `<id>@grad`.

    The node `loss` starts it: its rule knows its own gradient. Gradients are added to what a call
    before left when the input `accumulate` is not 0.

    Raises: UsageError if an op on the way has no gradient, or the loss does not use a parameter.
    """
    builder = _Builder(graph)
    forward = [node for node in graph.nodes if node.section == "forward"]
    starts = False
    for node in reversed(forward):
        starts = starts or node.id == loss
        d_outputs = tuple(builder.total(value) for value in node.outputs)
        if node.id == loss or any(d_outputs):
            builder.visit(node, d_outputs)
    if not starts:
        raise UsageError(f"autodiff of {graph.name}: expected a node {loss!r}, got none")
    builder.close()
    return check(builder.graph, "training")


class _Builder:
    """What gradient rules see: the graph under construction, and who still waits for a gradient."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph.with_nodes(graph.nodes)
        self.graph.section = "backward"
        self._accumulate = self.graph.input("accumulate", i32(), "input")
        parameters = graph.with_role("parameter")
        self._states = {
            p.id: self.graph.input(f"{p.id}@grad", p.type, "gradient") for p in parameters
        }
        self._latest: dict[str, Value] = {}  # parameter -> the end of its accumulation so far
        self._parts: dict[str, list[Value]] = {}  # value -> its contributions, in order
        self._wanted = set(self._states)
        for node in graph.nodes:
            if node.section == "forward" and self._wanted.intersection(i for i in node.inputs if i):
                self._wanted.update(v.id for v in node.outputs)

    def add(self, op: Op, id: str, *inputs: Value | None, **attrs: Attr) -> Value:
        """Adds a node and returns its first output."""
        return self.add_node(op, id, *inputs, **attrs)[0]

    def add_node(self, op: Op, id: str, *inputs: Value | None, **attrs: Attr) -> tuple[Value, ...]:
        """Adds a node and returns all of its outputs."""
        return self.graph.add_node(op, id, *inputs, **attrs)

    def value(self, id: str) -> Value:
        """The value with this id."""
        return self.graph.value(id)

    def wants(self, value: Value | None) -> bool:
        """Whether a parameter lies behind the value."""
        return value is not None and value.id in self._wanted

    def accumulator(self, value: Value) -> tuple[Value | None, Value | None]:
        """The state with its flag for the first contribution to a parameter, then the last sum."""
        if value.id not in self._states:
            return None, None
        if value.id in self._latest:
            return self._latest[value.id], None
        return self._states[value.id], self._accumulate

    def total(self, value: Value) -> Value | None:
        """The sum of all contributions to the value's gradient."""
        parts = self._parts.get(value.id)
        if not parts:
            return None
        total = parts[0]
        for number, part in enumerate(parts[1:], 1):
            suffix = "@sum" if number == 1 else f"@sum{number}"
            total = self.add(OPS["add"], f"{value.id}{suffix}", total, part)
        return total

    def visit(self, node: Node, d_outputs: tuple[Value | None, ...]) -> None:
        """Adds what the node's rule says, and hands its results to the node's inputs."""
        if not any(self.wants(self.value(i)) for i in node.inputs if i):
            return
        rule = node.op.gradient
        if isinstance(rule, NotDifferentiable):
            raise UsageError(f"autodiff: {node.id} ({node.op.name}) has no gradient: {rule.why}")
        gradients = rule(self, node, *d_outputs)
        for id, gradient in zip(node.inputs, gradients, strict=True):
            if id is None or gradient is None:
                continue
            if id in self._states:
                self._latest[id] = gradient
            elif id in self._wanted:
                self._parts.setdefault(id, []).append(gradient)

    def close(self) -> None:
        """Writes each finished gradient to its state."""
        for id, state in self._states.items():
            if id not in self._latest:
                raise UsageError(
                    f"autodiff of {self.graph.name}: expected the loss to use {id}, it does not",
                    hint="take the parameter out of the weight table",
                )
            self.graph.writes[self._latest[id].id] = state.id
