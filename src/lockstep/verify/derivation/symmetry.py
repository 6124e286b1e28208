"""Sizes of a template that hide something: a map seen there may be another one elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations

from lockstep.formats.leaf import Leaf, Store

_SHOWN = 3
_NUMBER = re.compile(r"(?<![A-Za-z0-9])(\d+)(?![A-Za-z0-9])")
_SIZES = re.compile(r"(size|dim|heads|layers|hidden|width|length|count|experts?)$")


def symmetries(store: Store) -> tuple[str, ...]:
    """What is equal in a checkpoint that need not be, each as one sentence."""
    return (*_square(store.leaves), *_equal_facts(store), *_single(store.leaves))


def _square(leaves: Mapping[str, Leaf]) -> Iterator[str]:
    found = [
        leaf for leaf in leaves.values()
        if any(a == b > 1 for a, b in combinations(leaf.shape, 2))
    ]  # fmt: skip
    if found:
        shown = ", ".join(f"{leaf.name} {list(leaf.shape)}" for leaf in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        yield f"axes of equal length, which a change of axes does not show by shape: {shown}{more}"


def _equal_facts(store: Store) -> Iterator[str]:
    by_value: dict[int, list[str]] = {}
    for name, value in store.facts.items():
        if type(value) is int and value > 1 and _SIZES.search(name):
            by_value.setdefault(value, []).append(name)
    for value, names in by_value.items():
        if len(names) > 1:
            yield (
                f"{', '.join(names)} are all {value}: which of them the converter goes by does not "
                "show"
            )


def _single(leaves: Mapping[str, Leaf]) -> Iterator[str]:
    """Names that are numbered, but with one number only."""
    seen: dict[str, set[str]] = {}
    for name in leaves:
        numbers = list(_NUMBER.finditer(name))
        if numbers:
            first = numbers[0]
            seen.setdefault(name[: first.start()], set()).add(first[1])
    alone = [prefix for prefix, numbers in seen.items() if len(numbers) == 1]
    if alone:
        yield (
            f"only one of {', '.join(f'{p}*' for p in alone[:_SHOWN])}: how the map goes from one "
            "to the next does not show"
        )
