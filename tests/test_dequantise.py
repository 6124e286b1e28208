"""Blocks of GGML to numbers and back, to the bit as the gguf package has them."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lockstep.formats.dequantise import SUPPORTED, dequantise

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
