"""step_%08d_grad_diff_summary.json: the gradients of one step, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass, field

from lockstep.artifacts.record import Artifact


def step_grads_file(step: int) -> str:
    """The file name for a step."""
    return f"step_{step:08d}_grad_diff_summary.json"


@dataclass(frozen=True, kw_only=True)
class TensorDiff:
    """One gradient: this engine against PyTorch, in float64 arithmetic."""

    name: str
    shape: tuple[int, ...]
    numel: int
    ck_max_abs: float | None
    torch_max_abs: float | None
    max_abs_diff: float | None
    mean_abs_diff: float | None
    l2_diff: float | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class StepGrads(
    Artifact, file="step_00000001_grad_diff_summary.json", schema="lockstep.step_grads/1"
):
    """All gradients of one step; a missing or non-finite tensor has nulls and a reason.

    History: 1 the first.
    """

    step: int
    global_max_abs_diff: float | None
    global_mean_abs_diff: float | None
    global_numel: int
    worst_tensor: str
    per_tensor: tuple[TensorDiff, ...]
    not_measured: dict[str, str] = field(default_factory=dict)
