"""A leaf's bits, read the plain way: the tests' own reader, which shares no code with verify/."""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from lockstep.formats.leaf import Extent, Held, Leaf, Parts


def extent_bits(extent: Extent, shape: tuple[int, ...], n_bytes: int) -> NDArray[np.uint8]:
    """Elements of an extent as little-endian bytes, one row for each axis' last step."""
    raw = np.frombuffer(extent.file.read_bytes(), np.uint8)[extent.offset :]
    strides = extent.strides
    if strides is None:
        strides = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    flat = np.zeros((), np.int64)
    for axis, (n, stride) in enumerate(zip(shape, strides, strict=True)):
        flat = flat + (np.arange(n) * stride).reshape(
            [-1 if i == axis else 1 for i in range(len(shape))]
        )
    bits = raw[flat[..., None] * n_bytes + np.arange(n_bytes)]
    return bits[..., ::-1] if extent.big_endian else bits


def leaf_bits(leaf: Leaf) -> NDArray[np.uint8]:
    """All elements of a leaf: its grid shape, and an axis of bytes."""
    shape, n_bytes = leaf.grid_shape, leaf.element.n_bytes
    storage = leaf.storage
    if isinstance(storage, Held):
        return np.frombuffer(storage.data, np.uint8).reshape(*shape, n_bytes)
    if isinstance(storage, Extent):
        return extent_bits(storage, shape, n_bytes)
    assert isinstance(storage, Parts)
    out = np.zeros((*shape, n_bytes), np.uint8)
    filled = np.zeros(shape, np.uint8)
    for part in storage.parts:
        place = tuple(slice(a, a + n) for a, n in zip(part.start, part.shape, strict=True))
        out[place] = extent_bits(part.extent, part.shape, n_bytes)
        filled[place] += 1
    assert (filled == 1).all()
    return out
