"""What `plan` shows, as a record: resolved claims, what they take, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field

from lockstep.artifacts import Artifact
from lockstep.artifacts.verification import ProblemRow
from lockstep.errors import BudgetError
from lockstep.verify.claim import Claim, Plan, Problem
from lockstep.verify.engine.budget import Budget, divide
from lockstep.verify.engine.tiles import predict
from lockstep.verify.listing import short_text


@dataclass(frozen=True, kw_only=True)
class PlannedClaim:
    """One claim before anything is read; `refused` says why the memory does not suffice."""

    id: str
    rule: str
    group: str
    target: str
    sources: tuple[str, ...]
    transform: str
    equality: str
    n_elements: int
    n_pieces: int
    predicted_peak_bytes: int | None
    refused: str


@dataclass(frozen=True, kw_only=True)
class ExcuseLine:
    """A leaf that no claim covers, and why."""

    side: str
    leaf: str
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PlanListing(Artifact, file="plan.json", schema="lockstep.claims-plan/1"):
    """Claims resolved against two checkpoints.  Units: bytes.  History: 1 the first."""

    title: str
    mapping: str
    claims_digest: str
    source: str
    target: str
    facts: dict[str, str]
    budget_bytes: int
    predicted_peak_bytes: int | None
    claims: tuple[PlannedClaim, ...]
    excuses: tuple[ExcuseLine, ...]
    ties: tuple[tuple[str, ...], ...]
    problems: tuple[ProblemRow, ...]
    ambiguities: tuple[ProblemRow, ...]
    not_measured: dict[str, str] = field(default_factory=dict)

    @property
    def n_refused(self) -> int:
        """How many claims do not fit the memory."""
        return sum(bool(claim.refused) for claim in self.claims)


def list_plan(plan: Plan, max_memory_bytes: int, jobs: int) -> PlanListing:
    """A plan with its predicted peaks; no data is read.

    Raises: BudgetError if the memory does not even hold the program and the listings.
    """
    budget = divide(max_memory_bytes, jobs, len(plan.source.leaves) + len(plan.target.leaves))
    claims = tuple(_claim(plan, claim, budget) for claim in plan.claims)
    peaks = [claim.predicted_peak_bytes for claim in claims]
    known = [peak for peak in peaks if peak is not None]
    return PlanListing(
        title=plan.title,
        mapping=plan.mapping,
        claims_digest=plan.digest,
        source=plan.source.where,
        target=plan.target.where,
        facts={name: short_text(value) for name, value in plan.facts.items()},
        budget_bytes=max_memory_bytes,
        predicted_peak_bytes=max(known, default=None),
        claims=claims,
        excuses=tuple(
            ExcuseLine(side=e.side, leaf=e.leaf, kind=e.kind, reason=e.reason) for e in plan.excuses
        ),
        ties=tuple(tie.leaves for tie in plan.ties),
        problems=tuple(map(_problem, plan.problems)),
        ambiguities=tuple(
            ProblemRow(kind=a.kind, where=a.side, message=a.message) for a in plan.ambiguities
        ),
        not_measured=_reasons(len(known) < len(peaks), not known),
    )


def _reasons(some: bool, all_: bool) -> dict[str, str]:
    reasons = {}
    if some:
        reasons["claims.predicted_peak_bytes"] = "the claim does not fit the memory; see `refused`"
    if all_:
        reasons["predicted_peak_bytes"] = "no claim fits the memory, or there is none"
    return reasons


def _claim(plan: Plan, claim: Claim, budget: Budget) -> PlannedClaim:
    peak, refused = None, ""
    try:
        peak = predict(claim, plan.source, plan.target, budget)
    except BudgetError as error:
        refused = f"{error.message}; {error.hint}"
    return PlannedClaim(
        id=claim.id,
        rule=claim.rule,
        group=claim.group,
        target=claim.target,
        sources=claim.sources,
        transform=claim.text,
        equality=claim.equality.kind,
        n_elements=plan.target.leaves[claim.target].n_elements,
        n_pieces=len(claim.layout.pieces) if claim.layout else 0,
        predicted_peak_bytes=peak,
        refused=refused,
    )


def _problem(problem: Problem) -> ProblemRow:
    return ProblemRow(
        kind=problem.kind, where=problem.where, message=problem.message, hint=problem.hint
    )
