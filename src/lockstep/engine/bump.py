"""weights.bump and weights_manifest.json: the parameters of a model in one flat file.

Layout, little-endian: a header of 128 bytes (magic, version, dimensions, SHA-256 of all tensor
bytes with the table of types before them), 24 bytes of extension, the table of types (a count and
one byte for each tensor), the tensors at multiples of 64 bytes, a JSON text, and a footer of 48
bytes with that text's length and SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep import __version__
from lockstep.artifacts import parse_json
from lockstep.artifacts.codec import Scalar
from lockstep.artifacts.files import content_hash
from lockstep.artifacts.weights_manifest import WeightEntry, WeightsManifest
from lockstep.engine.durable import write_synced
from lockstep.errors import InputError

Parameters = Mapping[str, NDArray[Any]]

BUMP_FILE = "weights.bump"
FORMAT = "weights_manifest_v7_runtime_checkpoint"
ALIGN_BYTES = 64
_MAGIC, _FOOTER_MAGIC, _VERSION = b"BUMPWGT5", b"BUMPV5MD", 5
_HEADER = struct.Struct("<8s10I4Q2I32s8x")
_EXTENSION_BYTES = 24
_TABLE_START = _HEADER.size + _EXTENSION_BYTES
_FOOTER = struct.Struct("<8sQ32s")
_F32 = 0
_HEADER_DIMS = (
    "num_layers", "vocab_size", "embed_dim", "hidden_dim",
    "context_len", "num_heads", "num_kv_heads", "head_dim",
)  # fmt: skip


def write_bump(
    directory: Path,
    parameters: Parameters,
    *,
    template: str,
    config: Mapping[str, Scalar],
    tokenizer_sha256: str | None,
    generated_at: str,
    step: int,
    reason: str,
    run_id: str | None,
    checkpoint: str | None,
) -> WeightsManifest:
    """Writes both files into a directory and returns the manifest.

    Raises: EnvironmentLacks if the disk refuses.
    """
    entries = lay_out(parameters)
    checksum = hashlib.sha256()
    body = _body(parameters, entries)
    for chunk in body:
        checksum.update(chunk)
    meta = _metadata(template, config, entries, generated_at)
    header = _header(config, checksum.digest())
    footer = _FOOTER.pack(_FOOTER_MAGIC, len(meta), hashlib.sha256(meta).digest())

    def chunks() -> Iterator[bytes | memoryview]:
        yield header
        yield from _body(parameters, entries)
        yield meta
        yield footer

    written = write_synced(directory / BUMP_FILE, chunks())
    manifest = WeightsManifest(
        version=1,
        format=FORMAT,
        generated_at=generated_at,
        template=template,
        config=dict(config),
        weights_file=BUMP_FILE,
        weights_sha256=written.sha256,
        weights_bytes=written.n_bytes,
        tokenizer_sha256=tokenizer_sha256,
        step=step,
        reason=reason,
        run_id=run_id,
        checkpoint=checkpoint,
        entries=entries,
    )
    manifest.save(directory)
    return manifest


def lay_out(parameters: Parameters) -> tuple[WeightEntry, ...]:
    """Where each tensor lies in the file."""
    end = _TABLE_START + 4 + len(parameters)
    entries = []
    for name, array in parameters.items():
        start = -(-end // ALIGN_BYTES) * ALIGN_BYTES
        end = start + array.nbytes
        entry = WeightEntry(
            name=name, offset=start, size=array.nbytes, dtype="fp32", shape=tuple(array.shape)
        )
        entries.append(entry)
    return tuple(entries)


def _header(config: Mapping[str, Scalar], checksum: bytes) -> bytes:
    dims = [int(config.get(key) or 0) for key in _HEADER_DIMS]
    layers, vocab, embed, hidden, context, heads, kv_heads, head = dims
    header = _HEADER.pack(
        _MAGIC, _VERSION, 1, layers, vocab, embed, hidden, context, heads, kv_heads, head,
        embed, head, hidden, context, 0, 0, checksum,
    )  # fmt: skip
    return header + bytes(_EXTENSION_BYTES)


def _body(parameters: Parameters, entries: tuple[WeightEntry, ...]) -> Iterator[bytes | memoryview]:
    """The table of types and the tensors, with the padding between them."""
    yield struct.pack("<I", len(entries)) + bytes([_F32] * len(entries))
    end = _TABLE_START + 4 + len(entries)
    for entry in entries:
        yield bytes(entry.offset - end)
        array = np.ascontiguousarray(parameters[entry.name], dtype="<f4")
        yield array.reshape(-1).view(np.uint8).data
        end = entry.offset + entry.size


def _metadata(
    template: str,
    config: Mapping[str, Scalar],
    entries: tuple[WeightEntry, ...],
    generated_at: str,
) -> bytes:
    meta = {
        "schema_version": 1,
        "format": FORMAT,
        "created_by": f"lockstep {__version__}",
        "created_at": generated_at,
        "template": {"name": template},
        "config": dict(config),
        "quant_summary": {},
        "manifest_hash": _entries_hash(entries),
    }
    return json.dumps(meta, sort_keys=True, separators=(",", ":")).encode()


def _entries_hash(entries: tuple[WeightEntry, ...]) -> str:
    rows = json.dumps([asdict(e) for e in entries], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(rows.encode()).hexdigest()


def read_bump(
    directory: Path, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[WeightsManifest, dict[str, NDArray[Any]]]:
    """The manifest and exactly the tensors with these names and shapes, all hashes verified.

    Raises: InputError naming the file and what is wrong with it.
    """
    manifest = WeightsManifest.load(directory)
    path = directory / BUMP_FILE
    if content_hash(path) != manifest.weights_sha256:
        raise _damaged(path, "the bytes that its manifest describes", "others")
    verify_structure(path, manifest)
    have = {e.name: tuple(e.shape) for e in manifest.entries}
    wanted = {name: tuple(shape) for name, shape in shapes.items()}
    if have != wanted:
        wrong = sorted(n for n in have.keys() | wanted.keys() if have.get(n) != wanted.get(n))
        rows = ", ".join(f"{n} {wanted.get(n, '-')} got {have.get(n, '-')}" for n in wrong[:4])
        raise InputError(
            f"{path}: expected the tensors of this model, got {len(wrong)} that differ: {rows}",
            hint="use the weights of this run, or the configuration of that one",
        )
    return manifest, _read_tensors(path, manifest)


def _read_tensors(path: Path, manifest: WeightsManifest) -> dict[str, NDArray[Any]]:
    data = np.memmap(path, np.uint8, "r")
    slices = ((e, data[e.offset : e.offset + e.size]) for e in manifest.entries)
    return {e.name: part.view("<f4").reshape(e.shape) for e, part in slices}


def verify_structure(path: Path, manifest: WeightsManifest) -> None:
    """Checks magic, footer, metadata and tensor table against the manifest.

    Raises: InputError naming what is wrong.
    """
    n_bytes = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or head[:8] != _MAGIC:
            raise _damaged(path, f"a file that starts with {_MAGIC.decode()}", repr(head[:8]))
        file.seek(max(0, n_bytes - _FOOTER.size))
        magic, meta_bytes, digest = _FOOTER.unpack(file.read(_FOOTER.size).ljust(_FOOTER.size))
        if magic != _FOOTER_MAGIC or meta_bytes > n_bytes - _FOOTER.size - _TABLE_START:
            raise _damaged(path, "a footer", "none; the file is cut short")
        file.seek(n_bytes - _FOOTER.size - meta_bytes)
        meta = file.read(meta_bytes)
    if hashlib.sha256(meta).digest() != digest:
        raise _damaged(path, "the metadata that its footer describes", "others")
    found = parse_json(meta, str(path))
    hashed = found.get("manifest_hash") if isinstance(found, dict) else None
    if hashed != _entries_hash(manifest.entries):
        raise _damaged(path, "the tensors of its manifest", "others")
    end = n_bytes - _FOOTER.size - meta_bytes
    for entry in manifest.entries:
        inside = entry.offset >= _TABLE_START and entry.offset + entry.size <= end
        if entry.dtype != "fp32" or not inside or entry.size != 4 * int(np.prod(entry.shape)):
            raise _damaged(path, f"{entry.name} inside of the file", f"{entry}")


def _damaged(path: Path, expected: str, got: str) -> InputError:
    return InputError(
        f"{path}: expected {expected}, got {got}",
        hint="promote a checkpoint again with `lockstep promote`, or resume from an older one",
    )
