"""Packed weights: the numbers of the file, whatever the type, told by the `gguf` package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.errors import UsageError
from lockstep.ops import panels
from lockstep.ops.stored import BLOCKS

RNG = np.random.default_rng(0)


def rows_of(stored: str, n: int, k: int, rng: np.random.Generator = RNG) -> NDArray[np.uint8]:
    """Random bytes of rows of a stored type: any bits that a file may hold."""
    if stored in panels.FLOATS:
        size = panels.FLOATS[stored]
        return rng.integers(0, 256, (n, k * size), dtype=np.uint8)
    block = 256 if panels.LAYOUTS[stored].sub else panels.BLOCK
    return rng.integers(0, 256, (n, k // block * BLOCKS[stored][0]), dtype=np.uint8)


def of_the_package(stored: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The numbers of rows, as the `gguf` package reads them."""
    with np.errstate(all="ignore"):
        kind = gguf.GGMLQuantizationType[stored]
        return np.asarray(gguf.dequantize(raw.copy(), kind), np.float32)


@pytest.mark.parametrize("stored", panels.STORED)
@pytest.mark.parametrize(("n", "k"), [(16, 256), (5, 768), (50, 512), (1, 2304)])
def test_packed_weights_are_those_of_the_file(stored: str, n: int, k: int) -> None:
    raw = rows_of(stored, n, k)
    packed = panels.pack(stored, raw, k)
    assert packed.shape == (panels.n_bytes(stored, n, k),)
    expected, got = of_the_package(stored, raw), panels.dequantise(stored, packed, n, k)
    bad = np.isnan(expected)  # whose bits no one promises
    assert np.array_equal(bad, np.isnan(got))
    assert np.array_equal(expected[~bad].view(np.uint32), got[~bad].view(np.uint32))


@pytest.mark.parametrize("stored", ["Q8_0", "Q4_0", "Q5_1", "MXFP4", "F16"])
@pytest.mark.parametrize("k", [32, 96, 992])
def test_rows_of_an_odd_number_of_blocks(stored: str, k: int) -> None:
    raw = rows_of(stored, 19, k)
    packed = panels.pack(stored, raw, k)
    expected, got = of_the_package(stored, raw), panels.dequantise(stored, packed, 19, k)
    assert np.array_equal(expected, got, equal_nan=True)


def test_floats_have_rows_of_any_length() -> None:
    w = RNG.standard_normal((21, 77)).astype(np.float32)
    packed = panels.pack("F32", w.view(np.uint8), 77)
    assert np.array_equal(panels.dequantise("F32", packed, 21, 77), w)


def test_packing_in_chunks_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = rows_of("Q5_K", 100, 512)
    whole = panels.pack("Q5_K", raw, 512)
    monkeypatch.setattr(panels, "CHUNK_BYTES", 1)
    assert np.array_equal(panels.pack("Q5_K", raw, 512), whole)


@pytest.mark.parametrize(
    ("stored", "bits"),
    [("Q8_0", 8.5), ("Q4_0", 4.5), ("Q5_0", 5.5), ("Q4_K", 4.63), ("Q5_K", 5.63), ("Q6_K", 6.63)],
)
def test_bits_per_weight_stay_close_to_the_file(stored: str, bits: float) -> None:
    assert 8 * panels.n_bytes(stored, 1024, 1024) / 1024**2 <= bits


def test_what_does_not_pack_is_named() -> None:
    with pytest.raises(UsageError, match="IQ4_XS"):
        panels.n_bytes("IQ4_XS", 16, 256)
    with pytest.raises(UsageError, match="multiple of 256, got 896"):
        panels.n_bytes("Q4_K", 16, 896)
    with pytest.raises(UsageError, match="rows of 34 bytes"):
        panels.pack("Q8_0", np.zeros((16, 33), np.uint8), 32)
