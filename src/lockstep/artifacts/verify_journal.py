"""verify_journal.jsonl: what a verification has finished, so that one cut short goes on."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts.record import Artifact


@dataclass(frozen=True, kw_only=True)
class JournalEntry(Artifact, file="verify_journal.jsonl", schema="lockstep.verify_journal/1"):
    """A claim that held over all of its elements, or a hashed leaf.  History: 1 the first.

    `run` is the digest of the files' identities and the options, `key` that of the claim; both must
    be the same for the entry to count. `digests` are by side and leaf, "source:NAME".
    """

    run: str
    key: str
    claim: str
    n_compared: int
    bytes_read: int
    seconds: float
    digests: dict[str, str]
