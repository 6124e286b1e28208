"""go.json: whether the runbook may proceed on this run directory, with the evidence."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts.check import Check
from lockstep.artifacts.codec import keyed
from lockstep.artifacts.record import Artifact
from lockstep.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Go(Artifact, file="go.json", schema="lockstep.go/1"):
    """The checklist's four answers, and the checks behind them.  History: 1 the first."""

    go: bool = keyed("GO")
    checks: dict[str, bool]
    generated_at: str
    run_dir: str
    evidence: tuple[Check, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        clean = bool(self.checks) and all(self.checks.values())
        if self.go != clean:
            raise InputError(
                f"{self.file}: GO: expected it to follow from the checks, got {self.go}",
                hint="run `lockstep go` again",
            )
