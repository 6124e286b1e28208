"""compare.json: two executions of one graph, node by node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lockstep.artifacts.record import Artifact
from lockstep.errors import InputError

Phase = Literal["init", "pack", "forward", "backward", "update"]


@dataclass(frozen=True, kw_only=True)
class NodeRow:
    """One value of one node: `cumulative` on each side's own inputs, `local` on the same inputs.

    Units: errors are max |a-b| over the scale of the reference. The bound is for the local error,
    or for the cumulative one where no local one can be had. Beside another implementation both are
    root mean squares, and `peer_error` is that implementation's. A culprit has a local error of its
    own, a victim only inherits one.
    """

    id: str
    op: str
    phase: Phase
    n_values: int
    cumulative_error: float | None
    local_error: float | None
    peer_error: float | None
    bound: float | None
    bound_why: str
    verdict: Literal["ok", "culprit", "victim", "not_compared"]
    c_line: int | None
    covers: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Guilty:
    """The first node with an error of its own, the line of C that runs it, and its kernel's."""

    id: str
    op: str
    phase: Phase
    c_file: str
    c_line: int | None
    kernel_source: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One pair of executions; nothing compared is not a pass."""

    left: str
    right: str
    passed: bool
    nodes_compared: int
    values_compared: int
    first_guilty: Guilty | None
    nodes: tuple[NodeRow, ...]

    def __post_init__(self) -> None:
        bad = any(row.verdict in ("culprit", "victim") for row in self.nodes)
        clean = self.nodes_compared > 0 and self.first_guilty is None and not bad
        if self.passed and not clean:
            raise InputError(
                f"comparison of {self.left} and {self.right}: expected a pass to follow from the "
                f"nodes, got one over {self.nodes_compared} nodes",
                hint="run `lockstep compare` again",
            )


@dataclass(frozen=True, kw_only=True)
class Compare(Artifact, file="compare.json", schema="lockstep.compare/1"):
    """All pairs that were compared on one batch.  History: 1 the first."""

    generated_at: str
    run_dir: str
    graph: str
    batch: str
    passed: bool
    comparisons: tuple[Comparison, ...]
    not_measured: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        clean = bool(self.comparisons) and all(pair.passed for pair in self.comparisons)
        if self.passed != clean:
            raise InputError(
                f"{self.file}: passed: expected it to follow from the comparisons, "
                f"got {self.passed}",
                hint="run `lockstep compare` again",
            )
