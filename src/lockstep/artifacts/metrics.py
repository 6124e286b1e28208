"""metrics.jsonl: one line per optimizer step, appended and flushed as the step ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lockstep.artifacts.record import Artifact, read_lines


@dataclass(frozen=True, kw_only=True)
class MetricRow(Artifact, file="metrics.jsonl", schema="lockstep.metrics/1"):
    """One step.  Units: loss in nats per token, tok_s in tokens per second, wall_ms of the step.

    `grad_norm` is taken before clipping, `lr` was applied.  History: 1 the first.
    """

    step: int
    epoch: int
    loss: float
    grad_norm: float
    lr: float
    tok_s: float
    wall_ms: float
    tokens_seen: int


def read_metrics(path: Path) -> tuple[MetricRow, ...]:
    """The steps in order; a step that a resumed training ran again counts as it ran last.

    Raises: InputError naming the line and the key.
    """
    return latest_per_step(read_lines(path, MetricRow))


def latest_per_step(rows: Iterable[MetricRow]) -> tuple[MetricRow, ...]:
    """One row per step: the last one written."""
    by_step = {row.step: row for row in rows}
    return tuple(by_step[step] for step in sorted(by_step))
