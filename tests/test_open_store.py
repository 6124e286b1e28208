"""Each format is known by its content, as the package of the format wrote it."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lockstep.errors import InputError, UsageError
from lockstep.formats.open_store import LOCATORS, open_store, recognise

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_every_locator_of_the_table_is_there() -> None:
    for module in set(LOCATORS.values()):
        assert callable(importlib.import_module(f"lockstep.formats.locate.{module}").locate)


def kind(path: Path) -> str:
    """The format of a path, which its locator can list, under names that say nothing."""
    renamed = path.rename(path.with_name("renamed"))
    store = open_store(renamed)
    assert any(leaf.shape == (2, 3) for leaf in store.leaves.values())
    assert store.files
    return recognise(renamed)[1]


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_of_both_kinds(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.from_numpy(X)}, tmp_path / "m", _use_new_zipfile_serialization=zipped)
    assert kind(tmp_path / "m") == "torch"


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_distributed_checkpoints_of_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.distributed import checkpoint

    checkpoint.save({"x": torch.from_numpy(X)}, checkpoint_id=tmp_path / "m", no_dist=True)
    assert kind(tmp_path / "m") == "dcp"


def test_hdf5_with_and_without_a_user_block(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    for block in (0, 1024):
        with h5py.File(tmp_path / "m", "w", userblock_size=block) as file:
            file["x"] = X
        assert kind(tmp_path / "m") == "hdf5"


def test_onnx_models_and_nothing_that_looks_like_one(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.numpy_helper.from_array(X, "x")
    graph = onnx.helper.make_graph([], "g", [], [], initializer=[tensor])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "m")
    raw = (tmp_path / "m").read_bytes()
    assert kind(tmp_path / "m") == "onnx"
    for damaged in (raw[:-1], raw + b"\0", raw[:2], b""):
        (tmp_path / "m").write_bytes(damaged)
        with pytest.raises(InputError, match="expected a checkpoint of"):
            open_store(tmp_path / "m")


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_zarr_directories(tmp_path: Path, driver: str) -> None:
    ts = pytest.importorskip("tensorstore")
    store = {"driver": "file", "path": str(tmp_path / "m" / "x")}
    spec = {"driver": driver, "kvstore": store, "create": True}
    ts.open(spec, dtype=ts.float32, shape=X.shape).result().write(X).result()
    if driver == "zarr":
        (tmp_path / "m" / ".zgroup").write_text('{"zarr_format": 2}')
    else:
        (tmp_path / "m" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    assert kind(tmp_path / "m") == "zarr"


def test_a_run_of_our_own_is_known_by_its_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "step_00000003").mkdir(parents=True)
    save_file({"x": X}, run / "model.safetensors")
    assert recognise(run) == (run, "safetensors")
    (run / "checkpoints" / "step_00000003" / "weights.bump").write_bytes(b"BUMPWGT5")
    for path in (run, run / "checkpoints", run / "checkpoints" / "step_00000003"):
        assert recognise(path) == (path, "lockstep")


def test_what_lies_beside_a_checkpoint_does_not_hide_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", x=X)
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    assert recognise(tmp_path) == (tmp_path / "m.npz", "npz")
    shutil.copy(tmp_path / "m.npz", tmp_path / "copy.npz")
    with pytest.raises(InputError, match=r"expected one checkpoint, got copy.npz, m.npz"):
        recognise(tmp_path)


def test_a_root_of_steps_is_left_to_the_locator_of_orbax(tmp_path: Path) -> None:
    for step in ("1", "2"):
        (tmp_path / step).mkdir()
        (tmp_path / step / "_CHECKPOINT_METADATA").write_text("{}")
    assert recognise(tmp_path) == (tmp_path, "orbax")
    assert recognise(tmp_path / "2") == (tmp_path / "2", "orbax")


def test_a_directory_with_one_checkpoint_is_that_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "README.md").write_text("words")
    with pytest.raises(InputError, match=r"expected a checkpoint of safetensors, gguf.*none of"):
        open_store(tmp_path)
    save_file({"x": X}, tmp_path / "weights.bin")  # the name says nothing
    assert set(open_store(tmp_path).leaves) == {"x"}
    np.savez(tmp_path / "other.dat", x=np.ones(3))
    with pytest.raises(InputError, match=r"expected one checkpoint, got other.dat.npz, weights"):
        open_store(tmp_path)


def test_one_directory_down_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file({"x": X}, tmp_path / "model" / "model.safetensors")
    assert set(open_store(tmp_path).leaves) == {"x"}


def test_formats_that_do_not_exist_are_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got 'tarball'"):
        open_store(tmp_path, "tarball")


def test_a_format_that_is_named_is_not_guessed(tmp_path: Path) -> None:
    save_file({"x": X}, tmp_path / "m.safetensors")
    assert set(open_store(tmp_path / "m.safetensors", "safetensors").leaves) == {"x"}
    with pytest.raises(InputError, match="expected a GGUF file"):
        open_store(tmp_path / "m.safetensors", "gguf")
