"""Diagnoses: each fault is planted in small leaves held in memory, and must be named as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnosed import (
    F32,
    Arrays,
    Memory,
    check,
    check_unexplained,
    explained,
    identity,
    store,
    weights,
)
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lockstep.formats.leaf import ELEMENT_TYPES
from lockstep.formats.open_store import open_store
from lockstep.verify.claim import Claim, Plan
from lockstep.verify.diagnosis.diagnose import diagnose
from lockstep.verify.diagnosis.summarise import summarise
from lockstep.verify.engine.examine import Options, examine
from lockstep.verify.layouts.layout import Layout, cut, filled, join, permute, reshape, whole
from lockstep.verify.numbers.values import value_move

# --- other leaves


def layers(n: int, *shape: int) -> Arrays:
    """Gate and up of some layers."""
    return {
        f"model.layers.{i}.mlp.{which}_proj.weight": weights(*shape, seed=2 * i + j)
        for i in range(n)
        for j, which in enumerate(("gate", "up"))
    }


def test_gate_under_up_is_found_by_name() -> None:
    source = layers(4, 6, 10)
    gate, up = "model.layers.2.mlp.gate_proj.weight", "model.layers.2.mlp.up_proj.weight"
    found = explained(source, {"out": source[up]}, identity((6, 10), gate))
    check(found, "other_leaf", f"these bytes are under {up}")
    assert found is not None
    assert found.suspects == (up,)


def test_another_leaf_squeezed_is_found_though_its_digest_differs() -> None:
    source = {"a": weights(1, 6, 10), "b": weights(1, 6, 10, seed=5)}
    found = explained(source, {"out": source["b"][0]}, reshape(identity((1, 6, 10), "a"), (6, 10)))
    check(found, "other_leaf", "b")


def test_the_next_layer_is_called_so() -> None:
    source = layers(4, 6, 10)
    mine, other = (f"model.layers.{i}.mlp.up_proj.weight" for i in (1, 2))
    found = explained(source, {"out": source[other]}, identity((6, 10), mine))
    check(found, "neighbour", other, "next")


def test_another_leaf_under_a_transform_is_found() -> None:
    source = layers(3, 6, 10)
    mine, other = (f"model.layers.1.mlp.{k}_proj.weight" for k in ("gate", "up"))
    layout = permute(identity((6, 10), mine), (1, 0))
    check(explained(source, {"out": source[other].T.copy()}, layout), "other_leaf", other)


def test_another_leaf_transposed_is_found() -> None:
    source = {"a": weights(6, 10), "b": weights(10, 6, seed=3)}
    found = explained(source, {"out": source["b"].T.copy()}, identity((6, 10), "a"))
    check(found, "other_leaf_transposed", "b, transposed")


def test_one_wrong_source_of_many_is_named() -> None:
    source = {f"e.{i}": weights(4, 6, seed=i) for i in range(5)}
    layout = join([reshape(whole(f"e.{i}", (4, 6)), (1, 4, 6)) for i in range(4)], 0)
    found = np.stack([source[f"e.{i}"] for i in (0, 1, 4, 3)])
    check(explained(source, {"out": found}, layout), "other_leaf", "e.4 in place of e.2")


# --- axes


def test_a_square_leaf_transposed() -> None:
    w = weights(8, 8)
    check(explained({"w": w}, {"out": w.T.copy()}, identity((8, 8))), "transposed", "transposed")


def test_transposed_where_reshape_was_claimed_and_the_other_way_round() -> None:
    w = weights(4, 6)
    shaped = explained({"w": w}, {"out": w.T.copy()}, reshape(identity((4, 6)), (6, 4)))
    check(shaped, "transposed")
    kept = explained({"w": w}, {"out": w.reshape(6, 4)}, permute(identity((4, 6)), (1, 0)))
    check(kept, "not_transformed", "own order")


def test_axes_in_another_order() -> None:
    w = weights(4, 4, 4)
    found = explained({"w": w}, {"out": w.transpose(1, 2, 0).copy()}, identity((4, 4, 4)))
    check(found, "axis_order", "(1, 2, 0)")


def test_stacked_on_another_axis() -> None:
    source = {f"l.{i}": weights(4, 4, seed=i) for i in range(4)}
    layout = join([reshape(whole(f"l.{i}", (4, 4)), (1, 4, 4)) for i in range(4)], 0)
    found = np.stack([source[f"l.{i}"] for i in range(4)], 1)
    diagnosis = explained(source, {"out": found}, layout)
    assert diagnosis is not None
    assert diagnosis.hypothesis in ("stack_axis", "axis_order")  # the same elements, either way


def test_flipped_rolled_and_shifted() -> None:
    w = weights(50, 7)
    for found, name in (
        (w[:, ::-1], "flipped"),
        (np.roll(w, 1, 0), "rolled"),
        (np.roll(w, -1, 1), "rolled"),
        (np.roll(w.reshape(-1), 1).reshape(50, 7), "shifted"),
        (np.append(w.reshape(-1)[1:], np.uint32(0)).reshape(50, 7), "shifted"),
        (np.roll(w, 25, 0), "halves_swapped"),
    ):
        check(explained({"w": w}, {"out": found.copy()}, identity((50, 7))), name)


# --- rotary halves, heads, experts


def interleave(w: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Half to interleaved, as converters of llama do it."""
    return (
        w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, *w.shape[1:])
        .swapaxes(1, 2)
        .reshape(w.shape)
        .copy()
    )


def roped(shape: tuple[int, ...], n_heads: int) -> Layout:
    """The claim that rotary halves were interleaved."""
    split = reshape(identity(shape), (n_heads, 2, shape[0] // n_heads // 2, *shape[1:]))
    return reshape(permute(split, (0, 2, 1, *range(3, len(shape) + 2))), shape)


def test_rope_missing_doubled_and_with_the_wrong_heads() -> None:
    w, facts = weights(64, 5), {"n_heads": 8, "n_kv_heads": 4}
    layout, text = roped((64, 5), 4), "rope_half_to_interleaved(n_kv_heads)"
    missing = explained({"w": w}, {"out": w}, layout, text=text, facts=facts)
    check(missing, "not_transformed")
    twice = interleave(interleave(w, 4), 4)
    doubled = explained({"w": w}, {"out": twice}, layout, text=text, facts=facts)
    check(doubled, "rope_missing_or_doubled", "n_kv_heads", "4 heads")
    wrong = explained({"w": w}, {"out": interleave(w, 8)}, layout, text=text, facts=facts)
    check(wrong, "rope_heads", "n_heads", "8 heads")


def test_rope_that_nobody_claimed() -> None:
    w = weights(64, 5)
    found = explained({"w": w}, {"out": interleave(w, 8)}, identity((64, 5)), facts={"n_heads": 8})
    check(found, "rope_interleaved", "half to interleaved", "8 heads")


def test_heads_in_another_order_are_listed() -> None:
    w, order = weights(48, 5), [3, 0, 5, 1, 4, 2]
    found = w.reshape(6, 8, 5)[order].reshape(48, 5)
    facts = {"n_heads": 6}
    diagnosis = explained({"w": w}, {"out": found}, identity((48, 5)), facts=facts)
    check(diagnosis, "heads_permuted", "6 heads of 8", "[3, 0, 5, 1, 4, 2]")


def test_columns_of_heads_in_another_order() -> None:
    w, order = weights(5, 48), [3, 0, 5, 1, 4, 2]
    found = w.reshape(5, 6, 8)[:, order].reshape(5, 48)
    check(explained({"w": w}, {"out": found}, identity((5, 48)), facts={"n_heads": 6}),
          "heads_permuted", "axis 1")  # fmt: skip


def test_layers_stacked_in_the_order_of_text() -> None:
    source = {f"l.{i}": weights(3, 4, seed=i) for i in range(12)}
    layout = join([reshape(whole(f"l.{i}", (3, 4)), (1, 3, 4)) for i in range(12)], 0)
    found = np.stack([source[f"l.{i}"] for i in sorted(range(12), key=str)])
    check(explained(source, {"out": found}, layout), "lexicographic", "10 before 2")


def test_experts_permuted_and_two_exchanged() -> None:
    source = {f"experts.{i}": weights(3, 4, seed=i) for i in range(8)}
    layout = join([reshape(whole(f"experts.{i}", (3, 4)), (1, 3, 4)) for i in range(8)], 0)
    for order, name, word in (
        ([5, 3, 0, 1, 7, 2, 6, 4], "experts_permuted", "[5, 3, 0"),
        ([0, 6, 2, 3, 4, 5, 1, 7], "sources_exchanged", "experts.1 and experts.6"),
        ([1, 2, 3, 4, 5, 6, 7, 0], "rolled", ""),
    ):
        found = np.stack([source[f"experts.{i}"] for i in order])
        check(explained(source, {"out": found}, layout, text="experts stack(0)"), name, word)


@pytest.mark.parametrize("axis", [0, 1])
def test_gate_and_up_exchanged_in_one_leaf(axis: int) -> None:
    source = {"gate": weights(6, 8), "up": weights(6, 8, seed=9)}
    layout = join([whole("gate", (6, 8)), whole("up", (6, 8))], axis)
    found = np.concatenate([source["up"], source["gate"]], axis)
    check(explained(source, {"out": found}, layout), "halves_swapped", f"axis {axis}")


def fuse(parts: list[NDArray[Any]], n_groups: int) -> NDArray[Any]:
    """Each group's rows of q, of k, of v in turn."""
    groups = [np.split(part, n_groups) for part in parts]
    return np.concatenate([rows for group in zip(*groups, strict=True) for rows in group])


def test_query_key_and_value_fused_another_way() -> None:
    source = {"q": weights(48, 5), "k": weights(16, 5), "v": weights(16, 5, seed=3)}
    q, k, v = source.values()
    layout = join([whole(name, x.shape) for name, x in source.items()], 0)
    facts = {"n_heads": 6, "n_kv_heads": 2}
    grouped = explained(source, {"out": fuse([q, k, v], 2)}, layout, facts=facts)
    check(grouped, "fused_qkv", "layout=per_kv_group")
    swapped = explained(source, {"out": np.concatenate([q, v, k])}, layout, facts=facts)
    check(swapped, "joined", "q, v, k")
    claimed = reshape(
        join([reshape(whole(n, x.shape), (2, len(x) // 2, 5)) for n, x in source.items()], 1),
        (80, 5),
    )
    joined = explained(source, {"out": np.concatenate([q, k, v])}, claimed, facts=facts)
    check(joined, "joined", "q, k, v")


def test_a_part_of_a_fused_leaf_taken_as_if_it_lay_otherwise() -> None:
    fused = {"qkv": weights(80, 5)}
    layout = cut(whole("qkv", (80, 5)), 0, 48, 64)
    rows = fused["qkv"].reshape(2, 5, 8, 5)[:, 3].reshape(16, 5)
    found = explained(fused, {"out": rows}, layout, facts={"n_heads": 6, "n_kv_heads": 2})
    check(found, "split_qkv", "k of", "per_kv_group")
    half = cut(whole("gu", (12, 5)), 0, 0, 6)
    gate_up = {"gu": weights(12, 5)}
    check(explained(gate_up, {"out": gate_up["gu"][6:]}, half), "split_gate_up")
    check(explained(gate_up, {"out": gate_up["gu"][::2]}, half), "split_gate_up", "interleaved")


def test_two_sources_exchanged_where_shapes_do_not_make_blocks() -> None:
    source = {name: weights(n, 5, seed=i) for i, (name, n) in enumerate(
        {"a": 7, "b": 3, "c": 7, "d": 3, "e": 5}.items())}  # fmt: skip
    layout = join([whole(name, x.shape) for name, x in source.items()], 0)
    found = np.concatenate([source[name] for name in "adcbe"])
    check(explained(source, {"out": found}, layout), "sources_exchanged", "b and d")


# --- values


def f32(words: NDArray[Any]) -> NDArray[np.float32]:
    return words.view(np.float32)


VALUE_FAULTS: dict[str, tuple[Callable[[NDArray[np.float32]], Any], str]] = {
    "BF16": (lambda x: moved(moved(x, "BF16"), "F32", "BF16"), "rounded"),
    "F16": (lambda x: x.astype(np.float16).astype(np.float32), "rounded"),
    "toward zero": (lambda x: (x.view("u4") & np.uint32(0xFFFF0000)).view("f4"), "truncated"),
    "subnormal": (
        lambda x: np.where(np.abs(x) < 2.0**-126, np.float32(0), x),
        "subnormals_flushed",
    ),
    "signs": (lambda x: x * 0, "zeros"),
    "by 1.0001": (lambda x: x * np.float32(1.0001), "scaled"),
    "0.125": (lambda x: x * np.float32(0.125), "scaled"),
    "0.08838834": (lambda x: x * np.float32(128**-0.5), "scaled"),
    "1 added": (lambda x: x + np.float32(1), "one_added"),
    "1 subtracted": (lambda x: x - np.float32(1), "one_subtracted"),
    "sign": (lambda x: -x, "sign_flipped"),
    "byte": (lambda x: x.byteswap(), "byte_swapped"),
    "all zeros": (lambda x: abs(x * 0), "zeros"),
    "1.0 everywhere": (lambda x: x * 0 + 1, "constant"),
}


def moved(x: NDArray[Any], to: str, source: str = "F32") -> NDArray[Any]:
    """Cast by the move that test_values.py holds to other libraries."""
    words = x.reshape(-1).view(f"u{ELEMENT_TYPES[source].n_bytes}")
    made = value_move("cast", ELEMENT_TYPES[source], [to], {}).apply(words).reshape(x.shape)
    return made.view(np.float32) if to == "F32" else made


@pytest.mark.parametrize("word", VALUE_FAULTS)
def test_what_happened_to_values_is_named(word: str) -> None:
    fault, name = VALUE_FAULTS[word]
    w = weights(40, 30)
    if word == "subnormal":
        w[::3, 5] = np.random.default_rng(1).integers(1, 1 << 23, 14, np.uint32)
    found = np.ascontiguousarray(fault(f32(w)), np.float32).view(np.uint32)
    check(explained({"w": w}, {"out": found}, identity((40, 30))), name, word)


def cast(source: str, to: str, **options: str) -> Any:
    return value_move("cast", ELEMENT_TYPES[source], [to], options)


def test_a_declared_cast_that_was_done_another_way() -> None:
    w = weights(60, 50)
    w[0, :9] = np.array([1e-40, -1e-39, 2e-38, 3e-39, 1, 2, 3, 4, 5], np.float32).view("u4")
    pair, claimed = (F32, ELEMENT_TYPES["BF16"]), cast("F32", "BF16")
    flat = w.reshape(-1)
    for found, name in (
        (cast("F32", "BF16", rounding="RTZ").apply(flat), "truncated"),
        (cast("F32", "BF16", subnormals="flush").apply(flat), "subnormals_flushed"),
        (cast("F16", "BF16").apply(cast("F32", "F16").apply(flat)), "double_rounded"),
    ):
        out = {"out": found.reshape(w.shape)}
        diagnosis = explained({"w": w}, out, identity(w.shape), elements=pair, values=(claimed,))
        check(diagnosis, name)


def test_float64_through_float32_and_rounded_twice() -> None:
    wide = np.random.default_rng(8).normal(size=(500, 40))
    w = wide.view(np.uint64)
    element = ELEMENT_TYPES["F64"]
    narrow = wide.astype(np.float32).astype(np.float64).view(np.uint64)
    found = explained({"w": w}, {"out": narrow}, identity(w.shape), elements=(element, element))
    check(found, "rounded", "F32")
    near = wide.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000) | np.uint32(0x8000)
    w = (near.view(np.float32).astype(np.float64) * (1 + 2.0**-40)).view(np.uint64)
    twice = cast("F32", "BF16").apply(cast("F64", "F32").apply(w.reshape(-1))).reshape(w.shape)
    claimed = (cast("F64", "BF16"),)
    pair = (element, ELEMENT_TYPES["BF16"])
    found = explained({"w": w}, {"out": twice}, identity(w.shape), elements=pair, values=claimed)
    check(found, "double_rounded", "F32 first")


def test_integers_through_float32_and_zero_points() -> None:
    values = np.random.default_rng(6).integers(-(2**31), 2**31, (30, 20)).astype(np.int32)
    values[0, 0] = 16777217
    element = ELEMENT_TYPES["I32"]
    w, pair = values.view(np.uint32), (element, element)
    through = np.clip(values.astype(np.float32).astype(np.float64), -(2**31), 2**31 - 1)
    found = through.astype(np.int32).view(np.uint32)
    check(explained({"w": w}, {"out": found}, identity((30, 20)), elements=pair),
          "through_float", "F32")  # fmt: skip
    off = explained({"w": w}, {"out": w + np.uint32(1)}, identity((30, 20)), elements=pair)
    check(off, "zero_point")


def test_a_norm_whose_one_was_not_added() -> None:
    w = weights(64)
    add = value_move("add_one", F32, [], {})
    found = explained({"w": w}, {"out": w}, identity((64,)), values=(add,), text=add.text)
    check(found, "step_left_out", "add_one", "was not applied")


# --- padding


def padded(n: int, value: float) -> Layout:
    fill = np.float32(value).tobytes()
    return join([identity((10, 6)), filled(fill, (n, 6))], 0)


def test_padding_at_the_wrong_end_and_of_another_value() -> None:
    w, zeros = weights(10, 6), np.zeros((2, 6), np.uint32)
    start = explained({"w": w}, {"out": np.concatenate([zeros, w])}, padded(2, 0.0))
    check(start, "padding_end")
    ones = np.full((2, 6), 1.0, np.float32).view(np.uint32)
    other = explained({"w": w}, {"out": np.concatenate([w, ones])}, padded(2, 0.0))
    check(other, "padding_value", "0000803f")


# --- damage, and what cannot be explained


@pytest.mark.parametrize("bit", [0, 7, 22, 23, 30, 31])
def test_one_flipped_bit_is_named_with_its_place(bit: int) -> None:
    w = weights(40, 30)
    out = w.copy()
    out[17, 4] ^= np.uint32(1 << bit)
    found = explained({"w": w}, {"out": out}, identity((40, 30)))
    check(found, "bit_flip", "[17, 4]", f"bit {bit} ")


def test_damage_is_not_taken_for_a_change_of_the_whole_leaf() -> None:
    """Each place that is read may cost the decoding of a chunk: few are, where little differs."""
    w = weights(128, 256)
    out = w.copy()
    out[100, 150:160] ^= np.uint32(1)
    found = explained({"w": w}, {"out": out}, identity((128, 256)), most_read=1000)
    check(found, "few_elements", "10 elements")


def test_a_few_elements_and_one_unit_in_the_last_place() -> None:
    w = weights(40, 30)
    w[3, 3] = 0x3F7FFFFF
    one, few = w.copy(), w.copy()
    one[3, 3] += np.uint32(1)
    few[5, 1:5] ^= np.uint32(0x5555)
    check(explained({"w": w}, {"out": one}, identity((40, 30))), "one_ulp", "[3, 3]")
    check(explained({"w": w}, {"out": few}, identity((40, 30))), "few_elements", "4 elements")


def test_what_nothing_explains_is_not_guessed_at() -> None:
    source = layers(3, 40, 30)
    name = next(iter(source))
    check_unexplained(
        explained(source, {"out": weights(40, 30, seed=99)}, identity((40, 30), name))
    )


def test_a_single_number_is_explained_by_nothing_but_another_leaf() -> None:
    step = {"step": np.array([175000], np.uint32)}
    pair = (ELEMENT_TYPES["I32"],) * 2
    changed = {"out": step["step"] + np.uint32(1)}
    assert explained(step, changed, identity((1,), "step"), elements=pair) is None
    other = {**step, "count": changed["out"]}
    check(explained(other, changed, identity((1,), "step"), elements=pair), "other_leaf", "count")


def test_almost_a_hypothesis_is_none() -> None:
    """One flipped bit in a transposed leaf: transposition does not make it exact."""
    w = weights(30, 30)
    out = w.T.copy()
    out[11, 17] ^= np.uint32(1)
    check_unexplained(explained({"w": w}, {"out": out}, identity((30, 30))))


def test_the_engine_s_probe_leads_to_the_same_diagnoses(tmp_path: Path) -> None:
    """The same faults in files, read within a budget."""
    source = {name: f32(weights(120, 90, seed=i)) for i, name in enumerate("abcdefg")}
    target = {**source, "a": source["b"], "b": source["a"]}
    target["c"] = np.ascontiguousarray(source["c"].reshape(6, 20, 90)[::-1].reshape(120, 90))
    target["d"] = moved(moved(source["d"], "BF16"), "F32", "BF16")
    target["e"] = source["e"].copy()
    target["e"].view(np.uint32)[100, 3] ^= np.uint32(1 << 20)
    target["f"] = f32(weights(120, 90, seed=99))
    stores = []
    for name, arrays in (("source", source), ("target", target)):
        save_file(arrays, tmp_path / f"{name}.safetensors")
        stores.append(open_store(tmp_path / f"{name}.safetensors"))
    claims = tuple(Claim(n, "rule", "params", n, (n,), identity((120, 90), n)) for n in source)
    plan = Plan(stores[0], stores[1], claims)
    report = examine(plan, Options())
    found = {row.id: row.diagnosis for row in report.claims}
    named = {name: diagnosis and diagnosis.hypothesis for name, diagnosis in found.items()}
    assert named == {
        "a": "other_leaf",
        "b": "other_leaf",
        "c": "reversed",
        "d": "rounded",
        "e": "bit_flip",
        "f": "unexplained",
        "g": None,
    }
    said = summarise({name: each for name, each in found.items() if each}, plan)
    assert said == ("a and b are exchanged: each holds the other's values",)


def test_a_value_that_is_no_array_has_no_diagnosis() -> None:
    arrays = {"w": weights(2)}
    claim = Claim("c", "rule", "", "w", ("w",), None)
    plan = Plan(store("source", arrays, F32), store("target", arrays, F32), (claim,))
    assert diagnose(claim, plan, Memory(arrays, arrays)) is None
    assert replace(plan).claims == (claim,)


# --- arithmetic before a cast, divisions, and what is only seen

BF16 = ELEMENT_TYPES["BF16"]
BEFORE_CASTS: dict[str, tuple[Callable[[NDArray[np.float32]], Any], str]] = {
    "1 subtracted before the cast to BF16": (lambda x: x - np.float32(1), "one_subtracted"),
    "1 added before the cast to BF16": (lambda x: x + np.float32(1), "one_added"),
    "(1/sqrt(10)) in": (lambda x: x * np.float32(10**-0.5), "scaled"),
}


@pytest.mark.parametrize("words", BEFORE_CASTS)
def test_arithmetic_before_the_declared_cast_is_found(words: str) -> None:
    fault, name = BEFORE_CASTS[words]
    w = weights(40, 30)
    done = np.ascontiguousarray(fault(f32(w)), np.float32)
    claimed = cast("F32", "BF16")
    found = claimed.apply(done.view(np.uint32).reshape(-1)).reshape(40, 30)
    diagnosis = explained(
        {"w": w}, {"out": found}, identity((40, 30)), elements=(F32, BF16), values=(claimed,)
    )
    check(diagnosis, name, words.removesuffix(" in"), "before the cast to BF16")


def test_a_division_is_found_as_one() -> None:
    """The bias correction of Adam at step 3, which no factor of F32 is the same as."""
    w = weights(60, 50)
    by = 1 - 0.999**3
    found = (f32(w) / np.float32(by)).view(np.uint32)
    assert (found != (f32(w) * np.float32(1 / by)).view(np.uint32)).any()
    check(explained({"w": w}, {"out": found}, identity((60, 50))), "divided", "0.00299700")


def test_a_ratio_that_no_exact_rule_makes_is_told_as_seen() -> None:
    w = weights(60, 50)
    found = (f32(w) * np.float32(333.67)).view(np.uint32)
    found[::2] += np.random.default_rng(4).integers(0, 2, (30, 50), np.uint32)
    diagnosis = explained({"w": w}, {"out": found}, identity((60, 50)))
    assert diagnosis is not None
    assert (diagnosis.hypothesis, diagnosis.confirmed) == ("same_ratio", False)
    assert "about 333.67 times what is claimed" in diagnosis.text
