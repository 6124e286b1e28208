"""What a conversion states that its original contradicts, where no model can be made of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lockstep.engine.source import Source
from lockstep.errors import GateError, InputError, UsageError
from lockstep.families.weight import OtherTensors
from lockstep.formats.gguf import GGUFFile, is_gguf
from lockstep.proof.tolerances import METADATA_FLOAT


def refused_conversion(path: Path, original: Source, error: InputError) -> GateError | None:
    """What makes a file of this original unreadable, where it is a fault of its conversion.

    A file that is damaged, or has what nothing here reads, is none.
    """
    found = list(_misstated(path, original, error))
    if not found and not isinstance(error, OtherTensors):
        return None
    stated = f"{path} states {'; '.join(found)}, and cannot be opened so: " if found else ""
    return GateError(
        f"compare: expected the settings and tensors that the config of {original.where} names: "
        f"{stated}{error.message}",
        hint="convert it again",
    )


def _misstated(path: Path, original: Source, error: InputError) -> Iterator[str]:
    """The keys of a GGUF file whose values are not those of the original, or which it lacks."""
    expected = _expected(original)
    try:
        if not path.is_file() or not is_gguf(path):
            return
        metadata = GGUFFile(path).metadata
    except InputError:
        return
    for key, value in expected.items():
        found = metadata.get(key)
        if found is None and key in error.message:
            yield f"{key}: none, not {value}"
        elif found is not None and not _is_same(found, value):
            yield f"{key}: {found!s:.60}, not {value}"


def _expected(original: Source) -> Mapping[str, object]:
    family, config = original.model.family, original.model.config
    try:
        return {} if family.to_gguf is None else family.to_gguf(config)
    except UsageError:  # it has what GGUF cannot say
        return {}


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=METADATA_FLOAT.value)
    return bool(a == b)
