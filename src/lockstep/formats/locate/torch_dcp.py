"""torch.distributed.checkpoint directories: a pickled index, and one small archive per block."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.errors import InputError
from lockstep.formats.leaf import (
    ElementType,
    Extent,
    FileIdentity,
    Held,
    Index,
    Key,
    Leaf,
    LeafPath,
    Name,
    Part,
    Parts,
    Record,
    Store,
    collect,
    path_text,
)
from lockstep.formats.locate.bounded import opened, shown
from lockstep.formats.locate.torch_tree import Walk
from lockstep.formats.locate.torch_values import DTYPES, Found, size_of, tensor_of
from lockstep.formats.locate.torch_zip import TorchArchive
from lockstep.formats.restricted_pickle import MAX_BYTES, Call, Global, Table, read_pickle

METADATA = ".metadata"
_HOME = "torch.distributed.checkpoint"
_ENCODING = f"{_HOME}.metadata._MEM_FORMAT_ENCODING"
_CLASSES = (
    "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
    "MetadataIndex", "BytesStorageMetadata", "StorageMeta",
)  # fmt: skip
ALLOWED = frozenset(
    {
        *DTYPES, *(f"{_HOME}.metadata.{name}" for name in _CLASSES), _ENCODING, "torch.Size",
        f"{_HOME}.filesystem._StorageInfo", f"{_HOME}._hf_utils._HFStorageInfo",
        "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
        "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
        "torch.serialization._get_layout", "pathlib.PosixPath", "pathlib.WindowsPath",
        "pathlib._local.PosixPath", "pathlib._local.WindowsPath", "torch.complex32",
    }
)  # fmt: skip
MAX_CELLS = 1 << 24  # of the grid that all the cuts of one tensor's blocks make
HINT = "save the checkpoint again, or copy the whole directory"
Block = tuple[tuple[int, ...], tuple[int, ...]]  # where it starts, and its shape


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a data file.  Units: bytes."""

    file: Path
    offset: int
    n_bytes: int


@dataclass(slots=True)
class _Directory:
    """What is gathered while the blocks are opened."""

    root: Path
    files: dict[Path, FileIdentity]
    spans: dict[tuple[str, tuple[int, ...] | None], Span]
    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def archive(self, span: Span, where: str) -> TorchArchive:
        """The archive that lies in a stretch of a data file."""
        with opened(span.file) as (file, _):
            return TorchArchive(span.file, file, span.offset, span.n_bytes, where)

    def span(self, name: str, start: tuple[int, ...] | None) -> Span:
        """Where an entry lies.

        Raises: InputError if the index does not say.
        """
        found = self.spans.get((name, start))
        if found is None:
            raise _wrong(f"{self.root} ({shown(name)})", f"data for its block at {start}", "none")
        return found


def locate(path: Path) -> Store:
    """Lists the leaves of a directory that torch.distributed.checkpoint wrote.

    Raises: InputError if the index is damaged, a block is missing, cut, twice or outside of the
    directory, or blocks do not tile their tensor.
    """
    root = path.parent if path.name == METADATA else path
    index = root / METADATA
    with opened(index) as (file, n_bytes):
        if n_bytes > MAX_BYTES:
            raise _wrong(str(index), f"an index of at most {MAX_BYTES} bytes", f"{n_bytes}")
        parsed = read_pickle(file.read(), str(index), ALLOWED)
    metadata = _fields(parsed, "Metadata", str(index))
    entries = _named(metadata.get("state_dict_metadata"), str(index))
    spans = _spans(root, metadata.get("storage_data"), str(index))
    files = {span.file: FileIdentity.of(span.file) for span in spans.values()}
    directory = _Directory(root, files, spans)
    _check_files(directory)
    paths = _paths(metadata.get("planner_data"), entries, str(index))
    leaves: list[Leaf] = []
    for name, entry in entries.items():
        leaves += _leaves(directory, name, entry, paths[name])
    _check_entries(directory, entries)
    identities = (FileIdentity.of(index), *(files[path] for path in sorted(files)))
    return Store(
        str(root), "dcp", collect(leaves, str(root)), identities,
        records=tuple(directory.records), notes=tuple(dict.fromkeys(directory.notes)),
    )  # fmt: skip


def _fields(value: Any, kind: str, where: str) -> dict[str, Any]:
    """The fields of a record of the index."""
    if not isinstance(value, Call) or value.function.rsplit(".", 1)[-1] != kind:
        raise _wrong(where, f"a record {kind}", type(value).__name__)
    if value.state is None:
        return {}
    return _named(value.state, f"{where}: {kind}")


def _named(value: Any, where: str) -> dict[str, Any]:
    """A dictionary whose keys are texts, each once."""
    if not isinstance(value, Table) or not all(type(key) is str for key, _ in value.pairs):
        raise _wrong(where, "a dictionary with names", type(value).__name__)
    found = dict(value.pairs)
    if len(found) != len(value.pairs):
        raise _wrong(where, "each name once", "one twice")
    return found


def _spans(root: Path, storage: Any, where: str) -> dict[tuple[str, tuple[int, ...] | None], Span]:
    """Where each block lies, by the name of its tensor and its start."""
    if not isinstance(storage, Table):
        raise _wrong(where, "storage_data", type(storage).__name__)
    found: dict[tuple[str, tuple[int, ...] | None], Span] = {}
    places: dict[str, Path] = {}
    for key, info in storage.pairs:
        index = _fields(key, "MetadataIndex", where)
        name, start = index.get("fqn"), index.get("offset")
        if type(name) is not str:
            raise _wrong(where, "a name for each block", type(name).__name__)
        at = f"{where} ({shown(name)})"
        place = _fields(info, "_StorageInfo", at)
        if place.get("transform_descriptors"):
            raise _wrong(at, "bytes as torch.save wrote them", "a transformed (packed) block")
        file, offset, n_bytes = (place.get(k) for k in ("relative_path", "offset", "length"))
        if type(file) is not str or type(offset) is not int or type(n_bytes) is not int:
            raise _wrong(at, "a file, an offset and a length", "something else")
        if offset < 0 or n_bytes < 0:
            raise _wrong(at, "an offset and a length of at least 0", f"{offset}, {n_bytes}")
        if file not in places:
            places[file] = _inside(root, file, at)
        where_from = None if start is None else size_of(start, at)
        if (name, where_from) in found:
            raise _wrong(at, f"one block at {where_from}", "two")
        found[name, where_from] = Span(places[file], offset, n_bytes)
    return found


def _inside(root: Path, file: str, where: str) -> Path:
    """A data file, which must lie inside the checkpoint and be no link out of it."""
    steps = Path(file).parts
    path = root / file
    outside = Path(file).is_absolute() or ".." in steps or not steps or "\0" in file
    if outside or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise _wrong(where, "a file inside the checkpoint", f"{file!r:.200}")
    return path


def _check_files(directory: _Directory) -> None:
    """Every stretch lies inside its file, none on another; what is left over is noted."""
    by_file: dict[Path, list[Span]] = {path: [] for path in directory.files}
    for span in directory.spans.values():
        by_file[span.file].append(span)
    for path, spans in by_file.items():
        end, gaps = 0, 0
        for span in sorted(spans, key=lambda s: (s.offset, s.n_bytes)):
            if span.offset < end:
                raise _wrong(str(path), "blocks that do not overlap", f"two at {span.offset}")
            gaps += span.offset - end
            end = span.offset + span.n_bytes
        n_bytes = directory.files[path].n_bytes
        if end > n_bytes:
            raise _wrong(str(path), f"at least {end} bytes", f"{n_bytes}")
        gaps += n_bytes - end
        if gaps:
            directory.notes.append(f"{path.name}: {gaps} bytes that the index does not name")
    strays = {p.name for p in directory.root.glob("*.distcp")} - {p.name for p in by_file}
    if strays:
        directory.notes.append(f"{len(strays)} data files that the index does not name")


def _check_entries(directory: _Directory, entries: dict[str, Any]) -> None:
    """Notes blocks of tensors that the index does not list."""
    if strays := {name for name, _ in directory.spans} - set(entries):
        raise _wrong(
            f"{directory.root} ({shown(min(strays))})", "a description of each block", "none"
        )


def _paths(planner: Any, entries: dict[str, Any], where: str) -> dict[str, LeafPath]:
    """The path of each entry: what the planner kept of the tree, or else the whole name."""
    known = _named(planner, where) if isinstance(planner, Table) else {}
    kept = {name for name, steps in known.items() if isinstance(steps, tuple)}
    if kept and (odd := kept ^ entries.keys()):
        raise _wrong(f"{where} ({shown(min(odd))})", "a path and a description of each", "one")
    if not entries or not all(isinstance(known.get(name), tuple) for name in entries):
        return {name: (Name(name),) for name in entries}
    found: dict[str, LeafPath] = {}
    for name in entries:
        steps = known[name]
        if not 0 < len(steps) <= 64 or not all(type(step) in (str, int) for step in steps):
            raise _wrong(
                f"{where} ({shown(name)})", "a path of names and numbers", "something else"
            )
        if (spelt := ".".join(map(str, steps))) != name:
            raise _wrong(f"{where} ({shown(name)})", "a path that spells the name", shown(spelt))
        found[name] = tuple(Key(s) if isinstance(s, str) else Index(s) for s in steps)
    return found


def _leaves(directory: _Directory, name: str, entry: Any, path: LeafPath) -> list[Leaf]:
    """The leaf of a tensor, or the leaves of a pickled value."""
    where = f"{directory.root} ({shown(name)})"
    if isinstance(entry, Call) and entry.function.endswith(".BytesStorageMetadata"):
        archive = directory.archive(directory.span(name, None), where)
        walk = Walk(where, archive.find)
        walk.add(archive.content, path)
        directory.notes += walk.notes
        directory.records += archive.checks(walk.leaves)
        return walk.leaves
    fields = _fields(entry, "TensorStorageMetadata", where)
    shape = size_of(fields.get("size"), where)
    element = _element(fields.get("properties"), where)
    blocks = _blocks(fields.get("chunks"), shape, where)
    check_tiling(shape, blocks, where)
    parts = []
    for start, size in blocks:
        if prod(size):
            extent = _block(directory, name, path, (start, size), element)
            parts.append(Part(start, size, extent))
    storage: Held | Extent | Parts = Parts(tuple(parts))
    if not parts:
        storage = Held(b"")
    elif len(parts) == 1:
        storage = parts[0].extent
    return [Leaf(path, shape, element, storage, physical=name, checksum="crc32" if parts else "")]


def _element(properties: Any, where: str) -> ElementType:
    """The type of a tensor, from the properties that the index keeps as a tuple or by name."""
    state = properties.state if isinstance(properties, Call) else None
    first, layout = state[:2] if isinstance(state, tuple) and len(state) > 1 else (None, None)
    if isinstance(state, Table):
        named = _named(state, where)
        first, layout = named.get("dtype"), named.get("layout")
    if isinstance(layout, Call) and layout.arguments != ("torch.strided",):
        raise _wrong(where, "the layout torch.strided", f"{layout.arguments!s:.80}")
    if not isinstance(first, Global) or first.name not in DTYPES:
        raise _wrong(
            where, "a type of whole bytes", first.name if isinstance(first, Global) else "none"
        )
    return DTYPES[first.name]


def _blocks(chunks: Any, shape: tuple[int, ...], where: str) -> list[Block]:
    """Start and shape of each block."""
    if not isinstance(chunks, list):
        raise _wrong(where, "a list of blocks", type(chunks).__name__)
    found = []
    for chunk in chunks:
        fields = _fields(chunk, "ChunkStorageMetadata", where)
        start, size = size_of(fields.get("offsets"), where), size_of(fields.get("sizes"), where)
        if len(start) != len(shape) or len(size) != len(shape):
            raise _wrong(where, f"blocks with {len(shape)} axes", f"one of {size} at {start}")
        found.append((start, size))
    return found


def check_tiling(shape: tuple[int, ...], blocks: list[Block], where: str) -> None:
    """Holds that blocks cover a tensor, each element once.

    Raises: InputError naming the first element that no block or more than one has.
    """
    full = [block for block in blocks if prod(block[1])]
    for start, size in full:
        if any(a + n > axis for a, n, axis in zip(start, size, shape, strict=True)):
            raise _wrong(where, f"blocks inside {shape}", f"one of {size} at {start}")
    cuts = [
        sorted({0, n, *(s[i] for s, _ in full), *(s[i] + z[i] for s, z in full)})
        for i, n in enumerate(shape)
    ]
    n_cells = prod(len(cut) - 1 for cut in cuts)
    if not prod(shape):
        return
    if n_cells > MAX_CELLS:
        raise _wrong(where, f"blocks on a grid of at most {MAX_CELLS} cells", f"{n_cells}")
    n_covers = np.zeros([len(cut) - 1 for cut in cuts], np.uint32)
    places = [{at: i for i, at in enumerate(cut)} for cut in cuts]
    for start, size in full:
        n_covers[
            tuple(slice(p[a], p[a + n]) for p, a, n in zip(places, start, size, strict=True))
        ] += 1
    if bad := np.argwhere(n_covers != 1)[:1].tolist():
        at = tuple(cut[i] for cut, i in zip(cuts, bad[0], strict=True))
        n = int(n_covers[tuple(bad[0])])
        raise _wrong(where, f"each element in one block, as at {at}", f"{n} blocks there")


def _block(
    directory: _Directory, name: str, path: LeafPath, block: Block, element: ElementType
) -> Extent:
    """Where the elements of one block lie."""
    start, size = block
    where = f"{directory.root} ({shown(name)}, block at {start})"
    archive = directory.archive(directory.span(name, start), where)
    if not isinstance(archive.content, Call):
        raise _wrong(where, "a tensor", type(archive.content).__name__)
    found: Found = tensor_of(archive.content, where, archive.find)
    if found.shape != size or found.element != element or not isinstance(found.storage, Extent):
        raise _wrong(where, f"{element}{list(size)}", f"{found.element}{list(found.shape)}")
    record = archive.used[found.key]
    directory.records.append(
        Record(archive.zip.path, record.offset, record.n_bytes, record.crc32, (path_text(path),))
    )
    return found.storage


def _wrong(where: str, expected: str, got: str) -> InputError:
    return InputError(f"{where}: expected {expected}, got {got}", hint=HINT)
