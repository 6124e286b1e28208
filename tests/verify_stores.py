"""Checkpoints for tests of the engine: any array in any kind of storage, without a format."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.formats.leaf import (
    ELEMENT_TYPES,
    Extent,
    FileIdentity,
    Held,
    Leaf,
    Name,
    Part,
    Parts,
    Storage,
    Store,
)

ELEMENT_OF_WIDTH = {1: "U8", 2: "BF16", 4: "F32", 8: "F64", 16: "C128"}
KINDS = ("plain", "fortran", "big", "held", "parts", "chunks", "flat", "stream")


@dataclass
class ZlibChunks:
    """Chunks that were deflated one by one; it counts what is decoded."""

    path: Path
    shape: tuple[int, ...]
    flat: bool
    sequential: bool
    places: Mapping[tuple[int, ...], tuple[int, int]]
    peak_bytes: int = 1 << 16
    decoded: list[tuple[int, ...]] = field(default_factory=list)

    def read(self, index: tuple[int, ...], out: NDArray[np.uint8]) -> None:
        """Inflates one chunk."""
        offset, n = self.places[index]
        with self.path.open("rb") as file:
            file.seek(offset)
            data = zlib.decompress(file.read(n))
        assert len(out) == len(data)
        out[:] = np.frombuffer(data, np.uint8)
        self.decoded.append(index)


def store_of(
    path: Path, arrays: Mapping[str, NDArray[Any]], kinds: Mapping[str, str] | None = None
) -> Store:
    """Arrays of unsigned words (or complex numbers) in one file, each in storage of its kind."""
    leaves: dict[str, Leaf] = {}
    with path.open("wb") as file:
        file.write(b"head")  # so that nothing is aligned
        for name, array in arrays.items():
            element = ELEMENT_TYPES[ELEMENT_OF_WIDTH[array.itemsize]]
            storage = _written(file, path, array, (kinds or {}).get(name, "plain"))
            leaves[name] = Leaf((Name(name),), array.shape, element, storage)
    return Store(str(path), "raw", leaves, (FileIdentity.of(path),))


def _written(file: Any, path: Path, array: NDArray[Any], kind: str) -> Storage:
    at = file.tell()
    if kind == "plain":
        file.write(array.tobytes())
        return Extent(path, at)
    if kind == "fortran":
        file.write(array.tobytes(order="F"))
        strides, step = [], 1
        for n in array.shape:
            strides.append(step)
            step *= n
        return Extent(path, at, tuple(strides))
    if kind == "big":
        file.write(array.byteswap().tobytes())
        return Extent(path, at, None, big_endian=True)
    if kind == "held":
        return Held(array.tobytes())
    if kind == "parts":
        return Parts(tuple(_parts(file, path, array)))
    return _chunked(file, path, array, kind)


def _halves(n: int) -> list[tuple[int, int]]:
    return [(0, n // 2), (n // 2, n)] if n > 1 else [(0, n)]


def _parts(file: Any, path: Path, array: NDArray[Any]) -> list[Part]:
    found = []
    for ranges in product(*(_halves(n) for n in array.shape)):
        block = array[tuple(slice(a, b) for a, b in ranges)]
        start = tuple(a for a, _ in ranges)
        found.append(Part(start, block.shape, Extent(path, file.tell())))
        file.write(block.tobytes())
    return found


def _chunked(file: Any, path: Path, array: NDArray[Any], kind: str) -> ZlibChunks:
    flat = kind != "chunks"
    whole = array.reshape(-1) if flat else array
    shape = (
        (max(1, prod(whole.shape) // 3),) if flat else tuple(-(-n // 2) or 1 for n in whole.shape)
    )
    places = {}
    grid = [range(-(-n // c)) for n, c in zip(whole.shape, shape, strict=True)]
    for index in product(*grid):
        cut = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, shape, strict=True))
        data = zlib.compress(np.ascontiguousarray(whole[cut]).tobytes(), 1)
        places[index] = (file.tell(), len(data))
        file.write(data)
    return ZlibChunks(path, shape, flat, kind == "stream", places)
