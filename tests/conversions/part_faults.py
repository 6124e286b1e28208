"""Faults of the toy beside those of faults.py, and of the small parts; by the kind of fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from conversions.conversion import Array, Scheme, Tensors
from conversions.faults import Fault, exchange
from conversions.parts import HEAD_DIM, N_HEADS, N_KV_HEADS, WIDTH

Change = Callable[[Array], Array]
BF16 = ml_dtypes.bfloat16


def on(name: str, change: Change, *says: str) -> Fault:
    """A fault of one tensor of the small parts."""

    def plant(t: Tensors, s: Scheme) -> Tensors:
        return t | {name: np.array(change(t[name]), order="C")}

    return Fault(plant, says)


def _of(part: str, change: Change, *says: str, layer: int = 1) -> Fault:
    """A fault of one tensor of the toy."""

    def plant(t: Tensors, s: Scheme) -> Tensors:
        name = getattr(s, part).format(l=layer)
        return t | {name: np.array(change(t[name]), order="C")}

    return Fault(plant, says)


def put(place: int, word: int | Callable[[int], int]) -> Change:
    """One element with other bits."""

    def change(a: Array) -> Array:
        new = a.copy()
        words = new.reshape(-1).view(f"u{a.itemsize}")
        old = int(words[place])
        words[place] = word(old) if callable(word) else word
        return new

    return change


def _swap(a: str, b: str, *says: str) -> Fault:
    def plant(t: Tensors, s: Scheme) -> Tensors:
        names = (getattr(s, x).format(l=1) for x in (a, b)) if hasattr(s, a) else (a, b)
        return exchange(t, *names)

    return Fault(plant, says)


def _twice(t: Tensors, s: Scheme) -> Tensors:
    for layer in (1, 2):
        t[s.up.format(l=layer)] = t[s.up.format(l=0)]
    return t


def _last_wins(t: Tensors, s: Scheme) -> Tensors:
    for layer in range(s.n_layers):
        t[s.gate.format(l=layer)] = t[s.gate.format(l=s.n_layers - 1)]
    return t


def _without(part: str) -> Fault:
    def plant(t: Tensors, s: Scheme) -> Tensors:
        del t[getattr(s, part).format(l=2)]
        return t

    return Fault(plant, ("got .* that no claim names|no leaf|used by a claim",))


def _moments_missing(t: Tensors, s: Scheme) -> Tensors:
    return {name: a for name, a in t.items() if not name.startswith(("mu/", "nu/"))}


def _initial(a: Array) -> Array:
    return np.random.default_rng(5).normal(0, 0.02, a.shape).astype(a.dtype)


def _other_order(a: Array) -> Array:
    return np.ascontiguousarray(a.T).reshape(a.shape)


def _o_turned(a: Array) -> Array:
    """Columns of o_proj by place in the head first, then by head."""
    return a.reshape(a.shape[0], 4, -1).swapaxes(1, 2).reshape(a.shape)


ULP = "ULP|unit in the last place|bit 0 flipped"
TOY: dict[str, dict[str, Fault]] = {
    "Mapping": {
        "q and o swapped in one layer": _swap("q", "o", "wo|o_proj|wq|q_proj"),
        "one leaf used for three": Fault(_twice, ("layers.0",)),
        "last layer's gate in every layer": Fault(_last_wins, ("layers.3",)),
        "a leaf missing": _without("up"),
        "a leaf too many": Fault(lambda t, s: t | {"params/stale.weight": t[s.embed]}, ("stale",)),
        "a leaf left at its initial values": _of("o", _initial),
        "a leaf left at zero": _of("o", np.zeros_like, "zero"),
    },
    "Axes": {
        "down_proj reshaped instead of transposed": Fault(
            lambda t, s: _changed(t, "params/layers.1.feed_forward.w2.weight", _other_order),
            ("axes|reshape|transposed|seen as",),
        ),
        "Fortran order read as C": _of("gate", _other_order, "axes|reshape|transposed|seen as"),
        "a view read from one element on": _of("v", lambda a: np.roll(a.reshape(-1), -1).reshape(
            a.shape), "shifted"),
    },
    "Attention": {
        "o_proj by place first, then by head": _of("o", _o_turned, "permuted|interleav|axes|order"),
    },
    "Embeddings": {
        "an empty placeholder": Fault(
            lambda t, s: t | {s.embed: np.zeros((0, 32), np.float32)}, ("shape",)
        ),
        "a head that is the embedding": Fault(
            lambda t, s: t | {"params/output.weight": t[s.embed]}, ("tok_embeddings|embed_tokens",)
        ),
    },
    "Values": {
        "first element 1 ULP off": _of("gate", put(0, lambda w: w + 1), ULP, layer=0),
        "truncated to bf16": _of("up", lambda a: (a.view(np.uint32) & 0xFFFF0000).view(a.dtype),
                                 "toward zero|BF16"),
        "f32 through f16": _of("up", lambda a: a.astype(np.float16).astype(a.dtype), "F16"),
        "bytes swapped": _of("k", lambda a: a.byteswap(), "byte"),
        "one element infinite": _of("k", put(5, 0x7F800000), "one element"),
    },
    "State": {"moments missing": Fault(_moments_missing, ("used by a claim|target to have",))},
}  # fmt: skip


def _changed(t: Tensors, name: str, change: Change) -> Tensors:
    return t | {name: np.array(change(t[name]), order="C")}


def _qkv_side_by_side(a: Array) -> Array:
    """Fused one projection after the other, not per group of heads."""
    w = a.reshape(N_KV_HEADS, -1, HEAD_DIM, WIDTH)
    n = N_HEADS // N_KV_HEADS
    return np.concatenate([w[:, :n].reshape(-1, WIDTH), w[:, n].reshape(-1, WIDTH),
                           w[:, n + 1].reshape(-1, WIDTH)])  # fmt: skip


def _text_order(n: int) -> list[int]:
    return [int(text) for text in sorted(map(str, range(n)))]


def _flushed(a: Array) -> Array:
    new = a.copy()
    words = new.view(np.uint16)
    words[(words & 0x7F80) == 0] &= 0x8000
    return new


def _retyped(name: str, dtype: Any) -> Fault:
    return on(name, lambda a: a.view(dtype), "type")


def _tail(value: float) -> Change:
    return lambda a: np.concatenate([a[:13], np.full((3, WIDTH), value, np.float32)])


def _false_tie(t: Tensors, s: Scheme) -> Tensors:
    return t | {"head": t["router"][:10], "head_again": t["router"][:10]}


PARTS: dict[str, dict[str, Fault]] = {
    "Axes": {
        "stacked on axis 0, not 1": on("scan", lambda a: a.swapaxes(0, 1), r"stack\(0\)|axis"),
        "convolution not transposed": on(
            "conv", lambda a: a.transpose(0, 3, 1, 2), "not applied|not transformed|axes"),
        "convolution transposed twice": on(
            "conv", lambda a: a.transpose(0, 2, 3, 1), "applied twice|axes"),
    },
    "Attention": {
        "fused qkv side by side, not per group": on(
            "qkv", _qkv_side_by_side, "side by side|concat"),
        "heads of fused qkv in another order": on(
            "qkv", lambda a: np.roll(a.reshape(-1, HEAD_DIM, WIDTH), 1, 0).reshape(a.shape),
            "rolled|order|permut"),
    },
    "MLP and experts": {
        "halves of gate_up reversed": on(
            "gate_up", lambda a: np.roll(a, 24, 0), "halves|exchanged"),
        "gate_up interleaved": on("gate_up", lambda a: a.reshape(2, 24, 16).swapaxes(0, 1).reshape(
            a.shape), r"interleaved|concat\(1\)"),
        "experts in the order of their names": on(
            "experts", lambda a: a[_text_order(12)], "text|lexicographic"),
        "experts rotated by one": on("experts", lambda a: np.roll(a, 1, 0), "rolled"),
        "two experts exchanged": on(
            "experts", lambda a: a[[1, 0, *range(2, 12)]], "exchanged|place"),
        "layers in cycles": on("scan", lambda a: a[:, [0, 2, 4, 1, 3]], "permut|order"),
        "shared expert left out": Fault(
            lambda t, s: {n: a for n, a in t.items() if n != "shared"}, ("shared",)),
        "router rows permuted, experts not": on("router", lambda a: np.roll(a, 1, 0), "rolled"),
    },
    "Embeddings": {
        "padding of another value": on("tokens", _tail(1.0), "padded|padding"),
        "padding at the other end": on("tokens", lambda a: np.roll(a, 3, 0), "padding|rolled"),
        "padding missing": on("tokens", lambda a: a[:13], "shape"),
        "padding twice": on("tokens", lambda a: np.pad(a, ((0, 3), (0, 0))), "shape"),
        "tie broken": on("head_again", put(3, lambda w: w ^ 1), "tied"),
        "false tie": Fault(_false_tie),
    },
    "Values": {
        "one bit in each byte of an element": Fault(
            lambda t, s: _changed(t, "odd", _four_bits), ("elements",)),
        "sign of a zero": on("odd", put(0, 1 << 31), "-0.0 where 0.0"),
        "payload of a NaN": on("odd", put(2, 0x7FC00006), "one element"),
        "signalling NaN made quiet": on("odd", put(3, 0x7FC00001), "one element"),
        "sign of a NaN": on("odd", put(2, 0xFFC00005), "one element"),
        "infinity made the largest number": on("odd", put(5, 0x7F7FFFFF), "one element"),
        "subnormal numbers flushed": on("half", _flushed, "subnormal|elements"),
        "bf16 through f16": on("half", lambda a: a.astype(np.float16).astype(BF16), "F16|element"),
        "rounded twice, f64 to f32 to bf16": on(
            "wide", put(0, 0x3F80), "F32 first|one element|rounded"),
        "one rounding cut short": on("single", put(7, lambda w: w - 1), "one element"),
        "int32 through float32": on(
            "ids", lambda a: a.astype(np.float32).astype(np.int32), "float32|F32|element"),
        "int8 zero point off by one": on("int8", lambda a: a + np.int8(1), "1 added"),
        "e4m3fnuz in place of e4m3fn": _retyped("fp8.0.w", ml_dtypes.float8_e4m3fnuz),
        "scales not moved with their weights": _swap("fp8.0.scale", "fp8.1.scale", "fp8"),
        "one bit of float8": on("fp8.1.w", put(9, lambda w: w ^ 4), "bit 2"),
    },
    "State": {
        "key of the random numbers": on("rng_key", put(1, 43)),
        "live and averaged weights exchanged": _swap("live", "ema", "live|ema"),
        "count of the schedule": on("count", lambda a: a + 1),
    },
}  # fmt: skip


def _four_bits(a: Array) -> Array:
    for byte in range(4):
        a = put(10 + byte, lambda word, byte=byte: word ^ 1 << 8 * byte)(a)  # type: ignore[misc]
    return a
