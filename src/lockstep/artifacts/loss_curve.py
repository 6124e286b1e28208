"""training_loss_curve_latest.json: the loss, step by step, replaced while training runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from lockstep.artifacts.record import Artifact


@dataclass(frozen=True, kw_only=True)
class LossRow:
    """One optimizer step; `_ck` and `ck_` are this engine, `_pt` and `torch_` are PyTorch.

    Units: losses in nats per token, times in ms; `tokens` are those of this step; `lr` was applied;
    norms are taken before clipping.
    """

    step: int
    epoch: int
    source_stage: str
    micro_steps: int
    tokens: int
    loss_ck: float
    loss_pt: float | None
    lr: float
    grad_norm: float
    torch_grad_norm: float | None
    step_ms: float
    torch_step_ms: float | None
    logits_max_abs_diff: float | None = None
    forward_ms: float | None = None
    backward_ms: float | None = None
    optimizer_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class LossCurve(Artifact, file="training_loss_curve_latest.json", schema="lockstep.loss_curve/1"):
    """The last steps, oldest first; `n_steps` counts all of them.  History: 1 the first."""

    steps: tuple[LossRow, ...]
    n_steps: int
    source: str
    not_measured: dict[str, str] = field(default_factory=dict)
