"""Our side of the inference benchmark, in a process of its own.

python worker_inference.py MODEL CONTEXT THREADS f16|f32 last|every

`every` builds a program that can give the logits of all tokens of a call.
"""

from __future__ import annotations

import sys

import numpy as np
from protocol import answer_requests
from timing import Engine, Logits, Tokens, requests_of

from lockstep.engine.model import ROWS, Capacity, open_model
from lockstep.engine.session import Piece


class Lockstep(Engine):
    """A model and one sequence in its first slot."""

    def __init__(self, path: str, context: int, threads: int, cache: str, *, every: bool) -> None:
        rows = min(ROWS, context)
        outs = rows if every else 1
        capacity = Capacity(context=context, cache=cache, rows=rows, outs=outs)
        self.session = open_model(path, capacity, threads=threads).session
        self.n_entries = self.session.n_vocab

    def rewind(self, position: int) -> bool:
        """Forgets the positions from this one on; False if the model's state cannot."""
        if position and not self.session.rewinds:
            return False
        self.session.reset(min(position, self.session.length))
        return True

    def evaluate(self, tokens: Tokens, position: int, *, every: bool) -> Logits:
        """Logits of every token, or of the last one."""
        assert position == self.session.length
        if not every:
            return self.session.prefill(tokens.tolist())[None]
        step = self.session.shape.outs
        parts = (tokens[i : i + step].tolist() for i in range(0, len(tokens), step))
        return np.concatenate([self.session.read([Piece(0, part, "all")])[0] for part in parts])


def main() -> None:
    """Opens the model that was asked for and answers."""
    path, context, threads, cache, outs = sys.argv[1:]
    answer_requests(
        requests_of(Lockstep(path, int(context), int(threads), cache, every=outs == "every"))
    )


if __name__ == "__main__":
    main()
