"""run_ledger.jsonl: one line whenever a training of the run starts, and one when it ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from lockstep.artifacts.record import Artifact

Status = Literal["running", "interrupted", "completed", "failed"]


@dataclass(frozen=True, kw_only=True)
class LedgerRow(Artifact, file="run_ledger.jsonl", schema="lockstep.run_ledger/1"):
    """One training at one moment; losses are null until there are any.  History: 1 the first."""

    run_order: int
    run_id: str
    parent_run_id: str | None
    resume_from_step: int
    stage_id: str
    stage_pass: int
    phase_label: str
    status: Status
    dataset: str
    dataset_name: str
    dataset_sha256: str
    lr: float
    seq_len: int
    total_tokens: int
    steps: int
    pack_mode: str
    started_at: str
    ended_at: str | None
    loss_first: float | None
    loss_final: float | None
    loss_min: float | None
    loss_min_step: int | None
    checkpoint_step: int | None
    checkpoint_id: str | None
    work_dir: str
    not_measured: dict[str, str] = field(default_factory=dict)


def current(rows: Iterable[LedgerRow]) -> tuple[LedgerRow, ...]:
    """One row per training, as it stands now, in the order in which they started."""
    by_id: dict[str, LedgerRow] = {}
    for row in rows:
        by_id[row.run_id] = row
    return tuple(sorted(by_id.values(), key=lambda row: row.run_order))
