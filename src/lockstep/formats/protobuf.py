"""The wire format of protocol buffers, walked field by field without reading what is skipped.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from lockstep.errors import InputError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_FIELDS = 4_000_000  # of all messages of a file together
HINT = "download or write the file again"


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its number and wire type, its value if a varint, and where its bytes lie."""

    number: int
    wire: int
    value: int
    start: int
    stop: int


class Walker:
    """Walks the messages of one file."""

    def __init__(self, file: IO[bytes], n_bytes: int, where: str) -> None:
        self.file = file
        self.n_bytes = n_bytes
        self.where = where
        self.left = MAX_FIELDS
        self.at = -1

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """The fields of the message between two places of the file.

        Raises: InputError if a field does not fit in its message, or there are too many.
        """
        at = start
        while at < stop:
            self.left -= 1
            if self.left < 0:
                raise self.wrong(at, f"at most {MAX_FIELDS} fields", "more")
            tag, at = self.varint(at, stop)
            number, wire = tag >> 3, tag & 7
            value = 0
            begin = at
            if wire == VARINT:
                value, at = self.varint(at, stop)
            elif wire == BYTES:
                length, begin = self.varint(at, stop)
                at = begin + length
            elif wire in (FIXED32, FIXED64):
                at += 4 if wire == FIXED32 else 8
            else:
                raise self.wrong(at, "a wire type of protocol buffers", f"{wire}")
            if number < 1 or number >= 1 << 29 or at > stop:
                raise self.wrong(begin, f"a field that ends by byte {stop}", f"{number} to {at}")
            yield Field(number, wire, value, begin, at)

    def varint(self, at: int, stop: int) -> tuple[int, int]:
        """An unsigned number of at most 64 bits, and where it ends."""
        value = 0
        raw = self.bytes(at, min(at + 10, stop))
        for i, byte in enumerate(raw):
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at + i + 1
        raise self.wrong(at, "a number of at most 10 bytes", "one without an end")

    def numbers(self, field: Field) -> Iterator[int]:
        """The varints of a field, packed or single."""
        if field.wire == VARINT:
            yield field.value
            return
        at = field.start
        while at < field.stop:
            value, at = self.varint(at, field.stop)
            yield value

    def text(self, field: Field, at_most: int = 65_536) -> str:
        """A field as text.

        Raises: InputError if it is too long or no UTF-8.
        """
        if field.wire != BYTES or field.stop - field.start > at_most:
            raise self.wrong(field.start, f"a text of at most {at_most} bytes", "something else")
        try:
            return self.bytes(field.start, field.stop).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(field.start, "a text in UTF-8", "other bytes") from error

    def bytes(self, start: int, stop: int) -> bytes:
        """Bytes of the file."""
        if self.at != start:
            self.file.seek(start)
        data = self.file.read(stop - start)
        self.at = start + len(data)
        if len(data) != stop - start:
            raise self.wrong(start, f"{stop - start} bytes", f"{len(data)}")
        return data

    def wrong(self, at: int, expected: str, got: str) -> InputError:
        """An error about a place of the file."""
        return InputError(f"{self.where} (byte {at}): expected {expected}, got {got}", hint=HINT)
