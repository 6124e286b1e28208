"""What is claimed of a conversion, resolved to leaves; claims make it, the engine takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lockstep.artifacts.verification import Mapped
from lockstep.formats.leaf import ElementType, Store
from lockstep.verify.layouts.layout import Layout

Words = NDArray[np.unsignedinteger]  # elements as unsigned integers of their own width


class ValueMove(Protocol):
    """A change of every element, exactly specified in integer arithmetic.

    `text` is how a claim file spells it, with every choice written out. `exact` is False for a
    change that loses what a reader would call the value, such as LoRA merged in float32. `expands`
    is how many new elements each old one becomes: 1, or the numbers of a block where it is
    dequantised; so a claim's layout, which is before the moves, has a shape in old elements.
    """

    @property
    def text(self) -> str:
        """The spelling of a claim file."""

    @property
    def source(self) -> ElementType:
        """The type before."""

    @property
    def target(self) -> ElementType:
        """The type after."""

    @property
    def exact(self) -> bool:
        """Whether it is specified to the bit."""

    @property
    def expands(self) -> int:
        """How many new elements each old one becomes."""

    def apply(self, words: Words) -> Words:
        """The new elements of a flat block, `expands` for each old one, in order."""


@dataclass(frozen=True, slots=True)
class Equality:
    """What counts as equal.  `bits` is exact; `values` forgives zeros' signs and NaN payloads.

    `within` is inexact: at most `ulp` units in the last place, or |a-b| <= atol + rtol |b|.
    """

    kind: Literal["bits", "values", "within"] = "bits"
    ulp: int | None = None
    atol: float | None = None
    rtol: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """One target leaf, and what each of its elements is.

    `id` is stable between runs and unique; `rule` names the rule of the claim file; `text` spells
    the transform for the report ("identity", "permute(1, 0) | cast(BF16)"). `sources` are the
    leaves of the layout in the order in which the rule names them. The layout's shape is the
    target's grid shape; where blocks are dequantised its last axis counts blocks. A leaf that is no
    array has the layout None and is compared by value. `takes_all` is false where the layout leaves
    elements of its sources out.
    """

    id: str
    rule: str
    group: str
    target: str
    sources: tuple[str, ...]
    layout: Layout | None
    values: tuple[ValueMove, ...] = ()
    equality: Equality = Equality()
    text: str = "identity"
    takes_all: bool = True

    @property
    def is_identity(self) -> bool:
        """Whether the claim is that all of one leaf has the same bits in the same order."""
        if self.values or self.layout is None:
            return not self.values
        return self.layout.is_identity and self.takes_all


@dataclass(frozen=True, slots=True)
class Excuse:
    """Elements of a leaf that no claim covers, with the reason: dropped, tied, derived or new."""

    side: Literal["source", "target"]
    leaf: str
    kind: Literal["drop", "duplicate", "tied", "derived", "new"]
    reason: str
    rule: str


@dataclass(frozen=True, slots=True)
class Tie:
    """Two leaves of one side that must hold the same bits where both exist."""

    side: Literal["source", "target"]
    leaves: tuple[str, ...]
    rule: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the claims do not add up: a gap, an overlap, a rule without a match, a wrong fact.

    `stops` are the leaves, such as `target w`, whose claim in the `group` it keeps from being made:
    they are not compared, and no other problem has to be said of them.
    """

    kind: Literal["gap", "overlap", "unused", "shape", "type", "fact", "duplicate", "empty", "tie"]
    where: str
    message: str
    hint: str = ""
    group: str = ""
    stops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ambiguity:
    """Leaves between which shape and type cannot tell, or an axis order that they cannot show."""

    kind: Literal["same_shape", "square", "half", "equal_heads"]
    side: Literal["source", "target"]
    leaves: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Claims resolved against two listed checkpoints, in the order of the target's file.

    `mapping` is "independent", or whatever else it is, which lowers every grade.
    """

    source: Store
    target: Store
    claims: tuple[Claim, ...]
    excuses: tuple[Excuse, ...] = ()
    ties: tuple[Tie, ...] = ()
    problems: tuple[Problem, ...] = ()
    ambiguities: tuple[Ambiguity, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    mapping: Mapped = "independent"
    title: str = ""
    digest: str = ""  # sha256 of the claim file's canonical content
