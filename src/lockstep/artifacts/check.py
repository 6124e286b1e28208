"""One row of a verdict table: what was compared with what, how much of it, and how it came out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lockstep.errors import InputError

Verdict = Literal["pass", "fail", "missing"]
Relation = Literal["<=", ">=", "=="]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A verdict that follows from its own numbers; nothing compared is never a pass.

    `against` says with what; `compared` counts `unit`s; the claim is `figure relation bound`.
    """

    id: str
    name: str
    against: str
    compared: int
    unit: str
    figure: float | None
    relation: Relation
    bound: float | None
    verdict: Verdict
    reason: str = ""

    def __post_init__(self) -> None:
        if self.verdict == "pass" and not (self.compared > 0 and self.holds):
            raise InputError(
                f"check {self.id}: expected a pass to follow from its numbers, got "
                f"{self.figure} {self.relation} {self.bound} over {self.compared} {self.unit}",
                hint="run the gate again",
            )
        if self.verdict != "pass" and not self.reason:
            raise InputError(
                f"check {self.id}: expected a reason for {self.verdict!r}, got none",
                hint="run the gate again",
            )

    @property
    def holds(self) -> bool:
        """Whether the figure keeps the bound; false where either is missing."""
        return _holds(self.figure, self.relation, self.bound)

    @classmethod
    def measured(
        cls,
        *,
        id: str,
        name: str,
        against: str,
        compared: int,
        unit: str,
        figure: float,
        relation: Relation,
        bound: float,
        reason: str = "",
    ) -> Check:
        """Decides from the numbers; a figure that is not finite, and nothing compared, fail."""
        if not math.isfinite(figure):
            why, shown = f"the figure is {figure}", None
        else:
            why, shown = f"expected {relation} {bound:g}, got {figure:g}", float(figure)
        if compared <= 0:
            why = "nothing was compared"
        good = compared > 0 and _holds(shown, relation, bound)
        return cls(
            id=id,
            name=name,
            against=against,
            compared=compared,
            unit=unit,
            figure=shown,
            relation=relation,
            bound=bound,
            verdict="pass" if good else "fail",
            reason=reason if good else (reason or why),
        )

    @classmethod
    def missing(cls, *, id: str, name: str, against: str, unit: str, reason: str) -> Check:
        """A gate for which there is no evidence."""
        return cls(
            id=id,
            name=name,
            against=against,
            compared=0,
            unit=unit,
            figure=None,
            relation="<=",
            bound=None,
            verdict="missing",
            reason=reason,
        )


def all_pass(checks: Iterable[Check]) -> bool:
    """Whether there is a check, and each of them passed."""
    verdicts = [check.verdict for check in checks]
    return bool(verdicts) and set(verdicts) == {"pass"}


def _holds(figure: float | None, relation: Relation, bound: float | None) -> bool:
    if figure is None or bound is None:
        return False
    return {"<=": figure <= bound, ">=": figure >= bound, "==": figure == bound}[relation]
