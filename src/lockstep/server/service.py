"""One model that answers requests: its scheduler, its limits, and who is being answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from lockstep.server.api_error import ApiError
from lockstep.server.constraint import Constraints
from lockstep.server.events import Event, Failed, Finished
from lockstep.server.generation import Generation
from lockstep.server.metrics import Metrics
from lockstep.server.scheduler import Job, News, QueueFull, Scheduler
from lockstep.server.sequence import Sequence
from lockstep.server.served import Served


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may cost."""

    max_queue: int = 256  # requests that wait for a slot
    max_body_bytes: int = 8 << 20
    max_text_bytes: int = 256 << 10  # of a text that is only cut into tokens
    body_s: float = 30.0  # how long a client may take to send its body
    request_s: float = 600.0  # how long an answer may take, from arrival to its last token


class Service:
    """Answers requests with one model; its methods belong to the event loop that starts it."""

    def __init__(self, served: Served, limits: Limits, *, api_key: str | None = None) -> None:
        self.served, self.limits, self.api_key = served, limits, api_key
        self.created = int(time.time())
        self.metrics = Metrics()
        self.constraints = Constraints(served)
        self.draining = False
        self.n_answering = 0  # requests whose answer is not sent to the end
        self.tokenizing = asyncio.Semaphore(1)  # texts at once: they would share one core anyway
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduler = Scheduler(
            served.session, self._publish, max_waiting=limits.max_queue, metrics=self.metrics
        )

    @property
    def context(self) -> int:
        """How many tokens a prompt and its answer may have."""
        return self.served.session.context

    def now(self) -> int:
        """Seconds since 1970, for the documents."""
        return int(time.time())

    def start(self) -> None:
        """Starts to serve, from the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._scheduler.start()

    def stop(self) -> None:
        """Ends the scheduler."""
        self._scheduler.stop()

    def open(self, generations: Iterable[Generation]) -> Answers:
        """Begins to answer.

        Raises: ApiError if too many requests wait already.
        """
        sequences = tuple(
            Sequence(i, generation, self.served.tokenizer)
            for i, generation in enumerate(generations)
        )
        answers = Answers(self._scheduler, sequences, self.limits.request_s)
        try:
            self._scheduler.submit(answers.job)
        except QueueFull:
            message = f"queue: expected at most {self.limits.max_queue} waiting requests, got more"
            raise ApiError(429, message, code="queue_full", retry_s=self._retry_s()) from None
        return answers

    def _retry_s(self) -> int:
        """About how long it takes until the next of those that wait has a slot."""
        return max(1, min(60, round(self._scheduler.answer_s)))

    def _publish(self, news: News) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(_deliver, news)


def _deliver(news: News) -> None:
    for job, events in news:
        job.sink(events)


class Answers:
    """The events of one request, as they come."""

    def __init__(
        self, scheduler: Scheduler, sequences: tuple[Sequence, ...], request_s: float
    ) -> None:
        self._scheduler = scheduler
        self._queue: asyncio.Queue[list[Event]] = asyncio.Queue()
        self._n_open = len(sequences)
        deadline = time.monotonic() + request_s
        self.job = Job(sequences, deadline, self._queue.put_nowait)
        self.n_prompt_tokens = [s.n_prompt for s in sequences]

    async def events(self) -> AsyncIterator[Event]:
        """Every event, until all sequences are at their end.

        Raises: ApiError if the request failed.
        """
        while self._n_open:
            for event in await self._queue.get():
                if isinstance(event, Failed):
                    self._n_open = 0
                    raise ApiError(event.status, event.message, code=event.code)
                if isinstance(event, Finished):
                    self._n_open -= 1
                yield event

    def close(self) -> None:
        """Gives up what is not finished, because nobody waits for it any more."""
        if self._n_open:
            self._n_open = 0
            self._scheduler.cancel(self.job)
