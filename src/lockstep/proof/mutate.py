"""Plants one fault into the emitted C of one node, and into nothing else.

A fault in a call edits the node's own function. A fault in a kernel edits a copy of the kernel's
source that only this node calls; copies stand at the end of the text, so that all lines stay where
the manifest says they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from lockstep.build import Built
from lockstep.errors import UsageError
from lockstep.native.manifest import NodeRecord
from lockstep.proof.c_text import Piece, block_end, masked

COPY = "__planted"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: the nodes that may be named for it, what it is, and the text that has it."""

    nodes: tuple[str, ...]
    op: str
    phase: str
    kind: str
    what: str
    source: str


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement in a text."""

    kind: str
    begin: int
    end: int
    new: str

    def apply(self, text: str) -> str:
        """The text with the replacement made."""
        return text[: self.begin] + self.new + text[self.end :]


def plant(built: Built, node: NodeRecord, random: Random) -> Fault:
    """One fault drawn for this node: a kind first, so that common kinds do not crowd out others.

    Raises: UsageError if the node offers none.
    """
    target = Target(built.emitted.source, node)
    by_kind: dict[str, list[tuple[str, Edit]]] = {}
    for place, edits in target.edits():
        for edit in edits:
            by_kind.setdefault(edit.kind, []).append((place, edit))
    if not by_kind:
        raise UsageError(f"{node.id}: expected a place for a fault, got none")
    kind = random.choice(sorted(by_kind))
    place, edit = random.choice(by_kind[kind])
    return Fault(
        nodes=(node.id,),
        op=node.op,
        phase=node.section,
        kind=kind,
        what=target.describe(place, edit),
        source=target.planted(place, edit),
    )


class Target:
    """The texts that a node runs: its call, its kernel instance, and the source of its kernel."""

    def __init__(self, source: str, node: NodeRecord) -> None:
        self.source, self.node = source, node
        lines = source.splitlines(keepends=True)
        self._call_at = sum(map(len, lines[: node.line - 1]))
        self.call = source[self._call_at : block_end(source, self._call_at)]
        instance = f"INSTANCE void {node.instance}("
        at = source.index(instance)
        self.instance = source[at : block_end(source, at)]
        self.piece = Piece.holding(source, node.kernel_source.rpartition(":")[0])

    def edits(self) -> Iterator[tuple[str, list[Edit]]]:
        """Every fault that can be planted, by the text that it goes into."""
        yield "call", [*_call_edits(self.call, self.source)]
        yield "instance", [*_instance_edits(self.instance)]
        found = []
        for begin, end in self.piece.reachable(self.node.kernel):
            body = masked(self.piece.text)[begin:end]
            for make in KERNEL_EDITS:
                found += [Edit(e.kind, begin + e.begin, begin + e.end, e.new) for e in make(body)]
        yield "kernel", found

    def describe(self, place: str, edit: Edit) -> str:
        """Where the fault is and what it changes."""
        text = {"call": self.call, "instance": self.instance, "kernel": self.piece.text}[place]
        where = f"model.c:{self.node.line}"
        if place == "kernel":
            where = self.piece.place(edit.begin)
        old = " ".join(text[edit.begin : edit.end].split()) or "nothing"
        return f"{where}: {old[:60]} -> {' '.join(edit.new.split())[:60] or 'nothing'}"

    def planted(self, place: str, edit: Edit) -> str:
        """The whole program with the fault."""
        if place == "call":
            return self._with_call(edit.apply(self.call), "")
        piece, instance = "", self.instance
        if place == "kernel":
            piece = self.piece.renamed(edit.apply(self.piece.text), COPY)
            kernel = self.node.kernel
            instance = re.sub(rf"\b{kernel}\(", f"{kernel}{COPY}(", instance)
        else:
            instance = edit.apply(instance)
        name = f"{self.node.instance}{COPY}"
        instance = instance.replace(f"{self.node.instance}(", f"{name}(", 1)
        call = self.call.replace(f"{self.node.instance}(", f"{name}(", 1)
        head = instance[: instance.index("{")].replace("INSTANCE", "static").strip()
        return self._with_call(f"{head}; {call}", f"\n{piece}\n{instance}\n")

    def _with_call(self, call: str, end: str) -> str:
        after = self._call_at + len(self.call)
        return self.source[: self._call_at] + call + self.source[after:] + end


def _call_edits(call: str, source: str) -> Iterator[Edit]:
    """Faults in what a node hands to its kernel."""
    begin = call.index("(", call.index("{")) + 1
    end = call.index(");", begin)
    names = [(m[0], begin + m.start(), begin + m.end())
             for m in re.finditer(r"\bv_\w+", call[begin:end])]  # fmt: skip
    types = dict(re.findall(r"^#define (v_\w+) .*/\* (\S+) \*/$", source, re.M))
    for i, (name, at, stop) in enumerate(names):
        width = re.search(r"(\d+)\]$", types[name])
        if width:
            yield Edit("wrong row", at, stop, f"({name} + {width[1]})")
            yield Edit("index", at, stop, f"({name} + 1)")
        same = [n for n, t in types.items() if t == types[name] and n != name]
        for other in same[:6]:
            yield Edit("stale buffer", at, stop, other)
        for other, at2, stop2 in names[i + 1 :]:
            if types[other].split("[")[0] == types[name].split("[")[0]:
                between = call[stop:at2]
                yield Edit("swapped arguments", at, stop2, f"{other}{between}{name}")
    for old, new in (("begin, end)", "begin + 1, end)"), ("begin, end)", "begin, end - 1)")):
        at = call.index(old)
        yield Edit("bound", at, at + len(old), new)


def _instance_edits(instance: str) -> Iterator[Edit]:
    """Faults in the constants that a kernel is called with."""
    call = re.search(r"^ +\w+\((?:o0|NULL)[^;]*;", instance, re.M)
    if call is None:
        return
    for m in re.finditer(r"(?<=, )(\d+)(?=[,)])", call[0]):
        if int(m[1]) > 1:
            at = call.start() + m.start()
            yield Edit("size", at, at + len(m[1]), str(int(m[1]) - 1))
    for m in re.finditer(r"(?<=, )(\d+\.\d*(?:e-?\d+)?|\d+e-?\d+)(?=[,)])", call[0]):
        at = call.start() + m.start()
        if float(m[1]) != 0.0:
            yield Edit("constant", at, at + len(m[1]), repr(float(m[1]) * 0.9))


def _pattern(kind: str, pattern: str, new: str) -> Callable[[str], Iterator[Edit]]:
    def edits(body: str) -> Iterator[Edit]:
        for m in re.finditer(pattern, body, re.M):
            yield Edit(kind, m.start(), m.end(), m.expand(new))

    return edits


def _loads(body: str) -> Iterator[Edit]:
    """A vector read or written one element further on."""
    for m in re.finditer(r"\bvf_(?:load|store)(?:_n|_m)?\(", body):
        depth, at = 0, m.end()
        while depth or body[at] not in ",)":
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(body[at], 0)
            at += 1
        yield Edit("index", m.end(), at, f"({body[m.end() : at]}) + 1")


def _scales(body: str) -> Iterator[Edit]:
    """A scalar that all lanes take, one part in a hundred too large."""
    for m in re.finditer(r"\bvf_set\((?=[a-z*(])", body):
        depth, at = 1, m.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(body[at], 0)
            at += 1
        yield Edit("scale", m.end(), at - 1, f"1.01f * ({body[m.end() : at - 1]})")


def _constants(body: str) -> Iterator[Edit]:
    for m in re.finditer(r"(?<![\w.])(\d+\.\d+)(f?)\b", body):
        value = float(m[1])
        yield Edit("constant", m.start(), m.end(), f"{value * 1.25 if value else 0.25!r}{m[2]}")


def _dropped(body: str) -> Iterator[Edit]:
    """A statement that stores, adds or assigns, left out."""
    statement = r"^ +(?:vf_store\w*\(|mem(?:cpy|set)\(|\*?[a-z]\w*(?:\[[^;=]*\])? \+?= )[^;{}]*;"
    for m in re.finditer(statement, body, re.M):
        yield Edit("dropped term", m.start(), m.end(), ";")


_TERM = r"(?<=[\w)\]] )"  # an operand stands in front, so that the operator has two
KERNEL_EDITS: tuple[Callable[[str], Iterator[Edit]], ...] = (
    _pattern("sign", _TERM + r"\+(?= [^+\n])", "-"),
    _pattern("sign", _TERM + r"-(?= )", "+"),
    _pattern("sign", r"\bv([fd])_fma\(", r"v\1_fnma("),
    _pattern("sign", r"\bvf_fnma\(", "vf_fma("),
    _pattern("sign", r"\bvf_add\(", "vf_sub("),
    _pattern("sign", r"\+= ", "-= "),
    _pattern("missing accumulation", r"(?<![<>=!])\+= ", "= "),
    _pattern("missing accumulation", r"\b(\w+) = \1 \+ ", r"\1 = "),
    _pattern("bound", r"(?<=; )(\w+(?: \+ \w+)?) < ", r"\1 <= "),
    _pattern("bound", r"(?<=; )(\w+ < \w+)(?=;)", r"\1 - 1"),
    _pattern("bound", r"(?<=for \(int64_t )(\w+) = 0;", r"\1 = 1;"),
    _pattern("bound", r"(?<=for \(int64_t )(\w+) = row_begin", r"\1 = row_begin + 1"),
    _pattern("branch", r"\bif \((?=[^\n]*\) *[\w*{])(add|\w+ < 0)\)", r"if (!(\1))"),
    _pattern("branch", r"!\*accumulate\b", "*accumulate"),
    _pattern("index", r"(?<=\w)\[(\w+(?: [*+] \w+)*)\](?! [a-z])", r"[(\1) + 1]"),
    _loads,
    _scales,
    _constants,
    _dropped,
)
