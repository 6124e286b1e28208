"""What the machine can do, measured: multiply-adds on registers, beside reads of memory.

`python bench/peak.py` prints them for one and two threads: the best of many short runs, which is
what the machine does when nothing else runs, and their median.
"""

from __future__ import annotations

import ctypes
import re
import statistics
from functools import cache
from pathlib import Path

from lockstep.native import compile_library
from lockstep.native.read_rate import read_rates
from lockstep.ops import VECTOR_HEADER

STEPS = 300_000  # a millisecond
READS = 15


@cache
def library() -> ctypes.CDLL:
    """The loops, compiled."""
    loops = re.sub(r'#include "[^"]*"\n', "", Path(__file__).with_suffix(".c").read_text())
    loaded = ctypes.CDLL(str(compile_library(f"{VECTOR_HEADER}\n{loops}")))
    for name in ("peak_f32", "peak_i8", "peak_i16"):
        getattr(loaded, name).argtypes = (ctypes.c_int64, ctypes.c_int)
        getattr(loaded, name).restype = ctypes.c_double
    return loaded


def peaks(kind: str, threads: int, repeats: int = 200) -> list[float]:
    """Rates of multiply-adds, in 10^9 operations (two each) per second; kind is f32, i8 or i16."""
    peak = getattr(library(), f"peak_{kind}")
    return [peak(STEPS, threads) for _ in range(repeats)]


def fp32_peak_gflops(threads: int) -> float:
    """The best of many short runs on this many threads, in GFLOP/s."""
    return max(peaks("f32", threads))


def main() -> None:
    """Prints the table."""
    print("| | 1 thread | 2 threads |\n|---|---|---|")
    rows = {
        f"{kind} multiply-adds, GOP/s": [peaks(kind, threads) for threads in (1, 2)]
        for kind in ("f32", "i8", "i16")
    }
    rows["reads, huge pages, GB/s"] = [
        [rate / 1e9 for rate in read_rates(threads, READS)] for threads in (1, 2)
    ]
    for name, columns in rows.items():
        cells = [f"{max(c):.1f} (median {statistics.median(c):.1f})" for c in columns]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
