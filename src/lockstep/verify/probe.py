"""Answers questions about a plan's leaves within the budget: does another claim hold, and where."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from lockstep.errors import BudgetError
from lockstep.formats.leaf import Leaf
from lockstep.verify.budget import Budget
from lockstep.verify.claim import Claim, Equality, Plan, Words
from lockstep.verify.differences import Tally, Where
from lockstep.verify.job import items_of, job_of, sampled
from lockstep.verify.reading import words_of
from lockstep.verify.tasks import SideName, wrong_with
from lockstep.verify.tiles import Scheme, digest_scheme
from lockstep.verify.worker import Worker

_FEW, _KEPT = 16, 4096  # elements of a short read, and how many of those are kept


class _Differs(Exception):
    """An element differs."""


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
        self._worker = Worker(budget.alone, threading.Event())
        self._budget = budget
        # the same few places are asked for by one hypothesis after the other
        self._few: dict[tuple[str, str, int, int], Words] = {}
        self._schemes: dict[SideName, dict[str, Scheme]] = {"source": {}, "target": {}}

    def close(self) -> None:
        """Closes files and gives the memory back."""
        self._worker.close()

    def agrees(self, claim: Claim, at_most: int | None = None) -> bool:
        """Whether the claim holds bit for bit, over at most so many elements if that is given."""
        source, target = self._plan.source.leaves, self._plan.target.leaves[claim.target]
        if claim.layout is None or any(name not in source for name in claim.sources):
            return False
        leaves = {name: source[name] for name in claim.sources}
        if target.value or any(leaf.value for leaf in leaves.values()):
            return False
        if wrong_with(claim, leaves, target):
            return False
        if at_most is not None:
            claim = sampled(claim, at_most)
        return self._holds(claim, leaves, target)

    def _holds(self, claim: Claim, leaves: Mapping[str, Leaf], target: Leaf) -> bool:
        try:
            job = job_of(claim, leaves, target, self._budget)
        except BudgetError:
            return False  # what cannot be looked at is not agreed to
        job.tally = _AnyDifference(target.element, Equality())
        try:
            for item in items_of(job):
                self._worker.work(item)
        except _Differs:
            return False
        assert claim.layout is not None
        return job.n_compared == sum(piece.n_elements for piece in claim.layout.pieces)

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
        store = self._plan.source if side == "source" else self._plan.target
        found = store.leaves[leaf]
        n = found.element.n_bytes
        if leaf not in self._schemes[side]:
            self._schemes[side][leaf] = digest_scheme(found, self._worker.arena.n_bytes)
        scheme = self._schemes[side][leaf]
        self._worker.prepare(scheme, found)
        out = np.empty((stop - start) * n, np.uint8)
        step = max(1, scheme.room // n)
        for at in range(start, stop, step):
            last = min(stop, at + step)
            self._worker.fill(found, at, last, out[(at - start) * n : (last - start) * n])
        word, n_words = words_of(found.element)
        words: Words = out.view(word)
        return words if n_words == 1 else words.reshape(-1, n_words)

    def digest(self, side: SideName, leaf: str) -> str | None:
        """The digest of a leaf, where one was made."""
        return self._digests[side].get(leaf)
