"""Walks a `keep` build node by node beside the float64 referee and judges each node on its own.

Each node runs alone, on the inputs that this side really had. Its outputs are held against the op's
float64 reference on those same inputs (the local error), and all other bytes of the program against
what they were before (a stray write, which is undone). So the first node that is out of line did
it; nodes that only carry its error further stay clean.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from lockstep.build import Built
from lockstep.ir import SECTIONS, Array, Node, Section, run_reference
from lockstep.ir.op import as_f64
from lockstep.proof.tolerances import COMPARE_FACTOR

_WORD = 8  # bytes that are compared at once; arenas end at 64-byte boundaries
_ROUNDING = 2.0**-24  # of float32, relative; a tolerance below it is one of float64, or of a copy
_N_SPREADS = 3


@dataclass(frozen=True, kw_only=True)
class NodeCheck:
    """What one node did: errors are max |a-b| over the scale of the reference (no unit)."""

    id: str
    op: str
    section: Section
    n_elements: int
    local_error: float
    bound: float
    why: str
    stray_writes: tuple[str, ...]  # the values, or guards, that it had no business to change
    overflows: bool  # finite numbers became infinite or NaN, in the reference as well

    @property
    def ok(self) -> bool:
        """Whether the node is within its bound, finite, and changed nothing but its outputs."""
        return self.local_error <= self.bound and not self.stray_writes and not self.overflows

    @property
    def excess(self) -> float:
        """The local error over its bound; infinite where no number says how bad it is."""
        if self.stray_writes or self.overflows or self.local_error > self.bound == 0.0:
            return inf
        return self.local_error / self.bound if self.bound else 0.0


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


def check_nodes(
    built: Built,
    sections: Collection[Section] = SECTIONS,
    *,
    counts: Mapping[str, int] | None = None,
    before: Callable[[str], None] = lambda id: None,
) -> Iterator[NodeCheck]:
    """Runs every node of the sections in order, one at a time, and yields what it did.

    The caller has set the inputs and the states. Node by node is what the program's own order says,
    section after section; `counts` are the values of the graph's symbols. `before` hears of each
    node before it runs, and so of the last one if the process does not survive it.
    """
    shadow = _Shadow(built)
    for node in built.graph.nodes:
        if node.section in sections:
            inputs = {id: built.program.view(id).copy() for id in node.inputs if id is not None}
            before(node.id)
            built.program.run_node(node.id, **(counts or {}))
            yield check_node(built, node, inputs, shadow.stray_writes(node))


def check_node(
    built: Built, node: Node, inputs: Mapping[str, Array], stray: tuple[str, ...]
) -> NodeCheck:
    """Judges a node that has just run on these inputs."""
    wide = {id: as_f64(array) for id, array in inputs.items()}
    with np.errstate(all="ignore"):  # a fault makes NaN and infinities, which are judged below
        expected = run_reference(node, wide)
        errors, elements, is_finite = [], 0, True
        for value, reference in zip(node.outputs, expected, strict=True):
            ours = built.program.view(value.id)
            errors.append(relative_error(ours, reference.reshape(ours.shape)))
            elements += ours.size
            is_finite &= bool(np.isfinite(ours).all())
        bound, why = node.op.tolerance.rel, node.op.tolerance.why
        worst = max(errors)
        if isfinite(worst) and worst > bound > _ROUNDING:
            spread = _spread(node, wide, expected)
            if COMPARE_FACTOR.value * spread > bound:
                bound = COMPARE_FACTOR.value * spread
                why = f"{COMPARE_FACTOR.value:g} times the spread when every input moves by one ulp"
    return NodeCheck(
        id=node.id,
        op=node.op.name,
        section=node.section,
        n_elements=elements,
        local_error=worst,
        bound=bound,
        why=why,
        stray_writes=stray,
        overflows=not is_finite and all(np.isfinite(a).all() for a in wide.values()),
    )


def _spread(node: Node, inputs: Mapping[str, Array], expected: tuple[Array, ...]) -> float:
    """How far the reference's outputs move when each input moves by its float32 rounding.

    An op may be ill-conditioned where it is asked: the softmax of large scores turns the last digit
    of a score into many. No float32 kernel can know better than that. 0 where it is not finite.
    """
    worst = 0.0
    for seed in range(_N_SPREADS):
        rng = np.random.default_rng(seed)
        moved = {
            id: a * (1.0 + _ROUNDING * rng.choice((-1.0, 1.0), a.shape)) if a.dtype == np.float64
            else a
            for id, a in inputs.items()
        }  # fmt: skip
        pairs = zip(run_reference(node, moved), expected, strict=True)
        worst = max(worst, *(relative_error(a, b) for a, b in pairs))
    return worst if isfinite(worst) else 0.0


class _Shadow:
    """What all memory of a program held before a node ran."""

    def __init__(self, built: Built) -> None:
        self._built = built
        arenas = built.program.manifest.arenas
        self._live = {a.name: built.program.arena(a.name).view(np.int64) for a in arenas}
        self._before = {name: words.copy() for name, words in self._live.items()}

    def stray_writes(self, node: Node) -> tuple[str, ...]:
        """What changed though the node does not write it; it is put back as it was."""
        allowed = [_place(self._built, value.id) for value in node.outputs]
        found: list[str] = []
        for name, before in self._before.items():
            live = self._live[name]
            words = np.flatnonzero(live != before)
            if words.size:
                spans = [(begin, end) for arena, begin, end in allowed if arena == name]
                stray = _outside(live, before, words, spans)
                if stray.size:
                    found += _owners(self._built, name, stray)
                    live.view(np.uint8)[stray] = before.view(np.uint8)[stray]
                before[words] = live[words]
        return tuple(dict.fromkeys(found))


def _outside(live: Array, before: Array, words: Array, spans: list[tuple[int, int]]) -> Array:
    """The offsets of the changed bytes that lie in none of the spans."""
    for begin, end in spans:  # most words by far lie in them: drop those before bytes are looked at
        words = words[(words < -(-begin // _WORD)) | (words >= end // _WORD)]
    offsets = (words[:, None] * _WORD + np.arange(_WORD)).reshape(-1)
    offsets = offsets[live.view(np.uint8)[offsets] != before.view(np.uint8)[offsets]]
    for begin, end in spans:
        offsets = offsets[(offsets < begin) | (offsets >= end)]
    found: Array = offsets
    return found


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
