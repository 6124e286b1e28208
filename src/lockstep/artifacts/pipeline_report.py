"""pipeline_report.json, as parity_pipeline.json in a canary: one pipeline and its true status."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lockstep.artifacts.check import Check, all_pass
from lockstep.artifacts.codec import Scalar
from lockstep.artifacts.record import Artifact
from lockstep.errors import InputError

CANARY_FILE = "parity_pipeline.json"

# How the ids of a canary's checks end.
LOSS_MAX, LOSS_MEAN, PARAM_MAX = "loss_max", "loss_mean", "param_max"


@dataclass(frozen=True, kw_only=True)
class LossSummary:
    """A loss curve in five numbers."""

    steps: int
    first: float
    final: float
    min: float
    min_step: int


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What a gate wrote and said."""

    status: Literal["pass", "fail", "skipped"]
    path: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class PipelineReport(Artifact, file="pipeline_report.json", schema="lockstep.pipeline_report/1"):
    """One way from data to weights; `pass` only if there are checks and each of them passed.

    `artifacts` are paths relative to the run directory.  History: 1 the first.
    """

    status: Literal["pass", "fail"]
    failures: tuple[str, ...]
    generated_at: str
    run_id: str
    run_dir: str
    dataset: str
    dataset_sha256: str
    tokenizer: str
    curriculum_stage: str
    train_driver: str
    training: dict[str, Scalar]
    artifacts: dict[str, str]
    dataset_qc: GateResult
    tokenizer_roundtrip: GateResult
    post_train_eval: GateResult
    ck_loss: LossSummary | None
    torch_loss: LossSummary | None
    checks: tuple[Check, ...]
    not_measured: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        clean = all_pass(self.checks)
        if (self.status == "pass") != (clean and not self.failures):
            raise InputError(
                f"{self.file}: status: expected it to follow from checks and failures, "
                f"got {self.status!r}",
                hint="run the pipeline again",
            )

    def bound_of(self, ending: str) -> float | None:
        """The bound of the check whose id ends so, if there is one."""
        return next((check.bound for check in self.checks if check.id.endswith(ending)), None)
