"""selftest.json: faults planted in one's own target, and whether the verification saw each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lockstep.artifacts.record import Artifact
from lockstep.errors import InputError

Outcome = Literal["caught", "missed", "passed", "false alarm", "not applicable"]
Named = Literal["yes", "no", "nothing to name"]


@dataclass(frozen=True, kw_only=True)
class MutationRow:
    """One mutation at one place.

    `by` is what caught it: coverage, type, bits, file or usage. `named` says whether `words`, which
    are the diagnosis or the message, say what was planted. `why` is why it does not apply.
    """

    section: str
    mutation: str
    place: str
    outcome: Outcome
    by: Literal["coverage", "type", "bits", "file", "usage", ""]
    named: Named
    words: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Selftest(Artifact, file="selftest.json", schema="lockstep.selftest/1"):
    """Mutations of a target that passes, none of which may pass.  History: 1 the first.

    `passed` follows from the rows: at least one was caught, none was missed, and nothing that
    changes no value raised an alarm. Units: bytes, seconds.
    """

    generated_at: str
    tool: str
    source: str
    target: str
    claims_digest: str
    seed: int
    per_rule: int
    picked: tuple[str, ...]
    left_out: tuple[str, ...]
    rows: tuple[MutationRow, ...]
    n_caught: int
    n_missed: int
    bytes_read: int
    seconds: float
    passed: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        outcomes = [row.outcome for row in self.rows]
        missed = outcomes.count("missed") + outcomes.count("false alarm")
        expected = (outcomes.count("caught"), missed, "caught" in outcomes and not missed)
        found = (self.n_caught, self.n_missed, self.passed)
        if found != expected:
            raise InputError(
                f"{self.file}: n_caught, n_missed, passed: expected them to follow from the rows, "
                f"{expected}, got {found}",
                hint="run `lockstep verify selftest` again",
            )
