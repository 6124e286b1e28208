"""The part that the evidence files of the stages D1, E1 and F1 have in common."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts.check import Check, all_pass
from lockstep.artifacts.codec import Scalar
from lockstep.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The common part: what ran on which inputs, and the checks that decide."""

    stage: str
    generated_at: str
    passed: bool
    run_dir: str
    command: str
    host: dict[str, Scalar]
    inputs: dict[str, str]
    config: dict[str, Scalar]
    checks: tuple[Check, ...]

    def __post_init__(self) -> None:
        clean = all_pass(self.checks)
        if self.passed != clean:
            raise InputError(
                f"stage {self.stage}: passed: expected it to follow from the checks, "
                f"got {self.passed}",
                hint="run the regimen again",
            )


@dataclass(frozen=True, kw_only=True)
class Digests:
    """SHA-256 of the bytes of one training's results; `losses` are the float32 of every step."""

    losses: str
    params: str
    moments: str
