"""How well the bits that agree show that the mapping is right, claim by claim.

A target that equals its source shows that this source was used, under the claim's own steps, only
if no other would have been equal too; the order inside of a leaf is the claim's and is not graded.
`unique by shape`: no other source leaf has as many elements. `unique by content`: others have, and
those of this shape and type have other bits, as have other targets of its shape and type; it is the
most that a part of a leaf, or a leaf that several claims use, can have. `indistinguishable`:
another has the same bits, or the leaf is one value throughout, or its own transpose, so that an
exchange would change nothing and is not ruled out. A claim of several sources has the weakest grade
among them. Where the mapping is shared with the converter, a constant that is wrong there is wrong
here as well, and where it was suggested from the two checkpoints it follows their faults, so
nothing but `indistinguishable` is graded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Literal

import numpy as np

from lockstep.artifacts.verification import Grade, Mapped
from lockstep.formats.leaf import Extent, Held, Leaf, Parts
from lockstep.verify.claim import Claim, Equality, Plan
from lockstep.verify.diagnosis.diagnose import SAMPLED
from lockstep.verify.diagnosis.hypotheses import Probe
from lockstep.verify.digest import block_elements, leaf_digest
from lockstep.verify.layouts.layout import permute
from lockstep.verify.numbers.float_formats import FLOATS
from lockstep.verify.numbers.integers import INTEGERS
from lockstep.verify.numbers.numbers_text import value_text

Digests = Mapping[Literal["source", "target"], Mapping[str, str]]

ORDER: tuple[Grade, ...] = (
    "unique by shape", "unique by content", "indistinguishable", "not graded",
)  # fmt: skip
MAX_DECODED = 1 << 26  # bytes of chunks that are decoded again to see what a leaf begins with
AT_A_TIME = 1 << 13  # elements of a constant that are hashed at a time
SECONDS_FOR_GRADES = 20.0  # that reading for grades may take
WEAK: Mapping[Mapped, str] = {
    "shared with the converter": "mapping shared with the converter: common-mode risk",
    "suggested from the checkpoints": "mapping suggested from these contents: no evidence",
}


def grades(
    plan: Plan, digests: Digests, probe: Probe | None = None
) -> dict[str, tuple[Grade, str]]:
    """The grade of each claim by its id, with the reason.

    With a probe, leaves are looked into where that is cheap: for constants, and own transposes.
    """
    grader = _Grader(plan, digests, probe)
    return {claim.id: grader.claim(claim) for claim in plan.claims}


class _Grader:
    def __init__(self, plan: Plan, digests: Digests, probe: Probe | None) -> None:
        self._plan, self._digests, self._probe = plan, digests["source"], probe
        self._made = digests["target"]
        self._n_sized = Counter(leaf.n_elements for leaf in plan.source.leaves.values())
        self._users: dict[str, list[Claim]] = defaultdict(list)
        self._makers: dict[str, list[Claim]] = defaultdict(list)
        for claim in plan.claims:
            for name in set(claim.sources):
                self._users[name].append(claim)
            if claim.target in self._made:
                self._makers[self._made[claim.target]].append(claim)
        self._n_decoded = 0
        self._n_alike: Counter[tuple[object, ...]] = Counter()
        self._n_digests: Counter[tuple[object, ...]] = Counter()
        self._equal: dict[str, list[str]] = defaultdict(list)
        self._constants: dict[tuple[object, ...], str] = {}
        for name, leaf in plan.source.leaves.items():
            self._n_alike[_class(leaf)] += 1
            if name in self._digests:
                self._n_digests[_class(leaf)] += 1
                self._equal[self._digests[name]].append(name)

    def claim(self, claim: Claim) -> tuple[Grade, str]:
        """The weakest grade of the sources; less where the mapping is not independent."""
        leaves = [self._plan.source.leaves.get(name) for name in claim.sources]
        if claim.layout is None or not claim.sources:
            return "not graded", "no array was mapped to it"
        found = [self._leaf(leaf) for leaf in leaves if leaf]
        if not found:
            return "not graded", "its sources are not there"
        grade, why = max(found, key=lambda each: ORDER.index(each[0]))
        if grade not in ("indistinguishable", "not graded"):
            grade, why = self._as_made(claim, grade, why)
        if grade not in ("indistinguishable", "not graded"):
            grade, why = self._with_axes(claim, grade, why)
        if self._plan.mapping != "independent" and grade != "indistinguishable":
            return "not graded", f"{WEAK[self._plan.mapping]}; without it: {grade}"
        return grade, why

    def _as_made(self, claim: Claim, grade: Grade, why: str) -> tuple[Grade, str]:
        """What whole sources do not tell: parts of one leaf, and targets that casts make equal."""
        parted = not claim.takes_all or any(len(self._users[name]) > 1 for name in claim.sources)
        digest = self._made.get(claim.target)
        if digest is None:
            if parted or claim.values:
                return "not graded", f"{why}; {claim.target} has no digest to hold against others"
            return grade, why
        twins = [
            other.target
            for other in self._makers[digest]
            if other.target != claim.target
            and (other.sources, other.layout) != (claim.sources, claim.layout)
        ]
        if twins:
            return "indistinguishable", f"{claim.target} has the bits of {_listed(twins)}"
        if parted and grade == "unique by shape":
            shared = "a part of a leaf, or of one used more than once: no other target has its bits"
            return "unique by content", shared
        return grade, why

    def _leaf(self, leaf: Leaf) -> tuple[Grade, str]:
        n_others = self._n_alike[_class(leaf)] - 1
        digest = self._digests.get(leaf.name)
        constant = self._constant(leaf, digest) if digest else ""
        if constant:
            return "indistinguishable", f"{leaf.name} is {constant} throughout, in any order"
        n_sized = self._n_sized[leaf.n_elements] - 1
        if not n_sized:
            return "unique by shape", f"no other leaf is like {leaf.name}"
        if not n_others:
            other = f"other leaves ({n_sized}) have as many elements as {leaf.name}"
            return "not graded", f"{other}, in another shape or type, and were not compared with it"
        if digest is None or self._n_digests[_class(leaf)] <= n_others:
            return (
                "not graded",
                f"other leaves ({n_others}) are like {leaf.name}, and have no digests",
            )
        twins = [name for name in self._equal[digest] if name != leaf.name]
        if twins:
            return "indistinguishable", f"{leaf.name} has the bits of {_listed(twins)}"
        return (
            "unique by content",
            f"other leaves ({n_others}) are like {leaf.name}, none has its bits",
        )

    def _constant(self, leaf: Leaf, digest: str) -> str:
        """What the leaf is throughout, if that is zero, one, or what it begins with."""
        if leaf.n_elements < 2 or not leaf.n_bytes or leaf.value:
            return ""
        words = _common_words(leaf)
        if self._probe is not None and not self._probe.is_late() and self._is_cheap(leaf):
            first = self._word("source", leaf, 0)
            if self._word("source", leaf, leaf.n_elements - 1) != first:
                return ""
            words = {first: words.get(first) or _value_of(first, leaf)}
        for word, text in words.items():
            key = (*_class(leaf), word)
            if key not in self._constants:
                self._constants[key] = leaf_digest(leaf, _constant_blocks(word, leaf))
            if self._constants[key] == digest:
                return text
        return ""

    def _with_axes(self, claim: Claim, grade: Grade, why: str) -> tuple[Grade, str]:
        """What no digest tells: whether a leaf with two equal axes is its own transpose."""
        layout = claim.layout
        shape = layout.shape if layout else ()
        square = len(shape) > 1 and shape[-1] == shape[-2] > 1
        blocks = shape != self._plan.target.leaves[claim.target].grid_shape  # to be dequantised
        if layout is None or not square or blocks:
            return grade, why
        leaves = [self._plan.source.leaves[name] for name in claim.sources]
        leaves.append(self._plan.target.leaves[claim.target])
        if self._probe is None or self._probe.is_late() or not all(map(self._is_cheap, leaves)):
            return grade, f"{why}; whether it is its own transpose was not looked at"
        target, n = leaves[-1], len(shape)
        # of an exact claim; one that is not has a diagnosis and needs no grade
        if self._word("target", target, 1) != self._word("target", target, shape[-1]):
            return grade, f"{why}, and it is not its own transpose"
        turned = permute(layout, (*range(n - 2), n - 1, n - 2))
        other = replace(claim, layout=turned, equality=Equality())
        if self._probe.agrees(other, SAMPLED) and self._probe.agrees(other):
            return "indistinguishable", f"{claim.target} is its own transpose, bit for bit"
        if self._probe.is_late():
            return grade, f"{why}; whether it is its own transpose was not looked at"
        return grade, f"{why}, and it is not its own transpose"

    def _word(self, side: Literal["source", "target"], leaf: Leaf, i: int) -> bytes:
        assert self._probe is not None
        return self._probe.elements(side, leaf.name, i, i + 1).tobytes()

    def _is_cheap(self, leaf: Leaf) -> bool:
        """Whether it may be looked into; chunks have to be decoded again for that."""
        if isinstance(leaf.storage, Extent | Held | Parts):
            return True
        self._n_decoded += leaf.n_bytes
        return self._n_decoded <= MAX_DECODED


def _class(leaf: Leaf) -> tuple[object, ...]:
    return (leaf.element, leaf.shape)


def _common_words(leaf: Leaf) -> dict[bytes, str]:
    """Zero and one of a type, as bytes."""
    n_bytes = leaf.element.n_bytes
    words = {bytes(n_bytes): "zero"}
    if leaf.element.name in FLOATS:
        form = FLOATS[leaf.element.name]
        words[(form.bias << form.n_mantissa).to_bytes(n_bytes, "little")] = "one"
    elif leaf.element.name in INTEGERS:
        words[(1).to_bytes(n_bytes, "little")] = "one"
    return words


def _value_of(word: bytes, leaf: Leaf) -> str:
    whole = leaf.element.n_numbers == 1 and len(word) in (1, 2, 4, 8)
    return value_text(np.frombuffer(word, f"<u{len(word)}" if whole else "u1"), leaf.element)


def _constant_blocks(word: bytes, leaf: Leaf) -> bytes:
    """The digests of the blocks of a leaf that is one value throughout; all but the last alike."""
    per_block = block_elements(leaf.element)
    n_whole, rest = divmod(leaf.n_elements, per_block)
    whole = _repeated(word, per_block) * n_whole if n_whole else b""
    return whole + (_repeated(word, rest) if rest else b"")


def _repeated(word: bytes, n: int) -> bytes:
    """The digest of one element so many times."""
    digest, some = sha256(), word * AT_A_TIME
    for _ in range(n // AT_A_TIME):
        digest.update(some)
    digest.update(word * (n % AT_A_TIME))
    return digest.digest()


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + rest
