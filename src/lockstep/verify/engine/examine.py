"""Examines a conversion: plan in, record of verdicts out."""

from __future__ import annotations

import json
import platform
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lockstep import __version__
from lockstep.artifacts.clock import utc_now
from lockstep.artifacts.verification import (
    VALUE_EXACT,
    ClaimRow,
    Cost,
    ProblemRow,
    Verification,
    weakest,
)
from lockstep.errors import InputError
from lockstep.formats.leaf import FileIdentity, Store
from lockstep.verify.claim import Plan
from lockstep.verify.claims.coverage import account, unsaid
from lockstep.verify.diagnosis.grade import SECONDS_FOR_GRADES, grades
from lockstep.verify.diagnosis.summarise import summarise
from lockstep.verify.digest import ALGORITHM
from lockstep.verify.engine.budget import Budget, divide, memory_now, n_processors, roomy
from lockstep.verify.engine.journal import Journal, run_key
from lockstep.verify.engine.probe import ReadingProbe
from lockstep.verify.engine.rows import ClaimJudge, groups_of, reasons_of, side_of
from lockstep.verify.engine.tasks import TaskList
from lockstep.verify.engine.threads import Progress, Spent, run

_DECODERS = ("tensorstore", "zstandard", "h5py")  # said where one of them was used


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a conversion is examined.

    `max_memory_bytes` bounds the peak of the whole process, by default to 1 GiB, beside what
    a large process has held so far; there is one thread for each processor. `progress` is called
    with the bytes that are done and of how many.
    """

    max_memory_bytes: int = field(default_factory=roomy)
    jobs: int = field(default_factory=n_processors)
    digest: str = "sha256"
    journal: Path | None = None
    sample: bool = False
    health: bool = False
    progress: Progress | None = None


def examine(plan: Plan, options: Options) -> Verification:
    """Compares everything that the plan claims; the verdict is in the record.

    Raises: InputError if a file is damaged or changed, BudgetError if a leaf does not fit (before
    anything is read), EnvironmentLacks if the journal cannot be written.
    """
    began = time.perf_counter()
    budget = _budget(options, plan.source, plan.target)
    check_unchanged(plan.source, plan.target)
    ledger = account(plan.claims, plan.excuses, plan.ties, plan.source, plan.target)
    todo = TaskList(
        plan,
        budget,
        _journal(options, plan.source, plan.target),
        digests=options.digest != "none",
        sample=options.sample,
        health=options.health,
    )
    with closing(plan.source), closing(plan.target):
        spent = run(todo.tasks, budget, todo.done, options.progress)
        check_unchanged(plan.source, plan.target)
        rows, undiagnosed = _rows(plan, todo, budget)
    problems = [*plan.problems, *unsaid(ledger.problems, plan.problems), *todo.tie_problems()]
    said = {row.id: row.diagnosis for row in rows if row.diagnosis}
    verdict = "FAIL" if problems else weakest(row.verdict for row in rows)
    cost = _cost(todo, budget, spent, time.perf_counter() - began)
    return Verification(
        generated_at=utc_now(),
        tool=f"lockstep {__version__}",
        environment=_environment(),
        title=plan.title,
        mapping=plan.mapping,
        claims_digest=plan.digest,
        facts={key: _text(value) for key, value in plan.facts.items()},
        verdict=verdict,
        value_exact=verdict in VALUE_EXACT,
        source=side_of(plan.source, ledger.source, todo.digests["source"]),
        target=side_of(plan.target, ledger.target, todo.digests["target"]),
        groups=tuple(groups_of(rows, problems)),
        claims=tuple(rows),
        problems=tuple(
            ProblemRow(kind=p.kind, where=p.where, message=p.message, hint=p.hint) for p in problems
        ),
        ambiguities=tuple(
            ProblemRow(kind=a.kind, where=a.side, message=a.message) for a in plan.ambiguities
        ),
        cost=cost,
        digest_algorithm=ALGORITHM if todo.with_digests else "none",
        summary=(*summarise(said, plan), *filter(None, [undiagnosed])),
        not_measured={**reasons_of(rows, undiagnosed), **_unknown(cost)},
    )


def digest_store(store: Store, options: Options) -> dict[str, str]:
    """The digest of each leaf of one checkpoint, in its order.

    Raises: InputError if a file is damaged or changed, BudgetError if a leaf does not fit.
    """
    budget = _budget(options, store)
    check_unchanged(store)
    nothing = Store(store.where, store.format, {}, ())
    todo = TaskList(Plan(store, nothing, ()), budget, _journal(options, store), digests=True)
    with closing(store):
        run(todo.tasks, budget, todo.done, options.progress)
        check_unchanged(store)
    return {name: todo.digests["source"][name] for name in store.leaves}


def _journal(options: Options, *stores: Store) -> Journal:
    """What an earlier run left; another version of the program begins again."""
    files = [file for store in stores for file in store.files]
    return Journal(options.journal, run_key(files, f"{__version__} {options.digest}"))


def _rows(plan: Plan, todo: TaskList, budget: Budget) -> tuple[list[ClaimRow], str]:
    """The rows of the report, and what of them was not diagnosed."""
    probe = ReadingProbe(plan, budget, todo.digests)
    probe.limit(SECONDS_FOR_GRADES)
    try:
        judge = ClaimJudge(plan, todo, probe, budget)
        rows = judge.rows(grades(plan, todo.digests, None if todo.sample else probe))
    finally:
        probe.close()
    return rows, judge.undiagnosed


def check_unchanged(*stores: Store) -> None:
    """Insists that the files are still those that were listed.

    Raises: InputError naming the file that is not.
    """
    for store in stores:
        for file in store.files:
            now = FileIdentity.of(file.path)
            if now != file:
                raise InputError(
                    f"{file.path}: expected the file as it was listed, got one that changed since: "
                    f"{file.n_bytes} bytes then, last changed at {file.ctime_ns} ns, {now.n_bytes} "
                    f"now, at {now.ctime_ns} ns",
                    hint="wait until nothing writes to it any more, then run it again",
                )


def _budget(options: Options, *stores: Store) -> Budget:
    n_leaves = sum(len(store.leaves) for store in stores)
    return divide(options.max_memory_bytes, options.jobs, n_leaves)


def _cost(todo: TaskList, budget: Budget, spent: Spent, seconds: float) -> Cost:
    return Cost(
        budget_bytes=budget.total,
        predicted_peak_bytes=todo.predicted_peak,
        peak_bytes=memory_now().peak,
        anonymous_peak_bytes=spent.anonymous_peak,
        bytes_read=spent.bytes_read,
        seconds=round(seconds, 6),
        n_workers=budget.n_workers,
        n_resumed=sum(found.is_resumed for found in todo.found.values()),
    )


def _unknown(cost: Cost) -> dict[str, str]:
    why = "this system does not say what a process has held"
    names = ("peak_bytes", "anonymous_peak_bytes")
    return {f"cost.{name}": why for name in names if getattr(cost, name) is None}


def _environment() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "byteorder": sys.byteorder,
        **{
            name: str(getattr(sys.modules[name], "__version__", "unknown"))
            for name in _DECODERS
            if name in sys.modules
        },
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
