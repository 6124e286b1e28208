"""How a number follows from captures, and conditions on captures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

MAX_EXCLUDED = 8  # combinations of captures that a condition lists one by one


@dataclass(frozen=True, slots=True)
class Follows:
    """A number as `factor * capture + plus`; without a capture it is `plus`."""

    plus: int
    capture: int = -1
    factor: int = 1

    def of(self, captures: Sequence[int]) -> int:
        """The number for these captures."""
        return self.plus + (self.factor * captures[self.capture] if self.capture >= 0 else 0)

    def text(self, names: Sequence[str]) -> str:
        """The expression."""
        if self.capture < 0:
            return str(self.plus)
        times = f" * {self.factor}" if self.factor != 1 else ""
        plus = f" {'+' if self.plus > 0 else '-'} {abs(self.plus)}" if self.plus else ""
        return f"{names[self.capture]}{times}{plus}"


def way_of(values: Sequence[int], captures: Sequence[Sequence[int]]) -> tuple[Follows, int]:
    """The simplest way in which a number follows from captures, and for how many it holds."""
    if len(set(values)) == 1:
        return Follows(values[0]), len(values)
    best = Follows(values[0]), 0
    for i in range(len(captures[0])):
        offsets = Counter(v - c[i] for v, c in zip(values, captures, strict=True))
        plus, n = max(offsets.items(), key=lambda item: (item[1], -abs(item[0])))
        if n > best[1]:
            best = Follows(plus, i), n
    if best[1] == len(values) or len(values) < 3:
        return best
    for i in range(len(captures[0])):
        for factor in _slopes(values, [c[i] for c in captures]):
            plus = values[0] - factor * captures[0][i]
            follows = Follows(plus, i, factor)
            if all(follows.of(c) == v for v, c in zip(values, captures, strict=True)):
                return follows, len(values)
    return best


def _slopes(values: Sequence[int], captures: Sequence[int]) -> Iterable[int]:
    """The whole number by which values grow with a capture, if the first step shows one."""
    for (v, c), (w, d) in pairwise(zip(values, captures, strict=True)):
        if c != d:
            if (w - v) % (d - c) == 0 and (w - v) // (d - c) > 1:
                yield (w - v) // (d - c)
            return


def condition_for(
    called: Sequence[str], out: Sequence[Sequence[int]], kept: Sequence[Sequence[int]]
) -> str | None:
    """An expression that holds for the captures that are kept and not for the others."""
    for i, name in enumerate(called):
        mine, theirs = ({c[i] for c in captures} for captures in (kept, out))
        if not mine & theirs:
            return among(name, mine, theirs)
    if len(out) > MAX_EXCLUDED:
        return None
    texts = [
        " and ".join(f"{name} == {n}" for name, n in zip(called, captures, strict=True))
        for captures in out
    ]
    return " and ".join(f"not ({text})" for text in texts)


def among(name: str, mine: set[int], theirs: set[int]) -> str:
    if len(theirs) == 1:
        return f"{name} != {min(theirs)}"
    low, high = min(mine), max(mine)
    if high - low + 1 == len(mine) and len(mine) > 1:
        return f"{name} in range({low}, {high + 1})"
    if len(theirs) < len(mine):
        return f"{name} not in {sorted(theirs)}"
    return f"{name} in {sorted(mine)}"
