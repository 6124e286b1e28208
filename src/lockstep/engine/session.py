"""Inference: one pass over the next tokens of several sequences, and the loop that generates."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lockstep.engine.sampling import Sampler
from lockstep.errors import UsageError
from lockstep.ir import InferenceShape
from lockstep.native import Program

Logits = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """The next tokens of one sequence, and after which of them logits are wanted."""

    slot: int
    ids: Sequence[int]
    wanted: Literal["none", "last", "all"] = "last"

    @property
    def n_wanted(self) -> int:
        """How many rows of logits it asks for."""
        return {"none": 0, "last": 1, "all": len(self.ids)}[self.wanted]


class InferenceSession:
    """Sequences that grow, one in each slot; the program's caches hold what was read of them.

    What a sequence yields has the same bits whatever else is in a pass, and however it was cut.
    """

    def __init__(self, program: Program, shape: InferenceShape) -> None:
        """Takes a program whose parameters are in place; it prepares its tables here."""
        self.program, self.shape = program, shape
        self.lengths = [0] * shape.slots
        roles = {value.role for value in program.manifest.values.values()}
        self.rewinds = "state" not in roles  # a state sums up the past and cannot forget a part
        self._tokens_M, self._positions_M, self._slots_M, self._wanted_B = (
            program.view(id) for id in ("tokens", "positions", "slots", "wanted")
        )
        self._logits_BV = program.view(program.manifest.outputs["logits"])
        self._hidden_BD = program.view(program.manifest.outputs["hidden"])
        program.call("init")

    @property
    def context(self) -> int:
        """How many tokens a sequence may have."""
        return self.shape.context

    @property
    def n_vocab(self) -> int:
        """How many logits there are."""
        return int(self._logits_BV.shape[-1])

    @property
    def length(self) -> int:
        """How many tokens the sequence in the first slot has."""
        return self.lengths[0]

    def reset(self, length: int = 0, slot: int = 0) -> None:
        """Forgets all but the first `length` tokens of a sequence.

        Raises: UsageError if that many were never read, or the model cannot forget a part.
        """
        if not 0 <= length <= self.lengths[slot]:
            raise UsageError(f"reset: expected 0 to {self.lengths[slot]} tokens, got {length}")
        if 0 < length < self.lengths[slot] and not self.rewinds:
            raise UsageError(
                f"reset: expected 0 or {self.lengths[slot]} tokens, got {length}: this model's "
                "state sums up all that it read",
                hint="start again from the first token",
            )
        self.lengths[slot] = length

    def read(self, pieces: Sequence[Piece]) -> list[Logits]:
        """One pass over the next tokens of some sequences; for each piece its rows of logits.

        Raises: UsageError if the pieces do not fit a pass or a sequence, or share a slot.
        """
        self._check(pieces)
        row = 0
        wanted: list[int] = []
        for piece in pieces:
            end, start = row + len(piece.ids), self.lengths[piece.slot]
            self._tokens_M[row:end] = piece.ids
            self._positions_M[row:end] = np.arange(start, start + len(piece.ids))
            self._slots_M[row:end] = piece.slot
            wanted += range(end - piece.n_wanted, end)
            row = end
        # A pass has at least one row of logits; that of its last row is a spare where none is due.
        self._wanted_B[: max(len(wanted), 1)] = wanted or [row - 1]
        self.program.call("forward", rows=row, outs=max(len(wanted), 1))
        for piece in pieces:
            self.lengths[piece.slot] += len(piece.ids)
        ends = np.cumsum([piece.n_wanted for piece in pieces])
        return [
            self._logits_BV[end - p.n_wanted : end].copy()
            for p, end in zip(pieces, ends, strict=True)
        ]

    def hidden(self, n_rows: int) -> NDArray[Any]:
        """The last layer's normed output for the wanted rows of the last pass, in their order."""
        return self._hidden_BD[:n_rows].copy()

    def prefill(self, ids: Sequence[int], slot: int = 0) -> Logits:
        """Reads tokens, a pass at a time, and returns the logits after the last one.

        Raises: UsageError if there are none, they do not fit, or one is not in the vocabulary.
        """
        self._check_ids(ids, slot)
        for begin in range(0, len(ids), self.shape.rows):
            part = ids[begin : begin + self.shape.rows]
            is_last = begin + len(part) == len(ids)
            (logits_BV,) = self.read([Piece(slot, part, "last" if is_last else "none")])
        return np.asarray(logits_BV[0])

    def decode(self, id: int, slot: int = 0) -> Logits:
        """Reads one token and returns the logits after it.

        Raises: UsageError if the context is full, or the token is not in the vocabulary.
        """
        self._check_ids((id,), slot)
        # What `read` does, without its lists: between two tokens all threads wait for this.
        self._tokens_M[0], self._positions_M[0] = id, self.lengths[slot]
        self._slots_M[0], self._wanted_B[0] = slot, 0
        self.program.call("forward", rows=1, outs=1)
        self.lengths[slot] += 1
        return np.asarray(self._logits_BV[0].copy())

    def _check(self, pieces: Sequence[Piece]) -> None:
        slots = [piece.slot for piece in pieces]
        if len(set(slots)) != len(slots) or not set(slots) <= set(range(self.shape.slots)):
            raise UsageError(f"pass: expected different slots below {self.shape.slots}: {slots}")
        for piece in pieces:
            self._check_ids(piece.ids, piece.slot)
        for what, count, most in (
            ("tokens", sum(len(piece.ids) for piece in pieces), self.shape.rows),
            ("rows of logits", sum(piece.n_wanted for piece in pieces), self.shape.outs),
        ):
            if count > most:
                raise UsageError(
                    f"pass: expected at most {most} {what}, got {count}",
                    hint="cut it into several passes",
                )
        if not pieces:
            raise UsageError("pass: expected at least one piece, got none")

    def _check_ids(self, ids: Sequence[int], slot: int) -> None:
        room = self.context - self.lengths[slot]
        if not ids:
            raise UsageError("prompt: expected at least one token, got none")
        if len(ids) > room:
            raise UsageError(
                f"prompt: expected at most {room} tokens, the room left in the context, "
                f"got {len(ids)}",
                hint="shorten the prompt, or build with a longer context",
            )
        if not (min(ids) >= 0 and max(ids) < self.n_vocab):
            raise UsageError(
                f"prompt: expected token ids from 0 to {self.n_vocab - 1}, "
                f"got {min(ids)} to {max(ids)}",
                hint="use the tokenizer of this model",
            )


def generate(
    session: InferenceSession,
    prompt: Sequence[int],
    sampler: Sampler,
    *,
    max_tokens: int,
    stop_ids: Collection[int] = (),
) -> Iterator[int]:
    """Yields tokens until a stop token, which is yielded too, the limit, or the end of the context.

    Raises: UsageError if the prompt does not fit.
    """
    history = list(prompt)
    logits_V = session.prefill(history)
    for i in range(max_tokens):
        id = sampler.choose(logits_V, history)
        yield id
        history.append(id)
        if id in stop_ids or session.length == session.context or i + 1 == max_tokens:
            return
        logits_V = session.decode(id)
