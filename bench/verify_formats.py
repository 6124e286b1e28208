"""What it takes to read one leaf of each format: peak memory and time of its digest.

python bench/verify_formats.py --mib 256

Every format is written by its own library and holds one matrix. The peak is that of the whole
process, its start included; a process that lists an empty file has the first line's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIB = 1 << 20
COLUMNS = 4096
Array = NDArray[np.float32]
READ = """
import json, sys, time
from pathlib import Path
from lockstep.formats.open_store import open_store
from lockstep.verify.engine.budget import memory_now
from lockstep.verify.engine.examine import Options, digest_store
from lockstep.verify.engine.rows import side_of
store = open_store(Path(sys.argv[1]))
listed = memory_now().peak
began = time.perf_counter()
digest_store(store, Options(max_memory_bytes=1 << 33, jobs=1))
seconds = time.perf_counter() - began
checksums = side_of(store, {}, {}).checksums
print(json.dumps({"format": store.format, "listed": listed, "peak": memory_now().peak,
                  "seconds": seconds, "checksums": checksums}))
"""


def safetensors(a: Array, path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": a}, path)


def gguf(a: Array, path: Path) -> None:
    import gguf as package

    writer = package.GGUFWriter(path, "llama")
    writer.add_tensor("w", a)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def torch_zip(a: Array, path: Path) -> None:
    import torch

    torch.save({"w": torch.from_numpy(a)}, path)


def torch_legacy(a: Array, path: Path) -> None:
    import torch

    torch.save({"w": torch.from_numpy(a)}, path, _use_new_zipfile_serialization=False)


def torch_dcp(a: Array, path: Path) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    dcp.save({"w": torch.from_numpy(a)}, checkpoint_id=path, no_dist=True)


def onnx(a: Array, path: Path) -> None:
    import onnx as package
    from onnx import helper, numpy_helper

    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(a, "w")])
    package.save_model(helper.make_model(graph), path, save_as_external_data=True, location="w.bin")


def orbax(a: Array, path: Path, chunk_bytes: int | None = None) -> None:
    import orbax.checkpoint as ocp

    args = ocp.args.PyTreeSave({"w": a}, save_args={"w": ocp.SaveArgs(chunk_byte_size=chunk_bytes)})
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.resolve(), args)


def hdf5(a: Array, path: Path, **options: Any) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=a, **options)


MAKERS: dict[str, Callable[[Array, Path], None]] = {
    "safetensors": safetensors,
    "GGUF": gguf,
    "npy": lambda a, path: np.save(path.with_suffix(".npy"), a),
    "npz": lambda a, path: np.savez(path.with_suffix(".npz"), w=a),
    "npz, compressed": lambda a, path: np.savez_compressed(path.with_suffix(".npz"), w=a),
    "PyTorch .pt": torch_zip,
    "PyTorch .pt, before 1.6": torch_legacy,
    "PyTorch DCP": torch_dcp,
    "ONNX, external data": onnx,
    "Orbax, one chunk": orbax,
    "Orbax, chunks of 32 MiB": lambda a, path: orbax(a, path, 32 * MIB),
    "HDF5": hdf5,
    "HDF5, gzip, fletcher32": lambda a, path: hdf5(
        a, path, chunks=(256, COLUMNS), compression="gzip", compression_opts=1, fletcher32=True
    ),
}


def main() -> None:
    """Writes, reads and prints one line for each format."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=256, help="size of the leaf")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = options.mib * MIB // 4 // COLUMNS
    a = np.random.default_rng(0).standard_normal((rows, COLUMNS), np.float32)
    print("| format | to list it, MiB | to read it, MiB | MB/s, 1 thread | checksums |")
    print("|---|---|---|---|---|")
    for name, make in MAKERS.items():
        with tempfile.TemporaryDirectory() as folder:
            make(a, Path(folder) / "checkpoint")
            (path,) = [p for p in Path(folder).iterdir() if p.suffix != ".bin"]
            command = [sys.executable, "-c", READ, str(path)]
            runs = [
                json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
                for _ in range(options.rounds)
            ]
        peaks = [max(run[key] for run in runs) / MIB for key in ("listed", "peak")]
        rate = a.nbytes / 1e6 / statistics.median(run["seconds"] for run in runs)
        print(f"| {name} | {peaks[0]:.0f} | {peaks[1]:.0f} | {rate:.0f} | {runs[0]['checksums']} |")


if __name__ == "__main__":
    main()
