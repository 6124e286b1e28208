"""A verification as text: groups, what differs and why, coverage, cost, and the verdict last."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from lockstep.artifacts.printable import names, printable, size
from lockstep.artifacts.verification import (
    LATTICE,
    MEANING,
    VALUE_EXACT,
    ClaimRow,
    Difference,
    GroupRow,
    ProblemRow,
    Side,
    Spot,
    Verdict,
    Verification,
    excused,
)

_SHOWN = 20  # failures, problems and ambiguities that the text names; the document has all
_NEAR_ULP = 1 << 20  # beyond that the number of units says nothing to a person
_NUMBER = re.compile(r"\d+")
_LABELS: dict[Verdict, str] = {
    "EXACT_BITS": "PASS",
    "EXACT_UNDER": "PASS",
    "EXACT_VALUES": "INEXACT",
    "WITHIN": "INEXACT",
    "UNCHECKED": "UNCHECKED",
    "FAIL": "FAIL",
}


def verification_text(record: Verification) -> str:
    """What a person at the terminal reads."""
    return "\n".join(_lines(record))


def leaves(n: int) -> str:
    """`1 leaf`, `37 leaves`."""
    return "1 leaf" if n == 1 else f"{n:,} leaves"


def shortened(lines: Iterable[str], n_shown: int = _SHOWN) -> Iterator[str]:
    """The first lines, and how many more there are."""
    kept = list(lines)
    yield from kept[:n_shown]
    if len(kept) > n_shown:
        yield f"... and {len(kept) - n_shown} more; --json has all"


def problem_lines(problems: Iterable[ProblemRow]) -> Iterator[str]:
    """Each problem with its hint below it; those that differ in numbers alone are said once."""
    alike: dict[tuple[str, str, str], list[ProblemRow]] = {}
    for row in problems:
        alike.setdefault((row.kind, _NUMBER.sub("0", row.message), row.hint), []).append(row)
    for first, *others in alike.values():
        hint = f"\n        {printable(first.hint)}" if first.hint else ""
        times = f"x{len(others) + 1}, e.g. " if others else ""
        yield f"  {first.kind}: {times}{printable(first.message)}{hint}"


def _lines(record: Verification) -> Iterator[str]:
    yield "per group:"
    width = max((len(printable(group.name)) for group in record.groups), default=0)
    for group in record.groups:
        found = Counter(row.verdict for row in record.claims if row.group == group.name)
        label = f"[{_LABELS[group.verdict]}]"
        yield f"  {label:11} {printable(group.name):{width}}  {_how_exact(group, found)}"
    if record.summary:
        yield "in short:"
        yield from shortened(f"  {printable(text)}" for text in record.summary)
    yield from _failures(record)
    if record.problems:
        yield "the claims do not add up:"
        yield from shortened(problem_lines(record.problems))
    yield "coverage:"
    yield from (_coverage(name, side) for name, side in
                (("source", record.source), ("target", record.target)))  # fmt: skip
    yield from _evidence(record)
    yield from _roots(record)
    yield _cost(record)
    yield "; ".join(filter(None, [_verdict(record), excused(record.source, record.target)]))


def _how_exact(group: GroupRow, found: Counter[Verdict]) -> str:
    """`37/37 leaves bit-identical`, as far as that is so."""
    n_all = group.n_claims + group.n_unresolved
    if n_all and found["EXACT_BITS"] == n_all:
        return f"{n_all}/{n_all} leaves bit-identical"
    n_exact = sum(found[verdict] for verdict in VALUE_EXACT)
    kinds = [f"{found[verdict]} {MEANING[verdict]}" for verdict in LATTICE if found[verdict]]
    if group.n_unresolved:
        kinds.append(f"{group.n_unresolved} not resolved, so not compared")
    return f"{n_exact}/{n_all} leaves value-exact ({', '.join(kinds)})"


def _failures(record: Verification) -> Iterator[str]:
    failed = [row for row in record.claims if row.verdict == "FAIL"]
    if failed:
        yield "what differs:"
    yield from shortened("\n".join(_failure(row)) for row in failed)
    others = [row for row in record.claims if row.verdict not in (*VALUE_EXACT, "FAIL")]
    if others:
        yield "not exact, or not compared:"
    yield from shortened(f"  {row.verdict} {printable(row.target)}: {printable(row.why)}"
                         for row in others)  # fmt: skip


def _failure(row: ClaimRow) -> Iterator[str]:
    sources = names(row.sources) or "a constant"
    yield f"  {printable(row.target)}  (from {sources}, {printable(row.transform)})"
    if row.difference is None:
        yield f"      {printable(row.why)}"
    else:
        yield from (f"      {line}" for line in _difference(row, row.difference))
    if row.diagnosis is not None:
        word = "why" if row.diagnosis.confirmed else "seen"
        yield f"      {word}: {printable(row.diagnosis.text)}"


def _difference(row: ClaimRow, found: Difference) -> Iterator[str]:
    kinds = ", ".join(
        f"{printable(kind.replace('_', ' '))} {n:,}" for kind, n in found.kinds.items()
    )
    near = found.worst_ulp is not None and found.worst_ulp <= _NEAR_ULP
    worst = f"; worst {found.worst_ulp:,} ULP" if near else ""
    largest = "" if found.max_abs is None else f"; largest |a-b| {found.max_abs:.4g}"
    yield f"{found.n_differ:,} of {row.n_elements:,} elements differ: {kinds}{worst}{largest}"
    yield f"first {_spot(row, found.first)}"
    if found.last != found.first:
        yield f"last  {_spot(row, found.last)}"


def _spot(row: ClaimRow, spot: Spot) -> str:
    unit = " block " if row.counts_blocks else ""
    source = (
        f"source {printable(spot.source)}{unit}{list(spot.source_index)}"
        if spot.source
        else "constant"
    )
    expected, got = (
        f"{printable(bits)} ({printable(value)})"
        for bits, value in ((spot.expected_bits, spot.expected), (spot.found_bits, spot.found))
    )
    return f"at {list(spot.target_index)}, {source}: expected {expected}, got {got}"


def _coverage(name: str, side: Side) -> str:
    total = sum(leaf.n_elements for leaf in side.leaves)
    claimed = sum(leaf.n_claimed for leaf in side.leaves)
    excused = sum(leaf.n_excused for leaf in side.leaves)
    parts = [f"{claimed:,} of {total:,} elements of {leaves(len(side.leaves))} claimed"]
    if excused:
        n = sum(bool(leaf.n_excused) for leaf in side.leaves)
        parts.append(f"{excused:,} in {leaves(n)} excused")
    if total - claimed - excused > 0:
        parts.append(f"{total - claimed - excused:,} unexplained")
    return f"  {name}: {', '.join(parts)}"


def _evidence(record: Verification) -> Iterator[str]:
    found = Counter(row.grade for row in record.claims if row.verdict != "FAIL")
    if found:
        yield "evidence of the mapping: " + ", ".join(f"{n} {grade}" for grade, n in
                                                      found.most_common())  # fmt: skip
    if record.mapping == "shared with the converter":
        yield "mapping shared with the converter: an error in it would be on both sides"
    elif record.mapping != "independent":
        yield f"mapping {record.mapping}: that they agree with it shows nothing by itself"
    if record.ambiguities:
        n = len(record.ambiguities)
        where = f"{n} place{'s' * (n != 1)}"
        yield f"shapes alone show nothing in {where}; `lockstep verify plan` lists them"


def _roots(record: Verification) -> Iterator[str]:
    for name, side in (("source", record.source), ("target", record.target)):
        if side.root:
            yield f"{name} root: {record.digest_algorithm} {side.root}"


def _cost(record: Verification) -> str:
    cost = record.cost
    parts = [f"read {size(cost.bytes_read)} in {cost.seconds:.3g} s"]
    if cost.seconds > 0 and cost.bytes_read:
        rate = cost.bytes_read / cost.seconds / 1e6
        parts.append(f"{rate:,.0f} MB/s" if rate >= 10 else f"{rate:.2g} MB/s")
    peak = "not measured" if cost.peak_bytes is None else size(cost.peak_bytes)
    parts.append(f"peak {peak} of {size(cost.budget_bytes)} allowed "
                 f"({size(cost.predicted_peak_bytes)} predicted)")  # fmt: skip
    if cost.n_resumed:
        parts.append(f"{cost.n_resumed} claims from the journal")
    return "cost: " + ", ".join(parts)


def _verdict(record: Verification) -> str:
    n = len(record.claims)
    n_failed = sum(row.verdict == "FAIL" for row in record.claims)
    n_open = sum(group.n_unresolved for group in record.groups)
    label = f"VERDICT: {_LABELS[record.verdict]}"
    if n_failed:
        rest = f", {n_open} more were not compared" if n_open else ""
        return f"{label}: {n_failed} of {leaves(n)} differ{rest}; the conversion is not value-exact"
    if any(row.kind == "tie" for row in record.problems):
        return f"{label}: leaves that are tied differ; the conversion is not value-exact"
    if record.problems:
        n_problems = len(record.problems)
        return (
            f"{label}: {n_problems} problem{'s' * (n_problems != 1)} in claims or coverage; "
            "the conversion is not shown to be value-exact"
        )
    if record.verdict == "EXACT_BITS":
        whole = not excused(record.source, record.target)
        return f"{label}: {leaves(n)} bit-identical" + "; the conversion is value-exact" * whole
    if record.verdict == "EXACT_UNDER":
        return f"{label}: {leaves(n)} value-exact under the declared transforms"
    weak = sum(row.verdict not in VALUE_EXACT for row in record.claims)
    return f"{label}: {weak} of {leaves(n)} {MEANING[record.verdict]}; exactness is not proved"
