"""Files of the safetensors format: the library checks the header, leaves are read one at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lockstep.errors import EnvironmentLacks, InputError
from lockstep.formats.elements import as_f32
from lockstep.formats.json_text import parse_json_object


class SafetensorsFile:
    """One file: the shape and stored type of each tensor, and one tensor at a time as float32."""

    def __init__(self, path: Path) -> None:
        """Opens a file.

        Raises: InputError if it is not a whole and valid safetensors file.
        """
        self.path = path
        self.where = str(path)
        try:
            with safe_open(str(path), framework="numpy") as checked:
                checked.keys()
            with path.open("rb") as file:
                n_header = int.from_bytes(file.read(8), "little")
                header = parse_json_object(file.read(n_header), f"{path} (header)")
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{path}: expected a safetensors file, got one that cannot be read: {error}",
                hint="download or write the file again",
            ) from error
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self._start = 8 + n_header
        self._spans = {name: tuple(entry["data_offsets"]) for name, entry in header.items()}
        self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        self.stored: dict[str, str] = {name: entry["dtype"] for name, entry in header.items()}

    def read(self, name: str) -> NDArray[Any]:
        """One tensor as float32.

        Raises: InputError if there is none, or float32 cannot hold it exactly.
        """
        if name not in self.shapes:
            raise InputError(f"{self.path}: expected a tensor {name}, got none")
        begin, end = self._spans[name]
        with self.path.open("rb") as file:
            file.seek(self._start + begin)
            raw = file.read(end - begin)
        return as_f32(raw, self.stored[name], self.shapes[name], f"{self.path} {name}")


def write_safetensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a file whole or not at all.

    Raises: EnvironmentLacks if the disk is full or the folder cannot be written.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file(contiguous, temporary, metadata=dict(metadata or {}))
            os.chmod(temporary, 0o644)  # mkstemp gave it to the owner alone
            sync(Path(temporary))
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise EnvironmentLacks(
            f"{path}: cannot be written: {error}", hint="check free space and permissions"
        ) from error


def sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
