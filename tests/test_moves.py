"""Steps of claim files, held to numpy, and to other people's converters, doing the same."""

from __future__ import annotations

import struct
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lockstep.errors import UsageError
from lockstep.formats.leaf import ELEMENT_TYPES, ElementType
from lockstep.verify.claims.constants import constant
from lockstep.verify.claims.expressions import parse_call
from lockstep.verify.claims.moves import Array
from lockstep.verify.claims.steps import STEPS, apply, check_call, names_of
from lockstep.verify.layouts.layout import Layout, whole

Numbers = NDArray[np.int64]
Draw = st.DrawFn
I64 = ELEMENT_TYPES["I64"]
Q8_0 = ElementType("Q8_0", 34, 32)


def executed(layout: Layout, sources: dict[str, Numbers]) -> Numbers:
    """What a layout says, one element after another; fills are read as integers."""
    out = np.full(layout.n_elements, np.iinfo(np.int64).min)
    for piece in layout.pieces:
        src, dst = np.array([piece.src]), np.array([piece.dst])
        for loop in piece.loops:
            src = (src[:, None] + np.arange(loop.n) * loop.src).ravel()
            dst = (dst[:, None] + np.arange(loop.n) * loop.dst).ravel()
        if piece.leaf is None:
            out[dst] = int.from_bytes(piece.fill, "little", signed=True)
        else:
            out[dst] = sources[piece.leaf].ravel()[src]
    return out.reshape(layout.shape)


def start(name: str, shape: tuple[int, ...], element: ElementType = I64) -> Array:
    grid = (*shape[:-1], shape[-1] // element.n_numbers) if element.n_numbers > 1 else shape
    return Array(whole(name, grid), element, element)


def step(text: str, *arrays: Array, **context: object) -> Array:
    """The one array that a step makes."""
    call = parse_call(text, "test")
    check_call(call, "test")
    (made,), _ = apply(call, arrays, context)
    return made


def numbers(*shape: int) -> Numbers:
    return np.arange(prod(shape), dtype=np.int64).reshape(shape)


# --- numpy's way of doing each step


def half_to_pairs(array: Numbers, n_heads: int) -> Numbers:
    """Row by row: pair i of a head is row i of its first half, then row i of its second."""
    size = len(array) // n_heads
    order = [
        head * size + part * (size // 2) + i
        for head in range(n_heads)
        for i in range(size // 2)
        for part in range(2)
    ]
    return array[order]


@st.composite
def one_step(draw: Draw, array: Numbers) -> tuple[str, Numbers]:
    """A step as text, and what numpy makes of it."""
    k = draw(st.integers(0, array.ndim - 1))
    axis = draw(st.sampled_from([k, k - array.ndim]))
    n = array.shape[k]
    ones = [i for i, size in enumerate(array.shape) if size == 1]
    names = ["reshape", "unsqueeze", "flatten", "permute", "slice", "index", "take", "flip"]
    names += ["unpad", *(["transpose"] if array.ndim > 1 else [])]
    names += ["pad", "broadcast"] if array.size < 2000 else []
    names += ["squeeze"] if ones and array.ndim > 1 else []
    names += ["heads"] + (["rope"] if len(array) % 2 == 0 else [])
    name = draw(st.sampled_from(names))
    if name == "reshape":
        first = draw(st.sampled_from([d for d in range(1, array.size + 1) if array.size % d == 0]))
        return f"reshape({first}, -1)", array.reshape(first, -1)
    if name == "unsqueeze":
        place = draw(st.integers(-array.ndim - 1, array.ndim))
        return f"unsqueeze({place})", np.expand_dims(array, place)
    if name == "squeeze":
        k = draw(st.sampled_from(ones))
        return f"squeeze({k})", np.squeeze(array, k)
    if name == "flatten":
        return "flatten()", array.ravel()
    if name == "transpose":
        return "transpose()", np.swapaxes(array, -1, -2)
    if name == "permute":
        axes = draw(st.permutations(range(array.ndim)))
        return f"permute({', '.join(map(str, axes))})", array.transpose(axes)
    if name == "flip":
        return f"flip({axis})", np.flip(array, k)
    part: tuple[str, Numbers] = draw(part_step(array, name, k, axis, n))
    return part


@st.composite
def part_step(draw: Draw, array: Numbers, name: str, k: int, axis: int, n: int) -> Any:
    if name == "slice":
        lo = draw(st.integers(0, n - 1))
        hi = draw(st.integers(lo + 1, n))
        shown = draw(st.sampled_from([lo, lo - n]))
        return f"slice({axis}, {shown}, {hi})", array.take(range(lo, hi), k)
    if name == "index" and array.ndim > 1:
        i = draw(st.integers(-n, n - 1))
        return f"index({axis}, {i})", array.take(i, k)
    if name in ("take", "index"):
        order = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n))
        return f"take({axis}, {order})", array.take(order, k)
    if name == "unpad":
        before = draw(st.integers(0, n - 1))
        after = draw(st.integers(0, n - 1 - before))
        return f"unpad({axis}, {before}, {after})", array.take(range(before, n - after), k)
    if name == "pad":
        width = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
        widths = [(0, 0)] * k + [width] + [(0, 0)] * (array.ndim - k - 1)
        padded = np.pad(array, widths, constant_values=-7)
        return f"pad({axis}, {width[0]}, {width[1]}, -7)", padded
    if name == "broadcast":
        if n != 1:
            return f"unsqueeze({k})", np.expand_dims(array, k)
        return f"broadcast({axis}, 3)", np.repeat(array, 3, k)
    if name == "rope":
        n_heads = draw(st.sampled_from([d for d in range(1, 7) if len(array) % (2 * d) == 0]))
        return f"rope_half_to_interleaved({n_heads})", half_to_pairs(array, n_heads)
    n_heads = draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
    order = draw(st.permutations(range(n_heads)))
    blocks = np.split(array, n_heads, k)
    return f"heads({axis}, {n_heads}, {order})", np.concatenate([blocks[i] for i in order], k)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_chain_of_steps_is_what_numpy_makes_of_it(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    source = expected = numbers(*shape)
    array = start("x", shape)
    for _ in range(data.draw(st.integers(1, 6))):
        text, expected = data.draw(one_step(expected))
        array = step(text, array)
        assert array.shape == expected.shape
    assert np.array_equal(executed(array.layout, {"x": source}), expected)


def is_whole(array: Numbers) -> bool:
    """Whether the numbers lie in blocks of 32 along the last axis, each in order."""
    if array.ndim == 0 or array.shape[-1] % 32:
        return False
    blocks = array.reshape(-1, 32)
    return bool((blocks - blocks[:, :1] == np.arange(32)).all() and not (blocks[:, 0] % 32).any())


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_step_on_quantised_blocks_moves_whole_blocks_or_is_refused(data: st.DataObject) -> None:
    shape = (*data.draw(st.lists(st.integers(1, 4), max_size=2)), 32 * data.draw(st.integers(1, 3)))
    logical = numbers(*shape)
    array = start("x", shape, Q8_0)
    text, expected = data.draw(one_step(logical).filter(lambda made: not made[0].startswith("pad")))
    if not is_whole(expected) or (text.startswith(("permute", "transpose")) and len(shape) > 1):
        try:
            moved = step(text, array)
        except UsageError as refused:
            note(refused.message)
            return
    moved = step(text, array)
    assert moved.shape == expected.shape
    grid = executed(moved.layout, {"x": numbers(logical.size // 32)})
    assert np.array_equal((grid[..., None] * 32 + np.arange(32)).reshape(expected.shape), expected)


# --- joins


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_joins_are_those_of_numpy(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    n = data.draw(st.integers(1, 4))
    sources = {f"x{i}": numbers(*shape) + 1000 * i for i in range(n)}
    arrays = [start(name, tuple(shape)) for name in sources]
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    made = step(f"concat({axis})", *arrays)
    assert np.array_equal(executed(made.layout, sources), np.concatenate([*sources.values()], axis))
    place = data.draw(st.integers(-len(shape) - 1, len(shape)))
    made = step(f"stack({place})", *arrays)
    assert np.array_equal(executed(made.layout, sources), np.stack([*sources.values()], place))


def fused(layout: str, n_heads: int, n_kv_heads: int, size: int = 3) -> tuple[Numbers, Any]:
    """A fused projection of rows 0, 1, 2, ... as our steps join it from q, k and v."""
    rows = {"q": n_heads * size, "k": n_kv_heads * size, "v": n_kv_heads * size}
    sources = {part: numbers(n, 2) + 1000 * i for i, (part, n) in enumerate(rows.items())}
    arrays = [start(part, (n, 2)) for part, n in rows.items()]
    made = step(f"qkv(n, kv, {layout})", *arrays, n=n_heads, kv=n_kv_heads)
    joined = executed(made.layout, sources)
    for part, expected in sources.items():
        call = f"unqkv({part}, {n_heads}, {n_kv_heads}, {size}, layout='{layout}')"
        alone = step(call, start("x", joined.shape))
        assert np.array_equal(executed(alone.layout, {"x": joined}), expected)
    return joined, sources


def test_qkv_one_after_another_is_a_concatenation() -> None:
    joined, sources = fused("concat", 6, 2)
    assert np.array_equal(joined, np.concatenate([sources["q"], sources["k"], sources["v"]]))


@pytest.mark.torch
@pytest.mark.parametrize(
    ("layout", "n_heads", "n_kv_heads"),
    [("per_kv_group", 6, 2), ("per_kv_group", 6, 6), ("per_kv_group", 6, 1), ("per_head", 4, 4)],
)
def test_qkv_layouts_are_those_that_falcon_splits(
    layout: str, n_heads: int, n_kv_heads: int
) -> None:
    import torch
    from transformers.models.falcon.modeling_falcon import FalconAttention

    joined, sources = fused(layout, n_heads, n_kv_heads)
    falcon: Any = FalconAttention.__new__(FalconAttention)
    torch.nn.Module.__init__(falcon)
    falcon.num_heads, falcon.num_kv_heads, falcon.head_dim = n_heads, n_kv_heads, 3
    falcon.new_decoder_architecture, falcon.multi_query = layout == "per_kv_group", False
    # The rows stand where an activation would have them: one column of the weight at a time.
    split = falcon._split_heads(torch.tensor(joined[:, 0].copy())[None, None])
    q, k, v = (part[0, 0].numpy() for part in split)
    repeat = n_heads // n_kv_heads
    for part, found in (("q", q), ("k", k[::repeat]), ("v", v[::repeat])):
        assert np.array_equal(found.ravel(), sources[part][:, 0]), part


@pytest.mark.torch
def test_rope_permutations_are_those_of_transformers() -> None:
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    back = LlamaTensorProcessor()._reverse_permute_weights
    for shape, n_heads, n_kv_heads in (((24, 5), 4, 2), ((24,), 3, 3), ((8, 4, 3), 2, 1)):
        source = numbers(*shape)
        made = step(f"rope_interleaved_to_half({n_kv_heads})", start("x", shape))
        assert np.array_equal(
            executed(made.layout, {"x": source}), back(source, n_heads, n_kv_heads)
        )
        made = step(f"rope_half_to_interleaved({n_kv_heads})", start("x", shape))
        assert np.array_equal(
            back(executed(made.layout, {"x": source}), n_heads, n_kv_heads), source
        )


@pytest.mark.torch
def test_the_way_from_meta_to_hugging_face_is_the_permutation_of_its_script() -> None:
    import torch

    w = torch.arange(24 * 5).reshape(24, 5)
    n_heads, dim1, dim2 = 4, 24, 5
    # Source: huggingface/transformers v4.57, models/llama/convert_llama_weights_to_hf.py, permute
    theirs = w.view(n_heads, dim1 // n_heads // 2, 2, dim2).transpose(1, 2).reshape(dim1, dim2)
    made = step("rope_interleaved_to_half(4)", start("x", (24, 5)))
    assert np.array_equal(executed(made.layout, {"x": w.numpy()}), theirs.numpy())


def test_the_way_to_gguf_is_the_permutation_of_llama_cpp() -> None:
    weights, n_head = numbers(24, 5), 4
    # Source: ggml-org/llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute
    theirs = (
        weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )
    made = step("rope_half_to_interleaved(4)", start("x", (24, 5)))
    assert np.array_equal(executed(made.layout, {"x": weights}), theirs)
    assert not np.array_equal(theirs, weights)


def test_partial_rotary_moves_the_beginning_of_each_head() -> None:
    source = numbers(2, 8, 3)
    expected = source.copy()
    for head in range(2):
        expected[head, :4] = half_to_pairs(source[head, :4], 1)
    made = step("rope_half_to_interleaved(2, rotary=4)", start("x", (16, 3)))
    assert np.array_equal(executed(made.layout, {"x": source}), expected.reshape(16, 3))
    turned = step("rope_half_to_interleaved(2, axis=1)", start("x", (3, 16)))
    assert np.array_equal(
        executed(turned.layout, {"x": source.reshape(3, 16)}).T,
        half_to_pairs(source.reshape(3, 16).T, 2),
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gate_and_up_join_in_three_orders_and_come_apart_again(axis: int) -> None:
    gate, up = numbers(4, 6), numbers(4, 6) + 1000
    arrays = [start("gate", (4, 6)), start("up", (4, 6))]
    pairs = np.stack([gate, up], (axis % 2) + 1)
    expected = {
        "gate_up": np.concatenate([gate, up], axis),
        "up_gate": np.concatenate([up, gate], axis),
        "interleaved": pairs.reshape(*((8, 6) if axis == 0 else (4, 12))),
    }
    for order, joined in expected.items():
        made = step(f"gate_up({order}, axis={axis})", *arrays)
        assert np.array_equal(executed(made.layout, {"gate": gate, "up": up}), joined), order
        for part, alone in (("gate", gate), ("up", up)):
            taken = step(f"ungate_up({part}, '{order}', {axis})", start("x", joined.shape))
            assert np.array_equal(executed(taken.layout, {"x": joined}), alone), (order, part)


# --- constants and values


@pytest.mark.parametrize(
    ("element", "dtype"),
    [
        ("F64", np.float64), ("F32", np.float32), ("F16", np.float16), ("BF16", ml_dtypes.bfloat16),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2),
        ("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz), ("I8", np.int8), ("U16", np.uint16),
        ("I32", np.int32), ("BOOL", np.bool_), ("C64", np.complex64),
    ],
)  # fmt: skip
def test_constants_are_the_bytes_that_numpy_writes(element: str, dtype: Any) -> None:
    for value in (0, 1, 0.0, 1.0) if element == "BOOL" else (0, 1, 96, 2.0, 5):
        if element.startswith("F8") and value == 5:
            continue
        expected = np.array(value, dtype).tobytes()
        assert constant(value, ELEMENT_TYPES[element], "x") == expected, value


def test_constants_that_a_type_has_not_are_refused() -> None:
    cases: list[tuple[object, str]] = [
        (0.1, "F32"), (0.1, "BF16"), (65536.0, "F16"), (1 << 60 | 1, "F32"), (300, "U8"),
        (-1, "U8"),
        (1.5, "I32"), (float("nan"), "I32"), (2, "BOOL"), (17.0, "F8_E4M3"), ("0x1ffff", "F16"),
        ("0xzz", "F16"), ("half", "F16"), (1e300, "BF16"), (10**400, "F64"),
    ]  # fmt: skip
    for value, element in cases:
        with pytest.raises(UsageError, match=f"{element} holds exactly"):
            constant(value, ELEMENT_TYPES[element], "x")
    with pytest.raises(UsageError, match="Q8_0 holds exactly"):
        constant(0, Q8_0, "x")


def test_special_constants_keep_their_bits() -> None:
    for name, width in (("F32", "<f"), ("F16", "<e")):
        element = ELEMENT_TYPES[name]
        assert constant(-0.0, element, "x") == struct.pack(width, -0.0)
        assert constant(float("-inf"), element, "x") == struct.pack(width, float("-inf"))
        assert constant(float("nan"), element, "x") == struct.pack(width, float("nan"))
    assert constant("0x7fc0", ELEMENT_TYPES["BF16"], "x") == b"\xc0\x7f"
    assert constant(-0.0, ELEMENT_TYPES["F8_E4M3"], "x") == b"\x80"
    assert constant(float("inf"), ELEMENT_TYPES["F8_E5M2"], "x") == b"\x7c"


def test_a_pad_after_a_cast_holds_what_the_cast_makes_of_it() -> None:
    f32 = ELEMENT_TYPES["F32"]
    cast = step("cast(BF16)", start("x", (2, 3), f32))
    padded = step("pad(0, 1, 2, 0.5)", cast)
    fills = {piece.fill for piece in padded.layout.pieces if piece.leaf is None}
    assert fills == {struct.pack("<f", 0.5)}  # of the type before the cast, which applies to it
    assert (padded.shape, padded.element.name) == ((5, 3), "BF16")
    with pytest.raises(UsageError, match="expected a constant that add_one"):
        step("pad(0, 0, 1, 0.0)", step("add_one(compute=F32)", start("x", (2, 3), f32)))


def test_values_are_collected_in_their_order() -> None:
    array = start("x", (4, 6), ELEMENT_TYPES["BF16"])
    for text in ("widen(F32)", "transpose()", "scale(c)", "cast(F16)"):
        array = step(text, array, c=0.5)
    assert [move.text.partition("(")[0] for move in array.values] == ["widen", "scale", "cast"]
    assert (array.source.name, array.element.name, array.shape) == ("BF16", "F16", (6, 4))
    one = np.array([0x3F80], np.uint16)
    for move in array.values:
        one = move.apply(one)
    assert one.view(np.float16)[0] == 0.5


# --- what is refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("reshape(7, -1)", "reshape: expected 24 elements as in (4, 6), got (7, -1)"),
        ("squeeze(0)", "squeeze: expected length 1 on axis 0, got (4, 6)"),
        ("squeeze(2)", "squeeze: expected an axis of (4, 6), got 2"),
        ("unsqueeze(4)", "unsqueeze: expected a place from -3 to 2, got 4"),
        ("permute(0, 0)", "permute: expected each axis of (4, 6) once"),
        ("slice(0, 2, 9)", "slice: expected 0 <= start <= stop <= 4 on axis 0 of (4, 6), got 2:9"),
        ("index(0, 4)", "index: expected a place from -4 to 3 on axis 0"),
        ("take(0, [4])", "take: expected places from 0 to 3"),
        ("broadcast(0, 2)", "broadcast: expected length 1 on axis 0"),
        ("pad(0, -1, 0, 0)", "pad: expected lengths of 0 or more"),
        ("unpad(0, 3, 2)", "unpad: expected lengths that axis 0 of (4, 6) has"),
        ("rope_half_to_interleaved(3)", "expected a length that 3 heads divide on axis 0"),
        ("rope_half_to_interleaved(4)", "expected an even number of rotary rows up to 1, got 1"),
        ("rope_half_to_interleaved(1, rotary=6)", "rotary rows up to 4, got 6"),
        ("heads(0, 3, [0, 1, 2])", "heads: expected a length that 3 heads divide"),
        ("unqkv(q, 2, 1, 2, concat)", "unqkv: expected (n_heads + 2 n_kv_heads) head_dim = 8 rows"),
        ("unqkv(q, 4, 3, 1, concat)", "unqkv: expected (n_heads + 2 n_kv_heads) head_dim = 10"),
        ("unqkv(q, 2, 1, 1, per_head)", "unqkv: expected as many key-value heads as heads"),
        ("ungate_up(up, gate_up, axis=3)", "ungate_up: expected an axis of (4, 6), got 3"),
        ("cast(Q4_0)", "cast: expected the name of a type"),
        ("cast(F16)", "cast: expected"),
        ("widen(I32)", "widen(I32): expected a type that holds every I64"),
        ("reshape('a')", "expected an integer for 'a', got a"),
        ("take(0, 1)", "expected a list of integers for 1, got 1"),
        ("pad(0, 0, 1, [1])", "expected a number for [1]"),
    ],
)
def test_a_step_that_does_not_fit_says_so(text: str, words: str) -> None:
    array = start("x", (4, 32), Q8_0) if text == "cast(F16)" else start("x", (4, 6))
    with pytest.raises(UsageError) as caught:
        step(text, array)
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("qkv(2, 1, concat)", "qkv: expected three arrays, q, k and v, got 2"),
        ("gate_up(gate_up)", "gate_up: expected two arrays of one shape"),
        ("concat(0)", "concat: expected shapes that differ on axis 0 only, got (4, 6), (3, 5)"),
        ("stack(0)", "stack: expected arrays of one shape, got (4, 6), (3, 5)"),
    ],
)
def test_a_join_that_does_not_fit_says_so(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        step(text, start("x", (4, 6)), start("y", (3, 5)))
    assert words in caught.value.message
    with pytest.raises(UsageError, match=r"got none|got 0"):
        step(text)


def test_heads_of_two_sizes_are_not_joined() -> None:
    arrays = [start("q", (8, 2)), start("k", (2, 2)), start("v", (2, 2))]
    with pytest.raises(UsageError, match="qkv: expected heads of one size, got 2, 1, 1 rows"):
        step("qkv(4, 2, concat)", *arrays)
    with pytest.raises(UsageError, match="expected n_kv_heads to divide n_heads, got 4 and 3"):
        step("qkv(4, 3, concat)", start("q", (8, 2)), start("k", (6, 2)), start("v", (6, 2)))


def test_parts_of_two_types_or_two_casts_are_not_joined() -> None:
    f32, bf16 = ELEMENT_TYPES["F32"], ELEMENT_TYPES["BF16"]
    one, other = start("x", (4, 6), f32), start("y", (4, 6), bf16)
    with pytest.raises(UsageError, match=r"expected sources of one type.*got F32 and BF16"):
        step("concat(0)", one, other)
    with pytest.raises(UsageError, match=r"got F32 and BF16 \| widen"):
        step("stack(0)", one, step("widen(F32)", other))
    alike = [step("cast(BF16)", start(name, (4, 6), f32)) for name in "xy"]
    assert step("concat(0)", *alike).element == bf16


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flip(1)", "flip: expected whole blocks of 32 numbers (Q8_0)"),
        ("transpose()", "permute: expected whole blocks"),
        ("slice(1, 0, 16)", "slice: expected whole blocks"),
        ("index(1, 3)", "index: expected whole blocks"),
        ("take(1, range(1, 33))", "take: expected whole blocks"),
        ("unsqueeze(2)", "reshape: expected whole blocks"),
        ("pad(1, 0, 5, '0x00')", "pad: expected whole blocks"),
    ],
)
def test_blocks_are_not_taken_apart(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        step(text, start("x", (4, 64), Q8_0))
    assert words in caught.value.message


def test_the_table_of_steps_says_what_each_does() -> None:
    assert {step.arity for step in STEPS.values()} == {"one", "many", "value"}
    for name, known in STEPS.items():
        assert known.signature.startswith(f"{name}("), name
        assert known.doc.endswith("."), name
    assert names_of(parse_call("cast(BF16, rounding=RTZ)", "x")) == frozenset()
    assert names_of(parse_call("qkv(n_heads, kv, layout=concat)", "x")) == {"n_heads", "kv"}
    assert names_of(parse_call("scale(c)", "x")) == {"c"}
