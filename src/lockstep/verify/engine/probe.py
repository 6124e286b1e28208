"""Answers questions about a plan's leaves within the budget: does another claim hold, and where.

Small leaves that are stored in chunks are decoded once and held, as one hypothesis after the other
looks at the same few; they have a quarter of the budget, and give it back where all is needed.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import BudgetError
from lockstep.formats.leaf import Extent, Held, Leaf, Parts
from lockstep.verify.claim import Claim, Equality, Plan, Words
from lockstep.verify.claims.sampled import sampled
from lockstep.verify.engine.budget import MIB, Budget
from lockstep.verify.engine.job import Job, items_of, job_of
from lockstep.verify.engine.reading import words_of
from lockstep.verify.engine.tasks import SideName, misfit
from lockstep.verify.engine.tiles import PLAIN, Scheme, digest_scheme
from lockstep.verify.engine.worker import Stopped, Worker
from lockstep.verify.numbers.differences import Tally, Where

_FEW, _KEPT = 16, 4096  # elements of a short read, and how many of those are kept
_MOST_HELD = 256 * MIB  # of decoded leaves


class _Differs(Exception):
    """An element differs."""


class _Deadline(threading.Event):
    """Set by itself when the time has come."""

    until = inf

    def is_set(self) -> bool:
        """Whether it is past the time."""
        return time.monotonic() >= self.until


class _AnyDifference(Tally):
    """A tally that stops at the first difference."""

    def add(self, expected: Words, found: Words, where: Where) -> None:
        """Ends the comparison.

        Raises: _Differs
        """
        raise _Differs


class ReadingProbe:
    """A probe that reads; one worker with all of the budget."""

    def __init__(
        self, plan: Plan, budget: Budget, digests: Mapping[SideName, Mapping[str, str]]
    ) -> None:
        self._plan, self._digests = plan, digests
        self._deadline = _Deadline()
        self._worker = Worker(budget.alone, self._deadline)
        self._budget = budget
        # the same few places are asked for by one hypothesis after the other
        self._few: dict[tuple[str, str, int, int], Words] = {}
        self._schemes: dict[SideName, dict[str, Scheme]] = {"source": {}, "target": {}}
        self._held: OrderedDict[tuple[SideName, str], Leaf] = OrderedDict()
        self._n_held, self._room = 0, min(budget.alone // 4, _MOST_HELD)
        arena = min(budget.arena, budget.alone - self._room)
        self._rest = replace(budget, total=budget.total - self._room, arena=arena)

    def close(self) -> None:
        """Closes files and gives the memory back."""
        self._worker.close()
        self._drop()

    def limit(self, seconds: float) -> None:
        """From now on it answers for so long; then it agrees to nothing."""
        self._deadline.until = time.monotonic() + seconds

    def is_late(self) -> bool:
        """Whether the time is over."""
        return self._deadline.is_set()

    def agrees(self, claim: Claim, at_most: int | None = None) -> bool:
        """Whether the claim holds bit for bit, over at most so many elements if that is given.

        A claim may have pieces for some of the elements only; the others are not looked at then.
        """
        source, target = self._plan.source.leaves, self._plan.target.leaves[claim.target]
        if claim.layout is None or any(name not in source for name in claim.sources):
            return False
        leaves = {name: source[name] for name in claim.sources}
        if target.value or any(leaf.value for leaf in leaves.values()):
            return False
        if misfit(claim, leaves, target):
            return False
        if at_most is not None:
            claim = sampled(claim, at_most)
        try:
            leaves = {name: self._leaf("source", name) for name in leaves}
            job = job_of(claim, leaves, self._leaf("target", claim.target), self._rest)
        except BudgetError:
            self._drop()
            leaves = {name: source[name] for name in leaves}
            try:
                job = job_of(claim, leaves, target, self._budget)
            except BudgetError:
                return False  # what cannot be looked at is not agreed to
        return self._holds(job)

    def _holds(self, job: Job) -> bool:
        job.tally = _AnyDifference(job.leaf.element, Equality())
        try:
            for item in items_of(job):
                self._worker.work(item)
        except (_Differs, Stopped):
            return False
        assert job.claim.layout is not None
        return job.n_compared == sum(piece.n_elements for piece in job.claim.layout.pieces)

    # --- leaves that are held

    def _leaf(self, side: SideName, name: str) -> Leaf:
        """The leaf, decoded if it is stored in chunks and small.

        Raises: BudgetError if it cannot be decoded in what is left beside those that are held.
        """
        store = self._plan.source if side == "source" else self._plan.target
        leaf = store.leaves[name]
        n_bytes = leaf.n_elements * leaf.element.n_bytes
        if isinstance(leaf.storage, Extent | Held | Parts) or n_bytes > self._room // 2:
            return leaf
        key = (side, name)
        if key not in self._held:
            while self._held and self._n_held + n_bytes > self._room:
                self._n_held -= _size(self._held.popitem(last=False)[1])
            data = bytearray(n_bytes)
            scheme = digest_scheme(leaf, self._rest.alone)
            self._gather(leaf, scheme, 0, np.frombuffer(data, np.uint8))
            self._held[key] = replace(leaf, storage=Held(data))  # type: ignore[arg-type]
            self._n_held += n_bytes
        self._held.move_to_end(key)
        return self._held[key]

    def _drop(self) -> None:
        self._held.clear()
        self._n_held = 0

    def elements(self, side: SideName, leaf: str, start: int, stop: int) -> Words:
        """The words of the flat elements `start` to `stop`.

        Raises: BudgetError if they do not fit.
        """
        key = (side, leaf, start, stop)
        words = self._few.get(key)
        if words is None:
            words = self._read(side, leaf, start, stop)
            if len(words) <= _FEW and len(self._few) < _KEPT:
                self._few[key] = words
        return words

    def _read(self, side: SideName, leaf: str, start: int, stop: int) -> Words:
        try:
            found = self._leaf(side, leaf)
        except BudgetError:
            self._drop()
            store = self._plan.source if side == "source" else self._plan.target
            found = store.leaves[leaf]
        out = np.empty((stop - start) * found.element.n_bytes, np.uint8)
        if isinstance(found.storage, Held):
            scheme = PLAIN
        else:
            schemes = self._schemes[side]
            if leaf not in schemes:
                schemes[leaf] = digest_scheme(found, self._worker.arena.n_bytes - self._n_held)
            scheme = schemes[leaf]
        self._gather(found, scheme, start, out)
        word, n_words = words_of(found.element)
        words: Words = out.view(word)
        return words if n_words == 1 else words.reshape(-1, n_words)

    def _gather(self, leaf: Leaf, scheme: Scheme, start: int, out: NDArray[np.uint8]) -> None:
        """Fills `out` with the elements from `start` on."""
        n = leaf.element.n_bytes
        self._worker.prepare(scheme, leaf)
        step = max(1, scheme.room // n)
        stop = start + len(out) // n
        for at in range(start, stop, step):
            last = min(stop, at + step)
            self._worker.fill(leaf, at, last, out[(at - start) * n : (last - start) * n])

    def digest(self, side: SideName, leaf: str) -> str | None:
        """The digest of a leaf, where one was made."""
        return self._digests[side].get(leaf)


def _size(leaf: Leaf) -> int:
    return len(leaf.storage.data) if isinstance(leaf.storage, Held) else 0
