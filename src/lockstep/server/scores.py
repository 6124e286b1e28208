"""How likely tokens were: what `logprobs` asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Token:
    """A token with its log-probability and the likeliest ones at its place, likeliest first.

    Probabilities are the model's own: before temperature, filters, penalties and grammars. None
    was not asked for, or is that of a first token, which nothing predicts.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def scored(id: int, logits_V: Logits, n_top: int | None) -> Token:
    """A token at the place that these logits predict."""
    if n_top is None:
        return Token(id)
    scores_V = logits_V.astype(np.float64)
    scores_V -= scores_V.max()
    scores_V -= np.log(np.exp(scores_V).sum())
    if n_top == 0:
        return Token(id, float(scores_V[id]))
    n = min(n_top, scores_V.size)
    lowest = np.partition(scores_V, -n)[-n]
    found = np.flatnonzero(scores_V >= lowest)
    # Equal ones in the order of their ids, so that the answer does not depend on the partition.
    best = found[np.argsort(-scores_V[found], kind="stable")][:n]
    return Token(id, float(scores_V[id]), tuple((int(i), float(scores_V[i])) for i in best))
