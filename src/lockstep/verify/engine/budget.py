"""The budget of memory: what the process holds, what is left to work with, and where work is done.

A budget is about the peak of the whole process. What the interpreter and the listings hold when the
work begins is subtracted first, then a reserve for results, then a scratch for each worker.
"""

from __future__ import annotations

import mmap
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import BudgetError

MIB = 1 << 20
RESERVE = 4 * MIB  # imports that come late, stacks of threads, slack of the allocator
PER_LEAF = 2048  # of either side: rows of the report, digests, states of the work
PER_LEAF_WRITTEN = 6144  # when the report is written, and all workers have given their memory back
SCRATCH = 3 * MIB  # per worker, outside its arena: temporaries of value moves and of tallies
SMALLEST_ARENA = MIB + MIB // 2


@dataclass(frozen=True, slots=True)
class Memory:
    """What the process holds now and has held at most.  Units: bytes; None is not known here."""

    now: int | None
    peak: int | None
    anonymous: int | None


def memory_now() -> Memory:
    """The memory of this process, from the kernel."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return Memory(None, _peak_from_usage(), None)
    sizes = {
        key: int(value.split()[0]) * 1024
        for key, _, value in (line.partition(":") for line in lines)
        if key in ("VmRSS", "VmHWM", "RssAnon")
    }
    return Memory(sizes.get("VmRSS"), sizes.get("VmHWM"), sizes.get("RssAnon"))


def _peak_from_usage() -> int | None:
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True, slots=True)
class Budget:
    """How many workers there are, and the bytes that the arena of each may grow to.

    `base` is what the process held, with the reserves, so that `base` and the arenas are the peak.
    `least` is the peak that it comes to whatever the work is, with the report that is written.
    """

    total: int
    least: int
    base: int
    n_workers: int
    arena: int

    @property
    def alone(self) -> int:
        """The arena of a worker that has all to itself."""
        return self.total - self.base - SCRATCH


def divide(total: int, jobs: int, n_leaves: int) -> Budget:
    """Divides what is left of the budget among as many workers as it feeds, at most `jobs`.

    Raises: BudgetError if it does not feed one.
    """
    held = memory_now()
    base = max(held.now or 0, 0) + RESERVE + PER_LEAF * n_leaves
    least = max(held.peak or 0, base + (PER_LEAF_WRITTEN - PER_LEAF) * n_leaves)
    needed = max(least, base + SMALLEST_ARENA + SCRATCH)
    if needed > total:
        raise BudgetError(
            f"--max-memory: expected at least {needed / MIB:.0f} MiB, of which the program and the "
            f"listings of {n_leaves} leaves take {base / MIB:.0f}, got {total / MIB:.0f} MiB",
            hint=f"allow --max-memory {-(-needed // MIB) + 1}MiB or more",
        )
    n = min(max(1, jobs), (total - base) // (SMALLEST_ARENA + SCRATCH))
    usable = min(total, _physical_memory())  # more than there is would only be mapped in vain
    return Budget(total, least, base, n, max(SMALLEST_ARENA, (usable - base) // n - SCRATCH))


def roomy() -> int:
    """1 GiB, or, in a process that has held much already, as much beside that."""
    held = memory_now()
    most = max(held.peak or 0, held.now or 0)
    return 1024 * MIB + (most if most > 256 * MIB else 0)


def n_processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


class Arena:
    """Memory of one worker, handed out from the front; pages that were never written cost nothing.

    `used` is how far it was written at most.
    """

    def __init__(self, n_bytes: int) -> None:
        size = max(n_bytes, mmap.PAGESIZE)
        if sys.platform == "win32":
            self._map = mmap.mmap(-1, size)
        else:  # shared memory, the default, is given back to no system by madvise
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
            self._map = mmap.mmap(-1, size, flags=flags)
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self.n_bytes = n_bytes
        self._next = 0
        self.used = 0

    def take(self, n_bytes: int) -> NDArray[np.uint8]:
        """The next bytes, from a multiple of 64 on.

        Raises: BudgetError if there are not as many; a prediction was wrong then.
        """
        start, stop = self._next, self._next + n_bytes
        if stop > self.n_bytes:
            raise BudgetError(
                f"arena: expected at most {self.n_bytes} bytes, got a need of {stop}",
                hint="allow more with --max-memory, and report this: it was not predicted",
            )
        self._next = -(-stop // 64) * 64
        self.used = max(self.used, stop)
        return self._bytes[start:stop]

    def clear(self) -> None:
        """Takes all back."""
        self._next = 0

    def give_back(self) -> None:
        """Takes all back and returns the pages to the system."""
        self._next = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
