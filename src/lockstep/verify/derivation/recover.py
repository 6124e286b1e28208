"""What stands at each place of a target leaf: which element of the source, changed how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import UsageError
from lockstep.formats.leaf import ElementType, Leaf
from lockstep.verify.claim import ValueMove, Words
from lockstep.verify.derivation.markers import LOWEST, Code, Ids, Numbering, Numbers64, to_numbers
from lockstep.verify.layouts.layout import Layout
from lockstep.verify.layouts.piece import Loop, Piece, tidy
from lockstep.verify.numbers.float_formats import FLOATS
from lockstep.verify.numbers.values import value_move

Status = Literal["derived", "constant", "computed", "not derived", "data-dependent"]
CONSTANT = -1  # in place of an id
_MOST_PIECES = 4096  # of one leaf; more are no regular move, and are not worth their time


@dataclass(frozen=True)
class Runs:
    """What one leaf was in each run: the words with digits, and those with random values."""

    leaf: Leaf
    digits: tuple[Words, ...]
    random: Words
    edges: Words | None = None

    @property
    def numbers(self) -> Numbers64 | None:
        """The values of all digit runs.  Shapes: (n_digits, n)"""
        found = [to_numbers(words, self.leaf.element) for words in self.digits]
        rows = [row for row in found if row is not None]
        return np.stack(rows) if rows else None

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Where the leaf is the same in every run."""
        same = np.ones(self.random.shape, np.bool_)
        for words in self.digits:
            same &= words == self.random
        return same


@dataclass(frozen=True)
class Recovered:
    """What was found of one target leaf.

    `ids` is the id at each flat place, or CONSTANT. `values` are the moves that change elements of
    each source type; `unsure` are choices of them that the runs did not tell apart.
    """

    leaf: Leaf
    status: Status
    why: str = ""
    ids: Ids | None = None
    values: Mapping[str, tuple[ValueMove, ...]] | None = None
    unsure: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sources:
    """The marked leaves of the source, and their words in the runs with random values."""

    numbering: Numbering
    code: Code
    random: Mapping[str, Words]
    edges: Mapping[str, Words] | None = None


def recover(runs: Runs, sources: Sources) -> Recovered:
    """Finds the map of one leaf: digits say it, random values confirm it over every element."""
    leaf = runs.leaf
    numbers = runs.numbers if leaf.element.n_numbers == 1 else None
    if leaf.value:
        return Recovered(leaf, "not derived", f"a value ({leaf.element}) holds no markers")
    if numbers is None:
        return Recovered(leaf, "not derived", f"elements of {leaf.element} hold no markers")
    constant = runs.constant
    if constant.all():
        same = bool((runs.random == runs.random[:1]).all())
        ids = np.full(leaf.n_elements, CONSTANT, np.int64)
        why = "the same value everywhere" if same else "values that the source has no part in"
        return Recovered(leaf, "constant" if same else "computed", f"{why}, in every run", ids)
    seen: Ids | None = None
    for inverse in _inverses(sources.numbering):
        ids = sources.code.ids(inverse.undo(numbers))
        if not ((ids >= 0) | constant).all():
            continue
        ids = np.where(constant, CONSTANT, ids)
        seen = ids if seen is None else seen
        found = _values(runs, sources, ids, inverse)
        if found is not None:
            values, unsure = found
            return Recovered(leaf, "derived", "", ids, values, unsure)
    if seen is not None:
        return _not_confirmed(runs, sources, seen)
    return _unexplained(runs, sources, numbers)


def _not_confirmed(runs: Runs, sources: Sources, ids: Ids) -> Recovered:
    """Why a map that markers show does not hold for random values: other places, or values."""
    leaf, numbering = runs.leaf, sources.numbering
    moved = leaf.element in {numbering.leaves[name].element for name in numbering.names}
    if moved:
        alike = [w for name, w in sources.random.items()
                 if name in numbering.leaves and w.dtype == runs.random.dtype]  # fmt: skip
        moved = bool(np.isin(runs.random[ids >= 0], np.concatenate(alike)).all())
    if not moved:
        moved = _are_others(runs, sources, ids)
    if moved:
        why = "the map that the markers show is another one for random values"
        return Recovered(leaf, "data-dependent", why)
    why = "each element comes from one of the source, but no known move of values makes it"
    return Recovered(leaf, "not derived", why)


def _are_others(runs: Runs, sources: Sources, ids: Ids) -> bool:
    """Whether the values are those of the map, nearly, but at other places."""
    owner, flat = sources.numbering.owners(ids)
    kept = ids >= 0
    expected = np.zeros(len(ids))
    for i in np.unique(owner[kept]):
        name = sources.numbering.names[i]
        values = to_numbers(sources.random[name], sources.numbering.leaves[name].element)
        if values is not None:
            expected[owner == i] = values[flat[owner == i]]
    found = to_numbers(runs.random, runs.leaf.element)
    assert found is not None
    with np.errstate(invalid="ignore"):
        sets_are = np.isclose(np.sort(found[kept]), np.sort(expected[kept]), rtol=0.07, atol=1e-3)
        places_are = np.isclose(found[kept], expected[kept], rtol=0.07, atol=1e-3)
    return bool(sets_are.all() and not places_are.all())


def _unexplained(runs: Runs, sources: Sources, numbers: Numbers64) -> Recovered:
    """Why no map was found: elements that move with the values, or values that change."""
    ids = sources.code.ids(numbers)
    digits = (numbers >= LOWEST) & (numbers <= sources.code.highest)
    whole = (numbers == np.round(numbers)) & digits
    n = runs.leaf.n_elements
    if whole.mean() > 0.95 and (ids < 0).mean() > 0.05:
        return Recovered(
            runs.leaf,
            "data-dependent",
            "it holds the values of the source, at places that are others for other values",
        )
    return Recovered(
        runs.leaf,
        "not derived",
        f"{int((ids >= 0).sum())} of {n} elements are markers; the rest are changed in a way that "
        "is no known move of single elements, such as quantisation or a sum",
    )


# --- moves of values


@dataclass(frozen=True)
class Inverse:
    """A change of values to undo before digits are read, and the steps that do it."""

    undo: Callable[[Numbers64], Numbers64]
    steps: tuple[tuple[str, tuple[object, ...]], ...] = ()


def _inverses(numbering: Numbering) -> Iterator[Inverse]:
    """The likely changes, none at all first."""
    yield Inverse(lambda x: x)
    yield Inverse(lambda x: x - 1, (("add_one", ()),))
    yield Inverse(lambda x: x + 1, (("subtract_one", ()),))
    yield Inverse(lambda x: -x, (("negate", ()),))
    lengths = sorted({n for leaf in numbering.leaves.values() for n in leaf.shape if n > 1})
    factors = [2.0**k for k in range(-6, 7) if k]
    factors += [f for n in lengths for f in (sqrt(n), 1 / sqrt(n), float(n), 1 / n)]
    for factor in dict.fromkeys(factors):
        yield Inverse(lambda x, f=factor: _near(x / f), (("scale", (factor,)),))  # type: ignore[misc]


def _near(numbers: Numbers64) -> Numbers64:
    """Whole numbers where these are as near to them as rounding of a product leaves them."""
    whole = np.round(numbers)
    return np.where(np.abs(numbers - whole) <= 2.0**-8 * np.abs(whole), whole, 0.5)


Found = tuple[dict[str, tuple[ValueMove, ...]], tuple[str, ...]]


def _values(runs: Runs, sources: Sources, ids: Ids, inverse: Inverse) -> Found | None:
    """For each type among the sources the first chain that gives the random bits, or None."""
    numbering = sources.numbering
    owner, flat = numbering.owners(ids)
    by_type: dict[ElementType, list[int]] = {}
    for i in np.unique(owner[owner >= 0]):
        by_type.setdefault(numbering.leaves[numbering.names[i]].element, []).append(int(i))
    values: dict[str, tuple[ValueMove, ...]] = {}
    unsure: list[str] = []
    for element, owners in by_type.items():
        pairs = []
        for random, target in ((sources.random, runs.random), (sources.edges, runs.edges)):
            if random is not None and target is not None:
                pairs.append(_paired(numbering, owner, flat, owners, random, target))
        chain = _chain(element, runs.leaf.element, inverse, pairs[0])
        if chain is None:
            return None
        if len(pairs) > 1 and chain:
            chain, open_choices = _settled(element, runs.leaf.element, inverse, pairs, chain)
            unsure += open_choices
        values[element.name] = chain
    return values, tuple(dict.fromkeys(unsure))


Pair = tuple[Words, Words]


def _paired(
    numbering: Numbering,
    owner: Ids,
    flat: Ids,
    owners: Sequence[int],
    source: Mapping[str, Words],
    target: Words,
) -> Pair:
    """Words of the source and of the target that stand for each other."""
    before = [source[numbering.names[i]][flat[owner == i]] for i in owners]
    after = [target[owner == i] for i in owners]
    return np.concatenate(before), np.concatenate(after)


def _holds(chain: tuple[ValueMove, ...], pair: Pair) -> bool:
    words = pair[0]
    for move in chain:
        words = move.apply(words)
    return words.dtype == pair[1].dtype and bool((words == pair[1]).all())


def _chain(
    element: ElementType, target: ElementType, inverse: Inverse, pair: Pair
) -> tuple[ValueMove, ...] | None:
    return next((c for c in _chains(element, target, inverse) if _holds(c, pair)), None)


def _settled(
    element: ElementType,
    target: ElementType,
    inverse: Inverse,
    pairs: Sequence[Pair],
    chain: tuple[ValueMove, ...],
) -> tuple[tuple[ValueMove, ...], list[str]]:
    """A chain that explains zeros, overflow and NaN too, or what is not known of these."""
    for each in _chains(element, target, inverse):
        if all(_holds(each, pair) for pair in pairs):
            return each, []
    text = f"{element} to {target}: no rule explains what became of NaN, infinities, overflow"
    return chain, [f"{text} or subnormal numbers"]


def _chains(
    element: ElementType, target: ElementType, inverse: Inverse
) -> Iterator[tuple[ValueMove, ...]]:
    """Chains from one type to the other: the steps before, between or after casts."""
    for before in _casts(element, target):
        for split in range(len(before) + 1):
            if not inverse.steps and split:
                continue
            for compute in ("", "F32", "F64") if inverse.steps else ("",):
                made = _made(element, before[:split], inverse, compute, before[split:])
                if made is not None:
                    yield made


Cast = tuple[str, tuple[object, ...], dict[str, object]]


def _casts(element: ElementType, target: ElementType) -> Iterator[list[Cast]]:
    """No cast, one with each choice of rules, or two by way of a narrower or a wider type."""
    if element.name not in FLOATS or target.name not in FLOATS:
        if element == target:
            yield []
        elif target.name in FLOATS:
            yield [("cast", (target.name,), {})]
        else:
            yield [("cast", (target.name,), {})]
            yield [("cast", (target.name,), {"overflow": "wrap"})]
        return
    if element == target:
        yield []
    elif FLOATS[target.name].holds(FLOATS[element.name]):
        for nan in ("raw", "keep"):
            yield [("widen", (target.name,), {"nan": nan})]
    plain = element != target
    if plain:
        for rounding, overflow, nan, subnormals in product(
            ("RNE", "RTZ"), ("inf", "saturate"), _NAN_RULES, ("keep", "flush")
        ):
            options: dict[str, object] = {"rounding": rounding, "overflow": overflow, "nan": nan}
            yield [("cast", (target.name,), {**options, "subnormals": subnormals})]
    for name in ("F32", "BF16", "F16", "F8_E4M3", "F8_E5M2"):
        if name not in (element.name, target.name):
            for rounding in ("RNE", "RTZ"):
                first: Cast = ("cast", (name,), {"rounding": rounding})
                yield [first, ("cast", (target.name,), {})]


_NAN_RULES = ("keep", "raw", "sign", "canonical", "ones", "all_ones")


def _made(
    element: ElementType,
    before: Sequence[Cast],
    inverse: Inverse,
    compute: str,
    after: Sequence[Cast],
) -> tuple[ValueMove, ...] | None:
    options: dict[str, object] = {"compute": compute} if compute else {}
    if compute and any(name == "negate" for name, _ in inverse.steps):
        return None
    steps = [*before, *((name, args, options) for name, args in inverse.steps), *after]
    moves: list[ValueMove] = []
    for name, args, extra in steps:
        try:
            moves.append(value_move(name, moves[-1].target if moves else element, args, extra))
        except UsageError:
            return None
    return tuple(moves)


# --- pieces


def layout_of(ids: Ids, fills: Words, numbering: Numbering, shape: Sequence[int]) -> Layout | None:
    """The map of one leaf as pieces; None if it is not regular."""
    owner, flat = numbering.owners(ids)
    pieces: list[Piece] = []
    for start, stop, step in _runs(owner, flat, fills):
        if len(pieces) > _MOST_PIECES * 8:
            return None
        if owner[start] < 0:
            fill = fills[start : start + 1].tobytes()
            pieces.append(Piece(None, 0, start, (Loop(stop - start, 0, 1),), fill))
        else:
            name = numbering.names[int(owner[start])]
            pieces.append(Piece(name, int(flat[start]), start, (Loop(stop - start, step, 1),)))
    found = tidy(pieces)
    return Layout(tuple(shape), found) if len(found) <= _MOST_PIECES else None


def _runs(owner: Ids, flat: Ids, fills: Words) -> Iterator[tuple[int, int, int]]:
    """Stretches of one leaf with one step, or of one constant: start, stop, step."""
    n = len(owner)
    steps = np.diff(flat)
    kept = owner[1:] == owner[:-1]
    kept &= (owner[1:] >= 0) | (fills[1:] == fills[:-1])
    changes = np.flatnonzero(steps[1:] != steps[:-1]) + 1 if n > 2 else np.empty(0, np.int64)
    breaks = np.flatnonzero(~kept)
    start = 0
    while start < n:
        stop = n
        i = np.searchsorted(breaks, start)
        if i < len(breaks):
            stop = int(breaks[i]) + 1
        i = np.searchsorted(changes, start + 1)
        if i < len(changes):
            stop = min(stop, int(changes[i]) + 1)
        yield start, stop, int(steps[start]) if stop - start > 1 else 1
        start = stop


def ids_of(layout: Layout, numbering: Numbering) -> Ids:
    """The id at each flat place of a layout, CONSTANT for a fill, -2 for a leaf without ids."""
    ids = np.full(layout.n_elements, -2, np.int64)
    starts = dict(zip(numbering.names, numbering.starts.tolist(), strict=False))
    for piece in layout.pieces:
        dst = np.array([piece.dst], np.int64)
        src = np.array([piece.src], np.int64)
        for loop in piece.loops:
            along = np.arange(loop.n, dtype=np.int64)
            dst = (dst[:, None] + along * loop.dst).ravel()
            src = (src[:, None] + along * loop.src).ravel()
        if piece.leaf is None:
            ids[dst] = CONSTANT
        elif piece.leaf in starts:
            ids[dst] = src + starts[piece.leaf]
    return ids
