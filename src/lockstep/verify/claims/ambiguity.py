"""What shapes and types cannot tell, said before anything is read.

A swap inside a class of equal shape and type, a transposed square, a fused half that could lie on
either axis, heads whose counts are equal: none of them changes a shape, so only contents can show
that the mapping is right.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from lockstep.formats.leaf import Leaf, Store
from lockstep.verify.claim import Ambiguity, Claim
from lockstep.verify.claims.moves import text

Side = Literal["source", "target"]
Class = tuple[tuple[int, ...], str]
_SHOWN = 4  # names in a message
_HEADS = re.compile(r"\b(rope_\w+|heads|qkv|unqkv)\(")
_FUSED = {"target": re.compile(r"\bgate_up\("), "source": re.compile(r"\bungate_up\(")}


def ambiguities(
    claims: Sequence[Claim], source: Store, target: Store, facts: Mapping[str, object]
) -> tuple[Ambiguity, ...]:
    """One for each class of leaves, not for each pair; `leaves` are all of the class."""
    arrays = [claim for claim in claims if claim.layout is not None]
    found: list[Ambiguity] = []
    sides: tuple[tuple[Side, Store], ...] = (("target", target), ("source", source))
    for side, store in sides:
        leaves = _claimed(arrays, side, store)
        fused = _fused(arrays, side)
        for (shape, element), names in _classes(leaves).items():
            found += _same_shape(side, shape, element, names)
            found += _square(side, shape, element, names, fused)
    return (*found, *_equal_heads(arrays, facts))


def _claimed(claims: Iterable[Claim], side: Side, store: Store) -> list[Leaf]:
    names = (
        (claim.target for claim in claims)
        if side == "target"
        else (name for claim in claims for name in claim.sources)
    )
    return [store.leaves[name] for name in dict.fromkeys(names)]


def _classes(leaves: Iterable[Leaf]) -> dict[Class, list[str]]:
    found: dict[Class, list[str]] = defaultdict(list)
    for leaf in leaves:
        found[leaf.shape, leaf.element.name].append(leaf.name)
    return found


def _fused(claims: Iterable[Claim], side: Side) -> set[str]:
    """The leaves of one side that hold a gate and an up projection as halves."""
    moving = [claim for claim in claims if _FUSED[side].search(claim.text)]
    return {name for c in moving for name in ((c.target,) if side == "target" else c.sources)}


def _same_shape(
    side: Side, shape: Sequence[int], element: str, names: list[str]
) -> list[Ambiguity]:
    if len(names) < 2:
        return []
    message = (
        f"{len(names)} leaves of the {side} are {element} {text(shape)}: the shape does not show "
        f"which is which ({_listed(names)})"
    )
    return [Ambiguity("same_shape", side, tuple(names), message)]


def _square(
    side: Side, shape: Sequence[int], element: str, names: list[str], fused: set[str]
) -> list[Ambiguity]:
    sizes = [n for n in shape if n > 1]
    if len(set(sizes)) == len(sizes):
        return []
    found = []
    halves = [name for name in names if name in fused]
    if halves and len(shape) > 1 and shape[-1] == shape[-2]:
        message = (
            f"{len(halves)} fused leaves of the {side} are {element} {text(shape)}: twice the "
            "feed-forward width is the width of the model, so the shape does not show which axis "
            f"has the halves ({_listed(halves)})"
        )
        found.append(Ambiguity("half", side, tuple(halves), message))
    message = (
        f"{len(names)} leaves of the {side} are {element} {text(shape)}, with axes of one length: "
        f"the shape does not show a transposition ({_listed(names)})"
    )
    return [*found, Ambiguity("square", side, tuple(names), message)]


def _equal_heads(claims: Sequence[Claim], facts: Mapping[str, object]) -> list[Ambiguity]:
    """Facts of one value among those on heads, where claims move heads."""
    moving = [c.target for c in claims if _HEADS.search(c.text)]
    by_value: dict[object, list[str]] = defaultdict(list)
    for name, value in facts.items():
        if "head" in name and isinstance(value, int) and value > 1:
            by_value[value].append(name)
    found = []
    for value, names in by_value.items():
        if moving and len(names) > 1:
            message = (
                f"{' and '.join(names)} are both {value}: exchanging them changes no shape in "
                f"{len(moving)} leaves whose heads are moved ({_listed(moving)})"
            )
            found.append(Ambiguity("equal_heads", "target", tuple(moving), message))
    return found


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown}, ..." if len(names) > _SHOWN else shown
