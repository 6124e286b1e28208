"""training_grad_norms_latest.json: gradient norms before clipping."""

from __future__ import annotations

from dataclasses import dataclass, field

from lockstep.artifacts.codec import keyed
from lockstep.artifacts.record import Artifact


@dataclass(frozen=True, kw_only=True)
class GradNormSeries:
    """One entry per step: over all parameters, and per tensor where that was measured."""

    steps: tuple[int, ...]
    global_norm: tuple[float, ...] = keyed("global")
    params: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GradNorms(Artifact, file="training_grad_norms_latest.json", schema="lockstep.grad_norms/1"):
    """The last steps, oldest first.  History: 1 the first."""

    steps: tuple[int, ...]
    global_norm: tuple[float, ...] = keyed("global")
    params: dict[str, tuple[float, ...]] = field(default_factory=dict)
    source: str
