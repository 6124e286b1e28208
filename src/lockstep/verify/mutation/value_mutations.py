"""Mutations of values: single bits and elements, roundings, scales; and changes that are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import UsageError
from lockstep.formats.leaf import ELEMENT_TYPES, Extent, Leaf, Part, Parts
from lockstep.verify.claim import Claim, Words
from lockstep.verify.mutation.mutant import PEEKED, Bench, Mutant, Mutation, Unfit
from lockstep.verify.mutation.overlay import CHUNK_BYTES, can_lie_under, overlaid
from lockstep.verify.numbers.float_formats import FLOATS
from lockstep.verify.numbers.integers import INTEGERS
from lockstep.verify.numbers.values import value_move

Plant = Callable[[Bench, Claim], Mutant | Unfit]
_NO_FLOAT = Unfit("its elements are no floating-point numbers")
_NOT_HERE = Unfit("the leaf is too large to be copied or changed throughout", True)


def _element(bench: Bench, leaf: Leaf, at: int) -> NDArray[np.uint8]:
    return bench.words(leaf, at, at + 1).view(np.uint8).reshape(-1).copy()


def _planted(changed: Mapping[str, Leaf] | None, says: str, n: int | None = None) -> Mutant | Unfit:
    return _NOT_HERE if changed is None else Mutant(changed, says, n)


def _next(place: str) -> Plant:
    """The next pattern of bits in one element: one unit in the last place of a number."""

    def plant(bench: Bench, claim: Claim) -> Mutant | Unfit:
        leaf = bench.leaf(claim)
        at = _place(leaf, place)
        if at is None:
            return Unfit("it is smaller than one chunk")
        data = _element(bench, leaf, at)
        data[0] ^= 1
        return _planted(bench.patched(claim, {at: data.tobytes()}), "one element|ULP", 1)

    return plant


def _place(leaf: Leaf, place: str) -> int | None:
    if place == "first":
        return 0
    if place == "last":
        return leaf.n_elements - 1
    # of a format without chunks: of the blocks in which it is read
    at = CHUNK_BYTES // leaf.element.n_bytes
    return at if at < leaf.n_elements else None


def _each_byte(bench: Bench, claim: Claim) -> Mutant | Unfit:
    """One bit in each byte of an element, each in an element of its own as far as they go."""
    leaf = bench.leaf(claim)
    patches: dict[int, bytes] = {}
    for i in range(min(leaf.element.n_bytes, leaf.n_elements, 256)):
        at = (int(bench.rng.integers(leaf.n_elements)) + i) % leaf.n_elements
        while at in patches:
            at = (at + 1) % leaf.n_elements
        data = _element(bench, leaf, at)
        data[i] ^= 1 << int(bench.rng.integers(8))
        patches[at] = data.tobytes()
    return _planted(bench.patched(claim, patches), "element", len(patches))


def _special(find: str, put: Callable[[int, str], int], says: str, none: str) -> Plant:
    """One element of a kind, replaced by a pattern that differs from it in that kind only."""

    def plant(bench: Bench, claim: Claim) -> Mutant | Unfit:
        leaf = bench.leaf(claim)
        if leaf.element.name not in FLOATS:
            return _NO_FLOAT
        name = leaf.element.name
        words = bench.words(leaf, 0, min(PEEKED, leaf.n_elements)).reshape(-1)
        places = np.flatnonzero(_which(find, words, name))
        if not len(places):
            return Unfit(f"{none} among its first {len(words)} elements")
        at = int(places[0])
        new = put(int(words[at]), name)
        if new == int(words[at]):
            return Unfit(f"{name} has but one such pattern")
        data = new.to_bytes(leaf.element.n_bytes, "little")
        return _planted(bench.patched(claim, {at: data}), says, 1)

    return plant


def _which(find: str, words: Words, name: str) -> NDArray[np.bool_]:
    form = FLOATS[name]
    size = words & words.dtype.type(form.sign - 1)
    mantissa = size & words.dtype.type((1 << form.n_mantissa) - 1)
    exponent = size >> words.dtype.type(form.n_mantissa)
    found: NDArray[np.bool_] = {
        "zero": size == 0,
        "number": (exponent > 0) & (size <= form.largest),
        "nan": size > max(form.infinity, form.largest),
        "subnormal": (exponent == 0) & (mantissa > 0),
    }[find]
    return found if form.ends != "fnuz" or find not in ("zero", "nan") else found & False


def _nan_of(word: int, name: str) -> int:
    form = FLOATS[name]
    return form.infinity | form.quiet if form.ends == "ieee" else form.sign - 1


def _infinity_of(word: int, name: str) -> int:
    form = FLOATS[name]
    return form.infinity if form.ends == "ieee" else form.largest


def _payload_of(word: int, name: str) -> int:
    form = FLOATS[name]
    size = word ^ 1
    return size if form.ends == "ieee" and size & (form.quiet - 1) else word ^ form.sign


def _through(*names: str) -> Plant:
    """Every number passed through narrower types and back."""

    def plant(bench: Bench, claim: Claim) -> Mutant | Unfit:
        leaf = bench.leaf(claim)
        if leaf.element.name != names[0]:
            return Unfit(f"its elements are {leaf.element.name}, not {names[0]}")
        moves = [
            value_move("cast", ELEMENT_TYPES[a], (b,), {})
            for a, b in zip(names, (*names[1:], names[0]), strict=True)
        ]

        def change(words: Words) -> Words:
            for move in moves:
                words = move.apply(words)
            return words

        return _planted(bench.mapped(claim, change), f"{names[1]}|element|float|zero")

    return plant


def _scaled(bench: Bench, claim: Claim) -> Mutant | Unfit:
    leaf = bench.leaf(claim)
    if leaf.element.name not in FLOATS:
        return _NO_FLOAT
    try:
        move = value_move("scale", leaf.element, (1.0001,), {})
    except UsageError as error:
        return Unfit(error.message)
    return _planted(bench.mapped(claim, move.apply), "scaled|element")


def _byte_swapped(bench: Bench, claim: Claim) -> Mutant | Unfit:
    leaf = bench.leaf(claim)
    if leaf.element.n_bytes not in (2, 4, 8) or leaf.element.n_numbers > 1:
        return Unfit("its elements have no order of bytes")
    return _planted(bench.mapped(claim, lambda words: words.byteswap()), "byte|element")


def _one_more(bench: Bench, claim: Claim) -> Mutant | Unfit:
    leaf = bench.leaf(claim)
    if leaf.value:
        value = leaf.value[0]
        if not isinstance(value, int):
            return Unfit("it is no whole number")
        return Mutant({leaf.name: replace(leaf, value=(value + 1,))}, "")
    if leaf.element.name not in INTEGERS:
        return Unfit("its elements are no whole numbers")

    def change(words: Words) -> Words:
        more: Words = words + words.dtype.type(1)
        return more

    return _planted(bench.mapped(claim, change), "added|plus|element|1")


# --- what must not fail


def _other_chunks(bench: Bench, claim: Claim) -> Mutant | Unfit:
    leaf = bench.leaf(claim)
    if not isinstance(leaf.storage, Extent) or not can_lie_under(leaf):
        return Unfit("it has chunks of its own")
    return Mutant({leaf.name: overlaid(leaf, n=max(1, min(1021, leaf.n_elements - 1)))})


def _cut_in_two(bench: Bench, claim: Claim) -> Mutant | Unfit:
    leaf = bench.leaf(claim)
    n = leaf.grid_shape[0] if leaf.grid_shape else 0
    if not isinstance(leaf.storage, Extent) or not can_lie_under(leaf) or n < 2:
        return Unfit("it lies in no file that could be cut into shards")
    row = leaf.n_bytes // n
    parts = tuple(
        Part((a, *[0] * (len(leaf.grid_shape) - 1)), (b - a, *leaf.grid_shape[1:]),
             Extent(leaf.storage.file, leaf.storage.offset + a * row))
        for a, b in ((0, n // 3 or 1), (n // 3 or 1, n))
    )  # fmt: skip
    return Mutant({leaf.name: replace(leaf, storage=Parts(parts))})


def _other_file(bench: Bench, claim: Claim) -> Mutant | Unfit:
    copied = bench.arranged(claim, lambda words: words)
    return (
        Unfit("the leaf is larger than the room for a copy") if copied is None else Mutant(copied)
    )


VALUES = (
    *(Mutation("values", f"lowest bit of the {p} element", _next(p)) for p in ("first", "last")),
    Mutation("values", "lowest bit of an element at a chunk's begin", _next("chunk")),
    Mutation("values", "one bit in each byte of an element", _each_byte),
    Mutation("values", "sign of a zero", _special(
        "zero", lambda word, name: word ^ FLOATS[name].sign, "-0.0|0.0", "no zero")),
    Mutation("values", "payload of a NaN", _special(
        "nan", _payload_of, "element|NaN", "no NaN")),
    Mutation("values", "a number became NaN", _special(
        "number", _nan_of, "element", "no number")),
    Mutation("values", "a number became infinite", _special(
        "number", _infinity_of, "element", "no number")),
    Mutation("values", "a subnormal number flushed to zero", _special(
        "subnormal", lambda word, name: word & FLOATS[name].sign, "element|subnormal",
        "no subnormal number")),
    Mutation("values", "F32 through BF16", _through("F32", "BF16")),
    Mutation("values", "F32 through F16", _through("F32", "F16")),
    Mutation("values", "F64 through F32", _through("F64", "F32")),
    Mutation("values", "BF16 through F16", _through("BF16", "F16")),
    Mutation("values", "F16 through BF16", _through("F16", "BF16")),
    Mutation("values", "times 1.0001", _scaled),
    Mutation("values", "bytes of each element swapped", _byte_swapped),
    Mutation("state", "every whole number one more", _one_more),
)  # fmt: skip
HARMLESS = (
    Mutation("must not fail", "other chunks", _other_chunks, harmless=True),
    Mutation("must not fail", "cut into two shards", _cut_in_two, harmless=True),
    Mutation("must not fail", "the same bytes in another file", _other_file, harmless=True),
)


def _tie_broken(bench: Bench, claim: Claim) -> Mutant | Unfit:
    found = _next("last")(bench, claim)
    return replace(found, says="tied|element") if isinstance(found, Mutant) else found


TIE_BROKEN = Mutation("embeddings", "tie broken", _tie_broken)
