"""Files that their own library refuses or misreads: only a word beside the values is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from flip_formats import FORMATS, read, write_in_silence

from lockstep.errors import InputError
from lockstep.formats.open_store import open_store
from lockstep.verify.api import Pair, check_pair
from lockstep.verify.engine.examine import Options

ENTRY, END64, LOCATOR = b"PK\x01\x02", b"PK\x06\x06", b"PK\x06\x07"

# What a library leaves behind when it fails is not what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# Format, file, bytes of it (their last place), how far behind those, and the bits that change.
EDITS = {
    "npz: a newer version": ("npz", "m.npz", ENTRY, 6, 0x40),
    "npz: a patch": ("npz", "m.npz", ENTRY, 8, 0x20),
    "npz: strongly encrypted": ("npz", "m.npz", ENTRY, 8, 0x40),
    "torch: a directory": ("torch", "m.pt", b"m/data/0PK\x01\x02", 8 + 38, 0x10),
    "torch: no disk": ("torch", "m.pt", LOCATOR, 16, 1),
    "torch: of another disk": ("torch", "m.pt", END64, 16, 1),
    "npy: a space that is none": ("npy", "m.npy", b"), }", 8, 0x80),
    "npy: a zero before a number": ("npy", "m.npy", b"(9, 20)", 3, 0x10),
    "zarr3: an unknown member": ("zarr3", "m/norm/zarr.json", b"configuration", 9, 8),
    "zarr3: an unknown setting": ("zarr3", "m/norm/zarr.json", b"endian", 5, 8),
    "zarr3: an unknown order": ("zarr3", "m/norm/zarr.json", b"little", 0, 1),
    "zarr3: an unknown key": ("zarr3", "m/norm/zarr.json", b"fill_value", 0, 1),
    "orbax: an unknown type": ("orbax", "m/_METADATA", b"np.ndarray", 5, 1),
    "orbax: an unknown word": ("orbax", "m/_METADATA", b"skip_deserialize", 3, 1),
    "orbax: another zarr": ("orbax zarr3", "m/_METADATA", b"use_zarr3", 1, 1),
    "dcp: another layout": ("dcp", "m/.metadata", b"torch.strided", 8, 1),
    "dcp: a frame without end": ("dcp", "m/.metadata", b"\x80\x04\x95", 10, 8),
    "onnx: a shape that is cut": ("onnx", "m.onnx", b"\x08\x09\x0a\x02\x08\x14", 3, 4),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_its_own_library_refuses_is_refused(tmp_path: Path, name: str) -> None:
    kind, file, after, offset, bits = EDITS[name]
    format = FORMATS[kind]
    if format.missing:
        pytest.skip(f"{', '.join(format.missing)} is not installed")
    root = write_in_silence(format, tmp_path / "made")
    clean = read(format, root)
    assert set(open_store(root).leaves) >= set(clean)
    path = tmp_path / "made" / file
    data = bytearray(path.read_bytes())
    place = data.rindex(after) + offset
    data[place] ^= bits
    path.write_bytes(data)
    after_it = read(format, root)
    assert isinstance(after_it, BaseException) or after_it != clean
    with pytest.raises(InputError) as caught:
        open_store(root)
    assert caught.value.hint


def test_a_file_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra formats is not installed")

    def write(side: str, last: float) -> Path:
        path = tmp_path / f"{side}.h5"
        array = np.arange(600, dtype=np.float32).reshape(20, 30)
        array[-1, -1] = last
        with h5py.File(path, "w") as file:
            file.create_dataset("w", data=array, chunks=(4, 30), compression="gzip")
        return path

    pair = Pair(source=write("old", 1), target=write("new", 2))
    options = Options(max_memory_bytes=8 << 30)
    assert check_pair(pair, None, options).verdict == "FAIL"
    write("new", 1)  # the library refuses to write to a file that is still open
    assert check_pair(pair, None, options).value_exact
    os.truncate(pair.target, 900)
    with pytest.raises(InputError):
        check_pair(pair, None, options)


def test_bit_fields_are_their_bits(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra formats is not installed")
    with h5py.File(tmp_path / "m.h5", "w") as file:
        for name, kind in (("little", h5py.h5t.STD_B32LE), ("big", h5py.h5t.STD_B16BE)):
            h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple((4,)))
    leaves = open_store(tmp_path / "m.h5").leaves
    assert {name: leaf.element.name for name, leaf in leaves.items()} == {
        "little": "U32",
        "big": "U16",
    }
