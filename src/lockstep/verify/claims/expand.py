"""Rules to instances: which target leaf is made of which source leaves, by name alone.

A rule is driven by the names of the target; if the target's pattern computes something (`{layer //
6}`), by those of the first source that has every capture. A capture that only a source has is
gathered: all its values, numbers in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lockstep.errors import UsageError, nearest
from lockstep.formats.leaf import ELEMENT_TYPES
from lockstep.verify.claim import Problem
from lockstep.verify.claims.expressions import (
    Call,
    Expression,
    holds,
    known_names,
    parse_call,
    parse_expression,
)
from lockstep.verify.claims.rules import ClaimFile, ClaimRule, ExcuseRule, From
from lockstep.verify.claims.steps import check_call, names_of
from lockstep.verify.claims.templates import Captured, NameIndex, Pattern, patterns
from lockstep.verify.numbers.values import MOVES

Context = Mapping[str, object]


@dataclass(frozen=True)
class SourcePattern:
    """One source of a rule, with steps of its own; `gathered` are captures the target has not.

    `used` are the captures that the steps use.
    """

    pattern: Pattern
    steps: tuple[Call, ...]
    gathered: tuple[str, ...]
    used: tuple[str, ...]


@dataclass(frozen=True)
class CompiledClaim:
    """A rule of `[[claim]]` whose patterns, steps and condition are parsed."""

    label: str
    where: str
    rule: ClaimRule
    target: Pattern
    sources: tuple[SourcePattern, ...]
    steps: tuple[Call, ...]
    condition: Expression | None
    needs: frozenset[str]  # facts that it uses
    used: tuple[str, ...]  # captures that its steps use


@dataclass(frozen=True)
class CompiledExcuse:
    """A rule that excuses leaves, parsed."""

    label: str
    where: str
    rule: ExcuseRule
    leaf: Pattern
    condition: Expression | None
    needs: frozenset[str]


@dataclass(frozen=True)
class Compiled:
    """A claim file whose rules are parsed; nothing in it is wrong by itself."""

    claims: tuple[CompiledClaim, ...]
    excuses: tuple[CompiledExcuse, ...]
    casts: tuple[Call | None, ...]  # of the rules `[[like]]`


@dataclass(frozen=True)
class SourceLeaf:
    """One source leaf of an instance, and the captures that its own steps see."""

    name: str
    context: Context


@dataclass(frozen=True)
class Instance:
    """One target leaf of a rule: its sources, pattern by pattern, and what its steps see."""

    claim: CompiledClaim
    target: str
    sources: tuple[tuple[SourceLeaf, ...], ...]
    context: Context


# --- what is wrong with a file, whatever the checkpoints are


def compile_rules(claims: ClaimFile) -> Compiled:
    """Parses every pattern, step and condition.

    Raises: UsageError naming file, rule and what is wrong.
    """
    facts = claims.facts
    _check_facts(claims)
    compiled = [
        _claim(rule, f"claim {i}", claims.place("claim", i), facts)
        for i, rule in enumerate(claims.claims, 1)
    ]
    seen: dict[str, int] = {}
    excuses = []
    for rule in claims.excuses:
        i = seen[rule.kind] = seen.get(rule.kind, 0) + 1
        excuses.append(_excuse(rule, f"{rule.kind} {i}", claims.place(rule.kind, i), facts))
    groups = {rule.group for rule in claims.claims}
    casts = []
    for i, like in enumerate(claims.likes, 1):
        where = claims.place("like", i)
        if like.of not in groups:
            raise UsageError(
                f"{where}: of: expected a group of a [[claim]] or of a [[like]] before, "
                f"got {like.of!r:.80}",
                hint=f"use one of {', '.join(sorted(groups)) or 'none: there is no claim'}",
            )
        groups.add(like.group)
        casts.append(_cast(like.cast, where, facts))
    return Compiled(tuple(compiled), tuple(excuses), tuple(casts))


def _check_facts(claims: ClaimFile) -> None:
    where = f"{claims.where}: [facts]"
    for name, fact in claims.facts.items():
        texts = [text for text in (fact.expression, fact.default) if text]
        known_names((parse_expression(text, f"{where}: {name}") for text in texts),
                    claims.facts, f"{where}: {name}")  # fmt: skip
        if fact.count:
            (pattern,) = patterns([fact.count], {}, f"{where}: {name}: count")
            if len(pattern.captures) != 1 or not pattern.can_match:
                raise UsageError(
                    f"{where}: {name}: count: expected a pattern with one capture, "
                    f"got {fact.count!r:.120}",
                    hint="write the capture whose values are counted, such as {layer:int}",
                )


def _claim(rule: ClaimRule, label: str, where: str, facts: Mapping[str, object]) -> CompiledClaim:
    texts = [rule.target, *(source.name for source in rule.sources)]
    if not rule.sources:
        raise UsageError(f"{where}: expected at least one source, got none", hint="add 'source'")
    target, *sources = patterns(texts, rule.captures, where)
    _no_clash(target, facts, where)
    driver = _driver(target, sources, where)
    shared = {*driver.captures, *facts}
    condition = parse_expression(rule.where, f"{where}: where") if rule.where else None
    every = {*shared, *(name for source in sources for name in source.captures)}
    if condition:
        known_names([condition], every, f"{where}: where")
    steps = _steps(rule.transform, where, shared)
    compiled = [
        _source(given, pattern, driver, where, facts)
        for given, pattern in zip(rule.sources, sources, strict=True)
    ]
    computed = [
        part for p in (target, *sources) for part in p.parts if isinstance(part, Expression)
    ]
    known_names(computed, shared, where)
    used = [e.names for e in (*computed, *([condition] if condition else []))]
    used += [names_of(call) for call in (*steps, *(c for s in compiled for c in s.steps))]
    needs = frozenset().union(*used) & frozenset(facts)
    return CompiledClaim(
        label, where, rule, target, tuple(compiled), steps, condition, needs, _used(steps, facts)
    )


def _driver(target: Pattern, sources: list[Pattern], where: str) -> Pattern:
    """The pattern that names are matched against."""
    if target.can_match:
        return target
    wanted = {name for p in (target, *sources) for name in p.captures}
    for source in sources:
        if source.can_match and wanted <= set(source.captures):
            return source
    raise UsageError(
        f"{where}: expected a source with all captures, as the target's name is computed, got none",
        hint="compute names on the side of the source, or give one source every capture",
    )


def _source(
    given: From, pattern: Pattern, driver: Pattern, where: str, facts: Mapping[str, object]
) -> SourcePattern:
    gathered = tuple(name for name in pattern.captures if name not in driver.captures)
    if gathered and not pattern.can_match:
        raise UsageError(
            f"{where}: expected a pattern without expressions where {{{gathered[0]}}} is gathered, "
            f"got {given.name!r:.120}",
            hint="write the capture alone, and compute with `where`",
        )
    _no_clash(pattern, facts, where)
    steps = _steps(given.transform, where, {*driver.captures, *pattern.captures, *facts})
    return SourcePattern(pattern, steps, gathered, _used(steps, facts))


def _used(steps: Iterable[Call], facts: Mapping[str, object]) -> tuple[str, ...]:
    """The captures that steps use."""
    names = frozenset().union(*map(names_of, steps))
    return tuple(sorted(names - facts.keys()))


def _no_clash(pattern: Pattern, facts: Mapping[str, object], where: str) -> None:
    for name in pattern.captures:
        if name in facts:
            raise UsageError(
                f"{where}: expected captures that are no facts, got {{{name}}}, which is both",
                hint="rename the capture or the fact",
            )


def _steps(transform: tuple[str, ...], where: str, names: Iterable[str]) -> tuple[Call, ...]:
    known = set(names)
    calls = []
    for i, text in enumerate(transform, 1):
        place = f"{where}: transform {i}"
        call = parse_call(text, place)
        check_call(call, place)
        for name in sorted(names_of(call) - known):
            shown = ", ".join(sorted(known)) or "none"
            near = nearest(name, {*known, *(ELEMENT_TYPES if call.name in MOVES else ())})
            raise UsageError(
                f"{place}: expected a name of a fact or a capture, got {name!r:.80} "
                f"in {text!r:.120}",
                hint=f"{near}state it under [facts]; known here: {shown:.300}",
            )
        calls.append(call)
    return tuple(calls)


def _excuse(
    rule: ExcuseRule, label: str, where: str, facts: Mapping[str, object]
) -> CompiledExcuse:
    if not rule.reason:
        raise UsageError(f"{where}: expected a reason, got none", hint="say why")
    (leaf,) = patterns([rule.leaf], rule.captures, where)
    if not leaf.can_match:
        raise UsageError(
            f"{where}: expected a pattern without expressions, got {rule.leaf!r:.120}",
            hint="write a capture, and compute with `where`",
        )
    _no_clash(leaf, facts, where)
    condition = parse_expression(rule.where, f"{where}: where") if rule.where else None
    if condition:
        known_names([condition], {*leaf.captures, *facts}, f"{where}: where")
    needs = condition.names & frozenset(facts) if condition else frozenset()
    return CompiledExcuse(label, where, rule, leaf, condition, needs)


def _cast(text: str, where: str, facts: Mapping[str, object]) -> Call | None:
    if not text:
        return None
    (call,) = _steps((text,), f"{where}: cast", facts)
    if check_call(call, where).arity != "value":
        raise UsageError(
            f"{where}: cast: expected a step that changes values, got {text!r:.120}",
            hint="the index steps of the parameter are taken over by themselves",
        )
    return call


# --- names of two checkpoints


@dataclass(frozen=True)
class Names:
    """The names of both sides, the facts, and the leaves that stand in for tied ones."""

    source: NameIndex
    target: NameIndex
    facts: Context
    stand_in: Mapping[str, str]


def expand(claim: CompiledClaim, names: Names) -> tuple[list[Instance], list[Problem]]:
    """The instances of a rule, in the order of the target's file."""
    problems: list[Problem] = []
    found = []
    gathered = [_gather(source, claim, names) for source in claim.sources]
    for target, captures in _driven(claim, names, problems):
        context = {**names.facts, **captures}
        sources = tuple(
            _leaves(claim, source, table, context, names)
            for source, table in zip(claim.sources, gathered, strict=True)
        )
        missing = [
            source.pattern.text if source.gathered else source.pattern.name_of(context, claim.where)
            for source, leaves in zip(claim.sources, sources, strict=True)
            if not leaves
        ]
        if missing:
            there = [leaf.name for leaves in sources for leaf in leaves]
            problems.append(_missing(claim, target, missing, there))
        else:
            found.append(Instance(claim, target, sources, context))
    if not found and not problems and not claim.rule.optional:
        problems.append(_unused(claim, names))
    return found, problems


def _driven(
    claim: CompiledClaim, names: Names, problems: list[Problem]
) -> list[tuple[str, dict[str, Captured]]]:
    """Target leaves with their captures, where the condition holds."""
    if claim.target.can_match:
        matches = names.target.matches(claim.target)
        return [m for m in matches if _allowed(claim, {**names.facts, **m[1]})]
    driver = _driver(claim.target, [s.pattern for s in claim.sources], claim.where)
    found: dict[str, dict[str, Captured]] = {}
    for source, captures in names.source.matches(driver):
        context = {**names.facts, **captures}
        if not _allowed(claim, context):
            continue
        target = claim.target.name_of(context, claim.where)
        if target not in names.target or target in found:
            problems.append(_made(claim, source, target, again=target in found))
        else:
            found[target] = captures
    return sorted(found.items(), key=lambda match: names.target.place[match[0]])


def _allowed(claim: CompiledClaim, context: Context) -> bool:
    """Whether the condition holds; one that needs gathered captures is asked later."""
    condition = claim.condition
    if condition is None or not condition.names <= context.keys():
        return True
    return holds(condition, context, f"{claim.where}: where")


Table = dict[tuple[object, ...], list[tuple[str, dict[str, Captured]]]]


def _gather(source: SourcePattern, claim: CompiledClaim, names: Names) -> Table:
    """Matches of a gathering source by the captures that it shares with the target, in order."""
    table: Table = {}
    if not source.gathered:
        return table
    shared = _shared(source)
    for name, captures in names.source.matches(source.pattern):
        key: tuple[object, ...] = tuple(captures[c] for c in shared)
        table.setdefault(key, []).append((name, captures))
    for matches in table.values():
        matches.sort(key=lambda match: source.pattern.order(match[1]))
    return table


def _shared(source: SourcePattern) -> list[str]:
    return [name for name in source.pattern.captures if name not in source.gathered]


def _leaves(
    claim: CompiledClaim, source: SourcePattern, table: Table, context: Context, names: Names
) -> tuple[SourceLeaf, ...]:
    """The leaves of one source of an instance; none if one is missing."""
    if not source.gathered:
        name = source.pattern.name_of(context, claim.where)
        found = name if name in names.source else names.stand_in.get(name)
        return (SourceLeaf(found, context),) if found else ()
    key = tuple(context[c] for c in _shared(source))
    inside = [SourceLeaf(name, {**context, **captures}) for name, captures in table.get(key, [])]
    return tuple(leaf for leaf in inside if _allowed(claim, leaf.context))


# --- what does not add up


def stopped(instance: Instance) -> tuple[str, ...]:
    """The leaves, with their sides, that are not compared if an instance becomes no claim."""
    sources = (f"source {leaf.name}" for leaves in instance.sources for leaf in leaves)
    return (f"target {instance.target}", *dict.fromkeys(sources))


def _missing(
    claim: CompiledClaim, target: str, missing: list[str], there: Iterable[str]
) -> Problem:
    return Problem(
        "gap",
        f"target {target}",
        f"{claim.label}: target {target}: expected the source {missing[0]}, got none of that name"
        + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""),
        "mend the rule's source, or say with [[new]] that the leaf comes from nowhere",
        claim.rule.group,
        (f"target {target}", *(f"source {name}" for name in there)),
    )


def _made(claim: CompiledClaim, source: str, target: str, *, again: bool) -> Problem:
    if again:
        return Problem(
            "overlap",
            f"target {target}",
            f"{claim.label}: target {target}: expected one source, got {source} as well",
            "compute names that differ, or gather with a capture that only the source has",
        )
    return Problem(
        "gap",
        f"source {source}",
        f"{claim.label}: source {source}: expected the target {target}, got none of that name",
        "mend the rule's target, or leave the source out with `where` and [[drop]]",
        claim.rule.group,
        (f"target {target}", f"source {source}"),
    )


def _unused(claim: CompiledClaim, names: Names) -> Problem:
    source = claim.sources[0].pattern
    n = len(names.source.matches(source)) if source.can_match else 0
    return Problem(
        "unused",
        claim.label,
        f"{claim.label}: expected leaves of the target that match {claim.target.text!r:.200}, "
        f"got none; {n} of the source match {source.text!r:.200}",
        "mend the pattern, or say optional = true with a reason",
    )
