"""Zip archives whose records are stored as they are: where the bytes of each record lie."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lockstep.errors import InputError

END, END64, LOCATOR, ENTRY, LOCAL = (
    b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", b"PK\x03\x04",
)  # fmt: skip
DEFLATED = 8  # a method
NEWEST = 63  # version 6.3 of the format, tenfold: the newest that is needed to read an archive
OTHER_FLAGS = 0x2061  # encrypted, a patch, strongly encrypted, a masked header
FOLDER = 0x10  # an attribute
MAX_DIRECTORY_BYTES = 64 << 20
HINT = "write or download the file again; it is cut, padded or damaged"


@dataclass(frozen=True, slots=True)
class ZipRecord:
    """One record, and what it takes up in the file.  Units: offset and lengths in bytes."""

    name: str
    offset: int
    n_bytes: int
    crc32: int
    n_packed: int
    deflated: bool = False


class ZipRecords:
    """The records of an archive that takes up `n_bytes` of a file from `start`."""

    def __init__(
        self,
        path: Path,
        file: IO[bytes],
        start: int,
        n_bytes: int,
        where: str,
        *,
        deflated: bool = False,
    ) -> None:
        """Reads the directory.

        Deflated records are listed only where `deflated` asks for them.
        Raises: InputError if the archive does not fill its place exactly, records overlap, are
        compressed or have one name, or directory and records disagree.
        """
        self.path = path
        self.file = file
        self.start = start
        self.stop = start + n_bytes
        self.where = where
        self._deflated = deflated
        self.records: dict[str, ZipRecord] = {}
        end = start
        directory, n_entries = self._directory()
        for record, begin in sorted(self._entries(directory, n_entries), key=lambda e: e[1]):
            if begin < end:
                raise self.wrong("records that do not overlap", f"{record.name!r:.80} overlapping")
            end = record.offset + record.n_packed
            if end > self._directory_at:
                raise self.wrong(
                    f"{record.name!r:.80} to end before the directory",
                    f"{record.n_bytes} bytes at {record.offset}",
                )
            if record.name in self.records:
                raise self.wrong("each record once", f"{record.name!r:.80} twice")
            self.records[record.name] = record

    def read(self, record: ZipRecord, at_most: int) -> bytes:
        """The bytes of one record, checked.

        Raises: InputError if it is longer than `at_most` or its CRC-32 is another.
        """
        if record.n_bytes > at_most:
            raise self.wrong(f"{record.name} of at most {at_most} bytes", f"{record.n_bytes}")
        if record.deflated:
            raise self.wrong(f"{record.name} stored as it is", "a packed record")
        data = self._read(record.offset, record.n_bytes)
        if zlib.crc32(data) != record.crc32:
            raise self.wrong(f"{record.name} with CRC-32 {record.crc32:08x}", "damaged bytes")
        return data

    def head(self, record: ZipRecord, at_most: int) -> bytes:
        """The first bytes of one record, as they lie in the file and unchecked."""
        return self._read(record.offset, min(at_most, record.n_packed))

    def wrong(self, expected: str, got: str) -> InputError:
        """An error about this archive."""
        return InputError(f"{self.where}: expected {expected}, got {got}", hint=HINT)

    def _read(self, offset: int, n_bytes: int) -> bytes:
        if offset < self.start or offset + n_bytes > self.stop:
            raise self.wrong("all parts inside the archive", f"{n_bytes} bytes at {offset}")
        self.file.seek(offset)
        data = self.file.read(n_bytes)
        if len(data) != n_bytes:
            raise self.wrong(f"{n_bytes} bytes at {offset}", f"{len(data)}")
        return data

    def _directory(self) -> tuple[bytes, int]:
        """The bytes of the directory, which must end where the end records begin."""
        at = self.stop - 22
        if self.stop - self.start < 22 or (end := self._read(at, 22))[:4] != END:
            raise self.wrong("a zip archive up to the last byte", "no end record there")
        disk, first, here, n_entries, n_bytes, offset, comment = struct.unpack("<4H2LH", end[4:])
        if disk or first or comment or here != n_entries:
            raise self.wrong("an archive in one piece with no comment", "another")
        if n_entries == 0xFFFF or 0xFFFFFFFF in (n_bytes, offset) or self._has_locator(at):
            at, n_entries, n_bytes, offset = self._end64(at)
        if n_bytes > MAX_DIRECTORY_BYTES or n_bytes < 46 * n_entries:
            raise self.wrong("a directory that its entries fill", f"{n_bytes} bytes")
        self._directory_at = self.start + offset
        if self._directory_at + n_bytes != at:
            raise self.wrong(f"the directory to end at byte {at}", f"{offset} + {n_bytes} bytes")
        return self._read(self._directory_at, n_bytes), n_entries

    def _has_locator(self, end_at: int) -> bool:
        return end_at - 20 >= self.start and self._read(end_at - 20, 4) == LOCATOR

    def _end64(self, end_at: int) -> tuple[int, int, int, int]:
        """The end record of large archives: its place, entries, directory bytes and offset."""
        locator = self._read(end_at - 20, 20)
        if locator[:4] != LOCATOR:
            raise self.wrong("a zip64 locator", "none")
        disk, place, n_disks = struct.unpack("<LQL", locator[4:])
        at = self.start + int(place)
        if at + 56 != end_at - 20:
            raise self.wrong("the zip64 end record before its locator", f"one at byte {at}")
        record = self._read(at, 56)
        if record[:4] != END64:
            raise self.wrong("a zip64 end record", "none")
        n_rest, _, needs, own, first, here, n_entries, n_bytes, offset = struct.unpack(
            "<Q2H2L4Q", record[4:]
        )
        if n_rest != 44 or needs > NEWEST:
            raise self.wrong("a zip64 end record of version 1", f"{n_rest} bytes for {needs}")
        if disk or own or first or n_disks != 1 or here != n_entries:
            raise self.wrong("an archive in one piece", "a part of one")
        return at, n_entries, n_bytes, offset

    def _entries(self, directory: bytes, n_entries: int) -> list[tuple[ZipRecord, int]]:
        """Each record, and where its local header begins."""
        found: list[tuple[ZipRecord, int]] = []
        at = 0
        for _ in range(n_entries):
            if directory[at : at + 4] != ENTRY or at + 46 > len(directory):
                raise self.wrong(f"{n_entries} entries in the directory", f"{len(found)}")
            (
                needs,
                flags,
                method,
                _,
                _,
                crc32,
                packed,
                size,
                n_name,
                n_extra,
                n_comment,
                disk,
                _,
                attributes,
                local,
            ) = struct.unpack("<5H3L5H2L", directory[at + 6 : at + 46])
            name = _text(directory[at + 46 : at + 46 + n_name])
            extra = directory[at + 46 + n_name : at + 46 + n_name + n_extra]
            at += 46 + n_name + n_extra + n_comment
            size, packed, local = self._wide(extra, size, packed, local)
            deflated = self._deflated and method == DEFLATED
            if attributes & FOLDER:
                raise self.wrong(f"{name!r:.80} as a file", "a directory")
            if needs & 0xFF > NEWEST:
                raise self.wrong(f"{name!r:.80} in a known version of the format", f"{needs}")
            if flags & OTHER_FLAGS or disk or not (deflated or (method == 0 and packed == size)):
                raise self.wrong(
                    f"{name!r:.80} stored as it is" + (" or deflated" if self._deflated else ""),
                    f"a packed or encrypted record (method {method}, flags {flags:#x})",
                )
            begin = self.start + local
            offset = self._data_at(begin, name, method, None if flags & 8 else (crc32, size))
            found.append((ZipRecord(name, offset, size, crc32, packed, deflated), begin))
        if at != len(directory):
            raise self.wrong("nothing after the last entry", f"{len(directory) - at} bytes")
        return found

    def _wide(self, extra: bytes, size: int, packed: int, local: int) -> tuple[int, int, int]:
        """The three numbers, from the zip64 field where they do not fit in 32 bits."""
        numbers = [size, packed, local]
        if 0xFFFFFFFF not in numbers:
            return size, packed, local
        at = 0
        while at + 4 <= len(extra):
            kind, n_bytes = struct.unpack("<2H", extra[at : at + 4])
            if kind == 1:
                raw = extra[at + 4 : at + 4 + n_bytes]
                wide = [int(n) for (n,) in struct.iter_unpack("<Q", raw[: len(raw) // 8 * 8])]
                places = [i for i, n in enumerate(numbers) if n == 0xFFFFFFFF]
                if len(wide) >= len(places):
                    for i, n in zip(places, wide, strict=False):
                        numbers[i] = n
                    return numbers[0], numbers[1], numbers[2]
            at += 4 + n_bytes
        raise self.wrong("the numbers of a large record", "none")

    def _data_at(self, begin: int, name: str, method: int, sums: tuple[int, int] | None) -> int:
        """Where the bytes of a record begin, from its local header, which must agree."""
        header = self._read(begin, 30)
        if header[:4] != LOCAL:
            raise self.wrong(f"a header of {name!r:.80} at byte {begin}", "none")
        n_name, n_extra = struct.unpack("<2H", header[26:30])
        local_method = struct.unpack("<H", header[8:10])[0]
        if local_method != method or _text(self._read(begin + 30, n_name)) != name:
            raise self.wrong(f"the header of {name!r:.80} to agree with the directory", "another")
        crc32, _, size = struct.unpack("<3L", header[14:26])
        if sums and size != 0xFFFFFFFF and sums != (crc32, size):
            raise self.wrong(f"the header of {name!r:.80} to agree with the directory", "another")
        return begin + 30 + int(n_name) + int(n_extra)


def _text(name: bytes) -> str:
    """A name; signs that are not UTF-8 stay apart from each other."""
    return name.decode("utf-8", "backslashreplace")
