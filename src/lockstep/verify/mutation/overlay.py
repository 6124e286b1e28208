"""Leaves that hold other values than their files: a patch or a change over what lies there.

Nothing is written and nothing is copied: an overlay reads the leaf below it chunk by chunk and
changes the chunk on its way. That is how a leaf far beyond the budget gets one wrong bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.formats.leaf import Chunks, Extent, Held, Leaf
from lockstep.verify.claim import Words
from lockstep.verify.engine.reading import Files, words_of
from lockstep.verify.layouts.piece import strides_of

CHUNK_BYTES = 1 << 18  # of a file that has no chunks of its own
_PART = 1 << 16  # words that are changed at a time

Change = Callable[[Words], Words]  # word by word, in any part of the leaf


def unchanged(words: Words) -> Words:
    """The words as they are."""
    return words


class Overlay:
    """Chunks of a leaf with `change` over all of it and then `patches` over single elements.

    `patches` are new bytes by flat element. An extent is cut into chunks of `n` elements, or of
    `CHUNK_BYTES`. `shape`, `flat`, `sequential` and `peak_bytes` are those of `Chunks`.
    """

    def __init__(self, base: Leaf, change: Change, patches: Mapping[int, bytes], n: int) -> None:
        self.base, self.change = base, change
        n_bytes = base.element.n_bytes
        below = 0
        if isinstance(base.storage, Extent | Held):
            per_chunk = n or max(1, CHUNK_BYTES // n_bytes)
            self.shape: tuple[int, ...] = (max(1, min(per_chunk, base.n_elements)),)
            self.flat, self.sequential = True, False
        else:
            chunks = self._chunks
            self.shape, self.flat, self.sequential = chunks.shape, chunks.flat, chunks.sequential
            below = chunks.peak_bytes
        self._patches: dict[tuple[int, ...], list[tuple[int, bytes]]] = {}
        for element, data in patches.items():
            index, at = self._place(element)
            self._patches.setdefault(index, []).append((at, data))
        # the changed copy of a part, and the scratch of the moves of values
        self.peak_bytes = below + 24 * max(8, n_bytes) * min(prod(self.shape), _PART)

    def read(self, index: tuple[int, ...], out: NDArray[np.uint8]) -> None:
        """Reads a chunk of what lies below, and changes it.

        Raises: InputError if that is damaged or missing.
        """
        storage = self.base.storage
        if isinstance(storage, Extent):
            _read_extent(storage, index[0] * self.shape[0] * self.base.element.n_bytes, out)
        elif isinstance(storage, Held):
            start = index[0] * self.shape[0] * self.base.element.n_bytes
            out[:] = np.frombuffer(storage.data, np.uint8)[start : start + len(out)]
        else:
            self._chunks.read(index, out)
        words = out.view(words_of(self.base.element)[0])
        for start in range(0, 0 if self.change is unchanged else len(words), _PART):
            part = words[start : start + _PART]
            part[:] = self.change(part)
        for at, data in self._patches.get(index, ()):
            out[at : at + len(data)] = np.frombuffer(data, np.uint8)

    @property
    def _chunks(self) -> Chunks:
        storage: Any = self.base.storage
        chunks: Chunks = storage
        return chunks

    def _place(self, element: int) -> tuple[tuple[int, ...], int]:
        """The chunk of an element, and where in it its bytes begin."""
        grid = (self.base.n_elements,) if self.flat else self.base.grid_shape
        where = [element // s % n for s, n in zip(strides_of(grid), grid, strict=True)]
        index = tuple(w // c for w, c in zip(where, self.shape, strict=True))
        counts = [min(c, n - i * c) for i, c, n in zip(index, self.shape, grid, strict=True)]
        inside = [w - i * c for w, i, c in zip(where, index, self.shape, strict=True)]
        flat = sum(at * s for at, s in zip(inside, strides_of(counts), strict=True))
        return index, flat * self.base.element.n_bytes


def can_lie_under(leaf: Leaf) -> bool:
    """Whether an overlay can read this leaf: chunks, or bytes in C order and little-endian."""
    storage = leaf.storage
    if isinstance(storage, Extent):
        plain = strides_of(leaf.grid_shape)
        return not storage.big_endian and storage.strides in (None, plain)
    return not leaf.value and (isinstance(storage, Held) or hasattr(storage, "read"))


def overlaid(
    leaf: Leaf, change: Change = unchanged, patches: Mapping[int, bytes] | None = None, n: int = 0
) -> Leaf:
    """The leaf with other values."""
    overlay = Overlay(leaf, change, patches or {}, n)
    return replace(leaf, storage=overlay, checksum="", shares="")


def _read_extent(extent: Extent, start: int, out: NDArray[np.uint8]) -> None:
    files = Files()
    try:
        files.read(extent.file, extent.offset + start, out)
    finally:
        files.close()


def written(leaf: Leaf, words: Words, path: Path) -> Leaf:
    """The leaf with these words, which are written to a file of their own."""
    path.write_bytes(np.ascontiguousarray(words).data)
    return replace(leaf, storage=Extent(path, 0), checksum="", shares="")
