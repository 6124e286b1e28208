"""JSON that other people wrote, read without guessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lockstep.errors import InputError
from lockstep.formats.locate.bounded import opened

MAX_BYTES = 256 << 20  # the largest index of a real checkpoint has some ten megabytes
MAX_PARTS = 1 << 23  # a header of a million tensors has so many; Python needs tens of bytes each


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises: InputError if the file cannot be read, is not an object or has a key twice.
    """
    with opened(path) as (file, size):
        text = file.read(min(size, MAX_BYTES) + 1)
    if len(text) > MAX_BYTES:
        raise InputError(
            f"{path}: expected at most {MAX_BYTES} bytes of JSON, got more",
            hint="check that this is the file you mean",
        )
    return parse_json_object(text, str(path))


def parse_json_object(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object in a text.

    Raises: InputError if it is not an object, has a key twice, or would fill the memory.
    """
    n_parts = max(text.count(b","), text.count(b"[") + text.count(b"{"))
    if n_parts > MAX_PARTS:
        raise InputError(
            f"{where}: expected JSON of at most {MAX_PARTS} parts, got {n_parts}",
            hint="check that this is the file you mean",
        )

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({k for k, _ in pairs}) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: expected JSON, got something else: {error}", hint="download the file again"
        ) from error
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: expected a JSON object, got {type(value).__name__}",
            hint="download the file again",
        )
    return value
