"""GGUF files of ours, read by the gguf package and compared with files of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.errors import EnvironmentLacks, InputError, UsageError
from lockstep.formats import GGUFFile, TensorToWrite, write_gguf
from lockstep.formats.quantise import WRITABLE

METADATA: dict[str, Any] = {
    "general.architecture": "qwen3",
    "general.name": "Größe ✓",
    "qwen3.block_count": 2,
    "qwen3.negative": -3,
    "qwen3.large": 1 << 40,
    "qwen3.very_negative": -(1 << 40),
    "qwen3.rope.freq_base": 1e6,
    "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
    "tokenizer.ggml.add_bos_token": False,
    "a.u8": np.uint8(200),
    "a.i8": np.int8(-100),
    "a.u16": np.uint16(60000),
    "a.i16": np.int16(-30000),
    "a.f64": np.float64(0.1),
    "tokenizer.ggml.tokens": ["<a>", "é", "", "漢\n"],
    "tokenizer.ggml.scores": np.array([0.5, -1.0, 2.0, 0.0], np.float32),
    "tokenizer.ggml.token_type": np.array([1, 3, -6, 1], np.int32),
    "a.flags": np.array([True, False]),
    "a.doubles": np.array([0.1, 1e300]),
    "a.none": np.zeros(0, np.float32),
}
NUMBERS = {
    "token_embd.weight": np.linspace(-3, 3, 7 * 64, dtype=np.float32).reshape(7, 64),
    "output_norm.weight": np.linspace(0.5, 2, 32, dtype=np.float32),
    "cube": np.linspace(-1, 1, 2 * 3 * 32, dtype=np.float32).reshape(2, 3, 32),
}


def planned(stored: str) -> dict[str, TensorToWrite]:
    """All tensors in one type."""
    return {
        name: TensorToWrite(array.shape, stored, lambda array=array: array)  # type: ignore[misc]
        for name, array in NUMBERS.items()
    }


@pytest.mark.parametrize("stored", WRITABLE)
def test_every_field_and_tensor_is_read_by_the_gguf_package(tmp_path: Path, stored: str) -> None:
    write_gguf(tmp_path / "m.gguf", METADATA, planned(stored))
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert list(fields) == list(METADATA)
    for key, value in METADATA.items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(np.array(fields[key], value.dtype), value), key
        else:
            expected = np.float32(value) if type(value) is float else value
            assert fields[key] == expected, key
    assert [t.name for t in reader.tensors] == list(NUMBERS)
    for tensor in reader.tensors:
        assert tensor.tensor_type.name == stored
        kind = gguf.GGMLQuantizationType[stored]
        theirs = np.ascontiguousarray(gguf.quants.quantize(NUMBERS[tensor.name], kind))
        assert tensor.shape.tolist() == list(reversed(NUMBERS[tensor.name].shape))
        assert tensor.data.tobytes() == theirs.tobytes()


def written_by_gguf(path: Path, stored: str, alignment: int | None) -> None:
    """The same model by the writer of the gguf package."""
    writer = gguf.GGUFWriter(path, "qwen3")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_uint32("qwen3.block_count", 2)
    writer.add_float32("qwen3.rope.freq_base", 1e6)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_array("tokenizer.ggml.tokens", ["<a>", "é"])
    kind = gguf.GGMLQuantizationType[stored]
    for name, array in NUMBERS.items():
        made = gguf.quants.quantize(array, kind)
        writer.add_tensor(name, made, raw_dtype=None if stored in ("F32", "F16") else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("alignment", [None, 64])
@pytest.mark.parametrize("stored", WRITABLE)
def test_a_file_is_byte_for_byte_that_of_the_gguf_package(
    tmp_path: Path, stored: str, alignment: int | None
) -> None:
    metadata: dict[str, Any] = {"general.architecture": "qwen3"}
    if alignment is not None:
        metadata["general.alignment"] = alignment
    metadata |= {
        "qwen3.block_count": 2,
        "qwen3.rope.freq_base": 1e6,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.tokens": ["<a>", "é"],
    }
    write_gguf(tmp_path / "ours.gguf", metadata, planned(stored))
    written_by_gguf(tmp_path / "theirs.gguf", stored, alignment)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", METADATA, planned("F32"))
    read = GGUFFile(tmp_path / "m.gguf")
    assert list(read.metadata) == list(METADATA)
    assert read.metadata["a.doubles"] == [0.1, 1e300]
    assert read.metadata["qwen3.very_negative"] == -(1 << 40)
    for name, array in NUMBERS.items():
        assert read.read(name).tobytes() == array.tobytes()
        assert read.shapes[name] == array.shape


def test_bytes_of_a_type_are_written_as_they_are(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (3, 210), np.uint8)
    tensors = {"x": TensorToWrite((3, 256), "Q6_K", lambda: raw)}
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"}, tensors)
    assert GGUFFile(tmp_path / "m.gguf").raw("x").tobytes() == raw.tobytes()
    assert gguf.GGUFReader(tmp_path / "m.gguf").tensors[0].data.tobytes() == raw.tobytes()


def test_one_tensor_is_made_at_a_time(tmp_path: Path) -> None:
    """The file has all of those before when the next one is made."""
    seen = []

    def made() -> NDArray[Any]:
        seen.append(sum(p.stat().st_size for p in tmp_path.iterdir()))
        return np.ones((1024, 1024), np.float32)

    tensors = {f"t{i}": TensorToWrite((1024, 1024), "F32", made) for i in range(3)}
    write_gguf(tmp_path / "m.gguf", {}, tensors)
    assert seen[1] - seen[0] >= 4 << 20 > seen[0]
    assert seen[2] - seen[1] == 4 << 20


def test_an_existing_file_is_replaced_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("mine")
    with pytest.raises(UsageError, match="it exists"):
        write_gguf(path, {}, {})
    assert path.read_text() == "mine"
    write_gguf(path, {"general.architecture": "llama"}, {}, force=True)
    assert GGUFFile(path).metadata == {"general.architecture": "llama"}


def test_nothing_is_left_of_a_file_that_fails(tmp_path: Path) -> None:
    """Whatever goes wrong in the middle, the old file stays and no other is left."""
    path = tmp_path / "m.gguf"
    path.write_text("mine")
    good = TensorToWrite((64,), "F16", lambda: np.ones(64, np.float32))
    large = TensorToWrite((64,), "F16", lambda: np.full(64, 1e9, np.float32))

    def interrupted() -> NDArray[Any]:
        raise KeyboardInterrupt

    for bad, error in (
        (large, InputError),
        (TensorToWrite((9,), "F32", interrupted), BaseException),
    ):
        with pytest.raises(error):
            write_gguf(path, {}, {"good": good, "bad": bad}, force=True)
        assert path.read_text() == "mine"
        assert os.listdir(tmp_path) == ["m.gguf"]
    with pytest.raises(EnvironmentLacks, match="cannot be written"):
        write_gguf(path / "inside.gguf", {}, {})


@pytest.mark.parametrize(
    ("name", "shape", "stored", "says"),
    [
        ("n" * 64, (32,), "F32", "at most 63 bytes"),
        ("x", (1, 1, 1, 1, 32), "F32", "1 to 4 axes"),
        ("x", (2, 48), "Q8_0", "blocks of 32"),
    ],
)
def test_what_llama_cpp_would_not_read_is_not_written(
    tmp_path: Path, name: str, shape: tuple[int, ...], stored: str, says: str
) -> None:
    tensor = TensorToWrite(shape, stored, lambda: np.ones(shape, np.float32))
    with pytest.raises(UsageError, match=says):
        write_gguf(tmp_path / "m.gguf", {}, {name: tensor})
    assert not os.listdir(tmp_path)
