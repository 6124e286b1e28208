"""Tensors on their way into a file, of which no more than one is in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.formats.dequantise import SUPPORTED
from lockstep.formats.quantise import quantise


@dataclass(frozen=True, slots=True)
class TensorToWrite:
    """A tensor, which is made when its turn has come.

    `rows` gives float32 numbers of the shape, or bytes that are of the stored type already.
    """

    shape: tuple[int, ...]
    stored: str
    rows: Callable[[], NDArray[Any]]

    @property
    def n_bytes(self) -> int:
        """The bytes that it takes in the file, before they are padded."""
        element = SUPPORTED[self.stored]
        return prod(self.shape) // element.n_numbers * element.n_bytes

    def made(self, name: str) -> NDArray[np.uint8]:
        """Its bytes; `name` is what to call it where a number does not fit.

        Raises: InputError if a number does not fit the type that it is to be stored in.
        """
        rows = self.rows()
        if rows.dtype != np.uint8:
            assert rows.shape == self.shape, f"{name}: {rows.shape} is not {self.shape}"
            rows = quantise(rows, self.stored, name)
        assert rows.nbytes == self.n_bytes, f"{name}: {rows.nbytes} bytes, not {self.n_bytes}"
        return np.ascontiguousarray(rows)
