"""The checker: what must hold for a graph at each stage; it runs after every pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from lockstep.errors import LockstepError
from lockstep.ir.graph import SECTIONS, Graph, Node, make_node

Stage = Literal["forward", "training", "lowered"]

# A forward graph has no gradients yet; only a lowered graph has packed weights.
_SECTIONS: dict[Stage, tuple[str, ...]] = {
    "forward": ("init", "forward"),
    "training": ("init", "forward", "backward", "update"),
    "lowered": SECTIONS,
}


class CheckError(LockstepError):
    """A graph breaks a rule of its stage: a pass or a family is wrong."""


def check(graph: Graph, stage: Stage) -> Graph:
    """Returns the graph unchanged if it keeps the rules of the stage.

    Raises: CheckError that names the node and the rule.
    """
    for problem in problems(graph, stage):
        raise CheckError(f"graph {graph.name}, stage {stage}: {problem}")
    return graph


def problems(graph: Graph, stage: Stage) -> Iterator[str]:
    """Every rule that the graph breaks, one sentence each."""
    defined = set(graph.inputs)
    position = 0
    for node in graph.nodes:
        for id in node.inputs:
            if id is not None and id not in defined:
                yield f"{node.id} reads {id} before it is written"
                return
        yield from _type_problems(graph, node)
        if node.section not in _SECTIONS[stage]:
            yield f"{node.id} is in section {node.section}, which this stage does not have"
        elif SECTIONS.index(node.section) < position:
            yield f"{node.id} ({node.section}) comes after a later section"
        position = max(position, SECTIONS.index(node.section))
        for value in node.outputs:
            if value.id in defined:
                yield f"{value.id} is defined twice"
            defined.add(value.id)
    yield from _edge_problems(graph, defined)


def _type_problems(graph: Graph, node: Node) -> Iterator[str]:
    inputs = tuple(graph.value(i) if i else None for i in node.inputs)
    try:
        inferred = make_node(node.op, node.id, inputs, node.attrs, node.section)
    except LockstepError as error:
        yield str(error)
        return
    for have, expected in zip(node.outputs, inferred.outputs, strict=True):
        if have.type != expected.type:
            yield f"{have.id}: expected type {expected.type}, got {have.type}"
        symbols = [d for d in have.type.dims if isinstance(d, str)]
        yield from (f"{have.id}: unknown symbol {s}" for s in symbols if s not in graph.symbols)


def _edge_problems(graph: Graph, defined: set[str]) -> Iterator[str]:
    for value, target in graph.writes.items():
        if target not in graph.inputs or graph.inputs[target].role in ("input",):
            yield f"write of {value}: {target} is not a state of the program"
        elif value not in defined:
            yield f"write of {value}: there is no such value"
        elif graph.value(value).type != graph.value(target).type:
            yield f"write of {value}: its type is not that of {target}"
    if len(set(graph.writes.values())) != len(graph.writes):
        yield "two values are written to one state"
    for name, value in graph.outputs.items():
        if value not in defined:
            yield f"output {name}: no value {value}"
