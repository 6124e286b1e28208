"""Directories of zarr 2 and zarr 3: arrays in nested groups, one or more files for each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

from lockstep.errors import InputError
from lockstep.formats.json_text import parse_json_object
from lockstep.formats.leaf import (
    Extent,
    FileIdentity,
    Held,
    Key,
    Leaf,
    LeafPath,
    Part,
    Parts,
    Storage,
    Store,
    collect,
)
from lockstep.formats.locate.keyed_bytes import Folder, KeyedBytes
from lockstep.formats.locate.tensor_chunks import chunks_of
from lockstep.formats.locate.zarr_metadata import ZarrArray, parse_zarr

_METADATA_FILES = (".zarray", "zarr.json")
_MAX_METADATA_BYTES = 16 << 20


def locate(path: Path) -> Store:
    """The arrays of a zarr directory.

    Raises: InputError if it is none, is damaged, or holds what cannot be read.
    """
    if not path.is_dir():
        raise InputError(f"{path}: expected a zarr directory, got a file or nothing",
                         hint="check the path")  # fmt: skip
    folder = Folder(path)
    arrays = read_arrays(folder)
    if not arrays:
        raise InputError(
            f"{path}: expected arrays of zarr, got no .zarray and no array in a zarr.json",
            hint="give the directory that holds the arrays",
        )
    keys = keys_of(arrays, folder.all_keys())
    leaves = [
        array_leaf(_path_of(prefix), array, folder, prefix, keys[prefix])
        for prefix, array in arrays.items()
    ]
    return Store(
        where=str(path),
        format="zarr",
        leaves=collect(leaves, str(path)),
        files=tuple(FileIdentity.of(file) for file in folder.files),
        facts={"zarr_format": sorted({array.version for array in arrays.values()})},
        notes=checksum_notes(leaves),
    )


def _path_of(prefix: str) -> LeafPath:
    """The groups above an array and its name; an array without a group is just `array`."""
    return tuple(Key(name) for name in prefix.strip("/").split("/")) if prefix else (Key("array"),)


def read_arrays(source: KeyedBytes) -> dict[str, ZarrArray]:
    """Every array by the beginning of its keys, which ends with `/` or is empty.

    Raises: InputError if a description is damaged.
    """
    found: dict[str, ZarrArray] = {}
    for key in source.all_keys():
        folder, _, name = key.rpartition("/")
        if name not in _METADATA_FILES:
            continue
        where = f"{source.where}: {key}"
        if isinstance(source, Folder) and source.size(key) > _MAX_METADATA_BYTES:
            raise InputError(f"{where}: expected at most {_MAX_METADATA_BYTES} bytes of JSON",
                             hint="write the checkpoint again")  # fmt: skip
        document = parse_json_object(source.read(key), where)
        if name == "zarr.json" and document.get("node_type") == "group":
            continue
        prefix = f"{folder}/" if folder else ""
        if prefix in found:
            raise InputError(
                f"{where}: expected one description of an array, got .zarray and zarr.json",
                hint="remove the older of the two",
            )
        found[prefix] = parse_zarr(document, where)
    return found


def keys_of(arrays: Mapping[str, ZarrArray], keys: Iterable[str]) -> dict[str, set[str]]:
    """The keys of each array's chunks, below its own."""
    found: dict[str, set[str]] = {prefix: set() for prefix in arrays}
    for key in keys:
        prefix = key
        while prefix:
            prefix = prefix.rstrip("/").rpartition("/")[0]
            prefix += "/" if prefix else ""
            if prefix in arrays:
                found[prefix].add(key[len(prefix) :])
                break
    return found


def array_leaf(
    path: LeafPath,
    array: ZarrArray,
    source: KeyedBytes,
    prefix: str,
    keys: set[str],
    zeros_left_out: bool = False,
) -> Leaf:
    """One array as a leaf; with `zeros_left_out` its writer did not store chunks of zeros.

    Raises: InputError naming the leaf and the chunk if one is missing or cut off.
    """
    leaf = Leaf(path, array.shape, array.element, Held(b""), physical=prefix.rstrip("/"))
    may_lack = zeros_left_out and array.fills_zero and not array.unusual
    missing = None if may_lack else array.first_missing(keys)
    if missing is not None:
        raise InputError(
            f"{source.where}: {leaf.name}: expected a chunk {missing}, got none",
            hint="restore the checkpoint from a copy; if its writer left out chunks of zeros, "
            "write it again with all of them (write_empty_chunks in zarr)",
        )
    storage = _storage(array, source, prefix, leaf.name, keys if may_lack else None)
    return replace(leaf, storage=storage, checksum=_checksum(array))


def _storage(
    array: ZarrArray, source: KeyedBytes, prefix: str, name: str, present: set[str] | None
) -> Storage:
    if math.prod(array.shape) == 0:
        return Held(b"")
    plain = array.compressor == "none" and not array.unusual and array.shard is None
    # An extent turns whole elements; a complex number is two that are turned each.
    plain = plain and not (array.big_endian and array.element.name in ("C64", "C128"))
    if plain and present is None and isinstance(source, Folder):
        return _files(array, source, prefix, name)
    return chunks_of(array, source, prefix, name, present)


def _checksum(array: ZarrArray) -> str:
    if array.unusual:
        return "crc32c" if array.unusual == "crc32c" else ""
    if array.compressor == "zstd":
        return "xxh64" if array.frame_checked else ""
    return {"gzip": "crc32", "zlib": "adler32"}.get(array.compressor, "")


def _files(array: ZarrArray, folder: Folder, prefix: str, name: str) -> Storage:
    """Chunks that are files as they stand: bytes that can be read anywhere."""
    parts = []
    for index in product(*(range(n) for n in array.grid)):
        key = prefix + array.key(index)
        if folder.size(key) != array.chunk_bytes:
            raise InputError(
                f"{folder.where}: {name}: {key}: expected {array.chunk_bytes} bytes, "
                f"got {folder.size(key)}",
                hint="restore the checkpoint from a copy; this one is damaged or was cut off",
            )
        start = tuple(i * c for i, c in zip(index, array.chunk, strict=True))
        shape = tuple(
            min(c, n - at) for c, n, at in zip(array.chunk, array.shape, start, strict=True)
        )
        strides = _strides(array)
        extent = Extent(folder.root / key, 0, strides, array.big_endian)
        parts.append(Part(start, shape, extent))
    if len(parts) == 1:
        return parts[0].extent
    return Parts(tuple(parts))


def _strides(array: ZarrArray) -> tuple[int, ...]:
    """Elements from one to the next along each axis of a stored chunk."""
    sizes = array.chunk if array.fortran else array.chunk[::-1]
    strides = [math.prod(sizes[:i]) for i in range(len(sizes))]
    return tuple(strides if array.fortran else strides[::-1])


def checksum_notes(leaves: Iterable[Leaf]) -> tuple[str, ...]:
    """How many arrays a flipped bit could change without a trace."""
    arrays = [leaf for leaf in leaves if not leaf.value]
    bare = sum(not leaf.checksum for leaf in arrays)
    if not bare:
        return ()
    return (f"{bare} of {len(arrays)} arrays have no checksum: only a comparison finds damage",)
