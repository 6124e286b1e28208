"""The layout of a flat arena: tensors one after another, each at a 64-byte boundary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lockstep.ir.value import Value

ALIGN_BYTES = 64  # a cache line, and the widest vector


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor of an arena starts, and how long the arena is; both in bytes."""

    offsets: Mapping[str, int]
    n_bytes: int


def padded(n_bytes: int) -> int:
    """The bytes up to the next boundary."""
    return -(-n_bytes // ALIGN_BYTES) * ALIGN_BYTES


def flat_layout(values: Iterable[Value], symbols: Mapping[str, int], gap_bytes: int = 0) -> Layout:
    """Places the values in the given order, with a gap in front of each and behind the last."""
    offsets: dict[str, int] = {}
    end = gap_bytes
    for value in values:
        offsets[value.id] = end
        end += padded(value.type.n_bytes(symbols)) + gap_bytes
    return Layout(offsets, end)
