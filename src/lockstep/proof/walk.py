"""Walks a `keep` build node by node beside the float64 referee and judges each node on its own.

Each node runs alone, on the inputs that this side really had. Its outputs are held against the op's
float64 reference on those same inputs (the local error), and all other bytes of the program against
what they were before (a stray write). So the first node that is out of line did it; nodes that only
carry its error further stay clean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from lockstep.build import Built
from lockstep.ir import Array, Node, run_reference
from lockstep.ir.op import as_f64


@dataclass(frozen=True, kw_only=True)
class NodeCheck:
    """What one node did: errors are max |a-b| over the scale of the reference (no unit)."""

    id: str
    op: str
    section: str
    n_elements: int
    local_error: float
    bound: float
    why: str
    stray_writes: tuple[str, ...]  # the values, or guards, that it had no business to change

    @property
    def ok(self) -> bool:
        """Whether the node is within its bound and changed nothing but its outputs."""
        return self.local_error <= self.bound and not self.stray_writes


def relative_error(ours: Array, reference: Array) -> float:
    """Max |a-b| over max |b|; infinite where shapes differ, or one side alone is not finite.

    Positions where both sides hold the same NaN or infinity count as equal.
    """
    if ours.shape != reference.shape or ours.size == 0:
        return inf
    a, b = as_f64(ours), as_f64(reference)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    a, b = a[~same], b[~same]
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return inf
    finite = np.abs(as_f64(reference)[np.isfinite(reference)])
    scale = max(float(finite.max(initial=0.0)), float(np.finfo(np.float32).tiny))
    return float(np.abs(a - b).max()) / scale


def check_nodes(built: Built, rows: int | None = None) -> Iterator[NodeCheck]:
    """Runs every node of the program in order, one at a time, and yields what it did.

    The caller has set the inputs and the states. Node by node is what the program's own order says,
    section after section; `rows` is the value of the symbol where the graph has one.
    """
    names = [arena.name for arena in built.program.manifest.arenas]
    shadow = {name: built.program.arena(name).copy() for name in names}
    for node in built.graph.nodes:
        inputs = {id: built.program.view(id).copy() for id in node.inputs if id is not None}
        built.program.run_node(node.id, rows)
        yield check_node(built, node, inputs, _stray_writes(built, node, shadow))


def check_node(
    built: Built, node: Node, inputs: Mapping[str, Array], stray: tuple[str, ...]
) -> NodeCheck:
    """Judges a node that has just run on these inputs."""
    wide = {id: as_f64(array) for id, array in inputs.items()}
    expected = run_reference(node, wide)
    errors, elements = [], 0
    for value, reference in zip(node.outputs, expected, strict=True):
        ours = built.program.view(value.id)
        errors.append(relative_error(ours, reference.reshape(ours.shape)))
        elements += ours.size
    tolerance = node.op.tolerance
    worst = max(errors, key=lambda e: e if isfinite(e) else inf)
    return NodeCheck(
        id=node.id,
        op=node.op.name,
        section=node.section,
        n_elements=elements,
        local_error=worst,
        bound=tolerance.rel,
        why=tolerance.why,
        stray_writes=stray,
    )


def _stray_writes(built: Built, node: Node, shadow: dict[str, Array]) -> tuple[str, ...]:
    """What changed though the node does not write it; the shadow is brought up to date."""
    allowed = [_place(built, value.id) for value in node.outputs]
    found: list[str] = []
    for name, before in shadow.items():
        now = built.program.arena(name)
        changed = np.flatnonzero(now != before)
        for arena, begin, end in allowed:
            if arena == name:
                changed = changed[(changed < begin) | (changed >= end)]
        if changed.size:
            found += _owners(built, name, changed)
        before[:] = now
    return tuple(dict.fromkeys(found))


def _place(built: Built, id: str) -> tuple[str, int, int]:
    """The arena of a value, and where in it the value begins and ends."""
    record = built.program.manifest.values[id]
    return record.arena, record.offset, record.offset + built.program.view(id).nbytes


def _owners(built: Built, arena: str, offsets: Array) -> list[str]:
    """The ids of the values that hold these bytes; a byte of no value is a guard or padding."""
    places = [(id, *_place(built, id)) for id in built.program.manifest.values]
    owners = []
    for offset in offsets[:64]:  # a sample is enough to name them
        inside = (id for id, name, begin, end in places if name == arena and begin <= offset < end)
        owners.append(next(inside, f"guard at {arena}+{offset}"))
    return owners
