"""One instance of a rule to a claim: its steps over layouts, checked against the target leaf."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lockstep.errors import UsageError
from lockstep.formats.leaf import ElementType, Leaf, Store
from lockstep.verify.claim import Claim, Problem
from lockstep.verify.claims.expand import Instance, stopped
from lockstep.verify.claims.expressions import Call
from lockstep.verify.claims.moves import Array, text
from lockstep.verify.claims.steps import STEPS, apply
from lockstep.verify.layouts.layout import Layout, whole
from lockstep.verify.layouts.piece import Piece
from lockstep.verify.numbers.values import MOVES, value_move


@dataclass(frozen=True)
class Wanted:
    """An instance under the name of the rule that asks for it.

    Moments follow their parameter through its index steps. Its value steps are not theirs: the
    cast of a parameter says nothing of how moments are kept, and `add_one` would be wrong; what
    changes the moments' values is `cast`.
    """

    instance: Instance
    label: str
    group: str
    is_moment: bool = False
    cast: Call | None = None


Memo = dict[Hashable, tuple[Array, str]]


def claim_of(wanted: Wanted, source: Store, target: Store, memo: Memo) -> Claim | Problem:
    """The claim, or why the steps do not make the target leaf.

    `memo` holds what steps have made before; layers are alike, so most are made but once.
    """
    instance = wanted.instance
    leaf = target.leaves[instance.target]
    names = tuple(dict.fromkeys(part.name for parts in instance.sources for part in parts))
    found = [source.leaves[name] for name in names]
    if leaf.value or any(part.value for part in found):
        return _value_claim(wanted, leaf, found)
    try:
        array, spelled = _array(wanted, found, memo)
    except UsageError as error:
        kind: Literal["shape", "type"] = "type" if _is_of_types(error) else "shape"
        return _problem(wanted, kind, f"{error.message}, {_shown(found)}", error.hint)
    if array.shape != leaf.shape:
        message = f"expected the target's shape {text(leaf.shape)}, got {text(array.shape)}"
        return _problem(
            wanted,
            "shape",
            f"{message} from {spelled}, {_shown(found)}",
            "mend the steps, or the pattern that chose these leaves",
        )
    if array.element != leaf.element:
        message = f"expected the target's type {leaf.element}, got {array.element}"
        return _problem(
            wanted,
            "type",
            f"{message} from {spelled}, {_shown(found)}",
            _change(array.element, leaf.element),
        )
    return Claim(
        id=leaf.name,
        rule=wanted.label,
        group=wanted.group,
        target=leaf.name,
        sources=names,
        layout=array.layout,
        values=array.values,
        equality=instance.claim.rule.equality,
        text=spelled,
        takes_all=array.layout.n_elements == sum(part.n_elements for part in found),
    )


def _is_of_types(error: UsageError) -> bool:
    """Whether it is a step of values that does not fit, which is none of shapes."""
    return re.split(r"[(:]", error.message, maxsplit=1)[0] in MOVES


def _change(old: ElementType, new: ElementType) -> str:
    """The steps that can make one type of the other, to be declared."""
    possible = []
    for name in ("widen", "cast"):
        try:
            value_move(name, old, (new.name,), {})
        except UsageError:
            continue
        possible.append(f"{name}({new})")
    if old.n_numbers > 1 and new.name == "F32":
        possible.append("dequant(F32)")
    if possible:
        return f"declare the change with {' or '.join(possible)}"
    return f"check the pattern: no step makes {new} of {old}"


def _shown(found: Sequence[Leaf]) -> str:
    leaves = ", ".join(f"{leaf.name} {leaf.element} {text(leaf.shape)}" for leaf in found[:4])
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return f"made of {leaves:.600}{more}"


def _problem(wanted: Wanted, kind: Literal["shape", "type"], message: str, hint: str) -> Problem:
    name = wanted.instance.target
    return Problem(
        kind,
        f"target {name}",
        f"{wanted.label}: target {name}: {message}",
        hint,
        wanted.group,
        stopped(wanted.instance),
    )


def _value_claim(wanted: Wanted, leaf: Leaf, found: Sequence[Leaf]) -> Claim | Problem:
    """The claim of a leaf that is no array: the same value, of the same type."""
    instance = wanted.instance
    steps = [*instance.claim.steps, *(c for s in instance.claim.sources for c in s.steps)]
    kinds = {part.element.name for part in found}
    if len(found) != 1 or kinds != {leaf.element.name} or not (leaf.value and found[0].value):
        got = ", ".join(f"{part.name} {part.element} {text(part.shape)}" for part in found[:4])
        return _problem(
            wanted,
            "type",
            f"expected one source that is no array, a value of type {leaf.element}, got {got:.400}"
            if leaf.value
            else f"expected arrays, got {got:.400}",
            "claim a value as it is, or leave it out with [[drop]] and [[new]]",
        )
    if steps or wanted.cast:
        got = steps[0].text if steps else "a cast"
        return _problem(
            wanted,
            "type",
            f"expected no steps for a value that is no array, got {got}",
            "claim a value as it is",
        )
    equality = instance.claim.rule.equality
    names = (found[0].name,)
    return Claim(leaf.name, wanted.label, wanted.group, leaf.name, names, None, (), equality)


# --- steps


def _array(wanted: Wanted, found: Sequence[Leaf], memo: Memo) -> tuple[Array, str]:
    """The one array that the steps make of these leaves, and the steps with their values.

    Raises: UsageError if they do not fit the leaves.
    """
    places = {leaf.name: str(i) for i, leaf in enumerate(found)}
    key = _key(wanted, found, places)
    if key not in memo:
        memo[key] = _made(wanted, {leaf.name: leaf for leaf in found}, places)
    array, spelled = memo[key]
    pieces = tuple(
        piece
        if piece.leaf is None
        else Piece(found[int(piece.leaf)].name, piece.src, piece.dst, piece.loops, piece.fill)
        for piece in array.layout.pieces
    )
    return array.moved(Layout(array.layout.shape, pieces)), spelled


def _key(wanted: Wanted, found: Sequence[Leaf], places: Mapping[str, str]) -> Hashable:
    """All on which the array depends but the names of leaves; facts are the same for all."""
    claim, context = wanted.instance.claim, wanted.instance.context
    parts = tuple(
        tuple((places[part.name], *(part.context[name] for name in source.used)) for part in parts)
        for source, parts in zip(claim.sources, wanted.instance.sources, strict=True)
    )
    leaves = tuple((leaf.grid_shape, leaf.element) for leaf in found)
    return wanted.label, leaves, parts, tuple(context[name] for name in claim.used)


def _made(
    wanted: Wanted, found: Mapping[str, Leaf], places: Mapping[str, str]
) -> tuple[Array, str]:
    """As `_array`, with the places of leaves for their names."""
    claim = wanted.instance.claim
    parts: list[Array] = []
    texts = []
    for source, leaves in zip(claim.sources, wanted.instance.sources, strict=True):
        begun = []
        for part in leaves:
            leaf = found[part.name]
            layout = whole(places[part.name], leaf.grid_shape)
            begun.append((Array(layout, leaf.element, leaf.element), part.context))
        arrays, spelled = _stepped(begun, source.steps, wanted)
        parts += arrays
        texts.append(" | ".join(spelled))
    steps = (*claim.steps, *([wanted.cast] if wanted.cast else []))
    context = wanted.instance.context
    made, spelled = _stepped([(array, context) for array in parts], steps, wanted)
    if len(made) != 1:
        raise UsageError(
            f"expected a step that joins {len(made)} arrays, got none",
            hint="add concat, stack, qkv or gate_up",
        )
    if len(texts) == 1:
        before = texts[0]
    else:
        before = f"[{'; '.join(t or 'identity' for t in texts)}]" if any(texts) else ""
    return made[0], " | ".join(filter(None, [before, *spelled])) or "identity"


def _stepped(
    begun: Sequence[tuple[Array, Mapping[str, object]]], steps: Sequence[Call], wanted: Wanted
) -> tuple[list[Array], list[str]]:
    """Arrays, each with the names that its steps see, after a chain of steps."""
    arrays = list(begun)
    spelled = []
    for call in steps:
        arity = STEPS[call.name].arity
        if arity == "value" and wanted.is_moment and call is not wanted.cast:
            continue
        if arity == "many":
            context = wanted.instance.context
            joined, shown = apply(call, [array for array, _ in arrays], context)
            arrays = [(array, context) for array in joined]
        else:
            for i, (array, context) in enumerate(arrays):
                moved, shown = apply(call, [array], context)
                arrays[i] = (moved[0], context)
        spelled.append(shown)
    return [array for array, _ in arrays], [shown for shown in spelled if shown]
