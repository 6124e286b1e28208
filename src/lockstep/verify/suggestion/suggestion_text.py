"""A suggested claim file as TOML: what contents showed as rules, what they did not as comments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lockstep.artifacts.printable import printable
from lockstep.formats.leaf import Leaf, Store
from lockstep.verify.claim import Plan
from lockstep.verify.claims.rules import ClaimFile, TieRule
from lockstep.verify.claims.templates import patterns
from lockstep.verify.diagnosis.hypotheses import Side
from lockstep.verify.suggestion.findings import Findings
from lockstep.verify.suggestion.generalise import Made, Part, Ruled, breaks, generalise

_MOST_NAMED = 2


def suggestion_text(
    ruled: Sequence[Ruled],
    file: ClaimFile,
    plan: Plan,
    found: Findings,
    unexplained: Mapping[Side, Sequence[str]],
    *,
    shapes_only: bool,
) -> str:
    """The whole file."""
    larger = breaks(ruled)
    head = ClaimFile(mapping=file.mapping, title=file.title).to_toml()
    blocks = ["\n".join(_header(plan, shapes_only)) + "\n" + head]
    for each in ruled:
        comments = [*_broken(each, larger), *_unshown(each, found, shapes_only)]
        blocks.append("\n".join([*comments, _tables(ClaimFile(claims=(each.rule,)))]))
    for excuse in file.excuses:
        blocks.append(_tables(ClaimFile(excuses=(excuse,))))
    blocks += _proposals("source", "drop", unexplained["source"], plan.source, found, larger)
    blocks += _proposals("target", "new", unexplained["target"], plan.target, found, larger)
    return "\n".join(blocks)


def _tables(file: ClaimFile) -> str:
    """The rules of a file without its heading."""
    return "[[" + file.to_toml().partition("\n[[")[2]


def _header(plan: Plan, shapes_only: bool) -> Iterator[str]:
    what = "names, shapes and types" if shapes_only else "the contents"
    yield f"# Suggested by `lockstep verify suggest` from {what} of two checkpoints:"
    yield f"#   source: {printable(plan.source.where)}"
    yield f"#   target: {printable(plan.target.where)}"
    yield "# It was derived from these two and follows their faults: that they agree with it is no"
    yield "# independent evidence of the mapping. Hold each rule against what the conversion is"
    yield "# meant to do. What nobody decided stands in comments, for you."


def _unshown(each: Ruled, found: Findings, shapes_only: bool) -> Iterator[str]:
    """Which members could as well be made of other leaves."""
    mine = [made.target for made in each.members if made.target in found.unshown]
    if not mine:
        if shapes_only:
            yield "# not shown by contents: nothing was read; no other leaf has this shape and type"
        return
    others = found.unshown[mine[0]]
    what = "are of the same shape" if shapes_only else "hold the same"
    which = (
        printable(mine[0]) if len(mine) == 1 else f"{len(mine)} leaves, {printable(mine[0])} say"
    )
    yield f"# not shown by contents: {which}, could be made of others that {what}, chosen by name;"
    yield f"#   the others are {_listed(others)}"


def _broken(each: Ruled, larger: Mapping[str, Ruled]) -> Iterator[str]:
    """What does not follow the pattern of the others."""
    for made in each.members:
        rest = larger.get(made.target)
        if rest is not None and len(rest.members) > len(each.members):
            yield _warning(made.target, rest)


def _warning(target: str, rest: Ruled) -> str:
    others = ", ".join(source.name for source in rest.rule.sources)
    return (
        f"# warning: {_place(target, rest)} breaks the pattern of the others: {printable(target)} "
        f"is not made of {printable(others)} like the other {len(rest.members)}"
    )


def _place(target: str, rest: Ruled) -> str:
    """The captures of a target in a pattern: `layer 3`."""
    (pattern,) = patterns([rest.rule.target], {}, "suggest")
    captures = pattern.match(target) or {}
    return ", ".join(f"{name} {value}" for name, value in captures.items()) or "it"


def _proposals(
    side: Side,
    kind: str,
    names: Sequence[str],
    store: Store,
    found: Findings,
    larger: Mapping[str, Ruled],
) -> Iterator[str]:
    """Rules that somebody has to decide on, as comments."""
    made = [Made(name, (Part((name,)),)) for name in names]
    for each in generalise(made, store.leaves, store.leaves):
        first = each.members[0].target
        rest = f" and {len(each.members) - 1} more like it" if len(each.members) > 1 else ""
        lines = [f"# unexplained: {printable(first)} ({_kind(store.leaves[first])}){rest}"]
        for one in each.members:
            if side == "target" and one.target in larger:
                lines.append(_warning(one.target, larger[one.target]))
            if side == "target" and one.target in found.unordered:
                like = _listed(found.unordered[one.target])
                lines.append(f"# {printable(one.target)} has the elements of {like} in some order")
        tied = found.copies.get(first, "") if side == "source" and not rest else ""
        if tied:
            lines.append(
                f"# {printable(first)} holds the bits of {printable(tied)}: if they are tied"
            )
            tie = ClaimFile(ties=(TieRule(side="source", leaves=(tied, first)),))
            lines += [f"# {line}" for line in _tables(tie).splitlines()]
            lines.append("# and if not:")
        file = ClaimFile(claims=(each.rule,))
        table = _tables(file).splitlines()
        kept = [line for line in table if line.startswith(("target =", "where ="))]
        kept[0] = kept[0].replace("target =", f"{side} =", 1)
        lines += [f"# [[{kind}]]", *(f"# {line}" for line in kept), '# reason = ""']
        yield "\n".join(lines) + "\n"


def _kind(leaf: Leaf) -> str:
    return f"{leaf.element} {list(leaf.shape)}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(printable, names[:_MOST_NAMED]))
    rest = len(names) - _MOST_NAMED
    return f"{shown} and {rest} more" if rest > 0 else shown
