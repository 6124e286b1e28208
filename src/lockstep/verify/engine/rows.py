"""The rows of the report: what each claim came to, and what each side is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from lockstep.artifacts.verification import (
    ClaimRow,
    Diagnosis,
    Difference,
    FileRow,
    Grade,
    GroupRow,
    LeafRow,
    Side,
    Spot,
    Verdict,
    weakest,
)
from lockstep.formats.leaf import Store
from lockstep.verify.claim import Claim, Equality, Plan, Problem
from lockstep.verify.claims.coverage import Account
from lockstep.verify.diagnosis.diagnose import diagnose
from lockstep.verify.digest import merkle_root
from lockstep.verify.engine.budget import SCRATCH, Budget
from lockstep.verify.engine.probe import ReadingProbe
from lockstep.verify.engine.tasks import Found, TaskList
from lockstep.verify.numbers.differences import Tally

MOST_DIAGNOSES = 64  # each reads suspects again; what is wrong with many leaves shows in the first
SECONDS_EACH, SECONDS_ALL = 30.0, 120.0  # that diagnoses may take, of one leaf and of all


class ClaimJudge:
    """Verdicts, differences and diagnoses of the claims of a plan."""

    def __init__(self, plan: Plan, todo: TaskList, probe: ReadingProbe, budget: Budget) -> None:
        self._plan, self._todo, self._probe, self._budget = plan, todo, probe, budget
        self._n_differ, self._n_tried, self._n_late = 0, 0, 0
        self._seconds = 0.0

    @property
    def undiagnosed(self) -> str:
        """Which of the leaves that differ nothing is said of, and why; "" if there are none."""
        said = []
        if self._n_tried < self._n_differ:
            bound = f"{MOST_DIAGNOSES} leaves or {SECONDS_ALL:.0f} s are the bound"
            rest = self._n_differ - self._n_tried
            said.append(f"{rest} more leaves differ and were not diagnosed: {bound}")
        if self._n_late:
            said.append(f"{self._n_late} leaves were not diagnosed for time: {SECONDS_EACH:.0f} s")
        return "; ".join(said)

    def rows(self, grades: Mapping[str, tuple[Grade, str]]) -> list[ClaimRow]:
        """The claims in their order."""
        return [
            self._row(claim, grades.get(claim.id, ("not graded", "")))
            for claim in self._plan.claims
        ]

    def _row(self, claim: Claim, grade: tuple[Grade, str]) -> ClaimRow:
        found = self._todo.found[claim.id]
        verdict, why = self._verdict(claim, found)
        difference = self._difference(claim, found)
        health = self._todo.health.get(claim.target)
        return ClaimRow(
            id=claim.id,
            rule=claim.rule,
            group=claim.group,
            target=claim.target,
            sources=claim.sources,
            transform=claim.text,
            equality=equality_text(claim.equality),
            verdict=verdict,
            why=why,
            grade=grade[0],
            grade_why=grade[1],
            n_elements=found.n_elements,
            n_compared=found.n_compared,
            bytes_read=found.n_bytes,
            seconds=round(found.seconds, 6),
            predicted_peak_bytes=self._budget.base + SCRATCH + found.need,
            difference=difference,
            diagnosis=self._diagnosis(claim, verdict, difference),
            health=health.text if health else "",
        )

    def _verdict(self, claim: Claim, found: Found) -> tuple[Verdict, str]:
        """Only what was compared to the last element is more than unchecked."""
        if found.why:
            return "FAIL", found.why
        if found.values:
            return "FAIL", "expected {}, got {}".format(*found.values)
        target = self._plan.target.leaves[claim.target]
        tally = found.tally or Tally(target.element, claim.equality)
        verdict, why = tally.verdict(claim)
        if verdict == "FAIL":
            return verdict, why
        if self._todo.sample:
            part = f"{found.n_compared} of {found.n_elements} elements were compared"
            return "UNCHECKED", f"{part}, and a sample proves nothing"
        if found.n_compared != found.n_elements:
            part = f"{found.n_compared} of {found.n_elements} elements"
            return "UNCHECKED", f"expected all elements to be compared, got {part}"
        return verdict, why + (", as the journal says" if found.is_resumed else "")

    def _difference(self, claim: Claim, found: Found) -> Difference | None:
        if found.values:
            return _of_values(claim, *found.values)
        return found.tally.difference(self._plan, claim) if found.tally else None

    def _diagnosis(
        self, claim: Claim, verdict: Verdict, difference: Difference | None
    ) -> Diagnosis | None:
        if verdict != "FAIL" or difference is None:
            return None
        self._n_differ += 1
        if self._n_tried >= MOST_DIAGNOSES or self._seconds >= SECONDS_ALL:
            return None
        self._n_tried += 1
        began = time.perf_counter()
        self._probe.limit(min(SECONDS_EACH, SECONDS_ALL - self._seconds))
        # the places of a sample are not all that differ, and nothing may follow from them
        found = self._todo.found[claim.id]
        known = difference if found.n_compared == found.n_elements else None
        diagnosis = diagnose(claim, self._plan, self._probe, known)
        self._n_late += diagnosis is None and self._probe.is_late()
        self._seconds += time.perf_counter() - began
        return diagnosis


def groups_of(rows: Sequence[ClaimRow], problems: Sequence[Problem] = ()) -> list[GroupRow]:
    """The verdicts of the groups, in the order of their first claims.

    A group fails where a problem kept one of its claims from being made.
    """
    by_name: dict[str, list[ClaimRow]] = {}
    for row in rows:
        by_name.setdefault(row.group, []).append(row)
    stopped: dict[str, set[str]] = {}
    for problem in problems:
        targets = {leaf for leaf in problem.stops if leaf.startswith("target ")}
        if targets:
            by_name.setdefault(problem.group, [])
            stopped.setdefault(problem.group, set()).update(targets)
    return [
        GroupRow(
            name=name,
            verdict="FAIL" if name in stopped else weakest(row.verdict for row in mine),
            n_unresolved=len(stopped.get(name, ())),
            n_claims=len(mine),
            n_exact=sum(row.verdict in ("EXACT_BITS", "EXACT_UNDER") for row in mine),
            n_elements=sum(row.n_elements for row in mine),
        )
        for name, mine in by_name.items()
    ]


def reasons_of(rows: Sequence[ClaimRow], undiagnosed: str) -> dict[str, str]:
    """Why numbers of the differences are null, and diagnoses."""
    differences = [row.difference for row in rows if row.difference]
    found = {"claims.diagnosis": undiagnosed} if undiagnosed else {}
    if any(each.worst_ulp is None for each in differences):
        found["claims.difference.worst_ulp"] = "only between finite floating point numbers"
    if any(each.max_abs is None for each in differences):
        found["claims.difference.max_abs"] = "only between finite numbers"
    return found


def side_of(store: Store, accounts: Mapping[str, Account], digests: Mapping[str, str]) -> Side:
    """One checkpoint as it was listed and read."""
    rows = []
    for name, leaf in store.leaves.items():
        mine = accounts.get(name, Account(0, 0))
        rows.append(
            LeafRow(
                name=name,
                shape=leaf.shape,
                element=leaf.element.name,
                n_elements=leaf.n_elements,
                n_claimed=mine.n_claimed,
                n_excused=mine.n_excused,
                excuse=mine.excuse,
                digest=digests.get(name),
            )
        )
    return Side(
        where=store.where,
        format=store.format,
        files=tuple(
            FileRow(path=str(file.path), n_bytes=file.n_bytes, mtime_ns=file.mtime_ns)
            for file in store.files
        ),
        leaves=tuple(rows),
        root=merkle_root(digests) if digests and len(digests) == len(rows) else None,
        checksums=_checksums(store),
        notes=store.notes,
    )


def _checksums(store: Store) -> str:
    if store.records:
        sums = " and ".join(sorted({record.algorithm for record in store.records}))
        return f"the {sums} of {len(store.records)} records is what the container says"
    kinds = sorted({leaf.checksum for leaf in store.leaves.values()} - {""})
    return f"{', '.join(kinds)}, checked while reading" if kinds else "the format has none"


def equality_text(equality: Equality) -> str:
    """`bits`, `values`, or the bounds of `within`."""
    bounds = [
        f"{name}={value}"
        for name in ("ulp", "atol", "rtol")
        if (value := getattr(equality, name)) is not None
    ]
    return f"{equality.kind} {' '.join(bounds)}".strip()


def _of_values(claim: Claim, expected: str, found: str) -> Difference:
    spot = Spot(
        target_index=(),
        source=claim.sources[0] if claim.sources else "",
        source_index=(),
        expected_bits="",
        found_bits="",
        expected=expected,
        found=found,
    )
    return Difference(
        n_differ=1, kinds={"value": 1}, first=spot, last=spot, worst_ulp=None, max_abs=None
    )
