"""Names as texts and the numbers between them, and what those numbers are called."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from keyword import iskeyword

from lockstep.formats.leaf import ELEMENT_TYPES

# A number is a capture only where it stands alone: `w1` and `fc1` are names.
_SLOT = re.compile(r"(?<![A-Za-z0-9])(?:0|[1-9][0-9]*)(?![A-Za-z0-9])")
_WORD = re.compile(r"[A-Za-z]+")
_NAMES = {"blk": "layer", "block": "layer", "blocks": "layer", "h": "layer", "l": "layer"}


def slots(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The texts between the numbers of a name, and the numbers."""
    return tuple(_SLOT.split(name)), tuple(int(text) for text in _SLOT.findall(name))


def by_texts(names: Iterable[str]) -> dict[tuple[str, ...], list[tuple[int, ...]]]:
    """The numbers of all names that differ in numbers only."""
    found: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for texts, numbers in map(slots, names):
        found.setdefault(texts, []).append(numbers)
    return found


def called_like(
    texts: Sequence[str], which: Sequence[int], taken: frozenset[str]
) -> tuple[str, ...]:
    called: dict[int, str] = {}
    for i, k in enumerate(which):
        if k >= 0 and k not in called:
            called[k] = capture_name(texts, i, {*called.values(), *taken})
    return tuple(called[k] for k in sorted(called))


def capture_name(texts: Sequence[str], i: int, taken: Collection[str]) -> str:
    """What a number is called: like the word before it, in the singular."""
    words = _WORD.findall(texts[i].lower())
    word = words[-1] if words else "i"
    name = _NAMES.get(word, word.removesuffix("s") or "i")
    if iskeyword(name) or name.upper() in ELEMENT_TYPES:
        name = "i"
    found, n = name, 2
    while found in taken:
        found, n = f"{name}_{n}", n + 1
    return found


def pattern_of(texts: Sequence[str], holes: Sequence[str]) -> str:
    return "".join(escaped(a) + b for a, b in zip(texts, [*holes, ""], strict=True))


def name_of(texts: Sequence[str], numbers: Sequence[int]) -> str:
    return "".join(a + str(b) for a, b in zip(texts, [*numbers, ""], strict=True))


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
