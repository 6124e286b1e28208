"""A copy of a checkpoint with other elements in it: names, shapes, types, side files stay.

Elements are written where the locator says that they lie, so that whatever wrote the checkpoint
is not needed, and each type that it can list it can write.
"""

from __future__ import annotations

import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import EnvironmentLacks, InputError
from lockstep.formats.leaf import Extent, Leaf, Parts

_CHUNK = 1 << 20
_HAS_DESCRIPTOR = 8  # a flag: the CRC-32 stands behind the data
_DESCRIPTOR = b"PK\x07\x08"


@runtime_checkable
class Rewritable(Protocol):
    """Chunks that can be written over, all of a leaf at once."""

    def rewrite(self, words: NDArray[Any]) -> None:
        """Writes the elements, given flat in C order.  Raises: InputError if it cannot."""


def copy_checkpoint(path: Path, folder: Path) -> Path:
    """A copy under the same name in a folder, links followed, records of archives unpacked.

    Raises: InputError if it cannot be read; EnvironmentLacks if the disk refuses.
    """
    copy = folder / (path.name or "checkpoint")
    try:
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copyfile(path, copy)
    except (shutil.Error, OSError) as error:
        if not path.exists() or not os.access(path, os.R_OK):
            raise InputError(
                f"{path}: cannot be read: {error}", hint="check the path and its permissions"
            ) from error
        raise EnvironmentLacks(
            f"{copy}: expected to write it, got: {error}", hint="check free space and permissions"
        ) from error
    for file in _files(copy):
        os.chmod(file, 0o644)
        if zipfile.is_zipfile(file):
            _unpack_records(file)
    return copy


def why_not_writable(leaf: Leaf) -> str:
    """Why elements of a leaf cannot be written where they lie; "" if they can."""
    if leaf.value:
        return "it is a value, not an array"
    if not isinstance(leaf.storage, Extent | Parts | Rewritable):
        return "its elements lie among other values, where none can be written over"
    return ""


def overwrite(leaf: Leaf, words: NDArray[np.unsignedinteger]) -> None:
    """Writes the elements of a leaf, given flat in C order, one word for each.

    Raises: EnvironmentLacks if the disk refuses.
    """
    grid = np.asarray(words).reshape(leaf.grid_shape)
    if isinstance(leaf.storage, Extent):
        _write(leaf.storage, grid)
    elif isinstance(leaf.storage, Rewritable):
        leaf.storage.rewrite(np.ascontiguousarray(words))
    elif isinstance(leaf.storage, Parts):
        for part in leaf.storage.parts:
            box = tuple(slice(a, a + n) for a, n in zip(part.start, part.shape, strict=True))
            _write(part.extent, grid[box])


def _write(extent: Extent, block: NDArray[np.unsignedinteger]) -> None:
    if not block.size:
        return
    n = block.dtype.itemsize
    dtype = block.dtype.newbyteorder(">" if extent.big_endian else "<")
    strides = None if extent.strides is None else tuple(step * n for step in extent.strides)
    try:
        memory = np.memmap(extent.file, np.uint8, "r+")
    except OSError as error:
        raise EnvironmentLacks(
            f"{extent.file}: expected to write it, got: {error.strerror}",
            hint="check free space and permissions",
        ) from error
    place = np.ndarray(block.shape, dtype, memory, extent.offset, strides)
    place[...] = block
    memory.flush()


def renew_checksums(copy: Path) -> None:
    """Makes the CRC-32 of every record of the zip archives true again.

    Raises: InputError if an archive is damaged.
    """
    for file in _files(copy):
        if zipfile.is_zipfile(file):
            with file.open("r+b") as handle:
                _renew(handle)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(p for p in path.rglob("*") if p.is_file())
    else:
        yield path


def _unpack_records(file: Path) -> None:
    """Writes an archive again with its records as they are, if one of them is compressed."""
    with zipfile.ZipFile(file) as packed:
        if all(entry.compress_type == zipfile.ZIP_STORED for entry in packed.infolist()):
            return
        temporary = file.with_name(f".{file.name}.unpacked")
        with zipfile.ZipFile(temporary, "w") as plain:
            for entry in packed.infolist():
                with packed.open(entry) as source, plain.open(entry.filename, "w") as target:
                    shutil.copyfileobj(source, target, _CHUNK)
    temporary.replace(file)


def _renew(handle: IO[bytes]) -> None:
    with zipfile.ZipFile(handle) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        at = archive.start_dir
    places = {}
    for _ in entries:
        head = _at(handle, at, 46)
        n_name, n_extra, n_comment = struct.unpack("<3H", head[28:34])
        places[_at(handle, at + 46, n_name)] = at + 16
        at += 46 + n_name + n_extra + n_comment
    for entry in entries:
        local = _at(handle, entry.header_offset, 30)
        n_name, n_extra = struct.unpack("<2H", local[26:30])
        name = _at(handle, entry.header_offset + 30, n_name)
        start = entry.header_offset + 30 + n_name + n_extra
        crc = struct.pack("<L", _crc32(handle, start, entry.file_size))
        _put(handle, places[name], crc)
        if local[14:18] != bytes(4):
            _put(handle, entry.header_offset + 14, crc)
        behind = start + entry.file_size
        if entry.flag_bits & _HAS_DESCRIPTOR:
            signed = _at(handle, behind, 4) == _DESCRIPTOR
            _put(handle, behind + 4 * signed, crc)


def _crc32(handle: IO[bytes], start: int, n_bytes: int) -> int:
    crc = 0
    handle.seek(start)
    while n_bytes > 0 and (data := handle.read(min(_CHUNK, n_bytes))):
        crc, n_bytes = zlib.crc32(data, crc), n_bytes - len(data)
    return crc


def _at(handle: IO[bytes], offset: int, n_bytes: int) -> bytes:
    handle.seek(offset)
    return handle.read(n_bytes)


def _put(handle: IO[bytes], offset: int, data: bytes) -> None:
    handle.seek(offset)
    handle.write(data)
