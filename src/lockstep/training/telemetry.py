"""What a training tells while it runs: a line per step, and files that are replaced as it goes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.artifacts import RunDir, append_line
from lockstep.artifacts.grad_norms import GradNorms, GradNormSeries
from lockstep.artifacts.loss_curve import LossCurve, LossRow
from lockstep.artifacts.metrics import MetricRow
from lockstep.artifacts.step_profile import StepProfile
from lockstep.artifacts.train_settings import TrainSettings

SOURCE = "lockstep train"
LIVE_STEPS = 500  # what a live file shows; metrics.jsonl has every step
LIVE_SECONDS = 0.5
NO_TORCH = "PyTorch did not run beside this training; the canary and the regimen compare with it"
NOT_SPLIT = "a step is timed as a whole; `make bench` and the profile split it"
NO_LOGITS = "compared by the canary and the regimen, not while training"


@dataclass
class Telemetry:
    """Appends each step to metrics.jsonl and replaces the live files at most twice a second."""

    run: RunDir
    settings: TrainSettings
    rows: list[MetricRow] = field(default_factory=list)  # of all steps so far
    resumed_from: int = 0
    _shown: float = 0.0

    def stepped(self, row: MetricRow) -> None:
        """Writes what a step gave; it is in the file when this returns."""
        append_line(self.run.metrics, row)
        self.rows.append(row)
        if time.monotonic() - self._shown >= LIVE_SECONDS:
            self.show()

    def show(self) -> None:
        """Replaces the live files."""
        if not self.rows:
            return
        loss_curve(self.rows, self.settings, LIVE_STEPS).save(self.run.path)
        grad_norms(self.rows[-LIVE_STEPS:]).save(self.run.path)
        fresh = [row for row in self.rows if row.step > self.resumed_from]
        if fresh:
            step_profile(fresh, self.rows, self.settings).save(self.run.path)
        self._shown = time.monotonic()


def loss_rows(
    rows: Sequence[MetricRow], settings: TrainSettings, last: int | None = None
) -> tuple[LossRow, ...]:
    """The last steps (None: all) as a loss curve shows them, without a PyTorch beside them."""
    begin = 0 if last is None else max(0, len(rows) - last)
    before = [rows[begin - 1].tokens_seen if begin else 0]
    rows = rows[begin:]
    before += [row.tokens_seen for row in rows]
    return tuple(
        LossRow(
            step=row.step,
            epoch=row.epoch,
            source_stage="pretrain",
            micro_steps=settings.grad_accum,
            tokens=row.tokens_seen - seen,
            loss_ck=row.loss,
            loss_pt=None,
            lr=row.lr,
            grad_norm=row.grad_norm,
            torch_grad_norm=None,
            step_ms=row.wall_ms,
            torch_step_ms=None,
        )
        for seen, row in zip(before, rows, strict=False)
    )


def unmeasured(prefix: str) -> dict[str, str]:
    """Why the fields of a loss row that a plain training leaves open are null."""
    torch = dict.fromkeys(("loss_pt", "torch_grad_norm", "torch_step_ms"), NO_TORCH)
    split = dict.fromkeys(("forward_ms", "backward_ms", "optimizer_ms"), NOT_SPLIT)
    reasons = {**torch, **split, "logits_max_abs_diff": NO_LOGITS}
    return {f"{prefix}.{name}": reason for name, reason in reasons.items()}


def loss_curve(rows: Sequence[MetricRow], settings: TrainSettings, last: int) -> LossCurve:
    """The last steps of the curve."""
    return LossCurve(
        steps=loss_rows(rows, settings, last),
        n_steps=len(rows),
        source=SOURCE,
        not_measured=unmeasured("steps"),
    )


def grad_norms(rows: Iterable[MetricRow]) -> GradNorms:
    """The gradient norms of some steps."""
    series = grad_norm_series(rows)
    return GradNorms(steps=series.steps, global_norm=series.global_norm, source=SOURCE)


def grad_norm_series(rows: Iterable[MetricRow]) -> GradNormSeries:
    """The gradient norms of some steps, as a training report holds them."""
    pairs = [(row.step, row.grad_norm) for row in rows]
    return GradNormSeries(
        steps=tuple(step for step, _ in pairs), global_norm=tuple(norm for _, norm in pairs)
    )


def step_profile(
    fresh: Sequence[MetricRow], rows: Sequence[MetricRow], settings: TrainSettings
) -> StepProfile:
    """How fast the steps since the last start were, and the most memory that this process held."""
    total_ms = sum(row.wall_ms for row in fresh)
    seen_before = rows[len(rows) - len(fresh) - 1].tokens_seen if len(rows) > len(fresh) else 0
    tokens = rows[-1].tokens_seen - seen_before
    peak = _peak_bytes()
    names = ("torch_total_ms", "torch_avg_step_ms", "torch_tok_s", "torch_peak_bytes")
    return StepProfile(
        steps=len(fresh),
        micro_steps=len(fresh) * settings.grad_accum,
        tokens_per_update=settings.batch * settings.grad_accum * settings.seq_len,
        processed_tokens=tokens,
        threads=settings.threads,
        ck_total_ms=total_ms,
        ck_avg_step_ms=total_ms / len(fresh),
        train_tok_s=tokens / (total_ms / 1e3),
        peak_bytes=peak,
        not_measured={
            **({} if peak else {"peak_bytes": "this system has no /proc to read it from"}),
            **dict.fromkeys(names, NO_TORCH),
            "decode_tok_s": "measured when the trained model is sampled",
        },
    )


def _peak_bytes() -> int | None:
    """The most memory that this process held; ru_maxrss would count its parent's from the start."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
