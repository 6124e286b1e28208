"""training_parity_regimen_latest.json: the stages of the parity regimen and their verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lockstep.artifacts.check import Check, all_pass
from lockstep.artifacts.codec import Scalar
from lockstep.artifacts.record import Artifact
from lockstep.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FingerprintEntry:
    """A file that the verdicts depend on."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything that the verdicts depend on, by content."""

    algorithm: Literal["sha256"]
    digest: str
    entries: tuple[FingerprintEntry, ...]


@dataclass(frozen=True, kw_only=True)
class RegimenStage:
    """One stage; it passes only if it has checks and each of them passed."""

    id: str
    name: str
    status: Literal["PASS", "FAIL", "SKIPPED"]
    duration_s: float
    command: str
    artifact_json: str
    artifact_log: str | None
    metrics: dict[str, Scalar]
    checks: tuple[Check, ...]
    notes: str
    rc: int

    def __post_init__(self) -> None:
        clean = all_pass(self.checks)
        if self.status == "PASS" and not clean:
            raise InputError(
                f"regimen stage {self.id}: status: expected it to follow from the checks, got PASS",
                hint="run the regimen again",
            )


@dataclass(frozen=True, kw_only=True)
class RegimenSummary:
    """The verdict over all stages."""

    passed: bool
    failed_stage_ids: tuple[str, ...]
    total_stages: int
    passed_stages: int
    stage_profile: str


@dataclass(frozen=True, kw_only=True)
class Regimen(
    Artifact, file="training_parity_regimen_latest.json", schema="lockstep.parity_regimen/1"
):
    """The whole regimen; `skipped` says that an equal fingerprint let an older pass stand.

    History: 1 the first.
    """

    generated_at: str
    run_dir: str
    skipped: bool
    skip_reason: str
    fingerprint: Fingerprint
    config: dict[str, Scalar]
    summary: RegimenSummary
    stages: tuple[RegimenStage, ...]
    not_measured: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        failed = tuple(stage.id for stage in self.stages if stage.status != "PASS")
        passed = bool(self.stages) and not failed
        if self.summary.passed != passed or self.summary.failed_stage_ids != failed:
            raise InputError(
                f"{self.file}: summary: expected it to follow from the stages, "
                f"got passed={self.summary.passed}, failed {self.summary.failed_stage_ids}",
                hint="run the regimen again",
            )

    def stage(self, id: str) -> RegimenStage | None:
        """The stage with this id, if it ran."""
        return next((stage for stage in self.stages if stage.id == id), None)
