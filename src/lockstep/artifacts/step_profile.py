"""training_step_profile_latest.json: how fast training runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from lockstep.artifacts.record import Artifact


@dataclass(frozen=True, kw_only=True)
class StepProfile(
    Artifact, file="training_step_profile_latest.json", schema="lockstep.step_profile/1"
):
    """Totals since this training started or resumed; `tok_s` are tokens per second.

    Units: times in ms, peaks in bytes.  History: 1 the first.
    """

    steps: int
    micro_steps: int
    tokens_per_update: int
    processed_tokens: int
    threads: int
    ck_total_ms: float
    ck_avg_step_ms: float
    train_tok_s: float
    torch_total_ms: float | None = None
    torch_avg_step_ms: float | None = None
    torch_tok_s: float | None = None
    decode_tok_s: float | None = None
    peak_bytes: int | None = None
    torch_peak_bytes: int | None = None
    not_measured: dict[str, str] = field(default_factory=dict)
