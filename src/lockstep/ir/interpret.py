"""The referee: runs a graph in float64 through the reference of each op."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lockstep.errors import UsageError
from lockstep.ir.graph import SECTIONS, Graph, Node, Section
from lockstep.ir.op import Array, as_f64


def interpret(
    graph: Graph, inputs: Mapping[str, Array], sections: Collection[Section] = SECTIONS
) -> dict[str, Array]:
    """Every value of the graph by id, in float64 (integers stay integers).

    `inputs` holds the graph's inputs and, where only some sections run, what the others left.

    Raises: UsageError if a value that is needed was not given.
    """
    values = {id: as_f64(array) for id, array in inputs.items()}
    for node in graph.nodes:
        if node.section in sections:
            for value, array in zip(node.outputs, run_reference(node, values), strict=True):
                values[value.id] = array
    return values


def run_reference(node: Node, values: Mapping[str, Array]) -> tuple[Array, ...]:
    """The outputs of one node, from its op's reference.

    Raises: UsageError if a value that is needed was not given.
    """
    missing = [i for i in node.inputs if i is not None and i not in values]
    if missing:
        raise UsageError(f"{node.id}: expected a value for {missing[0]}, got none")
    arguments = (values[i] if i is not None else None for i in node.inputs)
    return node.op.reference(*arguments, **node.attrs)
