"""Choosing the next token: greedy, or drawn from a filtered distribution with a seeded generator.

The filters follow the order and the rules of the logits processors in transformers: repeat penalty,
temperature, top-k, top-p, min-p. They work in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import GateError, UsageError

Logits = NDArray[Any]
_LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is chosen; temperature 0 is greedy, the other defaults filter nothing."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_window: int = 64  # how many of the last tokens are penalised; 0 is all of them
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("temperature", self.temperature, 0 <= self.temperature <= 100, "0 to 100"),
            ("top-k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("min-p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            ("repeat-penalty", self.repeat_penalty, 0 < self.repeat_penalty <= 100, "0 to 100"),
            ("repeat-last-n", self.repeat_window, self.repeat_window >= 0, "0 or more"),
            ("seed", self.seed, 0 <= self.seed < 2**64, "0 to 2**64 - 1"),
        )
        for name, value, holds, expected in rules:
            if not holds:
                raise UsageError(
                    f"{name}: expected {expected}, got {value}", hint=f"choose another --{name}"
                )


class Sampler:
    """Draws tokens; the same seed and the same logits give the same tokens on every machine."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = s = sampling
        filters = {
            partial(keep_top_k, k=s.top_k): s.top_k > 0,
            partial(keep_top_p, p=s.top_p): s.top_p < 1.0,
            partial(keep_min_p, p=s.min_p): s.min_p > 0.0,
        }
        self._filters = [keep for keep, is_on in filters.items() if is_on]
        self._random = np.random.Generator(np.random.Philox(sampling.seed))

    def choose(self, logits_V: Logits, history: Sequence[int] = ()) -> int:
        """The next token after `history`.

        Raises: GateError if a logit is NaN or infinity, or all of them are minus infinity.
        """
        s = self.sampling
        likeliest = int(logits_V.argmax())  # a NaN beats every number
        if not -np.inf < logits_V[likeliest] < np.inf:
            raise GateError(
                "logits: expected numbers, got infinity, NaN or nothing but minus infinity",
                hint="check the weights with `lockstep compare`",
            )
        if s.temperature == 0 and s.repeat_penalty == 1.0:
            return likeliest
        scores_V = logits_V.astype(np.float64)
        window = history[-s.repeat_window :] if s.repeat_window else history
        scores_V = penalise(scores_V, window, s.repeat_penalty)
        if s.temperature == 0:
            return int(scores_V.argmax())
        ids_V = np.arange(scores_V.size)
        with np.errstate(over="ignore"):  # what is beyond all numbers is never drawn
            # The maximum goes first: at 0 it stands under any temperature, and the rest falls away.
            scores_V = (scores_V - scores_V.max()) / s.temperature
        for keep in self._filters:
            scores_V = keep(scores_V)
            kept = np.flatnonzero(scores_V > -np.inf)  # few, and the rest costs nothing more
            scores_V, ids_V = scores_V[kept], ids_V[kept]
        cumulative_V = np.cumsum(np.exp(scores_V))
        # Scaled by the sum, so that rounding cannot push the draw past the last token.
        draw = self._random.random() * cumulative_V[-1]
        return int(ids_V[np.searchsorted(cumulative_V, draw, side="right")])


def softmax(scores_V: Logits) -> Logits:
    """The probabilities that belong to the scores."""
    weights_V = np.exp(scores_V - scores_V.max())
    return np.asarray(weights_V / weights_V.sum())


def penalise(scores_V: Logits, window: Sequence[int], penalty: float) -> Logits:
    """Lowers the score of every token in the window: divided if positive, multiplied if negative.

    A score that is a number stays one, however small or large the penalty is.
    Source: arXiv:1909.05858.
    """
    if penalty == 1.0 or not len(window):
        return scores_V
    seen = np.unique(np.asarray(window))
    found = scores_V.copy()
    own = found[seen]
    with np.errstate(over="ignore"):
        lowered = np.where(own < 0, own * penalty, own / penalty)
    found[seen] = np.where(np.isinf(own), own, np.clip(lowered, -_LARGEST, _LARGEST))
    return found


def keep_top_k(scores_V: Logits, k: int) -> Logits:
    """Keeps the k highest scores, and all that equal the lowest of them; 0 keeps everything."""
    if k == 0 or k >= scores_V.size:
        return scores_V
    lowest = np.partition(scores_V, -k)[-k]
    return np.where(scores_V < lowest, -np.inf, scores_V)


def keep_top_p(scores_V: Logits, p: float) -> Logits:
    """Keeps the likeliest tokens that together reach the probability p, and at least one.

    Source: arXiv:1904.09751.
    """
    if p >= 1.0:
        return scores_V
    probabilities_V = softmax(scores_V)
    # Tokens that do not even make up the rest if all were as likely are dropped in any order; a
    # thousandth less of them, since the likeliest must stay whatever rounding does.
    likely = np.flatnonzero(probabilities_V * scores_V.size > (1.0 - p) * 0.999)
    descending = likely[np.argsort(scores_V[likely], kind="stable")[::-1]]
    own = probabilities_V[descending]
    kept = descending[np.cumsum(own) - own < p]  # those likelier have not reached p
    found = np.full_like(scores_V, -np.inf)
    found[kept] = scores_V[kept]
    return found


def keep_min_p(scores_V: Logits, p: float) -> Logits:
    """Keeps the tokens that have at least the share p of the likeliest token's probability."""
    if p == 0.0:
        return scores_V
    return np.where(np.exp(scores_V - scores_V.max()) < p, -np.inf, scores_V)
