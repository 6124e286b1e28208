"""What lowering adds to a graph: the order of parallel stages, and a place for every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lockstep.ir.graph import Node
from lockstep.ir.op import Kernel
from lockstep.ir.type import Dim

Mode = Literal["reuse", "keep"]
ARENAS = ("params", "grads", "m", "v", "io", "cache", "work")


@dataclass(frozen=True, slots=True)
class Chain:
    """Row-tiled nodes that run one after another on each tile of rows, without a barrier."""

    nodes: tuple[Node, ...]
    rows: Dim
    tile_rows: int


@dataclass(frozen=True, slots=True)
class ParallelStage:
    """What runs between two barriers: no tile of it needs another of its chains or nodes."""

    chains: tuple[Chain, ...]
    tiles: tuple[Node, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, those of chains first."""
        return (*(node for chain in self.chains for node in chain.nodes), *self.tiles)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The stages of each entry point, the kernel of each node, and when each node runs.

    `timeline` numbers the stages of all sections in the order in which they first run.
    """

    entries: Mapping[str, tuple[ParallelStage, ...]]
    kernels: Mapping[str, Kernel]
    timeline: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a value lies; both in bytes."""

    arena: str
    offset: int


@dataclass(frozen=True, slots=True)
class GuardSpot:
    """Bytes behind a value (in front of all, if `after` is empty) that must keep their pattern."""

    arena: str
    offset: int
    n_bytes: int
    pattern: int
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A place for every value, and how long the arenas are in bytes."""

    mode: Mode
    spots: Mapping[str, Spot]
    arenas: Mapping[str, int]
    guards: tuple[GuardSpot, ...]
