"""What is to be done, as items that any worker can take; and what has been found."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

from lockstep.formats.leaf import ElementType, Held, Leaf, Record
from lockstep.verify.claim import Claim
from lockstep.verify.digest import block_elements
from lockstep.verify.engine.budget import Budget
from lockstep.verify.engine.places import Move, is_plain
from lockstep.verify.engine.tiles import Grid, Scheme, fitting, grid_for, visits
from lockstep.verify.numbers.differences import Tally
from lockstep.verify.numbers.health import Health

ITEM_BYTES = 32 << 20  # of one side: work of some milliseconds, so that handing it out costs little
_ITEM_MOVES = 256
_MANY, _SHORT_RUN = 24, 4096  # pieces, and bytes, from which on pieces are read together


@dataclass
class Job:
    """A claim that is worked on, and what has been found; workers share it under `lock`.

    Digests of blocks are made on the way where there is room for them. Where a value move makes
    `expands` elements of one, `target` is read in blocks of so many; `leaf` is it as it is.
    """

    claim: Claim
    leaves: Mapping[str, Leaf]
    target: Leaf
    scheme: Scheme
    leaf: Leaf
    expands: int = 1
    target_blocks: bytearray | None = None
    source_blocks: bytearray | None = None
    tally: Tally | None = None
    n_compared: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    n_open: int = 1  # items that are not done; one of them is the handing out
    lock: threading.Lock = field(default_factory=threading.Lock)


def grouped(claim: Claim, target: Leaf) -> Leaf | None:
    """The target in blocks of as many elements as the value moves make of one, or None."""
    n = expansion(claim)
    if n == 1:
        return target
    in_c_order = is_plain(target) or isinstance(target.storage, Held)
    if not in_c_order or not target.shape or target.shape[-1] % n:
        return None
    block = ElementType(target.element.name, n * target.element.n_bytes, n)
    return replace(target, element=block)


def expansion(claim: Claim) -> int:
    """How many elements the value moves make of one."""
    return prod(getattr(value, "expands", 1) for value in claim.values)


def job_of(claim: Claim, leaves: Mapping[str, Leaf], target: Leaf, budget: Budget) -> Job:
    """A claim with how it is worked on.

    Raises: BudgetError if it does not fit.
    """
    blocks = grouped(claim, target)
    assert blocks is not None
    scheme = fitting(claim, list(leaves.values()), blocks, budget)
    return Job(claim, leaves, blocks, scheme, leaf=target, expands=expansion(claim))


@dataclass
class HashJob:
    """A leaf that is read by itself: for its digest, and for what it holds if that is asked."""

    side: str
    leaf: Leaf
    scheme: Scheme
    blocks: bytearray
    health: Health | None = None
    n_open: int = 1
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class InOrder:
    """Elements `first` to `last` of a claim, or of a leaf that is hashed, in C order."""

    job: Job | HashJob
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Moves:
    """Some tiles of moves, or all where the tiles are None."""

    job: Job
    moves: Iterator[Move] | tuple[Move, ...]
    tiles: tuple[Grid, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Band:
    """Elements `first` to `last` of a target of which many small pieces are read together."""

    job: Job
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Sum:
    """A record whose CRC-32 is to be checked."""

    record: Record


Item = InOrder | Moves | Band | Sum


def items_of(job: Job | HashJob) -> Iterator[Item]:
    """What is to be done for a claim or a digest, in parts that may run side by side."""
    if isinstance(job, HashJob):
        yield from _in_order(job, job.leaf)
    elif job.scheme.way in ("plain", "linear"):
        yield from _in_order(job, job.target)
    elif _is_scattered(job):
        step = max(1, job.scheme.room // job.target.element.n_bytes)
        for first in range(0, job.target.n_elements, step):
            yield Band(job, first, min(job.target.n_elements, first + step))
    elif not job.scheme.splits:
        groups = visits(job.claim, job.leaves, job.target, job.scheme)
        yield Moves(job, (moved for group in groups for moved in group))
    elif job.scheme.leader != "neither":
        for group in visits(job.claim, job.leaves, job.target, job.scheme):
            yield Moves(job, group)
    else:
        yield from _in_tiles(job)


def _is_scattered(job: Job) -> bool:
    """Whether there are many pieces of short runs, between leaves that are read at will."""
    pieces = job.claim.layout.pieces if job.claim.layout else ()
    if len(pieces) < _MANY or not all(map(is_plain, (*job.leaves.values(), job.target))):
        return False
    runs = [p.loops[-1].n if p.loops and p.loops[-1].src == 1 else 1 for p in pieces[:_MANY]]
    return sum(runs) * job.target.element.n_bytes < len(runs) * _SHORT_RUN


def _in_order(job: Job | HashJob, leaf: Leaf) -> Iterator[Item]:
    n = leaf.n_elements
    per_block = block_elements(leaf.element)
    n_blocks = max(1, ITEM_BYTES // (per_block * max(1, leaf.element.n_bytes)))
    step = per_block * n_blocks if job.scheme.splits else max(1, n)
    for first in range(0, n, step):
        yield InOrder(job, first, min(n, first + step))


def _in_tiles(job: Job) -> Iterator[Item]:
    """Large moves in parts, small ones together."""
    n_bytes = job.target.element.n_bytes
    few: list[Move] = []
    size = 0
    for group in visits(job.claim, job.leaves, job.target, job.scheme):
        for moved in group:
            here = moved.piece.n_elements * n_bytes
            if here >= ITEM_BYTES:
                grid = grid_for(moved, job.target, job.scheme)
                per_item = max(1, ITEM_BYTES * grid.n_tiles // here)
                for first in range(0, grid.n_tiles, per_item):
                    last = min(grid.n_tiles, first + per_item)
                    yield Moves(job, (moved,), (grid, first, last))
                continue
            few.append(moved)
            size += here
            if size >= ITEM_BYTES or len(few) >= _ITEM_MOVES:
                yield Moves(job, tuple(few))
                few, size = [], 0
    if few:
        yield Moves(job, tuple(few))


class Agenda:
    """The items of all jobs, handed out one at a time; tells when the last of a job is done."""

    def __init__(
        self,
        jobs: Iterator[Job | HashJob | Sum],
        done: Callable[[Job | HashJob], None],
    ) -> None:
        self._items = self._all(jobs)
        self._done = done
        self._lock = threading.Lock()

    def _all(self, jobs: Iterator[Job | HashJob | Sum]) -> Iterator[Item]:
        for job in jobs:
            if isinstance(job, Sum):
                yield job
                continue
            for item in items_of(job):
                with job.lock:
                    job.n_open += 1
                yield item
            self.close(job)

    def next(self) -> Item | None:
        """The next item, or None when there is none left."""
        with self._lock:
            return next(self._items, None)

    def close(self, job: Job | HashJob) -> None:
        """Says that an item of the job is done."""
        with job.lock:
            job.n_open -= 1
            last = job.n_open == 0
        if last:
            self._done(job)
