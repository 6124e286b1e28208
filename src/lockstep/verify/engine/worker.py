"""One worker: compares, hashes and sums what it is given, in its own arena."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import InputError
from lockstep.formats.leaf import Extent, Leaf, Record
from lockstep.verify.claim import Words
from lockstep.verify.digest import block_elements
from lockstep.verify.engine.budget import Arena
from lockstep.verify.engine.job import Band, HashJob, InOrder, Item, Job, Moves
from lockstep.verify.engine.places import Move, by_boxes, place
from lockstep.verify.engine.reading import (
    ChunkSlots,
    Files,
    LeafReader,
    far,
    flat_words,
    view_of,
    words_of,
)
from lockstep.verify.engine.tiles import (
    PLAIN,
    Grid,
    Scheme,
    grid_for,
    grid_of,
    inner_grid,
    one_or_more,
    visits,
)
from lockstep.verify.layouts.layout import Layout
from lockstep.verify.layouts.piece import Loop, Piece, restrict
from lockstep.verify.numbers.differences import Tally
from lockstep.verify.numbers.health import Health

SLAB = 1 << 14  # elements that differ, or move in value, at a time; see SCRATCH in budget.py


class Stopped(Exception):
    """The run is over."""


class Worker:
    """An arena, open files, and the layout of buffers for the scheme at hand."""

    def __init__(self, arena_bytes: int, stop: threading.Event) -> None:
        self.arena = Arena(arena_bytes)
        self.files = Files()
        self.stop = stop
        self._scheme: Scheme | None = None
        self._owner: object = None

    def close(self) -> None:
        """Closes the files and gives the memory back."""
        self.files.close()
        self.arena.give_back()

    def prepare(self, scheme: Scheme, owner: object) -> None:
        """Lays the buffers out for a scheme; decoded chunks are kept for the same owner."""
        if scheme is self._scheme and (owner is self._owner or not scheme.n_slots):
            return
        if scheme.slot or scheme.decoding:
            self.arena.give_back()
        self.arena.clear()
        n_rooms = 3 if scheme.way == "linear" else 2
        self.rooms = [self.arena.take(scheme.room) for _ in range(n_rooms)]
        self.flags: NDArray[np.bool_] = self.arena.take(scheme.flags).view(np.bool_)
        slots = [self.arena.take(scheme.slot) for _ in range(scheme.n_slots)]
        self.reader = LeafReader(self.files, ChunkSlots(slots, self.files))
        self._scheme, self._owner = scheme, owner

    def work(self, item: Item) -> None:
        """Does one item."""
        if isinstance(item, InOrder):
            self.prepare(item.job.scheme, item.job)
            if isinstance(item.job, Job):
                self.compare_in_order(item.job, item.first, item.last)
            else:
                self.digest(item.job, item.first, item.last)
        elif isinstance(item, Moves):
            self.prepare(item.job.scheme, item.job)
            for moved in item.moves:
                if item.tiles is not None:
                    self.compare_move(item.job, moved, *item.tiles)
                else:
                    grid = grid_for(moved, item.job.target, item.job.scheme)
                    self.compare_move(item.job, moved, grid, 0, grid.n_tiles)
        elif isinstance(item, Band):
            self.prepare(item.job.scheme, item.job)
            self.compare_band(item.job, item.first, item.last)
        else:
            self.prepare(PLAIN, None)
            self.checksum(item.record)

    # --- in C order

    def compare_in_order(self, job: Job, first: int, last: int) -> None:
        """The elements `first` to `last` of two leaves, hashed on the way."""
        (leaf,) = job.leaves.values()
        n = job.target.element.n_bytes
        hashing = _Hashing(job, first)
        per_block = block_elements(job.target.element)
        step = len(self.rooms[0]) // n or 1
        at = first
        while at < last:
            self.check()
            stop = min(last, at + step, (at // per_block + 1) * per_block)
            a = self.fill(leaf, at, stop, self.rooms[0])
            b = self.fill(job.target, at, stop, self.rooms[1])
            same = self._same(a, b)
            if not same:
                self._tell_flat(job, a, b, at, leaf.name)
            hashing.add(a, b, same)
            hashing.end_block(stop, per_block, job.target.n_elements)
            at = stop
        with job.lock:
            job.n_compared += last - first

    def digest(self, job: HashJob, first: int, last: int) -> None:
        """The digests of the blocks in the elements `first` to `last`, and their health."""
        leaf, health = job.leaf, Health(job.leaf.element)
        n, per_block = leaf.element.n_bytes, block_elements(leaf.element)
        step = len(self.rooms[0]) // n or 1
        word, n_words = words_of(leaf.element)
        digest = sha256()
        for at in range(first, last, step):
            self.check()
            stop = min(last, at + step)
            data = self.fill(leaf, at, stop, self.rooms[0])
            if job.health is not None:
                words: Words = data.view(word)
                health.add(words if n_words == 1 else words.reshape(-1, n_words))
            begin = at
            while begin < stop:
                end = min(stop, (begin // per_block + 1) * per_block)
                digest.update(data[(begin - at) * n : (end - at) * n].data)
                if end % per_block == 0 or end == leaf.n_elements:
                    i = begin // per_block
                    job.blocks[32 * i : 32 * i + 32] = digest.digest()
                    digest = sha256()
                begin = end
        if job.health is not None:
            with job.lock:
                job.health.merge(health)

    def fill(self, leaf: Leaf, first: int, last: int, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes of the elements `first` to `last` in C order, at the front of `out`."""
        n = leaf.element.n_bytes
        storage = leaf.storage
        if isinstance(storage, Extent) and storage.strides is None and not storage.big_endian:
            self.files.read(storage.file, storage.offset + first * n, out[: (last - first) * n])
            return out[: (last - first) * n]
        whole = Piece(leaf.name, first, first, (Loop(last - first, 1, 1),))
        for box, pieces in by_boxes(leaf, [whole]):
            for piece in pieces:
                loops = piece.loops or (Loop(1, 1, 1),)
                steps = [loop.dst for loop in loops]
                lies = place(box, piece.dst, steps)
                grid = grid_of([loop.n for loop in loops], [(lies.steps, n)], len(self.rooms[-1]))
                for starts, counts in grid.tiles(0, grid.n_tiles):
                    at = far(lies.start, starts, lies.steps)
                    found = self.reader.box(lies.unit, at, counts, lies.steps, self.rooms[-1])
                    at = far(piece.dst - first, starts, steps)
                    view_of(out, leaf.element, at, counts, steps)[...] = found
        return out[: (last - first) * n]

    # --- pieces

    def compare_move(self, job: Job, moved: Move, grid: Grid, first: int, last: int) -> None:
        """Some tiles of a move."""
        piece, source, target = moved.piece, moved.source, moved.target
        here, there = self.rooms[:2]
        n_compared = 0
        for starts, counts in grid.tiles(first, last):
            self.check()
            b = self.reader.box(
                target.unit, far(target.start, starts, one_or_more(target.steps)), counts,
                one_or_more(target.steps), there,
            )  # fmt: skip
            if source is None:
                constant = _constant(piece, job)
                a = np.broadcast_to(constant, (*counts, *constant.shape))
            else:
                steps = one_or_more(source.steps)
                a = self.reader.box(
                    source.unit, far(source.start, starts, steps), counts, steps, here
                )
            if job.claim.values or not self._same_view(a, b):
                self._tell(job, a, b, piece, starts, counts)
            n_compared += int(np.prod(counts, dtype=np.int64))
        with job.lock:
            job.n_compared += n_compared

    def compare_band(self, job: Job, first: int, last: int) -> None:
        """The elements `first` to `last` of the target, with the stretches that they come from.

        Pieces whose sources lie too far from each other are compared one by one.
        """
        layout = job.claim.layout
        assert layout is not None
        by_leaf: dict[str | None, list[Piece]] = {}
        for piece in layout.pieces:
            if piece.dst < last and piece.last >= first:
                steps = [loop.dst for loop in piece.loops]
                found = restrict(piece, piece.dst, steps, first, last)
                by_leaf.setdefault(piece.leaf, []).extend(found)
        b = self.fill(job.target, first, last, self.rooms[1])
        far_apart: list[Piece] = []
        for name, pieces in by_leaf.items():
            if name is None or not self._compare_near(job, job.leaves[name], pieces, b, first):
                far_apart += pieces
        if far_apart:
            rest = replace(job.claim, layout=Layout(layout.shape, tuple(far_apart)))
            for group in visits(rest, job.leaves, job.target, job.scheme):
                for moved in group:
                    grid = grid_for(moved, job.target, job.scheme)
                    self.compare_move(job, moved, grid, 0, grid.n_tiles)

    def _compare_near(
        self, job: Job, leaf: Leaf, pieces: list[Piece], b: NDArray[np.uint8], first: int
    ) -> bool:
        """Compares pieces whose sources fit into the buffer together; False if they do not."""
        low = min(p.src + sum(min(0, (m.n - 1) * m.src) for m in p.loops) for p in pieces)
        high = max(p.src + sum(max(0, (m.n - 1) * m.src) for m in p.loops) for p in pieces)
        if (high + 1 - low) * leaf.element.n_bytes > len(self.rooms[0]):
            return False
        a = self.fill(leaf, low, high + 1, self.rooms[0])
        n_compared = 0
        for piece in pieces:
            self.check()
            counts = [loop.n for loop in piece.loops] or [1]
            src = one_or_more(tuple(loop.src for loop in piece.loops))
            dst = one_or_more(tuple(loop.dst for loop in piece.loops))
            expected = view_of(a, leaf.element, piece.src - low, counts, src)
            found = view_of(b, job.target.element, piece.dst - first, counts, dst)
            if job.claim.values or not self._same_view(expected, found):
                self._tell(job, expected, found, piece, [0] * len(counts), counts)
            n_compared += piece.n_elements
        with job.lock:
            job.n_compared += n_compared
        return True

    # --- what is the same

    def _same(self, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
        """Whether two stretches of bytes are the same."""
        n = len(a) // 8
        flags = self.flags[:n]
        np.not_equal(a[: n * 8].view(np.uint64), b[: n * 8].view(np.uint64), out=flags)
        return not flags.any() and a[n * 8 :].tobytes() == b[n * 8 :].tobytes()

    def _same_view(self, a: Words, b: Words) -> bool:
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        flags = self.flags[: a.size].reshape(a.shape) if a.size <= len(self.flags) else None
        return not np.not_equal(a, b, out=flags).any()

    def _tell_flat(
        self, job: Job, a: NDArray[np.uint8], b: NDArray[np.uint8], at: int, name: str
    ) -> None:
        word, n_words = words_of(job.target.element)
        shape = (-1,) if n_words == 1 else (-1, n_words)
        whole = Piece(name, at, at, (Loop(len(a) // job.target.element.n_bytes, 1, 1),))
        a_words, b_words = a.view(word).reshape(shape), b.view(word).reshape(shape)
        self._tell(job, a_words, b_words, whole, [0], [len(a_words)])

    def _tell(
        self,
        job: Job,
        a: Words,
        b: Words,
        piece: Piece,
        starts: Sequence[int],
        counts: Sequence[int],
    ) -> None:
        """Moves values, compares slab by slab, and gives what differs to the tally."""
        grid = inner_grid(counts, max(1, SLAB // job.expands))
        for inner, extents in grid.tiles(0, grid.n_tiles):
            cut = tuple(slice(s, s + n) for s, n in zip(inner, extents, strict=True))
            n = int(np.prod(extents, dtype=np.int64))
            expected, found = flat_words(a[cut], n), flat_words(b[cut], n)
            for value in job.claim.values:
                expected = value.apply(expected)
            if job.expands > 1:
                found = found.reshape(-1).view(expected.dtype)
            if expected.dtype == found.dtype and np.array_equal(expected, found):
                continue
            first = [s + t for s, t in zip(starts, inner, strict=True)]
            with job.lock:
                if job.tally is None:
                    job.tally = Tally(job.leaf.element, job.claim.equality)
                job.tally.add(expected, found, _Where(piece, first, extents, job.expands))

    def check(self) -> None:
        """Ends the work if the run is over.

        Raises: Stopped
        """
        if self.stop.is_set():
            raise Stopped

    def checksum(self, record: Record) -> None:
        """Reads a record of a container and compares its checksum.

        Raises: InputError if it is not what the container says.
        """
        crc32, hashed = 0, sha256()
        room = self.rooms[0]
        for at in range(0, record.n_bytes, len(room)):
            self.check()
            out = room[: min(len(room), record.n_bytes - at)]
            self.files.read(record.file, record.offset + at, out)
            if record.sha256:
                hashed.update(out.data)
            else:
                crc32 = zlib.crc32(out.data, crc32)
        expected = record.sha256 or f"{record.crc32:08x}"
        found = hashed.hexdigest() if record.sha256 else f"{crc32:08x}"
        if found != expected:
            named = ", ".join(record.leaves[:3]) or "no leaf"
            raise InputError(
                f"{record.file} (bytes {record.offset} to {record.offset + record.n_bytes}, "
                f"{named}): expected {record.algorithm} {expected}, got {found}",
                hint="copy the file again; the bytes on this disk are damaged",
            )


class _Where:
    """Finds the element of a slab: on the target, the source leaf, and on the source."""

    def __init__(
        self, piece: Piece, first: Sequence[int], counts: Sequence[int], expands: int
    ) -> None:
        self.piece, self.first, self.counts, self.expands = piece, first, counts, expands

    def __call__(self, i: int) -> tuple[int, str, int]:
        i, in_block = divmod(i, self.expands)
        dst, src = self.piece.dst, self.piece.src
        loops = self.piece.loops or (Loop(1, 0, 0),)
        for loop, first, n in zip(
            reversed(loops), reversed(self.first), reversed(self.counts), strict=True
        ):
            i, at = divmod(i, n)
            dst += (first + at) * loop.dst
            src += (first + at) * loop.src
        return dst * self.expands + in_block, self.piece.leaf or "", src


class _Hashing:
    """Digests of both sides on the way; as long as a block is the same, it is hashed once."""

    def __init__(self, job: Job, first: int) -> None:
        self.job = job
        self.is_on = job.target_blocks is not None
        self.target = sha256()
        self.source = self.target

    def add(self, a: NDArray[np.uint8], b: NDArray[np.uint8], same: bool) -> None:
        """Takes the next bytes of both sides."""
        if not self.is_on:
            return
        if not same and self.source is self.target:
            self.source = self.target.copy()
        self.target.update(b.data)
        if self.source is not self.target:
            self.source.update(a.data)

    def end_block(self, at: int, per_block: int, n_elements: int) -> None:
        """Notes the digests where a block ends."""
        if not self.is_on or (at % per_block and at != n_elements):
            return
        i = 32 * ((at - 1) // per_block)
        for blocks, digest in (
            (self.job.target_blocks, self.target), (self.job.source_blocks, self.source)
        ):  # fmt: skip
            if blocks is not None:
                blocks[i : i + 32] = digest.digest()
        self.target = self.source = sha256()


def _constant(piece: Piece, job: Job) -> Words:
    """One element, of the type that value moves begin with: the words of it, or one alone."""
    element = job.claim.values[0].source if job.claim.values else job.leaf.element
    word, n_words = words_of(element)
    found: Words = np.frombuffer(piece.fill, word)
    return found if n_words > 1 else found.reshape(())
