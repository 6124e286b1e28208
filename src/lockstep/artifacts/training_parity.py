"""training_parity_latest.json: how far this engine and PyTorch are apart, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

from lockstep.artifacts.record import Artifact


@dataclass(frozen=True, kw_only=True)
class ParityRow:
    """One checked step; `slots` are the tensors that were compared."""

    step: int
    loss_diff: float | None
    max_param_diff: float | None
    checked: bool
    oracle_available: bool
    first_bad_tensor: str | None
    slots_compared: int
    slots_matched: int
    logits_max_abs_diff: float | None = None
    max_grad_diff: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingParity(
    Artifact, file="training_parity_latest.json", schema="lockstep.training_parity/1"
):
    """Largest differences per step.  History: 1 the first."""

    steps: tuple[ParityRow, ...]
    source: str
    not_measured: dict[str, str] = field(default_factory=dict)
