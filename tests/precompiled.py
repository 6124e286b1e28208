"""The intrinsics of GCC as a precompiled header: to read the plain one takes it half a second."""

from __future__ import annotations

import fcntl
import subprocess
from functools import cache
from pathlib import Path

from lockstep.native.compiler import FLAGS

# Programs define _GNU_SOURCE before their first header. Nothing else stands here: a program that
# lacks a header shall not compile. (That intrinsics are included, builds by test_codegen.py show.)
HEADER = """#define _GNU_SOURCE
#ifdef __x86_64__
#include <immintrin.h>
#endif
"""


def with_intrinsics(command: list[str], directory: Path, level: str) -> list[str]:
    """The command of a compiler with the header, made for a level once for all processes.

    It is made for libraries and for programs, of which GCC takes the one that fits the flags. It
    reads the header as text where none does. Other compilers stop there, and their command stays
    as it is.
    """
    if "Free Software Foundation" not in _version(tuple(command)):
        return command
    # A directory for each level: GCC takes one of another, and has crashed on it.
    header = directory / level.strip("-") / "intrinsics.h"
    made = header.with_name("intrinsics.h.gch")
    made.parent.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            header.write_text(HEADER)
            unfinished = made.with_suffix(".unfinished")  # later runs would take what a kill left
            unfinished.mkdir(exist_ok=True)
            for name, left_out in (("library", {"-shared"}), ("program", {"-shared", "-fPIC"})):
                flags = [flag for flag in FLAGS if flag not in left_out]
                output = ["-x", "c-header", str(header), "-o", str(unfinished / name)]
                subprocess.run([*command, *flags, level, *output], check=True)
            unfinished.rename(made)
    return [*command, "-include", str(header)]


@cache
def _version(command: tuple[str, ...]) -> str:
    return subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
