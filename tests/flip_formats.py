"""Every format that is listed: a small checkpoint by its own library, and what that library reads.

A reading is a mapping of name to element type, shape and bits, or to ("value", value); names are
those of our listing. What reads here shares no code with the locators.
"""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

Reading = dict[str, tuple[Any, ...]]

RNG = np.random.default_rng(17)
ARRAYS: dict[str, Any] = {
    "gate": RNG.standard_normal((9, 20)).astype(np.float32),
    "up": RNG.standard_normal((9, 20)).astype(np.float32),
    "norm": RNG.standard_normal(33).astype(np.float16),
    "ids": RNG.integers(-128, 128, (3, 4, 5)).astype(np.int8),
    "step": np.array([175_000], np.int64),
}


@dataclass(frozen=True)
class Format:
    """How a checkpoint is written into an empty folder, of which `root` is a part, and read."""

    name: str
    write: Callable[[Path], None]
    read: Callable[[Path], Reading]
    root: str
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """The packages that are not here."""
        return [name for name in self.needs if find_spec(name) is None]


def reading_of(arrays: Mapping[str, Any]) -> Reading:
    """Arrays as types, shapes and bits."""
    found = {str(name): np.asarray(array) for name, array in arrays.items()}
    little = {name: a.astype(a.dtype.newbyteorder("<")) for name, a in found.items()}
    return {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in little.items()}


# --- safetensors


def write_safetensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file(ARRAYS, folder / "m.safetensors", metadata={"format": "pt", "made": "here"})


def read_safetensors(path: Path) -> Reading:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return reading_of({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def write_shards(folder: Path) -> None:
    from safetensors.numpy import save_file

    places = {"gate": 1, "up": 2, "norm": 2, "ids": 1, "step": 2}
    root = folder / "m"
    root.mkdir()
    for i in (1, 2):
        part = {name: ARRAYS[name] for name, place in places.items() if place == i}
        save_file(part, root / f"model-0000{i}-of-00002.safetensors")
    places_text = {name: f"model-0000{i}-of-00002.safetensors" for name, i in places.items()}
    size = sum(a.nbytes for a in ARRAYS.values())
    index = {"metadata": {"total_size": size}, "weight_map": places_text}
    (root / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def read_shards(root: Path) -> Reading:
    index = json.loads((root / "model.safetensors.index.json").read_text())
    found: Reading = {}
    for name, shard in index["weight_map"].items():
        found[name] = read_safetensors(root / shard)[name]
    return found


# --- GGUF


def write_gguf(folder: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    writer.add_block_count(1)
    writer.add_string("general.name", "flips")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "d"])
    for name, array in ARRAYS.items():
        writer.add_tensor(name, array)
    _gguf_end(writer)


def write_quantised(folder: Path) -> None:
    import gguf

    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    x = RNG.standard_normal((4, 64)).astype(np.float32)
    for kind in (kinds.Q8_0, kinds.Q4_0):
        writer.add_tensor(kind.name.lower(), gguf.quants.quantize(x, kind), raw_dtype=kind)
    blocks = np.random.default_rng(5).integers(0, 256, (2, 144), np.uint8)
    writer.add_tensor("q4_k", blocks, raw_dtype=kinds.Q4_K)
    writer.add_tensor("norm", ARRAYS["norm"])
    _gguf_end(writer)


def _gguf_end(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path) -> Reading:
    import gguf

    found: Reading = {}
    for tensor in gguf.GGUFReader(path).tensors:
        n_numbers, n_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        shape = tuple(int(n) for n in reversed(tensor.shape))
        assert shape[-1] % n_numbers == 0
        element = f"{tensor.tensor_type.name} {n_bytes}"
        grid = (*shape[:-1], shape[-1] // n_numbers)
        assert tensor.name not in found
        found[tensor.name] = (element, grid, np.array(tensor.data).tobytes())
    return found


# --- NumPy


def write_npy(folder: Path) -> None:
    np.save(folder / "m.npy", ARRAYS["gate"])


def write_npz(folder: Path) -> None:
    np.savez(folder / "m.npz", **ARRAYS)


def write_deflated(folder: Path) -> None:
    np.savez_compressed(folder / "m.npz", **ARRAYS)


def read_npy(path: Path) -> Reading:
    return reading_of({"array": np.load(path, allow_pickle=False)})


def read_npz(path: Path) -> Reading:
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
    assert len(set(names)) == len(names)
    assert all(name.endswith(".npy") for name in names)
    with np.load(path, allow_pickle=False) as file:
        return reading_of({name: file[name] for name in file.files})


# --- PyTorch


def torch_state() -> dict[str, Any]:
    import torch

    tensors: dict[str, Any] = {name: torch.from_numpy(a) for name, a in ARRAYS.items()}
    tensors["turned"] = torch.from_numpy(ARRAYS["up"][:5]).to(torch.bfloat16).t()
    return {**tensors, "epoch": 7, "lr": 0.25, "run": "flips", "inner": {"w": tensors["norm"][3:9]}}


def write_torch(folder: Path) -> None:
    import torch

    torch.save(torch_state(), folder / "m.pt")


def write_legacy(folder: Path) -> None:
    import torch

    torch.save(torch_state(), folder / "m.pt", _use_new_zipfile_serialization=False)


def read_torch(path: Path) -> Reading:
    import torch

    return torch_reading(torch.load(path, weights_only=True, map_location="cpu"))


def torch_reading(state: Mapping[str, Any], before: str = "") -> Reading:
    import torch

    found: Reading = {}
    for key, value in state.items():
        name = f"{before}{key}"
        if isinstance(value, torch.Tensor):
            flat = torch.empty(value.numel(), dtype=value.dtype).copy_(value.reshape(-1))
            raw = flat.view(torch.uint8).numpy().tobytes()
            found[name] = (f"{value.dtype} {value.element_size()}", tuple(value.shape), raw)
        elif isinstance(value, Mapping) and value:
            found |= torch_reading(value, f"{name}/")
        else:
            found[name] = ("value", value)
    return found


def write_dcp(folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(torch_state(), checkpoint_id=folder / "m", no_dist=True)


def read_dcp(root: Path) -> Reading:
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _load_state_dict(
            state, FileSystemReader(root), planner=_EmptyStateDictLoadPlanner(), no_dist=True
        )
    return torch_reading(state)


# --- zarr and Orbax


def write_zarr(folder: Path, driver: str = "zarr") -> None:
    import tensorstore as ts

    for name, array in ARRAYS.items():
        chunks = [max(1, n // 2) for n in array.shape]
        if driver == "zarr":
            options: dict[str, Any] = {"metadata": {"chunks": chunks}}
        else:
            grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
            codecs = [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 1}}]
            codecs += [{"name": "crc32c"}] if name in ("gate", "ids") else []
            options = {"metadata": {"chunk_grid": grid, "codecs": codecs}}
        spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{folder}/m/{name}/"}}
        store = ts.open({**spec, **options}, create=True, dtype=str(array.dtype),
                        shape=array.shape).result()  # fmt: skip
        store.write(array).result()
    if driver == "zarr":
        (folder / "m" / ".zgroup").write_text('{"zarr_format": 2}')
    else:
        group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
        (folder / "m" / "zarr.json").write_text(json.dumps(group))


def write_zarr3(folder: Path) -> None:
    write_zarr(folder, "zarr3")


def read_zarr(root: Path) -> Reading:
    import tensorstore as ts

    found = {}
    for inner in sorted(root.iterdir()):
        if not inner.is_dir():
            continue
        driver = "zarr3" if (inner / "zarr.json").exists() else "zarr"
        kvstore = {"driver": "file", "path": f"{inner}/"}
        spec = {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False}
        found[inner.name] = ts.open(spec, read=True).result().read().result()
    return reading_of(found)


def write_orbax(folder: Path) -> None:
    _orbax(folder, use_zarr3=False)


def write_orbax3(folder: Path) -> None:
    _orbax(folder, use_zarr3=True)


def _orbax(folder: Path, **options: Any) -> None:
    silent_jax()
    import orbax.checkpoint as ocp

    kept = {name: ARRAYS[name] for name in ("gate", "up", "norm")}
    kept["large"] = np.random.default_rng(3).standard_normal((40, 30)).astype(np.float32)
    tree = {"params": kept, "step": ARRAYS["step"]}  # a large one lies outside of the database
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, **options)) as saver:
        saver.save(folder / "m", tree)


def read_orbax(root: Path) -> Reading:
    silent_jax()
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as saver:
        tree = saver.metadata(root).item_metadata.tree

        def args(node: Any) -> Any:
            if isinstance(node, dict):
                return {key: args(value) for key, value in node.items()}
            return ocp.RestoreArgs(restore_type=np.ndarray)

        found = saver.restore(root, args=ocp.args.PyTreeRestore(restore_args=args(tree)))
    flat = {f"params/{name}": value for name, value in found.pop("params").items()}
    return reading_of({**flat, **found})


def silent_jax() -> None:
    """Before orbax is imported: one CPU, and no log."""
    import logging

    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    logging.disable(logging.CRITICAL)


# --- HDF5


def _write_hdf5(folder: Path, **options: Any) -> None:
    import h5py

    with h5py.File(folder / "m.h5", "w") as file:
        for name, array in ARRAYS.items():
            chunks = {"chunks": tuple(max(1, n // 2) for n in array.shape)} if options else {}
            file.create_dataset(f"model/{name}", data=array, **options, **chunks)


def write_hdf5(folder: Path) -> None:
    _write_hdf5(folder)


def write_hdf5_gzip(folder: Path) -> None:
    _write_hdf5(folder, compression="gzip", shuffle=True)


def write_hdf5_fletcher(folder: Path) -> None:
    _write_hdf5(folder, fletcher32=True)


def read_hdf5(path: Path) -> Reading:
    import h5py

    found: Reading = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found.update(reading_of({name: node[()]}))

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


# --- ONNX


def write_onnx(folder: Path) -> None:
    (folder / "m.onnx").write_bytes(_onnx_model().SerializeToString())


def write_onnx_external(folder: Path) -> None:
    import onnx

    (folder / "m").mkdir()
    onnx.save_model(
        _onnx_model(), folder / "m" / "m.onnx", save_as_external_data=True,
        all_tensors_to_one_file=True, location="weights.bin", size_threshold=1,
    )  # fmt: skip


def _onnx_model() -> Any:
    import onnx
    from onnx import helper, numpy_helper

    tensors = [numpy_helper.from_array(array, name) for name, array in ARRAYS.items()]
    shape = list(ARRAYS["gate"].shape)
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in "xy"]
    node = helper.make_node("Add", ["x", "gate"], ["y"])
    return helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], tensors))


def read_onnx(path: Path) -> Reading:
    import onnx
    from onnx import numpy_helper

    file = path / "m.onnx" if path.is_dir() else path
    model = onnx.load(file, load_external_data=True)
    found: Reading = {}
    for tensor in model.graph.initializer:
        assert tensor.name not in found
        found[tensor.name] = reading_of({"": numpy_helper.to_array(tensor)})[""]
    return found


# --- our own


def write_run(folder: Path) -> None:
    from lockstep.artifacts.checkpoint_state import CheckpointState, DataCursor, RandomState
    from lockstep.engine.checkpoint import save_checkpoint

    floats = _run_arrays()
    moments = {f"{name}@{slot}": a * 2 for slot in "mv" for name, a in floats.items()}
    state = CheckpointState(
        created_at="2026-01-01T00:00:00+00:00", reason="interval", step=3, tokens_seen=192,
        template="qwen3", config={"num_layers": 2, "rope_theta": 1e4}, tokenizer_sha256=None,
        dataset_sha256="cd" * 32, optimizer={"name": "adamw", "beta1": 0.9},
        schedule={"decay": "cosine"}, settings={}, cursor=DataCursor(epoch=1, index=3),
        random=RandomState(generator="philox", seed=42), files={},
    )  # fmt: skip
    save_checkpoint(folder / "m" / "checkpoints", state, floats, moments)


def _run_arrays() -> dict[str, Any]:
    return {name: ARRAYS[name] for name in ("gate", "up")}


def read_run(root: Path) -> Reading:
    from lockstep.engine.checkpoint import load_checkpoint

    (folder,) = (root / "checkpoints").glob("step_*")
    shapes = {name: a.shape for name, a in _run_arrays().items()}
    found = load_checkpoint(folder, shapes)
    moments = {
        f"moments/{name.rpartition('@')[2]}/{name.rpartition('@')[0]}": array
        for name, array in found.moments.items()
    }
    arrays = {f"parameters/{name}": array for name, array in found.parameters.items()}
    return reading_of({**arrays, **moments})


FORMATS = {
    each.name: each
    for each in (
        Format("safetensors", write_safetensors, read_safetensors, "m.safetensors"),
        Format("safetensors shards", write_shards, read_shards, "m"),
        Format("gguf", write_gguf, read_gguf, "m.gguf", ("gguf",)),
        Format("gguf quantised", write_quantised, read_gguf, "m.gguf", ("gguf",)),
        Format("npy", write_npy, read_npy, "m.npy"),
        Format("npz", write_npz, read_npz, "m.npz"),
        Format("npz deflated", write_deflated, read_npz, "m.npz"),
        Format("torch", write_torch, read_torch, "m.pt", ("torch",)),
        Format("torch legacy", write_legacy, read_torch, "m.pt", ("torch",)),
        Format("dcp", write_dcp, read_dcp, "m", ("torch",)),
        Format("zarr", write_zarr, read_zarr, "m", ("tensorstore", "zstandard")),
        Format("zarr3", write_zarr3, read_zarr, "m", ("tensorstore", "zstandard")),
        Format("orbax", write_orbax, read_orbax, "m", ("orbax", "tensorstore", "zstandard")),
        Format("orbax zarr3", write_orbax3, read_orbax, "m", ("orbax", "tensorstore", "zstandard")),
        Format("hdf5", write_hdf5, read_hdf5, "m.h5", ("h5py",)),
        Format("hdf5 gzip", write_hdf5_gzip, read_hdf5, "m.h5", ("h5py",)),
        Format("hdf5 fletcher32", write_hdf5_fletcher, read_hdf5, "m.h5", ("h5py",)),
        Format("onnx", write_onnx, read_onnx, "m.onnx", ("onnx",)),
        Format("onnx external", write_onnx_external, read_onnx, "m", ("onnx",)),
        Format("run checkpoint", write_run, read_run, "m"),
    )
}


def write_in_silence(format: Format, folder: Path) -> Path:
    """Writes a checkpoint; what its library has to say is not what is tested."""
    folder.mkdir(parents=True)
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        format.write(folder)
    return folder / format.root


def read(format: Format, root: Path) -> Reading | BaseException:
    """What the format's own library reads, or how it fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return format.read(root)
        except (KeyboardInterrupt, TimeoutError):
            raise
        except BaseException as error:  # that of torch's DCP is no Exception
            return error
