"""faults.json: faults planted into the emitted C, and whom `compare` named for each."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts.record import Artifact
from lockstep.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FaultRow:
    """One fault; `named` is the node that was named, or empty.

    `nodes` may be named: one for a fault inside a node, those of a stage for one between nodes.
    `how` says what gave the node away; `reason` explains a miss.
    """

    program: str
    op: str
    phase: str
    kind: str
    what: str
    nodes: tuple[str, ...]
    named: str
    right: bool
    how: str
    seconds: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Faults(Artifact, file="faults.json", schema="lockstep.faults/1"):
    """A campaign; faults that changed no bit, or did not compile, were drawn again and count apart.

    History: 1 the first.
    """

    generated_at: str
    seed: int
    planted: int
    named: int
    share: float
    bound: float
    passed: bool
    redrawn_inert: int
    redrawn_uncompilable: int
    wall_s: float
    programs: tuple[str, ...]
    ops: tuple[str, ...]  # all that the programs have
    rows: tuple[FaultRow, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        named = sum(row.right and row.named in row.nodes for row in self.rows)
        share = named / len(self.rows) if self.rows else 0.0
        clean = bool(self.rows) and share >= self.bound
        told = (self.planted, self.named, self.share, self.passed)
        if told != (len(self.rows), named, share, clean):
            raise InputError(
                f"{self.file}: passed: expected figures that follow from the rows, got {told}",
                hint="run `lockstep faults` again",
            )
