"""One set of arrays in every layout, read by the engine itself: the same digests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lockstep.formats.locate import numpy_files
from lockstep.formats.open_store import open_store
from lockstep.verify.engine.examine import Options, digest_store

RNG = np.random.default_rng(11)
ARRAYS: dict[str, NDArray[Any]] = {
    "f32": RNG.standard_normal((30, 40, 7)).astype(np.float32),
    "f64": RNG.standard_normal((2, 3, 50)),
    "f16": RNG.standard_normal(700).astype(np.float16),
    "c64": (RNG.standard_normal((20, 21)) + 1j).astype(np.complex64),
    "i64": np.array(-(2**62), dtype=np.int64),
    "bool": np.array([True, False, True]),
}


def fortran(array: NDArray[Any]) -> NDArray[Any]:
    return np.asfortranarray(array) if array.ndim else array


def big_endian(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(array.dtype.newbyteorder(">"))


def digests(path: Path) -> dict[str, str]:
    return digest_store(open_store(path), Options(jobs=1))


@pytest.mark.parametrize("layout", [np.array, fortran, big_endian])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_layouts_and_packings_have_the_digests_of_plain_safetensors(
    tmp_path: Path,
    save: Callable[..., None],
    layout: Callable[[NDArray[Any]], NDArray[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numpy_files, "CHUNK_ELEMENTS", 500)
    save_file(ARRAYS, tmp_path / "plain")
    save(tmp_path / "m.npz", **{name: layout(array) for name, array in ARRAYS.items()})
    expected = digests(tmp_path / "plain")
    assert set(expected) == set(ARRAYS)
    assert digests(tmp_path / "m.npz") == expected
    changed = {**ARRAYS, "f16": ARRAYS["f16"][::-1]}
    save(tmp_path / "m.npz", **{name: layout(array) for name, array in changed.items()})
    assert {n for n, d in digests(tmp_path / "m.npz").items() if d != expected[n]} == {"f16"}
