"""Diagnoses of steps, of parts of a leaf, of two faults at once, and of what is merely damaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diagnosed import Arrays, check, check_unexplained, explained, identity, resolved, weights
from numpy.typing import NDArray

from lockstep.formats.leaf import ELEMENT_TYPES
from lockstep.verify.layouts.layout import filled, join, whole
from lockstep.verify.numbers.values import value_move

ROPE = {"source": "w", "transform": ["rope_half_to_interleaved(n_heads)"]}


def interleave(w: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Half to interleaved, as converters of llama do it."""
    halves = w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, *w.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(w.shape))


def rounded(w: NDArray[Any], to: str = "BF16") -> NDArray[Any]:
    there = value_move("cast", ELEMENT_TYPES["F32"], [to], {})
    back = value_move("cast", ELEMENT_TYPES[to], ["F32"], {})
    return back.apply(there.apply(w.reshape(-1))).reshape(w.shape)


# --- steps, in the claim's own words


def test_a_step_left_out_done_twice_or_with_other_heads_is_named_as_the_claim_spells_it() -> None:
    w = weights(64, 5)
    facts = {"n_heads": 8, "n_kv_heads": 4}
    missing = resolved({"w": w}, {"out": w}, ROPE, **facts)
    check(missing, "step_left_out", "rope_half_to_interleaved(8) was not applied", "without it")
    twice = resolved({"w": w}, {"out": interleave(interleave(w, 8), 8)}, ROPE, **facts)
    check(twice, "step_twice", "rope_half_to_interleaved(8) was applied twice")
    other = resolved({"w": w}, {"out": interleave(w, 4)}, ROPE, **facts)
    check(other, "step_changed", "rope_half_to_interleaved(4) was applied in place of")
    check(other, "step_changed", "(n_kv_heads for n_heads)")
    unnamed = resolved({"w": w}, {"out": interleave(w, 2)}, ROPE, **facts)
    check(unnamed, "step_changed", "(2 for n_heads)")


def test_the_opposite_step_is_named() -> None:
    w = weights(64, 5)
    rule = {"source": "w", "transform": ["rope_interleaved_to_half(4)"]}
    found = resolved({"w": w}, {"out": interleave(w, 4)}, rule)
    check(found, "step_changed", "rope_half_to_interleaved(4) was applied in place of")


def test_a_transposition_that_was_left_out_or_that_was_inverted() -> None:
    w, cube = weights(6, 6), weights(3, 3, 3, 3)
    plain = resolved({"w": w}, {"out": w}, {"source": "w", "transform": ["transpose()"]})
    check(plain, "step_left_out", "transpose() was not applied")
    tall = weights(4, 6)
    seen = resolved({"w": tall}, {"out": tall.reshape(6, 4)},
                    {"source": "w", "transform": ["transpose()"]})  # fmt: skip
    check(seen, "step_left_out", "transpose() was not applied")
    rule = {"source": "w", "transform": ["permute(1, 2, 3, 0)"]}
    back = resolved({"w": cube}, {"out": cube.transpose(3, 0, 1, 2).copy()}, rule)
    check(back, "step_changed", "permute(3, 0, 1, 2)", "the inverse")


def test_the_wrong_place_of_a_stack_and_of_a_split() -> None:
    stacked = weights(6, 4, 5)
    rule = {"source": "w", "transform": ["index(0, 3)"]}
    found = resolved({"w": stacked}, {"out": stacked[4]}, rule)
    check(found, "step_changed", "index(0, 4) was applied in place of index(0, 3)")
    fused = weights(12, 5)
    rule = {"source": "w", "transform": ["slice(0, 4, 8)"]}
    found = resolved({"w": fused}, {"out": fused[8:]}, rule)
    check(found, "step_changed", "slice(0, 8, 12)")


def test_a_word_of_a_step_that_was_another() -> None:
    source = {"gate": weights(6, 5), "up": weights(6, 5, seed=1)}
    rule = {"sources": ["gate", "up"], "transform": ["gate_up(gate_up)"]}
    out = np.stack([source["gate"], source["up"]], 1).reshape(12, 5)
    check(resolved(source, {"out": out}, rule), "step_changed", "gate_up(interleaved)")


def test_a_step_of_one_of_several_sources_says_which() -> None:
    source = {"q": weights(32, 5), "k": weights(32, 5, seed=1), "v": weights(32, 5, seed=2)}
    parts = [
        {"name": name, "transform": ["rope_half_to_interleaved(4)"] if name != "v" else []}
        for name in source
    ]
    rule = {"sources": parts, "transform": ["concat(0)"]}
    out = np.concatenate([interleave(source["q"], 4), source["k"], source["v"]])
    found = resolved(source, {"out": out}, rule)
    check(found, "step_left_out", "was not applied to k")


def test_a_text_that_is_not_what_the_claim_does_is_not_believed() -> None:
    w = weights(64, 5)
    text = "rope_half_to_interleaved(4)"
    found = explained({"w": w}, {"out": interleave(w, 8)}, identity((64, 5)), text=text)
    assert found is not None
    assert not found.hypothesis.startswith("step_")


# --- rows and parts


@pytest.mark.parametrize("bits", [0, 0x3F800000])
def test_rows_that_are_one_value_are_named_with_their_bounds(bits: int) -> None:
    w = weights(100, 16)
    out = w.copy()
    out[96:] = bits
    found = explained({"w": w}, {"out": out}, identity((100, 16)))
    value = "are zero" if bits == 0 else "are 1.0 everywhere"
    check(
        found, "rows_zeros" if bits == 0 else "rows_constant", f"rows 96 to 99 (4 of 100) {value}"
    )


def test_rows_that_hold_something_else_and_rows_that_are_all_the_same() -> None:
    w = weights(100, 16)
    other, same = w.copy(), w.copy()
    other[20:30] = weights(10, 16, seed=7)
    same[20:30] = weights(16, seed=7)
    found = explained({"w": w}, {"out": other}, identity((100, 16)))
    check(found, "region", "rows 20 to 29 (10 of 100) hold other values; all others are as claimed")
    found = explained({"w": w}, {"out": same}, identity((100, 16)))
    check(found, "rows_equal", "rows 20 to 29 (10 of 100) all hold the same values")


def test_columns_are_bounded_too() -> None:
    w = weights(50, 40)
    out = w.copy()
    out[10:20, 8:16] = 0
    out[19, 3] = 0
    found = explained({"w": w}, {"out": out}, identity((50, 40)))
    check(found, "region", "rows 10 to 19 (10 of 50), columns 3 to 15 (13 of 40) hold other")
    whole_columns = w.copy()
    whole_columns[:, 30:34] = 0
    found = explained({"w": w}, {"out": whole_columns}, identity((50, 40)))
    check(found, "rows_zeros", "columns 30 to 33 (4 of 40) are zero")


def test_scattered_differences_are_bounded_and_no_more_is_said() -> None:
    w = weights(100, 16)
    out = w.copy()
    out[40:60:2, ::2] ^= np.uint32(0x5A5A)
    found = explained({"w": w}, {"out": out}, identity((100, 16)))
    check(found, "region", "all 80 elements that differ lie in rows 40 to 58")


def test_a_row_of_an_embedding_that_is_another_row() -> None:
    w = weights(100, 16)
    out = w.copy()
    out[41] = w[7]
    found = explained({"w": w}, {"out": out}, identity((100, 16)))
    check(found, "other_row", "row 41 (of 100) holds what is claimed of row 7")


def test_a_row_that_is_like_no_other_is_named_though_it_is_short() -> None:
    w = weights(100, 16)
    out = w.copy()
    out[41] = weights(16, seed=7)
    found = explained({"w": w}, {"out": out}, identity((100, 16)))
    check(found, "region", "row 41 (of 100) holds other values; all others are as claimed")


def test_one_head_that_was_not_permuted_is_named() -> None:
    w = weights(64, 5)
    out = interleave(w, 8)
    out[24:32] = w[24:32]
    found = resolved({"w": w}, {"out": out}, ROPE, n_heads=8)
    assert found is not None
    assert found.hypothesis.startswith("heads_")
    assert "head 3 of 8 (rows 24 to 31 (8 of 64))" in found.text
    assert "rotary pairs" in found.text


@pytest.mark.parametrize("fault", ["rounded", "other_leaf", "zeros", "reversed"])
def test_the_part_of_a_fused_leaf_says_from_where_it_comes(fault: str) -> None:
    source: Arrays = {f"l.3.{x}.weight": weights(16, 6, seed=i) for i, x in enumerate("qkv")}
    source["l.4.k.weight"] = weights(16, 6, seed=9)
    names = list(source)[:3]
    layout = join([whole(name, (16, 6)) for name in names], 0)
    k = source["l.3.k.weight"]
    bad = {
        "rounded": rounded(k),
        "other_leaf": source["l.4.k.weight"],
        "zeros": np.zeros_like(k),
        "reversed": k[::-1],
    }[fault]
    out = np.concatenate([source[names[0]], bad, source[names[2]]])
    found = explained(source, {"out": out}, layout)
    assert found is not None
    if fault == "other_leaf":  # a claim over the whole leaf says it
        check(found, "neighbour", "l.4.k.weight in place of l.3.k.weight")
        return
    assert found.hypothesis.startswith("part_"), found
    assert "the part that comes from l.3.k.weight (rows 16 to 31 (16 of 48))" in found.text
    words = {"rounded": "rounded to BF16", "zeros": "is zero", "reversed": "backwards"}
    assert words[fault] in found.text


def test_one_layer_of_a_stack() -> None:
    source = {f"l.{i}.w": weights(4, 6, seed=i) for i in range(5)}
    rule = {"source": "l.{i:int}.w", "transform": ["stack(0)"]}
    out = np.stack(list(source.values()))
    out[2] ^= np.uint32(1 << 31)
    found = resolved(source, {"out": out}, rule)
    assert found is not None
    assert "the part that comes from l.2.w (place 2 of axis 0 (of 5))" in found.text
    assert "with the sign turned" in found.text


def test_padding_in_rows_of_a_vocabulary_that_lie_at_the_wrong_end() -> None:
    w = weights(10, 6)
    layout = join([identity((10, 6)), filled(bytes(4), (2, 6))], 0)
    out = np.concatenate([np.zeros((2, 6), np.uint32), w])
    check(explained({"w": w}, {"out": out}, layout), "padding_end", "other end of axis 0")


# --- two faults


def test_another_leaf_that_was_rounded_as_well() -> None:
    source = {"a": weights(20, 10), "b": weights(20, 10, seed=1)}
    found = explained(source, {"out": rounded(source["b"])}, identity((20, 10), "a"))
    check(found, "other_leaf_and_rounded", "these bytes are under b, then rounded to BF16")
    assert found is not None
    assert found.suspects == ("b",)


def test_transposed_and_rounded_and_not_permuted_and_rounded() -> None:
    w = weights(16, 16)
    found = explained({"w": w}, {"out": np.ascontiguousarray(rounded(w).T)}, identity((16, 16)))
    check(found, "transposed_and_rounded", "transposed, then rounded to BF16")
    found = resolved({"w": w}, {"out": rounded(w)}, ROPE, n_heads=4)
    check(found, "step_left_out_and_rounded", "was not applied", "then rounded to BF16")


def test_transposed_and_from_another_leaf() -> None:
    source = {"a": weights(6, 6), "b": weights(6, 6, seed=3)}
    found = explained(source, {"out": source["b"].T.copy()}, identity((6, 6), "a"))
    check(found, "other_leaf_transposed", "b, transposed")


# --- few elements are damage, whatever rule would fit them


def test_one_element_of_zeros_is_no_factor() -> None:
    """A factor would explain it, and all of the zeros too."""
    w = np.zeros((20, 10), np.uint32)
    w[3, 4] = np.float32(1.5).view(np.uint32)
    w[5, 5:9] = np.float32(2.0).view(np.uint32)
    out = w.copy()
    out[3, 4] = np.float32(1.5 * 0.998).view(np.uint32)
    found = explained({"w": w}, {"out": out}, identity((20, 10)))
    check(found, "one_element", "[3, 4]")


def test_few_elements_of_a_coarse_type_are_no_factor() -> None:
    """Of bfloat16, rounding hides a factor of 0.998 in most elements."""
    element = ELEMENT_TYPES["BF16"]
    w = (weights(6, 8) >> np.uint32(16)).astype(np.uint16)
    out = w.copy()
    out[2, 3:6] -= np.uint16(1)
    found = explained({"w": w}, {"out": out}, identity((6, 8)), elements=(element, element))
    check(found, "few_elements", "3 elements")


def test_a_factor_that_rounding_hides_in_all_others_is_not_inferred() -> None:
    """0.997 leaves 1.25 what it is in bfloat16, and moves numbers near to 2 by one unit."""
    element = ELEMENT_TYPES["BF16"]
    w = np.full((6, 8), 0x3FA0, np.uint16)
    near = (np.arange(8) * 0x80 + 0x3FFF).astype(np.uint16)  # 1.99, 3.98, ...
    w[0], w[3, :2] = near, near[:2]
    out = np.where(w == 0x3FA0, w, w - np.uint16(1))
    found = explained({"w": w}, {"out": out}, identity((6, 8)), elements=(element, element))
    assert found is not None
    assert "scaled" not in found.hypothesis
    short = {"w": np.full(6, 0x3FFF, np.uint16)}
    short["w"][:2] = 0x3FF8
    moved = {"out": short["w"] - np.uint16(1)}
    check_unexplained(explained(short, moved, identity((6,)), elements=(element, element)))


@pytest.mark.parametrize(
    ("bits", "to"), [(0x80000000, 0), (0x00000001, 0), (0x7FC00001, 0x7FC00000)]
)
def test_one_special_element_is_that_element(bits: int, to: int) -> None:
    """A rule that makes one element what it is explains nothing but that element."""
    w = weights(20, 10)
    w[3, 4] = bits
    out = w.copy()
    out[3, 4] = to
    found = explained({"w": w}, {"out": out}, identity((20, 10)))
    check(found, "bit_flip", "[3, 4]")


def test_a_rule_that_explains_more_than_one_element_is_preferred() -> None:
    w = weights(20, 10)
    w[::4, 3] = 0x80000000
    out = np.where(w == 0x80000000, np.uint32(0), w)
    found = explained({"w": w}, {"out": out}, identity((20, 10)))
    check(found, "zero_sign", "negative zeros made positive")


def test_a_factor_that_moves_all_numbers_is_still_found_in_a_small_leaf() -> None:
    w = weights(12)
    out = (w.view(np.float32) * np.float32(0.998)).view(np.uint32)
    check(explained({"w": w}, {"out": out}, identity((12,))), "scaled", "0.998")
