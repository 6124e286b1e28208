"""Locators against files that were damaged or made to harm: refused, or listed in bounds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save, save_file

from lockstep.errors import InputError
from lockstep.formats.leaf import Extent, Held, Store
from lockstep.formats.open_store import open_store

ARRAYS: dict[str, Any] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(5, dtype=np.int16),
}


def gguf_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_array("words", ["a", "bc"])
        for name, array in ARRAYS.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes().rstrip(b"\0") + b"\0"  # no padding behind the last element


def written(write: Callable[[io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


FILES = {
    "safetensors": save(ARRAYS, metadata={"k": "v"}),
    "gguf": gguf_bytes(),
    "npy": written(lambda file: np.save(file, ARRAYS["a"])),
    "npz": written(lambda file: np.savez(file, **ARRAYS)),
    "deflated": written(lambda file: np.savez_compressed(file, **ARRAYS)),
}


def listed_within(path: Path, format: str) -> Store | None:
    """The listing, whose storage lies in the file; None if the file is refused.

    Any exception but InputError is a failure.
    """
    try:
        store = open_store(path, {"deflated": "npz"}.get(format, format))
    except InputError as error:
        if str(path) not in error.message or not error.hint:
            raise AssertionError("an error without a place or a hint") from error
        return None
    size = path.stat().st_size
    for leaf in store.leaves.values():
        if isinstance(leaf.storage, Extent):
            assert 0 <= leaf.storage.offset <= leaf.storage.offset + leaf.n_bytes <= size
        elif not isinstance(leaf.storage, Held) and leaf.n_bytes < 1 << 20:
            out = np.zeros(leaf.n_bytes, dtype=np.uint8)
            with contextlib.suppress(InputError):
                leaf.storage.read((0,), out)
    return store


@pytest.mark.parametrize("format", FILES)
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path, format: str) -> None:
    data, path = FILES[format], tmp_path / "m"
    path.write_bytes(data)
    assert listed_within(path, format) is not None
    for n in range(len(data)):
        path.write_bytes(data[:n])
        assert listed_within(path, format) is None, n
        with contextlib.suppress(InputError):
            open_store(path)


@pytest.mark.parametrize("format", FILES)
def test_each_flipped_bit_is_refused_or_listed_in_bounds(tmp_path: Path, format: str) -> None:
    data, path = FILES[format], tmp_path / "m"
    for i in range(len(data)):
        flipped = bytearray(data)
        flipped[i] ^= 1 << (i * 5 % 8)
        path.write_bytes(flipped)
        listed_within(path, format)


@pytest.mark.parametrize("format", FILES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_is_refused_or_listed_in_bounds(
    tmp_path_factory: pytest.TempPathFactory, format: str, data: st.DataObject
) -> None:
    raw = bytearray(FILES[format])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        new = data.draw(
            st.binary(min_size=1, max_size=9) | st.sampled_from([b"\xff" * 8, b"9" * 6])
        )
        raw[at : at + data.draw(st.integers(0, 9))] = new
    path = tmp_path_factory.getbasetemp() / f"damaged-checkpoint-{format}"
    path.write_bytes(raw)
    listed_within(path, format)
    with contextlib.suppress(InputError):
        open_store(path)


@given(data=st.binary(max_size=64))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    for format in FILES:
        listed_within(path, format)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_we_list_no_safetensors_file_that_the_library_refuses(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    numbers = st.integers(-1, 9) | st.sampled_from([2**63, 2**64, 1.0, True, None, "1"])
    entries = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "U8", "F4", "f32", 1]),
            "shape": st.lists(numbers, max_size=3),
            "data_offsets": st.lists(numbers, min_size=1, max_size=3),
        }
    )
    plain = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    keys = st.sampled_from(["dtype", "shape", "data_offsets"])
    entry = data.draw(entries | st.builds(lambda k, e: {**plain, k: e[k]}, keys, entries))
    text = json.dumps({"x": entry}).encode()
    path = tmp_path_factory.getbasetemp() / "drawn"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    if listed_within(path, "safetensors") is not None:
        with safe_open(path, "np") as theirs:
            assert list(theirs.keys()) == ["x"]


# safetensors

PLAIN = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


def header_file(path: Path, text: bytes, n_data: int = 4) -> Path:
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(n_data))
    return path


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"x": PLAIN, "y": PLAIN}, "'y'.*overlaps"),
        ({"x": {**PLAIN, "data_offsets": [1, 5]}}, "'x'.*gap"),
        ({"x": {**PLAIN, "data_offsets": [0, 3], "shape": [3]}}, "3 bytes of tensors.*got 4"),
        ({"x": {**PLAIN, "shape": [3]}}, "'x'.*3 bytes for U8.*got 4"),
        ({"x": {**PLAIN, "shape": [2**40, 2**10]}}, "'x'.* got 4"),
        ({"x": {**PLAIN, "shape": [2**40, 2**40]}}, "'x'.* fewer than"),
        ({"x": {**PLAIN, "shape": [-4]}}, "'x'.*whole numbers"),
        ({"x": {**PLAIN, "shape": [4.0]}}, "'x'.*whole numbers"),
        ({"x": {**PLAIN, "data_offsets": [0, 4.0]}}, "'x'.*data_offsets"),
        ({"x": {**PLAIN, "data_offsets": [4, 0]}}, "'x'.*data_offsets"),
        ({"x": {**PLAIN, "data_offsets": [0, True]}}, "'x'.*data_offsets"),
        ({"x": {**PLAIN, "dtype": "U4"}}, "'x'.*got 'U4'"),
        ({"x": {"dtype": "U8", "shape": [4]}}, "'x'.*dtype, shape and data_offsets"),
        ({"x": PLAIN, "__metadata__": {"k": 1}}, "__metadata__.*strings"),
        ({"x\ud800": PLAIN}, "UTF-8"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused_by_tensor(
    tmp_path: Path, entries: dict[str, Any], says: str
) -> None:
    path = header_file(tmp_path / "m", json.dumps(entries).encode())
    with pytest.raises(InputError, match=says):
        open_store(path)
    with pytest.raises(SafetensorError):
        safe_open(path, "np").__enter__()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scale": 2}, "'x'.*dtype, shape and data_offsets"),
        ({"dtype": "F4", "shape": [8, 1]}, "'x'.*units of 2"),
    ],
)
def test_a_tensor_that_we_cannot_place_is_refused_though_the_library_takes_it(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = header_file(tmp_path / "m", json.dumps({"x": {**PLAIN, **change}}).encode())
    with safe_open(path, "np") as theirs:
        assert list(theirs.keys()) == ["x"]
    with pytest.raises(InputError, match=says):
        open_store(path)


def test_keys_that_occur_twice_are_refused(tmp_path: Path) -> None:
    entry = json.dumps(PLAIN)
    for text in (f'{{"x":{entry},"x":{entry}}}', f'{{"x":{entry[:-1]},"shape":[4]}}}}'):
        with pytest.raises(InputError, match="occurs twice"):
            open_store(header_file(tmp_path / "m", text.encode()))


def test_headers_that_would_fill_the_memory_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(struct.pack("<Q", 100_000_001) + b"{")
    os.truncate(path, 200_000_000)  # sparse
    with pytest.raises(InputError, match="at most 100000000 bytes"):
        open_store(path)
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(InputError, match="inside of the file's 10"):
        open_store(path, "safetensors")
    with pytest.raises(InputError, match="expected JSON"):
        open_store(header_file(path, b'{"x":' + b"[" * 100_000))
    for part in (b"[],", b"1,", b"[[{}]],"):  # parsed, each takes tens of times its size
        text = b'{"x":[' + part * 9_000_000 + b"0]}"
        with pytest.raises(InputError, match="at most 8388608 parts"):
            open_store(header_file(path, text))


def sharded(root: Path, places: dict[str, Any]) -> Path:
    root.mkdir()
    save_file({"a": ARRAYS["a"]}, root / "1.safetensors")
    save_file(ARRAYS, root / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"} | places}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ({}, r"a in 1.safetensors: in 2.safetensors too"),
        ({"b": "1.safetensors"}, r"b in 1.safetensors: not there"),
        ({"a": "2.safetensors", "c": "2.safetensors"}, r"c in 2.safetensors: not there"),
        ({"b": "3.safetensors"}, r"3.safetensors: cannot be read"),
        ({"b": "../2.safetensors"}, "without folders"),
        ({"b": "/etc/passwd"}, "without folders"),
        ({"b": "..\\2.safetensors"}, "without folders"),
        ({"b": ".."}, "without folders"),
        ({"b": "2.safetensors\0"}, "without folders"),
        ({"b": ["2.safetensors"]}, "cannot be read"),
        ({"b": "link.safetensors"}, "got a link"),
        ({"b": "pipe.safetensors"}, "expected a file, got a pipe"),
        ({"b": "loop.safetensors"}, "cannot be read"),
    ],
)
def test_an_index_that_lies_or_leads_away_is_refused(
    tmp_path: Path, places: dict[str, Any], says: str
) -> None:
    root = sharded(tmp_path / "model", places)
    save_file(ARRAYS, tmp_path / "outside")
    (root / "link.safetensors").symlink_to("../outside")
    (root / "loop.safetensors").symlink_to("loop.safetensors")
    os.mkfifo(root / "pipe.safetensors")
    with pytest.raises(InputError, match=says):
        open_store(root)


def test_tensors_that_no_index_knows_and_two_checkpoints_in_one_are_refused(tmp_path: Path) -> None:
    root = sharded(tmp_path / "model", {})
    index = {"weight_map": {"a": "2.safetensors"}}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"b in 2.safetensors: not in the index"):
        open_store(root)
    save_file(ARRAYS, root / "model.safetensors")
    with pytest.raises(InputError, match="got both"):
        open_store(root)


# files that are none


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path / "none", "No such file"),
        (tmp_path / "pipe", "got a pipe"),
        (Path("/dev/zero"), "a device"),
        (tmp_path / "\0", "null"),
    ):
        with pytest.raises(InputError, match=says):
            open_store(path)
