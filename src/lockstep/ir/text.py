"""The text form of a graph: it prints and parses back to an equal graph."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import get_args

from lockstep.errors import InputError, LockstepError
from lockstep.ir.graph import Graph, Node, Role, Section
from lockstep.ir.op import Op
from lockstep.ir.type import parse_type
from lockstep.ir.value import Value

_INPUT = re.compile(r"input (\S+): (\S+) (\w+)")
_NODE = re.compile(r"  (.+?) = (\w+)\((.*?)\) (\{.*?\})(?: covers (.+))?")
_PAIR = re.compile(r"(write|output) (\S+) -> (\S+)")


def print_graph(graph: Graph) -> str:
    """The graph as text, one line for each input and node."""
    lines = [f"graph {json.dumps(graph.name)} {json.dumps(graph.symbols)}"]
    lines += [f"input {i.value.id}: {i.value.type} {i.role}" for i in graph.inputs.values()]
    section: Section | None = None
    for node in graph.nodes:
        if node.section != section:
            section = node.section
            lines.append(f"{section}:")
        lines.append(f"  {_print_node(node)}")
    lines += [f"write {value} -> {target}" for value, target in graph.writes.items()]
    lines += [f"output {name} -> {value}" for name, value in graph.outputs.items()]
    return "\n".join(lines) + "\n"


def _print_node(node: Node) -> str:
    outputs = ", ".join(f"{v.id}: {v.type}" for v in node.outputs)
    inputs = ", ".join(i or "-" for i in node.inputs)
    covers = f" covers {' '.join(node.covers)}" if node.covers else ""
    return f"{outputs} = {node.op.name}({inputs}) {json.dumps(dict(node.attrs))}{covers}"


def parse_graph(text: str, ops: Mapping[str, Op]) -> Graph:
    """Reads what `print_graph` printed.

    Raises: InputError with the line that cannot be read.
    """
    graph: Graph | None = None
    section: Section = "forward"
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if graph is None:
                name, symbols = re.fullmatch(r'graph (".*") (\{.*\})', line).groups()  # type: ignore[union-attr]
                graph = Graph(json.loads(name), json.loads(symbols))
            elif line.endswith(":") and line[:-1] in get_args(Section):
                section = line[:-1]  # type: ignore[assignment]
            else:
                _parse_line(graph, line, section, ops)
        except (AttributeError, KeyError, ValueError, LockstepError) as error:
            raise InputError(f"graph text, line {number}: cannot read {line!r}: {error}") from error
    if graph is None:
        raise InputError("graph text: expected a line 'graph NAME SYMBOLS', got an empty text")
    return graph


def _parse_line(graph: Graph, line: str, section: Section, ops: Mapping[str, Op]) -> None:
    if match := _INPUT.fullmatch(line):
        if match[3] not in get_args(Role):
            raise ValueError(f"unknown role {match[3]}")
        graph.input(match[1], parse_type(match[2]), match[3])  # type: ignore[arg-type]
    elif match := _PAIR.fullmatch(line):
        graph.value(match[3] if match[1] == "output" else match[2])
        (graph.writes if match[1] == "write" else graph.outputs)[match[2]] = match[3]
    elif match := _NODE.fullmatch(line):
        outputs = [part.split(": ") for part in match[1].split(", ")]
        inputs = [None if i == "-" else i for i in match[3].split(", ")] if match[3] else []
        graph.append(
            Node(
                id=outputs[0][0],
                op=ops[match[2]],
                inputs=tuple(inputs),
                outputs=tuple(Value(id, parse_type(type)) for id, type in outputs),
                attrs=json.loads(match[4]),
                section=section,
                covers=tuple((match[5] or "").split()),
            )
        )
    else:
        raise ValueError("expected an input, a node, a write or an output")
