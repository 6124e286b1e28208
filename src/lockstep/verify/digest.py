"""Digests of logical arrays, which two sites can compare without moving data.

What is hashed is the logical array: elements in C order and little-endian, whatever the file's
strides, chunks, compression or byte order. It is cut into blocks of as many whole elements as fit
into 4 MiB, so that blocks can be hashed side by side. To compute one again:

    header = json.dumps({"element": "F32", "shape": [2, 3]}, sort_keys=True, separators=(",", ":"))
    step = max(1, (4 << 20) // element_bytes) * element_bytes
    blocks = [sha256(data[i : i + step]).digest() for i in range(0, len(data), step)]
    digest = sha256(header.encode() + b"\\n" + b"".join(blocks)).hexdigest()

A leaf that is no array has no blocks, and the key "value" in its header. The root of a checkpoint:

    nodes = [sha256(b"\\0" + name.encode() + b"\\0" + bytes.fromhex(digests[name])).digest()
             for name in sorted(digests)]
    while len(nodes) > 1:
        pairs = [nodes[i : i + 2] for i in range(0, len(nodes), 2)]
        nodes = [sha256(b"\\1" + b"".join(p)).digest() if len(p) == 2 else p[0] for p in pairs]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256

from lockstep.formats.leaf import ElementType, Leaf

BLOCK_BYTES = 4 << 20
ALGORITHM = "sha256-blocks-4MiB"


def block_elements(element: ElementType) -> int:
    """How many elements a block has."""
    return max(1, BLOCK_BYTES // max(1, element.n_bytes))


def header(leaf: Leaf) -> bytes:
    """What is hashed beside the elements."""
    said: dict[str, object] = {"element": leaf.element.name, "shape": list(leaf.shape)}
    if leaf.value:
        said["value"] = leaf.value[0]
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def leaf_digest(leaf: Leaf, blocks: bytes) -> str:
    """The digest of a leaf whose blocks have these digests, one after the other."""
    return sha256(header(leaf) + blocks).hexdigest()


def merkle_root(digests: Mapping[str, str]) -> str:
    """The digest of a checkpoint: of all names and their digests, in order of the names."""
    nodes = [
        sha256(
            b"\0" + name.encode("utf-8", "surrogatepass") + b"\0" + bytes.fromhex(digest)
        ).digest()
        for name, digest in sorted(digests.items())
    ]
    while len(nodes) > 1:
        nodes = [_joined(nodes[i : i + 2]) for i in range(0, len(nodes), 2)]
    return nodes[0].hex() if nodes else sha256().hexdigest()


def _joined(pair: Sequence[bytes]) -> bytes:
    return sha256(b"\1" + b"".join(pair)).digest() if len(pair) == 2 else pair[0]
