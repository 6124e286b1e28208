"""Two files of one model, node by node in float64: is one still the other, and where do they part?

Both sides run the same graph on the same tokens, each with its own parameters. The local error of
a node is that of this side's op and parameters on the other side's inputs, so a node is guilty of
what it does itself and of nothing that it was handed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockstep.artifacts import Check
from lockstep.artifacts.compare import Comparison, Guilty, NodeRow
from lockstep.engine.source import Source
from lockstep.errors import GateError, UsageError
from lockstep.ir import Array, Attr, Graph, Node
from lockstep.ir.op import as_f64
from lockstep.proof.weight_faults import explain

# What float32 loses where a form computes (1 + w, -exp), with a margin of ten.
FLOOR = 1e-6
FLOAT32 = 2.0**-23  # what a number may be off that went through float32
# Relative root mean square of what a type loses. A block that reaches six times its deviation,
# twice what a normal one of 32 does, in 2^bits steps: 12 / 2^bits a step, over the root of 12.
_STEPS = {"Q8_0": 8, "Q6_K": 6, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q4_0": 4, "Q4_1": 4, "Q4_K": 4,
          "MXFP4": 3, "Q3_K": 3, "Q2_K": 2}  # fmt: skip
_ROUNDED = {"F32": 0.0, "F16": 2.0**-10, "BF16": 2.0**-7}
LOST = {**_ROUNDED, **{name: 12.0 / 2**bits / 12**0.5 for name, bits in _STEPS.items()}}

# Ten times the worst that float32 of transformers is off over these families at their real sizes.
TRANSFORMERS_F32 = 4e-5

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Side:
    """One of the two: its graph, and its parameters as float32, read when a node asks for them."""

    source: Source
    graph: Graph

    @classmethod
    def of(cls, source: Source, tokens: int) -> Side:
        """The forward graph of one sequence."""
        return cls(source, source.model.family.training_graph(source.model.config, 1, tokens))

    def parameter(self, id: str) -> Array:
        """A parameter; float32 numbers are float64 numbers, so products need no copy."""
        return self.source.parameters.f32(id)

    def is_parameter(self, id: str | None) -> bool:
        """Whether this input of a node is a parameter."""
        return id in self.graph.inputs and self.graph.inputs[id].role == "parameter"

    def lost(self, node: Node) -> float:
        """How much the stored types of the node's parameters may have lost."""
        ids = [id for id in node.inputs if id is not None and self.is_parameter(id)]
        return sum((LOST[self.source.parameters.stored(id)] for id in ids), 0.0)


def compare_models(
    left: Source, right: Source, *, tokens: int, seed: int, progress: Progress = lambda text: None
) -> tuple[Comparison, Check]:
    """Compares two sources of one model; the right one is the reference.

    The check holds that reference itself against transformers, which reads the same directory.

    Raises: UsageError if they are not of one family, GateError if their graphs have other nodes.
    """
    left, right = left.in_hf_order(), right.in_hf_order()
    sides = Side.of(left, tokens), Side.of(right, tokens)
    _expect_same_graph(*sides)
    ids = np.random.default_rng(seed).integers(0, left.model.config.vocab, tokens, dtype=np.int32)
    inputs: dict[str, Array] = {"tokens": ids, "positions": np.arange(tokens, dtype=np.int32)}
    ours, theirs = dict(inputs), dict(inputs)
    rows, first = [], None
    for row, guilty in _walk(*sides, ours, theirs, progress):
        rows.append(row)
        first = first or guilty
    pair = _comparison(left, right, rows, first)
    return pair, _beside_transformers(right, ids, theirs["head"])


def _comparison(
    left: Source, right: Source, rows: list[NodeRow], first: Guilty | None
) -> Comparison:
    return Comparison(
        left=left.where,
        right=right.where,
        passed=first is None and bool(rows),
        nodes_compared=len(rows),
        values_compared=sum(row.n_values for row in rows),
        first_guilty=first,
        nodes=tuple(rows),
    )


def _expect_same_graph(left: Side, right: Side) -> None:
    a, b = left.source.model, right.source.model
    if a.family.name != b.family.name:
        raise UsageError(
            f"compare: expected two models of one family, got {a.family.name} in "
            f"{left.source.where} and {b.family.name} in {right.source.where}",
            hint="compare a conversion with what it was made from",
        )
    ours, theirs = ([(n.id, n.op.name) for n in side.graph.nodes] for side in (left, right))
    shapes = a.shapes.items() ^ b.shapes.items()
    wrong = sorted({id for id, _ in shapes} - {"head.weight"})
    if ours != theirs or wrong:
        fields = {k: (v, getattr(b.config, k)) for k, v in _settings(a.config).items()
                  if v != getattr(b.config, k)}  # fmt: skip
        listed = ", ".join(f"{k}: {x} against {y}" for k, (x, y) in fields.items())
        raise GateError(
            f"compare: expected the same graph on both sides, their configs differ in {listed}",
            hint="check the metadata of the conversion",
        )


def _settings(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def _walk(
    left: Side,
    right: Side,
    ours: dict[str, Array],
    theirs: dict[str, Array],
    progress: Progress,
) -> Iterator[tuple[NodeRow, Guilty | None]]:
    """Each node up to the logits; the values of both sides are added to what they hold.

    Where results have other shapes, the left side ends: nothing behind can be compared.
    """
    is_parted = has_ended = False
    for a, b in zip(left.graph.nodes, right.graph.nodes, strict=True):
        if a.section not in ("init", "forward") or a.op.name == "cross_entropy":
            break
        progress(a.id)
        expected = _run(right, b, theirs)
        theirs.update({v.id: x for v, x in zip(b.outputs, expected, strict=True)})
        if has_ended:
            continue
        got = _run(left, a, ours)
        has_ended = [x.shape for x in got] != [x.shape for x in expected]
        depends = any(left.is_parameter(id) for id in a.inputs) or a.attrs != b.attrs
        # The same op with the same attributes and no parameter is the same function.
        local = got if has_ended else _run(left, a, theirs) if depends else expected
        ours.update({v.id: x for v, x in zip(a.outputs, got, strict=True)})
        row = _row(left, right, a, b, (got, local, expected), is_parted)
        is_parted = is_parted or row.verdict == "culprit"
        yield row, _guilty(left, right, a, b, row) if row.verdict == "culprit" else None


def _run(side: Side, node: Node, values: Mapping[str, Array]) -> tuple[Array, ...]:
    arguments = (
        None if id is None else side.parameter(id) if side.is_parameter(id) else values[id]
        for id in node.inputs
    )
    with np.errstate(all="ignore"):  # a fault makes NaN and infinities, which are judged below
        return tuple(as_f64(x) for x in node.op.reference(*arguments, **node.attrs))


def _row(
    left: Side,
    right: Side,
    a: Node,
    b: Node,
    values: tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]],
    is_parted: bool,
) -> NodeRow:
    got, local, expected = values
    bound = FLOOR + left.lost(a) + right.lost(b)
    errors = distance(got, expected), distance(local, expected)
    # A NaN is no less than anything. What differs in an attribute is another function, even where
    # these tokens do not show it: a window that is longer than they are, for example.
    verdict = "ok" if errors[1] <= bound and not _changed(a, b) else "culprit"
    if verdict == "ok" and is_parted and not errors[0] <= bound:
        verdict = "victim"
    types = sorted({side.source.parameters.stored(id) for side, node in ((left, a), (right, b))
                    for id in node.inputs if id is not None and side.is_parameter(id)})  # fmt: skip
    return NodeRow(
        id=a.id,
        op=a.op.name,
        phase=a.section,
        n_values=sum(x.size for x in expected),
        cumulative_error=_number(errors[0]),
        local_error=_number(errors[1]),
        peer_error=None,
        bound=bound,
        bound_why=f"what {' and '.join(types)} may lose" if types else "what float32 forms lose",
        verdict=verdict,  # type: ignore[arg-type]  # one of the literals above
        c_line=None,
        reason="" if all(map(np.isfinite, errors)) else "not finite",
    )


def _guilty(left: Side, right: Side, a: Node, b: Node, row: NodeRow) -> Guilty:
    return Guilty(
        id=a.id,
        op=a.op.name,
        phase=a.section,
        c_file=left.source.where,
        c_line=None,
        kernel_source="",
        why=_why(left, right, a, b, row),
    )


def _why(left: Side, right: Side, a: Node, b: Node, row: NodeRow) -> str:
    if changed := _changed(a, b):
        return ", ".join(changed)
    for ours, theirs in zip(a.inputs, b.inputs, strict=True):
        if ours is None or theirs is None or not left.is_parameter(ours):
            continue
        stored = left.source.parameters.stored(ours), right.source.parameters.stored(theirs)
        bound = FLOOR + sum(LOST[name] for name in stored)
        if (found := explain(left.source, right.source, ours, theirs, bound)) is not None:
            return found
    return f"its result is {row.local_error} off on the same inputs, {row.bound:.2g} allowed"


def _changed(a: Node, b: Node) -> list[str]:
    """The attributes in which they differ by more than the float32 that metadata may hold."""
    return [
        f"{name} is {ours}, not {b.attrs[name]}"
        for name, ours in a.attrs.items()
        if not _is_same(ours, b.attrs[name])
    ]


def _is_same(a: Attr, b: Attr) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=2 * FLOAT32)
    return a == b


def _beside_transformers(source: Source, ids: Array, logits_TV: Array) -> Check:
    """Our float64 logits of a Hugging Face directory, and transformers' own float32 ones."""
    row: dict[str, Any] = {
        "id": "original_beside_transformers",
        "name": "logits of the original",
        "against": "transformers",
        "unit": "values",
    }
    if source.kind != "hf":
        reason = "the original is no Hugging Face directory"
        return Check.missing(**row, reason=reason)
    try:
        from lockstep.oracle import logits_of_directory
    except ImportError as error:
        return Check.missing(**row, reason=f"torch and transformers are not installed: {error}")
    found = distance((logits_of_directory(source.path, ids),), (logits_TV,))
    return Check.measured(
        **row, compared=logits_TV.size, figure=found, relation="<=", bound=TRANSFORMERS_F32
    )


def distance(a: tuple[Array, ...], b: tuple[Array, ...]) -> float:
    """Root mean square of the difference over that of the reference; NaN where it is none."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return math.nan
        scale = float(np.sqrt(np.mean(np.square(y)))) or 1.0
        worst = max(worst, float(np.sqrt(np.mean(np.square(x - y)))) / scale, key=_nan_last)
    return worst


def _nan_last(x: float) -> tuple[bool, float]:
    return (x != x, x)


def _number(x: float) -> float | None:
    return x if np.isfinite(x) else None
