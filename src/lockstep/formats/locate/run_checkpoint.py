"""Checkpoints of our own runs: parameters in weights.bump, moments beside them, state.json."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from lockstep.errors import InputError
from lockstep.formats.json_text import parse_json_object, read_json_object
from lockstep.formats.leaf import (
    ELEMENT_TYPES,
    ElementType,
    Extent,
    FileIdentity,
    Held,
    Index,
    Key,
    Leaf,
    LeafPath,
    Record,
    Store,
    collect,
)
from lockstep.formats.locate.bounded import inside, opened, real
from lockstep.formats.locate.safetensors import read_header

_STATE, _WEIGHTS, _MOMENTS = "state.json", "weights.bump", "moments.safetensors"
_MANIFEST = "weights_manifest.json"
_STATE_SCHEMA, _MANIFEST_SCHEMA = "lockstep.checkpoint/1", "lockstep.weights_manifest/1"
_MAGIC, _FOOTER_MAGIC = b"BUMPWGT5", b"BUMPV5MD"
_FOOTER = struct.Struct("<8sQ32s")
_DATA_START = 128 + 24 + 4  # header, extension, and the count before the table of types
_MAX_META_BYTES = 256 << 20
# Of state.json: what says what the run is, not what it has reached.
_FACTS = (
    "config", "template", "tokenizer_sha256", "dataset_sha256", "files", "created_at", "reason",
)  # fmt: skip
_MEND = "choose another checkpoint of this run; this one is damaged or was changed"


def locate(path: Path) -> Store:
    """The leaves of a run's current checkpoint, of one checkpoint, or of promoted weights.

    Names begin with `parameters/`, `moments/<slot>/` or `state/`.
    Raises: InputError if it is damaged, or there are several and none is current.
    """
    folder = _find_checkpoint(path)
    leaves, files = _parameters(folder)
    facts: dict[str, object] = {}
    if (folder / _STATE).exists():
        state = _read_state(folder / _STATE)
        _check_sizes(folder, state)
        header = read_header(folder / _MOMENTS)
        leaves += [_moment(leaf) for leaf in header.leaves.values()]
        names = (name for name in state if name not in (*_FACTS, "schema", "digest"))
        for name in names:
            leaves += _values((Key("state"), Key(name)), state[name])
        files += [header.identity, FileIdentity.of(folder / _STATE)]
        facts = {name: state[name] for name in _FACTS if name in state}
        records = _records(folder, state["files"], leaves)
        note = "state.json has a SHA-256 of each file, which is checked when it is read"
    else:
        manifest = read_json_object(folder / _MANIFEST)
        files_said = {_WEIGHTS: {"sha256": manifest.get("weights_sha256")}}
        records = _records(folder, files_said, leaves)
        note = f"{_MANIFEST} has the SHA-256 of {_WEIGHTS}, which is checked when it is read"
    return Store(
        where=str(path),
        format="lockstep",
        leaves=collect(leaves, str(folder)),
        files=tuple(files),
        facts=facts,
        records=records,
        notes=(f"read {folder.name}", note) if folder != path else (note,),
    )


def _find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means.

    Raises: InputError listing what there is if it means none.
    """
    if (path / _STATE).exists():
        return path
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = sorted(p for p in root.glob("step_*") if (p / _STATE).is_file())
    current = root / "current"
    if current.is_symlink():
        found = real(current)
        if found not in [real(p) for p in steps]:
            raise InputError(
                f"{current}: expected a link to a checkpoint beside it, got one to {found}",
                hint="name a checkpoint of this run",
            )
        return root / found.name
    if len(steps) == 1:
        return steps[0]
    if not steps and (path / _WEIGHTS).exists():
        return path
    listed = ", ".join(p.name for p in steps[:12])
    raise InputError(
        f"{path}: expected a checkpoint, got {len(steps)}" + (f": {listed}" if steps else ""),
        hint=f"name one of them, such as {steps[-1]}" if steps else "check the path",
    )


def _read_state(path: Path) -> dict[str, Any]:
    """The state, when it is as it was written: its digest covers every other field."""
    state = read_json_object(path)
    if state.get("schema") != _STATE_SCHEMA:
        raise _wrong(path, f"schema {_STATE_SCHEMA!r}", f"{state.get('schema')!r:.80}")
    text = json.dumps({**state, "digest": ""}, sort_keys=True, separators=(",", ":"))
    expected = hashlib.sha256(text.encode()).hexdigest()
    if state.get("digest") != expected:
        raise _wrong(path, f"digest {expected[:16]}…", f"{str(state.get('digest'))[:16]}…")
    return state


def _check_sizes(folder: Path, state: dict[str, Any]) -> None:
    """Insists that the files of the state are there, as long as they were."""
    files = state.get("files")
    if not isinstance(files, dict) or not {_WEIGHTS, _MANIFEST, _MOMENTS} <= files.keys():
        raise _wrong(folder / _STATE, "the hashes of its files", f"{files!r:.120}")
    for name, entry in files.items():
        file = inside(folder, name, str(folder / _STATE))
        n_bytes = entry.get("n_bytes") if isinstance(entry, dict) else None
        found = FileIdentity.of(file).n_bytes
        if found != n_bytes:
            raise _wrong(file, f"the {n_bytes} bytes that were saved", f"{found}")


def _records(folder: Path, files: dict[str, Any], leaves: list[Leaf]) -> tuple[Record, ...]:
    """Each file whole, with its SHA-256 and the leaves that lie in it."""
    found = []
    for name, entry in files.items():
        sha256 = entry.get("sha256")
        if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
            raise _wrong(folder / name, "a SHA-256 of this file", f"{sha256!r:.80}")
        file = folder / name
        inside_it = (leaf.name for leaf in leaves
                     if isinstance(leaf.storage, Extent) and leaf.storage.file == file)  # fmt: skip
        found.append(Record(file, 0, FileIdentity.of(file).n_bytes, 0, tuple(inside_it), sha256))
    return tuple(found)


def _parameters(folder: Path) -> tuple[list[Leaf], list[FileIdentity]]:
    """The leaves of weights.bump, which its manifest and its own footer must agree on."""
    manifest = read_json_object(folder / _MANIFEST)
    where, file = folder / _MANIFEST, folder / _WEIGHTS
    if manifest.get("schema") != _MANIFEST_SCHEMA:
        raise _wrong(where, f"schema {_MANIFEST_SCHEMA!r}", f"{manifest.get('schema')!r:.80}")
    entries = manifest.get("entries")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise _wrong(where, "a list of tensors", f"{entries!r:.120}")
    end = _check_footer(file, entries, manifest.get("weights_bytes"))
    leaves = [_parameter(file, entry, end) for entry in entries]
    spans = sorted((e["offset"], e["offset"] + e["size"], e["name"]) for e in entries)
    for (_, stop, name), (start, _, other) in pairwise(spans):
        if start < stop:
            raise _wrong(where, "bytes of its own for each tensor", f"{name} and {other} with some")
    return leaves, [FileIdentity.of(file), FileIdentity.of(where)]


def _check_footer(file: Path, entries: list[dict[str, Any]], n_expected: Any) -> int:
    """Where the tensors of weights.bump end; its footer must describe the same tensors."""
    with opened(file) as (data, n_bytes):
        if n_bytes != n_expected:
            raise _wrong(file, f"{n_expected} bytes", f"{n_bytes}")
        magic = data.read(8)
        if magic != _MAGIC or n_bytes < _DATA_START + _FOOTER.size:
            raise _wrong(file, f"a file that starts with {_MAGIC.decode()}", f"{magic!r}")
        data.seek(n_bytes - _FOOTER.size)
        footer, n_meta, digest = _FOOTER.unpack(data.read(_FOOTER.size))
        end = n_bytes - _FOOTER.size - int(n_meta)
        if footer != _FOOTER_MAGIC or end < _DATA_START or n_meta > _MAX_META_BYTES:
            raise _wrong(file, "a footer", "none; the file is cut short")
        data.seek(end)
        meta = data.read(n_meta)
    if hashlib.sha256(meta).digest() != digest:
        raise _wrong(file, "the metadata that its footer describes", "others")
    rows = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    hashed = hashlib.sha256(rows.encode()).hexdigest()
    if parse_json_object(meta, str(file)).get("manifest_hash") != hashed:
        raise _wrong(file, "the tensors of its manifest", "others")
    return end


def _parameter(file: Path, entry: dict[str, Any], end: int) -> Leaf:
    name: Any = entry.get("name")
    offset: Any = entry.get("offset")
    size: Any = entry.get("size")
    shape: Any = entry.get("shape")
    right = (
        isinstance(name, str)
        and isinstance(shape, list)
        and all(type(n) is int and n >= 0 for n in [*shape, offset, size])
        and entry.get("dtype") == "fp32"
        and size == 4 * prod(shape)
        and _DATA_START <= offset <= offset + size <= end
    )
    if not right:
        raise _wrong(file, "a float32 tensor inside of the file", f"{entry!r:.200}")
    path = (Key("parameters"), Key(name))
    return Leaf(path, tuple(shape), ELEMENT_TYPES["F32"], Extent(file, offset), physical=name)


def _moment(leaf: Leaf) -> Leaf:
    """`w@m` is the slot m of the parameter w: named so that `like` finds it by its beginning."""
    (step,) = leaf.path
    parameter, at, slot = step.name.rpartition("@") if not isinstance(step, Index) else ("", "", "")
    if not (parameter and at and slot):
        raise InputError(f"{leaf.name:.120}: expected a moment such as w@m, got another name",
                         hint=_MEND)  # fmt: skip
    path = (Key("moments"), Key(slot), Key(parameter))
    return replace(leaf, path=path, physical=leaf.name)


def _values(path: LeafPath, value: Any) -> Iterator[Leaf]:
    """The values in a part of state.json; an empty container is a value too."""
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _values((*path, Key(name)), below)
    elif isinstance(value, list) and value:
        for i, below in enumerate(value):
            yield from _values((*path, Index(i)), below)
    else:
        kind = "none" if value is None else type(value).__name__
        yield Leaf(path, (), ElementType(kind, 0), Held(b""), (value,))


def _wrong(where: Path, expected: str, got: str) -> InputError:
    return InputError(f"{where}: expected {expected}, got {got}", hint=_MEND)
