"""GGML's quantised blocks as float32 numbers.

A scale is a half and a quant an integer of at most 8 bits, so their product is exact in float32 and
never subnormal there; a sum with a minimum is rounded once, to the nearest. No flush mode can
change that. A result that is not a number is written as 0x7fc00000, whatever the processor makes.

Source: ggml-org/llama.cpp, ggml/src/ggml-quants.c, dequantize_row_q8_0 and its neighbours
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.verify.claim import Words
from lockstep.verify.float_formats import FLOATS, decode
from lockstep.verify.rounding import encode

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


# name: what unpacks blocks, and the bytes of one block of 32 numbers
BLOCKS: dict[str, tuple[Callable[[Bytes], F32], int]] = {
    "Q8_0": (_q8_0, 34),
    "Q4_0": (_q4_0, 18),
    "Q4_1": (_q4_1, 20),
    "Q5_0": (_q5_0, 22),
    "Q5_1": (_q5_1, 24),
}
