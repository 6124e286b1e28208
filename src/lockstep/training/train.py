"""`train`: data set, tokenizer, windows, program, loop, records; or all of it from a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lockstep.artifacts import RunDir, Scalar
from lockstep.artifacts.metrics import MetricRow, read_metrics
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.train_report import TrainReport
from lockstep.artifacts.train_settings import TrainSettings
from lockstep.build import Model, OptimizerSpec, model_of, training_program
from lockstep.data.pack import Batches, Cursor
from lockstep.engine.checkpoint import Checkpoint, Skipped, newest_valid
from lockstep.engine.durable import remove_leftovers
from lockstep.engine.initialise import initialise
from lockstep.engine.schedule import Schedule
from lockstep.engine.trainer import TrainingSession, sequences_per_call
from lockstep.errors import InputError, UsageError
from lockstep.training.create import differences, refuse_differences
from lockstep.training.ledger import Ledger
from lockstep.training.lock import sole_training
from lockstep.training.loop import Budget, Loop, Position, stop_on_signals
from lockstep.training.observer import Identity, Progress, RunObserver
from lockstep.training.prepare import Prepared, prepare
from lockstep.training.records import Facts, save_all
from lockstep.training.settings import (
    replacing_training,
    resolve_settings,
    restore_replaced,
    with_warmup,
)
from lockstep.training.telemetry import Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """What was asked for; `settings` and `dims` hold only what was said, the rest has defaults."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    dims: Mapping[str, Scalar] = field(default_factory=dict)
    data: Path | None = None
    resume: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOutcome:
    """How a training ended; `interrupted` holds the signal that ended it early."""

    run_id: str
    report: TrainReport | None
    skipped: tuple[Skipped, ...]
    interrupted: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A training that is ready to be built."""

    run: RunDir
    config: TrainConfig
    settings: TrainSettings
    model: Model
    prepared: Prepared
    budget: Budget
    requested: dict[str, Scalar]
    checkpoint: Checkpoint | None
    skipped: tuple[Skipped, ...]

    @property
    def position(self) -> Position:
        """Where to begin."""
        if self.checkpoint is None:
            return Position(0, Cursor(), 0)
        state = self.checkpoint.state
        return Position(
            state.step, Cursor(state.cursor.epoch, state.cursor.index), state.tokens_seen
        )


def train(run: RunDir, request: TrainRequest, progress: Progress | None = None) -> TrainOutcome:
    """Trains a run to its end, from the start or from its newest valid checkpoint.

    Raises: UsageError if what is asked for is not what the run has; what `prepare` raises;
    GateError if the loss stops being a finite number; EnvironmentLacks if the disk refuses.
    """
    with sole_training(run.require()):
        return _train(run, request, progress)


def _train(run: RunDir, request: TrainRequest, progress: Progress | None) -> TrainOutcome:
    restore_replaced(run)
    remove_leftovers(run.checkpoints)
    keep_data = request.data is None
    with replacing_training(run, keep_data=keep_data) if request.force else nullcontext():
        job = _ready(run, request)
        session = _session(job)
    position = job.position
    rows = _earlier_rows(run, position.step)
    ledger = Ledger.start(
        run, job.settings, job.prepared,
        steps=job.budget.total_steps, resume=request.resume, resumed_from=position.step,
    )  # fmt: skip
    observer = RunObserver(
        run,
        Identity(
            run_id=ledger.run_id,
            config=job.config,
            settings=job.settings,
            tokenizer_sha256=job.prepared.tokenizer.sha256,
            dataset_sha256=job.prepared.sha256,
        ),
        session,
        Telemetry(run, job.settings, rows, resumed_from=position.step),
        job.budget,
        progress,
    )
    with ledger.closing(rows):
        return _run(job, session, observer, ledger)


def _ready(run: RunDir, request: TrainRequest) -> _Job:
    """Everything that can be refused is refused here, before anything is built."""
    config = TrainConfig.load(run.path)
    refuse_differences(run, differences(config, request.dims))
    if request.resume and request.force:
        raise UsageError(
            "train: expected one of --resume and --force, got both",
            hint="choose --resume to go on, or --force to start again",
        )
    settings = resolve_settings(
        run, config, request.settings, resume=request.resume, force=request.force
    )
    model = model_of(config.template, config.family_config)
    checkpoint, skipped = newest_valid(run.checkpoints, model.shapes)
    expected = checkpoint.state.tokenizer_sha256 if checkpoint else None
    prepared = prepare(run, config, settings, request.data, expected)
    budget = Budget.of(settings, len(prepared.windows))
    if "warmup_steps" not in request.settings and checkpoint is None:
        settings = with_warmup(settings, budget)
    schedule_of(settings, budget)
    if checkpoint is not None:
        _refuse_foreign(checkpoint, settings, prepared)
    settings.save(run.path)
    return _Job(
        run=run,
        config=config,
        settings=settings,
        model=model,
        prepared=prepared,
        budget=budget,
        requested=dict(request.dims),
        checkpoint=checkpoint,
        skipped=skipped,
    )


def schedule_of(settings: TrainSettings, budget: Budget) -> Schedule:
    """The learning rates of a training."""
    return Schedule(
        decay=settings.schedule,
        peak_lr=settings.lr,
        warmup_steps=settings.warmup_steps,
        total_steps=budget.total_steps,
        final_share=settings.final_lr_share,
    )


def _refuse_foreign(checkpoint: Checkpoint, settings: TrainSettings, prepared: Prepared) -> None:
    """Insists that a checkpoint is of this very training.

    Raises: InputError naming what differs.
    """
    state = checkpoint.state
    have = {**state.settings, "dataset": state.dataset_sha256[:16]}
    want = {**settings.fixed(), "dataset": prepared.sha256[:16]}
    wrong = [f"{k} {have.get(k)!r}, not {want.get(k)!r}" for k in want if have.get(k) != want[k]]
    if wrong:
        raise InputError(
            f"{checkpoint.path}: expected a checkpoint of this training, got {'; '.join(wrong)}",
            hint="start again with `lockstep train --force`, or restore the run's files",
        )


def _session(job: _Job) -> TrainingSession:
    """The program with its parameters in place: initial ones, or those of the checkpoint."""
    settings, adamw = job.settings, job.config.adamw
    batch = sequences_per_call(settings.batch, settings.seq_len)
    built = training_program(
        job.model.family,
        job.model.config,
        batch=batch,
        tokens=settings.seq_len,
        optimizer=OptimizerSpec(kind=settings.optimizer, **asdict(adamw)),
        threads=settings.threads,
    )
    built.graph_file().save(job.run.path)
    session = TrainingSession(built.program, batch=batch, tokens=settings.seq_len)
    if job.checkpoint is None:
        initialise(session.parameters(), job.config.init, job.config.train_seed)
        session.begin()
    else:
        session.begin(
            job.checkpoint.parameters, job.checkpoint.moments, step_count=job.position.step
        )
    return session


def _earlier_rows(run: RunDir, step: int) -> list[MetricRow]:
    """The telemetry of the steps that the checkpoint contains.

    Raises: InputError if it is not whole; the records of the training are made from it.
    """
    if step == 0:
        run.metrics.unlink(missing_ok=True)
        return []
    rows = [row for row in read_metrics(run.metrics) if row.step <= step]
    if [row.step for row in rows] != list(range(1, step + 1)):
        raise InputError(
            f"{run.metrics}: expected the steps 1 to {step} of the checkpoint, got {len(rows)}",
            hint="restore the file, or start again with `lockstep train --force`",
        )
    return rows


def _run(
    job: _Job, session: TrainingSession, observer: RunObserver, ledger: Ledger
) -> TrainOutcome:
    began = time.perf_counter()
    loop = Loop(
        session=session,
        batches=Batches(job.prepared.windows, job.settings.seed),
        settings=job.settings,
        schedule=schedule_of(job.settings, job.budget),
        budget=job.budget,
        observer=observer,
    )
    with stop_on_signals() as stop:
        if job.checkpoint is None:
            observer.save(job.position, "start")
        position = loop.run(job.position, stop)
    rows = observer.telemetry.rows
    interrupted = stop.signal if position.step < job.budget.total_steps else None
    ledger.end(rows, "completed" if interrupted is None else "interrupted")
    observer.telemetry.show()
    observer.show_policy()
    facts = Facts(
        run=job.run,
        config=job.config,
        settings=job.settings,
        prepared=job.prepared,
        budget=job.budget,
        requested=job.requested,
        resumed_from=job.position.step,
        ledger=ledger.row,
        began=began,
        rows=rows,
        params_sha256=session.parameters_sha256(),
    )
    return TrainOutcome(
        run_id=ledger.run_id,
        report=save_all(facts) if rows else None,
        skipped=job.skipped,
        interrupted=interrupted,
    )
