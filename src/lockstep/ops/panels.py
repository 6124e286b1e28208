"""Packed weights: panels of 16 columns of a product, the same bytes on every processor.

A panel is a row of units, of 256 weights a column where the stored type has scales of two levels,
else of 64, zero beyond the last. A unit holds, each part column by column within its block: scales,
minima, sub-scales, sub-minima (both of a block side by side where they are of 16 weights), then
from the next multiple of 64 bytes the quants, block of 32 by block. A block is a row of 64-byte
vectors in which four bytes of each of the 16 columns hold four quants in a row: what one lane of a
dot product wants. Eight such groups are eight vectors of bytes; or four vectors of low nibbles,
group i below group i+4, and then for a fifth bit one vector whose bit g belongs to group g, for two
more bits two vectors of four pairs of bits.

`panels.h` reads the same layout in C.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import UsageError
from lockstep.ops.stored import BLOCKS, U8

COLUMNS = 16
BLOCK = 32
ALIGN_BYTES = 64
_LOW, _LOW_NIBBLES = np.uint8(15), np.uint32(0x0F0F0F0F)
THREADS = 4
CHUNK_BYTES = 1 << 19  # of quants that are rearranged at a time: they stay in a cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the panels of one stored type are built; `zero` is what stands for the weight 0."""

    bits: int  # of a quant in the panel: 4, 5, 6 or 8
    zero: int = 0
    has_minimum: bool = False
    sub: int = 0  # weights under one sub-scale; 0 where there is one level only
    scale_bytes: int = 2

    @property
    def unit_blocks(self) -> int:
        """Blocks of 32 in one unit."""
        return 8 if self.sub else 2

    @property
    def parts_bytes(self) -> tuple[int, int, int, int]:
        """Bytes of the scales, minima, sub-scales and sub-minima of one unit."""
        scales = COLUMNS * self.scale_bytes * (1 if self.sub else self.unit_blocks)
        subs = COLUMNS * self.unit_blocks * BLOCK // self.sub if self.sub else 0
        with_minimum = int(self.has_minimum)
        return scales, with_minimum * scales, subs, with_minimum * subs

    @property
    def head_bytes(self) -> int:
        """Bytes in front of the quants of one unit."""
        return -(-sum(self.parts_bytes) // ALIGN_BYTES) * ALIGN_BYTES

    @property
    def unit_bytes(self) -> int:
        """Bytes of one unit."""
        return self.head_bytes + self.unit_blocks * BLOCK * COLUMNS * self.bits // 8


LAYOUTS: dict[str, Layout] = {
    "Q8_0": Layout(bits=8, zero=128),
    "Q4_0": Layout(bits=4, zero=8),
    "Q4_1": Layout(bits=4, has_minimum=True),
    "Q5_0": Layout(bits=5, zero=16),
    "Q5_1": Layout(bits=5, has_minimum=True),
    "MXFP4": Layout(bits=5, zero=12, scale_bytes=4),
    "Q2_K": Layout(bits=4, sub=16, has_minimum=True),
    "Q3_K": Layout(bits=4, sub=16, zero=4),
    "Q4_K": Layout(bits=4, sub=32, has_minimum=True),
    "Q5_K": Layout(bits=5, sub=32, has_minimum=True),
    "Q6_K": Layout(bits=6, sub=16, zero=32),
}
FLOATS = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of a number; a panel is K rows of 16
STORED = (*FLOATS, *LAYOUTS)


def n_bytes(stored: str, n: int, k: int) -> int:
    """How many bytes the packed weight (n, k) takes.

    Raises: UsageError for a type that does not pack, or rows that it cannot hold.
    """
    _row_bytes(stored, k)
    panels = -(-n // COLUMNS)
    if stored in FLOATS:
        return panels * COLUMNS * k * FLOATS[stored]
    layout = LAYOUTS[stored]
    return panels * -(-k // (BLOCK * layout.unit_blocks)) * layout.unit_bytes


def pack(stored: str, raw: U8, k: int) -> U8:
    """The panels of rows of k weights, given as their stored bytes (n, bytes).

    Raises: UsageError for a type that does not pack, or rows of another length.
    """
    n = len(raw)
    if raw.shape[1:] != (_row_bytes(stored, k),):
        raise UsageError(
            f"packing {stored}: expected rows of {_row_bytes(stored, k)} bytes, got {raw.shape}",
            hint="give the bytes of a weight row by row",
        )
    packed = np.zeros(n_bytes(stored, n, k), np.uint8)
    panels = packed.reshape(-(-n // COLUMNS), -1)
    step = max(1, CHUNK_BYTES // (COLUMNS * k))

    def pack_some(j: int) -> None:
        rows = raw[j * COLUMNS : (j + step) * COLUMNS]
        if len(rows) % COLUMNS:
            rows = np.pad(rows, ((0, -len(rows) % COLUMNS), (0, 0)))
        if stored in FLOATS:
            _pack_floats(panels[j : j + step], np.ascontiguousarray(rows), FLOATS[stored])
        else:
            _pack_blocks(panels[j : j + step], rows, stored)

    starts = range(0, len(panels), step)
    if len(starts) == 1:
        pack_some(0)
        return packed
    with ThreadPoolExecutor(THREADS) as pool:  # NumPy lets others run while it works
        list(pool.map(pack_some, starts))
    return packed


@cache
def fingerprint(stored: str) -> str:
    """A digest of how rows of drawn bytes are packed: it changes with the layout."""
    k = 2 * BLOCK * max(layout.unit_blocks for layout in LAYOUTS.values())
    rows = np.random.default_rng(0).integers(0, 256, (COLUMNS + 1, _row_bytes(stored, k)), np.uint8)
    return sha256(pack(stored, rows, k).tobytes()).hexdigest()


def dequantise(stored: str, packed: U8, n: int, k: int) -> NDArray[np.float32]:
    """The weights (n, k) that panels hold, as the file's format defines them."""
    panels = packed.reshape(-(-n // COLUMNS), -1)
    if stored in FLOATS:
        size = FLOATS[stored]
        words = panels.view(f"<u{size}").reshape(len(panels), k, COLUMNS).transpose(0, 2, 1)
        if stored == "F16":
            wide = words.view(np.float16).astype(np.float32)
        else:
            wide = (words.astype("<u4") << np.uint32(32 - 8 * size)).view("<f4")
        return np.ascontiguousarray(wide.reshape(-1, k)[:n])
    with np.errstate(invalid="ignore", over="ignore"):
        wide = _weights(LAYOUTS[stored], panels)
    return np.ascontiguousarray(wide.reshape(len(panels) * COLUMNS, -1)[:n, :k])


def _row_bytes(stored: str, k: int) -> int:
    """Bytes of a row of k weights as they are stored."""
    if stored in FLOATS:
        return FLOATS[stored] * k
    if stored not in LAYOUTS:
        raise UsageError(
            f"packing: expected one of {', '.join(STORED)}, got {stored!r}",
            hint="convert the weights to one of these types",
        )
    block = 256 if LAYOUTS[stored].sub else BLOCK
    if k % block:
        raise UsageError(
            f"packing {stored}: expected rows of a multiple of {block}, got {k}",
            hint="store such a weight in another type",
        )
    return k // block * BLOCKS[stored][0]


def _pack_floats(panels: U8, rows: U8, size: int) -> None:
    words = rows.view(f"<u{size}").reshape(len(panels), COLUMNS, -1)
    panels.view(words.dtype).reshape(len(panels), -1, COLUMNS)[...] = words.transpose(0, 2, 1)


def _pack_blocks(panels: U8, rows: U8, stored: str) -> None:
    layout = LAYOUTS[stored]
    block_bytes, take_apart = BLOCKS[stored]
    parts = take_apart(rows.reshape(-1, block_bytes))
    heads = (parts.scale, parts.minimum, parts.sub_scale, parts.sub_minimum)
    for region, part in zip(_head_regions(layout, panels), heads, strict=True):
        if part is not None:
            by_row = part.reshape(len(panels), COLUMNS, -1, region.shape[-1])
            _spread(region, by_row.transpose(0, 2, 1, 3))
    _spread(_quant_region(layout, panels), _interleaved(parts.q, len(panels), layout.bits))


def _units(layout: Layout, panels: U8) -> U8:
    return panels.reshape(len(panels), -1, layout.unit_bytes)


def _head_regions(layout: Layout, panels: U8) -> list[U8]:
    """Where each part of the heads lies: (panels, units, parts in a unit, columns, bytes)."""
    units = _units(layout, panels)
    per_block = BLOCK // layout.sub if layout.sub else 1
    sizes = (layout.scale_bytes, layout.scale_bytes, per_block, per_block)
    regions, at = [], 0
    for n_part, size in zip(layout.parts_bytes, sizes, strict=True):
        part = units[:, :, at : at + n_part]
        regions.append(part.reshape(*units.shape[:2], -1, COLUMNS, size) if n_part else part)
        at += n_part
    return regions


def _quant_region(layout: Layout, panels: U8) -> U8:
    """Where the quants lie: (panels, units, blocks, vectors, 64)."""
    units = _units(layout, panels)
    quants = units[:, :, layout.head_bytes :]
    return quants.reshape(*units.shape[:2], layout.unit_blocks, layout.bits, 4 * COLUMNS)


def _spread(region: U8, parts: U8) -> None:
    """Puts parts (panels, count, ...) in a row into the units, of which the last may stay short."""
    per_unit = region.shape[2]
    for i in range(per_unit):
        some = parts[:, i::per_unit]
        region[:, : some.shape[1], i] = some


def _interleaved(q: U8, n_panels: int, bits: int) -> U8:
    """Quants by row as the vectors of blocks: (panels, blocks, vectors, 64)."""
    by_row = np.ascontiguousarray(q).view("<u4").reshape(n_panels, COLUMNS, -1, 8)
    groups = np.ascontiguousarray(by_row.transpose(0, 2, 3, 1))  # a word is four quants in a row
    if bits == 8:
        return groups.view(np.uint8)
    low, high = groups & _LOW_NIBBLES, groups >> np.uint32(4) & _LOW_NIBBLES
    vectors = np.empty((*groups.shape[:2], bits, COLUMNS), "<u4")
    vectors[:, :, :4] = low[:, :, :4] | low[:, :, 4:] << np.uint32(4)
    for vector, step in ((4, 1),) if bits == 5 else ((4, 2), (5, 2)) if bits == 6 else ():
        first = (vector - 4) * 4
        plane = vectors[:, :, vector]
        plane[...] = high[:, :, first]
        for g in range(1, 8 // step):
            plane |= high[:, :, first + g] << np.uint32(g * step)
    return vectors.view(np.uint8)


def _quants(layout: Layout, panels: U8) -> U8:
    """Quants by row out of panels: (panels, columns, weights), padding included."""
    vectors = _quant_region(layout, panels).reshape(len(panels), -1, layout.bits, COLUMNS, 4)
    if layout.bits == 8:
        groups = vectors
    else:
        nibbles = vectors[:, :, :4]
        groups = np.concatenate([nibbles & _LOW, nibbles >> 4], axis=2)
    if layout.bits == 5:
        fifth = np.unpackbits(vectors[:, :, 4:], axis=2, bitorder="little")
        groups = groups | fifth << np.uint8(4)
    if layout.bits == 6:
        shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(4, 1, 1)
        high = vectors[:, :, 4:, None] >> shifts & np.uint8(3)
        groups = groups | high.reshape(groups.shape) << np.uint8(4)
    return groups.transpose(0, 3, 1, 2, 4).reshape(len(panels), COLUMNS, -1)


def _weights(layout: Layout, panels: U8) -> NDArray[np.float32]:
    """The weights of panels: (panels, columns, weights), padding included."""
    scales, minima, sub_scales, sub_minima = _head_regions(layout, panels)
    q = _quants(layout, panels)
    step = layout.sub or BLOCK
    shaped = q.reshape(*q.shape[:2], -1, step)
    scale = _by_column(scales, sub_scales, shaped.shape[2])
    offset = (shaped.astype(np.int16) - layout.zero).astype(np.float32)
    weights = scale * offset
    if layout.has_minimum:
        weights = weights - _by_column(minima, sub_minima, shaped.shape[2])
    return weights.reshape(q.shape)


def _by_column(scales: U8, subs: U8, count: int) -> NDArray[np.float32]:
    """Scales, times their sub-scales if there are any: (panels, columns, count, 1)."""
    n_panels = len(scales)
    flat = np.ascontiguousarray(scales).reshape(n_panels, -1, COLUMNS * scales.shape[-1])
    wide = flat.view("<f4" if scales.shape[-1] == 4 else "<f2").astype(np.float32)
    if subs.size:
        by_block = np.ascontiguousarray(subs).swapaxes(3, 4)
        sub = np.ascontiguousarray(by_block).reshape(n_panels, wide.shape[1], -1, COLUMNS)
        wide = wide[:, :, None] * sub.view(np.int8).astype(np.float32)
    return wide.reshape(n_panels, count, COLUMNS).transpose(0, 2, 1)[..., None]
