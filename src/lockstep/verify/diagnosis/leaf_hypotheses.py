"""Which other leaves a target may have been made of: neighbours, namesakes, those of another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate
from math import prod

from lockstep.formats.leaf import Extent, Held, Leaf, Parts
from lockstep.verify.diagnosis.hypotheses import Case, Hypothesis, attempt
from lockstep.verify.layouts.layout import Layout, permute, reshape, whole

MAX_OTHERS = 400  # leaves that are tried in the place of one
MAX_DECODED = 8 << 30  # bytes of chunks that are decoded for that

_NUMBER = re.compile(r"\d+")


def leaf_hypotheses(case: Case, *, to_the_bit: bool = True) -> Iterator[Hypothesis]:
    """One source leaf replaced by another of its shape, the most alike by name first.

    Those whose digest tells that they are not `to_the_bit` what is there are left out, if asked.
    """
    for name in _suspects(case):
        leaf = case.plan.source.leaves[name]
        for other in _others(case, leaf, to_the_bit):
            pieces = tuple(
                replace(piece, leaf=other.name) if piece.leaf == name else piece
                for piece in case.layout.pieces
            )
            made = case.with_layout(Layout(case.layout.shape, pieces))
            swapped = tuple(other.name if s == name else s for s in case.claim.sources)
            claim = replace(made, sources=swapped)
            kind, text = _sentence(name, other.name, case.only_source is None)
            yield Hypothesis(kind, text, claim, (other.name,))


def other_target_hypotheses(case: Case) -> Iterator[Hypothesis]:
    """What is claimed for another target of this shape and type, the most alike by name first.

    Two targets under each other's name are made of their sources by their own transforms.
    """
    leaves = case.plan.target.leaves
    others = [
        other
        for other in case.plan.claims
        if other.target != case.target.name
        and other.layout is not None
        and other.layout.shape == case.layout.shape
        and leaves[other.target].element == case.target.element
    ]
    near = sorted(others, key=lambda o: _distance(case.target.name, o.target))[:MAX_OTHERS]
    sources = case.plan.source.leaves
    reach = accumulate(sum(_least_read(sources[s]) for s in o.sources) for o in near)
    for other, n_bytes in zip(near, reach, strict=True):
        if n_bytes > MAX_DECODED:
            return
        claim = replace(case.with_values(*other.values), layout=other.layout, sources=other.sources)
        text = f"these are the values claimed for {other.target}"
        yield Hypothesis("other_target", text, claim, (other.target,))


def turned_leaf_hypotheses(case: Case) -> Iterator[Hypothesis]:
    """The one source replaced by another leaf of two axes, transposed."""
    source = case.only_source
    if source is None or len(source.grid_shape) != 2:
        return
    for other in _leaves_of(case, source, source.grid_shape[::-1]):
        layout = attempt(partial(_turned, other, case.layout.shape))
        if layout is not None and other.name != source.name:
            claim = replace(case.with_layout(layout), sources=(other.name,))
            text = f"these bytes are under {other.name}, transposed"
            yield Hypothesis("other_leaf_transposed", text, claim, (other.name,))


def _turned(leaf: Leaf, shape: tuple[int, ...]) -> Layout:
    return reshape(permute(whole(leaf.name, leaf.grid_shape), (1, 0)), shape)


def _suspects(case: Case) -> list[str]:
    """The sources that may be wrong: the only one, or those at the first and the last place."""
    if case.only_source is not None:
        return [case.only_source.name]
    spots = case.difference and (case.difference.first.source, case.difference.last.source)
    return [name for name in dict.fromkeys(spots or ()) if name in case.plan.source.leaves]


def _leaves_of(case: Case, like: Leaf, shape: tuple[int, ...]) -> list[Leaf]:
    """The source leaves of a shape and of the type of another."""
    found = case.plan.source.leaves.values()
    return [leaf for leaf in found if leaf.grid_shape == shape and leaf.element == like.element]


def _others(case: Case, leaf: Leaf, to_the_bit: bool) -> list[Leaf]:
    """Leaves of the same shape and type that may be equal, alike names first."""
    others = [o for o in _leaves_of(case, leaf, leaf.grid_shape) if o.name != leaf.name]
    same = to_the_bit and case.claim.is_identity and case.target.shape == leaf.shape
    wanted = case.probe.digest("target", case.target.name) if same else None
    if wanted is not None:  # then what has another digest need not be read
        others = [o for o in others if case.probe.digest("source", o.name) in (wanted, None)]
    near = sorted(others, key=lambda o: _distance(leaf.name, o.name))[:MAX_OTHERS]
    reach = accumulate(_least_read(other) for other in near)
    return [other for other, n_bytes in zip(near, reach, strict=True) if n_bytes <= MAX_DECODED]


def _least_read(leaf: Leaf) -> int:
    """The bytes that have to be decoded to look at one element."""
    if isinstance(leaf.storage, Extent | Held | Parts):
        return 0
    return prod(leaf.storage.shape) * leaf.element.n_bytes


def _distance(a: str, b: str) -> tuple[int, int]:
    """How far two names are apart: differing words first, then the gap between their numbers."""
    words_a, words_b = (re.split(r"[./]", name) for name in (a, b))
    n_other = abs(len(words_a) - len(words_b))
    gap = 0
    for x, y in zip(words_a, words_b, strict=False):
        if x != y and _NUMBER.fullmatch(x) and _NUMBER.fullmatch(y):
            gap += abs(int(x) - int(y))
        elif x != y:
            n_other += 1
    return n_other, gap


def _sentence(name: str, other: str, in_part: bool) -> tuple[str, str]:
    """The name and the text of the hypothesis that one leaf is another."""
    text = f"{other} in place of {name}" if in_part else f"these bytes are under {other}"
    numbers = [_NUMBER.findall(n) for n in (name, other)]
    same_words = _NUMBER.sub("0", name) == _NUMBER.sub("0", other)
    if same_words:
        gaps = [int(b) - int(a) for a, b in zip(*numbers, strict=True) if a != b]
        if len(gaps) == 1 and abs(gaps[0]) == 1:
            return "neighbour", f"{text}, the {'next' if gaps[0] > 0 else 'previous'} one"
    return "other_leaf", text
