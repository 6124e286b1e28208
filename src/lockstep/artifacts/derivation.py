"""derivation.json: the map that a converter was seen to make, element by element."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lockstep.artifacts.record import Artifact
from lockstep.artifacts.verification import ProblemRow
from lockstep.errors import InputError

LeafStatus = Literal["derived", "constant", "computed", "not derived", "data-dependent"]
Outcome = Literal["derived", "partly derived", "data-dependent", "differs", "claims do not add up"]


@dataclass(frozen=True, kw_only=True)
class DerivedLeaf:
    """One target leaf: what it is made of.

    `transform` is spelled as in a claim file, and empty where no known steps make the map; then
    `pieces` are its beginning: leaf, first flat place on both sides, loops (n, source, target).
    `unsure` is what the runs did not tell.
    """

    target: str
    element: str
    shape: tuple[int, ...]
    status: LeafStatus
    why: str
    sources: tuple[str, ...]
    transform: str
    n_elements: int
    n_mapped: int
    n_constant: int
    n_pieces: int | None
    pieces: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Place:
    """One element of the source, or a constant where `leaf` is empty."""

    leaf: str
    index: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ComparedClaim:
    """What a claim file says of one leaf, held against what the converter was seen to do.

    `agrees` is None where the leaf was not derived. Where it is False, `n_differ` elements do;
    `index` is the first of them, `claimed` and `derived` where it comes from. If only values
    differ, both are the same place.
    """

    target: str
    rule: str
    agrees: bool | None
    why: str
    n_differ: int = 0
    index: tuple[int, ...] = ()
    claimed: Place | None = None
    derived: Place | None = None


@dataclass(frozen=True, kw_only=True)
class Derivation(Artifact, file="derivation.json", schema="lockstep.derivation/1"):
    """The map of a converter, and whether claims agree with it.  History: 1 the first.

    `n_runs` counts runs of the converter that count; `highest_digit` is the largest marker.
    `unused` are source leaves of which no element was found in the target, `unmarked` those that
    held no markers, with the reason. `warnings` say where the sizes of the template hide something.
    """

    generated_at: str
    tool: str
    command: str
    template: str
    source_format: str
    target_format: str
    n_runs: int
    n_ids: int
    highest_digit: int
    seconds: float
    outcome: Outcome
    leaves: tuple[DerivedLeaf, ...]
    unused: tuple[str, ...]
    unmarked: dict[str, str]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    claims_title: str = ""
    claims_digest: str = ""
    claims: tuple[ComparedClaim, ...] = ()
    problems: tuple[ProblemRow, ...] = ()
    not_measured: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = outcome_of(self.leaves, self.claims, self.problems)
        if self.outcome != expected:
            raise InputError(
                f"{self.file}: outcome: expected it to follow from the leaves and claims, "
                f"{expected}, got {self.outcome}",
                hint="run `lockstep verify derive` again",
            )


def outcome_of(
    leaves: tuple[DerivedLeaf, ...],
    claims: tuple[ComparedClaim, ...],
    problems: tuple[ProblemRow, ...],
) -> Outcome:
    """The outcome of the whole: what is worst."""
    if any(leaf.status == "data-dependent" for leaf in leaves):
        return "data-dependent"
    if any(claim.agrees is False for claim in claims):
        return "differs"
    if problems:
        return "claims do not add up"
    if not leaves or any(leaf.status == "not derived" for leaf in leaves):
        return "partly derived"
    return "derived"
