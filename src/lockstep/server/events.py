"""What a sequence tells while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from lockstep.server.scores import Token

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class PromptRead:
    """The prompt is read; its tokens with their log-probabilities, if these were asked for."""

    index: int
    tokens: tuple[Token, ...]
    n_cached: int


@dataclass(frozen=True, slots=True)
class Spoke:
    """More text, and its tokens."""

    index: int
    text: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The sequence is at its end, after `n_tokens` of its own."""

    index: int
    reason: Finish
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Embedded:
    """The embedding, of length 1."""

    index: int
    vector_D: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """The whole request is at its end, and why."""

    status: int
    message: str
    code: str


Event = PromptRead | Spoke | Finished | Embedded | Failed
