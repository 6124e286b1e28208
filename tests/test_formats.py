"""Files of weights: exact values, whole files or none, hostile files refused by name."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tracemalloc
from pathlib import Path

import gguf
import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lockstep.errors import EnvironmentLacks, InputError, UsageError
from lockstep.formats import (
    GGUFFile,
    HFDirectory,
    SafetensorsFile,
    TensorToWrite,
    write_hf_directory,
    write_safetensors,
)

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "b.weight": np.array([-0.0, 1e-40, np.float32(1) / 3], dtype=np.float32),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_hf_directory(tmp_path / "model", {"model_type": "qwen3"}, TENSORS)
    return tmp_path / "model"


def sharded(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    places = {}
    for i, (name, array) in enumerate(TENSORS.items()):
        places[name] = f"model-{i}.safetensors"
        save_file({name: array}, path / places[name])
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return path


def test_a_directory_is_read_back_bit_for_bit(directory: Path) -> None:
    read = HFDirectory(directory)
    assert read.config == {"model_type": "qwen3"}
    assert read.shapes == {name: array.shape for name, array in TENSORS.items()}
    for name, array in TENSORS.items():
        assert read.read(name).tobytes() == array.tobytes()


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    read = HFDirectory(sharded(tmp_path / "model"))
    assert {n: read.read(n).tobytes() for n in read.shapes} == {
        n: a.tobytes() for n, a in TENSORS.items()
    }


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        ({"a.weight": "model-0.safetensors", "c": "model-1.safetensors"}, "b.weight in model-1"),
        ({"a.weight": "../model-0.safetensors"}, "without folders"),
        ({"a.weight": "model-9.safetensors"}, "model-9"),
        ({}, "weight_map"),
    ],
)
def test_an_index_that_is_not_true_is_refused(
    tmp_path: Path, weight_map: dict[str, str], says: str
) -> None:
    path = sharded(tmp_path / "model")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=says):
        HFDirectory(path)


def test_a_file_has_the_bytes_that_the_library_writes(tmp_path: Path) -> None:
    mixed = {
        **TENSORS,
        "wide": np.array([[1.5, -2.5]]),
        "count": np.array(7, dtype=np.int64),
        "é": np.array([1, 0], dtype=np.bool_),
        "small": np.arange(3, dtype=np.uint8),
        "half": np.arange(5, dtype=np.float16)[::2],
        "none": np.zeros((0, 3), dtype=np.float32),
    }
    write_safetensors(tmp_path / "ours.safetensors", mixed, {"format": "pt"})
    plain = {name: array.copy(order="C") for name, array in mixed.items()}
    save_file(plain, tmp_path / "theirs.safetensors", {"format": "pt"})
    theirs = (tmp_path / "theirs.safetensors").read_bytes()
    assert (tmp_path / "ours.safetensors").read_bytes() == theirs


@pytest.mark.torch
def test_shards_and_their_index_are_those_of_huggingface_hub(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    arrays = {f"layer.{i}": np.full((i + 1, 3), i, np.float32) for i in range(6)}
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    (tmp_path / "theirs").mkdir()
    huggingface_hub.save_torch_state_dict(state, tmp_path / "theirs", max_shard_size=100)
    write_hf_directory(tmp_path / "ours", {}, arrays, shard_bytes=100)
    index = "model.safetensors.index.json"
    ours, theirs = (json.loads((tmp_path / d / index).read_text()) for d in ("ours", "theirs"))
    assert ours == theirs
    files = {path.name for path in (tmp_path / "theirs").iterdir()}
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {*files, "config.json"}
    for name in files - {index}:
        loaded = load_file(tmp_path / "ours" / name)
        assert all(np.array_equal(array, arrays[n]) for n, array in loaded.items())
    assert {n: HFDirectory(tmp_path / "ours").read(n).tobytes() for n in arrays} == {
        n: a.tobytes() for n, a in arrays.items()
    }


@pytest.mark.parametrize("stored", ["F32", "BF16"])
def test_no_more_than_a_tensor_is_in_memory_while_a_directory_is_written(
    stored: str, tmp_path: Path
) -> None:
    shape = (512, 1024)

    def rows() -> np.ndarray:
        return np.ones(shape, np.float32)

    tensors = {f"w.{i}": TensorToWrite(shape, stored, rows) for i in range(12)}
    tracemalloc.start()
    write_hf_directory(tmp_path / "model", {}, tensors)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one = rows().nbytes
    assert peak < 3 * one, "numbers, their bytes, and little more"
    assert HFDirectory(tmp_path / "model").read("w.11").sum() == shape[0] * shape[1]


def test_an_existing_directory_is_replaced_only_when_told(directory: Path) -> None:
    with pytest.raises(UsageError, match="it exists"):
        write_hf_directory(directory, {}, TENSORS)
    write_hf_directory(directory, {"new": True}, {"a.weight": TENSORS["a.weight"]}, force=True)
    assert HFDirectory(directory).config == {"new": True}
    assert [p.name for p in directory.parent.iterdir()] == ["model"]


def test_nothing_is_left_where_nothing_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("in the way")
    with pytest.raises(EnvironmentLacks, match="cannot be written"):
        write_hf_directory(target / "model", {}, TENSORS)
    with pytest.raises(EnvironmentLacks, match="cannot be written"):
        write_safetensors(tmp_path / "none" / "a.safetensors", TENSORS)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("n_kept", [0, 7, 60, -1])
def test_a_cut_off_file_is_refused(directory: Path, n_kept: int) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:n_kept])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        HFDirectory(directory)


def test_a_config_with_a_key_twice_is_refused(directory: Path) -> None:
    (directory / "config.json").write_text('{"hidden_size": 8, "hidden_size": 9}')
    with pytest.raises(InputError, match="occurs twice"):
        HFDirectory(directory)


def test_a_type_that_float32_cannot_hold_is_refused(tmp_path: Path) -> None:
    save_file({"x": np.ones(3)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="x: F64"):
        SafetensorsFile(tmp_path / "x.safetensors").read("x")


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_bytes_of_a_directory_are_read_in_place(tmp_path: Path, kind: str) -> None:
    dtype = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
    arrays = {
        "matrix": np.linspace(-2, 2, 12).reshape(3, 4).astype(dtype),
        "cube": np.linspace(-9, 9, 24).reshape(2, 3, 4).astype(dtype),
        "vector": np.linspace(0, 1, 5).astype(dtype),
        "scalar": np.array(0.5, dtype),
        "empty": np.zeros((0, 4), dtype),
    }
    (tmp_path / "config.json").write_text("{}")
    save_file(arrays, tmp_path / "model.safetensors")
    read = HFDirectory(tmp_path)
    read.require_supported()
    rows = {"matrix": 3, "cube": 6, "vector": 1, "scalar": 1, "empty": 0}
    for name, array in arrays.items():
        assert read.stored[name] == kind
        raw = read.raw(name)
        n_row = (array.shape[-1] if array.ndim else 1) * array.itemsize
        assert raw.shape == (rows[name], n_row)
        assert raw.tobytes() == array.tobytes()
        assert not raw.flags.writeable
        np.testing.assert_array_equal(read.read(name), array.astype(np.float32))
        assert read.read(name).shape == array.shape


@pytest.mark.torch
def test_bfloat16_that_torch_wrote_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    x = torch.randn(5, 3).to(torch.bfloat16)
    save_torch({"x": x}, tmp_path / "x.safetensors")
    read = SafetensorsFile(tmp_path / "x.safetensors").read("x")
    assert read.tobytes() == x.float().numpy().tobytes()


def write_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_uint32("qwen3.block_count", 2)
    writer.add_float32("qwen3.rope.freq_base", 1e6)
    writer.add_array("tokenizer.ggml.tokens", ["<a>", "é", ""])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0, 2.0])
    for name, array in TENSORS.items():
        writer.add_tensor(name, array)
    writer.add_tensor("half", TENSORS["a.weight"].astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_of_the_gguf_package_is_read(tmp_path: Path) -> None:
    read = GGUFFile(write_gguf(tmp_path / "m.gguf"))
    assert read.metadata["general.architecture"] == "qwen3"
    assert read.metadata["qwen3.block_count"] == 2
    assert read.metadata["tokenizer.ggml.tokens"] == ["<a>", "é", ""]
    assert read.metadata["tokenizer.ggml.scores"] == [0.5, -1.0, 2.0]
    for name, array in TENSORS.items():
        assert read.shapes[name] == array.shape
        assert read.read(name).tobytes() == array.tobytes()
    half = TENSORS["a.weight"].astype(np.float16).astype(np.float32)
    assert read.read("half").tobytes() == half.tobytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_gguf_file_is_refused_or_read_in_bounds(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf")
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        at = data.draw(st.integers(0, len(raw) - 9))
        raw[at : at + 8] = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1)))
    path.write_bytes(raw)
    with contextlib.suppress(InputError):  # any other exception is a failure
        read = GGUFFile(path)
        for name in read.shapes:
            assert read.read(name).nbytes <= 4 * len(raw)
    os.remove(path)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [(8, 1 << 62, "more bytes"), (16, 1 << 62, "more bytes"), (4, 9, "version"), (0, 0, "GGUF")],
)
def test_gguf_counts_beyond_the_file_are_refused(
    tmp_path: Path, field: int, value: int, says: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    raw = bytearray(path.read_bytes())
    raw[field : field + (8 if field >= 8 else 4)] = struct.pack("<Q" if field >= 8 else "<I", value)
    path.write_bytes(raw)
    with pytest.raises(InputError, match=says):
        GGUFFile(path)
