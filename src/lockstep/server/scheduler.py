"""Continuous batching: one thread owns the session, and each pass serves every sequence it can."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lockstep.engine.session import InferenceSession, Piece
from lockstep.errors import LockstepError, UsageError
from lockstep.server.events import Event, Failed, PromptRead
from lockstep.server.metrics import Metrics
from lockstep.server.pace import Pace
from lockstep.server.sequence import Sequence
from lockstep.server.slots import Slots

log = logging.getLogger(__name__)

T = TypeVar("T")
Rows = NDArray[Any]
# What a pass yielded, each request with its news.
News = list[tuple["Job", list[Event]]]


class QueueFull(Exception):
    """As many requests wait as are let wait."""


@dataclass(eq=False)
class Job:
    """The sequences of one request."""

    sequences: tuple[Sequence, ...]
    deadline: float  # of time.monotonic
    sink: Callable[[list[Event]], None]
    arrived: float = field(default_factory=time.monotonic)
    order: int = 0
    waiting: deque[Sequence] = field(init=False)
    running: list[Sequence] = field(default_factory=list)
    last_told: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = deque(self.sequences)

    @property
    def is_done(self) -> bool:
        """Whether none of its sequences has anything left to do."""
        return not self.waiting and not self.running


class Scheduler:
    """Takes jobs from any thread; `publish` is called from its own with what they yielded."""

    def __init__(
        self, session: InferenceSession, publish: Callable[[News], None], *,
        max_waiting: int, metrics: Metrics,
    ) -> None:  # fmt: skip
        self._session, self._publish, self._metrics = session, publish, metrics
        self._slots, self._pace = Slots(session), Pace(session.shape.rows)
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._inbox: list[Job] = []
        self._outbox: set[Job] = set()  # whose clients went away
        self._stops = False
        self._jobs: list[Job] = []
        self._orders = itertools.count()
        self._turn = 0
        self._drawing = ThreadPoolExecutor(os.cpu_count(), "drawing")
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self.answer_s = 0.0  # what answers took of late, from arrival to end; 0 before the first
        metrics.slots.set(self._slots.n_free)
        metrics.waiting.set_function(lambda: self.n_waiting)

    @property
    def n_waiting(self) -> int:
        """How many jobs have a sequence without a slot."""
        with self._changed:
            return len(self._inbox) + sum(1 for job in self._jobs if job.waiting)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the pass that runs; jobs that are left yield nothing more."""
        with self._changed:
            self._stops = True
            self._changed.notify()
        self._thread.join()
        self._drawing.shutdown()

    def submit(self, job: Job) -> None:
        """Puts a job into the queue.

        Raises: QueueFull.
        """
        # One in the inbox takes a slot that is free as soon as the pass that runs is over.
        if self.n_waiting - self._slots.n_free >= self._max_waiting:
            raise QueueFull
        job.order = next(self._orders)
        with self._changed:
            self._inbox.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Frees the slots of a job before the next pass; it yields nothing more."""
        with self._changed:
            self._outbox.add(job)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._inbox or self._jobs or self._stops):
                    self._outbox.clear()
                    self._changed.wait()
                if self._stops:
                    return
                self._jobs += self._inbox
                self._inbox = []
                gone = [job for job in self._jobs if job in self._outbox]
                self._outbox.clear()
            for job in gone:
                self._metrics.cancelled.inc()
                self._drop(job)
            news: News = []
            try:
                self._expire(news)
                self._admit(news)
                self._pass(news)
            except Exception:  # whatever it was, those that wait go on
                log.exception("a pass failed")
                self._fail_running(news)
            self._metrics.slots_used.set(len(self._slots.contents) - self._slots.n_free)
            if news:
                self._publish(news)

    def _expire(self, news: News) -> None:
        now = time.monotonic()
        for job in [job for job in self._jobs if job.deadline <= now]:
            self._fail(job, Failed(504, "the request took longer than allowed", "timeout"), news)

    def _admit(self, news: News) -> None:
        """Gives free slots away: first to the request that has fewest, then in order of arrival."""
        while self._slots.n_free:
            job = min(
                (job for job in self._jobs if job.waiting),
                key=lambda job: (len(job.running), job.order),
                default=None,
            )
            if job is None:
                return
            sequence = job.waiting.popleft()
            slot, n_cached = self._slots.take(sequence.ids, reuse=sequence.reuses)
            job.running.append(sequence)
            failed = _alone(partial(sequence.start, slot, n_cached))
            if isinstance(failed, Failed):
                self._fail(job, failed, news)

    def _pass(self, news: News) -> None:
        running = [(job, s) for job in self._jobs for s in job.running]
        planned = self._plan([s for _, s in running])
        if not planned:
            return
        began = time.perf_counter()
        rows = self._session.read([piece for _, piece in planned])
        seconds = time.perf_counter() - began
        self._observe(planned, seconds)
        ends = np.cumsum([piece.n_wanted for _, piece in planned])
        wants_hidden = any(s.generation.pooling for s, _ in planned)
        hidden_BD = self._session.hidden(int(ends[-1])) if wants_hidden else np.empty((0, 0))
        job_of = {s: job for job, s in running}
        work = []
        for (sequence, piece), logits_BV, end in zip(planned, rows, ends, strict=True):
            self._slots.contents[sequence.slot] += piece.ids
            work.append((sequence, piece, logits_BV, hidden_BD[end - piece.n_wanted : end]))
        # Drawing takes milliseconds of a large vocabulary, and NumPy lets several threads do it.
        several = self._drawing.map if len(work) > 1 else map
        for (sequence, _), events in zip(planned, several(_advance, work), strict=True):
            job = job_of[sequence]
            if job not in self._jobs:  # another of its sequences failed in this pass
                continue
            if isinstance(events, Failed):
                self._fail(job, events, news)
            else:
                self._tell(job, sequence, events, news)

    def _plan(self, running: list[Sequence]) -> list[tuple[Sequence, Piece]]:
        """A row of each answer, then equal shares of the prompts, as far as they fit a pass."""
        self._turn += 1
        turn = self._turn % max(len(running), 1)
        running = running[turn:] + running[:turn]  # so that none is always the one without room
        rows, outs = self._session.shape.rows, self._session.shape.outs
        planned: list[tuple[Sequence, Piece]] = []

        def add(sequence: Sequence, most: int) -> int:
            nonlocal rows, outs
            piece = sequence.next_piece(min(most, rows), outs)
            if piece is None:
                return 0
            planned.append((sequence, piece))
            rows, outs = rows - len(piece.ids), outs - piece.n_wanted
            return len(piece.ids)

        for sequence in running:
            if not sequence.is_reading:
                add(sequence, 1)
        reading = [s for s in running if s.is_reading]
        left = min(rows, self._pace.rows) if planned else rows
        for i, sequence in enumerate(reading):
            left -= add(sequence, -(-left // (len(reading) - i)))
        return planned

    def _observe(self, planned: list[tuple[Sequence, Piece]], seconds: float) -> None:
        n_prompt = sum(len(piece.ids) for s, piece in planned if s.is_reading)
        if n_prompt > 0 and any(not s.is_reading for s, _ in planned):
            self._pace.saw(n_prompt, seconds)
        self._metrics.pass_s.observe(seconds)
        self._metrics.pass_rows.observe(sum(len(piece.ids) for _, piece in planned))
        self._metrics.pass_sequences.observe(len(planned))

    def _tell(self, job: Job, sequence: Sequence, events: list[Event], news: News) -> None:
        now = time.monotonic()
        for event in events:
            if isinstance(event, PromptRead):
                self._metrics.prompt_tokens.inc(sequence.n_prompt)
                self._metrics.cached_tokens.inc(sequence.n_cached)
        if sequence.n_drawn:
            self._metrics.generated_tokens.inc()
            if sequence.n_drawn == 1:
                self._metrics.first_token_s.observe(now - job.arrived)
            else:
                self._metrics.token_s.observe(now - job.last_told[sequence.index])
            job.last_told[sequence.index] = now
        if sequence.finished:
            self._release(job, [sequence])
            if job.is_done:
                self._jobs.remove(job)
                took = now - job.arrived
                self.answer_s += (took - self.answer_s) / 8 if self.answer_s else took
        if events:
            news.append((job, events))

    def _fail(self, job: Job, failed: Failed, news: News) -> None:
        self._drop(job)
        news.append((job, [failed]))

    def _fail_running(self, news: News) -> None:
        """Ends what runs after a pass that failed; what its slots hold is not trusted."""
        for job in [job for job in self._jobs if job.running]:
            for sequence in job.running:
                self._slots.forget(sequence.slot)
            self._fail(job, Failed(500, "a forward pass failed", "internal_error"), news)

    def _drop(self, job: Job) -> None:
        self._release(job, list(job.running))
        job.waiting.clear()
        self._jobs.remove(job)

    def _release(self, job: Job, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            job.running.remove(sequence)
            self._slots.give_back(sequence.slot)


def _advance(work: tuple[Sequence, Piece, Rows, Rows]) -> list[Event] | Failed:
    sequence, piece, logits_BV, hidden_BD = work
    return _alone(partial(sequence.advance, piece, logits_BV, hidden_BD))


def _alone(step: Callable[[], T]) -> T | Failed:
    """A step of one sequence, whose fault is its own: the others of the pass go on."""
    try:
        return step()
    except UsageError as error:  # a grammar that came to its end
        return Failed(400, error.message, "invalid_grammar")
    except LockstepError as error:
        return Failed(500, error.message, "generation_failed")
    except Exception:
        log.exception("a sequence failed")
        return Failed(500, "this answer failed; the server's log says why", "internal_error")
