"""Stored elements and GGML's quantised blocks as float32 numbers, to the bit as ggml has them.

A scale is a half, or a half times an integer of at most 8 bits, and a quant an integer of at most 8
bits, so no product is subnormal in float32, and all are exact but those of Q6_K, of up to 25 bits,
which are rounded to the nearest, as is the one sum with a minimum. The scales of MXFP4 reach the
subnormal numbers, so its products are looked up. No flush mode can change a result, nor a fused
multiply-add; which NaN a scale that is none makes, the processor chooses.

Source: ggml-org/llama.cpp, ggml/src/ggml-quants.c, dequantize_row_q8_0 and its neighbours
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.formats.leaf import ELEMENT_TYPES, ElementType
from lockstep.formats.locate.gguf import BLOCK_TYPES

Bytes = NDArray[np.uint8]
F32 = NDArray[np.float32]
_CHUNK = 1 << 16  # numbers at a time, so that what is on the way stays in the cache


def dequantise(rows: Bytes, name: str) -> F32:
    """The numbers of rows of bytes of a type in `SUPPORTED`.

    Shapes: (..., bytes of a row) -> (..., numbers of a row)
    """
    element = SUPPORTED[name]
    n_row = rows.shape[-1] // element.n_bytes * element.n_numbers
    blocks = rows.reshape(-1, element.n_bytes)
    numbers = np.empty((len(blocks), element.n_numbers), "<f4")
    unpack, step = _UNPACK[name], _CHUNK // element.n_numbers
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(blocks), step):
            made: Any = unpack(blocks[start : start + step])
            numbers[start : start + step] = made.reshape(-1, element.n_numbers)
    return numbers.reshape(*rows.shape[:-1], n_row)


def _f32(words: Bytes) -> F32:
    return np.ascontiguousarray(words).view("<f4")


def _f16(words: Bytes) -> F32:
    wide: F32 = np.ascontiguousarray(words).view("<f2").astype("<f4")
    return wide


def _bf16(words: Bytes) -> F32:
    wide = np.ascontiguousarray(words).view("<u2").astype("<u4") << np.uint32(16)
    return wide.view("<f4")


def _half(blocks: Bytes, at: int) -> F32:
    """The half at these bytes of each block, as a column."""
    return _f16(blocks[:, at : at + 2])


def _nibbles(blocks: Bytes, at: int) -> Bytes:
    """The 32 quants of 4 bits: the low halves of 16 bytes, then the high ones."""
    packed = blocks[:, at : at + 16]
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """The fifth bits of 32 quants, in their place."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << np.uint8(4)


def _q8_0(blocks: Bytes) -> F32:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(blocks: Bytes) -> F32:
    return _half(blocks, 0) * (_nibbles(blocks, 2).astype(np.float32) - np.float32(8))


def _q4_1(blocks: Bytes) -> F32:
    return _half(blocks, 0) * _nibbles(blocks, 4).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> F32:
    quants = _nibbles(blocks, 6) | _fifth_bits(blocks, 2)
    return _half(blocks, 0) * (quants.astype(np.float32) - np.float32(16))


def _q5_1(blocks: Bytes) -> F32:
    quants = _nibbles(blocks, 8) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * quants.astype(np.float32) + _half(blocks, 2)


def _scales_of_6_bits(blocks: Bytes, at: int) -> tuple[F32, F32]:
    """The 8 scales and the 8 minima of a block, 6 bits each, packed into 12 bytes.

    The first four lie in the low bits of bytes 0 to 3 (scales) and 4 to 7 (minima); of the others
    the low four bits are in bytes 8 to 11, the upper two on top of the first ones.
    """
    first, second, low = (blocks[:, at + 4 * i : at + 4 * i + 4] for i in range(3))
    scales = np.concatenate([first & 63, (low & 15) | (first >> 2 & 48)], axis=1)
    minima = np.concatenate([second & 63, (low >> 4) | (second >> 2 & 48)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _scaled_by_8(blocks: Bytes, quants: Bytes) -> F32:
    """256 quants in 8 runs, each with its scale and its minimum."""
    scales, minima = _scales_of_6_bits(blocks, 4)
    scale, minimum = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    runs = quants.reshape(-1, 8, 32).astype(np.float32)
    return scale[:, :, None] * runs - minimum[:, :, None]


def _pairs_of_runs(packed: Bytes, size: int) -> Bytes:
    """Quants of 4 bits: for every `size` bytes the low halves, then the high ones."""
    runs = packed.reshape(len(packed), -1, 1, size)
    return np.concatenate([runs & 15, runs >> 4], axis=2)


def _q4_k(blocks: Bytes) -> F32:
    return _scaled_by_8(blocks, _pairs_of_runs(blocks[:, 16:], 32))


def _q5_k(blocks: Bytes) -> F32:
    low = _pairs_of_runs(blocks[:, 48:], 32).reshape(-1, 8, 32)
    fifth: Bytes = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    return _scaled_by_8(blocks, low | (fifth << np.uint8(4)))


def _crumbs(packed: Bytes) -> Bytes:
    """Quants of 2 bits: of every 32 bytes the lowest two bits, then the next, up to the highest."""
    shifts = np.array([[0], [2], [4], [6]], np.uint8)
    return (packed.reshape(len(packed), -1, 1, 32) >> shifts) & np.uint8(3)


def _q2_k(blocks: Bytes) -> F32:
    scales = _half(blocks, 80) * (blocks[:, :16] & 15).astype(np.float32)
    minima = _half(blocks, 82) * (blocks[:, :16] >> 4).astype(np.float32)
    runs = _crumbs(blocks[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
    return scales[:, :, None] * runs - minima[:, :, None]


def _q3_k(blocks: Bytes) -> F32:
    """Quants of 2 bits, less 4 where the bit of the mask is not set.

    Of the 16 scales the low four bits lie in the halves of bytes 96 to 103, the upper two, four
    scales apart, in bytes 104 to 107.
    """
    low = np.concatenate([blocks[:, 96:104] & 15, blocks[:, 96:104] >> 4], axis=1)
    upper = (blocks[:, None, 104:108] >> np.array([[0], [2], [4], [6]], np.uint8)) & np.uint8(3)
    whole = low | (upper.reshape(-1, 16) << np.uint8(4))
    scales = _half(blocks, 108) * (whole.astype(np.float32) - np.float32(32))
    set_bits = (blocks[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    quants = _crumbs(blocks[:, 32:96]).reshape(-1, 8, 32) | (set_bits << np.uint8(2))
    runs = quants.reshape(-1, 16, 16).astype(np.float32) - np.float32(4)
    numbers: F32 = scales[:, :, None] * runs
    return numbers


def _q6_k(blocks: Bytes) -> F32:
    low = _pairs_of_runs(blocks[:, :128], 64).reshape(-1, 256)
    upper = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8)
    quants = (low | ((upper & 3) << np.uint8(4)).reshape(-1, 256)).astype(np.float32)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    runs = quants.reshape(-1, 16, 16) - np.float32(32)
    return scales[:, :, None] * runs


@cache
def _products_of_mxfp4() -> F32:
    """The number of each scale (an exponent) and each quant, at 16 * scale + quant.

    The double of a quant is a whole number, so a product is n * 2**(scale - 128), and n of at most
    4 bits: its bits are put together here, subnormal ones too.
    """
    n = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.int64)
    top = np.array([0, 0, 1, 1, 2, 2, 3, 3])  # the highest bit of each
    scale = np.arange(256)[:, None]
    field = scale - 1 + top
    bits = np.where(field > 0, (field << 23) + ((n << (23 - top)) - (1 << 23)), n << (scale + 21))
    bits = np.where(field > 254, 0x7F800000, np.where(n == 0, 0, bits)).astype(np.uint32)
    negative = bits | np.where(n == 0, 0, 1 << 31).astype(np.uint32)
    products: F32 = np.concatenate([bits, negative], axis=1).reshape(-1).view("<f4")
    return products


def _mxfp4(blocks: Bytes) -> F32:
    places = (blocks[:, :1].astype(np.intp) << 4) | _nibbles(blocks, 1)
    numbers: F32 = _products_of_mxfp4()[places]
    return numbers


# The types that become float32 numbers, and what unpacks rows of them.
_UNPACK: dict[str, Callable[[Bytes], F32]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "MXFP4": _mxfp4,
}
SUPPORTED: dict[str, ElementType] = {name: (ELEMENT_TYPES | BLOCK_TYPES)[name] for name in _UNPACK}

# Where the halves of a block are on which it hangs whether its numbers are finite.
_HALVES: dict[str, tuple[int, ...]] = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
# What is not finite in a float has all of these bits.
_EXPONENTS = {"F32": np.uint32(0x7F800000), "F16": np.uint16(0x7C00), "BF16": np.uint16(0x7F80)}
_LAST_SCALE = 252  # of MXFP4, by which no quant becomes infinite


def is_finite(rows: Bytes, name: str) -> bool:
    """Whether all numbers of rows of bytes of a type in `SUPPORTED` are finite.

    Of quantised blocks it reads the scales, and unpacks only those in which one is odd.
    """
    element = SUPPORTED[name]
    blocks = rows.reshape(-1, element.n_bytes)
    step = _CHUNK if name in _EXPONENTS else _CHUNK // 8
    chunks = (blocks[start : start + step] for start in range(0, len(blocks), step))
    return all(_is_finite(chunk, name) for chunk in chunks)


def _is_finite(blocks: Bytes, name: str) -> bool:
    if name in _EXPONENTS:
        words = blocks.reshape(-1).view(f"<u{blocks.shape[1]}")
        return bool((words & _EXPONENTS[name]).max() < _EXPONENTS[name])
    if name == "MXFP4":
        odd = blocks[:, 0] > _LAST_SCALE
    else:
        halves = (blocks[:, at : at + 2].view("<u2")[:, 0] for at in _HALVES[name])
        of_half = _EXPONENTS["F16"]
        odd = np.logical_or.reduce([(half & of_half) == of_half for half in halves])
    return not odd.any() or bool(np.isfinite(dequantise(blocks[odd], name)).all())
