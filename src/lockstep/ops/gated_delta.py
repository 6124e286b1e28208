"""The gated delta rule: linear attention whose state forgets and corrects itself, token by token.

A row of x holds q of every key head, k of every key head and v of every value head; q and k of a
head are made unit vectors. With the state s (E, V) of a value head, 0 before a sequence:
s = decay * s;  s = s + k (beta * (v - s^T k))^T;  o = s^T q / sqrt(E).
Value heads share a key head with their neighbours, or, `tiled`, every key_heads-th one does.
Source: transformers modeling_qwen3_5, torch_recurrent_gated_delta_rule; arXiv:2412.06464.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lockstep.errors import UsageError
from lockstep.ir import GradientBuilder, Kernel, Node, NotDifferentiable, Op, Tolerance, Type, Value
from lockstep.ir import f32 as f32_type
from lockstep.ir import i32 as i32_type
from lockstep.ir.op import Array, Attr
from lockstep.ops.example import normal, size, slots_and_positions
from lockstep.ops.expect import expect_rank, expect_type, parts, whole
from lockstep.ops.registry import OPS, source

WIDEST_KEY = 256  # DELTA_KEY in gated_delta.h
COLUMNS = 32  # DELTA_COLUMNS: columns in one block of a state
RUN, BACK = 16, 16  # DELTA_RUN and DELTA_BACK in gated_delta_grad.c


def blocks(value_width: int, columns: int = COLUMNS) -> int:
    """How many blocks of columns a state has."""
    return -(-value_width // columns)


def _infer_o(
    x_MN: Type, decay_MH: Type, beta_MH: Type, key_heads: int, key_width: int
) -> tuple[Type, int]:
    """The type of o, and the width of a value head."""
    expect_rank("gated_delta x", x_MN, 2)
    expect_rank("gated_delta decay", decay_MH, 2)
    expect_type("gated_delta decay", decay_MH, f32_type(x_MN.dims[0], decay_MH.dims[1]))
    expect_type("gated_delta beta", beta_MH, decay_MH)
    if not 1 <= key_width <= WIDEST_KEY:
        raise UsageError(
            f"gated_delta: expected keys of 1 to {WIDEST_KEY}, got {key_width}",
            hint="check the model's configuration",
        )
    heads = whole("gated_delta decay", decay_MH.dims[1])
    parts("gated_delta value heads", heads, key_heads)
    values = whole("gated_delta x", x_MN.dims[1]) - 2 * key_heads * key_width
    width = parts("gated_delta x beyond q and k", values, heads)
    return f32_type(x_MN.dims[0], values), width


def _infer(
    x_MN: Type,
    decay_MH: Type,
    beta_MH: Type,
    *,
    key_heads: int,
    key_width: int,
    tiled: bool,
    eps: float,
    tokens: int,
) -> tuple[Type, ...]:
    parts("gated_delta rows", x_MN.dims[0], tokens)
    return (_infer_o(x_MN, decay_MH, beta_MH, key_heads, key_width)[0],)


def _units(x_ME: Array, eps: float) -> Array:
    length_M1: Array = np.sqrt((x_ME**2).sum(-1, keepdims=True) + eps)
    return x_ME / length_M1


def _per_value_head(
    x_MN: Array, heads: int, key_heads: int, key_width: int, tiled: bool, eps: float
) -> tuple[Array, Array, Array]:
    """q and k as unit vectors, and v, of every value head."""
    M, wide = len(x_MN), key_heads * key_width
    key_H = np.arange(heads) % key_heads if tiled else np.arange(heads) // (heads // key_heads)
    q_MHE, k_MHE = (
        _units(part.reshape(M, key_heads, key_width), eps)[:, key_H]
        for part in (x_MN[:, :wide], x_MN[:, wide : 2 * wide])
    )
    return q_MHE, k_MHE, x_MN[:, 2 * wide :].reshape(M, heads, -1)


def _step(
    s_HEV: Array, k_HE: Array, v_HV: Array, decay_H: Array, beta_H: Array
) -> tuple[Array, Array]:
    """The states after a token, and what was new in v."""
    u_HV = v_HV - decay_H[:, None] * np.einsum("hev,he->hv", s_HEV, k_HE)
    written_HEV = np.einsum("he,hv->hev", k_HE, beta_H[:, None] * u_HV)
    return decay_H[:, None, None] * s_HEV + written_HEV, u_HV


def _reference(
    x_MN: Array,
    decay_MH: Array,
    beta_MH: Array,
    *,
    key_heads: int,
    key_width: int,
    tiled: bool,
    eps: float,
    tokens: int,
) -> tuple[Array, ...]:
    M, H = decay_MH.shape
    q_MHE, k_MHE, v_MHV = _per_value_head(x_MN, H, key_heads, key_width, tiled, eps)
    o_MHV = np.empty_like(v_MHV)
    s_HEV = np.zeros((H, key_width, v_MHV.shape[2]))
    for m in range(M):
        if m % tokens == 0:
            s_HEV = np.zeros_like(s_HEV)
        s_HEV, _ = _step(s_HEV, k_MHE[m], v_MHV[m], decay_MH[m], beta_MH[m])
        o_MHV[m] = np.einsum("hev,he->hv", s_HEV, q_MHE[m]) / np.sqrt(key_width)
    return (o_MHV.reshape(M, -1),)


def _gradient(g: GradientBuilder, node: Node, do: Value | None) -> tuple[Value | None, ...]:
    id = f"{node.id}@grad"
    dx = g.add(GATED_DELTA_GRAD, id, do, *(g.value(i) for i in node.inputs if i), **node.attrs)
    return dx, g.value(f"{id}:ddecay"), g.value(f"{id}:dbeta")


def _example_rows(
    rng: np.random.Generator, case: Mapping[str, Attr], M: int
) -> tuple[Array, Array, Array]:
    heads, keys = size(case, "value_heads"), size(case, "key_heads", "key_width")
    x_MN = normal(rng, M, 2 * keys + heads * size(case, "D"))
    decay_MH = np.exp(-rng.exponential(0.3, (M, heads))).astype(np.float32)
    return x_MN, decay_MH, rng.uniform(0.1, 1.0, (M, heads)).astype(np.float32)


def _example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    return _example_rows(rng, case, size(case, "B", "tokens"))


def _starts_type(o_MO: Type, value_width: int, key_width: int, tokens: int) -> Type:
    rows, heads = whole("gated_delta rows", o_MO.dims[0]), whole("o", o_MO.dims[1]) // value_width
    runs, columns = blocks(tokens, RUN), blocks(value_width, BACK)
    return f32_type(rows // tokens, heads, columns, runs, key_width, BACK)


def _infer_grad(
    do_MO: Type, x_MN: Type, decay_MH: Type, beta_MH: Type, **attrs: Any
) -> tuple[Type, ...]:
    o_MO, width = _infer_o(x_MN, decay_MH, beta_MH, attrs["key_heads"], attrs["key_width"])
    expect_type("gated_delta_grad do", do_MO, o_MO)
    parts("gated_delta_grad rows", x_MN.dims[0], attrs["tokens"])
    starts_P = _starts_type(o_MO, width, attrs["key_width"], attrs["tokens"])
    return x_MN, decay_MH, beta_MH, starts_P


def _reference_grad(
    do_MO: Array,
    x_MN: Array,
    decay_MH: Array,
    beta_MH: Array,
    *,
    key_heads: int,
    key_width: int,
    tiled: bool,
    eps: float,
    tokens: int,
) -> tuple[Array, ...]:
    M, H = decay_MH.shape
    q_MHE, k_MHE, v_MHV = _per_value_head(x_MN, H, key_heads, key_width, tiled, eps)
    do_MHV = do_MO.reshape(v_MHV.shape) / np.sqrt(key_width)
    width = v_MHV.shape[2]
    do_MHV, v_MHV = (np.pad(a, ((0, 0), (0, 0), (0, -width % BACK))) for a in (do_MHV, v_MHV))
    dq_MHE, dk_MHE, dv_MHV = np.empty_like(q_MHE), np.empty_like(k_MHE), np.empty_like(v_MHV)
    ddecay_MH, dbeta_MH = np.empty((M, H)), np.empty((M, H))
    starts = []
    for first in range(0, M, tokens):
        rows = range(first, first + tokens)
        before, news = [np.zeros((H, key_width, v_MHV.shape[2]))], []
        for m in rows:
            after, u_HV = _step(before[-1], k_MHE[m], v_MHV[m], decay_MH[m], beta_MH[m])
            before.append(after)
            news.append(u_HV)
        starts.append(_blocked(np.stack(before[:-1:RUN], 1)))
        ds_HEV = np.zeros_like(before[0])
        for m in reversed(rows):
            s0_HEV, s_HEV, u_HV = before[m - first], before[m - first + 1], news[m - first]
            decay_H11, beta_H1 = decay_MH[m][:, None, None], beta_MH[m][:, None]
            dq_MHE[m] = np.einsum("hev,hv->he", s_HEV, do_MHV[m])
            ds_HEV = ds_HEV + np.einsum("he,hv->hev", q_MHE[m], do_MHV[m])
            dd_HV = np.einsum("hev,he->hv", ds_HEV, k_MHE[m])
            dv_MHV[m] = beta_H1 * dd_HV
            dbeta_MH[m] = (dd_HV * u_HV).sum(1)
            dk_MHE[m] = np.einsum("hev,hv->he", ds_HEV, beta_H1 * u_HV)
            dk_MHE[m] -= np.einsum("hev,hv->he", decay_H11 * s0_HEV, dv_MHV[m])
            ds_HEV = ds_HEV - np.einsum("he,hv->hev", k_MHE[m], dv_MHV[m])
            ddecay_MH[m] = (ds_HEV * s0_HEV).sum((1, 2))
            ds_HEV = decay_H11 * ds_HEV
    dkeys = _key_gradients(dq_MHE, dk_MHE, x_MN, key_heads, tiled, eps)
    dx_MN = np.concatenate([*dkeys, dv_MHV[:, :, :width].reshape(M, -1)], 1)
    return dx_MN, ddecay_MH, dbeta_MH, np.concatenate(starts)


def _key_gradients(
    dq_MHE: Array, dk_MHE: Array, x_MN: Array, key_heads: int, tiled: bool, eps: float
) -> Iterator[Array]:
    """The gradients of q and k from those of the unit vectors of every value head."""
    M, H, E = dq_MHE.shape
    group, wide = (H // key_heads, key_heads), key_heads * E
    for number, d_MHE in enumerate((dq_MHE, dk_MHE)):
        raw_MGE = x_MN[:, number * wide : (number + 1) * wide].reshape(M, key_heads, E)
        d_MGE = (
            d_MHE.reshape(M, *group, E).sum(1)
            if tiled
            else d_MHE.reshape(M, *group[::-1], E).sum(2)
        )
        unit_MGE = _units(raw_MGE, eps)
        along_MG1 = (d_MGE * unit_MGE).sum(-1, keepdims=True)
        length_MG1 = np.sqrt((raw_MGE**2).sum(-1, keepdims=True) + eps)
        yield ((d_MGE - unit_MGE * along_MG1) / length_MG1).reshape(M, wide)


def _blocked(states: Array) -> Array:
    """States (H, runs, E, V) in blocks of columns, (1, H, J, runs, E, BACK)."""
    H, runs, E, _ = states.shape
    return states.reshape(1, H, runs, E, -1, BACK).transpose(0, 1, 4, 2, 3, 5)


def _example_grad(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    x_MN, decay_MH, beta_MH = _example_rows(rng, case, size(case, "B", "tokens"))
    return normal(rng, len(x_MN), size(case, "value_heads", "D")), x_MN, decay_MH, beta_MH


def _infer_cached(
    x_MN: Type,
    decay_MH: Type,
    beta_MH: Type,
    state_LHJEQ: Type,
    positions_M: Type,
    slots_M: Type,
    *,
    key_heads: int,
    key_width: int,
    tiled: bool,
    eps: float,
) -> tuple[Type, ...]:
    o_MO, width = _infer_o(x_MN, decay_MH, beta_MH, key_heads, key_width)
    expect_rank("gated_delta_cached state", state_LHJEQ, 5)
    heads = (decay_MH.dims[1], blocks(width), key_width, COLUMNS)
    expect_type("gated_delta_cached state", state_LHJEQ, f32_type(state_LHJEQ.dims[0], *heads))
    expect_type("gated_delta_cached positions", positions_M, i32_type(x_MN.dims[0]))
    expect_type("gated_delta_cached slots", slots_M, positions_M)
    return o_MO, state_LHJEQ


def _reference_cached(
    x_MN: Array,
    decay_MH: Array,
    beta_MH: Array,
    state_LHJEQ: Array,
    positions_M: Array,
    slots_M: Array,
    *,
    key_heads: int,
    key_width: int,
    tiled: bool,
    eps: float,
) -> tuple[Array, ...]:
    M, H = decay_MH.shape
    q_MHE, k_MHE, v_MHV = _per_value_head(x_MN, H, key_heads, key_width, tiled, eps)
    L, _, J, E, Q = state_LHJEQ.shape
    s_LHEV = state_LHJEQ.transpose(0, 1, 3, 2, 4).reshape(L, H, E, J * Q)
    v_MHV = np.pad(v_MHV, ((0, 0), (0, 0), (0, J * Q - v_MHV.shape[2])))
    o_MHV = np.empty_like(v_MHV)
    for m, slot in enumerate(slots_M):
        before = s_LHEV[slot] if positions_M[m] else np.zeros_like(s_LHEV[slot])
        s_LHEV[slot], _ = _step(before, k_MHE[m], v_MHV[m], decay_MH[m], beta_MH[m])
        o_MHV[m] = np.einsum("hev,he->hv", s_LHEV[slot], q_MHE[m]) / np.sqrt(key_width)
    width = (x_MN.shape[1] - 2 * key_heads * key_width) // H
    state = s_LHEV.reshape(L, H, E, J, Q).transpose(0, 1, 3, 2, 4)
    return o_MHV[:, :, :width].reshape(M, -1), state


def _example_cached(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    M, L, H, V = (size(case, name) for name in ("M", "L", "value_heads", "D"))
    slots_M, positions_M = slots_and_positions(rng, M, L)
    state_LHJEQ = normal(rng, L, H, blocks(V), size(case, "key_width"), COLUMNS)
    state_LHJEQ[:, :, -1, :, COLUMNS - -V % COLUMNS :] = 0.0  # columns that no value has
    return *_example_rows(rng, case, M), state_LHJEQ, positions_M, slots_M


_ATTRS = {"key_heads": int, "key_width": int, "tiled": bool, "eps": float}


def _case(
    key_heads: int, value_heads: int, key_width: int, tiled: bool, **rest: Attr
) -> dict[str, Attr]:
    heads: dict[str, Attr] = {"key_heads": key_heads, "value_heads": value_heads}
    return {**heads, "key_width": key_width, "tiled": tiled, "eps": 1e-6, **rest}


_CASES = (
    _case(2, 4, 8, False, B=2, D=6, tokens=5),
    _case(2, 4, 12, True, B=3, D=33, tokens=17),
    _case(1, 1, 70, False, B=1, D=40, tokens=50),
    _case(3, 3, 16, False, B=1, D=64, tokens=33),
)
_WHY = (
    "dots of up to 256 products in two float32 chains; a state keeps the rounding of every token, "
    "and decay and beta below 1 never let it grow"
)

GATED_DELTA = OPS.register(
    Op(
        name="gated_delta",
        inputs=("x_MN", "decay_MH", "beta_MH"),
        outputs=("o_MO",),
        attrs={**_ATTRS, "tokens": int},
        infer=_infer,
        reference=_reference,
        gradient=_gradient,
        source=source("gated_delta.c"),
        naive="gated_delta_naive",
        kernels=(Kernel(symbol="gated_delta_f32", tiling="tiles"),),
        cases=_CASES,
        tolerance=Tolerance(rel=2e-6, why=_WHY),
        example=_example,
    )
)

GATED_DELTA_GRAD = OPS.register(
    Op(
        name="gated_delta_grad",
        inputs=("do_MO", "x_MN", "decay_MH", "beta_MH"),
        outputs=("dx_MN", "ddecay_MH", "dbeta_MH", "starts_P"),
        attrs={**_ATTRS, "tokens": int},
        infer=_infer_grad,
        reference=_reference_grad,
        gradient=NotDifferentiable("it is itself a gradient; training needs no second order"),
        source=source("gated_delta_grad.c"),
        naive="gated_delta_grad_naive",
        kernels=(Kernel(symbol="gated_delta_grad_f32", tiling="tiles"),),
        cases=_CASES,
        tolerance=Tolerance(rel=4e-6, why=f"{_WHY}; so does the gradient of the state"),
        example=_example_grad,
    )
)

GATED_DELTA_CACHED = OPS.register(
    Op(
        name="gated_delta_cached",
        inputs=("x_MN", "decay_MH", "beta_MH", "state_LHJEQ", "positions_M", "slots_M"),
        outputs=("o_MO", "state_LHJEQ"),
        attrs=_ATTRS,
        infer=_infer_cached,
        reference=_reference_cached,
        gradient=NotDifferentiable("caches exist in inference only"),
        source=source("gated_delta.c"),
        naive="gated_delta_cached_naive",
        kernels=(Kernel(symbol="gated_delta_cached_f32", tiling="tiles"),),
        cases=(
            _case(2, 4, 8, False, M=1, L=2, D=6),
            _case(2, 4, 12, True, M=40, L=3, D=33),
            _case(1, 1, 70, False, M=9, L=1, D=40),
        ),
        tolerance=Tolerance(rel=2e-6, why=_WHY),
        example=_example_cached,
    )
)
