"""Runs items on threads that share one budget; the first failure of any ends the run.

NumPy, preadv and hashlib let other threads run, so threads are enough, and memory is counted once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lockstep.verify.engine.budget import Budget, memory_now
from lockstep.verify.engine.job import Agenda, Band, HashJob, InOrder, Item, Job, Moves, Sum
from lockstep.verify.engine.worker import Stopped, Worker

Progress = Callable[[int, int], None]  # bytes that are done, and of how many
_PAUSE = 0.1  # seconds between two words of progress
_SMALL_RUN = 1 << 20  # bytes for which another worker is not worth its start


@dataclass
class Tasks:
    """What fits a worker's share, and what one worker does alone afterwards."""

    shared: list[Job | HashJob | Sum] = field(default_factory=list)
    alone: list[Job | HashJob | Sum] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        """The bytes that are to be read."""
        return sum(bytes_of(task) for task in (*self.shared, *self.alone))


def bytes_of(task: Job | HashJob | Sum) -> int:
    """What a task reads, on both sides."""
    if isinstance(task, Job):
        return 2 * task.target.n_bytes
    return task.leaf.n_bytes if isinstance(task, HashJob) else task.record.n_bytes


@dataclass
class Spent:
    """What a run took.  Units: bytes; None is not known on this system."""

    bytes_read: int = 0
    anonymous_peak: int | None = None

    def look(self) -> None:
        """Looks at the memory of the process."""
        now = memory_now().anonymous
        if now is not None:
            self.anonymous_peak = max(self.anonymous_peak or 0, now)


def run(
    tasks: Tasks,
    budget: Budget,
    done: Callable[[Job | HashJob], None],
    progress: Progress | None = None,
) -> Spent:
    """Does all tasks; `done` is called, from any thread, when the last item of one is done.

    Raises: what any worker raised first.
    """
    spent = Spent()
    n_total = tasks.n_bytes
    n_workers = min(budget.n_workers, max(1, -(-n_total // _SMALL_RUN)))
    for todo, arenas in ((tasks.shared, [budget.arena] * n_workers), (tasks.alone, [budget.alone])):
        if todo:
            _Crew(iter(todo), arenas, done, spent).run(progress, n_total)
    spent.look()
    if progress:
        progress(n_total, n_total)
    return spent


class _Crew:
    """The threads of one part of a run."""

    def __init__(
        self,
        tasks: Iterator[Job | HashJob | Sum],
        arenas: Sequence[int],
        done: Callable[[Job | HashJob], None],
        spent: Spent,
    ) -> None:
        self._agenda = Agenda(tasks, done)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._spent = spent
        self._workers = [Worker(n_bytes, self._stop) for n_bytes in arenas]

    def run(self, progress: Progress | None, n_total: int) -> None:
        """Waits for all, and says now and then how far they are."""
        threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"verify-{i}", daemon=True)
            for i, worker in enumerate(self._workers)
        ]
        before = self._spent.bytes_read
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(_PAUSE)
                    self._spent.look()
                    if progress:
                        progress(min(before + self._n_read(), n_total), n_total)
        except BaseException:
            self._stop.set()
            for thread in threads:
                thread.join()
            raise
        finally:
            self._spent.bytes_read = before + self._n_read()
            for worker in self._workers:
                worker.close()
        if isinstance(self._failure, SystemExit):  # it might end the program with exit code 0
            raise RuntimeError("something that reads wanted to end the program") from self._failure
        if self._failure is not None:
            raise self._failure

    def _n_read(self) -> int:
        return sum(worker.files.n_bytes for worker in self._workers)

    def _work(self, worker: Worker) -> None:
        try:
            while not self._stop.is_set():
                item = self._agenda.next()
                if item is None:
                    return
                _timed(worker, item)
                if isinstance(item, InOrder | Moves | Band):
                    self._agenda.close(item.job)
        except Stopped:
            pass
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
            self._stop.set()


def _timed(worker: Worker, item: Item) -> None:
    began, before = time.perf_counter(), worker.files.n_bytes
    worker.work(item)
    job = item.job if isinstance(item, InOrder | Moves | Band) else None
    if isinstance(job, Job):
        with job.lock:
            job.seconds += time.perf_counter() - began
            job.n_bytes += worker.files.n_bytes - before
