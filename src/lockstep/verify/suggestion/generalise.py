"""Single findings to rules: `blk.0.w <- layers.0.w`, `blk.1.w <- layers.1.w`, ... to a template.

A rule covers exactly the findings that it was made of. Where its pattern fits other targets too,
a condition leaves them out; what breaks the pattern of most gets a rule of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lockstep.verify.claims.rules import ClaimRule, From
from lockstep.verify.suggestion.name_slots import (
    by_texts,
    called_like,
    capture_name,
    escaped,
    name_of,
    pattern_of,
    slots,
)
from lockstep.verify.suggestion.number_rules import Follows, among, condition_for, way_of

_NUMBER = re.compile(r"(?<![A-Za-z0-9_.])(?:0|[1-9][0-9]*)(?![A-Za-z0-9_.])")


@dataclass(frozen=True, slots=True)
class Part:
    """One source of a finding; several names are gathered by the first step, in this order."""

    names: tuple[str, ...]
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """One target leaf and what it is made of; numbers in steps are written out."""

    target: str
    parts: tuple[Part, ...]
    steps: tuple[str, ...] = ()
    group: str = "params"


@dataclass(frozen=True, slots=True)
class Ruled:
    """A rule, the findings that it covers, and targets of its pattern that it leaves out."""

    rule: ClaimRule
    members: tuple[Made, ...]
    left_out: tuple[str, ...] = ()


def generalise(
    found: Sequence[Made],
    sources: Collection[str],
    targets: Collection[str],
    taken: Collection[str] = (),
) -> list[Ruled]:
    """Rules that cover each finding once and nothing else, in the order of the targets.

    `taken` are names that no capture may have: those of facts.
    """
    names = _Names(by_texts(sources), by_texts(targets), frozenset(taken))
    groups: dict[object, list[_Row]] = {}
    for made in found:
        row = _row(made)
        groups.setdefault(row.key, []).append(row)
    ruled = [rule for rows in groups.values() for rule in _rules(rows, names)]
    place = {name: i for i, name in enumerate(targets)}
    return sorted(ruled, key=lambda each: place.get(each.members[0].target, len(place)))


# --- findings as rows of numbers


@dataclass(frozen=True, slots=True)
class _Source:
    """A part: the texts of its names, their numbers, and what each gathered place goes through."""

    texts: tuple[str, ...]
    numbers: tuple[int, ...]
    gathered: tuple[int, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Row:
    """A finding as texts, which are alike in a rule, and numbers, which follow from captures."""

    made: Made
    texts: tuple[str, ...]
    numbers: tuple[int, ...]
    sources: tuple[_Source, ...]
    steps: tuple[tuple[str, ...], ...]
    values: tuple[int, ...]  # the numbers of sources, then those of steps

    @property
    def key(self) -> object:
        """What findings of one rule have in common."""
        sources = tuple((s.texts, s.gathered, s.names) for s in self.sources)
        return self.texts, sources, self.steps, self.made.group


def _row(made: Made) -> _Row:
    texts, numbers = slots(made.target)
    sources = tuple(_source(part) for part in made.parts)
    spelled = [step for part in made.parts for step in part.steps] + list(made.steps)
    steps = tuple(tuple(_NUMBER.split(step)) for step in spelled)
    counts = tuple((str(len(part.steps)),) for part in made.parts)
    values = [n for s in sources for i, n in enumerate(s.numbers) if i not in s.gathered]
    values += [int(text) for step in spelled for text in _NUMBER.findall(step)]
    return _Row(made, texts, numbers, sources, (*counts, *steps), tuple(values))


def _source(part: Part) -> _Source:
    found = [slots(name) for name in part.names]
    texts, numbers = found[0]
    rows = [row for _, row in found]
    if len(found) == 1:
        return _Source(texts, numbers)
    alike = all(other == texts for other, _ in found)
    if not alike or rows != sorted(rows) or len(set(rows)) != len(rows):
        return _Source((), (), names=part.names)
    moving = tuple(i for i, column in enumerate(zip(*rows, strict=True)) if len(set(column)) > 1)
    return _Source(texts, numbers, moving)


@dataclass(frozen=True, slots=True)
class _Names:
    """The names of both checkpoints, by their texts."""

    sources: Mapping[tuple[str, ...], list[tuple[int, ...]]]
    targets: Mapping[tuple[str, ...], list[tuple[int, ...]]]
    taken: frozenset[str]


# --- what numbers follow from


def _captures(rows: Sequence[_Row]) -> tuple[list[int], list[list[int]]]:
    """For each number of the target which capture it is, -1 for none; and the captures' values."""
    columns = list(zip(*(row.numbers for row in rows), strict=True))
    which: list[int] = []
    kept: list[tuple[int, ...]] = []
    for column in columns:
        if len(set(column)) == 1:
            which.append(-1)
            continue
        if column not in kept:
            kept.append(column)
        which.append(kept.index(column))
    return which, [list(values) for values in zip(*kept, strict=True)] or [[] for _ in rows]


# --- rules


def _rules(rows: Sequence[_Row], names: _Names) -> list[Ruled]:
    """The rules of findings with the same texts: most of them in one, the others by themselves."""
    if len(rows) == 1:
        return [_alone(rows[0], names)]
    which, captures = _captures(rows)
    follows: list[Follows] = []
    fits = [True] * len(rows)
    for values in zip(*(row.values for row in rows), strict=True):
        way, _ = way_of(values, captures)
        follows.append(way)
        for i, value in enumerate(values):
            fits[i] = fits[i] and way.of(captures[i]) == value
    together = [row for row, fit in zip(rows, fits, strict=True) if fit]
    others = [row for row, fit in zip(rows, fits, strict=True) if not fit]
    if len(together) < 2 or 2 * len(together) < len(rows):
        return [_alone(row, names) for row in rows]
    # without the others fewer numbers may move, so what is left is looked at afresh
    if others:
        return [*_rules(together, names), *_rules(others, names)]
    ruled = _template(rows, which, captures, follows, names)
    return [ruled] if ruled else [_alone(row, names) for row in rows]


def _template(
    rows: Sequence[_Row],
    which: Sequence[int],
    captures: Sequence[Sequence[int]],
    follows: Sequence[Follows],
    names: _Names,
) -> Ruled | None:
    """One rule for all rows, or None if no condition leaves out what is not among them."""
    first = rows[0]
    called = called_like(first.texts, which, names.taken)
    target = pattern_of(
        first.texts,
        [f"{{{called[k]}:int}}" if k >= 0 else str(n)
         for k, n in zip(which, first.numbers, strict=True)],
    )  # fmt: skip
    left_out = _left_out(rows, which, names)
    conditions = [condition_for(called, [c for _, c in left_out], captures)] if left_out else []
    sources = _froms(rows, follows, called, captures, names)
    if None in conditions or sources is None:
        return None
    parts, more = sources
    conditions += more
    n = sum(len(part.names) == 1 or not s.names for part, s in zip(
        first.made.parts, first.sources, strict=True))  # fmt: skip
    if n < len(first.sources):
        return None
    rule = _rule(first, target, parts, follows, called, " and ".join(filter(None, conditions)))
    return Ruled(rule, tuple(row.made for row in rows), tuple(name for name, _ in left_out))


def _left_out(
    rows: Sequence[_Row], which: Sequence[int], names: _Names
) -> list[tuple[str, tuple[int, ...]]]:
    """Targets that the pattern fits and that are not among the rows, with their captures."""
    first = rows[0]
    members = {row.made.target for row in rows}
    found = []
    for numbers in names.targets.get(first.texts, ()):
        name = name_of(first.texts, numbers)
        captured: dict[int, int] = {}
        fits = name not in members
        for k, n, mine in zip(which, numbers, first.numbers, strict=True):
            fits = fits and (n == mine if k < 0 else captured.setdefault(k, n) == n)
        if fits:
            found.append((name, tuple(captured[k] for k in sorted(captured))))
    return found


# --- sources of a rule


def _froms(
    rows: Sequence[_Row],
    follows: Sequence[Follows],
    called: Sequence[str],
    captures: Sequence[Sequence[int]],
    names: _Names,
) -> tuple[list[str], list[str]] | None:
    """The sources' patterns, and conditions on what they gather; None if they are no patterns."""
    at = 0
    patterns, conditions = [], []
    used = list(called)
    for k, source in enumerate(rows[0].sources):
        if source.names:
            return None
        holes = []
        n_plain = len(source.numbers) - len(source.gathered)
        mine = list(follows[at : at + n_plain])
        at += n_plain
        if source.gathered and any(f.capture >= 0 and (f.plus or f.factor != 1) for f in mine):
            return None  # what gathers computes nothing
        for i in range(len(source.numbers)):
            if i not in source.gathered:
                follow = mine.pop(0)
                text = follow.text(called)
                holes.append(f"{{{text}}}" if follow.capture >= 0 else text)
                continue
            name = capture_name(source.texts, i, {*used, *names.taken})
            used.append(name)
            holes.append(f"{{{name}:int}}")
            condition = _gathers(rows, k, i, name, called, captures, names)
            if condition is None:
                return None
            conditions.append(condition)
        patterns.append(pattern_of(source.texts, holes))
    return patterns, conditions


def _gathers(
    rows: Sequence[_Row],
    k: int,
    slot: int,
    name: str,
    called: Sequence[str],
    captures: Sequence[Sequence[int]],
    names: _Names,
) -> str | None:
    """What a gathered number has to fulfil, "" for nothing; None if that cannot be said."""
    taken = [_gathered(row, k, slot) for row in rows]
    there = [_could_gather(row, k, slot, names) for row in rows]
    if taken == there:
        return ""
    if all(mine == taken[0] for mine in taken) and all(other == there[0] for other in there):
        rest = set(there[0]) - set(taken[0])
        return among(name, set(taken[0]), rest) if rest else None
    steps = {b - a for mine in taken for a, b in pairwise(mine)}
    if len(steps) != 1:
        return None
    (step,) = steps
    for i, capture in enumerate(called):
        cycle = [[n for n in other if n % step == c[i]]
                 for other, c in zip(there, captures, strict=True)]  # fmt: skip
        if cycle == taken:
            return f"{name} % {step} == {capture}"
    return None


def _gathered(row: _Row, k: int, slot: int) -> list[int]:
    return sorted({slots(name)[1][slot] for name in row.made.parts[k].names})


def _could_gather(row: _Row, k: int, slot: int, names: _Names) -> list[int]:
    """The values of a gathered number among all names that agree in the others."""
    source = row.sources[k]
    fixed = [i for i in range(len(source.numbers)) if i not in source.gathered]
    return sorted({
        numbers[slot]
        for numbers in names.sources.get(source.texts, ())
        if all(numbers[i] == source.numbers[i] for i in fixed)
    })  # fmt: skip


def _alone(row: _Row, names: _Names) -> Ruled:
    """The rule of one finding, name by name where its sources make no pattern."""
    constants = [Follows(value) for value in row.values]
    sources = _froms([row], constants, (), [()], names)
    target = escaped(row.made.target)
    if sources is not None:
        patterns, conditions = sources
        where = " and ".join(filter(None, conditions))
        return Ruled(_rule(row, target, patterns, constants, (), where), (row.made,))
    froms = tuple(From(name=escaped(name)) for part in row.made.parts for name in part.names)
    steps = tuple(step for part in row.made.parts for step in part.steps)
    rule = ClaimRule(target=target, sources=froms, transform=(*steps, *row.made.steps),
                     group=row.made.group)  # fmt: skip
    return Ruled(rule, (row.made,))


def _rule(
    row: _Row,
    target: str,
    patterns: Sequence[str],
    follows: Sequence[Follows],
    called: Sequence[str],
    where: str,
) -> ClaimRule:
    """The rule with its steps, whose numbers are the last that follow from captures."""
    made, n_parts = row.made, len(row.made.parts)
    spelled = row.steps[n_parts:]
    n_holes = sum(len(texts) - 1 for texts in spelled)
    left = [follow.text(called) for follow in follows[len(follows) - n_holes :]]
    steps = []
    for texts in spelled:
        steps.append("".join(a + b for a, b in zip(texts, [*left[: len(texts) - 1], ""],
                                                   strict=True)))  # fmt: skip
        del left[: len(texts) - 1]
    froms = []
    for pattern, part in zip(patterns, made.parts, strict=True):
        froms.append(From(name=pattern, transform=tuple(steps[: len(part.steps)])))
        del steps[: len(part.steps)]
    if len(froms) == 1:  # what one source goes through is what the rule does
        steps = [*froms[0].transform, *steps]
        froms = [From(name=froms[0].name)]
    return ClaimRule(target=target, sources=tuple(froms), transform=tuple(steps),
                     group=made.group, where=where)  # fmt: skip


def breaks(ruled: Sequence[Ruled]) -> Mapping[str, Ruled]:
    """For each target that a larger rule's pattern fits but leaves out, that rule."""
    found: dict[str, Ruled] = {}
    for each in ruled:
        for name in each.left_out:
            if name not in found or len(found[name].members) < len(each.members):
                found[name] = each
    return found
