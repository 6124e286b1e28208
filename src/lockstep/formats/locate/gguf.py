"""GGUF files, single and split: metadata, and each tensor as elements or packed blocks.

Source: https://github.com/ggml-org/ggml/blob/01f0d4da3e44/docs/gguf.md
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from lockstep.errors import InputError
from lockstep.formats.leaf import (
    ELEMENT_TYPES,
    ElementType,
    Extent,
    FileIdentity,
    Leaf,
    Name,
    Store,
    collect,
)
from lockstep.formats.locate.bounded import Cursor, check_shape, inside, opened

MAGIC = b"GGUF"
MAX_DIMS = 4
MAX_FACT_ITEMS = 64  # a vocabulary is no fact
# Ten times what the largest files have; a tensor listed in 24 bytes takes a kilobyte here.
MAX_KEYS, MAX_TENSORS, MAX_ARRAY = 1 << 12, 1 << 16, 1 << 22
NO_CHECKSUM = "GGUF has no checksums: damaged elements show only in the comparison"
# Type id -> name, numbers and bytes of a block.  Source: ggml.h, type_traits of ggml.c.
_BLOCKS = {
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
_PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
BLOCK_TYPES = {name: ElementType(name, n_bytes, n) for name, n, n_bytes in _BLOCKS.values()}
TYPES = {i: ELEMENT_TYPES[name] for i, name in _PLAIN.items()} | {
    i: BLOCK_TYPES[name] for i, (name, _, _) in _BLOCKS.items()
}
_REMOVED = {4: " (Q4_2)", 5: " (Q4_3)", 31: " (Q4_0_4_4)", 32: " (Q4_0_4_8)", 33: " (Q4_0_8_8)"} | {
    i: f" (IQ4_NL_{tile})" for i, tile in ((36, "4_4"), (37, "4_8"), (38, "8_8"))
}
_STRING, _ARRAY = 8, 9
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_DEFAULT_ALIGNMENT = 32
_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Listed:
    """A tensor as the file lists it; the offset is from where the tensors begin."""

    name: str
    shape: tuple[int, ...]
    element: ElementType
    offset: int

    def at(self, path: Path, start: int) -> Leaf:
        """The leaf, where the tensors of the file begin at `start`."""
        return Leaf((Name(self.name),), self.shape, self.element, Extent(path, start + self.offset))


@dataclass(frozen=True, slots=True)
class Header:
    """What one file lists."""

    identity: FileIdentity
    metadata: dict[str, object]
    leaves: dict[str, Leaf]
    notes: tuple[str, ...]


def locate(path: Path) -> Store:
    """Lists a file, and the other files of its split.

    Raises: InputError if one is damaged, missing or of another split.
    """
    headers = read_headers(path)
    return Store(
        where=str(path),
        format="gguf",
        leaves=collect([leaf for h in headers for leaf in h.leaves.values()], str(path)),
        files=tuple(h.identity for h in headers),
        facts={k: v for k, v in headers[0].metadata.items() if _is_fact(v)},
        notes=(NO_CHECKSUM, *(note for h in headers for note in h.notes)),
    )


def read_headers(path: Path) -> list[Header]:
    """The header of a file, or those of all files of its split, in order.

    Raises: InputError if one is damaged, missing or of another split.
    """
    header = read_header(path)
    return _split(path, header) if header.metadata.get("split.count", 1) != 1 else [header]


def read_header(path: Path) -> Header:
    """All of one file but its tensors, which lie inside of it, aligned and apart.

    Raises: InputError naming the tensor or the key that is wrong.
    """
    identity = FileIdentity.of(path)
    with opened(path) as (file, size):
        cursor = Cursor(file, size, str(path))
        n_tensors, n_keys = _counts(cursor)
        metadata: dict[str, object] = {}
        for i in range(cursor.count(n_keys, 13, MAX_KEYS)):
            cursor.part = f"metadata key {i + 1} of {n_keys}"
            key = cursor.string()
            if key in metadata:
                raise cursor.wrong(f"metadata key {key!r:.80} occurs twice")
            cursor.part = f"metadata {key!r:.80}"
            metadata[key] = _value(cursor, cursor.number("I"))
        cursor.part = "list of tensors"
        listed = [_listed(cursor) for _ in range(cursor.count(n_tensors, 24, MAX_TENSORS))]
        cursor.part = ""
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 8 or alignment % 8:
            raise cursor.wrong(f"general.alignment: expected a multiple of 8, got {alignment!r}")
        start = -(-cursor.position // alignment) * alignment
    leaves = [tensor.at(path, start) for tensor in listed]
    notes = _check_places(leaves, alignment, start, size, cursor)
    return Header(identity, metadata, collect(leaves, str(path)), notes)


def _counts(cursor: Cursor) -> tuple[int, int]:
    """How many tensors and metadata keys a file says that it has."""
    if cursor.take(len(MAGIC)) != MAGIC:
        raise cursor.wrong("expected a GGUF file, its first bytes say otherwise")
    version = cursor.number("I")
    if version in (2 << 24, 3 << 24):
        raise cursor.wrong(
            "expected a little-endian file, got a big-endian one",
            "convert it with gguf-convert-endian",
        )
    if version not in (2, 3):
        raise cursor.wrong(
            f"expected version 2 or 3, got {version}", "convert the model again with llama.cpp"
        )
    return cursor.number("Q"), cursor.number("Q")


def _value(cursor: Cursor, kind: int) -> object:
    """The next metadata value; arrays hold scalars or strings, not arrays."""
    if kind == _STRING:
        return cursor.string()
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind != _ARRAY:
        raise cursor.wrong(f"unknown metadata type {kind}")
    item, n = cursor.number("I"), cursor.number("Q")
    if item == _STRING:
        return cursor.strings(cursor.count(n, 8, MAX_ARRAY))
    if item not in _SCALARS:
        raise cursor.wrong(f"expected an array of scalars or strings, got items of type {item}")
    width = struct.calcsize(f"<{_SCALARS[item]}")
    raw = cursor.take(cursor.count(n, width, MAX_ARRAY) * width)
    return list(struct.unpack(f"<{n}{_SCALARS[item]}", raw))


def _listed(cursor: Cursor) -> _Listed:
    """The next tensor."""
    name = cursor.string()
    n_dims = cursor.number("I")
    if n_dims > MAX_DIMS:
        raise cursor.wrong(f"{name!r:.120}: expected at most {MAX_DIMS} axes, got {n_dims}")
    shape = tuple(cursor.number("Q") for _ in range(n_dims))[::-1]  # the file has the fastest first
    check_shape(shape, f"{cursor.where} ({name!r:.120})")
    stored = cursor.number("I")
    if stored not in TYPES:
        raise cursor.wrong(
            f"{name!r:.120}: expected a type of ggml that is known, got number {stored}"
            f"{_REMOVED.get(stored, '')}",
            "convert the model again: types that ggml removed are not read",
        )
    element = TYPES[stored]
    if element.n_numbers > 1 and (not shape or shape[-1] % element.n_numbers):
        raise cursor.wrong(
            f"{name!r:.120}: expected a last axis in blocks of {element.n_numbers}, got {shape}"
        )
    return _Listed(name, shape, element, cursor.number("Q"))


def _check_places(
    leaves: list[Leaf], alignment: int, start: int, size: int, cursor: Cursor
) -> tuple[str, ...]:
    """Tensors are aligned, apart and in the file; notes on bytes that belong to none."""
    notes: list[str] = []
    end_before = start
    spans = sorted((_offset(leaf), leaf.n_bytes, leaf.name) for leaf in leaves)
    for begin, n_bytes, name in spans:
        if (begin - start) % alignment:
            raise cursor.wrong(
                f"{name!r:.120}: expected an offset in units of {alignment} bytes,"
                f" got {begin - start}"
            )
        if begin < end_before or begin + n_bytes > size:
            raise cursor.wrong(f"{name!r:.120}: its bytes overlap others or lie outside the file")
        if begin - end_before >= alignment:
            notes.append(f"{begin - end_before} bytes before {name!r:.120} belong to no tensor")
        end_before = begin + n_bytes
    if size - end_before >= alignment:
        notes.append(f"{size - end_before} bytes at the end belong to no tensor")
    return tuple(notes)


def _offset(leaf: Leaf) -> int:
    assert isinstance(leaf.storage, Extent)
    return leaf.storage.offset


def split_names(name: str) -> list[str]:
    """The names of all files of the split that a file is named as a part of, or the name itself."""
    named = _SPLIT_NAME.fullmatch(name)
    n_files = int(named[3]) if named else 0
    if named is None or not 0 < int(named[2]) <= n_files:
        return [name]
    return [f"{named[1]}-{i + 1:05d}-of-{named[3]}.gguf" for i in range(n_files)]


def _split(path: Path, header: Header) -> list[Header]:
    """Every file of a split, in order."""
    n_files = header.metadata["split.count"]
    names = split_names(path.name)
    if type(n_files) is not int or n_files != len(names):
        raise InputError(
            f"{path}: expected a name like model-00001-of-00003.gguf and as many files as"
            f" split.count, got {path.name!r:.120} and {n_files!r:.40}",
            hint="rename the files of the split as llama-gguf-split names them",
        )
    missing = [name for name in names if not (path.parent / name).exists()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(
            f"{path}: expected all {n_files} files of the split, missing are"
            f" {', '.join(missing[:5])}{more}",
            hint="download the files of one split together",
        )
    headers = []
    for i, name in enumerate(names):
        beside = inside(path.parent, name, str(path))
        part = header if name == path.name else read_header(beside)
        found = (part.metadata.get("split.no"), part.metadata.get("split.count"))
        if found != (i, n_files):
            raise InputError(
                f"{path.parent / name}: expected split.no and split.count {i} and {n_files},"
                f" got {found[0]!r:.40} and {found[1]!r:.40}",
                hint="download the files of one split together",
            )
        headers.append(part)
    total = headers[0].metadata.get("split.tensors.count")
    held = sum(len(h.leaves) for h in headers)
    if total not in (None, held):
        raise InputError(
            f"{path} (split.tensors.count): expected {total!r:.40} tensors in {n_files} files,"
            f" got {held}",
            hint="download the files of one split together",
        )
    return headers


def _is_fact(value: object) -> bool:
    return not isinstance(value, list) or len(value) <= MAX_FACT_ITEMS
