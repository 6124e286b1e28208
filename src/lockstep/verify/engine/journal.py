"""What a run that was cut short has finished already; only what still holds is taken over."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

from lockstep.artifacts import parse_json
from lockstep.artifacts.record import append_line
from lockstep.artifacts.verify_journal import JournalEntry
from lockstep.errors import InputError
from lockstep.formats.leaf import FileIdentity, Leaf
from lockstep.formats.locate.bounded import opened
from lockstep.verify.claim import Claim

_FORM = "the digest of a source is of all of it"  # what was noted otherwise is not taken over

MAX_LINE = 1 << 24  # bytes; the digests of all sources of one claim are in one line


def _entries(path: Path) -> Iterator[JournalEntry]:
    """The entries of a journal; a torn last line, which only a crash leaves, is none.

    Raises: InputError naming a line that is too long or damaged, or if it is no regular file.
    """
    with opened(path) as (file, _):
        for i, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), start=1):
            where = f"{path}:{i}"
            if not line.endswith(b"\n"):
                if len(line) < MAX_LINE:
                    return
                raise InputError(
                    f"{where}: expected a line of less than {MAX_LINE} bytes, got more",
                    hint="name the journal of an earlier run, or a new file",
                )
            yield JournalEntry.from_document(parse_json(line, where), where)


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
            for entry in _entries(path):
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
