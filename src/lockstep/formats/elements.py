"""Stored elements to float32, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import InputError
from lockstep.formats.leaf import Extent, Leaf
from lockstep.formats.locate.bounded import opened

# The stored types whose every value is a float32 too, with their size in bytes.
EXACT_IN_F32 = {"F32": 4, "F16": 2, "BF16": 2}


def as_f32(raw: bytes, stored: str, shape: tuple[int, ...], where: str) -> NDArray[Any]:
    """The elements as float32.

    Raises: InputError if float32 cannot hold what is stored, or there are too few bytes.
    """
    _check_type(stored, where)
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


def _check_type(stored: str, where: str) -> None:
    if stored not in EXACT_IN_F32:
        raise InputError(
            f"{where}: expected elements of type {', '.join(EXACT_IN_F32)}, got {stored}",
            hint="choose a checkpoint in one of these types",
        )


def leaf_as_f32(leaves: Mapping[str, Leaf], name: str, where: str) -> NDArray[Any]:
    """One leaf of a listed file as float32.

    Raises: InputError if there is none, or float32 cannot hold it exactly.
    """
    leaf = leaves.get(name)
    if leaf is None or not isinstance(leaf.storage, Extent):
        raise InputError(f"{where}: expected a tensor {name}, got none", hint="check the name")
    place = f"{where} {name}"
    _check_type(leaf.element.name, place)
    with opened(leaf.storage.file) as (file, _):
        file.seek(leaf.storage.offset)
        raw = file.read(leaf.n_bytes)
    return as_f32(raw, leaf.element.name, leaf.shape, place)
