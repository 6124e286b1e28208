"""Faults that a converter can have, planted in the tensors of a good target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from conversions.conversion import Array, Scheme, Tensors, halved, interleaved


@dataclass(frozen=True)
class Fault:
    """`says` are words that a diagnosis of it must hold, one of each group apart by `|`."""

    plant: Callable[[Tensors, Scheme], Tensors]
    says: tuple[str, ...] = ()

    def __call__(self, tensors: Tensors, scheme: Scheme) -> Tensors:
        """The tensors with the fault."""
        return self.plant(dict(tensors), scheme)


def exchange(t: Tensors, a: str, b: str) -> Tensors:
    """Two tensors under each other's name."""
    t[a], t[b] = t[b], t[a]
    return t


def moved_layers(t: Tensors, s: Scheme, order: list[int]) -> Tensors:
    """Layer i holds what belongs into layer `order[i]`."""
    moved = dict(t)
    for i, j in enumerate(order):
        here, there = s.layer.format(l=i), s.layer.format(l=j)
        for name in t:
            if here in name:
                moved[name] = t[name.replace(here, there)]
    return moved


def _layers_exchanged(t: Tensors, s: Scheme) -> Tensors:
    order = list(range(s.n_layers))
    order[1], order[2] = 2, 1
    return moved_layers(t, s, order)


def _lexicographic(t: Tensors, s: Scheme) -> Tensors:
    return moved_layers(t, s, [int(n) for n in sorted(str(i) for i in range(s.n_layers))])


def _off_by_one(t: Tensors, s: Scheme) -> Tensors:
    return moved_layers(t, s, [(i - 1) % s.n_layers for i in range(s.n_layers)])


def _swapped(a: str, b: str, layer: int = 1) -> Callable[[Tensors, Scheme], Tensors]:
    def plant(t: Tensors, s: Scheme) -> Tensors:
        return exchange(t, getattr(s, a).format(l=layer), getattr(s, b).format(l=layer))

    return plant


def _norms_swapped(t: Tensors, s: Scheme) -> Tensors:
    return exchange(t, s.attn_norm.format(l=1), s.ffn_norm.format(l=2))


def _o_transposed(t: Tensors, s: Scheme) -> Tensors:
    name = s.o.format(l=1)
    t[name] = np.ascontiguousarray(t[name].T)
    return t


def _undone(w: Array, n_heads: int, s: Scheme) -> Array:
    return halved(w, n_heads) if s.rope == "interleaved" else interleaved(w, n_heads)


def _done(w: Array, n_heads: int, s: Scheme) -> Array:
    return interleaved(w, n_heads) if s.rope == "interleaved" else halved(w, n_heads)


def _each_layer(t: Tensors, s: Scheme, part: str, change: Callable[[Array], Array]) -> Tensors:
    for layer in range(s.n_layers):
        name = getattr(s, part).format(l=layer)
        t[name] = change(t[name])
    return t


def _rope_omitted(t: Tensors, s: Scheme) -> Tensors:
    t = _each_layer(t, s, "q", lambda w: _undone(w, s.n_heads, s))
    return _each_layer(t, s, "k", lambda w: _undone(w, s.n_kv_heads, s))


def _rope_doubled(t: Tensors, s: Scheme) -> Tensors:
    t = _each_layer(t, s, "q", lambda w: _done(w, s.n_heads, s))
    return _each_layer(t, s, "k", lambda w: _done(w, s.n_kv_heads, s))


def _rope_wrong_heads(t: Tensors, s: Scheme) -> Tensors:
    def change(w: Array) -> Array:
        return _done(_undone(w, s.n_kv_heads, s), s.n_heads, s)

    return _each_layer(t, s, "k", change)


def _rope_on_v(t: Tensors, s: Scheme) -> Tensors:
    return _each_layer(t, s, "v", lambda w: _done(w, s.n_kv_heads, s))


def heads_permuted(t: Tensors, s: Scheme, layer: int = 0) -> Tensors:
    """Groups of heads in another order in q, k, v and o together: the function stays the same."""

    def rows(w: Array, axis: int) -> Array:
        groups = np.split(w, s.n_kv_heads, axis)
        return np.ascontiguousarray(np.concatenate(groups[::-1], axis))

    for part, axis in (("q", 0), ("k", 0), ("v", 0), ("o", 1)):
        name = getattr(s, part).format(l=layer)
        t[name] = rows(t[name], axis)
    return t


def is_float(a: Array) -> bool:
    """Whether an array holds floating-point numbers, bfloat16 among them."""
    return a.dtype == ml_dtypes.bfloat16 or np.issubdtype(a.dtype, np.floating)


def _rounded(t: Tensors, s: Scheme) -> Tensors:
    return {
        name: a.astype(ml_dtypes.bfloat16).astype(a.dtype) if is_float(a) else a
        for name, a in t.items()
    }


def _scaled(t: Tensors, s: Scheme) -> Tensors:
    name = s.up.format(l=1)
    t[name] = (t[name].astype(np.float32) * np.float32(1.0001)).astype(t[name].dtype)
    return t


def words(a: Array) -> Array:
    """The same memory as unsigned integers."""
    return a.view(f"u{a.dtype.itemsize}")


def _one_ulp(t: Tensors, s: Scheme) -> Tensors:
    name = s.up.format(l=2)
    t[name] = t[name].copy()
    words(t[name])[-1, -1] += 1
    return t


def _zero_sign(t: Tensors, s: Scheme) -> Tensors:
    name = s.up.format(l=0)
    t[name] = t[name].copy()
    bits = words(t[name])
    assert bits[0, 0] == 0, "the source of this conversion has a zero planted here"
    bits[0, 0] = 1 << (8 * t[name].dtype.itemsize - 1)
    return t


def _vocab_tail_zeroed(t: Tensors, s: Scheme) -> Tensors:
    t[s.embed] = t[s.embed].copy()
    t[s.embed][-4:] = 0
    return t


def _unused_row_replaced(t: Tensors, s: Scheme) -> Tensors:
    t[s.embed] = t[s.embed].copy()
    t[s.embed][-6] = t[s.embed][3]
    return t


# The rows of section 6's table that need no optimizer, in its order, then others of its list.
WEIGHT_FAULTS: dict[str, Fault] = {
    "gate and up swapped in one layer": Fault(_swapped("gate", "up"), ("up|gate|w[13]|wi_[01]",)),
    "two layers exchanged": Fault(_layers_exchanged, ("1|2",)),
    "k and v swapped": Fault(_swapped("k", "v"), ("k|v",)),
    "square o_proj transposed": Fault(_o_transposed, ("transpose",)),
    "two norm gains swapped": Fault(_norms_swapped, ("norm",)),
    "heads permuted consistently": Fault(heads_permuted, ("head|permut|order|halves",)),
    "one leaf times 1.0001": Fault(_scaled, ("1.0001",)),
    "one element 1 ULP up": Fault(_one_ulp, ("1 ULP|one ULP|1 element|one element",)),
    "+0 became -0": Fault(_zero_sign, ("-0.0 where 0.0",)),
    "rows of unused vocabulary zeroed": Fault(_vocab_tail_zeroed),
    "row of an unused token replaced": Fault(
        _unused_row_replaced, ("twice|holds what is claimed of row 3",)
    ),
    "layers off by one": Fault(_off_by_one, ("the previous one|claimed for",)),
}
ROUNDED = {"all leaves rounded to bf16": Fault(_rounded, ("BF16|bf16",))}  # of a float32 target
ROPE_FAULTS: dict[str, Fault] = {
    "rope permutation of q and k omitted": Fault(
        _rope_omitted, ("rope|interleav|not transformed",)
    ),
    "rope permutation doubled": Fault(_rope_doubled, ("rope|interleav",)),
    "rope permutation of k with n_heads": Fault(_rope_wrong_heads, ("rope|interleav|head",)),
    "rope permutation of v": Fault(_rope_on_v, ("rope|interleav",)),
}
LAYER_ORDER = {"layers in the order of their names": Fault(_lexicographic)}
