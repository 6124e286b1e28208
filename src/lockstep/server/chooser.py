"""Choosing a sequence's next token: penalties and grammar first, then the sampler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.engine.sampling import Sampler
from lockstep.server.generation import Generation


class Chooser:
    """The choices of one sequence; its draws are its own, whatever runs beside it."""

    def __init__(self, generation: Generation) -> None:
        self._sampler = Sampler(generation.sampling)
        self._penalties = generation.penalties
        self._counts: Counter[int] = Counter()
        self._constraint = generation.constraint() if generation.constraint else None

    @property
    def is_complete(self) -> bool:
        """Whether a grammar allows nothing but the end."""
        return self._constraint is not None and self._constraint.is_complete

    def choose(self, logits_V: NDArray[Any], history: Sequence[int]) -> int:
        """The next token after `history`.

        Raises: GateError if the logits leave nothing to choose; UsageError if the grammar does not.
        """
        if self._penalties.any:
            logits_V = self._penalised(logits_V)
        if self._constraint is not None:
            allowed_V = self._constraint.allowed()
            logits_V = np.where(allowed_V, logits_V, -np.inf)
        id = self._sampler.choose(logits_V, history)
        if self._constraint is not None:
            self._constraint.take(id)
        if self._penalties.any:
            self._counts[id] += 1
        return id

    def _penalised(self, logits_V: NDArray[Any]) -> NDArray[Any]:
        p = self._penalties
        scores_V = logits_V.astype(np.float64)
        for id, bias in p.bias.items():
            scores_V[id] += bias
        for id, count in self._counts.items():
            scores_V[id] -= p.frequency * count + p.presence
        return scores_V
