"""The page of a verification: the verdict on top, below it everything that it follows from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lockstep import __version__
from lockstep.artifacts import atomic_write_text
from lockstep.artifacts.printable import printable, size
from lockstep.artifacts.verification import (
    LATTICE,
    MEANING,
    VALUE_EXACT,
    ClaimRow,
    Cost,
    GroupRow,
    LeafRow,
    Side,
    Spot,
    Verdict,
    Verification,
    excused,
)
from lockstep.report.html import fill

SECTIONS = (
    ("groups", "Groups"),
    ("problems", "Problems"),
    ("differences", "Differences"),
    ("claims", "Claims"),
    ("coverage", "Coverage"),
    ("evidence", "Grades"),
    ("cost", "Cost"),
    ("files", "Files and digests"),
)
_HEADLINES: dict[Verdict, str] = {
    "EXACT_BITS": "value-exact: every leaf is bit-identical",
    "EXACT_UNDER": "value-exact under the declared transforms",
    "EXACT_VALUES": "not bit-exact: equal values only",
    "WITHIN": "not exact: within the declared tolerance only",
    "UNCHECKED": "not proved: a part was not compared",
    "FAIL": "not exact",
}


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """How much of one side is accounted for."""

    title: str
    side: Side
    n_elements: int
    n_claimed: int
    n_excused: int
    open: tuple[LeafRow, ...]
    excused: tuple[LeafRow, ...]

    @property
    def n_open(self) -> int:
        """Elements that nothing accounts for."""
        return self.n_elements - self.n_claimed - self.n_excused


def write_verification_page(record: Verification, path: Path) -> Path:
    """Writes the page of a verification as one file that opens without network.

    Raises: EnvironmentLacks if the disk refuses.
    """
    return atomic_write_text(path, render(record))


def render(record: Verification) -> str:
    """The page as HTML."""
    failed = [row for row in record.claims if row.verdict == "FAIL"]
    return fill(
        "verification.html",
        styles=("page.css", "verification.css"),
        scripts=("verification.js",),
        filters={
            "plain": printable,
            "chip": _chip,
            "meaning": MEANING.__getitem__,
            "size": size,
            "index": _index,
            "leaves": lambda n: "1 leaf" if n == 1 else f"{n:,} leaves".replace(",", "\u202f"),
            "spot": _spot,
        },
        record=record,
        title=record.title or "Verification",
        headline=_headline(record),
        sections=[s for s in SECTIONS if s[0] not in _absent(record, failed)],
        counts=_counts(record),
        failed=failed,
        groups=[(group, _group_counts(record, group)) for group in record.groups],
        ledgers=(_ledger("Source", record.source), _ledger("Target", record.target)),
        grades=_grades(record),
        costs=_costs(record.cost),
        version=__version__,
    )


def _absent(record: Verification, failed: list[ClaimRow]) -> set[str]:
    parts = {"problems": record.problems, "differences": failed}
    return {name for name, rows in parts.items() if not rows}


def _headline(record: Verification) -> str:
    n_failed = sum(row.verdict == "FAIL" for row in record.claims)
    parts = []
    if n_failed:
        parts.append(f"{n_failed} of {len(record.claims)} leaves differ")
    if record.problems:
        n = len(record.problems)
        parts.append(f"{n} problem{'s' * (n != 1)} in the claims")
    parts = parts or [_HEADLINES[record.verdict]]
    if rest := excused(record.source, record.target):
        parts.append(rest)
        if record.verdict == "EXACT_BITS":
            parts[0] = "value-exact: every leaf that is claimed is bit-identical"
    return "; ".join(parts)


def _counts(record: Verification) -> list[tuple[Verdict, int]]:
    found = Counter(row.verdict for row in record.claims)
    return [(verdict, found[verdict]) for verdict in LATTICE if found[verdict]]


def _group_counts(record: Verification, group: GroupRow) -> str:
    found = Counter(row.verdict for row in record.claims if row.group == group.name)
    words = [f"{found[v]} {MEANING[v]}" for v in LATTICE if found[v]]
    if group.n_unresolved:
        words.append(f"{group.n_unresolved} not resolved, so not compared")
    return ", ".join(words)


def _ledger(title: str, side: Side) -> Ledger:
    leaves = side.leaves
    return Ledger(
        title=title,
        side=side,
        n_elements=sum(leaf.n_elements for leaf in leaves),
        n_claimed=sum(leaf.n_claimed for leaf in leaves),
        n_excused=sum(leaf.n_excused for leaf in leaves),
        open=tuple(leaf for leaf in leaves if leaf.n_claimed + leaf.n_excused < leaf.n_elements),
        excused=tuple(leaf for leaf in leaves if leaf.excuse),
    )


def _grades(record: Verification) -> list[tuple[str, int, list[ClaimRow]]]:
    """Each grade with its number of claims that hold, and those that have no evidence by it."""
    held = [row for row in record.claims if row.verdict != "FAIL"]
    found = Counter(row.grade for row in held)
    weak = ("indistinguishable", "not graded")
    return [
        (grade, n, [row for row in held if row.grade == grade and grade in weak])
        for grade, n in found.most_common()
    ]


def _costs(cost: Cost) -> list[tuple[str, str]]:
    rate = cost.bytes_read / cost.seconds if cost.seconds else None
    peak, anonymous = cost.peak_bytes, cost.anonymous_peak_bytes
    return [
        ("memory allowed", size(cost.budget_bytes)),
        ("memory predicted", size(cost.predicted_peak_bytes)),
        ("peak of the process", "not measured" if peak is None else size(peak)),
        ("of it not backed by files", "not measured" if anonymous is None else size(anonymous)),
        ("read", size(cost.bytes_read)),
        ("time", f"{cost.seconds:.3g} s"),
        ("rate", "not measured" if rate is None else f"{size(rate)}/s"),
        ("workers", f"{cost.n_workers}"),
        ("claims taken from the journal", f"{cost.n_resumed}"),
    ]


def _chip(verdict: Verdict) -> str:
    """The colour of a verdict: only what is value-exact is a pass."""
    if verdict in VALUE_EXACT:
        return "pass"
    return "fail" if verdict == "FAIL" else "missing"


def _index(index: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, index)) + "]"


def _spot(spot: Spot, row: ClaimRow) -> str:
    """Where an element lies in the source."""
    if not spot.source:
        return "a constant of the claims"
    unit = " block " if row.counts_blocks else ""
    return f"{printable(spot.source)}{unit}{_index(spot.source_index)}"
