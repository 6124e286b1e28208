"""A value of a graph, which ops speak of as well as nodes."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.ir.type import Type


@dataclass(frozen=True, slots=True)
class Value:
    """A value: its id, a stable path such as `layers.3.ffn.gate`, and its type."""

    id: str
    type: Type
