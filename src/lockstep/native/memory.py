"""Memory for arenas: zeroed, at a 64-byte boundary, in huge pages where it is large and full."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import BudgetError

Bytes = NDArray[np.uint8]

HUGE_BYTES = 2 << 20
ALIGN_BYTES = 64


def allocate(n_bytes: int, *, sparse: bool = False) -> Bytes:
    """Zeroed memory that stays untouched, and so costs nothing, until it is written.

    `sparse` says that little of it may ever be: then no huge page is filled for a few bytes.

    Raises: BudgetError if the machine has not that much.
    """
    align = HUGE_BYTES if n_bytes >= HUGE_BYTES else ALIGN_BYTES
    try:
        pages = mmap.mmap(-1, n_bytes + align, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise BudgetError(
            f"memory: expected room for {n_bytes} bytes, got none",
            hint="choose a smaller model, a shorter context or a smaller batch",
        ) from error
    advice = getattr(mmap, "MADV_NOHUGEPAGE" if sparse else "MADV_HUGEPAGE", None)
    if n_bytes >= HUGE_BYTES and advice is not None:
        with suppress(OSError):  # a kernel built without huge pages: slower, not wrong
            pages.madvise(advice)
    whole = np.frombuffer(pages, np.uint8)
    start = -whole.ctypes.data % align
    return whole[start : start + n_bytes]
