"""demo.json: the closing table of the demo."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts.check import Check, all_pass
from lockstep.artifacts.codec import Scalar
from lockstep.artifacts.record import Artifact
from lockstep.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DemoPart:
    """One part of the demo and how long it took.  Units: seconds."""

    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Demo(Artifact, file="demo.json", schema="lockstep.demo/1"):
    """What was checked, how much of it, verdict and figure.  History: 1 the first."""

    generated_at: str
    run_dir: str
    lockstep_version: str
    machine: dict[str, Scalar]
    seconds: float
    parts: tuple[DemoPart, ...]
    passed: bool
    checks: tuple[Check, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        clean = all_pass(self.checks)
        if self.passed != clean:
            raise InputError(
                f"{self.file}: passed: expected it to follow from the checks, got {self.passed}",
                hint="run `lockstep demo` again",
            )
