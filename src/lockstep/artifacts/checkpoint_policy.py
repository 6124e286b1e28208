"""training_checkpoint_policy_latest.json: which checkpoints there are, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lockstep.artifacts.record import Artifact


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """One checkpoint; paths are relative to the run directory, `weights` counts tensors."""

    step: int
    reason: str
    bump: str
    manifest: str
    weights: int
    floats: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one training, newest last."""

    enabled: bool
    save_every: int
    save_final: bool
    count: int
    latest_step: int | None
    files: tuple[CheckpointFile, ...]


@dataclass(frozen=True, kw_only=True)
class CheckpointPolicy(
    Artifact,
    file="training_checkpoint_policy_latest.json",
    schema="lockstep.checkpoint_policy/1",
):
    """What is saved when, and what is kept.  History: 1 the first."""

    policy: Literal["step_interval", "none"]
    source: str
    checkpointing: bool
    save_every: int
    save_final: bool
    keep_last: int
    count: int
    latest_step: int | None
    files: tuple[CheckpointFile, ...]
    not_measured: dict[str, str] = field(default_factory=dict)
