"""What `ls` and `digest` show, as records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lockstep.artifacts import Artifact
from lockstep.artifacts.verification import FileRow
from lockstep.errors import InputError
from lockstep.formats.leaf import Extent, Held, Leaf, Parts, Store
from lockstep.verify.digest import ALGORITHM, merkle_root

_MOST_SIGNS = 200  # of a fact: the vocabulary in a GGUF file has megabytes


@dataclass(frozen=True, kw_only=True)
class LeafLine:
    """One leaf: what it is, and where its bytes lie.  Units: bytes."""

    name: str
    element: str
    shape: tuple[int, ...]
    n_elements: int
    n_bytes: int
    place: str
    value: str
    shares: str
    checksum: str


@dataclass(frozen=True, kw_only=True)
class Listing(Artifact, file="leaves.json", schema="lockstep.leaves/1"):
    """A checkpoint without its data.  Units: bytes.  History: 1 the first."""

    where: str
    format: str
    n_leaves: int
    n_bytes: int
    leaves: tuple[LeafLine, ...]
    files: tuple[FileRow, ...]
    facts: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DigestLine:
    """One leaf with the digest of its logical array."""

    name: str
    element: str
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True, kw_only=True)
class Digests(Artifact, file="digests.json", schema="lockstep.digests/1"):
    """The leaves of a checkpoint by content; the root follows from them.  History: 1 the first."""

    where: str
    format: str
    algorithm: str
    root: str
    leaves: tuple[DigestLine, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [line.name for line in self.leaves]
        root = root_of({line.name: line.digest for line in self.leaves}, self.file)
        if len(set(names)) != len(names) or self.root != root or self.algorithm != ALGORITHM:
            raise InputError(
                f"{self.file}: root: expected {ALGORITHM} over the leaves below, {root}, got "
                f"{self.algorithm} {self.root}",
                hint="take the digests again; this file was edited, or another version wrote it",
            )


@dataclass(frozen=True, kw_only=True)
class DigestChanges:
    """How two checkpoints differ by their digests: names, in order."""

    equal: tuple[str, ...]
    changed: tuple[str, ...]  # same type and shape, other contents
    retyped: tuple[str, ...]  # another type or shape
    missing: tuple[str, ...]  # only in the earlier one
    extra: tuple[str, ...]  # only in the later one

    @property
    def is_same(self) -> bool:
        """Whether there is something, and nothing differs."""
        return bool(self.equal) and not (self.changed or self.retyped or self.missing or self.extra)


def list_leaves(store: Store) -> Listing:
    """A listed checkpoint as a record."""
    lines = tuple(map(_line, store.leaves.values()))
    return Listing(
        where=store.where,
        format=store.format,
        n_leaves=len(lines),
        n_bytes=sum(line.n_bytes for line in lines),
        leaves=lines,
        files=tuple(
            FileRow(path=str(file.path), n_bytes=file.n_bytes, mtime_ns=file.mtime_ns)
            for file in store.files
        ),
        facts={key: short_text(value) for key, value in store.facts.items()},
        notes=store.notes,
    )


def digests_of(store: Store, digests: Mapping[str, str]) -> Digests:
    """The digests of all leaves of a checkpoint as a record."""
    return Digests(
        where=store.where,
        format=store.format,
        algorithm=ALGORITHM,
        root=merkle_root(digests),
        leaves=tuple(
            DigestLine(name=name, element=leaf.element.name, shape=leaf.shape, digest=digests[name])
            for name, leaf in store.leaves.items()
        ),
    )


def compare_digests(
    earlier: Mapping[str, DigestLine], later: Mapping[str, DigestLine]
) -> DigestChanges:
    """What changed between two lists of digests."""
    found: dict[str, list[str]] = {"equal": [], "changed": [], "retyped": []}
    for name, new in later.items():
        if (old := earlier.get(name)) is None:
            continue
        if (old.element, old.shape) != (new.element, new.shape):
            found["retyped"].append(name)
        else:
            found["equal" if old.digest == new.digest else "changed"].append(name)
    return DigestChanges(
        equal=tuple(found["equal"]),
        changed=tuple(found["changed"]),
        retyped=tuple(found["retyped"]),
        missing=tuple(name for name in earlier if name not in later),
        extra=tuple(name for name in later if name not in earlier),
    )


def root_of(digests: Mapping[str, str], where: str) -> str:
    """The Merkle root over digests that a file gives.

    Raises: InputError if one is no SHA-256 in hexadecimal.
    """
    for name, digest in digests.items():
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise InputError(
                f"{where}: expected the digest of {name!r:.80} as 64 hexadecimal digits, got "
                f"{digest!r:.80}",
                hint="take the digests again; this file was edited",
            )
    return merkle_root(digests)


def short_text(value: Any) -> str:
    """A fact or a value in at most some hundred signs."""
    if isinstance(value, (list, tuple, dict)) and len(value) > _MOST_SIGNS:
        return f"{type(value).__name__} of {len(value)}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _MOST_SIGNS else text[: _MOST_SIGNS - 1] + "…"


def _line(leaf: Leaf) -> LeafLine:
    return LeafLine(
        name=leaf.name,
        element=leaf.element.name,
        shape=leaf.shape,
        n_elements=leaf.n_elements,
        n_bytes=leaf.n_bytes,
        place=_place(leaf),
        value=short_text(leaf.value[0]) if leaf.value else "",
        shares=leaf.shares,
        checksum=leaf.checksum,
    )


def _place(leaf: Leaf) -> str:
    storage = leaf.storage
    if leaf.value:
        return "a value"
    if isinstance(storage, Extent):
        strides = "" if storage.strides is None else f", strides {list(storage.strides)}"
        return f"{storage.file.name} from {storage.offset}{strides}"
    if isinstance(storage, Parts):
        files = {part.extent.file.name for part in storage.parts}
        return f"{len(storage.parts)} parts in {len(files)} files"
    if isinstance(storage, Held):
        return "read with the listing"
    order = ", in order only" if storage.sequential else ""
    return f"chunks of {list(storage.shape)}{order}"
