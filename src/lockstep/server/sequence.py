"""One sequence while it is read and generated; the scheduler's thread owns it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.engine.session import Piece
from lockstep.server.chooser import Chooser
from lockstep.server.events import Embedded, Event, Finish, Finished, PromptRead, Spoke
from lockstep.server.generation import Generation
from lockstep.server.scores import Token, scored
from lockstep.server.transcript import Transcript
from lockstep.tokenizers import ModelTokenizer


class Sequence:
    """Tokens that grow, how many of them the session has read, and what is told of them."""

    def __init__(self, index: int, generation: Generation, tokenizer: ModelTokenizer) -> None:
        self.index, self.generation = index, generation
        self.ids = list(generation.prompt)
        self.n_prompt = len(self.ids)
        self.n_read = self.n_cached = 0
        self.slot = -1  # none yet
        self.finished = False
        self._stop_ids = frozenset[int]() if generation.ignores_eos else tokenizer.stop_ids
        self._tokenizer = tokenizer
        self._prompt_tokens = [Token(self.ids[0])] if generation.scores_prompt else []
        self._sum_D: NDArray[Any] | float = 0.0

    @property
    def is_reading(self) -> bool:
        """Whether its prompt is not read to the end yet."""
        return self.n_read < self.n_prompt

    @property
    def reuses(self) -> bool:
        """Whether it needs nothing of the tokens that a slot has read already."""
        return not self._wants_every_row

    @property
    def n_drawn(self) -> int:
        """How many tokens it generated."""
        return len(self.ids) - self.n_prompt

    @property
    def _wants_every_row(self) -> bool:
        return self.generation.scores_prompt or self.generation.pooling == "mean"

    def start(self, slot: int, n_cached: int) -> None:
        """Puts it into a slot that has read some of its tokens."""
        self.slot, self.n_read, self.n_cached = slot, n_cached, n_cached
        asked = self.generation
        self._chooser = Chooser(asked)
        self._transcript = Transcript(
            self._tokenizer, asked.stop_texts, shows_control=asked.ignores_eos
        )

    def next_piece(self, rows: int, outs: int) -> Piece | None:
        """What it reads next, with room for so many tokens and rows of logits; None if nothing."""
        n = min(rows, len(self.ids) - self.n_read)
        if self.is_reading and self._wants_every_row:
            n = min(n, outs)
        elif self.n_read + n == len(self.ids) and outs == 0:
            n -= 1
        if n <= 0:
            return None
        ids = self.ids[self.n_read : self.n_read + n]
        if self.is_reading and self._wants_every_row:
            return Piece(self.slot, ids, "all")
        return Piece(self.slot, ids, "last" if self.n_read + n == len(self.ids) else "none")

    def advance(
        self, piece: Piece, logits_BV: NDArray[Any], hidden_BD: NDArray[Any]
    ) -> list[Event]:
        """Takes what a pass yielded for its piece.

        Raises: GateError if there is no next token.
        """
        was_reading, first = self.is_reading, self.n_read
        self.n_read += len(piece.ids)
        if was_reading and self.generation.scores_prompt:
            for i, row_V in enumerate(logits_BV, start=first + 1):
                if i < self.n_prompt:
                    token = scored(self.ids[i], row_V, self.generation.n_top)
                    self._prompt_tokens.append(token)
        if self.generation.pooling is not None:
            for row_D in hidden_BD:  # one by one: the sum does not depend on how it was cut
                self._sum_D = self._sum_D + row_D.astype(np.float64)
        if self.n_read < len(self.ids):
            return []
        events: list[Event] = []
        if was_reading:
            events.append(PromptRead(self.index, tuple(self._prompt_tokens), self.n_cached))
        if self.generation.pooling is not None:
            return [*events, self._embedding(), self._end("stop")]
        if self.generation.max_tokens == 0:
            return [*events, self._end("length")]
        return events + self._draw(logits_BV[-1])

    def _draw(self, logits_V: NDArray[Any]) -> list[Event]:
        id = self._chooser.choose(logits_V, self.ids)
        self.ids.append(id)
        reason: Finish | None = None
        text, tokens, ending = "", list[Token](), list[Token]()
        if id in self._stop_ids:
            reason = "stop"
            ending = [scored(id, logits_V, self.generation.n_top)] * self.generation.tells_end
        else:
            text, tokens = self._transcript.push(scored(id, logits_V, self.generation.n_top))
            if self._transcript.stopped or self._chooser.is_complete:
                reason = "stop"
            elif self.n_drawn == self.generation.max_tokens:
                reason = "length"
        if reason is not None:
            rest, rest_tokens = self._transcript.finish()
            text, tokens = text + rest, tokens + rest_tokens + ending
        events: list[Event] = []
        if self.generation.n_top is None:
            tokens = []
        if text or tokens:
            events.append(Spoke(self.index, text, tuple(tokens)))
        if reason is not None:
            events.append(self._end(reason))
        return events

    def _end(self, reason: Finish) -> Finished:
        self.finished = True
        return Finished(self.index, reason, self.n_drawn)

    def _embedding(self) -> Embedded:
        vector_D = np.asarray(self._sum_D)
        length = float(np.sqrt((vector_D**2).sum()))
        return Embedded(self.index, vector_D / length if length > 0 else vector_D)
