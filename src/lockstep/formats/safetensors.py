"""Files of the safetensors format: leaves read one at a time, and files written whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import EnvironmentLacks
from lockstep.formats.atomic import replacing
from lockstep.formats.locate.safetensors import read_header
from lockstep.formats.mapped import MappedTensors


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
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a file whole or not at all.

    Raises: EnvironmentLacks if the disk is full or the folder cannot be written.
    """
    # Here, because verifying needs numpy and the standard library only, and imports this room.
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        with replacing(path) as temporary:
            save_file(contiguous, temporary, metadata=dict(metadata or {}))
    except (OSError, SafetensorError) as error:
        raise EnvironmentLacks(
            f"{path}: cannot be written: {error}", hint="check free space and permissions"
        ) from error
