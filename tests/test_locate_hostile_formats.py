"""GGUF, npy and npz files whose headers lie: refused, and the tensor or member is named."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.errors import InputError
from lockstep.formats.open_store import open_store


def written(write: Callable[[io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
NPY = written(lambda file: np.save(file, ARRAY))
NPZ = written(lambda file: np.savez(file, x=ARRAY))

# GGUF


def gguf_file(
    path: Path, tensors: list[tuple[bytes, list[int], int, int]], n_data: int, keys: bytes = b""
) -> Path:
    """One tensor: name, dimensions as stored, type, offset."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), 1 if keys else 0) + keys
    for name, dims, kind, offset in tensors:
        head += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(dims))
        head += struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)
    path.write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(n_data))
    return path


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ([(b"x", [8], 0, 0), (b"x", [8], 0, 32)], "'x' twice"),
        ([(b"x", [16], 0, 0), (b"y", [8], 0, 32)], "'y': its bytes overlap"),
        ([(b"x", [8], 0, 8)], "'x': expected an offset in units of 32"),
        ([(b"x", [8], 0, 64)], "'x': its bytes overlap others or lie outside"),
        ([(b"x", [2**30, 2**20], 0, 0)], "'x': its bytes overlap others or lie outside"),
        ([(b"x", [2**62, 2**62], 0, 0)], "'x'.: expected fewer than"),
        ([(b"x", [2**62, 0], 0, 0)], "'x'.: expected fewer than"),
        ([(b"x", [8], 4, 0)], "'x': expected a type of ggml that is known, got number 4"),
        ([(b"x", [16], 8, 0)], "'x': expected a last axis in blocks of 32"),
        ([(b"x", [1] * 5, 0, 0)], "'x': expected at most 4 axes"),
        ([(b"\xff", [8], 0, 0)], "not UTF-8"),
    ],
)
def test_a_gguf_header_that_lies_is_refused_by_tensor(
    tmp_path: Path, tensors: list[tuple[bytes, list[int], int, int]], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        open_store(gguf_file(tmp_path / "m", tensors, 64))


def test_gguf_metadata_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    path, n = tmp_path / "m", 1 << 24
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 99))
    with path.open("r+b") as file:
        for i in range(10):
            file.seek(0, 2)
            file.write(struct.pack("<Q1sIQ", 1, b"%d" % i, 8, n))  # a string
            file.truncate(file.tell() + n)
    with pytest.raises(InputError, match="at most 134217728 bytes beside the tensors"):
        open_store(path)


def test_bytes_of_a_gguf_that_belong_to_no_tensor_are_noted(tmp_path: Path) -> None:
    store = open_store(gguf_file(tmp_path / "m", [(b"x", [8], 0, 64)], 160))
    notes = " ".join(store.notes)
    assert "64 bytes before 'x' belong to no tensor" in notes
    assert "64 bytes at the end belong to no tensor" in notes


def test_a_split_with_another_name_or_number_is_refused(tmp_path: Path) -> None:
    def count(n: int) -> bytes:
        return struct.pack("<Q11sIH", 11, b"split.count", 2, n)

    tensors = [(b"x", [8], 0, 0)]
    with pytest.raises(InputError, match="expected a name like"):
        open_store(gguf_file(tmp_path / "m.gguf", tensors, 32, count(2)))
    parts = [gguf_file(tmp_path / f"m-0000{i}-of-00002.gguf", [], 0, count(2)) for i in (1, 2)]
    with pytest.raises(InputError, match=r"expected split.no and split.count 0 and 2, got N"):
        open_store(parts[0])


# npy and npz


def npy_bytes(header: str, n_data: int = 0) -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(n_data)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999,), }",
            "40000000000076 bytes",
        ),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1152921504606846976)}", "fewer"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "with descr"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,,), }", "whole numbers"),
        ("{'descr': '<f4', 'descr': '<f8', 'fortran_order': False, 'shape': (), }", "with descr"),
        ("{'descr': '<f4', 'fortran_order': 0, 'shape': (), }", "with descr"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (), } + x", "with descr"),
        ("__import__('os').abort()", "with descr"),
        ("(" * 60_000, "with descr"),
        (f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'1,' * 65}), }}", "at most 64"),
    ],
)
def test_an_npy_header_that_lies_is_refused(tmp_path: Path, header: str, says: str) -> None:
    (tmp_path / "m").write_bytes(npy_bytes(header, 4))
    with pytest.raises(InputError, match=says):
        open_store(tmp_path / "m")


def test_bytes_behind_an_npy_array_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(NPY + b"\0")
    with pytest.raises(InputError, match=rf"got {len(NPY) + 1}"):
        open_store(tmp_path / "m")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["x.npy", "x.npy"], "'x.npy' twice"),
        (["../x.npy"], "plain name"),
        (["/x.npy"], "plain name"),
        (["a\\x.npy"], "plain name"),
        (["x.npy", "readme.txt"], "got 'readme.txt'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_with_names_that_mislead_are_refused(
    tmp_path: Path, names: list[str], says: str
) -> None:
    with zipfile.ZipFile(tmp_path / "m", "w") as archive:
        for name in names:
            archive.writestr(name, NPY)
    with pytest.raises(InputError, match=says):
        open_store(tmp_path / "m")


def test_other_packings_and_encryption_are_refused(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "m", "w", method) as archive:
            archive.writestr("x.npy", NPY)
        with pytest.raises(InputError, match=f"method {method}"):
            open_store(tmp_path / "m")
    raw = bytearray(NPZ)
    at = raw.index(b"PK\x01\x02")
    raw[at + 8] |= 1
    (tmp_path / "m").write_bytes(raw)
    with pytest.raises(InputError, match="encrypted"):
        open_store(tmp_path / "m")


def test_members_written_to_a_pipe_are_listed(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError

    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # sizes come behind the data
        pipe = Pipe()
        with zipfile.ZipFile(pipe, "w", method) as archive, archive.open("x.npy", "w") as member:
            member.write(NPY)
        (tmp_path / "m").write_bytes(pipe.getvalue())
        assert open_store(tmp_path / "m").leaves["x"].shape == (2, 3)


def deflated_leaf(path: Path, data: bytes) -> Any:
    path.write_bytes(data)
    return open_store(path, "npz").leaves["x"]


def test_each_flipped_bit_of_a_deflated_member_is_found_by_its_end(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 5, 400).astype(np.int32)
    data = written(lambda file: np.savez_compressed(file, x=array))
    leaf = deflated_leaf(tmp_path / "m", data)
    begin, end = (
        leaf.storage.packed.offset,
        leaf.storage.packed.offset + leaf.storage.packed.n_packed,
    )
    out = np.zeros(array.nbytes, dtype=np.uint8)
    n_found = 0
    for i in range(begin, end):
        flipped = bytearray(data)
        flipped[i] ^= 1 << (i % 8)
        try:
            deflated_leaf(tmp_path / "m", bytes(flipped)).storage.read((0,), out)
        except InputError:
            n_found += 1
        else:
            assert out.tobytes() == array.tobytes(), i  # the padding of a stream means nothing
    assert n_found >= end - begin - 2


def test_a_member_that_claims_more_than_deflate_can_hold_is_refused(tmp_path: Path) -> None:
    header = npy_bytes("{'descr': '|u1', 'fortran_order': False, 'shape': (4000000000,), }")
    data = bytearray(written(lambda f: zipped(f, header + bytes(100))))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 4_000_000_000 + len(header))
    with pytest.raises(InputError, match=r"agree|deflate can pack"):
        deflated_leaf(tmp_path / "m", bytes(data))
    data[22:26] = data[at + 24 : at + 28]  # the local header lies too
    with pytest.raises(InputError, match="as many bytes as deflate can pack"):
        deflated_leaf(tmp_path / "m", bytes(data))


def zipped(file: io.BytesIO, member: bytes) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", member)
