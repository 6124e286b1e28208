"""Inference: prefill in chunks, cached decode, and the loop that generates tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.engine.sampling import Sampler
from lockstep.errors import UsageError
from lockstep.native import Program


class InferenceSession:
    """One sequence that grows; the program's caches hold what was read of it so far."""

    def __init__(self, program: Program) -> None:
        """Takes a program whose parameters are in place; it packs them here."""
        self.program = program
        self.chunk = program.manifest.symbols["rows"]
        caches = [v for v in program.manifest.values.values() if v.role == "cache"]
        self.context = min(cache.dims[0] for cache in caches)
        self.length = 0
        self._tokens_M = program.view("tokens")
        self._positions_M = program.view("positions")
        self._logits = program.view(program.manifest.outputs["logits"])
        self._all_logits = "last" not in program.manifest.values
        program.call("init")

    @property
    def n_vocab(self) -> int:
        """How many logits there are."""
        return int(self._logits.shape[-1])

    def reset(self, length: int = 0) -> None:
        """Forgets all but the first `length` tokens.

        Raises: UsageError if that many were never read.
        """
        if not 0 <= length <= self.length:
            raise UsageError(f"reset: expected 0 to {self.length} tokens, got {length}")
        self.length = length

    def prefill(self, ids: Sequence[int]) -> NDArray[Any]:
        """Reads tokens, a chunk at a time, and returns the logits after the last one.

        Raises: UsageError if there are none, they do not fit, or one is not in the vocabulary.
        """
        self._check(ids)
        for begin in range(0, len(ids), self.chunk):
            n_rows = self._read(ids[begin : begin + self.chunk])
        return np.array(self._logits[n_rows - 1 if self._all_logits else 0])

    def decode(self, id: int) -> NDArray[Any]:
        """Reads one token and returns the logits after it.

        Raises: UsageError if the context is full, or the token is not in the vocabulary.
        """
        return self.prefill((id,))

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise UsageError("prompt: expected at least one token, got none")
        if self.length + len(ids) > self.context:
            raise UsageError(
                f"prompt: expected at most {self.context - self.length} tokens, the room left in "
                f"the context, got {len(ids)}",
                hint="shorten the prompt, or build with a longer context",
            )
        if not (min(ids) >= 0 and max(ids) < self.n_vocab):
            raise UsageError(
                f"prompt: expected token ids from 0 to {self.n_vocab - 1}, "
                f"got {min(ids)} to {max(ids)}",
                hint="use the tokenizer of this model",
            )

    def _read(self, ids: Sequence[int]) -> int:
        n_rows = len(ids)
        self._tokens_M[:n_rows] = ids
        self._positions_M[:n_rows] = np.arange(self.length, self.length + n_rows)
        self.program.view("start")[...] = self.length
        if not self._all_logits:
            self.program.view("last")[...] = n_rows - 1
        self.program.call("forward", n_rows)
        self.length += n_rows
        return n_rows


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
