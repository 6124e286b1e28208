"""graph.json: the graph that was compiled, for the eyes of a reader."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts.record import Artifact


@dataclass(frozen=True, kw_only=True)
class GraphValue:
    """A value; a dimension that is text is a count known only at the call."""

    id: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class GraphInput:
    """A value that exists before the program runs, and what it is for."""

    id: str
    dtype: str
    dims: tuple[int | str, ...]
    role: str


@dataclass(frozen=True, kw_only=True)
class GraphNode:
    """One application of an op.

    `inputs` are ids of values, absent ones left out; `covers` are the nodes fused into it.
    """

    id: str
    op: str
    section: str
    inputs: tuple[str, ...]
    outputs: tuple[GraphValue, ...]
    covers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GraphFile(Artifact, file="graph.json", schema="lockstep.graph/1"):
    """Nodes in the order in which they run.  History: 1 the first."""

    name: str
    inputs: tuple[GraphInput, ...]
    nodes: tuple[GraphNode, ...]
