"""Checkpoints of Orbax: a tree in `_METADATA`, arrays in zarr, under OCDBT or in folders.

Nothing of JAX is imported: tensorstore reads OCDBT, and the rest is read here.
Source: orbax-checkpoint 0.12, metadata/tree.py; google/orbax#924 and #1484 for unmerged databases.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lockstep.errors import InputError
from lockstep.formats.json_text import read_json_object
from lockstep.formats.leaf import (
    ElementType,
    FileIdentity,
    Held,
    Leaf,
    LeafPath,
    Name,
    Store,
    collect,
    path_text,
)
from lockstep.formats.locate.bounded import real
from lockstep.formats.locate.keyed_bytes import Folder, KeyedBytes, Ocdbt, list_files
from lockstep.formats.locate.orbax_tree import TreeEntry, read_tree
from lockstep.formats.locate.zarr import array_leaf, checksum_notes, keys_of, read_arrays

_TREE_FILE, _MANIFEST = "_METADATA", "manifest.ocdbt"
_MARKERS = ("_CHECKPOINT_METADATA", "commit_success.txt")
_ZEROS_NOTE = (
    "chunks that are missing read as zeros: the older Orbax that wrote this left those out, and a "
    "loss would look the same"
)
_UNFINISHED = ".orbax-checkpoint-tmp"


def locate(path: Path) -> Store:
    """The leaves of one item of one step.

    Raises: InputError if the checkpoint is damaged or unfinished, or the path holds several;
    EnvironmentLacks if tensorstore is needed and not installed.
    """
    item = _find_item(path)
    files = list_files(item)  # refuses links that lead out
    source = _open_arrays(item)
    arrays = read_arrays(source)
    entries, facts, zeros_left_out = _entries(item)
    _check_version(item, facts, [found.version for found in arrays.values()])
    keys = keys_of(arrays, source.all_keys())

    def array(where: LeafPath, prefix: str) -> Leaf:
        return array_leaf(where, arrays[prefix], source, prefix, keys[prefix], zeros_left_out)

    leaves = []
    for entry in entries:
        leaf = _value_leaf(item, entry)
        if leaf is None and f"{entry.physical}/" not in arrays:
            raise InputError(
                f"{item}: {path_text(entry.path)}: expected an array under "
                f"{entry.physical!r:.200}, got none",
                hint="restore the checkpoint from a copy; a part of it is missing",
            )
        leaves.append(leaf or array(entry.path, f"{entry.physical}/"))
    listed = {leaf.physical for leaf in leaves}
    extra = [prefix for prefix in arrays if prefix.rstrip("/") not in listed]
    leaves += [array((Name(prefix.rstrip("/")),), prefix) for prefix in extra]
    if not leaves:
        raise InputError(f"{item}: expected leaves, got none",
                         hint="give the directory of a checkpoint that holds arrays")  # fmt: skip
    notes = _beside(path, item)
    if entries and extra:
        notes.append(f"{len(extra)} arrays are not in {_TREE_FILE}: listed by their keys")
    if zeros_left_out and any(found.fills_zero for found in arrays.values()):
        notes.append(_ZEROS_NOTE)
    if isinstance(source, Ocdbt) and source.duplicates:
        notes.append(f"{len(source.duplicates)} keys are in several databases: the first was read")
    return Store(
        where=str(path),
        format="orbax",
        leaves=collect(leaves, str(path)),
        files=tuple(FileIdentity.of(file) for file in files),
        facts=facts,
        notes=(*notes, *checksum_notes(leaves)),
    )


def _find_item(path: Path) -> Path:
    """The directory that holds one tree: the path, or the only one below it.

    Raises: InputError listing what there is if that is not exactly one.
    """
    if not path.is_dir():
        raise InputError(f"{path}: expected a checkpoint directory, got a file or nothing",
                         hint="check the path")  # fmt: skip
    item = path
    for _ in range(3):  # a root of steps, a step, an item
        if _UNFINISHED in item.name:
            raise InputError(
                f"{item}: expected a finished checkpoint, got one that was being written",
                hint="choose an older step",
            )
        if (item / _TREE_FILE).is_file() or (item / _MANIFEST).is_file() or _processes(item):
            return item
        below = _candidates(item)
        if len(below) != 1:
            raise InputError(
                f"{item}: expected one tree of arrays, got {len(below)}"
                + (f": {', '.join(p.name for p in below[:12])}" if below else ""),
                hint=f"give the path of one of them, such as {below[-1]}"
                if below
                else "give the directory of one checkpoint of Orbax, with its _METADATA",
            )
        if below[0].is_symlink() and not real(below[0]).is_relative_to(real(path)):
            raise InputError(f"{below[0]}: expected a directory, got a link to somewhere else",
                             hint="give the path that it leads to")  # fmt: skip
        item = below[0]
    raise InputError(f"{path}: expected {_TREE_FILE} at most two folders below, got none",
                     hint="give the directory of one checkpoint of Orbax")  # fmt: skip


def _beside(path: Path, item: Path) -> list[str]:
    """Says which item was chosen, and what lies beside it and was not read."""
    if item == path:
        return []
    other = sorted(p.name for p in item.parent.iterdir() if p.is_dir() and p != item)
    return [f"read {item.relative_to(path)}"] + [f"{name} beside it was not read" for name in other]


def _processes(item: Path) -> list[Path]:
    return sorted(p for p in item.glob("ocdbt.process_*") if (p / _MANIFEST).is_file())


def _candidates(path: Path) -> list[Path]:
    """Items with a tree, else steps: folders whose name ends with a number."""
    folders = sorted(p for p in path.iterdir() if p.is_dir() and _UNFINISHED not in p.name)
    items = [p for p in folders if (p / _TREE_FILE).is_file() or (p / _MANIFEST).is_file()]
    if items:
        return items
    steps = [p for p in folders if any((p / marker).exists() for marker in _MARKERS)]
    steps = steps or [p for p in folders if p.name.rpartition("_")[2].isdigit()]
    return sorted(steps, key=lambda p: (len(p.name), p.name))


def _open_arrays(item: Path) -> KeyedBytes:
    if (item / _MANIFEST).is_file():
        return Ocdbt([item], str(item))
    databases = _processes(item)
    if databases:
        return Ocdbt(databases, str(item))
    return Folder(item)


def _entries(item: Path) -> tuple[list[TreeEntry], dict[str, object], bool]:
    """The tree in `_METADATA`, what else it says, and whether chunks of zeros may be left out.

    An older checkpoint may have none.
    """
    if not (item / _TREE_FILE).is_file():
        return [], {}, False
    document = read_json_object(item / _TREE_FILE)
    entries = read_tree(document, str(item / _TREE_FILE))
    facts = {
        name: document[name]
        for name in ("use_ocdbt", "use_zarr3", "custom_metadata")
        if document.get(name) is not None
    }
    if kinds := _random_keys(item):
        facts["random_keys"] = kinds
    return entries, facts, not document.get("store_array_data_equal_to_fill_value")


def _check_version(item: Path, facts: dict[str, object], versions: list[int]) -> None:
    """Insists that the tree says the zarr that its arrays are; older ones say nothing for zarr 2.

    Raises: InputError if it does not.
    """
    said = 3 if facts.get("use_zarr3") is True else 2
    if (item / _TREE_FILE).is_file() and any(version != said for version in versions):
        raise InputError(
            f"{item / _TREE_FILE}: expected use_zarr3 to say what the arrays are, got "
            f"{facts.get('use_zarr3')!r:.80} for zarr {5 - said}",
            hint="restore the checkpoint from a copy",
        )


def _random_keys(item: Path) -> dict[str, str]:
    """The generator of each typed key of random numbers, which its array does not tell."""
    found: dict[str, str] = {}
    for file in sorted((item / "array_metadatas").glob("process_*")):
        rows = read_json_object(file).get("array_metadatas")
        for row in rows if isinstance(rows, list) else []:
            array = row.get("array_metadata") if isinstance(row, dict) else None
            more = array.get("ext_metadata") if isinstance(array, dict) else None
            if isinstance(array, dict) and isinstance(more, dict) and "random_key_impl" in more:
                found[str(array.get("param_name"))] = str(more["random_key_impl"])
    return found


_EMPTY: dict[str, tuple[str, Any]] = {
    "None": ("none", None),
    "Dict": ("dict", {}),
    "List": ("list", []),
    "Tuple": ("tuple", []),
    "NamedTuple": ("tuple", []),
}


def _value_leaf(item: Path, entry: TreeEntry) -> Leaf | None:
    """A leaf that is no array; None for one that is."""
    if entry.kind in _EMPTY:
        kind, value = _EMPTY[entry.kind]
    elif entry.kind == "string":
        kind, value = "str", _string(item, entry)
    else:
        return None
    physical = entry.physical if kind == "str" else ""
    return Leaf(entry.path, (), ElementType(kind, 0), Held(b""), (value,), physical)


def _string(item: Path, entry: TreeEntry) -> str:
    strings = read_json_object(item / "_strings.json")
    found = strings.get(entry.physical)
    if not isinstance(found, str):
        raise InputError(
            f"{item / '_strings.json'}: {path_text(entry.path)}: expected a string, "
            f"got {found!r:.80}",
            hint="restore the checkpoint from a copy",
        )
    return found
