"""The closing table: what was checked, how much, the verdict and the figure."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lockstep.artifacts import Check

_COLORS = {"pass": "green", "fail": "bold red", "missing": "yellow"}


def verdict_table(checks: Iterable[Check]) -> str:
    """The checks as a table of text, with colours where the terminal has them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("checked", overflow="fold")
    table.add_column("against", overflow="fold")
    table.add_column("how much", justify="right")
    table.add_column("verdict")
    table.add_column("figure", justify="right")
    for check in checks:
        table.add_row(
            check.name,
            check.against,
            f"{check.compared:,} {check.unit}",
            Text(check.verdict, style=_COLORS[check.verdict]),
            _figure(check),
        )
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")


def _figure(check: Check) -> str:
    if check.figure is None or check.bound is None:
        return f"none: {check.reason}"
    return f"{check.figure:.4g} {check.relation} {check.bound:.4g}"
