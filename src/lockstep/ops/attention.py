"""Causal attention with grouped key and value heads, in training, and its gradient.

Query m of a sequence sees keys 0..m, or of these the last `window` where that is not 0:
o = softmax(scale q k) v; lse is the log of the softmax's denominator, from which the gradient
rebuilds the weights.
Source: arXiv:1706.03762, arXiv:2205.14135.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lockstep.errors import UsageError
from lockstep.ir import (
    Dim,
    GradientBuilder,
    Kernel,
    Node,
    NotDifferentiable,
    Op,
    Tolerance,
    Type,
    Value,
)
from lockstep.ir import f32 as f32_type
from lockstep.ir.op import Array, Attr
from lockstep.ops.example import normal, size
from lockstep.ops.expect import expect_rank, expect_type, parts, whole
from lockstep.ops.registry import OPS, source

_SOURCE = source("attention.c")
_GRAD_SOURCE = source("attention_grad.c")
WIDEST_HEAD = 256  # ATT_HEAD in attention.h


def _check_heads(q_MN: Type, width: Dim, heads: int, kv_heads: int) -> None:
    expect_rank("attention q", q_MN, 2)
    E = whole("attention q", q_MN.dims[1]) // heads
    parts("attention q", q_MN.dims[1], heads)
    parts("attention heads", heads, kv_heads)
    if width != kv_heads * E or E > WIDEST_HEAD:
        raise UsageError(
            f"attention k: expected {kv_heads} heads of {E}, at most {WIDEST_HEAD}, "
            f"got width {width}",
            hint="check the head counts",
        )


def _infer(
    q_MN: Type,
    k_MO: Type,
    v_MO: Type,
    *,
    heads: int,
    kv_heads: int,
    tokens: int,
    window: int,
    scale: float,
) -> tuple[Type, ...]:
    _check_heads(q_MN, k_MO.dims[-1], heads, kv_heads)
    expect_type("attention k", k_MO, f32_type(q_MN.dims[0], k_MO.dims[-1]))
    expect_type("attention v", v_MO, k_MO)
    parts("attention rows", q_MN.dims[0], tokens)
    return q_MN, f32_type(q_MN.dims[0], heads)


def _queries(
    M: int, N: int, heads: int, kv_heads: int, tokens: int, window: int
) -> Iterator[tuple[int, ...]]:
    """Each query: row, the rows it sees (begin, end), head, columns in q and k, their number."""
    E = N // heads
    for m in range(M):
        begin = m - min(m % tokens, window - 1 if window else tokens)
        for h in range(heads):
            yield m, begin, m + 1, h, h * E, h // (heads // kv_heads) * E, E


def _reference(
    q_MN: Array,
    k_MO: Array,
    v_MO: Array,
    *,
    heads: int,
    kv_heads: int,
    tokens: int,
    window: int,
    scale: float,
) -> tuple[Array, ...]:
    M, N = q_MN.shape
    o_MN, lse_MH = np.empty((M, N)), np.empty((M, heads))
    for m, begin, end, h, i, j, E in _queries(M, N, heads, kv_heads, tokens, window):
        score_T = scale * (k_MO[begin:end, j : j + E] @ q_MN[m, i : i + E])
        weight_T = np.exp(score_T - score_T.max())
        o_MN[m, i : i + E] = weight_T / weight_T.sum() @ v_MO[begin:end, j : j + E]
        lse_MH[m, h] = score_T.max() + np.log(weight_T.sum())
    return o_MN, lse_MH


def _gradient(
    g: GradientBuilder, node: Node, do: Value | None, _: Value | None
) -> tuple[Value | None, ...]:
    q, k, v = (g.value(i) for i in node.inputs if i)
    id = f"{node.id}@grad"
    dq = g.add(ATTENTION_GRAD, id, do, q, k, v, *node.outputs, **node.attrs)
    return dq, g.value(f"{id}:dk"), g.value(f"{id}:dv")


def _example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    M, E = size(case, "B", "tokens"), size(case, "E")
    q_MN = normal(rng, M, size(case, "heads") * E)
    k_MO, v_MO = (normal(rng, M, size(case, "kv_heads") * E) for _ in range(2))
    return q_MN, k_MO, v_MO


def _infer_grad(
    do_MN: Type,
    q_MN: Type,
    k_MO: Type,
    v_MO: Type,
    o_MN: Type,
    lse_MH: Type,
    *,
    heads: int,
    kv_heads: int,
    tokens: int,
    window: int,
    scale: float,
) -> tuple[Type, ...]:
    attrs = {"heads": heads, "kv_heads": kv_heads, "tokens": tokens, "window": window}
    forward = _infer(q_MN, k_MO, v_MO, **attrs, scale=scale)
    expect_type("attention_grad do", do_MN, q_MN)
    expect_type("attention_grad o", o_MN, forward[0])
    expect_type("attention_grad lse", lse_MH, forward[1])
    return q_MN, k_MO, v_MO


def _reference_grad(
    do_MN: Array,
    q_MN: Array,
    k_MO: Array,
    v_MO: Array,
    o_MN: Array,
    lse_MH: Array,
    *,
    heads: int,
    kv_heads: int,
    tokens: int,
    window: int,
    scale: float,
) -> tuple[Array, ...]:
    M, N = q_MN.shape
    dq_MN, dk_MO, dv_MO = np.empty((M, N)), np.zeros(k_MO.shape), np.zeros(v_MO.shape)
    for m, begin, end, h, i, j, E in _queries(M, N, heads, kv_heads, tokens, window):
        query, key = slice(i, i + E), (slice(begin, end), slice(j, j + E))
        q_E, do_E, k_TE, v_TE = q_MN[m, query], do_MN[m, query], k_MO[key], v_MO[key]
        weight_T = np.exp(scale * (k_TE @ q_E) - lse_MH[m, h])
        dscore_T = scale * weight_T * (v_TE @ do_E - do_E @ o_MN[m, query])
        dq_MN[m, query] = dscore_T @ k_TE
        dk_MO[key] += np.outer(dscore_T, q_E)
        dv_MO[key] += np.outer(weight_T, do_E)
    return dq_MN, dk_MO, dv_MO


def _example_grad(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    forward = _example(rng, case)
    q_MN, k_MO, v_MO = (a.astype(np.float64) for a in forward if a is not None)
    attrs: dict[str, Any] = {name: case[name] for name in ATTENTION.attrs}
    exact = _reference(q_MN, k_MO, v_MO, **attrs)
    o_MN, lse_MH = (a.astype(np.float32) for a in exact)
    return normal(rng, *o_MN.shape), *forward, o_MN, lse_MH


_CASES: tuple[dict[str, Attr], ...] = (
    {"B": 2, "E": 8, "heads": 4, "kv_heads": 2, "tokens": 5, "window": 0, "scale": 0.06},
    {"B": 3, "E": 12, "heads": 2, "kv_heads": 1, "tokens": 33, "window": 0, "scale": 0.12},
    {"B": 1, "E": 16, "heads": 1, "kv_heads": 1, "tokens": 131, "window": 0, "scale": 0.1},
    {"B": 1, "E": 70, "heads": 3, "kv_heads": 3, "tokens": 66, "window": 0, "scale": 0.09},
    {"B": 2, "E": 6, "heads": 2, "kv_heads": 1, "tokens": 29, "window": 3, "scale": 0.11},
    {"B": 1, "E": 10, "heads": 1, "kv_heads": 1, "tokens": 200, "window": 70, "scale": 0.08},
)
_WHY = "dots of E products, exponentials within 2 ulp, weights summed in float32 key by key"

ATTENTION = OPS.register(
    Op(
        name="attention",
        inputs=("q_MN", "k_MO", "v_MO"),
        outputs=("o_MN", "lse_MH"),
        attrs={"heads": int, "kv_heads": int, "tokens": int, "window": int, "scale": float},
        infer=_infer,
        reference=_reference,
        gradient=_gradient,
        source=_SOURCE,
        naive="attention_naive",
        kernels=(Kernel(symbol="attention_f32", tiling="tiles"),),
        cases=_CASES,
        tolerance=Tolerance(rel=2e-6, why=_WHY),
        example=_example,
    )
)

ATTENTION_GRAD = OPS.register(
    Op(
        name="attention_grad",
        inputs=("do_MN", "q_MN", "k_MO", "v_MO", "o_MN", "lse_MH"),
        outputs=("dq_MN", "dk_MO", "dv_MO"),
        attrs={"heads": int, "kv_heads": int, "tokens": int, "window": int, "scale": float},
        infer=_infer_grad,
        reference=_reference_grad,
        gradient=NotDifferentiable("it is itself a gradient; training needs no second order"),
        source=_GRAD_SOURCE,
        naive="attention_grad_naive",
        kernels=(Kernel(symbol="attention_grad_f32", tiling="tiles"),),
        cases=_CASES,
        tolerance=Tolerance(rel=4e-6, why=_WHY),
        example=_example_grad,
    )
)
