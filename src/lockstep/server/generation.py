"""What a sequence is asked for, apart from HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from lockstep.engine.sampling import Sampling
from lockstep.server.constraint import Constraint


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalties:
    """What is added to the logits before a token is chosen."""

    bias: Mapping[int, float] = field(default_factory=dict)
    frequency: float = 0.0  # subtracted once for each time that the token was generated
    presence: float = 0.0  # subtracted if the token was generated

    @property
    def any(self) -> bool:
        """Whether they change a logit."""
        return bool(self.bias) or self.frequency != 0.0 or self.presence != 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One sequence: what it reads, how it goes on, and what is to be told of it.

    `n_top` is how many likeliest tokens are told beside each token, and None asks for no
    logprobs at all. `constraint` makes a matcher of its own for each sequence.
    """

    prompt: tuple[int, ...]
    max_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    penalties: Penalties = field(default_factory=Penalties)
    stop_texts: tuple[str, ...] = ()
    ignores_eos: bool = False
    constraint: Callable[[], Constraint] | None = None
    n_top: int | None = None
    scores_prompt: bool = False
    tells_end: bool = False  # whether the end token is told, which has no text
    pooling: Literal["last", "mean"] | None = None  # an embedding instead of text
