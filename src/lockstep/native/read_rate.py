"""How fast this machine reads memory: a plain loop over huge pages, the bound of every decode."""

from __future__ import annotations

import ctypes
from importlib.resources import files

from lockstep.native.library import compile_library
from lockstep.native.memory import allocate

BYTES = 512 << 20  # far beyond every cache
READS = 5
_SOURCE = files("lockstep.native").joinpath("read_rate.c").read_text(encoding="utf-8")


def read_rate(threads: int) -> float:
    """The best rate of some reads of 512 MiB, in bytes per second: noise only makes it less.

    Raises: EnvironmentLacks without a compiler, BudgetError without that much memory.
    """
    return max(read_rates(threads, READS))


def read_rates(threads: int, repeats: int) -> list[float]:
    """The rate of each of so many reads of 512 MiB, in bytes per second.

    Raises: EnvironmentLacks without a compiler, BudgetError without that much memory.
    """
    library = ctypes.CDLL(str(compile_library(_SOURCE)))
    library.read_seconds.restype = ctypes.c_double
    memory = allocate(BYTES)
    memory[:] = 1
    address, count = ctypes.c_void_p(memory.ctypes.data), ctypes.c_int64(BYTES)
    return [
        BYTES / library.read_seconds(address, count, ctypes.c_int32(threads))
        for _ in range(repeats)
    ]
