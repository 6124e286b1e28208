"""The manifest: what an emitted program is made of; callables and views come from it alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from lockstep.errors import InputError

SCHEMA = "lockstep.program/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaRecord:
    """One of the memories that a program works on."""

    name: str
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRecord:
    """Where a value lies; `dims` holds the bound of a symbol, `symbols` its name or None."""

    arena: str
    offset: int
    dtype: str
    dims: tuple[int, ...]
    symbols: tuple[str | None, ...]
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A node of the program.

    `line` is that of its function in the C text, `kernel_line` that of its kernel's definition
    there; `kernel_source` says where the kernel was copied from (`ops/linear.c:120`).
    """

    index: int
    id: str
    op: str
    section: str
    covers: tuple[str, ...]
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    line: int
    kernel: str
    instance: str
    kernel_line: int
    kernel_source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Bytes between buffers that no kernel may touch, and the pattern that they hold."""

    arena: str
    offset: int
    n_bytes: int
    pattern: int
    after: str  # the value that lies in front of the guard; empty at the start of an arena


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that is known about a program but its code."""

    name: str
    mode: str
    source_sha256: str
    arenas: tuple[ArenaRecord, ...]
    values: dict[str, ValueRecord]
    nodes: tuple[NodeRecord, ...]
    entries: dict[str, int]
    symbols: dict[str, int]
    outputs: dict[str, str]
    guards: tuple[Guard, ...]

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """Reads the JSON that code generation emits.

        Raises: InputError if it is not a manifest of this schema.
        """
        try:
            raw = json.loads(text)
            if raw.pop("schema") != SCHEMA:
                raise ValueError(f"expected schema {SCHEMA}")
            raw["arenas"] = tuple(ArenaRecord(**a) for a in raw["arenas"])
            raw["values"] = {id: _record(ValueRecord, v) for id, v in raw["values"].items()}
            raw["nodes"] = tuple(_record(NodeRecord, n) for n in raw["nodes"])
            raw["guards"] = tuple(Guard(**g) for g in raw["guards"])
            return cls(**raw)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"manifest: expected schema {SCHEMA}, got: {error}") from error


def _record(kind: Any, raw: dict[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    if set(raw) != known:
        raise ValueError(f"{kind.__name__}: keys {sorted(set(raw) ^ known)} are missing or unknown")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})
