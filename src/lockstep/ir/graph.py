"""The graph: typed values with stable path ids, and nodes in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from lockstep.errors import UsageError
from lockstep.ir.op import Attr, Op, is_optional
from lockstep.ir.type import Type
from lockstep.ir.value import Value

# `gradients` is the whole gradient arena seen as one flat tensor (its padding is zero).
# A cache has a place for every position; a state sums up all that came before.
Role = Literal["input", "parameter", "gradient", "gradients", "moment", "cache", "state"]
Section = Literal["init", "pack", "forward", "backward", "update"]
SECTIONS: tuple[Section, ...] = ("init", "pack", "forward", "backward", "update")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One application of an op.

    The first output has the node's id; further outputs add `:name`. `covers` lists the ids of the
    nodes that were fused into this one. `section` says in which part of the program it runs.
    """

    id: str
    op: Op
    inputs: tuple[str | None, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Attr]
    section: Section
    covers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Input:
    """A value that exists before the program runs, and what it is for."""

    value: Value
    role: Role


@dataclass
class Graph:
    """A program under construction.

    `symbols` bounds the counts that are known only at a call. `writes` maps a value to the input (a
    gradient, a parameter, a moment, a cache) that it becomes once its node ran: they share bytes.
    """

    name: str
    symbols: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    writes: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)  # name of the output -> value id
    section: Section = "forward"  # of the nodes that are added next
    _values: dict[str, Value] = field(default_factory=dict, repr=False)

    def input(self, id: str, type: Type, role: Role) -> Value:
        """Declares a value that exists before the program runs."""
        value = self._declare(Value(id, type))
        self.inputs[id] = Input(value, role)
        return value

    def add(self, op: Op, id: str, *inputs: Value | None, **attrs: Attr) -> Value:
        """Adds a node and returns its first output.

        Raises: UsageError if the inputs do not fit the op, or the id is taken.
        """
        return self.add_node(op, id, *inputs, **attrs)[0]

    def add_node(self, op: Op, id: str, *inputs: Value | None, **attrs: Attr) -> tuple[Value, ...]:
        """Adds a node and returns all of its outputs."""
        padded = (*inputs, *([None] * (len(op.inputs) - len(inputs))))
        node = make_node(op, id, padded, attrs, self.section)
        self.append(node)
        return node.outputs

    def append(self, node: Node) -> None:
        """Adds a finished node.

        Raises: UsageError if it reads a value that does not exist yet, or its id is taken.
        """
        for id in node.inputs:
            if id is not None:
                self.value(id)
        for value in node.outputs:
            self._declare(value)
        self.nodes.append(node)

    def value(self, id: str) -> Value:
        """The value with this id.

        Raises: UsageError if there is none.
        """
        try:
            return self._values[id]
        except KeyError:
            raise UsageError(f"graph {self.name}: no value {id!r}") from None

    def node(self, id: str) -> Node:
        """The node with this id.

        Raises: UsageError if there is none.
        """
        for node in self.nodes:
            if node.id == id:
                return node
        raise UsageError(f"graph {self.name}: no node {id!r}")

    def with_role(self, role: Role) -> list[Value]:
        """The inputs that have this role, in declared order."""
        return [i.value for i in self.inputs.values() if i.role == role]

    def producers(self) -> dict[str, Node]:
        """The node that makes each value."""
        return {value.id: node for node in self.nodes for value in node.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each value."""
        readers: dict[str, list[Node]] = {id: [] for id in self._values}
        for node in self.nodes:
            for id in dict.fromkeys(i for i in node.inputs if i is not None):
                readers[id].append(node)
        return readers

    def with_nodes(self, nodes: Iterable[Node]) -> Graph:
        """A graph with the same inputs, writes and outputs, and these nodes."""
        graph = Graph(self.name, dict(self.symbols))
        for entry in self.inputs.values():
            graph.input(entry.value.id, entry.value.type, entry.role)
        for node in nodes:
            graph.append(node)
        graph.writes, graph.outputs = dict(self.writes), dict(self.outputs)
        return graph

    def _declare(self, value: Value) -> Value:
        if value.id in self._values:
            raise UsageError(f"graph {self.name}: value {value.id!r} is defined twice")
        self._values[value.id] = value
        return value


def make_node(
    op: Op, id: str, inputs: tuple[Value | None, ...], attrs: Mapping[str, Attr], section: Section
) -> Node:
    """A node with its output types inferred.

    Raises: UsageError if the inputs or the attributes do not fit the op.
    """
    if len(inputs) != len(op.inputs):
        raise UsageError(f"{id}: {op.name} expected {len(op.inputs)} inputs, got {len(inputs)}")
    for name, value in zip(op.inputs, inputs, strict=True):
        if value is None and not is_optional(name):
            raise UsageError(f"{id}: {op.name} expected an input {name}, got none")
    if set(attrs) != set(op.attrs):
        raise UsageError(
            f"{id}: {op.name} expected attributes {sorted(op.attrs)}, got {sorted(attrs)}"
        )
    input_types = tuple(v.type if v else None for v in inputs)
    types = _output_types(op, input_types, tuple((k, type(v), v) for k, v in attrs.items()))
    names = [id, *(f"{id}:{output.partition('_')[0]}" for output in op.outputs[1:])]
    outputs = tuple(Value(n, t) for n, t in zip(names, types, strict=True))
    ids = tuple(v.id if v else None for v in inputs)
    return Node(id=id, op=op, inputs=ids, outputs=outputs, attrs=dict(attrs), section=section)


@lru_cache(maxsize=4096)  # layers repeat the same types, and every pass asks again
def _output_types(
    op: Op, input_types: tuple[Type | None, ...], attrs: tuple[tuple[str, type, Attr], ...]
) -> tuple[Type, ...]:
    types = op.infer(*input_types, **{name: value for name, _, value in attrs})
    op.sizes(input_types, types)  # refuses an axis letter with two values
    return types


def renamed(node: Node, mapping: Mapping[str, str]) -> Node:
    """The node with its inputs renamed."""
    return replace(node, inputs=tuple(mapping.get(i, i) if i else None for i in node.inputs))
