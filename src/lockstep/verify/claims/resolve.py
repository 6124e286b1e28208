"""Rules and two listed checkpoints to a plan: every claim resolved, everything wrong listed.

What belongs to the verdict is a `Problem`, never an exception, so that `verify plan` shows all of
it at once; only a claim file that is wrong by itself raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lockstep.errors import UsageError
from lockstep.formats.leaf import Leaf, Store
from lockstep.verify.claim import Claim, Excuse, Plan, Problem, Tie
from lockstep.verify.claims.ambiguity import ambiguities
from lockstep.verify.claims.build import Memo, Wanted, claim_of
from lockstep.verify.claims.constants import constant
from lockstep.verify.claims.coverage import account, unsaid
from lockstep.verify.claims.expand import (
    CompiledClaim,
    CompiledExcuse,
    Names,
    compile_rules,
    expand,
)
from lockstep.verify.claims.expressions import holds
from lockstep.verify.claims.facts import resolve_facts
from lockstep.verify.claims.follow import following
from lockstep.verify.claims.lacking import gathered_as_text, lacking_target, stopped_by
from lockstep.verify.claims.moves import text
from lockstep.verify.claims.rules import ClaimFile, TieRule
from lockstep.verify.claims.templates import NameIndex
from lockstep.verify.layouts.layout import filled


class _Resolver:
    """The two checkpoints, and what has been found so far."""

    def __init__(self, claims: ClaimFile, source: Store, target: Store) -> None:
        self.file = claims
        self.compiled = compile_rules(claims)
        self.source, self.target = source, target
        index = NameIndex(source.leaves)
        self.facts, self.problems = resolve_facts(claims, source, target, index)
        stand_in = _stand_ins(claims, index)
        self.names = Names(index, NameIndex(target.leaves), self.facts, stand_in)
        self.claims: dict[str, Claim] = {}
        self.excuses: list[Excuse] = []
        self.ties: list[Tie] = []

    def plan(self) -> Plan:
        """Resolves every rule, then accounts for every element."""
        memo: Memo = {}
        for wanted in self._wanted():
            self._add(claim_of(wanted, self.source, self.target, memo), wanted.label)
        for excuse in self.compiled.excuses:
            self._excuse(excuse)
        self._tie_leaves()
        place = self.names.target.place
        claims = tuple(sorted(self.claims.values(), key=lambda claim: place[claim.target]))
        if not claims and not any(p.kind in ("shape", "type") for p in self.problems):
            self.problems.append(_empty(self.source, self.target))
        ledger = account(claims, self.excuses, self.ties, self.source, self.target)
        gaps = unsaid(ledger.problems, self.problems)
        gaps = [lacking_target(gap, self.compiled.claims, self.names) or gap for gap in gaps]
        return Plan(
            source=self.source,
            target=self.target,
            claims=claims,
            excuses=tuple(self.excuses),
            ties=tuple(self.ties),
            problems=(*self.problems, *gaps),
            ambiguities=ambiguities(claims, self.source, self.target, self.facts),
            facts=self.facts,
            mapping=self.file.mapping,
            title=self.file.title,
            digest=self.file.digest,
        )

    # --- claims

    def _wanted(self) -> list[Wanted]:
        found: list[Wanted] = []
        for claim in self.compiled.claims:
            if self._lacks_facts(claim):
                continue
            try:
                instances, problems = expand(claim, self.names)
            except UsageError as error:  # an expression that these captures do not fit
                stops = stopped_by(claim, self.names)
                self.problems.append(
                    replace(_misfit(_named(claim), error), group=claim.rule.group, stops=stops)
                )
                continue
            self.problems += [*problems, *gathered_as_text(claim, instances)]
            found += [Wanted(i, claim.label, claim.rule.group) for i in instances]
        for i, like in enumerate(self.file.likes):
            made, problems = following(
                found, like, f"like {i + 1}", self.compiled.casts[i], self.names
            )
            self.problems += problems
            found += made
        return found

    def _lacks_facts(self, rule: CompiledClaim | CompiledExcuse) -> bool:
        """Whether a rule uses a fact that nobody knows; that is said once."""
        lacking = sorted(rule.needs - self.facts.keys())
        if lacking:
            self.problems.append(
                Problem(
                    "fact",
                    rule.label,
                    f"{_named(rule)}: expected a value for the fact {lacking[0]}, got none",
                    "state it under [facts]",
                    rule.rule.group if isinstance(rule, CompiledClaim) else "",
                    stopped_by(rule, self.names) if isinstance(rule, CompiledClaim) else (),
                )
            )
        return bool(lacking)

    def _add(self, claim: Claim | Problem, label: str) -> None:
        if isinstance(claim, Problem):
            self.problems.append(claim)
        elif claim.target in self.claims:
            other = self.claims[claim.target].rule
            self.problems.append(
                Problem(
                    "overlap",
                    f"target {claim.target}",
                    f"target {claim.target}: expected one rule to make it, got {other} and {label}",
                    "narrow one of the patterns, or tell them apart with `where`",
                    claim.group,
                    (f"target {claim.target}",),
                )
            )
        else:
            self.claims[claim.target] = claim

    # --- excuses and ties

    def _excuse(self, excuse: CompiledExcuse) -> None:
        if self._lacks_facts(excuse):
            return
        rule = excuse.rule
        index = self.names.source if rule.side == "source" else self.names.target
        where = f"{excuse.where}: where"
        try:
            leaves = [
                name
                for name, captures in index.matches(excuse.leaf)
                if not excuse.condition
                or holds(excuse.condition, {**self.facts, **captures}, where)
            ]
        except UsageError as error:
            self.problems.append(_misfit(excuse.label, error))
            return
        if not leaves and not rule.optional:
            self.problems.append(
                Problem(
                    "unused",
                    excuse.label,
                    f"{excuse.label}: expected leaves of the {rule.side} that match "
                    f"{rule.leaf!r:.200}, got none",
                    "mend the pattern, or say optional = true",
                )
            )
        for leaf in leaves:
            if rule.value is not None:
                self._add(self._constant(excuse, leaf), excuse.label)
            else:
                self.excuses.append(Excuse(rule.side, leaf, rule.kind, rule.reason, excuse.label))

    def _constant(self, excuse: CompiledExcuse, name: str) -> Claim | Problem:
        """A new leaf as a claim that it is constant."""
        leaf, rule = self.target.leaves[name], excuse.rule
        try:
            if leaf.value:
                raise UsageError(f"expected an array, got {leaf.element}", hint="remove the value")
            fill = constant(rule.value, leaf.element, "value")
        except UsageError as error:
            message = f"{excuse.label}: target {name}: {error.message}"
            return Problem("type", f"target {name}", message, error.hint)
        layout = filled(fill, leaf.grid_shape)
        spelled = f"constant({rule.value})"
        return Claim(name, excuse.label, rule.group, name, (), layout, text=spelled)

    def _tie_leaves(self) -> None:
        for i, rule in enumerate(self.file.ties, 1):
            store = self.source if rule.side == "source" else self.target
            leaves = [store.leaves[name] for name in rule.leaves if name in store.leaves]
            if not leaves and not rule.optional:
                self.problems.append(_untied(f"tie {i}", rule))
            if len({(leaf.shape, leaf.element) for leaf in leaves}) > 1:
                self.problems.append(_unequal(f"tie {i}", rule.side, leaves))
            elif len(leaves) > 1:
                self.ties.append(Tie(rule.side, tuple(leaf.name for leaf in leaves), f"tie {i}"))
            self._reused(rule, f"tie {i}")

    def _reused(self, rule: TieRule, label: str) -> None:
        """What tied leaves are made of may be used for each of them."""
        users: dict[str, list[str]] = {}
        for claim in self.claims.values():
            for name in claim.sources:
                if (claim.target if rule.side == "target" else name) in rule.leaves:
                    users.setdefault(name, []).append(claim.target)
        if rule.side == "source" and all(name in self.names.source for name in rule.leaves):
            users = {}  # no leaf stands in for another
        excused = {excuse.leaf for excuse in self.excuses if excuse.kind == "duplicate"}
        for name, targets in users.items():
            if len(targets) > 1 and name not in excused:
                reason = f"{targets[0]} and {targets[1]} are made of it, as {label} says"
                self.excuses.append(Excuse("source", name, "duplicate", reason, label))


def resolve(rules: ClaimFile, source: Store, target: Store) -> Plan:
    """The plan of a claim file for two listed checkpoints.

    Raises: UsageError if the claim file is wrong by itself.
    """
    return _Resolver(rules, source, target).plan()


def _stand_ins(claims: ClaimFile, index: NameIndex) -> dict[str, str]:
    """For each tied leaf that the source lacks, the one that holds its bits."""
    found: dict[str, str] = {}
    for rule in claims.ties:
        there = [name for name in rule.leaves if name in index]
        if rule.side == "source" and there:
            found |= {name: there[0] for name in rule.leaves if name not in index}
    return found


# --- what does not add up


def _empty(source: Store, target: Store) -> Problem:
    return Problem(
        "empty",
        "claims",
        f"expected claims, got none between {len(source.leaves)} leaves of {source.where} and "
        f"{len(target.leaves)} of {target.where}",
        "add rules [[claim]]; `lockstep verify suggest` proposes some",
    )


def _named(rule: CompiledClaim | CompiledExcuse) -> str:
    """The rule's number with the pattern of its target, by which a reader finds it."""
    if isinstance(rule, CompiledExcuse):
        return rule.label
    return f"{rule.label} (target {rule.target.text:.200})"


def _misfit(label: str, error: UsageError) -> Problem:
    return Problem("fact", label, f"{label}: {error.message}", error.hint)


def _untied(label: str, rule: TieRule) -> Problem:
    return Problem(
        "unused",
        label,
        f"{label}: expected one of the tied leaves in the {rule.side}, got none of "
        f"{', '.join(rule.leaves):.300}",
        "mend the names, or say optional = true with a reason",
    )


def _unequal(label: str, side: str, leaves: Sequence[Leaf]) -> Problem:
    shown = ", ".join(f"{leaf.name} {leaf.element} {text(leaf.shape)}" for leaf in leaves[:4])
    return Problem(
        "tie",
        label,
        f"{label}: expected tied leaves of one shape and type in the {side}, got {shown:.400}",
        "remove the tie: leaves that differ cannot hold the same bits",
    )
