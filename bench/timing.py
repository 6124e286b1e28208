"""What both engines of the inference benchmark are asked to do, so that both do the same."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Logits = NDArray[np.float32]
SEED = 11


class Engine(ABC):
    """One loaded model with one sequence."""

    n_entries: int  # of the vocabulary

    @abstractmethod
    def rewind(self, position: int) -> bool:
        """Forgets the positions from this one on; False if the model's state cannot.

        Forgetting all of them always works.
        """

    @abstractmethod
    def evaluate(self, tokens: Tokens, position: int, *, every: bool) -> Logits:
        """Logits of every token, or of the last one, of tokens that follow what is remembered."""


def drawn_tokens(n: int, n_entries: int) -> Tokens:
    """The same text for every engine: any entries of the vocabulary but the first few."""
    rng = np.random.default_rng(SEED)
    return rng.integers(3, n_entries, n, dtype=np.int32)


def timed(work: Callable[[], object]) -> dict[str, float]:
    """How long it takes, by the clock and as processor time of all threads."""
    start, start_cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
    }


def requests_of(engine: Engine) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The answers to the requests of the benchmark; seconds are by the clock and of processor time.

    {"prefill": n}: seconds of evaluating n tokens at once. {"decode": n, "depth": d}: seconds of n
    tokens one by one behind d others. {"logits": n, "cut": c, "to": PATH}: writes the logits of n
    tokens as a .npy file, evaluated in calls of c tokens.
    """
    remembered = 0  # positions that earlier requests have left

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal remembered
        if "logits" in request:
            engine.rewind(0)
            remembered = 0
            tokens = drawn_tokens(request["logits"], engine.n_entries)
            cut = request["cut"]
            rows = [
                engine.evaluate(tokens[i : i + cut], i, every=True)
                for i in range(0, len(tokens), cut)
            ]
            np.save(request["to"], np.concatenate(rows))
            return {}
        if "prefill" in request:
            tokens = drawn_tokens(request["prefill"], engine.n_entries)
            engine.rewind(0)
            remembered = 0
            return timed(lambda: engine.evaluate(tokens, 0, every=False))
        depth, n = request["depth"], request["decode"]
        tokens = drawn_tokens(depth + n, engine.n_entries)
        if not (remembered == depth + n and engine.rewind(depth)):
            engine.rewind(0)
            if depth:
                engine.evaluate(tokens[:depth], 0, every=False)
        remembered = depth + n

        def one_by_one() -> None:
            for i in range(depth, depth + n):
                engine.evaluate(tokens[i : i + 1], i, every=False)

        return timed(one_by_one)

    return answer
