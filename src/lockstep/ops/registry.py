"""The registry that every op module fills, and the C source beside a module."""

from __future__ import annotations

import re
from pathlib import Path

from lockstep.ir import Registry

OPS = Registry()


def source(name: str) -> str:
    """The C text of a file in this folder."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


# What every kernel's text builds on, as one text without includes of its own files.
VECTOR_HEADER = re.sub(r'#include "[^"]*"\n', "", source("vec.h") + source("vec_math.h"))
