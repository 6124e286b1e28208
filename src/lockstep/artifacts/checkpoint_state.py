"""state.json: what a checkpoint holds beside tensors, and the hashes of its other files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Self

from lockstep.artifacts.codec import Scalar
from lockstep.artifacts.record import Artifact
from lockstep.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FileHash:
    """One file beside the state.  Units: bytes."""

    sha256: str
    n_bytes: int


@dataclass(frozen=True, kw_only=True)
class DataCursor:
    """How far the data has been read: the epoch, and how many of its windows are done."""

    epoch: int
    index: int


@dataclass(frozen=True, kw_only=True)
class RandomState:
    """Where random numbers come from: every draw is a function of the seed and the cursor."""

    generator: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class CheckpointState(Artifact, file="state.json", schema="lockstep.checkpoint/1"):
    """The state after `step`; `digest` covers every other field.  History: 1 the first."""

    created_at: str
    reason: str
    step: int
    tokens_seen: int
    template: str
    config: dict[str, Scalar]
    tokenizer_sha256: str | None
    dataset_sha256: str
    optimizer: dict[str, Scalar]
    schedule: dict[str, Scalar]
    settings: dict[str, Scalar]
    cursor: DataCursor
    random: RandomState
    files: dict[str, FileHash]
    digest: str = ""

    def sealed(self) -> Self:
        """The state with its digest."""
        return replace(self, digest=self._computed())

    @classmethod
    def from_document(cls, document: Any, where: str) -> Self:
        """The state that a parsed document spells.

        Raises: InputError if a key is wrong, or the digest is not that of the other fields.
        """
        state = super().from_document(document, where)
        if state.digest != state._computed():
            raise InputError(
                f"{where}: digest: expected {state._computed()[:16]}…, got {state.digest[:16]}…",
                hint="resume from an older checkpoint; this one was changed after it was written",
            )
        return state

    def _computed(self) -> str:
        fields = {**self.document(), "digest": ""}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
