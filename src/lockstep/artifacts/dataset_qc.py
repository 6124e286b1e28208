"""dataset_qc.json: whether a data set may be trained on, written for a failure too."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from lockstep.artifacts.record import Artifact
from lockstep.errors import InputError

Gate = Literal["pass", "fail", "skipped"]


@dataclass(frozen=True, kw_only=True)
class QcChecks:
    """The gates, by the runbook's names and ours; a gate that was not asked for is skipped."""

    utf8_gate: Gate
    non_empty_gate: Gate
    ascii_gate: Gate
    svg_row_gate: Gate
    contract_gate: Gate
    duplicates_gate: Gate
    row_length_gate: Gate

    @property
    def failed(self) -> tuple[str, ...]:
        """The gates that failed."""
        return tuple(name for name, gate in asdict(self).items() if gate == "fail")


@dataclass(frozen=True, kw_only=True)
class QcViolation:
    """One place where a gate failed."""

    gate: str
    line_no: int
    problem: str


@dataclass(frozen=True, kw_only=True)
class DatasetQc(Artifact, file="dataset_qc.json", schema="lockstep.dataset_qc/1"):
    """What the gates found; `violations` holds the first of each gate.  History: 1 the first.

    Units: bytes; max_row_chars in characters; max_duplicate_ratio as a share of the rows.
    """

    status: Literal["pass", "fail"]
    path: str
    dataset_dir: str
    dataset_name: str
    sha256: str
    total_lines: int
    non_empty_lines: int
    bytes: int
    require_ascii: bool
    require_svg_rows: bool
    require_contract: bool
    max_row_chars: int
    max_duplicate_ratio: float
    ascii_violations: int
    svg_violations: int
    contract_violations: int
    duplicate_rows: int
    over_long_rows: int
    checks: QcChecks
    violations: tuple[QcViolation, ...]
    generated_at: str

    def __post_init__(self) -> None:
        passed = not self.checks.failed and self.non_empty_lines > 0
        if (self.status == "pass") != passed:
            raise InputError(
                f"dataset_qc.json: status: expected it to follow from the checks, got "
                f"{self.status!r} with {', '.join(self.checks.failed) or 'no failed gate'}",
                hint="check the data set again",
            )
