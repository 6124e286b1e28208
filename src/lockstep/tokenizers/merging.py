"""Merging neighbours until no pair of them may merge: the heart of BPE and of SentencePiece."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

Priority = Callable[[str, str], float | None]


def merge(text: str, priority: Priority) -> list[str]:
    """The parts of a text, from single characters on.

    Of all pairs of neighbours the one with the lowest priority merges first, of equals the one
    furthest left; None does not merge.  Time: n log n in the length.

    Source: https://github.com/ggml-org/llama.cpp/blob/00ad355e009e/src/llama-vocab.cpp
    """
    parts = list(text)
    n = len(parts)
    before, after = list(range(-1, n - 1)), list(range(1, n + 1))
    # A candidate holds the length of both parts: it is stale if one of them has grown or gone.
    queue: list[tuple[float, int, int, int]] = []
    for i in range(n - 1):
        if (rank := priority(parts[i], parts[i + 1])) is not None:
            queue.append((rank, i, i + 1, 2))
    heapify(queue)
    while queue:
        _, left, right, length = heappop(queue)
        if not parts[left] or not parts[right] or len(parts[left]) + len(parts[right]) != length:
            continue
        parts[left] += parts[right]
        parts[right] = ""
        following = after[left] = after[right]
        if following < n:
            before[following] = left
        for i, j in ((before[left], left), (left, following)):
            if i >= 0 and j < n and (rank := priority(parts[i], parts[j])) is not None:
                heappush(queue, (rank, i, j, len(parts[i]) + len(parts[j])))
    return [part for part in parts if part]
