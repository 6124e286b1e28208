"""A verification as JUnit XML, which continuous integration shows as tests."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from lockstep.artifacts import atomic_write_bytes
from lockstep.artifacts.printable import printable
from lockstep.artifacts.verification import VALUE_EXACT, ClaimRow, Verification, excused


def write_junit(record: Verification, path: Path) -> Path:
    """Writes one test for each claim and one for each problem; what is not exact is a failure.

    Raises: EnvironmentLacks if the disk refuses.
    """
    root = Element("testsuites", name="lockstep verify", time=f"{record.cost.seconds:.3f}")
    for group in record.groups:
        rows = [row for row in record.claims if row.group == group.name]
        failed = sum(row.verdict not in VALUE_EXACT for row in rows)
        suite = _suite(root, group.name, len(rows), failed)
        for row in rows:
            _claim(suite, row)
    suite = _suite(root, "claims and coverage", len(record.problems) or 1, len(record.problems))
    for i, problem in enumerate(record.problems):
        case = SubElement(suite, "testcase", classname="coverage", name=_name(problem.where, i))
        failure = SubElement(case, "failure", type=problem.kind, message=printable(problem.message))
        failure.text = printable(problem.hint)
    if not record.problems:
        rest = excused(record.source, record.target)
        name = f"every element once; {rest}" if rest else "every element once"
        SubElement(suite, "testcase", classname="coverage", name=name)
    indent(root)
    return atomic_write_bytes(path, tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def _suite(root: Element, name: str, n_tests: int, n_failed: int) -> Element:
    return SubElement(
        root, "testsuite", name=printable(name), tests=str(n_tests), failures=str(n_failed),
        errors="0", skipped="0",
    )  # fmt: skip


def _claim(suite: Element, row: ClaimRow) -> None:
    case = SubElement(
        suite, "testcase", classname=printable(row.group), name=printable(row.target),
        time=f"{row.seconds:.3f}",
    )  # fmt: skip
    if row.verdict in VALUE_EXACT:
        return
    reason = row.diagnosis.text if row.diagnosis else row.why
    failure = SubElement(case, "failure", type=row.verdict, message=printable(reason))
    if row.difference:
        first = row.difference.first
        failure.text = (
            f"{row.difference.n_differ} of {row.n_elements} elements differ; first at "
            f"{list(first.target_index)}: expected {printable(first.expected_bits)}, "
            f"got {printable(first.found_bits)}"
        )


def _name(where: str, i: int) -> str:
    return f"{i + 1}: {printable(where)}"
