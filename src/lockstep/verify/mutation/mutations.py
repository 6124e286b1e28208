"""Mutations of values, axes and mapping that are planted in the leaf of one claim.

Source: the faults are those of shipped converters; see docs/verify-mutations.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod

import numpy as np

from lockstep.formats.leaf import Leaf
from lockstep.verify.claim import Claim, Words
from lockstep.verify.mutation.mutant import Bench, Mutant, Mutation, Unfit

NO_ROOM = Unfit("the leaf is larger than the room for a changed copy; see --max-memory", True)
Rearrange = Callable[[Words], Words]


def _planted(changed: Mapping[str, Leaf] | None, says: str, n: int | None = None) -> Mutant | Unfit:
    return NO_ROOM if changed is None else Mutant(changed, says, n)


def _in_place_of(leaf: Leaf, other: Leaf) -> Leaf:
    """The values of another leaf under the name of this."""
    return replace(other, path=leaf.path, physical=leaf.physical, shares="", checksum="")


def names_of(*claims: Claim) -> str:
    """An expression for the names by which a diagnosis can name claims."""
    names = {name for claim in claims for name in (claim.target, *claim.sources)}
    return "|".join(re.escape(name) for name in sorted(names))


def alike(bench: Bench, claim: Claim) -> list[Claim]:
    """Other claims whose target leaves have the same shape and type, the nearest names first."""
    leaf = bench.leaf(claim)
    found = [
        other
        for other in bench.plan.claims
        if other.target != claim.target
        and other.layout is not None
        and (bench.leaf(other).shape, bench.leaf(other).element) == (leaf.shape, leaf.element)
    ]
    return sorted(found, key=lambda other: -_n_shared(other.target, claim.target))


def _n_shared(a: str, b: str) -> int:
    """How many steps of two names are the same, counted from both ends."""
    left, right = re.split(r"[./_\[\]]", a), re.split(r"[./_\[\]]", b)
    if len(left) != len(right):
        return 0
    return sum(x == y for x, y in zip(left, right, strict=True))


# --- mapping


def _exchanged(bench: Bench, claim: Claim, others: list[Claim], none: str) -> Mutant | Unfit:
    if not others:
        return Unfit(none)
    a, b = bench.leaf(claim), bench.leaf(others[0])
    changed = {a.name: _in_place_of(a, b), b.name: _in_place_of(b, a)}
    return Mutant(changed, names_of(claim, others[0]))


def _exchange_kind(bench: Bench, claim: Claim) -> Mutant | Unfit:
    others = [o for o in alike(bench, claim) if o.rule != claim.rule and o.group == claim.group]
    return _exchanged(bench, claim, others, "no leaf of another rule has its shape and type")


def _exchange_layer(bench: Bench, claim: Claim) -> Mutant | Unfit:
    others = [other for other in alike(bench, claim) if other.rule == claim.rule]
    return _exchanged(bench, claim, others, "no other leaf of this rule has its shape and type")


def _exchange_group(bench: Bench, claim: Claim) -> Mutant | Unfit:
    others = [other for other in alike(bench, claim) if other.group != claim.group]
    return _exchanged(bench, claim, others, "no leaf of another group has its shape and type")


def _duplicated(bench: Bench, claim: Claim) -> Mutant | Unfit:
    others = alike(bench, claim)
    if not others:
        return Unfit("no other leaf has its shape and type")
    leaf = bench.leaf(claim)
    changed = {leaf.name: _in_place_of(leaf, bench.leaf(others[0]))}
    return Mutant(changed, names_of(others[0]), beside=(others[0].target,))


def _reordered(bench: Bench, claim: Claim, order: Callable[[int], list[int]]) -> Mutant | Unfit:
    """Some leaves of a rule, each with the values of another; at most four are compared."""
    leaf = bench.leaf(claim)
    kind = leaf.shape, leaf.element
    rule = [(other, bench.leaf(other)) for other in bench.by_rule[claim.rule]]
    same = [other for other, there in rule if (there.shape, there.element) == kind]
    moved = [(a, same[j]) for a, j in zip(same, order(len(same)), strict=True) if a is not same[j]]
    if not moved:
        return Unfit("the rule has too few leaves of this shape for an order to change")
    changed = {a.target: _in_place_of(bench.leaf(a), bench.leaf(b)) for a, b in moved[:4]}
    beside = tuple(b.target for _, b in moved[:4] if b.target not in changed)
    return Mutant(changed, "|".join(names_of(b) for _, b in moved[:4]), beside=beside)


def _off_by_one(bench: Bench, claim: Claim) -> Mutant | Unfit:
    return _reordered(bench, claim, lambda n: [(i + 1) % n for i in range(n)])


def _as_text(bench: Bench, claim: Claim) -> Mutant | Unfit:
    return _reordered(bench, claim, lambda n: [int(t) for t in sorted(str(i) for i in range(n))])


def _at_random(bench: Bench, claim: Claim) -> Mutant | Unfit:
    def change(words: Words) -> Words:
        # the elements in a random order: numbers as likely as those that were trained
        return bench.rng.permuted(words.reshape(-1)).reshape(words.shape)

    return _planted(bench.arranged(claim, change), "")


def _zeros(bench: Bench, claim: Claim) -> Mutant | Unfit:
    return _planted(bench.mapped(claim, np.zeros_like), "zero")


# --- axes


def _rearranged(says: str, why: str, fits: Callable[[tuple[int, ...]], bool],
                change: Rearrange) -> Callable[[Bench, Claim], Mutant | Unfit]:  # fmt: skip
    """A mutation of the order of elements, for the shapes that it fits."""

    def plant(bench: Bench, claim: Claim) -> Mutant | Unfit:
        leaf = bench.leaf(claim)
        if leaf.element.n_numbers > 1 or not fits(leaf.shape):
            return Unfit(why)
        return _planted(bench.arranged(claim, change), says)

    return plant


def _transposed(bench: Bench, claim: Claim) -> Mutant | Unfit:
    shape = bench.leaf(claim).grid_shape
    if len(shape) < 2 or not shape[-1] == shape[-2] > 1:
        return Unfit("its last two axes are not equal")
    axes = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    return _planted(bench.transposed(claim, axes), "transpose|not applied")


def _axes_exchanged(bench: Bench, claim: Claim) -> Mutant | Unfit:
    shape = bench.leaf(claim).grid_shape
    if len(shape) < 3 or not shape[0] == shape[1] > 1:
        return Unfit("it has no three axes of which the first two are equal")
    axes = (1, 0, *range(2, len(shape)))
    return _planted(bench.transposed(claim, axes), "axes|axis|transposed|stack|permute")


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and min(shape[-2:]) > 1


def _other_order(words: Words) -> Words:
    axes = (*range(words.ndim - 2), words.ndim - 1, words.ndim - 2)
    return np.ascontiguousarray(words.transpose(axes)).reshape(words.shape)


def _n_heads(bench: Bench, claim: Claim) -> list[int]:
    """The numbers of heads that a claim's transform names, else those among the facts."""
    named = [int(n) for n in re.findall(r"(?:rope_\w+|heads|qkv)\([^)]*?(\d+)", claim.text)]
    facts = [n for name, n in bench.plan.facts.items() if "head" in name and isinstance(n, int)]
    rows = bench.leaf(claim).shape[0] if bench.leaf(claim).shape else 0
    return [n for n in (*named, *facts) if 1 < n < rows and rows % n == 0]


def _heads_permuted(bench: Bench, claim: Claim) -> Mutant | Unfit:
    counts = _n_heads(bench, claim)
    if not counts or not _has_rows(bench.leaf(claim)):
        return Unfit("no number of heads among the facts divides its rows")

    rows = np.arange(bench.leaf(claim).shape[0], dtype=np.uint64)
    order = np.roll(rows.reshape(counts[0], -1), 1, 0).reshape(-1)
    says = "head|block|rolled|permut|halves|exchanged|side by side"
    return _planted(bench.with_rows(claim, order), says)


def _has_rows(leaf: Leaf) -> bool:
    return len(leaf.shape) == 2


def _turned(words: Words, n_heads: int, *, to_half: bool) -> Words:
    """Rows of each head between half split and interleaved."""
    pairs = (-1, 2) if to_half else (2, -1)
    apart = words.reshape(n_heads, *pairs, *words.shape[1:])
    return np.ascontiguousarray(apart.swapaxes(1, 2)).reshape(words.shape)


def _rope(change: Callable[[Words, int, bool], Words]) -> Callable[[Bench, Claim], Mutant | Unfit]:
    def plant(bench: Bench, claim: Claim) -> Mutant | Unfit:
        found = re.search(r"rope_(half|interleaved)_to_\w+\((\d+)\)", claim.text)
        if not found or not _has_rows(bench.leaf(claim)):
            return Unfit("its claim moves no rotary pairs")
        n_heads, to_half = int(found[2]), found[1] == "interleaved"
        if change is _wrong_heads and _other_count(bench.leaf(claim).shape[0], n_heads) is None:
            return Unfit("its rows fit no other number of heads")
        rows = np.arange(bench.leaf(claim).shape[0], dtype=np.uint64)
        changed = bench.with_rows(claim, change(rows, n_heads, to_half))
        return _planted(changed, "rotary|rope|interleav|not transformed|head")

    return plant


def _omitted(words: Words, n_heads: int, to_half: bool) -> Words:
    return _turned(words, n_heads, to_half=not to_half)


def _doubled(words: Words, n_heads: int, to_half: bool) -> Words:
    return _turned(words, n_heads, to_half=to_half)


def _other_count(n_rows: int, n_heads: int) -> int | None:
    return next((n for n in (2 * n_heads, n_heads // 2) if n and n_rows % (2 * n) == 0), None)


def _wrong_heads(words: Words, n_heads: int, to_half: bool) -> Words:
    plain = _turned(words, n_heads, to_half=not to_half)
    other = _other_count(words.shape[0], n_heads)
    assert other is not None
    return _turned(plain, other, to_half=to_half)


def _rope_on_another(bench: Bench, claim: Claim) -> Mutant | Unfit:
    counts = _n_heads(bench, claim)
    turned = any("rope_" in other.text for other in alike(bench, claim))
    if "rope_" in claim.text or not turned or not counts or not _has_rows(bench.leaf(claim)):
        return Unfit("it is not shaped like a leaf whose rotary pairs are moved")
    n_heads = next((n for n in counts if bench.leaf(claim).shape[0] % (2 * n) == 0), None)
    if n_heads is None:
        return Unfit("its rows make no pairs")
    order = _turned(np.arange(bench.leaf(claim).shape[0], dtype=np.uint64), n_heads, to_half=False)
    return _planted(bench.with_rows(claim, order), "rotary|rope|interleav")


def _halves(bench: Bench, claim: Claim) -> Mutant | Unfit:
    leaf = bench.leaf(claim)
    if len(claim.sources) < 2 or not leaf.grid_shape:
        return Unfit("it is made of one source")
    axis = next((k for k, n in enumerate(leaf.grid_shape) if n % 2 == 0), None)
    if axis is None:
        return Unfit("none of its axes has halves")
    change = bench.arranged(claim, lambda w: np.roll(w, leaf.grid_shape[axis] // 2, axis))
    return _planted(change, "halves|exchanged|place|order|rolled|permut|block")


def _stack_rolled(bench: Bench, claim: Claim) -> Mutant | Unfit:
    n = len(claim.sources)
    shape = bench.leaf(claim).grid_shape
    if n < 2 or n not in shape:
        return Unfit("its sources are not stacked on an axis of its own")
    axis = shape.index(n)
    changed = bench.arranged(claim, lambda w: np.roll(w, 1, axis))
    return _planted(changed, "order|rolled|permut|exchanged|place|halves|reverse|block")


# --- embeddings


def _row_replaced(bench: Bench, claim: Claim) -> Mutant | Unfit:
    leaf = bench.leaf(claim)
    if len(leaf.grid_shape) != 2 or leaf.grid_shape[0] < 3:
        return Unfit("it has no rows")
    n_rows, n = leaf.grid_shape
    row = bench.words(leaf, 0, n).view(np.uint8).reshape(n, -1)
    at = (n_rows - 1) * n
    return _planted(bench.patched(claim, {at + i: row[i].tobytes() for i in range(n)}), "")


def _row_zeroed(bench: Bench, claim: Claim) -> Mutant | Unfit:
    leaf = bench.leaf(claim)
    if len(leaf.grid_shape) != 2:
        return Unfit("it has no rows")
    n_rows, n = leaf.grid_shape
    zero = bytes(leaf.element.n_bytes)
    return _planted(bench.patched(claim, {(n_rows - 1) * n + i: zero for i in range(n)}), "")


def _padding_changed(bench: Bench, claim: Claim) -> Mutant | Unfit:
    assert claim.layout is not None
    fill = next((p for p in claim.layout.pieces if p.leaf is None), None)
    if fill is None:
        return Unfit("its claim pads nothing")
    leaf = bench.leaf(claim)
    old = bench.words(leaf, fill.last, fill.last + 1).view(np.uint8)
    return _planted(bench.patched(claim, {fill.last: (old ^ 1).tobytes()}), "element", 1)


MAPPING = (
    Mutation("mapping", "exchanged with a leaf of its shape", _exchange_kind),
    Mutation("mapping", "exchanged with another of its rule", _exchange_layer),
    Mutation("mapping", "another leaf used twice", _duplicated),
    Mutation("mapping", "off by one", _off_by_one),
    Mutation("mapping", "in the order of the numbers as text", _as_text),
    Mutation("mapping", "left at random values", _at_random),
    Mutation("mapping", "left at zero", _zeros),
    Mutation("state", "exchanged with its like in another group", _exchange_group),
)
AXES = (
    Mutation("axes", "square leaf transposed", _transposed),
    Mutation("axes", "read in the other order of axes", _rearranged(
        "transpose|axes|reshape|not transformed|not applied", "it has no two axes", _is_matrix,
        _other_order)),
    Mutation("axes", "first two axes exchanged", _axes_exchanged),
    Mutation("axes", "shifted by one element", _rearranged(
        "shifted|rolled", "it has one element",
        lambda shape: prod(shape) > 1,
        lambda w: np.roll(w.reshape(-1), 1).reshape(w.shape))),
)  # fmt: skip
ATTENTION = (
    Mutation("attention", "rope permutation omitted", _rope(_omitted)),
    Mutation("attention", "rope permutation doubled", _rope(_doubled)),
    Mutation("attention", "rope permutation with another number of heads", _rope(_wrong_heads)),
    Mutation("attention", "rope permutation of a leaf that has none", _rope_on_another),
    Mutation("attention", "heads permuted", _heads_permuted),
)
MLP = (
    Mutation("MLP and experts", "halves of a fused leaf reversed", _halves),
    Mutation("MLP and experts", "layers or experts of a stack rolled", _stack_rolled),
)
EMBEDDINGS = (
    Mutation("embeddings", "last row replaced by the first", _row_replaced),
    Mutation("embeddings", "last row zeroed", _row_zeroed),
    Mutation("embeddings", "padding of another value", _padding_changed),
)
