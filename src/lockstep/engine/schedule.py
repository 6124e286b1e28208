"""The learning rate of each optimizer step: warm-up, then constant, linear or cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lockstep.errors import UsageError

Decay = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The rates of one training; steps are counted from 1, as the optimizer counts them.

    The rate climbs to `peak_lr` in `warmup_steps`, then falls to `final_share` of it at the last.
    """

    decay: Decay = "cosine"
    peak_lr: float
    warmup_steps: int = 0
    total_steps: int
    final_share: float = 0.0

    def __post_init__(self) -> None:
        rules = (
            ("schedule", self.decay, self.decay in get_args(Decay), "constant, linear or cosine"),
            ("lr", self.peak_lr, 0 < self.peak_lr < 100, "more than 0, less than 100"),
            ("steps", self.total_steps, self.total_steps >= 1, "at least 1"),
            (
                "warmup-steps",
                self.warmup_steps,
                0 <= self.warmup_steps <= self.total_steps,
                f"0 to {self.total_steps}, the number of steps",
            ),
            ("final-lr-share", self.final_share, 0 <= self.final_share <= 1, "0 to 1"),
        )
        for name, value, holds, expected in rules:
            if not holds:
                raise UsageError(
                    f"{name}: expected {expected}, got {value}", hint=f"choose another --{name}"
                )

    def rate(self, step: int) -> float:
        """The rate that step applies: a float32, because that is what the program is given."""
        return float(np.float32(self.peak_lr * self._share(step)))

    def _share(self, step: int) -> float:
        if step <= self.warmup_steps:
            return step / self.warmup_steps
        if self.decay == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        progress = min(progress, 1.0)
        left = (
            1.0 - progress if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        )
        return self.final_share + (1.0 - self.final_share) * left
