"""Nested trees to named arrays and back, and Orbax checkpoints of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from conversions.conversion import Array, Tensors


def flat(tree: Any, at: str = "") -> Tensors:
    """Arrays by path; steps are apart by `/`, and `[0]` is a place in a list."""
    if isinstance(tree, dict):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, (list, tuple)):
        items = [(f"[{i}]", value) for i, value in enumerate(tree)]
    else:
        return {} if tree is None else {at: np.asarray(tree)}
    return {
        name: a
        for key, value in items
        for name, a in flat(value, f"{at}/{key}" if at else key).items()
    }


def nested(tensors: Tensors) -> Any:
    """The tree that `flat` came from, with lists where the steps are places."""
    if set(tensors) == {""}:
        return tensors[""]
    inner: dict[str, Tensors] = {}
    for name, a in tensors.items():
        key, _, rest = name.partition("/")
        inner.setdefault(key, {})[rest] = a
    if all(re.fullmatch(r"\[\d+\]", key) for key in inner):
        last = max(int(key[1:-1]) for key in inner)
        return [nested(inner[f"[{i}]"]) if f"[{i}]" in inner else None for i in range(last + 1)]
    return {key: nested(part) for key, part in inner.items()}


def save_orbax(tree: Any, path: Path) -> Path:
    """A checkpoint as Orbax's StandardCheckpointer writes it."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.resolve(), tree)
    return path


def restore_orbax(path: Path) -> Any:
    """All of a checkpoint in the shape in which it lies there."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path.resolve())


def write_orbax(tensors: Tensors, path: Path) -> Path:
    """A checkpoint of named arrays."""
    return save_orbax(nested(tensors), path)


def transposed(a: Array) -> Array:
    """The last two axes exchanged."""
    return np.ascontiguousarray(np.swapaxes(a, -1, -2))
