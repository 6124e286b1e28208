"""Tallies against a plain loop over elements, in any order, and the verdicts that follow."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.formats.leaf import ELEMENT_TYPES, ElementType, Held, Leaf, Name, Store
from lockstep.verify.claim import Claim, Equality, Plan
from lockstep.verify.layouts.layout import permute, whole
from lockstep.verify.numbers.differences import BLOCK, FLOAT_KINDS, Tally
from lockstep.verify.numbers.float_formats import FLOATS
from lockstep.verify.numbers.values import value_move

TYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
}
BITS = Equality()


def here(i: int) -> tuple[int, str, int]:
    """The same place on both sides."""
    return i, "w", i


def plan_of(element: ElementType, shape: tuple[int, ...]) -> Plan:
    """Two stores with one leaf of this shape each; the tallies read nothing of them but shapes."""
    stores = [
        Store(side, "npz", {name: Leaf((Name(name),), shape, element, Held(b""))}, ())
        for side, name in (("source", "w"), ("target", "v"))
    ]
    return Plan(stores[0], stores[1], ())


def claim_of(shape: tuple[int, ...], equality: Equality = BITS) -> Claim:
    """The claim that `v` is `w`."""
    return Claim("v", "rule", "", "v", ("w",), whole("w", shape), equality=equality)


def tally(name: str, a: NDArray[Any], b: NDArray[Any], equality: Equality = BITS) -> Tally:
    """One tally over everything."""
    counted = Tally(ELEMENT_TYPES[name], equality)
    counted.add(a, b, here)
    return counted


def kind_of(a: int, b: int, name: str) -> str:
    """The kind of one pair, the slow way: through the numbers that others make of the bits."""
    form = FLOATS[name]
    x, y = (float(np.array([w], form.dtype).view(TYPES[name])[0]) for w in (a, b))
    if np.isnan(x) or np.isnan(y):
        return "nan_payload" if np.isnan(x) and np.isnan(y) else "nan_vs_number"
    if np.isinf(x) != np.isinf(y):
        return "inf_vs_number"
    if x == y == 0:
        return "sign_of_zero"
    if x == -y:
        return "sign"
    steps = abs(ordinal(a, name) - ordinal(b, name))
    if steps <= 4:
        return "one_ulp" if steps == 1 else "few_ulp"
    exponents = [(w & (form.sign - 1)) >> form.n_mantissa for w in (a, b)]
    return "other" if exponents[0] == exponents[1] else "exponent"


def ordinal(word: int, name: str) -> int:
    """The place of a number among all numbers of its type, zero being 0."""
    form = FLOATS[name]
    magnitude = word & (form.sign - 1)
    return -magnitude if word & form.sign else magnitude


def pairs(name: str, n: int = 3000) -> tuple[NDArray[Any], NDArray[Any]]:
    """Words with their neighbours, negatives, specials and unrelated ones."""
    form, rng = FLOATS[name], np.random.default_rng(11)
    top = (2 * form.sign) - 1
    ends = [0, form.sign, form.largest, form.largest + 1, form.sign - 1, top, 1, form.sign + 1]
    a = [*ends * len(ends), *(int(x) & top for x in rng.integers(0, 1 << 63, n))]
    b = [x for x in ends for _ in ends]
    for i, word in enumerate(a[len(b) :]):
        near = [word ^ form.sign, word + 1, word - 1, word + 3, word, int(rng.integers(0, 1 << 62))]
        b.append(near[i % len(near)] & top)
    return np.array(a, form.dtype), np.array(b, form.dtype)


@pytest.mark.parametrize("name", TYPES)
def test_kinds_are_those_of_a_plain_loop(name: str) -> None:
    a, b = pairs(name)
    expected: dict[str, int] = {}
    worst, largest = 0, 0.0
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        if x != y:
            kind = kind_of(x, y, name)
            expected[kind] = expected.get(kind, 0) + 1
            values = [float(np.array([w], a.dtype).view(TYPES[name])[0]) for w in (x, y)]
            if np.isfinite(values).all():
                worst = max(worst, abs(ordinal(x, name) - ordinal(y, name)))
                largest = max(largest, min(abs(values[0] - values[1]), np.finfo(np.float64).max))
    counted = tally(name, a, b)
    difference = counted.difference(plan_of(ELEMENT_TYPES[name], a.shape), claim_of(a.shape))
    assert counted.kinds == expected
    assert counted.n_differ == int((a != b).sum()) == sum(expected.values())
    assert difference is not None
    assert (difference.worst_ulp, difference.max_abs) == (worst, largest)
    assert len(expected) >= 6


@pytest.mark.parametrize("name", ["F32", "F8_E4M3", "I32", "C64", "C128"])
def test_parts_merge_to_the_same_in_any_order(name: str) -> None:
    rng = np.random.default_rng(2)
    element = ELEMENT_TYPES[name]
    n = 3 * BLOCK + 17
    raw = rng.integers(0, 256, (2, n * element.n_bytes), np.uint8)
    a, b = (half.view(f"u{min(8, element.n_bytes)}") for half in raw)
    if name == "C128":
        a, b = a.reshape(-1, 2), b.reshape(-1, 2)
    b[::3] = a[::3]
    equality = Equality("within", atol=1.0, rtol=0.5)
    claim, plan = claim_of((n,), equality), plan_of(element, (n,))
    one = Tally(element, equality)
    one.add(a, b, here)
    cuts = sorted(random.Random(1).sample(range(n), 9))
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, n], strict=True):
        part = Tally(element, equality)
        part.add(a[start:stop], b[start:stop], lambda i, start=start: here(i + start))
        parts.append(part)
    for seed in range(3):
        random.Random(seed).shuffle(parts)
        merged = Tally(element, equality)
        for part in parts:
            merged.merge(part)
        assert merged.difference(plan, claim) == one.difference(plan, claim)
        assert merged.verdict(claim) == one.verdict(claim)
    assert one.n_differ == int((a != b).reshape(n, -1).any(axis=1).sum()) > 0


def test_first_and_last_have_an_index_on_both_sides() -> None:
    source, target = np.arange(12, dtype=np.uint32), np.arange(12, dtype=np.uint32)
    expected = np.ascontiguousarray(source.reshape(3, 4).T).reshape(-1)
    target[:] = expected
    target[[2, 9]] ^= np.uint32(0x80000000)
    stores = [
        Store(side, "npz", {name: Leaf((Name(name),), shape, ELEMENT_TYPES["F32"], Held(b""))}, ())
        for side, name, shape in (("source", "w", (3, 4)), ("target", "v", (4, 3)))
    ]
    claim = replace(claim_of((3, 4)), layout=permute(whole("w", (3, 4)), (1, 0)))
    counted = Tally(ELEMENT_TYPES["F32"], Equality())
    counted.add(expected, target, lambda i: (i, "w", (i % 3) * 4 + i // 3))
    found = counted.difference(Plan(stores[0], stores[1], (claim,)), claim)
    assert found is not None
    assert (found.first.target_index, found.first.source_index) == ((0, 2), (2, 0))
    assert (found.last.target_index, found.last.source_index) == ((3, 0), (0, 3))
    assert (found.first.expected_bits, found.first.found_bits) == ("0x00000008", "0x80000008")
    assert found.kinds == {"sign": 2}


def test_a_constant_has_no_source() -> None:
    counted = Tally(ELEMENT_TYPES["F32"], Equality())
    counted.add(np.zeros(3, np.uint32), np.array([0, 0, 1], np.uint32), lambda i: (i, "", 0))
    found = counted.difference(plan_of(ELEMENT_TYPES["F32"], (3,)), claim_of((3,)))
    assert found is not None
    assert (found.last.source, found.last.source_index, found.last.target_index) == ("", (), (2,))
    assert (found.first.expected, found.first.found) == ("0.0", "1e-45")


def test_blocks_and_packed_pairs_and_integers_have_kinds_of_their_own() -> None:
    block = Tally(ElementType("Q8_0", 34, 32), Equality())
    rows = np.zeros((5, 34), np.uint8)
    other = rows.copy()
    other[3, 7:9] = 1
    block.add(rows, other, here)
    assert (block.kinds, block.n_differ) == ({"bytes": 1}, 1)
    nibbles = Tally(ElementType("I4", 1, 2), Equality())
    nibbles.add(np.zeros(4, np.uint8), np.array([1, 0x10, 0x11, 0], np.uint8), here)
    assert nibbles.kinds == {"low_nibble": 1, "high_nibble": 1, "both_nibbles": 1}
    counted = tally("I8", np.array([0x80, 3], np.uint8), np.array([0x7F, 3], np.uint8))
    found = counted.difference(plan_of(ELEMENT_TYPES["I8"], (2,)), claim_of((2,)))
    assert found is not None
    assert (found.max_abs, found.first.expected, found.first.found) == (255.0, "-128", "127")


# --- verdicts


def judged(a: list[float], b: list[float], equality: Equality) -> str:
    """The verdict over float32 numbers."""
    words = [np.array(x, np.float32).view(np.uint32) for x in (a, b)]
    return tally("F32", *words, equality).verdict(claim_of((len(a),), equality))[0]


def test_bits_are_bits() -> None:
    assert judged([0.0], [-0.0], Equality()) == "FAIL"
    assert judged([np.nan], [np.nan], Equality()) == "EXACT_BITS"
    claim = replace(claim_of((2, 3)), layout=permute(whole("w", (2, 3)), (1, 0)))
    assert Tally(ELEMENT_TYPES["F32"], Equality()).verdict(claim)[0] == "EXACT_UNDER"


def test_values_forgive_zeros_and_payloads_only() -> None:
    values = Equality("values")
    assert judged([0.0, np.nan, 1.0], [-0.0, -np.nan, 1.0], values) == "EXACT_VALUES"
    assert judged([0.0], [1e-45], values) == "FAIL"
    assert judged([np.nan], [np.inf], values) == "FAIL"


@pytest.mark.parametrize(
    ("a", "b", "equality", "verdict"),
    [
        (1.0, np.nextafter(np.float32(1), 2), Equality("within", ulp=1), "WITHIN"),
        (1.0, 1.0000003, Equality("within", ulp=1), "FAIL"),
        (1.0, 1.01, Equality("within", atol=0.1), "WITHIN"),
        (1.0, 1.2, Equality("within", atol=0.1), "FAIL"),
        (-10.0, -10.5, Equality("within", rtol=0.1), "WITHIN"),
        (np.nan, 1.0, Equality("within", atol=1e30), "FAIL"),
        (1.0, np.nan, Equality("within", ulp=1 << 31), "FAIL"),
        (np.inf, 3.4028235e38, Equality("within", ulp=5, atol=np.inf), "FAIL"),
        (np.nan, -np.nan, Equality("within", ulp=0), "WITHIN"),
        (1.0, 1.0, Equality("within", ulp=0), "EXACT_BITS"),
    ],
)
def test_bounds_hold_for_numbers_only(a: float, b: float, equality: Equality, verdict: str) -> None:
    assert judged([a], [b], equality) == verdict


def test_equal_bits_under_an_inexact_move_are_not_exact() -> None:
    move = value_move("exp", ELEMENT_TYPES["F32"], [], {})
    claim = replace(claim_of((2,)), values=(move,))
    verdict, why = Tally(ELEMENT_TYPES["F32"], Equality()).verdict(claim)
    assert verdict == "WITHIN"
    assert "exp" in why


def test_one_flipped_bit_is_seen_wherever_it_is() -> None:
    rng = np.random.default_rng(4)
    for name in ("F32", "BF16", "F8_E4M3", "F64", "I16"):
        dtype = f"u{ELEMENT_TYPES[name].n_bytes}"
        a = rng.integers(0, 255, (2 * BLOCK + 3) * int(dtype[1:]), np.uint8).view(dtype)
        for bit in range(8 * int(dtype[1:])):
            b, at = a.copy(), int(rng.integers(len(a)))
            b[at] ^= a.dtype.type(1 << bit)
            counted = tally(name, a, b)
            found = counted.difference(plan_of(ELEMENT_TYPES[name], a.shape), claim_of(a.shape))
            assert found is not None
            assert (counted.n_differ, found.first.target_index) == (1, (at,))


def test_the_scratch_is_bounded() -> None:
    import tracemalloc

    a = np.random.default_rng(0).integers(0, 1 << 32, 4_000_000, np.uint32)
    b = ~a
    tracemalloc.start()
    tally("F32", a, b, Equality("within", ulp=1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * BLOCK, f"{peak} bytes for blocks of {BLOCK}"
    assert FLOAT_KINDS[0] == "other"
