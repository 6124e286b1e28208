"""What rules would have made: target leaves that are not there, and captures in the wrong order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lockstep.errors import UsageError
from lockstep.verify.claim import Problem
from lockstep.verify.claims.expand import CompiledClaim, Instance, Names
from lockstep.verify.claims.expressions import holds


def lacking_target(gap: Problem, claims: Iterable[CompiledClaim], names: Names) -> Problem | None:
    """A source that nobody uses as the target leaf that a rule makes of it, if that is missing."""
    side, _, source = gap.where.partition(" ")
    if gap.kind != "gap" or side != "source":
        return None
    for claim in claims:
        target = _made_of(source, claim, names)
        if target is not None and target not in names.target:
            return Problem(
                "gap",
                gap.where,
                f"{claim.label}: the target lacks {target}, which the rule makes of {source}",
                "write the leaf into the target, or mend the rule's target; if it is left out on "
                "purpose, say why with [[drop]]",
                claim.rule.group,
                (f"target {target}", f"source {source}"),
            )
    return None


def _made_of(source: str, claim: CompiledClaim, names: Names) -> str | None:
    """The name of the target that a rule makes of a source, if the source alone decides it."""
    for each in claim.sources:
        wanted = set(claim.target.captures)
        if not each.pattern.can_match or not claim.target.can_match:
            continue
        captures = each.pattern.match(source)
        if captures is None or not wanted <= captures.keys():
            continue
        context = {**names.facts, **captures}
        condition = claim.condition
        try:
            if condition is None or holds(condition, context, f"{claim.where}: where"):
                return claim.target.name_of(context, claim.where)
        except UsageError:  # what does not fit the rule is not made by it
            continue
    return None


def stopped_by(claim: CompiledClaim, names: Names) -> tuple[str, ...]:
    """The leaves that a rule names, where the rule as a whole cannot be resolved."""
    found = []
    patterns = (("target", claim.target), *(("source", s.pattern) for s in claim.sources))
    for side, pattern in patterns:
        if pattern.can_match:
            index = names.target if side == "target" else names.source
            found += [f"{side} {name}" for name, _ in index.matches(pattern)]
    return tuple(found)


def gathered_as_text(claim: CompiledClaim, instances: Sequence[Instance]) -> list[Problem]:
    """Numbers that a rule gathers in the order of text, which is 10 before 2."""
    for i, source in enumerate(claim.sources):
        for name in source.gathered:
            kind = source.pattern.kinds[name]
            if kind not in ("str", "any"):
                continue
            for instance in instances:
                values = {str(leaf.context[name]) for leaf in instance.sources[i]}
                if len(values) > 1 and all(value.isdecimal() for value in values):
                    return [_as_text(claim, name, kind, values)]
    return []


def _as_text(claim: CompiledClaim, name: str, kind: str, values: Iterable[str]) -> Problem:
    shown = ", ".join(sorted(values)[:4])
    return Problem(
        "shape",
        claim.label,
        f"{claim.label} (target {claim.target.text:.200}): expected {{{name}:{kind}}} to gather "
        f"words, got numbers, in the order of text: {shown}, ...",
        f"write {{{name}:int}}, which gathers them in the order of numbers",
    )
