"""What many diagnoses come down to: leaves exchanged, layers in another order, one cause."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from lockstep.artifacts.verification import Diagnosis
from lockstep.verify.claim import Claim, Plan

_NUMBER = re.compile(r"\d+")
_SHOWN = 12  # numbers, or stretches of them, in a sentence
Move = tuple[str, int, int]  # a name without one number, the number claimed, the number found


def summarise(diagnoses: Mapping[str, Diagnosis], plan: Plan) -> tuple[str, ...]:
    """Sentences over the whole report; what one of them covers is not said again."""
    diagnoses = {i: diagnosis for i, diagnosis in diagnoses.items() if diagnosis.confirmed}
    claims = {claim.id: claim for claim in plan.claims if claim.id in diagnoses}
    found = _replaced(claims, diagnoses)
    said: list[str] = []
    covered: set[str] = set()
    for make in (_layers, _exchanged):
        for text, ids in make(claims, {i: o for i, o in found.items() if i not in covered}, plan):
            said.append(text)
            covered |= ids
    for text, ids in _exchanged_targets(claims, diagnoses):
        said.append(text)
        covered |= ids
    rest = {i: diagnosis for i, diagnosis in diagnoses.items() if i not in covered}
    return (*said, *_same_cause(claims, rest, plan))


def _replaced(claims: Mapping[str, Claim], diagnoses: Mapping[str, Diagnosis]) -> dict[str, str]:
    """For claims of one source: the leaf whose bytes are there instead."""
    return {
        i: diagnoses[i].suspects[0]
        for i, claim in claims.items()
        if len(claim.sources) == 1
        and len(diagnoses[i].suspects) == 1
        and diagnoses[i].hypothesis in ("other_leaf", "neighbour")
    }


def _exchanged(
    claims: Mapping[str, Claim], found: Mapping[str, str], plan: Plan
) -> list[tuple[str, set[str]]]:
    """Pairs of targets of which each holds the other's bytes."""
    by_source = {claims[i].sources[0]: i for i in found}
    pairs = []
    for i, other in found.items():
        j = by_source.get(other)
        if j is not None and i < j and found[j] == claims[i].sources[0]:
            pairs.append((i, j))
    return _said_together(claims, pairs)


def _exchanged_targets(
    claims: Mapping[str, Claim], diagnoses: Mapping[str, Diagnosis]
) -> list[tuple[str, set[str]]]:
    """Pairs of targets of which each holds what is claimed for the other, made its own way."""
    by_target = {
        claims[i].target: (i, diagnosis.suspects[0])
        for i, diagnosis in diagnoses.items()
        if i in claims and diagnosis.hypothesis == "other_target" and diagnosis.suspects
    }
    pairs = []
    for target, (i, other) in by_target.items():
        j, back = by_target.get(other, ("", ""))
        if back == target and i < j:
            pairs.append((i, j))
    return _said_together(claims, pairs)


def _said_together(
    claims: Mapping[str, Claim], pairs: list[tuple[str, str]]
) -> list[tuple[str, set[str]]]:
    """One sentence for the pairs whose names differ in the same one number, as in all layers."""
    alike: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for i, j in pairs:
        a, b = claims[i].target, claims[j].target
        numbers = [set(_NUMBER.findall(name)) for name in (a, b)]
        same = len(numbers[0]) == 1 and numbers[0] == numbers[1]
        key = (_NUMBER.sub("{}", a), _NUMBER.sub("{}", b)) if same else (a, b)
        alike[key].append((i, j))
    said = []
    for (a, b), found in alike.items():
        ids = {i for pair in found for i in pair}
        if len(found) == 1:
            a, b = (claims[i].target for i in found[0])
            text = f"{a} and {b} are exchanged: each holds the other's values"
        else:
            where = _runs_of(sorted(int(_NUMBER.findall(claims[i].target)[0]) for i, _ in found))
            text = f"{a} and {b} are exchanged for {where} ({len(ids)} leaves)"
        said.append((text, ids))
    return said


def _runs_of(numbers: list[int]) -> str:
    """`0 to 7, 9`."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    shown = [str(a) if a == b else f"{a} to {b}" for a, b in runs[:_SHOWN]]
    return ", ".join(shown) + (", ..." if len(runs) > _SHOWN else "")


def _layers(
    claims: Mapping[str, Claim], found: Mapping[str, str], plan: Plan
) -> list[tuple[str, set[str]]]:
    """Layers in another order: one permutation of one number explains two leaves or more."""
    moves: dict[str, dict[int, tuple[int, str]]] = defaultdict(dict)
    for i, other in found.items():
        move = _one_number(claims[i].sources[0], other)
        if move:
            template, claimed, there = move
            moves[template][claimed] = (there, i)
    by_order: dict[tuple[tuple[int, int], ...], list[tuple[str, set[str]]]] = defaultdict(list)
    for template, places in moves.items():
        order = tuple(sorted((claimed, there) for claimed, (there, _) in places.items()))
        by_order[order].append((template, {i for _, i in places.values()}))
    said = []
    for order, each in by_order.items():
        ids = set().union(*(some for _, some in each))
        text = _order_text(order, [template for template, _ in each], plan)
        if text and len(ids) > 2:
            said.append((f"{text} ({len(ids)} leaves)", ids))
    return said


def _order_text(order: tuple[tuple[int, int], ...], templates: list[str], plan: Plan) -> str:
    gaps = {there - claimed for claimed, there in order}
    name = templates[0] if len(templates) == 1 else _common(templates)
    if len(order) == 2 and order[0] == order[1][::-1]:
        return f"{name}: numbers {order[0][0]} and {order[1][0]} are exchanged"
    numbers = [_numbers_of(template, plan) for template in templates]
    if len(gaps) == 1:
        gap = gaps.pop()
        moved = {claimed for claimed, _ in order}
        if all(moved == {n for n in each if n + gap in each} for each in numbers):
            return f"{name}: each holds the values of number {gap:+d}"
        return f"{name}: {_runs_of(sorted(moved))} hold the values of number {gap:+d} each"
    if all(_as_text(each) == order for each in numbers):
        shown = ", ".join(map(str, sorted(numbers[0], key=str)[:_SHOWN]))
        return f"{name}: in the order of the numbers as text, 10 before 2: {shown}, ..."
    pairs = ", ".join(f"{claimed} holds {there}" for claimed, there in order[:_SHOWN])
    return f"{name}: in another order: {pairs}{', ...' if len(order) > _SHOWN else ''}"


def _numbers_of(template: str, plan: Plan) -> list[int]:
    """The numbers that leaves of the source have in the place of the template's, in order."""
    before, after = template.split("{}")
    pattern = re.compile(f"{re.escape(before)}(\\d+){re.escape(after)}")
    return sorted(int(match[1]) for match in map(pattern.fullmatch, plan.source.leaves) if match)


def _as_text(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    """Every number that moves when they are sorted as text, and what is in its place then."""
    pairs = zip(numbers, sorted(numbers, key=str), strict=True)
    return tuple((a, b) for a, b in pairs if a != b)


def _common(templates: list[str]) -> str:
    """What templates begin with, up to the number."""
    heads = {template.split("{}")[0] + "{}" for template in templates}
    return heads.pop() if len(heads) == 1 else f"{len(templates)} kinds of leaves"


def _one_number(name: str, other: str) -> Move | None:
    """The template and the two numbers of names that differ in one number."""
    a, b = (list(_NUMBER.finditer(text)) for text in (name, other))
    if _NUMBER.sub("0", name) != _NUMBER.sub("0", other):
        return None
    odd = [(x, y) for x, y in zip(a, b, strict=True) if x[0] != y[0]]
    if len(odd) != 1:
        return None
    mine, theirs = odd[0]
    return f"{name[: mine.start()]}{{}}{name[mine.end() :]}", int(mine[0]), int(theirs[0])


def _without_numbers(claim: Claim, text: str) -> str:
    """A sentence in which the leaves of a claim are called as those of other layers."""
    for name in sorted((claim.target, *claim.sources), key=len, reverse=True):
        if _NUMBER.search(name):
            text = text.replace(name, _NUMBER.sub("{}", name))
    return text


def _same_cause(
    claims: Mapping[str, Claim], diagnoses: Mapping[str, Diagnosis], plan: Plan
) -> list[str]:
    """One sentence for each cause that several leaves of a group have in common."""
    causes: dict[tuple[str, str], int] = defaultdict(int)
    for i, diagnosis in diagnoses.items():
        if i in claims and not diagnosis.suspects:
            causes[claims[i].group, _without_numbers(claims[i], diagnosis.text)] += 1
    said = []
    for (group, text), n in causes.items():
        n_all = sum(claim.group == group for claim in plan.claims)
        of = f" of {group}" if group else ""
        if n > 1:
            what = f"all {n} leaves" if n == n_all else f"{n} of {n_all} leaves"
            said.append(f"{what}{of}: {text}")
    return said
