"""The process that renders: it limits itself, then turns SVG into PNG until its input ends.

Request: two big-endian words, length and size, then the SVG. Answer: a byte that is 1 for a PNG
and 0 for a reason, a word with the length, then that.
"""

from __future__ import annotations

import resource
import struct
import sys
from typing import BinaryIO

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 5


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_next_request() -> None:
    """Allows the next request some more seconds; past them the kernel ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _render(svg: bytes, size: int) -> tuple[bool, bytes]:
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg.decode("utf-8"), width=size, height=size, skip_system_fonts=True
        )
    except (ValueError, MemoryError) as error:
        return False, f"{type(error).__name__}: {error}".encode()
    return True, bytes(png)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers requests until there are no more."""
    _limit_memory()
    while header := requests.read(8):
        length, size = struct.unpack(">II", header)
        svg = requests.read(length)
        _limit_next_request()
        drawn, data = _render(svg, size)
        answers.write(struct.pack(">?I", drawn, len(data)) + data)
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
