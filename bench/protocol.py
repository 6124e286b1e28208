"""How a benchmark talks to its workers: one JSON line asks, one line answers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from shapes import Shape

LEARNING_RATE, MAX_NORM, THETA = 3e-4, 1.0, 1e6


def batches(shape: Shape, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same token batches for every worker."""
    rng = np.random.default_rng(7)
    rows = rng.integers(0, shape.vocab, (4, batch, shape.tokens + 1), dtype=np.int32)
    return [(r[:, :-1].copy(), r[:, 1:].copy()) for r in rows]


def answer_requests(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Says that it is ready, and answers each line with a line, until stdin ends.

    Answers also hold the most memory that the process ever had.
    """
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps({**answer(json.loads(line)), "peak_mib": peak_mib()}), flush=True)


def serve(step: Callable[[int], float]) -> None:
    """Answers each request {"steps": n} with seconds and losses.

    `step(i)` trains on batch i and returns its loss.
    """
    done = 0

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        losses = []
        start = time.perf_counter()
        for _ in range(request["steps"]):
            losses.append(step(done % 4))
            done += 1
        return {"seconds": time.perf_counter() - start, "losses": losses}

    answer_requests(answer)


def peak_mib() -> float:
    """The most memory that this process held; ru_maxrss would count its parent's from the start."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
