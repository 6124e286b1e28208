"""HDF5 files: datasets in nested groups, read as they are stored; h5py parses the structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from lockstep.errors import InputError
from lockstep.formats.leaf import (
    ElementType,
    Extent,
    FileIdentity,
    Held,
    Key,
    Leaf,
    LeafPath,
    Storage,
    Store,
    collect,
    path_text,
)
from lockstep.formats.locate.hdf5_chunks import (
    HDF5_ERRORS,
    Hdf5Chunks,
    OpenFile,
    box_shape,
    unreadable,
)
from lockstep.formats.locate.hdf5_types import stored_element
from lockstep.formats.locate.keyed_bytes import import_extra
from lockstep.formats.locate.zarr import checksum_notes

_MAX_DEPTH = 64
_MAX_LEAVES = 1 << 20
_MAX_TEXT_BYTES = 16 << 20
_MAX_ATTRIBUTE_BYTES = 1 << 16


def locate(path: Path) -> Store:
    """The datasets of a file.

    Raises: InputError if it is damaged, or a dataset lies in another file or holds no numbers;
    EnvironmentLacks without h5py.
    """
    identity = FileIdentity.of(path)
    h5py = import_extra("h5py", str(path))
    opened = OpenFile(path, h5py)
    try:
        walk = _Walk(h5py, opened, identity.n_bytes)
        leaves = list(walk.group(opened.root(), (), ()))
        facts = {"attributes": walk.attributes} if walk.attributes else {}
    except HDF5_ERRORS as error:
        raise unreadable(str(path), error) from error
    finally:
        opened.close()
    if not leaves:
        raise InputError(f"{path}: expected datasets, got none", hint="check the path")
    _refuse_overlaps(leaves, str(path))
    return Store(
        where=str(path),
        format="hdf5",
        leaves=collect(_shared(leaves), str(path)),
        files=(identity,),
        facts=facts,
        notes=(*walk.notes, *checksum_notes(leaves)),
        closes=(opened.close,),
    )


@dataclass
class _Walk:
    """The groups of one file, from the root down."""

    h5py: Any
    opened: OpenFile
    n_file_bytes: int
    notes: list[str] = field(default_factory=list)
    attributes: dict[str, dict[str, object]] = field(default_factory=dict)
    n_leaves: int = 0

    def group(self, group: Any, path: LeafPath, above: tuple[int, ...]) -> Iterator[Leaf]:
        """The leaves below a group; `above` are the addresses of the groups that it is in."""
        address = self._address(group)
        if address in above or len(path) > _MAX_DEPTH:
            raise self._wrong(path, "expected a tree of groups, got a link back to one above",
                              "remove the link")  # fmt: skip
        self._note_attributes(group, path)
        names = list(group)
        if not names and path:
            yield self._value(path, "dict", {})
        for name in names:
            below = (*path, Key(name))
            self.n_leaves += 1
            if self.n_leaves > _MAX_LEAVES:
                raise self._wrong(below, f"expected at most {_MAX_LEAVES} names, got more",
                                  "remove links to the same groups")  # fmt: skip
            found = self._follow(group, name, below)
            if isinstance(found, self.h5py.Group):
                yield from self.group(found, below, (*above, address))
            elif isinstance(found, self.h5py.Dataset):
                yield self._dataset(found, below)
            else:
                self.notes.append(f"{path_text(below)} is a named type, not a dataset")

    def _follow(self, group: Any, name: str, path: LeafPath) -> Any:
        """What a link leads to, step by step, so that no step leaves the file."""
        for _ in range(_MAX_DEPTH):
            link = group.get(name, getlink=True)
            if isinstance(link, self.h5py.HardLink):
                return group[name]
            if not isinstance(link, self.h5py.SoftLink):
                raise self._wrong(path, "expected data in this file, got a link to another file",
                                  "copy the data into this file")  # fmt: skip
            group = self.opened.root() if link.path.startswith("/") else group
            *folders, name = [part for part in link.path.split("/") if part not in ("", ".")]
            for folder in folders:
                is_hard = isinstance(group.get(folder, getlink=True), self.h5py.HardLink)
                group = group[folder] if is_hard else None
                if not isinstance(group, self.h5py.Group):
                    raise self._wrong(path, f"expected a link to a dataset, got {link.path!r:.120}",
                                      "remove the link")  # fmt: skip
            if group.get(name, getlink=True, default=None) is None:
                raise self._wrong(path, f"expected a link to a dataset, got {link.path!r:.120}",
                                  "remove the link")  # fmt: skip
        raise self._wrong(path, "expected a link to a dataset, got a chain of links",
                          "remove the link")  # fmt: skip

    def _dataset(self, dataset: Any, path: LeafPath) -> Leaf:
        self._note_attributes(dataset, path)
        if dataset.is_virtual or dataset.external:
            raise self._wrong(path, "expected data in this file, got data in another file",
                              "copy the data into this file")  # fmt: skip
        if dataset.shape is None:
            return self._value(path, "empty", str(dataset.dtype))
        if isinstance(dataset.id.get_type(), self.h5py.h5t.TypeStringID):
            return self._strings(dataset, path)
        where = f"{self.opened.path}: {path_text(path)}"
        element, is_big = stored_element(self.h5py, dataset, where)
        shape = tuple(int(n) for n in dataset.shape)
        storage = self._storage(dataset, path, shape, element, is_big)
        return Leaf(
            path, shape, element, storage, shares=f"object at {self._address(dataset)}",
            checksum="fletcher32" if dataset.fletcher32 else "",
        )  # fmt: skip

    def _storage(
        self, dataset: Any, path: LeafPath, shape: tuple[int, ...], element: ElementType, big: bool
    ) -> Storage:
        n_bytes = prod(shape) * element.n_bytes
        if n_bytes == 0:
            return Held(b"")
        allocated = dataset.id.get_space_status() != self.h5py.h5d.SPACE_STATUS_NOT_ALLOCATED
        offset = dataset.id.get_offset() if allocated else None
        contiguous = dataset.id.get_create_plist().get_layout() == self.h5py.h5d.CONTIGUOUS
        turned_by_half = big and element.name in ("C64", "C128")  # which no extent does
        if contiguous and offset is not None and not turned_by_half:
            if offset + n_bytes > self.n_file_bytes:
                raise self._wrong(
                    path, f"expected bytes {offset} to {offset + n_bytes}, "
                    f"got {self.n_file_bytes} bytes in all", "restore the file from a copy",
                )  # fmt: skip
            return Extent(self.opened.path, offset, big_endian=big)
        self._check_filters(dataset, path)
        unwritten = (contiguous and offset is None) or self._lacks_chunks(dataset, shape)
        if unwritten:
            self.notes.append(
                f"{path_text(path)} was not wholly written: the rest reads as its fill value"
            )
        chunk = tuple(dataset.chunks or box_shape(shape, element.n_bytes))
        return Hdf5Chunks(self.opened, dataset.name, shape, chunk, element, big)

    def _lacks_chunks(self, dataset: Any, shape: tuple[int, ...]) -> bool:
        if not dataset.chunks:
            return False
        grid = (-(-n // c) for n, c in zip(shape, dataset.chunks, strict=True))
        return bool(dataset.id.get_num_chunks() < prod(grid))

    def _check_filters(self, dataset: Any, path: LeafPath) -> None:
        plan = dataset.id.get_create_plist()
        for i in range(plan.get_nfilters()):
            code, _, _, name = plan.get_filter(i)
            if not self.h5py.h5z.filter_avail(code):
                raise self._wrong(
                    path, f"expected a filter that h5py has, got {code} ({name!r:.60})",
                    "write the dataset again with gzip, or install the plugin of HDF5",
                )  # fmt: skip

    def _strings(self, dataset: Any, path: LeafPath) -> Leaf:
        if prod(dataset.shape) * 8 + dataset.id.get_storage_size() > _MAX_TEXT_BYTES:
            raise self._wrong(path, f"expected at most {_MAX_TEXT_BYTES} bytes of text, got more",
                              "leave this dataset out of the file")  # fmt: skip
        found = dataset[()]
        try:
            value = _as_text(found.tolist() if hasattr(found, "tolist") else found)
        except UnicodeDecodeError as error:
            raise self._wrong(path, "expected text in UTF-8, got other bytes",
                              "store bytes as uint8") from error  # fmt: skip
        return self._value(path, "str" if isinstance(value, str) else "list", value)

    def _value(self, path: LeafPath, kind: str, value: Any) -> Leaf:
        return Leaf(path, (), ElementType(kind, 0), Held(b""), (value,))

    def _note_attributes(self, item: Any, path: LeafPath) -> None:
        found: dict[str, object] = {}
        for name in item.attrs:
            kind = item.attrs.get_id(name)
            if kind.get_storage_size() > _MAX_ATTRIBUTE_BYTES:
                found[name] = f"{kind.get_storage_size()} bytes"
                continue
            try:
                value = item.attrs[name]
                found[name] = _as_text(value.tolist() if hasattr(value, "tolist") else value)
            except HDF5_ERRORS:
                found[name] = "cannot be read"
        if found:
            self.attributes[path_text(path) or "/"] = found

    def _address(self, item: Any) -> int:
        return int(self.h5py.h5o.get_info(item.id).addr)

    def _wrong(self, path: LeafPath, what: str, hint: str) -> InputError:
        return InputError(f"{self.opened.path}: {path_text(path)}: {what}", hint=hint)


def _as_text(value: Any) -> Any:
    """What JSON can hold of a value."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, list | tuple):
        return [_as_text(item) for item in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    return str(value)[:200]


def _shared(leaves: list[Leaf]) -> list[Leaf]:
    """Leaves where only those that are one dataset under several names are said to share."""
    n_names = Counter(leaf.shares for leaf in leaves)
    return [replace(leaf, shares="") if n_names[leaf.shares] == 1 else leaf for leaf in leaves]


def _refuse_overlaps(leaves: list[Leaf], where: str) -> None:
    spans = {
        leaf.shares: (leaf.storage.offset, leaf.storage.offset + leaf.n_bytes, leaf.name)
        for leaf in leaves
        if isinstance(leaf.storage, Extent)
    }
    for (_, stop, name), (start, _, other) in pairwise(sorted(spans.values())):
        if start < stop:
            raise InputError(
                f"{where}: expected bytes of its own for each dataset, got {name} and {other} "
                f"with the same",
                hint="restore the file from a copy",
            )
