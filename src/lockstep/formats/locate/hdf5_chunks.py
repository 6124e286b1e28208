"""Boxes of HDF5 datasets, decoded by h5py without converting any element."""

from __future__ import annotations

import os
import threading
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import InputError
from lockstep.formats.leaf import ElementType

# What h5py raises when a file is damaged, besides OSError.
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, NotImplementedError)
_BOX_BYTES = 4 << 20


class OpenFile:
    """A file that is opened when it is needed, once in each process."""

    def __init__(self, path: Path, h5py: Any) -> None:
        self.path = path
        self._h5py = h5py
        self._file: Any = None
        self._process = 0
        self._lock = threading.Lock()

    def root(self) -> Any:
        """The file, open.  Raises: OSError if it is none of HDF5."""
        with self._lock:
            if self._file is None or self._process != os.getpid():
                # No chunk is kept: the memory is the caller's to plan.
                self._file = self._h5py.File(self.path, "r", rdcc_nbytes=0, locking=False)
                self._process = os.getpid()
            return self._file

    def rewrite(self, name: str, words: NDArray[Any]) -> None:
        """Writes the elements of a dataset over, as they are."""
        self.close()
        with self._h5py.File(self.path, "r+", locking=False) as file:
            dataset = file[name].id
            dataset.write(dataset.get_space(), dataset.get_space(), words, dataset.get_type())

    def close(self) -> None:
        """Lets the file go until it is needed again."""
        with self._lock:
            if self._file is not None and self._process == os.getpid():
                self._file.close()
            self._file = None


def unreadable(where: str, error: Exception) -> InputError:
    """The error for a damaged file."""
    lines = str(error).splitlines() or [type(error).__name__]
    return InputError(
        f"{where}: expected HDF5, got something that cannot be read: {lines[0]:.200}",
        hint="restore the file from a copy; this one is damaged or was cut off",
    )


def box_shape(shape: tuple[int, ...], n_bytes: int) -> tuple[int, ...]:
    """A box of whole trailing axes with at most 4 MiB, or with one element."""
    left, box = max(_BOX_BYTES // n_bytes, 1), []
    for n in reversed(shape):
        box.append(min(n, left))
        left = max(left // n, 1)
    return tuple(reversed(box))


class Hdf5Chunks:
    """The chunks of one dataset, or boxes of one that is stored in another way."""

    flat = False
    sequential = False

    def __init__(
        self,
        opened: OpenFile,
        name: str,
        shape: tuple[int, ...],
        chunk: tuple[int, ...],
        element: ElementType,
        big_endian: bool,
    ) -> None:
        self._opened, self._name, self._leaf_shape = opened, name, shape
        self._element, self._big_endian = element, big_endian
        self.flat = not shape
        self.shape: tuple[int, ...] = chunk if shape else (1,)
        # The compressed chunk, the decoded one, and one more between two filters.
        self.peak_bytes = 3 * prod(self.shape) * element.n_bytes + (1 << 20)

    def read(self, index: tuple[int, ...], out: NDArray[np.uint8]) -> None:
        """Decodes one box into `out`.  Raises: InputError if it is damaged."""
        flat = out.reshape(-1)
        try:
            self._read(index, flat)
        except HDF5_ERRORS as error:
            raise unreadable(f"{self._opened.path}: {self._name}: chunk {index}", error) from error
        if self._big_endian:
            width = self._element.n_bytes // (2 if self._element.name in ("C64", "C128") else 1)
            flat.view(f"u{width}").byteswap(inplace=True)

    def rewrite(self, words: NDArray[Any]) -> None:
        """Writes all elements over, as the dataset's own filters have it.

        Raises: InputError if that cannot be done.
        """
        if self._big_endian:
            words = words.byteswap()
        try:
            self._opened.rewrite(self._name, np.ascontiguousarray(words))
        except HDF5_ERRORS as error:
            raise unreadable(f"{self._opened.path}: {self._name}", error) from error

    def _read(self, index: tuple[int, ...], flat: NDArray[np.uint8]) -> None:
        dataset = self._opened.root()[self._name].id
        space = dataset.get_space()
        if self._leaf_shape:
            start = tuple(i * c for i, c in zip(index, self.shape, strict=True))
            count = tuple(
                min(c, n - s) for c, n, s in zip(self.shape, self._leaf_shape, start, strict=True)
            )
            space.select_hyperslab(start, count)
            memory = space.copy()
            memory.set_extent_simple(count)
            memory.select_all()
        else:
            memory = dataset.get_space()
        # The type in memory is the type in the file, so no element is converted.
        dataset.read(memory, space, flat, dataset.get_type())
