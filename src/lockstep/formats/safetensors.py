"""Files of the safetensors format: leaves read one at a time, and files written whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import EnvironmentLacks
from lockstep.formats.atomic import replacing
from lockstep.formats.locate.safetensors import read_header
from lockstep.formats.mapped import MappedTensors
from lockstep.formats.quantise import quantise


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


_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the bytes of a type, which NumPy need not have."""

    stored: str
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]

    @classmethod
    def of(cls, array: NDArray[Any], stored: str, where: str) -> StoredTensor:
        """Float32 numbers in a type of `quantise`, rounded as it does.

        Raises: InputError if a number becomes none in the type.
        """
        return cls(stored, array.shape, quantise(array.reshape(-1), stored, where))


def write_safetensors(
    path: Path,
    tensors: Mapping[str, NDArray[Any] | StoredTensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file whole or not at all.

    Raises: EnvironmentLacks if the disk is full or the folder cannot be written.
    """
    # Here, because verifying needs numpy and the standard library only, and imports this room.
    from safetensors import SafetensorError, TensorSpec, serialize_file

    kept, specs = [], {}
    for name, tensor in tensors.items():
        raw = tensor.raw if isinstance(tensor, StoredTensor) else _little_endian(tensor)
        kept.append(raw)  # as long as its address is in use
        named = _NAMES[tensor.stored] if isinstance(tensor, StoredTensor) else tensor.dtype.name
        specs[name] = TensorSpec(
            dtype=named, shape=tensor.shape, data_ptr=raw.ctypes.data, data_len=raw.nbytes
        )
    try:
        with replacing(path) as temporary:
            serialize_file(specs, temporary, dict(metadata or {}))
    except (OSError, SafetensorError) as error:
        raise EnvironmentLacks(
            f"{path}: cannot be written: {error}", hint="check free space and permissions"
        ) from error


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
