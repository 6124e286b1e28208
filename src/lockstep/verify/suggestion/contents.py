"""Fingerprints of leaves that do not depend on the order of their elements, in one pass of each.

The fingerprint of a leaf is the sum of a 64-bit hash of every element. So a leaf has it in common
with its transpose, and a leaf that was joined of others has the sum of theirs: partners are looked
up, not tried out. A fingerprint names candidates only; what is claimed is compared by the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import UsageError
from lockstep.formats.leaf import ELEMENT_TYPES, ElementType, Leaf, Store
from lockstep.verify.claim import ValueMove, Words
from lockstep.verify.claims.expressions import parse_call
from lockstep.verify.claims.moves import Array
from lockstep.verify.claims.steps import apply
from lockstep.verify.engine.budget import Budget
from lockstep.verify.engine.reading import words_of
from lockstep.verify.engine.tiles import digest_scheme
from lockstep.verify.engine.worker import Worker
from lockstep.verify.layouts.layout import whole
from lockstep.verify.numbers.float_formats import FLOATS
from lockstep.verify.numbers.integers import INTEGERS

SLAB = 1 << 15  # elements that are hashed at a time
_MASK = (1 << 64) - 1
_KEY, _A, _B, _PLACE = (np.uint64(n) for n in (
    0x2545F4914F6CDD1D, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15,
))  # fmt: skip

Chain = tuple[str, ...]  # steps that change values, as a claim file spells them
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Content:
    """What a leaf holds: a fingerprint after each chain of value steps, and one with the order.

    `sums` has, for a chain, the type that it leads to and the sum of the hashes of its words.
    """

    sums: Mapping[Chain, tuple[str, int]]
    ordered: int


def contents_of(
    store: Store,
    wanted: Iterable[ElementType],
    budget: Budget,
    done: Callable[[int], None],
) -> dict[str, Content]:
    """The contents of all leaves that are arrays, as they are and in each of the wanted types.

    Raises: InputError if a file cannot be read; BudgetError if a chunk does not fit.
    """
    worker = Worker(budget.alone, threading.Event())
    types = list(wanted)
    try:
        found = {}
        for leaf in store.leaves.values():
            if not leaf.value:
                found[leaf.name] = _content(leaf, chains(leaf, types), worker)
                done(leaf.n_bytes)
        return found
    finally:
        worker.close()


def chains(leaf: Leaf, types: Iterable[ElementType]) -> dict[Chain, tuple[ValueMove, ...]]:
    """The chains of value steps that conversions use, from this leaf to these types."""
    found: dict[Chain, tuple[ValueMove, ...]] = {(): ()}
    name = leaf.element.name
    for element in types:
        spelled = [_to(leaf.element, element)]
        if len(leaf.shape) == 1 and name in FLOATS and element.name in FLOATS:
            # gains that one side holds as w and the other as 1 + w
            (step,) = spelled[0] or ("",)
            for one in ("add_one()", "subtract_one()"):
                order = (step, one) if step.startswith("widen") else (one, step)
                spelled.append(tuple(filter(None, order)))
        for chain in spelled:
            moves = value_moves(leaf, chain) if chain is not None else None
            if chain is not None and moves is not None:
                found[chain] = moves
    return found


def _to(element: ElementType, to: ElementType) -> Chain:
    """The step from one type to another, none if that is the same."""
    if element == to:
        return ()
    known = (FLOATS, INTEGERS)
    if not any(element.name in kinds and to.name in kinds for kinds in known):
        return ()
    widened = (f"widen({to.name})",)
    if _moves(element, widened) is not None:
        return widened
    return (f"cast({to.name})",)


def value_moves(leaf: Leaf, chain: Chain) -> tuple[ValueMove, ...] | None:
    """The moves of a chain, or None if it does not fit the leaf's type."""
    return _moves(leaf.element, chain)


def _moves(element: ElementType, chain: Chain) -> tuple[ValueMove, ...] | None:
    arrays = [Array(whole("", (1,)), element, element)]
    try:
        for step in chain:
            arrays, _ = apply(parse_call(step, "suggest"), arrays, {})
    except UsageError:
        return None
    return arrays[0].values


def _content(leaf: Leaf, ways: Mapping[Chain, tuple[ValueMove, ...]], worker: Worker) -> Content:
    totals = dict.fromkeys(ways, 0)
    ordered = 0
    scheme = digest_scheme(leaf, worker.arena.n_bytes)
    worker.prepare(scheme, leaf)
    word, n_words = words_of(leaf.element)
    n_bytes = max(1, leaf.element.n_bytes)
    step = max(1, scheme.room // n_bytes)
    for at in range(0, leaf.n_elements, step):
        stop = min(leaf.n_elements, at + step)
        data = worker.fill(leaf, at, stop, worker.rooms[0])
        words: Words = data.view(word).reshape((-1,) if n_words == 1 else (-1, n_words))
        for start in range(0, stop - at, SLAB):
            slab = words[start : start + SLAB]
            for chain, moves in ways.items():
                moved = slab
                for move in moves:
                    moved = move.apply(moved)
                mixed = hashes(moved)
                totals[chain] = (totals[chain] + int(mixed.sum(dtype=np.uint64))) & _MASK
                if not chain:
                    places = np.arange(at + start, at + start + len(slab), dtype=np.uint64)
                    placed = int(_mix(mixed + places * _PLACE).sum(dtype=np.uint64))
                    ordered = (ordered + placed) & _MASK
    names = {chain: moves[-1].target.name if moves else leaf.element.name
             for chain, moves in ways.items()}  # fmt: skip
    return Content({chain: (names[chain], total) for chain, total in totals.items()}, ordered)


def hashes(words: Words) -> Hashes:
    """A hash of each element; elements of several words are folded word by word."""
    if words.ndim == 1:
        return _mix(words.astype(np.uint64) ^ _KEY)
    found = np.zeros(len(words), np.uint64)
    for column in range(words.shape[1]):
        found = _mix(found * _PLACE + words[:, column].astype(np.uint64) ^ _KEY)
    return found


def _mix(x: Hashes) -> Hashes:
    x = (x ^ (x >> np.uint64(30))) * _A
    x = (x ^ (x >> np.uint64(27))) * _B
    return x ^ (x >> np.uint64(31))


def plain_types(store: Store) -> list[ElementType]:
    """The types of a store's arrays that values can be moved to, each once."""
    names = {leaf.element.name for leaf in store.leaves.values() if not leaf.value}
    return [ELEMENT_TYPES[n] for n in sorted(names) if n in FLOATS or n in INTEGERS]
