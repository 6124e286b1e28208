"""Where in a leaf the differences lie, and what stands there: rows, heads, the part of one source.

The rows of the first and of the last difference are known exactly; the bounds on the other axes are
found by halving what agrees, so that everything outside of the box was compared and is as claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain

from lockstep.artifacts.verification import Diagnosis, Difference
from lockstep.errors import UsageError
from lockstep.verify.diagnosis.block_order import block_hypotheses
from lockstep.verify.diagnosis.damage import FEW
from lockstep.verify.diagnosis.hypotheses import Case, Hypothesis, attempt
from lockstep.verify.diagnosis.layout_hypotheses import layout_hypotheses
from lockstep.verify.diagnosis.leaf_hypotheses import leaf_hypotheses
from lockstep.verify.diagnosis.parts import (
    Box,
    boxes_of_sources,
    is_inside,
    n_in,
    part_of,
    taken,
    whole_box,
)
from lockstep.verify.diagnosis.value_hypotheses import constant_hypotheses, value_hypotheses
from lockstep.verify.layouts.layout import cut

FEWEST = 4  # elements that a part is looked for around
MAX_ROWS = 2048  # rows of the claim that one row is held against
DENSE = 4  # a row in another's place differs in more than one in so many elements
MAX_EQUAL = 1 << 20  # elements of rows that are held against each other
MAX_ROW = 1 << 16  # of one of them: two are in memory at a time, beside the arena

Search = Callable[[Case, Iterator[Hypothesis]], Hypothesis | None]


def region_of(case: Case) -> Box | None:
    """The box that the differences lie in, if it is a part of the leaf and is known in time."""
    difference = case.difference
    few = difference is None or difference.n_differ < FEWEST
    if difference is None or few or not case.is_simple or not case.layout.shape:
        return None
    try:
        box = _bounds(case, difference)
    except UsageError:
        return None  # pieces that are too many to be cut
    return None if box == whole_box(case.layout.shape) else box


def explain_region(case: Case, box: Box, search: Search) -> Diagnosis | None:
    """What stands in the part of the leaf that differs; None if nothing explains it."""
    try:
        for name, where, mine in _parts(case, box):
            part = part_of(case, mine)
            found = search(part, _hypotheses(part, in_order=name == "rows"))
            if found is not None:
                return Diagnosis(
                    hypothesis=f"{name}_{found.name}",
                    text=_said(where, found, n_in(mine)),
                    confirmed=True,
                    suspects=found.suspects,
                )
        return _other_rows(case, box, search)
    except UsageError:
        return None


def _hypotheses(part: Case, *, in_order: bool) -> Iterator[Hypothesis]:
    """As about a whole leaf, but for what takes all sources together.

    Where few of a part differ, it is not read for what would change most of it; and what is no part
    but because it differs has its blocks `in_order`: those that lie elsewhere are the leaf's.
    """
    few = part.differs_in_less_than(part.layout.n_elements // DENSE)
    return chain(
        constant_hypotheses(part),
        leaf_hypotheses(part),
        layout_hypotheses(part),
        value_hypotheses(part),
        () if few or in_order else block_hypotheses(part),
    )


# --- bounds


def _bounds(case: Case, difference: Difference) -> Box | None:
    """The smallest box with all differences; None if time is up before it is known."""
    first, last = difference.first.target_index, difference.last.target_index
    box = list(whole_box(case.layout.shape))
    exact = True  # the indices bound an axis as long as the slower axes have one place
    for axis, (a, b) in enumerate(zip(first, last, strict=True)):
        if exact:
            box[axis] = (a, b + 1)
            exact = a == b
            continue
        low = _edge(case, tuple(box), axis, 0, min(a, b), at_start=True)
        high = _edge(case, tuple(box), axis, max(a, b) + 1, box[axis][1], at_start=False)
        box[axis] = (low, high)
    return None if case.probe.is_late() else tuple(box)


def _edge(case: Case, box: Box, axis: int, low: int, high: int, *, at_start: bool) -> int:
    """Where the places of an axis begin, or end, to differ; it is from `low` to `high`."""
    n = box[axis][1]
    while low < high:
        middle = (low + high + 1) // 2 if at_start else (low + high) // 2
        stretch = (0, middle) if at_start else (middle, n)
        if _agrees(case, (*box[:axis], stretch, *box[axis + 1 :])):
            low, high = (middle, high) if at_start else (low, middle)
        else:
            low, high = (low, middle - 1) if at_start else (middle + 1, high)
    return low


def _agrees(case: Case, box: Box) -> bool:
    """Whether a box is as claimed."""
    part = part_of(case, box)
    return part.probe.agrees(part.claim)


# --- parts that have a name


def _parts(case: Case, box: Box) -> Iterator[tuple[str, str, Box]]:
    """Boxes around the differences, with their names: of a source, of heads, and the smallest."""
    everything = whole_box(case.layout.shape)
    seen = {everything}
    for name, mine in boxes_of_sources(case.layout).items():
        if is_inside(box, mine) and mine not in seen and len(case.claim.sources) > 1:
            seen.add(mine)
            yield "part", f"the part that comes from {name} ({_place(case, mine)})", mine
    for axis, (a, b) in enumerate(box):
        for name, n_heads in case.facts.items():
            n = case.layout.shape[axis]
            if "head" not in name or n % n_heads:
                continue
            size = n // n_heads
            first, last = a // size, (b - 1) // size
            widened = (
                *everything[:axis],
                (first * size, (last + 1) * size),
                *everything[axis + 1 :],
            )
            if size > 1 and widened not in seen:
                seen.add(widened)
                heads = f"head {first}" if first == last else f"heads {first} to {last}"
                yield "heads", f"{heads} of {n_heads} ({_place(case, widened)})", widened
    rows = (box[0], *everything[1:])
    for tight in (rows, box):
        if tight not in seen:
            seen.add(tight)
            yield "rows", _place(case, tight), tight


def _place(case: Case, box: Box) -> str:
    """`rows 96 to 99 (4 of 100)`, and so on for the axes that are not all in it."""
    shape = case.layout.shape
    said = []
    for axis, ((a, b), n) in enumerate(zip(box, shape, strict=True)):
        if (a, b) == (0, n):
            continue
        words = {1: ("element",), 2: ("row", "column")}.get(len(shape), ())
        word, of = (words[axis], "") if words else ("place", f" of axis {axis}")
        if b - a == 1:
            said.append(f"{word} {a}{of} (of {n})")
        else:
            said.append(f"{word}s {a} to {b - 1}{of} ({b - a} of {n})")
    return ", ".join(said) or "all of it"


def _said(where: str, found: Hypothesis, n_elements: int) -> str:
    verb = "is" if n_elements == 1 or where.startswith(("row ", "column ", "the part")) else "are"
    if found.name == "zeros" and found.text == "all zeros":
        return f"{where} {verb} zero; all others are as claimed"
    if found.name == "constant":
        return f"{where} {verb} {found.text}; all others are as claimed"
    return f"{where}: {found.text}; all others are as claimed"


# --- rows


def _other_rows(case: Case, box: Box, search: Search) -> Diagnosis | None:
    """One row that is another row of the claim, or rows that are all the same."""
    rows = (box[0], *whole_box(case.layout.shape)[1:])
    (start, stop), where = box[0], _place(case, rows)
    n = n_in(rows)
    if n > MAX_EQUAL or len(case.layout.shape) < 2 or case.differs_in_less_than(n // DENSE):
        return None
    part = part_of(case, rows)
    found = search(part, _rows_of_claim(case, part, start)) if stop - start == 1 else None
    if found is not None:
        text = f"{where} {found.text}; all others are as claimed"
        return Diagnosis(hypothesis=found.name, text=text, confirmed=True)
    size = n // (stop - start)
    if size > MAX_ROW:
        return None
    first = part.found(0, size).tobytes()
    if stop - start > 1 and all(
        part.found(i * size, (i + 1) * size).tobytes() == first for i in range(1, stop - start)
    ):
        text = f"{where} all hold the same values, not those claimed; all others are as claimed"
        return Diagnosis(hypothesis="rows_equal", text=text, confirmed=True)
    return None


def _rows_of_claim(case: Case, part: Case, row: int) -> Iterator[Hypothesis]:
    """The claim's rows that begin as the one row of a part does."""
    n, size = case.layout.shape[0], part.layout.n_elements
    n_looked_at = min(4, size)
    wanted = part.found(0, n_looked_at).tobytes()
    for i in range(n if n <= MAX_ROWS else 0):
        begin = case.expected(case.claim, i * size, i * size + n_looked_at)
        layout = attempt(partial(cut, case.layout, 0, i, i + 1))
        if i != row and begin.tobytes() == wanted and layout is not None:
            names = {piece.leaf for piece in layout.pieces}
            sources = tuple(name for name in case.claim.sources if name in names)
            claim = replace(part.with_layout(layout), sources=sources)
            yield Hypothesis("other_row", f"holds what is claimed of row {i}", claim)


def name_region(case: Case, box: Box, n_differ: int) -> Diagnosis | None:
    """Where the differences lie, if that is at most half of the leaf.

    A few elements are named one by one, unless they are whole rows.
    """
    n = n_in(box)
    rows = len(box) > 1 and box[1:] == whole_box(case.layout.shape)[1:]
    if (n_differ <= FEW and not (rows and n_differ == n)) or 2 * n > case.layout.n_elements:
        return None
    where = _place(case, box)
    sources = {piece.leaf for piece in taken(case.layout, box).pieces}
    name = next(iter(sources))
    only = len(sources) == 1 and name is not None and len(case.claim.sources) > 1
    of = f", in the part that comes from {name}" if only else ""
    if 2 * n_differ >= n:
        text = f"{where} hold{'s' * where.startswith('row ')} other values{of}"
    else:
        text = f"all {n_differ} elements that differ lie in {where}{of}"
    text = f"{text}; all others are as claimed"
    return Diagnosis(hypothesis="region", text=text, confirmed=True)
