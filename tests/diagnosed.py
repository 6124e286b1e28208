"""Small leaves held in memory with a fault planted in them, and what a diagnosis says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.artifacts.verification import Diagnosis
from lockstep.formats.leaf import ELEMENT_TYPES, ElementType, Held, Leaf, Name, Store
from lockstep.verify.claim import Claim, Plan, Words
from lockstep.verify.claims.claim_file import parse_claims
from lockstep.verify.claims.resolve import resolve
from lockstep.verify.diagnosis.diagnose import diagnose
from lockstep.verify.diagnosis.hypotheses import Side, source_of
from lockstep.verify.layouts.layout import Layout, whole
from lockstep.verify.layouts.piece import Piece
from lockstep.verify.numbers.differences import Tally

F32 = ELEMENT_TYPES["F32"]
Arrays = dict[str, NDArray[Any]]
NEED_PLACES = (
    "bit_flip", "one_ulp", "one_element", "few_elements", "region", "rows_", "part_", "heads_",
    "other_row", "unexplained", "same_ratio",
)  # fmt: skip


class Memory:
    """A probe over arrays, which counts what it is asked."""

    def __init__(self, source: Arrays, target: Arrays) -> None:
        self.sides: dict[str, Arrays] = {"source": source, "target": target}
        self.n_agrees, self.n_read = 0, 0

    def agrees(self, claim: Claim, at_most: int | None = None) -> bool:
        self.n_agrees += 1
        assert at_most is None or at_most > 0
        assert claim.layout is not None
        expected = self.expected(claim).reshape(-1)
        found = self.sides["target"][claim.target].reshape(-1)
        step = 1 if at_most is None else max(1, len(found) // at_most)
        looked_at = np.zeros(len(found), np.bool_)
        for piece in claim.layout.pieces:
            looked_at[places(piece)[1]] = True
        looked_at[np.arange(len(found)) % step != 0] = False
        same = expected.dtype == found.dtype
        return same and bool((expected[looked_at] == found[looked_at]).all())

    def expected(self, claim: Claim) -> Words:
        """What a claim says, gathered piece by piece."""
        assert claim.layout is not None
        words = gathered(claim.layout, self.sides["source"])
        for move in claim.values:
            words = move.apply(words)
        return words

    def elements(self, side: Side, leaf: str, start: int, stop: int) -> Words:
        self.n_read += stop - start
        return self.sides[side][leaf].reshape(-1)[start:stop]

    def is_late(self) -> bool:
        return False

    def digest(self, side: Side, leaf: str) -> str | None:
        words = self.sides[side][leaf]
        return f"{words.shape}{words.dtype}{words.tobytes().hex()}"


def places(piece: Piece) -> tuple[NDArray[Any], NDArray[Any]]:
    """The flat elements of a piece, in the source and in the target."""
    src, dst = np.array(piece.src), np.array(piece.dst)
    for loop in piece.loops:
        steps = np.arange(loop.n)
        src = src[..., None] + steps * loop.src
        dst = dst[..., None] + steps * loop.dst
    return src, dst


def gathered(layout: Layout, arrays: Arrays) -> Words:
    """The words of a layout."""
    dtype = np.dtype(f"<u{len(layout.pieces[0].fill)}") if layout.pieces[0].fill else None
    dtype = dtype or next(iter(arrays.values())).dtype
    out = np.zeros(layout.n_elements, dtype)
    for piece in layout.pieces:
        src, dst = places(piece)
        constant = np.frombuffer(piece.fill, dtype)[0] if piece.leaf is None else None
        out[dst] = constant if constant is not None else arrays[piece.leaf or ""].reshape(-1)[src]
    return out


def weights(*shape: int, seed: int = 0) -> NDArray[Any]:
    """Random float32 words."""
    values = np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)
    return values.view(np.uint32)


def store(side: str, arrays: Arrays, element: ElementType) -> Store:
    """A store that lists the arrays."""
    leaves = {n: Leaf((Name(n),), a.shape, element, Held(b"")) for n, a in arrays.items()}
    return Store(side, "npz", leaves, ())


def explained(
    source: Arrays,
    target: Arrays,
    layout: Layout,
    *,
    name: str = "out",
    elements: tuple[ElementType, ElementType] = (F32, F32),
    most_read: int = 100_000,
    **more: Any,
) -> Diagnosis | None:
    """The diagnosis of one claim over arrays; what is asked of the probe is bounded."""
    facts = more.pop("facts", {})
    stores = (store("source", source, elements[0]), store("target", target, elements[1]))
    sources = tuple(dict.fromkeys(p.leaf for p in layout.pieces if p.leaf))
    claim = Claim("c", "rule", "", name, sources, layout, **more)
    plan = Plan(*stores, (claim,), facts=facts)
    probe = Memory(source, target)
    tally = Tally(elements[1], claim.equality)
    expected, found = probe.expected(claim).reshape(-1), target[name].reshape(-1)

    def where(i: int) -> tuple[int, str, int]:
        leaf, src, _ = source_of(layout, i)
        return i, leaf or "", src

    tally.add(expected, found, where)
    assert tally.n_differ, "the fault changes nothing"
    diagnosis = diagnose(claim, plan, probe, tally.difference(plan, claim))
    without = diagnose(claim, plan, Memory(source, target))
    # what is said of a place needs to know which places differ; the rest follows without
    one_of_many = diagnosis is not None and bool(diagnosis.suspects) and len(claim.sources) > 1
    if diagnosis and not diagnosis.hypothesis.startswith(NEED_PLACES) and not one_of_many:
        assert without is not None
        assert without.hypothesis == diagnosis.hypothesis
    assert probe.n_agrees < 300
    assert probe.n_read < most_read
    return diagnosis


def identity(shape: tuple[int, ...], name: str = "w") -> Layout:
    return whole(name, shape)


def check(diagnosis: Diagnosis | None, hypothesis: str, *words: str) -> None:
    """The hypothesis has this name and its text these words."""
    assert diagnosis is not None
    assert diagnosis.confirmed
    assert diagnosis.hypothesis == hypothesis, diagnosis.text
    for word in words:
        assert word in diagnosis.text


def resolved(
    source: Arrays, target: Arrays, rule: dict[str, Any], **facts: int
) -> Diagnosis | None:
    """The diagnosis of the leaf `out`, claimed as a claim file would; its sources are all named."""
    rules = parse_claims(
        {
            "schema": "lockstep.claims/1",
            "mapping": "independent",
            "facts": facts,
            "claim": [{"target": "out", **rule}],
            "drop": [{"source": "unused.{x:any}", "reason": "a test", "optional": True}],
        },
        "test",
    )
    plan = resolve(rules, store("source", source, F32), store("target", target, F32))
    (claim,) = plan.claims
    assert claim.layout is not None
    return explained(
        source, target, claim.layout, values=claim.values, text=claim.text, facts=facts
    )


def check_unexplained(diagnosis: Diagnosis | None) -> None:
    """No cause is named, and it is said that some were tried."""
    assert diagnosis is not None
    assert not diagnosis.confirmed
    assert diagnosis.hypothesis == "unexplained", diagnosis.text
    assert "explanation" in diagnosis.text
