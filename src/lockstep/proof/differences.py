"""How far two trainings are apart; what is missing, extra or not finite fails before any number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean

import numpy as np

from lockstep.ir import Array


@dataclass(frozen=True, slots=True)
class Difference:
    """Absolute differences over `n` compared numbers; `problem` is empty where all is there.

    With a problem, maximum and mean are NaN: a number over half of the evidence would mislead.
    """

    n: int
    maximum: float
    mean: float
    problem: str = ""


def curve_difference(
    ours: Sequence[tuple[int, float]], theirs: Sequence[tuple[int, float]], n_steps: int
) -> Difference:
    """Two curves of (step, value), matched by step; both must hold exactly steps 1 to `n_steps`."""
    wanted = list(range(1, n_steps + 1))
    for name, curve in (("our", ours), ("PyTorch's", theirs)):
        steps = [step for step, _ in curve]
        if not curve or n_steps < 1:
            return Difference(0, nan, nan, f"{name} curve is empty")
        if steps != wanted:
            odd = next((s for s, w in zip(steps, wanted, strict=False) if s != w), None)
            what = f"has {len(steps)} of {n_steps} steps" if odd is None else f"has step {odd}"
            return Difference(0, nan, nan, f"{name} curve {what} where steps are 1 to {n_steps}")
        bad = next((step for step, value in curve if not isfinite(value)), None)
        if bad is not None:
            return Difference(0, nan, nan, f"{name} curve is not finite at step {bad}")
    gaps = [abs(a - b) for (_, a), (_, b) in zip(ours, theirs, strict=True)]
    return Difference(len(gaps), max(gaps), fmean(gaps))


def tensor_difference(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> Difference:
    """Two sets of tensors, matched by id, in float64 arithmetic."""
    if not ours or ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        return Difference(0, nan, nan, f"tensors of one side only: {', '.join(odd[:4]) or 'none'}")
    total, count, largest = 0.0, 0, 0.0
    for id, a in ours.items():
        b = theirs[id]
        if a.shape != b.shape or a.size == 0:
            return Difference(0, nan, nan, f"{id}: shapes {a.shape} and {b.shape}")
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
        if not np.isfinite(gap).all():
            return Difference(0, nan, nan, f"{id}: not finite")
        total, count = total + float(gap.sum()), count + gap.size
        largest = max(largest, float(gap.max()))
    return Difference(count, largest, total / count)
