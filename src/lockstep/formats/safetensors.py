"""Files of the safetensors format: leaves read one at a time, and files written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import EnvironmentLacks
from lockstep.formats.atomic import replacing
from lockstep.formats.dequantise import SUPPORTED
from lockstep.formats.locate.safetensors import read_header
from lockstep.formats.mapped import MappedTensors
from lockstep.formats.to_write import TensorToWrite

_KINDS = {"f": "F", "i": "I", "u": "U"}  # of NumPy, as the format spells them before their bits
_ALIGN_BYTES = 8


class SafetensorsFile(MappedTensors):
    """One file: the shape and stored type of each tensor, and one tensor at a time."""

    def __init__(self, path: Path) -> None:
        """Opens a file.

        Raises: InputError if it is not a whole and valid safetensors file.
        """
        self.path = path
        header = read_header(path)
        self.metadata = header.metadata
        super().__init__(str(path), header.leaves)


def write_safetensors(
    path: Path,
    tensors: Mapping[str, NDArray[Any] | TensorToWrite],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file whole or not at all, one tensor after the other.

    The library of the format wants all of them in memory at once.
    Raises: EnvironmentLacks if the disk is full or the folder cannot be written. InputError if a
    number does not fit the type that it is to be stored in.
    Source: https://github.com/huggingface/safetensors#format
    """
    # Wide elements first, so that each is at a multiple of its size; then as the library has them.
    names = sorted(tensors, key=lambda name: (-_item_bytes(tensors[name]), name))
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + _n_bytes(tensor)
        place = {"shape": list(tensor.shape), "data_offsets": [begin, end]}
        entries[name] = {"dtype": _type_name(tensor), **place}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text = text.ljust(-(-len(text) // _ALIGN_BYTES) * _ALIGN_BYTES)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                file.write(_raw(name, tensors[name]).data)
    except OSError as error:
        raise EnvironmentLacks(
            f"{path}: cannot be written: {error}", hint="check free space and permissions"
        ) from error


def _item_bytes(tensor: NDArray[Any] | TensorToWrite) -> int:
    if isinstance(tensor, TensorToWrite):
        return SUPPORTED[tensor.stored].n_bytes
    return tensor.dtype.itemsize


def _n_bytes(tensor: NDArray[Any] | TensorToWrite) -> int:
    return tensor.nbytes if isinstance(tensor, np.ndarray) else tensor.n_bytes


def _type_name(tensor: NDArray[Any] | TensorToWrite) -> str:
    if isinstance(tensor, TensorToWrite):
        return tensor.stored
    kind = _KINDS.get(tensor.dtype.kind)
    return f"{kind}{8 * tensor.dtype.itemsize}" if kind else "BOOL"


def _raw(name: str, tensor: NDArray[Any] | TensorToWrite) -> NDArray[Any]:
    if isinstance(tensor, TensorToWrite):
        return tensor.made(name)
    return np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))
