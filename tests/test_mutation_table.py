"""The page of mutations: every one is caught, and the page says what is found here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conversions.table import CHECKS, Row, rows, usual_checks

PAGE = Path(__file__).parents[1] / "docs" / "verify-mutations.md"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return rows(tmp_path_factory.mktemp("mutations"), with_logits=False)


@pytest.mark.torch
def test_every_mutation_is_caught_and_named(found: list[Row]) -> None:
    assert len(found) >= 77
    assert not [row.name for row in found if not row.caught]
    assert not [(row.name, row.words) for row in found if row.named == "NO"]
    assert {row.by for row in found} == {"bits", "type", "coverage", "tie"}


@pytest.mark.torch
def test_the_page_says_what_is_found_here(found: list[Row]) -> None:
    shown = {cells[0]: tuple(cells) for cells in map(_cells, PAGE.read_text().splitlines())}
    for row in found:
        assert shown.get(row.name, ())[: len(row.marks)] == row.marks, "run `make mutations`"


def test_the_page_shows_no_case_that_came_out_wrong() -> None:
    assert "| NO |" not in PAGE.read_text()


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda a: a, ""),
        (lambda a: a[::-1], "close 0.1, close 1e-2, close 1e-5, array_equal"),
        (lambda a: a * 1.0001, "sums, close 1e-5, array_equal"),
        (lambda a: a[:1], "shape, finite"),
        (lambda a: a * np.inf, ", ".join(CHECKS)),
    ],
)
def test_the_usual_checks_see_what_they_see(change, seen: str) -> None:  # type: ignore[no-untyped-def]
    good = {"w": np.arange(1, 7, dtype=np.float64).reshape(3, 2)}
    checks = zip(CHECKS, usual_checks(good, {"w": change(good["w"])}), strict=True)
    assert ", ".join(name for name, is_seen in checks if is_seen) == seen
