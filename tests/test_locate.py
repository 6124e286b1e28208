"""Locators against files that other people's packages wrote: the same leaves, the same bits."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import safetensors
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lockstep.errors import InputError
from lockstep.formats.leaf import Extent, Held, Leaf, Store
from lockstep.formats.locate import gguf as gguf_locator
from lockstep.formats.locate import numpy_files
from lockstep.formats.locate import safetensors as safetensors_locator
from lockstep.formats.open_store import open_store

RNG = np.random.default_rng(7)
ARRAYS: dict[str, NDArray[Any]] = {
    "f32": RNG.standard_normal((3, 4)).astype(np.float32),
    "f64": RNG.standard_normal((2, 3, 5)),
    "f16": RNG.standard_normal(7).astype(np.float16),
    "c64": (RNG.standard_normal((2, 2)) + 1j).astype(np.complex64),
    "c128": RNG.standard_normal((3, 1, 2)) * (1 - 2j),
    "i64": np.array(-(2**62), dtype=np.int64),
    "u16": np.arange(6, dtype=np.uint16).reshape(2, 3),
    "bool": np.array([True, False, True]),
    "empty": np.zeros((0, 4), dtype=np.int8),
}


def bits(leaf: Leaf) -> bytes:
    """The elements in C order, read only through what the leaf says of its storage."""
    storage, n = leaf.storage, leaf.element.n_bytes
    if isinstance(storage, Held):
        return storage.data
    if isinstance(storage, Extent):
        with storage.file.open("rb") as file:
            file.seek(storage.offset)
            raw = file.read(leaf.n_bytes)
        shape = leaf.grid_shape
        strides = storage.strides or tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
        if storage.big_endian:  # a complex number is two
            width = n // 2 if leaf.element.name in ("C64", "C128") else n
            raw = np.frombuffer(raw, f">u{width}").astype(f"<u{width}").tobytes()
        places = (sum(i * s for i, s in zip(at, strides, strict=True)) for at in cells(shape))
        return b"".join(raw[p * n : (p + 1) * n] for p in places)
    whole = np.zeros((*((leaf.n_elements,) if storage.flat else leaf.grid_shape), n), np.uint8)
    shape = whole.shape[:-1]
    for index in cells(tuple(-(-a // b) for a, b in zip(shape, storage.shape, strict=True))):
        cut = tuple(
            slice(i * c, min((i + 1) * c, a))
            for i, c, a in zip(index, storage.shape, shape, strict=True)
        )
        block = np.full(prod(whole[cut].shape), 0xAA, dtype=np.uint8)
        storage.read(index, block)
        whole[cut] = block.reshape(whole[cut].shape)
    return whole.tobytes()


def cells(shape: tuple[int, ...]) -> product[tuple[int, ...]]:
    return product(*map(range, shape))


def check(store: Store, arrays: dict[str, NDArray[Any]]) -> None:
    assert set(store.leaves) == set(arrays)
    for name, array in arrays.items():
        leaf = store.leaves[name]
        assert leaf.shape == array.shape, name
        little = array.astype(array.dtype.newbyteorder("<"))
        assert bits(leaf) == little.tobytes(order="C"), name


# safetensors


SAVED = {name: array for name, array in ARRAYS.items() if name != "c128"}  # it has no such type


def test_each_dtype_of_the_safetensors_package_is_listed_with_its_bits(tmp_path: Path) -> None:
    save_file(SAVED, tmp_path / "m.safetensors", metadata={"format": "np"})
    store = open_store(tmp_path / "m.safetensors")
    check(store, SAVED)
    assert (store.format, store.facts) == ("safetensors", {"format": "np"})
    assert "no checksums" in store.notes[0]
    with safetensors.safe_open(tmp_path / "m.safetensors", "np") as theirs:
        for name, leaf in store.leaves.items():
            assert theirs.get_slice(name).get_dtype() == leaf.element.name


def raw_file(path: Path, header: object, n_data: int) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(256)) * (n_data // 256 + 1))
    os.truncate(path, 8 + len(text) + n_data)
    return path


@pytest.mark.parametrize("dtype", [*safetensors_locator.TYPES, "C128", "U4", "I4", "f32"])
def test_a_dtype_is_known_exactly_when_the_safetensors_package_knows_it(
    tmp_path: Path, dtype: str
) -> None:
    element = safetensors_locator.TYPES.get(dtype)
    n_bytes = 24 // element.n_numbers * element.n_bytes if element else 24
    entry = {"dtype": dtype, "shape": [3, 8], "data_offsets": [0, n_bytes]}
    path = raw_file(tmp_path / "m", {"x": entry}, n_bytes)
    if element is None:
        with pytest.raises(InputError, match=rf"'x'.*got '{dtype}'"):
            open_store(path)
        with pytest.raises(safetensors.SafetensorError):
            safetensors.safe_open(path, "np").__enter__()
        return
    with safetensors.safe_open(path, "np") as theirs:
        assert theirs.get_slice("x").get_shape() == [3, 8]
    leaf = open_store(path).leaves["x"]
    assert (leaf.shape, leaf.n_bytes) == ((3, 8), n_bytes)
    assert bits(leaf) == (bytes(range(256)) * 2)[:n_bytes]


@pytest.mark.torch
def test_the_types_that_only_torch_writes_are_listed_with_their_bits(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    kinds = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
    tensors = {name: torch.randn(3, 5).to(kind) for name, kind in kinds.items()}
    save_torch(tensors, tmp_path / "m.safetensors")
    for name, leaf in open_store(tmp_path / "m.safetensors").leaves.items():
        assert leaf.element.name == name
        assert bits(leaf) == tensors[name].view(torch.uint8).numpy().tobytes()


def sharded(root: Path) -> Path:
    root.mkdir()
    config = {"hidden_size": 8, "rope": {"theta": 1e6, "a": {"b": [1]}}, "tied": False}
    (root / "config.json").write_text(json.dumps(config))
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(SAVED)}
    for shard in set(places.values()):
        save_file({n: a for n, a in SAVED.items() if places[n] == shard}, root / shard)
    total = sum(a.nbytes for a in SAVED.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


def test_shards_are_listed_as_one_with_the_facts_of_the_config(tmp_path: Path) -> None:
    root = sharded(tmp_path / "model")
    store = open_store(root)
    check(store, SAVED)
    assert list(store.leaves) == list(SAVED)
    assert store.facts == {"hidden_size": 8, "rope.theta": 1e6, "rope.a.b": [1], "tied": False}
    assert len(store.files) == 4
    assert len(store.notes) == 1
    check(open_store(root / "model.safetensors.index.json"), SAVED)


def test_weights_and_indexes_of_other_names_are_found_with_their_config(tmp_path: Path) -> None:
    root = sharded(tmp_path / "model")
    index = root / "model.safetensors.index.json"
    index.rename(root / "diffusion.safetensors.index.json")
    check(open_store(root), SAVED)
    single = tmp_path / "single"
    single.mkdir()
    save_file(SAVED, single / "adapter.safetensors")
    (single / "config.json").write_text('{"heads": 2}')
    store = open_store(single)
    check(store, SAVED)
    assert store.facts == {"heads": 2}


def test_files_beside_the_shards_and_a_wrong_total_are_noted(tmp_path: Path) -> None:
    root = sharded(tmp_path / "model")
    save_file(SAVED, root / "old.safetensors")
    index = root / "model.safetensors.index.json"
    named = json.loads(index.read_text()) | {"metadata": {"total_size": 1}}
    index.write_text(json.dumps(named))
    notes = " ".join(open_store(root).notes)
    assert "old.safetensors lies beside" in notes
    assert "total_size 1, not" in notes


def test_the_links_of_the_hugging_face_cache_are_followed_and_no_others(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file(SAVED, blobs / "0123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    check(open_store(snapshot), SAVED)
    (snapshot / "model.safetensors").unlink()
    save_file(SAVED, tmp_path / "elsewhere")
    (snapshot / "model.safetensors").symlink_to("../../../elsewhere")
    with pytest.raises(InputError, match="got a link"):
        open_store(snapshot)


# GGUF


def test_the_table_of_blocks_is_that_of_the_gguf_package() -> None:
    ours = {i: (e.n_numbers, e.n_bytes) for i, e in gguf_locator.TYPES.items()}
    theirs = {kind.value: sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    assert ours == theirs
    for i, element in gguf_locator.TYPES.items():
        assert element.name == GGMLQuantizationType(i).name


def write_gguf(path: Path, **add: Any) -> dict[str, bytes]:
    """A file with one tensor of every kind that the package can quantise, and plain ones."""
    writer = gguf.GGUFWriter(path, "llama", **add)
    writer.add_uint32("llama.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(100)])
    expected: dict[str, bytes] = {}
    plain = RNG.standard_normal((2, 3, 256)).astype(np.float32)
    for name in ("F32", "F16", "F64", "I8", "I16", "I32", "I64"):
        kinds = {"F32": "f4", "F16": "f2", "F64": "f8", "I8": "i1", "I16": "i2", "I32": "i4"}
        array = plain.astype(kinds.get(name, "i8"))
        writer.add_tensor(name, array)
        expected[name] = array.tobytes()
    for name in ("BF16", "Q4_0", "Q5_1", "Q8_0", "Q4_K", "TQ2_0"):
        kind = GGMLQuantizationType[name]
        n_numbers, n_bytes = GGML_QUANT_SIZES[kind]
        shape = (2, 3, 256 // n_numbers * n_bytes)
        packed = RNG.integers(0, 256, shape, dtype=np.uint8)
        writer.add_tensor(name, packed, raw_dtype=kind)
        expected[name] = packed.tobytes()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def test_plain_and_packed_tensors_of_the_gguf_package_are_listed(tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "m.gguf")
    store = open_store(tmp_path / "m.gguf")
    theirs = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert set(store.leaves) == set(expected) == set(theirs)
    for name, leaf in store.leaves.items():
        assert leaf.element.name == name
        assert leaf.shape == (2, 3, 256) == tuple(int(n) for n in theirs[name].shape[::-1])
        assert bits(leaf) == expected[name] == theirs[name].data.tobytes()
    assert store.facts["llama.block_count"] == 2
    assert "tokenizer.ggml.tokens" not in store.facts  # too long to be a fact


def test_a_split_is_listed_whole_from_any_of_its_files(tmp_path: Path) -> None:
    add = {"split_max_tensors": 5, "use_temp_file": False}
    expected = write_gguf(tmp_path / "m.gguf", **add)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 3
    for path in (*parts, tmp_path):
        store = open_store(path)
        assert {n: bits(leaf) for n, leaf in store.leaves.items()} == expected
        assert store.facts["llama.block_count"] == 2
        assert len(store.files) == 3
    parts[1].unlink()
    with pytest.raises(InputError, match=f"missing are {parts[1].name}"):
        open_store(parts[0])


def test_a_big_endian_gguf_is_refused_by_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(InputError, match="got a big-endian one"):
        open_store(tmp_path / "m.gguf")


# npy and npz

LAYOUTS = {
    "c": lambda a: np.ascontiguousarray(a) if a.ndim else a,
    "fortran": lambda a: np.asfortranarray(a) if a.ndim else a,
    "big": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_files_of_every_version_and_layout(
    tmp_path: Path, version: tuple[int, int], layout: str
) -> None:
    for name, array in ARRAYS.items():
        path = tmp_path / f"{name}.anything"
        with path.open("wb") as file:
            np.lib.format.write_array(file, LAYOUTS[layout](array), version=version)
        store = open_store(path)
        assert store.format == "npy"
        check(store, {"array": array})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_members_stored_and_deflated(
    tmp_path: Path, save: Any, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numpy_files, "CHUNK_ELEMENTS", 5)  # several chunks, the last one cut
    arrays = {f"layer/{k}": a for k, a in ARRAYS.items()}
    save(tmp_path / "m.npz", **{k: LAYOUTS[layout](a) for k, a in arrays.items()})
    store = open_store(tmp_path / "m.npz")
    check(store, arrays)
    check(store, arrays)  # a second time: the streams begin again
    assert all(leaf.checksum == "crc32" for leaf in store.leaves.values())
    covered = [name for record in store.records for name in record.leaves]
    assert covered == (list(arrays) if save is np.savez else [])
    whole = (tmp_path / "m.npz").read_bytes()
    for record in store.records:
        data = whole[record.offset : record.offset + record.n_bytes]
        assert data[:6] == b"\x93NUMPY"
        assert zlib.crc32(data) == record.crc32


def test_deflated_chunks_are_read_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numpy_files, "CHUNK_ELEMENTS", 1000)
    array = RNG.integers(0, 9, 54_321).astype(np.int32)
    np.savez_compressed(tmp_path / "m.npz", x=array)
    storage = open_store(tmp_path / "m.npz").leaves["x"].storage
    assert not isinstance(storage, Extent | Held)
    assert storage.sequential
    assert storage.flat
    for i in (3, 4, 0, 54, 20, 54):
        expected = array[i * 1000 : (i + 1) * 1000]
        out = np.zeros(expected.nbytes, dtype=np.uint8)
        storage.read((i,), out)
        assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.array([{}], dtype=object), "only a pickle"),
        (np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]), "got records"),
        (np.array(["word"]), "got '<U4'"),
        (np.array(["2020"], dtype="M8[Y]"), r"got '<M8\[Y\]'"),
        (np.ones(2, dtype=ml_dtypes.bfloat16).view("V2"), r"got '\|V2'"),
    ],
)
def test_what_is_no_plain_number_is_refused_by_name(
    tmp_path: Path, array: NDArray[Any], says: str
) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(InputError, match=says):
        open_store(tmp_path / "x.npy")
    np.savez(tmp_path / "m.npz", fine=np.ones(2), bad=array)
    with pytest.raises(InputError, match=rf"'bad'.*{says}"):
        open_store(tmp_path / "m.npz")


PEAK = """
import resource, sys
from pathlib import Path
from lockstep.formats.open_store import open_store
small, large = map(Path, sys.argv[1:])
open_store(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert open_store(large).leaves
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("kind", ["safetensors", "gguf", "npy"])
def test_listing_a_gigabyte_takes_next_to_no_memory(tmp_path: Path, kind: str) -> None:
    for name, n in (("small", 1 << 10), ("large", 1 << 28)):
        path = tmp_path / name
        if kind == "safetensors":
            entry = {"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]}
            raw_file(path, {"x": entry}, 0)
        elif kind == "gguf":
            info = struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + struct.pack("<Q1sI", 1, b"x", 1)
            path.write_bytes((info + struct.pack("<QIQ", n, 0, 0)).ljust(64, b"\0"))
        else:
            with path.open("wb") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<f4", "fortran_order": False, "shape": (n,)}
                )
        os.truncate(path, path.stat().st_size + 4 * n)  # sparse
    command = [sys.executable, "-c", PEAK, tmp_path / "small", tmp_path / "large"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 4 << 10, f"{done.stdout} KiB"
