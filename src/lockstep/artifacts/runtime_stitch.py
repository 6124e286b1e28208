"""backprop_stitch_runtime_latest.json: stage D1, free-running against PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

from lockstep.artifacts.record import Artifact
from lockstep.artifacts.stage_evidence import Evidence
from lockstep.artifacts.training_parity import ParityRow


@dataclass(frozen=True, kw_only=True)
class RuntimeStitch(
    Artifact, file="backprop_stitch_runtime_latest.json", schema="lockstep.runtime_stitch/1"
):
    """D1: this run's own model, free-running against PyTorch.  History: 1 the first."""

    evidence: Evidence
    steps: tuple[ParityRow, ...]
    not_measured: dict[str, str] = field(default_factory=dict)
