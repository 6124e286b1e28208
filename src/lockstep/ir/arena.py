"""The layout of a flat arena: tensors one after another, each at a 64-byte boundary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lockstep.ir.graph import Value

ALIGN_BYTES = 64  # a cache line, and the widest vector


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor of an arena starts, and how long the arena is; both in bytes."""

    offsets: Mapping[str, int]
    n_bytes: int


def flat_layout(values: Iterable[Value], symbols: Mapping[str, int]) -> Layout:
    """Places the values in the given order."""
    offsets: dict[str, int] = {}
    end = 0
    for value in values:
        offsets[value.id] = end
        end += -(-value.type.n_bytes(symbols) // ALIGN_BYTES) * ALIGN_BYTES
    return Layout(offsets, end)
