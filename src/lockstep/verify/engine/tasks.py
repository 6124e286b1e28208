"""From a plan to tasks: what has to be compared, hashed and summed, and what came of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lockstep.artifacts.verify_journal import JournalEntry
from lockstep.errors import BudgetError
from lockstep.formats.leaf import ELEMENT_TYPES, Leaf, Store
from lockstep.verify.claim import Claim, Plan, Problem, Tie
from lockstep.verify.claims.sampled import sampled
from lockstep.verify.digest import block_elements, leaf_digest
from lockstep.verify.engine.budget import SCRATCH, Budget
from lockstep.verify.engine.job import HashJob, Job, Sum, grouped, job_of
from lockstep.verify.engine.journal import Journal, claim_key
from lockstep.verify.engine.threads import Tasks
from lockstep.verify.engine.tiles import PLAIN, Scheme, digest_scheme
from lockstep.verify.layouts.layout import whole
from lockstep.verify.layouts.piece import Piece
from lockstep.verify.numbers.differences import Tally
from lockstep.verify.numbers.health import Health

SideName = Literal["source", "target"]


@dataclass(slots=True)
class Found:
    """What came of one claim.  `why` is what is wrong with it before any element is looked at."""

    n_elements: int
    need: int = 0
    n_compared: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    tally: Tally | None = None
    why: str = ""
    values: tuple[str, str] | None = None  # of leaves that are no arrays, where they differ
    is_resumed: bool = False


class TaskList:
    """The tasks of one examination, and what is found; `done` may be called by any thread."""

    def __init__(
        self,
        plan: Plan,
        budget: Budget,
        journal: Journal,
        *,
        digests: bool,
        sample: bool = False,
        health: bool = False,
    ) -> None:
        """Lays out all that is to be done, so that nothing is read before all of it fits.

        Raises: BudgetError naming the leaf that does not fit.
        """
        self.tasks = Tasks()
        self.found: dict[str, Found] = {}
        self.digests: dict[SideName, dict[str, str]] = {"source": {}, "target": {}}
        self._plan, self._budget, self._journal = plan, budget, journal
        self.with_digests, self.sample = digests and not sample, sample
        self._hashed: set[tuple[str, str]] = set()
        self.health: dict[str, Health] = {}  # of the targets of claims
        if health:
            self.health = {claim.target: _health_of(plan.target, claim) for claim in plan.claims}
        self._keys: dict[str, str] = {}
        self._lock = threading.Lock()
        largest = _largest_of_rules(plan) if sample else set()
        for claim in plan.claims:
            self._add(claim, only_a_part=sample and claim.id not in largest)
        if self.with_digests:
            self._add_digests("source", plan.source)
        if self.with_digests or health:
            self._add_digests("target", plan.target)
        self._ties: dict[str, Tie] = {}
        for tie in plan.ties:
            self._add_tie(tie, plan.source if tie.side == "source" else plan.target)
        self._add_sums()

    def tie_problems(self) -> list[Problem]:
        """The ties of which not every element is known to be the same."""
        wrong = []
        for key, tie in self._ties.items():
            found = self.found[key]
            if found.why or found.tally or found.values or found.n_compared != found.n_elements:
                names = " and ".join(tie.leaves)
                got = self._broken(tie, found) or found.why or "other values"
                wrong.append(
                    Problem(
                        "tie",
                        f"{tie.side} {tie.leaves[-1]}",
                        f"{tie.side} {names}: expected the same bits in leaves that are tied, got "
                        f"{got}",
                        "remove the tie and claim both leaves, or write the checkpoint again",
                    )
                )
        return wrong

    def _broken(self, tie: Tie, found: Found) -> str:
        """How many elements of a tie differ, and the first of them."""
        store = self._plan.source if tie.side == "source" else self._plan.target
        if found.tally is None or tie.leaves[-1] not in store.leaves:
            return ""
        claim = Claim("", tie.rule, "", tie.leaves[-1], (tie.leaves[0],), None)
        difference = found.tally.difference(Plan(store, store, ()), claim)
        if difference is None:
            return ""
        first = difference.first
        return (
            f"{difference.n_differ} of {found.n_elements} elements that differ, the first at "
            f"{list(first.target_index)}: {first.expected} and {first.found}"
        )

    @property
    def predicted_peak(self) -> int:
        """The peak of the process, as predicted.  Units: bytes."""
        needs = [[_need(task) for task in tasks] for tasks in (self.tasks.shared, self.tasks.alone)]
        shared = self._budget.n_workers * (SCRATCH + max(needs[0], default=0))
        alone = SCRATCH + max(needs[1], default=0)
        return max(self._budget.least, self._budget.base + max(shared, alone))

    def done(self, job: Job | HashJob) -> None:
        """Takes what a finished job has found."""
        if isinstance(job, HashJob):
            digest = leaf_digest(job.leaf, bytes(job.blocks))
            digests = {f"{job.side}:{job.leaf.name}": digest} if self.with_digests else {}
        else:
            digests = _digests_of(job)
            self._keep(job)
        with self._lock:
            self._take_digests(digests)
            self._note(job, digests)

    # --- inside

    def _add(self, claim: Claim, only_a_part: bool) -> None:
        source, target = self._plan.source.leaves, self._plan.target.leaves
        missing = [name for name in claim.sources if name not in source]
        if missing or claim.target not in target:
            self.found[claim.id] = Found(0, why=f"no leaf {(missing or [claim.target])[0]}")
            return
        leaves, leaf = {name: source[name] for name in claim.sources}, target[claim.target]
        found = self.found[claim.id] = Found(
            max(1, leaf.n_elements) if leaf.value else leaf.n_elements
        )
        if claim.layout is None or leaf.value or any(each.value for each in leaves.values()):
            _compare_values(found, list(leaves.values()), leaf)
            return
        found.why = wrong_with(claim, leaves, leaf)
        if found.why or self._is_resumed(claim, leaves, leaf, found):
            return
        job = self._job(sampled(claim) if only_a_part else claim, leaves, leaf)
        found.need = job.scheme.need
        self._put(job, job.scheme.need)

    def _add_tie(self, tie: Tie, store: Store) -> None:
        """A tie is a claim of identity inside one checkpoint, of each leaf with the first."""
        present = [store.leaves[name] for name in tie.leaves if name in store.leaves]
        for first, leaf in ((present[0], other) for other in present[1:]):
            key = f"tie {tie.side} {first.name} {leaf.name}"
            self._ties[key] = replace(tie, leaves=(first.name, leaf.name))
            found = self.found[key] = Found(leaf.n_elements)
            if first.value or leaf.value:
                found.n_elements = 1
                _compare_values(found, [first], leaf)
                continue
            claim = Claim(
                id=key, rule=tie.rule, group="", target=leaf.name, sources=(first.name,),
                layout=whole(first.name, first.grid_shape),
            )  # fmt: skip
            found.why = wrong_with(claim, {first.name: first}, leaf)
            if not found.why:
                job = self._job(claim, {first.name: first}, leaf, hashed=False)
                self._put(job, job.scheme.need)

    def _job(
        self, claim: Claim, leaves: Mapping[str, Leaf], target: Leaf, hashed: bool = True
    ) -> Job:
        job = job_of(claim, leaves, target, self._budget)
        scheme = job.scheme
        if hashed and self.with_digests and scheme.way in ("plain", "linear"):
            (name,) = leaves
            n = 32 * -(-target.n_elements // block_elements(target.element))
            if target.name not in self.health and self._is_first("target", target.name):
                job.target_blocks = bytearray(n)
                if self._is_first("source", name):
                    job.source_blocks = bytearray(n)
        return job

    def _is_first(self, side: str, name: str) -> bool:
        key = (side, name)
        if key in self._hashed or f"{side}:{name}" in self._journal.digests:
            return False
        self._hashed.add(key)
        return True

    def _put(self, task: Job | HashJob | Sum, need: int) -> None:
        fits = need <= self._budget.arena
        (self.tasks.shared if fits else self.tasks.alone).append(task)

    def _is_resumed(
        self, claim: Claim, leaves: Mapping[str, Leaf], target: Leaf, found: Found
    ) -> bool:
        if self._journal.path is None:
            return False
        key = self._keys[claim.id] = claim_key(claim, leaves, target)
        entry = self._journal.claims.get(key)
        if entry is None or entry.n_compared != found.n_elements:
            return False
        found.n_compared, found.n_bytes = entry.n_compared, entry.bytes_read
        found.seconds, found.is_resumed = entry.seconds, True
        return True

    def _add_digests(self, side: SideName, store: Store) -> None:
        for name, leaf in store.leaves.items():
            known = self._journal.digests.get(f"{side}:{name}")
            health = self.health.get(name) if side == "target" else None
            if health is None and not self.with_digests:
                continue
            if known is not None and health is None:
                self.digests[side][name] = known
            elif (side, name) not in self._hashed:
                n_blocks = 0 if leaf.value else -(-leaf.n_elements // block_elements(leaf.element))
                if not n_blocks:
                    self.digests[side][name] = leaf_digest(leaf, b"")
                    continue
                scheme = self._digest_scheme(leaf)
                job = HashJob(side, leaf, scheme, bytearray(32 * n_blocks), health)
                self._put(job, scheme.need)

    def _digest_scheme(self, leaf: Leaf) -> Scheme:
        try:
            return digest_scheme(leaf, self._budget.arena)
        except BudgetError:
            return digest_scheme(leaf, self._budget.alone)

    def _add_sums(self) -> None:
        """The records of leaves that are read; with digests that is all of them."""
        read = {
            "source": {name for claim in self._plan.claims for name in claim.sources},
            "target": {claim.target for claim in self._plan.claims},
        }
        for side, store in (("source", self._plan.source), ("target", self._plan.target)):
            for record in store.records:
                if self.with_digests or not read[side].isdisjoint(record.leaves):
                    self._put(Sum(record), 0)

    def _keep(self, job: Job) -> None:
        found = self.found[job.claim.id]
        found.n_compared, found.n_bytes = job.n_compared * job.expands, job.n_bytes
        found.seconds, found.tally = job.seconds, job.tally

    def _take_digests(self, digests: Mapping[str, str]) -> None:
        for key, digest in digests.items():
            side, _, name = key.partition(":")
            self.digests["source" if side == "source" else "target"][name] = digest

    def _note(self, job: Job | HashJob, digests: dict[str, str]) -> None:
        """Only what holds is noted; what differs is looked at again."""
        if self._journal.path is None or self.sample:
            return
        claim = job.claim.id if isinstance(job, Job) else ""
        n = self.found[claim].n_compared if claim else 0
        if isinstance(job, Job) and (job.tally or n != self.found[claim].n_elements):
            return
        self._journal.note(
            JournalEntry(
                run=self._journal.run,
                key=self._keys.get(claim, ""),
                claim=claim,
                n_compared=n,
                bytes_read=job.n_bytes if isinstance(job, Job) else 0,
                seconds=job.seconds if isinstance(job, Job) else 0.0,
                digests=digests,
            )
        )


def _health_of(target: Store, claim: Claim) -> Health:
    leaf = target.leaves.get(claim.target)
    return Health(leaf.element if leaf else ELEMENT_TYPES["U8"])


def _need(task: Job | HashJob | Sum) -> int:
    return PLAIN.need if isinstance(task, Sum) else task.scheme.need


def _digests_of(job: Job) -> dict[str, str]:
    found: dict[str, str] = {}
    if job.target_blocks is not None:
        found[f"target:{job.target.name}"] = leaf_digest(job.target, bytes(job.target_blocks))
    if job.source_blocks is not None:
        (leaf,) = job.leaves.values()
        found[f"source:{leaf.name}"] = leaf_digest(leaf, bytes(job.source_blocks))
    return found


def _largest_of_rules(plan: Plan) -> set[str]:
    """The claim with the most elements of each rule."""
    largest: dict[str, tuple[int, str]] = {}
    for claim in plan.claims:
        n = claim.layout.n_elements if claim.layout else 0
        if n > largest.get(claim.rule, (-1, ""))[0]:
            largest[claim.rule] = n, claim.id
    return {claim for _, claim in largest.values()}


def _compare_values(found: Found, sources: list[Leaf], target: Leaf) -> None:
    """Leaves that are no arrays: equal are those of one type that are spelled the same."""
    if len(sources) != 1 or not target.value or not sources[0].value:
        found.why = "one side is an array and the other is none"
        return
    expected, got = (_spelled(leaf) for leaf in (sources[0], target))
    found.n_compared = 1
    if expected != got:
        found.values = expected, got


def _spelled(leaf: Leaf) -> str:
    return f"{leaf.element.name} {json.dumps(leaf.value[0], sort_keys=True)}"


def wrong_with(claim: Claim, leaves: Mapping[str, Leaf], target: Leaf) -> str:
    """Why a claim cannot hold, whatever the elements are; "" if it can."""
    wrong = misfit(claim, leaves, target)
    blocks = grouped(claim, target)
    if wrong or blocks is None or claim.layout is None:
        return wrong
    n = sum(piece.n_elements for piece in claim.layout.pieces)
    return "" if n == blocks.n_elements else f"expected {blocks.n_elements} elements, got {n}"


def misfit(claim: Claim, leaves: Mapping[str, Leaf], target: Leaf) -> str:
    """As `wrong_with`, for claims that may be about some of the elements only."""
    layout = claim.layout
    assert layout is not None
    blocks = grouped(claim, target)
    if blocks is None:
        return f"{claim.text}: expected a target in C order whose rows are whole blocks"
    if layout.shape != blocks.grid_shape:
        return f"expected the shape {layout.shape}, got {blocks.grid_shape}"
    first = claim.values[0].source if claim.values else target.element
    for leaf in leaves.values():
        kind = leaf.element.name
        for value in claim.values:
            if value.source.name != kind:
                return f"expected {value.source} for {value.text}, got {kind} in {leaf.name}"
            kind = value.target.name
        if kind != target.element.name:
            return f"expected the type {kind}, as {leaf.name} has, got {target.element}"
    for piece in layout.pieces:
        if piece.leaf is None:
            if len(piece.fill) != first.n_bytes:
                return f"expected a constant of {first.n_bytes} bytes, got {len(piece.fill)}"
        elif piece.leaf not in leaves or not _is_inside(piece, leaves[piece.leaf]):
            return f"expected elements of {', '.join(leaves)}, got some beyond in {piece.leaf}"
    return ""


def _is_inside(piece: Piece, leaf: Leaf) -> bool:
    far = [(loop.n - 1) * loop.src for loop in piece.loops]
    first = piece.src + sum(step for step in far if step < 0)
    last = piece.src + sum(step for step in far if step > 0)
    return first >= 0 and last < leaf.n_elements
