"""Tensors that lie in files: their bytes in place, or their numbers as float32."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import InputError
from lockstep.formats.dequantise import SUPPORTED, dequantise
from lockstep.formats.leaf import Extent, Leaf
from lockstep.formats.locate.bounded import opened


class MappedTensors:
    """The shape and the stored type of each tensor, and one tensor at a time.

    Shapes are in the order of numpy, the slowest axis first.
    """

    def __init__(self, where: str, leaves: Mapping[str, Leaf]) -> None:
        self.where = where
        self.shapes = {name: leaf.shape for name, leaf in leaves.items()}
        self.stored = {name: leaf.element.name for name, leaf in leaves.items()}
        self._leaves = leaves
        self._maps: dict[Path, NDArray[np.uint8]] = {}

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of one tensor where they lie: read-only, mapped, never copied.

        Shapes: (rows, bytes of a row); a row is the last axis, in whole blocks.
        Raises: InputError if there is no such tensor, or the file has shrunk since it was listed.
        """
        leaf = self._leaf(name)
        assert isinstance(leaf.storage, Extent)
        begin = leaf.storage.offset
        flat = self._map(leaf.storage.file)[begin : begin + leaf.n_bytes]
        if flat.size != leaf.n_bytes:
            raise InputError(
                f"{self.where} {name}: expected {leaf.n_bytes} bytes, got {flat.size}",
                hint="the file changed while it was read: open it again",
            )
        n_row = prod(leaf.grid_shape[-1:]) * leaf.element.n_bytes
        return flat.reshape(prod(leaf.grid_shape[:-1]), n_row)

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32, dequantised where it is stored in blocks.

        Raises: InputError if there is none, or its type is not supported.
        """
        self.require_supported([name])
        return dequantise(self.raw(name), self.stored[name]).reshape(self.shapes[name])

    def require_supported(self, names: Iterable[str] | None = None) -> None:
        """Insists that these tensors, or all, can be read as numbers.

        Raises: InputError naming each that cannot, with its type.
        """
        names = list(self.shapes if names is None else names)
        expect_supported(self.where, {name: self._leaf(name).element.name for name in names})

    def _leaf(self, name: str) -> Leaf:
        leaf = self._leaves.get(name)
        if leaf is None or not isinstance(leaf.storage, Extent):
            raise InputError(
                f"{self.where}: expected a tensor {name}, got none", hint="check the name"
            )
        return leaf

    def _map(self, path: Path) -> NDArray[np.uint8]:
        """All of a file, mapped once and kept as long as something refers to it."""
        if path not in self._maps:
            with opened(path) as (file, size):
                whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            self._maps[path] = np.frombuffer(whole, np.uint8)
        return self._maps[path]


def expect_supported(where: str, types: Mapping[str, str]) -> None:
    """Insists that tensors of these types can be read as numbers.

    Raises: InputError naming each that cannot, with its type.
    """
    wrong = [f"{name}: {stored}" for name, stored in types.items() if stored not in SUPPORTED]
    if wrong:
        listed = "\n  ".join(wrong[:20])
        more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise InputError(
            f"{where}: expected tensors of type {', '.join(SUPPORTED)}, got\n  {listed}{more}",
            hint="choose a checkpoint in one of these types",
        )
