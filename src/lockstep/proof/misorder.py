"""Plants faults between nodes: a stage that is left out, and a barrier that is missing."""

from __future__ import annotations

import re
from random import Random

from lockstep.build import Built
from lockstep.errors import UsageError
from lockstep.proof.c_text import block_end
from lockstep.proof.mutate import Fault

KINDS = ("stage left out", "barrier missing")
_ENTRIES = ("step", "update")
_TABLE = r"^static const Stage ENTRY_stages\[\] = \{(.*)\};$"
_STAGE = r"\{stage_(\d+), \w+, (\w+)\}"


def misorder(built: Built, kind: str, random: Random) -> Fault:
    """A fault in the stages of an entry; the nodes of the stage that suffers may be named.

    Raises: UsageError if the program has no entry with two stages.
    """
    source = built.emitted.source
    places = [
        (table, i)
        for entry in _ENTRIES
        for table in re.finditer(_TABLE.replace("ENTRY", entry), source, re.M)
        for i in range(1, len(re.findall(_STAGE, table[1])))
    ]
    if not places:
        raise UsageError(f"{built.graph.name}: expected an entry with two stages, got none")
    table, i = random.choice(places)
    found = list(re.finditer(_STAGE, table[1]))
    stages, (before, after) = [stage[0] for stage in found], (found[i - 1], found[i])
    none = "{stage_none, tasks_none, tasks_none}"
    if kind == KINDS[0]:
        helpers, new = _nothing(), [*stages[:i], none, *stages[i + 1 :]]
    else:
        helpers = f"{_nothing()} {_both(before, after)}"
        both = "{stage_both, tasks_none, tasks_both}"
        new = [*stages[: i - 1], both, none, *stages[i + 1 :]]
    text = f"{helpers} {table[0].replace(table[1], ', '.join(new))}"
    nodes = _nodes_of(built, after[1])
    known = {node.id: node for node in built.graph.nodes}
    return Fault(
        nodes=nodes,
        op=known[nodes[0]].op.name,
        phase=known[nodes[0]].section,
        kind=kind,
        what=f"model.c: stage_{after[1]}, which follows stage_{before[1]}",
        source=source[: table.start()] + text + source[table.end() :],
    )


def _nothing() -> str:
    return (
        "static void stage_none(const Call *c, int64_t task) { (void)c, (void)task; } "
        "static int64_t tasks_none(const Call *c) { (void)c; return 0; }"
    )


def _both(before: re.Match[str], after: re.Match[str]) -> str:
    return (
        "static void stage_both(const Call *c, int64_t task) { "
        f"const int64_t n = {before[2]}(c); "
        f"if (task < n) stage_{before[1]}(c, task); else stage_{after[1]}(c, task - n); }} "
        "static int64_t tasks_both(const Call *c) { "
        f"return {before[2]}(c) + {after[2]}(c); }}"
    )


def _nodes_of(built: Built, number: str) -> tuple[str, ...]:
    """The nodes that a stage runs, in the order of the graph."""
    source = built.emitted.source
    at = source.index(f"static void stage_{number}(")
    called = set(re.findall(r"\bn_\w+(?=\()", source[at : block_end(source, at)]))
    lines = source.splitlines()
    return tuple(
        node.id
        for node in built.program.manifest.nodes
        if (name := re.search(r"\bn_\w+(?=\()", lines[node.line - 1])) and name[0] in called
    )
