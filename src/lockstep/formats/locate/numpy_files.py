"""npy and npz files of NumPy; nothing in them is executed.

Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO

from lockstep.errors import InputError
from lockstep.formats.leaf import (
    ELEMENT_TYPES,
    ElementType,
    Extent,
    FileIdentity,
    Held,
    Leaf,
    Name,
    Record,
    Storage,
    Store,
    collect,
)
from lockstep.formats.locate.bounded import check_shape, is_writable, opened
from lockstep.formats.locate.deflated import MAX_RATIO, Inflater, Packed, deflated_chunks
from lockstep.formats.zip_records import ZipRecord, ZipRecords

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 1 << 16
MAX_AXES = 64  # of NumPy 2
CHUNK_ELEMENTS = 1 << 20
ONLY = "array"  # the name of the leaf of an npy file, which has none of its own
_CODES = {
    "b1": "BOOL",
    "u1": "U8",
    "u2": "U16",
    "u4": "U32",
    "u8": "U64",
    "i1": "I8",
    "i2": "I16",
    "i4": "I32",
    "i8": "I64",
    "f2": "F16",
    "f4": "F32",
    "f8": "F64",
    "c8": "C64",
    "c16": "C128",
}
_ITEM = re.compile(
    r"\s*'(?:descr'\s*:\s*'(?P<descr>[^'\\]{1,32})'"
    r"|fortran_order'\s*:\s*(?P<order>True|False)"
    r"|shape'\s*:\s*\((?P<shape>[\dL, ]*)\))\s*(?:,|(?=\}))",
    re.ASCII,
)
_SPACES = " \t\r\n"


@dataclass(frozen=True, slots=True)
class _Array:
    """What the header of an npy file says."""

    element: ElementType
    shape: tuple[int, ...]
    fortran: bool
    big_endian: bool
    header_bytes: int

    @property
    def n_bytes(self) -> int:
        """Header and elements."""
        return self.header_bytes + prod(self.shape) * self.element.n_bytes

    @property
    def swap_bytes(self) -> int:
        """The width of the numbers whose bytes are turned; a complex element has two."""
        half = 2 if self.element.name in ("C64", "C128") else 1
        return self.element.n_bytes // half if self.big_endian else 0


def locate(path: Path) -> Store:
    """Lists an npy file, or the members of an npz file.

    Raises: InputError if it is damaged, or holds objects or records.
    """
    identity = FileIdentity.of(path)
    with opened(path) as (file, size):
        if file.read(len(MAGIC)) != MAGIC:
            archive = ZipRecords(path, file, 0, size, str(path), deflated=True)
            return _npz(path, identity, archive)
        array = _header(partial(_first, file), str(path))
    if array.n_bytes != size:
        raise _wrong(str(path), f"{array.n_bytes} bytes for its shape and type", f"{size}")
    leaf = Leaf((Name(ONLY),), array.shape, array.element, _extent(path, 0, array))
    note = "npy has no checksums: damaged elements show only in the comparison"
    return Store(str(path), "npy", {ONLY: leaf}, (identity,), notes=(note,))


def _npz(path: Path, identity: FileIdentity, archive: ZipRecords) -> Store:
    leaves: list[Leaf] = []
    records: list[Record] = []
    for member in archive.records.values():
        name = _member_name(path, member.name)
        where = f"{path} ({name!r:.120})"
        storage: Storage
        if member.deflated:
            array, storage = _deflated(path, member, where)
        else:
            array = _header(partial(archive.head, member), where)
            storage = _extent(path, member.offset, array)
            records.append(Record(path, member.offset, member.n_bytes, member.crc32, (name,)))
        if array.n_bytes != member.n_bytes:
            raise _wrong(where, f"{array.n_bytes} bytes for its header", f"{member.n_bytes}")
        leaves.append(
            Leaf(
                (Name(name),),
                array.shape,
                array.element,
                storage,
                physical=member.name,
                checksum="crc32",
            )
        )
    return Store(
        where=str(path),
        format="npz",
        leaves=collect(leaves, str(path)),
        files=(identity,),
        records=tuple(records),
    )


def _member_name(path: Path, member: str) -> str:
    """The key of a member, as NumPy gives it.

    Raises: InputError if it is no array, or its name is none that NumPy writes.
    """
    if not member.endswith(".npy"):
        raise InputError(
            f"{path}: expected members that end in .npy, got {member!r:.120}",
            hint="remove what is no array from the archive",
        )
    steps = member.split("/")
    if "\\" in member or "\0" in member or ".." in steps or "" in steps or not is_writable(member):
        raise InputError(
            f"{path}: expected a plain name of an array, got {member!r:.120}",
            hint="choose a checkpoint from a source that you trust",
        )
    return member.removesuffix(".npy")


def _deflated(path: Path, member: ZipRecord, where: str) -> tuple[_Array, Storage]:
    """The header, which is decoded, and the chunks behind it, which are not."""
    if member.n_bytes > (member.n_packed + 8) * MAX_RATIO:
        raise _wrong(where, "as many bytes as deflate can pack", f"{member.n_bytes}")
    packed = Packed(path, member.offset, member.n_packed, member.n_bytes, member.crc32, where)
    array = _header(lambda n: Inflater(packed).take(n), where)
    if array.n_bytes == array.header_bytes:
        return array, Held(b"")
    chunks = deflated_chunks(
        packed,
        array.header_bytes,
        array.shape,
        array.element.n_bytes,
        swap_bytes=array.swap_bytes,
        fortran=array.fortran,
        chunk_elements=CHUNK_ELEMENTS,
    )
    return array, chunks


def _extent(path: Path, begin: int, array: _Array) -> Extent:
    strides = tuple(prod(array.shape[:i]) for i in range(len(array.shape)))
    offset = begin + array.header_bytes
    return Extent(path, offset, strides if array.fortran else None, array.big_endian)


def _header_end(head: bytes, where: str) -> tuple[int, int]:
    """Where the text of the header begins and ends."""
    if head[: len(MAGIC)] != MAGIC or len(head) < 12 or head[6] not in (1, 2, 3) or head[7]:
        raise _wrong(where, "an npy header of version 1.0, 2.0 or 3.0", f"{head[:8]!r}")
    begin = 10 if head[6] == 1 else 12
    n_text = int.from_bytes(head[8:begin], "little")
    if n_text > MAX_HEADER_BYTES:
        raise _wrong(where, f"a header of at most {MAX_HEADER_BYTES} bytes", f"{n_text}")
    return begin, begin + n_text


def _first(file: BinaryIO, n: int) -> bytes:
    file.seek(0)
    return file.read(n)


def _header(first: Callable[[int], bytes], where: str) -> _Array:
    """The header in the `first(n)` bytes of an array, matched and not evaluated."""
    begin, end = _header_end(first(12), where)
    head = first(end)
    if end > len(head):
        raise _wrong(where, f"a header of {end} bytes", f"{len(head)}")
    text = head[begin:end].decode("utf-8" if head[6] == 3 else "latin-1", "replace")
    text = text.strip(_SPACES).replace('"', "'")
    found = _items(text)
    if found is None:
        _refuse_structured(text, where)
        raise _wrong(where, "a header with descr, fortran_order and shape", f"{text!r:.120}")
    element, big_endian = _element(found["descr"], where)
    digits = [n.strip().removesuffix("L") for n in found["shape"].split(",")]
    if digits[-1] == "":
        digits.pop()
    if len(digits) > MAX_AXES or not all(re.fullmatch("0|[1-9][0-9]{0,19}", n) for n in digits):
        raise _wrong(where, f"a shape of at most {MAX_AXES} whole numbers", f"{found['shape']:.80}")
    shape = tuple(map(int, digits))
    check_shape(shape, where)
    fortran = found["order"] == "True" and len(shape) > 1
    return _Array(element, shape, fortran, big_endian, end)


def _items(text: str) -> dict[str, str] | None:
    """The three items of the dictionary, each once; None if it is anything else."""
    if not (text.startswith("{") and text.endswith("}")):
        return None
    found: dict[str, str] = {}
    at = 1
    while match := _ITEM.match(text, at):
        for key, value in match.groupdict().items():
            if value is not None:
                if key in found:
                    return None
                found[key] = value
        at = match.end()
    return found if len(found) == 3 and text[at:].strip(_SPACES) == "}" else None


def _refuse_structured(text: str, where: str) -> None:
    if re.search(r"'descr'\s*:\s*[\[(]", text):
        raise _wrong(where, "one number per element", f"records: {text!r:.120}")


def _element(descr: str, where: str) -> tuple[ElementType, bool]:
    order, code = (descr[0], descr[1:]) if descr[0] in "<>|=" else ("<", descr)
    if code.startswith("O"):
        raise InputError(
            f"{where}: expected numbers, got Python objects, which only a pickle can restore",
            hint="save the numbers inside of the objects as arrays of their own",
        )
    if code not in _CODES:
        raise InputError(
            f"{where}: expected elements of {', '.join(_CODES)}, got {descr!r}",
            hint="view them as unsigned integers of the same width before saving"
            if code.startswith("V")
            else "save them as numbers",
        )
    return ELEMENT_TYPES[_CODES[code]], order == ">" and not code.endswith("1")


def _wrong(where: str, expected: str, got: str) -> InputError:
    return InputError(
        f"{where}: expected {expected}, got {got}",
        hint="write or download the file again; it is damaged or of another kind",
    )
