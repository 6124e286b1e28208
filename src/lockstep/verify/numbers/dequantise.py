"""GGML's quantised blocks as float32 numbers.

A scale is a half, or a half times an integer of at most 8 bits, and a quant an integer of at most 8
bits, so no product is subnormal in float32, and all are exact but those of Q6_K, of up to 25 bits,
which are rounded to the nearest, as is the one sum with a minimum. No flush mode can change that,
nor a fused multiply-add. A result that is not a number is 0x7fc00000, whatever the processor makes.

Source: ggml-org/llama.cpp, ggml/src/ggml-quants.c, dequantize_row_q8_0 and its neighbours
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.verify.claim import Words
from lockstep.verify.numbers.float_formats import FLOATS, decode
from lockstep.verify.numbers.rounding import encode

Bytes = NDArray[np.uint8]
F32 = NDArray[np.float32]
CANONICAL_NAN = 0x7FC00000


def dequantise(blocks: Words, name: str) -> Words:
    """The words of all numbers of some rows of block bytes, in order."""
    unpack, n_bytes = BLOCKS[name]
    with np.errstate(invalid="ignore", over="ignore"):
        numbers: Any = unpack(blocks.reshape(-1, n_bytes).astype(np.uint8, copy=False))
    flat = np.ascontiguousarray(numbers, "<f4").reshape(-1)
    words = flat.view("<u4")
    words[np.isnan(flat)] = CANONICAL_NAN
    return words


def _half(blocks: Bytes, at: int) -> F32:
    """The half at these bytes of each block, as a column."""
    words = np.ascontiguousarray(blocks[:, at : at + 2]).view("<u2").reshape(-1)
    wide: F32 = encode(decode(words, FLOATS["F16"]), FLOATS["F32"]).view("<f4")
    return wide.reshape(-1, 1)


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


def _q6_k(blocks: Bytes) -> F32:
    low = _pairs_of_runs(blocks[:, :128], 64).reshape(-1, 256)
    upper = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8)
    quants = (low | ((upper & 3) << np.uint8(4)).reshape(-1, 256)).astype(np.float32)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    runs = quants.reshape(-1, 16, 16) - np.float32(32)
    return scales[:, :, None] * runs


# name: what unpacks blocks, and the bytes of one block; the last three are of 256 numbers
BLOCKS: dict[str, tuple[Callable[[Bytes], F32], int]] = {
    "Q8_0": (_q8_0, 34),
    "Q4_0": (_q4_0, 18),
    "Q4_1": (_q4_1, 20),
    "Q5_0": (_q5_0, 22),
    "Q5_1": (_q5_1, 24),
    "Q4_K": (_q4_k, 144),
    "Q5_K": (_q5_k, 176),
    "Q6_K": (_q6_k, 210),
}
