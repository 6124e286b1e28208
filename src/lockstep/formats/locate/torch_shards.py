"""`pytorch_model.bin`, alone or in shards with an index, as Hugging Face lays them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lockstep.errors import InputError
from lockstep.formats.json_text import read_json_object
from lockstep.formats.leaf import FileIdentity, Leaf, Record, Store, collect
from lockstep.formats.locate.bounded import inside, shown
from lockstep.formats.locate.safetensors import flat

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
Locate = Callable[[Path], Store]


def locate_directory(root: Path, locate: Locate) -> Store:
    """Lists the one file of a directory, or the shards that its index names.

    Raises: InputError if there is neither or both, or index and shards disagree.
    """
    has_index, has_single = (root / INDEX).exists(), (root / SINGLE).exists()
    if has_index == has_single:
        raise InputError(
            f"{root}: expected {SINGLE} or {INDEX}, got {'both' if has_index else 'neither'}",
            hint="name the file that counts instead of the directory",
        )
    if has_index:
        found = locate_index(root / INDEX, locate)
    else:
        found = replace(locate(inside(root, SINGLE, str(root))), where=str(root))
    config = root / "config.json"
    if not config.exists():
        return found
    return replace(
        found,
        files=(*found.files, FileIdentity.of(config)),
        facts=flat(read_json_object(config)),
    )


def locate_index(index: Path, locate: Locate) -> Store:
    """Lists shards, when the index says of each tensor where it is, and nothing else.

    Raises: InputError if one is missing or damaged, or index and shards disagree.
    """
    identity = FileIdentity.of(index)
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise _differ(index, ["weight_map: no object with tensors"])
    shards = {
        shard: locate(inside(index.parent, shard, str(index)))
        for shard in dict.fromkeys(map(str, places.values()))
    }
    _check(index, places, shards)
    leaves = [_in_shard(leaf, shard) for shard, s in shards.items() for leaf in s.leaves.values()]
    strays = {p.name for p in index.parent.glob("pytorch_model*.bin")} - set(shards)
    notes = [f"{name} lies beside the checkpoint and is no part of it" for name in sorted(strays)]
    records: list[Record] = []
    for shard in shards.values():
        records += shard.records
        notes += [note for note in shard.notes if note not in notes]
    return Store(
        str(index.parent), "torch", collect(leaves, str(index)),
        (identity, *(s.files[0] for s in shards.values())), {}, tuple(records), tuple(notes),
    )  # fmt: skip


def _in_shard(leaf: Leaf, shard: str) -> Leaf:
    """The leaf with the name of its shard where keys are those of one file."""
    return replace(leaf, shares=f"{shard}:{leaf.shares}") if leaf.shares else leaf


def _check(index: Path, places: dict[str, Any], shards: dict[str, Store]) -> None:
    """Index and shards name the same tensors, each once."""
    wrong = []
    for name, shard in places.items():
        if name not in shards[str(shard)].leaves:
            wrong.append(f"{shown(name)} in {shown(str(shard))}: not there")
    for shard, store in shards.items():
        for name in store.leaves:
            if places.get(name) != shard:
                wrong.append(f"{shown(name)} in {shown(shard)}: not so in the index")
    if wrong:
        raise _differ(index, wrong)


def _differ(index: Path, wrong: list[str]) -> InputError:
    listed = "\n  ".join(sorted(wrong)[:20])
    more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
    return InputError(
        f"{index}: expected the tensors that the files hold, they differ in\n  {listed}{more}",
        hint="download the checkpoint again",
    )
