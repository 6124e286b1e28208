"""The registry that every op module fills, and the C source beside a module."""

from __future__ import annotations

from pathlib import Path

from lockstep.ir import Registry

OPS = Registry()


def source(name: str) -> str:
    """The C text of a file in this folder."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
