"""What every format of checkpoint comes down to: named leaves, and where their bytes lie.

A locator lists the leaves of a checkpoint without reading their data. A leaf's storage is an
`Extent` (bytes of a file, any part of which can be read by itself), `Parts` (several of those,
where a leaf was sharded), `Chunks` (units that must be decoded whole) or `Held` (small, already
here).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import InputError


@dataclass(frozen=True, slots=True)
class Key:
    """A step into a dictionary."""

    name: str


@dataclass(frozen=True, slots=True)
class Index:
    """A step into a sequence."""

    i: int


@dataclass(frozen=True, slots=True)
class Attribute:
    """A step into a field of an object."""

    name: str


@dataclass(frozen=True, slots=True)
class Name:
    """The whole key of a format that has no tree, whatever signs are in it."""

    name: str


Step = Key | Index | Attribute | Name
LeafPath = tuple[Step, ...]


def path_text(path: LeafPath) -> str:
    """One text for each path, and one path for each text: `opt_state/[0]/.mu/h.18.mlp/kernel`.

    Steps are apart by `/`; `[0]` is an index and `.mu` a field. In a key, `~` is written `~0`, `/`
    is `~1`, and a first `[` or `.` is `~2` or `~3`. A `Name` is written as it is, and stands alone.
    """
    return "/".join(_step_text(step) for step in path)


def _step_text(step: Step) -> str:
    if isinstance(step, Index):
        return f"[{step.i}]"
    if isinstance(step, Attribute):
        return f".{step.name}"
    if isinstance(step, Name):
        return step.name
    text = step.name.replace("~", "~0").replace("/", "~1")
    return {"[": "~2", ".": "~3"}.get(text[:1], text[:1]) + text[1:]


@dataclass(frozen=True, slots=True)
class ElementType:
    """What an element is: its name, its bytes, and how many logical elements one of it holds.

    A quantised block counts as one element: `Q8_0` has 34 bytes for 32 numbers of the last axis.
    """

    name: str
    n_bytes: int
    n_numbers: int = 1

    def __str__(self) -> str:
        return self.name


ELEMENT_TYPES: dict[str, ElementType] = {
    name: ElementType(name, n_bytes)
    for n_bytes, names in {
        1: "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E4M3FNUZ F8_E5M2FNUZ F8_E8M0",
        2: "U16 I16 F16 BF16",
        4: "U32 I32 F32",
        8: "U64 I64 F64 C64",
        16: "C128",
    }.items()
    for name in names.split()
}


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of one file, from which any element can be read by itself.

    `strides` are in elements, one for each axis of the leaf's `grid_shape`; None is C order.
    `big_endian` elements are turned when they are read, so that blocks are always little-endian.
    """

    file: Path
    offset: int
    strides: tuple[int, ...] | None = None
    big_endian: bool = False


class Chunks(Protocol):
    """Units that are decoded whole, on a grid over the leaf or over its flat elements.

    `shape` is that of one chunk in elements: as many axes as the leaf has, or, where `flat`, one,
    over the C-order flat elements; chunks at the end are cut. `peak_bytes` is what decoding one
    takes beside its output. `sequential` chunks are cheap in order only.
    """

    shape: tuple[int, ...]
    flat: bool
    sequential: bool
    peak_bytes: int

    def read(self, index: tuple[int, ...], out: NDArray[np.uint8]) -> None:
        """Decodes one chunk into `out`, little-endian and in C order, cut at the leaf's end.

        Raises: InputError if it is damaged or missing.
        """


@dataclass(frozen=True, slots=True)
class Held:
    """A small leaf that was read with the listing: elements in C order, little-endian."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """A block of a leaf that was stored by itself: where it starts in the leaf, and its shape."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    extent: Extent


@dataclass(frozen=True, slots=True)
class Parts:
    """A leaf that was sharded: blocks that tile it exactly, each with bytes of its own."""

    parts: tuple[Part, ...]


Storage = Extent | Chunks | Held | Parts


@dataclass(frozen=True, slots=True)
class Leaf:
    """One named array, or one value that is no array.

    `shape` is the logical shape, slowest axis first. `value` is what a leaf holds that is no array
    (a number, a string, None, an empty container), as JSON-able Python, in a one-item list so that
    None is a value too; such a leaf has the type's name ("int", "str", "none", "dict", ...) in
    `element.name`, no bytes, and the shape (). `physical` is the key in the container, where it is
    not the path. Leaves with the same `shares` lie on the same bytes.
    """

    path: LeafPath
    shape: tuple[int, ...]
    element: ElementType
    storage: Storage
    value: tuple[Any, ...] = ()
    physical: str = ""
    shares: str = ""
    checksum: str = ""  # what the container has over these bytes, such as "crc32"; "" is none
    # The path as text, made once: `verify` asks for it hundreds of times.
    name: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Makes the name."""
        object.__setattr__(self, "name", path_text(self.path))

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """The shape in elements: the last axis of a quantised leaf counts blocks."""
        if self.element.n_numbers == 1:
            return self.shape
        return (*self.shape[:-1], self.shape[-1] // self.element.n_numbers)

    @property
    def n_elements(self) -> int:
        """How many elements, or blocks."""
        return prod(self.grid_shape)

    @property
    def n_bytes(self) -> int:
        """The bytes of the logical array."""
        return self.n_elements * self.element.n_bytes


@dataclass(frozen=True, slots=True)
class Record:
    """A stretch of a file that the container has a checksum for, and the leaves that lie in it.

    The checksum is a SHA-256, as hexadecimal, where there is one, else a CRC-32.
    """

    file: Path
    offset: int
    n_bytes: int
    crc32: int
    leaves: tuple[str, ...]
    sha256: str = ""

    @property
    def algorithm(self) -> str:
        """The name of the checksum."""
        return "SHA-256" if self.sha256 else "CRC-32"


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells that a file is still the one that was listed.

    Whoever writes to a file can set the time of its last change of content back, but not that of
    its last change of any kind, `ctime_ns`.
    """

    path: Path
    n_bytes: int
    mtime_ns: int
    inode: int
    device: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileIdentity:
        """The identity now.

        Raises: InputError if there is no such file.
        """
        try:
            found = os.stat(path)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read: {error.strerror}", hint="check the path"
            ) from error
        return cls(
            path, found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev, found.st_ctime_ns
        )


@dataclass(frozen=True, slots=True)
class Store:
    """A listed checkpoint: leaves by name in the order of the file, and what else it says.

    `facts` are the numbers and words beside the tensors: config.json, metadata of GGUF. `notes` are
    about the files: keys that collide, checksums that the format lacks.
    """

    where: str
    format: str
    leaves: Mapping[str, Leaf]
    files: tuple[FileIdentity, ...]
    facts: Mapping[str, object] = field(default_factory=dict)
    records: tuple[Record, ...] = ()
    notes: tuple[str, ...] = ()
    closes: tuple[Callable[[], None], ...] = ()

    def close(self) -> None:
        """Lets go of files that a library keeps open; what is read later opens them again."""
        for close in self.closes:
            close()


def collect(leaves: list[Leaf], where: str) -> dict[str, Leaf]:
    """The leaves by name.

    Raises: InputError if two have the same name.
    """
    found: dict[str, Leaf] = {}
    for leaf in leaves:
        if leaf.name in found:
            raise InputError(
                f"{where}: expected each name once, got {leaf.name!r:.120} twice",
                hint="write the checkpoint again; one of the two would be lost",
            )
        found[leaf.name] = leaf
    return found
