"""The curves of both implementations, matched by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lockstep.artifacts.metrics import MetricRow
from lockstep.artifacts.pipeline_report import LOSS_MAX
from lockstep.artifacts.train_report import TrainReport
from lockstep.artifacts.train_torch_ref import TorchReference
from lockstep.report.evidence import RunEvidence

MAX_POINTS = 1500


@dataclass(frozen=True, kw_only=True)
class Series:
    """One quantity over steps; None where a side has no such step."""

    ours: tuple[float | None, ...]
    torch: tuple[float | None, ...]
    bound: float | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One training; `note` says what cannot be shown, and why."""

    id: str
    label: str
    steps: tuple[int, ...]
    loss: Series
    grad_norm: Series
    note: str


Points = Mapping[int, tuple[float | None, float | None]]  # step -> loss, gradient norm


def curves_of(run: RunEvidence) -> tuple[Curve, ...]:
    """The canaries and the training of the run itself, where there are any."""
    canaries = (
        _curve(
            f"canary{c.row}",
            f"Canary, row {c.row}",
            _ours(c.train),
            _torch(c.torch),
            c.pipeline.bound_of(LOSS_MAX) if c.pipeline else None,
        )
        for c in run.canaries
    )
    main = _from_metrics(run.metrics) or _ours(run.train)
    found = (*canaries, _curve("run", "This run", main, _torch(run.torch), None))
    return tuple(curve for curve in found if curve.steps)


def _ours(report: TrainReport | None) -> Points:
    rows = report.loss_curve if report else ()
    return {row.step: (row.loss_ck, row.grad_norm) for row in rows}


def _from_metrics(rows: Sequence[MetricRow]) -> Points:
    return {row.step: (row.loss, row.grad_norm) for row in rows}


def _torch(reference: TorchReference | None) -> Points:
    rows = reference.loss_curve if reference else ()
    return {row.step: (row.loss, row.grad_norm) for row in rows}


def _curve(id: str, label: str, ours: Points, torch: Points, bound: float | None) -> Curve:
    steps = sorted(ours.keys() | torch.keys())
    shown = _thinned(steps, ours if ours else torch)
    lone = [s for s in steps if (s in ours) != (s in torch)] if ours and torch else []
    notes = []
    if not torch:
        notes.append("PyTorch did not train along, so there is no difference to show.")
    if not ours:
        notes.append("This engine left no curve.")
    if lone:
        notes.append(f"{len(lone)} of {len(steps)} steps are on one side only, first {lone[0]}.")
    if len(shown) < len(steps):
        notes.append(f"{len(shown)} of {len(steps)} steps are drawn; peaks are kept.")
    return Curve(
        id=id,
        label=label,
        steps=tuple(shown),
        loss=_series(shown, ours, torch, 0, bound),
        grad_norm=_series(shown, ours, torch, 1, None),
        note=" ".join(notes),
    )


def _series(
    steps: Sequence[int], ours: Points, torch: Points, which: int, bound: float | None
) -> Series:
    nothing = (None, None)
    return Series(
        ours=tuple(ours.get(step, nothing)[which] for step in steps),
        torch=tuple(torch.get(step, nothing)[which] for step in steps),
        bound=bound,
    )


def _thinned(steps: list[int], points: Points) -> list[int]:
    """At most MAX_POINTS steps: of each bucket the first, the lowest and the highest loss."""
    if len(steps) <= MAX_POINTS:
        return steps
    width = -(-3 * len(steps) // MAX_POINTS)
    kept = {steps[-1]}
    for start in range(0, len(steps), width):
        bucket = [s for s in steps[start : start + width] if s in points]
        losses = {s: points[s][0] or 0.0 for s in bucket}
        if losses:
            kept |= {bucket[0], min(losses, key=losses.__getitem__)}
            kept.add(max(losses, key=losses.__getitem__))
    return sorted(kept)
