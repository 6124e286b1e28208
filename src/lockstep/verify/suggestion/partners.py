"""Who was made of whom: leaves, gathered families and parts, looked up by fingerprints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from lockstep.formats.leaf import Leaf, Store
from lockstep.verify.suggestion.contents import Chain, Content
from lockstep.verify.suggestion.name_slots import slots
from lockstep.verify.suggestion.spellings import Shape

Key = tuple[str, int, int]  # type, number of elements, fingerprint
MAX_BESIDE = 96  # leaves with the same numbers of which every pair is summed
MAX_THREES = 40  # of which every three are
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Unit:
    """A leaf, or a family of leaves that differ in a number and are gathered in its order.

    `numbers` are those that the members have in common; `shape` is that of one of them.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    shape: Shape
    n: int
    sums: Mapping[Chain, tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Group:
    """One to three units that lie beside each other in one leaf, with the sum of their sums."""

    units: tuple[Unit, ...]
    chain: Chain

    @property
    def names(self) -> tuple[str, ...]:
        """The leaves."""
        return tuple(name for unit in self.units for name in unit.names)


def key_of(sums: Mapping[Chain, tuple[str, int]], chain: Chain, n: int) -> Key:
    """What partners have in common."""
    name, total = sums[chain]
    return name, n, total


def units_of(names: Iterable[str], store: Store, contents: Mapping[str, Content]) -> list[Unit]:
    """The leaves as units, then the families among them."""
    leaves = [store.leaves[name] for name in names if name in contents]
    found = [
        Unit((leaf.name,), slots(leaf.name)[1], leaf.grid_shape, leaf.n_elements,
             contents[leaf.name].sums)
        for leaf in leaves
    ]  # fmt: skip
    return [*found, *_families(leaves, contents)]


def _families(leaves: Sequence[Leaf], contents: Mapping[str, Content]) -> Iterator[Unit]:
    by_texts: dict[object, list[tuple[tuple[int, ...], Leaf]]] = defaultdict(list)
    for leaf in leaves:
        texts, numbers = slots(leaf.name)
        by_texts[texts, leaf.grid_shape, leaf.element].append((numbers, leaf))
    for members in by_texts.values():
        columns = list(zip(*(numbers for numbers, _ in members), strict=True))
        moving = [i for i, column in enumerate(columns) if len(set(column)) > 1]
        for r in range(1, len(moving) + 1):
            for some in combinations(moving, r):
                yield from _gathered(members, some, contents)


def _gathered(
    members: Sequence[tuple[tuple[int, ...], Leaf]],
    moving: Sequence[int],
    contents: Mapping[str, Content],
) -> Iterator[Unit]:
    """The families in which just these numbers move."""
    by_rest: dict[tuple[int, ...], list[tuple[tuple[int, ...], Leaf]]] = defaultdict(list)
    for numbers, leaf in members:
        rest = tuple(n for i, n in enumerate(numbers) if i not in moving)
        by_rest[rest].append((numbers, leaf))
    for rest, inside in by_rest.items():
        if len(inside) > 1:
            inside.sort(key=lambda member: member[0])
            leaves = [leaf for _, leaf in inside]
            sums = _summed([contents[leaf.name].sums for leaf in leaves])
            n = sum(leaf.n_elements for leaf in leaves)
            names = tuple(leaf.name for leaf in leaves)
            yield Unit(names, rest, leaves[0].grid_shape, n, sums)


def _summed(
    all_sums: Sequence[Mapping[Chain, tuple[str, int]]],
) -> dict[Chain, tuple[str, int]]:
    """The fingerprints of a join, for the chains that all its parts have and that lead alike."""
    found = {}
    for chain, (name, _) in all_sums[0].items():
        if all(sums.get(chain, ("", 0))[0] == name for sums in all_sums):
            found[chain] = name, sum(sums[chain][1] for sums in all_sums) & _MASK
    return found


def groups_of(units: Sequence[Unit], wanted: set[Key]) -> dict[Key, list[Group]]:
    """The groups of units with the same numbers whose key is wanted."""
    found: dict[Key, list[Group]] = defaultdict(list)
    beside: dict[object, list[Unit]] = defaultdict(list)
    for unit in units:
        beside[unit.numbers, len(unit.names), len(unit.shape)].append(unit)
    counts = {n for _, n, _ in wanted}
    for inside in beside.values():
        sizes = [1]
        sizes += [2] if len(inside) <= MAX_BESIDE else []
        sizes += [3] if len(inside) <= MAX_THREES else []
        for size in sizes:
            for some in combinations(inside, size):
                if len(some[0].names) * size > 1 and sum(unit.n for unit in some) in counts:
                    _note(some, wanted, found)
    return found


def _note(some: tuple[Unit, ...], wanted: set[Key], found: dict[Key, list[Group]]) -> None:
    sums = _summed([unit.sums for unit in some]) if len(some) > 1 else some[0].sums
    n = sum(unit.n for unit in some)
    for chain in sums:
        key = key_of(sums, chain, n)
        if key in wanted:
            found[key].append(Group(some, chain))
