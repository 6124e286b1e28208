"""A campaign of planted faults: how often `compare` names the node that has the fault."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from queue import Empty, Queue
from random import Random
from threading import Thread
from typing import Any

from lockstep.artifacts import utc_now
from lockstep.artifacts.faults import FaultRow, Faults
from lockstep.errors import EnvironmentLacks, GateError
from lockstep.proof.fault_worker import WIDE, subjects
from lockstep.proof.misorder import KINDS
from lockstep.proof.tolerances import FAULTS_NAMED

JOB_SECONDS = 120  # for a compiler on a busy machine
RUN_SECONDS = 10  # for one node, or one entry, of a program with a fault
WORKERS_PER_JOB = 3  # a machine short of memory may kill one that has planted nothing yet
STAGE_SHARE = 12  # one fault in so many is between nodes


@dataclass(frozen=True, slots=True)
class Job:
    """One fault to plant: the program, the op and its phase, and the seed of the draw."""

    program: str
    op: str
    phase: str
    seed: str


@dataclass
class Answer:
    """What a worker said about a job; `at` is what it was about to do when it said so."""

    fault: Mapping[str, Any] = field(default_factory=dict)
    named: str = ""
    why: str = ""
    seconds: float = 0.0
    at: str = ""
    is_complete: bool = False
    redrawn: Counter[str] = field(default_factory=Counter)


def run_faults(
    count: int,
    *,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, FaultRow], None] = lambda done, row: None,
) -> Faults:
    """Plants `count` faults and counts how many of the nodes that have them are named.

    Raises: GateError if a program is at fault before anything is planted; EnvironmentLacks without
    a compiler.
    """
    began = time.perf_counter()
    places = places_of_all()
    jobs = sorted(draw_jobs(places, count, seed), key=lambda job: job.program)
    share_of_jobs = -(-len(jobs) // workers)
    done: list[tuple[FaultRow, Counter[str]]] = []

    def run(part: Sequence[Job]) -> None:
        with Worker() as worker:
            for job in part:
                answer = worker.answer(job)
                done.append((row_of(job, answer), answer.redrawn))
                progress(len(done), done[-1][0])

    with ThreadPoolExecutor(workers) as pool:
        starts = range(0, len(jobs), share_of_jobs)
        for part in [pool.submit(run, jobs[i : i + share_of_jobs]) for i in starts]:
            part.result()
    rows = sorted((row for row, _ in done), key=lambda row: (row.phase, row.op, row.kind))
    redrawn = sum((counts for _, counts in done), Counter[str]())
    named = sum(row.right for row in rows)
    share = named / len(rows) if rows else 0.0
    return Faults(
        generated_at=utc_now(),
        seed=seed,
        planted=len(rows),
        named=named,
        share=share,
        bound=FAULTS_NAMED.value,
        passed=bool(rows) and share >= FAULTS_NAMED.value,
        redrawn_inert=redrawn["inert"],
        redrawn_uncompilable=redrawn["uncompilable"],
        wall_s=time.perf_counter() - began,
        programs=tuple(places),
        ops=tuple(sorted({op for found in places.values() for op, _ in found})),
        rows=tuple(rows),
    )


def places_of_all() -> dict[str, set[tuple[str, str]]]:
    """The ops of each program, with the phases in which they run."""
    return {
        name: {(node.op.name, node.section) for node in subject.graph().nodes}
        for name, subject in subjects().items()
    }


def draw_jobs(places: Mapping[str, set[tuple[str, str]]], count: int, seed: int) -> list[Job]:
    """Jobs that go round all ops and phases; in what is left of a round, some are left out."""
    random = Random(seed)
    jobs = [
        Job(random.choice(sorted(places)), KINDS[i % len(KINDS)], "", f"{seed}/stage {i}")
        for i in range(count // STAGE_SHARE)
    ]
    everywhere = sorted(set().union(*places.values()))
    round_of: list[tuple[str, str]] = []
    while len(jobs) < count:
        round_of = round_of or random.sample(everywhere, len(everywhere))
        place = round_of.pop()
        having = [name for name, found in places.items() if place in found]
        program = random.choice([name for name in having if name != WIDE] or having)
        jobs.append(Job(program, *place, f"{seed}/{len(jobs)}"))
    return jobs


def row_of(job: Job, answer: Answer) -> FaultRow:
    """The verdict on a job."""
    nodes = tuple(answer.fault["nodes"])
    right = answer.named in nodes
    return FaultRow(
        program=job.program,
        op=answer.fault["op"],
        phase=answer.fault["phase"],
        kind=answer.fault["kind"],
        what=answer.fault["what"],
        nodes=nodes,
        named=answer.named,
        right=right,
        how=answer.why if answer.named else "",
        seconds=answer.seconds,
        reason="" if right else answer.why or "another node was named",
    )


class Worker:
    """A process that plants faults; it is started again after a fault that it did not survive."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._events: Queue[dict[str, Any] | None] = Queue()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def answer(self, job: Job) -> Answer:
        """Plants the fault of a job and waits for the verdict.

        Raises: GateError if worker after worker ends, or hangs, before there is a fault;
        EnvironmentLacks if one finds no compiler.
        """
        for _ in range(WORKERS_PER_JOB):
            answer = self._ask(job)
            if answer.fault:
                return answer
        raise _no_fault(job, f"{answer.why}, at {answer.at or 'its start'}")

    def _ask(self, job: Job) -> Answer:
        """What a worker makes of the job, without a fault if it was lost before there was one."""
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        answer, began = Answer(), time.perf_counter()
        try:
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
        except BrokenPipeError:  # it ended after its last answer
            return self._lost(answer, "the process ended", began)
        while not answer.is_complete:
            limit = RUN_SECONDS if answer.fault else JOB_SECONDS
            try:
                event = self._events.get(timeout=limit)
            except Empty:
                return self._lost(answer, f"no end within {limit} s", began)
            if event is None:
                return self._lost(answer, f"the process ended: {process.wait()}", began)
            if "lacks" in event:
                raise EnvironmentLacks(event["lacks"], hint=event["hint"])
            if "failed" in event:
                raise _no_fault(job, event["failed"])
            _take(answer, event)
        if not answer.fault:
            raise _no_fault(job, "every fault that was drawn changed nothing or did not compile")
        return answer

    def _lost(self, answer: Answer, why: str, began: float) -> Answer:
        """The process did not survive the fault, or hangs in it: what ran then is to blame."""
        self._stop()
        answer.named, answer.why = answer.at, why
        answer.seconds = time.perf_counter() - began
        return answer

    def _start(self) -> None:
        self._events = Queue()
        command = [sys.executable, "-m", "lockstep.proof.fault_worker"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._process = process
        Thread(target=_read, args=(process, self._events), daemon=True).start()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # a job that nobody read
                    pipe.close()


def _take(answer: Answer, event: Mapping[str, Any]) -> None:
    if "at" in event:
        answer.at = event["at"]
    elif "redrawn" in event:
        answer.redrawn[event["redrawn"]] += 1
        answer.fault = {}
    elif "fault" in event:
        answer.fault = event["fault"]
    else:
        answer.is_complete = True
        if event["done"] is not None:
            answer.named, answer.why = event["done"]["named"], event["done"]["why"]
            answer.seconds = event["done"]["seconds"]


def _read(process: subprocess.Popen[str], events: Queue[dict[str, Any] | None]) -> None:
    assert process.stdout is not None
    try:
        for line in process.stdout:
            events.put(json.loads(line))
    except ValueError:  # torn by a kill, or closed
        pass
    events.put(None)


def _no_fault(job: Job, why: str) -> GateError:
    return GateError(
        f"a fault in {job.op} of {job.program}: expected to plant one, got: {why}",
        hint="choose another --seed, or see `lockstep compare` on a run",
    )
