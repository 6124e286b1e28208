"""The tree of an Orbax checkpoint: typed paths from `_METADATA`, and the keys of their arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from lockstep.errors import InputError
from lockstep.formats.leaf import Attribute, Index, Key, LeafPath, Step, path_text

_SEQUENCE, _DICT = 1, 2
_MAX_DEPTH = 256
_NO_KEY = ("None", "Dict", "List", "Tuple", "NamedTuple")  # empty: nothing is stored under a key
_KINDS = (*_NO_KEY, "np.ndarray", "jax.Array", "scalar", "string")
_VALUE_KEYS = {"value_type", "skip_deserialize", "write_shape"}


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One leaf: its path, the key that it is stored under, and the writer's word for its type."""

    path: LeafPath
    physical: str
    kind: str


def read_tree(document: dict[str, Any], where: str) -> list[TreeEntry]:
    """Every leaf that the tree lists.

    Raises: InputError if the tree is damaged, a key leads out of the checkpoint, or two paths have
    the same key, so that one of the two arrays was lost when they were written.
    """
    tree = document.get("tree_metadata")
    if not isinstance(tree, dict):
        raise _wrong(where, "tree_metadata: expected an object", tree)
    rich = _rich_tree(document.get("value_metadata_tree"), where)
    entries = [_entry(text, found, rich, where) for text, found in tree.items()]
    owner: dict[str, TreeEntry] = {}
    for entry in entries:
        if entry.kind in _NO_KEY:
            continue
        other = owner.setdefault(entry.physical, entry)
        if other is not entry:
            raise InputError(
                f"{where}: expected a key for each leaf, got {entry.physical!r:.200} for both "
                f"{path_text(other.path)} and {path_text(entry.path)}",
                hint="rename one in the program that saves them: one of the two was overwritten",
            )
    return entries


def _entry(text: str, found: Any, rich: Any, where: str) -> TreeEntry:
    if not isinstance(found, dict):
        raise _wrong(where, f"{text:.120}: expected an object", found)
    keys, value = found.get("key_metadata"), found.get("value_metadata")
    if not isinstance(keys, list) or not 0 < len(keys) <= _MAX_DEPTH:
        raise _wrong(where, f"{text:.120}: key_metadata: expected the steps of a path", keys)
    value = value if isinstance(value, dict) else {}
    kind = value.get("value_type")
    if kind not in _KINDS:
        expected = f"value_type: expected one of {', '.join(_KINDS)}"
        raise _wrong(where, f"{text:.120}: {expected}", kind)
    if unknown := value.keys() - _VALUE_KEYS:
        expected = f"value_metadata: expected only {', '.join(sorted(_VALUE_KEYS))}"
        raise _wrong(where, f"{text:.120}: {expected}", min(unknown))
    names = []
    steps: list[Step] = []
    for key in keys:
        name = key.get("key") if isinstance(key, dict) else None
        if not isinstance(name, str):
            raise _wrong(where, f"{text:.120}: key: expected a text", name)
        names.append(name)
        step, rich = _step(name, key.get("key_type"), rich, f"{where}: {text:.120}")
        steps.append(step)
    if str(tuple(names)) != text:
        raise _wrong(where, f"{text:.120}: expected key_metadata to spell that path", names)
    return TreeEntry(tuple(steps), _physical(names, where), kind)


def _step(name: str, kind: Any, rich: Any, where: str) -> tuple[Step, Any]:
    """A step, and the part of the rich tree below it."""
    if kind == _SEQUENCE:
        if not (name.isascii() and name.isdigit()):
            raise _wrong(where, "key: expected an index", name)
        return Index(int(name)), _below(rich, name)
    if kind != _DICT:
        raise _wrong(where, f"key_type: expected {_SEQUENCE} or {_DICT}", kind)
    is_field = isinstance(rich, dict) and rich.get("category") == "namedtuple"
    return (Attribute(name) if is_field else Key(name)), _below(rich, name)


def _below(rich: Any, name: str) -> Any:
    """The child of a node of the rich tree, or None."""
    if isinstance(rich, list):
        return rich[int(name)] if name.isdigit() and int(name) < len(rich) else None
    if not isinstance(rich, dict):
        return None
    entries = rich.get("entries")
    if rich.get("category") == "namedtuple" and isinstance(entries, list):
        found = [e for e in entries if isinstance(e, dict) and e.get("key") == name]
        return found[0].get("value") if found else None
    if rich.get("category") == "custom" and isinstance(entries, list):
        return _below(entries, name)
    return rich.get(name)


def _rich_tree(found: Any, where: str) -> Any:
    """The tree that tells fields of named tuples from keys, where the writer kept one."""
    if found is None:
        return None
    try:
        return json.loads(found) if isinstance(found, str) else found
    except (ValueError, RecursionError) as error:
        raise _wrong(where, "value_metadata_tree: expected JSON", str(error)) from error


def _physical(names: list[str], where: str) -> str:
    """The key that arrays are stored under: the names of the path with dots between."""
    physical = ".".join(names)
    parts = physical.replace("\\", "/").split("/")
    if physical.startswith("/") or "\0" in physical or any(p in ("", ".", "..") for p in parts):
        raise InputError(
            f"{where}: expected a key inside the checkpoint, got {physical!r:.200}",
            hint="choose a checkpoint from a source that you trust",
        )
    return physical


def _wrong(where: str, what: str, found: Any) -> InputError:
    return InputError(
        f"{where}: {what}, got {found!r:.120}", hint="restore the checkpoint from a copy"
    )
