"""replay_determinism_latest.json: stage E1, the same training twice."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts.record import Artifact
from lockstep.artifacts.stage_evidence import Digests, Evidence


@dataclass(frozen=True, kw_only=True)
class ReplayDeterminism(
    Artifact, file="replay_determinism_latest.json", schema="lockstep.replay_determinism/1"
):
    """E1: the same training twice gives the same bits.  History: 1 the first."""

    evidence: Evidence
    steps: int
    first: Digests
    second: Digests
