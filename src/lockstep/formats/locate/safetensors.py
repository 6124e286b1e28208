"""safetensors: one file, shards with an index, or a Hugging Face directory; headers only.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.errors import InputError
from lockstep.formats.json_text import parse_json_object, read_json_object
from lockstep.formats.leaf import (
    ELEMENT_TYPES,
    ElementType,
    Extent,
    FileIdentity,
    Leaf,
    Name,
    Store,
    collect,
)
from lockstep.formats.locate.bounded import check_shape, inside, is_writable, opened

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the bound of the safetensors library
NO_CHECKSUM = "safetensors has no checksums: damaged elements show only in the comparison"
_C128 = "C128"  # ours, of NumPy; safetensors has none
TYPES = {name: element for name, element in ELEMENT_TYPES.items() if name != _C128} | {
    "F4": ElementType("F4", 1, 2),
    "F6_E2M3": ElementType("F6_E2M3", 3, 4),
    "F6_E3M2": ElementType("F6_E3M2", 3, 4),
}
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class Header:
    """What one file lists."""

    identity: FileIdentity
    metadata: dict[str, str]
    leaves: dict[str, Leaf]


def locate(path: Path) -> Store:
    """Lists a file, an index with its shards, or a directory.

    Raises: InputError if one is damaged, or index and shards disagree.
    """
    if path.is_dir():
        return _directory(path)
    with opened(path) as (file, _):
        is_index = file.read(1) == b"{"  # as a length it would be beyond the bound
    if is_index:
        return _sharded(path, {})
    header = read_header(path)
    return Store(
        where=str(path),
        format="safetensors",
        leaves=header.leaves,
        files=(header.identity,),
        facts=header.metadata,
        notes=(NO_CHECKSUM,),
    )


def read_header(path: Path) -> Header:
    """The header of one file, and whether it describes each byte of the file exactly once.

    Raises: InputError naming the tensor that is wrong.
    """
    identity = FileIdentity.of(path)
    with opened(path) as (file, size):
        n_header = int.from_bytes(file.read(8), "little")
        if size < 8 or n_header > min(MAX_HEADER_BYTES, size - 8):
            raise _wrong(
                f"{path} (header)",
                f"at most {MAX_HEADER_BYTES} bytes, inside of the file's {size}",
                f"{n_header}",
            )
        text = file.read(n_header)
    if text[:1] != b"{":
        raise _wrong(f"{path} (header)", "a safetensors file with a header in JSON", "none")
    entries = parse_json_object(text, f"{path} (header)")
    metadata = _metadata(entries.pop("__metadata__", {}), f"{path} (__metadata__)")
    data = 8 + n_header
    spans = [(*_span(entry, f"{path} ({name!r:.120})"), name) for name, entry in entries.items()]
    _check_cover(path, sorted(spans), size - data)
    leaves = [_leaf(path, data, name, entry) for name, entry in entries.items()]
    return Header(identity, metadata, collect(leaves, str(path)))


def _metadata(found: object, where: str) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise _wrong(where, "an object of strings", f"{found!r:.80}")
    return found


def _span(entry: object, where: str) -> tuple[int, int]:
    """The place of a tensor behind the header, when its entry has the right form."""
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise _wrong(where, "dtype, shape and data_offsets", f"{entry!r:.80}")
    offsets = entry["data_offsets"]
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _wrong(where, "data_offsets of two whole numbers, first and end", f"{offsets!r:.80}")
    return offsets[0], offsets[1]


def _counts(found: object) -> bool:
    """Whether these are whole numbers that 64 bits hold; true and 1.0 are none."""
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 1 << 64 for n in found)


def _check_cover(path: Path, spans: list[tuple[int, int, str]], n_bytes: int) -> None:
    """Each byte behind the header belongs to one tensor."""
    covered = 0
    for begin, end, name in spans:
        if begin != covered:
            what = "overlaps the one before" if begin < covered else "leaves a gap before it"
            raise _wrong(
                f"{path} ({name!r:.120})", f"data_offsets from {covered}", f"{begin}: it {what}"
            )
        covered = end
    if covered != n_bytes:
        raise _wrong(str(path), f"{covered} bytes of tensors behind the header", f"{n_bytes}")


def _leaf(path: Path, data: int, name: str, entry: dict[str, Any]) -> Leaf:
    where = f"{path} ({name!r:.120})"
    if not is_writable(name):
        raise _wrong(where, "a name of whole signs", "one that UTF-8 cannot hold")
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in TYPES:
        raise _wrong(where, f"a dtype of {', '.join(TYPES)}", f"{dtype!r:.80}")
    if not _counts(shape):
        raise _wrong(where, "a shape of whole numbers", f"{shape!r:.80}")
    check_shape(shape, where)
    element = TYPES[dtype]
    if element.n_numbers > 1 and (not shape or shape[-1] % element.n_numbers):
        raise _wrong(
            where, f"a last axis in units of {element.n_numbers} numbers of {dtype}", f"{shape}"
        )
    leaf = Leaf((Name(name),), tuple(shape), element, Extent(path, data + begin))
    if leaf.n_bytes != end - begin:
        raise _wrong(where, f"{leaf.n_bytes} bytes for {dtype} of shape {shape}", f"{end - begin}")
    return leaf


def _directory(path: Path) -> Store:
    """A directory as Hugging Face lays it out, or one with a single safetensors file."""
    indexes = sorted(p.name for p in path.glob("*.safetensors.index.json"))
    files = sorted(p.name for p in path.glob("*.safetensors"))
    index = INDEX if INDEX in indexes or len(indexes) != 1 else indexes[0]
    has_index, has_single = index in indexes, SINGLE in files
    if has_index and has_single:
        raise InputError(
            f"{path}: expected {index} or {SINGLE}, got both, which may differ",
            hint="name the one that counts instead of the directory",
        )
    facts = flat(read_json_object(path / "config.json")) if (path / "config.json").exists() else {}
    if has_index:
        return _sharded(path / index, facts)
    if not has_single and len(files) != 1:
        raise InputError(
            f"{path}: expected {SINGLE} or {INDEX}, got {', '.join(files)[:400] or 'neither'}",
            hint="name one file instead of the directory",
        )
    header = read_header(inside(path, SINGLE if has_single else files[0], str(path)))
    others = [name for name in files if has_single and name != SINGLE]
    return Store(
        where=str(path),
        format="safetensors",
        leaves=header.leaves,
        files=(header.identity, *_config_identity(path)),
        facts=facts,
        notes=(NO_CHECKSUM, *_stale(others)),
    )


def _sharded(index: Path, facts: dict[str, object]) -> Store:
    """Shards, when the index says of each tensor where it is, and nothing else."""
    root = index.parent
    identity = FileIdentity.of(index)
    named = read_json_object(index)
    places = named.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(
            f"{index} (weight_map): expected an object with tensors, got none",
            hint="download the index again",
        )
    headers: dict[str, Header] = {}
    for shard in dict.fromkeys(map(str, places.values())):
        headers[shard] = read_header(inside(root, shard, str(index)))
    _check_index(index, places, headers)
    others = sorted({p.name for p in root.glob("*.safetensors")} - set(headers))
    leaves = [headers[shard].leaves[name] for name, shard in places.items()]
    total = named.get("metadata", {})
    total = total.get("total_size") if isinstance(total, dict) else None
    held = sum(leaf.n_bytes for leaf in leaves)
    differs = () if total in (None, held) else (f"{index.name}: total_size {total}, not {held}",)
    return Store(
        where=str(root),
        format="safetensors",
        leaves=collect(leaves, str(root)),
        files=(identity, *(h.identity for h in headers.values()), *_config_identity(root)),
        facts=facts,
        notes=(NO_CHECKSUM, *_stale(others), *differs),
    )


def _check_index(index: Path, places: dict[str, Any], headers: dict[str, Header]) -> None:
    """Index and shards name the same tensors, each once.

    Raises: InputError with the list of what differs.
    """
    held: dict[str, list[str]] = {}
    for shard, header in headers.items():
        for name in header.leaves:
            held.setdefault(name, []).append(shard)
    wrong = [f"{n} in {s}: not there" for n, s in places.items() if s not in held.get(n, [])]
    for name, shards in held.items():
        if name not in places:
            wrong.append(f"{name} in {shards[0]}: not in the index")
        elif len(shards) > 1:
            wrong.append(f"{name} in {shards[0]}: in {', '.join(shards[1:])} too")
    if wrong:
        listed = "\n  ".join(sorted(wrong)[:20])
        more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise InputError(
            f"{index}: expected the tensors that the files hold, they differ in\n  {listed}{more}",
            hint="download the checkpoint again",
        )


def _stale(names: list[str]) -> tuple[str, ...]:
    return tuple(f"{name} lies beside the checkpoint and is no part of it" for name in names)


def _config_identity(root: Path) -> tuple[FileIdentity, ...]:
    config = root / "config.json"
    return (FileIdentity.of(config),) if config.exists() else ()


def flat(value: dict[str, Any]) -> dict[str, object]:
    """Nested objects as one, keys joined by dots."""
    facts: dict[str, object] = {}
    waiting = list(reversed(value.items()))  # no recursion: a file may nest a thousand deep
    while waiting:
        key, item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend((f"{key}.{inner}", held) for inner, held in reversed(item.items()))
        else:
            facts[key] = item
    return facts


def _wrong(where: str, expected: str, got: str) -> InputError:
    return InputError(f"{where}: expected {expected}, got {got}", hint="download the file again")
