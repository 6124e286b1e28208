"""Quality gates over a file of rows, each of which can fail and then says where."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lockstep.artifacts import read_bytes, utc_now
from lockstep.artifacts.dataset_qc import DatasetQc, Gate, QcChecks, QcViolation
from lockstep.data.grammar import EOS, split_row
from lockstep.data.predicates import decide
from lockstep.data.svg import parse_svg
from lockstep.errors import InputError

_MAX_SAMPLES = 5  # violations that are named, for each gate


@dataclass(frozen=True, slots=True, kw_only=True)
class QcRules:
    """What is asked of a data set."""

    require_ascii: bool = True
    require_svg_rows: bool = True
    require_contract: bool = False
    max_row_chars: int = 65_536
    max_duplicate_ratio: float = 0.5


@dataclass(frozen=True, slots=True)
class _Found:
    """Violations of one gate; the gate is skipped if nobody asked for it."""

    gate: str
    asked: bool
    places: tuple[tuple[int, str], ...]  # line number and problem

    @property
    def verdict(self) -> Gate:
        if not self.asked:
            return "skipped"
        return "fail" if self.places else "pass"

    @property
    def named(self) -> tuple[QcViolation, ...]:
        shown = self.places[:_MAX_SAMPLES] if self.asked else ()
        return tuple(QcViolation(gate=self.gate, line_no=n, problem=p) for n, p in shown)


def check_dataset(path: Path, rules: QcRules | None = None) -> DatasetQc:
    """Runs every gate over a file and records the verdict; what fails is recorded, not raised.

    Raises: InputError if the file cannot be read.
    """
    rules = rules or QcRules()
    path = Path(path)
    data = read_bytes(path, hint="check the path, or build one with `lockstep data make`")
    lines = data.replace(b"\r\n", b"\n").split(b"\n")
    rows = [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    texts = [(n, line.decode("utf-8", "replace")) for n, line in rows]
    n_duplicates = len(rows) - len({line for _, line in rows})
    too_many = n_duplicates > rules.max_duplicate_ratio * len(rows)
    crowd = f"expected at most {rules.max_duplicate_ratio:.0%} repeated rows, got {n_duplicates}"
    found = [
        _Found("utf8_gate", True, tuple(_not_utf8(rows))),
        _Found("non_empty_gate", True, () if rows else ((1, "expected rows, got none"),)),
        _Found("ascii_gate", rules.require_ascii, tuple(_not_ascii(texts))),
        _Found("svg_row_gate", rules.require_svg_rows, tuple(_not_svg(texts))),
        _Found("contract_gate", rules.require_contract, tuple(_untrue(texts))),
        _Found("duplicates_gate", True, ((1, crowd),) if too_many else ()),
        _Found("row_length_gate", True, tuple(_over_long(texts, rules.max_row_chars))),
    ]
    checks = QcChecks(**{f.gate: f.verdict for f in found})
    counts = {f.gate: len(f.places) for f in found}
    return DatasetQc(
        status="fail" if checks.failed else "pass",
        path=str(path),
        dataset_dir=str(path.parent),
        dataset_name=path.stem,
        sha256=hashlib.sha256(data).hexdigest(),
        total_lines=data.count(b"\n") + (not data.endswith(b"\n") and bool(data)),
        non_empty_lines=len(rows),
        bytes=len(data),
        require_ascii=rules.require_ascii,
        require_svg_rows=rules.require_svg_rows,
        require_contract=rules.require_contract,
        max_row_chars=rules.max_row_chars,
        max_duplicate_ratio=rules.max_duplicate_ratio,
        ascii_violations=counts["ascii_gate"],
        svg_violations=counts["svg_row_gate"],
        contract_violations=counts["contract_gate"],
        duplicate_rows=n_duplicates,
        over_long_rows=counts["row_length_gate"],
        checks=checks,
        violations=tuple(violation for f in found for violation in f.named),
        generated_at=utc_now(),
    )


Places = Iterator[tuple[int, str]]


def _not_utf8(rows: list[tuple[int, bytes]]) -> Places:
    for line_no, line in rows:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = line[error.start]
            yield line_no, f"column {error.start + 1}: expected UTF-8, got the byte 0x{byte:02X}"


def _not_ascii(rows: list[tuple[int, str]]) -> Places:
    for line_no, row in rows:
        for i, character in enumerate(row):
            if not (" " <= character <= "~" or character == "\t"):
                got = f"U+{ord(character):04X} {character!r}"
                yield line_no, f"column {i + 1}: expected printable ASCII, got {got}"
                break


def svg_of_row(row: str) -> str:
    """The drawing of a row: what follows the tags, without the end token."""
    start = row.find("<svg")
    tags = row[: max(start, 0)]
    plain = not tags or (tags.startswith("[") and tags.endswith("]") and " " not in tags)
    if start < 0 or not plain:
        raise InputError(
            f"row: expected it to start with <svg or [tags]<svg, got {row[:40]!r}",
            hint="drop the row, or map it to one SVG to a line",
        )
    return row[start:].removesuffix(EOS)


def _not_svg(rows: list[tuple[int, str]]) -> Places:
    for line_no, row in rows:
        try:
            parse_svg(svg_of_row(row.strip()))
        except InputError as error:
            yield line_no, error.message


def _untrue(rows: list[tuple[int, str]]) -> Places:
    for line_no, row in rows:
        try:
            prompt, svg = split_row(row)
            truths = decide(parse_svg(svg), prompt.tags)
        except InputError as error:
            yield line_no, error.message
            continue
        if wrong := [tag for tag, true in truths.items() if not true]:
            yield line_no, f"expected every tag to be true, got {' '.join(wrong)} false"


def _over_long(rows: list[tuple[int, str]], max_chars: int) -> Places:
    for line_no, row in rows:
        if len(row) > max_chars:
            yield line_no, f"expected at most {max_chars} characters, got {len(row)}"
