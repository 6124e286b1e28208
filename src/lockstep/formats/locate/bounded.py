"""Files opened with care: regular ones only, and never asked for more than they hold."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from lockstep.errors import InputError

MAX_ELEMENTS = 1 << 59  # of 16 bytes, in 63 bits
MAX_HEAD_BYTES = 1 << 27  # the largest vocabulary and its merges have some tens of megabytes
MAX_ITEMS = 1 << 24  # of an array or a string: Python needs tens of bytes for each
_PIECE = 1 << 20  # bytes read at a time where many strings follow each other


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file and its size in bytes.

    Raises: InputError if it cannot be opened or read, or is a pipe, a device or a directory.
    """
    try:
        with open(_handle(path), "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror or error}",
            hint="check the path and its permissions",
        ) from error


def _handle(path: Path) -> int:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    except ValueError as error:
        raise InputError(f"{path!r}: cannot be read: {error}", hint="check the path") from error
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise InputError(
        f"{path}: expected a file, got a pipe, a device or a directory", hint="check the path"
    )


def real(path: Path) -> Path:
    """Where a path leads to; a ring of links leads to itself."""
    return Path(os.path.realpath(path))


def inside(root: Path, name: str, where: str) -> Path:
    """The file of a directory that something in the directory names.

    Links of the Hugging Face cache, from `snapshots/<revision>` to `blobs`, are followed.
    Raises: InputError if the name has folders, or a link leads out of the directory.
    """
    if "/" in name or "\\" in name or "\0" in name or name in ("", ".", ".."):
        raise InputError(
            f"{where}: expected file names without folders, got {name!r:.80}",
            hint="choose a checkpoint from a source that you trust",
        )
    found, home = real(root / name), real(root)
    homes = [home] + ([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])
    if found.parent not in homes:
        raise InputError(
            f"{where}: expected {name} in {root}, got a link to {found}",
            hint="copy the file into the directory, or choose a source that you trust",
        )
    return root / name


class Cursor:
    """A position in a file, which never asks for more than the file holds.

    `part` names what is being read, such as a key, for the error.
    """

    def __init__(self, file: BinaryIO, size: int, where: str) -> None:
        self._file, self._size = file, size
        self.where = where
        self.part = ""
        self.position = 0

    def wrong(self, what: str, hint: str = "download the file again") -> InputError:
        """The error for a broken file."""
        part = f" ({self.part}, byte {self.position})" if self.part else ""
        return InputError(f"{self.where}{part}: {what}", hint=hint)

    def count(self, n: int, item_bytes: int, at_most: int = MAX_ITEMS) -> int:
        """The number of items, which must fit into the rest of the file."""
        left = self._size - self.position
        if n * item_bytes > left:
            raise self.wrong(
                f"expected at least {n * item_bytes} more bytes, the file ends after {left}"
            )
        if n > at_most:
            raise self.wrong(f"expected at most {at_most} items, got {n}")
        if self.position + n * item_bytes > MAX_HEAD_BYTES:
            raise self.wrong(
                f"expected at most {MAX_HEAD_BYTES} bytes beside the tensors, got more"
            )
        return n

    def take(self, n: int) -> bytes:
        """The next bytes."""
        raw = self._file.read(self.count(n, 1))
        if len(raw) != n:
            raise self.wrong("the file ends too early")
        self.position += n
        return raw

    def number(self, code: str) -> Any:
        """The next number of one of struct's codes."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        """The next string."""
        raw = self.take(self.number("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(f"a string is not UTF-8: {raw[:40]!r}") from error

    def strings(self, n: int) -> list[str]:
        """The next strings, of which a vocabulary has hundreds of thousands."""
        found: list[str] = []
        while len(found) < n:
            piece = self._file.read(_PIECE)
            end = self._whole_strings(piece, n - len(found), found)
            self._file.seek(self.position + end)
            self.position += end
            self.count(n - len(found), 8)
            if len(found) < n:
                found.append(self.string())  # one across the end of the piece, or a broken one
        return found

    def _whole_strings(self, piece: bytes, n: int, found: list[str]) -> int:
        """Adds up to n strings that lie whole in a piece; returns where they end."""
        raw: list[bytes] = []
        at, end, length = 0, len(piece), struct.Struct("<Q").unpack_from
        for _ in range(n):
            if at + 8 > end or (then := at + 8 + length(piece, at)[0]) > end:
                break
            raw.append(piece[at + 8 : then])
            at = then
        joined = b"\0".join(raw)
        with suppress(UnicodeDecodeError):
            if joined.count(b"\0") == len(raw) - 1:  # at once, which is twice as fast
                found += joined.decode("utf-8").split("\0")
                return at
        at = 0
        with suppress(
            UnicodeDecodeError
        ):  # the broken one is read by itself: it says what is wrong
            for each in raw:
                found.append(each.decode("utf-8"))
                at += 8 + len(each)
        return at


def check_shape(shape: Sequence[int], where: str) -> None:
    """Insists that numbers of the machine can count the elements, also of an empty array.

    Raises: InputError if they cannot.
    """
    if prod(n or 1 for n in shape) >= MAX_ELEMENTS:
        raise InputError(
            f"{where}: expected fewer than 2**59 elements, got shape {tuple(shape)!r:.120}",
            hint="download the file again",
        )


def is_writable(text: str) -> bool:
    """Whether a name can be written out: JSON can spell halves of signs that UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shown(text: str, at_most: int = 200) -> str:
    """A name as an error shows it: as it is, or quoted where it has signs that steer a terminal."""
    text = text[:at_most]
    return text if text.isprintable() else repr(text)[: 2 * at_most]
