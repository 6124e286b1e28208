"""Two files of one model, node by node in float64: is one still the other, and where do they part?

Both sides run the same graph on the same tokens, each with its own parameters. The local error of
a node is that of this side's op and parameters on the other side's inputs, so a node is guilty of
what it does itself and of nothing that it was handed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lockstep.artifacts import Check
from lockstep.artifacts.compare import Comparison, Guilty, NodeRow
from lockstep.engine.source import Source
from lockstep.errors import GateError, InputError, UsageError
from lockstep.families.rope_config import FACTORS_EXACT
from lockstep.formats.dequantise import SUPPORTED
from lockstep.ir import Array, Attr, Graph, Node
from lockstep.ir.op import as_f64
from lockstep.proof.row_moves import apart, is_same
from lockstep.proof.tolerances import (
    COMPARE_FACTOR,
    COMPARE_FLOOR,
    METADATA_FLOAT,
    MODELS_FLOOR,
    TYPE_LOST,
)
from lockstep.proof.weight_faults import explain

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Side:
    """One of the two: its graph, and its parameters as float32, read when a node asks for them."""

    source: Source
    graph: Graph
    _held: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Source, tokens: int) -> Side:
        """The forward graph of one sequence."""
        return cls(source, source.model.family.training_graph(source.model.config, 1, tokens))

    def parameter(self, id: str) -> Array:
        """A parameter; float32 numbers are float64 numbers, so products need no copy."""
        if id not in self._held:
            self._held[id] = self.source.parameters.f32(id)
        return self._held[id]

    def forget(self) -> None:
        """Drops the parameters of the node that was run."""
        self._held.clear()

    def is_parameter(self, id: str | None) -> bool:
        """Whether this input of a node is a parameter."""
        return id in self.graph.inputs and self.graph.inputs[id].role == "parameter"

    def lost(self, *ids: str | None) -> float:
        """How much the stored types of those that are parameters may have lost."""
        own = (id for id in ids if id is not None and self.is_parameter(id))
        return sum((TYPE_LOST[self.source.parameters.stored(id)].value for id in own), 0.0)

    def block(self, id: str) -> int:
        """How many values of a parameter share a scale in its file."""
        return SUPPORTED[self.source.parameters.stored(id)].n_numbers


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
    return pair, _beside_transformers(sides[1], inputs, theirs["head"])


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
    """Each node up to the logits, and the first that is guilty; `ours` and `theirs` grow by it.

    Where results have other shapes, or the left side has none, it ends: nothing behind can be
    compared.
    """
    is_parted = has_ended = False
    for a, b in zip(_up_to_logits(left.graph), _up_to_logits(right.graph), strict=True):
        progress(a.id)
        expected = _run(right, b, theirs)
        theirs.update({v.id: x for v, x in zip(b.outputs, expected, strict=True)})
        if not has_ended:
            try:
                row, has_ended = _compared(left, right, a, b, ours, theirs, expected, is_parted)
                why = ""
            except InputError as error:  # a weight that no model of this family can have
                row, has_ended = _unreadable(a, expected), True
                why = " ".join(error.message.split())
            is_first = row.verdict == "culprit" and not is_parted
            is_parted = is_parted or is_first
            why = why or _why(left, right, a, b, row) if is_first else ""
            yield row, _guilty(left, a, why) if is_first else None
        left.forget()
        right.forget()


def _compared(
    left: Side, right: Side, a: Node, b: Node, ours: dict[str, Array], theirs: dict[str, Array],
    expected: tuple[Array, ...], is_parted: bool,
) -> tuple[NodeRow, bool]:  # fmt: skip
    """One node, and whether its results have other shapes."""
    got = _run(left, a, ours)
    is_last = [x.shape for x in got] != [x.shape for x in expected]
    depends = any(left.is_parameter(id) for id in a.inputs) or a.attrs != b.attrs
    # The same op with the same attributes and no parameter is the same function.
    local = got if is_last else _run(left, a, theirs) if depends else expected
    ours.update({v.id: x for v, x in zip(a.outputs, got, strict=True)})
    return _row(left, right, a, b, (got, local, expected), is_parted), is_last


def _unreadable(node: Node, expected: tuple[Array, ...]) -> NodeRow:
    return NodeRow(
        id=node.id,
        op=node.op.name,
        phase=node.section,
        n_values=sum(x.size for x in expected),
        cumulative_error=None,
        local_error=None,
        peer_error=None,
        bound=None,
        bound_why="it has no values",
        verdict="culprit",
        c_line=None,
        reason="a weight cannot be read",
    )


def _up_to_logits(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        if node.section not in ("init", "forward") or node.op.name == "cross_entropy":
            return
        yield node


def _run(side: Side, node: Node, values: Mapping[str, Array]) -> tuple[Array, ...]:
    return tuple(as_f64(x) for x in _referred(side, node, values))


def _referred(side: Side, node: Node, values: Mapping[str, Array]) -> tuple[Array, ...]:
    arguments = (
        None if id is None else side.parameter(id) if side.is_parameter(id) else values[id]
        for id in node.inputs
    )
    with np.errstate(all="ignore"):  # a fault makes NaN and infinities, which are judged below
        return node.op.reference(*arguments, **node.attrs)


def _row(
    left: Side,
    right: Side,
    a: Node,
    b: Node,
    values: tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]],
    is_parted: bool,
) -> NodeRow:
    got, local, expected = values
    bound = MODELS_FLOOR.value + left.lost(*a.inputs) + right.lost(*b.inputs)
    errors = distance(got, expected), distance(local, expected)
    # A NaN is no less than anything. What differs in an attribute is another function, even where
    # these tokens do not show it: a window that is longer than they are, for example.
    is_right = errors[1] <= bound and not _changed(a, b)
    is_right = is_right and not any(_other_weights(left, right, a, b))
    verdict = "ok" if is_right else "culprit"
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


def _other_weights(
    left: Side, right: Side, a: Node, b: Node
) -> Iterator[tuple[str, str, float, int]]:
    """The parameters of a node in which a row or a block is not that of the other side.

    What a node makes of some tokens does not show all of them: rows of the embedding that these
    tokens do not read, or a bias that is small beside what the blocks of the matrix lose. With
    each is what a row of it may be off, and the values of a block.
    """
    for ours, theirs in zip(a.inputs, b.inputs, strict=True):
        if ours is None or theirs is None or not left.is_parameter(ours):
            continue
        bound = MODELS_FLOOR.value + left.lost(ours) + right.lost(theirs)
        block = max(left.block(ours), right.block(theirs))
        if not is_same(left.parameter(ours), right.parameter(theirs), bound, block):
            yield ours, theirs, bound, block


def _guilty(left: Side, node: Node, why: str) -> Guilty:
    return Guilty(
        id=node.id,
        op=node.op.name,
        phase=node.section,
        c_file=left.source.where,
        c_line=None,
        kernel_source="",
        why=why,
    )


def _why(left: Side, right: Side, a: Node, b: Node, row: NodeRow) -> str:
    if changed := _changed(a, b):
        return ", ".join(changed)
    if (found := next(_other_weights(left, right, a, b), None)) is not None:
        return explain(left.source, right.source, *found)
    return f"its result is {row.local_error} off on the same inputs, {row.bound:.2g} allowed"


def _changed(a: Node, b: Node) -> list[str]:
    """The attributes in which they differ by more than the float32 that metadata may hold."""
    found = [
        f"{name} is {ours}, not {b.attrs[name]}"
        for name, ours in a.attrs.items()
        if not _is_same(ours, b.attrs[name])
    ]
    return [] if found and a.op.name == "rope_table" and _turn_alike(a, b) else found


def _turn_alike(a: Node, b: Node) -> bool:
    """Whether two tables have the same frequencies and magnitude, in whatever settings.

    Those of Llama 3 are settings of one model in one file and factors of rope in another.
    """
    tables = [node.op.reference(**{**node.attrs, "context": 2}) for node in (a, b)]
    if tables[0][0].shape != tables[1][0].shape:
        return False
    ours, theirs = (np.stack([cos[0], np.arctan2(sin[1], cos[1])]) for cos, sin in tables)
    return bool(np.allclose(ours, theirs, rtol=FACTORS_EXACT, atol=0.0))


def _is_same(a: Attr, b: Attr) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=METADATA_FLOAT.value)
    return a == b


def _beside_transformers(side: Side, inputs: Mapping[str, Array], logits_TV: Array) -> Check:
    """Our float64 logits of a Hugging Face directory, and transformers' own float32 ones.

    These may be off by a multiple of what the graph itself is when it runs in float32.
    """
    source = side.source
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
    try:
        told = logits_of_directory(source.path, inputs["tokens"])
    except GateError as error:
        return Check.missing(**row, reason=error.message)
    found = apart(told, logits_TV)
    honest = apart(_logits_in_float32(side, inputs), logits_TV)
    bound = COMPARE_FACTOR.value * honest + COMPARE_FLOOR.value
    return Check.measured(**row, compared=logits_TV.size, figure=found, relation="<=", bound=bound)


def _logits_in_float32(side: Side, inputs: Mapping[str, Array]) -> Array:
    values = dict(inputs)
    for node in _up_to_logits(side.graph):
        for value, x in zip(node.outputs, _referred(side, node, values), strict=True):
            values[value.id] = x.astype(np.float32) if x.dtype.kind == "f" else x
        side.forget()
    return values["head"]


def distance(a: tuple[Array, ...], b: tuple[Array, ...]) -> float:
    """How far the worst of some values is apart from its reference; NaN where it is none."""
    pairs = zip(a, b, strict=True)
    return max((apart(x, y) if x.shape == y.shape else math.nan for x, y in pairs), key=_nan_last)


def _nan_last(x: float) -> tuple[bool, float]:
    return (x != x, x)


def _number(x: float) -> float | None:
    return x if np.isfinite(x) else None
