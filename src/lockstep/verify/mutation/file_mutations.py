"""Mutations of files: cut, overlapping, listed twice, exchanged; on sparse copies without data.

A copy holds what lies between the tensors, which is all that listing it may read; the tensors are
holes. So a copy of a checkpoint of any size takes some kilobytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.errors import LockstepError
from lockstep.formats.leaf import Extent, Leaf, Parts, Store
from lockstep.formats.open_store import open_store
from lockstep.verify.layouts.piece import strides_of

MAX_COPIED = 64 << 20  # bytes that are no tensors
_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class Filed:
    """A mutation of a copy: `spoil` changes it; "" if that could be done, else why not."""

    name: str
    spoil: Callable[[Path], str]


class Skeleton:
    """Sparse copies of one checkpoint."""

    def __init__(self, root: Path, store: Store) -> None:
        self._root, self._store = root.resolve(), store
        self._spans: dict[Path, list[tuple[int, int]]] = {}
        for leaf in store.leaves.values():
            for extent, n_bytes in _extents(leaf):
                if n_bytes:
                    span = (extent.offset, extent.offset + n_bytes)
                    self._spans.setdefault(extent.file.resolve(), []).append(span)
        self.files = [file.path.resolve() for file in store.files]

    @property
    def why_not(self) -> str:
        """Why it cannot be copied, or nothing."""
        inside = self._root if self._root.is_dir() else self._root.parent
        if any(not file.is_relative_to(inside) for file in self.files):
            return "its files lie in several places"
        n_bytes = sum(stop - start for file in self.files for start, stop in self._between(file))
        if n_bytes > MAX_COPIED:
            return "its tensors are packed, so that a copy would not be sparse"
        return ""

    @property
    def is_whole(self) -> bool:
        """Whether a copy has no holes, so that it can be read like the checkpoint."""
        return not self._spans

    def copy(self, directory: Path) -> Path:
        """A copy whose tensors are holes; the path that opens it."""
        inside = self._root if self._root.is_dir() else self._root.parent
        directory.mkdir(parents=True)
        for file in self.files:
            place = directory / file.relative_to(inside)
            place.parent.mkdir(parents=True, exist_ok=True)
            self._copy_file(file, place)
        return directory if self._root.is_dir() else directory / self._root.name

    def end_of_data(self, file: Path) -> int:
        """Where the last tensor of a file ends."""
        return max((stop for _, stop in self._spans.get(file, ())), default=0)

    def largest(self) -> Path:
        """The file with the most bytes."""
        return max(self.files, key=lambda file: file.stat().st_size)

    def place_of(self, file: Path, copy: Path) -> Path:
        """Where a file lies in a copy."""
        inside = self._root if self._root.is_dir() else self._root.parent
        return (copy if copy.is_dir() else copy.parent) / file.relative_to(inside)

    def _between(self, file: Path) -> Iterator[tuple[int, int]]:
        at = 0
        for start, stop in sorted(self._spans.get(file, ())):
            if start > at:
                yield at, start
            at = max(at, stop)
        size = file.stat().st_size
        if size > at:
            yield at, size

    def _copy_file(self, file: Path, place: Path) -> None:
        with file.open("rb") as old, place.open("wb") as new:
            for start, stop in self._between(file):
                for at in range(start, stop, _STEP):
                    old.seek(at)
                    new.seek(at)
                    new.write(old.read(min(_STEP, stop - at)))
            new.truncate(file.stat().st_size)


def _extents(leaf: Leaf) -> Iterator[tuple[Extent, int]]:
    """What of a leaf lies in one stretch; strided bytes are copied with the rest."""
    if isinstance(leaf.storage, Extent):
        if leaf.storage.strides in (None, strides_of(leaf.grid_shape)):
            yield leaf.storage, leaf.n_bytes
    elif isinstance(leaf.storage, Parts):
        for part in leaf.storage.parts:
            n_bytes = leaf.element.n_bytes
            for n in part.shape:
                n_bytes *= n
            if part.extent.strides in (None, strides_of(part.shape)):
                yield part.extent, n_bytes


def refusal_of(path: Path, format: str) -> str:
    """How a spoiled copy is refused; nothing if it is not."""
    try:
        open_store(path, format)
    except LockstepError as error:
        return error.message
    return ""


def file_mutations(skeleton: Skeleton, format: str) -> Iterator[Filed]:
    """Those of every format, then those of safetensors."""
    largest = skeleton.largest()

    def cut(at: Callable[[Path], int]) -> Callable[[Path], str]:
        def spoil(copy: Path) -> str:
            os.truncate(skeleton.place_of(largest, copy), at(largest))
            return ""

        return spoil

    end = skeleton.end_of_data(largest) or largest.stat().st_size
    yield Filed("cut by one byte", cut(lambda file: end - 1))
    yield Filed("cut in the middle", cut(lambda file: file.stat().st_size // 2))
    if len(skeleton.files) > 1:
        yield Filed("a file missing", lambda copy: _removed(skeleton.place_of(largest, copy)))
    if format == "safetensors":
        header = next((f for f in skeleton.files if f.suffix == ".safetensors"), largest)
        for name, spoil in _HEADERS.items():
            yield Filed(name, _at(skeleton, header, spoil))
        for index in [f for f in skeleton.files if f.name.endswith(".index.json")][:1]:
            for name, spoil in _INDEXES.items():
                yield Filed(name, _at(skeleton, index, spoil))


def _at(skeleton: Skeleton, file: Path, spoil: Callable[[Path], str]) -> Callable[[Path], str]:
    return lambda copy: spoil(skeleton.place_of(file, copy))


def _removed(path: Path) -> str:
    path.unlink()
    return ""


# --- safetensors


def _rewritten(path: Path, change: Callable[[dict[str, Any]], str | None]) -> str:
    """Writes a header again, as long as it was or longer, with the holes behind it."""
    with path.open("rb") as file:
        n_header = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(n_header))
    text = change(header)
    if text is None:
        return "the file has too few tensors"
    n_data = path.stat().st_size - 8 - n_header
    encoded = (text or json.dumps(header)).encode()
    with path.open("wb") as file:  # which leaves holes where the tensors are
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + n_data)
    return ""


def _tensors(header: dict[str, Any]) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def _longer(header: dict[str, Any]) -> str | None:
    name = next((n for n in _tensors(header) if header[n]["shape"]), None)
    if name is None:
        return None
    header[name]["shape"][0] += 1
    return ""


def _overlapping(header: dict[str, Any]) -> str | None:
    by_size: dict[int, str] = {}
    for name in _tensors(header):
        start, stop = header[name]["data_offsets"]
        other = by_size.setdefault(stop - start, name)
        if other != name and stop > start:
            header[name]["data_offsets"] = header[other]["data_offsets"]
            return ""
    return None


def _key_twice(header: dict[str, Any]) -> str | None:
    name = next(iter(_tensors(header)), None)
    if name is None:
        return None
    return f"{json.dumps(header)[:-1]}, {json.dumps(name)}: {json.dumps(header[name])}}}"


def _trailing(path: Path) -> str:
    os.truncate(path, path.stat().st_size + 1)
    return ""


_HEADERS: dict[str, Callable[[Path], str]] = {
    "a byte behind the end": _trailing,
    "a shape that does not fit the bytes": lambda path: _rewritten(path, _longer),
    "two tensors on the same bytes": lambda path: _rewritten(path, _overlapping),
    "a key of the header twice": lambda path: _rewritten(path, _key_twice),
}


def _indexed(path: Path, change: Callable[[dict[str, str], list[str]], None]) -> str:
    index = json.loads(path.read_text())
    shards = sorted(set(index["weight_map"].values()))
    if len(shards) < 2:
        return "the index has one shard"
    change(index["weight_map"], shards)
    path.write_text(json.dumps(index))
    return ""


def _other_shard(places: dict[str, str], shards: list[str]) -> None:
    name = next(iter(places))
    places[name] = next(shard for shard in shards if shard != places[name])


def _unlisted(places: dict[str, str], shards: list[str]) -> None:
    del places[next(iter(places))]


def _escaping(places: dict[str, str], shards: list[str]) -> None:
    places[next(iter(places))] = "../outside.safetensors"


def _exchanged(path: Path) -> str:
    shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    if len(shards) < 2:
        return "the index has one shard"
    a, b = (path.parent / shard for shard in shards[:2])
    rest = path.parent / "rest"
    a.rename(rest)
    b.rename(a)
    rest.rename(b)
    return ""


_INDEXES: dict[str, Callable[[Path], str]] = {
    "a tensor in another shard than the index says": lambda path: _indexed(path, _other_shard),
    "a tensor that the index does not have": lambda path: _indexed(path, _unlisted),
    "an index that leads out of the directory": lambda path: _indexed(path, _escaping),
    "two shards under each other's name": _exchanged,
}
