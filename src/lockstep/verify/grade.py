"""How well the bits that agree show that the mapping is right, claim by claim.

A target that equals its source shows that this source was used only if no other leaf would have
been equal too. `unique by shape`: no other source leaf has this shape and type. `unique by
content`: others have, with other bits. `indistinguishable`: another has the same bits, or the leaf
is zero or one throughout, so that an exchange would change nothing and is not ruled out. A claim of
several sources has the weakest grade among them. Where the mapping is shared with the converter, a
constant that is wrong there is wrong here as well, and where it was suggested from the two
checkpoints it follows their faults, so nothing but `indistinguishable` is graded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from math import prod
from typing import Literal

from lockstep.artifacts.verification import Grade, Mapped
from lockstep.formats.leaf import Leaf
from lockstep.verify.claim import Claim, Plan
from lockstep.verify.digest import block_digests, leaf_digest
from lockstep.verify.float_formats import FLOATS
from lockstep.verify.integers import INTEGERS

Digests = Mapping[Literal["source", "target"], Mapping[str, str]]

ORDER: tuple[Grade, ...] = (
    "unique by shape", "unique by content", "indistinguishable", "not graded",
)  # fmt: skip
MAX_CONSTANT_BYTES = 1 << 20  # of leaves that are held against the digest of all zeros and all ones
WEAK: Mapping[Mapped, str] = {
    "shared with the converter": "mapping shared with the converter: common-mode risk",
    "suggested from the checkpoints": "mapping suggested from these contents: no evidence",
}


def grades(plan: Plan, digests: Digests) -> dict[str, tuple[Grade, str]]:
    """The grade of each claim by its id, with the reason."""
    grader = _Grader(plan, digests["source"])
    return {claim.id: grader.claim(claim) for claim in plan.claims}


class _Grader:
    def __init__(self, plan: Plan, digests: Mapping[str, str]) -> None:
        self._plan, self._digests = plan, digests
        self._n_alike: Counter[tuple[object, ...]] = Counter()
        self._n_digests: Counter[tuple[object, ...]] = Counter()
        self._equal: dict[str, list[str]] = defaultdict(list)
        self._constants: dict[tuple[object, ...], dict[str, str]] = {}
        for name, leaf in plan.source.leaves.items():
            self._n_alike[_class(leaf)] += 1
            if name in digests:
                self._n_digests[_class(leaf)] += 1
                self._equal[digests[name]].append(name)

    def claim(self, claim: Claim) -> tuple[Grade, str]:
        """The weakest grade of the sources; less where the mapping is not independent."""
        leaves = [self._plan.source.leaves.get(name) for name in claim.sources]
        if claim.layout is None or not claim.sources:
            return "not graded", "no array was mapped to it"
        found = [self._leaf(leaf) for leaf in leaves if leaf]
        if not found:
            return "not graded", "its sources are not there"
        grade, why = max(found, key=lambda each: ORDER.index(each[0]))
        if self._plan.mapping != "independent" and grade != "indistinguishable":
            return "not graded", f"{WEAK[self._plan.mapping]}; without it: {grade}"
        return grade, why

    def _leaf(self, leaf: Leaf) -> tuple[Grade, str]:
        n_others = self._n_alike[_class(leaf)] - 1
        digest = self._digests.get(leaf.name)
        constant = self._constant(leaf, digest) if digest else ""
        if constant:
            return "indistinguishable", f"{leaf.name} is {constant} throughout, in any order"
        if not n_others:
            return "unique by shape", _with_axes(f"no other leaf is like {leaf.name}", leaf)
        if digest is None or self._n_digests[_class(leaf)] <= n_others:
            return "not graded", f"{n_others} leaves are like {leaf.name}, and have no digests"
        twins = [name for name in self._equal[digest] if name != leaf.name]
        if twins:
            return "indistinguishable", f"{leaf.name} has the bits of {_listed(twins)}"
        why = f"{n_others} leaves are like {leaf.name}, none has its bits"
        return "unique by content", _with_axes(why, leaf)

    def _constant(self, leaf: Leaf, digest: str) -> str:
        """What the leaf is throughout, if it is small and that is zero or one."""
        if not 0 < leaf.n_bytes <= MAX_CONSTANT_BYTES or leaf.n_elements < 2 or leaf.value:
            return ""
        key = _class(leaf)
        if key not in self._constants:
            self._constants[key] = _constant_digests(leaf)
        return self._constants[key].get(digest, "")


def _class(leaf: Leaf) -> tuple[object, ...]:
    return (leaf.element, leaf.shape)


def _constant_digests(leaf: Leaf) -> dict[str, str]:
    n, n_bytes = leaf.n_elements, leaf.element.n_bytes
    words = {"zero": 0}
    if leaf.element.name in FLOATS:
        form = FLOATS[leaf.element.name]
        words["one"] = form.bias << form.n_mantissa
    elif leaf.element.name in INTEGERS:
        words["one"] = 1
    data = {name: word.to_bytes(n_bytes, "little") * n for name, word in words.items()}
    return {leaf_digest(leaf, block_digests(d, leaf.element)): name for name, d in data.items()}


def _with_axes(why: str, leaf: Leaf) -> str:
    """What the digests cannot tell: whether a square leaf is its own transpose."""
    shape = leaf.grid_shape
    square = len(shape) > 1 and shape[-1] == shape[-2] and prod(shape) > 1
    return f"{why}; whether it is symmetric was not looked at" if square else why


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + rest
