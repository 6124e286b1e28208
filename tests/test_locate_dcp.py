"""Directories of torch.distributed.checkpoint, as torch writes them, against what we list."""

from __future__ import annotations

import io
import pickle
import random
import subprocess
import sys
import warnings
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.errors import InputError
from lockstep.formats.leaf import Extent, Parts
from lockstep.formats.locate import torch_dcp
from lockstep.formats.locate.torch_dcp import check_tiling

torch = pytest.importorskip("torch")
from torch_saving import agrees, bits_of, noise, saved_file, trained  # noqa: E402

pytestmark = pytest.mark.torch


def dcp() -> Any:
    """What writes and reads them; it takes a second to import."""
    return pytest.importorskip("torch.distributed.checkpoint")


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """A training state, with tensors that are views."""
    model, optimizer = trained()
    return {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7,
        "turned": noise(torch.bfloat16, 4, 6).t(), "none": torch.ones(0, 3), "list": [1, "x"],
    }  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path, state: dict[str, Any]) -> Path:
    """The state as a directory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp().save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    return tmp_path / "dcp"


def test_a_directory_as_torch_writes_it(saved: Path, state: dict[str, Any]) -> None:
    store = torch_dcp.locate(saved)
    tensors = {f"model/{name}": t for name, t in state["model"].items()}
    for i, moments in state["optimizer"]["state"].items():
        tensors |= {f"optimizer/state/{i}/{name}": t for name, t in moments.items()}
    agrees(store, tensors | {"turned": state["turned"], "none": state["none"]})
    assert store.leaves["step"].value == (7,)
    assert store.leaves["list/[1]"].value == ("x",)
    assert store.leaves["optimizer/param_groups/[0]/betas/[0]"].value == (0.9,)
    for record in store.records:
        raw = record.file.read_bytes()[record.offset : record.offset + record.n_bytes]
        assert zlib.crc32(raw) == record.crc32
    assert torch_dcp.locate(saved / ".metadata").leaves.keys() == store.leaves.keys()


def _metadata(saved: Path) -> Any:
    return pickle.loads((saved / ".metadata").read_bytes())


def _write(saved: Path, metadata: Any) -> None:
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))


def _sharded(folder: Path, tensor: Any, cuts: tuple[tuple[int, ...], ...]) -> Path:
    """A directory with one tensor in blocks, in two files, as several processes would write it."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    chunks, storage, files = [], {}, [b"", b""]
    rows, columns = ([0, *cut, n] for cut, n in zip(cuts, tensor.shape, strict=True))
    boxes = [(a, b, c, d) for a, b in pairwise(rows) for c, d in pairwise(columns)]
    for i, (a, b, c, d) in enumerate(boxes):
        start, size = torch.Size([a, c]), torch.Size([b - a, d - c])
        chunks.append(ChunkStorageMetadata(start, size))
        buffer = io.BytesIO()
        torch.save(tensor[a:b, c:d].clone(), buffer)
        info = _StorageInfo(f"__{i % 2}_0.distcp", len(files[i % 2]), len(buffer.getvalue()))
        storage[MetadataIndex("w", start)] = info
        files[i % 2] += buffer.getvalue()
    tensors = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.shape, chunks)
    folder.mkdir()
    for i, data in enumerate(files):
        (folder / f"__{i}_0.distcp").write_bytes(data)
    _write(folder, Metadata({"w": tensors}, None, storage))
    return folder


@pytest.mark.parametrize("cuts", [((3,), ()), ((2, 5), (1, 4)), ((), (2,))])
def test_blocks_make_the_tensor(tmp_path: Path, cuts: tuple[tuple[int, ...], ...]) -> None:
    tensor = noise(torch.float32, 7, 5)
    folder = _sharded(tmp_path / "dcp", tensor, cuts)
    again = {"w": torch.zeros(7, 5)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp().load(again, checkpoint_id=folder, no_dist=True)
    assert (bits_of(again["w"]) == bits_of(tensor)).all()  # torch reads our blocks so, too
    store = torch_dcp.locate(folder)
    assert isinstance(store.leaves["w"].storage, Parts)
    agrees(store, {"w": tensor})


SAVE = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
import torch.multiprocessing as processes
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    kinds = {"rows": [Shard(0)], "columns": [Shard(1)], "whole": [Replicate()]}
    tensors = torch.load(f"{folder}/tensors.pt")
    state = {name: distribute_tensor(tensors[name], mesh, kind) for name, kind in kinds.items()}
    dcp.save({**state, "same": tensors["same"], "step": 3}, checkpoint_id=f"{folder}/dcp")
    dist.destroy_process_group()

if __name__ == "__main__":
    processes.spawn(work, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.slow
def test_two_processes_save_one_directory(tmp_path: Path) -> None:
    tensors = {
        "rows": noise(torch.float32, 5, 4), "columns": noise(torch.bfloat16, 3, 6),
        "whole": noise(torch.float32, 5, 4), "same": noise(torch.int32, 2),
    }  # fmt: skip
    saved_file(tmp_path, tensors, "tensors.pt")
    (tmp_path / "save.py").write_text(SAVE)
    subprocess.run(
        [sys.executable, str(tmp_path / "save.py"), str(tmp_path)],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    store = torch_dcp.locate(tmp_path / "dcp")
    assert store.leaves["step"].value == (3,)
    assert isinstance(store.leaves["rows"].storage, Parts)
    assert isinstance(store.leaves["columns"].storage, Parts)
    agrees(store, tensors)


def test_blocks_that_do_not_tile_are_refused(tmp_path: Path) -> None:
    folder = _sharded(tmp_path / "dcp", noise(torch.float32, 7, 5), ((3,), ()))
    for change, message in [
        (lambda m: m.state_dict_metadata["w"].chunks.pop(), "0 blocks there"),
        (lambda m: m.storage_data.popitem(), "data for its block"),
        (lambda m: m.state_dict_metadata["w"].chunks.append(
            m.state_dict_metadata["w"].chunks[0]), "2 blocks there"),
        (lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([7, 4])), "inside"),
        (lambda m: setattr(m.state_dict_metadata["w"].properties, "dtype", torch.int32), "I32"),
        (lambda m: m.state_dict_metadata.clear(), "description of each block"),
    ]:  # fmt: skip
        before = (folder / ".metadata").read_bytes()
        metadata = _metadata(folder)
        change(metadata)
        _write(folder, metadata)
        with pytest.raises(InputError, match=message):
            torch_dcp.locate(folder)
        (folder / ".metadata").write_bytes(before)
    assert torch_dcp.locate(folder).leaves["w"].shape == (7, 5)


@pytest.mark.parametrize("place", ["../out.distcp", "/etc/passwd", "link.distcp", "", ".", "a\0b"])
def test_data_outside_of_the_directory_are_refused(tmp_path: Path, place: str) -> None:
    folder = _sharded(tmp_path / "dcp", noise(torch.float32, 7, 5), ((3,), ()))
    data = (folder / "__0_0.distcp").read_bytes()
    (tmp_path / "out.distcp").write_bytes(data)
    (folder / "link.distcp").symlink_to(tmp_path / "out.distcp")
    metadata = _metadata(folder)
    for info in metadata.storage_data.values():
        info.relative_path = place
    _write(folder, metadata)
    with pytest.raises(InputError):
        torch_dcp.locate(folder)


def test_data_that_are_cut_missing_or_twice_are_refused(saved: Path) -> None:
    data = saved / "__0_0.distcp"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"at least \d+ bytes"):
        torch_dcp.locate(saved)
    data.write_bytes(whole + bytes(64))
    assert any("64 bytes" in note for note in torch_dcp.locate(saved).notes)
    data.unlink()
    with pytest.raises(InputError):
        torch_dcp.locate(saved)
    data.write_bytes(whole)
    metadata = _metadata(saved)
    infos = list(metadata.storage_data.values())
    infos[1].offset = infos[0].offset
    _write(saved, metadata)
    with pytest.raises(InputError, match="overlap"):
        torch_dcp.locate(saved)


def test_a_damaged_index_gives_a_listing_or_an_error(saved: Path) -> None:
    index = saved / ".metadata"
    whole = index.read_bytes()
    rng = random.Random(11)
    n_refused = 0
    for i in range(150):
        data = bytearray(whole[: rng.randrange(len(whole))] if i % 3 == 0 else whole)
        if i % 3:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        index.write_bytes(data)
        try:
            torch_dcp.locate(saved)
        except InputError:
            n_refused += 1
    assert n_refused > 50


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tilings(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    blocks = [(tuple(0 for _ in shape), shape)]
    for _ in range(data.draw(st.integers(0, 6))):
        i = data.draw(st.integers(0, len(blocks) - 1))
        start, size = blocks[i]
        axis = data.draw(st.integers(0, len(shape) - 1))
        if size[axis] < 2:
            continue
        cut = data.draw(st.integers(1, size[axis] - 1))
        one = tuple(cut if j == axis else n for j, n in enumerate(size))
        two = tuple(n - cut if j == axis else n for j, n in enumerate(size))
        at = tuple(a + cut if j == axis else a for j, a in enumerate(start))
        blocks[i : i + 1] = [(start, one), (at, two)]
    check_tiling(shape, blocks, "here")
    check_tiling(shape, [*blocks, (tuple(0 for _ in shape), (0,) * len(shape))], "here")
    for wrong in (blocks[1:], [*blocks, blocks[0]]):
        with pytest.raises(InputError, match="each element in one block"):
            check_tiling(shape, wrong, "here")


def test_extents_are_what_streams(saved: Path) -> None:
    storages = [leaf.storage for leaf in torch_dcp.locate(saved).leaves.values() if not leaf.value]
    assert sum(isinstance(storage, Extent) for storage in storages) >= len(storages) - 1
