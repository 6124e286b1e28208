"""`torch.save` archives: a pickle that says which tensor views which record, and the records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from lockstep.errors import InputError
from lockstep.formats.leaf import FileIdentity, Leaf, Record, Store, collect
from lockstep.formats.locate import torch_legacy, torch_shards
from lockstep.formats.locate.bounded import opened
from lockstep.formats.locate.torch_tree import Walk
from lockstep.formats.locate.torch_values import ALLOWED, Place, StorageUse
from lockstep.formats.restricted_pickle import MAX_BYTES, read_pickle
from lockstep.formats.zip_records import ZipRecord, ZipRecords


class TorchArchive:
    """One archive of `torch.save`: a whole file, or a stretch of one."""

    def __init__(self, path: Path, file: IO[bytes], start: int, n_bytes: int, where: str) -> None:
        """Reads directory and pickle.

        Raises: InputError if it is no archive of tensors and plain values.
        """
        self.where = where
        self.zip = ZipRecords(path, file, start, n_bytes, where, deflated=True)
        pickles = [name for name in self.zip.records if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise self.zip.wrong("one data.pkl, as torch.save writes", f"{len(pickles)}")
        self.prefix = pickles[0].removesuffix("data.pkl")
        for name in self.zip.records:
            if name.startswith((f"{self.prefix}code/", f"{self.prefix}constants.pkl")):
                raise InputError(
                    f"{where}: expected tensors, got a TorchScript program ({name!r:.80})",
                    hint="save its state_dict() with torch.save",
                )
        order = self._small("byteorder", b"little")
        if order not in (b"little", b"big"):
            raise self.zip.wrong("the byte order little or big", f"{order!r:.40}")
        self.big_endian = order == b"big"
        for name, record in self.zip.records.items():
            if record.n_bytes <= 64 and not name.startswith(f"{self.prefix}data/"):
                self.zip.read(record, 64)  # versions and alignments: nothing else would check them
        self.used: dict[str, ZipRecord] = {}
        data = self.zip.read(self.zip.records[pickles[0]], MAX_BYTES)
        self.content: Any = read_pickle(data, f"{where} (data.pkl)", ALLOWED)

    def _small(self, name: str, otherwise: bytes) -> bytes:
        record = self.zip.records.get(self.prefix + name)
        return self.zip.read(record, 64).strip() if record else otherwise

    def find(self, use: StorageUse, where: str) -> Place:
        """The record of a storage.

        Raises: InputError if there is none.
        """
        if use.view is not None:
            raise InputError(f"{where}: expected a whole storage, got a view of one")
        name = f"data/{use.key}"
        record = self.zip.records.get(self.prefix + name)
        if record is None:
            raise self.zip.wrong(f"a record {name!r:.80}", "none")
        if record.deflated:
            raise self.zip.wrong(f"{name!r:.80} stored as it is", "a packed record")
        self.used[use.key] = record
        return Place(self.zip.path, record.offset, record.n_bytes, self.big_endian)

    def checks(self, leaves: list[Leaf]) -> tuple[Record, ...]:
        """The CRC-32 of each record that a leaf lies in."""
        names: dict[str, list[str]] = {key: [] for key in self.used}
        for leaf in leaves:
            if leaf.physical in names:
                names[leaf.physical].append(leaf.name)
        return tuple(
            Record(self.zip.path, record.offset, record.n_bytes, record.crc32, tuple(names[key]))
            for key, record in self.used.items()
        )

    def unused(self) -> list[str]:
        """The records of storages that nothing refers to."""
        start = f"{self.prefix}data/"
        return [
            name for name in self.zip.records
            if name.startswith(start) and name.removeprefix(start) not in self.used
        ]  # fmt: skip


def locate(path: Path) -> Store:
    """Lists a file of either kind that torch writes, or a directory or an index of shards.

    Raises: InputError if it is damaged or holds anything but tensors and plain values.
    """
    if path.is_dir():
        return torch_shards.locate_directory(path, _locate_file)
    with opened(path) as (file, _):
        if file.read(1) == b"{":
            return torch_shards.locate_index(path, _locate_file)
    return _locate_file(path)


def _locate_file(path: Path) -> Store:
    """Lists one `.pt`, `.pth` or `.bin` file."""
    with opened(path) as (file, _):
        if file.read(4) != b"PK\x03\x04":
            return torch_legacy.locate(path)
        return _list(path, file, FileIdentity.of(path))


def _list(path: Path, file: IO[bytes], identity: FileIdentity) -> Store:
    archive = TorchArchive(path, file, 0, identity.n_bytes, str(path))
    walk = Walk(str(path), archive.find)
    leaves = [
        replace(leaf, checksum="crc32") if leaf.physical in archive.used else leaf
        for leaf in walk.add_all(archive.content)
    ]
    notes = list(walk.notes)
    if unused := [name for name in archive.unused() if archive.zip.records[name].n_bytes]:
        notes.append(f"{len(unused)} storages that no tensor refers to: {unused[0]!r:.80}")
    return Store(
        str(path), "torch", collect(leaves, str(path)), (identity,),
        records=archive.checks(leaves), notes=tuple(notes),
    )  # fmt: skip
