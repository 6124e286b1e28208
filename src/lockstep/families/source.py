"""Where tensors come from: a file or a folder, seen as names, shapes and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from lockstep.ir import Array


class TensorSource(Protocol):
    """A file or a folder of tensors: what is in it, and one of them at a time."""

    @property
    def where(self) -> str:
        """What to call it in a message."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor, without reading it."""

    @property
    def stored(self) -> Mapping[str, str]:
        """The type that each tensor is stored in, such as BF16 or Q4_K."""

    def read(self, name: str) -> Array:
        """One tensor as float32."""

    def raw(self, name: str) -> Array:
        """The bytes of one tensor as they are stored, read-only.

        Shapes: (rows, bytes of a row)
        """


@dataclass(frozen=True)
class Renamed:
    """Some tensors of a source under other names; the rest of it is not seen."""

    source: TensorSource
    names: Mapping[str, str]  # our name -> the source's

    @property
    def where(self) -> str:
        """The source's."""
        return self.source.where

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor that is seen."""
        return {name: self.source.shapes[theirs] for name, theirs in self.names.items()}

    @property
    def stored(self) -> Mapping[str, str]:
        """The stored type of each tensor that is seen."""
        return {name: self.source.stored[theirs] for name, theirs in self.names.items()}

    def read(self, name: str) -> Array:
        """One tensor as float32."""
        return self.source.read(self.names[name])

    def raw(self, name: str) -> Array:
        """One tensor as bytes."""
        return self.source.raw(self.names[name])
