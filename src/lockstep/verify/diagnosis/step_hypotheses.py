"""What may have gone wrong with a step of the claim: left out, done twice, done with other numbers.

The steps are read back from the claim's text; only if they make the claim's own layout and values
again is a chain with one step changed a hypothesis, so every sentence is in the claim's own words.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args, get_origin

from lockstep.errors import UsageError
from lockstep.verify.claim import Claim, Equality
from lockstep.verify.claims.expressions import Call, parse_call
from lockstep.verify.claims.moves import Array
from lockstep.verify.claims.steps import STEPS, apply, check_call
from lockstep.verify.diagnosis.hypotheses import Case, Hypothesis, attempt
from lockstep.verify.layouts.layout import Layout, reshape, whole

MAX_PLACES = 256  # places of an axis, and numbers of heads, that are tried for one argument
OPPOSITE = {
    "rope_half_to_interleaved": "rope_interleaved_to_half",
    "rope_interleaved_to_half": "rope_half_to_interleaved",
    "add_one": "subtract_one",
    "subtract_one": "add_one",
}


@dataclass(frozen=True, slots=True)
class Chain:
    """The steps of each source, and those after them; one list for all where there is only one."""

    sources: tuple[str, ...]
    own: tuple[tuple[Call, ...], ...]
    steps: tuple[Call, ...]


def step_hypotheses(case: Case) -> Iterator[Hypothesis]:
    """One step of the claim left out, done twice, or done otherwise; the likely ones first."""
    chain = chain_of(case)
    if chain is None:
        return
    places = [(k, i) for k, own in enumerate(chain.own) for i in range(len(own))]
    places += [(len(chain.own), i) for i in range(len(chain.steps))]
    for make in (_left_out, _twice, _otherwise):
        for k, i in places:
            call = _part(chain, k)[i]
            said = f" to {chain.sources[k]}" if k < len(chain.own) else ""
            for name, text, calls in make(case, call):
                made = _claim(case, _with(chain, k, i, calls))
                if made is not None:
                    yield Hypothesis(name, text.format(to=said), made)


def chain_of(case: Case) -> Chain | None:
    """The steps of the claim, if its text says all of them."""
    try:
        chain = _parsed(case.claim)
    except UsageError:
        return None
    array = _array(case, chain)
    same = array is not None and array.layout == case.layout
    if array is None or not same or not (chain.steps or any(chain.own)):
        return None
    texts = [[move.text for move in moves] for moves in (array.values, case.claim.values)]
    return chain if texts[0] == texts[1] else None


# --- from the text, and back


def _parsed(claim: Claim) -> Chain:
    text = "" if claim.text == "identity" else claim.text
    inner, joined, rest = "", "", text
    if text.startswith("["):
        inner, joined, rest = text[1:].partition("] | ")
    own = tuple(_calls(part) for part in inner.split("; ")) if joined else ()
    if own and len(own) != len(claim.sources):
        raise UsageError("sources that are gathered have their steps in common")
    return Chain(claim.sources, own, _calls(rest))


def _calls(text: str) -> tuple[Call, ...]:
    """The steps of a text.

    Raises: UsageError if it is not all steps, as where a long list was shortened.
    """
    if text in ("", "identity"):
        return ()
    calls = tuple(parse_call(part, "claim") for part in text.split(" | "))
    for call in calls:
        check_call(call, "claim")
    return calls


def _array(case: Case, chain: Chain) -> Array | None:
    """What the steps make, or None if they do not fit."""
    leaves = [case.plan.source.leaves.get(name) for name in chain.sources]
    arrays = [
        Array(whole(leaf.name, leaf.grid_shape), leaf.element, leaf.element)
        for leaf in leaves
        if leaf is not None
    ]
    if not arrays or len(arrays) < len(leaves):
        return None
    try:
        if chain.own:
            arrays = [_stepped([a], own)[0] for a, own in zip(arrays, chain.own, strict=True)]
        arrays = _stepped(arrays, chain.steps)
    except UsageError:
        return None
    return arrays[0] if len(arrays) == 1 else None


def _stepped(arrays: list[Array], calls: Sequence[Call]) -> list[Array]:
    for call in calls:
        arrays, _ = apply(call, arrays, {})
    return arrays


def _part(chain: Chain, k: int) -> tuple[Call, ...]:
    return chain.own[k] if k < len(chain.own) else chain.steps


def _with(chain: Chain, k: int, i: int, calls: Sequence[Call]) -> Chain:
    """The chain with other steps in the place of one."""
    part = _part(chain, k)
    part = (*part[:i], *calls, *part[i + 1 :])
    if k < len(chain.own):
        return replace(chain, own=(*chain.own[:k], part, *chain.own[k + 1 :]))
    return replace(chain, steps=part)


def _claim(case: Case, chain: Chain) -> Claim | None:
    """The claim that a chain makes, its elements in the target's shape if there are as many."""
    array = _array(case, chain)
    if array is None or array.element != case.target.element:
        return None
    layout: Layout | None = array.layout
    if array.layout.shape != case.layout.shape:
        layout = attempt(partial(reshape, array.layout, case.layout.shape))
    if layout is None or layout.shape != case.layout.shape:
        return None
    return replace(case.claim, layout=layout, values=array.values, equality=Equality())


# --- changes of one step

Changes = Iterator[tuple[str, str, tuple[Call, ...]]]


def _left_out(case: Case, call: Call) -> Changes:
    text = f"the step {_safe(call)} was not applied{{to}}: these are the bytes without it"
    yield "step_left_out", text, ()


def _twice(case: Case, call: Call) -> Changes:
    yield "step_twice", f"the step {_safe(call)} was applied{{to}} twice", (call, call)


def _otherwise(case: Case, call: Call) -> Changes:
    """The opposite step, then other arguments, those that the facts name first."""
    found: list[tuple[Call, str]] = []
    if call.name in OPPOSITE:
        found.append((replace(call, name=OPPOSITE[call.name]), ""))
    step = STEPS[call.name]
    if step.function is not None:
        kinds = {p.name: (p.annotation, p.kind) for p in step.parameters}
        for i, tree in enumerate(call.args):
            name = step.parameters[min(i, len(step.parameters) - 1)].name
            for other, why in _others(case, name, kinds[name][0], tree):
                args = (*call.args[:i], other, *call.args[i + 1 :])
                found.append((replace(call, args=args), why))
        for i, (name, tree) in enumerate(call.options):
            for other, why in _others(case, name, kinds[name][0], tree):
                options = (*call.options[:i], (name, other), *call.options[i + 1 :])
                found.append((replace(call, options=options), why))
    if call.name == "slice":
        found += _slices(call)
    if call.name == "permute":
        found += _inverse(call)
    for other_call, why in found:
        spelled = _respelled(other_call)
        text = f"{_safe(spelled)} was applied{{to}} in place of {_safe(call)}{why}"
        yield "step_changed", text, (spelled,)


def _others(case: Case, name: str, kind: Any, tree: ast.expr) -> Iterator[tuple[ast.expr, str]]:
    """Other values that an argument may have had, and what they are."""
    if get_origin(kind) is Literal:
        for word in get_args(kind):
            if ast.unparse(tree) != word:
                yield ast.Name(word), ""
        return
    value = _literal(tree)
    if isinstance(value, list):
        order = [value.index(i) for i in range(len(value)) if i in value]
        if len(order) == len(value) and order != value:
            yield _tree(order), " (the inverse order)"
    elif isinstance(value, int) and "head" in name:
        for other, why in _head_counts(case, value):
            yield _tree(other), why
    elif isinstance(value, int) and name == "axis":
        for axis in range(len(case.layout.shape) + 1):
            if axis != value:
                yield _tree(axis), " (another of its axes)"
    elif isinstance(value, int) and name == "i":
        near = sorted(range(MAX_PLACES), key=lambda i: abs(i - value))
        yield from ((_tree(i), "") for i in near if i != value)


def _head_counts(case: Case, claimed: int) -> Iterator[tuple[int, str]]:
    names = {n: name for name, n in case.facts.items()}
    mine = names.get(claimed, str(claimed))
    for n, name in names.items():
        if n != claimed:
            yield n, f" ({name} for {mine})"
    for n in range(1, MAX_PLACES + 1):
        if n != claimed and n not in names:
            yield n, f" ({n} for {mine})"


def _slices(call: Call) -> list[tuple[Call, str]]:
    """Stretches as long as the one claimed, at the places that they would have beside it."""
    values = [_literal(tree) for tree in call.args]
    if len(values) != 3 or not all(isinstance(v, int) for v in values):
        return []
    axis, start, stop = values
    size = stop - start
    if start < 0 or size < 1 or start % size:
        return []
    near = sorted(range(MAX_PLACES), key=lambda i: abs(i * size - start))
    return [
        (replace(call, args=tuple(map(_tree, (axis, i * size, (i + 1) * size)))), "")
        for i in near
        if i * size != start
    ]


def _inverse(call: Call) -> list[tuple[Call, str]]:
    axes = [_literal(tree) for tree in call.args]
    if sorted(axes) != list(range(len(axes))):
        return []
    other = [axes.index(i) for i in range(len(axes))]
    args = tuple(map(_tree, other))
    return [(replace(call, args=args), " (the inverse)")] if other != axes else []


def _literal(tree: ast.expr) -> Any:
    try:
        return ast.literal_eval(tree)
    except (ValueError, TypeError):
        return None


def _tree(value: object) -> ast.expr:
    return ast.parse(repr(value), mode="eval").body


def _respelled(call: Call) -> Call:
    """A call with the text of its name and arguments as they are now."""
    shown = [*map(ast.unparse, call.args)]
    shown += [f"{name}={ast.unparse(tree)}" for name, tree in call.options]
    return replace(call, text=f"{call.name}({', '.join(shown)})")


def _safe(call: Call) -> str:
    """The text of a call, to be put into a pattern of `str.format`."""
    return call.text.replace("{", "{{").replace("}", "}}")
