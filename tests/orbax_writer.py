"""Writes checkpoints with Orbax itself, and beside them the bytes that it was given.

Run in a process of its own: `python tests/orbax_writer.py FOLDER`.
"""

from __future__ import annotations

import collections
import json
import logging
import os
import sys
import warnings
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
warnings.simplefilter("ignore")  # of the libraries: they are not what is tested
logging.disable(logging.CRITICAL)

import jax  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
import tensorstore as ts  # noqa: E402
from orbax.checkpoint._src.metadata.pytree_metadata_options import (  # noqa: E402
    PyTreeMetadataOptions,
)
from orbax.checkpoint._src.serialization import tensorstore_utils as ts_utils  # noqa: E402

Moments = collections.namedtuple("Moments", "mu nu")


def odd_floats() -> np.ndarray:
    """Float32 whose bits are easily lost: -0, payloads of NaN, subnormals, infinities."""
    words = [0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800001, 1, 0x807FFFFF, 0x7F800000, 0xFF800000]
    return np.array(words, np.uint32).view(np.float32).reshape(2, 4)


def tree() -> dict:
    """One leaf of each kind that Orbax takes."""
    rng = np.random.default_rng(7)
    weights = rng.normal(size=(6, 5)).astype(np.float32)
    return {
        "params": {
            "block.0": {"up": weights, "odd": odd_floats()},
            "bf16": rng.integers(0, 1 << 16, (3, 7), np.uint16).view(ml_dtypes.bfloat16),
            "f16": rng.integers(0, 1 << 16, (5,), np.uint16).view(np.float16),
            "e4m3": rng.integers(0, 256, (9,), np.uint8).view(ml_dtypes.float8_e4m3fn),
            "e5m2": rng.integers(0, 256, (9,), np.uint8).view(ml_dtypes.float8_e5m2),
            "int4": np.arange(-8, 8, dtype=ml_dtypes.int4),
            "large": rng.normal(size=(40, 30)).astype(np.float32),  # OCDBT keeps it by itself
            "on_device": jax.numpy.asarray(weights.T),
        },
        "opt": [
            Moments(rng.normal(size=(2, 3)), (rng.normal(size=4) + 1j).astype(np.complex64)),
            (1, 2.5, None, "hello", {}, [], True),
        ],
        "empty": optax.EmptyState(),
        "step": np.int64(1 << 40),
        "key": jax.random.PRNGKey(42),
        "typed_key": jax.random.key(3),
        "mask": np.array([True, False, True]),
    }


def expected(tree: object, root: Path) -> None:
    """Keeps what was given: the bytes of each array by its path as text."""
    rows = {}
    for path, value in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = "/".join(f"[{p.idx}]" if hasattr(p, "idx") else _name(p) for p in path)
        if isinstance(value, str):
            continue
        if hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.asarray(value)
        rows[name] = [str(array.dtype), list(array.shape), array.tobytes().hex()]
    root.with_suffix(".json").write_text(json.dumps(rows))


def _name(step: object) -> str:
    return str(getattr(step, "key", getattr(step, "name", None)))


def handler(**options: object) -> ocp.Checkpointer:
    """A checkpointer of the layout that these options choose."""
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options))


def save_trees(root: Path) -> None:
    """The same tree in each layout."""
    for ocdbt in (True, False):
        for zarr3 in (True, False):
            path = root / f"{'ocdbt' if ocdbt else 'files'}_{'zarr3' if zarr3 else 'zarr2'}"
            handler(use_ocdbt=ocdbt, use_zarr3=zarr3).save(path, tree())
            expected(tree(), path)
    rich = PyTreeMetadataOptions(support_rich_types=True)
    handler(pytree_metadata_options=rich).save(root / "rich", tree())


def save_steps(root: Path) -> None:
    """What StandardCheckpointer and CheckpointManager make."""
    rng = np.random.default_rng(8)
    params = {"w": rng.normal(size=(4, 3)).astype(np.float32)}
    state = {"params": params, "opt": optax.adam(1e-3).init(params)}
    standard = ocp.StandardCheckpointer()
    standard.save(root / "standard", state)
    standard.wait_until_finished()
    expected(state, root / "standard")
    manager = ocp.CheckpointManager(root / "two_steps")
    for step in (9, 10):
        manager.save(step, args=ocp.args.StandardSave(params))
    manager.wait_until_finished()
    one = ocp.CheckpointManager(root / "one_step")
    items = {"state": ocp.args.PyTreeSave(params), "meta": ocp.args.JsonSave({"x": 1})}
    one.save(3, args=ocp.args.Composite(**items))
    one.wait_until_finished()


def save_chunks(root: Path) -> None:
    """Several chunks in a leaf: of eight devices, and of a bound on the bytes of a chunk."""
    rng = np.random.default_rng(9)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    w = rng.normal(size=(16, 10)).astype(np.float32)
    for zarr3 in (False, True):
        path = root / f"sharded_zarr{3 if zarr3 else 2}"
        handler(use_zarr3=zarr3).save(path, {"w": jax.device_put(w, spread)})
        expected({"w": w}, path)
        small = root / f"small_chunks_zarr{3 if zarr3 else 2}"
        arguments = {"w": ocp.SaveArgs(chunk_byte_size=128)}
        handler(use_zarr3=zarr3).save(
            small, args=ocp.args.PyTreeSave({"w": w}, save_args=arguments)
        )
        expected({"w": w}, small)
    kept = ts_utils.STORE_ARRAY_DATA_EQUAL_TO_FILL_VALUE
    ts_utils.STORE_ARRAY_DATA_EQUAL_TO_FILL_VALUE = False  # as an older Orbax did
    half = np.concatenate([np.zeros((8, 10), np.float32), w[:8]])
    sparse = {"half": half, "none": np.zeros((3, 2)), "minus": -np.zeros(3, np.float32)}
    save_args = {name: ocp.SaveArgs(chunk_byte_size=64) for name in sparse}
    handler(use_zarr3=True).save(
        root / "older", args=ocp.args.PyTreeSave(sparse, save_args=save_args)
    )
    ts_utils.STORE_ARRAY_DATA_EQUAL_TO_FILL_VALUE = kept
    expected(sparse, root / "older")
    huge = rng.integers(0, 1 << 32, 24 << 20 >> 2, np.uint32)
    handler().save(root / "huge", {"w": huge.reshape(-1, 8)})
    huge.tofile(root / "huge.raw")
    colliding = {"a": {"b": np.zeros(2, np.float32)}, "a.b": np.ones(2, np.float32)}
    handler().save(root / "colliding", colliding)


def save_zarr(root: Path) -> None:
    """Plain zarr through tensorstore: orders, byte orders, compressors, chunks that are cut."""
    rng = np.random.default_rng(10)
    compressors = {
        "none": None, "zstd": {"id": "zstd", "level": 3}, "gzip": {"id": "gzip", "level": 5},
        "zlib": {"id": "zlib", "level": 5}, "blosc": {"id": "blosc", "cname": "lz4"},
    }  # fmt: skip
    given = {}
    for name, compressor in compressors.items():
        for order in "CF":
            for odd, dtype in enumerate(("<f4", ">f4", ">c8", "|u1")):
                key = f"{name}{order}{dtype[1:]}{'big' if dtype[0] == '>' else ''}"
                array = rng.integers(0, 256, (7, 5, 3 * np.dtype(dtype).itemsize), np.uint8)
                array = array.view(dtype)
                metadata = {
                    "shape": list(array.shape), "chunks": [4, 5, 2 + (order == "C" and odd % 2)],
                    "dtype": dtype,
                    "order": order, "compressor": compressor,
                    "dimension_separator": "/" if order == "F" else ".",
                }  # fmt: skip
                write("zarr", root / "zarr2" / "group" / key, metadata, array)
                given[f"group/{key}"] = array
    store(given, root / "zarr2")
    whole = rng.normal(size=(6, 4)).astype("<f8")
    codecs = {
        "plain": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "big": [{"name": "bytes", "configuration": {"endian": "big"}}],
        "gzip": ["bytes", {"name": "gzip", "configuration": {"level": 5}}],
        "crc": ["bytes", {"name": "crc32c"}],
        "turned": [{"name": "transpose", "configuration": {"order": [1, 0]}}, "bytes"],
    }
    for name, chain in codecs.items():
        named = [{"name": c} if isinstance(c, str) else c for c in chain]
        grid = {"name": "regular", "configuration": {"chunk_shape": [4, 4]}}
        metadata = {"shape": [6, 4], "data_type": "float64", "chunk_grid": grid, "codecs": named}
        write("zarr3", root / "zarr3" / name, metadata, whole)
    store(dict.fromkeys(codecs, whole), root / "zarr3")


def write(driver: str, path: Path, metadata: dict, array: np.ndarray) -> None:
    """Writes one array with every chunk, those of zeros too."""
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"},
            "metadata": metadata, "store_data_equal_to_fill_value": True}  # fmt: skip
    ts.open(spec, create=True).result().write(array).result()


def store(given: dict, root: Path) -> None:
    """Keeps the bytes of arrays, little-endian."""
    rows = {}
    for name, array in given.items():
        little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
        if array.dtype.byteorder == ">":  # bits as they are, whatever a conversion would do
            width = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
            words = np.ascontiguousarray(array).view(f">u{width}")
            little = words.astype(f"<u{width}")
        rows[name] = ["", list(array.shape), little.tobytes().hex()]
    root.with_suffix(".json").write_text(json.dumps(rows))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for make in (save_trees, save_steps, save_chunks, save_zarr):
        make(folder)
