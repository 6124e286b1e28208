"""Moments follow their parameters: the claims of a rule `[[like]]`."""

from __future__ import annotations

from collections.abc import Sequence

from lockstep.verify.claim import Problem
from lockstep.verify.claims.build import Wanted
from lockstep.verify.claims.expand import Instance, Names, SourceLeaf
from lockstep.verify.claims.expressions import Call
from lockstep.verify.claims.rules import LikeRule


def following(
    found: Sequence[Wanted], like: LikeRule, label: str, cast: Call | None, names: Names
) -> tuple[list[Wanted], list[Problem]]:
    """The claims for the followers of a group, and what is there on one side only.

    A parameter without followers on both sides is passed over: whatever else the checkpoints
    hold, coverage names.
    """
    made: list[Wanted] = []
    problems: list[Problem] = []
    for wanted in found:
        if wanted.group == like.of:
            rule = f"{label} ({wanted.label})"
            follower = _follower(wanted.instance, like, rule, names)
            if isinstance(follower, Problem):
                problems.append(follower)
            elif follower is not None:
                made.append(Wanted(follower, rule, like.group, True, cast))
    if not made and not problems and not like.optional:
        problems.append(
            Problem(
                "unused",
                label,
                f"{label}: expected leaves that follow those of the group {like.of!r}, got none "
                "on either side",
                "mend the beginnings, or say optional = true with a reason",
            )
        )
    return made, problems


def _follower(
    parameter: Instance, like: LikeRule, rule: str, names: Names
) -> Instance | Problem | None:
    target = _renamed(parameter.target, like.target)
    sources = [[_renamed(leaf.name, like.source) for leaf in part] for part in parameter.sources]
    wanted = [name for part in sources for name in part if name is not None]
    if target is None or len(wanted) < sum(map(len, sources)):
        return None
    missing = [name for name in wanted if name not in names.source]
    has_target = target in names.target
    if has_target and not missing:
        leaves = tuple(
            tuple(SourceLeaf(name or "", leaf.context) for name, leaf in zip(new, old, strict=True))
            for new, old in zip(sources, parameter.sources, strict=True)
        )
        return Instance(parameter.claim, target, leaves, parameter.context)
    if not has_target and len(missing) == len(wanted):
        return None
    side, name = ("source", missing[0]) if missing else ("target", target)
    return Problem(
        "gap",
        f"{side} {name}",
        f"{rule}: expected the {side} to have {name}, as the follower of {parameter.target} is on "
        "the other side, got none",
        "mend the beginnings in [[like]], or the checkpoint",
        like.group,
        (f"target {target}", *(f"source {each}" for each in wanted)),
    )


def _renamed(name: str, change: tuple[str, ...]) -> str | None:
    """The follower's name, or None if the parameter's name begins otherwise."""
    beginning, replacement, *ending = change
    if not name.startswith(beginning):
        return None
    return replacement + name[len(beginning) :] + "".join(ending)
