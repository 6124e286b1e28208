"""Blocks along an axis in another order: heads, experts, layers, found by what they begin with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from lockstep.verify.diagnosis.hypotheses import Case, Hypothesis, attempt, row_elements
from lockstep.verify.layouts.layout import Layout, reshape, take

MAX_BLOCKS = 512  # along one axis
MAX_READS = 3000  # of a few elements each, over all axes
SHOWN = 12  # places of an order that a sentence has
N_LOOKED_AT = 16  # elements that a block is known by
LEAST_SHARE = 8  # a block in another's place differs in more than one in so many elements


def block_hypotheses(case: Case) -> Iterator[Hypothesis]:
    """Each way to cut an axis into equal blocks that are those of the claim in another order."""
    if not case.is_simple:
        return
    shape = case.layout.shape
    n_reads = 0
    for axis, n in enumerate(shape):
        for n_blocks, name in _block_counts(case, n):
            # one element that differs is that element, whatever block begins like its own
            if case.differs_in_less_than(max(2, case.layout.n_elements // n_blocks // LEAST_SHARE)):
                continue
            n_reads += 2 * n_blocks
            if n_reads > MAX_READS:
                return
            order = _order(case, axis, n // n_blocks, n_blocks)
            if order is None:
                continue
            layout = attempt(partial(_reordered, case.layout, axis, n_blocks, order))
            if layout is not None:
                kind, text = _sentence(case, order, axis, n // n_blocks, name)
                yield Hypothesis(kind, text, case.with_layout(layout))


def _block_counts(case: Case, n: int) -> list[tuple[int, str]]:
    """How many blocks an axis may have, and what the facts call them; what has a name is first."""
    names = {count: name for name, count in case.facts.items()}
    names.setdefault(len(case.claim.sources), "sources")
    counts = [m for m in range(2, min(n, MAX_BLOCKS) + 1) if n % m == 0]
    return sorted(((m, names.get(m, "")) for m in counts), key=lambda found: not found[1])


def _order(case: Case, axis: int, block: int, n_blocks: int) -> list[int] | None:
    """The block of the claim that each block of the target begins like; None if that is not so."""
    row = row_elements(case.layout.shape, axis)
    n_looked_at = min(N_LOOKED_AT, block * row)
    starts = [i * block * row for i in range(n_blocks)]
    first = case.found(starts[0], starts[0] + n_looked_at).tobytes()
    known: dict[bytes, int] = {}
    for i, start in enumerate(starts):
        known[case.expected(case.claim, start, start + n_looked_at).tobytes()] = i
    if len(known) < n_blocks or first not in known:
        return None  # blocks that begin alike cannot be told apart like this
    order = []
    for start in starts:
        there = known.get(case.found(start, start + n_looked_at).tobytes())
        if there is None:
            return None
        order.append(there)
    if order == list(range(n_blocks)) or len(set(order)) == 1:
        return None
    return order


def _reordered(layout: Layout, axis: int, n_blocks: int, order: Sequence[int]) -> Layout:
    shape = layout.shape
    split = (*shape[:axis], n_blocks, shape[axis] // n_blocks, *shape[axis + 1 :])
    return reshape(take(reshape(layout, split), axis, order), shape)


def _sentence(case: Case, order: list[int], axis: int, block: int, name: str) -> tuple[str, str]:
    """What the order is called, and a sentence with the order itself where it is short."""
    n = len(order)
    what = {"sources": "sources"}.get(name, "heads" if "head" in name else "blocks")
    if "expert" in name or "expert" in case.claim.text or "expert" in case.target.name:
        what = "experts"
    each = f" of {block} places" if block > 1 else ""
    size = f"{n} {what}{each} along axis {axis}"
    moved = [i for i, k in enumerate(order) if i != k]
    if len(set(order)) < n:
        text, kind = f"{size} with some used twice: {_short(order)}", "blocks_repeated"
    elif order == sorted(range(n), key=str):
        text = f"{size} in the order of their numbers as text, 10 before 2: {_short(order)}"
        kind = "lexicographic"
    elif n == 2:
        text, kind = f"the halves of axis {axis} exchanged", "halves_swapped"
    elif order == list(range(n))[::-1]:
        text, kind = f"{size} in reverse", "reversed"
    elif all((k - i) % n == (order[0]) % n for i, k in enumerate(order)):
        text, kind = f"{size} rolled by {n - order[0]}", "rolled"
    elif len(moved) == 2:
        text, kind = f"{size}: {moved[0]} and {moved[1]} exchanged", "blocks_swapped"
    else:
        text, kind = f"{size} permuted: {_short(order)}", f"{what}_permuted"
    return kind, text


def _short(order: list[int]) -> str:
    shown = ", ".join(map(str, order[:SHOWN]))
    return f"[{shown}]" if len(order) <= SHOWN else f"[{shown}, ... {len(order)} in all]"
