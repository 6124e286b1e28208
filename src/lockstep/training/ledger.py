"""The ledger of a run: a line when a training starts, and one when it ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from lockstep.artifacts import RunDir, append_line, read_lines, run_stamp, utc_now
from lockstep.artifacts.metrics import MetricRow
from lockstep.artifacts.run_ledger import LedgerRow, Status, current
from lockstep.artifacts.train_settings import TrainSettings
from lockstep.errors import LockstepError
from lockstep.training.prepare import Prepared

_OPEN = "the training has not ended yet"
_NONE = "no step was done"


@dataclass
class Ledger:
    """One training in the ledger of its run."""

    run: RunDir
    row: LedgerRow

    @property
    def run_id(self) -> str:
        """The training's id; a resumed training keeps the one it started with."""
        return self.row.run_id

    @classmethod
    def start(
        cls,
        run: RunDir,
        settings: TrainSettings,
        prepared: Prepared,
        *,
        steps: int,
        resume: bool,
        resumed_from: int,
    ) -> Ledger:
        """Opens a new training, or the last one again if it is resumed, and writes its line."""
        rows = current(read_lines(run.ledger, LedgerRow)) if run.ledger.exists() else ()
        again = rows[-1] if rows and resume else None
        run_id = again.run_id if again else _new_id(run, settings.tokenizer)
        row = LedgerRow(
            run_order=again.run_order if again else len(rows) + 1,
            run_id=run_id,
            parent_run_id=again.parent_run_id if again else (rows[-1].run_id if rows else None),
            resume_from_step=resumed_from,
            stage_id="pretrain",
            stage_pass=again.stage_pass if again else len(rows) + 1,
            phase_label="pretrain",
            status="running",
            dataset=str(prepared.path),
            dataset_name=prepared.qc.dataset_name,
            dataset_sha256=prepared.sha256,
            lr=settings.lr,
            seq_len=settings.seq_len,
            total_tokens=steps * settings.batch * settings.grad_accum * settings.seq_len,
            steps=steps,
            pack_mode=settings.packing,
            started_at=again.started_at if again else utc_now(),
            ended_at=None,
            loss_first=None,
            loss_final=None,
            loss_min=None,
            loss_min_step=None,
            checkpoint_step=None,
            checkpoint_id=None,
            work_dir=str(run.work(run_id).relative_to(run.path)),
            not_measured=dict.fromkeys(_LATER, _OPEN),
        )
        append_line(run.ledger, row)
        return cls(run, row)

    @contextmanager
    def closing(self, rows: Sequence[MetricRow]) -> Iterator[None]:
        """Writes a line that says `failed` if the training ends with an error."""
        try:
            yield
        except LockstepError:
            self.end(rows, "failed")
            raise

    def end(self, rows: Sequence[MetricRow], status: Status) -> None:
        """Writes how the training ended: `completed`, `interrupted` or `failed`."""
        best = min(rows, key=lambda row: row.loss, default=None)
        step = rows[-1].step if rows else None
        saved = step is not None and status != "failed"
        reasons = {} if rows else dict.fromkeys(_LATER, _NONE)
        if rows and not saved:
            reasons = {"checkpoint_step": "the last step was not saved"}
        self.row = replace(
            self.row,
            status=status,
            ended_at=utc_now(),
            loss_first=rows[0].loss if rows else None,
            loss_final=rows[-1].loss if rows else None,
            loss_min=best.loss if best else None,
            loss_min_step=best.step if best else None,
            checkpoint_step=step if saved else None,
            checkpoint_id=f"step_{step:08d}" if saved else None,
            not_measured=reasons,
        )
        append_line(self.run.ledger, self.row)


_LATER = ("loss_first", "loss_final", "loss_min", "loss_min_step", "checkpoint_step")


def _new_id(run: RunDir, kind: str) -> str:
    """An id with this moment in it, that no other training of the run has."""
    stem = f"{kind}_{run_stamp()}"
    names = (stem, *(f"{stem}_{n}" for n in range(2, 1000)))
    return next(name for name in names if not run.work(name).exists())
