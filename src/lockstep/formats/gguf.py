"""GGUF files for the families: metadata, and one tensor at a time as float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lockstep.formats.elements import leaf_as_f32
from lockstep.formats.locate.gguf import read_header


class GGUFFile:
    """One file: metadata, the shape and type of each tensor, one tensor at a time as float32.

    Shapes are in the order of numpy, the slowest axis first.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file and reads all but its tensors.

        Raises: InputError if the file is not GGUF, is cut off or contradicts itself.
        """
        self.path = path
        self.where = str(path)
        header = read_header(path)
        self.metadata = header.metadata
        self._leaves = header.leaves
        self.shapes = {name: leaf.shape for name, leaf in header.leaves.items()}
        self.stored = {name: leaf.element.name for name, leaf in header.leaves.items()}

    def read(self, name: str) -> NDArray[Any]:
        """One tensor as float32.

        Raises: InputError if there is none, or float32 cannot hold it exactly.
        """
        return leaf_as_f32(self._leaves, name, self.where)
