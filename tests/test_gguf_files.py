"""GGUF files: bytes in place, numbers as the gguf package has them, splits, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.errors import InputError
from lockstep.formats import GGUFFile
from lockstep.formats.dequantise import SUPPORTED

SHAPES = {"matrix": (6, 512), "vector": (256,), "cube": (2, 3, 256)}


def block_bytes(name: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    """Random bytes of a tensor of this type."""
    element = SUPPORTED[name]
    n_row = shape[-1] // element.n_numbers * element.n_bytes
    return np.random.default_rng(seed).integers(0, 120, (*shape[:-1], n_row), np.uint8)


def write(path: Path, tensors: dict[str, tuple[str, NDArray[Any]]], **metadata: int) -> Path:
    """A file of the gguf package with tensors given as bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        writer.add_uint16(key.replace("_", "."), value)
    for name, (stored, raw) in tensors.items():
        kind = gguf.GGMLQuantizationType[stored]
        plain = {"F32": np.float32, "F16": np.float16}.get(stored)
        writer.add_tensor(name, raw if plain is None else raw.view(plain), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("stored", SUPPORTED)
def test_tensors_are_those_of_the_gguf_package(tmp_path: Path, stored: str) -> None:
    tensors = {n: (stored, block_bytes(stored, s, len(s))) for n, s in SHAPES.items()}
    path = write(tmp_path / "m.gguf", tensors)
    file = GGUFFile(path)
    file.require_supported()
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, shape in SHAPES.items():
        assert file.shapes[name] == shape
        assert file.stored[name] == stored
        raw = file.raw(name)
        assert raw.shape == (int(np.prod(shape[:-1])), tensors[name][1].shape[-1])
        assert raw.tobytes() == tensors[name][1].tobytes()
        expected = gguf.quants.dequantize(
            theirs[name].data.view(np.uint8), theirs[name].tensor_type
        )
        assert file.read(name).shape == shape
        np.testing.assert_array_equal(file.read(name), expected.reshape(shape))


def test_bytes_are_read_only_and_in_place(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"x": ("Q8_0", block_bytes("Q8_0", (4, 64)))})
    file = GGUFFile(path)
    first, second = file.raw("x"), file.raw("x")
    assert np.shares_memory(first, second)
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1
    file.read("x")[0, 0] = 1  # a copy is the caller's


def test_a_type_that_is_not_supported_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    plain = block_bytes("F32", (2, 32))
    packed = np.zeros((2, 136), np.uint8)
    path = write(tmp_path / "m.gguf", {"good": ("F32", plain), "bad.weight": ("IQ4_XS", packed)})
    file = GGUFFile(path)
    file.read("good")
    file.require_supported(["good"])
    assert file.raw("bad.weight").shape == (2, 136)
    for ask in (file.require_supported, lambda: file.read("bad.weight")):
        with pytest.raises(InputError, match=r"bad\.weight: IQ4_XS"):
            ask()
    with pytest.raises(InputError, match="expected a tensor other"):
        file.raw("other")


def test_a_file_that_shrinks_after_it_was_listed_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"x": ("F32", block_bytes("F32", (4, 64)))})
    file = GGUFFile(path)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(InputError, match="changed while it was read"):
        file.read("x")


def split(folder: Path) -> list[Path]:
    """Three files of one split, the first of which has the metadata and no tensors."""
    held: list[dict[str, tuple[str, NDArray[Any]]]] = [
        {},
        {"a": ("Q8_0", block_bytes("Q8_0", (4, 64), 1))},
        {"b": ("F32", block_bytes("F32", (3, 4), 2))},
    ]
    return [
        write(folder / f"m-{i + 1:05d}-of-00003.gguf", tensors, split_no=i, split_count=3)
        for i, tensors in enumerate(held)
    ]


@pytest.mark.parametrize("named", [0, 1, 2])
def test_a_split_is_one_file_whichever_is_named(tmp_path: Path, named: int) -> None:
    file = GGUFFile(split(tmp_path)[named])
    assert set(file.shapes) == {"a", "b"}
    assert file.raw("a").tobytes() == block_bytes("Q8_0", (4, 64), 1).tobytes()
    assert file.read("b").tobytes() == block_bytes("F32", (3, 4), 2).tobytes()
    assert file.metadata["general.architecture"] == "llama"


def test_missing_files_of_a_split_are_named(tmp_path: Path) -> None:
    paths = split(tmp_path)
    paths[0].unlink()
    paths[2].unlink()
    with pytest.raises(InputError, match=r"missing are m-00001-of-00003\.gguf, m-00003"):
        GGUFFile(paths[1])


def test_a_big_endian_file_is_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("x", np.ones((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="got a big-endian one"):
        GGUFFile(tmp_path / "m.gguf")


def test_version_2_is_read_as_version_3(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"x": ("F32", block_bytes("F32", (2, 4)))})
    before = GGUFFile(path).read("x").tobytes()
    raw = bytearray(path.read_bytes())
    raw[4] = 2
    path.write_bytes(raw)
    assert GGUFFile(path).read("x").tobytes() == before
