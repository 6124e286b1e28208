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


def misorder(built: Built, kind: str, random: Random) -> Fault:
    """A fault in the stages of an entry; the nodes of the stage that suffers may be named.

    Raises: UsageError if the program has no entry with two stages.
    """
    source = built.emitted.source
    places = [
        (table, i)
        for entry in _ENTRIES
        for table in re.finditer(_TABLE.replace("ENTRY", entry), source, re.M)
        for i in range(1, len(re.findall(r"stage_(\d+),", table[1])))
    ]
    if not places:
        raise UsageError(f"{built.graph.name}: expected an entry with two stages, got none")
    table, i = random.choice(places)
    numbers = re.findall(r"stage_(\d+),", table[1])
    before, after = numbers[i - 1], numbers[i]
    if kind == KINDS[0]:
        helpers, new = _nothing(), [*numbers[:i], "none", *numbers[i + 1 :]]
    else:
        helpers = f"{_nothing()} {_both(before, after)}"
        new = [*numbers[: i - 1], "both", "none", *numbers[i + 1 :]]
    stages = ", ".join(f"{{stage_{n}, stage_{n}_chain, stage_{n}_tasks}}" for n in new)
    text = f"{helpers} {table[0].replace(table[1], stages)}"
    nodes = _nodes_of(built, after)
    known = {node.id: node for node in built.graph.nodes}
    return Fault(
        nodes=nodes,
        op=known[nodes[0]].op.name,
        phase=known[nodes[0]].section,
        kind=kind,
        what=f"model.c: stage_{after}, which follows stage_{before}",
        source=source[: table.start()] + text + source[table.end() :],
    )


def _nothing() -> str:
    return (
        "static void stage_none(const Call *c, int64_t task) { (void)c, (void)task; } "
        "static int64_t stage_none_chain(const Call *c) { (void)c; return 0; } "
        "static int64_t stage_none_tasks(const Call *c) { (void)c; return 0; }"
    )


def _both(before: str, after: str) -> str:
    return (
        "static void stage_both(const Call *c, int64_t task) { "
        f"const int64_t n = stage_{before}_tasks(c); "
        f"if (task < n) stage_{before}(c, task); else stage_{after}(c, task - n); }} "
        "static int64_t stage_both_chain(const Call *c) { (void)c; return 0; } "
        "static int64_t stage_both_tasks(const Call *c) { "
        f"return stage_{before}_tasks(c) + stage_{after}_tasks(c); }}"
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
