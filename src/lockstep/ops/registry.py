"""The registry that every op module fills, and the C source beside a module."""

from __future__ import annotations

import re
from pathlib import Path

from lockstep.ir import Registry

OPS = Registry()
FILES: dict[str, str] = {}  # C text -> the file in this folder that it was read from


def source(name: str) -> str:
    """The C text of a file in this folder."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    FILES[text] = name
    return text


# What kernels build on, as one text without includes of its own files.
HEADERS = (
    *("vec.h", "vec_math.h", "mat.h", "attention.h", "attend.h", "attend_row.h"),
    *("gated_delta.h", "vec_dot.h", "panels.h", "quant_block.h", "linear_quant.h"),
)
VECTOR_HEADER = re.sub(r'#include "[^"]*"\n', "", "".join(map(source, HEADERS)))
