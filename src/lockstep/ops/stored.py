"""Rows of stored GGUF types taken apart: scales, sub-scales, minima and quants.

Source: ggml-org/llama.cpp, ggml/src/ggml-common.h, block_q8_0 and its neighbours
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]

_ONE_BIT, _TWO_BITS, _LOW, _HIGH = np.uint8(1), np.uint8(3), np.uint8(15), np.uint8(4)

# Codes of e2m1 numbers, doubled, from 12 up: -12 is 0.
_E2M1 = np.array([12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0], np.uint8)


@dataclass(frozen=True, slots=True)
class Parts:
    """What n blocks hold: q (n, weights), all from 0 up; scales as the bytes of halves (n, 2).

    A weight is scale * sub_scale * (q - zero) - minimum * sub_minimum. `scale` is (n, 4), bytes of
    floats, for MXFP4; `sub_scale` and `sub_minimum` are int8 in the bits of bytes, (n, 8 or 16).
    """

    q: U8
    scale: U8
    minimum: U8 | None = None
    sub_scale: U8 | None = None
    sub_minimum: U8 | None = None


def _nibbles(bytes_: U8) -> U8:
    """For each run of bytes in the last axis all low halves, then all high ones."""
    return np.stack([bytes_ & 15, bytes_ >> 4], axis=-2).reshape(len(bytes_), -1)


def _fifth(bits: U8) -> U8:
    """32 bits for 32 quants, in their place."""
    return np.unpackbits(bits, axis=1, bitorder="little") << np.uint8(4)


def _negated(halves: U8) -> U8:
    """Halves with the other sign."""
    return halves ^ np.array([0, 0x80], np.uint8)


def _q8_0(b: U8) -> Parts:
    return Parts(b[:, 2:] ^ np.uint8(0x80), b[:, :2])


def _q4_0(b: U8) -> Parts:
    return Parts(_nibbles(b[:, 2:]), b[:, :2])


def _q4_1(b: U8) -> Parts:
    return Parts(_nibbles(b[:, 4:]), b[:, :2], _negated(b[:, 2:4]))


def _q5_0(b: U8) -> Parts:
    return Parts(_nibbles(b[:, 6:]) | _fifth(b[:, 2:6]), b[:, :2])


def _q5_1(b: U8) -> Parts:
    return Parts(_nibbles(b[:, 8:]) | _fifth(b[:, 4:8]), b[:, :2], _negated(b[:, 2:4]))


def _mxfp4(b: U8) -> Parts:
    e = b[:, :1].astype(np.uint32)
    scale = np.where(e < 2, np.uint32(0x00200000) << e, (e - np.uint32(1)) << np.uint32(23))
    return Parts(_E2M1[_nibbles(b[:, 1:])], scale.astype("<u4").view(np.uint8))


def _q2_k(b: U8) -> Parts:
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1)
    q = (b[:, 16:80].reshape(-1, 2, 1, 32) >> shifts & _TWO_BITS).reshape(-1, 256)
    return Parts(q, b[:, 80:82], b[:, 82:84], b[:, :16] & _LOW, b[:, :16] >> _HIGH)


def _q3_k(b: U8) -> Parts:
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1)
    low = (b[:, 32:96].reshape(-1, 2, 1, 32) >> shifts & _TWO_BITS).reshape(-1, 256)
    bits = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    high = (b[:, :32].reshape(-1, 1, 32) >> bits & _ONE_BIT).reshape(-1, 256) << np.uint8(2)
    sub_high = (b[:, 104:108].reshape(-1, 1, 4) >> shifts.reshape(1, 4, 1) & _TWO_BITS).reshape(
        -1, 16
    )
    sub = (_nibbles(b[:, 96:104]) | sub_high.reshape(-1, 16) << np.uint8(4)) - np.uint8(32)
    return Parts(low | high, b[:, 108:110], None, sub)


def _six_bits(b: U8) -> tuple[U8, U8]:
    """The sub-scales and sub-minima that 12 bytes hold."""
    low, high, rest = b[:, :4], b[:, 4:8], b[:, 8:]
    sub = [low & 63, rest & 15 | low >> 2 & 48]
    minimum = [high & 63, rest >> 4 | high >> 2 & 48]
    return np.concatenate(sub, axis=1), np.concatenate(minimum, axis=1)


def _q4_k(b: U8) -> Parts:
    return Parts(
        _nibbles(b[:, 16:].reshape(-1, 4, 32)), b[:, :2], b[:, 2:4], *_six_bits(b[:, 4:16])
    )


def _q5_k(b: U8) -> Parts:
    bits = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    fifth = (b[:, 16:48].reshape(-1, 1, 32) >> bits & _ONE_BIT).reshape(-1, 256) << np.uint8(4)
    q = _nibbles(b[:, 48:].reshape(-1, 4, 32)) | fifth
    return Parts(q, b[:, :2], b[:, 2:4], *_six_bits(b[:, 4:16]))


def _q6_k(b: U8) -> Parts:
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1)
    high = (b[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & _TWO_BITS).reshape(-1, 256) << np.uint8(
        4
    )
    q = _nibbles(b[:, :128].reshape(-1, 2, 64)) | high
    return Parts(q, b[:, 208:210], None, b[:, 192:208])


# Stored type -> bytes of a block, and what takes blocks (n, bytes) apart.
BLOCKS: dict[str, tuple[int, Callable[[U8], Parts]]] = {
    "Q8_0": (34, _q8_0),
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "MXFP4": (17, _mxfp4),
    "Q2_K": (84, _q2_k),
    "Q3_K": (110, _q3_k),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}
