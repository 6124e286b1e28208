"""verification.json: a checkpoint conversion, claim by claim; a third party can check it again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from lockstep.artifacts.record import Artifact
from lockstep.errors import InputError

Verdict = Literal["EXACT_BITS", "EXACT_UNDER", "EXACT_VALUES", "WITHIN", "UNCHECKED", "FAIL"]
LATTICE: tuple[Verdict, ...] = (
    "EXACT_BITS", "EXACT_UNDER", "EXACT_VALUES", "WITHIN", "UNCHECKED", "FAIL",
)  # fmt: skip
VALUE_EXACT = LATTICE[:2]  # only these may be called so
MEANING: dict[Verdict, str] = {
    "EXACT_BITS": "bit-identical",
    "EXACT_UNDER": "bits equal after the declared transform",
    "EXACT_VALUES": "equal but for signs of zero and NaN payloads",
    "WITHIN": "within the declared tolerance",
    "UNCHECKED": "not compared in full",
    "FAIL": "different",
}
Grade = Literal["unique by shape", "unique by content", "indistinguishable", "not graded"]
# where the claims come from; only an independent mapping is evidence of its own
Mapped = Literal["independent", "shared with the converter", "suggested from the checkpoints"]


def weakest(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of the whole; nothing at all is unchecked."""
    return max(verdicts, key=LATTICE.index, default="UNCHECKED")


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One element that differs: its index on both sides, its bits as hexadecimal, its values.

    `source` is empty where the claim says a constant.
    """

    target_index: tuple[int, ...]
    source: str
    source_index: tuple[int, ...]
    expected_bits: str
    found_bits: str
    expected: str
    found: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What differs in one target leaf.  `kinds` counts every element that differs once.

    Units: `worst_ulp` in units in the last place; `max_abs` is the largest finite |a-b|.
    """

    n_differ: int
    kinds: dict[str, int]
    first: Spot
    last: Spot
    worst_ulp: int | None
    max_abs: float | None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The simplest explanation under which the leaf is exact; or what is only seen.

    A cause is `confirmed` over every element; what was seen of a leaf that none explains is not.
    """

    hypothesis: str
    text: str
    confirmed: bool
    suspects: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """One claim.  Units: bytes, seconds; a part of a claim that was not compared is no pass."""

    id: str
    rule: str
    group: str
    target: str
    sources: tuple[str, ...]
    transform: str
    equality: str
    verdict: Verdict
    why: str
    grade: Grade
    grade_why: str
    n_elements: int
    n_compared: int
    bytes_read: int
    seconds: float
    predicted_peak_bytes: int
    difference: Difference | None = None
    diagnosis: Diagnosis | None = None
    health: str = ""

    @property
    def counts_blocks(self) -> bool:
        """Whether places in the source are of whole blocks, which the claim dequantises."""
        return "dequant(" in self.transform

    def __post_init__(self) -> None:
        exact = self.verdict in VALUE_EXACT
        if exact and (self.n_compared != self.n_elements or self.difference is not None):
            raise InputError(
                f"claim {self.id}: expected an exact verdict to follow from all elements, got "
                f"{self.n_compared} of {self.n_elements} compared",
                hint="run `lockstep verify` again",
            )


@dataclass(frozen=True, kw_only=True)
class LeafRow:
    """One leaf of one side: what it is, its digest, and how much of it is accounted for.

    `n_claimed` counts elements that claims use or produce exactly once, `n_excused` those that a
    drop, a tie or the like explains. The digest is over the logical array, with type and shape.
    """

    name: str
    shape: tuple[int, ...]
    element: str
    n_elements: int
    n_claimed: int
    n_excused: int
    excuse: str
    digest: str | None


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """One file as it was read.  Units: bytes, nanoseconds since 1970."""

    path: str
    n_bytes: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Side:
    """One checkpoint.  `root` is the Merkle root over its leaves' digests, in order of name."""

    where: str
    format: str
    files: tuple[FileRow, ...]
    leaves: tuple[LeafRow, ...]
    root: str | None
    checksums: str
    notes: tuple[str, ...] = ()


def excused(source: Side, target: Side) -> str:
    """How much of both sides was not compared, for a reason; empty if nothing.

    A leaf that is tied to one that was compared was compared with that.
    """
    said = []
    for name, side in (("target", target), ("source", source)):
        found = [
            leaf
            for leaf in side.leaves
            if (leaf.n_excused or (leaf.excuse and not leaf.n_claimed))
            and not leaf.excuse.startswith("tied to ")
        ]
        if found:
            n, n_elements = len(found), sum(leaf.n_excused for leaf in found)
            said.append(f"{n:,} {name} {'leaf' if n == 1 else 'leaves'} ({n_elements:,} elements)")
            one = n == 1 and len(said) == 1
    return f"{' and '.join(said)} {'is' if one else 'are'} excused, not compared" if said else ""


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """The verdict of one group of claims, such as `params` or `mu`.

    `n_claims` were compared; `n_unresolved` more leaves of the target were to be, and were not.
    """

    name: str
    verdict: Verdict
    n_claims: int
    n_exact: int
    n_elements: int
    n_unresolved: int = 0

    def __post_init__(self) -> None:
        if self.n_unresolved and self.verdict != "FAIL":
            raise InputError(
                f"group {self.name}: expected FAIL where {self.n_unresolved} claims were not "
                f"resolved, got {self.verdict}",
                hint="run `lockstep verify` again",
            )


@dataclass(frozen=True, kw_only=True)
class ProblemRow:
    """Why the claims do not add up."""

    kind: str
    where: str
    message: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the run took.  Units: bytes, seconds.

    `peak_bytes` is the peak of the whole process, of which `anonymous_peak_bytes` is not backed by
    files; `budget_bytes` is what was allowed.
    """

    budget_bytes: int
    predicted_peak_bytes: int
    peak_bytes: int | None
    anonymous_peak_bytes: int | None
    bytes_read: int
    seconds: float
    n_workers: int
    n_resumed: int


@dataclass(frozen=True, kw_only=True)
class Verification(Artifact, file="verification.json", schema="lockstep.verification/1"):
    """The verdict over a conversion follows from its claims.  History: 1 the first.

    `summary` says what many diagnoses come down to.
    """

    generated_at: str
    tool: str
    environment: dict[str, str]
    title: str
    mapping: Mapped
    claims_digest: str
    facts: dict[str, str]
    verdict: Verdict
    value_exact: bool
    source: Side
    target: Side
    groups: tuple[GroupRow, ...]
    claims: tuple[ClaimRow, ...]
    problems: tuple[ProblemRow, ...]
    ambiguities: tuple[ProblemRow, ...]
    cost: Cost
    digest_algorithm: str
    summary: tuple[str, ...] = ()
    not_measured: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        verdict = weakest(claim.verdict for claim in self.claims)
        verdict = "FAIL" if self.problems else verdict
        if (self.verdict, self.value_exact) != (verdict, verdict in VALUE_EXACT):
            raise InputError(
                f"{self.file}: verdict: expected it to follow from the claims, {verdict}, "
                f"got {self.verdict}",
                hint="run `lockstep verify` again",
            )
