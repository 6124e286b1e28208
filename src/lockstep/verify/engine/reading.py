"""Reading parts of leaves into reusable memory, without an array of the whole.

A `Unit` is bytes that lie together: an extent of a file, a decoded chunk, a held leaf. A box of
elements of a unit is given by a start and by (count, step) loops; it comes back as a view of the
leaf's words, through strides, over a buffer that was given.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import InputError
from lockstep.formats.leaf import Chunks, ElementType, Extent, Held, Leaf
from lockstep.verify.claim import Words

_READ_COST = 12_000  # a call costs about as much as reading this many bytes
_MAX_READS = 1 << 14  # of one box; their offsets are Python numbers
_OPEN_FILES = 24  # of one worker
# Threads that each make many short reads hinder each other at the interpreter's lock.
_MANY_READS = threading.Lock()
_GAP = 64  # bytes between rows, so that rows do not fall on the same lines of the cache


@dataclass(frozen=True, slots=True)
class Unit:
    """Bytes that lie together: of an extent, or of a chunk (by index), or held (neither)."""

    leaf: Leaf
    extent: Extent | None
    index: tuple[int, ...]
    n_elements: int


def words_of(element: ElementType) -> tuple[np.dtype[np.unsignedinteger], int]:
    """The words of one element: their type and how many there are."""
    n = element.n_bytes
    if n in (1, 2, 4, 8):
        return np.dtype(f"<u{n}"), 1
    return (np.dtype("<u8"), 2) if element.name == "C128" else (np.dtype("<u1"), n)


def flat_words(view: Words, n: int) -> Words:
    """The words of `n` elements one after the other: flat, or one row for each element."""
    return (
        np.ascontiguousarray(view).reshape(n)
        if view.size == n
        else (np.ascontiguousarray(view).reshape(n, -1))
    )


class Files:
    """The files that one worker has open: the last few."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()
        self.n_bytes = 0

    def read(self, path: Path, offset: int, out: NDArray[np.uint8]) -> None:
        """Fills `out` from the file.

        Raises: InputError if the file cannot be read or ends before.
        """
        try:
            handle = self._open.get(path)
            if handle is None:
                handle = self._opened(path)
            n = os.preadv(handle, [out.data], offset)
            while n < len(out):
                more = os.preadv(handle, [out[n:].data], offset + n)
                if not more:
                    raise InputError(
                        f"{path}: expected {len(out)} bytes from {offset} on, got {n}",
                        hint="copy the file again; it was cut, or changed while it was read",
                    )
                n += more
        except OSError as error:
            raise _unreadable(path, error) from error
        self.n_bytes += n

    def read_rows(
        self, path: Path, offsets: Sequence[int], size: int, pitch: int, out: NDArray[np.uint8]
    ) -> None:
        """Reads `size` bytes from each offset, to every `pitch` bytes of `out`.

        Raises: InputError if the file cannot be read or ends before.
        """
        self.read(path, offsets[-1], out[(len(offsets) - 1) * pitch :][:size])
        handle, read, view = self._open[path], os.preadv, out.data
        at = 0
        try:
            with _MANY_READS:
                for offset in offsets[:-1]:
                    if read(handle, (view[at : at + size],), offset) != size:
                        self.read(path, offset, out[at : at + size])
                    at += pitch
        except OSError as error:
            raise _unreadable(path, error) from error
        self.n_bytes += size * (len(offsets) - 1)

    def _opened(self, path: Path) -> int:
        while len(self._open) >= _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._open[path] = handle
        return handle

    def close(self) -> None:
        """Closes all of them."""
        while self._open:
            os.close(self._open.popitem()[1])


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: expected to read it, got: {error.strerror}",
        hint="check the disk and the file, then run it again",
    )


class ChunkSlots:
    """Decoded chunks in a few places of memory; the one that was used longest ago makes room."""

    def __init__(self, slots: Sequence[NDArray[np.uint8]], files: Files) -> None:
        self._free = list(slots)
        self._files = files  # which counts what was read
        self._kept: OrderedDict[tuple[int, tuple[int, ...]], NDArray[np.uint8]] = OrderedDict()

    def get(self, unit: Unit) -> NDArray[np.uint8]:
        """The bytes of a chunk, decoded now unless they are here."""
        key = (id(unit.leaf), unit.index)
        slot = self._kept.get(key)
        if slot is not None:
            self._kept.move_to_end(key)
            return slot
        slot = self._free.pop() if self._free else self._kept.popitem(last=False)[1]
        n_bytes = unit.n_elements * unit.leaf.element.n_bytes
        storage: Chunks = unit.leaf.storage  # type: ignore[assignment]
        try:
            storage.read(unit.index, slot[:n_bytes])
        except BaseException:
            self._free.append(slot)
            raise
        self._kept[key] = slot
        self._files.n_bytes += n_bytes
        return slot


@dataclass(frozen=True, slots=True)
class Span:
    """How a box of an extent is read: the inner axes in one go, the outer ones one by one.

    `first` is the lowest element, from `start` on; `row` the elements of one read and `pitch` the
    bytes from one to the next in memory; `outer` and `inner` are axes, `outer` the slow ones.
    """

    first: int
    row: int
    pitch: int
    n_reads: int
    outer: tuple[int, ...]
    n_bytes: int


def span_of(counts: Sequence[int], steps: Sequence[int], n_bytes: int, room: int) -> Span | None:
    """The cheapest way to read a box into `room` bytes, or None if none fits."""
    axes = [k for k in range(len(steps)) if steps[k] and counts[k] > 1]
    axes.sort(key=lambda k: abs(steps[k]))
    first = sum((counts[k] - 1) * steps[k] for k in axes if steps[k] < 0)
    best: tuple[int, Span] | None = None
    row, n_reads = 1, prod(counts[k] for k in axes)
    for j in range(len(axes) + 1):
        if j:
            row += (counts[axes[j - 1]] - 1) * abs(steps[axes[j - 1]])
            n_reads //= counts[axes[j - 1]]
        pitch = row * n_bytes
        if n_reads > 1 and pitch >= 4 * _GAP:
            pitch += -(-_GAP // n_bytes) * n_bytes
        size = pitch * n_reads
        cost = n_reads * _READ_COST + row * n_reads * n_bytes
        if size <= room and n_reads <= _MAX_READS and (best is None or cost < best[0]):
            best = cost, Span(first, row, pitch, n_reads, tuple(axes[j:][::-1]), size)
    return best[1] if best else None


class LeafReader:
    """Reads boxes of units into views of words; one worker's."""

    def __init__(self, files: Files, chunks: ChunkSlots) -> None:
        self.files = files
        self.chunks = chunks

    def box(
        self,
        unit: Unit,
        start: int,
        counts: Sequence[int],
        steps: Sequence[int],
        room: NDArray[np.uint8],
    ) -> Words:
        """The elements `start + i * steps` for all i below `counts`, in that order of axes.

        Shapes: `counts`, and a last axis where an element has several words. `room` is used for
        what is read from a file; the view holds until it is used again.
        """
        element = unit.leaf.element
        if unit.extent is not None:
            return self._from_file(unit.extent, element, start, counts, steps, room)
        if isinstance(unit.leaf.storage, Held):
            data: NDArray[np.uint8] = np.frombuffer(unit.leaf.storage.data, np.uint8)
        else:
            data = self.chunks.get(unit)
        return view_of(data, element, start, counts, steps)

    def _from_file(
        self,
        extent: Extent,
        element: ElementType,
        start: int,
        counts: Sequence[int],
        steps: Sequence[int],
        room: NDArray[np.uint8],
    ) -> Words:
        n = element.n_bytes
        span = span_of(counts, steps, n, len(room))
        if span is None:
            raise AssertionError(f"box {counts} {steps}: does not fit into {len(room)} bytes")
        low = start + span.first
        place = extent.offset + low * n
        size = span.row * n
        if span.n_reads == 1:
            self.files.read(extent.file, place, room[:size])
        else:
            offsets = [place + way * n for way in _offsets(span, counts, steps)]
            self.files.read_rows(extent.file, offsets, size, span.pitch, room)
        if extent.big_endian:
            _turn_bytes(room, span, element)
        strides = [step * n for step in steps]
        pitch = span.pitch
        for k in reversed(span.outer):
            strides[k] = pitch if steps[k] > 0 else -pitch
            pitch *= counts[k]
        first = sum(
            -(count - 1) * stride
            for count, stride in zip(counts, strides, strict=True)
            if stride < 0
        )
        return _view(room, element, first, counts, strides)


def _offsets(span: Span, counts: Sequence[int], steps: Sequence[int]) -> Iterator[int]:
    """How far from the lowest element each read begins."""
    loops = [range(0, counts[k] * abs(steps[k]), abs(steps[k])) for k in span.outer]
    return iter(loops[0]) if len(loops) == 1 else map(sum, product(*loops))


def far(start: int, counts: Sequence[int], steps: Sequence[int]) -> int:
    """Where so many steps of each loop lead."""
    return start + sum(n * step for n, step in zip(counts, steps, strict=True))


def view_of(
    data: NDArray[np.uint8],
    element: ElementType,
    start: int,
    counts: Sequence[int],
    steps: Sequence[int],
) -> Words:
    """The words of elements that lie in `data`, from `start` on, with `steps` in elements."""
    n = element.n_bytes
    return _view(data, element, start * n, counts, [step * n for step in steps])


def _view(
    data: NDArray[np.uint8],
    element: ElementType,
    offset: int,
    counts: Sequence[int],
    strides: Sequence[int],
) -> Words:
    word, n_words = words_of(element)
    if n_words > 1:
        counts, strides = (*counts, n_words), (*strides, word.itemsize)
    return np.ndarray(tuple(counts), word, data, offset, tuple(strides))


def _turn_bytes(room: NDArray[np.uint8], span: Span, element: ElementType) -> None:
    """Makes little-endian what was read; a complex number is two."""
    width = element.n_bytes // 2 if element.name in ("C64", "C128") else element.n_bytes
    if width > 1:
        for i in range(span.n_reads):
            at = i * span.pitch
            room[at : at + span.row * element.n_bytes].view(f"u{width}").byteswap(inplace=True)
