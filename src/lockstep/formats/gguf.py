"""GGUF files for the families: metadata, and one tensor at a time."""

from __future__ import annotations

from pathlib import Path

from lockstep.formats.leaf import collect
from lockstep.formats.locate.bounded import opened
from lockstep.formats.locate.gguf import MAGIC, read_headers
from lockstep.formats.mapped import MappedTensors


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do.

    Raises: InputError if it cannot be read.
    """
    with opened(path) as (file, _):
        return file.read(len(MAGIC)) == MAGIC


class GGUFFile(MappedTensors):
    """One file or all files of a split: metadata, the shape and type of each tensor, the tensors.

    The metadata of a split is that of its first file, whichever file was named.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file and reads all but its tensors.

        Raises: InputError if the file is not GGUF, is cut off or contradicts itself, or another
        file of its split is missing.
        """
        self.path = path
        headers = read_headers(path)
        self.metadata = headers[0].metadata
        self.files = tuple(h.identity for h in headers)
        super().__init__(
            str(path), collect([leaf for h in headers for leaf in h.leaves.values()], str(path))
        )
