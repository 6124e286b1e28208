"""What an exported model answers, in three implementations, against float64 and each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockstep.artifacts import Check
from lockstep.build import Model
from lockstep.formats.dequantise import dequantise
from lockstep.formats.quantise import quantise
from lockstep.ir import Array, InferenceShape
from lockstep.ir.interpret import run_reference
from lockstep.ops.quantize_rows import BLOCK, quantized
from lockstep.passes.quantize import FLOAT_BITS
from lockstep.proof.tolerances import COMPARE_FACTOR, COMPARE_FLOOR

_FAINT = -60.0  # logarithms of probabilities that float32 sums to nothing
Rows = Callable[[str, Array], Array]  # (a weight, the rows that meet it) -> these, rounded


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one implementation gave: greedy tokens, and the logits that each was chosen from.

    Shapes: logits (tokens, V)
    """

    tokens: list[int]
    logits: Array


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Logits in float64, and how far from them four kinds of honest arithmetic may be.

    `band` is for float32; `own` for our program, which also rounds the rows that meet a weight of
    few bits, to int16 or int8; `origin` for that of the model that was exported, whose weights may
    have fewer; `wide` for llama.cpp, which rounds rows to the type of a weight's elements.
    Shapes: logits (tokens, V)
    """

    logits: Array
    band: float
    own: float
    origin: float
    wide: float


def truth_of(
    model: Model,
    parameters: Mapping[str, Array],
    prompt: Sequence[int],
    tokens: Sequence[int],
    *,
    stored: Mapping[str, str],
    bits: Mapping[str, int],
    origin_bits: Mapping[str, int],
) -> Truth:
    """The logits from which each of `tokens` is chosen, and their bands.

    A band is a multiple of the error that the same graph makes in float64 when its values are
    rounded: each to float32, and the rows before a weight as well: to the type in which it is
    `stored` for the wide one, to so many `bits` for our own. A recurrence is computed in float32:
    its one node holds a state and a correction for every token, and all tokens behind read what
    these lost.
    """
    ids = [*prompt, *tokens[:-1]]

    def logits(rounding: _Rounding | None) -> Array:
        return _interpreted(model, parameters, ids, rounding)[len(prompt) - 1 :]

    def off(rounding: _Rounding) -> float:
        return COMPARE_FACTOR.value * float(np.abs(logits(rounding) - exact).max()) + floor

    exact = logits(None)
    floor = COMPARE_FLOOR.value * float(np.abs(exact).max())
    band = off(_Rounding())

    def of_ours(bits: Mapping[str, int]) -> float:
        if all(n == FLOAT_BITS for n in bits.values()):
            return band
        return max(band, off(_Rounding(rows=lambda id, rows: _as_ours(rows, bits[id]))))

    own = of_ours(bits)
    origin = own if origin_bits == bits else of_ours(origin_bits)
    theirs = _Rounding(rows=lambda id, rows: _as_stored(rows, stored[id], id), gelu_in_halves=True)
    return Truth(logits=exact, band=band, own=own, origin=origin, wide=max(band, off(theirs)))


def _as_ours(rows_MK: Array, bits: int) -> Array:
    """What our kernels hold of rows that meet a weight."""
    if bits == FLOAT_BITS:
        return rows_MK
    q_MK, scale_MJ, _ = quantized(rows_MK, bits)
    blocks = q_MK.reshape(*scale_MJ.shape, BLOCK) * scale_MJ[..., None].astype(np.float64)
    return blocks.reshape(rows_MK.shape)


def _as_stored(rows_MK: Array, kind: str, where: str) -> Array:
    """What ggml's kernels hold of rows that meet a weight of this type."""
    rows = np.ascontiguousarray(rows_MK, np.float32)
    return dequantise(quantise(rows, kind, where), kind)


@dataclass(frozen=True, kw_only=True)
class _Rounding:
    """What is rounded beside each value, which becomes a float32: rows before a weight, gelu."""

    rows: Rows = lambda id, rows: rows
    gelu_in_halves: bool = False  # as ggml rounds what meets its table of gelu


def _interpreted(
    model: Model,
    parameters: Mapping[str, Array],
    ids: Sequence[int],
    rounding: _Rounding | None,
) -> Array:
    """Logits after each token: in float64, or rounded."""
    n = len(ids)
    shape = InferenceShape(context=n, rows=n, outs=n, cache="f32")
    graph = model.family.inference_graph(model.config, shape)
    counted = np.arange(n, dtype=np.int32)
    values: dict[str, Array] = {
        id: np.zeros(entry.value.type.shape(graph.symbols))
        for id, entry in graph.inputs.items()
        if id not in parameters
    }
    values |= {"tokens": np.asarray(ids, np.int32), "positions": counted, "wanted": counted,
               "slots": np.zeros(n, np.int32)}  # fmt: skip
    states = {value.id for value in graph.with_role("state")}
    for node in graph.nodes:
        given = {
            id: values[id] if id in values else np.asarray(parameters[id], np.float64)
            for id in node.inputs
            if id is not None
        }
        first, second = (*map(str, node.inputs), "", "")[:2]
        in_halves = node.op.name == "gelu_mul" and rounding is not None and rounding.gelu_in_halves
        if in_halves:
            given[first] = _rounded(given[first], np.float16)
        if node.op.name == "linear" and rounding is not None:
            given[first] = rounding.rows(second, given[first])
        if rounding is not None and not states.isdisjoint(given):
            given = {id: _as_f32(x) for id, x in given.items()}
        for value, array in zip(node.outputs, run_reference(node, given), strict=True):
            if in_halves:
                array = _rounded(array, np.float16)
            is_rounded = rounding is not None and array.dtype.kind == "f"
            values[value.id] = _rounded(array, np.float32) if is_rounded else array
    return values[graph.outputs["logits"]]


def _as_f32(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _rounded(array: Array, kind: type[np.floating[Any]]) -> Array:
    return array.astype(kind).astype(np.float64)


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
    id: str, who: str, tokens: Sequence[int], ours: Sequence[int], truth: Truth, bound: float,
    against: str,
) -> Check:  # fmt: skip
    """Whether the greedy tokens are the same, up to a choice that is a tie within the bound."""
    n = next((i for i, (a, b) in enumerate(zip(tokens, ours, strict=False)) if a != b), None)
    reason, bad, compared = "", 0, min(len(tokens), len(ours))
    if n is not None:
        row = truth.logits[n]
        gap, compared = abs(float(row[tokens[n]] - row[ours[n]])), n + 1  # this choice as well
        is_tie = gap <= 2 * bound
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
