"""Float32 numbers to the types that files are written in, to the bit as ggml writes them.

Source: ggml-org/llama.cpp, ggml/src/ggml-quants.c, quantize_row_q8_0_ref; ggml-impl.h,
ggml_compute_fp32_to_bf16
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import InputError
from lockstep.formats.dequantise import SUPPORTED

Bytes = NDArray[np.uint8]
F32 = NDArray[np.float32]
_CHUNK = 1 << 16  # numbers at a time, so that what is on the way stays in the cache


def quantise(rows: NDArray[Any], name: str, where: str) -> Bytes:
    """The bytes of float32 numbers in a type of `WRITABLE`.

    Halves, brain floats and quants are rounded to the nearest, ties to even but for quants, whose
    ties are rounded away from zero.
    Shapes: (..., numbers of a row) -> (..., bytes of a row)
    Raises: InputError if a row is not in whole blocks, or a number becomes none in the type.
    """
    element = SUPPORTED[name]
    if rows.shape[-1] % element.n_numbers:
        raise InputError(
            f"{where}: expected rows in blocks of {element.n_numbers} for {name},"
            f" got {rows.shape[-1]} numbers",
            hint="write this tensor in F16",
        )
    n_row = rows.shape[-1] // element.n_numbers * element.n_bytes
    blocks = np.ascontiguousarray(rows, "<f4").reshape(-1, element.n_numbers)
    made = np.empty((len(blocks), element.n_bytes), np.uint8)
    pack, step = WRITABLE[name], _CHUNK // element.n_numbers
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            made[start : start + step] = pack(blocks[start : start + step], where)
    return made.reshape(*rows.shape[:-1], n_row)


def _f32(blocks: F32, where: str) -> Bytes:
    return blocks.view(np.uint8)


def _f16(blocks: F32, where: str) -> Bytes:
    halves = blocks.astype("<f2")
    if (halves.view("<u2") & 0x7FFF).max() >= 0x7C00:
        _check_range(np.isinf(halves) & np.isfinite(blocks), blocks, "F16", where)
    return halves.view(np.uint8)


def _bf16(blocks: F32, where: str) -> Bytes:
    """The upper half; the carry out of the lower half rounds.  A NaN keeps its sign and payload."""
    words = blocks.view("<u4")
    upper = words >> np.uint32(16)
    made = ((words + (np.uint32(0x7FFF) + (upper & np.uint32(1)))) >> np.uint32(16)).astype("<u2")
    if (words & np.uint32(0x7FFFFFFF)).max() >= 0x7F7F8000:  # what is rounded to infinity or above
        nan = np.isnan(blocks)
        made[nan] = upper[nan] | 0x40
        _check_range(np.isfinite(blocks) & ((made & 0x7FFF) == 0x7F80), blocks, "BF16", where)
    packed: Bytes = made.view(np.uint8)
    return packed


def _q8_0(blocks: F32, where: str) -> Bytes:
    """A scale, the largest magnitude over 127, as a half; then the quotients."""
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    half = scale.astype("<f2")
    _check_range(~np.isfinite(half), scale, "Q8_0", where)
    inverse = np.float32(1) / scale
    inverse[~np.isfinite(inverse)] = 0  # a scale so small is 0 as a half
    quotients = blocks * inverse
    magnitude = np.abs(quotients)
    whole = np.floor(magnitude)
    whole += magnitude - whole >= 0.5
    quants = np.copysign(whole, quotients).astype(np.int8)
    return np.concatenate([half.view(np.uint8), quants.view(np.uint8)], axis=1)


def _check_range(beyond: NDArray[np.bool_], numbers: F32, name: str, where: str) -> None:
    if beyond.any():
        raise InputError(
            f"{where}: expected numbers in the range of {name}, got {numbers[beyond][0]:g}",
            hint="write the tensor in F32 or BF16",
        )


WRITABLE: dict[str, Callable[[F32, str], Bytes]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q8_0": _q8_0,
}
