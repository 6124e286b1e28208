"""weights_manifest.json: where each tensor lies in weights.bump."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts.codec import Scalar
from lockstep.artifacts.record import Artifact


@dataclass(frozen=True, kw_only=True)
class WeightEntry:
    """One tensor, row-major.  Units: offset and size in bytes from the start of the file."""

    name: str
    offset: int
    size: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class WeightsManifest(Artifact, file="weights_manifest.json", schema="lockstep.weights_manifest/1"):
    """The tensors of a weights file, in order, and its hash.  History: 1 the first."""

    version: int
    format: str
    generated_at: str
    template: str
    config: dict[str, Scalar]
    weights_file: str
    weights_sha256: str
    weights_bytes: int
    tokenizer_sha256: str | None
    step: int
    reason: str
    run_id: str | None
    checkpoint: str | None
    entries: tuple[WeightEntry, ...]
