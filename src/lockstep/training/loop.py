"""The training loop: steps, telemetry after each, checkpoints, and a clean end on a signal."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from lockstep.artifacts.metrics import MetricRow
from lockstep.artifacts.train_settings import TrainSettings
from lockstep.data.pack import Batches, Cursor, Windows
from lockstep.engine.schedule import Schedule
from lockstep.engine.trainer import Microbatch, StepResult, TrainingSession
from lockstep.errors import GateError


@dataclass(frozen=True, slots=True)
class Position:
    """How far a training is."""

    step: int
    cursor: Cursor
    tokens_seen: int


class Observer(Protocol):
    """What is told about a training while it runs."""

    def stepped(self, row: MetricRow) -> None:
        """A step has ended."""

    def save(self, position: Position, reason: str) -> None:
        """The state after this step is to be kept."""


class StopRequest:
    """Becomes true when somebody asked the training to end."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request; a second one acts as it always does."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        request.signal = number
        for which, handler in kept.items():
            signal.signal(which, handler)

    for number in kept:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a training is.  Units: steps are optimizer steps, windows are those of one step."""

    windows_per_step: int
    steps_per_epoch: int
    total_steps: int

    @classmethod
    def of(cls, settings: TrainSettings, n_windows: int) -> Budget:
        """The steps that epochs and tokens ask for; an epoch ends with a whole step."""
        per_step = settings.batch * settings.grad_accum
        if settings.total_tokens is not None:
            n_windows = math.ceil(settings.total_tokens / settings.seq_len)
        per_epoch = max(1, math.ceil(n_windows / per_step))
        return cls(per_step, per_epoch, per_epoch * settings.epochs)

    def epoch(self, step: int) -> int:
        """The epoch that a step belongs to, from 1."""
        return (step - 1) // self.steps_per_epoch + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """A training that can be started anywhere; where it is given is where it was left."""

    session: TrainingSession
    batches: Batches
    settings: TrainSettings
    schedule: Schedule
    budget: Budget
    observer: Observer

    def run(self, position: Position, stop: StopRequest) -> Position:
        """Trains to the end or until asked to stop; what was reached is saved in both cases.

        Raises: GateError if loss or gradient stop being finite numbers.
        """
        every, total = self.settings.save_every, self.budget.total_steps
        saved = position.step
        while position.step < total and not stop:
            position = self._step(position)
            if every and position.step % every == 0 and position.step < total:
                self.observer.save(position, "interval")
                saved = position.step
        if position.step > saved:
            self.observer.save(position, "final" if position.step == total else "interrupted")
        return position

    def _step(self, position: Position) -> Position:
        began = time.perf_counter()
        step = position.step + 1
        windows, cursor = self.batches.take(position.cursor, self.budget.windows_per_step)
        result = self.session.step(
            microbatches(windows, self.session.shape[0]),
            lr=self.schedule.rate(step),
            max_grad_norm=self.settings.max_grad_norm,
        )
        seconds = time.perf_counter() - began
        _refuse_what_is_not_finite(step, result)
        position = Position(step, cursor, position.tokens_seen + result.n_targets)
        self.observer.stepped(
            MetricRow(
                step=step,
                epoch=self.budget.epoch(step),
                loss=result.loss,
                grad_norm=result.grad_norm,
                lr=result.lr,
                tok_s=result.n_targets / seconds,
                wall_ms=seconds * 1e3,
                tokens_seen=position.tokens_seen,
            )
        )
        return position


def microbatches(windows: Windows, batch: int) -> list[Microbatch]:
    """The windows of one step, as many at a time as a program takes."""
    starts = range(0, len(windows), batch)
    pairs = [(windows.inputs_WT[a : a + batch], windows.targets_WT[a : a + batch]) for a in starts]
    return [Microbatch(inputs, targets) for inputs, targets in pairs]


def _refuse_what_is_not_finite(step: int, result: StepResult) -> None:
    for name, value in (("loss", result.loss), ("gradient norm", result.grad_norm)):
        if not math.isfinite(value):
            raise GateError(
                f"step {step}: {name}: expected a finite number, got {value}",
                hint="start again with a lower --lr or a smaller --max-grad-norm; "
                "the checkpoints before this step are untouched",
            )
