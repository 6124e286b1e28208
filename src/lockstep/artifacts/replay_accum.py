"""replay_accum_latest.json: stage F1, a stop in the middle of an accumulation."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts.record import Artifact
from lockstep.artifacts.stage_evidence import Digests, Evidence


@dataclass(frozen=True, kw_only=True)
class ReplayAccumulation(
    Artifact, file="replay_accum_latest.json", schema="lockstep.replay_accum/1"
):
    """F1: a training that was stopped in the middle of an accumulation goes on with the same bits.

    `snapshot_micro_step` counts the windows that the stopped step had added up.
    History: 1 the first.
    """

    evidence: Evidence
    steps: int
    grad_accum: int
    snapshot_step: int
    snapshot_micro_step: int
    straight: Digests
    replayed: Digests
