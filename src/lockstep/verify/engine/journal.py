"""What a run that was cut short has finished already; only what still holds is taken over."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from lockstep.artifacts.record import append_line, read_lines
from lockstep.artifacts.verify_journal import JournalEntry
from lockstep.formats.leaf import FileIdentity, Leaf
from lockstep.verify.claim import Claim

_FORM = "the digest of a source is of all of it"  # what was noted otherwise is not taken over


def run_key(files: Iterable[FileIdentity], options: str) -> str:
    """What tells that files and options are those of the run before."""
    said = [
        [str(f.path.absolute()), f.n_bytes, f.mtime_ns, f.ctime_ns, f.inode, f.device]
        for f in files
    ]
    return sha256(json.dumps([_FORM, said, options]).encode("utf-8", "surrogatepass")).hexdigest()


def claim_key(claim: Claim, leaves: Mapping[str, Leaf], target: Leaf) -> str:
    """What tells that a claim says the same, of leaves of the same type and shape."""
    layout = claim.layout
    kept = sha256()
    for leaf in (*leaves.values(), target):
        kept.update(
            f"{leaf.name}|{leaf.shape}|{leaf.element}|{leaf.value!r}\n".encode(errors="replace")
        )
    kept.update(f"{claim.id}|{claim.target}|{claim.equality}\n".encode(errors="replace"))
    kept.update(json.dumps([value.text for value in claim.values]).encode())
    if layout is not None:
        kept.update(repr(layout.shape).encode())
        for piece in layout.pieces:
            kept.update(repr(piece).encode(errors="replace"))
    return kept.hexdigest()


class Journal:
    """The file of a run; without a path nothing is kept."""

    def __init__(self, path: Path | None, run: str) -> None:
        """Reads what an earlier run left.

        Raises: InputError if the file is damaged before its last line.
        """
        self.path, self.run = path, run
        self.claims: dict[str, JournalEntry] = {}
        self.digests: dict[str, str] = {}
        self.n_stale = 0
        if path is not None and path.exists():
            for entry in read_lines(path, JournalEntry):
                if entry.run != run:
                    self.n_stale += 1
                    continue
                self.digests |= entry.digests
                if entry.key:
                    self.claims[entry.key] = entry

    def note(self, entry: JournalEntry) -> None:
        """Appends what was finished.

        Raises: EnvironmentLacks if the disk refuses.
        """
        if self.path is not None:
            append_line(self.path, entry)
