"""A report held against one of its two checkpoints, and against itself.

A report is a file that anybody can edit, so it proves nothing by itself. What can be checked again
without the other checkpoint: that its parts follow from each other, and that this checkpoint has
the digests that the report gives for one side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lockstep.artifacts import Artifact, parse_json
from lockstep.artifacts.printable import printable
from lockstep.artifacts.verification import (
    VALUE_EXACT,
    ClaimRow,
    Side,
    Verdict,
    Verification,
    weakest,
)
from lockstep.errors import GateError, InputError
from lockstep.formats.locate.bounded import opened
from lockstep.verify.api import digest_checkpoint, exit_code
from lockstep.verify.digest import ALGORITHM
from lockstep.verify.engine.examine import Options
from lockstep.verify.listing import DigestChanges, DigestLine, Digests, compare_digests, root_of

_MAX_BYTES = 256 << 20  # some hundred thousand leaves
_EDITED = "ask for the report again, with `lockstep verify --out`; this one was edited or damaged"

NOT_RECHECKED = (
    "that the other checkpoint has the digests that the report gives for it: run this with it too",
    "the claims that are not identities: their values were compared only when the report was made",
)


@dataclass(frozen=True, kw_only=True)
class Against(Artifact, file="against.json", schema="lockstep.against/1"):
    """A checkpoint held against the digests of a report.  History: 1 the first.

    `side` is the one that it is nearest to; "both" if the two sides have the same digests.
    """

    report: str
    report_verdict: Verdict
    where: str
    side: Literal["source", "target", "both"]
    matches: bool
    root: str
    n_equal: int
    changed: tuple[str, ...]
    retyped: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    rechecked: tuple[str, ...]
    not_rechecked: tuple[str, ...] = NOT_RECHECKED


def hold_against(
    report_path: Path, checkpoint: Path, format: str | None, options: Options
) -> tuple[Against, int]:
    """What one checkpoint and a report say of each other, and the exit code for it.

    Raises: InputError if the report or the checkpoint cannot be read.
    """
    report = load_report(report_path)
    found = against(report, report_path, digest_checkpoint(checkpoint, format, options))
    return found, exit_code(report) if found.matches else GateError.exit_code


def load_report(path: Path) -> Verification:
    """A report that is consistent in itself.

    Raises: InputError naming what does not follow, or if it has no digests.
    """
    with opened(path) as (file, n_bytes):
        if n_bytes > _MAX_BYTES:
            raise InputError(
                f"{path}: expected a report of at most {_MAX_BYTES} bytes, got {n_bytes}",
                hint="give the report that `lockstep verify --out` wrote",
            )
        text = file.read(n_bytes)
    report = Verification.from_document(parse_json(text, str(path)), str(path))
    if report.digest_algorithm != ALGORITHM:
        raise InputError(
            f"{path}: digest_algorithm: expected {ALGORITHM}, got {report.digest_algorithm!r:.40}",
            hint="make it with `--digest sha256`; without digests nothing can be re-checked",
        )
    for part in (_groups, _coverage, _targets, _roots, _identities):
        for problem in part(report):
            raise InputError(f"{path}: {problem}", hint=_EDITED)
    return report


def against(report: Verification, report_path: Path, found: Digests) -> Against:
    """Which side of a report a checkpoint is, and every leaf that is not as the report says."""
    lines = {line.name: line for line in found.leaves}
    changes = {
        name: compare_digests(_lines(side), lines)
        for name, side in (("source", report.source), ("target", report.target))
    }
    n_wrong = {name: _n_wrong(change) for name, change in changes.items()}
    nearest = min(n_wrong, key=lambda name: (n_wrong[name], -len(changes[name].equal)))
    change = changes[nearest]
    both = all(each.is_same for each in changes.values())
    return Against(
        report=str(report_path),
        report_verdict=report.verdict,
        where=found.where,
        side="both" if both else "source" if nearest == "source" else "target",
        matches=change.is_same,
        root=found.root,
        n_equal=len(change.equal),
        changed=change.changed,
        retyped=change.retyped,
        missing=change.missing,
        extra=change.extra,
        rechecked=tuple(_rechecked(report)),
    )


def _n_wrong(change: DigestChanges) -> int:
    return sum(map(len, (change.changed, change.retyped, change.missing, change.extra)))


def _lines(side: Side) -> dict[str, DigestLine]:
    """The digests of a side; a leaf without one matches nothing."""
    return {
        leaf.name: DigestLine(
            name=leaf.name, element=leaf.element, shape=leaf.shape, digest=leaf.digest or ""
        )
        for leaf in side.leaves
    }


def _rechecked(report: Verification) -> Iterator[str]:
    yield f"the verdict {report.verdict} follows from its {len(report.claims)} claims and problems"
    yield "the groups follow from the claims, and each exact claim is about a whole target leaf"
    yield "the ledger: what nothing accounts for is a problem, what is excused has a reason"
    yield "the roots follow from the digests of the leaves"
    n = sum(1 for _ in _identity_pairs(report))
    yield f"{n} exact claims of identity have the same digest on both sides"
    yield "type, shape and digest of each leaf of this checkpoint"


# --- what has to follow from what


def _groups(report: Verification) -> Iterator[str]:
    verdicts: dict[str, list[Verdict]] = {}
    for row in report.claims:
        verdicts.setdefault(row.group, []).append(row.verdict)
    said = {group.name: (group.verdict, group.n_claims, group.n_exact) for group in report.groups}
    unresolved = {group.name for group in report.groups if group.n_unresolved and report.problems}
    due = {
        name: (
            "FAIL" if name in unresolved else weakest(found),
            len(found),
            sum(verdict in VALUE_EXACT for verdict in found),
        )
        for name in verdicts.keys() | unresolved
        for found in [verdicts.get(name, [])]
    }
    for name in sorted({*said, *due}):
        if said.get(name) != due.get(name):
            yield (
                f"groups: expected {printable(name)} to follow from the claims, {due.get(name)}, "
                f"got {said.get(name)}"
            )


def _coverage(report: Verification) -> Iterator[str]:
    for name, side in (("source", report.source), ("target", report.target)):
        for leaf in side.leaves:
            n_known = leaf.n_claimed + leaf.n_excused
            if leaf.n_excused and not leaf.excuse:
                yield (
                    f"{name}.leaves: expected a reason for the {leaf.n_excused} elements of "
                    f"{printable(leaf.name)} that are excused, got none"
                )
            if n_known < leaf.n_elements and not report.problems:
                yield (
                    f"{name}.leaves: expected all {leaf.n_elements} elements of "
                    f"{printable(leaf.name)} to be accounted for, got {n_known} and no problem"
                )


def _targets(report: Verification) -> Iterator[str]:
    claimed = Counter(row.target for row in report.claims)
    targets = {leaf.name: leaf for leaf in report.target.leaves}
    sources = {leaf.name for leaf in report.source.leaves}
    for row in report.claims:
        name, leaf = printable(row.target), targets.get(row.target)
        if leaf is None or (claimed[row.target] > 1 and not report.problems):
            yield f"claims: expected one claim on a leaf of the target, got {name}"
        elif row.verdict in VALUE_EXACT and row.n_elements != leaf.n_elements:
            yield (
                f"claims: expected the {leaf.n_elements} elements of {name} to be compared, got "
                f"{row.n_elements}"
            )
        if not sources.issuperset(row.sources):
            yield f"claims: expected {name} to be made of leaves of the source, got others"
    for leaf in report.target.leaves:
        if leaf.n_claimed and leaf.name not in claimed:
            yield f"target.leaves: expected a claim on {printable(leaf.name)}, got none"


def _roots(report: Verification) -> Iterator[str]:
    for name, side in (("source", report.source), ("target", report.target)):
        digests = {leaf.name: leaf.digest for leaf in side.leaves if leaf.digest}
        lacking = [leaf.name for leaf in side.leaves if not leaf.digest]
        if lacking:
            if side.root is not None:
                yield f"{name}.root: expected none, as {printable(lacking[0])} has no digest"
            continue
        root = root_of(digests, f"{name}.leaves")
        if side.root != root:
            yield f"{name}.root: expected it to follow from the leaves, {root}, got {side.root}"


def _identities(report: Verification) -> Iterator[str]:
    """An exact claim of identity between leaves of one shape means one digest."""
    for row, old, new in _identity_pairs(report):
        if old.digest != new.digest:
            yield (
                f"claims: expected {printable(row.target)}, which is claimed to be "
                f"{printable(row.sources[0])} and called {row.verdict}, to have its digest "
                f"{old.digest:.16}…, got {new.digest:.16}…"
            )


def _identity_pairs(report: Verification) -> Iterator[tuple[ClaimRow, DigestLine, DigestLine]]:
    """The exact claims of identity whose two digests can be held against each other."""
    sources, targets = _lines(report.source), _lines(report.target)
    for row in report.claims:
        if row.verdict == "EXACT_BITS" and len(row.sources) == 1:
            old, new = sources.get(row.sources[0]), targets.get(row.target)
            if old is None or new is None or not (old.digest and new.digest):
                continue
            if (old.element, old.shape) == (new.element, new.shape):
                yield row, old, new
