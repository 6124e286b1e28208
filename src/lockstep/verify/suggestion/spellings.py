"""Which steps may lead from some shapes to another, as a claim file spells them, likely ones first.

Nothing is read here; what is spelled is tried out against the contents elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from math import prod

Shape = tuple[int, ...]
Steps = tuple[str, ...]
MAX_RANK = 4  # axes of which every order is tried
MAX_HEADS = 24  # numbers of heads that are tried
_HEAD_SIZES = (8, 16, 32, 64, 80, 96, 128, 192, 256)


@dataclass(frozen=True, slots=True)
class Heads:
    """Numbers of heads that the two checkpoints mention."""

    counts: tuple[int, ...]

    @classmethod
    def of(cls, *facts: Mapping[str, object]) -> Heads:
        """What the facts call heads, in tables too."""
        found: set[int] = set()
        for table in facts:
            for key, value in table.items():
                if isinstance(value, Mapping):
                    found |= set(cls.of(value).counts)
                elif "head" in key and isinstance(value, int) and 1 <= value <= 4096:
                    found.add(int(value))
        return cls(tuple(sorted(found, reverse=True)))

    def dividing(self, n: int, by: int = 2) -> list[int]:
        """How many heads an axis may have: those known first, then what divides it."""
        known = [h for h in self.counts if n % (h * by) == 0]
        known += [n // h for h in self.counts if n % (h * by) == 0 and (n // h) % by == 0]
        known += [h for h in range(1, min(n // by, 256) + 1) if n % (h * by) == 0]
        return list(dict.fromkeys(known))[:MAX_HEADS]

    def pairs(self, rows: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Heads and key-value heads of q, k and v with so many rows."""
        q, k, v = rows
        if k != v or not k or q % k:
            return
        sizes = [q // h for h in self.counts if q % h == 0]
        for size in dict.fromkeys([*sizes, *_HEAD_SIZES]):
            if size and q % size == 0 and k % size == 0:
                yield q // size, k // size


def straight(shape: Shape, target: Shape) -> Iterator[Steps]:
    """Steps from one array to another of as many elements: same, squeezed, axes, reshaped."""
    if prod(shape) != prod(target):
        return
    if shape == target:
        yield ()
    elif (ones := _ones(shape, target)) is not None:
        yield ones
    if 2 <= len(shape) <= MAX_RANK:
        for order in sorted(permutations(range(len(shape))), key=_disorder)[1:]:
            moved = tuple(shape[k] for k in order)
            steps = (_permute(order),)
            if moved == target:
                yield steps
            elif (ones := _ones(moved, target)) is not None:
                yield (*steps, *ones)
            elif _regrouped(moved, target):
                yield (*steps, _reshape(target))
    if shape != target and _ones(shape, target) is None:
        yield (_reshape(target),)
    yield from _split_first(shape, target)


def _split_first(shape: Shape, target: Shape) -> Iterator[Steps]:
    """The axes of a target of more axes in another order, then as the target has them."""
    if 2 < len(target) <= MAX_RANK and len(target) > len(shape):
        for order in sorted(permutations(range(len(target))), key=_disorder)[1:]:
            before = [0] * len(target)
            for k, axis in enumerate(order):
                before[axis] = target[k]
            yield _reshape(before), _permute(order)


def moved(shape: Shape, target: Shape, heads: Heads) -> Iterator[Steps]:
    """`straight`, and what attention does to rows: rotary halves, fused parts regrouped."""
    tails = list(straight(shape, target))
    yield from tails
    simple = [steps for steps in tails if len(steps) < 2]
    for axis, n in enumerate(shape):
        for n_heads in heads.dividing(n):
            for step in ("rope_half_to_interleaved", "rope_interleaved_to_half"):
                spelled = f"{step}({n_heads})" if axis == 0 else f"{step}({n_heads}, axis={axis})"
                yield from ((spelled, *tail) for tail in simple)
    yield from _regroupings(shape, target, heads)


def _regroupings(shape: Shape, target: Shape, heads: Heads) -> Iterator[Steps]:
    """q, k and v of each head together, or all of each, where as many heads have them."""
    if shape != target or not shape:
        return
    n, rest = shape[0], shape[1:]
    if n % 2 == 0 and n > 2:
        yield f"reshape({_list((2, n // 2, *rest))})", "flip(0)", _reshape(target)
    for n_heads in heads.dividing(n, 3) if n % 3 == 0 else ():
        for a, b in ((n_heads, 3), (3, n_heads)):
            apart = (a, b, n // a // b, *rest)
            order = (1, 0, *range(2, len(apart)))
            yield _reshape(apart), _permute(order), _reshape(target)


# --- joins


def joined(
    shapes: Sequence[Shape], gathered: Sequence[int], target: Shape, heads: Heads
) -> Iterator[tuple[list[Steps], Steps]]:
    """For each part the steps that gather it, then the steps that join the parts.

    `gathered` has for each part how many leaves it gathers, or 1.
    """
    if len({len(shape) for shape in shapes}) != 1:
        return
    if len(shapes) == 1:
        yield from _stacked(shapes[0], gathered[0], target)
    for order in _orders(len(shapes[0])):
        turn: Steps = (_permute(order),) if order != tuple(range(len(order))) else ()
        turned = [tuple(shape[k] for k in order) for shape in shapes]
        for how in _gatherings(turned, gathered):
            parts = [_gathered(shape, n, how) for shape, n in zip(turned, gathered, strict=True)]
            before = [(*turn, *step) for step, _ in parts]
            for steps, shape in _joins([shape for _, shape in parts], heads):
                for tail in _tails(shape, target):
                    yield before, (*steps, *tail)


def _stacked(shape: Shape, n: int, target: Shape) -> Iterator[tuple[list[Steps], Steps]]:
    """Leaves brought to the shape that the target has without one axis, and stacked on that."""
    for axis, length in enumerate(target):
        if length == n:
            rest = (*target[:axis], *target[axis + 1 :])
            for steps in straight(shape, rest):
                yield [(*steps, f"stack({axis})")], ()


def _orders(n: int) -> list[tuple[int, ...]]:
    if n > MAX_RANK:
        return [tuple(range(n))]
    return sorted(permutations(range(n)), key=_disorder)


def _gatherings(shapes: Sequence[Shape], gathered: Sequence[int]) -> Iterator[tuple[str, int]]:
    if max(gathered) == 1:
        yield "", 0
        return
    for axis in range(len(shapes[0]) + 1):
        yield "stack", axis
    for axis in range(len(shapes[0])):
        yield "concat", axis


def _gathered(shape: Shape, n: int, how: tuple[str, int]) -> tuple[Steps, Shape]:
    kind, axis = how
    if not kind:
        return (), shape
    if kind == "stack":
        return (f"stack({axis})",), (*shape[:axis], n, *shape[axis:])
    return (f"concat({axis})",), (*shape[:axis], n * shape[axis], *shape[axis + 1 :])


def _joins(shapes: Sequence[Shape], heads: Heads) -> Iterator[tuple[Steps, Shape]]:
    first = shapes[0]
    if len(shapes) == 1:
        yield (), first
        return
    for axis in range(len(first)):
        rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
        if len(rest) == 1:
            n = sum(shape[axis] for shape in shapes)
            yield (f"concat({axis})",), (*first[:axis], n, *first[axis + 1 :])
    if len(shapes) == 2 and shapes[0] == shapes[1]:
        for axis in range(len(first)):
            shape = (*first[:axis], 2 * first[axis], *first[axis + 1 :])
            option = f", axis={axis}" if axis else ""
            yield (f"gate_up(order=interleaved{option})",), shape
    if len(set(shapes)) == 1:
        for axis in range(len(first) + 1):
            yield (f"stack({axis})",), (*first[:axis], len(shapes), *first[axis:])
    if len(shapes) == 3 and first and len({shape[1:] for shape in shapes}) == 1:
        rows = sum(shape[0] for shape in shapes)
        for n_heads, n_kv in heads.pairs([shape[0] for shape in shapes]):
            spelled = f"qkv({n_heads}, {n_kv}, layout=per_kv_group)"
            yield (spelled,), (rows, *first[1:])


def _tails(shape: Shape, target: Shape) -> Iterator[Steps]:
    if shape == target:
        yield ()
    elif (ones := _ones(shape, target)) is not None:
        yield ones
    elif _regrouped(shape, target):
        yield (_reshape(target),)


# --- parts of a leaf


def parted(
    shape: Shape,
    position: tuple[int, int] | None,
    sizes: Sequence[int],
    mine: int,
    target: Shape,
    heads: Heads,
) -> Iterator[Steps]:
    """Steps that take one target out of a leaf.

    `position` is which of how many alike it is; `sizes` are the elements of the parts that lie
    beside each other, of which this is number `mine`.
    """
    for before, rest in _picked(shape, position):
        if len(sizes) == 1:
            yield from ((*before, *tail) for tail in straight(rest, target))
            continue
        for cut, left in _cuts(rest, sizes, mine, heads):
            yield from ((*before, cut, *tail) for tail in straight(left, target))


def _picked(shape: Shape, position: tuple[int, int] | None) -> Iterator[tuple[Steps, Shape]]:
    if position is None:
        yield (), shape
        return
    i, n = position
    for axis, length in enumerate(shape):
        if length == n:
            yield (f"index({axis}, {i})",), (*shape[:axis], *shape[axis + 1 :])
    for axis, length in enumerate(shape):
        size = length // n
        if length % n == 0 and size > 1:
            step = f"slice({axis}, {i * size}, {i * size + size})"
            yield (step,), (*shape[:axis], size, *shape[axis + 1 :])


def _cuts(
    shape: Shape, sizes: Sequence[int], mine: int, heads: Heads
) -> Iterator[tuple[str, Shape]]:
    total = sum(sizes)
    for axis, length in enumerate(shape):
        if total == 0 or any(size * length % total for size in sizes):
            continue
        lengths = [size * length // total for size in sizes]
        n = lengths[mine]
        left = (*shape[:axis], n, *shape[axis + 1 :])
        others = [m for i, m in enumerate(lengths) if i != mine]
        for start in _starts(others):
            yield f"slice({axis}, {start}, {start + n})", left
        if len(sizes) == 2 and sizes[0] == sizes[1]:
            option = f", axis={axis}" if axis else ""
            for part in ("gate", "up"):
                yield f"ungate_up({part}, order=interleaved{option})", left
        if axis == 0 and len(sizes) == 3:
            for q in sorted(set(lengths), reverse=True):
                k = (sum(lengths) - q) // 2
                for n_heads, n_kv in heads.pairs([q, k, k]) if q + 2 * k == length else ():
                    for part in ("q", "k", "v"):
                        spelled = f"{part}, {n_heads}, {n_kv}, {q // n_heads}"
                        yield f"unqkv({spelled}, layout=per_kv_group)", left


def _starts(others: Sequence[int]) -> list[int]:
    """Where a part may begin that has any of the others before it."""
    found = {sum(some) for r in range(len(others) + 1) for some in combinations(others, r)}
    return sorted(found)


# --- shapes


def _disorder(order: tuple[int, ...]) -> int:
    return sum(k != i for i, k in enumerate(order))


def _permute(order: Sequence[int]) -> str:
    n = len(order)
    if n > 1 and list(order) == [*range(n - 2), n - 1, n - 2]:
        return "transpose()"
    return f"permute({_list(order)})"


def _reshape(shape: Sequence[int]) -> str:
    return f"reshape({_list(shape)})"


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _ones(shape: Shape, target: Shape) -> Steps | None:
    """The steps between shapes that differ in axes of length 1; None if they differ in others."""
    if shape == target or [n for n in shape if n != 1] != [n for n in target if n != 1]:
        return None
    kept = list(shape)
    steps = []
    at = 0
    while at < max(len(kept), len(target)):
        mine = kept[at] if at < len(kept) else None
        theirs = target[at] if at < len(target) else None
        if mine == theirs:
            at += 1
        elif mine == 1:
            steps.append(f"squeeze({at})")
            del kept[at]
        else:
            steps.append(f"unsqueeze({at})")
            kept.insert(at, 1)
    return tuple(steps)


def _regrouped(shape: Shape, target: Shape) -> bool:
    """Whether axes were only merged or taken apart, so that a reshape says something."""
    if prod(shape) != prod(target):
        return False
    few, many = sorted((_ends(shape), _ends(target)), key=len)
    return few <= many


def _ends(shape: Shape) -> set[int]:
    """How many elements lie behind each end of an axis."""
    return {prod(shape[k:]) for k in range(len(shape) + 1)}
