"""What an exported model answers, in three implementations, against float64 and each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lockstep.artifacts import Check
from lockstep.build import Model
from lockstep.formats.dequantise import dequantise
from lockstep.formats.quantise import quantise
from lockstep.ir import Array, InferenceShape
from lockstep.ir.interpret import run_reference
from lockstep.proof.tolerances import COMPARE_FACTOR, COMPARE_FLOOR

_FAINT = -60.0  # logarithms of probabilities that float32 sums to nothing


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one implementation gave: greedy tokens, and the logits that each was chosen from.

    Shapes: logits (tokens, V)
    """

    tokens: list[int]
    logits: Array


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Logits in float64, and how far from them two kinds of honest arithmetic may be.

    `band` is for float32; `wide` for programs that also round the rows that meet a weight, to the
    type of its elements, as llama.cpp does and our kernels do for Q8_0.
    Shapes: logits (tokens, V)
    """

    logits: Array
    band: float
    wide: float


def truth_of(
    model: Model,
    parameters: Mapping[str, Array],
    stored: Mapping[str, str],
    prompt: Sequence[int],
    tokens: Sequence[int],
) -> Truth:
    """The logits from which each of `tokens` is chosen, and their bands.

    A band is a multiple of the error that the same graph makes in float64 when its values are
    rounded: each to float32, and for the wide one the rows before a weight to its type as well.
    """
    ids = [*prompt, *tokens[:-1]]
    exact, rounded, coarse = (
        _interpreted(model, parameters, ids, types)[len(prompt) - 1 :]
        for types in (None, {}, stored)
    )
    floor = COMPARE_FLOOR.value * float(np.abs(exact).max())
    band, wide = (
        COMPARE_FACTOR.value * float(np.abs(each - exact).max()) + floor
        for each in (rounded, coarse)
    )
    return Truth(logits=exact, band=band, wide=max(band, wide))


def _interpreted(
    model: Model,
    parameters: Mapping[str, Array],
    ids: Sequence[int],
    stored: Mapping[str, str] | None,
) -> Array:
    """Logits after each token, with rounding where types are given."""
    n = len(ids)
    shape = InferenceShape(context=n, rows=n, outs=n, cache="f32")
    graph = model.family.inference_graph(model.config, shape)
    counted = np.arange(n, dtype=np.int32)
    values: dict[str, Array] = {
        id: np.zeros(entry.value.type.shape(graph.symbols)) for id, entry in graph.inputs.items()
    }
    values |= {id: np.asarray(array, np.float64) for id, array in parameters.items()}
    values |= {"tokens": np.asarray(ids, np.int32), "positions": counted, "wanted": counted,
               "slots": np.zeros(n, np.int32)}  # fmt: skip
    for node in graph.nodes:
        given = values
        kind = (stored or {}).get(str(node.inputs[1])) if node.op.name == "linear" else None
        if kind is not None:
            x = str(node.inputs[0])
            rows = np.ascontiguousarray(values[x], np.float32)
            given = {**values, x: dequantise(quantise(rows, kind, node.id), kind)}
        if node.op.name == "gelu_mul" and stored:
            given = {**values, **{str(id): _halves(values[str(id)]) for id in node.inputs[:1]}}
        for value, array in zip(node.outputs, run_reference(node, given), strict=True):
            if node.op.name == "gelu_mul" and stored:
                array = _halves(array)
            is_float = stored is not None and array.dtype.kind == "f"
            values[value.id] = array.astype(np.float32).astype(np.float64) if is_float else array
    return values[graph.outputs["logits"]]


def _halves(array: Array) -> Array:
    """Rounded as ggml rounds what meets its table of gelu."""
    return array.astype(np.float16).astype(np.float64)


def logits_check(
    id: str, who: str, answers: Answers, truth: Truth, ours: Sequence[int], bound: float
) -> Check:
    """The largest difference in logits at the steps before which all tokens are the same."""
    n = _same_steps(answers.tokens, ours)
    difference = np.abs(answers.logits[:n] - truth.logits[:n])
    return Check.measured(
        id=id, name=f"logits of {who}: largest difference", against="the graph in float64",
        compared=difference.size, unit="logits", relation="<=", bound=bound,
        figure=float(difference.max()) if difference.size else np.inf,
    )  # fmt: skip


def probabilities_check(
    id: str, who: str, found: Sequence[Mapping[int, float]], tokens: Sequence[int],
    truth: Truth, ours: Sequence[int],
) -> Check:  # fmt: skip
    """The same for logarithms of probabilities, less that of each step's likeliest token.

    So what is compared are differences of logits, which move by twice as much as logits do, and not
    the sum over the vocabulary, which llama.cpp's server adds up term by term in float32.
    """
    n = _same_steps(tokens, ours)
    likeliest = truth.logits.argmax(axis=1)
    exact = truth.logits - truth.logits.max(axis=1, keepdims=True)
    differences = [
        abs(value - found[step][likeliest[step]] - exact[step, token])
        for step in range(n)
        for token, value in found[step].items()
        if exact[step, token] > _FAINT and likeliest[step] in found[step]
    ]
    return Check.measured(
        id=id, name=f"log-probabilities of {who}: largest difference",
        against="the graph in float64", compared=len(differences), unit="numbers", relation="<=",
        bound=2 * truth.wide, figure=float(np.max(differences)) if differences else np.inf,
    )  # fmt: skip


def greedy_check(
    id: str, who: str, tokens: Sequence[int], ours: Sequence[int], truth: Truth, against: str
) -> Check:
    """Whether the greedy tokens are the same, up to a choice that is a tie within the band."""
    n = next((i for i, (a, b) in enumerate(zip(tokens, ours, strict=False)) if a != b), None)
    reason, bad, compared = "", 0, min(len(tokens), len(ours))
    if n is not None:
        row = truth.logits[n]
        gap, compared = abs(float(row[tokens[n]] - row[ours[n]])), n
        is_tie = gap <= 2 * truth.wide
        bad = 0 if is_tie else 1
        reason = f"token {n}: {tokens[n]} against {ours[n]}, apart by {gap:.3g} in float64"
    elif len(tokens) != len(ours):
        bad, reason = 1, f"{len(tokens)} tokens against {len(ours)}"
    return Check.measured(
        id=id, name=f"greedy text of {who}: tokens that differ", against=against,
        compared=compared, unit="tokens", figure=bad, relation="==", bound=0, reason=reason,
    )  # fmt: skip


def _same_steps(tokens: Sequence[int], ours: Sequence[int]) -> int:
    """For how many steps the tokens before were the same."""
    for i, (a, b) in enumerate(zip(tokens, ours, strict=False)):
        if a != b:
            return i + 1
    return min(len(tokens), len(ours))
