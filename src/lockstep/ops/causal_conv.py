"""y = silu(conv(x)): a causal convolution of W taps over the rows, each channel on its own.

conv[m] = sum_j w[j] * x[m - (W-1) + j]; rows before a sequence are 0.
Source: transformers modeling_qwen3_5, causal_conv1d_fn; arXiv:2312.00752.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.errors import UsageError
from lockstep.ir import GradientBuilder, Kernel, Node, NotDifferentiable, Op, Tolerance, Type, Value
from lockstep.ir import f32 as f32_type
from lockstep.ir import i32 as i32_type
from lockstep.ir.op import Array, Attr
from lockstep.ops.example import normal, scalar, size, slots_and_positions
from lockstep.ops.expect import expect_rank, expect_type, parts, whole
from lockstep.ops.registry import OPS, source

_SOURCE = source("causal_conv.c")
MOST_TAPS = 8  # CONV_TAPS in causal_conv.c


def _taps(x_MN: Type, w_WN: Type) -> int:
    expect_rank("causal_conv x", x_MN, 2)
    expect_rank("causal_conv w", w_WN, 2)
    expect_type("causal_conv w", w_WN, f32_type(w_WN.dims[0], x_MN.dims[1]))
    W = whole("causal_conv w", w_WN.dims[0])
    if not 2 <= W <= MOST_TAPS:
        raise UsageError(
            f"causal_conv w: expected 2 to {MOST_TAPS} taps, got {W}",
            hint="check the model's configuration",
        )
    return W


def _infer(x_MN: Type, w_WN: Type, *, tokens: int) -> tuple[Type, ...]:
    _taps(x_MN, w_WN)
    parts("causal_conv rows", x_MN.dims[0], tokens)
    return (x_MN,)


def _windows(x_BTN: Array, W: int) -> Array:
    """For each row the W rows that it sees, oldest first, on an axis before the channels."""
    padded = np.pad(x_BTN, ((0, 0), (W - 1, 0), (0, 0)))
    return np.stack([padded[:, j : j + x_BTN.shape[1]] for j in range(W)], 2)


def _silu(c: Array) -> Array:
    return c / (1.0 + np.exp(-c))


def _reference(x_MN: Array, w_WN: Array, *, tokens: int) -> tuple[Array, ...]:
    seen_BTWN = _windows(x_MN.reshape(-1, tokens, x_MN.shape[1]), len(w_WN))
    return (_silu((seen_BTWN * w_WN).sum(2)).reshape(x_MN.shape),)


def _gradient(g: GradientBuilder, node: Node, dy: Value | None) -> tuple[Value | None, ...]:
    x, w = (g.value(i) for i in node.inputs if i)
    id = f"{node.id}@grad"
    dw = g.add(CAUSAL_CONV_GRAD, id, dy, x, w, *g.accumulator(w), **node.attrs)
    return g.value(f"{id}:dx"), dw


def _example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    N = size(case, "N")
    return normal(rng, size(case, "B", "tokens"), N), normal(rng, size(case, "taps"), N)


def _infer_grad(
    dy_MN: Type,
    x_MN: Type,
    w_WN: Type,
    acc_WN: Type | None,
    accumulate: Type | None,
    *,
    tokens: int,
) -> tuple[Type, ...]:
    expect_type("causal_conv_grad dy", dy_MN, x_MN)
    if acc_WN is not None:
        expect_type("causal_conv_grad acc", acc_WN, w_WN)
    return w_WN, *_infer(x_MN, w_WN, tokens=tokens)


def _reference_grad(
    dy_MN: Array,
    x_MN: Array,
    w_WN: Array,
    acc_WN: Array | None,
    accumulate: Array | None,
    *,
    tokens: int,
) -> tuple[Array, ...]:
    seen_BTWN = _windows(x_MN.reshape(-1, tokens, x_MN.shape[1]), len(w_WN))
    conv_BTN = (seen_BTWN * w_WN).sum(2)
    s_BTN = 1.0 / (1.0 + np.exp(-conv_BTN))
    dconv_BTN = dy_MN.reshape(s_BTN.shape) * s_BTN * (1.0 + conv_BTN * (1.0 - s_BTN))
    dw_WN = (dconv_BTN[:, :, None] * seen_BTWN).sum((0, 1))
    if acc_WN is not None and (accumulate is None or accumulate):
        dw_WN = acc_WN + dw_WN
    # Backwards in time, the gradient is the same convolution.
    met_BTWN = _windows(dconv_BTN[:, ::-1], len(w_WN))
    dx_MN = (met_BTWN * w_WN).sum(2)[:, ::-1].reshape(x_MN.shape)
    return dw_WN, dx_MN


def _example_grad(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    x_MN, w_WN = _example(rng, case)
    assert x_MN is not None
    assert w_WN is not None
    return normal(rng, *x_MN.shape), x_MN, w_WN, normal(rng, *w_WN.shape), scalar(1)


def _infer_cached(
    x_MN: Type, w_WN: Type, state_LUN: Type, positions_M: Type, slots_M: Type
) -> tuple[Type, ...]:
    expect_rank("causal_conv_cached state", state_LUN, 3)
    state = f32_type(state_LUN.dims[0], _taps(x_MN, w_WN) - 1, x_MN.dims[1])
    expect_type("causal_conv_cached state", state_LUN, state)
    expect_type("causal_conv_cached positions", positions_M, i32_type(x_MN.dims[0]))
    expect_type("causal_conv_cached slots", slots_M, positions_M)
    return x_MN, state_LUN


def _reference_cached(
    x_MN: Array, w_WN: Array, state_LUN: Array, positions_M: Array, slots_M: Array
) -> tuple[Array, ...]:
    y_MN, state_LUN = np.empty_like(x_MN), state_LUN.copy()
    for m, (x_N, position, slot) in enumerate(zip(x_MN, positions_M, slots_M, strict=True)):
        past_UN = state_LUN[slot] if position else np.zeros(state_LUN.shape[1:])
        seen_WN = np.concatenate([past_UN, x_N[None]])
        y_MN[m] = _silu((seen_WN * w_WN).sum(0))
        state_LUN[slot] = seen_WN[1:]
    return y_MN, state_LUN


def _example_cached(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
    M, N, L, taps = size(case, "M"), size(case, "N"), size(case, "L"), size(case, "taps")
    slots_M, positions_M = slots_and_positions(rng, M, L)
    state_LUN = normal(rng, L, taps - 1, N)
    return normal(rng, M, N), normal(rng, taps, N), state_LUN, positions_M, slots_M


_CASES: tuple[dict[str, Attr], ...] = (
    {"B": 2, "N": 8, "taps": 4, "tokens": 5},
    {"B": 3, "N": 37, "taps": 4, "tokens": 2},
    {"B": 1, "N": 133, "taps": 3, "tokens": 150},
)
_WHY = "at most eight products, an exponential within 2 ulp and fewer than ten roundings"

CAUSAL_CONV = OPS.register(
    Op(
        name="causal_conv",
        inputs=("x_MN", "w_WN"),
        outputs=("y_MN",),
        attrs={"tokens": int},
        infer=_infer,
        reference=_reference,
        gradient=_gradient,
        source=_SOURCE,
        naive="causal_conv_naive",
        kernels=(Kernel(symbol="causal_conv_f32", tiling="tiles"),),
        cases=_CASES,
        tolerance=Tolerance(rel=1e-6, why=_WHY),
        example=_example,
    )
)

CAUSAL_CONV_GRAD = OPS.register(
    Op(
        name="causal_conv_grad",
        inputs=("dy_MN", "x_MN", "w_WN", "acc_WN?", "accumulate?"),
        outputs=("dw_WN", "dx_MN"),
        attrs={"tokens": int},
        infer=_infer_grad,
        reference=_reference_grad,
        gradient=NotDifferentiable("it is itself a gradient; training needs no second order"),
        source=_SOURCE,
        naive="causal_conv_grad_naive",
        kernels=(Kernel(symbol="causal_conv_grad_f32", tiling="tiles"),),
        cases=_CASES,
        tolerance=Tolerance(
            rel=2e-6, why=f"{_WHY}; rows summed in float32 in runs of 64, runs in float64"
        ),
        example=_example_grad,
    )
)

CAUSAL_CONV_CACHED = OPS.register(
    Op(
        name="causal_conv_cached",
        inputs=("x_MN", "w_WN", "state_LUN", "positions_M", "slots_M"),
        outputs=("y_MN", "state_LUN"),
        attrs={},
        infer=_infer_cached,
        reference=_reference_cached,
        gradient=NotDifferentiable("caches exist in inference only"),
        source=_SOURCE,
        naive="causal_conv_cached_naive",
        kernels=(Kernel(symbol="causal_conv_cached_f32", tiling="tiles"),),
        cases=(
            {"M": 1, "N": 8, "L": 2, "taps": 4},
            {"M": 40, "N": 37, "L": 3, "taps": 4},
            {"M": 9, "N": 133, "L": 4, "taps": 2},
        ),
        tolerance=Tolerance(rel=1e-6, why=_WHY),
        example=_example_cached,
    )
)
