"""`torch.save` before archives: pickles, then each storage as its length and its bytes."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from lockstep.errors import InputError
from lockstep.formats.leaf import FileIdentity, Store, collect
from lockstep.formats.locate.bounded import opened
from lockstep.formats.locate.torch_tree import Walk
from lockstep.formats.locate.torch_values import (
    ALLOWED,
    Place,
    StorageUse,
    storage_use,
)
from lockstep.formats.restricted_pickle import (
    MAX_BYTES,
    Call,
    Persistent,
    Table,
    Window,
    read_pickle,
)

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


def locate(path: Path) -> Store:
    """Lists the leaves of a file that torch wrote without an archive.

    Raises: InputError if it is damaged or holds anything but tensors and plain values.
    """
    identity = FileIdentity.of(path)
    where = str(path)
    with opened(path) as (file, _):
        if file.read(1) != b"\x80":
            raise _wrong(where, "a file of torch.save", "no archive and no pickle")
        file.seek(0)
        window = Window(file, min(MAX_BYTES, identity.n_bytes))
        if read_pickle(window, f"{where} (magic number)", ()) != MAGIC:
            raise _wrong(where, "the magic number of torch.save", "another pickle")
        if read_pickle(window, f"{where} (protocol)", ()) != PROTOCOL:
            raise _wrong(where, f"the protocol {PROTOCOL}", "another")
        big_endian = _big_endian(read_pickle(window, f"{where} (system)", ()), where)
        content = read_pickle(window, f"{where} (pickle)", ALLOWED)
        keys = read_pickle(window, f"{where} (keys)", ())
        uses = _storages(content, where)
        places = _places(path, file, keys, uses, identity.n_bytes, big_endian)
    walk = Walk(where, lambda use, at: _place(places, use, at))
    leaves = walk.add_all(content)
    notes = ("this format has no checksums", *walk.notes)
    return Store(where, "torch", collect(leaves, where), (identity,), notes=notes)


def _big_endian(system: Any, where: str) -> bool:
    pairs = system.pairs if isinstance(system, Table) else []
    for key, value in pairs:
        if key == "little_endian" and type(value) is bool:
            return not value
    raise _wrong(where, "the byte order of the system that wrote it", "none")


def _storages(content: Any, where: str) -> dict[str, StorageUse]:
    """Every storage that the pickle refers to, by key; objects are visited once each."""
    found: dict[str, StorageUse] = {}
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Persistent):
            use = storage_use(value, where)
            if use.view is not None:
                raise _wrong(where, "whole storages", "a view of a storage")
            if found.setdefault(use.key, use) != use:
                raise _wrong(where, f"one length of storage {use.key}", "two")
        if not isinstance(value, list | tuple | Table | Call) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Table):
            waiting.extend(item for _, item in value.pairs)
        elif isinstance(value, Call):
            waiting.extend(value.arguments)
        else:
            waiting.extend(value)
    return found


def _places(
    path: Path,
    file: IO[bytes],
    keys: Any,
    uses: dict[str, StorageUse],
    n_file: int,
    big_endian: bool,
) -> dict[str, Place]:
    """Where each storage lies: they follow each other up to the end of the file."""
    where = str(path)
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise _wrong(where, "a list of the keys of storages", "something else")
    if len(set(keys)) != len(keys) or set(keys) != set(uses):
        raise _wrong(where, f"the keys of the {len(uses)} storages that are used", f"{len(keys)}")
    places = {}
    at = file.tell()
    for key in keys:
        use = uses[key]
        file.seek(at)
        announced = int.from_bytes(file.read(8), "big" if big_endian else "little")
        n_bytes = use.n_elements * (use.element.n_bytes if use.element else 1)
        if announced != use.n_elements or at + 8 + n_bytes > n_file:
            raise _wrong(
                where, f"{use.n_elements} elements of storage {key!r:.60} at byte {at}",
                f"{announced}, and {n_file} bytes in all",
            )  # fmt: skip
        places[key] = Place(path, at + 8, n_bytes, big_endian)
        at += 8 + n_bytes
    if at != n_file:
        raise _wrong(where, f"the file to end at byte {at}", f"{n_file} bytes")
    return places


def _place(places: dict[str, Place], use: StorageUse, where: str) -> Place:
    if use.key not in places:
        raise _wrong(where, "a storage that the file has", "another")
    return places[use.key]


def _wrong(where: str, expected: str, got: str) -> InputError:
    return InputError(
        f"{where}: expected {expected}, got {got}", hint="write or download the file again"
    )
