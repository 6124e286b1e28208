"""Value moves: every pattern of short types and the borders of long ones, against others."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lockstep.errors import UsageError
from lockstep.formats.leaf import ELEMENT_TYPES, ElementType
from lockstep.verify.numbers.float_formats import FLOATS, FloatFormat, decode
from lockstep.verify.numbers.rounding import CHOICES, Rules, encode
from lockstep.verify.numbers.values import BLOCKS, value_move

TYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
}
SHORT = [name for name in TYPES if FLOATS[name].n_bytes <= 2]


def patterns(form: FloatFormat) -> NDArray[Any]:
    """All patterns of a short type; of a long one the borders of every type, and random ones."""
    if form.n_bytes <= 2:
        return np.arange(1 << (8 * form.n_bytes), dtype=np.uint32).astype(form.dtype)
    rng = np.random.default_rng(7)
    exponents = np.arange(form.n_exponents + 1, dtype=np.uint64) << np.uint64(form.n_mantissa)
    near = {0, 1, 2, 3, (1 << form.n_mantissa) - 1}
    for other in FLOATS.values():
        if other.n_mantissa < form.n_mantissa:
            last = 1 << (form.n_mantissa - other.n_mantissa)
            top = (1 << form.n_mantissa) - last
            near |= {k + d for k in (0, last // 2, last, last * 3 // 2, top) for d in (-1, 0, 1)}
            near |= {top + last // 2 + d for d in (-1, 0, 1)}
    mantissas = np.array([m for m in near if 0 <= m < 1 << form.n_mantissa], np.uint64)
    words = (exponents[:, None] | mantissas).reshape(-1)
    random = rng.integers(0, 1 << 64, 60_000, dtype=np.uint64) >> np.uint64(64 - 8 * form.n_bytes)
    words = np.concatenate([words, random & np.uint64(form.sign - 1)])
    return np.concatenate([words, words | np.uint64(form.sign)]).astype(form.dtype)


def moved(name: str, source: str, words: NDArray[Any], *args: object, **options: object) -> Any:
    """A move applied to words."""
    return value_move(name, ELEMENT_TYPES[source], args, options).apply(words)


def is_nan(words: NDArray[Any], name: str) -> NDArray[np.bool_]:
    """Which words are NaN, as ml_dtypes and numpy see it."""
    with np.errstate(all="ignore"):
        return np.isnan(words.view(TYPES[name]))


@cache
def number(word: int, form: FloatFormat) -> Fraction | None:
    """The exact number of one pattern, worked out from the definition; None if it has none."""
    sign, magnitude = (-1 if word & form.sign else 1), word & (form.sign - 1)
    field, mantissa = divmod(magnitude, 1 << form.n_mantissa)
    if magnitude > form.largest or (form.ends == "fnuz" and word == form.sign):
        return None
    lead = 1 if field else 0
    scale = Fraction(2) ** (max(field, 1) - form.bias - form.n_mantissa)
    return sign * (lead * (1 << form.n_mantissa) + mantissa) * scale


# which rule for NaN is whose: (source, target, library): rule
NAN_RULES = {
    ("F32", "F16", "numpy"): "raw",
    ("F16", "F32", "numpy"): "raw",
    ("F64", "F16", "numpy"): "raw",
    ("F64", "F32", "numpy"): "keep",
    ("F32", "F64", "numpy"): "keep",
    ("F32", "BF16", "ml_dtypes"): "sign",
    ("BF16", "F32", "ml_dtypes"): "raw",
    ("F32", "F8_E5M2", "ml_dtypes"): "sign",
    ("F32", "F8_E4M3", "ml_dtypes"): "sign",
    ("F8_E4M3", "F32", "ml_dtypes"): "keep",
}


@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("source", TYPES)
def test_casts_are_those_of_numpy_and_ml_dtypes(source: str, target: str) -> None:
    words = patterns(FLOATS[source])
    with np.errstate(all="ignore"):
        theirs = words.view(TYPES[source]).astype(TYPES[target]).view(FLOATS[target].dtype)
    through = source == "F64" and target not in ("F64", "F32", "F16")
    first = moved("cast", source, words, "F32", nan="sign") if through else words
    made = moved("cast", "F32" if through else source, first, target, nan="sign")
    nan = is_nan(words, source)
    np.testing.assert_array_equal(made[~nan], theirs[~nan])
    assert is_nan(made[nan], target).all()
    if through:  # what ml_dtypes makes of float64 is rounded twice, which is another claim
        once = moved("cast", source, words, target, nan="sign")
        assert (once != theirs).any()


@pytest.mark.parametrize(("source", "target", "library"), NAN_RULES)
def test_each_library_s_nan_has_a_rule(source: str, target: str, library: str) -> None:
    words = patterns(FLOATS[source])
    with np.errstate(all="ignore"):
        theirs = words.view(TYPES[source]).astype(TYPES[target]).view(FLOATS[target].dtype)
    rule = NAN_RULES[source, target, library]
    np.testing.assert_array_equal(moved("cast", source, words, target, nan=rule), theirs)


def test_the_bf16_of_gguf_is_the_default() -> None:
    import gguf

    words = patterns(FLOATS["F32"])
    row = words.view(np.float32).reshape(1, -1)
    theirs = gguf.quants.quantize(row, gguf.GGMLQuantizationType.BF16).view(np.uint16)
    np.testing.assert_array_equal(moved("cast", "F32", words, "BF16"), theirs.reshape(-1))


@pytest.mark.torch
@pytest.mark.parametrize("target", ["BF16", "F16", "F8_E4M3", "F8_E5M2", "F8_E5M2FNUZ"])
def test_casts_are_those_of_torch(target: str) -> None:
    import torch

    dtype = {
        "BF16": torch.bfloat16,
        "F16": torch.float16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    }[target]
    words = patterns(FLOATS["F32"])
    made = torch.from_numpy(words.view(np.float32)).to(dtype)
    short = torch.int16 if FLOATS[target].n_bytes == 2 else torch.uint8
    theirs = made.view(short).numpy().view(FLOATS[target].dtype)
    saturates = {True: "saturate", False: "inf"}[theirs[words == 0x7F7FFFFF][0] == 0x7E]
    options = {"overflow": saturates} if target == "F8_E4M3" else {}
    ours = moved("cast", "F32", words, target, **options)
    nan = is_nan(words, "F32")
    np.testing.assert_array_equal(ours[~nan], theirs[~nan])
    rules = [
        rule
        for rule in CHOICES["nan"]
        if (moved("cast", "F32", words, target, **options, nan=rule) == theirs).all()
    ]
    assert rules, "no rule is torch's; which one is depends on how torch was built"


@pytest.mark.parametrize("rounding", ["RNE", "RTZ"])
@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("source", TYPES)
def test_roundings_are_those_of_exact_fractions(source: str, target: str, rounding: str) -> None:
    """The neighbours of each result, as fractions, on a sample of patterns."""
    words = patterns(FLOATS[source])[:: 1 if FLOATS[source].n_bytes == 1 else 251]
    form = FLOATS[target]
    made = moved("cast", source, words, target, rounding=rounding, overflow="saturate")
    for word, result in zip(words.tolist(), made.tolist(), strict=True):
        value = number(word, FLOATS[source])
        if value is None:
            continue
        got = number(result, form)
        largest = number(form.largest, form)
        assert got is not None
        assert largest is not None
        assert got * value >= 0
        if abs(value) >= largest:
            assert abs(got) == largest
            continue
        magnitude = result & (form.sign - 1)
        up, down = number(magnitude + 1, form), number(max(magnitude - 1, 0), form)
        error = abs(abs(got) - abs(value))
        if rounding == "RTZ":
            assert abs(got) <= abs(value)
            assert up is None or abs(value) < up
        else:
            for other in {up, down} - {None, abs(got)}:
                gap = abs(other - abs(value))
                assert error < gap or (error == gap and magnitude % 2 == 0)


def test_the_sign_of_zero_and_of_what_vanishes_stays() -> None:
    words = np.array([0x80000000, 0x80000001, 0x00000001], np.uint32)
    assert moved("cast", "F32", words, "F16").tolist() == [0x8000, 0x8000, 0]
    assert moved("cast", "F32", words, "F8_E4M3FNUZ").tolist() == [0, 0, 0]


def test_flush_makes_zero_of_subnormal_inputs_and_results() -> None:
    words = np.array([0x007FFFFF, 0x807FFFFF, 0x00800000, 0x387FFFFF, 0x387FC000], np.uint32)
    kept = moved("cast", "F32", words, "BF16")
    flushed = moved("cast", "F32", words, "BF16", subnormals="flush")
    assert kept.tolist()[:3] == [0x0080, 0x8080, 0x0080]
    assert flushed.tolist()[:3] == [0, 0x8000, 0x0080]
    # 2**-14 is the smallest normal half: what rounds up to it is not subnormal after rounding
    halves = moved("cast", "F32", words[3:], "F16", subnormals="flush")
    assert halves.tolist() == [0x0400, 0]


def test_overflow_is_by_the_rule() -> None:
    words = np.array([65519.0, 65520.0, -1e9, np.inf], np.float32).view(np.uint32)
    assert moved("cast", "F32", words, "F16").tolist() == [0x7BFF, 0x7C00, 0xFC00, 0x7C00]
    saturated = moved("cast", "F32", words, "F16", overflow="saturate")
    assert saturated.tolist() == [0x7BFF, 0x7BFF, 0xFBFF, 0x7BFF]
    assert moved("cast", "F32", words, "F8_E4M3").tolist() == [0x7F, 0x7F, 0xFF, 0x7F]
    assert moved("cast", "F32", words, "F8_E4M3FNUZ").tolist() == [0x80] * 4


def test_truncation_is_the_upper_half_of_a_float() -> None:
    words = patterns(FLOATS["F32"])
    finite = ~is_nan(words, "F32")
    made = moved("cast", "F32", words, "BF16", rounding="RTZ", nan="raw")
    np.testing.assert_array_equal(made[finite], (words >> np.uint32(16))[finite])
    assert (made != moved("cast", "F32", words, "BF16")).any()  # the rules are not the same


@pytest.mark.parametrize("nan", ["keep", "raw", "sign", "canonical", "ones", "all_ones"])
@pytest.mark.parametrize("rounding", ["RNE", "RTZ"])
def test_the_short_way_to_bf16_is_the_long_one(rounding: str, nan: str) -> None:
    words = patterns(FLOATS["F32"])
    rules = Rules(rounding=rounding, nan=nan)
    long = encode(decode(words, FLOATS["F32"]), FLOATS["BF16"], rules)
    short = moved("cast", "F32", words, "BF16", rounding=rounding, nan=nan)
    np.testing.assert_array_equal(short, long)


@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("source", TYPES)
def test_widening_comes_back_or_is_refused(source: str, target: str) -> None:
    words = patterns(FLOATS[source])
    there = moved("cast", source, words, target, nan="raw")
    back = moved("cast", target, there, source, nan="raw")
    numbers = ~is_nan(words, source)
    if not FLOATS[target].holds(FLOATS[source]):
        assert (back != words)[numbers].any()
        with pytest.raises(UsageError, match="expected a type that holds every"):
            moved("widen", source, words, target)
        return
    np.testing.assert_array_equal(moved("widen", source, words, target), there)
    np.testing.assert_array_equal(back, words)


def test_scales_of_float8_are_powers_of_two() -> None:
    words = np.arange(256, dtype=np.uint8)
    theirs = words.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    made = moved("widen", "F8_E8M0", words, "F32")
    np.testing.assert_array_equal(made.view(np.float32), theirs)


INTEGERS = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")


@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("source", INTEGERS)
def test_integers_are_cast_as_numpy_does(source: str, target: str) -> None:
    here, there = (np.dtype(f"{t[0].lower()}{int(t[1:]) // 8}") for t in (source, target))
    info = np.iinfo(here)
    near = [info.min, info.min + 1, 0, 1, info.max - 1, info.max, info.max // 2, 100]
    near += [v for v in (-1, -128, -129) if v >= info.min]
    values = np.array(near, here)
    words = values.view(f"u{here.itemsize}")
    theirs = values.astype(there).view(f"u{there.itemsize}")
    wrapped = moved("cast", source, words, target, overflow="wrap")
    np.testing.assert_array_equal(wrapped, theirs)
    limits = np.iinfo(there)
    clipped = [max(limits.min, min(limits.max, int(v))) for v in values]
    saturated = moved("cast", source, words, target, overflow="saturate").view(there)
    assert saturated.tolist() == clipped
    if np.can_cast(here, there, "safe"):
        np.testing.assert_array_equal(moved("widen", source, words, target), theirs)
    else:
        with pytest.raises(UsageError, match="holds every"):
            value_move("cast", ELEMENT_TYPES[source], [target], {})


@pytest.mark.parametrize("target", ["F16", "F32", "F64"])
@pytest.mark.parametrize("source", INTEGERS)
def test_integers_become_the_nearest_floats(source: str, target: str) -> None:
    dtype = np.dtype(f"{source[0].lower()}{int(source[1:]) // 8}")
    info = np.iinfo(dtype)
    rng = np.random.default_rng(3)
    values = rng.integers(info.min, info.max, 2000, dtype, endpoint=True)
    values = np.concatenate([values, np.array([info.min, info.max, 0, 1], dtype)])
    if dtype.itemsize >= 4:
        values = np.concatenate([values, np.array([16777217, 16777219], dtype)])
    made = moved("cast", source, values.view(f"u{dtype.itemsize}"), target)
    with np.errstate(over="ignore"):
        theirs = values.astype(TYPES[target])
    np.testing.assert_array_equal(made.view(TYPES[target]), theirs)


# --- arithmetic


@pytest.mark.parametrize("source", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("factor", [0.5, -2.0, 2.0**-24, 2.0**40, 0.3, -1.0001, 1e-30, 3])
def test_scales_are_those_of_ieee(source: str, factor: float) -> None:
    words = patterns(FLOATS[source])
    words = words[~is_nan(words, source)]
    compute = "F64" if source == "F64" else "F32"
    made = moved("scale", source, words, factor, compute=compute)
    step = TYPES[compute]
    with np.errstate(all="ignore"):
        theirs = (words.view(TYPES[source]).astype(step) * step(factor)).astype(TYPES[source])
    np.testing.assert_array_equal(made, theirs.view(FLOATS[source].dtype))


@pytest.mark.parametrize("power", [-130, -24, -1, 0, 1, 24, 130])
def test_a_power_of_two_is_exact_in_every_type(power: int) -> None:
    for name, form in FLOATS.items():
        words = patterns(form)[::7]
        words = words[~is_nan(words, name)]
        made = moved("scale", name, words, 2.0**power)
        wide = moved("cast", name, words, "F64").view(np.float64)
        with np.errstate(all="ignore"):
            scaled = (wide * 2.0**power).view(np.uint64)
        if name != "F64":  # float64 holds these products exactly
            np.testing.assert_array_equal(made, moved("cast", "F64", scaled, name))
        else:
            np.testing.assert_array_equal(made, scaled)


@pytest.mark.parametrize(("move", "one"), [("add_one", 1), ("subtract_one", -1)])
@pytest.mark.parametrize("source", ["F64", "F32", "F16", "BF16"])
def test_one_is_added_as_ieee_does(source: str, move: str, one: int) -> None:
    words = patterns(FLOATS[source])
    words = words[~is_nan(words, source)]
    made = moved(move, source, words)
    with np.errstate(all="ignore"):
        values = words.view(TYPES[source])
        theirs = (values + TYPES[source](one)).astype(TYPES[source])
    if source in ("BF16", "F16"):  # rounded once from the exact sum, which float64 nearly holds
        theirs = moved("cast", "F64", (values.astype(np.float64) + one).view(np.uint64), source)
    np.testing.assert_array_equal(made, theirs.view(FLOATS[source].dtype))


def test_the_type_of_the_product_is_part_of_the_claim() -> None:
    words = patterns(FLOATS["BF16"])
    own, wide = (
        moved("scale", "BF16", words, 0.3),
        moved("scale", "BF16", words, 0.3, compute="F32"),
    )
    assert (own != wide).any()
    move = value_move("scale", ELEMENT_TYPES["BF16"], [0.3], {"compute": "F32"})
    assert move.text == "scale(0.3, compute=F32)"


def test_negation_turns_the_sign_and_nothing_else() -> None:
    assert moved("negate", "F32", np.array([0, 0x7FA00001], np.uint32)).tolist() == [
        0x80000000, 0xFFA00001,
    ]  # fmt: skip
    assert moved("negate", "F8_E4M3FNUZ", np.array([0, 0x80, 1], np.uint8)).tolist() == [
        0,
        128,
        129,
    ]
    assert moved("negate", "I8", np.array([1, 0x80], np.uint8)).tolist() == [255, 0x80]


def test_exp_is_near_and_is_not_called_exact() -> None:
    move = value_move("exp", ELEMENT_TYPES["F32"], [], {})
    values = np.linspace(-80, 80, 1001, dtype=np.float32)
    np.testing.assert_allclose(move.apply(values.view("u4")).view("f4"), np.exp(values), rtol=1e-6)
    assert not move.exact


# --- blocks


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_those_of_gguf(name: str) -> None:
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    n_numbers, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows = np.random.default_rng(5).integers(0, 256, (4000, n_bytes), np.uint8)
    rows[0] = 0
    element = ElementType(name, n_bytes, n_numbers)
    move = value_move("dequant", element, ["F32"], {})
    assert move.expands == n_numbers
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(rows, kind).reshape(-1)
    words = np.where(np.isnan(theirs), np.uint32(0x7FC00000), theirs.view(np.uint32))
    np.testing.assert_array_equal(move.apply(rows), words)


def test_a_scale_that_is_no_number_gives_one_nan() -> None:
    rows = np.zeros((1, 34), np.uint8)
    rows[0, :2] = 0x01, 0xFC  # a signalling NaN with a sign
    made = value_move("dequant", ElementType("Q8_0", 34, 32), ["F32"], {}).apply(rows)
    assert set(made.tolist()) == {0x7FC00000}


# --- what is refused


@pytest.mark.parametrize(
    ("name", "element", "args", "options", "message"),
    [
        ("cast", "F32", ["F33"], {}, "name of a type"),
        ("cast", "F32", ["BF16"], {"rounding": "stochastic"}, "expected one of RNE, RTZ"),
        ("cast", "F32", ["BF16"], {"nearest": "even"}, "'nearest'"),
        ("cast", "F32", ["I32"], {}, "floating point"),
        ("cast", "I64", ["I32"], {}, "holds every I64"),
        ("cast", "C64", ["F32"], {}, "C64"),
        ("cast", "F32", [], {}, "1 arguments"),
        ("widen", "F16", ["BF16"], {}, "holds every F16"),
        ("widen", "I32", ["F32"], {}, "holds every I32"),
        ("scale", "F32", [0], {}, "not 0"),
        ("scale", "F32", [float("nan")], {}, "finite"),
        ("scale", "F64", [0.3], {"compute": "F32"}, "holds every F64"),
        ("scale", "I32", [2], {}, "I32"),
        ("dequant", "F32", ["F32"], {}, "blocks"),
        ("sqrt", "F32", [], {}, "sqrt"),
    ],
)
def test_what_is_not_specified_is_refused(
    name: str, element: str, args: list[object], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        value_move(name, ELEMENT_TYPES[element], args, options)


def test_every_choice_is_written_out() -> None:
    move = value_move("cast", ELEMENT_TYPES["F32"], ["BF16"], {"overflow": "saturate"})
    assert move.text == "cast(BF16, rounding=RNE, subnormals=keep, nan=keep, overflow=saturate)"


@given(st.integers(0, 2**64 - 1), st.sampled_from(sorted(FLOATS)))
def test_a_pattern_read_and_written_is_itself(word: int, name: str) -> None:
    form = FLOATS[name]
    words = np.array([word & (2 * form.sign - 1)], form.dtype)
    assert encode(decode(words, form), form, Rules(nan="raw")).tolist() == words.tolist()
