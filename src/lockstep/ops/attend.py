"""Attention of the rows of several sequences over their caches, in inference.

Row m belongs to sequence `slots[m]` and sees its positions up to `positions[m]`, or of these the
last `window` where that is not 0: o = softmax(scale q k) v. Rows of one sequence at consecutive
positions are worked on together where they lie together. What a row yields has the same bits
whatever else is in the call. `room` is memory, all zeros, that the kernels borrow and give back as
it was: with it, threads share the work on a single row; without it they may only share out heads.
Source: arXiv:1706.03762, arXiv:2205.14135.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lockstep.errors import UsageError
from lockstep.ir import Kernel, NotDifferentiable, Op, Tolerance, Type
from lockstep.ir import i32 as i32_type
from lockstep.ir.op import Array, Attr, Example, Infer, Reference
from lockstep.ops.attention import WIDEST_HEAD
from lockstep.ops.cache import ELEMENTS, GROUP, LANES, Element, cache_types
from lockstep.ops.example import normal, size
from lockstep.ops.expect import expect_rank, expect_type, whole
from lockstep.ops.registry import OPS, source

_SOURCE = source("attend.c")
BLOCK = 256  # ATTEND_KEYS: keys that are worked on at a time
SPLIT_ROWS = 4  # ATTEND_SPLIT_ROWS: up to so many rows are shared out by blocks of keys too


def room_size(heads: int, kv_heads: int, head_dim: int, context: int) -> int:
    """The elements of the room that layers of this shape borrow, one layer after another."""
    blocks, width = -(-context // BLOCK), -(-head_dim // LANES) * LANES
    return SPLIT_ROWS * (kv_heads + heads * blocks * (width + 2))


def dense(caches: tuple[Array, ...], kind: str) -> Array:
    """A cache as [L,G,C,E], in float64, keys and values alike.

    Shapes: keys [L,G,J,E,Q] and scales [L,G,J,S,Q], or values [L,G,C,E] and scales [L,G,C,S].
    """
    wide = [c.astype(np.float64) for c in caches]
    if kind == "keys":
        wide = [c.swapaxes(3, 4).reshape(*c.shape[:2], -1, c.shape[3]) for c in wide]
    if len(wide) == 2:
        wide[0] *= np.repeat(wide[1], GROUP, axis=3)[..., : wide[0].shape[3]]
    return wide[0]


def _infer(element: Element) -> Infer:
    name, n_parts = f"attend_{element}", 2 if element == "q8_0" else 1

    def infer(
        q_MN: Type, *inputs: Type | None, heads: int, kv_heads: int, window: int, scale: float
    ) -> tuple[Type, ...]:
        *caches, positions_M, slots_M, room_P = inputs
        keys, values = caches[0], caches[n_parts]
        assert keys is not None  # only the room may be absent
        assert values is not None
        expect_rank(f"{name} q", q_MN, 2)
        expect_rank(f"{name} values", values, 4)
        L, G, C, E = (whole(f"{name} values", d) for d in values.dims)
        kinds = (("keys", caches[:n_parts]), ("values", caches[n_parts:]))
        for kind, parts in kinds:
            expected = cache_types(kind, element, L, G, E, C)  # type: ignore[arg-type]
            for have, want in zip(parts, expected, strict=True):
                assert have is not None
                expect_type(f"{name} {kind}", have, want)
        if kv_heads != G or heads % G or q_MN.dims[1] != heads * E or E > WIDEST_HEAD:
            raise UsageError(
                f"{name}: expected {heads} heads of {E}, at most {WIDEST_HEAD}, over {kv_heads} "
                f"heads of keys, got q {q_MN} and values {values}",
                hint="check the head counts",
            )
        if scale <= 0 or window < 0:
            raise UsageError(f"{name}: expected scale > 0 and window >= 0, got {scale}, {window}")
        for rows in (positions_M, slots_M):
            assert rows is not None
            expect_type(f"{name} rows", rows, i32_type(q_MN.dims[0]))
        if room_P is not None:
            expect_type(f"{name} room", room_P, i32_type(room_size(heads, G, E, C)))
        return (q_MN,)

    return infer


def _reference(element: Element) -> Reference:
    n_parts = 2 if element == "q8_0" else 1

    def reference(
        q_MN: Array, *inputs: Array, heads: int, kv_heads: int, window: int, scale: float
    ) -> tuple[Array, ...]:
        *caches, positions_M, slots_M, _ = inputs
        k_LGCE = dense(tuple(caches[:n_parts]), "keys")
        v_LGCE = dense(tuple(caches[n_parts:]), "values")
        o_MHE = np.empty((len(q_MN), heads, k_LGCE.shape[3]))
        for m, (position, slot) in enumerate(zip(positions_M, slots_M, strict=True)):
            first = max(0, position - window + 1) if window else 0
            for h, q_E in enumerate(q_MN[m].reshape(heads, -1)):
                seen = (slot, h * kv_heads // heads, slice(first, position + 1))
                score = scale * (k_LGCE[seen] @ q_E)
                weight = np.exp(score - score.max())
                o_MHE[m, h] = weight / weight.sum() @ v_LGCE[seen]
        return (o_MHE.reshape(q_MN.shape),)

    return reference


def _example(element: Element) -> Example:
    def example(rng: np.random.Generator, case: Mapping[str, Attr]) -> tuple[Array | None, ...]:
        M, L, E, depth = (size(case, name) for name in ("M", "slots", "E", "depth"))
        heads, kv_heads = size(case, "heads"), size(case, "kv_heads")
        context = -(-(depth + M) // LANES) * LANES
        cuts = np.sort(rng.integers(0, M + 1, L - 1))
        counts = np.diff(np.concatenate([[0], cuts, [M]]))
        starts, order = rng.integers(0, depth + 1, L), rng.permutation(L)
        positions = np.concatenate([s + np.arange(n) for s, n in zip(starts, counts, strict=True)])
        slots_M = np.repeat(order, counts).astype(np.int32)
        seen = {slot: s + n for slot, s, n in zip(order, starts, counts, strict=True)}
        caches = []
        for kind in ("keys", "values"):
            types = cache_types(kind, element, L, kv_heads, E, context)
            for t in types:
                part = normal(rng, *t.shape({}))
                if element == "q8_0":
                    part = np.abs(part) / 64 if t.dtype == "f16" else np.rint(40 * part)
                caches.append(_hidden(part, kind, seen, t))
        room = np.zeros(room_size(heads, kv_heads, E, context), np.int32)
        q_MN = normal(rng, M, heads * E)
        return q_MN, *caches, positions.astype(np.int32), slots_M, room

    return example


def _hidden(x: Array, kind: str, seen: Mapping[int, int], t: Type) -> Array:
    """The cache with garbage wherever no row may look."""
    for slot in range(len(x)):
        n = seen[slot]
        own = (
            x[slot].swapaxes(2, 3).reshape(len(x[slot]), -1, x.shape[3])
            if kind == "keys"
            else x[slot]
        )
        own[:, n:] = 99 if t.dtype == "i8" else np.nan
        if kind == "keys":
            x[slot] = own.reshape(len(own), -1, LANES, x.shape[3]).swapaxes(2, 3)
    return x.astype({"f32": "f4", "f16": "f2", "i8": "i1"}[t.dtype])


def _infer_room(*, size: int) -> tuple[Type, ...]:
    return (i32_type(size),)


def _reference_room(*, size: int) -> tuple[Array, ...]:
    return (np.zeros(size, np.int32),)


_CASES: tuple[dict[str, Attr], ...] = (
    {
        "M": 3,
        "slots": 2,
        "depth": 11,
        "E": 8,
        "heads": 4,
        "kv_heads": 2,
        "window": 0,
        "scale": 0.06,
    },
    {
        "M": 40,
        "slots": 3,
        "depth": 270,
        "E": 70,
        "heads": 3,
        "kv_heads": 1,
        "window": 0,
        "scale": 0.12,
    },
    {
        "M": 1,
        "slots": 2,
        "depth": 900,
        "E": 32,
        "heads": 2,
        "kv_heads": 1,
        "window": 0,
        "scale": 0.1,
    },
    {
        "M": 4,
        "slots": 3,
        "depth": 600,
        "E": 16,
        "heads": 7,
        "kv_heads": 1,
        "window": 300,
        "scale": 0.2,
    },
    {
        "M": 45,
        "slots": 2,
        "depth": 500,
        "E": 64,
        "heads": 2,
        "kv_heads": 2,
        "window": 20,
        "scale": 0.06,
    },
)


def _register(element: Element) -> None:
    name, is_q8_0 = f"attend_{element}", element == "q8_0"
    keys = ("keys_LGJEQ", "kscale_LGJSQ") if is_q8_0 else ("keys_LGJEQ",)
    values = ("values_LGCE", "vscale_LGCS") if is_q8_0 else ("values_LGCE",)
    OPS.register(
        Op(
            name=name,
            inputs=("q_MN", *keys, *values, "positions_M", "slots_M", "room_P?"),
            outputs=("o_MN",),
            attrs={"heads": int, "kv_heads": int, "window": int, "scale": float},
            infer=_infer(element),
            reference=_reference(element),
            gradient=NotDifferentiable("caches exist in inference only"),
            source=_SOURCE,
            naive=f"{name}_naive",
            kernels=(Kernel(symbol=name, tiling="tiles"),),
            cases=_CASES,
            tolerance=Tolerance(
                rel=2e-6,
                why="dots of E products, exponentials within 2 ulp, weights summed in float32",
            ),
            row_inputs=frozenset({"q_MN", "positions_M", "slots_M"}),
            example=_example(element),
        )
    )


for _element in ELEMENTS:
    _register(_element)

OPS.register(
    Op(
        name="attend_room",
        inputs=(),
        outputs=("room_P",),
        attrs={"size": int},
        infer=_infer_room,
        reference=_reference_room,
        gradient=NotDifferentiable("caches exist in inference only"),
        source=_SOURCE,
        naive="attend_room_naive",
        kernels=(Kernel(symbol="attend_room_fill", tiling="tiles"),),
        cases=({"size": 7}, {"size": 300}),
        tolerance=Tolerance(rel=0.0, why="zeros"),
    )
)
