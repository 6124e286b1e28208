"""Inputs for the sizes of a case, drawn as the laws of the ops need them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.ir.op import Array, Attr


def size(case: Mapping[str, Attr], *letters: str) -> int:
    """The product of these sizes of the case."""
    product = 1
    for letter in letters:
        product *= int(case[letter])
    return product


def normal(rng: np.random.Generator, *dims: int) -> Array:
    """Normal numbers in float32."""
    return rng.standard_normal(dims).astype(np.float32)


def indices(rng: np.random.Generator, below: int, *dims: int) -> Array:
    """Whole numbers from 0 to below it."""
    return rng.integers(0, below, dims, dtype=np.int32)


def scalar(value: float | int) -> Array:
    """A runtime scalar: int32 for a whole number, else float32."""
    return np.array(value, np.int32 if isinstance(value, int) else np.float32)


def slots_and_positions(rng: np.random.Generator, rows: int, slots: int) -> tuple[Array, Array]:
    """Rows of some of the slots, each of them in one piece: some start anew, others go on."""
    shares = rng.multinomial(rows, np.full(slots, 1.0 / slots))
    order = rng.permutation(slots)
    starts = [int(rng.integers(1, 50)) if rng.random() < 0.5 else 0 for _ in order]
    positions = [np.arange(start, start + n) for start, n in zip(starts, shares, strict=True)]
    slots_M, positions_M = np.repeat(order, shares), np.concatenate(positions)
    return slots_M.astype(np.int32), positions_M.astype(np.int32)
