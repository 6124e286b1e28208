"""Any checkpoint, recognised by what it holds and never by its name alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from lockstep.errors import InputError, UsageError
from lockstep.formats.json_text import read_json_object
from lockstep.formats.leaf import Store
from lockstep.formats.locate.bounded import opened
from lockstep.formats.zip_records import ZipRecords

# Format -> the module that locates its leaves, imported when it is needed.
LOCATORS = {
    "safetensors": "safetensors",
    "gguf": "gguf",
    "npz": "numpy_files",
    "npy": "numpy_files",
    "torch": "torch_zip",
    "dcp": "torch_dcp",
    "onnx": "onnx",
    "orbax": "orbax",
    "zarr": "zarr",
    "hdf5": "hdf5",
    "lockstep": "run_checkpoint",
}
_INDEX = ".safetensors.index.json"
_ORBAX_NAMES = {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"}
_ZARR_NAMES = {".zarray", ".zgroup", ".zmetadata", "zarr.json"}
_HDF5_PLACES = (0, 512, 1024, 2048)  # behind a user block; larger ones are not looked for
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # its magic number, pickled
_BUMP = b"BUMPWGT5"  # the weights of a checkpoint of our own
_ONNX_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_ONNX_GRAPH = 7
_MAX_JSON_SNIFF = 64 << 20


def open_store(path: Path, format: str | None = None) -> Store:
    """Lists the leaves of a checkpoint without reading their data.

    `format` is one of `LOCATORS`; None recognises it.
    Raises: InputError if it is no checkpoint that is known, or is damaged. UsageError if there is
    no such format.
    """
    if format is not None and format not in LOCATORS:
        raise UsageError(
            f"{path}: expected a format of {', '.join(LOCATORS)}, got {format!r:.80}",
            hint="choose one of these, or leave it out",
        )
    if format is None:
        path, format = recognise(path)
    module = importlib.import_module(f"lockstep.formats.locate.{LOCATORS[format]}")
    return cast(Callable[[Path], Store], module.locate)(path)


def recognise(path: Path) -> tuple[Path, str]:
    """Where a checkpoint is, which may be inside of a directory, and its format.

    Raises: InputError if there is none, or more than one.
    """
    if not path.is_dir():
        if (found := _of_file(path)) is None:
            raise _unknown(path, "bytes that none of them begins with")
        return path, found
    names = _names(path)
    if (found := _of_directory(path, names)) is not None:
        return path, found
    inner = _directories(path, names)
    if inner and {kind for _, kind in inner} == {"orbax"}:
        return path, "orbax"  # a root of steps, of which its locator knows which are finished
    for entries in (_files(path, names), inner):
        if len({first for first, _ in entries}) > 1:
            listed = ", ".join(p.name for p, _ in entries)
            raise InputError(
                f"{path}: expected one checkpoint, got {listed:.400}",
                hint="name one of them instead of the directory",
            )
        if entries:
            inside, kind = entries[0]
            is_beside = kind == "safetensors" and inside.suffix == ".safetensors"
            return (path if is_beside else inside), kind  # a config beside it has the facts
    raise _unknown(path, "a directory with none of them")


def _names(path: Path) -> set[str]:
    try:
        return {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}", hint="check its permissions"
        ) from error


def _of_directory(path: Path, names: set[str]) -> str | None:
    """The format of a directory that is a checkpoint by itself."""
    if _is_ours(path, names):
        return "lockstep"
    if names & _ORBAX_NAMES or any(name.startswith("ocdbt.process_") for name in names):
        return "orbax"
    if names & _ZARR_NAMES:
        return "zarr"
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        return "dcp"
    if "model.safetensors" in names or any(n.endswith(_INDEX) for n in names):
        return "safetensors"
    if names & {"pytorch_model.bin", "pytorch_model.bin.index.json"}:
        return "torch"
    return None


def _is_ours(path: Path, names: set[str]) -> bool:
    """Whether this is a run of lockstep, its checkpoints, or one of them."""
    if "checkpoints" in names and (path / "checkpoints").is_dir():
        path, names = path / "checkpoints", _names(path / "checkpoints")
    steps = (path / name for name in names if name.startswith("step_"))
    return any(_begins(folder / "weights.bump", _BUMP) for folder in (path, *steps))


def _begins(path: Path, magic: bytes) -> bool:
    if not path.is_file():
        return False
    with opened(path) as (file, _):
        return file.read(len(magic)) == magic


def _files(path: Path, names: set[str]) -> list[tuple[Path, str]]:
    """The files that are checkpoints; of a split GGUF the first file stands for all."""
    found = []
    for name in sorted(names):
        if (path / name).is_file() and (kind := _of_file(path / name)) is not None:
            stem, dash, rest = name.rpartition("-of-")
            is_part = kind == "gguf" and dash and rest[:5].isdigit() and stem[-5:].isdigit()
            if not (is_part and int(stem[-5:]) > 1):
                found.append((path / name, kind))
    return found


def _directories(path: Path, names: set[str]) -> list[tuple[Path, str]]:
    """The directories one level down that are checkpoints by themselves."""
    inner = [path / name for name in sorted(names) if (path / name).is_dir()]
    kinds = ((p, _of_directory(p, _names(p))) for p in inner)
    return [(p, kind) for p, kind in kinds if kind is not None]


def _of_file(path: Path) -> str | None:
    """The format of a file, from its first bytes and, for archives, its members."""
    with opened(path) as (file, size):
        head = file.read(32)
        n_header = int.from_bytes(head[:8], "little")
        if head[8:9] == b"{" and n_header <= size - 8:
            return "safetensors"
        for magic, kind in ((b"GGUF", "gguf"), (b"\x93NUMPY", "npy")):
            if head.startswith(magic):
                return kind
        if head.startswith(b"\x80") and _LEGACY_TORCH in head:  # of any protocol of pickles
            return "torch"
        if head.startswith(b"PK\x03\x04"):
            return _of_archive(path, file, size)
        if any(_at(file, place, len(_HDF5)) == _HDF5 for place in _HDF5_PLACES):
            return "hdf5"
        if head.startswith(b"{"):
            return _of_json(path, size)
        return "onnx" if _is_onnx(file, size) else None


def _at(file: BinaryIO, offset: int, n: int) -> bytes:
    file.seek(offset)
    return file.read(n)


def _of_archive(path: Path, file: BinaryIO, size: int) -> str | None:
    names = ZipRecords(path, file, 0, size, str(path), deflated=True).records
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return "torch"
    return "npz" if any(name.endswith(".npy") for name in names) else None


def _of_json(path: Path, size: int) -> str | None:
    """An index of shards; other JSON, such as a config, lies beside many checkpoints."""
    if size > _MAX_JSON_SNIFF:
        return None
    try:
        places = read_json_object(path).get("weight_map")
    except InputError:
        return None
    shards = [str(shard) for shard in places.values()] if isinstance(places, dict) else []
    if any(shard.endswith(".safetensors") for shard in shards):
        return "safetensors"
    return "torch" if any(shard.endswith(".bin") for shard in shards) else None


def _is_onnx(file: BinaryIO, size: int) -> bool:
    """Whether the file is a row of the fields of an ONNX model with a graph among them.

    Source: https://github.com/onnx/onnx/blob/64209faab4da/onnx/onnx.proto (ModelProto)
    """
    at, has_graph = 0, False
    for _ in range(10_000):
        if at == size:
            return has_graph
        tag, at = _varint(file, at)
        field, wire = tag >> 3, tag & 7
        if _ONNX_FIELDS.get(field) != wire:
            return False
        value, at = _varint(file, at)
        at += value if wire == 2 else 0
        has_graph |= field == _ONNX_GRAPH
        if value < 0 or at > size:
            return False
    return False


def _varint(file: BinaryIO, at: int) -> tuple[int, int]:
    """A number of protobuf and where it ends; -1 if there is none."""
    value = 0
    for i, byte in enumerate(_at(file, at, 10)):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    return -1, at


def _unknown(path: Path, got: str) -> InputError:
    return InputError(
        f"{path}: expected a checkpoint of {', '.join(LOCATORS)}, got {got}",
        hint="name the file or directory that holds the tensors, or pass its format",
    )
