"""Blocks of GGML to numbers and back, to the bit as the gguf package has them."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lockstep.errors import InputError
from lockstep.formats.dequantise import SUPPORTED, dequantise, is_finite
from lockstep.formats.quantise import WRITABLE, quantise

BLOCKS = [name for name, element in SUPPORTED.items() if element.n_numbers > 1]


def theirs(rows: NDArray[Any], name: str) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])


def same_bits(ours: NDArray[Any], other: NDArray[Any]) -> None:
    """Equal to the bit, but for the sign and the payload of what is no number."""
    assert ours.dtype == other.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(other))
    numbers = ~np.isnan(ours)
    np.testing.assert_array_equal(ours.view("<u4")[numbers], other.view("<u4")[numbers])


@pytest.mark.parametrize("name", SUPPORTED)
def test_numbers_are_those_of_gguf(name: str) -> None:
    """Random bytes: scales of every size, subnormal, infinite and not a number too."""
    rng = np.random.default_rng(11)
    rows = rng.integers(0, 256, (37, 7 * SUPPORTED[name].n_bytes), np.uint8)
    rows[0], rows[1] = 0, 255
    same_bits(dequantise(rows, name), theirs(rows, name))


@pytest.mark.parametrize("name", SUPPORTED)
def test_what_is_not_finite_is_found_in_any_block(name: str) -> None:
    """Random blocks one by one, then each that has it behind many that have not."""
    rng = np.random.default_rng(12)
    blocks = rng.integers(0, 256, (3000, SUPPORTED[name].n_bytes), np.uint8)
    finite = np.isfinite(theirs(blocks, name)).all(axis=1)
    assert 0 < (~finite).sum() < 2000
    assert [is_finite(block, name) for block in blocks] == finite.tolist()
    many = np.tile(blocks[finite], (40, 1))
    assert is_finite(many, name)
    for bad in blocks[~finite][:5]:
        many[-1] = bad
        assert not is_finite(many, name)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_pattern_of_16_bits_is_widened_exactly(name: str) -> None:
    patterns = np.arange(1 << 16, dtype="<u2")
    same_bits(dequantise(patterns.view(np.uint8), name), theirs(patterns.view(np.uint8), name))


def test_every_scale_and_quant_of_mxfp4() -> None:
    rows = np.zeros((256, 17), np.uint8)
    rows[:, 0] = np.arange(256)
    rows[:, 1:] = np.arange(16) * 17
    same_bits(dequantise(rows, "MXFP4"), theirs(rows, "MXFP4"))


@settings(deadline=None, max_examples=150)
@given(name=st.sampled_from(BLOCKS), data=st.data())
def test_any_block_is_that_of_gguf(name: str, data: st.DataObject) -> None:
    n_bytes = SUPPORTED[name].n_bytes
    rows = np.frombuffer(data.draw(st.binary(min_size=n_bytes, max_size=n_bytes)), np.uint8)
    same_bits(dequantise(rows, name), theirs(rows, name))


@pytest.mark.parametrize("shape", [(0, 34), (3, 0), (2, 3, 68), (34,)])
def test_rows_keep_their_axes(shape: tuple[int, ...]) -> None:
    rows = np.zeros(shape, np.uint8)
    assert dequantise(rows, "Q8_0").shape == (*shape[:-1], shape[-1] // 34 * 32)


def test_more_rows_than_are_unpacked_at_once() -> None:
    rows = np.random.default_rng(2).integers(0, 120, (700, 144), np.uint8)
    same_bits(dequantise(rows, "Q4_K"), theirs(rows, "Q4_K"))


def quantised(rows: NDArray[Any], name: str) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        made = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[name])
    return np.ascontiguousarray(made).view(np.uint8)


@pytest.mark.parametrize("name", WRITABLE)
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-20, 1e-5, 1.0, 60000.0])
def test_bytes_are_those_of_gguf(name: str, size: float) -> None:
    rng = np.random.default_rng(4)
    rows = (rng.uniform(-1, 1, (70, 1024)) * size).astype(np.float32)
    rows[3] = 0
    rows[4, ::3] = -0.0
    np.testing.assert_array_equal(quantise(rows, name, "x"), quantised(rows, name))


def test_ties_of_q8_0_are_rounded_away_from_zero() -> None:
    row = np.zeros((1, 32), np.float32)
    row[0, :8] = 127, 0.5, -0.5, 1.5, -1.5, 2.5, 126.5, -126.5
    made = quantise(row, "Q8_0", "x")
    np.testing.assert_array_equal(made, quantised(row, "Q8_0"))
    assert made[0, 2:10].view(np.int8).tolist() == [127, 1, -1, 2, -2, 3, 127, -127]


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_border_of_rounding_is_that_of_gguf(name: str) -> None:
    upper = np.arange(1 << 16, dtype=np.uint32)[:, None] << np.uint32(16)
    lower = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    rows = (upper | lower).view(np.float32)
    with np.errstate(all="ignore"):
        fits = np.abs(rows) < (65520 if name == "F16" else 3.3961775e38)
    rows = np.where(fits | ~np.isfinite(rows), rows, np.float32(0))
    np.testing.assert_array_equal(quantise(rows, name, "x"), quantised(rows, name))
    again = dequantise(quantise(rows, name, "x"), name)
    np.testing.assert_array_equal(np.isnan(again), np.isnan(rows))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-8e6, 8e6, width=32), min_size=32, max_size=32))
def test_any_block_is_written_as_gguf_writes_it(numbers: list[float]) -> None:
    row = np.array([numbers], np.float32)
    np.testing.assert_array_equal(quantise(row, "Q8_0", "x"), quantised(row, "Q8_0"))


@pytest.mark.parametrize(
    ("name", "number"),
    [("F16", 65520.0), ("BF16", 3.4e38), ("Q8_0", 1e7), ("Q8_0", np.nan), ("Q8_0", -np.inf)],
)
def test_a_number_beyond_the_type_is_refused(name: str, number: float) -> None:
    row = np.ones((1, 64), np.float32)
    row[0, 40] = number
    with pytest.raises(InputError, match=f"some name: expected numbers in the range of {name}"):
        quantise(row, name, "some name")


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(InputError, match=r"blocks of 32 for Q8_0, got 48"):
        quantise(np.ones((2, 48), np.float32), "Q8_0", "x")
