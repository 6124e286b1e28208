"""In which form a file keeps a parameter, where it is not the form that we hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lockstep.ir import Array


@dataclass(frozen=True, slots=True)
class Form:
    """As it is; the other forms say what they change."""

    def shape(self, held: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the file keeps what we hold in."""
        return held

    def held(self, stored: Array) -> Array:
        """Our values from those of the file."""
        return stored

    def stored(self, held: Array) -> Array:
        """The file's values from ours."""
        return held

    def fault(self, stored: Array) -> str:
        """What no file of this form has: what was expected and found; empty if all is well."""
        return ""

    def gradient(self, stored: Array) -> Array:
        """The gradient of what we hold, from that of what the file keeps."""
        return self.held(stored)

    def row_order(self, n_rows: int) -> Array | None:
        """For each of our rows its row in the file; None where the values differ as well."""
        return np.arange(n_rows)


AS_IS = Form()


@dataclass(frozen=True, slots=True)
class LessOne(Form):
    """A gain of which the file keeps what it has beyond one, as in gemma: y = x (1 + w)."""

    def held(self, stored: Array) -> Array:
        """The gain itself."""
        return 1.0 + stored

    def stored(self, held: Array) -> Array:
        """What it has beyond one."""
        return held - 1.0

    def gradient(self, stored: Array) -> Array:
        """The same: it is a shift."""
        return stored

    def row_order(self, n_rows: int) -> Array | None:
        """None."""
        return None


@dataclass(frozen=True, slots=True)
class Pairs(Form):
    """Rows of queries or keys that lie in pairs for interleaved rope, head by head.

    Source: llama.cpp convert_hf_to_gguf.py, LlamaModel.permute.
    """

    n_heads: int

    def held(self, stored: Array) -> Array:
        """Rows in halves: pair j is (j, j + half)."""
        return split_pairs(stored, self.n_heads)

    def stored(self, held: Array) -> Array:
        """Rows in pairs: pair j is (2j, 2j + 1)."""
        return join_pairs(held, self.n_heads)

    def row_order(self, n_rows: int) -> Array | None:
        """The rows of the file, split."""
        return split_pairs(np.arange(n_rows), self.n_heads)


def join_pairs(rows_N: Array, n_heads: int) -> Array:
    """Rows of a query or key weight from half-split to interleaved order, head by head."""
    halves = rows_N.reshape(n_heads, 2, rows_N.shape[0] // n_heads // 2, *rows_N.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows_N.shape))


def split_pairs(rows_N: Array, n_heads: int) -> Array:
    """The inverse of `join_pairs`."""
    pairs = rows_N.reshape(n_heads, rows_N.shape[0] // n_heads // 2, 2, *rows_N.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows_N.shape))
