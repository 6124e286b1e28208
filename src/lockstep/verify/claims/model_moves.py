"""The moves that models need: rotary halves, heads, fused QKV, fused gate and up.

All are made of the plain moves, so they are exact and can be turned round like those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lockstep.errors import UsageError
from lockstep.verify.claims.moves import (
    Array,
    axis_of,
    concat,
    permute,
    reshape,
    same_kind,
    slice_,
    stack,
    take,
    text,
)

QkvLayout = Literal["concat", "per_head", "per_kv_group"]
GateUpOrder = Literal["gate_up", "up_gate", "interleaved"]


def split_axis(array: Array, axis: int, sizes: Sequence[int]) -> Array:
    """One axis as several, slowest first."""
    return reshape(array, *array.shape[:axis], *sizes, *array.shape[axis + 1 :])


def merge_axes(array: Array, axis: int, n: int) -> Array:
    """`n` axes as one."""
    size = 1
    for length in array.shape[axis : axis + n]:
        size *= length
    return reshape(array, *array.shape[:axis], size, *array.shape[axis + n :])


def _per_head(array: Array, axis: int, n_heads: int, step: str) -> int:
    n = array.shape[axis]
    if n_heads < 1 or n % n_heads:
        raise UsageError(
            f"{step}: expected a length that {n_heads} heads divide on axis {axis} of "
            f"{text(array.shape)}, got {n}",
            hint="check the number of heads; keys and values may have fewer than queries",
        )
    return n // n_heads


# --- rotary embeddings and heads


def rope_half_to_interleaved(array: Array, n_heads: int, axis: int = 0, rotary: int = 0) -> Array:
    """Each head's rows from two halves (Hugging Face) to pairs (Meta, GGUF).

    With `rotary`, only so many rows at the beginning of each head are moved.
    Source: ggml-org/llama.cpp, conversion of Llama, `permute`
    """
    return _rope(array, n_heads, axis, rotary, "rope_half_to_interleaved", to_pairs=True)


def rope_interleaved_to_half(array: Array, n_heads: int, axis: int = 0, rotary: int = 0) -> Array:
    """Each head's rows from pairs (Meta, GGUF) to two halves (Hugging Face).

    With `rotary`, only so many rows at the beginning of each head are moved.
    Source: huggingface/transformers, convert_llama_weights_to_hf.py, `permute`
    """
    return _rope(array, n_heads, axis, rotary, "rope_interleaved_to_half", to_pairs=False)


def _rope(
    array: Array, n_heads: int, axis: int, rotary: int, step: str, *, to_pairs: bool
) -> Array:
    k = axis_of(array, axis, step)
    size = _per_head(array, k, n_heads, step)
    moved = rotary or size
    if moved % 2 or not 0 < moved <= size:
        raise UsageError(
            f"{step}: expected an even number of rotary rows up to {size}, got {moved}",
            hint="check n_heads and rotary",
        )
    heads = split_axis(array, k, (n_heads, size))
    turned = slice_(heads, k + 1, 0, moved) if moved < size else heads
    turned = split_axis(turned, k + 1, (2, moved // 2) if to_pairs else (moved // 2, 2))
    axes = list(range(len(turned.shape)))
    axes[k + 1], axes[k + 2] = k + 2, k + 1
    turned = merge_axes(permute(turned, *axes), k + 1, 2)
    if moved < size:
        turned = concat([turned, slice_(heads, k + 1, moved, size)], k + 1)
    return merge_axes(turned, k, 2)


def heads(array: Array, axis: int, n_heads: int, order: Sequence[int]) -> Array:
    """The heads along an axis in another order: head i of the result is head order[i]."""
    k = axis_of(array, axis, "heads")
    size = _per_head(array, k, n_heads, "heads")
    return merge_axes(take(split_axis(array, k, (n_heads, size)), k, order), k, 2)


# --- fused projections


def qkv(arrays: Sequence[Array], n_heads: int, n_kv_heads: int, layout: QkvLayout) -> Array:
    """Joins query, key and value on axis 0.

    `concat`: all queries, all keys, all values. `per_head`: q, k and v of each head in turn.
    `per_kv_group`: the queries of each group of key-value heads, then its k and its v.
    """
    first = same_kind(arrays, "qkv")
    if len(arrays) != 3:
        raise UsageError(
            f"qkv: expected three arrays, q, k and v, got {len(arrays)}",
            hint="name the sources in this order",
        )
    for array, n in zip(arrays, (n_heads, n_kv_heads, n_kv_heads), strict=True):
        _per_head(array, axis_of(array, 0, "qkv"), n, "qkv")
    sizes = [
        a.shape[0] // n for a, n in zip(arrays, (n_heads, n_kv_heads, n_kv_heads), strict=True)
    ]
    if len(set(sizes)) != 1:
        raise UsageError(
            f"qkv: expected heads of one size, got {', '.join(map(str, sizes))} rows in a head "
            f"of q, k and v",
            hint="check n_heads and n_kv_heads",
        )
    if _is_concat(first, n_heads, n_kv_heads, layout, "qkv"):
        return concat(arrays, 0)
    groups = [split_axis(a, 0, (n_kv_heads, a.shape[0] // n_kv_heads)) for a in arrays]
    return merge_axes(concat(groups, 1), 0, 2)


def unqkv(
    array: Array,
    part: Literal["q", "k", "v"],
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    layout: QkvLayout,
) -> Array:
    """Takes the query, key or value out of a fused projection on axis 0."""
    axis_of(array, 0, "unqkv")
    rows = (n_heads + 2 * n_kv_heads) * head_dim
    if array.shape[0] != rows:
        raise UsageError(
            f"unqkv: expected (n_heads + 2 n_kv_heads) head_dim = {rows} rows, "
            f"got {text(array.shape)}",
            hint="check the facts n_heads, n_kv_heads and head_dim",
        )
    if _is_concat(array, n_heads, n_kv_heads, layout, "unqkv"):
        start, n = _part(part, n_heads, n_kv_heads)
        return slice_(array, 0, start * head_dim, (start + n) * head_dim)
    start, n = _part(part, n_heads // n_kv_heads, 1)
    groups = split_axis(array, 0, (n_kv_heads, rows // n_kv_heads))
    return merge_axes(slice_(groups, 1, start * head_dim, (start + n) * head_dim), 0, 2)


def _part(part: str, n_q: int, n_kv: int) -> tuple[int, int]:
    return {"q": (0, n_q), "k": (n_q, n_kv), "v": (n_q + n_kv, n_kv)}[part]


def _is_concat(array: Array, n_heads: int, n_kv_heads: int, layout: str, step: str) -> bool:
    """Whether the parts lie one after another; checks that the other layouts are possible."""
    if layout == "per_head" and n_heads != n_kv_heads:
        raise UsageError(
            f"{step}: expected as many key-value heads as heads for layout=per_head, "
            f"got {n_heads} and {n_kv_heads}",
            hint="use layout=per_kv_group",
        )
    if n_kv_heads < 1 or n_heads % n_kv_heads:
        raise UsageError(
            f"{step}: expected n_kv_heads to divide n_heads, got {n_heads} and {n_kv_heads}",
            hint="check the facts n_heads and n_kv_heads",
        )
    return layout == "concat"


def gate_up(arrays: Sequence[Array], order: GateUpOrder, axis: int = 0) -> Array:
    """Joins gate and up, which are named in this order.

    `gate_up` and `up_gate` are halves; `interleaved` has a row of the gate, a row of up in turn.
    """
    first = same_kind(arrays, "gate_up")
    if len(arrays) != 2 or arrays[0].shape != arrays[1].shape:
        shapes = ", ".join(text(a.shape) for a in arrays[:4])
        raise UsageError(
            f"gate_up: expected two arrays of one shape, gate and up, got {shapes}",
            hint="name the sources in this order",
        )
    k = axis_of(first, axis, "gate_up")
    if order == "interleaved":
        return merge_axes(stack(arrays, k + 1), k, 2)
    return concat(arrays if order == "gate_up" else arrays[::-1], k)


def ungate_up(
    array: Array, part: Literal["gate", "up"], order: GateUpOrder, axis: int = 0
) -> Array:
    """Takes gate or up out of a fused projection."""
    k = axis_of(array, axis, "ungate_up")
    n = array.shape[k]
    if n % 2:
        raise UsageError(
            f"ungate_up: expected an even length on axis {axis} of {text(array.shape)}, got {n}",
            hint="name the axis on which the two are joined",
        )
    if order == "interleaved":
        pairs = slice_(split_axis(array, k, (n // 2, 2)), k + 1, *_nth(part == "up", 1))
        return merge_axes(pairs, k, 2)
    return slice_(array, k, *_nth((part == "up") == (order == "gate_up"), n // 2))


def _nth(second: bool, size: int) -> tuple[int, int]:
    return (size, 2 * size) if second else (0, size)
