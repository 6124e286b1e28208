"""The bytes of a located leaf, read as plainly as can be: what a test compares with."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np

from lockstep.formats.leaf import Extent, Held, Leaf, Parts


def leaf_bytes(leaf: Leaf) -> bytes:
    """The elements in C order, little-endian."""
    storage, size = leaf.storage, leaf.element.n_bytes
    if isinstance(storage, Held):
        return storage.data
    if isinstance(storage, Extent):
        return _extent(storage, leaf.grid_shape, size).tobytes()
    if isinstance(storage, Parts):
        whole = np.zeros((*leaf.grid_shape, size), np.uint8)
        for part in storage.parts:
            box = tuple(slice(a, a + n) for a, n in zip(part.start, part.shape, strict=True))
            whole[box] = _extent(part.extent, part.shape, size)
        return whole.tobytes()
    shape = (leaf.n_elements,) if storage.flat else leaf.grid_shape
    whole = np.zeros((*shape, size), np.uint8)
    counts = [-(-n // c) for n, c in zip(shape, storage.shape, strict=True)]
    for index in product(*(range(n) for n in counts)):
        places = zip(index, storage.shape, shape, strict=True)
        box = tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in places)
        out = np.full(prod(s.stop - s.start for s in box) * size, 0xA5, np.uint8)
        storage.read(index, out)
        whole[box] = out.reshape(*(s.stop - s.start for s in box), size)
    return whole.tobytes()


def _extent(extent: Extent, shape: tuple[int, ...], size: int) -> np.ndarray:
    """The elements of a block as rows of bytes, in the order of the leaf."""
    raw = np.frombuffer(extent.file.read_bytes()[extent.offset :], np.uint8)
    strides = extent.strides or tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    byte_strides = (*(n * size for n in strides), 1)
    block = np.lib.stride_tricks.as_strided(raw, (*shape, size), byte_strides)
    return block[..., ::-1] if extent.big_endian else block
