"""GGUF files, read within bounds: no field of a file makes us read or allocate beyond its size.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from lockstep.errors import InputError
from lockstep.formats.elements import EXACT_IN_F32, as_f32

MAX_DIMS = 4
MAX_ITEMS = 1 << 24  # of an array or a string: Python needs tens of bytes for each
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_TYPES = {0: "F32", 1: "F16", 30: "BF16"}  # the others are named by number until they are read
_DEFAULT_ALIGNMENT = 32


class GGUFFile:
    """One file: metadata, the shape and type of each tensor, one tensor at a time as float32.

    Shapes are in the order of numpy, the slowest axis first.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file and reads all but its tensors.

        Raises: InputError if the file is not GGUF, is cut off or contradicts itself.
        """
        self.path = path
        self.where = str(path)
        self.metadata: dict[str, object] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.stored: dict[str, str] = {}
        self._offsets: dict[str, int] = {}
        try:
            self._size = path.stat().st_size
            with path.open("rb") as file:
                self._read_head(_Cursor(file, self._size, self.where))
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read: {error.strerror}", hint="check the path of the model"
            ) from error

    def read(self, name: str) -> NDArray[Any]:
        """One tensor as float32.

        Raises: InputError if there is none, or float32 cannot hold it exactly.
        """
        if name not in self.shapes:
            raise InputError(f"{self.path}: expected a tensor {name}, got none")
        n_bytes = prod(self.shapes[name]) * EXACT_IN_F32.get(self.stored[name], 0)
        with self.path.open("rb") as file:
            file.seek(self._offsets[name])
            raw = file.read(n_bytes)
        return as_f32(raw, self.stored[name], self.shapes[name], f"{self.path} {name}")

    def _read_head(self, cursor: _Cursor) -> None:
        if cursor.take(4) != b"GGUF":
            raise cursor.wrong("expected a GGUF file, its first bytes say otherwise")
        version = cursor.number("I")
        if version not in (2, 3):
            raise cursor.wrong(f"expected version 2 or 3, got {version}")
        n_tensors, n_keys = cursor.number("Q"), cursor.number("Q")
        for _ in range(cursor.count(n_keys, 13)):
            key = cursor.string()
            if key in self.metadata:
                raise cursor.wrong(f"metadata key {key!r:.80} occurs twice")
            self.metadata[key] = cursor.value(cursor.number("I"))
        for _ in range(cursor.count(n_tensors, 24)):
            self._read_tensor(cursor)
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 8 or alignment % 8:
            raise cursor.wrong(f"general.alignment: expected a multiple of 8, got {alignment!r}")
        start = -(-cursor.position // alignment) * alignment
        self._place(cursor, start, alignment)

    def _read_tensor(self, cursor: _Cursor) -> None:
        name = cursor.string()
        if name in self.shapes:
            raise cursor.wrong(f"tensor {name!r:.80} occurs twice")
        n_dims = cursor.number("I")
        if not 1 <= n_dims <= MAX_DIMS:
            raise cursor.wrong(f"{name}: expected 1 to {MAX_DIMS} dimensions, got {n_dims}")
        shape = tuple(cursor.number("Q") for _ in range(n_dims))[::-1]
        if min(shape) < 1:
            raise cursor.wrong(f"{name}: expected dimensions of at least 1, got {shape}")
        stored = cursor.number("I")
        self.shapes[name] = shape
        self.stored[name] = _TYPES.get(stored, f"ggml type {stored}")
        self._offsets[name] = cursor.number("Q")

    def _place(self, cursor: _Cursor, start: int, alignment: int) -> None:
        """Makes the offsets absolute; tensors lie inside the file, aligned and apart."""
        end_before = start
        for name in sorted(self._offsets, key=self._offsets.__getitem__):
            offset = self._offsets[name]
            begin = start + offset
            end = begin + prod(self.shapes[name]) * EXACT_IN_F32.get(self.stored[name], 0)
            if offset % alignment:
                raise cursor.wrong(f"{name}: expected an offset of {alignment} bytes, got {offset}")
            if begin < end_before or end > self._size:
                raise cursor.wrong(f"{name}: its bytes overlap others or lie outside the file")
            end_before = end
            self._offsets[name] = begin


class _Cursor:
    """A position in a file, which never asks for more than the file holds."""

    def __init__(self, file: BinaryIO, size: int, where: str) -> None:
        self._file, self._size, self._where = file, size, where
        self.position = 0

    def wrong(self, what: str) -> InputError:
        """The error for a broken file."""
        return InputError(f"{self._where}: {what}", hint="download the file again")

    def count(self, n: int, item_bytes: int) -> int:
        """The number of items, which must fit into the rest of the file."""
        if n > min(MAX_ITEMS, (self._size - self.position) // item_bytes):
            raise self.wrong(f"expected no more items than the file can hold, got {n}")
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
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        """The next string."""
        raw = self.take(self.number("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(f"a string is not UTF-8: {raw[:40]!r}") from error

    def value(self, kind: int) -> object:
        """The next metadata value; arrays hold scalars or strings, not arrays."""
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise self.wrong(f"unknown metadata type {kind}")
        item, n = self.number("I"), self.number("Q")
        if item == _STRING:
            return [self.string() for _ in range(self.count(n, 8))]
        if item not in _SCALARS:
            raise self.wrong(f"expected an array of scalars or strings, got items of type {item}")
        width = struct.calcsize(_SCALARS[item])
        return list(struct.unpack(f"<{self.count(n, width)}{_SCALARS[item]}", self.take(n * width)))
