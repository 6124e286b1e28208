"""Stored elements to float32, exactly."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import InputError

# The stored types whose every value is a float32 too, with their size in bytes.
EXACT_IN_F32 = {"F32": 4, "F16": 2, "BF16": 2}


def as_f32(raw: bytes, stored: str, shape: tuple[int, ...], where: str) -> NDArray[Any]:
    """The elements as float32.

    Raises: InputError if float32 cannot hold what is stored, or there are too few bytes.
    """
    if stored not in EXACT_IN_F32:
        raise InputError(
            f"{where}: expected elements of type {', '.join(EXACT_IN_F32)}, got {stored}",
            hint="choose a checkpoint in one of these types",
        )
    expected = prod(shape) * EXACT_IN_F32[stored]
    if len(raw) != expected:
        raise InputError(
            f"{where}: expected {expected} bytes, got {len(raw)}",
            hint="download the file again: it is cut off",
        )
    if stored == "BF16":
        bits = np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    kind = "<f4" if stored == "F32" else "<f2"
    return np.frombuffer(raw, dtype=kind).astype(np.float32).reshape(shape)
